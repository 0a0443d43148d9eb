# SPDX-License-Identifier: Apache-2.0
"""Files below a protected directory, by every call that leads to them: refused, or told; beside it nothing happens."""

import ctypes
import errno
import lzma
import os
import socket
import stat
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest
from vm.guest.calls import (
    AT_FDCWD,
    AT_SYMLINK_FOLLOW,
    MS_BIND,
    checked,
    in_child,
    libc,
    mount,
    own_mounts,
    syscall,
    umount,
)
from vm.guest.workload import NEW, Op, ended, forbidden, named, untouched, walk

from ksentinel.enforce import Mode
from ksentinel.event import Outcome

TAKES = 45
TOGETHER = "most guards"

ENTRIES = """
entries:
  - {id: under, deny: [read, write, create, unlink, rename, link, attributes], file: {under: [%(under)s]}}
  - {id: marked, deny: [read, write], file: {is: [%(marked)s]}}
"""
RENAME_EXCHANGE = 2
NOBODY = 65534
OPEN = ("file_open",)
CUT = () if NEW else ("path_truncate",)


class Spot:
    """What an operation finds: *here* a file, an open one, and an empty directory; *outside* a file, and a hard link to a marked one."""

    def __init__(self, here, outside, marked, after):
        self.here, self.outside = here, outside
        for folder in (here, outside):
            folder.mkdir(parents=True)
            (folder / "file").write_text("x")
        (here / "dir").mkdir()
        self.file, self.new, self.other = here / "file", here / "new", outside / "file"
        self.hard = outside / "hard"
        self.hard.hardlink_to(marked)
        self.fd = os.open(self.file, os.O_RDWR)
        after.callback(os.close, self.fd)


def opened(path, flags=os.O_RDONLY):
    os.close(os.open(path, flags, 0o600))


def openat2(spot):
    os.close(syscall("openat2", AT_FDCWD, os.fsencode(spot.file), struct.pack("QQQ", os.O_RDONLY, 0, 0), 24))


def from_nowhere(spot):
    descriptor = os.open(spot.outside, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        old, new = f"/proc/self/fd/{descriptor}".encode(), os.fsencode(spot.new)
        checked(libc.linkat(AT_FDCWD, old, AT_FDCWD, new, AT_SYMLINK_FOLLOW))
    finally:
        os.close(descriptor)


def exchanged(spot):
    one, other = os.fsencode(spot.other), os.fsencode(spot.file)
    checked(libc.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE))


def reopened(spot):
    seen = os.open(spot.file, os.O_PATH)
    try:
        opened(f"/proc/self/fd/{seen}", os.O_RDWR)
    finally:
        os.close(seen)


def by_handle(spot):
    handle = ctypes.create_string_buffer(struct.pack("II", 120, 0), 128)
    syscall("name_to_handle_at", AT_FDCWD, os.fsencode(spot.file), handle, ctypes.byref(ctypes.c_int()), 0)
    tree = os.open(spot.outside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(syscall("open_by_handle_at", tree, handle, os.O_RDONLY))
    finally:
        os.close(tree)


def listening(spot):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(spot.new))


def bound(spot):
    own_mounts()
    (spot.outside / "at").mkdir()
    mount(spot.here, spot.outside / "at", flags=MS_BIND)
    opened(spot.outside / "at" / "file")


def mounted_over(spot):
    own_mounts()
    mount(spot.outside, spot.here / "dir", flags=MS_BIND)
    opened(spot.here / "dir" / "file")


def in_chroot(spot):
    os.chroot(spot.here)
    opened("/file")


def relative(spot):
    os.chdir(spot.here)
    opened("./dir/../file")


OPS = (
    Op("read", lambda s: opened(s.file), OPEN),
    Op("write", lambda s: opened(s.file, os.O_WRONLY), OPEN),
    Op("read and write", lambda s: opened(s.file, os.O_RDWR), OPEN),
    Op("cut while opened", lambda s: opened(s.file, os.O_WRONLY | os.O_TRUNC), OPEN + CUT),
    Op("read a directory", lambda s: opened(s.here, os.O_RDONLY | os.O_DIRECTORY), OPEN),
    Op("create", lambda s: opened(s.new, os.O_CREAT | os.O_WRONLY), ("path_mknod", "file_open")),
    Op("openat2", openat2, OPEN),
    Op("file without a name", lambda s: opened(s.here, os.O_TMPFILE | os.O_RDWR), OPEN),
    Op("name for a file without one", from_nowhere, ("path_link",)),
    Op("through O_PATH", reopened, OPEN),
    Op("by handle", by_handle, OPEN),
    Op("by a symbolic link", lambda s: opened(linked(s)), OPEN),
    Op("by a hard link", lambda s: opened(s.hard), OPEN),
    Op("relative", lambda s: in_child(lambda: relative(s)), OPEN),
    Op("through a bind mount", lambda s: in_child(lambda: bound(s)), OPEN),
    Op("mounted over", lambda s: in_child(lambda: mounted_over(s)), OPEN),
    Op("in a chroot", lambda s: in_child(lambda: in_chroot(s)), OPEN),
    Op("unlink", lambda s: s.file.unlink(), ("path_unlink",)),
    Op("rmdir", lambda s: (s.here / "dir").rmdir(), ("path_rmdir",)),
    Op("mkdir", lambda s: s.new.mkdir(), ("path_mkdir",)),
    Op("mknod", lambda s: os.mknod(s.new, stat.S_IFIFO | 0o600), ("path_mknod",)),
    Op("socket", listening, ("path_mknod",)),
    Op("symlink", lambda s: s.new.symlink_to("nowhere"), ("path_symlink",)),
    Op("link out", lambda s: (s.outside / "new").hardlink_to(s.file), ("path_link",)),
    Op("link in", lambda s: s.new.hardlink_to(s.other), ("path_link",)),
    Op("rename out", lambda s: s.file.rename(s.outside / "new"), ("path_rename",)),
    Op("rename in", lambda s: s.other.rename(s.new), ("path_rename",)),
    Op("exchange", exchanged, ("path_rename",)),
    Op("truncate", lambda s: os.truncate(s.file, 0), ("path_truncate",)),
    Op("chmod", lambda s: s.file.chmod(0o640), ("path_chmod",)),
    Op("fchmod", lambda s: os.fchmod(s.fd, 0o640), ("path_chmod",)),
    Op("chown", lambda s: os.chown(s.file, NOBODY, -1), ("path_chown",)),
    Op("lchown", lambda s: os.lchown(s.file, NOBODY, -1), ("path_chown",)),
    Op("fchown", lambda s: os.fchown(s.fd, -1, NOBODY), ("path_chown",)),
)


def linked(spot):
    (spot.outside / "link").symlink_to(spot.file)
    return spot.outside / "link"


@pytest.fixture
def trees(tmp_path):
    """A protected directory and an open one, and what is made in one of them for each operation."""
    for name in ("protected", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "marked").write_text("x")
    with ExitStack() as after:
        yield (
            lambda which: (
                lambda op: Spot(
                    tmp_path / which / named(op),
                    tmp_path / "outside" / which / named(op),
                    tmp_path / which / "marked",
                    after,
                )
            )
        )


def policy(guards, tmp_path, **settings):
    return guards.use(
        ENTRIES % {"under": tmp_path / "protected", "marked": tmp_path / "protected/marked"}, **settings
    )


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_forbidden(guards, trees, tmp_path, mode):
    """Each is refused and told once; permissive, each goes on and is told by every guard that it comes by."""
    policy(guards, tmp_path)

    assert walk(guards, OPS, trees("protected"), mode) == forbidden(OPS, mode)


def test_beside(guards, trees, tmp_path):
    """The same beside the protected directory: nothing is refused, nothing is told."""
    policy(guards, tmp_path)

    assert walk(guards, OPS, trees("open"), Mode.ENFORCE) == untouched(OPS)


def test_deep(guards, trees, tmp_path):
    """Below a hundred directories it is the same."""
    policy(guards, tmp_path)
    ops = [Op("create deep", lambda _: opened("x", os.O_CREAT | os.O_RDWR), ("path_mknod", "file_open"))]
    guards.guards.mode = Mode.OFF
    before = Path.cwd()
    try:
        dig(tmp_path / "protected", 100)
        found = walk(guards, ops, lambda _: None, Mode.ENFORCE)
    finally:
        guards.guards.mode = Mode.OFF
        os.chdir(before)

    assert found == forbidden(ops, Mode.ENFORCE)


def dig(start, count):
    """Go down so many directories below *start*."""
    os.chdir(start)
    for _ in range(count):
        Path("d").mkdir()
        os.chdir("d")


@pytest.mark.parametrize(
    ("posture", "where", "expected"),
    [
        # Its place can't be told, and open means that it is in none.
        ("open", "protected", (0, [])),
        ("closed", "protected", (1, [("path_mknod", Outcome.DENIED, True)])),
        # That it isn't protected can't be told either.
        ("closed", "open", (1, [("path_mknod", Outcome.DENIED, True)])),
    ],
)
def test_too_deep(guards, trees, tmp_path, posture, where, expected):
    """Deeper than guards look it is the posture that decides; either way it is counted."""
    policy(guards, tmp_path, posture=posture)
    guards.guards.mode = Mode.OFF
    before, counted = Path.cwd(), guards.guards.counters()["too_deep"]
    try:
        dig(tmp_path / where, 270)
        guards.guards.mode = Mode.ENFORCE
        error = ended(lambda: opened("x", os.O_CREAT | os.O_RDWR))
    finally:
        guards.guards.mode = Mode.OFF
        os.chdir(before)
    said = [(one.hook, one.outcome, one.untold) for one in guards.denials(0)]

    assert (error, said) == expected
    assert guards.guards.counters()["too_deep"] > counted


def test_not_refused(guards, trees, tmp_path):
    """What opens nothing, or was opened before: the guards aren't asked."""
    policy(guards, tmp_path)
    ops = [
        Op("look", lambda s: s.file.stat(), ()),
        Op("O_PATH", lambda s: opened(s.file, os.O_PATH), ()),
        Op("read what is open", lambda s: os.read(s.fd, 1), ()),
        Op("write what is open", lambda s: os.write(s.fd, b"y"), ()),
        Op("times", lambda s: os.utime(s.file), ()),
        Op("attribute", lambda s: os.setxattr(s.file, "trusted.x", b"y"), ()),
        *([Op("cut what is open", lambda s: os.ftruncate(s.fd, 0), ())] if NEW else []),
    ]

    assert walk(guards, ops, trees("protected"), Mode.ENFORCE) == untouched(ops)


@pytest.mark.skipif(NEW, reason="this kernel asks about open files at a hook of their own")
def test_cut(guards, trees, tmp_path):
    """Where one hook is asked about both, an open file can't be cut either."""
    policy(guards, tmp_path)
    ops = [Op("cut what is open", lambda s: os.ftruncate(s.fd, 0), ("path_truncate",))]

    assert walk(guards, ops, trees("protected"), Mode.ENFORCE) == forbidden(ops, Mode.ENFORCE)


@pytest.fixture
def overlay(tmp_path):
    """A file system laid over two directories; the kernel's own module is loaded for it."""
    if "overlay" not in Path("/proc/filesystems").read_text():
        (module,) = Path("build/vm").glob(
            f"*/lib/modules/{os.uname().release}/kernel/fs/overlayfs/overlay.ko*"
        )
        content = module.read_bytes()
        content = lzma.decompress(content) if module.suffix == ".xz" else content
        syscall("init_module", content, len(content), b"")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "file").write_text("x")
    mount("overlay", tmp_path / "merged", "overlay", data=",".join(
        [f"lowerdir={tmp_path / 'lower'}", f"upperdir={tmp_path / 'upper'}", f"workdir={tmp_path / 'work'}"]
    ))  # fmt: skip
    yield tmp_path
    umount(tmp_path / "merged", 2)


@pytest.mark.parametrize("protected", ["merged", "lower", "upper"])
def test_overlay(guards, overlay, protected):
    """What is protected below an overlay isn't always so through it; the merged view is a tree of its own."""
    guards.use(ENTRIES % {"under": overlay / protected, "marked": overlay / "none"})
    file = overlay / "merged" / "file"
    found = {
        "read": ended(lambda: opened(file)) == errno.EPERM,
        "write": ended(lambda: opened(file, os.O_WRONLY)) == errno.EPERM,
        "unlink": ended(file.unlink) == errno.EPERM,
    }
    guards.guards.mode = Mode.OFF

    assert (
        found
        == {
            "merged": {"read": True, "write": True, "unlink": True},
            # New kernels open the file below by its own path, old ones by the path above it; to be written it is copied, and so read.
            "lower": {"read": NEW, "write": True, "unlink": False},
            "upper": {"read": False, "write": NEW, "unlink": False},
        }[protected]
    )
