# SPDX-License-Identifier: Apache-2.0
"""
Correlations: rules about other rules' matches, how many of them, of how many values, together or in which order.

A correlation is read in two steps: `read` makes a draft of its document, and when all files have been read `resolve`
finds the rules that the drafts speak of. What the matches come to is counted elsewhere: `rules.correlator`.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

from ksentinel.errors import Location, RuleError
from ksentinel.rules import Match, Rule
from ksentinel.rules.document import List, Map, Node, Scalar, suggest
from ksentinel.rules.fields import NO_SOURCE, Field, View
from ksentinel.rules.sigma import Compiled, check_keys, described

TYPES = ("event_count", "value_count", "temporal", "temporal_ordered")
MAX_COUNT = 10_000
"""The highest number that a condition may ask for: so many matches one group keeps."""
MAX_RULES = 20
"""How many rules a correlation may speak of: as many as a match shows parts."""
MAX_NESTED = 3
"""How deep correlations may speak of correlations."""
MAX_SECONDS = 366 * 86400

_OPERATORS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "gt": (">", gt),
    "gte": (">=", ge),
    "lt": ("<", lt),
    "lte": ("<=", le),
    "eq": ("==", eq),
    "neq": ("!=", ne),
}
# As the specification has them: a month and a year are the Gregorian calendar's on average.
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604_800, "M": 2_629_746, "y": 31_556_952}
_TIMESPAN = re.compile(r"(\d{1,9})([smhdwMy])", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_KEYS = ("type", "rules", "group-by", "timespan", "aliases", "condition", "generate")
_REQUIRED = ("title", "id", "level", "correlation")


@dataclass(frozen=True, slots=True)
class Condition:
    """
    What a count must be.

    Attributes
    ----------
    bounds
        Sigma's operators with their numbers: one, or a lower and an upper one; all of them must hold.
    """

    bounds: tuple[tuple[str, int], ...]

    def holds(self, count: int) -> bool:
        """Tell whether *count* is such a count."""
        return all(_OPERATORS[operator][1](count, number) for operator, number in self.bounds)

    @property
    def final(self) -> bool:
        """Whether it stays true once it is: there is no need to wait for the end of the time span."""
        return all(operator in {"gt", "gte"} for operator, _ in self.bounds)

    def __str__(self) -> str:
        return " and ".join(f"{_OPERATORS[operator][0]} {number}" for operator, number in self.bounds)


@dataclass(frozen=True, slots=True)
class Base:
    """
    A rule that a correlation speaks of, and where its matches have what is asked of them.

    Attributes
    ----------
    names
        Of each field to group by: what it is called in that rule's log source.
    counted
        Of the field whose values are counted; empty if none are.
    """

    rule: Rule
    names: tuple[str, ...]
    counted: str = ""
    fields: Mapping[str, Field] = field(default_factory=dict, compare=False, repr=False)

    def values(self, match: Match) -> tuple[tuple[str | None, ...], str | None]:
        """Return a match's group, and the value that is counted; None is a value that it doesn't have."""
        if not self.names and not self.counted:
            return (), None
        view = View(match.event, match.record)
        group = tuple(self._value(name, match, view) for name in self.names)
        return group, self._value(self.counted, match, view) if self.counted else None

    def _value(self, name: str, match: Match, view: View) -> str | None:
        asked = self.fields.get(name)
        if asked is None:
            # Of a correlation: what it has grouped by.
            return next((c.value for c in match.clauses if c.field == name), None)
        # Of several values the first one is the kernel's own: the executable before the path asked for.
        return next(iter(view.values(asked)), None)


@dataclass(frozen=True, slots=True)
class Correlation:
    """
    A rule about the matches of others.

    Attributes
    ----------
    type
        One of `TYPES`.
    bases
        The rules that it speaks of; for ``temporal_ordered`` in that order.
    group_by
        Fields, or aliases of fields: only matches with the same values belong together.
    counted
        The field, or alias, whose values ``value_count`` counts.
    timespan
        As it is written: ``5m``.
    generate
        Whether the rules that it speaks of match by themselves, too.
    """

    rule: Rule
    type: str
    bases: tuple[Base, ...]
    group_by: tuple[str, ...]
    timespan: str
    timespan_ns: int
    condition: Condition
    counted: str = ""
    generate: bool = False

    @property
    def subject(self) -> str:
        """What is counted: ``event_count``, ``value_count of path``, ``temporal``."""
        return f"{self.type} of {self.counted}" if self.counted else self.type

    @property
    def test(self) -> str:
        """What is asked of it: ``>= 10 within 5m``."""
        if self.type == "temporal_ordered":
            order = ", ".join(base.rule.name or base.rule.title for base in self.bases)
            return f"{order} within {self.timespan}"
        return f"{self.condition} within {self.timespan}"


@dataclass(frozen=True, slots=True)
class _Alias:
    at: Location
    fields: tuple[tuple[Scalar, Scalar], ...]
    """Reference to a rule, and the field's name there."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A correlation whose rules aren't found yet; *at* is where its id stands."""

    rule: Rule
    at: Location
    type: str
    rules: tuple[Scalar, ...]
    group_by: tuple[Scalar, ...]
    aliases: Mapping[str, _Alias]
    timespan: str
    timespan_ns: int
    condition: Condition
    condition_at: Location
    counted: Scalar | None
    generate: bool


def read(root: Map, file: str | Path) -> Draft:
    """
    Return what the document of a correlation says.

    Raises
    ------
    RuleError
        If anything is wrong with it.
    """
    check_keys(root, _REQUIRED)
    for key, _ in root.items:
        if key.text in {"detection", "logsource"}:
            raise RuleError(
                f"a correlation has no {key.text}", key.at, "its rules have; they are documents too"
            )
    rule, id_at = described(root, file, "correlation")
    response = root.get("ksentinel")
    if response is not None and rule.response is not None and rule.response.inline:
        raise RuleError("the kernel can't decide a correlation", response.at, "leave inline out")
    body = root.get("correlation")
    if not isinstance(body, Map):
        raise RuleError(
            f"correlation must be a mapping: {', '.join(_KEYS)}", root.at if body is None else body.at
        )
    for key, _ in body.items:
        if key.text not in _KEYS:
            name = str(key.text)
            remedy = suggest(name, _KEYS) or f"there are: {', '.join(_KEYS)}"
            raise RuleError(f"a correlation has no {name!r}", key.at, remedy)
    kind = _text(body, "type")
    if kind not in TYPES:
        raise RuleError(
            f"type {kind!r} is none of {', '.join(TYPES)}", _at(body, "type"), suggest(kind, TYPES)
        )
    rules = _scalars(body, "rules")
    if not rules:
        raise RuleError("no rules to correlate", _at(body, "rules"), "name them, or their ids, under rules")
    if len(rules) > MAX_RULES:
        raise RuleError(f"{len(rules)} rules, more than {MAX_RULES}", _at(body, "rules"))
    if kind.startswith("temporal") and len(rules) < 2:
        raise RuleError(f"{kind} needs two rules at least", _at(body, "rules"), "or take event_count")
    timespan = _text(body, "timespan")
    condition, counted = _condition(body, kind, len(rules))
    draft = Draft(
        rule=rule,
        at=id_at,
        type=kind,
        rules=rules,
        group_by=_scalars(body, "group-by"),
        aliases=_aliases(body),
        timespan=timespan,
        timespan_ns=_nanoseconds(timespan, _at(body, "timespan")),
        condition=condition,
        condition_at=_at(body, "condition"),
        counted=counted,
        generate=_truth(body, "generate"),
    )
    _check_specification(root, body)
    return draft


def resolve(
    drafts: Iterable[Draft], compiled: Iterable[Compiled]
) -> tuple[list[Correlation], list[RuleError]]:
    """
    Find the rules that correlations speak of.

    Returns
    -------
    tuple
        The correlations, each after those that it speaks of, and what is wrong with the others.
    """
    resolver = _Resolver(drafts, compiled)
    errors: list[RuleError] = []
    for draft in resolver.drafts:
        try:
            resolver.correlation(draft, ())
        except RuleError as error:
            errors.append(error)
    return list(resolver.done.values()), errors


def silenced(correlations: Iterable[Correlation]) -> frozenset[str]:
    """Return the ids of the rules that no longer match by themselves: none that speaks of them says otherwise."""
    by_generate: dict[bool, set[str]] = {False: set(), True: set()}
    for correlation in correlations:
        by_generate[correlation.generate].update(base.rule.id for base in correlation.bases)
    return frozenset(by_generate[False] - by_generate[True])


class _Resolver:
    def __init__(self, drafts: Iterable[Draft], compiled: Iterable[Compiled]) -> None:
        self.drafts = list(drafts)
        self.done: dict[str, Correlation] = {}
        self.depth: dict[str, int] = {}
        self.known: dict[str, list[Compiled | Draft]] = defaultdict(list)
        everything: list[Compiled | Draft] = [*compiled, *self.drafts]
        for one in everything:
            self.known[one.rule.id].append(one)
            if one.rule.name:
                self.known[one.rule.name].append(one)

    def correlation(self, draft: Draft, above: tuple[str, ...]) -> Correlation:
        done = self.done.get(draft.rule.id)
        if done is not None:
            return done
        if len(above) >= MAX_NESTED:
            raise _too_deep(draft)
        found = [self.find(reference) for reference in draft.rules]
        aliases = self.aliases(draft, {one.rule.id for one in found})
        bases: list[Base] = []
        depth = 0
        for reference, one in zip(draft.rules, found, strict=True):
            if any(one.rule.id == base.rule.id for base in bases):
                raise RuleError(f"{reference.text!r} stands here twice", reference.at, "name each rule once")
            bases.append(self.base(draft, reference, one, aliases, (*above, draft.rule.id)))
            depth = max(depth, self.depth.get(one.rule.id, 0) + 1)
        if depth > MAX_NESTED:
            raise _too_deep(draft)
        self.depth[draft.rule.id] = depth
        made = Correlation(
            rule=draft.rule,
            type=draft.type,
            bases=tuple(bases),
            group_by=tuple(str(name.text) for name in draft.group_by),
            timespan=draft.timespan,
            timespan_ns=draft.timespan_ns,
            condition=draft.condition,
            counted="" if draft.counted is None else str(draft.counted.text),
            generate=draft.generate,
        )
        self.done[draft.rule.id] = made
        return made

    def find(self, reference: Scalar) -> Compiled | Draft:
        name = str(reference.text)
        found = self.known.get(name) or self.known.get(name.lower(), [])
        if not found:
            remedy = suggest(name, self.known) or "name a rule of the files that are loaded, or its id"
            raise RuleError(f"no rule {name[:100]!r}", reference.at, remedy)
        if len(found) > 1:
            places = " and ".join(str(one.at) for one in found[:2])
            raise RuleError(
                f"{name[:100]!r} is the name of several rules, {places}", reference.at, "take an id"
            )
        return found[0]

    def base(
        self,
        draft: Draft,
        reference: Scalar,
        one: Compiled | Draft,
        aliases: Mapping[str, Mapping[str, Scalar]],
        above: tuple[str, ...],
    ) -> Base:
        if one.rule.response is not None and not draft.generate:
            raise RuleError(
                f"{reference.text!r} asks for {one.rule.response.action}, and would no longer match by itself",
                reference.at,
                "say generate: true",
            )
        fields: Mapping[str, Field] = {}
        grouped: tuple[str, ...] = ()
        if isinstance(one, Draft):
            if one.rule.id in above:
                raise RuleError(f"{reference.text!r} speaks of this one in turn: a cycle", reference.at)
            try:
                grouped = self.correlation(one, above).group_by
            except RuleError as error:
                raise RuleError(
                    f"{reference.text!r} can't be used: {error.what}", reference.at, f"see {error.at}"
                ) from error
        else:
            fields = one.source.fields
        resolved: dict[str, Field] = {}

        def name_of(asked: Scalar) -> str:
            alias = aliases.get(str(asked.text))
            if alias is not None and one.rule.id not in alias:
                raise RuleError(
                    f"alias {asked.text!r} doesn't say what it is in {reference.text!r}",
                    draft.aliases[str(asked.text)].at,
                    "give it a field of each rule",
                )
            place = asked if alias is None else alias[one.rule.id]
            name = str(place.text)
            if isinstance(one, Draft):
                if name not in grouped:
                    remedy = suggest(name, grouped) or (
                        f"there are: {', '.join(grouped)}" if grouped else "it groups by none"
                    )
                    raise RuleError(f"{reference.text!r} doesn't group by {name!r}", place.at, remedy)
                return name
            there = fields.get(name)
            if there is None:
                remedy = (
                    NO_SOURCE.get(name, "")
                    or suggest(name, list(fields))
                    or f"an alias can give it another name there; there are: {', '.join(fields)}"
                )
                raise RuleError(
                    f"no source for field {name!r} in {one.source.name}, the log source of {reference.text!r}",
                    place.at,
                    remedy,
                )
            resolved[name] = there
            return name

        names = tuple(name_of(asked) for asked in draft.group_by)
        counted = "" if draft.counted is None else name_of(draft.counted)
        return Base(one.rule, names, counted, resolved)

    def aliases(self, draft: Draft, ids: set[str]) -> dict[str, dict[str, Scalar]]:
        aliases: dict[str, dict[str, Scalar]] = {}
        used = {str(asked.text) for asked in draft.group_by}
        if draft.counted is not None:
            used.add(str(draft.counted.text))
        for name, alias in draft.aliases.items():
            if name not in used:
                raise RuleError(f"alias {name!r} is not used", alias.at, "name it under group-by")
            aliases[name] = {}
            for reference, there in alias.fields:
                one = self.find(reference)
                if one.rule.id not in ids:
                    raise RuleError(
                        f"{reference.text!r} is not correlated here", reference.at, "name it under rules, too"
                    )
                aliases[name][one.rule.id] = there
        return aliases


def _too_deep(draft: Draft) -> RuleError:
    return RuleError(f"correlations of correlations, more than {MAX_NESTED} levels deep", draft.rules[0].at)


def _at(body: Map, name: str) -> Location:
    value = body.get(name)
    return body.at if value is None else value.at


def _text(body: Map, name: str) -> str:
    value = body.get(name)
    if value is None:
        raise RuleError(f"a correlation without {name}", body.at)
    return _of(value, name).text or ""


def _of(node: Node, name: str) -> Scalar:
    if not isinstance(node, Scalar) or not node.text:
        raise RuleError(f"{name} must be text", node.at)
    return node


def _scalars(body: Map, name: str) -> tuple[Scalar, ...]:
    value = body.get(name)
    if value is None:
        return ()
    found = tuple(_of(item, name) for item in (value.items if isinstance(value, List) else (value,)))
    seen: set[str | None] = set()
    for one in found:
        if one.text in seen:
            raise RuleError(f"{one.text!r} stands here twice", one.at)
        seen.add(one.text)
    return found


def _truth(body: Map, name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, Scalar) or value.text not in {"true", "false"}:
        raise RuleError(f"{name} must be true or false", value.at)
    return value.text == "true"


def _nanoseconds(text: str, at: Location) -> int:
    parsed = _TIMESPAN.fullmatch(text)
    seconds = 0 if parsed is None else int(parsed[1]) * _SECONDS[parsed[2]]
    if not seconds:
        raise RuleError(
            f"timespan {text[:50]!r} is no time span", at, "a number and one of s, m, h, d, w, M, y: 5m"
        )
    if seconds > MAX_SECONDS:
        raise RuleError(f"timespan {text!r} is longer than a year", at)
    return seconds * 1_000_000_000


def _aliases(body: Map) -> dict[str, _Alias]:
    node = body.get("aliases")
    if node is None:
        return {}
    if not isinstance(node, Map):
        raise RuleError("aliases must be a mapping: alias, rule, field", node.at)
    aliases: dict[str, _Alias] = {}
    for key, value in node.items:
        if not isinstance(value, Map):
            raise RuleError("an alias must be a mapping of rules to fields", value.at)
        aliases[str(key.text)] = _Alias(
            key.at, tuple((rule, _of(there, "a field")) for rule, there in value.items)
        )
    return aliases


def _condition(body: Map, kind: str, rules: int) -> tuple[Condition, Scalar | None]:
    node = body.get("condition")
    if node is None:
        if not kind.startswith("temporal"):
            raise RuleError(f"{kind} needs a condition", body.at, "such as condition: {gte: 10}")
        return Condition((("gte", rules),)), None
    if kind == "temporal_ordered":
        raise RuleError("temporal_ordered has no condition: all rules, in order", node.at, "leave it out")
    if not isinstance(node, Map):
        raise RuleError("condition must be a mapping, such as {gte: 10}", node.at)
    bounds: dict[str, int] = {}
    counted: Scalar | None = None
    for key, value in node.items:
        name = str(key.text)
        if name == "field":
            if kind != "value_count":
                raise RuleError(f"{kind} counts no field's values", key.at, "value_count does")
            counted = _of(value, "field")
        elif name in _OPERATORS:
            number = value.text if isinstance(value, Scalar) else None
            if number is None or _NUMBER.fullmatch(number) is None:
                raise RuleError(f"{name} must be a whole number", value.at)
            bounds[name] = int(number)
            if int(number) > MAX_COUNT:
                raise RuleError(f"{name} {number} is more than {MAX_COUNT}: not so many are kept", value.at)
        else:
            known = (*_OPERATORS, "field")
            raise RuleError(
                f"a condition has no {name!r}",
                key.at,
                suggest(name, known) or f"there are: {', '.join(known)}",
            )
    if kind == "value_count" and counted is None:
        raise RuleError(
            "value_count needs the field whose values it counts", node.at, "such as {field: User, gte: 10}"
        )
    lower, upper = bounds.keys() & {"gt", "gte"}, bounds.keys() & {"lt", "lte"}
    if not bounds or (len(bounds) > 1 and not (len(bounds) == 2 and lower and upper)):
        raise RuleError(
            "a condition has one bound, or a lower and an upper one", node.at, "such as {gte: 10}"
        )
    condition = Condition(tuple(bounds.items()))
    most = rules if kind == "temporal" else MAX_COUNT + 1
    # A count begins with the first match, and nobody waits for what never comes.
    if not any(condition.holds(count) for count in range(1, most + 1)):
        raise RuleError(f"no count from 1 to {most} is {condition}: it can never match", node.at)
    return condition, counted


def _check_specification(root: Map, body: Map) -> None:
    """Let pySigma read it, too: once for each bound, as it takes only one."""
    # Not before there is a correlation: its import takes longer than to load many rules.
    from sigma.correlations import SigmaCorrelationRule
    from sigma.exceptions import SigmaError

    plain = {str(key.text): _plain(value) for key, value in root.items}
    correlation = {str(key.text): _plain(value) for key, value in body.items}
    if isinstance(correlation.get("rules"), str):
        correlation["rules"] = [correlation["rules"]]
    correlation["generate"] = _truth(body, "generate")
    condition = correlation.pop("condition", {})
    bounds = [name for name in condition if name in _OPERATORS]
    for bound in bounds or [""]:
        asked = {name: text for name, text in condition.items() if name == "field"}
        if bound:
            asked[bound] = int(condition[bound])
        variant = correlation | ({"condition": asked} if asked else {})
        try:
            SigmaCorrelationRule.from_dict(plain | {"correlation": variant})
        except SigmaError as error:
            said = " ".join(str(error).split())[:300]
            raise RuleError(f"pySigma: {said}", body.at) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A correlation that its authors didn't think of.
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise RuleError(f"pySigma can't read it: {said}", body.at) from error


def _plain(node: Node) -> Any:
    match node:
        case Scalar(text):
            return text
        case List(items):
            return [_plain(item) for item in items]
        case Map(items):
            return {str(key.text): _plain(value) for key, value in items}
