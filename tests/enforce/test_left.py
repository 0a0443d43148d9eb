# SPDX-License-Identifier: Apache-2.0
"""What runs leave: whose it is, whether that goes on, and that it is let go by one field."""

import mmap
import os
from contextlib import contextmanager

import pytest

from ksentinel.bpf import abi
from ksentinel.bpf.guard_abi import Sentence, Sentenced, Switch
from ksentinel.enforce import left as module
from ksentinel.enforce.left import SENTENCES, SWITCHES, Left, left
from ksentinel.errors import HostError
from ksentinel.event import ProcessKey

SECOND = 1_000_000_000
ME = os.geteuid()


def run(folder, pid=7, began=100):
    """Return a run's folder."""
    one = folder / f"{pid}-{began * SECOND}"
    one.mkdir(parents=True)
    return Left(one)


@pytest.mark.parametrize(
    ("name", "pid", "began"),
    [
        ("7-100", 7, 100),
        ("7", 0, 0),
        ("7-", 0, 0),
        ("-7-1", 0, 0),
        ("x-1", 0, 0),
        ("\N{SUPERSCRIPT TWO}-1", 0, 0),
        ("", 0, 0),
    ],
)
def test_name(tmp_path, name, pid, began):
    """A folder's name says whose it is; of another name it is nobody's."""
    one = Left(tmp_path / name if name else tmp_path.with_name("other"))

    assert (one.pid, one.began_ns) == (pid, began)


@pytest.mark.parametrize(("started", "runs"), [(None, False), (99, True), (100, True), (101, False)])
def test_runs(tmp_path, started, runs):
    """It goes on if its process does; whoever has that number since, began later."""
    one = run(tmp_path)

    def key_of(pid):
        return None if started is None else ProcessKey(pid, started * SECOND)

    assert one.runs(key_of) is runs
    assert not Left(tmp_path / "strange").runs(key_of)


def test_left(tmp_path):
    """All folders, the first that began first; files aren't any, and where there is no such place there is nothing."""
    later, first = run(tmp_path, 5, 200), run(tmp_path, 9, 100)
    (tmp_path / "file").touch()

    assert left(tmp_path, ME) == [first, later]
    assert left(tmp_path / "nowhere", ME) == []


def test_left_writable(tmp_path):
    """Where anybody may put something, nothing is believed."""
    run(tmp_path)
    tmp_path.chmod(0o777)
    with pytest.raises(HostError, match="writable by others"):
        left(tmp_path, ME)


@pytest.mark.root
def test_left_of_another(tmp_path):
    """Nor where it is somebody else's."""
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(HostError, match="belongs to uid 12345"):
        left(tmp_path, 0)


def test_holds(tmp_path):
    """The programs that are pinned, and no maps."""
    one = run(tmp_path)
    for name in ("switches", "on_file_open", "on_exit"):
        (one.folder / name).touch()

    assert one.holds == ("on_exit", "on_file_open")
    assert Left(tmp_path / "nowhere").holds == ()


def test_remove(tmp_path, monkeypatch):
    """Guards first, then what tells them who is who; then nothing is there, and that there is nothing is fine."""
    one = run(tmp_path)
    names = ["on_exit", "on_fork", "on_exec", "on_file_open", "on_bpf"]
    for name in names:
        (one.folder / name).touch()
    gone = []
    unlink = module.Path.unlink
    monkeypatch.setattr(module.Path, "unlink", lambda path: (gone.append(path.name), unlink(path)))
    one.remove()
    one.remove()

    assert {*gone[:2]} == {"on_file_open", "on_bpf"}
    assert sorted(gone) == sorted(names)
    assert not one.folder.exists()


def test_remove_refused(tmp_path):
    """What can't be removed is said."""
    one = run(tmp_path)
    (one.folder / "folder").mkdir()
    with pytest.raises(HostError, match="can't be removed"):
        one.remove()


class _Map:
    """A map: one descriptor, and what can be looked up."""

    def __init__(self, fd, values=()):
        self.fd, self.values = fd, values

    def keys(self, _kind):
        return [key for key, _ in self.values]

    def lookup(self, key, _kind):
        return next(value for one, value in self.values if one is key)


@pytest.fixture
def maps(monkeypatch):
    """Return what is pinned, by name."""
    there = {}

    @contextmanager
    def opened(path):
        yield there.get(path.name)

    monkeypatch.setattr(module, "_opened", opened)
    return there


def test_release(tmp_path, maps):
    """One field is stored, and no other: whoever runs stores others meanwhile. Without a switch that is said."""
    with (tmp_path / "memory").open("w+b") as memory:
        memory.truncate(mmap.PAGESIZE)
        memory.write(bytes(Switch(mode=3, heartbeat_ns=1 << 60, most=2, canary_tid=5)))
        memory.flush()
        maps[SWITCHES] = _Map(memory.fileno())
        released = run(tmp_path).release()
        memory.seek(0)
        switch = Switch.from_buffer_copy(memory.read(256))
    none = maps.clear() or Left(tmp_path).release()

    assert (released, none) == (True, False)
    assert bytes(switch) == bytes(Switch(mode=3, heartbeat_ns=1 << 60, most=2, canary_tid=5, released=1))


def test_release_refused(tmp_path, maps):
    """A switch that can't be reached is an error with its place."""
    with (tmp_path / "empty").open("w+b") as memory:
        maps[SWITCHES] = _Map(memory.fileno())
        with pytest.raises(HostError, match="switches: can't be switched"):
            run(tmp_path).release()


def test_sentences(tmp_path, maps):
    """Who is under a verdict; nobody where the map isn't there."""
    key, value = Sentenced(tgid=5, start_ns=10_000_000), Sentence(until_ns=9, rule=3)
    none = run(tmp_path).sentences()
    maps[SENTENCES] = _Map(1, [(key, value)])

    assert none == {}
    assert run(tmp_path, 8).sentences() == {ProcessKey(5, 10_000_000): value}


def test_scores(tmp_path, maps, monkeypatch):
    """Of who was known and had any."""
    known = {1: abi.Process(score=4), 2: abi.Process(), 3: abi.Process(over_ns=9), 4: None}
    monkeypatch.setattr(module, "of_process", lambda _table, pid: known[pid])
    none = list(run(tmp_path).scores(known))
    maps[module.PROCESSES] = _Map(1)

    assert none == []
    assert list(run(tmp_path, 8).scores(known)) == [(1, 4, 0), (3, 0, 9)]


def test_process_that_ended():
    """Nobody is known by a number that nobody has."""
    assert module.of_process(_Map(1), 1 << 22) is None
