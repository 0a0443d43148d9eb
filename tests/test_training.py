# SPDX-License-Identifier: Apache-2.0
"""From windows to a model and a promise."""

import random
from dataclasses import replace

import numpy as np
import pytest
from small_host import ATTACK, CRON_SHELL, NGINX, SECOND, make_window, make_windows

from ksentinel.detectors.kerneltable import follow
from ksentinel.errors import ModelError
from ksentinel.event import Origin
from ksentinel.level import Level
from ksentinel.training import CALIBRATE, FIT, GAP, TEST, poisson_interval, split, train

WINDOWS = make_windows(250, processes=50)


def secret():
    """Return what gives secret bytes, the same ones each time."""
    return random.Random(0).randbytes


@pytest.fixture(scope="module")
def trained():
    return train(WINDOWS, secret=secret())


def test_no_process_on_two_sides():
    """All windows of one process are in one part."""
    part, _ = split(WINDOWS, seed=0)
    sides = {}
    for window, side in zip(WINDOWS, part.tolist(), strict=True):
        sides.setdefault(window.process.key, set()).add(side)

    assert all(len(side) == 1 for side in sides.values())
    assert GAP not in set(part.tolist())


def test_shares():
    """About 60, 20 and 20 % of each executable."""
    part, executables = split(WINDOWS, seed=0)

    assert np.bincount(part, minlength=3) / len(part) == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
    for exe in executables:
        total = exe.fit + exe.calibrate + exe.test
        assert exe.fit / total == pytest.approx(0.6, abs=0.1)
        assert not exe.cut_in_time


def test_other_seed_other_split():
    """The seed decides, and nothing else does."""
    first, second, again = (split(WINDOWS, seed)[0].tolist() for seed in (0, 1, 0))

    assert first == again != second


def test_one_long_process():
    """Its time line is cut into three blocks, in order, and nothing overlaps the next block."""
    windows = [
        make_window([1, 2, 3] * 20, NGINX, pid=7, tid=7 + i % 3, at=i * SECOND // 4) for i in range(300)
    ]
    part, (facts,) = split(windows, seed=0)
    spans = [
        (min(w.first_ns for w in block), max(w.last_ns for w in block))
        for block in (
            [w for w, p in zip(windows, part, strict=True) if p == s] for s in (FIT, CALIBRATE, TEST)
        )
    ]

    assert facts.cut_in_time
    assert (facts.fit, facts.calibrate, facts.test, facts.gap) == tuple(np.bincount(part, minlength=4))
    assert spans[0][1] < spans[1][0] < spans[1][1] < spans[2][0]
    assert 0 < facts.gap < 30
    assert [facts.fit, facts.calibrate, facts.test] == pytest.approx([180, 60, 60], abs=12)


def test_dominating_process():
    """A daemon that makes up most of its executable is cut; its short-lived siblings stay whole."""
    windows = [make_window([1, 2], pid=7, at=i * SECOND) for i in range(100)]
    windows += [make_window([1, 2], pid=8 + i // 2, at=i * SECOND) for i in range(40)]
    part, (facts,) = split(windows, seed=0)

    assert facts.cut_in_time
    assert {FIT, CALIBRATE, TEST} <= set(part[:100].tolist())
    assert all(part[100 + i] == part[101 + i] for i in range(0, 40, 2))


def test_rare_executables():
    """Of executables seen once, about two in five are left to calibrate and to test."""
    windows = [make_window([1, 2], (f"/bin/{i}", CRON_SHELL[1]), pid=i) for i in range(500)]
    part, _ = split(windows, seed=0)

    assert np.bincount(part) / 500 == pytest.approx([0.6, 0.2, 0.2], abs=0.06)


def test_exec_keeps_together():
    """A process that executed another program stays on one side."""
    windows = []
    for pid in range(200):
        windows += [make_window([1], CRON_SHELL, pid=pid), make_window([2, 3], NGINX, pid=pid)]
    part, _ = split(windows, seed=0)

    assert part[::2].tolist() == part[1::2].tolist()


def test_deterministic(trained):
    """Same windows and same secret: same model, same facts."""
    again = train(WINDOWS, secret=secret())

    assert trained.facts == again.facts
    assert trained.model.assess(WINDOWS[:50]) == again.model.assess(WINDOWS[:50])
    assert trained.model.kernel.images(1, 2) == again.model.kernel.images(1, 2)


def test_model(trained):
    """An attack is seen; the promise on normal windows is kept."""
    (attack,) = trained.model.assess([ATTACK])
    low, medium = trained.facts.alarms

    assert attack.level is Level.MEDIUM
    assert (low.level, medium.level) == ("low", "medium")
    assert medium.windows <= low.windows <= 5


def test_kernel(trained):
    """The part in the kernel knows the same profiles; its facts are what it makes of the test part."""
    part, _ = split(WINDOWS, seed=0)
    test = [w for w, p in zip(WINDOWS, part, strict=True) if p == TEST]
    table, gate = trained.model.kernel, trained.facts.gate
    flagged = [bool(one.over(table.rows[one.row])) for one in follow(table, test)]
    unusual = [a.level is not Level.NONE for a in trained.model.assess(test)]

    assert {name for name in trained.model.profiles.roots if name[0]} == set(table.names)
    assert (gate.profiles, gate.evicted) == (len(table.rows) - 2, 0)
    assert (gate.flagged, gate.alarms) == (sum(flagged), sum(unusual))
    assert gate.missed == sum(u and not f for u, f in zip(unusual, flagged, strict=True))
    assert gate.flagged <= 0.1 * len(test)
    assert f"the gate lets {gate.flagged} of {len(test)} normal test windows through" in "\n".join(
        trained.report
    )


def test_gate_share():
    """A wider gate lets more of what is normal through."""
    few, many = (
        train(WINDOWS, secret=secret(), gate_share=share).facts.gate.flagged for share in (0.01, 0.4)
    )

    assert few < many


def test_secrets_differ():
    """Unless told otherwise, nobody else's table has the same seeds."""
    one, two = (train(WINDOWS[::5]).model.kernel for _ in range(2))

    assert not {row.seed0 for row in one.rows} & {row.seed0 for row in two.rows}


def test_no_kernel():
    """What audit saw is not what the kernel scores: such a model has no part there."""
    trained = train([replace(w, origin=Origin.AUDIT) for w in WINDOWS[::5]])

    assert (trained.model.kernel, trained.facts.gate) == (None, None)
    assert not any("the gate" in line for line in trained.report)


def test_facts(trained):
    """Everything is accounted for."""
    facts = trained.facts

    assert len(WINDOWS) == facts.fit + facts.calibrate + facts.test + facts.gap
    assert 64 * len(WINDOWS) == facts.tokens
    assert 0 < facts.strangers <= facts.calibrate
    assert (facts.processes, facts.threads) == (200, 200)
    assert sum(e.test for e in facts.executables) == facts.test
    assert facts.duration_s == 249.5


def test_hours(trained):
    """Thread-hours are the lives of the test part's threads; host-hours its share of the recording."""
    facts = trained.facts
    # Each process has five windows, 50 s apart, of half a second: it lives 200.5 s.
    assert facts.thread_hours == pytest.approx(facts.test / 5 * 200.5 / 3600)
    assert facts.host_hours == pytest.approx(249.5 / 3600 * facts.test / len(WINDOWS))
    low = facts.alarms[0]
    assert low.per_thread_hour == poisson_interval(low.windows, facts.thread_hours)
    assert low.per_host_hour == poisson_interval(low.windows, facts.host_hours)


def test_no_time():
    """Windows without times give a model, and no rate."""
    facts = train([replace(w, first_ns=0, last_ns=0) for w in WINDOWS]).facts

    assert (
        facts.thread_hours,
        facts.alarms[0].per_thread_hour,
        facts.alarms[0].per_host_hour,
    ) == (0.0, None, None)


def test_contradiction_is_said(trained):
    """Where normal test windows reach a level far more often than its threshold says, the report warns."""
    alarms = tuple(replace(a, windows=trained.facts.test // 5) for a in trained.facts.alarms)
    bad = replace(trained, facts=replace(trained.facts, alarms=alarms))
    good = replace(
        trained,
        facts=replace(trained.facts, alarms=tuple(replace(a, windows=0) for a in trained.facts.alarms)),
    )

    assert sum("NOT CALIBRATED" in line for line in bad.report) == len(alarms)
    assert not any("NOT CALIBRATED" in line for line in good.report)


def test_report(trained):
    """What a person should know stands there."""
    text = "\n".join(trained.report)

    for part in (
        "200 threads",
        "64000 system calls",
        "distinct n-grams",
        "/bin/sh",
        "low: p-value of 0.001",
        "hour",
    ):
        assert part in text


def test_progress():
    """It is told in order, from nothing to everything."""
    told = []
    train(WINDOWS, progress=lambda doing, share: told.append((doing, share)))
    shares = [share for _, share in told]

    assert told[-1] == ("done", 1.0)
    assert shares == sorted(shares)


def test_strange_name():
    """An executable whose name is no UTF-8 is shown with backslashes, and trained on."""
    windows = [replace(w, process=replace(w.process, exe="/bin/\udcff")) for w in WINDOWS]

    assert [e.exe for e in train(windows).facts.executables] == ["/bin/\\xff"]


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        (WINDOWS[:199], "199 windows are too few .*record longer"),
        ([replace(w, tokens=()) for w in WINDOWS], "0 windows are too few"),
        ([make_window([1, 2], (f"/{i % 2}", ""), pid=i % 2) for i in range(25)] * 8, "too few"),
        ([WINDOWS[0], *[replace(w, origin=Origin.AUDIT) for w in WINDOWS]], "several collectors: audit, bpf"),
    ],
)
def test_too_little(windows, match):
    """What can't make a model says what to do."""
    with pytest.raises(ModelError, match=match):
        train(iter(windows))


@pytest.mark.parametrize(
    ("events", "expected"), [(0, (0.0, 3.6889)), (1, (0.0253, 5.5716)), (10, (4.7954, 18.3904))]
)
def test_poisson_interval(events, expected):
    """As in the published tables (Garwood, 1936); in half the time, the rate is twice as high."""
    assert expected == pytest.approx(poisson_interval(events, 1.0), abs=1e-4)
    assert [2 * x for x in expected] == pytest.approx(poisson_interval(events, 0.5), abs=1e-3)


def test_no_exposure():
    """Nothing watched, nothing known."""
    assert poisson_interval(3, 0.0) is None
