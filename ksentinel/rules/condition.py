# SPDX-License-Identifier: Apache-2.0
"""
Conditions: how selections combine, ``selection and not 1 of filter_*``; as a tree, as a closure, as a trace.

A parser of our own, not pySigma's: it names the column of an error, and it is bounded (32 parentheses, 1,000 words).
pySigma's reads the same behind it, and is the oracle in the tests. Grammar, loosest first, as the Sigma specification has it::

    or   = and { "or" and }
    and  = not { "and" not }
    not  = [ "not" ] part
    part = "(" or ")" | ("1" | "any" | "all") "of" ("them" | pattern) | selection
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

from ksentinel.errors import Location, RuleError
from ksentinel.rules import Clause
from ksentinel.rules.document import suggest
from ksentinel.rules.fields import View
from ksentinel.rules.pattern import Item, Test

MAX_PARENTHESES = 32
MAX_WORDS = 1000

_WORD = re.compile(r"[()|]|[^\s()|]+")
_KEYWORDS = frozenset({"and", "or", "not", "of", "them", "1", "any", "all"})


@dataclass(frozen=True, slots=True, eq=False)
class And:
    """Every part must hold (``and``)."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Or:
    """One part must hold (``or``)."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Not:
    """The part must not hold."""

    part: "Expression"


Expression = And | Or | Not | Item


def parse(text: str, selections: Mapping[str, Expression], at: Callable[[int], Location]) -> Expression:
    """
    Return the tree of a condition.

    Parameters
    ----------
    selections
        The trees of the selections it may name.
    at
        The place of the character at that offset of *text*.

    Raises
    ------
    RuleError
        If it can't be read, or names what there isn't.
    """
    return _Parser(text, selections, at).whole()


def compile_tree(tree: Expression) -> Test:
    """Return a function that tells whether the tree holds for a view of an event."""
    done: dict[int, Test] = {}

    def compiled(node: Expression) -> Test:
        known = done.get(id(node))
        if known is None:
            known = done[id(node)] = build(node)
        return known

    def build(node: Expression) -> Test:
        match node:
            case Item():
                return node.test()
            case Not(part):
                return _negate(compiled(part))
            case And(parts):
                return _every([compiled(part) for part in parts])
            case Or(parts):
                return _some([compiled(part) for part in parts])

    return compiled(tree)


def trace(tree: Expression, view: View) -> tuple[Clause, ...]:
    """
    Return the clauses that made a tree hold; empty if it doesn't.

    Of an ``or`` that is the first part that holds; of a ``not`` what was looked at and did not match.
    """
    return tuple(_holding(tree, view, negated=False) or ())


def leaves(tree: Expression) -> int:
    """Return how many patterns one evaluation of the tree may try."""
    match tree:
        case Item():
            return len(tree.patterns)
        case Not(part):
            return leaves(part)
        case And(parts) | Or(parts):
            return sum(map(leaves, parts))


def needed(tree: Expression, field: str) -> frozenset[str] | None:
    """
    Return the values of which *field* must have one for the tree to hold; None if it may have any.

    Lets events that can't match pass at once: an index asks for it.
    """
    match tree:
        case Item():
            return tree.literals() if tree.field.name == field else None
        case Not():
            return None
        case And(parts):
            known = [values for part in parts if (values := needed(part, field)) is not None]
            # The smallest is enough: what isn't in it can't match.
            return min(known, key=len) if known else None
        case Or(parts):
            together: set[str] = set()
            for part in parts:
                values = needed(part, field)
                if values is None:
                    return None
                together |= values
            return frozenset(together)


def _negate(test: Test) -> Test:
    return lambda view: not test(view)


def _every(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda view: first(view) and second(view)

    def every(view: View) -> bool:
        for test in tests:  # noqa: SIM110 - a generator takes twice as long
            if not test(view):
                return False
        return True

    return every


def _some(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda view: first(view) or second(view)

    def some(view: View) -> bool:
        for test in tests:  # noqa: SIM110 - a generator takes twice as long
            if test(view):
                return True
        return False

    return some


def _holding(tree: Expression, view: View, *, negated: bool) -> list[Clause] | None:
    # The clauses that make the tree hold (negated: make it fail), None if it doesn't.
    match tree:
        case Item():
            return tree.clauses(view, negated=negated)
        case Not(part):
            return _holding(part, view, negated=not negated)
        case And(parts) | Or(parts):
            traces = (_holding(part, view, negated=negated) for part in parts)
            if isinstance(tree, And) is negated:
                return next((found for found in traces if found is not None), None)
            clauses: list[Clause] = []
            for found in traces:
                if found is None:
                    return None
                clauses += found
            return clauses


class _Parser:
    def __init__(
        self, text: str, selections: Mapping[str, Expression], at: Callable[[int], Location]
    ) -> None:
        self.selections = selections
        self.at = at
        self.end = len(text)
        self.words = [(found.group(), found.start()) for found in _WORD.finditer(text)]
        if len(self.words) > MAX_WORDS:
            raise RuleError(f"a condition of more than {MAX_WORDS} words", at(0))
        self.position = 0
        self.depth = 0

    def whole(self) -> Expression:
        if not self.words:
            raise RuleError("an empty condition", self.at(0))
        tree = self.either()
        if self.position < len(self.words):
            word = self.words[self.position][0]
            if word == ")":
                self.fail("a closing parenthesis too many")
            if word == "|":
                self.fail("aggregations ('| count() ...') are not supported")
            self.fail(f"{word!r} where 'and', 'or' or the end should be")
        return tree

    def either(self) -> Expression:
        parts = [self.both()]
        while self.take("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def both(self) -> Expression:
        parts = [self.negation()]
        while self.take("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def negation(self) -> Expression:
        negations = 0
        while self.take("not"):
            negations += 1
            if negations > MAX_PARENTHESES:
                self.fail(f"more than {MAX_PARENTHESES} 'not' in a row", back=1)
        part = self.part()
        return Not(part) if negations % 2 else part

    def part(self) -> Expression:
        if self.take("("):
            self.depth += 1
            if self.depth > MAX_PARENTHESES:
                self.fail(f"more than {MAX_PARENTHESES} parentheses deep", back=1)
            tree = self.either()
            if not self.take(")"):
                self.fail("a closing parenthesis is missing")
            self.depth -= 1
            return tree
        word = self.word()
        if self.peek() == "of":
            return self.quantified(word)
        if (word not in self.selections and word.lower() in _KEYWORDS) or word in {")", "|"}:
            self.fail(f"{word!r} where a selection should be", back=1)
        if word not in self.selections:
            self.unknown(word)
        return self.selections[word]

    def quantified(self, quantifier: str) -> Expression:
        if quantifier not in {"1", "any", "all"}:
            self.fail(f"'{quantifier} of' is none of '1 of', 'any of', 'all of'", back=1)
        self.take("of")
        pattern = self.word()
        named = "*" if pattern == "them" else pattern
        parts = tuple(
            tree
            for name, tree in self.selections.items()
            # Names with an underscore in front are kept out of patterns (Sigma 2.0).
            if _fits(name, named) and not name.startswith("_")
        )
        if not parts:
            self.unknown(pattern)
        if len(parts) == 1:
            return parts[0]
        return And(parts) if quantifier == "all" else Or(parts)

    def peek(self) -> str:
        return self.words[self.position][0] if self.position < len(self.words) else ""

    def take(self, word: str) -> bool:
        taken = self.peek() == word
        self.position += taken
        return taken

    def word(self) -> str:
        word = self.peek()
        if not word:
            self.fail("the condition ends where a selection should be")
        self.position += 1
        return word

    def unknown(self, name: str) -> NoReturn:
        known: Collection[str] = self.selections
        remedy = suggest(name, known) or f"there are: {', '.join(known)}"
        self.fail(f"no selection {name!r}", back=1, remedy=remedy)

    def fail(self, what: str, *, back: int = 0, remedy: str = "") -> NoReturn:
        position = self.position - back
        offset = self.words[position][1] if position < len(self.words) else self.end
        raise RuleError(what, self.at(offset), remedy)


def _fits(name: str, pattern: str) -> bool:
    # Greedy from the left, which is right for stars alone, and takes linear time where fnmatch may not.
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    position, end = len(first), len(name) - len(last)
    for part in middle:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True
