# SPDX-License-Identifier: Apache-2.0
"""Alerts: an incident as it is told to people and machines, with all of its evidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ksentinel.codec import event_to_plain, process_to_plain
from ksentinel.detectors import Anomaly
from ksentinel.event import HookEvent, Outcome, Process
from ksentinel.level import Level
from ksentinel.rules import Exemption, Match
from ksentinel.syscalls import token_name
from ksentinel.verdict import Verdict

FORMAT = 1
"""Version of the JSON form."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    One rule's (or the model's) say, the first time in full and then how often.

    Attributes
    ----------
    enforcement
        What the rule's guard made of it in the kernel: the gravest of what it did, the first of equals.
    enforced
        How often its guard spoke.
    """

    count: int
    first_ns: int
    last_ns: int
    match: Match | None = None
    anomaly: Anomaly | None = None
    enforcement: HookEvent | None = None
    enforced: int = 0


@dataclass(frozen=True, slots=True)
class Alert:
    """
    One incident at one moment of its life.

    Attributes
    ----------
    id
        Of the incident: stays the same while the incident grows; the same for every replay.
    revision
        Rises with each new level or piece of evidence.
    repeats
        How many more incidents looked just like this one (same rules, same programs) and were folded into it.
    requested, verified
        The mode of enforcement that was asked for, and the one that has been proven (``no``: none); empty where nothing is enforced.
    muted
        Id of the mute that keeps it from being shown; empty: none.
    evidence
        Matches first, the worst first; then anomalies: those that agree with a match, then the most unusual.
    """

    id: str
    revision: int
    opened_ns: int
    updated_ns: int
    process: Process
    verdict: Verdict
    evidence: tuple[Evidence, ...]
    repeats: int = 0
    arch: str = "x86_64"
    muted: str = ""
    requested: str = ""
    verified: str = ""
    explanation: dict[str, Any] = field(default_factory=dict)

    @property
    def level(self) -> Level:
        """How bad."""
        return self.verdict.level

    @property
    def matches(self) -> tuple[Match, ...]:
        """One match of each rule: the first, or one that an anomaly agrees with."""
        return tuple(e.match for e in self.evidence if e.match is not None)

    @property
    def anomalies(self) -> tuple[Anomaly, ...]:
        """The anomalies kept, in the order of the evidence."""
        return tuple(e.anomaly for e in self.evidence if e.anomaly is not None)

    @property
    def title(self) -> str:
        """The worst rule's title, or what the model saw; of what is excepted only if there is nothing else."""
        standing = [m for m in self.matches if m.exception is None]
        matches = standing if standing or self.anomalies else self.matches
        worst = max(matches, key=lambda m: m.rule.level, default=None)
        if worst is not None:
            return worst.rule.title
        return f"Unusual system calls of {self.process.exe or 'an unknown program'}"

    @property
    def enforced(self) -> str:
        """What guards in the kernel made of it: ``denied``, ``would_deny`` or ``none``."""
        told = {e.enforcement.outcome for e in self.evidence if e.enforcement is not None}
        return next((str(o) for o in (Outcome.DENIED, Outcome.WOULD_DENY) if o in told), "none")

    @property
    def reasons(self) -> tuple[str, ...]:
        """The verdict's, and what guards did."""
        return (*self.verdict.reasons, *(_guarded(e) for e in self.evidence if e.enforcement is not None))

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form: what goes to the store and to a SIEM."""
        return {
            "format": FORMAT,
            "id": self.id,
            "revision": self.revision,
            "level": str(self.level),
            "action": str(self.verdict.action),
            "agreed": self.verdict.agreed,
            "enforced": self.enforced,
            **(
                {"enforcement": {"requested": self.requested, "verified": self.verified}}
                if self.requested
                else {}
            ),
            "reasons": list(self.reasons),
            "policy": {
                "rule": str(self.verdict.place.rule),
                "model": str(self.verdict.place.model),
                "contexts": [str(context) for context in self.verdict.place.contexts],
            },
            "answers": [
                {"rule": a.rule, "asked": str(a.asked), "action": str(a.action), "reason": a.reason}
                for a in self.verdict.answers
            ],
            "title": self.title,
            "opened": when(self.opened_ns),
            "updated": when(self.updated_ns),
            "opened_ns": self.opened_ns,
            "updated_ns": self.updated_ns,
            "repeats": self.repeats,
            **({"muted": self.muted} if self.muted else {}),
            "techniques": sorted({t for m in self.matches for t in m.rule.techniques}),
            "process": process_to_plain(self.process),
            "evidence": [self._evidence(e) for e in self.evidence],
            "explanation": self.explanation,
        }

    def _evidence(self, evidence: Evidence) -> dict[str, Any]:
        plain: dict[str, Any] = {
            "count": evidence.count,
            "first_ns": evidence.first_ns,
            "last_ns": evidence.last_ns,
        }
        if evidence.match is not None:
            plain["match"] = _match(evidence.match)
        if evidence.enforcement is not None:
            plain["enforcement"] = _enforcement(evidence.enforcement, evidence.enforced)
        if evidence.anomaly is not None:
            plain["anomaly"] = _anomaly(evidence.anomaly, self.arch)
        return plain


def when(time_ns: int) -> str:
    """
    Return nanoseconds since the epoch as ISO 8601, UTC, to the microsecond.

    A log may claim any time: what no calendar has (beyond the year 9999) is told as the nearest that it has.

    Examples
    --------
    >>> when(1_700_000_000_123_456_789)
    '2023-11-14T22:13:20.123456+00:00'
    """
    try:
        return (_EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat(timespec="microseconds")
    except OverflowError:
        return "9999-12-31T23:59:59.999999+00:00" if time_ns > 0 else "0001-01-01T00:00:00.000000+00:00"


_OUTCOMES = {
    Outcome.DENIED: "denied",
    Outcome.WOULD_DENY: "would have been denied",
    Outcome.LOGGED: "noted",
    Outcome.SPARED: "spared",
    Outcome.RELEASED: "let through, because guards are released,",
}


def _guarded(evidence: Evidence) -> str:
    """Return what a guard did, in words: ``denied in the kernel at file_open, 3 times: rule 'Shadow read'``."""
    event = evidence.enforcement
    assert event is not None  # noqa: S101  # who asks has looked
    often = f", {evidence.enforced:,} times" if evidence.enforced > 1 else ""
    title = "" if evidence.match is None else f": rule {evidence.match.rule.title!r}"
    why = f"; the process is in {event.sentence}" if event.sentence == "quarantine" else ""
    why += "; it was ended" if event.killed else ""
    why += "; the score was over its threshold" if event.anomalous else ""
    return f"{_OUTCOMES[event.outcome]} in the kernel at {event.hook}{often}{title}{why}"


def _enforcement(event: HookEvent, count: int) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "outcome": str(event.outcome),
        "hook": event.hook,
        "call": event.call,
        "mode": event.mode,
        "action": event.action,
        "anomalous": event.anomalous,
        "sentence": event.sentence,
        "untold": event.untold,
        "killed": event.killed,
        "count": count,
        "time": when(event.time_ns),
        "time_ns": event.time_ns,
    }
    if event.score is not None:
        score = event.score
        plain["score"] = {"mean": score.mean, "cusum": score.cusum, "process": score.process}
    return plain


def _match(match: Match) -> dict[str, Any]:
    rule = match.rule
    return {
        "rule": {
            "id": rule.id,
            "title": rule.title,
            "level": str(rule.level),
            "tags": list(rule.tags),
            "file": rule.file,
            "false_positives": list(rule.false_positives),
        },
        "clauses": _clauses(match),
        **({"parts": [_part(part) for part in match.parts]} if match.parts else {}),
        "event": event_to_plain(match.event),
        **({} if match.exception is None else {"exception": _exception(match.exception)}),
    }


def _exception(exception: Exemption) -> dict[str, Any]:
    return {
        "id": exception.id,
        "owner": exception.owner,
        "reason": exception.reason,
        "expires": when(exception.expires_ns),
    }


def _part(part: Match) -> dict[str, Any]:
    """Return a match that a correlation is made of, in a few words: what decided, and whose it is."""
    process = part.event.process
    return {
        "rule": {"id": part.rule.id, "title": part.rule.title, "level": str(part.rule.level)},
        "time": when(part.event.time_ns),
        "time_ns": part.event.time_ns,
        "process": {"pid": process.key.pid, "exe": process.exe, "argv": list(process.argv)},
        "clauses": _clauses(part),
    }


def _clauses(match: Match) -> list[dict[str, Any]]:
    return [
        {
            "selection": clause.selection,
            "field": clause.field,
            "test": clause.test,
            "value": clause.value,
            "span": None if clause.span is None else list(clause.span),
            "negated": clause.negated,
        }
        for clause in match.clauses
    ]


def _anomaly(anomaly: Anomaly, arch: str) -> dict[str, Any]:
    window = anomaly.window
    return {
        "p_value": anomaly.p_value,
        "level": str(anomaly.level),
        "decided_by": anomaly.decided_by,
        "profile": list(anomaly.profile),
        "unseen": anomaly.unseen,
        "trained_on": anomaly.trained_on,
        "changed": anomaly.changed,
        **({"note": anomaly.note} if anomaly.note else {}),
        "calibrated_on": anomaly.calibrated_on,
        "members": [{"name": m.name, "score": m.score, "p_value": m.p_value} for m in anomaly.members],
        "window": {
            "pid": window.process.key.pid,
            "tid": window.tid,
            "exe": window.process.exe,
            "first_ns": window.first_ns,
            "last_ns": window.last_ns,
            "lossy": window.lossy,
            "syscalls": [token_name(token, arch) for token in window.tokens],
        },
    }


def worst(alerts: Sequence[Alert]) -> Level:
    """Return the highest level among *alerts*."""
    return max((alert.level for alert in alerts), default=Level.NONE)
