# SPDX-License-Identifier: Apache-2.0
"""From scores to p-values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.detectors.calibration import LEAST_OWN, SMALLEST, Calibration, Pool, combine
from ksentinel.detectors.profiles import HOST
from ksentinel.errors import ModelError

SH = ("/bin/sh", "")
SCORES = st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0]), min_size=20, max_size=150).map(np.array)


def p_values(calibration, scores, profile=SH):
    return calibration.p_values(np.array(scores), [profile] * len(scores))


@given(SCORES, SCORES)
def test_monotone_and_positive(learnt, asked):
    """A higher score never has a larger p-value; none is 0, none is more than 1."""
    p = p_values(
        Calibration().fit(learnt, [SH] * len(learnt)), np.sort(np.concatenate([learnt, asked, [1e9]]))
    )

    assert (np.diff(p) <= 1e-15).all()
    assert ((p >= SMALLEST) & (p <= 1)).all()


def test_counts_below_the_tail():
    """In the bulk it is the conformal count."""
    p = p_values(Calibration().fit(np.arange(999.0), [SH] * 999), [0.0, 500.0, 900.0])

    assert p.tolist() == [1.0, 0.5, 0.1]


def test_continuous_at_the_join():
    """The tail takes off where the count stands just above its start."""
    pool = Pool.fit(np.random.default_rng(0).exponential(size=2000))
    below, above = pool.p_values(np.array([pool.start, np.nextafter(pool.start, np.inf)]))

    assert below - above == pytest.approx(1 / 2001)
    assert above == pytest.approx(101 / 2001)


@pytest.mark.parametrize(
    ("draw", "millionth"),
    [
        (lambda rng: rng.exponential(size=10000), np.log(1e6)),
        (lambda rng: rng.pareto(3, 10000), 1e6 ** (1 / 3) - 1),
    ],
    ids=["exponential", "pareto"],
)
def test_extrapolates(draw, millionth):
    """A tail that is known is met within a factor of three, a hundred times beyond the calibration windows."""
    asked = np.array([millionth])
    found = [Pool.fit(draw(np.random.default_rng(seed))).p_values(asked)[0] for seed in range(9)]

    assert 1 / 3 < np.median(found) / 1e-6 < 3


def test_uniform_on_normal():
    """One fresh normal score in a hundred has p of a hundredth or less."""
    rng = np.random.default_rng(3)
    calibration = Calibration().fit(rng.normal(size=5000), [SH] * 5000)
    p = p_values(calibration, rng.normal(size=50000))

    assert (p <= 0.01).mean() == pytest.approx(0.01, rel=0.3)
    assert (p <= 0.1).mean() == pytest.approx(0.1, rel=0.1)
    assert (p <= 0.0001).sum() < 20


def test_tail_has_no_end():
    """Scores that end (uniform ones) don't make a higher one impossible."""
    pool = Pool.fit(np.linspace(0, 1, 1000))

    assert pool.shape == 0
    assert pool.p_values(np.array([1.1]))[0] > 1e-4


@pytest.mark.parametrize(
    "learnt", [np.zeros(200), np.repeat([0.0, 1.0], [197, 3])], ids=["equal", "three above"]
)
def test_nothing_to_fit(learnt):
    """Where the tail is a few windows, the count is all there is to say."""
    p = p_values(Calibration().fit(learnt, [SH] * 200), [0.5, 2.0])

    assert [(1 + (learnt >= 0.5).sum()) / 201, 1 / 201] == p.tolist()


def test_profiles():
    """Own scores where there are enough, everyone's otherwise; strangers among strangers."""
    ls, cat = ("/bin/ls", ""), ("/bin/cat", "")
    scores = np.concatenate([np.zeros(LEAST_OWN), np.full(LEAST_OWN, 5.0), [9.0]])
    names = [SH] * LEAST_OWN + [ls] * LEAST_OWN + [cat]
    calibration = Calibration().fit(scores, names, strangers=np.full(LEAST_OWN, 20.0))
    found = calibration.p_values(np.full(4, 3.0), [SH, ls, cat, HOST])

    assert found.tolist() == [1 / 101, 1.0, 102 / 202, 1.0]


def test_round_trip():
    """Through arrays and back, it says the same."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500)
    calibration = Calibration().fit(scores, [SH] * 300 + [("/bin/ls", "")] * 200, rng.normal(size=100))
    again = Calibration.from_arrays(calibration.to_arrays())
    names = [SH, ("/bin/ls", ""), ("/new", ""), HOST] * 5
    asked = np.linspace(-3, 9, 20)

    assert calibration.p_values(asked, names).tolist() == again.p_values(asked, names).tolist()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("scores", lambda a: a[::-1]),
        ("scores", lambda a: a[1:]),
        ("scores", lambda a: a * np.nan),
        ("sizes", lambda a: a * 0),
        ("tails", lambda a: -a),
        ("tails", lambda a: a[0]),
    ],
)
def test_damaged(name, change):
    """Arrays that make no calibration are refused."""
    arrays = Calibration().fit(np.random.default_rng(0).exponential(size=300), [SH] * 300).to_arrays()

    with pytest.raises(ModelError):
        Calibration.from_arrays({**arrays, name: change(arrays[name])})


@pytest.mark.parametrize("scores", [np.zeros(19), np.full(30, np.nan), np.full(30, np.inf)])
def test_nothing_to_calibrate_on(scores):
    """Too few, or no numbers: an error, no guess."""
    with pytest.raises(ModelError):
        Calibration().fit(scores, [SH] * len(scores))


def test_unfitted():
    """Nothing is said before something was learnt."""
    with pytest.raises(ModelError, match="not fitted"):
        Calibration().p_values(np.zeros(1), [SH])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ((1e-6,), 1e-6),
        ((1e-6, 1e-6, 1e-6), 1e-6),
        ((1e-6, 0.5, 0.5), 3e-6),
        ((1e-6, 1.0, 1.0), 3e-6),
        ((1.0, 1.0), 0.5),
        ((1e-12, 1e-12), 1e-12),
    ],
)
def test_combine(p_values, expected):
    """Agreement changes nothing, one voice of d costs a factor of d, nobody has a veto."""
    found = combine({str(i): np.array([p]) for i, p in enumerate(p_values)})

    assert expected == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_combine_dependent(correlation):
    """However dependent the members are, a hundredth is about a hundredth."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=200000), rng.normal(size=(3, 200000))
    z = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    ranks = (z.argsort(axis=1).argsort(axis=1) + 1) / z.shape[1]
    combined = combine(dict(zip("abc", ranks, strict=True)))

    assert 0.5 < (combined <= 0.01).mean() / 0.01 < 1.5
