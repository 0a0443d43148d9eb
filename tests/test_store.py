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
from made_up import CAT, HTTPD, SECOND, SHELL, START, anomaly, child, denial, judge, match

from ksentinel.alert import Alert, Evidence
from ksentinel.codec import event_from_plain
from ksentinel.config import StoreConfig
from ksentinel.errors import InputError
from ksentinel.event import Origin, Outcome, SyscallEvent
from ksentinel.flight import Flown, Kept, Phase, facts, to_plain
from ksentinel.level import Level
from ksentinel.noise import HOUR, Fate, Suppressed, Triple
from ksentinel.recording import Writer
from ksentinel.search import Glob, Search
from ksentinel.store import Store, to_json

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


def kept(id_, number, path="/x", phase=Phase.BEFORE, process=SHELL):
    """Return an event, kept for the alert of that id."""
    event = SyscallEvent(
        time_ns=START + number, process=process, tid=11, origin=Origin.BPF, syscall="openat", paths=(path,)
    )
    return Kept(id_, phase, number, facts(event), to_plain(event))


def found(path, id_="", limit=1000, /, **asked):
    """Return what a store finds."""
    with Store(path, ME) as store:
        return store.events(Search(**asked), limit, id_)


def numbers(path, id_="", /, **asked):
    """Return by their times which events a store finds."""
    return [one.facts.time_ns - START for one in found(path, id_, **asked).found]


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
from test_store import ME, Store, alert, kept
store = Store(Path(sys.argv[1]), ME, write=True).__enter__()
store.put(alert("first"))
store.keep([kept("first", 1)], {})
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
# In the midst of a transaction: an alert or an event is entered, and what had to make room isn't removed yet.
store._limit_alerts = store._limit_events = killed
store.put(alert("half")) if sys.argv[4:] else store.keep([kept("first", 2)], {})
"""


@pytest.mark.parametrize("half", [[], ["alert"]], ids=["event", "alert"])
def test_killed(path, half):
    """A writer that was killed leaves a store that opens, for readers and for the next writer, with all that was put."""
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, tests, tests.parent, *half], check=False, capture_output=True
    )

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert ids(path) == ["first"]
    assert numbers(path) == [1]
    put(path, alert("second"))
    assert ids(path) == ["first", "second"]


def test_disk_full(path):
    """A full disk is said in one line."""
    with Store(path, ME, write=True) as store:
        store._db.execute("PRAGMA max_page_count = 24")
        big = alert(explanation={"paragraph": "x" * 100_000})
        with pytest.raises(InputError, match=r"alerts\.db: an alert can't be stored: .*disk full"):
            store.put(big)
        store.put(alert("small"))
        with pytest.raises(InputError, match=r"alerts\.db: events can't be stored: .*disk full"):
            store.keep([kept("small", 1), kept("small", 2, "x" * 100_000)], {"small": 3})
        store.keep([kept("small", 3)], {})

    assert ids(path) == ["small"]
    assert numbers(path) == [3]


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
        (other_schema, "is a store of schema 9; this ksentinel reads 4"),
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
    with Store(path, ME, write=True) as store:
        for n in range(50):
            store.put(alert(f"{n:04}", at=n))
            store.keep([kept(f"{n:04}", n), kept(f"{n:04}", 0)], {})
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
            store.events(Search(since_ns=START), 10)
            store.events(Search(), 10, "0001")
            store.flown("0001")
            store.removed()
    except InputError as error:
        said = str(error)

    assert said.startswith(f"{path}: ")


# Events around alerts


def keep(path, *events, beyond=None):
    """Keep *events*."""
    with Store(path, ME, write=True) as store:
        store.keep(events, beyond or {})


def rows(path, table):
    """Return how many rows a table has."""
    db = sqlite3.connect(path)
    try:
        return db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
    finally:
        db.close()


def test_events(path):
    """What was kept is found, as it was; by alert, by what is asked for, and the last ones of many."""
    put(path, alert("a"), alert("b"))
    keep(
        path,
        kept("a", 1),
        kept("a", 2, "/etc/shadow"),
        kept("b", 2, "/etc/shadow", Phase.AFTER),
        kept("b", 3),
    )
    plain = orjson.loads(to_json(kept("a", 2, "/etc/shadow").body))

    assert numbers(path) == [1, 2, 3]
    assert (numbers(path, "a"), numbers(path, "b"), numbers(path, "")) == ([1, 2], [2, 3], [1, 2, 3])
    (one,) = found(path, path=Glob("/etc/*")).found
    assert (one.facts, one.body) == (kept("a", 2, "/etc/shadow").facts, plain)
    assert one.alerts == (("a", "before"), ("b", "after"))
    assert found(path, "b", path=Glob("/etc/*")).found[0].alerts == (("b", "after"),)
    assert numbers(path, since_ns=START + 2, until_ns=START + 2) == [2]
    last = found(path, "", 2)
    assert ([o.facts.time_ns - START for o in last.found], last.total) == ([2, 3], 3)


def test_stored_once(path):
    """An event that several alerts keep is stored once, and so is its process."""
    put(path, alert("a"), alert("b"))
    keep(path, kept("a", 1), kept("b", 1), kept("a", 1), kept("a", 2))

    assert [rows(path, table) for table in ("event", "kept", "process")] == [2, 3, 1]
    with Store(path, ME) as store:
        assert (store.flown("a"), store.flown("b")) == (Flown(2), Flown(1))


def test_other_runs(path):
    """The first event of one run is not that of another."""
    put(path, alert("a"))
    keep(path, kept("a", 1))
    with Store(path, ME, write=True) as one, Store(path, ME, write=True) as other:
        for n in (2, 3):
            one.keep([kept("a", n)], {})
            other.keep([kept("a", n, "/other")], {})

    assert numbers(path) == [1, 2, 2, 3, 3]


def test_told_anew(path):
    """An alert's first revision replaces what an earlier replay has kept for it, later ones don't."""
    put(path, alert("a"), alert("b"))
    keep(path, kept("a", 1), kept("b", 1), kept("a", 2), beyond={"a": 5})
    put(path, alert("a", revision=2))
    assert numbers(path, "a") == [1, 2]
    put(path, alert("a"))

    assert (numbers(path, "a"), numbers(path, "b")) == ([], [1])
    assert [rows(path, table) for table in ("event", "kept", "flight")] == [1, 1, 1]
    with Store(path, ME) as store:
        assert store.flown("a") == Flown()
        assert store.removed() == {
            "alerts_removed": 0,
            "events_removed": 0,
            "suppressed_removed": 0,
            "denials_removed": 0,
        }


def test_flown(path):
    """How many are kept of before and after, and how many were too many, in all runs of an alert."""
    put(path, alert("a"))
    keep(
        path, kept("a", 1), kept("a", 2, phase=Phase.AFTER), kept("a", 3, phase=Phase.AFTER), beyond={"a": 7}
    )
    keep(path, beyond={"a": 9, "nobody": 4})
    keep(path, kept("nobody", 1))

    with Store(path, ME) as store:
        assert store.flown("a") == Flown(1, 2, 9)
        assert store.flown("nobody") == Flown()
        assert store.removed()["events_removed"] == 1, "its alert was not there"


def test_max_events(path):
    """Beyond so many, those that were kept first go, and are counted; one that is still kept elsewhere stays."""
    with Store(path, ME, write=True, bounds=StoreConfig(max_events=3)) as store:
        store.put(alert("a"))
        store.put(alert("b"))
        store.keep([kept("a", 1), kept("b", 1), kept("b", 2)], {})
        assert numbers(path, "a") == [1]
        store.keep([kept("b", 3)], {})
        assert (numbers(path, "a"), numbers(path, "b")) == ([], [1, 2, 3])
        assert rows(path, "event") == 3
        store.keep([kept("b", n, process=HTTPD) for n in range(4, 9)], {})

        assert numbers(path) == [6, 7, 8]
        assert [rows(path, table) for table in ("event", "kept", "process")] == [3, 3, 1]
        assert store.removed() == {
            "alerts_removed": 0,
            "events_removed": 6,
            "suppressed_removed": 0,
            "denials_removed": 0,
        }
        assert (store.flown("a"), store.flown("b")) == (Flown(removed=1), Flown(3, removed=5))


def test_max_alerts(path):
    """Beyond so many, the alerts that nothing new was told of for longest go, and what is kept for them."""
    with Store(path, ME, write=True, bounds=StoreConfig(max_alerts=2)) as store:
        store.put(alert("a"))
        store.put(alert("b"))
        store.keep([kept("a", 1), kept("b", 1), kept("b", 2)], {})
        store.put(alert("a", revision=2))
        store.put(alert("c", at=-9))

        assert sorted(ids(path)) == ["a", "c"], "b had been silent for longest"
        assert numbers(path) == [1]
        assert [rows(path, table) for table in ("event", "kept", "flight")] == [1, 1, 1]
        assert store.removed() == {
            "alerts_removed": 1,
            "events_removed": 2,
            "suppressed_removed": 0,
            "denials_removed": 0,
        }
        store.keep([kept("b", 3)], {"b": 2})
        assert numbers(path) == [1]


def test_bounds_hold(path):
    """However much is written, the file stops growing."""
    sizes = []
    with Store(path, ME, write=True, bounds=StoreConfig(5, 50)) as store:
        for n in range(120):
            store.put(alert(f"{n:04}", at=n))
            store.keep(
                [
                    kept(f"{n:04}", 20 * n + i, f"/{n}/{i}", process=child(HTTPD, 900 + n, "/x"))
                    for i in range(20)
                ],
                {},
            )
            sizes.append(store._db.execute("PRAGMA page_count").fetchone()[0])

    assert (rows(path, "alert"), rows(path, "kept"), rows(path, "event")) == (5, 50, 50)
    assert rows(path, "process") == 3
    assert sizes[-1] <= max(sizes[:20])


@pytest.mark.parametrize("bad", [NAME, "/tmp/\ud800", "/tmp/\u202e", "/tmp/\0x"])
def test_undecodable_events(path, bad):
    """What is no text is kept with escapes, and found by them."""
    put(path, alert("a"))
    keep(path, kept("a", 1, bad, process=child(HTTPD, 66, bad)))
    (one,) = found(path, path=Glob("/tmp/*")).found

    assert one.facts.exe == one.body["process"]["exe"] == one.facts.paths[0] == one.body["paths"][0]
    assert one.facts.paths[0].startswith("/tmp/")


def test_any_time_of_an_event(path):
    """A time that no database holds is kept all the same."""
    put(path, alert("a"))
    far = SyscallEvent(
        time_ns=1 << 70, process=SHELL, tid=1, origin=Origin.BPF, syscall="x", result=-(1 << 80)
    )
    keep(path, Kept("a", Phase.AFTER, 1, facts(far), to_plain(far)))

    assert found(path).found[0].body["time_ns"] == str(1 << 70)


# What was suppressed


def suppressed(exe="/bin/sh", hour=0, alerts=1, repeats=0, fate=Fate.CAPPED):
    """Return a count of what was, *hour* hours after the epoch."""
    return Suppressed(Triple("r", exe, "/sbin/init"), "A rule", hour * HOUR, fate, alerts, repeats)


def test_suppressed(path):
    """It adds up by rule, executable, parent, hour and cause; an hour counts if it isn't over at the time asked for."""
    with Store(path, ME, write=True) as store:
        store.suppress([suppressed(), suppressed(repeats=2), suppressed(hour=1)])
        store.suppress([suppressed(alerts=3), suppressed(fate=Fate.QUIETENED), suppressed("/bin/\udcff")])
    with Store(path, ME) as store:
        told = list(store.suppressed())
        assert list(store.suppressed(HOUR)) == list(store.suppressed(2 * HOUR - 1)) == [suppressed(hour=1)]
        assert list(store.suppressed(2 * HOUR)) == []

    assert told == [
        suppressed(alerts=5, repeats=2),
        suppressed(fate=Fate.QUIETENED),
        suppressed("/bin/\\xff"),
        suppressed(hour=1),
    ]


def test_max_suppressed(path):
    """Beyond so many counts the oldest go, and that is counted."""
    with Store(path, ME, write=True, bounds=StoreConfig(max_suppressed=3)) as store:
        store.suppress([suppressed(hour=hour) for hour in range(5)])
        store.suppress([suppressed(hour=5)])
        assert [one.hour_ns // HOUR for one in store.suppressed()] == [3, 4, 5]
        assert store.removed()["suppressed_removed"] == 3


def deny(path, *events, **options):
    """Count denials."""
    with Store(path, ME, write=True, **options) as store:
        store.denied(events)


def denials(path, since_ns=0):
    """Return what is counted."""
    with Store(path, ME) as store:
        return list(store.denials(since_ns))


def test_denials(path):
    """They add up by rule, hook, executable, service, outcome and mode; the first is kept in full; a proof isn't one."""
    first = denial(at=1)
    deny(path, first, denial(at=3), denial(CAT, at=2), denial(at=9, nonce=7))
    deny(path, denial(at=0, outcome=Outcome.WOULD_DENY), denial(at=2))
    told = denials(path)

    assert [(one.exe, str(one.outcome), one.mode, one.count) for one in told] == [
        ("/bin/sh", "denied", "enforce", 3),
        ("/bin/cat", "denied", "enforce", 1),
        ("/bin/sh", "would_deny", "permissive", 1),
    ]
    assert (told[0].first_ns, told[0].last_ns) == (START + SECOND, START + 3 * SECOND)
    assert (told[0].hook, told[0].service, told[0].title) == ("file_open", "/usr/sbin/httpd", "Web shell")
    assert event_from_plain(told[0].example) == first
    assert [one.exe for one in denials(path, START + 2 * SECOND)] == ["/bin/sh", "/bin/cat"]
    assert denials(path, START + 4 * SECOND) == []


def test_denials_of_any_name(path):
    """Bytes that are no text are stored as escapes, and are one count all the same."""
    strange = child(HTTPD, 12, "/bin/\udcff")
    deny(path, denial(strange), denial(strange, paths=("/\udcfe",)))

    assert [(one.exe, one.count) for one in denials(path)] == [("/bin/\\xff", 2)]


def test_note(path):
    """What somebody says of a rule, an executable and a service is said of all hooks and outcomes."""
    deny(path, denial(), denial(hook="path_mknod"), denial(CAT))
    with Store(path, ME, write=True) as store:
        assert store.note("web shell", "/bin/sh", "/usr/sbin/httpd", "attack") == 2
        assert store.note("web shell", "/bin/none", "/usr/sbin/httpd", "attack") == 0
    deny(path, denial())

    assert {(one.exe, one.note) for one in denials(path)} == {("/bin/sh", "attack"), ("/bin/cat", "")}


def test_max_denials(path):
    """Beyond so many counts those go of which nothing was heard for longest, and that is counted."""
    bounds = StoreConfig(max_denials=3)
    deny(path, *[denial(rule=f"rule {n}", at=n) for n in range(3)], bounds=bounds)
    deny(path, denial(rule="rule 0", at=7), denial(rule="new", at=8), bounds=bounds)
    with Store(path, ME) as store:
        assert [one.rule for one in store.denials()] == ["new", "rule 0", "rule 2"]
        assert store.removed()["denials_removed"] == 1


def test_damaged_denial(path):
    """An outcome that is none is a damage, said so."""
    deny(path, denial())
    db = sqlite3.connect(path)
    db.execute("UPDATE denial SET outcome = 'thwarted'")
    db.commit()
    db.close()
    with pytest.raises(InputError, match="is damaged"):
        denials(path)


# Stores of an older schema

OLD = """
CREATE TABLE alert (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, level INTEGER NOT NULL, title TEXT NOT NULL,
                    exe TEXT NOT NULL, service TEXT NOT NULL, opened_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
                    repeats INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE INDEX alert_by_time ON alert (updated_ns);
"""


@pytest.fixture
def old(made):
    """Return a store as schema 1 had it."""
    new = sqlite3.connect(made)
    alerts = new.execute("SELECT * FROM alert").fetchall()
    new.close()
    made.unlink()
    db = sqlite3.connect(made)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"PRAGMA application_id = {0x6B73616C}; PRAGMA user_version = 1; {OLD}")
    db.executemany("INSERT INTO alert VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", alerts)
    db.commit()
    db.close()
    made.chmod(0o600)
    return made


def schema(path):
    """Return a store's schema."""
    db = sqlite3.connect(path)
    try:
        return db.execute("PRAGMA user_version").fetchone()[0]
    finally:
        db.close()


def test_old_read(old):
    """A reader finds its alerts and no events, and leaves it as it is."""
    before = old.read_bytes()
    with Store(old, ME) as store:
        assert [plain["id"] for plain in store.alerts()] == ["mine"]
        assert store.get("mine")["id"] == "mine"
        assert (store.events(Search(), 10).total, store.flown("mine")) == (0, Flown())
        assert list(store.suppressed()) == list(store.denials()) == []
        assert store.removed() == {
            "alerts_removed": 0,
            "events_removed": 0,
            "suppressed_removed": 0,
            "denials_removed": 0,
        }

    assert (before, schema(old)) == (old.read_bytes(), 1)


def test_old_written(old):
    """A writer brings it up to date: its alerts stay, events are kept from now on."""
    put(old, alert("new", at=1))
    keep(old, kept("mine", 1), kept("new", 2))

    assert (schema(old), ids(old), numbers(old)) == (4, ["new", "mine"], [1, 2])
    fresh = old.with_name("fresh.db")
    put(fresh, alert("x"))
    assert tables(old) == tables(fresh)


def tables(path):
    """Return what a store is made of."""
    db = sqlite3.connect(path)
    try:
        made = (
            "SELECT replace(sql, 'IF NOT EXISTS ', '') FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
        )
        return [sql for (sql,) in db.execute(made)]
    finally:
        db.close()


def test_old_by_two_writers(old):
    """Who comes second finds it done."""
    with Store(old, ME, write=True) as one, Store(old, ME, write=True) as other:
        one.put(alert("one"))
        other._schema = 1
        other._make()
        other.put(alert("other"))

    assert (schema(old), len(ids(old))) == (4, 3)


def test_old_on_a_full_disk(old, monkeypatch):
    """All of it or nothing: where there is no room it stays what it was, and can be read."""
    before = tables(old)
    connect = sqlite3.connect

    def full(*arguments, **options):
        db = connect(*arguments, **options)
        db.execute("PRAGMA max_page_count = 7")
        return db

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(InputError, match=r"alerts\.db: .*full"):
        Store(old, ME, write=True).__enter__()
    monkeypatch.undo()

    assert (schema(old), tables(old), ids(old)) == (1, before, ["mine"])


@pytest.mark.parametrize("before", [2, 3])
def test_without_denials(made, before):
    """One that has everything but denials is read without them, and gets them when it is written to."""
    db = sqlite3.connect(made)
    db.executescript(f"DROP TABLE denial; PRAGMA user_version = {before};")
    db.close()

    assert denials(made) == []
    assert schema(made) == before
    deny(made, denial())
    assert (schema(made), len(denials(made)), ids(made)) == (4, 1, ["mine"])


def test_denials_on_a_full_disk(made, monkeypatch):
    """A store of schema 3 where there is no room for more stays one."""
    db = sqlite3.connect(made)
    db.executescript("DROP TABLE denial; PRAGMA user_version = 3; VACUUM;")
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.close()
    connect = sqlite3.connect

    def full(*arguments, **options):
        opened = connect(*arguments, **options)
        opened.execute(f"PRAGMA max_page_count = {pages}")
        return opened

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(InputError, match=r"alerts\.db: .*full"):
        deny(made, denial())
    monkeypatch.undo()

    assert (schema(made), ids(made), denials(made)) == (3, ["mine"], [])
