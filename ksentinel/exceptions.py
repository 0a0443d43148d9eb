# SPDX-License-Identifier: Apache-2.0
"""
Exceptions: matches that are expected, each with an owner, a reason and an end.

An excepted match isn't thrown away: it goes the same way as any other, and the policy's table for it says how quietly it
is told. Time is the event's own, so that a replay excepts the same each time.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

from ksentinel.errors import Location, RuleError
from ksentinel.event import Event, HookEvent
from ksentinel.rules import Exemption, Match, Rule
from ksentinel.rules.document import List, Map, Node, Scalar, parse, read, suggest
from ksentinel.rules.fields import ROOT, Source, Users, View, sources
from ksentinel.rules.sigma import compile_selection
from ksentinel.verdict import moment

MOST = 1000
"""So many exceptions at most: who needs more needs other rules."""

_KEYS = ("id", "rules", "where", "owner", "reason", "expires")
_REMEDY = "see docs/verdict.md"
_LONGEST_TEXT = 500
_NEVER = 2200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AUDIT = "auditd"

Test = Callable[[View], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Excepted:
    """
    One exception, compiled.

    Attributes
    ----------
    rules
        Ids of the rules it is about; None: all of them.
    tests
        By log source: whether it covers an event, seen as rules of that source see it.
    """

    exemption: Exemption
    rules: frozenset[str] | None
    tests: Mapping[str, Test]
    at: Location

    def covers(self, match: Match) -> bool:
        """Tell whether it covers *match*, be that the only question."""
        while match.parts:  # a correlation is covered by what covers the last of its parts
            match = match.parts[-1]
        test = self.tests.get(match.rule.source)
        return test is not None and any(test(view) for view in _views(match.event, match.rule.source))


class Exceptions:
    """
    All exceptions, found by rule.

    Not thread safe, except for `account`.

    Parameters
    ----------
    excepted
        In the order in which they are asked; the first that covers a match is named.
    file
        Where they stand; empty if there are none.
    """

    def __init__(self, excepted: Sequence[Excepted] = (), file: str = "") -> None:
        self.excepted = tuple(excepted)
        self.file = file
        self._by_rule: defaultdict[str, list[Excepted]] = defaultdict(list)
        self._any = [one for one in self.excepted if one.rules is None]
        for one in self.excepted:
            for rule in one.rules or ():
                self._by_rule[rule].append(one)
        self._ends = sorted((one.exemption.expires_ns, one.exemption.id) for one in self.excepted)
        self._by_id = {one.exemption.id: one.exemption for one in self.excepted}
        self._expired = 0
        self._matches = 0

    def mark(self, match: Match) -> Match:
        """Return *match* with the exception that covers it, if one does."""
        if not self.excepted:
            return match
        for one in (*self._by_rule.get(match.rule.id, ()), *self._any):
            if match.event.time_ns < one.exemption.expires_ns and one.covers(match):
                self._matches += 1
                return replace(match, exception=one.exemption)
        return match

    def carry(self, before: "Exceptions") -> None:
        """Go on counting where those that were in force *before* stopped."""
        self._matches += before.account()["matches_excepted"]

    def expire(self, now_ns: int) -> Iterator[Exemption]:
        """Yield each exception that has ended by *now_ns*, once."""
        while self._expired < len(self._ends) and self._ends[self._expired][0] <= now_ns:
            _, identity = self._ends[self._expired]
            self._expired += 1
            yield self._by_id[identity]

    def to_plain(self, now_ns: int) -> list[dict[str, Any]]:
        """Return the JSON form, each with whether it is in force at that time."""
        return [
            {
                "id": one.exemption.id,
                "rules": "*" if one.rules is None else sorted(one.rules),
                "owner": one.exemption.owner,
                "reason": one.exemption.reason,
                "expires": moment(one.exemption.expires_ns),
                "active": now_ns < one.exemption.expires_ns,
                "at": str(one.at),
            }
            for one in self.excepted
        ]

    def account(self) -> dict[str, int]:
        """Return how many are in force and how many have ended, as far as `expire` was asked, and what they covered."""
        return {
            "matches_excepted": self._matches,
            "exceptions_active": len(self._ends) - self._expired,
            "exceptions_expired": self._expired,
        }


def ended(exemption: Exemption) -> str:
    """Return the notice that an exception has ended."""
    return (
        f"exception {exemption.id} of {exemption.owner} has ended, {moment(exemption.expires_ns)}: "
        f"what it covered is told as if there were none ({exemption.reason})"
    )


def load(
    path: Path, rules: Sequence[Rule], *, trusted_uids: Collection[int] | None, users: Users = ROOT
) -> Exceptions:
    """
    Read a file of exceptions.

    Parameters
    ----------
    rules
        The rules that are loaded: an exception of any other is an error.
    trusted_uids, users
        As for rules.

    Raises
    ------
    RuleError
        For the first thing wrong with it.
    """
    return parse_exceptions(read(path, trusted_uids=trusted_uids), path, rules, users)


def parse_exceptions(text: str, file: str | Path, rules: Sequence[Rule], users: Users = ROOT) -> Exceptions:
    """Return the exceptions that *text* lists; raises RuleError as `load` does."""
    root = parse(text, file)
    listed = root.get("exceptions") if isinstance(root, Map) else None
    if not isinstance(root, Map) or not isinstance(listed, List):
        raise RuleError("is no list of exceptions: exceptions: [...]", root.at, _REMEDY)
    for key, _ in root.items:
        if key.text != "exceptions":
            raise RuleError(f"beside exceptions there is no {key.text!r}", key.at, _REMEDY)
    if len(listed.items) > MOST:
        raise RuleError(
            f"{len(listed.items)} exceptions, more than {MOST}", listed.at, "change the rules instead"
        )
    table = sources(users)
    found: dict[str, Excepted] = {}
    for node in listed.items:
        one = _excepted(node, rules, table)
        first = found.get(one.exemption.id)
        if first is not None:
            raise RuleError(f"id {one.exemption.id!r} is taken by {first.at}", one.at)
        found[one.exemption.id] = one
    return Exceptions(tuple(found.values()), str(file))


def _excepted(node: Node, rules: Sequence[Rule], table: Mapping[str, Source]) -> Excepted:
    if not isinstance(node, Map):
        raise RuleError(f"an exception is a mapping: {', '.join(_KEYS)}", node.at, _REMEDY)
    for key, _ in node.items:
        if key.text not in _KEYS:
            remedy = suggest(str(key.text), _KEYS) or f"it has {', '.join(_KEYS)}"
            raise RuleError(f"an exception has no {key.text!r}", key.at, remedy)
    told = {str(key.text): value for key, value in node.items}
    for name in _KEYS:
        if name not in told:
            raise RuleError(f"an exception without {name}", node.at, _REMEDY)
    identity, owner, reason = (_text(told[name], name) for name in ("id", "owner", "reason"))
    chosen, covered = _rules(told["rules"], rules)
    tests = _tests(told["where"], covered, table, every=chosen is not None)
    expires = _expires(told["expires"])
    return Excepted(Exemption(identity, owner, " ".join(reason.split()), expires), chosen, tests, node.at)


def _text(node: Node, name: str) -> str:
    text = node.text if isinstance(node, Scalar) else None
    if text is None or not text.strip():
        raise RuleError(f"{name} must be text", node.at)
    if len(text) > _LONGEST_TEXT:
        raise RuleError(f"{name} is longer than {_LONGEST_TEXT} characters", node.at)
    return text.strip()


def _rules(node: Node, rules: Sequence[Rule]) -> tuple[frozenset[str] | None, Sequence[Rule]]:
    """Return the ids of the rules that *node* names, None for all of them, and the rules."""
    items = node.items if isinstance(node, List) else (node,)
    if not items:
        raise RuleError("rules is empty: an exception of nothing", node.at, "name rules, or '*' for all")
    named: dict[str, list[Rule]] = defaultdict(list)
    for rule in rules:
        for name in {rule.id, rule.name, PurePath(rule.file).stem} - {""}:
            named[name].append(rule)
    chosen: dict[str, Rule] = {}
    for item in items:
        name = _text(item, "rules")
        if name == "*":
            if len(items) > 1:
                raise RuleError("'*' is all rules: no others beside it", item.at)
            return None, rules
        if name not in named:
            remedy = suggest(name, named) or "say an id, a name or a file without its ending"
            raise RuleError(f"no rule {name[:100]!r} is loaded", item.at, remedy)
        chosen |= {rule.id: rule for rule in named[name]}
    return frozenset(chosen), tuple(chosen.values())


def _tests(node: Node, rules: Sequence[Rule], table: Mapping[str, Source], *, every: bool) -> dict[str, Test]:
    """
    Compile the selection for each log source that it can meet.

    It must make sense for each rule that is named (*every*), and for one source at least.
    """
    named = {rule.source for rule in rules}
    asked = named & set(table)
    # A correlation is covered by its parts, of whatever source these are.
    wanted = asked if named <= set(table) else set(table)
    tests: dict[str, Test] = {}
    failure: RuleError | None = None
    for name in sorted(wanted):
        try:
            tests[name] = compile_selection(node, table[name])
        except RuleError as error:
            if every and name in asked:
                raise
            failure = failure or error
    if not tests:
        raise failure or RuleError("no rules are loaded that it could be about", node.at)
    return tests


def _expires(node: Node) -> int:
    """Return the end in nanoseconds since the epoch: a date's is the end of that day, UTC."""
    text = _text(node, "expires")
    remedy = "say 2027-01-31, or 2027-01-31T18:00:00+01:00"
    try:
        day = date.fromisoformat(text)
        end = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)
    except ValueError:
        try:
            end = datetime.fromisoformat(text)
        except ValueError:
            raise RuleError(f"expires {text[:50]!r} is no date", node.at, remedy) from None
    except OverflowError:
        raise RuleError(f"expires {text[:50]!r} is beyond the calendar", node.at, remedy) from None
    if end.tzinfo is None:
        raise RuleError(f"expires {text[:50]!r} names no zone", node.at, remedy)
    if not _EPOCH.year < end.year < _NEVER:
        raise RuleError(
            f"expires {text[:50]!r}: an exception that never ends is a change of the rule", node.at, remedy
        )
    return (end - _EPOCH) // timedelta(microseconds=1) * 1000


def _views(event: Event, source: str) -> Iterator[View]:
    """Yield the event as rules of that source see it: audit's see it record by record, a guard's word is the operation's."""
    event = event.operation if isinstance(event, HookEvent) else event
    if source != _AUDIT:
        yield View(event)
    else:
        yield from (View(event, record) for record in event.records)
