# SPDX-License-Identifier: Apache-2.0
"""
Readiness: what a policy would have denied of what was done, and whether it may be enforced by now.

Two questions. `plan` asks the past: which of the events that are kept would have met which guard. `ready` asks the trial: what was
told as *would be denied* while the guards were permissive, and whether somebody has an answer to each of it.

An exception is no such answer: exceptions say how a match is told, and guards know nothing of them. What an exception expects and
a guard would deny is a contradiction, and told as one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ksentinel.bpf.guard_abi import Hook, Trait
from ksentinel.codec import event_from_plain, event_to_plain
from ksentinel.enforce.compiled import CANARY_RULE, Compiled
from ksentinel.enforce.denial import Denied, identity, match_of
from ksentinel.enforce.places import Resolve
from ksentinel.enforce.reference import speaks
from ksentinel.enforce.tried import operations
from ksentinel.errors import InputError
from ksentinel.event import Event, HookEvent, Outcome, Process
from ksentinel.exceptions import Exceptions
from ksentinel.mutes import Mute
from ksentinel.rules import Rule

SECOND = 1_000_000_000
DAY = 86400 * SECOND
DAYS = 7
"""A week has what happens once a week."""
ATTACK = "attack"
"""The note for what shall be denied."""

_MOST_WHO = 10_000


# What would have been denied


@dataclass(slots=True)
class _Met:
    count: int = 0
    spared: int = 0
    who: Counter[tuple[str, str]] = field(default_factory=Counter)
    example: Event | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """
    What one rule's guard would have met at one hook.

    Attributes
    ----------
    anomalous
        It would have spoken only with a score over its threshold, of which a kept event says nothing.
    spared
        How many of *count* by processes that are never denied anything.
    who
        Executables and the services they belong to, and how often, the most frequent first.
    example
        The first event, as `codec` writes it; None if there was none.
    """

    rule: str
    title: str
    hook: str
    action: str
    mode: str
    anomalous: bool
    count: int = 0
    spared: int = 0
    who: tuple[tuple[str, str, int], ...] = ()
    example: dict[str, Any] | None = None

    @property
    def verdict(self) -> str:
        """What would have become of it, in words."""
        if not self.count:
            return "nothing met it"
        if self.count == self.spared:
            return "spared: never denied anything"
        would = {"log": "would have been noted", "kill": "would have been denied, and the process ended"}.get(
            self.action, "would have been denied"
        )
        return f"{would}, with a score over its threshold" if self.anomalous else would

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rule": self.rule,
            "title": self.title,
            "hook": self.hook,
            "action": self.action,
            "mode": self.mode,
            "anomalous": self.anomalous,
            "count": self.count,
            "spared": self.spared,
            "verdict": self.verdict,
            "who": [{"exe": exe, "service": service, "count": count} for exe, service, count in self.who],
            "example": self.example,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What a policy would have met.

    Attributes
    ----------
    events
        How many were asked about, from when to when.
    """

    events: int
    first_ns: int
    last_ns: int
    planned: tuple[Planned, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "events": self.events,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "guards": [one.to_plain() for one in self.planned],
        }


def plan(
    events: Iterable[Event],
    compiled: Compiled,
    *,
    find: Resolve | None = None,
    spared: Callable[[Process], bool] = lambda _: False,
) -> Plan:
    """
    Return which guards of a policy *events* would have met: each rule at each of its hooks, also those that none met.

    Parameters
    ----------
    find
        Finds files where events have names; None: by the names that the policy gives them alone.
    spared
        Whether a process is on the never-list.
    """
    standing: dict[Hook, list[int]] = defaultdict(list)
    for way in compiled.ways:
        if way.rule != CANARY_RULE and way.rule not in standing[way.hook]:
            standing[way.hook].append(way.rule)
    met = {(number, hook): _Met() for hook, numbers in standing.items() for number in numbers}
    count, first_ns, last_ns = 0, 0, 0
    for event in events:
        first_ns = event.time_ns if not count else min(first_ns, event.time_ns)
        last_ns = max(last_ns, event.time_ns)
        count += 1
        # One event counts once at a hook, in however many ways it comes by.
        told: set[tuple[int, Hook]] = set()
        for operation in operations(event, compiled, find):
            for number in standing.get(operation.hook, ()):
                place = (number, operation.hook)
                if place not in told and speaks(compiled, compiled.rules[number], operation):
                    told.add(place)
                    _meet(met[place], event, spared=spared(event.process))
    planned = []
    for (number, hook), one in met.items():
        rule = compiled.rules[number]
        planned.append(
            Planned(
                identity(rule),
                rule.title,
                hook.name.lower(),
                rule.action.name.lower(),
                "" if rule.mode is None else str(rule.mode),
                rule.anomalous,
                one.count,
                one.spared,
                tuple((*who, times) for who, times in one.who.most_common()),
                None if one.example is None else event_to_plain(one.example),
            )
        )
    planned.sort(key=lambda one: (-(one.count - one.spared), -one.count, one.title, one.hook))
    return Plan(count, first_ns, last_ns, tuple(planned))


def _meet(met: _Met, event: Event, *, spared: bool) -> None:
    met.count += 1
    met.spared += spared
    who = (event.process.exe, event.process.service_exe)
    if who in met.who or len(met.who) < _MOST_WHO:
        met.who[who] += 1
    if met.example is None:
        met.example = event


# Whether it may be enforced


@dataclass(frozen=True, slots=True)
class Finding:
    """
    A rule that would have denied an executable of a service.

    Attributes
    ----------
    hooks
        Where.
    answer
        Why it doesn't stand in the way; empty if it does.
    why
        Why it does; empty if it doesn't.
    """

    rule: str
    title: str
    exe: str
    service: str
    hooks: tuple[str, ...]
    first_ns: int
    last_ns: int
    count: int
    example: dict[str, Any]
    answer: str = ""
    why: str = ""

    @property
    def resolved(self) -> bool:
        """Whether somebody has answered it."""
        return bool(self.answer)

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rule": self.rule,
            "title": self.title,
            "exe": self.exe,
            "service": self.service,
            "hooks": list(self.hooks),
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "count": self.count,
            "resolved": self.resolved,
            "answer": self.answer,
            "why": self.why,
            "example": self.example,
        }


@dataclass(frozen=True, slots=True)
class Readiness:
    """
    Whether guards may be enforced.

    Attributes
    ----------
    days
        For how long they have been watched, permissive.
    findings
        What would have been denied: the unresolved first.
    reasons
        Why not yet; empty if they may.
    """

    days: float
    wanted: float
    findings: tuple[Finding, ...]
    reasons: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether they may."""
        return not self.reasons

    @property
    def verdict(self) -> str:
        """It in words: ``ready``, or ``not yet: ...``."""
        return f"not yet: {'; '.join(self.reasons)}" if self.reasons else "ready"

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "ready": self.ready,
            "verdict": self.verdict,
            "days": round(self.days, 3),
            "wanted_days": self.wanted,
            "reasons": list(self.reasons),
            "findings": [one.to_plain() for one in self.findings],
        }


def ready(
    denials: Iterable[Denied],
    exceptions: Exceptions,
    mutes: Sequence[Mute],
    since_ns: int,
    *,
    now_ns: int,
    rules: Mapping[str, Rule],
    wanted: float = DAYS,
    removed: int = 0,
    still: Callable[[HookEvent], bool] = lambda _: True,
) -> Readiness:
    """
    Return whether guards may be enforced, by what they would have denied since then.

    Each rule, executable and service needs an answer: it was an attack (`Store.note`), or the policy of today wouldn't say it
    any more.

    Parameters
    ----------
    exceptions, mutes
        What they cover isn't resolved by that, but the words say whose they are.
    since_ns
        When the policy became permissive, or was changed last.
    rules
        Those in force, by id; denials of others are of no guard that there still is.
    wanted
        How many days it has to be watched.
    removed
        How many counts of denials had to make room: what they were, nobody knows.
    still
        Whether the policy of today would speak against an operation.
    """
    days = max(now_ns - since_ns, 0) / DAY
    together: dict[tuple[str, str, str], list[Denied]] = defaultdict(list)
    for one in denials:
        if one.outcome in {Outcome.WOULD_DENY, Outcome.DENIED, Outcome.RELEASED} and one.last_ns >= since_ns:
            together[one.who].append(one)
    findings = [_finding(several, exceptions, mutes, rules, still, now_ns) for several in together.values()]
    findings.sort(key=lambda one: (one.resolved, -one.count, one.title, one.exe))
    unresolved = sum(not one.resolved for one in findings)
    reasons = []
    if days < wanted:
        reasons.append(f"watched for {days:.1f} of {wanted:g} days")
    if unresolved:
        reasons.append(f"{unresolved:,} of {len(findings):,} that would have been denied have no answer")
    if removed:
        reasons.append(f"{removed:,} counts of denials had to make room for newer ones (max_denials)")
    return Readiness(days, wanted, tuple(findings), tuple(reasons))


def _finding(
    several: Sequence[Denied],
    exceptions: Exceptions,
    mutes: Sequence[Mute],
    rules: Mapping[str, Rule],
    still: Callable[[HookEvent], bool],
    now_ns: int,
) -> Finding:
    latest = max(several, key=lambda one: one.last_ns)
    answer, why = _answer(several, exceptions, mutes, rules, still, now_ns)
    return Finding(
        latest.rule,
        latest.title,
        latest.exe,
        latest.service,
        tuple(sorted({one.hook for one in several})),
        min(one.first_ns for one in several),
        latest.last_ns,
        sum(one.count for one in several),
        latest.example,
        answer,
        why,
    )


def _answer(
    several: Sequence[Denied],
    exceptions: Exceptions,
    mutes: Sequence[Mute],
    rules: Mapping[str, Rule],
    still: Callable[[HookEvent], bool],
    now_ns: int,
) -> tuple[str, str]:
    """Return the answer to a finding, or else why it needs one."""
    if any(one.note == ATTACK for one in several):
        return "noted as an attack", ""
    rule = several[0].rule
    if rule not in rules:
        return "its rule is no longer loaded", ""
    events = [event for one in several if (event := _event(one)) is not None]
    if len(events) == len(several) and not any(still(event) for event in events):
        return "the policy of today would let it through", ""
    for event in events:
        match = match_of(event, rules)
        marked = None if match is None else exceptions.mark(match).exception
        if marked is not None:
            return "", (
                f"exception {marked.id} of {marked.owner} expects it, but guards know no exceptions: leave it out in the rule or the "
                "entry, or it is denied"
            )
    for mute in mutes:
        if (
            mute.rule in {"", rule}
            and mute.exe in {"", several[0].exe}
            and mute.begun_ns <= now_ns < mute.until_ns
        ):
            return (
                "",
                f"muted by {mute.id} ({mute.reason}), which isn't an answer: note it as an attack, or change the policy",
            )
    return "", "note it as an attack, or change the policy so that it is let through"


def _event(one: Denied) -> HookEvent | None:
    try:
        event = event_from_plain(one.example)
    except InputError:
        return None
    return event if isinstance(event, HookEvent) else None


def still_speaks(compiled: Compiled, find: Resolve | None = None) -> Callable[[HookEvent], bool]:
    """
    Return a function that tells whether a policy would speak against what was denied, by the rule that did so.

    By what the event tells: see `tried`. Where it can't be asked (an operation that no event shows) it is taken to speak.
    """
    numbers = {identity(rule): number for number, rule in enumerate(compiled.rules)}

    def asked(event: HookEvent) -> bool:
        number = numbers.get(event.rule)
        if number is None:
            return False
        # What the hook itself has seen of the file is better known than what its name says.
        traits = Trait(0)
        for name in event.traits:
            traits |= Trait.__members__.get(name.upper(), Trait(0))
        found = [
            replace(one, traits=one.traits | traits)
            for one in operations(event.operation, compiled, find)
            if one.hook.name.lower() == event.hook
        ]
        rule = compiled.rules[number]
        return not found or any(speaks(compiled, rule, one) for one in found)

    return asked
