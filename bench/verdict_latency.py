# SPDX-License-Identifier: Apache-2.0
"""
How long until a verdict on a process is in force? Beside it a bare map update, until a waiting process sees that; the ratio is the result.

A process opens a file for writing all the time, and is put into quarantine: measured is from before the verdict is written until an open has
been refused. In turn with that the same process asks for a value of a map all the time, which is changed. Needs root and a kernel with the BPF
LSM, and stands guards of its own up: not beside a running ksentinel.
"""

import argparse
import ctypes
import json
import math
import platform
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

from ksentinel import host
from ksentinel.bpf import probe
from ksentinel.bpf.guard_abi import NameKey, SentenceKind
from ksentinel.config import Config
from ksentinel.enforce import Mode
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.guards import CONFINING, Guards
from ksentinel.enforce.settings import Settings
from ksentinel.event import ProcessKey
from ksentinel.shipped import shipped

SOURCE = Path(__file__).with_name("native") / "waiter.c"
CONTROL = struct.Struct("=4IQI4x")
_NUMBER = 1
_LONGEST = 30.0
_SETTLE = 0.002


class Waiter:
    """The process that waits."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        program, control, path = folder / "waiter", folder / "control", folder / "written"
        subprocess.run(["clang", "-O2", "-static", "-Wall", "-Wextra", "-o", program, SOURCE], check=True)
        path.write_text("")
        control.write_bytes(bytes(CONTROL.size))
        with control.open("r+b") as file:
            self._memory = mmap(file.fileno(), CONTROL.size)
        self._process = subprocess.Popen([program, control, path, str(descriptor)], pass_fds=[descriptor])
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        self.key = ProcessKey(self._process.pid, int(fields[19]) * 10_000_000)

    def _until(self, what: str, field: int, number: int) -> None:
        end = time.monotonic() + _LONGEST
        while CONTROL.unpack_from(self._memory)[field] != number:
            if time.monotonic() > end or self._process.poll() is not None:
                raise SystemExit(f"round {number}: it never {what}")
            time.sleep(_SETTLE / 4)

    def latency(self, number: int, act: Callable[[], None], undo: Callable[[], None] = lambda: None) -> int:
        """Return the nanoseconds from before *act* until its effect has been seen."""
        struct.pack_into("=I", self._memory, 0, number)
        self._until("began to wait", 1, number)
        time.sleep(_SETTLE)
        begin = time.monotonic_ns()
        act()
        self._until("saw it", 2, number)
        found = int(CONTROL.unpack_from(self._memory)[4]) - begin
        undo()
        self._until("saw it end", 3, number)
        return found

    def stop(self) -> None:
        """End it."""
        struct.pack_into("=I", self._memory, CONTROL.size - 8, 1)
        self._process.wait(_LONGEST)
        self._memory.close()


@contextmanager
def standing() -> Iterator[Guards]:
    """Give guards that stand where a quarantine is carried out, and deny nothing else."""
    refused = probe.try_program(probe.LSM)
    if refused:
        raise SystemExit("no LSM program loads here: run as root on a kernel with bpf among its lsm=")
    with (
        host.live(Config(), lambda: False) as live,
        Guards(
            live.collector.object, shipped("lsm_bpf"), live.collector.path_seed, platform.machine(), own_pid=0
        ) as guards,
    ):
        nothing = compile_policy(
            [], Settings(), resolve=lambda _: None, arch=platform.machine(), also=CONFINING
        )
        guards.use(nothing, list(live.normalizer.table))
        guards.mode = Mode.ENFORCE
        yield guards


def measure(guards: Guards, rounds: int) -> dict[str, Any]:
    """Return what so many rounds of each took, in turn."""
    values = guards.collector.map(
        "name_sets"
    )  # a hash map, as sentences are; of an epoch that is none nobody asks
    verdicts, updates = [], []
    with tempfile.TemporaryDirectory() as folder:
        waiter = Waiter(Path(folder), values.fd)
        try:
            before = guards.counters()["denied"]
            for number in range(1, 2 * rounds, 2):
                until = guards.clock_ns() + 600_000_000_000
                verdicts.append(
                    waiter.latency(
                        number,
                        lambda until=until: guards.sentence(
                            waiter.key, SentenceKind.QUARANTINE, until, _NUMBER, Mode.ENFORCE
                        ),
                        lambda: guards.lift(waiter.key),
                    )
                )
                updates.append(
                    waiter.latency(
                        number + 1,
                        lambda number=number: values.update(NameKey(), ctypes.c_uint64(number + 1)),
                    )
                )
            denied = guards.counters()["denied"] - before
        finally:
            waiter.stop()
    values.delete(NameKey())
    return {
        "kernel": platform.release(),
        "rounds": rounds,
        "denied": denied,
        "verdict_us": spread(verdicts),
        "update_us": spread(updates),
        "ratio_p99": spread(verdicts)["p99"] / spread(updates)["p99"],
        "ratio_median": spread(verdicts)["median"] / spread(updates)["median"],
    }


def spread(nanoseconds: list[int]) -> dict[str, float]:
    """
    Return median, 99th percentile (the nearest rank) and most, in microseconds.

    Examples
    --------
    >>> spread([3000, 1000, 2000])
    {'median': 2.0, 'p99': 3.0, 'most': 3.0}
    """
    ordered = sorted(nanoseconds)
    at = [ordered[math.ceil(share * len(ordered)) - 1] / 1000 for share in (0.5, 0.99, 1)]
    return dict(zip(("median", "p99", "most"), at, strict=True))


def table(found: dict[str, Any]) -> str:
    """Return it as a person reads it."""
    lines = [f"{'until it is seen, in us':<26}{'median':>10}{'p99':>10}{'most':>10}"]
    for key, words in (("verdict_us", "verdict on a process"), ("update_us", "bare map update")):
        one = found[key]
        lines.append(f"{words:<26}" + "".join(f"{one[name]:>10.0f}" for name in ("median", "p99", "most")))
    lines.append(f"{'ratio':<26}{found['ratio_median']:>10.2f}{found['ratio_p99']:>10.2f}")
    lines.append(f"{found['rounds']} rounds of each, Linux {found['kernel']}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    options = parser.parse_args()
    with standing() as guards:
        found = measure(guards, options.rounds)
    print(json.dumps(found) if options.json else table(found))


if __name__ == "__main__":
    sys.exit(main())
