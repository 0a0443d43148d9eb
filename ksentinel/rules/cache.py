# SPDX-License-Identifier: Apache-2.0
"""
The cache: rules as they were compiled, kept as data, so that a thousand of them load at once.

A rule is found by the SHA-256 of its file's text. All of them are forgotten when anything changes that they were made by:
ksentinel, the modules of this room, pySigma, RE2, or what log sources offer. Who may write rules is looked at before, at the
files themselves. Anything odd about the cache is said once, and the rules are compiled anew: it can be deleted at any time.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import msgspec

from ksentinel import __version__
from ksentinel.errors import Location
from ksentinel.rules import Rule
from ksentinel.rules.condition import And, Expression, Not, Or
from ksentinel.rules.fields import Field, Source
from ksentinel.rules.pattern import Item, Kind, Pattern
from ksentinel.rules.sigma import Compiled

FILE = "rules.json"
MAX_BYTES = 256 << 20
MAX_KEPT = 20_000


class _Pattern(msgspec.Struct, array_like=True, frozen=True):
    kind: Kind
    needle: str
    text: str
    cased: bool
    literal: str


class _Item(msgspec.Struct, array_like=True, frozen=True, tag="item"):
    selection: str
    field: str | None
    """None for keywords."""
    patterns: tuple[_Pattern, ...]
    every: bool


class _And(msgspec.Struct, array_like=True, frozen=True, tag="and"):
    parts: tuple["_Tree", ...]


class _Or(msgspec.Struct, array_like=True, frozen=True, tag="or"):
    parts: tuple["_Tree", ...]


class _Not(msgspec.Struct, array_like=True, frozen=True, tag="not"):
    part: "_Tree"


_Tree = _Item | _And | _Or | _Not


class _Rule(msgspec.Struct, frozen=True):
    rule: Rule
    tree: _Tree
    line: int
    column: int
    response_line: int
    response_column: int


class _Contents(msgspec.Struct):
    made_by: str
    rules: dict[str, msgspec.Raw]


class _OddError(Exception):
    """The cache can't be used; why."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    uid: int

    def read(self) -> bytes | None:
        """Return what is kept; None if there is nothing yet."""
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            self._check(os.fstat(folder), stat.S_IWGRP | stat.S_IWOTH)
            try:
                descriptor = os.open(
                    FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
                )
            except FileNotFoundError:
                return None
        finally:
            os.close(folder)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _OddError("not a regular file")
            self._check(status, stat.S_IRWXG | stat.S_IRWXO)
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise _OddError(f"larger than {MAX_BYTES} bytes")
        return raw

    def write(self, raw: bytes) -> None:
        """Replace what is kept, at once or not at all."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check(self.path.lstat(), stat.S_IWGRP | stat.S_IWOTH)
        descriptor, name = tempfile.mkstemp(dir=self.path, prefix=".")  # 0600, and nobody's link
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            Path(name).replace(self.path / FILE)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise

    def _check(self, status: os.stat_result, forbidden: int) -> None:
        if status.st_uid != self.uid:
            raise _OddError(f"owned by uid {status.st_uid}")
        if status.st_mode & forbidden:
            raise _OddError(f"open to others (mode {stat.S_IMODE(status.st_mode):04o})")


class Cache:
    """
    Rules as they were compiled.

    Parameters
    ----------
    folder
        Where they are kept; made if need be.
    uid
        Who must own it, and what is in it.

    Attributes
    ----------
    odd
        What was odd about it, and what that means; empty if nothing was.
    hits, misses
        How many files it knew, and how many not.
    """

    def __init__(self, folder: Path, uid: int) -> None:
        self.odd = ""
        self.hits = 0
        self.misses = 0
        self._folder = _Folder(folder, uid)
        self._sources: Mapping[str, Source] = {}
        self._made_by = ""
        self._kept: dict[str, msgspec.Raw] = {}
        self._used: dict[str, msgspec.Raw] = {}

    def open(self, table: Mapping[str, Source]) -> None:
        """Read what is kept of rules for these log sources."""
        self._sources = table
        self._made_by = _made_by(table)
        try:
            raw = self._folder.read()
            if raw is None:
                return
            # A rule with a bit turned over is another rule.
            digest, _, body = raw.partition(b"\n")
            if digest != hashlib.sha256(body).hexdigest().encode():
                raise _OddError("damaged")  # noqa: TRY301 - said where the others are
            contents = msgspec.json.decode(body, type=_Contents)
        except (_OddError, OSError, msgspec.MsgspecError) as error:
            self._note(error, "rules are compiled anew")
            return
        if contents.made_by == self._made_by:
            self._kept = contents.rules

    def get(self, text: str, file: str | Path) -> Compiled | None:
        """Return the rule that *text* was compiled to; None if it isn't known."""
        digest = _digest(text)
        raw = self._kept.get(digest)
        if raw is not None:
            try:
                compiled = self._compiled(msgspec.json.decode(raw, type=_Rule), file)
            except (msgspec.MsgspecError, LookupError, ValueError, RecursionError) as error:
                self._note(error, "rules are compiled anew")
            else:
                self.hits += 1
                self._used[digest] = raw
                return compiled
        self.misses += 1
        return None

    def put(self, text: str, compiled: Compiled) -> None:
        """Remember what *text* was compiled to."""
        at, asked = compiled.at, compiled.response_at or Location("")
        tree = _stored(compiled.tree, compiled.source)
        kept = _Rule(compiled.rule, tree, at.line, at.column, asked.line, asked.column)
        self._used[_digest(text)] = msgspec.Raw(msgspec.json.encode(kept))

    def close(self) -> None:
        """Keep what is remembered, if it is more than was kept already."""
        if self._used.keys() <= self._kept.keys():
            return
        rules = self._kept | self._used
        if len(rules) > MAX_KEPT:
            rules = self._used
        body = msgspec.json.encode(_Contents(self._made_by, rules))
        try:
            self._folder.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except (_OddError, OSError) as error:
            self._note(error, "compiled rules are not kept")

    def _note(self, error: Exception, so: str) -> None:
        why = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
        self.odd = self.odd or f"{self._folder.path / FILE}: {why}: {so}"

    def _compiled(self, kept: _Rule, file: str | Path) -> Compiled:
        source = self._sources[kept.rule.source]
        at = Location(file, kept.line, kept.column)
        asked = Location(file, kept.response_line, kept.response_column) if kept.response_line else None
        rule = replace(kept.rule, file=str(file))
        return Compiled.make(rule, source, _restored(kept.tree, source), at, asked)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _made_by(table: Mapping[str, Source]) -> str:
    """Return a digest of all that makes a compiled rule besides its text."""
    digest = hashlib.sha256()
    for name in (__version__, version("pysigma"), version("google-re2")):
        digest.update(f"{name}\n".encode())
    digest.update(" ".join(field.name for field in fields(Rule)).encode())
    # The modules that compile: nobody has to remember to count up a number when one changes.
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    for source in table.values():
        digest.update(f"\n{source.name} {source.index} {sorted(source.calls or ())}".encode())
        for name, field in source.fields.items():
            digest.update(f"\n{name} {field.number} {sorted(field.choices or ())}".encode())
    return digest.hexdigest()


def _stored(tree: Expression, source: Source) -> _Tree:
    match tree:
        case Item(selection, field, patterns, every):
            name = None if field is source.keywords else field.name
            stored = (_Pattern(p.kind, p.needle, p.text, p.cased, p.literal) for p in patterns)
            return _Item(selection, name, tuple(stored), every)
        case Not(part):
            return _Not(_stored(part, source))
        case And(parts):
            return _And(tuple(_stored(part, source) for part in parts))
        case Or(parts):
            return _Or(tuple(_stored(part, source) for part in parts))


def _restored(tree: _Tree, source: Source) -> Expression:
    match tree:
        case _Item():
            made = (
                Pattern.make(p.kind, p.needle, p.text, cased=p.cased, literal=p.literal)
                for p in tree.patterns
            )
            return Item(tree.selection, _field(tree.field, source), tuple(made), every=tree.every)
        case _Not():
            return Not(_restored(tree.part, source))
        case _And():
            return And(tuple(_restored(part, source) for part in tree.parts))
        case _Or():
            return Or(tuple(_restored(part, source) for part in tree.parts))


def _field(name: str | None, source: Source) -> Field:
    if name is None:
        return source.keywords
    field = source.fields.get(name)
    if field is None:
        raise LookupError(f"no field {name!r} in {source.name}")
    return field
