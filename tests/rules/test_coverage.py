# SPDX-License-Identifier: Apache-2.0
"""The matrix holds what the rules' tags say, and nothing else; so does the layer."""

from ksentinel.level import Level
from ksentinel.rules import Rule
from ksentinel.rules.coverage import TACTICS, coverage, navigator_layer


def made(title, *tags):
    return Rule(title, title, Level.HIGH, tags=tuple(f"attack.{tag}" for tag in tags), file=f"/x/{title}.yml")


BOTH = made("both", "execution", "persistence", "t1059.004", "t1543")
ONE = made("one", "execution", "t1059.004")
NO_TACTIC = made("no tactic", "t1059")
NO_TECHNIQUE = made("no technique", "impact")
RULES = [BOTH, ONE, NO_TACTIC, NO_TECHNIQUE]


def test_matrix():
    """A rule stands under each of its tactics with each of its techniques; one that stands nowhere is told."""
    covered = coverage(RULES)
    filled = {tactic.slug: dict(column) for tactic, column in covered.matrix.items() if column}

    assert list(covered.matrix) == list(TACTICS)
    assert filled == {
        "execution": {"T1059.004": (BOTH, ONE), "T1543": (BOTH,)},
        "persistence": {"T1059.004": (BOTH,), "T1543": (BOTH,)},
    }
    assert covered.elsewhere == (NO_TACTIC, NO_TECHNIQUE)
    assert covered.techniques == ("T1059.004", "T1543")


def test_tactics():
    """There are fourteen, each once."""
    assert len({tactic.id for tactic in TACTICS}) == len({tactic.slug for tactic in TACTICS}) == 14


def test_layer():
    """It has what a layer of that version must have, and of each technique the number of rules."""
    layer = navigator_layer(coverage(RULES))
    scores = {(one["techniqueID"], one["tactic"]): one["score"] for one in layer["techniques"]}

    assert (layer["domain"], layer["versions"]["layer"]) == ("enterprise-attack", "4.5")
    assert layer["name"]
    assert scores == {
        ("T1059.004", "execution"): 2,
        ("T1543", "execution"): 1,
        ("T1059.004", "persistence"): 1,
        ("T1543", "persistence"): 1,
    }
    assert layer["gradient"]["maxValue"] == 2


def test_layer_of_nothing():
    """Without rules there is a layer, too: a gradient needs two ends."""
    layer = navigator_layer(coverage([]))

    assert layer["techniques"] == []
    assert layer["gradient"]["minValue"] < layer["gradient"]["maxValue"]
