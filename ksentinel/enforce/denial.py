# SPDX-License-Identifier: Apache-2.0
"""
Denials: what guards have spoken against, as matches of their rules and as counts to look back on.

A denial is a match like any other: incidents take it, the policy judges it, an exception marks it. What the never-list lets
through is none, because the operator has said that it is expected; it is counted all the same. A proof that a guard works is
neither.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksentinel.bpf.guard_abi import Trait, Word
from ksentinel.codec import event_to_plain
from ksentinel.enforce.compiled import CANARY_RULE, Compiled, GuardRule
from ksentinel.enforce.settings import Entry
from ksentinel.event import HookEvent, Outcome
from ksentinel.level import Level
from ksentinel.rules import Clause, Match, Response, Rule
from ksentinel.rules.guard import Known, Names

ENTRY = "entry:"
"""What the id of an operator's entry begins with, where rules have theirs."""
EARLIER = 0
"""What a verdict on a process has where its rule's number should be, if an earlier run gave it."""
SOURCE = "guard"
"""The log source of what is no Sigma rule."""

_SELECTION = "guard"
_UNKNOWN = "guard:unknown"
_KNOWN = "is known"


@dataclass(frozen=True, slots=True)
class Asked:
    """
    One test of the way that spoke.

    Attributes
    ----------
    subject
        What it is about: ``program``, ``path``, ``flags``, ``destination``, ``traits``, ...
    words
        What it asks, as a person reads it, the subject left out.
    negated
        It must not hold.
    """

    subject: str
    words: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Denied:
    """
    Operations that a guard spoke against alike, counted.

    Attributes
    ----------
    service
        Executable of the service that *exe* belonged to.
    note
        What somebody has said of it: ``attack`` if it is none that must go on working; empty: nothing.
    example
        The first of them, as `codec` writes events.
    """

    rule: str
    title: str
    hook: str
    exe: str
    service: str
    outcome: Outcome
    mode: str
    first_ns: int
    last_ns: int
    count: int
    note: str
    example: dict[str, Any]

    @classmethod
    def of(cls, event: HookEvent) -> "Denied":
        """Return one, counted once."""
        process = event.process
        return cls(
            event.rule,
            event.title,
            event.hook,
            process.exe,
            process.service_exe,
            event.outcome,
            event.mode,
            event.time_ns,
            event.time_ns,
            1,
            "",
            event_to_plain(event),
        )

    @property
    def who(self) -> tuple[str, str, str]:
        """What a decision about it is about: rule, executable, service."""
        return self.rule, self.exe, self.service

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rule": self.rule,
            "title": self.title,
            "hook": self.hook,
            "exe": self.exe,
            "service": self.service,
            "outcome": str(self.outcome),
            "mode": self.mode,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
            "count": self.count,
            "note": self.note,
            "example": self.example,
        }


class Policies:
    """
    The policies that denials still may be of: the one in force and some before it.

    Parameters
    ----------
    most
        How many are kept: records come within moments, and by then there may be another policy.
    """

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._known: OrderedDict[int, Compiled] = OrderedDict()
        self._sentencing: dict[int, tuple[str, str]] = {
            EARLIER: ("guard:earlier", "A verdict of an earlier run of ksentinel")
        }
        self._sentenced: dict[str, Rule] = {}
        self._rules: dict[str, Rule] = {}

    def add(self, epoch: int, compiled: Compiled) -> None:
        """Take a policy in, before the kernel has it."""
        self._known[epoch] = compiled
        self._known.move_to_end(epoch)
        if len(self._known) > self.most:
            self._known.popitem(last=False)
        # What went with an older policy is told by the rule of that time.
        self._rules = self._sentenced | {
            identity(one): rule_behind(one) for old in self._known.values() for one in old.rules
        }

    def forget(self, epoch: int) -> None:
        """Let go of a policy that the kernel didn't take: it mustn't push out those that it has."""
        self._known.pop(epoch, None)

    def sentence(self, number: int, rule: Rule) -> None:
        """Note which rule a verdict on a process is told by: *number* is what the sentence has."""
        self._sentencing[number] = (rule.id, rule.title)
        self._sentenced[rule.id] = rule
        self._rules.setdefault(rule.id, rule)

    def rule_of(self, epoch: int | None, number: int) -> tuple[str, str]:
        """Return id and title of the rule of that number in that policy; epoch None: of a sentence. Empty if it isn't known."""
        if epoch is None:
            return self._sentencing.get(number, ("", ""))
        compiled = self._known.get(epoch)
        if compiled is None or number >= len(compiled.rules):
            return "", ""
        return identity(compiled.rules[number]), compiled.rules[number].title

    def match(self, event: HookEvent) -> Match | None:
        """Return a denial as a match; None for one that is none, as `match_of` says."""
        compiled = self._known.get(event.epoch)
        asked: tuple[Asked, ...] = ()
        if compiled is not None and not event.sentence and event.way < len(compiled.ways):
            asked = tuple(asked_of(compiled, event.way))
        return match_of(event, self._rules, asked)


def identity(guard: GuardRule) -> str:
    """Return what a guard's rule is known by outside of the policy: its id, an entry's with `ENTRY` before it."""
    return f"{ENTRY}{guard.id}" if isinstance(guard.source, Entry) else guard.id


def rule_behind(guard: GuardRule) -> Rule:
    """Return what alerts must know of a guard's rule; an operator's entry is one of level high."""
    entry = guard.source
    if not isinstance(entry, Entry):
        return entry.rule
    action = entry.action.name.lower()
    # To note something asks for nothing to be done.
    response = None if action == "log" else Response(action, inline=True, anomalous=entry.anomalous)
    return Rule(
        identity(guard),
        guard.title,
        Level.HIGH,
        file=str(entry.at),
        name=entry.id,
        source=SOURCE,
        response=response,
    )


def asked_of(compiled: Compiled, way: int) -> Iterator[Asked]:
    """Yield the tests of a way of a policy, out of its bits: what holds first, then what must not."""
    one = compiled.ways[way]
    if one.rule == CANARY_RULE:
        return
    told = [
        Asked(*_fact(compiled, word, bit), negated)
        for words, negated in ((one.need, False), (one.forbid, True))
        for word in Word
        for bit in range(64)
        if words[word] >> bit & 1
    ]
    # That there is a path at all is what says least.
    yield from sorted(told, key=lambda asked: (asked.negated, asked.words == _KNOWN))
    if one.anomalous:
        yield Asked("score", "is over its threshold")


def _fact(compiled: Compiled, word: Word, bit: int) -> tuple[str, str]:
    """Return what a bit of a word is about, and what it says of that."""
    subject = word.name.lower()
    if word is Word.TRAITS:
        return subject, f"has {str(Trait(1 << bit).name).lower().replace('_', ' ')}"
    if word is Word.PLACES or word is Word.WHO:
        verbs = ("is", "is below", "is")
        column = (2,) if word is Word.WHO else (0, 1)
        found = [
            f"{verbs[which]} {path}"
            for which in column
            for path, place in compiled.where.items()
            if place is not None and compiled.places_of.get(place, (0, 0, 0))[which] >> bit & 1
        ]
        return ("path" if word is Word.PLACES else "program"), " or ".join(
            found
        ) or "is one of files that aren't there"
    if word is Word.NUMBERS:
        test = compiled.asked[bit]
        return test.subject, test.words().removeprefix(f"{test.subject} ")
    names = compiled.sets[bit]
    known = names.prefixes == ("",)
    test_of_names = (
        Known(subject) if known else Names(subject, names.exact, names.prefixes, names.suffixes, names.cased)
    )
    return subject, test_of_names.words().removeprefix(f"{subject} ")


def match_of(event: HookEvent, rules: Mapping[str, Rule], asked: Sequence[Asked] = ()) -> Match | None:
    """
    Return a denial as a match of its rule; None for one that is none: spared, or a proof.

    Parameters
    ----------
    rules
        By id, those of operator's entries among them. A denial of a rule that has gone since is told all the same.
    asked
        The tests of the way that spoke; empty if the policy it belongs to is no longer known.
    """
    if event.nonce is not None or event.outcome is Outcome.SPARED:
        return None
    rule = rules.get(event.rule)
    if rule is None:
        title = event.title or "A guard in the kernel"
        rule = Rule(event.rule or _UNKNOWN, title, Level.HIGH, source=SOURCE)
    clauses = tuple(
        Clause(_SELECTION, one.subject, one.words, seen_of(event, one.subject), negated=one.negated)
        for one in asked
    )
    return Match(rule, event, clauses or (_bare(event),))


def seen_of(event: HookEvent, subject: str) -> str | None:
    """
    Return what the hook saw of a subject, as text; None where the record says nothing of it.

    Examples
    --------
    >>> from ksentinel.codec import event_from_plain
    >>> told = {"event": "hook", "hook": "path_rename", "outcome": "denied", "paths": ["/a", "/b"]}
    >>> [seen_of(event_from_plain(told), subject) for subject in ("path", "target", "flags")]
    ['/a, /b', '/b', None]
    """
    process, paths, address = event.process, event.paths, event.address
    number = dict(event.numbers).get(subject)
    if number is not None:
        return f"{number:#o}" if subject in {"flags", "mode"} else str(number)
    told: dict[str, str] = {
        "program": process.exe,
        "parent": "" if process.parent is None else process.parent.exe,
        "service": process.service_exe,
        "ancestors": ", ".join(ancestor.exe for ancestor in process.ancestors()),
        "target": paths[-1] if paths else "",
        "destination": "" if address is None else str(address),
        "traits": ", ".join(trait.replace("_", " ") for trait in event.traits),
        "score": ""
        if event.score is None
        else f"mean {event.score.mean}, CUSUM {event.score.cusum}, process {event.score.process}",
    }
    about_files = subject in {"path", "image", "executed", "asked"}
    return (", ".join(paths) if about_files else told.get(subject)) or None


def _bare(event: HookEvent) -> Clause:
    """Return the clause of a denial of which no test is known."""
    if event.sentence:
        return Clause(_SELECTION, "sentence", "is in force", event.sentence)
    return Clause(_SELECTION, "hook", "was asked", event.hook)
