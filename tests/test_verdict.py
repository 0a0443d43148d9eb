# SPDX-License-Identifier: Apache-2.0
"""The verdict: the whole table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import anomaly, match

from ksentinel.level import Level
from ksentinel.verdict import Action, Context, judge, p_text

N, I, L, M, H, C = Level  # noqa: E741

# Columns: what the model says; lines: what the rules say; cells: the level.
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


@pytest.mark.parametrize(("ruled", "said", "level"), CELLS, ids=str)
def test_table(ruled, said, level):
    """Level, agreement and action of every cell; a reason for each level."""
    verdict = judge(
        [match(level=ruled)] if ruled else [],
        [anomaly(level=said)] if said else [],
    )
    agreed = ruled > N and said > N
    action = Action.BLOCK if agreed and ruled >= M else Action.ALERT if level else Action.NONE

    assert (level, agreed, action) == (verdict.level, verdict.agreed, verdict.action)
    assert bool(verdict.reasons) == (level > N)


_levels = st.lists(st.sampled_from(Level), max_size=4)
_contexts = st.builds(Context, lossy=st.booleans(), unseen=st.booleans())


@given(_levels, _levels, _contexts)
def test_worst_decide(ruled, said, context):
    """Of several witnesses the worst of each kind decide; the context never does."""
    verdict = judge([match(level=r) for r in ruled], [anomaly(level=s) for s in said], context)

    assert TABLE[max(ruled, default=N)][max(said, default=N)] is verdict.level


@given(_levels, _levels, _contexts)
def test_no_level_without_a_reason(ruled, said, context):
    """A level has reasons, none has none."""
    verdict = judge([match(level=r) for r in ruled], [anomaly(level=s) for s in said], context)

    assert bool(verdict.reasons) == (verdict.level is not N)
    assert all(verdict.reasons)


@given(st.lists(st.sampled_from(Level), min_size=1), _contexts)
def test_model_alone(said, context):
    """A model alone never reaches high, and never blocks."""
    verdict = judge([], [anomaly(level=s) for s in said], context)

    assert verdict.level <= M
    assert verdict.action is not Action.BLOCK
    assert not verdict.agreed


@given(_levels, _levels, st.sampled_from(Level), st.booleans())
def test_more_is_never_less(ruled, said, one_more, is_rule):
    """Another witness never lowers a level."""
    matches, anomalies = [match(level=r) for r in ruled], [anomaly(level=s) for s in said]
    before = judge(matches, anomalies).level
    after = judge(
        [*matches, match(level=one_more)] if is_rule else matches,
        anomalies if is_rule else [*anomalies, anomaly(level=one_more)],
    ).level

    assert before <= after


def test_new_program_agrees_with_nothing():
    """A program that training never saw is unusual by that alone: no second witness, and never a reason to block."""
    rule, new, known = match(level=H), anomaly(level=M, unseen=True), anomaly(level=L)

    verdict = judge([rule], [new])
    assert (verdict.level, verdict.action, verdict.agreed) == (H, Action.ALERT, False)
    assert judge([rule], [new, known]).agreed


def test_reasons():
    """They name the worst rule, the smallest p-value, the agreement, and what makes it less certain."""
    verdict = judge(
        [match(level=L, rule="harmless"), match(level=M, rule="web shell")],
        [anomaly(level=L, p_value=1e-3), anomaly(level=M, p_value=2.5e-6)],
        Context(lossy=True, unseen=True),
    )

    assert verdict.reasons == (
        "rule 'Web shell' (medium)",
        "model: p = 2.5e-06 (medium)",
        "rule and model agree: one level up",
        "training never saw this executable: compared with the whole host",
        "records were lost meanwhile: an absence proves nothing",
    )


def test_reason_of_a_limit():
    """Where a model would say more, the reasons say why it doesn't."""
    assert judge([], [anomaly(level=C, p_value=1e-12)]).reasons == (
        "model: p < 1e-06 (critical)",
        "a model alone is at most medium",
    )


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(1.0, "p = 1"), (0.00123, "p = 0.0012"), (1e-6, "p = 1e-06"), (9.9e-7, "p < 1e-06"), (0.0, "p < 1e-06")],
)
def test_p_text(p_value, text):
    """No more is claimed than data can show."""
    assert text == p_text(p_value)
