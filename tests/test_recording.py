# SPDX-License-Identifier: Apache-2.0
"""Recordings: what goes in comes out, whatever happens to the writer; what was damaged says so."""

import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import CAT, HTTPD, SHELL, START, anomaly, child, events, family, match, windows

from ksentinel import recording
from ksentinel.errors import InputError
from ksentinel.recording import Reader, Writer, is_recording
from ksentinel.window import Window

FACTS = {"host": "h", "arch": "x86_64", "cpus": 2, "odd": "\udcff", "list": [1, None, 2.5]}
ITEMS = [match(CAT).event, anomaly(SHELL).window, match(HTTPD, 1).event, anomaly(CAT, 2, lossy=True).window]
NOBODY = 65534
ORIGIN = '{"origin": 5}'
PID = '{"pid": "x"}'
numbered = itertools.count()


def write(path, *batches, facts=None, account=None):
    """Write a recording."""
    with Writer(path, FACTS if facts is None else facts) as writer:
        for batch in batches:
            writer.write(batch)
        writer.account(account or {"records": 5, "share": 0.5})
    return path


def read(path, **options):
    """Return all items of a recording."""
    with Reader(path, **options) as reader:
        return [item for batch in reader for item in batch]


def read_all(path):
    """Ask a recording for all that it has."""
    with Reader(path) as reader:
        return (
            list(reader),
            list(reader.windows()),
            reader.count(),
            reader.account(),
            reader.facts,
            reader.lost(),
        )


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.lists(events | windows, max_size=4), max_size=3))
def test_round_trip(tmp_path_factory, batches):
    """Every kind of item comes back, in order, undecodable bytes, ancestors and services included."""
    path = write(tmp_path_factory.getbasetemp() / f"{next(numbered)}.ksr", *batches)
    items = [item for batch in batches for item in batch]
    back = read(path)
    path.unlink()

    assert items == back
    assert [family(item.process) for item in items] == [family(item.process) for item in back]


def test_facts_and_account(tmp_path):
    """So do facts and counters, whole numbers as such; later ones replace earlier ones."""
    with Writer(tmp_path / "x.ksr", FACTS) as writer:
        writer.write(ITEMS)
        writer.note({"host": "other", "ended_ns": 1 << 70})
        writer.account({"z": 1, "a": 0.25})
        writer.account({"z": 2})
    with Reader(tmp_path / "x.ksr") as reader:
        assert reader.facts == FACTS | {"host": "other", "ended_ns": 1 << 70}
        assert sorted(reader.account().items()) == [("a", 0.25), ("z", 2)]
        assert str(reader.account()["z"]) == "2"
        assert (reader.count(), reader.lost()) == (4, 0)
        assert [i for i in ITEMS if isinstance(i, Window)] == list(reader.windows())
        assert [item for batch in reader for item in batch] == ITEMS


@pytest.mark.parametrize("batch", [1, 3, 512])
def test_batches(tmp_path, batch):
    """A reader's batches are its own."""
    path = write(tmp_path / "x.ksr", *([item] for item in ITEMS * 2))
    with Reader(path, batch=batch) as reader:
        sizes = [len(b) for b in reader]

    assert (8, min(batch, 8)) == (sum(sizes), max(sizes))


def test_one_private_file(tmp_path):
    """A finished recording is one file, that only its owner reads."""
    path = write(tmp_path / "x.ksr", ITEMS)

    assert [p.name for p in tmp_path.iterdir()] == ["x.ksr"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert is_recording(path)


def test_private_meanwhile(tmp_path):
    """So are its parts while it is written."""
    with Writer(tmp_path / "x.ksr", FACTS) as writer:
        writer.write(ITEMS)

        assert {0o600} == {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
        assert read(tmp_path / "x.ksr") == ITEMS


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_exists(tmp_path, kind):
    """What is there already stays as it is."""
    path = tmp_path / "x.ksr"
    (tmp_path / "there").write_text("mine")
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / ("there" if kind == "link" else "nowhere"))
    with pytest.raises(InputError, match=r"x\.ksr: exists already"):
        write(path, ITEMS)

    assert (path if kind == "file" else tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_no_directory(tmp_path):
    """A directory that isn't there isn't made."""
    with pytest.raises(InputError, match=r"can't be written: No such file or directory"):
        write(tmp_path / "nowhere" / "x.ksr")


def test_odd_name(tmp_path, monkeypatch):
    """A name that SQLite has plans for is a file's name to us."""
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:x?mode=ro", "a%20b#c", os.fsdecode(b"\xff.ksr")):
        write(Path(name), ITEMS)

        assert read(Path(name)) == ITEMS
        assert (tmp_path / name).stat().st_size > 0


def test_ids_survive_clearing(tmp_path, monkeypatch):
    """Processes that are entered anew are the same ones."""
    monkeypatch.setattr(recording, "_KNOWN", 3)
    processes = [child(SHELL, 100 + n, "/bin/ls") for n in range(5)]
    items = [match(p, n).event for n, p in enumerate(processes * 3)]
    back = read(write(tmp_path / "x.ksr", *([item] for item in items)))

    assert items == back
    assert [family(i.process) for i in items] == [family(i.process) for i in back]


def test_processes_once(tmp_path):
    """A process is written once as long as it stays what it is."""
    write(tmp_path / "x.ksr", ITEMS, ITEMS, ITEMS)
    with sqlite3.connect(tmp_path / "x.ksr") as db:
        (count,) = db.execute("SELECT count(*) FROM process").fetchone()
    db.close()

    assert len({p.key for item in ITEMS for p in (item.process, *item.process.ancestors())}) == count


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Window(SHELL, 1, 1 << 63, 0, (1,)), "format|int"),
        (Window(SHELL, 1, 0, 0, (0x10000,)), "format"),
        (Window(child(HTTPD, 99, "/bin/new"), 1, 0, 1 << 63, (1,)), "too large"),
    ],
)
def test_too_large(tmp_path, bad, says):
    """A number that has no room fails its whole batch; the recording goes on, new processes included."""
    newcomer = child(HTTPD, 50, "/bin/newcomer")
    after = [match(newcomer).event, match(bad.process).event]
    with Writer(tmp_path / "x.ksr", FACTS) as writer:
        writer.write(ITEMS)
        with pytest.raises(InputError, match=rf"x\.ksr: can't be written any further: .*{says}"):
            writer.write([match(newcomer).event, bad])
        writer.write(after)

    assert ITEMS + after == read(tmp_path / "x.ksr")


def test_disk_full(tmp_path):
    """A full disk is said in one line; what was written before can be read."""
    with Writer(tmp_path / "x.ksr", FACTS) as writer:
        writer.write(ITEMS)
        writer._db.execute("PRAGMA max_page_count = 20")
        many = [match(child(HTTPD, 100 + n, "/bin/sh" * 20)).event for n in range(1000)]
        with pytest.raises(InputError, match=r"x\.ksr: can't be written any further: .*full.*disk full\?"):
            writer.write(many)
        with pytest.raises(InputError, match="disk full"):
            writer.note({f"fact {n}": "x" * 1000 for n in range(100)})
        with pytest.raises(InputError, match="disk full"):
            writer.account({f"{n:01000}": n for n in range(100)})

    assert read(tmp_path / "x.ksr") == ITEMS


@pytest.mark.parametrize("pages", [1, 9])
def test_disk_full_at_once(tmp_path, monkeypatch, pages):
    """Where not even the beginning has room nothing is left behind that would be in the way next time."""
    monkeypatch.setattr(recording, "_TABLES", f"PRAGMA max_page_count = {pages}; {recording._TABLES}")
    with pytest.raises(InputError, match=r"can't be written any further: .*full"):
        write(tmp_path / "x.ksr", facts={"host": 100_000 * "x"})

    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from made_up import CAT, HTTPD, SHELL, anomaly, child, match
from ksentinel.recording import Writer
writer = Writer(Path(sys.argv[1]), {"host": "h", "arch": "x86_64"}).__enter__()
for n in range(5):
    writer.write([match(child(SHELL, 100 + n, "/bin/ls"), n).event, anomaly(CAT, n).window])
# Killed in the midst of a batch.
writer._db.execute("BEGIN")
writer._row(match(child(SHELL, 999, "/bin/last"), 9).event)
os.kill(os.getpid(), signal.SIGKILL)
"""
COMMITTED = [
    item
    for n in range(5)
    for item in (match(child(SHELL, 100 + n, "/bin/ls"), n).event, anomaly(CAT, n).window)
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return a directory with what a writer left that was killed."""
    folder = tmp_path_factory.mktemp("killed")
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder / "x.ksr", tests, tests.parent],
        check=False,
        capture_output=True,
    )

    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture
def left(killed, tmp_path):
    """Return a copy of it."""
    shutil.copytree(killed, tmp_path / "left")
    return tmp_path / "left"


def test_killed(left):
    """Whoever reads what a killed writer left gets what was committed, the part in the log included."""
    assert (left / "x.ksr-wal").stat().st_size > 0
    assert read(left / "x.ksr") == COMMITTED
    assert read(left / "x.ksr") == COMMITTED


def test_killed_and_account(left):
    """It has no counters of its end, and that is no error."""
    with Reader(left / "x.ksr") as reader:
        assert reader.account() == {}
        assert len(COMMITTED) == reader.count()


@contextmanager
def unprivileged(folder, mode=0o444):
    """Be somebody who may read what is in *folder*, and not write there."""
    for path in folder.iterdir():
        path.chmod(mode)
    folder.chmod(0o555)
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if mine == 0:
            os.seteuid(mine)
        folder.chmod(0o755)


@pytest.fixture
def open_folder():
    """Return a directory that, unlike pytest's, others can get to."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("gone", [(), ("shm",), ("shm", "wal")])
def test_killed_in_a_directory_not_to_be_written(killed, open_folder, gone):
    """Where SQLite can't make what it needs beside the file, the error says so; nothing is passed over."""
    left = Path(shutil.copytree(killed, open_folder, dirs_exist_ok=True))
    for suffix in gone:
        (left / f"x.ksr-{suffix}").unlink()
    with unprivileged(left):
        if not gone:
            assert read(left / "x.ksr") == COMMITTED
            return
        with pytest.raises(
            InputError, match=r"x\.ksr: can't be read: .*x\.ksr-wal if that is there, to a dir"
        ):
            read(left / "x.ksr")


def test_finished_in_a_directory_not_to_be_written(open_folder):
    """A finished recording needs nothing beside it."""
    path = write(open_folder / "x.ksr", ITEMS)
    with unprivileged(open_folder):
        assert read(path) == ITEMS


def test_not_to_be_read(open_folder):
    """What can't be read says why."""
    path = write(open_folder / "x.ksr", ITEMS)
    with (
        unprivileged(open_folder, 0o200),
        pytest.raises(InputError, match=r"x\.ksr: can't be read: Permission denied"),
    ):
        read(path)


def replaced(table, text):
    """Return SQL that puts *text* where JSON stands."""
    where = "process SET facts" if table == "process" else "item SET body"
    return f"UPDATE {where} = x'{text.encode().hex()}'" + (
        " WHERE kind != 'window'" if table == "item" else ""
    )


def make_other(path):
    """Make an SQLite file that is no recording."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()


def make_later(path):
    """Make a recording of another schema."""
    write(path, ITEMS)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 7")
    db.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.absolute, "there is no such file"),
        (lambda path: path.mkdir(), "is no recording"),
        (lambda path: path.write_bytes(b""), "is no recording"),
        (lambda path: path.write_text("type=SYSCALL msg=audit(1.0:1):"), "is no recording"),
        (os.mkfifo, "is no recording"),
        (make_other, "is an SQLite file, but no recording"),
        (make_later, "is a recording of schema 7; this ksentinel reads 1"),
        (
            lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(4000)),
            "is damaged: file is not a database",
        ),
        (lambda path: path.symlink_to(path), "can't be read: Too many levels of symbolic links"),
    ],
)
def test_no_recording(tmp_path, make, says):
    """What is no recording is told from one that is damaged or of another version."""
    make(tmp_path / "x.ksr")
    with pytest.raises(InputError, match=rf"x\.ksr: {says}"), Reader(tmp_path / "x.ksr"):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a recording of some pages."""
    path = tmp_path_factory.mktemp("whole") / "x.ksr"
    many = [match(child(SHELL, 100 + n, f"/bin/{n}"), n).event for n in range(200)]
    return write(path, ITEMS, many).read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged(whole, tmp_path, data):
    """Wherever a file is cut or overwritten: it can be read, or the error names it; never anything else."""
    path = tmp_path / "x.ksr"
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3), "places")):
        at = data.draw(st.integers(0, len(raw) - 1), "at")
        patch = data.draw(st.binary(min_size=1, max_size=40), "patch")
        raw[at : at + len(patch)] = patch
    path.write_bytes(raw[: data.draw(st.integers(100, len(raw)) | st.just(len(raw)), "length")])
    said = f"{path}: is whole"
    try:
        read_all(path)
    except InputError as error:
        said = str(error)

    assert said.startswith(f"{path}: is ")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE item SET body = x''",
        "UPDATE item SET body = x'00112233445566778899aabb01'",
        "UPDATE item SET body = x'000000000000000009000000'",
        "UPDATE item SET body = x'000000000000000000000900'",
        replaced("item", "[1]"),
        replaced("item", "null"),
        replaced("item", ORIGIN),
        "UPDATE item SET kind = 'nonsense'",
        "UPDATE item SET kind = CAST(x'ff' AS TEXT)",
        "UPDATE item SET kind = 'syscall' WHERE kind = 'exec'",
        "UPDATE item SET process = 999",
        replaced("process", "x"),
        replaced("process", "[]"),
        replaced("process", PID),
        replaced("process", 10000 * "["),
        replaced("process", 10000 * "[" + 10000 * "]"),
        "UPDATE facts SET value = '{'",
        "UPDATE facts SET value = CAST(x'ff' AS TEXT)",
        "DROP TABLE item",
        "DROP TABLE process",
        "DROP TABLE facts",
        "DROP TABLE account",
        "ALTER TABLE item RENAME COLUMN body TO soul",
        "DROP TABLE account; CREATE TABLE account (name, value); INSERT INTO account VALUES (1, 'x')",
        "DROP TABLE account; CREATE TABLE account (name, value); INSERT INTO account VALUES (1, 9e999)",
        "DROP TABLE facts; CREATE TABLE facts (name, value); INSERT INTO facts VALUES ('host', 5)",
        "ALTER TABLE item RENAME TO i; CREATE TABLE item AS SELECT id, 'x' time_ns, kind, process, tid, body FROM i",
        "ALTER TABLE item RENAME TO i; CREATE TABLE item AS SELECT id, time_ns, kind, process, tid, NULL body FROM i",
    ],
)
def test_wrong_inside(tmp_path, sql):
    """A file that SQLite is content with, and we aren't: an error that names it."""
    path = write(tmp_path / "x.ksr", ITEMS)
    db = sqlite3.connect(path)
    db.executescript(sql)
    db.close()
    with pytest.raises(InputError, match=r"x\.ksr: is damaged: ."):
        read_all(path)


def test_process_of_another_time(tmp_path):
    """A process that is named before it stands there has no parent, and nothing breaks."""
    path = write(tmp_path / "x.ksr", ITEMS)
    db = sqlite3.connect(path)
    db.execute("UPDATE process SET parent = id, service = NULL")
    db.commit()
    db.close()

    assert [item.process.parent for item in read(path)] == [None] * 4
    assert read(path)[0].time_ns >= START
