# SPDX-License-Identifier: Apache-2.0
"""Places: files as the kernel's hooks know them, by device and inode, whatever name they were reached by."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ksentinel.errors import HostError

_GONE = {errno.ENOENT, errno.ENOTDIR}
_MINOR_BITS = 20
_AMBIGUOUS = frozenset({"btrfs", "bcachefs"})


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """
    A file or a directory.

    Attributes
    ----------
    device
        Of the file system, as the kernel has it and mountinfo shows it: major << 20 | minor.
    """

    device: int
    inode: int


Resolve = Callable[[str], Place | None]
"""Finds the place of an absolute path; None if nothing is there."""


def resolve(
    path: str,
    *,
    fdinfo: Path = Path("/proc/self/fdinfo"),
    mountinfo: Path = Path("/proc/self/mountinfo"),
) -> Place | None:
    """
    Return where *path* leads, after links; None if nothing is there.

    ``stat`` isn't asked: overlay and btrfs tell it device numbers that no hook sees. The mount that the file is on has the
    right one. The file is opened with O_PATH, so nothing is read, waited for or set off.

    Raises
    ------
    HostError
        If it is there, or may be, and can't be looked at.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise HostError(
            f"can't be looked at: {error.strerror}", at=path, remedy="run as root, or name another"
        ) from error
    except ValueError as error:  # a NUL in it
        raise HostError(f"is no path: {error}", at=repr(path)) from error
    try:
        told = dict(
            line.split(":", 1)
            for line in (fdinfo / str(descriptor)).read_text().splitlines()
            if line.startswith(("mnt_id:", "ino:"))
        )
        # Kernels before 5.14 don't tell the inode there.
        inode = int(told["ino"]) if "ino" in told else os.fstat(descriptor).st_ino
        device, kind = _mount(int(told["mnt_id"]), mountinfo)
    except (OSError, KeyError, ValueError) as error:
        raise HostError(f"can't tell which mount {path} is on: {error}", remedy="mount /proc") from error
    finally:
        os.close(descriptor)
    if device is None:
        raise HostError("is on a mount that isn't in this namespace", at=path, remedy="name another")
    if kind in _AMBIGUOUS:
        raise HostError(
            f"is on {kind}, where files of different subvolumes have the same number: guards can't tell them apart",
            at=path,
            remedy="name it in a rule, by its path",
        )
    return Place(device, inode)


def chain(path: str, find: Resolve = resolve) -> tuple[Place, ...]:
    """
    Return the place of *path*, after links, and of each directory above it, the nearest first; empty if nothing is there.

    A directory that something is mounted on is the mounted one; the kernel passes by the other, too, and by what lies above a part
    of a file system that is mounted by itself.
    """
    real = Path(os.path.realpath(path))
    found = [find(str(one)) for one in (real, *real.parents)]
    return tuple(place for place in found if place is not None) if found[0] is not None else ()


def _mount(mount: int, mountinfo: Path) -> tuple[int | None, str]:
    """Return device and kind of the file system at a mount."""
    for line in mountinfo.read_bytes().splitlines():
        number, _, device = line.split(b" ", 3)[:3]
        if int(number) == mount:
            major, minor = device.split(b":")
            kind = line.partition(b" - ")[2].partition(b" ")[0].decode("ascii", "replace")
            return int(major) << _MINOR_BITS | int(minor), kind
    return None, ""
