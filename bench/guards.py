# SPDX-License-Identifier: Apache-2.0
"""
What does it cost that guards decide? Whole operations, in instructions, with nobody looking, empty programs, and guards.

    sudo .venv/bin/python bench/guards.py [--kernel 6.1] [--docs docs] [--json]

Runs in the virtual machine of tests/vm, whose clock counts instructions here, the kernel's and the program's: the same work comes
to the same number, whatever else this machine does. Instructions aren't time; ratios of them say what a guard adds. Needs root,
QEMU (make debs-vm) and clang.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import page
from children import BenchError
from tools import Tools

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from vm.kernel import prepare  # noqa: E402
from vm.machine import Job, Machine, Setup, environment, need_root  # noqa: E402

from ksentinel.errors import KsentinelError  # noqa: E402

SECONDS = 900.0
"""So long the machine may live."""

Counts = dict[str, dict[str, int]]
"""Instructions by side and operation."""


@dataclass(frozen=True, slots=True)
class Target:
    """What one side may cost, times what another one does."""

    side: str
    of: str
    most: float


TARGETS = (
    Target("10 entries", "collector, empty programs", 1.1),
    Target("10 entries, 10,000 files", "10 entries", 1.1),
    Target("10 entries, 2 rules of 10,000 names", "10 entries, 2 rules of 10 names", 1.1),
    Target("permissive, spoken", "enforced, spoken", 1.2),
)


def measure(series: str, build: Path) -> list[dict[str, Any]]:
    """Run the guest's side, and return what it says; raises BenchError if it doesn't come to its end."""
    tools = Tools(build)
    program = tools.compiled("guards.c", "-static")
    tools.compiled("tiny.c", "-static")
    empty = tools.compiled("guards.bpf.c", bpf=True)
    setup = Setup(prepare(series), cpus=1, counted=True)
    script = f"{ROOT}/bench/guarded.py {program} {empty}"
    variables = {"JOB": "script", "SCRIPT": script, **environment(setup, os.environ, columns=100)}
    variables["PYTHONPATH"] = str(ROOT)
    console = build / f"guards-{setup.kernel.version}.log"
    said: list[dict[str, Any]] = []
    begin = time.monotonic()
    with Machine(setup, Job(variables), console) as machine:
        try:
            for line in machine.lines(begin + SECONDS):
                if not line.strip():
                    continue
                said.append(json.loads(line))
                tell(said[-1], time.monotonic() - begin)
        except TimeoutError:
            raise BenchError(f"the machine was not through in {SECONDS:.0f} s") from None
        if not said or "done" not in said[-1]:
            raise BenchError(f"the machine ended too early; its console:\n{machine.last_words()}")
    return said


def tell(said: dict[str, Any], seconds: float) -> None:
    """Tell what is going on; results go to standard output."""
    if "counts" in said:
        print(f"{seconds:4.0f} s  {said['side']}: {said['operation']} {said['counts']}", file=sys.stderr)
    elif "failed" in said:
        print(said["failed"], file=sys.stderr)


def counted(said: Iterable[dict[str, Any]]) -> Counts:
    """Return the smallest count of each side and operation: what comes on top is interrupts."""
    found: Counts = {}
    for one in said:
        if "counts" in one:
            found.setdefault(one["side"], {})[one["operation"]] = min(one["counts"])
    return found


def lines(counts: Counts) -> list[str]:
    """Return the table."""
    operations = list(next(iter(counts.values())))
    empty = counts["collector, empty programs"]
    head = f"{'side':38}" + "".join(f"{one:>24}" for one in operations)
    told = [head, f"{'':38}" + "".join(f"{'count   added   ratio':>24}" for _ in operations)]
    for side, found in counts.items():
        cells = [
            f"{found[one]:>9,} {found[one] - empty[one]:>+7,} {found[one] / empty[one]:6.2f}" for one in operations
        ]
        told.append(f"{side:38}" + "".join(f"{cell:>24}" for cell in cells))
    told += ["", f"{'target':38}" + "".join(f"{one:>9}" for one in operations)]
    for target in TARGETS:
        ratios = [counts[target.side][one] / counts[target.of][one] for one in operations]
        cells = "".join(f"{one:8.2f}{' ' if one <= target.most else '!'}" for one in ratios)
        told.append(f"{target.side} / {target.of} <= {target.most}")
        told.append(f"{'':38}{cells}")
    return told


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="6.1", metavar="SERIES", help="Debian's, 6.1 or 6.12 (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print all that was counted")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; ends with 1 if it can't."""
    given = parse(arguments)
    try:
        need_root()
        said = measure(given.kernel, ROOT / "build" / "bench")
    except (BenchError, KsentinelError) as error:
        print(f"guards: {error}", file=sys.stderr)
        return 1
    counts = counted(said)
    print(json.dumps(said) if given.json else "\n".join(lines(counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
