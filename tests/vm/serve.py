# SPDX-License-Identifier: Apache-2.0
"""
Become another program that sees, in an empty directory, everything that is mounted here, and can write nothing of it.

A guest is root, could mount its root directory again for writing, and its file server would then write to the host's files.
"""

import ctypes
import os
import sys

_NEWNS = 0x20000  # sched.h
_BIND, _REC, _PRIVATE = 0x1000, 0x4000, 1 << 18  # sys/mount.h
_MOUNT_SETATTR = 442  # on every architecture
_AT_FDCWD, _AT_RECURSIVE, _ATTR_RDONLY = -100, 0x8000, 1


class _Attributes(ctypes.Structure):
    """struct mount_attr (linux/mount.h)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def main(directory: str, *command: str) -> None:
    """Bind ``/`` to *directory* with all below it, read-only, seen by nobody else, and become *command*."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.fsencode(directory)
    read_only = _Attributes(set=_ATTR_RDONLY)
    attributes = ctypes.byref(read_only), ctypes.c_size_t(ctypes.sizeof(read_only))
    number, recursive, private = (ctypes.c_long(_MOUNT_SETATTR), _BIND | _REC, _REC | _PRIVATE)
    said("unshare", libc.unshare(_NEWNS))
    said("mount", libc.mount(b"none", b"/", None, ctypes.c_ulong(private), None))
    said("mount", libc.mount(b"/", place, None, ctypes.c_ulong(recursive), None))
    said("mount_setattr", libc.syscall(number, _AT_FDCWD, place, _AT_RECURSIVE, *attributes))
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


def said(call: str, result: int) -> None:
    """End if a call has failed."""
    if result:
        why = os.strerror(ctypes.get_errno())
        sys.exit(f"serve: {call}: {why} (a read-only view of / needs root and Linux 5.12)")


if __name__ == "__main__":
    main(*sys.argv[1:])
