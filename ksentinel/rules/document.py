# SPDX-License-Identifier: Apache-2.0
"""
Documents: YAML as nodes that know where they stand, with nothing in it that could surprise or exhaust a reader.

Built from PyYAML's event stream, not by its composer: the stream is lazy, so a document that nests too deeply is
refused at its 33rd level instead of after a recursion of its own making. Aliases, anchors and tags are refused: a rule
needs none, and eight lines of them make a billion nodes.
"""

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ksentinel.errors import Location, RuleError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_DOCUMENTS = 1000
"""How many documents a file may hold."""

# libyaml's parser where PyYAML was built with it (20 times as fast), else its own.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Scalar:
    """
    A scalar: the text as written, or None for ``null``.

    Numbers stay text on purpose: YAML would make 493 of the ``0755`` that a command line shows.
    """

    text: str | None
    at: Location
    inline: bool = True
    """True if it is written plainly on one line, so that a column in it can be named."""


@dataclass(frozen=True, slots=True)
class List:
    """A sequence."""

    items: tuple["Node", ...]
    at: Location


@dataclass(frozen=True, slots=True)
class Map:
    """A mapping, in the order of the file; its keys are text and differ."""

    items: tuple[tuple[Scalar, "Node"], ...]
    at: Location

    def get(self, key: str) -> "Node | None":
        """Return the value of that *key*, or None."""
        return next((value for name, value in self.items if name.text == key), None)


Node = Scalar | List | Map


def read(path: Path, *, trusted_uids: Collection[int] | None) -> str:
    """
    Return the text of a rule file.

    Parameters
    ----------
    trusted_uids
        Who may own it; None if anyone, with any mode. The open file is asked, not the path: nobody can swap it
        in between.

    Raises
    ------
    RuleError
        If it can't be read, isn't a regular file, is over 1 MiB, isn't UTF-8, or isn't to be trusted.
    """
    try:
        # Without O_NONBLOCK a FIFO that is called x.yml would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RuleError(
            f"can't be read: {error.strerror}", Location(path), "name a rule file, or a folder of them"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RuleError("not a regular file", Location(path))
        check_trust(path, status, trusted_uids)
        try:
            raw = file.read(MAX_BYTES + 1)
        except OSError as error:  # a broken disk; a file of /proc
            raise RuleError(f"can't be read: {error.strerror}", Location(path)) from error
    if len(raw) > MAX_BYTES:
        raise RuleError(f"larger than {MAX_BYTES} bytes", Location(path))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        raise RuleError(f"not UTF-8: byte {raw[error.start]:#04x}", Location(path, line, column)) from error


def check_trust(path: Path, status: os.stat_result, trusted_uids: Collection[int] | None) -> None:
    """
    Refuse what others could have written.

    Raises
    ------
    RuleError
        If the file or directory of that *status* is owned by someone else than *trusted_uids*, or writable by its
        group or by all.
    """
    if trusted_uids is None:
        return
    if status.st_uid not in trusted_uids:
        raise RuleError(
            f"owned by uid {status.st_uid}, who may not write rules", Location(path), "chown it to root"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuleError(
            f"writable by others (mode {stat.S_IMODE(status.st_mode):04o})", Location(path), "chmod go-w"
        )


def parse(text: str, file: str | Path) -> Node:
    """
    Return the one document that *text* holds.

    Raises
    ------
    RuleError
        If it holds several, or for what `parse_all` refuses.

    Examples
    --------
    >>> parse("level: high", "x.yml").get("level").at.line
    1
    """
    first, *rest = parse_all(text, file)
    if rest:
        raise RuleError("a second document", rest[0].at, "one document here")
    return first


def parse_all(text: str, file: str | Path) -> tuple[Node, ...]:
    r"""
    Return the documents that *text* holds, at least one; ``---`` stands between them.

    Raises
    ------
    RuleError
        If it isn't YAML, or holds no document, more than a thousand, duplicate keys, keys that are no text, aliases,
        anchors, tags, or more than 32 levels.

    Examples
    --------
    >>> [document.at.line for document in parse_all("level: high\n---\nlevel: low", "x.yml")]
    [1, 3]
    """
    try:
        # PyYAML refuses some control characters when it is constructed already.
        return tuple(_Builder(file, iter(yaml.parse(text, Loader=_LOADER))).documents())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Location(file) if mark is None else Location(file, mark.line + 1, mark.column + 1)
        raise RuleError(f"not YAML: {error.problem or error.context}", at, "see docs/rules.md") from error
    except yaml.reader.ReaderError as error:
        raise RuleError(
            f"not YAML: character {error.character!r}, {error.reason}", Location(file), "see docs/rules.md"
        ) from error
    except UnicodeError as error:
        raise RuleError(f"not YAML: {error}", Location(file)) from error


def suggest(name: str, known: Collection[str]) -> str:
    """
    Return what might have been meant, as a remedy; empty if nothing comes close.

    Examples
    --------
    >>> suggest("levle", ["level", "title"])
    'did you mean level?'
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower()[:100], by_lower, n=1, cutoff=0.7)
    return f"did you mean {by_lower[close[0]]}?" if close else ""


class _Builder:
    def __init__(self, file: str | Path, events: Iterator[Any]) -> None:
        self.file = file
        self.events = events

    def documents(self) -> Iterator[Node]:
        count = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                count += 1
                if count > MAX_DOCUMENTS:
                    raise RuleError(f"more than {MAX_DOCUMENTS} documents", self.at(event), "split the file")
                yield self.node(next(self.events), 0)
        if not count:
            raise RuleError("an empty file", Location(self.file))

    def at(self, event: Any) -> Location:
        mark = event.start_mark
        return Location(self.file, mark.line + 1, mark.column + 1)

    def node(self, event: Any, depth: int) -> Node:
        at = self.at(event)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise RuleError("anchors and aliases are not supported", at, "write it out")
        if event.tag is not None:
            raise RuleError(f"tag {event.tag!r} is not supported", at)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, at)
        if depth >= MAX_DEPTH:
            raise RuleError(f"nested more than {MAX_DEPTH} levels deep", at)
        if isinstance(event, yaml.SequenceStartEvent):
            return List(tuple(self.elements(depth)), at)
        return Map(tuple(self.pairs(depth)), at)

    def elements(self, depth: int) -> Iterator[Node]:
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self.node(event, depth + 1)

    def pairs(self, depth: int) -> Iterator[tuple[Scalar, Node]]:
        seen: dict[str, Location] = {}
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                return
            key = self.node(event, depth + 1)
            if not isinstance(key, Scalar) or key.text is None:
                raise RuleError("a key must be text", key.at)
            if key.text in seen:
                raise RuleError(
                    f"{key.text!r} stands here a second time, first in line {seen[key.text].line}", key.at
                )
            seen[key.text] = key.at
            yield key, self.node(next(self.events), depth + 1)


def _scalar(event: Any, at: Location) -> Scalar:
    plain = event.style in {None, ""}
    if plain and event.value in {"", "~", "null", "Null", "NULL"}:
        return Scalar(None, at)
    return Scalar(event.value, at, inline=plain and event.start_mark.line == event.end_mark.line)
