# SPDX-License-Identifier: Apache-2.0
"""From runs to figures: medians, quartiles, and ratios of what was measured in the same round."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOTHING, EMPTY = "nothing", "empty-probe"
CHEAPEST_CALL = "getppid"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload in front of a side."""

    side: str
    workload: str
    round: int
    operations: int
    ns: float
    """How long all of them took."""
    watcher_cpu_s: float | None = None
    """What the watching processes used meanwhile, and afterwards until they had caught up; None: there are none."""
    settled: bool = True

    @property
    def each(self) -> float:
        """Nanoseconds an operation."""
        return self.ns / self.operations


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, and the quartiles around it."""

    median: float
    q1: float
    q3: float

    def __contains__(self, value: float) -> bool:
        return self.q1 <= value <= self.q3


def spread(values: Iterable[float]) -> Spread:
    """
    Return median and quartiles.

    Examples
    --------
    >>> spread([5, 1, 3, 2, 4])
    Spread(median=3.0, q1=2.0, q3=4.0)
    >>> spread([7])
    Spread(median=7.0, q1=7.0, q3=7.0)
    """
    found = sorted(map(float, values))
    if len(found) == 1:
        return Spread(found[0], found[0], found[0])
    q1, median, q3 = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(median, q1, q3)


def paired(
    runs: Mapping[int, Run], base: Mapping[int, Run], join: Callable[[float, float], float]
) -> Spread | None:
    """
    Return the spread of *join* (ours, theirs) over the rounds that both have; None if there are none.

    By rounds, because a machine has slow minutes: both sides of a ratio have had the same ones.
    """
    values = [join(run.each, base[number].each) for number, run in runs.items() if number in base]
    return spread(values) if values else None


def summary(
    runs: Iterable[Run], sides: Sequence[str], workloads: Sequence[str], servers: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return one entry for each workload and side that was measured, in that order."""
    table: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        table.setdefault((run.workload, run.side), {})[run.round] = run
    of_servers = set(servers)
    entries = []
    for workload in workloads:
        nothing = table.get((workload, NOTHING), {})
        empty = table.get((workload, EMPTY), {})
        probe = paired(empty, nothing, _difference)
        for side in sides:
            found = table.get((workload, side))
            if not found:
                continue
            entry = _entry(found, nothing, empty)
            if workload == CHEAPEST_CALL:
                added = paired(found, nothing, _difference)
                entry["added_ns"] = _plain(added)
                entry["ratio_of_added_to_empty_probe"] = (
                    added.median / probe.median
                    if added and probe and probe.q1 > 0 and added.q1 > 0
                    else None  # a ratio of noise
                )
            if workload in of_servers:
                entry["throughput_to_nothing"] = _plain(paired(found, nothing, lambda a, b: b / a))
            entries.append({"workload": workload, "side": side} | entry)
    return entries


def _entry(found: Mapping[int, Run], nothing: Mapping[int, Run], empty: Mapping[int, Run]) -> dict[str, Any]:
    each = spread(run.each for run in found.values())
    used = [
        (1e9 * run.watcher_cpu_s / run.operations, 1e9 * run.watcher_cpu_s / run.ns)
        for run in found.values()
        if run.watcher_cpu_s is not None
    ]
    return {
        "runs": len(found),
        "operations": statistics.median_low(run.operations for run in found.values()),
        "ns": _plain(each),
        "per_second": 1e9 / each.median,
        "ratio_to_nothing": _plain(paired(found, nothing, _ratio)),
        "ratio_to_empty_probe": _plain(paired(found, empty, _ratio)),
        "watcher_cpu_ns": statistics.median(ns for ns, _ in used) if used else None,
        "watcher_cores": statistics.median(cores for _, cores in used) if used else None,
        "unsettled": sum(not run.settled for run in found.values()),
    }


def calibrate(run: Callable[[int], float], first: int, floor: int, cap: int, seconds: float) -> int:
    """
    Return how many operations take about *seconds*.

    Parameters
    ----------
    run
        Does so many operations, and returns how many nanoseconds they took.
    first, floor, cap
        How many to begin with; the fewest and the most.

    Examples
    --------
    >>> calibrate(lambda n: 1000.0 * n, first=100, floor=10, cap=10**9, seconds=0.5)
    500000
    """
    operations = max(floor, min(cap, first))
    while True:
        took = run(operations) * 1e-9
        fitting = round(operations * seconds / max(took, 1e-9))
        # From too short a run nothing can be concluded but that more are needed.
        wanted = max(floor, min(cap, fitting, operations * 20))
        if wanted <= operations * 2 or wanted == operations:
            return wanted
        operations = wanted


def raw(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return runs as JSON takes them."""
    return [asdict(run) for run in runs]


def _plain(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs


def _difference(ours: float, theirs: float) -> float:
    return ours - theirs
