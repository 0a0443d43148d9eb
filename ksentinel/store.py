# SPDX-License-Identifier: Apache-2.0
"""
The store: alerts in one SQLite file, each incident's newest state, and the events around them.

Schema 4 (``PRAGMA user_version``; application id ``ksal``):

==========  =============================================================================================
table       columns
==========  =============================================================================================
alert       the whole JSON beside a few columns to search by
event       what `flight` keeps, once however many alerts keep it: the JSON beside columns to search by
process     the JSON of an event's process (as in `codec`, with its ancestors), once for all of its events
kept        alert, event, phase (before, after)
flight      alert, how many events were kept for it, how many came beyond what is kept
suppressed  how many alerts were suppressed, by rule, executable, parent, hour and cause; nothing else is kept of them
denial      how often guards spoke, by rule, hook, executable, service, outcome and mode; one event of each in full
account     name, value: what was removed to make room; the number of runs that kept events
==========  =============================================================================================

A store of schema 1 has alerts alone, one of schema 2 nothing of what was suppressed, one of schema 3 no denials: they can be
read, and become one of schema 4 when they are written to, in one transaction. Write-ahead logging: a killed writer leaves a
store that opens. The file is private to its owner (mode 0600).

It is bounded: beyond so many alerts, kept events, counts of suppressed alerts or of denials those that were written longest ago
are removed, and counted. An event that several alerts keep counts for each of them.
"""

import os
import sqlite3
import stat
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import orjson

from ksentinel.alert import Alert
from ksentinel.config import StoreConfig
from ksentinel.enforce.denial import Denied
from ksentinel.errors import InputError
from ksentinel.event import HookEvent, Outcome
from ksentinel.flight import Facts, Flown, Kept, Phase
from ksentinel.level import Level
from ksentinel.noise import HOUR, Fate, Suppressed, Triple
from ksentinel.printable import printable_json
from ksentinel.search import Found, Results, Search

SCHEMA = 4
_ALERTS_ALONE = 1
_NOTHING_SUPPRESSED = 2
_NO_DENIALS = 3
APPLICATION = 0x6B73616C  # "ksal"
# The latter: a message of SQLite's with bytes from a damaged file that are no text, and JSON that is none.
_DAMAGES = (sqlite3.Error, ValueError)
_DEFAULT = StoreConfig()
# Whoever comes second finds them made: two writers may open a new store, or one of schema 1, at the same time.
_TABLES = """
CREATE TABLE IF NOT EXISTS alert (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, level INTEGER NOT NULL, title TEXT NOT NULL,
                    exe TEXT NOT NULL, service TEXT NOT NULL, opened_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
                    repeats INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS alert_by_time ON alert (updated_ns);
CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, number INTEGER NOT NULL,
                    begun_ns INTEGER NOT NULL, time_ns INTEGER NOT NULL, kind TEXT NOT NULL, pid INTEGER NOT NULL,
                    tid INTEGER NOT NULL, exe TEXT NOT NULL, paths TEXT NOT NULL, host TEXT NOT NULL, port INTEGER,
                    calls TEXT NOT NULL, process INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (run, number)) STRICT;
CREATE INDEX IF NOT EXISTS event_by_time ON event (time_ns);
CREATE INDEX IF NOT EXISTS event_by_process ON event (process);
CREATE TABLE IF NOT EXISTS process (id INTEGER PRIMARY KEY, body BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS kept (id INTEGER PRIMARY KEY, alert TEXT NOT NULL, event INTEGER NOT NULL, phase TEXT NOT NULL,
                    UNIQUE (alert, event)) STRICT;
CREATE INDEX IF NOT EXISTS kept_by_event ON kept (event);
CREATE TABLE IF NOT EXISTS flight (alert TEXT PRIMARY KEY, events INTEGER NOT NULL, beyond INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS suppressed (id INTEGER PRIMARY KEY, rule TEXT NOT NULL, exe TEXT NOT NULL, parent TEXT NOT NULL,
                    hour_ns INTEGER NOT NULL, fate TEXT NOT NULL, title TEXT NOT NULL, alerts INTEGER NOT NULL,
                    repeats INTEGER NOT NULL, UNIQUE (rule, exe, parent, hour_ns, fate)) STRICT;
CREATE TABLE IF NOT EXISTS denial (id INTEGER PRIMARY KEY, rule TEXT NOT NULL, hook TEXT NOT NULL, exe TEXT NOT NULL,
                    service TEXT NOT NULL, outcome TEXT NOT NULL, mode TEXT NOT NULL, title TEXT NOT NULL,
                    first_ns INTEGER NOT NULL, last_ns INTEGER NOT NULL, count INTEGER NOT NULL, note TEXT NOT NULL,
                    body BLOB NOT NULL, UNIQUE (rule, hook, exe, service, outcome, mode)) STRICT;
CREATE TABLE IF NOT EXISTS account (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""


class Store:
    """
    Alerts on disk.

    Parameters
    ----------
    path
        Made with mode 0600 if it doesn't exist and *write* is set, its directory with 0700.
    uid
        Who may own it besides root; others' files are refused.
    write
        False: read only.
    bounds
        How many alerts, kept events, counts of suppressed alerts and of denials it holds; those written longest ago make room.

    Raises
    ------
    InputError
        On entering: no store, another schema, somebody else's, writable by others, damaged.
    """

    def __init__(
        self,
        path: Path,
        uid: int,
        *,
        write: bool = False,
        bounds: StoreConfig = _DEFAULT,
    ) -> None:
        self.path = path
        self.uid = uid
        self.write = write
        self.bounds = bounds
        self._run: int | None = None

    def __enter__(self) -> Self:
        try:
            if self.write:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            self._check_owner()
            self.path.open("rb").close()  # SQLite itself doesn't say why it can't
            mode = "rw" if self.write else "ro"
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
            )
        except FileNotFoundError:
            raise InputError(
                "there is no store",
                at=self.path,
                remedy="name one by --store, or run `ksentinel monitor` first",
            ) from None
        except OSError as error:
            raise InputError(
                f"can't be opened: {error.strerror}", at=self.path, remedy="name another by --store"
            ) from None
        except sqlite3.Error as error:
            raise self._no_store(error) from None
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, _DAMAGES):
                raise self._no_store(error) from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def put(self, alert: Alert) -> None:
        """Keep *alert*, replacing its earlier revisions; on disk when this returns."""
        row = (
            alert.id,
            alert.revision,
            int(alert.level),
            _bytewise(alert.title),
            _bytewise(alert.process.exe),
            _bytewise(alert.process.service_exe),
            _column(alert.opened_ns),
            _column(alert.updated_ns),
            alert.repeats,
            to_json(alert.to_plain()),
        )
        with self._writing("an alert can't be stored"):
            if alert.revision == 1:
                # The first that is heard of it: what is there of that id is from an earlier replay of the same.
                self._forget([alert.id])
            self._db.execute("INSERT OR REPLACE INTO alert VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._limit_alerts()

    def keep(self, kept: Sequence[Kept], beyond: Mapping[str, int]) -> None:
        """
        Keep events for alerts that are here; on disk when this returns.

        Parameters
        ----------
        beyond
            How many more there were of an alert up to now.
        """
        with self._writing("events can't be stored"):
            if self._run is None:
                self._run = self._count("runs", 1)
            here: dict[str, bool] = {}
            for alert in (*(one.alert for one in kept), *beyond):
                if alert not in here:
                    found = self._db.execute("SELECT 1 FROM alert WHERE id = ?", (alert,)).fetchone()
                    here[alert] = found is not None
            entered = dict.fromkeys((alert for alert, there in here.items() if there), 0)
            processes: dict[int, int] = {}
            for one in kept:
                if here[one.alert]:
                    entered[one.alert] += self._keep(self._run, one, processes)
            for alert, more in entered.items():
                self._db.execute(
                    "INSERT INTO flight VALUES (:alert, :more, :beyond) "
                    "ON CONFLICT DO UPDATE SET events = events + :more, beyond = max(beyond, :beyond)",
                    {"alert": alert, "more": more, "beyond": beyond.get(alert, 0)},
                )
            # Its alert had to make room for others, or was never written.
            self._count("events_removed", sum(not here[one.alert] for one in kept))
            self._limit_events()

    def suppress(self, suppressed: Sequence[Suppressed]) -> None:
        """Count what was suppressed; on disk when this returns."""
        with self._writing("what was suppressed can't be counted"):
            for one in suppressed:
                triple = (_bytewise(text) for text in (one.triple.rule, one.triple.exe, one.triple.parent))
                row = (
                    *triple,
                    _column(one.hour_ns),
                    str(one.fate),
                    _bytewise(one.title),
                    one.alerts,
                    one.repeats,
                )
                self._db.execute(
                    "INSERT INTO suppressed VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                    "SET alerts = alerts + excluded.alerts, repeats = repeats + excluded.repeats",
                    row,
                )
            (count,) = self._db.execute("SELECT count(*) FROM suppressed").fetchone()
            if count > self.bounds.max_suppressed:
                surplus = count - self.bounds.max_suppressed
                self._db.execute(
                    "DELETE FROM suppressed WHERE id IN (SELECT id FROM suppressed ORDER BY id LIMIT ?)",
                    (surplus,),
                )
                self._count("suppressed_removed", surplus)

    def suppressed(self, since_ns: int = 0) -> Iterator[Suppressed]:
        """Yield what was suppressed in the hour of that time and in those after it."""
        if self._schema <= _NOTHING_SUPPRESSED:
            return
        with self._reading():
            rows = self._db.execute(
                "SELECT rule, exe, parent, title, hour_ns, fate, alerts, repeats FROM suppressed WHERE hour_ns > ? "
                "ORDER BY hour_ns, id",
                (_column(since_ns - HOUR),),
            )
            for rule, exe, parent, title, hour_ns, fate, alerts, repeats in rows:
                yield Suppressed(Triple(rule, exe, parent), title, hour_ns, Fate(fate), alerts, repeats)

    def denied(self, events: Sequence[HookEvent]) -> None:
        """Count what guards spoke against, proofs left out; on disk when this returns."""
        with self._writing("denials can't be counted"):
            for event in events:
                if event.nonce is None:
                    self._deny(Denied.of(event))
            (count,) = self._db.execute("SELECT count(*) FROM denial").fetchone()
            if count > self.bounds.max_denials:
                surplus = count - self.bounds.max_denials
                self._db.execute(
                    "DELETE FROM denial WHERE id IN (SELECT id FROM denial ORDER BY last_ns, id LIMIT ?)",
                    (surplus,),
                )
                self._count("denials_removed", surplus)

    def _deny(self, one: Denied) -> None:
        texts = (one.rule, one.hook, one.exe, one.service, str(one.outcome), one.mode, one.title)
        times = (_column(one.first_ns), _column(one.last_ns))
        self._db.execute(
            "INSERT INTO denial VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, '', ?) ON CONFLICT DO UPDATE "
            "SET count = count + 1, first_ns = min(first_ns, excluded.first_ns), last_ns = max(last_ns, excluded.last_ns), "
            "title = excluded.title",
            (*map(_bytewise, texts), *times, to_json(one.example)),
        )

    def denials(self, since_ns: int = 0) -> Iterator[Denied]:
        """Yield what guards spoke against at that time or later, the latest first."""
        if self._schema <= _NO_DENIALS:
            return
        with self._reading():
            rows = self._db.execute(
                "SELECT rule, title, hook, exe, service, outcome, mode, first_ns, last_ns, count, note, body FROM denial "
                "WHERE last_ns >= ? ORDER BY last_ns DESC, id",
                (_column(since_ns),),
            )
            for rule, title, hook, exe, service, outcome, mode, first, last, count, note, body in rows:
                yield Denied(
                    rule,
                    title,
                    hook,
                    exe,
                    service,
                    Outcome(outcome),
                    mode,
                    first,
                    last,
                    count,
                    note,
                    _object(body),
                )

    def note(self, rule: str, exe: str, service: str, note: str) -> int:
        """Write down what somebody says of the denials of a rule, an executable and a service; return how many that were."""
        with self._writing("a note can't be stored"):
            return self._db.execute(
                "UPDATE denial SET note = ? WHERE rule = ? AND exe = ? AND service = ?",
                tuple(map(_bytewise, (note, rule, exe, service))),
            ).rowcount

    def _keep(self, run: int, one: Kept, processes: dict[int, int]) -> int:
        """Enter an event for an alert; returns 0 if that was done already."""
        place = (run, one.number)
        found = self._db.execute("SELECT id FROM event WHERE run = ? AND number = ?", place).fetchone()
        event = self._enter(place, one, processes) if found is None else found[0]
        link = (one.alert, event, str(one.phase))
        return self._db.execute("INSERT OR IGNORE INTO kept VALUES (NULL, ?, ?, ?)", link).rowcount

    def _enter(self, place: tuple[int, int], one: Kept, processes: dict[int, int]) -> int | None:
        facts = one.facts
        body = dict(one.body)
        process = body.pop("process")
        if id(process) not in processes:  # events of one process share what is said of it
            processes[id(process)] = self._process(to_json(process))
        columns = (
            *place,
            _column(facts.begun_ns),
            _column(facts.time_ns),
            facts.kind,
            _column(facts.pid),
            _column(facts.tid),
            _bytewise(facts.exe),
            to_json(list(facts.paths)).decode(),
            _bytewise(facts.host),
            facts.port,
            " ".join(map(_bytewise, facts.calls)),
            processes[id(process)],
            to_json(body),
        )
        values = ", ".join("?" * len(columns))
        return self._db.execute(f"INSERT INTO event VALUES (NULL, {values})", columns).lastrowid  # noqa: S608

    def _process(self, body: bytes) -> int:
        self._db.execute("INSERT OR IGNORE INTO process VALUES (NULL, ?)", (body,))
        (number,) = self._db.execute("SELECT id FROM process WHERE body = ?", (body,)).fetchone()
        return int(number)

    def alerts(
        self, *, least: Level = Level.NONE, since_ns: int = 0, limit: int = 1000
    ) -> Iterator[dict[str, Any]]:
        """Yield alerts in their JSON form, the newest first."""
        with self._reading():
            rows = self._db.execute(
                "SELECT body FROM alert WHERE level >= ? AND updated_ns >= ? ORDER BY updated_ns DESC, id LIMIT ?",
                (int(least), since_ns, limit),
            )
            for (body,) in rows:
                yield orjson.loads(body)

    def get(self, prefix: str) -> dict[str, Any]:
        """
        Return the alert whose id starts with *prefix*.

        Raises
        ------
        InputError
            If there is none, or more than one.
        """
        begin = _bytewise(prefix).lower()
        with self._reading():
            rows = self._db.execute(
                "SELECT id, body FROM alert WHERE substr(id, 1, ?) = ? LIMIT 2", (len(begin), begin)
            ).fetchall()
            if len(rows) == 1:
                plain: dict[str, Any] = orjson.loads(rows[0][1])
                return plain
        what = "more than one alert starts" if rows else "no alert starts"
        raise InputError(f"{what} with {prefix!r}", at=self.path, remedy="`ksentinel alerts` lists them")

    def events(self, search: Search, limit: int, alert: str = "") -> Results:
        """
        Return the last *limit* kept events that fit, in the order of their times.

        Parameters
        ----------
        alert
            Only those kept for the alert of this id (all of it).
        """
        last: deque[Found] = deque(maxlen=limit)
        total = 0
        if self._schema == _ALERTS_ALONE:
            return Results((), 0)
        with self._reading():
            asked = ["kept.alert = :alert"] if alert else []
            asked += [] if search.since_ns is None else ["time_ns >= :since"]
            since_ns = _column(search.since_ns or 0)
            rows = self._db.execute(
                "SELECT event.id, begun_ns, time_ns, kind, pid, tid, exe, paths, host, port, calls, "  # noqa: S608 -- our own words
                "event.body, process.body, "
                "kept.alert, kept.phase "
                "FROM kept JOIN event ON kept.event = event.id JOIN process ON event.process = process.id "
                f"WHERE {' AND '.join(asked) or 'TRUE'} ORDER BY time_ns, event.id, kept.id",
                {"alert": alert, "since": since_ns},
            )
            for _, several in groupby(rows, key=itemgetter(0)):
                event, *others = several
                found = _facts(event)
                if search.fits(found):
                    total += 1
                    body, process = _object(event[-4]), _object(event[-3])
                    alerts = tuple((row[-2], row[-1]) for row in (event, *others))
                    last.append(Found(found, body | {"process": process}, alerts))
        return Results(tuple(last), total)

    def flown(self, alert: str) -> Flown:
        """Return how many events are kept for the alert of that id (all of it)."""
        if self._schema == _ALERTS_ALONE:
            return Flown()
        with self._reading():
            rows = self._db.execute(
                "SELECT phase, count(*) FROM kept WHERE alert = ? GROUP BY phase", (alert,)
            )
            now = dict(rows.fetchall())
            told = self._db.execute("SELECT events, beyond FROM flight WHERE alert = ?", (alert,)).fetchone()
        once, beyond = told or (0, 0)
        return Flown(
            now.get(Phase.BEFORE, 0), now.get(Phase.AFTER, 0), beyond, max(once - sum(now.values()), 0)
        )

    def removed(self) -> dict[str, int]:
        """Return how many alerts, kept events, counts of suppressed alerts and of denials had to make room for others."""
        names = ("alerts_removed", "events_removed", "suppressed_removed", "denials_removed")
        if self._schema == _ALERTS_ALONE:
            return dict.fromkeys(names, 0)
        with self._reading():
            told = dict(self._db.execute("SELECT name, value FROM account").fetchall())
        return {name: told.get(name, 0) for name in names}

    def _limit_alerts(self) -> None:
        (count,) = self._db.execute("SELECT count(*) FROM alert").fetchone()
        if count > self.bounds.max_alerts:
            # Every revision is written anew: those that had none for longest come first.
            rows = self._db.execute(
                "SELECT id FROM alert ORDER BY rowid LIMIT ?", (count - self.bounds.max_alerts,)
            )
            oldest = [alert for (alert,) in rows]
            self._db.executemany("DELETE FROM alert WHERE id = ?", [(alert,) for alert in oldest])
            self._count("alerts_removed", len(oldest))
            self._count("events_removed", self._forget(oldest))

    def _limit_events(self) -> None:
        (count,) = self._db.execute("SELECT count(*) FROM kept").fetchone()
        if count > self.bounds.max_events:
            rows = self._db.execute(
                "DELETE FROM kept WHERE id IN (SELECT id FROM kept ORDER BY id LIMIT ?) RETURNING event",
                (count - self.bounds.max_events,),
            )
            self._count("events_removed", self._drop(rows.fetchall()))

    def _forget(self, alerts: Sequence[str]) -> int:
        """Remove what is kept for *alerts*; returns how many events that were."""
        rows: list[tuple[int]] = []
        for alert in alerts:
            self._db.execute("DELETE FROM flight WHERE alert = ?", (alert,))
            rows += self._db.execute("DELETE FROM kept WHERE alert = ? RETURNING event", (alert,)).fetchall()
        return self._drop(rows)

    def _drop(self, events: Sequence[tuple[int]]) -> int:
        """Remove those of *events* that nothing keeps any more, and what is said of their processes alone."""
        if events:
            self._db.executemany(
                "DELETE FROM event WHERE id = ? AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.event = event.id)",
                events,
            )
            self._db.execute(
                "DELETE FROM process WHERE NOT EXISTS (SELECT 1 FROM event WHERE event.process = process.id)"
            )
        return len(events)

    def _count(self, name: str, more: int) -> int:
        (value,) = self._db.execute(
            "INSERT INTO account VALUES (:name, :more) ON CONFLICT DO UPDATE SET value = value + :more RETURNING value",
            {"name": name, "more": more},
        ).fetchone()
        return int(value)

    @contextmanager
    def _writing(self, failed: str) -> Iterator[None]:
        """Make one transaction of it."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except _DAMAGES as error:
            raise InputError(f"{failed}: {error}", at=self.path, remedy="is the disk full?") from None
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGES as error:
            raise InputError(f"is damaged: {error}", at=self.path, remedy="name another by --store") from None

    def _no_store(self, error: Exception) -> InputError:
        return InputError(f"is no store, or damaged: {error}", at=self.path, remedy="name another by --store")

    def _check_owner(self) -> None:
        status = self.path.lstat()  # who owns a link says nothing of who owns what it leads to
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file", at=self.path, remedy="name another by --store")
        if status.st_uid not in {0, self.uid}:
            raise InputError(
                f"belongs to uid {status.st_uid}", at=self.path, remedy="name a store of your own by --store"
            )
        if status.st_mode & 0o022:
            raise InputError("is writable by others", at=self.path, remedy=f"chmod go-w {self.path}")

    def _open(self) -> None:
        (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        self._schema = schema
        new = self.write and not tables
        if application != APPLICATION and not new:
            raise InputError(
                "is an SQLite file, but no store of alerts", at=self.path, remedy="name another by --store"
            )
        if schema not in {_ALERTS_ALONE, _NOTHING_SUPPRESSED, _NO_DENIALS, SCHEMA} and not new:
            raise InputError(
                f"is a store of schema {schema}; this ksentinel reads {SCHEMA}",
                at=self.path,
                remedy="name another by --store, or use the version that made it",
            )
        if self.write and schema != SCHEMA:
            self._make()

    def _make(self) -> None:
        """Make the tables that aren't there: of a new store, or of one of an older schema."""
        self._db.execute("PRAGMA journal_mode = WAL")
        try:
            self._db.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; "
                f"{_TABLES} COMMIT;"
            )
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        self._schema = SCHEMA


def _facts(row: Sequence[Any]) -> Facts:
    """Return what an event can be searched by, from its row."""
    _, begun_ns, time_ns, kind, pid, tid, exe, paths, host, port, calls, *_ = row
    named = msgspec.json.decode(paths, type=tuple[str, ...])
    return Facts(begun_ns, time_ns, kind, pid, tid, exe, named, host, port, tuple(calls.split()))


def _object(body: bytes) -> dict[str, Any]:
    """Return a JSON object; raises ValueError for anything else."""
    plain = orjson.loads(body)
    if not isinstance(plain, dict):
        raise ValueError("what should be a JSON object is none")  # noqa: TRY004 -- a damaged file, no wrong type of ours
    return plain


def to_json(plain: Any) -> bytes:
    """Return compact JSON; bytes that were no UTF-8 are written as hexadecimal escapes."""
    try:
        return printable_json(orjson.dumps(plain))
    except TypeError:
        return printable_json(orjson.dumps(_harmless(plain)))


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return _bytewise(value)
    if isinstance(value, dict):
        return {_bytewise(key): _harmless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return str(value)
    return value


def _bytewise(text: str) -> str:
    try:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a character that never was a byte: JSON can spell it
        return text.encode(errors="backslashreplace").decode()


def _column(time_ns: int) -> int:
    """Return a time that SQLite can hold; what a log claims beyond the year 2262 sorts as then."""
    return max(min(time_ns, (1 << 63) - 1), -(1 << 63))
