# SPDX-License-Identifier: Apache-2.0
"""Turns are taken in order, a side has to prove that it watched, and what is left out is said."""

from contextlib import contextmanager
from dataclasses import replace

import overhead
import pytest
from children import BenchError
from figures import Run
from overhead import QUICK, SIDES, WORKLOADS, Findings, Settings, left_out, measure, parse, turned
from watchers import Told, Watcher
from workloads import Workload

SETTINGS = Settings(runs=3, seconds=1e-6)


class Side(Watcher):
    """A side that sees so many of the calls, and may fail in one round."""

    def __init__(self, name, share=1.0, fails_in=None):
        self.name, self.share, self.fails_in = name, share, fails_in
        self.told, self.turns, self.active, self.seen = Told(), 0, False, 0

    @contextmanager
    def watching(self):
        """Count a turn."""
        self.turns += 1
        if self.turns - 1 == self.fails_in:
            raise BenchError("can't")
        self.active, self.seen = True, 0
        yield
        self.active = False
        self.told = Told(seen=int(self.seen * self.share))


class Load(Workload):
    """A workload that takes a nanosecond an operation, and may fail."""

    name, what, unit, first, floor, cap = "getppid", "-", "call", 100, 10, 10_000

    def __init__(self, fails=False):
        self.fails = fails

    def run(self, operations, watcher):
        """Be seen."""
        assert watcher.active
        if self.fails:
            raise BenchError("no")
        watcher.seen += operations
        return float(operations)

    def calls(self, operations):
        """One each."""
        return operations


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Nobody else watches."""
    monkeypatch.setattr(overhead, "attached", set)
    monkeypatch.setattr(overhead, "busy_share", lambda _: 0.0)


def measured(*sides, load=None, settings=SETTINGS):
    findings = Findings()
    measure(sides, [load or Load()], settings, findings)
    return findings


def test_first_round_is_dropped():
    """Each side once a round, the first round not counted."""
    findings = measured(Side("a"), Side("b"))

    assert [(run.round, run.side) for run in findings.runs] == [(1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert findings.runs[0] == Run("b", "getppid", 1, 1000, 1000.0)
    assert findings.failures == []


def test_a_side_that_was_blind():
    """Who hasn't seen what was done has no times."""
    findings = measured(Side("a"), Side("b", share=0.5))

    assert {run.side for run in findings.runs} == {"a"}
    assert [(f["what"], f["round"]) for f in findings.failures] == [("b", 0), ("b", 1), ("b", 2)]
    assert "of at least" in findings.failures[0]["reason"]


def test_a_side_that_fails_once():
    """Has the other rounds."""
    findings = measured(Side("a"), Side("b", fails_in=1))

    assert [run.round for run in findings.runs if run.side == "b"] == [2]
    assert findings.failures == [{"what": "b", "round": 1, "reason": "can't"}]


def test_a_workload_that_fails():
    """Is told, and not tried again: how many operations fit is not known."""
    findings = measured(Side("a"), load=Load(fails=True))

    assert findings.runs == []
    assert [(f["what"], f["round"]) for f in findings.failures] == [("a, getppid", 0)]


def test_others(monkeypatch):
    """Somebody else who watches is waited for, then told, once a round."""
    monkeypatch.setattr(overhead, "attached", lambda: {4_000_000})
    monkeypatch.setattr(overhead.time, "sleep", lambda _: None)
    findings = measured(Side("a"), Side("b"))

    assert findings.others == [f"round {number}: process 4000000" for number in range(3)]


def test_turned():
    """Every side is the first in some round."""
    sides = [Side(name) for name in "abc"]

    assert ["".join(side.name for side in turned(sides, n)) for n in range(4)] == ["abc", "bca", "cab", "abc"]


def test_left_out():
    """Nothing of a full run; of a smaller one what it lacks."""
    assert left_out(Settings()) == []
    assert left_out(replace(Settings(), sides=SIDES[:-1], runs=5)) == ["side strace", "6 of 11 rounds"]
    assert "workload build" in left_out(QUICK)


def test_options():
    """Sides keep their order and their base; the rest is as it was."""
    settings = parse(["--quick", "--sides", "strace,monitor", "--runs", "2"]).settings

    assert settings == replace(QUICK, runs=2, sides=("nothing", "empty-probe", "monitor", "strace"))
    assert parse([]).settings == Settings(sides=SIDES, workloads=WORKLOADS)


@pytest.mark.parametrize(
    "arguments",
    [["--runs", "1"], ["--sides", "falco"], ["--workloads", ""], ["--seconds", "0"], ["--seconds", "100"]],
    ids=" ".join,
)
def test_wrong_options(arguments, capsys):
    """Are refused with what there is."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)

    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
