# SPDX-License-Identifier: Apache-2.0
"""The rule set: all rules, found by log source and by what an event is, so that most events ask none."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Self

from ksentinel.errors import Location, RuleError
from ksentinel.event import Event, ExecEvent, SyscallEvent
from ksentinel.rules import Match, Rule
from ksentinel.rules.correlation import Correlation, Draft, resolve, silenced
from ksentinel.rules.correlation import read as read_correlation
from ksentinel.rules.document import Map, check_trust, parse_all, read
from ksentinel.rules.fields import ROOT, Source, Users, View, sources
from ksentinel.rules.sigma import Compiled, compile_document

SUFFIXES = (".yml", ".yaml")
TRUSTED = frozenset({0})


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
        self._execs: list[Compiled] = []
        self._any_call: list[Compiled] = []
        by_call: dict[str, list[Compiled]] = defaultdict(list)
        self._any_record: list[Compiled] = []
        by_type: dict[str, list[Compiled]] = defaultdict(list)
        for one in self._compiled:
            if one.source.index == "type":
                _enter(one, self._any_record, by_type, one.keys)
            elif one.source.name in {"process_creation", "lineage"}:
                self._execs.append(one)
            else:
                _enter(one, self._any_call, by_call, one.keys if one.source.index else one.source.calls)
        # Those of one name and those of any, in one tuple: one look-up an event.
        self._by_call = {name: (*rules, *self._any_call) for name, rules in by_call.items()}
        self._by_type = {name: (*rules, *self._any_record) for name, rules in by_type.items()}

    def __len__(self) -> int:
        return len(self._compiled) + len(self.correlations)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, and then the correlations."""
        rules = [one.rule for one in self._compiled]
        return (*rules, *(correlation.rule for correlation in self.correlations))

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
    ) -> Self:
        """
        Load rule files, and the ``*.yml`` and ``*.yaml`` of directories and the directories in them.

        Parameters
        ----------
        trusted_uids
            Who may own rules; what group or others may write is refused too. None: anybody's rules, for a checker
            that doesn't act on them.
        users
            Names of users by uid, for the field ``User``.

        Raises
        ------
        RuleError
            For the first thing wrong; it says how many more files are.
        """
        rules, errors = cls.load_reporting(paths, trusted_uids=trusted_uids, users=users)
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
    ) -> tuple[Self, list[RuleError]]:
        """Load what can be loaded, and return with it what is wrong with the rest; parameters as for `load`."""
        table = sources(users)
        compiled: dict[str, Compiled] = {}
        drafts: dict[str, Draft] = {}
        errors: list[RuleError] = []
        for found in _files(paths, trusted_uids):
            if isinstance(found, RuleError):
                errors.append(found)
                continue
            try:
                text = read(found, trusted_uids=trusted_uids)
                for one in _documents(text, found, table):
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
            except RuleError as error:
                errors.append(error)
        correlations, unresolved = resolve(drafts.values(), compiled.values())
        return cls(compiled.values(), correlations), errors + unresolved

    def match(self, event: Event) -> tuple[Match, ...]:
        """Return the rules that fire on *event*, each with its decisive clauses."""
        if isinstance(event, SyscallEvent):
            rules: Iterable[Compiled] = self._by_call.get(event.syscall, self._any_call)
        elif isinstance(event, ExecEvent):
            rules = self._execs
        else:
            rules = ()
        matches: list[Match] = []
        if rules:
            view = View(event)
            applies: dict[str, bool] = {}
            for one in rules:
                source = one.source
                holds = applies.get(source.name)
                if holds is None:
                    holds = applies[source.name] = source.applies(event)
                if holds and one.test(view):
                    matches.append(one.match(event, view))
        if event.records and (self._by_type or self._any_record):
            matches += self._match_records(event)
        return tuple(matches)

    def _match_records(self, event: Event) -> Iterator[Match]:
        fired: set[Compiled] = set()
        for record in event.records:
            rules = self._by_type.get(record.type.lower(), self._any_record)
            view = View(event, record)
            for one in rules:
                if one not in fired and one.test(view):
                    fired.add(one)
                    yield one.match(event, view)


def _documents(text: str, file: Path, table: dict[str, Source]) -> Iterator[Compiled | Draft | RuleError]:
    """Yield what each document of a file is, or what is wrong with it."""
    for root in parse_all(text, file):
        try:
            if (
                isinstance(root, Map)
                and root.get("correlation") is not None
                and root.get("detection") is None
            ):
                yield read_correlation(root, file)
            else:
                yield compile_document(root, file, table)
        except RuleError as error:
            yield error


def _enter(
    one: Compiled, general: list[Compiled], special: dict[str, list[Compiled]], keys: frozenset[str] | None
) -> None:
    if keys is None:
        general.append(one)
    else:
        for key in keys:
            special[key].append(one)


def _files(paths: Iterable[str | Path], trusted_uids: Collection[int] | None) -> Iterator[Path | RuleError]:
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
            if name.endswith(SUFFIXES):
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
