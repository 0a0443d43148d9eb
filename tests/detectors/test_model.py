# SPDX-License-Identifier: Apache-2.0
"""The model: members, joined."""

from dataclasses import replace

import numpy as np
import pytest
from small_host import ATTACK, NGINX, make_window, make_windows

from ksentinel.detectors.calibration import Calibration
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import HOST, Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.errors import ModelError
from ksentinel.event import Origin
from ksentinel.level import Level
from ksentinel.window import LENGTH

FIT, CALIBRATE, TEST = (make_windows(n, seed=seed) for seed, n in enumerate((100, 120, 50)))


@pytest.fixture(scope="module")
def model():
    members = [NGramModel().fit(FIT), Stide().fit(FIT)]
    profiles = Profiles.among(w.profile for w in FIT)
    names = [profiles.find(w.profile)[0] for w in CALIBRATE]
    return Model(members, {m.name: Calibration().fit(m.score(CALIBRATE), names) for m in members}, profiles)


def test_one_answer_for_each(model):
    """In their order, each with all members."""
    anomalies = model.assess([*TEST, ATTACK])

    assert [*TEST, ATTACK] == [a.window for a in anomalies]
    assert {("ngram", "stide")} == {tuple(m.name for m in a.members) for a in anomalies}
    assert model.assess([]) == []


def test_attack(model):
    """An attack is unusual to the highest level a model gives; normal windows are not."""
    *normal, attack = model.assess([*TEST, ATTACK])

    assert Level.MEDIUM is attack.level
    assert attack.p_value < 1e-5
    assert (attack.profile, attack.unseen) == (NGINX, False)
    assert min(attack.members, key=lambda m: m.p_value).name == attack.decided_by
    assert sum(a.level is not Level.NONE for a in normal) <= 2


def test_batch_is_one_by_one(model):
    """An answer does not depend on the company."""
    asked = [*TEST[:20], ATTACK]

    assert model.assess(asked) == [model.assess([window])[0] for window in asked]


def test_trained_on(model):
    """An anomaly says how many windows of its profile training saw; what isn't unusual needn't."""
    normal, attack = model.assess([TEST[0], ATTACK])
    tokens = sum(len(w.tokens) for w in FIT if w.profile == NGINX)

    assert (normal.level, normal.trained_on) == (Level.NONE, 0)
    assert attack.trained_on == -(-tokens // LENGTH)
    assert model.trained_on(HOST) > attack.trained_on


def test_trained_on_is_not_told():
    """Where no member counts, nobody knows."""
    calibration = Calibration().fit(np.arange(30.0), [HOST] * 30)

    assert Model([Stide()], {"stide": calibration}, Profiles({})).trained_on(NGINX) == 0


@pytest.mark.parametrize("changed", [True, False])
def test_changed(changed):
    """A program that was changed since training is marked on each of its anomalies."""
    calibration = Calibration().fit(np.arange(30.0), [HOST] * 30)
    model = Model([NGramModel().fit(FIT)], {"ngram": calibration}, Profiles.among(w.profile for w in FIT))
    model.recognise(NGINX[0], NGINX[0], "note", changed=changed)

    assert [changed] == [a.changed for a in model.assess([ATTACK])]


def test_unseen(model):
    """An executable that training never saw is compared host-wide, and that is said."""
    (found,) = model.assess([make_window([257, 0, 3] * 20, ("/tmp/x", "/usr/sbin/nginx"))])

    assert (found.profile, found.unseen) == (HOST, True)


@pytest.mark.parametrize(
    ("p_value", "expected"),
    [(0.5, Level.NONE), (1e-3, Level.LOW), (2e-5, Level.LOW), (1e-5, Level.MEDIUM), (1e-12, Level.MEDIUM)],
)
def test_level(model, p_value, expected):
    """The table of levels."""
    assert expected is model.level(p_value)


@pytest.mark.parametrize(
    ("window", "match"),
    [
        (replace(ATTACK, origin=Origin.AUDIT), "origin bpf, this one is of audit"),
        (replace(ATTACK, tokens=ATTACK.tokens * 2), "128 system calls"),
        (replace(ATTACK, tokens=(0x1000,)), "0x1000 is no system call token"),
    ],
)
def test_foreign_window(model, window, match):
    """A window that the model can't know is refused."""
    with pytest.raises(ModelError, match=match):
        model.assess([window])


def test_member(model):
    """By name; there is no other."""
    assert model.member("stide") is model.members["stide"]
    with pytest.raises(ModelError, match="only ngram, stide"):
        model.member("lstm")


@pytest.mark.parametrize(
    "thresholds",
    [{Level.LOW: 1e-5, Level.MEDIUM: 1e-3}, {Level.LOW: 0.0}, {Level.LOW: 2.0}],
)
def test_thresholds(thresholds):
    """They are p-values, and get smaller."""
    calibration = Calibration().fit(np.arange(30.0), [HOST] * 30)

    with pytest.raises(ModelError, match="thresholds"):
        Model([NGramModel()], {"ngram": calibration}, Profiles({}), thresholds=thresholds)


def test_calibration_for_each():
    """A member without calibration makes no model."""
    with pytest.raises(ModelError, match="calibration"):
        Model([NGramModel()], {}, Profiles({}))
