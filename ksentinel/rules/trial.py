# SPDX-License-Identifier: Apache-2.0
"""Trials: a rule, or those of one file, on many events: what fires, and what only just doesn't, and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ksentinel.event import Event
from ksentinel.rules import Clause, Match
from ksentinel.rules.condition import And, Expression, Not, Or, compile_tree, trace
from ksentinel.rules.correlator import Correlator
from ksentinel.rules.fields import View
from ksentinel.rules.pattern import Item
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.sigma import Compiled

_MOST_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Miss:
    """An event on which all of a rule but one part held, and the clauses of that part."""

    event: Event
    clauses: tuple[Clause, ...]


class Trial:
    """
    A rule, and what became of the events it was tried on.

    Parameters
    ----------
    most
        How many misses to keep, each for another reason or by another executable; all are counted.

    Attributes
    ----------
    events, of_source, matches, near
        How many events there were, how many of them of the rule's log source, on how many of those it fired, and
        on how many all but one part held.
    executables, parents
        Whose the matches are; beyond 10,000 names they are counted under ``...``.

    Examples
    --------
    >>> from ksentinel.codec import event_from_plain
    >>> from ksentinel.rules.fields import sources
    >>> from ksentinel.rules.ruleset import EXAMPLE
    >>> from ksentinel.rules.sigma import compile_rule
    >>> trial = Trial(compile_rule(EXAMPLE, "cat.yml", sources()))
    >>> for exe in ("/bin/cat", "/bin/ls"):
    ...     _ = trial.look(event_from_plain({"event": "exec", "process": {"exe": exe}}))
    >>> trial.events, trial.of_source, trial.matches
    (2, 2, 1)
    """

    def __init__(self, compiled: Compiled, *, most: int = 20) -> None:
        self.compiled = compiled
        self.most = most
        self.events = self.of_source = self.matches = self.near = 0
        self.executables: Counter[str] = Counter()
        self.parents: Counter[str] = Counter()
        self._misses: dict[tuple[str, str, str, str], Miss] = {}
        self._parts = _conjuncts(compiled.tree)

    @property
    def source(self) -> str:
        """The log source whose events are asked about."""
        return self.compiled.source.name

    @property
    def misses(self) -> tuple[Miss, ...]:
        """The nearest misses that were kept."""
        return tuple(self._misses.values())

    def look(self, event: Event) -> Match | None:
        """Return the match, if the rule fires on *event*."""
        self.events += 1
        if not self.compiled.source.applies(event):
            return None
        self.of_source += 1
        seen = list(views(self.compiled, event))
        for view in seen:
            if self.compiled.test(view):
                self.matches += 1
                _count_process(self.executables, self.parents, event)
                return self.compiled.match(event, view)
        for view in seen:
            lacks = lacking(self.compiled.tree, view)
            # With one part in all, everything would be a near miss.
            if len(lacks) == 1 and self._parts > 1:
                self.near += 1
                self._keep(Miss(event, failing(lacks[0], view)))
                break
        return None

    def told(self, event: Event) -> tuple[Match, ...]:
        """Return the same as a tuple."""
        match = self.look(event)
        return () if match is None else (match,)

    def _keep(self, miss: Miss) -> None:
        clause = miss.clauses[0] if miss.clauses else Clause("", "", "", None)
        key = (clause.selection, clause.field, clause.test, miss.event.process.exe)
        if len(self._misses) < self.most:
            self._misses.setdefault(key, miss)


class TrialTogether:
    """
    The rules of one file, with what its correlations count; they know no near misses.

    Attributes
    ----------
    events, of_source, matches, near, executables, parents, misses
        As of a `Trial`; rules that only feed correlations are not told.
    """

    near = 0
    misses: tuple[Miss, ...] = ()
    source = "these rules"

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules
        self.events = self.of_source = self.matches = 0
        self.executables: Counter[str] = Counter()
        self.parents: Counter[str] = Counter()
        self._correlator = Correlator(rules.correlations)
        self._sources = {one.source for one in rules.compiled}

    def told(self, event: Event) -> tuple[Match, ...]:
        """Return what is told about *event*."""
        self.events += 1
        self.of_source += any(source.applies(event) for source in self._sources)
        found = tuple(self._correlator.take(event, self.rules.match(event)))
        for match in found:
            self.matches += 1
            _count_process(self.executables, self.parents, match.event)
        return found


def views(compiled: Compiled, event: Event) -> Iterator[View]:
    """Yield an event as the rule sees it: audit's rules see one record at a time."""
    if compiled.source.index == "type":
        for record in event.records:
            yield View(event, record)
    else:
        yield View(event)


def failing(tree: Expression, view: View) -> tuple[Clause, ...]:
    """Return the clauses that keep *tree* from holding; empty if it holds."""
    return trace(Not(tree), view)


def lacking(tree: Expression, view: View) -> list[Expression]:
    """Return the parts that would have to hold, and don't: the fewest, where there are several ways."""
    match tree:
        case Item():
            return [] if compile_tree(tree)(view) else [tree]
        case Not(part):
            return [tree] if compile_tree(part)(view) else []
        case And(parts):
            return [lack for part in parts for lack in lacking(part, view)]
        case Or(parts):
            return min((lacking(part, view) for part in parts), key=len)


def _conjuncts(tree: Expression) -> int:
    match tree:
        case And(parts):
            return sum(map(_conjuncts, parts))
        case Or(parts):
            return max(map(_conjuncts, parts))
    return 1


def _count_process(executables: Counter[str], parents: Counter[str], event: Event) -> None:
    parent = event.process.parent
    _count(executables, event.process.exe)
    _count(parents, "" if parent is None else parent.exe)


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < _MOST_NAMES else "..."] += 1
