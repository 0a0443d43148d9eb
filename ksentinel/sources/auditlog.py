# SPDX-License-Identifier: Apache-2.0
"""
Audit logs from files: plain, rotated, gzip or standard input; lines in, groups of records out, everything counted.

**Who parses what.** Every record goes through Debian's ``auparse``, which knows the odd formats (``avc:  denied
{ read }``, ``msg='...'`` inside ``msg=``, keys joined by 0x01). Its *grouping* is not used: measured with 3.0.9, it
ends an event at the first EOE or PROCTITLE record, so that of a serial whose records arrive in another order the rest
becomes a second event. So `Assembler` groups by node, time and serial within a bounded window of event time.

**What is counted.** ``lines = in_events + malformed + pending``, at every moment:

- *malformed*: not an audit record. Blank lines, ``ausearch``'s ``----`` and a dispatcher's noise belong here, each
  with its reason: who hands in such a file learns what was not understood.
- *pending*: a last line without a newline (nothing tells whether it is whole), and the lines of an event at the end of
  the file whose EXECVE records plainly lack arguments. In the middle of a file such an event is still an event, marked
  as truncated: a lost record must not hide a program start.
"""

import gzip
import io
import re
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ksentinel.errors import HostError, InputError, Location
from ksentinel.event import Record

WINDOW_NS = 2_000_000_000
"""How far apart in event time the records of one serial may lie; ausearch waits as long (``--eoe-timeout``)."""

HELD_LINES = 16384
"""Lines held back at most while their events may still grow, so that no input makes memory grow."""

MAX_LINE = 1 << 20
"""Longer lines are malformed (bytes); auditd itself writes less than 9 KiB a record."""

KEPT_MALFORMED = 20
"""Malformed lines kept with place and reason; the others are only counted."""

_SECOND = 1_000_000_000
_BATCH = 256
_REMEMBERED = 16384
_CHUNK = 1 << 16
_HEADER = re.compile(rb"\s*(?:node=(\S+)\s+)?type=(\S+)\s+msg=audit\((\d{1,12})\.(\d{1,3}):(\d{1,10})\)")
_INTERPRETED = re.compile(rb"\s*(?:node=\S+\s+)?type=\S+\s+msg=audit\(\d+/")
_HEX = re.compile("(?:[0-9A-F]{2})+")
_PART = re.compile(r"a(\d{1,7})(?:\[(\d{1,7})\]|(_len))?")
_COMPRESSED = {b"BZh": "bzcat", b"\xfd7zXZ": "xzcat", b"\x28\xb5\x2f\xfd": "zstdcat"}
_GZIP = b"\x1f\x8b"

_Stream = io.RawIOBase | gzip.GzipFile


@dataclass(frozen=True, slots=True)
class AuditGroup:
    """
    The records of one serial: one event as the kernel saw it.

    Attributes
    ----------
    serial
        Audit's serial number, unique together with *time_ns* and *node*.
    time_ns
        Nanoseconds since the epoch (audit tells milliseconds).
    node
        The ``node=`` prefix of collected logs; empty without one.
    records
        In the order of their lines. Values are unquoted and decoded from hex; bytes that are no UTF-8 are surrogate
        escapes, ``proctitle`` keeps its NULs.
    """

    serial: int
    time_ns: int
    node: str
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that is no audit record: where, and why."""

    at: Location
    reason: str


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the lines of *file*: ``lines == in_events + malformed + pending``."""

    file: str
    lines: int = 0
    in_events: int = 0
    malformed: int = 0
    pending: int = 0
    events: int = 0


Pair = tuple[str, str]
"""A field: name and value."""

Key = tuple[str, int, int]
"""Node, time in ns, serial."""


class RecordParser:
    """
    Lines to records, by Debian's auparse, in batches.

    Raises
    ------
    HostError
        If ``auparse`` can't be imported.

    Examples
    --------
    >>> line = b"type=CWD msg=audit(1.002:3): cwd=2F612062"
    >>> [(key, record)] = RecordParser().parse([line])
    >>> key, record.fields
    (('', 1002000000, 3), (('cwd', '/a b'),))
    """

    def __init__(self) -> None:
        try:
            # By name: type checkers have no stubs for it, and it exists for Debian's own interpreter only.
            self._auparse = import_module("auparse")
        except ImportError as error:
            raise HostError(
                f"audit records are parsed by auparse, and this Python has none: {error}",
                remedy="apt install python3-audit, and run Debian's own interpreter, /usr/bin/python3 "
                "(a virtual environment needs --system-site-packages)",
            ) from error
        a = self._auparse
        encoded = (
            a.AUPARSE_TYPE_ESCAPED,
            a.AUPARSE_TYPE_ESCAPED_FILE,
            a.AUPARSE_TYPE_ESCAPED_KEY,
            a.AUPARSE_TYPE_PROCTITLE,
            a.AUPARSE_TYPE_TTY_DATA,
        )
        self._batch = _Batch(frozenset(encoded))
        self._parser = a.AuParser(a.AUSOURCE_FEED)
        self._parser.add_callback(_take, self._batch)

    def parse(self, lines: Iterable[bytes]) -> list[tuple[Key, Record] | str]:
        """Return for each line its key and record, or the reason why it is none."""
        results: list[tuple[Key, Record] | str] = []
        keys: list[tuple[int, Key]] = []  # index in results
        batch = self._batch
        texts: list[bytes] = []
        batch.waiting, batch.errors = [], {}
        if sum(map(len, batch.decoded.values())) > _REMEMBERED or len(batch.decoded) > _REMEMBERED:
            batch.decoded.clear()
        for line in lines:
            header = _HEADER.match(line) if len(line) <= MAX_LINE else None
            if header is None:
                results.append(_why_not(line))
                continue
            node, kind, seconds, milli, serial = header.groups()
            time_ns = int(seconds) * _SECOND + int(milli) * 1_000_000
            key = (node.decode("utf-8", "backslashreplace") if node else "", time_ns, int(serial))
            if kind == b"EOE":  # it has no fields, and auparse passes over one that comes alone
                results.append((key, Record("EOE", ())))
                continue
            # Of an event at second 0 of the epoch, auparse hands out no fields; the key has the time already.
            text = line if time_ns >= _SECOND else line[: header.start(3)] + b"1" + line[header.end(3) :]
            # auparse ends a line at NUL, and hands out str, so only UTF-8 may come back.
            if not text.isascii():
                text = text.decode("utf-8", "backslashreplace").encode()
            if b"\0" in text:
                text = text.replace(b"\0", b"\\x00")
            keys.append((len(results), key))
            results.append("")
            texts.append(text)
            batch.waiting.append((kind.decode("utf-8", "backslashreplace"), text))
        batch.found = [None] * len(texts)
        if texts:
            self._parser.feed(b"\n".join(texts) + b"\n")
            # Each batch is flushed, because auparse looks through all open events for each line.
            self._parser.flush_feed()
            batch.fed += len(texts)
        for at, ((index, key), record) in enumerate(zip(keys, batch.found, strict=True)):
            if record is not None:
                results[index] = (key, record)
            else:
                results[index] = batch.errors.get(at, "auparse passed over this record")
        return results


class _Batch:
    """What `_take` needs to know; apart from `RecordParser`, so that parser and callback make no cycle."""

    def __init__(self, encoded: frozenset[int]) -> None:
        self.encoded = encoded
        # Per record type, fields as auparse has them -> decoded: most of a log says the same again and again.
        self.decoded: defaultdict[str, dict[Pair, Pair]] = defaultdict(dict)
        self.fed = 0
        self.waiting: list[tuple[str, bytes]] = []
        self.found: list[Record | None] = []
        self.errors: dict[int, str] = {}


def _take(parser: Any, _kind: int, batch: _Batch) -> None:
    # Called by auparse with one of *its* events; only the line numbers tell us where each record belongs.
    parser.first_record()
    while True:
        index = parser.get_line_number() - batch.fed - 1
        kind, line = batch.waiting[index]
        try:
            if kind.isdigit():
                kind = _name(parser, kind)
            batch.found[index] = Record(kind, _fields(parser, line, batch.encoded, batch.decoded[kind]))
        except (LookupError, RuntimeError) as error:
            # auparse stumbled over this one: counted as malformed, and the walk goes on.
            batch.errors[index] = f"auparse can't read this record: {error}"
        if not parser.next_record():
            return


def _name(parser: Any, number: str) -> str:
    try:
        return str(parser.get_type_name())
    except LookupError:  # a number that auparse has no name for
        return number


def _fields(parser: Any, line: bytes, encoded: frozenset[int], decoded: dict[Pair, Pair]) -> tuple[Pair, ...]:
    fields: list[Pair] = []
    append, name_of, value_of, more = (
        fields.append,
        parser.get_field_name,
        parser.get_field_str,
        parser.next_field,
    )
    going = parser.first_field()
    while going:
        raw = name_of(), value_of()
        pair = decoded.get(raw)
        if pair is None:
            name, value = raw
            if value[:1] == '"':
                # auparse ends a quoted value at its first blank; only user space writes such.
                whole = len(value) > 1 and value[-1] == '"'
                pair = name, value[1:-1] if whole else _quoted(name, value, line)
            elif _HEX.fullmatch(value) and parser.get_field_type() in encoded:
                whole, pair = True, (name, bytes.fromhex(value).decode("utf-8", "surrogateescape"))
            else:
                whole, pair = True, raw
            if whole:  # the others are not told by their own words alone
                decoded[raw] = pair
        append(pair)
        going = more()
    # node is kept (events have no host of their own), type is Record.type.
    type_at = 1 if fields and fields[0][0] == "node" else 0
    del fields[type_at : type_at + 1]
    if b"\x1d" in line:
        fields.extend(_enriched(line.partition(b"\x1d")[2].decode()))
    return tuple(fields)


class Assembler:
    """
    Records of one serial together, in order of each event's first line.

    An event is over once a line of the same node is more than *window_ns* newer, or more than *held* lines are
    waiting: by event time and count alone, so that the same lines always give the same events. A record that comes
    later still becomes an event of its own, as with auparse.

    Parameters
    ----------
    window_ns
        Nanoseconds of event time.
    held
        Lines held back at most.
    """

    def __init__(self, window_ns: int = WINDOW_NS, held: int = HELD_LINES) -> None:
        self.window_ns = window_ns
        self.limit = held
        self.held = 0
        self._open: dict[Key, list[Record]] = {}
        self._order: deque[Key] = (
            deque()
        )  # a dict's first key gets ever slower to find as its heads are popped
        self._newest: dict[str, int] = {}

    def add(self, key: Key, record: Record) -> Sequence[AuditGroup]:
        """Take one record; return the groups that are over by that."""
        records = self._open.get(key)
        if records is None:
            self._open[key] = [record]
            self._order.append(key)
        else:
            records.append(record)
        self.held += 1
        node, time_ns, _ = key
        newest = self._newest.get(node)
        # A line much older than the newest: the clock was set back. The groups of before wait for others to push them.
        if newest is None or time_ns > newest or time_ns < newest - self.window_ns:
            self._newest[node] = time_ns
        over: list[AuditGroup] = []
        while self._order:
            head = self._order[0]
            if self._newest[head[0]] - head[1] <= self.window_ns and self.held <= self.limit:
                break
            over.append(self._pop())
        return over

    def flush(self) -> Iterator[AuditGroup]:
        """Yield what is still open: the input is over."""
        while self._order:
            yield self._pop()
        self._newest.clear()

    def _pop(self) -> AuditGroup:
        key = self._order.popleft()
        records = self._open.pop(key)
        self.held -= len(records)
        node, time_ns, serial = key
        return AuditGroup(serial, time_ns, node, tuple(records))


class AuditLog:
    """
    The events of one audit log.

    Parameters
    ----------
    path
        A file (gzip is told by its content, not its name), or ``-`` for *stdin*.
    stdin
        What ``-`` means.

    Attributes
    ----------
    malformed
        The first `KEPT_MALFORMED` lines that are no records.

    Raises
    ------
    InputError
        While iterating: the file can't be read, holds not one audit record, or is cut (after all events before the
        cut have been yielded).
    HostError
        While iterating: there is no auparse.
    """

    def __init__(self, path: Path | Literal["-"], stdin: BinaryIO | None = None) -> None:
        self.path = path
        self.stdin = stdin
        self.name = "<stdin>" if path == "-" else str(path)
        self.malformed: list[Malformed] = []
        self._assembler = Assembler()
        self._lines = self._in_events = self._malformed = self._cut = self._events = 0
        self._recognised = False

    @property
    def account(self) -> Account:
        """What became of the lines up to now; while iterating, *pending* includes those whose event may still grow."""
        return Account(
            self.name,
            lines=self._lines,
            in_events=self._in_events,
            malformed=self._malformed,
            pending=self._cut + self._assembler.held,
            events=self._events,
        )

    def __iter__(self) -> Iterator[AuditGroup]:
        self.malformed = []
        self._assembler = Assembler()
        self._lines = self._in_events = self._malformed = self._cut = self._events = 0
        self._recognised = False
        parser = RecordParser()
        with self._open() as stream:
            lines = _Lines(stream)
            whole = iter(lines)
            while batch := list(islice(whole, _BATCH)):
                for line, result in zip(batch, parser.parse(batch), strict=True):
                    self._lines += 1
                    if isinstance(result, str):
                        self._refuse(line, result)
                        continue
                    self._recognised = True
                    for group in self._assembler.add(*result):
                        yield self._count(group)
        if lines.rest:
            self._lines += 1
            self._cut += 1
            self._recognised |= _HEADER.match(lines.rest) is not None
        yield from self._last_groups()
        self._complain(lines.broken)

    def _last_groups(self) -> Iterator[AuditGroup]:
        for group in self._assembler.flush():
            if arguments(group.records)[1]:
                yield self._count(group)
            else:
                self._cut += len(group.records)

    def _count(self, group: AuditGroup) -> AuditGroup:
        self._in_events += len(group.records)
        self._events += 1
        return group

    def _refuse(self, line: bytes, reason: str) -> None:
        self._malformed += 1
        if len(self.malformed) < KEPT_MALFORMED:
            start = line[:60].decode("utf-8", "backslashreplace")
            shown = f"{reason}: {start!r}" if line.strip() else reason
            self.malformed.append(Malformed(Location(self.name, self._lines), shown))

    def _complain(self, broken: str) -> None:
        at = Location(self.name, self._lines)
        if broken:
            raise InputError(
                f"compressed data end early or are damaged after this line ({broken})",
                at,
                remedy="copy the file again; the events up to here have been read",
            )
        if self._lines == 0:
            raise InputError("the file is empty", self.name, remedy="name an audit log with records in it")
        if not self._recognised:
            first = (
                f"; line {self.malformed[0].at.line}: {self.malformed[0].reason}" if self.malformed else ""
            )
            raise InputError(
                f"not one of its {self._lines} lines is an audit record{first}",
                self.name,
                remedy="name a raw audit log, such as /var/log/audit/audit.log or the output of `ausearch --raw`",
            )

    @contextmanager
    def _open(self) -> Iterator[_Stream]:
        if self.path == "-":
            if self.stdin is None:
                raise InputError("standard input was named, and there is none", self.name)
            yield _unpacked(self.stdin, self.name)
            return
        try:
            file = Path(self.path).open("rb")  # noqa: SIM115 -- closed below; errors of its user are not ours
        except IsADirectoryError:
            raise InputError(
                "is a directory",
                self.path,
                remedy=f"name a file in it, such as {Path(self.path) / 'audit.log'}",
            ) from None
        except PermissionError:
            raise InputError(
                "may not be read by this user", self.path, remedy="run as root, or as a member of its group"
            ) from None
        except OSError as error:
            raise InputError(f"can't be read: {error.strerror}", self.path) from error
        with file:
            yield _unpacked(file, self.name)


class _Lines:
    """Lines of a stream without their ends; *rest* is a last one that has no end, *broken* why reading ended early."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self.rest = b""
        self.broken = ""

    def __iter__(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        size = 0
        while chunk := self._read():
            first, *others = chunk.split(b"\n")
            # Of a line that is too long only so much is kept that it is known to be too long.
            if size <= MAX_LINE:
                parts.append(first)
                size += len(first)
            if not others:
                continue
            yield b"".join(parts).removesuffix(b"\r")
            *middle, last = others
            for line in middle:
                yield line.removesuffix(b"\r")
            parts, size = [last], len(last)
        self.rest = b"".join(parts)

    def _read(self) -> bytes:
        try:
            # read1: what is there before a cut in gzip data is delivered, not thrown away with the error.
            read = getattr(self._stream, "read1", self._stream.read)
            data: bytes = read(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.broken = str(error)
            return b""
        return data


def arguments(records: Iterable[Record]) -> tuple[tuple[str, ...], bool]:
    """
    Return the arguments that EXECVE records hold, in their order, and whether they are complete.

    The kernel splits long argument lists over several records, and long arguments over several fields
    (``a1_len=20000 a1[0]=... a1[1]=...``); see ``audit_log_execve_info`` in the kernel's ``auditsc.c``.

    Examples
    --------
    >>> arguments(
    ...     [
    ...         Record("EXECVE", (("argc", "2"), ("a0", "sh"))),
    ...         Record("EXECVE", (("a1_len", "8"), ("a1[0]", "ab"))),
    ...     ]
    ... )
    (('sh', 'ab'), False)
    """
    count: int | None = None
    whole: dict[int, str] = {}
    parts: dict[int, dict[int, str]] = {}
    lengths: dict[int, int] = {}
    complete = True
    for record in records:
        if record.type != "EXECVE":
            continue
        for name, value in record.fields:
            if name == "argc":
                count = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
                complete &= count is not None
                continue
            part = _PART.fullmatch(name)
            if part is None:
                continue
            index = int(part[1])
            if part[2] is not None:
                parts.setdefault(index, {})[int(part[2])] = value
            elif part[3] is None:
                whole[index] = value
            elif value.isascii() and value.isdigit() and len(value) < 10:
                lengths[index] = int(value)
    for index, pieces in parts.items():
        whole[index] = "".join(pieces[i] for i in sorted(pieces))
        complete &= max(pieces) == len(pieces) - 1
    for index, length in lengths.items():
        # The length is that of the written form: as it is, or two hex digits a byte.
        size = len(whole.get(index, "").encode("utf-8", "surrogateescape"))
        complete &= length in (size, 2 * size)
    found = sorted(whole)
    complete &= count is None or (len(found) == count and (not found or found[-1] == count - 1))
    return tuple(whole[index] for index in found), complete


def _why_not(line: bytes) -> str:
    if not line.strip():
        return "blank line"
    if len(line) > MAX_LINE:
        return f"longer than {MAX_LINE} bytes"
    if line.startswith((b"----", b"time->")):
        return "a separator of ausearch"
    if _INTERPRETED.match(line):
        return "interpreted (ausearch -i); only raw records can be read"
    return "not an audit record"


def _quoted(name: str, value: str, line: bytes) -> str:
    start = line.find(f"{name}={value}".encode())
    end = line.find(b'"', start + len(name.encode()) + 2) if start >= 0 else -1
    if end < 0:
        return value[1:]
    return line[start + len(name.encode()) + 2 : end].decode("utf-8", "backslashreplace")


def _enriched(text: str) -> Iterator[tuple[str, str]]:
    # auditd's log_format = ENRICHED: NAME="value" SADDR={ ... }. By hand, because it must stay linear in a long line.
    position = 0
    while (equals := text.find("=", position)) >= 0:
        name = text[position:equals].strip()
        close = {'"': '"', "{": "}"}.get(text[equals + 1 : equals + 2])
        begin = equals + 1 if close is None or close == "}" else equals + 2
        end = text.find(close or " ", begin)
        end = len(text) if end < 0 else end
        value = text[begin : end + 1] if close == "}" else text[begin:end]
        if name:
            yield name, value
        position = end + 1


def _unpacked(stream: BinaryIO, name: str) -> _Stream:
    start = stream.read(6)
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(
                "is compressed, and not by gzip", name, remedy=f"{tool} {name} | ksentinel ... -"
            )
    whole = _Prefixed(start, stream)
    return gzip.GzipFile(fileobj=whole) if start.startswith(_GZIP) else whole


class _Prefixed(io.RawIOBase):
    """A stream with the bytes put back that were looked at; it never closes what it reads from (stdin is not ours)."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._start:
            taken = self._start if size < 0 else self._start[:size]
            self._start = self._start[len(taken) :]
            return taken
        # read1, if there is one: a pipe's lines as they come.
        read = getattr(self._stream, "read1", self._stream.read)
        data: bytes = read(size)
        return data
