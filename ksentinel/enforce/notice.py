# SPDX-License-Identifier: Apache-2.0
"""Notices: what there is to alert about enforcement itself, as a match like any other."""

from ksentinel.enforce.canary import Finding, Proof
from ksentinel.event import AuditEvent, Origin, Process, Record
from ksentinel.level import Level
from ksentinel.rules import Clause, Match, Rule

UNVERIFIED = Rule(
    "ksentinel:unverified",
    "Enforcement is not verified",
    Level.CRITICAL,
    file="",
    tags=("attack.defense_evasion", "attack.t1562.001"),
    source="ksentinel",
)
"""What alerts about enforcement that is asked for, and isn't proven, are of."""


def unverified(proof: Proof, requested: str, process: Process, now_ns: int, why: str = "") -> Match:
    """
    Return that a proof has failed, as a match.

    Parameters
    ----------
    process
        ksentinel's own.
    why
        Why nothing could be tried; empty if it was.
    """
    clauses = tuple(
        Clause("canary", hook.name.lower(), f"is not what {proof.mode} asks for", str(result.finding))
        for hook, result in proof.unproven.items()
    )
    told = (
        ("requested", requested),
        ("verified", "no"),
        *((("why", why),) if why else ()),
        *((hook.name.lower(), f"{result.finding}: {result.what}") for hook, result in proof.unproven.items()),
    )
    event = AuditEvent(
        time_ns=now_ns,
        process=process,
        tid=process.key.pid,
        origin=Origin.BPF,
        type="KSENTINEL_UNVERIFIED",
        records=(Record("KSENTINEL_UNVERIFIED", told),),
    )
    return Match(UNVERIFIED, event, clauses or (Clause("canary", "hooks", "is 0", "0"),))


def unproven(proof: Proof) -> str:
    """Return which guards aren't proven, and why, in a line."""
    if not proof.results:
        return "no guard is attached: no rule asks for one on this kernel"
    told: dict[tuple[Finding, str], list[str]] = {}
    for hook, result in proof.unproven.items():
        told.setdefault((result.finding, result.what), []).append(hook.name.lower())
    return "; ".join(
        f"{', '.join(hooks[:4])}{f' and {len(hooks) - 4} more' if len(hooks) > 4 else ''}: {finding}"
        + (f" ({what})" if what else "")
        for (finding, what), hooks in told.items()
    )
