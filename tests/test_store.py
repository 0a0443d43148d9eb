# SPDX-License-Identifier: Apache-2.0
"""The store: private, crash-safe, searchable, and never a traceback."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import HTTPD, SHELL, START, anomaly, child, match

from ksentinel.alert import Alert, Evidence
from ksentinel.errors import InputError
from ksentinel.level import Level
from ksentinel.recording import Writer
from ksentinel.store import Store, to_json
from ksentinel.verdict import judge

ME = os.getuid()


def alert(id_="0011223344", process=SHELL, at=0, level=Level.MEDIUM, **fields):
    """Return an alert, *at* seconds."""
    one = match(process, at, level)
    time_ns = one.event.time_ns
    return replace(
        Alert(
            id_, 1, time_ns, time_ns, process, judge([one], []), (Evidence(1, time_ns, time_ns, match=one),)
        ),
        **fields,
    )


@pytest.fixture
def path(tmp_path):
    """Return where a store may be."""
    return tmp_path / "var" / "alerts.db"


def put(path, *alerts):
    """Store *alerts*."""
    with Store(path, ME, write=True) as store:
        for one in alerts:
            store.put(one)


def ids(path, **options):
    """Return the ids of what a store has, in its order."""
    with Store(path, ME) as store:
        return [plain["id"] for plain in store.alerts(**options)]


def test_there_and_back(path):
    """What was stored is what an alert's JSON form says."""
    one = alert()
    put(path, one)
    with Store(path, ME) as store:
        assert [orjson.loads(to_json(one.to_plain()))] == list(store.alerts())


def test_private(path):
    """The store is its owner's alone, and so is the directory that was made for it."""
    with Store(path, ME, write=True) as store:
        store.put(alert())

        assert {0o600} == {p.stat().st_mode & 0o777 for p in path.parent.iterdir()}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_newest_state(path):
    """A later revision replaces an earlier one."""
    put(path, alert(), alert(revision=2, repeats=7), alert("aa"))
    with Store(path, ME) as store:
        assert {p["id"]: (p["revision"], p["repeats"]) for p in store.alerts()} == {
            "0011223344": (2, 7),
            "aa": (1, 0),
        }


def test_order_and_choice(path):
    """The newest first, those of one time by id; by level, time and number."""
    put(
        path,
        alert("b", at=1, level=Level.LOW),
        alert("a", at=1, level=Level.HIGH),
        alert("c", at=3, level=Level.LOW),
        alert("d", at=2, level=Level.CRITICAL),
    )

    assert ids(path) == ["c", "d", "a", "b"]
    assert ids(path, least=Level.HIGH) == ["d", "a"]
    assert ids(path, since_ns=START + 2 * 10**9) == ["c", "d"]
    assert ids(path, limit=3) == ["c", "d", "a"]


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("ab12cd", "ab12cd"), ("AB12C", "ab12cd"), ("abb", "abba"), ("f", "f00d"), ("f00d", "f00d")],
)
def test_prefix(path, prefix, found):
    """As much of an id as makes it the only one is enough."""
    put(path, alert("ab12cd"), alert("f00d"), alert("abba"))
    with Store(path, ME) as store:
        assert found == store.get(prefix)["id"]


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        ("", "more than one alert"),
        ("a", "more than one alert"),
        ("b", "no alert"),
        ("*", "no alert"),
        ("%", "no alert"),
        ("a-b", "no alert"),
        ("?b12cd", "no alert"),
        ("ab12cde", "no alert"),
        ("\udcff", "no alert"),
        ("a\0", "no alert"),
    ],
)
def test_no_such_prefix(path, prefix, says):
    """None or several: the error says which, and nothing in a prefix has a meaning of its own."""
    put(path, alert("ab12cd"), alert("abba"))
    with Store(path, ME) as store, pytest.raises(InputError, match=f"{says} starts with"):
        store.get(prefix)


NAME = "/tmp/\udcff\udc80\x1b[2J"


@pytest.mark.parametrize("bad", [NAME, "/tmp/\ud800", "/tmp/\u202e", "/tmp/\0x"])
def test_undecodable(path, bad):
    """A program whose name is no text is stored, found and told with escapes; in a title, too."""
    strange = child(HTTPD, 66, bad)
    said = anomaly(strange)
    one = alert(
        process=strange, evidence=(Evidence(1, START, START, anomaly=said),), explanation={"paragraph": bad}
    )
    put(path, one)
    with Store(path, ME) as store:
        (plain,) = store.alerts()

    assert (
        bad.encode("utf-8", "surrogateescape" if bad == NAME else "backslashreplace").decode(
            errors="backslashreplace"
        )
        == plain["process"]["exe"]
    )
    assert plain["title"].startswith("Unusual system calls of /tmp/")


@pytest.mark.parametrize("time_ns", [999_999_999_999 * 10**9, -(1 << 70)])
def test_any_time(path, time_ns):
    """A time that no database holds is stored all the same, as the last or the first."""
    put(path, alert("far", opened_ns=time_ns, updated_ns=time_ns), alert("now"))

    assert (["far", "now"] if time_ns > 0 else ["now"]) == ids(path)
    with Store(path, ME) as store:
        assert time_ns == int(store.get("far")["opened_ns"])


_plain = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8) | st.just("\udcff\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.just("\udcff"), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=3), _plain, max_size=3))
def test_any_json(plain):
    """Whatever stands in an alert, there is JSON of it, on one line and in printable characters."""
    text = to_json(plain)

    assert b"\n" not in text
    assert len(plain) == len(orjson.loads(text))


def test_reader_beside_writer(path):
    """A reader sees what was put, while the writer goes on; a batch it has begun to read stays as it was."""
    with Store(path, ME, write=True) as writer:
        writer.put(alert("a", at=1))
        with Store(path, ME) as reader:
            rows = reader.alerts()
            assert next(rows)["id"] == "a"
            writer.put(alert("b", at=2))
            assert list(rows) == []
            assert [plain["id"] for plain in reader.alerts()] == ["b", "a"]


def test_two_writers(path):
    """Two writers take turns."""
    with Store(path, ME, write=True) as one, Store(path, ME, write=True) as other:
        for n in range(5):
            one.put(alert(f"a{n}"))
            other.put(alert(f"b{n}"))

    assert len(ids(path)) == 10


SCRIPT = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_store import ME, Store, alert
store = Store(Path(sys.argv[1]), ME, write=True).__enter__()
store.put(alert("first"))
store._db.execute("BEGIN")
store.put(alert("half"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed(path):
    """A writer that was killed leaves a store that opens, for readers and for the next writer, with all that was put."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, tests, tests.parent], check=False, capture_output=True
    )

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ids(path) == ["first"]
    put(path, alert("second"))
    assert ids(path) == ["first", "second"]


def test_disk_full(path):
    """A full disk is said in one line."""
    with Store(path, ME, write=True) as store:
        store._db.execute("PRAGMA max_page_count = 8")
        big = alert(explanation={"paragraph": "x" * 100_000})
        with pytest.raises(InputError, match=r"alerts\.db: an alert can't be stored: .*disk full"):
            store.put(big)
        store.put(alert("small"))

    assert ids(path) == ["small"]


def test_none_there(path):
    """A reader makes none."""
    with (
        pytest.raises(InputError, match=r"alerts\.db: there is no store \(name one by --store"),
        Store(path, ME),
    ):
        pass

    assert not path.parent.exists()


@pytest.fixture
def made(path):
    """Return a store with an alert."""
    put(path, alert("mine"))
    return path


@pytest.mark.parametrize("write", [True, False])
def test_somebody_elses(made, write):
    """A store of somebody else's is refused, whoever may write it."""
    if ME == 0:
        os.chown(made, 12345, 12345)
        owner, uid = 12345, 0
    else:
        owner, uid = ME, ME + 1
    with pytest.raises(InputError, match=f"belongs to uid {owner}"), Store(made, uid, write=write):
        pass


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_writable_by_others(made, write, mode):
    """So is one that others can write."""
    made.chmod(mode)
    with pytest.raises(InputError, match=r"is writable by others \(chmod go-w"), Store(made, ME, write=write):
        pass


@pytest.mark.parametrize("write", [True, False])
def test_link(made, write):
    """So is a symbolic link, to whatever it leads; nothing is made at its end."""
    link, nowhere = made.with_name("link.db"), made.with_name("nowhere.db")
    link.symlink_to(made)
    dangling = made.with_name("dangling.db")
    dangling.symlink_to(nowhere)
    for path in (link, dangling):
        with pytest.raises(
            InputError, match=r"(is no regular file|can't be opened: Too many levels|there is no store)"
        ):
            Store(path, ME, write=write).__enter__()

    assert not nowhere.exists()


def other_file(path):
    """Make another SQLite file."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.close()


def other_schema(path):
    """Make a store of another schema."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    db.close()


def a_recording(path):
    """Make a recording."""
    path.unlink()
    with Writer(path, {}):
        pass


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (other_schema, "is a store of schema 9; this ksentinel reads 1"),
        (lambda path: (path.unlink(), other_file(path)), "is an SQLite file, but no store of alerts"),
        (a_recording, "is an SQLite file, but no store of alerts"),
        (
            lambda path: path.write_text("alerts: none\n" * 100),
            "is no store, or damaged: file is not a database",
        ),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(8000)), "is no store, or damaged"),
        (lambda path: (path.unlink(), path.mkdir()), "(is no regular file|can't be opened: Is a directory)"),
    ],
)
def test_no_store(made, spoil, says, write):
    """What is no store of ours is refused and left as it is."""
    spoil(made)
    made.chmod(0o600)
    before = made.read_bytes() if made.is_file() else None
    with pytest.raises(InputError, match=rf"alerts\.db: {says}"):
        Store(made, ME, write=write).__enter__()

    assert before == (made.read_bytes() if made.is_file() else None)


def test_empty_file(path):
    """An empty file becomes a store when it is written to."""
    path.parent.mkdir()
    path.touch(0o600)
    put(path, alert("a"))

    assert ids(path) == ["a"]


def test_no_directory_to_be_made(tmp_path):
    """Where a file is in the way the error says so."""
    (tmp_path / "var").touch()
    with pytest.raises(InputError, match=r"alerts\.db: can't be opened: "):
        Store(tmp_path / "var" / "alerts.db", ME, write=True).__enter__()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a store of some pages."""
    path = tmp_path_factory.mktemp("whole") / "alerts.db"
    put(path, *(alert(f"{n:04}", at=n) for n in range(50)))
    return path.read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged(whole, tmp_path, data):
    """A damaged store can be read, or the error names it; never anything else."""
    path = tmp_path / "alerts.db"
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3), "places")):
        at = data.draw(st.integers(0, len(raw) - 1), "at")
        patch = data.draw(st.binary(min_size=1, max_size=40), "patch")
        raw[at : at + len(patch)] = patch
    path.write_bytes(raw[: data.draw(st.integers(100, len(raw)) | st.just(len(raw)), "length")])
    path.chmod(0o600)
    said = f"{path}: whole"
    try:
        with Store(path, ME) as store:
            list(store.alerts())
            store.get("0001")
    except InputError as error:
        said = str(error)

    assert said.startswith(f"{path}: ")
