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
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import counted
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


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kernel", default="6.1", metavar="SERIES", help="Debian's, 6.1 or 6.12 (default: %(default)s)"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="put the counts into overhead.json there, and make its page again",
    )
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
    counts = counted.counted(said)
    if given.docs:
        result = json.loads((given.docs / "overhead.json").read_text(encoding="utf-8"))
        found = {"measured": datetime.now(UTC).date().isoformat(), "counts": counts}
        result["guards"] = {**result.get("guards", {}), said[0]["release"]: found}
        page.write(result, given.docs)
    print(json.dumps(said) if given.json else "\n".join(counted.lines(counts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
