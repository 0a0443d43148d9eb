# SPDX-License-Identifier: Apache-2.0
"""Places: what device and inode a hook sees."""

import os
import stat
from pathlib import Path

import pytest

from ksentinel.enforce.places import Place, chain, resolve
from ksentinel.errors import HostError

MOUNTS = "21 27 0:21 / /proc rw - proc proc rw\n27 1 254:3 / / rw - ext4 /dev/x rw\n28 27 0:41 / /x rw - overlay o rw\n"


@pytest.fixture
def told(tmp_path):
    """Return a function that resolves a path as if /proc said this of its descriptor."""

    def resolve_told(path, fdinfo, mounts=MOUNTS):
        (tmp_path / "mountinfo").write_text(mounts)
        for number in range(3, 64):
            (tmp_path / str(number)).write_text(fdinfo)
        return resolve(str(path), fdinfo=tmp_path, mountinfo=tmp_path / "mountinfo")

    return resolve_told


def test_device_is_the_mounts(told, tmp_path):
    """The device is the one of the mount, whatever stat says of the file; the inode is the kernel's own."""
    assert told(tmp_path, "pos:\t0\nflags:\t012000000\nmnt_id:\t28\nino:\t77\n") == Place(41, 77)
    assert told(tmp_path, "mnt_id:\t27\nino:\t77\n") == Place(254 << 20 | 3, 77)


def test_old_kernel(told, tmp_path):
    """Where the kernel doesn't tell the inode, stat does."""
    assert told(tmp_path, "mnt_id:\t27\n") == Place(254 << 20 | 3, tmp_path.stat().st_ino)


@pytest.mark.parametrize(
    ("fdinfo", "mounts", "says"),
    [
        ("pos:\t0\n", MOUNTS, "can't tell which mount"),
        ("mnt_id:\t99\nino:\t1\n", MOUNTS, "is on a mount that isn't in this namespace"),
        ("mnt_id:\t27\nino:\t1\n", "nonsense", "can't tell which mount"),
        ("mnt_id:\t27\nino:\t1\n", "27 1 nonsense /", "can't tell which mount"),
    ],
)
def test_untold(told, tmp_path, fdinfo, mounts, says):
    """What can't be found out is an error, not a place."""
    with pytest.raises(HostError, match=says):
        told(tmp_path, fdinfo, mounts)


def test_here(tmp_path):
    """On this host: links are followed, a hard link is the same place, what isn't there has none."""
    file, link, hard = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    file.write_text("")
    link.symlink_to(file)
    hard.hardlink_to(file)
    place = resolve(str(file))

    assert place is not None
    assert place.inode == file.stat().st_ino
    assert resolve(str(link)) == resolve(str(hard)) == place
    assert resolve(str(tmp_path / "gone")) is None
    assert resolve(f"{file}/below") is None
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(HostError, match="can't be looked at"):
        resolve(str(link))
    with pytest.raises(HostError, match="is no path"):
        resolve("/a\0b")


def test_nothing_is_waited_for(tmp_path):
    """A FIFO is looked at without being opened by anybody, and no descriptor stays open."""
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))

    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert resolve(str(tmp_path / "fifo")) is not None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_proc():
    """A file of another mount has another device than the directory that it seems to be in."""
    proc, root = resolve("/proc"), resolve("/")

    assert proc is not None
    assert root is not None
    assert proc.device != root.device


def test_chain(tmp_path):
    """A file, then each directory above it, links followed."""
    (tmp_path / "a").mkdir()
    (tmp_path / "l").symlink_to(tmp_path / "a")
    found = chain(str(tmp_path / "l"))

    assert found[:2] == (resolve(str(tmp_path / "a")), resolve(str(tmp_path)))
    assert found[-1] == resolve("/")
    assert len(found) == len((tmp_path / "a").parts)
    assert chain(str(tmp_path / "gone")) == ()
