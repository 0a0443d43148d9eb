# SPDX-License-Identifier: Apache-2.0
"""
Recordings: everything that replay, training and a rule need, in one SQLite file.

Schema 1 (``PRAGMA user_version``; application id ``ksen``):

=========  ===========================================================================================
table      columns
=========  ===========================================================================================
facts      name, value (JSON): host, kernel, arch, origin, started_ns, ended_ns, ksentinel, ...
process    id, parent, service (ids), facts (JSON, as in `codec`): a process **as it was at one moment**
item       id (order of arrival), time_ns, kind (window, or an event's), process, tid, body
account    name, value: the collector's counters at the end, losses among them
=========  ===========================================================================================

An event's body is JSON (as in `codec`, without its process); a window's is binary: first_ns (8 bytes, little endian),
cause, lossy, origin (a byte each), one unused, then two bytes a token.
"""

import json
import os
import sqlite3
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from ksentinel.codec import event_from_plain, event_to_plain, process_from_plain, process_to_plain
from ksentinel.errors import InputError
from ksentinel.event import Origin, Process
from ksentinel.sources import Account, Item
from ksentinel.window import Cause, Window

SCHEMA = 1
APPLICATION = 0x6B73656E  # "ksen"
_SQLITE_MAGIC = b"SQLite format 3\0"
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE process (id INTEGER PRIMARY KEY, parent INTEGER, service INTEGER, facts BLOB NOT NULL) STRICT;
CREATE TABLE item (id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, kind TEXT NOT NULL, process INTEGER NOT NULL,
                   tid INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE account (name TEXT PRIMARY KEY, value REAL NOT NULL) STRICT;
"""
_HEAD = struct.Struct("<qBBBx")
_ORIGINS = list(Origin)


class Writer:
    """
    Writes a recording; what was written survives a crash (WAL, one transaction a batch).

    Parameters
    ----------
    path
        Must not exist; made with mode 0600.
    facts
        What is known at the start: host, kernel, arch, origin, ...
    """

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.facts = facts
        self._ids: dict[int, tuple[int, Process]] = {}
        self._next = 1

    def __enter__(self) -> Self:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except FileExistsError:
            raise InputError(
                "exists already", at=self.path, remedy="name another file, or remove it"
            ) from None
        except OSError as error:
            raise InputError(f"can't be written: {error.strerror}", at=self.path) from None
        self._db = sqlite3.connect(self.path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(
            f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; {_TABLES}"
        )
        self.note(self.facts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One file in the end, not three.
        self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write facts, replacing those of the same names."""
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def account(self, account: Account) -> None:
        """Write the collector's counters."""
        self._db.executemany("INSERT OR REPLACE INTO account VALUES (?, ?)", list(account.items()))

    def write(self, items: list[Item]) -> None:
        """Write a batch in one transaction; raises InputError if the disk is full."""
        try:
            self._db.execute("BEGIN")
            rows = [self._row(item) for item in items]
            self._db.executemany(
                "INSERT INTO item (time_ns, kind, process, tid, body) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise InputError(
                f"can't be written any further: {error}",
                at=self.path,
                remedy="is the disk full? What was written is kept",
            ) from None
        if len(self._ids) > 100_000:  # most have ended; those that live are entered anew
            self._ids.clear()

    def _row(self, item: Item) -> tuple[int, str, int, int, bytes]:
        process = self._process(item.process)
        if isinstance(item, Window):
            head = _HEAD.pack(item.first_ns, item.cause, item.lossy, _ORIGINS.index(item.origin))
            body = head + struct.pack(f"<{len(item.tokens)}H", *item.tokens)
            return item.last_ns, "window", process, item.tid, body
        plain = event_to_plain(item, process=lambda _: None)
        kind = plain.pop("event")
        for name in ("process", "time_ns", "tid"):
            plain.pop(name, None)
        return item.time_ns, kind, process, item.tid, _dumps(plain)

    def _process(self, process: Process) -> int:
        known = self._ids.get(id(process))
        if known is not None:
            return known[0]
        parent = None if process.parent is None else self._process(process.parent)
        service = None if process.service is None else self._process(process.service)
        plain = process_to_plain(process, ancestors=0)
        plain.pop("service", None)
        number, self._next = self._next, self._next + 1
        self._db.execute("INSERT INTO process VALUES (?, ?, ?, ?)", (number, parent, service, _dumps(plain)))
        # The reference keeps the object alive, so that its id() stays its own.
        self._ids[id(process)] = number, process
        return number


class Reader:
    """
    Reads a recording; a `ksentinel.sources.Stream`.

    Raises
    ------
    InputError
        On entering: no recording, another schema, or a damaged file.
    """

    def __init__(self, path: Path, *, batch: int = 512) -> None:
        self.path = path
        self.batch = batch

    def __enter__(self) -> Self:
        if not self.path.exists():
            raise InputError("there is no such file", at=self.path)
        if not is_recording(self.path):
            raise InputError(
                "is no recording", at=self.path, remedy="make one by `ksentinel record --out FILE`"
            )
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (schema,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise InputError(f"is damaged: {error}", at=self.path, remedy="record again") from None
        if application != APPLICATION:
            raise InputError(
                "is an SQLite file, but no recording",
                at=self.path,
                remedy="make one by `ksentinel record --out FILE`",
            )
        if schema != SCHEMA:
            raise InputError(
                f"is a recording of schema {schema}; this ksentinel reads {SCHEMA}",
                at=self.path,
                remedy="record again, or use the version that made it",
            )
        try:
            facts = self._db.execute("SELECT name, value FROM facts")
            self.facts: dict[str, Any] = {name: json.loads(value) for name, value in facts}
        except (sqlite3.Error, ValueError) as error:
            raise self._damaged(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def __iter__(self) -> Iterator[list[Item]]:
        try:
            processes = self._processes()
            rows = self._db.execute("SELECT time_ns, kind, process, tid, body FROM item ORDER BY id")
            while some := rows.fetchmany(self.batch):
                yield [_item(processes, *row) for row in some]
        except (sqlite3.Error, struct.error, ValueError, KeyError, IndexError) as error:
            raise self._damaged(error) from None

    def windows(self) -> Iterator[Window]:
        """Yield the windows alone: what training needs."""
        try:
            processes = self._processes()
            rows = self._db.execute(
                "SELECT time_ns, kind, process, tid, body FROM item WHERE kind = 'window' ORDER BY id"
            )
            for row in rows:
                item = _item(processes, *row)
                if isinstance(item, Window):
                    yield item
        except (sqlite3.Error, struct.error, ValueError, KeyError, IndexError) as error:
            raise self._damaged(error) from None

    def count(self) -> int:
        """Return how many windows and events it holds."""
        (count,) = self._db.execute("SELECT count(*) FROM item").fetchone()
        return int(count)

    def account(self) -> Account:
        """Return the collector's counters at the end of the recording."""
        return dict(self._db.execute("SELECT name, value FROM account"))

    def lost(self) -> int:
        """Return 0: what was lost while recording is marked on the windows it concerns."""
        return 0

    def _processes(self) -> dict[int, Process]:
        processes: dict[int, Process] = {}
        # A parent is always written before its child.
        for number, parent, service, facts in self._db.execute(
            "SELECT id, parent, service, facts FROM process ORDER BY id"
        ):
            bare = process_from_plain(orjson.loads(facts))
            above = processes.get(parent)
            processes[number] = _with_family(bare, above, processes.get(service))
        return processes

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"is damaged: {error}", at=self.path, remedy="record again")


def is_recording(path: Path) -> bool:
    """Tell whether *path* is an SQLite file (and so can't be an audit log)."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", at=path) from None


def _with_family(process: Process, parent: Process | None, service: Process | None) -> Process:
    depth = 0 if parent is None else parent.depth + 1
    return replace(process, parent=parent, service=service, depth=depth)


def _item(
    processes: dict[int, Process], time_ns: int, kind: str, process: int, tid: int, body: bytes
) -> Item:
    if kind == "window":
        first_ns, cause, lossy, origin = _HEAD.unpack_from(body)
        tokens = struct.unpack(f"<{(len(body) - _HEAD.size) // 2}H", body[_HEAD.size :])
        return Window(
            process=processes[process],
            tid=tid,
            first_ns=first_ns,
            last_ns=time_ns,
            tokens=tokens,
            cause=Cause(cause),
            origin=_ORIGINS[origin],
            lossy=bool(lossy),
        )
    plain = orjson.loads(body)
    return event_from_plain(
        plain | {"event": kind, "time_ns": time_ns, "tid": tid}, process=lambda _: processes[process]
    )


def _dumps(plain: Mapping[str, Any]) -> bytes:
    # Undecodable bytes are kept as surrogates, which orjson refuses and json writes as \\udcXX.
    try:
        return orjson.dumps(plain)
    except TypeError:
        return json.dumps(plain).encode()
