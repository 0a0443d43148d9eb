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
from contextlib import contextmanager, suppress
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
_KNOWN = 100_000
"""Processes remembered by a writer; most of them have ended by then, and those that live are entered anew."""

# What reading a file that was damaged, or made by someone unkind, can raise: SQLite's errors, and everything that
# values of a wrong type or size lead to.
_DAMAGES = (
    sqlite3.Error,
    struct.error,
    InputError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


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
            raise InputError(
                f"can't be written: {error.strerror}", at=self.path, remedy="name another file by --out"
            ) from None
        # Absolute: SQLite takes a file called :memory: for something else.
        self._db = sqlite3.connect(self.path.absolute(), isolation_level=None)
        try:
            with self._writing():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._db.executescript(
                    f"BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; {_TABLES} COMMIT;"
                )
            self.note(self.facts)
        except InputError:
            self._db.close()
            self.path.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # One file in the end, not three; where that can't be (a full disk, a reader), three are as good.
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA journal_mode = DELETE")
        self._db.close()

    def note(self, facts: Mapping[str, Any]) -> None:
        """Write facts, replacing those of the same names; raises InputError if the disk is full."""
        rows = [(name, json.dumps(value)) for name, value in facts.items()]
        with self._writing():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)
            self._db.execute("COMMIT")

    def account(self, account: Account) -> None:
        """Write the collector's counters; raises InputError if the disk is full."""
        with self._writing():
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO account VALUES (?, ?)", list(account.items()))
            self._db.execute("COMMIT")

    def write(self, items: list[Item]) -> None:
        """
        Write a batch in one transaction: all of it or, if something is wrong with one item, nothing.

        Raises
        ------
        InputError
            If the disk is full, or a number is too large for the format.
        """
        with self._writing():
            self._db.execute("BEGIN")
            rows = [self._row(item) for item in items]
            self._db.executemany(
                "INSERT INTO item (time_ns, kind, process, tid, body) VALUES (?, ?, ?, ?, ?)", rows
            )
            self._db.execute("COMMIT")
        if len(self._ids) > _KNOWN:
            self._ids.clear()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, struct.error, OverflowError) as error:
            if isinstance(error, sqlite3.Error):
                remedy = "is the disk full? What was written is kept"
            else:
                remedy = "this batch is not kept, those before it are"
            raise InputError(f"can't be written any further: {error}", at=self.path, remedy=remedy) from None
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
                # Some of these were entered in the transaction that is no more.
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
        if not is_recording(self.path):
            raise InputError(
                "is no recording", at=self.path, remedy="make one by `ksentinel record --out FILE`"
            )
        try:
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None
            )
        except sqlite3.Error as error:
            raise self._damaged(error) from None
        try:
            self._check()
        except BaseException:
            self._db.close()
            raise
        return self

    def _check(self) -> None:
        with self._reading():
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (schema,) = self._db.execute("PRAGMA user_version").fetchone()
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
        with self._reading():
            facts = self._db.execute("SELECT name, value FROM facts")
            self.facts: dict[str, Any] = {name: json.loads(value) for name, value in facts}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def __iter__(self) -> Iterator[list[Item]]:
        with self._reading():
            processes = self._processes()
            rows = self._db.execute("SELECT time_ns, kind, process, tid, body FROM item ORDER BY id")
        while some := self._batch(processes, rows):
            yield some

    def windows(self) -> Iterator[Window]:
        """Yield the windows alone: what training needs."""
        with self._reading():
            processes = self._processes()
            rows = self._db.execute(
                "SELECT time_ns, kind, process, tid, body FROM item WHERE kind = 'window' ORDER BY id"
            )
        while some := self._batch(processes, rows):
            yield from (item for item in some if isinstance(item, Window))

    def count(self) -> int:
        """Return how many windows and events it holds."""
        with self._reading():
            (count,) = self._db.execute("SELECT count(*) FROM item").fetchone()
            return int(count)

    def account(self) -> Account:
        """Return the collector's counters at the end of the recording; none if it was cut short."""
        with self._reading():
            rows = self._db.execute("SELECT name, value FROM account ORDER BY rowid").fetchall()
            return {name: int(value) if value == int(value) else value for name, value in rows}

    def lost(self) -> int:
        """Return 0: what was lost while recording is marked on the windows it concerns."""
        return 0

    def _processes(self) -> dict[int, Process]:
        processes: dict[int, Process] = {}
        # A parent is always written before its child.
        for number, parent, service, facts in self._db.execute(
            "SELECT id, parent, service, facts FROM process ORDER BY id"
        ):
            bare = process_from_plain(_loads(facts))
            above = processes.get(parent)
            processes[number] = _with_family(bare, above, processes.get(service))
        return processes

    def _batch(self, processes: dict[int, Process], rows: sqlite3.Cursor) -> list[Item]:
        with self._reading():
            return [_item(processes, *row) for row in rows.fetchmany(self.batch)]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn whatever a damaged file leads to into an error that names the file."""
        try:
            yield
        except _DAMAGES as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> InputError:
        # A recording whose writer was killed has its last part in FILE-wal; a reader needs FILE-shm, and makes it.
        if isinstance(error, sqlite3.OperationalError) and not os.access(
            self.path.parent, os.W_OK, effective_ids=True
        ):
            return InputError(
                f"can't be read: {error}",
                at=self.path,
                remedy=f"copy it, and {self.path.name}-wal if that is there, to a directory that you can write to",
            )
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        return InputError(f"is damaged: {said}", at=self.path, remedy="record again")


def is_recording(path: Path) -> bool:
    """Tell whether *path* is an SQLite file (and so can't be an audit log); raises InputError if it can't be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError("there is no such file", at=path, remedy="name a recording") from None
        remedy = "run as its owner, or as root"
        raise InputError(f"can't be read: {error.strerror}", at=path, remedy=remedy) from None


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
    plain = dict(_loads(body))
    return event_from_plain(
        plain | {"event": kind, "time_ns": time_ns, "tid": tid}, process=lambda _: processes[process]
    )


def _dumps(plain: Mapping[str, Any]) -> bytes:
    # Undecodable bytes are kept as surrogates, which orjson refuses and json writes as \\udcXX.
    try:
        return orjson.dumps(plain)
    except TypeError:
        return json.dumps(plain).encode()


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:  # it may be such a surrogate
        return json.loads(body)
