# SPDX-License-Identifier: Apache-2.0
"""
The index: of a thousand rules, the few that an event could fire.

From each rule's tree come *necessary* literals: texts of which an event must have one for the rule to fire. An ``and`` needs
what the most telling of its parts needs, an ``or`` what all of them need together, a ``not`` nothing. Exact values and last
components of paths are looked up in dictionaries; all other literals of a field are looked for at once, by an automaton
(``re2.Set``), which takes linear time. A rule without necessary literals is always asked.

What the index says is only who *may* fire: the rule itself is asked then. It may err on one side alone, and if the automaton
can't be had, or says that it failed, every rule that relies on it is asked.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ksentinel.rules.condition import And, Expression, Not, Or
from ksentinel.rules.fields import Field, View
from ksentinel.rules.pattern import Item, Pattern

MEMORY = 128 << 20
"""What an automaton may use; how much it takes, the texts that it meets decide."""

_SEPARATOR = "/"

Where = Literal["is", "name", "part"]


@dataclass(frozen=True, slots=True)
class Needed:
    """A text that a field must be (``is``), end in as a path's last component (``name``), or have in it (``part``)."""

    field: Field
    where: Where
    text: str


Needs = frozenset[Needed]


def needs(tree: Expression, cost: Callable[[Needed], float]) -> Needs | None:
    """
    Return literals of which an event must have one for the tree to hold; None if it may hold without any.

    Parameters
    ----------
    cost
        How little a literal tells: of an ``and`` the part whose literals cost least together is taken.
    """

    def total(literals: Needs) -> float:
        return sum(map(cost, literals))

    match tree:
        case Item():
            return _of_item(tree, total)
        case Not():
            return None
        case And(parts):
            known = [literals for part in parts if (literals := needs(part, cost)) is not None]
            return min(known, key=total) if known else None
        case Or(parts):
            together: set[Needed] = set()
            for part in parts:
                literals = needs(part, cost)
                if literals is None:
                    return None
                together |= literals
            return frozenset(together)


def literals(tree: Expression) -> Iterator[Needed]:
    """Yield every literal of a tree."""
    match tree:
        case Item():
            for pattern in tree.patterns:
                literal = _of_pattern(tree.field, pattern)
                if literal is not None:
                    yield literal
        case Not(part):
            yield from literals(part)
        case And(parts) | Or(parts):
            for part in parts:
                yield from literals(part)


class Index:
    """
    Which of some things, each with a tree, an event could fire.

    Parameters
    ----------
    trees
        One for each thing; they are told by their positions.
    memory
        What each automaton may use.

    Attributes
    ----------
    always
        Positions of those without necessary literals.
    without
        Names of fields whose automaton is too large for *memory*: what relies on it is asked always.
    failures
        How often an automaton failed on a value, so that all that relies on it was asked.
    """

    def __init__(self, trees: Sequence[Expression], memory: int = MEMORY) -> None:
        told = Counter(literal for tree in trees for literal in frozenset(literals(tree)))
        needed = [needs(tree, lambda literal: _cost(literal, told[literal])) for tree in trees]
        by_field: dict[Field, dict[Where, dict[str, list[int]]]] = defaultdict(
            lambda: {"is": defaultdict(list), "name": defaultdict(list), "part": defaultdict(list)}
        )
        always: list[int] = []
        for position, wanted in enumerate(needed):
            if wanted is None:
                always.append(position)
                continue
            for literal in wanted:
                by_field[literal.field][literal.where][literal.text].append(position)
        self.failures = 0
        without: list[str] = []
        self._probes: list[_Probe] = []
        for field, found in by_field.items():
            parts = _Parts.build(found["part"], memory)
            if parts is None:
                without.append(field.name)
                always += (position for positions in found["part"].values() for position in positions)
            self._probes.append(_Probe(field, dict(found["is"]), dict(found["name"]), parts))
        self.always = tuple(sorted(set(always)))
        self.without = tuple(without)

    def ask(self, view: View) -> Iterable[int]:
        """Return the positions of what may fire, in order."""
        found: set[int] | None = None
        for probe in self._probes:
            for value in view.lowered(probe.field):
                hits = probe.exact.get(value)
                if hits is not None:
                    found = {*hits} if found is None else found.union(hits)
                if probe.names:
                    hits = probe.names.get(value.rpartition(_SEPARATOR)[2])
                    if hits is not None:
                        found = {*hits} if found is None else found.union(hits)
                if probe.parts is not None:
                    more = probe.parts.find(value)
                    if more is None:
                        self.failures += 1
                        more = probe.parts.everybody
                    if more:
                        found = {*more} if found is None else found.union(more)
        if found is None:
            return self.always
        return sorted(found.union(self.always))


@dataclass(frozen=True, slots=True)
class _Probe:
    # What is asked of one field.
    field: Field
    exact: dict[str, list[int]]
    names: dict[str, list[int]]
    parts: "_Parts | None"


@dataclass(frozen=True, slots=True)
class _Parts:
    """Texts looked for in a value, all at once."""

    automaton: Any
    positions: tuple[frozenset[int], ...]
    everybody: frozenset[int]

    @classmethod
    def build(cls, texts: dict[str, list[int]], memory: int) -> "_Parts | None":
        """Return the automaton of *texts*; None if there are none, or it would be too large."""
        if not texts:
            return cls(None, (), frozenset())
        import re2

        options = re2.Options()
        options.literal = True
        options.log_errors = False
        options.max_mem = memory
        options.never_capture = True
        automaton = re2.Set.SearchSet(options)
        try:
            # Nothing, which is in every value: RE2 says that it ran out of memory by finding nothing at all.
            automaton.Add("")
            for text in texts:
                automaton.Add(text)
            automaton.Compile()
        except re2.error:
            return None
        everybody = frozenset(position for positions in texts.values() for position in positions)
        return cls(automaton, (frozenset(), *map(frozenset, texts.values())), everybody)

    def find(self, value: str) -> frozenset[int] | None:
        """Return the positions of the texts that are in a value; None if the automaton failed."""
        if self.automaton is None:
            return self.everybody
        # Bytes that were no text are surrogates; as RE2 can't have them, it gets what is no text either.
        found: list[int] = self.automaton.Match(
            value if value.isascii() else value.encode("utf-8", "surrogatepass")
        )
        if len(found) == 1:
            return self.positions[found[0]]
        if not found:
            return None
        return frozenset().union(*[self.positions[number] for number in found])


def _of_item(item: Item, total: Callable[[Needs], float]) -> Needs | None:
    each = [_of_pattern(item.field, pattern) for pattern in item.patterns]
    known = [frozenset({literal}) for literal in each if literal is not None]
    if item.every:
        return min(known, key=total) if known else None
    return frozenset().union(*known) if len(known) == len(each) else None


def _of_pattern(field: Field, pattern: Pattern) -> Needed | None:
    if not pattern.literal:
        return None
    if pattern.kind == "is":
        return Needed(field, "is", pattern.literal)
    if pattern.kind == "endswith" and _SEPARATOR in pattern.literal:
        return Needed(field, "name", pattern.literal.rpartition(_SEPARATOR)[2])
    return Needed(field, "part", pattern.literal)


def _cost(literal: Needed, rules: int) -> float:
    # What many rules ask for, and what is short, many events have; what is short and looked for anywhere, nearly all.
    if literal.where == "part":
        return rules * (2.0 + 64.0 / len(literal.text) ** 2)
    return rules * 1.0
