# SPDX-License-Identifier: Apache-2.0
"""What every detector keeps, whatever it is made of."""

import numpy as np
import pytest
from small_host import ATTACK, NORMAL, make_window

from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.stide import Stide
from ksentinel.errors import ModelError

KINDS = {"ngram": NGramModel, "stide": Stide, "oneclass": lambda: OneClass(components=100)}
SHORT = make_window([257, 0, 3])
EMPTY = make_window([])


@pytest.fixture(scope="module", params=KINDS)
def detector(request):
    return KINDS[request.param]().fit(NORMAL)


def test_name(detector):
    """The name is the one that configuration and artefacts use."""
    assert KINDS[detector.name]().name == detector.name


def test_direction(detector):
    """An attack scores higher than all that training showed."""
    *normal, attack = detector.score([*NORMAL, ATTACK])

    assert max(normal) < attack


def test_deterministic(detector):
    """Same windows and parameters, same scores."""
    again = KINDS[detector.name]().fit(NORMAL)

    assert detector.score([*NORMAL, ATTACK]).tolist() == again.score([*NORMAL, ATTACK]).tolist()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_unfitted(kind):
    """Nothing is said before something was learnt."""
    unfitted = kind()

    with pytest.raises(ModelError, match="not fitted"):
        unfitted.score([ATTACK])
    with pytest.raises(ModelError, match="not fitted"):
        unfitted.ablate(ATTACK, np.zeros((1, 64), bool))
    with pytest.raises(ModelError, match="not fitted"):
        unfitted.to_arrays()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_nothing_to_learn_from(kind):
    """No windows make no model."""
    with pytest.raises(ModelError, match="to learn from"):
        kind().fit([])


def test_round_trip(detector):
    """Through plain arrays and back, it says the same of everything."""
    arrays = detector.to_arrays()
    again = type(detector).from_arrays(arrays)
    asked = [*NORMAL, ATTACK, SHORT, EMPTY]

    assert not any(a.dtype.hasobject for a in arrays.values())
    assert detector.score(asked).tolist() == again.score(asked).tolist()
    assert again.to_arrays().keys() == arrays.keys()
    assert all(np.array_equal(again.to_arrays()[name], a) for name, a in arrays.items())


def test_missing_array(detector):
    """Every array is needed, and is missed by name or as a whole."""
    arrays = detector.to_arrays()
    for name in arrays:
        with pytest.raises(ModelError):
            type(detector).from_arrays({k: v for k, v in arrays.items() if k != name})


def test_wrong_arrays(detector):
    """An array of another type, or cut short, is refused."""
    arrays = detector.to_arrays()
    for name, right in arrays.items():
        for wrong in (right.astype("S8"), right[:-1], right[None]):
            with pytest.raises(ModelError):
                type(detector).from_arrays({**arrays, name: wrong})


def test_batch_is_one_by_one(detector):
    """A score does not depend on the company."""
    asked = [*NORMAL[::10], ATTACK, SHORT, EMPTY]

    assert [float(detector.score([w])[0]) for w in asked] == detector.score(asked).tolist()


def test_empty_batch(detector):
    """No windows, no scores."""
    assert detector.score([]).shape == (0,)


def test_empty_window(detector):
    """A window of nothing has a score, and it is nothing special."""
    assert float(detector.score([EMPTY])[0]) <= float(detector.score([ATTACK])[0])
    assert detector.ablate(EMPTY, np.zeros((2, 0), bool)).tolist() == [float(detector.score([EMPTY])[0])] * 2


def test_short_window(detector):
    """Three new calls weigh less than sixty-four."""
    short, long = detector.score([make_window(list(ATTACK.tokens[:3])), ATTACK])

    assert short < long


@pytest.mark.parametrize("window", [NORMAL[0], ATTACK, SHORT], ids=["normal", "attack", "short"])
def test_ablate_nothing(detector, window):
    """Taking nothing out changes nothing, bit for bit."""
    removed = np.zeros((3, len(window.tokens)), bool)

    assert [float(detector.score([window])[0])] * 3 == detector.ablate(window, removed).tolist()


def test_ablate_shape(detector):
    """One score for each row; none for none."""
    removed = np.tri(5, 64, dtype=bool)

    assert detector.ablate(ATTACK, removed).shape == (5,)
    assert detector.ablate(ATTACK, removed[:0]).shape == (0,)


def test_ablate_counts(detector):
    """Taking out what training never saw, from a window that is otherwise normal, makes it less unusual."""
    tokens = list(NORMAL[0].tokens)
    tokens[20:24] = [310, 101, 310, 101]
    window = make_window(tokens)
    removed = np.zeros((2, 64), bool)
    removed[1, 20:29] = True
    whole, without = detector.ablate(window, removed)

    assert without < whole


def test_every_token(detector):
    """Tokens of another ABI, of hooks and invalid ones are unusual, not errors."""
    odd = make_window([0x402, 0xFFF, 0x801, 0xC01] * 16)

    assert np.isfinite(detector.score([odd])).all()
    assert detector.score([odd])[0] > np.median(detector.score(NORMAL))


@pytest.mark.parametrize("token", [0x1000, -1, 1 << 40])
def test_no_token(detector, token):
    """What can't be a token is refused."""
    with pytest.raises(ModelError, match="is no system call token"):
        detector.score([make_window([0, token])])
