# SPDX-License-Identifier: Apache-2.0
"""Explanations: three witnesses, apart and named, and the paragraph."""

from dataclasses import replace

import orjson
import pytest
from made_up import CAT, START, anomaly, judge, match
from small_host import ATTACK, make_window, make_windows

from ksentinel.alert import Alert, Evidence
from ksentinel.detectors.calibration import Calibration
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.explain import explanation
from ksentinel.explain.contributions import contributions
from ksentinel.explain.explanation import Explainer
from ksentinel.explain.surrogate import SAMPLES
from ksentinel.explain.wording import paragraph

FIT, CALIBRATE = make_windows(60, seed=1), make_windows(60, seed=2)


def make_model(*members):
    """Return a model with those members, fitted and calibrated."""
    for member in members:
        member.fit(FIT)
    profiles = Profiles.among(w.profile for w in FIT)
    names = [profiles.find(w.profile)[0] for w in CALIBRATE]
    return Model(members, {m.name: Calibration().fit(m.score(CALIBRATE), names) for m in members}, profiles)


@pytest.fixture(scope="module")
def model():
    """Return a model with an n-gram model."""
    return make_model(NGramModel(), Stide())


def alert(matches, anomalies, revision=1):
    """Return an alert with that evidence."""
    evidence = [Evidence(1, START, START, match=m) for m in matches]
    evidence += [Evidence(1, START, START, anomaly=a) for a in anomalies]
    return Alert("0a", revision, START, START, CAT, judge(matches, anomalies), tuple(evidence))


def test_model_speaks(model):
    """The exact n-grams, the surrogate with how good it is, and the paragraph that names the first of them."""
    (said,) = model.assess([ATTACK])
    told = alert([match(CAT)], [said])
    explained = Explainer(model)(told)
    plain = explained.explanation
    exact = contributions(model.member("ngram"), ATTACK, top=5)

    assert told == replace(explained, explanation={})
    assert {"paragraph", "ngrams", "lime"} == set(plain)
    assert [list(c.names) for c in exact] == [n["ngram"] for n in plain["ngrams"]]
    assert [round(c.bits, 4) for c in exact] == [n["bits"] for n in plain["ngrams"]]
    assert (said.decided_by, SAMPLES, 0) == tuple(plain["lime"][k] for k in ("detector", "samples", "seed"))
    assert 1 <= len(plain["lime"]["weights"]) <= 5
    assert plain["lime"]["r2"] > 0.9
    assert paragraph(told, plain) == plain["paragraph"]
    assert " → ".join(exact[0].names) in plain["paragraph"]
    assert plain == orjson.loads(orjson.dumps(plain))


def test_rules_alone(model):
    """Where no window is in the evidence there is only the paragraph."""
    told = alert([match(CAT)], [])

    assert {"paragraph": paragraph(told, {})} == Explainer(model)(told).explanation


def test_without_model():
    """A replayed alert's window without the model that judged it: the paragraph says what it can."""
    told = alert([], [anomaly(CAT)])

    assert {"paragraph": paragraph(told, {})} == Explainer(None)(told).explanation


def test_without_ngrams():
    """A model without an n-gram model has no exact part, and says so by an empty list."""
    other = make_model(Stide())
    (said,) = other.assess([ATTACK])
    plain = Explainer(other)(alert([], [said])).explanation

    assert (plain["ngrams"], plain["lime"]["detector"]) == ([], "stide")


def test_once(model, monkeypatch):
    """A window is explained once, however many revisions have it; another of the same moment on its own."""
    asked = []
    monkeypatch.setattr(
        explanation, "surrogate", lambda member, window, **_: asked.append(window) or REAL(member, window)
    )
    one, other = (make_window(tokens, at=5) for tokens in ([59, 105] * 8, [101, 310] * 8))
    first, second = model.assess([one, other])
    explainer = Explainer(model)
    told = [explainer(alert([], [a], revision)) for revision, a in enumerate([first, first, second, first])]

    assert [one, other] == asked
    assert told[0].explanation == told[1].explanation == told[3].explanation != told[2].explanation


REAL = explanation.surrogate


def test_bounded(model, monkeypatch):
    """What is remembered is bounded."""
    monkeypatch.setattr(explanation, "_CACHED", 3)
    explainer = Explainer(model)
    for said in model.assess([make_window([59, n]) for n in range(8)]):
        explainer(alert([], [said]))

    assert len(explainer._known) == 3


def test_same_again(model):
    """The same alert, the same explanation, also from another explainer."""
    told = alert([match(CAT)], model.assess([ATTACK]))

    assert orjson.dumps(Explainer(model)(told).explanation) == orjson.dumps(
        Explainer(model)(told).explanation
    )
