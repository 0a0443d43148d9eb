# SPDX-License-Identifier: Apache-2.0
"""The control socket's place: safe, replaced when it is stale, kept when it is live, left without a trace."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ksentinel.endpoint import Endpoint
from ksentinel.errors import InputError

OWN = os.getuid()


@pytest.fixture
def path(tmp_path):
    """Return where a socket can be; its directory isn't there yet."""
    return tmp_path / "run" / "control.sock"


def endpoint(path, gid=None):
    return Endpoint(path, gid, OWN)


def connects(path):
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_comes_and_goes(path):
    """It listens inside the block; afterwards nothing is left, the directory neither."""
    with endpoint(path) as made:
        assert connects(path)
        assert not made.listener.getblocking()
        assert (mode(path.parent), mode(path)) == (0o750, 0o600)

    assert not path.parent.exists()


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes(path, umask):
    """Whatever the umask; with a group, its members can connect."""
    before = os.umask(umask)
    try:
        with endpoint(path, os.getgid()):
            assert (mode(path.parent), mode(path)) == (0o750, 0o660)
            assert path.stat().st_gid == path.parent.stat().st_gid == os.getgid()
    finally:
        os.umask(before)


@pytest.mark.root
def test_group(path):
    """The group is that which was named."""
    with endpoint(path, 54321):
        assert (path.stat().st_gid, path.parent.stat().st_gid) == (54321, 54321)


def test_directory_of_somebody_stays(path):
    """A directory that was there, or isn't empty, isn't removed, and keeps its mode."""
    path.parent.mkdir(mode=0o755)
    with endpoint(path):
        pass

    assert list(path.parent.iterdir()) == []
    assert mode(path.parent) == 0o755


def test_directory_that_others_moved_into(path):
    """What has come meanwhile stays."""
    with endpoint(path):
        (path.parent / "other").touch()

    assert [one.name for one in path.parent.iterdir()] == ["other"]


def killed(path):
    """Leave what a daemon leaves that was killed."""
    code = (
        "import os, sys; from pathlib import Path; from ksentinel.endpoint import Endpoint\n"
        "with Endpoint(Path(sys.argv[1]), None, os.getuid()): os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], check=False, timeout=60)
    assert ran.returncode == -signal.SIGKILL
    assert path.is_socket()
    assert not connects(path)


def test_stale(path):
    """What a killed daemon left is replaced."""
    killed(path)
    with endpoint(path):
        assert connects(path)

    assert list(path.parent.iterdir()) == []


def test_live(path):
    """Where somebody listens there is no room; the remedy is said, and they listen on."""
    with endpoint(path):
        with (
            pytest.raises(InputError, match=f"is in use by process {os.getpid()}") as wrong,
            endpoint(path),
        ):
            pass
        assert connects(path)

    assert "--control" in wrong.value.remedy


def test_live_without_lock(path):
    """Somebody who listens there without our lock is somebody all the same, with their hands full, too."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(InputError, match="is in use already"), endpoint(path):
            pass
        for client in waiting:
            client.close()
        assert path.is_socket()


def test_two_at_once(path):
    """Of many that start at once on what a killed one has left, exactly one is there."""
    killed(path)
    code = (
        "import os, sys; from pathlib import Path; from ksentinel.endpoint import Endpoint\n"
        "from ksentinel.errors import InputError\n"
        "sys.stdin.read(1)\n"
        "try:\n"
        "    with Endpoint(Path(sys.argv[1]), None, os.getuid()): print('in', flush=True); sys.stdin.read(1)\n"
        "except InputError as error: print(error.what, flush=True)"
    )
    command = [sys.executable, "-c", code, path]
    ran = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    for one in ran:
        one.stdin.write("x")
        one.stdin.flush()
    told = [one.stdout.readline() for one in ran]
    for one in ran:
        one.communicate("x")

    assert told.count("in\n") == 1
    assert all(line.startswith(("in", "is in use")) for line in told)
    assert list(path.parent.iterdir()) == []


def test_taken_over(path):
    """What isn't its own socket any more isn't removed."""
    with endpoint(path):
        path.unlink()
        path.write_text("somebody else's")

    assert path.read_text() == "somebody else's"


def make_file(path):
    path.write_text("kept")


def make_link(path):
    path.symlink_to("elsewhere.sock")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_file, "is there already and is no socket"),
        (Path.mkdir, "is there already and is no socket"),
        (make_link, "is a symbolic link"),
    ],
)
def test_something_else(path, make, said):
    """What stands there and is no socket stays as it is."""
    path.parent.mkdir()
    make(path)
    before = path.lstat()
    with pytest.raises(InputError, match=said) as wrong, endpoint(path):
        pass

    assert wrong.value.at == path
    assert "--control" in wrong.value.remedy
    assert path.lstat() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_another_kind_of_socket(path):
    """One of another kind is somebody's."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(InputError, match="Protocol wrong type for socket"), endpoint(path):
            pass

    assert path.is_socket()


@pytest.mark.parametrize(
    ("bits", "refused"), [(0o700, False), (0o755, False), (0o770, True), (0o702, True), (0o1777, True)]
)
def test_directory_writable_by_others(path, bits, refused):
    """Where others could put a socket there is no place for ours, in /tmp neither."""
    path.parent.mkdir()
    path.parent.chmod(bits)
    if refused:
        with pytest.raises(InputError, match="is writable by others") as wrong, endpoint(path):
            pass
        assert wrong.value.at == path.parent
        assert list(path.parent.iterdir()) == []
    else:
        with endpoint(path):
            assert connects(path)


@pytest.mark.parametrize(("bits", "refused"), [(0o777, True), (0o1777, False)])
def test_directory_that_others_could_move(tmp_path, bits, refused):
    """The same holds further up, but for directories where only an owner can move what is theirs."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(bits)
    path = above / "run" / "control.sock"
    path.parent.mkdir()
    if refused:
        with pytest.raises(InputError, match="is writable by others") as wrong, endpoint(path):
            pass
        assert wrong.value.at == above
    else:
        with endpoint(path):
            assert connects(path)


@pytest.mark.root
def test_directory_of_somebody_else(path):
    """Whose directory it is, theirs would be the socket."""
    path.parent.mkdir()
    os.chown(path.parent, 12345, 12345)
    with pytest.raises(InputError, match="belongs to uid 12345"), endpoint(path):
        pass


def test_directory_by_a_link(path, tmp_path):
    """A symbolic link may lead elsewhere tomorrow."""
    (tmp_path / "real").mkdir()
    path.parent.symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="is a symbolic link") as wrong, endpoint(path):
        pass

    assert wrong.value.at == path.parent
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/control.sock", "No such file or directory"),
        ("file/control.sock", "is no directory"),
        ("x" * 100 + "/" + "y" * 100, "is longer than the 107 bytes"),
    ],
)
def test_no_place(tmp_path, name, said):
    """What can't be there is said in one line, and nothing is left."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=said) as wrong, endpoint(tmp_path / name):
        pass

    assert wrong.value.remedy
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_lock_that_is_somebodys_file(path):
    """A file with something in it is not ours to remove."""
    path.parent.mkdir()
    lock = path.with_name("control.sock.lock")
    lock.write_text("kept")
    with endpoint(path):
        pass

    assert lock.read_text() == "kept"
