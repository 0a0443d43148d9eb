# SPDX-License-Identifier: Apache-2.0
"""The verdict: every cell of the policy that ships, in every context, with every response."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import POLICY, SECOND, START, anomaly, judge, match

from ksentinel.level import Level
from ksentinel.policy import Action, Cell, Context, Policy, forbidden
from ksentinel.rules import ACTIONS, Exemption, Response
from ksentinel.verdict import Place, moment, p_text, worst

N, I, L, M, H, C = Level  # noqa: E741
DENY, KILL, QUARANTINE = (Action(action) for action in ACTIONS)

# Columns: what a model says that knows the program; lines: what the rules say; cells: the level.
TABLE = {
    #   N  I  L  M  H  C
    N: (N, I, L, M, M, M),
    I: (I, L, L, M, M, M),
    L: (L, M, M, M, M, M),
    M: (M, H, H, H, H, H),
    H: (H, C, C, C, C, C),
    C: (C, C, C, C, C, C),
}
CELLS = [
    (ruled, said, level) for ruled, line in TABLE.items() for said, level in zip(Level, line, strict=True)
]
EXEMPTION = Exemption("backup", "storage", "It reads every file", START + 60 * SECOND)
RESPONSES = [None, *(Response(action, anomalous=two) for action in ACTIONS for two in (False, True))]
CONTEXTS = [c for n in range(5) for c in combinations([c for c in Context if c is not Context.KNOWN], n)]


def say(ruled, said, contexts=(), response=None):
    """Return the verdict on one match and one anomaly, each as *contexts* has it."""
    exception = EXEMPTION if Context.EXCEPTED in contexts else None
    rules = [match(level=ruled, response=response, exception=exception)] if ruled else []
    unusual = anomaly(level=said, unseen=Context.UNSEEN in contexts, changed=Context.LEARNING in contexts)
    return judge(rules, [unusual] if said else [], [c for c in contexts if c is Context.LOSSY])


@pytest.mark.parametrize(("ruled", "said", "level"), CELLS, ids=str)
def test_table(ruled, said, level):
    """Level and agreement of every cell; a reason for each level; without a response an alert."""
    verdict = say(ruled, said)

    assert (level, ruled > N and said > N) == (verdict.level, verdict.agreed)
    assert bool(verdict.reasons) == (level > N)
    assert verdict.action is (Action.ALERT if level else Action.NONE)


@pytest.mark.parametrize("contexts", CONTEXTS, ids=" ".join)
@pytest.mark.parametrize("response", RESPONSES, ids=str)
def test_nothing_acts_but_what_a_rule_asks_for(contexts, response):
    """In the whole table: no action without a rule's response, none that it didn't ask for, no high level by a model alone."""
    for ruled, said in product(Level, Level):
        verdict = say(ruled, said, contexts, response)
        acts = verdict.action.rank > Action.ALERT.rank

        if acts:
            assert ruled > N
            assert response is not None
            assert verdict.action == response.action
            assert Context.EXCEPTED not in contexts
            cell = POLICY.cell(ruled, said, contexts)
            alone = POLICY.cell(ruled, N, [c for c in contexts if c is Context.LOSSY])
            assert verdict.action.rank <= max(cell.permits.rank, alone.permits.rank)
        if acts and response.anomalous:
            assert said > N
            assert not {Context.UNSEEN, Context.LEARNING} & set(contexts)
        if ruled is N:
            assert verdict.level <= M
            assert verdict.answers == ()
        elif response is not None:
            (answer,) = verdict.answers
            assert answer.asked == response.action
            assert answer.action is verdict.action
            assert answer.reason
        assert (verdict.action is Action.NONE) == (verdict.level is N)


@pytest.mark.parametrize(
    ("ruled", "said", "contexts", "level"),
    [
        (N, M, (Context.LEARNING,), L),
        (N, M, (Context.UNSEEN,), M),
        (N, M, (Context.UNSEEN, Context.LOSSY), M),
        (M, M, (Context.LEARNING,), M),
        (H, M, (Context.UNSEEN,), H),
        (H, M, (Context.LOSSY,), C),
        (C, N, (Context.EXCEPTED,), I),
        (C, M, (Context.EXCEPTED,), M),
        (C, L, (Context.EXCEPTED, Context.LEARNING), L),
    ],
)
def test_contexts(ruled, said, contexts, level):
    """A witness in doubt is no second one, and takes nothing from the other."""
    assert level is say(ruled, said, contexts).level


_levels = st.lists(st.sampled_from(Level), max_size=4)
_doubts = st.lists(
    st.builds(
        lambda level, doubt: anomaly(level=level, **doubt),
        st.sampled_from(Level),
        st.sampled_from([{}, {"unseen": True}, {"changed": True}, {"trained_on": 1}]),
    ),
    max_size=4,
)
_lossy = st.sampled_from([(), (Context.LOSSY,)])
_matches = st.lists(
    st.builds(
        lambda level, exception, response: match(level=level, exception=exception, response=response),
        st.sampled_from(list(Level)[1:]),
        st.sampled_from([None, EXEMPTION]),
        st.sampled_from(RESPONSES),
    ),
    max_size=4,
)


@given(_levels, _levels, _lossy)
def test_worst_decide(ruled, said, contexts):
    """Of several witnesses the worst of each kind decide."""
    verdict = judge([match(level=r) for r in ruled if r], [anomaly(level=s) for s in said], contexts)

    assert TABLE[max(ruled, default=N)][max(said, default=N)] is verdict.level


@given(_matches, _doubts, _lossy)
def test_no_level_without_a_reason(matches, anomalies, contexts):
    """A level has reasons and the cell it comes from, none has none."""
    verdict = judge(matches, anomalies, contexts)
    place = verdict.place

    assert bool(verdict.reasons) == (verdict.level is not N)
    assert all(verdict.reasons)
    assert POLICY.cell(place.rule, place.model, place.contexts).level is verdict.level


@given(_matches, _doubts, _matches, _doubts, _lossy)
def test_more_is_never_less(matches, anomalies, more_matches, more_anomalies, contexts):
    """Further witnesses never lower a level, nor an action."""
    before = judge(matches, anomalies, contexts)
    after = judge([*matches, *more_matches], [*anomalies, *more_anomalies], contexts)

    assert before.level <= after.level
    assert before.action.rank <= after.action.rank


@given(st.integers(0, 1 << 128), _matches, _doubts, _lossy)
def test_whatever_a_policy_says(seed, matches, anomalies, contexts):
    """By any policy that loads: no action but what a standing rule asks for, at most medium without a rule."""
    tables = {}
    for context, rule, model in product(Context, Level, Level):
        cells = [Cell(level, permits) for level, permits in product(Level, list(Action)[1:])]
        good = [cell for cell in cells if not forbidden(cell, rule, model, context)]
        seed, place = divmod(seed * 6364136223846793005 + 1442695040888963407, 1 << 64)
        tables.setdefault(context, {})[rule, model] = good[place % len(good)]
    verdict = judge(matches, anomalies, contexts, Policy("", tables, 50))
    asked = {m.rule.response.action for m in matches if m.rule.response and m.exception is None}

    assert verdict.action.rank <= Action.ALERT.rank or verdict.action in asked
    assert matches or verdict.level <= M
    assert verdict.level > N or not matches


def test_new_program_agrees_with_nothing():
    """A program that training never saw is unusual by that alone: no second witness; one that it knows is."""
    rule, new, known = match(level=H), anomaly(level=M, unseen=True), anomaly(level=L)

    assert (judge([rule], [new]).level, judge([rule], [new]).agreed) == (H, False)
    assert judge([rule], [new, known]).agreed


def test_excepted_match_covers_no_other():
    """What is excepted stands for itself: a match beside it counts in full."""
    verdict = judge([match(level=C, exception=EXEMPTION), match(level=M, rule="other")], [])

    assert (M, Place(M, N)) == (verdict.level, verdict.place)
    assert not judge([match(level=C, exception=EXEMPTION)], [anomaly()]).agreed


def test_reasons():
    """They name the worst rule, the smallest p-value, the agreement, and what makes it less certain."""
    verdict = judge(
        [match(level=L, rule="harmless"), match(level=M, rule="web shell")],
        [
            anomaly(level=L, p_value=1e-3),
            anomaly(level=M, p_value=2.5e-6),
            anomaly(unseen=True),
            anomaly(trained_on=3),
        ],
        [Context.LOSSY],
    )

    assert verdict.reasons == (
        "rule 'Web shell' (medium)",
        "model: p = 2.5e-06 (medium)",
        "rule and model agree: one level up",
        "training never saw this executable: compared with the whole host",
        "the model is still learning this program: training saw 3 windows of it",
        "records were lost meanwhile: an absence proves nothing",
    )
    assert str(verdict.place) == "rule medium, model medium, lossy"


def test_reason_of_an_exception():
    """It names the exception, its owner and its end."""
    (reason,) = judge([match(level=H, exception=EXEMPTION)], []).reasons

    assert reason == (
        "rule 'Web shell' (high) is excepted by backup of storage until 2023-11-14 22:14 UTC: It reads every file"
    )


@pytest.mark.parametrize(
    ("doubt", "level", "reasons"),
    [
        ({}, M, ["a model alone is at most medium"]),
        (
            {"changed": True},
            L,
            [
                "a model alone is at most low here",
                "the model is still learning this program: its content has changed since training",
            ],
        ),
    ],
)
def test_reason_of_a_limit(doubt, level, reasons):
    """Where a model would say more, the reasons say why it doesn't."""
    verdict = judge([], [anomaly(level=C, p_value=1e-12, **doubt)])

    assert level is verdict.level
    assert ("model: p < 1e-06 (critical)", *reasons) == verdict.reasons


@pytest.mark.parametrize(
    ("level", "response", "others", "action", "why"),
    [
        (H, Response("deny"), {}, DENY, "the policy permits it (rule high, model none, known)"),
        (H, Response("kill"), {}, Action.ALERT, "the policy permits at most deny (rule high, model none, known)"),
        (M, Response("deny"), {}, Action.ALERT, "the policy permits no more than an alert (rule medium, model none, known)"),
        (M, Response("kill"), {"said": L}, KILL, "the policy permits it (rule medium, model low, known)"),
        (H, Response("deny", anomalous=True), {}, Action.ALERT, "the model says nothing"),
        (H, Response("deny", anomalous=True), {"said": L}, DENY, "the policy permits it (rule high, model low, known)"),
        (H, Response("deny", anomalous=True), {"said": L, "contexts": (Context.UNSEEN,)}, Action.ALERT, "the model doesn't know this program"),
        (H, Response("deny", anomalous=True), {"said": L, "contexts": (Context.LEARNING,)}, Action.ALERT, "the model is still learning this program"),
        (C, Response("quarantine"), {"said": L, "contexts": (Context.LOSSY,)}, Action.ALERT, "the policy permits at most deny (rule critical, model low, lossy)"),
        (C, Response("deny"), {"contexts": (Context.EXCEPTED,)}, Action.ALERT, "it is excepted"),
    ],
)  # fmt: skip
def test_answers(level, response, others, action, why):
    """A rule that asks for something is told what it gets, and why."""
    verdict = say(level, others.get("said", N), others.get("contexts", ()), response)
    (answer,) = verdict.answers

    assert (action, action) == (verdict.action, answer.action)
    asks = f"rule 'Web shell' asks for {response.action}" + (" when anomalous" if response.anomalous else "")
    assert f"{asks}: {why}" == answer.reason


def test_mild_rule_borrows_no_severity():
    """What a rule may have done goes by its own level, not by that of another that matched."""
    asking = match(level=L, rule="mild", response=Response("deny"))
    verdict = judge([asking, match(level=C, rule="bad")], [anomaly()])

    assert (verdict.level, verdict.action) == (C, Action.ALERT)


def test_worst():
    """Apart judged and together told: the worst level, and each rule's best answer."""
    asking = match(level=M, response=Response("kill", anomalous=True))
    bad = match(level=C, rule="bad")
    verdict = worst([judge([asking], [anomaly()]), judge([asking, bad], []), judge([], [anomaly()])])

    assert (verdict.level, verdict.action, len(verdict.answers)) == (C, KILL, 1)


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(1.0, "p = 1"), (0.00123, "p = 0.0012"), (1e-6, "p = 1e-06"), (9.9e-7, "p < 1e-06"), (0.0, "p < 1e-06")],
)
def test_p_text(p_value, text):
    """No more is claimed than data can show."""
    assert text == p_text(p_value)


def test_moment():
    """To the minute, in UTC."""
    assert moment(60 * SECOND) == "1970-01-01 00:01 UTC"
