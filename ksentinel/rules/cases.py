# SPDX-License-Identifier: Apache-2.0
"""Cases: the events beside a rule, ``NAME.events.jsonl``, which it must or must not fire on; and whether it does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from ksentinel.codec import event_from_plain
from ksentinel.errors import InputError, Location, RuleError
from ksentinel.event import Event
from ksentinel.rules import Clause
from ksentinel.rules.document import read
from ksentinel.rules.sigma import Compiled
from ksentinel.rules.trial import Trial, failing, views

_FORM = "see docs/authoring.md"


@dataclass(frozen=True, slots=True)
class Case:
    """An event, whether the rule must fire on it, and what it shows."""

    match: bool
    why: str
    event: Event
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
        try:
            cases.append(Case(match, why, event_from_plain(plain), at))
        except InputError as error:
            raise RuleError(error.what, at, _FORM) from None
    return cases


def outcomes(compiled: Compiled, cases: list[Case]) -> Iterator[Outcome]:
    """Yield what the rule makes of each case."""
    for case in cases:
        fired = Trial(compiled).look(case.event)
        if fired is not None:
            yield Outcome(case, case.match, fired.clauses)
        elif not compiled.source.applies(case.event):
            yield Outcome(case, not case.match, (), f"the event is not of log source {compiled.source.name}")
        else:
            seen = [failing(compiled.tree, view) for view in views(compiled, case.event)]
            # Of several records the one that it failed by the least.
            yield Outcome(case, not case.match, min(seen, key=len, default=()))
