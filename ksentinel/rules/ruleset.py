# SPDX-License-Identifier: Apache-2.0
"""The rule set: all rules, found by log source and by what an event is, so that most events ask none."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeGuard

from ksentinel.errors import Location, RuleError
from ksentinel.event import Event, ExecEvent, SyscallEvent
from ksentinel.rules import Match, Rule
from ksentinel.rules.cache import Cache
from ksentinel.rules.condition import leaves
from ksentinel.rules.correlation import Correlation, Draft, resolve, silenced
from ksentinel.rules.correlation import read as read_correlation
from ksentinel.rules.document import Map, Node, check_trust, parse_all, read
from ksentinel.rules.fields import ROOT, Source, Users, View, sources
from ksentinel.rules.index import Index
from ksentinel.rules.sigma import Compiled, compile_document

SUFFIXES = (".yml", ".yaml")
SETTINGS = frozenset({"policy.yml", "exceptions.yml"})
"""Names of files that may stand among rules and are none: a walk through a folder leaves them out."""
TRUSTED = frozenset({0})
MAX_FOLDERS = 32

MAX_RULES = 20_000
MAX_PATTERNS = 1_000_000
"""What one set may hold: more is no rule set, but an attempt to exhaust who loads it."""


class RuleSet:
    """
    Rules, compiled.

    Parameters
    ----------
    compiled
        The rules, in the order in which they are asked.
    correlations
        Rules about these rules, which a `Correlator` counts.

    Examples
    --------
    >>> from ksentinel.codec import event_from_plain
    >>> from ksentinel.rules.sigma import compile_rule
    >>> rules = RuleSet([compile_rule(EXAMPLE, "cat.yml", sources())])
    >>> (match,) = rules.match(event_from_plain({"event": "exec", "process": {"exe": "/bin/cat"}}))
    >>> clause = match.clauses[0]
    >>> clause.field, clause.test, clause.value, clause.span
    ('Image', "endswith '/cat'", '/bin/cat', (4, 8))
    """

    def __init__(self, compiled: Iterable[Compiled] = (), correlations: Iterable[Correlation] = ()) -> None:
        self._compiled = tuple(compiled)
        self.correlations = tuple(correlations)
        execs: list[int] = []
        calls = _Groups()
        records = _Groups()
        for position, one in enumerate(self._compiled):
            if one.source.index == "type":
                records.enter(position, one.source, one.keys)
            elif one.source.name in {"process_creation", "lineage"}:
                execs.append(position)
            else:
                calls.enter(position, one.source, one.keys if one.source.index else one.source.calls)
        # process_creation and lineage speak of the same events.
        self._execs = (_shelf(execs, self._compiled),) if execs else ()
        # Those of one name and those of any name: one look-up an event.
        self._calls = calls.shelves(self._compiled)
        self._any_call = self._calls.pop("", ())
        self._records = records.shelves(self._compiled)
        self._any_record = self._records.pop("", ())

    def __len__(self) -> int:
        return len(self._compiled) + len(self.correlations)

    @property
    def always_asked(self) -> int:
        """How many rules no index can rule out: they are asked about every event of their log source."""
        always: set[int] = set()
        for shelf in self._all_shelves():
            always.update(shelf.positions[place] for place in shelf.index.always)
        return len(always)

    @property
    def index_failures(self) -> int:
        """How often an index failed on a value, so that every rule that relies on it was asked: slower, never less."""
        return sum(shelf.index.failures for shelf in self._all_shelves())

    def _all_shelves(self) -> set["_Shelf"]:
        groups = (
            self._execs,
            self._any_call,
            self._any_record,
            *self._calls.values(),
            *self._records.values(),
        )
        return {shelf for shelves in groups for shelf in shelves}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, and then the correlations."""
        rules = [one.rule for one in self._compiled]
        return (*rules, *(correlation.rule for correlation in self.correlations))

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The rules with their conditions, in the same order; correlations have none."""
        return self._compiled

    @property
    def silenced(self) -> frozenset[str]:
        """The ids of those that only feed correlations."""
        return silenced(self.correlations)

    @classmethod
    def load(
        cls,
        paths: Iterable[str | Path],
        *,
        trusted_uids: Collection[int] | None = TRUSTED,
        users: Users = ROOT,
        cache: Cache | None = None,
    ) -> Self:
        """
        Load rule files, and the ``*.yml`` and ``*.yaml`` of directories and the directories in them, but `SETTINGS`.

        Parameters
        ----------
        trusted_uids
            Who may own rules; what group or others may write is refused too. None: anybody's rules, for a checker
            that doesn't act on them.
        users
            Names of users by uid, for the field ``User``.
        cache
            Where compiled rules are kept; None if nowhere.

        Raises
        ------
        RuleError
            For the first thing wrong; it says how many more files are.
        """
        rules, errors = cls.load_reporting(paths, trusted_uids=trusted_uids, users=users, cache=cache)
        if errors:
            first, *rest = errors
            if rest:
                more = f"{len(rest)} more rule file{'s' if len(rest) > 1 else ''} can't be used"
                remedy = f"{first.remedy}; {more}" if first.remedy else more
                raise RuleError(first.what, first.at, remedy)
            raise first
        return rules

    @classmethod
    def load_reporting(
        cls,
        paths: Iterable[str | Path],
        *,
        trusted_uids: Collection[int] | None = TRUSTED,
        users: Users = ROOT,
        cache: Cache | None = None,
    ) -> tuple[Self, list[RuleError]]:
        """Load what can be loaded, and return with it what is wrong with the rest; parameters as for `load`."""
        table = sources(users)
        compiled: dict[str, Compiled] = {}
        drafts: dict[str, Draft] = {}
        errors: list[RuleError] = []
        if cache is not None:
            cache.open(table)
        patterns = 0
        for found in rule_files(paths, trusted_uids):
            if isinstance(found, RuleError):
                errors.append(found)
                continue
            if len(compiled) + len(errors) >= MAX_RULES or patterns > MAX_PATTERNS:
                limit = f"{MAX_RULES} rules" if patterns <= MAX_PATTERNS else f"{MAX_PATTERNS} patterns"
                errors.append(RuleError(f"more than {limit}: the rest is not loaded", Location(found)))
                break
            try:
                text = read(found, trusted_uids=trusted_uids)
                for one in _documents(text, found, table, cache):
                    if isinstance(one, RuleError):
                        errors.append(one)
                        continue
                    first = compiled.get(one.rule.id) or drafts.get(one.rule.id)
                    if first is not None:
                        errors.append(RuleError(f"id {one.rule.id} is taken by {first.at}", one.at))
                    elif isinstance(one, Draft):
                        drafts[one.rule.id] = one
                    else:
                        compiled[one.rule.id] = one
                        patterns += leaves(one.tree)
            except RuleError as error:
                errors.append(error)
        if cache is not None:
            cache.close()
        correlations, unresolved = resolve(drafts.values(), compiled.values())
        return cls(compiled.values(), correlations), errors + unresolved

    def match(self, event: Event) -> tuple[Match, ...]:
        """Return the rules that fire on *event*, each with its decisive clauses."""
        if isinstance(event, SyscallEvent):
            shelves = self._calls.get(event.syscall, self._any_call)
        elif isinstance(event, ExecEvent):
            shelves = self._execs
        else:
            shelves = ()
        fired: dict[int, Match] = {}
        if shelves:
            view = View(event)
            for shelf in shelves:
                if shelf.source.applies(event):
                    self._ask(shelf, view, fired)
        if event.records and (self._records or self._any_record):
            for record in event.records:
                view = View(event, record)
                for shelf in self._records.get(record.type.lower(), self._any_record):
                    self._ask(shelf, view, fired)
        if len(fired) < 2:
            return tuple(fired.values())
        return tuple(fired[position] for position in sorted(fired))

    def _ask(self, shelf: "_Shelf", view: View, fired: dict[int, Match]) -> None:
        for place in shelf.index.ask(view):
            position = shelf.positions[place]
            if position not in fired:
                one = self._compiled[position]
                if one.test(view):
                    fired[position] = one.match(view.event, view)


def is_correlation(root: Node) -> TypeGuard[Map]:
    """Tell whether a document speaks of other rules, and not of events."""
    return isinstance(root, Map) and root.get("correlation") is not None and root.get("detection") is None


def _documents(
    text: str, file: Path, table: dict[str, Source], cache: Cache | None
) -> Iterator[Compiled | Draft | RuleError]:
    """Yield what each document of a file is, or what is wrong with it; what is kept is files of one rule alone."""
    known = None if cache is None else cache.get(text, file)
    if known is not None:
        yield known
        return
    roots = parse_all(text, file)
    for root in roots:
        try:
            if is_correlation(root):
                yield read_correlation(root, file)
                continue
            one = compile_document(root, file, table)
        except RuleError as error:
            yield error
            continue
        if cache is not None and len(roots) == 1:
            cache.put(text, one)
        yield one


@dataclass(frozen=True, slots=True, eq=False)
class _Shelf:
    """Rules of one log source, with their index."""

    source: Source
    positions: tuple[int, ...]
    index: Index


class _Groups:
    """Positions of rules by source and by the names (of calls, of records) that they speak of."""

    def __init__(self) -> None:
        self.by_name: dict[str, list[int]] = defaultdict(list)
        self.general: list[int] = []
        # By source all names lead to the same rules.
        self.by_source: dict[str, list[int]] = defaultdict(list)
        self.calls: dict[str, frozenset[str]] = {}

    def enter(self, position: int, source: Source, names: frozenset[str] | None) -> None:
        """Enter a rule; *names* is None if it speaks of any."""
        if names is None:
            self.general.append(position)
        elif source.calls is not None:
            self.by_source[source.name].append(position)
            self.calls[source.name] = source.calls
        else:
            for name in names:
                self.by_name[name].append(position)

    def shelves(self, compiled: Sequence[Compiled]) -> dict[str, tuple[_Shelf, ...]]:
        """Return the shelves of each name; under "" those of every other name."""
        general = (_shelf(self.general, compiled),) if self.general else ()
        found = {name: (_shelf(positions, compiled),) for name, positions in self.by_name.items()}
        for source, positions in self.by_source.items():
            shelf = _shelf(positions, compiled)
            for name in self.calls[source]:
                found[name] = (*found.get(name, ()), shelf)
        return {name: (*shelves, *general) for name, shelves in found.items()} | {"": general}


def _shelf(positions: Sequence[int], compiled: Sequence[Compiled]) -> _Shelf:
    trees = [compiled[position].tree for position in positions]
    return _Shelf(compiled[positions[0]].source, tuple(positions), Index(trees))


def rule_files(
    paths: Iterable[str | Path], trusted_uids: Collection[int] | None
) -> Iterator[Path | RuleError]:
    """Yield every rule file once, in a fixed order, and what is wrong with directories."""
    seen: set[str] = set()
    for path in map(Path, paths):
        found: Iterable[Path | RuleError] = _walk(path, trusted_uids) if os.path.isdir(path) else [path]  # noqa: PTH112 - never raises
        for file in found:
            if isinstance(file, Path):
                resolved = os.path.realpath(file)
                if resolved in seen:
                    continue
                seen.add(resolved)
            yield file


def _walk(directory: Path, trusted_uids: Collection[int] | None) -> Iterator[Path | RuleError]:
    # Who can write the directory can put a rule in it.
    errors: list[RuleError] = []

    def failed(error: OSError) -> None:
        errors.append(RuleError(f"can't be read: {error.strerror}", Location(str(error.filename))))

    empty = True
    for folder, subfolders, names in os.walk(directory, onerror=failed):
        subfolders.sort()
        if subfolders and len(Path(folder).relative_to(directory).parts) >= MAX_FOLDERS:
            errors.append(
                RuleError(
                    f"folders nested more than {MAX_FOLDERS} deep", Location(Path(folder, subfolders[0]))
                )
            )
            subfolders.clear()
        try:
            check_trust(Path(folder), Path(folder).stat(), trusted_uids)
        except OSError as error:
            failed(error)
            continue
        except RuleError as error:
            errors.append(error)
            subfolders.clear()
            continue
        errors += [
            RuleError("a link to a directory, not followed", Location(Path(folder, name)), "name it itself")
            for name in subfolders
            if Path(folder, name).is_symlink()
        ]
        for name in sorted(names):
            if name.endswith(SUFFIXES) and name not in SETTINGS:
                empty = False
                yield Path(folder, name)
    if empty and not errors:
        errors.append(
            RuleError("no rules in this directory", Location(directory), "rules end in .yml or .yaml")
        )
    yield from errors


EXAMPLE = """\
title: Something reads something
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
logsource: {category: process_creation, product: linux}
detection:
  selection:
    Image|endswith: /cat
  condition: selection
level: low
"""
"""A rule as short as they get: for the example above and for tests."""
