# SPDX-License-Identifier: Apache-2.0
"""What already runs, read from a made-up ``/proc``."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.event import ProcessKey
from ksentinel.sources import procfs
from ksentinel.sources.procfs import Running, running


def process(
    proc, pid, *, comm=b"cat", parent=1, session=5, start=1234, exe="/bin/cat", cwd="/srv",
    cmdline=b"cat\0-n\0", uids="1\t2\t3\t4", loginuid=b"1000",
):  # fmt: skip
    """Write a process as /proc shows it."""
    place = proc / str(pid)
    place.mkdir(parents=True)
    after = [b"S", b"%d" % parent, b"7", b"%d" % session, *[b"0"] * 15, b"%d" % start, *[b"0"] * 20]
    (place / "stat").write_bytes(b"%d (%s) %s\n" % (pid, comm, b" ".join(after)))
    (place / "status").write_bytes(b"Name:\t%s\nUid:\t%s\nGid:\t9\t9\t9\t9\n" % (comm, uids.encode()))
    (place / "cmdline").write_bytes(cmdline)
    if loginuid is not None:
        (place / "loginuid").write_bytes(loginuid)
    for name, target in (("exe", exe), ("cwd", cwd)):
        if target is not None:
            (place / name).symlink_to(target)
    return place


def one(proc):
    (found,) = running(proc)
    return found


def test_process(tmp_path):
    """Everything that is known of a process."""
    process(tmp_path, 42)

    assert one(tmp_path) == Running(
        key=ProcessKey(42, 12_340_000_000),
        parent_pid=1,
        exe="/bin/cat",
        argv=("cat", "-n"),
        uid=1,
        euid=2,
        auid=1000,
        session=5,
        cwd="/srv",
        comm="cat",
    )


@pytest.mark.parametrize(
    "comm", [b"a b", b"a) R 99 (b", b")", b"((", b"", b"x)\n42 (y", b"\xff\xfe", "é".encode()]
)
def test_names(tmp_path, comm):
    """A name with parentheses, blanks, line ends or bytes of no encoding shifts nothing."""
    process(tmp_path, 42, comm=comm)
    found = one(tmp_path)

    assert (found.comm, found.parent_pid, found.session) == (comm.decode(errors="surrogateescape"), 1, 5)


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_any_name(tmp_path_factory, comm):
    """Nor does any other."""
    proc = tmp_path_factory.mktemp("proc")
    process(proc, 42, comm=comm)
    found = one(proc)

    assert found.comm == comm.decode(errors="surrogateescape")
    assert found.key == ProcessKey(42, 12_340_000_000)


@pytest.mark.parametrize(
    ("cmdline", "argv"),
    [
        (b"", ()),
        (b"a\0", ("a",)),
        (b"a\0\0b\0", ("a", "", "b")),
        (b"nginx: master process\0\0\0\0", ("nginx: master process",)),
        (b"no end", ("no end",)),
        (b"\xff\0", ("\udcff",)),
    ],
)
def test_arguments(tmp_path, cmdline, argv):
    """Arguments as they are; the padding of a rewritten title is none."""
    process(tmp_path, 42, cmdline=cmdline)

    assert one(tmp_path).argv == argv


@pytest.mark.parametrize(
    ("loginuid", "auid"), [(b"1000\n", 1000), (b"4294967295", None), (b"", None), (None, None)]
)
def test_login(tmp_path, loginuid, auid):
    """Nobody logged in, or a kernel without audit: no login uid."""
    process(tmp_path, 42, loginuid=loginuid)

    assert one(tmp_path).auid == auid


@pytest.mark.parametrize(
    ("link", "exe"),
    [
        ("/usr/sbin/nginx (deleted)", "/usr/sbin/nginx"),
        ("/memfd:x (deleted)", "/memfd:x (deleted)"),
        ("/opt/a b", "/opt/a b"),
        (b"/opt/\xff", "/opt/\udcff"),
        (None, ""),
    ],
)
def test_executable(tmp_path, link, exe):
    """A replaced file is the program it was, one in memory stays what it is; a kernel thread has none."""
    process(tmp_path, 42, exe=None if link is None else os.fsdecode(link))

    assert one(tmp_path).exe == exe


def test_unreadable_executable(tmp_path, monkeypatch):
    """What another user's process runs may not be seen: the rest is."""
    process(tmp_path, 42)

    def refuse(self):
        raise PermissionError(self)

    monkeypatch.setattr(procfs.Path, "readlink", refuse)

    assert (one(tmp_path).exe, one(tmp_path).cwd, one(tmp_path).uid) == ("", "", 1)


def test_what_is_no_process(tmp_path):
    """Other entries of /proc are passed over, digits of other scripts too."""
    process(tmp_path, 42)
    for name in ("sys", "self", "4x", "٤٢", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "uptime").write_text("1 2")
    (tmp_path / "7").write_text("no directory")

    assert [found.key.pid for found in running(tmp_path)] == [42]


@pytest.mark.parametrize("error", [FileNotFoundError, ProcessLookupError, PermissionError])
@pytest.mark.parametrize("name", ["stat", "status"])
def test_vanished(tmp_path, monkeypatch, name, error):
    """A process that ends while it is looked at, or is hidden, is left out; the others are not."""
    process(tmp_path, 41)
    process(tmp_path, 42)
    read = procfs.Path.read_bytes

    def vanishing(self):
        if self == tmp_path / "41" / name:
            raise error(self)
        return read(self)

    monkeypatch.setattr(procfs.Path, "read_bytes", vanishing)

    assert [found.key.pid for found in running(tmp_path)] == [42]


def test_parents_come_first(tmp_path):
    """Also after PIDs have wrapped: a child may have the smaller number."""
    process(tmp_path, 1, parent=0, start=0)
    process(tmp_path, 30000, parent=1, start=500)
    process(tmp_path, 300, parent=30000, start=600)
    process(tmp_path, 299, parent=300, start=601)
    process(tmp_path, 2, parent=0, start=0)

    assert [found.key.pid for found in running(tmp_path)] == [1, 2, 30000, 300, 299]


def test_this_host():
    """This very process is among them."""
    (found,) = [process for process in running() if process.key.pid == os.getpid()]

    assert (found.parent_pid, found.uid, found.cwd) == (os.getppid(), os.getuid(), os.getcwd())  # noqa: PTH109
