# SPDX-License-Identifier: Apache-2.0
"""
Rules: what is known to be wrong, said in Sigma, and which clause of it spoke.

A `RuleSet` turns an event into `Match` es. A match says which clauses were decisive, with field, value and span.
"""

from dataclasses import dataclass

from ksentinel.event import Event, Record
from ksentinel.level import Level

ACTIONS = ("deny", "kill", "quarantine")
"""What a rule may ask for: refuse the operation, end the process, cut its lineage off."""


@dataclass(frozen=True, slots=True)
class Response:
    """
    What a rule asks to be done, under its key ``ksentinel``: the policy has the last word, and no model alone the first.

    Attributes
    ----------
    action
        One of `ACTIONS`.
    inline
        Whether the kernel is to do it at once, as far as it can decide the rule.
    anomalous
        Only for a lineage whose score is over its calibrated threshold (``when: anomalous``): two keys.
    """

    action: str
    inline: bool = False
    anomalous: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What an alert must know of a rule; the compiled condition stays in the rule set."""

    id: str
    title: str
    level: Level
    tags: tuple[str, ...] = ()
    description: str = ""
    false_positives: tuple[str, ...] = ()
    file: str = ""
    name: str = ""
    """What correlations may call it by, besides its id."""
    status: str = ""
    """How mature it is: stable, test, experimental, deprecated, unsupported; empty if it doesn't say."""
    source: str = ""
    """Log source, as in `fields.sources`; ``correlation`` for a rule about other rules."""
    references: tuple[str, ...] = ()
    response: Response | None = None

    @property
    def techniques(self) -> tuple[str, ...]:
        """ATT&CK technique ids, upper case: ``T1059.004``."""
        return tuple(t.removeprefix("attack.").upper() for t in self.tags if t.startswith("attack.t"))


@dataclass(frozen=True, slots=True)
class Clause:
    """
    One test of a rule that helped to decide.

    Attributes
    ----------
    selection
        Name of the Sigma selection it stands in.
    field, value
        The event's field and the value it had (None: the event has no such field).
    test
        What was asked, as in the rule: ``endswith '/cat'``.
    span
        Where in *value* the pattern matched: (start, end); None if that has no meaning.
    negated
        True for a part under ``not``: it was looked at and did not match.
    """

    selection: str
    field: str
    test: str
    value: str | None
    span: tuple[int, int] | None = None
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Exemption:
    """
    An exception (Python has taken that word): whose, why, and until when a match is expected.

    Attributes
    ----------
    expires_ns
        Events from then on are excepted no more.
    """

    id: str
    owner: str
    reason: str
    expires_ns: int


@dataclass(frozen=True, slots=True)
class Match:
    """
    A rule that fired on an event, with the clauses that made it.

    Attributes
    ----------
    parts
        Of a correlation, the matches that it is made of, the oldest first; *event* is the last one's.
    record
        Of a rule for audit, the record of *event* that it fired on.
    exception
        What excepts it; None if nothing does.
    """

    rule: Rule
    event: Event
    clauses: tuple[Clause, ...]
    parts: tuple["Match", ...] = ()
    record: Record | None = None
    exception: Exemption | None = None

    @property
    def level(self) -> Level:
        """The rule's level; that of a match that is expected is none."""
        return Level.NONE if self.exception else self.rule.level

    @property
    def kind(self) -> tuple[str, bool]:
        """What counts as the same: an excepted match never stands for one that isn't."""
        return self.rule.id, self.exception is not None
