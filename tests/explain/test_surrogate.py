# SPDX-License-Identifier: Apache-2.0
"""The linear model around a window."""

import subprocess
import sys

import numpy as np
import pytest
from small_host import ATTACK, LOOPS, NGINX, NORMAL, make_window

from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.stide import Stide
from ksentinel.errors import ModelError
from ksentinel.explain.surrogate import surrogate

DETECTORS = [NGramModel(), Stide(), OneClass(components=100)]
# Normal, but for one visitor in the middle.
VISITED = make_window([*LOOPS[NGINX] * 4, 59, 105, 101, *LOOPS[NGINX] * 3, *LOOPS[NGINX][:5]])
HALF_NEW = make_window([*LOOPS[NGINX] * 4, *ATTACK.tokens[:32]])


@pytest.fixture(scope="module", params=DETECTORS, ids=lambda d: d.name)
def detector(request):
    return request.param.fit(NORMAL)


@pytest.mark.parametrize(
    "window", [HALF_NEW, VISITED, make_window([59, 3])], ids=["half new", "visited", "short"]
)
def test_faithful(detector, window):
    """The linear model explains most of what the detector does around the window."""
    found = surrogate(detector, window)

    assert found.r2 > 0.9
    assert found.score == float(detector.score([window])[0])
    assert (found.detector, found.samples, found.seed) == (detector.name, 1000, 0)


def test_finds_the_visitor(detector):
    """The n-gram that raises the score most has the visitor's calls in it."""
    worst = max(surrogate(detector, VISITED).weights, key=lambda w: w.weight)

    assert worst.weight > 0
    assert {59, 105, 101} & set(worst.tokens)


def test_stable(detector):
    """Three seeds agree on the five heaviest of a window, up to one."""
    tops = [{w.tokens for w in surrogate(detector, VISITED, seed=seed).weights[:5]} for seed in range(3)]

    assert len(set.intersection(*tops)) >= 4


def test_deterministic(detector):
    """Same seed, same answer."""
    assert surrogate(detector, ATTACK, seed=5) == surrogate(detector, ATTACK, seed=5)


def test_features(detector):
    """Each distinct n-gram is one feature; together they end at every position once; names are plain strings."""
    found = surrogate(detector, VISITED)

    assert list(range(64)) == sorted(p for w in found.weights for p in w.positions)
    assert len({w.tokens for w in found.weights}) == len(found.weights)
    assert all(type(name) is str for w in found.weights for name in w.names)
    for weight in found.weights:
        for end in weight.positions:
            assert VISITED.tokens[max(end - 2, 0) : end + 1] == weight.tokens


def test_exact_for_an_additive_model():
    """For the n-gram model a weight is what the n-gram adds beyond neutral."""
    model = NGramModel().fit(NORMAL)
    neutral = model.mean_bits_[model.profiles_.root(VISITED.profile)]
    bits = model.surprises(VISITED)
    found = surrogate(model, VISITED)

    assert found.r2 > 0.9999
    for weight in found.weights:
        expected = float(np.sum(bits[list(weight.positions)] - neutral)) / 64
        assert weight.weight == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("constant", "window"),
    [(Stide(), NORMAL[0]), (OneClass(components=100), ATTACK)],
    ids=["stide", "oneclass"],
)
def test_constant(constant, window):
    """Where nothing makes a difference (all of it known, or nothing), nothing has weight."""
    found = surrogate(constant.fit(NORMAL), window)

    assert (found.score, 1.0) == pytest.approx((found.intercept, found.r2))
    assert {0.0} == {w.weight for w in found.weights}


@pytest.mark.parametrize("arguments", [{"n": 0}, {"samples": 1}])
def test_nonsense(arguments):
    """No n-grams, or nothing to compare with."""
    with pytest.raises(ModelError):
        surrogate(Stide().fit(NORMAL), ATTACK, **arguments)


def test_empty_window():
    """There is nothing to explain in no calls."""
    with pytest.raises(ModelError):
        surrogate(Stide().fit(NORMAL), make_window([]))


def test_imported_when_needed():
    """The module itself costs neither lime nor scikit-learn."""
    code = "import sys, ksentinel.explain.surrogate, ksentinel.training; print({'lime', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout == "set()\n"
