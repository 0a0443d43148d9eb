# SPDX-License-Identifier: Apache-2.0
"""
Denials: what guards have spoken against, as matches of their rules and as counts to look back on.

A denial is a match like any other: incidents take it, the policy judges it, an exception marks it. What the never-list lets
through is none, because the operator has said that it is expected; it is counted all the same. A proof that a guard works is
neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ksentinel.codec import event_to_plain
from ksentinel.event import HookEvent, Outcome
from ksentinel.level import Level
from ksentinel.rules import Clause, Match, Response, Rule
from ksentinel.rules.guard import Literal

ENTRY = "entry:"
"""What the id of an operator's entry begins with, where rules have theirs."""
SOURCE = "guard"
"""The log source of what is no Sigma rule."""

_SELECTION = "guard"
_UNKNOWN = "guard:unknown"


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

    @classmethod
    def of(cls, literal: Literal) -> "Asked":
        """Return it of a test of a rule's guard."""
        subject = literal.test.subject
        return cls(subject, literal.test.words().removeprefix(f"{subject} "), literal.negated)


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


def entry_rule(
    name: str, title: str = "", *, action: str = "deny", anomalous: bool = False, file: str = ""
) -> Rule:
    """
    Return what alerts must know of an operator's entry: it is a rule of level high.

    Parameters
    ----------
    action
        ``log``, ``deny`` or ``kill``; to log asks for nothing to be done.
    file
        Where it stands.
    """
    response = None if action == "log" else Response(action, inline=True, anomalous=anomalous)
    return Rule(
        f"{ENTRY}{name}", title or name, Level.HIGH, file=file, name=name, source=SOURCE, response=response
    )


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
        "who": process.exe,
        "parent": "" if process.parent is None else process.parent.exe,
        "service": process.service_exe,
        "ancestors": ", ".join(ancestor.exe for ancestor in process.ancestors()),
        "target": paths[-1] if paths else "",
        "destination": "" if address is None else str(address),
        "traits": ", ".join(trait.replace("_", " ") for trait in event.traits),
    }
    about_files = subject in {"path", "places", "image", "executed", "asked"}
    return (", ".join(paths) if about_files else told.get(subject)) or None


def _bare(event: HookEvent) -> Clause:
    """Return the clause of a denial of which no test is known."""
    if event.sentence:
        return Clause(_SELECTION, "sentence", "is in force", event.sentence)
    return Clause(_SELECTION, "hook", "was asked", event.hook)
