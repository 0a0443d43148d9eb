# SPDX-License-Identifier: Apache-2.0
"""
The store: alerts in one SQLite file, each incident's newest state, its whole JSON beside a few columns to search by.

Schema 1 (``PRAGMA user_version``; application id ``ksal``). Write-ahead logging: a killed writer leaves a store that
opens. The file is private to its owner (mode 0600).
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from ksentinel.alert import Alert
from ksentinel.errors import InputError
from ksentinel.level import Level
from ksentinel.printable import printable_json

SCHEMA = 1
APPLICATION = 0x6B73616C  # "ksal"
# The latter: a message of SQLite's with bytes from a damaged file that are no text, and JSON that is none.
_DAMAGES = (sqlite3.Error, ValueError)
_TABLES = """
CREATE TABLE alert (id TEXT PRIMARY KEY, revision INTEGER NOT NULL, level INTEGER NOT NULL, title TEXT NOT NULL,
                    exe TEXT NOT NULL, service TEXT NOT NULL, opened_ns INTEGER NOT NULL, updated_ns INTEGER NOT NULL,
                    repeats INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE INDEX alert_by_time ON alert (updated_ns);
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

    Raises
    ------
    InputError
        On entering: no store, another schema, somebody else's, writable by others, damaged.
    """

    def __init__(self, path: Path, uid: int, *, write: bool = False) -> None:
        self.path = path
        self.uid = uid
        self.write = write

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
        try:
            self._db.execute("INSERT OR REPLACE INTO alert VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except _DAMAGES as error:
            raise InputError(
                f"an alert can't be stored: {error}", at=self.path, remedy="is the disk full?"
            ) from None

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
        if self.write and not tables:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; {_TABLES} COMMIT;"
            )
            return
        if application != APPLICATION:
            raise InputError(
                "is an SQLite file, but no store of alerts", at=self.path, remedy="name another by --store"
            )
        if schema != SCHEMA:
            raise InputError(
                f"is a store of schema {schema}; this ksentinel reads {SCHEMA}",
                at=self.path,
                remedy="name another by --store, or use the version that made it",
            )


def to_json(plain: dict[str, Any]) -> bytes:
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
