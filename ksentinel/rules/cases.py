# SPDX-License-Identifier: Apache-2.0
"""Cases: the events beside a rule file, ``NAME.events.jsonl``, which it must or must not fire on; and whether it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from ksentinel.codec import event_from_plain
from ksentinel.errors import InputError, Location, RuleError
from ksentinel.event import Event
from ksentinel.rules import Clause
from ksentinel.rules.correlator import Correlator
from ksentinel.rules.document import read
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.trial import Trial, failing, views

_FORM = "see docs/authoring.md"


@dataclass(frozen=True, slots=True)
class Case:
    """An event, or several in their order, whether the rule must fire on them, and what they show."""

    match: bool
    why: str
    events: tuple[Event, ...]
    at: Location


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What the rule made of a case.

    Attributes
    ----------
    good
        Whether that was right.
    clauses
        Of a rule that fired: the clauses that made it; of one that didn't: those that kept it from firing.
    said
        What else there is to say: that the event is of another log source.
    """

    case: Case
    good: bool
    clauses: tuple[Clause, ...]
    said: str = ""


def read_cases(path: Path) -> list[Case]:
    """
    Read a rule's events.

    Raises
    ------
    RuleError
        For the first line that is none.
    """
    cases = []
    # Not splitlines: a string may hold other characters that end lines.
    for number, line in enumerate(read(path, trusted_uids=None).split("\n"), 1):
        if not line.strip():
            continue
        at = Location(path, number)
        try:
            plain = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise RuleError(f"not JSON: {error.msg}", Location(path, number, error.colno), _FORM) from None
        if not isinstance(plain, dict):
            raise RuleError("a case is an object", at, _FORM)
        match, why = plain.pop("match", None), plain.pop("why", None)
        if not isinstance(match, bool):
            raise RuleError("match must be true or false", at, _FORM)
        if not isinstance(why, str) or not why:
            raise RuleError("why must say what the event shows", at, _FORM)
        several = plain.pop("events", None)
        if several is not None and (plain or not isinstance(several, list) or not several):
            raise RuleError("events must be a list of events, and stands alone", at, _FORM)
        try:
            events = tuple(event_from_plain(one) for one in (several or [plain]))
            cases.append(Case(match, why, events, at))
        except InputError as error:
            raise RuleError(error.what, at, _FORM) from None
    return cases


def outcomes(rules: RuleSet, cases: list[Case]) -> Iterator[Outcome]:
    """Yield what the rules of a file make of each case."""
    if rules.correlations or len(rules.compiled) != 1:
        yield from _outcomes_together(rules, cases)
        return
    (compiled,) = rules.compiled
    for case in cases:
        trial = Trial(compiled)
        fired = next((match for event in case.events if (match := trial.look(event)) is not None), None)
        if fired is not None:
            yield Outcome(case, case.match, fired.clauses)
        elif not trial.of_source:
            yield Outcome(case, not case.match, (), f"the event is not of log source {compiled.source.name}")
        else:
            seen = [failing(compiled.tree, view) for event in case.events for view in views(compiled, event)]
            # Of several records the one that it failed by the least.
            yield Outcome(case, not case.match, min(seen, key=len, default=()))


def _outcomes_together(rules: RuleSet, cases: list[Case]) -> Iterator[Outcome]:
    """Yield what several rules make of each case: whether any of them is told, with what correlations count."""
    for case in cases:
        correlator = Correlator(rules.correlations)
        fired = [match for event in case.events for match in correlator.take(event, rules.match(event))]
        yield Outcome(case, bool(fired) is case.match, fired[0].clauses if fired else ())
