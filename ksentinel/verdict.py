# SPDX-License-Identifier: Apache-2.0
"""
The verdict: what rules and models together make of an incident. Pure; the `policy` is its table.

Each witness counts for what it is worth: matches that an exception covers, anomalies of programs that the model is still
learning, and those of programs that training never saw, have tables of their own. Rules and model are looked up in every
combination, one of them alone included, and the worst decides: a witness in doubt adds less, but takes nothing from what
the others say.

The action is what the verdict justifies. Above an alert it is always what a rule that matched has asked for, and what the
policy permits at that rule's level; `judge` has no other way to one. Here nothing acts.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ksentinel.detectors import Anomaly
from ksentinel.level import Level
from ksentinel.policy import Action, Context, Policy
from ksentinel.rules import Match

CREDIBLE = 1e-6
"""Smaller p-values are told as this one: they lie far beyond the calibration data, where only a formula speaks."""

_DOUBTS = (None, Context.LEARNING, Context.UNSEEN)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the policy a verdict comes from: the rules' level, the model's, and what else bore on it."""

    rule: Level
    model: Level
    contexts: tuple[Context, ...] = ()

    def __str__(self) -> str:
        contexts = " + ".join(self.contexts or (Context.KNOWN,))
        return f"rule {self.rule}, model {self.model}, {contexts}"


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a rule that asks for an action gets.

    Attributes
    ----------
    rule
        Its id.
    action
        What it asked for, or an alert.
    reason
        Why, or why not.
    """

    rule: str
    asked: Action
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    A level with its reasons; never one without.

    Attributes
    ----------
    action
        The most that one of *answers* grants; an alert if no rule asks for anything.
    agreed
        A rule and a model that knows the program spoke of the same; no exception covers it.
    place
        The cell of the policy that the level comes from.
    answers
        One for each rule that asks for an action.
    """

    level: Level
    action: Action = Action.NONE
    agreed: bool = False
    reasons: tuple[str, ...] = ()
    place: Place = Place(Level.NONE, Level.NONE)
    answers: tuple[Answer, ...] = ()


def judge(
    matches: Sequence[Match], anomalies: Sequence[Anomaly], contexts: Collection[Context], policy: Policy
) -> Verdict:
    """
    Return the verdict on one incident.

    Parameters
    ----------
    matches, anomalies
        What rules and models said of one lineage within the time in which they can agree.
    contexts
        What bears on all of them; what bears on one witness it says itself.
    """
    around = tuple(contexts)
    spoken = list(_spoken(anomalies, policy))
    places = [
        Place(rule, model, tuple(c for c in (*around, doubt, excepted) if c is not None))
        for rule, excepted in _ruled(matches)
        for model, doubt in spoken
    ]

    def weight(place: Place) -> tuple[Level, int, int]:
        cell = policy.cell(place.rule, place.model, place.contexts)
        # Of equals the one that more witnesses speak for.
        return cell.level, cell.permits.rank, (place.rule > Level.NONE) + (place.model > Level.NONE)

    place = max(places, key=weight)
    level = policy.cell(place.rule, place.model, place.contexts).level
    if level is Level.NONE:
        return Verdict(Level.NONE)
    agreed = (
        max(m.level for m in matches) > Level.NONE and any(d is None and s for s, d in spoken)
        if matches
        else False
    )
    answers = _best(_answer(match, spoken, around, policy) for match in matches if match.rule.response)
    return Verdict(
        level,
        max((answer.action for answer in answers), key=lambda a: a.rank, default=Action.ALERT),
        agreed=agreed,
        reasons=tuple(_reasons(matches, anomalies, place, level, agreed=agreed, policy=policy)),
        place=place,
        answers=answers,
    )


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on all that *verdicts* were on apart: the worst, the first of equals, with the best answers."""
    first = max(verdicts, key=lambda verdict: verdict.level)
    answers = _best(answer for verdict in verdicts for answer in verdict.answers)
    action = max((first.action, *(answer.action for answer in answers)), key=lambda a: a.rank)
    return replace(first, action=action, answers=answers)


def p_text(p_value: float) -> str:
    """
    Return a p-value as it is told to people.

    Examples
    --------
    >>> p_text(0.00123), p_text(1e-12)
    ('p = 0.0012', 'p < 1e-06')
    """
    return f"p = {p_value:.2g}" if p_value >= CREDIBLE else f"p < {CREDIBLE:.0e}"


def moment(time_ns: int) -> str:
    """
    Return a time as people are told when an exception ends.

    Examples
    --------
    >>> moment(1_700_000_000_000_000_000)
    '2023-11-14 22:13 UTC'
    """
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _ruled(matches: Sequence[Match]) -> Iterator[tuple[Level, Context | None]]:
    """Yield what the rules say: nothing, the worst that stands, the worst that is excepted."""
    yield Level.NONE, None
    for excepted in (None, Context.EXCEPTED):
        levels = [m.rule.level for m in matches if (m.exception is None) == (excepted is None)]
        if levels:
            yield max(levels), excepted


def _spoken(anomalies: Sequence[Anomaly], policy: Policy) -> Iterator[tuple[Level, Context | None]]:
    """Yield what the model says: nothing, and the worst of each doubt."""
    yield Level.NONE, None
    for doubt in _DOUBTS:
        level = max((a.level for a in anomalies if policy.doubt(a) is doubt), default=Level.NONE)
        if level is not Level.NONE:
            yield level, doubt


def _answer(
    match: Match, spoken: Sequence[tuple[Level, Context | None]], around: tuple[Context, ...], policy: Policy
) -> Answer:
    """Return what *match* gets of what its rule asks for."""
    rule, response = match.rule, match.rule.response
    assert response is not None  # noqa: S101  # judge asked
    asked = Action(response.action)
    asks = f"rule {rule.title!r} asks for {asked}" + (" when anomalous" if response.anomalous else "")
    if match.exception is not None:
        return Answer(rule.id, asked, Action.ALERT, f"{asks}: it is excepted")
    # The second key is the word of a model that knows the program: of others no threshold was calibrated.
    keys = [(model, doubt) for model, doubt in spoken if not response.anomalous or (doubt is None and model)]
    if not keys:
        doubt = next((doubt for _, doubt in spoken if doubt is not None), None)
        why = {
            Context.LEARNING: "the model is still learning this program",
            Context.UNSEEN: "the model doesn't know this program",
        }.get(doubt or Context.KNOWN, "the model says nothing")
        return Answer(rule.id, asked, Action.ALERT, f"{asks}: {why}")
    places = [
        Place(rule.level, model, (*around, *([doubt] if doubt is not None else []))) for model, doubt in keys
    ]
    permits, place = max(
        ((policy.cell(p.rule, p.model, p.contexts).permits, p) for p in places),
        key=lambda one: (one[0].rank, one[1].model),
    )
    if asked.rank <= permits.rank:
        return Answer(rule.id, asked, asked, f"{asks}: the policy permits it ({place})")
    most = "no more than an alert" if permits is Action.ALERT else f"at most {permits}"
    return Answer(rule.id, asked, Action.ALERT, f"{asks}: the policy permits {most} ({place})")


def _best(answers: Iterator[Answer]) -> tuple[Answer, ...]:
    """Return one answer a rule: the one that grants most, the first of equals."""
    best: dict[str, Answer] = {}
    for answer in answers:
        known = best.get(answer.rule)
        if known is None or answer.action.rank > known.action.rank:
            best[answer.rule] = answer
    return tuple(best.values())


def _reasons(
    matches: Sequence[Match],
    anomalies: Sequence[Anomaly],
    place: Place,
    level: Level,
    *,
    agreed: bool,
    policy: Policy,
) -> Iterator[str]:
    standing = max((m for m in matches if m.exception is None), key=lambda m: m.rule.level, default=None)
    if standing is not None:
        yield f"rule {standing.rule.title!r} ({standing.rule.level})"
    excepted = max((m for m in matches if m.exception is not None), key=lambda m: m.rule.level, default=None)
    if excepted is not None and excepted.exception is not None:
        by = excepted.exception
        yield (
            f"rule {excepted.rule.title!r} ({excepted.rule.level}) is excepted by {by.id} of {by.owner} "
            f"until {moment(by.expires_ns)}: {by.reason}"
        )
    unusual = max((anomaly.level for anomaly in anomalies), default=Level.NONE)
    if unusual is not Level.NONE:
        yield f"model: {p_text(min(anomaly.p_value for anomaly in anomalies))} ({unusual})"
    if agreed and standing is not None:
        yield f"rule and model agree{_lift(level - standing.rule.level)}"
    elif place.rule is Level.NONE and unusual > level:
        yield f"a model alone is at most {level}" + (" here" if place.contexts else "")
    doubts = {policy.doubt(anomaly): anomaly for anomaly in anomalies if anomaly.level is not Level.NONE}
    if Context.UNSEEN in doubts:
        yield "training never saw this executable: compared with the whole host"
    if Context.LEARNING in doubts:
        one = doubts[Context.LEARNING]
        why = (
            "its content has changed since training"
            if one.changed
            else f"training saw {one.trained_on} windows of it"
        )
        yield f"the model is still learning this program: {why}"
    if Context.LOSSY in place.contexts:
        yield "records were lost meanwhile: an absence proves nothing"


def _lift(levels: int) -> str:
    if levels == 0:
        return ""
    count = "one level" if abs(levels) == 1 else f"{abs(levels)} levels"
    return f": {count} {'up' if levels > 0 else 'down'}"
