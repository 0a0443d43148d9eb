# SPDX-License-Identifier: Apache-2.0
"""
The verdict: what rules and models together make of an incident. Pure; its whole table is one test.

=============  =================  ==============================================================
rules          model              level
=============  =================  ==============================================================
nothing        nothing            none
nothing        low or medium      as the model says, at most medium: it knows unusual, not harmful
some level     nothing            as the worst rule says
some level     anything           one level above the worst rule, at most critical: they agree; and never
                                  less than the model alone would say
=============  =================  ==============================================================

A program that training never saw is unusual by that alone: its anomalies agree with nothing.

An anomaly alone never blocks: the action is at most *block* only where rule and model agree and the level is high.
Blocking itself is the guards' business; here the action says what the verdict would justify.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ksentinel.detectors import Anomaly
from ksentinel.level import Level
from ksentinel.rules import Match

MODEL_ALONE = Level.MEDIUM

CREDIBLE = 1e-6
"""Smaller p-values are told as this one: they lie far beyond the calibration data, where only a formula speaks."""


class Action(StrEnum):
    """What a verdict justifies."""

    NONE = "none"
    ALERT = "alert"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Context:
    """What else bears on it: was something lost meanwhile, was the executable never seen in training?"""

    lossy: bool = False
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A level with its reasons; never one without."""

    level: Level
    action: Action = Action.NONE
    agreed: bool = False
    reasons: tuple[str, ...] = ()


def judge(matches: Sequence[Match], anomalies: Sequence[Anomaly], context: Context = Context()) -> Verdict:
    """
    Return the verdict on one incident.

    Parameters
    ----------
    matches, anomalies
        What rules and models said of one lineage within the time in which they can agree.
    context
        Becomes part of the reasons, never of the level.
    """
    ruled = max((match.rule.level for match in matches), default=Level.NONE)
    unusual = max((anomaly.level for anomaly in anomalies), default=Level.NONE)
    # A program that training never saw is unusual by that alone: no second witness to what a rule says of it.
    known = any(anomaly.level is not Level.NONE and not anomaly.unseen for anomaly in anomalies)
    agreed = ruled is not Level.NONE and known
    level = max(Level(min(ruled + agreed, Level.CRITICAL)), min(unusual, MODEL_ALONE))
    if level is Level.NONE:
        return Verdict(Level.NONE)

    reasons = [f"rule {m.rule.title!r} ({m.rule.level})" for m in matches if m.rule.level is ruled][:1]
    if unusual is not Level.NONE:
        smallest = min(anomaly.p_value for anomaly in anomalies)
        reasons.append(f"model: {p_text(smallest)} ({unusual})")
    if agreed:
        reasons.append("rule and model agree: one level up")
    elif ruled is Level.NONE and unusual > MODEL_ALONE:
        reasons.append(f"a model alone is at most {MODEL_ALONE}")
    if context.unseen:
        reasons.append("training never saw this executable: compared with the whole host")
    if context.lossy:
        reasons.append("records were lost meanwhile: an absence proves nothing")
    action = Action.BLOCK if agreed and level >= Level.HIGH else Action.ALERT
    return Verdict(level, action, agreed=agreed, reasons=tuple(reasons))


def p_text(p_value: float) -> str:
    """
    Return a p-value as it is told to people.

    Examples
    --------
    >>> p_text(0.00123), p_text(1e-12)
    ('p = 0.0012', 'p < 1e-06')
    """
    return f"p = {p_value:.2g}" if p_value >= CREDIBLE else f"p < {CREDIBLE:.0e}"
