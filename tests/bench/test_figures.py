# SPDX-License-Identifier: Apache-2.0
"""Ratios are of the same round, medians with quartiles, and what wasn't measured is said to be none."""

import pytest
from figures import Run, Spread, calibrate, spread, summary

SIDES = ("nothing", "empty-probe", "monitor")


def run(side, number, each, *, workload="getppid", operations=10, cpu=None, settled=True):
    return Run(side, workload, number, operations, each * operations, cpu, settled)


# A machine that gets slower: every side does, in the same round.
SLOWING = [
    run(side, number, each * slow)
    for number, slow in ((1, 1), (2, 2), (3, 4))
    for side, each in (("nothing", 100), ("empty-probe", 150), ("monitor", 200))
]


def of(entries, side, workload="getppid"):
    (found,) = (e for e in entries if (e["side"], e["workload"]) == (side, workload))
    return found


def test_ratios_are_of_the_same_round():
    """A machine that becomes slower meanwhile changes times, not ratios."""
    entry = of(summary(SLOWING, SIDES, ["getppid"]), "monitor")

    assert entry["ns"] == {"median": 400, "q1": 300, "q3": 600}
    assert entry["ratio_to_nothing"] == {"median": 2, "q1": 2, "q3": 2}
    assert entry["ratio_to_empty_probe"]["median"] == pytest.approx(200 / 150)


def test_added():
    """What a side adds to a system call, and how many times that is what the empty probe adds."""
    entry = of(summary(SLOWING, SIDES, ["getppid"]), "monitor")

    assert entry["added_ns"]["median"] == 200
    assert entry["ratio_of_added_to_empty_probe"] == 2


def test_only_rounds_that_both_have():
    """A round in which the other side failed has no ratio; its time counts all the same."""
    runs = [one for one in SLOWING if (one.side, one.round) != ("nothing", 3)]
    entry = of(summary(runs, SIDES, ["getppid"]), "monitor")

    assert entry["runs"] == 3
    assert entry["added_ns"] == {"median": 150, "q1": 125, "q3": 175}


@pytest.mark.parametrize("lacking", ["nothing", "empty-probe"])
def test_without_a_base(lacking):
    """No ratio rather than one to something else."""
    entry = of(
        summary([one for one in SLOWING if one.side != lacking], SIDES, ["getppid"]),
        "monitor",
    )

    assert entry[f"ratio_to_{lacking.replace('-', '_')}"] is None
    assert entry["ratio_of_added_to_empty_probe"] is None


def test_a_probe_that_costs_nothing():
    """Noise larger than what the empty probe costs: no ratio of what is added."""
    runs = [run("nothing", 1, 100), run("empty-probe", 1, 90), run("monitor", 1, 120)]

    assert of(summary(runs, SIDES, ["getppid"]), "monitor")["ratio_of_added_to_empty_probe"] is None


def test_a_side_that_adds_nothing():
    """Nor if the side's own addition is below zero."""
    runs = [run("nothing", 1, 100), run("empty-probe", 1, 150), run("monitor", 1, 90)]

    assert of(summary(runs, SIDES, ["getppid"]), "monitor")["ratio_of_added_to_empty_probe"] is None


def test_servers():
    """Throughput is told for servers alone, as a share of what is served with nobody watching."""
    runs = [
        run(side, 1, each, workload=workload)
        for workload in ("redis", "files")
        for side, each in (("nothing", 100), ("monitor", 125))
    ]
    entries = summary(runs, SIDES, ["redis", "files"], servers=["redis"])

    assert of(entries, "monitor", "redis")["throughput_to_nothing"]["median"] == 0.8
    assert of(entries, "monitor", "redis")["per_second"] == 8e6
    assert "throughput_to_nothing" not in of(entries, "monitor", "files")


def test_watcher_cpu():
    """CPU of the watching processes: by operation, and by second of the workload; none where there are no processes."""
    runs = [run("nothing", 1, 1e8), run("monitor", 1, 1e8, cpu=0.5), run("monitor", 2, 1e8, settled=False)]
    entries = summary(runs, SIDES, ["getppid"])

    assert of(entries, "nothing")["watcher_cpu_ns"] is None
    assert of(entries, "monitor")["watcher_cpu_ns"] == 5e7
    assert of(entries, "monitor")["watcher_cores"] == 0.5
    assert of(entries, "monitor")["unsettled"] == 1


def test_order():
    """Workloads, and in each the sides, in the order given; what wasn't measured isn't there."""
    entries = summary(SLOWING, ("monitor", "nothing", "strace"), ["exec", "getppid"])

    assert [(e["workload"], e["side"]) for e in entries] == [("getppid", "monitor"), ("getppid", "nothing")]


def test_spread():
    """Inclusive quartiles: of two values, a quarter of the way in."""
    assert spread([1, 5]) == Spread(3, 2, 4)


@pytest.mark.parametrize(
    ("each", "first", "floor", "cap", "expected"),
    [
        (1_000, 100, 10, 10**9, 400_000),
        (1_000, 100, 10, 50_000, 50_000),
        (10**8, 100, 10, 10**9, 10),
        (10**6, 400, 10, 10**9, 400),
        (0, 100, 10, 1_000, 1_000),
    ],
    ids=["grows", "cap", "floor", "at once", "too fast to time"],
)
def test_calibrate(each, first, floor, cap, expected):
    """As many operations as take 0.4 s, within bounds."""
    assert calibrate(lambda n: each * n, first, floor, cap, 0.4) == expected


def test_calibrate_ends():
    """A clock that runs wild ends at the bound, and isn't asked for ever."""
    asked = []

    def wild(operations):
        asked.append(operations)
        return 0.0

    assert calibrate(wild, 1, 1, 10**6, 0.4) == 10**6
    assert len(asked) < 10
