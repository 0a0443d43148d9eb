# SPDX-License-Identifier: Apache-2.0
"""What guards.py has counted, and what it is measured by: ratios of whole operations."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EMPTY = "collector, empty programs"
"""What guards are compared with: the collector beside an LSM program at each of these hooks that does nothing."""
BARE = "empty programs"
"""The same without a collector."""

Counts = Mapping[str, Mapping[str, int]]
"""Instructions by side and operation."""

OPERATIONS = {
    "open": "open, close",
    "exec": "vfork, exec, wait",
    "tcp": "connect, refused",
    "udp": "connect a datagram socket",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What one side may cost at most, times what another one does."""

    side: str
    of: str
    most: float
    operations: tuple[str, ...] = tuple(OPERATIONS)


TARGETS = (
    Target("10 entries", EMPTY, 1.1),
    Target("10 entries, 10,000 files", "10 entries", 1.1),
    Target("10 entries, 2 rules of 10,000 names", "10 entries, 2 rules of 10 names", 1.1),
    # Refused, an execution or a connection ends where it has hardly begun: there is nothing to compare.
    Target("permissive, spoken", "enforced, spoken", 1.2, ("open", "udp")),
)


def counted(said: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """
    Return the smallest count of each side and operation: what comes on top is interrupts.

    Examples
    --------
    >>> counted([{"side": "nothing", "operation": "open", "counts": [9, 7, 8]}, {"done": True}])
    {'nothing': {'open': 7}}
    """
    found: dict[str, dict[str, int]] = {}
    for one in said:
        if "counts" in one:
            found.setdefault(one["side"], {})[one["operation"]] = min(one["counts"])
    return found


def cells(counts: Counts) -> Iterator[tuple[str, list[str]]]:
    """Yield each side, and of each operation how many times the empty programs' count it is and what it adds to that."""
    for side, found in counts.items():
        empty = counts[BARE if side in {"nothing", BARE} else EMPTY]
        yield side, [f"{found[one] / empty[one]:.2f} ({found[one] - empty[one]:+,})" for one in empty]


def judged(counts: Counts) -> Iterator[tuple[Target, list[str]]]:
    """Yield each target, and of each operation the ratio; one that misses it is marked."""
    for target in TARGETS:
        row = []
        for one, found in counts[target.of].items():
            ratio = counts[target.side][one] / found
            told = f"{ratio:.2f}{'' if ratio <= target.most else ' (missed)'}"
            row.append(told if one in target.operations else "-")
        yield target, row


def lines(counts: Counts) -> list[str]:
    """Return the tables for a terminal."""
    operations = list(counts[EMPTY])
    told = ["times the empty programs' instructions, and what it adds to them:", ""]
    told.append(f"{'side':38}" + "".join(f"{one:>18}" for one in operations))
    told += [f"{side:38}" + "".join(f"{cell:>18}" for cell in row) for side, row in cells(counts)]
    told += [
        "",
        "instructions with empty programs: "
        + ", ".join(f"{one} {counts[EMPTY][one]:,}" for one in operations),
        "",
    ]
    for target, row in judged(counts):
        told.append(f"{target.side} / {target.of}, at most {target.most}")
        told.append(f"{'':38}" + "".join(f"{cell:>18}" for cell in row))
    return told
