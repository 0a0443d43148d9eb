# SPDX-License-Identifier: Apache-2.0
"""
What does it cost to watch every system call? Nothing, an empty probe, ksentinel, and what people use today, in turn.

    sudo .venv/bin/python bench/overhead.py [--quick] [--docs docs] [--json]

All sides take turns in one run (each once, then each again), every run of a workload lasts about as long, the first round is
dropped, ratios are those of the same round. Needs root. Everything runs on this machine and its loopback, is bounded, ends
with this program, and leaves the host as it was; tools that aren't installed are fetched from Debian and unpacked
under build/bench.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import figures
import flood
import idle
import page
import watchers
import workloads
from auditing import Auditing
from children import BenchError, busy_share, end_in_good_order, run
from figures import Run, calibrate
from tools import Tools
from watchers import KSENTINEL, Bench, Watcher, attached
from workloads import Workload

import ksentinel

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
SIDES = tuple(side.name for side in watchers.ALL)
WORKLOADS = tuple(load.name for load in workloads.ALL)
_LOOK = 0.25
_WARM_UP = 8
"""The short run before each counted one is this many times shorter."""
_TURN = 90.0
"""A side whose turn takes longer is cut short: auditing everything on a busy host holds everybody up."""
_OTHERS = 120.0
"""So many seconds, in all, we wait for others who watch system calls here."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    runs: int = 11
    seconds: float = 0.4
    idle_seconds: float = 20.0
    flood_seconds: float = 10.0
    training_seconds: float = 30.0
    limit_seconds: float = 2000.0
    """No side begins a turn after that."""
    quick: bool = False
    sides: tuple[str, ...] = SIDES
    workloads: tuple[str, ...] = WORKLOADS


QUICK = Settings(
    runs=3,
    seconds=0.15,
    idle_seconds=6.0,
    flood_seconds=3.0,
    training_seconds=6.0,
    limit_seconds=150.0,
    quick=True,
    sides=tuple(name for name in SIDES if name != "auditd-no-rules"),
    workloads=("getppid", "exec", "redis"),
)


@dataclass
class Findings:
    """What has been measured so far, and what has not, with the reason."""

    runs: list[Run] = field(default_factory=list)
    attach_seconds: dict[str, list[float]] = field(default_factory=dict)
    told: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    background: list[float] = field(default_factory=list)
    """Which share of the CPUs somebody else used before each turn, when we did nothing."""
    patience: float = _OTHERS

    def failed(self, what: str, number: int, reason: object) -> None:
        """Keep a failure, and say it."""
        self.failures.append({"what": what, "round": number, "reason": str(reason)})
        say(f"  {what}, round {number}: {reason}")


def say(text: str) -> None:
    """Tell what is going on; results go to standard output."""
    print(text, file=sys.stderr, flush=True)


def measure(
    sides: Sequence[Watcher], loads: Sequence[Workload], settings: Settings, findings: Findings
) -> None:
    """Let the sides take turns; in round 0, which is dropped, each finds out how many operations it has time for."""
    operations: dict[tuple[str, str], int] = {}
    begin = time.monotonic()
    for number in range(settings.runs):
        for side in turned(sides, number):
            if time.monotonic() - begin > settings.limit_seconds:
                findings.failed(
                    side.name, number, f"left out: after {settings.limit_seconds:.0f} s no turn begins"
                )
                continue
            wait_for_others(findings, number)
            findings.background.append(round(busy_share(_LOOK), 3))
            try:
                found = one_turn(side, loads, number, settings, operations, findings)
            except BenchError as error:
                findings.failed(side.name, number, error)
                continue
            if number:
                findings.runs += found
        say(f"round {number} of {settings.runs - 1}: {time.monotonic() - begin:.0f} s so far")


def one_turn(
    side: Watcher,
    loads: Sequence[Workload],
    number: int,
    settings: Settings,
    operations: dict[tuple[str, str], int],
    findings: Findings,
) -> list[Run]:
    """
    Attach one side, run all workloads before its eyes, and detach it.

    Raises
    ------
    BenchError
        If it can't be attached, dies, or hasn't seen what was done: then none of its runs counts.
    """
    found: list[Run] = []
    done = 0
    begin = time.monotonic()
    with side.watching():
        attaching = time.monotonic() - begin
        for load in loads:

            def timed(n: int, load: Workload = load) -> float:
                nonlocal done
                took = load.run(n, side)
                done += load.calls(n)
                side.settle()
                return took

            key = side.name, load.name
            if time.monotonic() - begin > _TURN:
                findings.failed(
                    f"{side.name}, {load.name}", number, f"left out: its turn took over {_TURN:.0f} s"
                )
                continue
            if number and key not in operations:
                continue  # it has failed in round 0, and that was told
            try:
                with load.open(side):
                    if key not in operations:
                        operations[key] = calibrate(timed, load.first, load.floor, load.cap, settings.seconds)
                    # A start has costs of its own: caches, and for a monitor its first alert to explain.
                    timed(max(load.floor, operations[key] // _WARM_UP))
                    found.append(measured(side, load, number, operations[key]))
                    done += load.calls(operations[key])
            except BenchError as error:
                findings.failed(f"{side.name}, {load.name}", number, error)
    prove(side, done)
    if not number:
        say(f"  {side.name}: watches after {attaching:.2f} s; {time.monotonic() - begin:.1f} s in all")
    findings.attach_seconds.setdefault(side.name, []).append(round(attaching, 3))
    more = {name: value for name, value in side.told.more.items() if name != "account"}
    told = {"round": number, "seen": side.told.seen, "lost": side.told.lost} | more
    findings.told.setdefault(side.name, []).append(told)
    return found


def measured(side: Watcher, load: Workload, number: int, operations: int) -> Run:
    """Run a workload once; what the watching processes use of CPU is counted until they have caught up."""
    before = side.cpu()
    took = load.run(operations, side)
    settled = side.settle()
    after = side.cpu()
    used = None if before is None or after is None else after - before
    return Run(side.name, load.name, number, operations, took, used, settled)


def prove(side: Watcher, done: int) -> None:
    """Compare what a side has counted with what was done; raises BenchError if it hasn't watched."""
    seen = side.told.seen
    if seen is not None and seen + (side.told.lost or 0) < 0.99 * done:
        raise BenchError(f"saw {seen:,} (and lost {side.told.lost or 0:,}) of at least {done:,} calls")


def turned(sides: Sequence[Watcher], number: int) -> list[Watcher]:
    """Return the sides, beginning with another one each round: none is always the one after the slowest."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def wait_for_others(findings: Findings, number: int) -> None:
    """Wait until nobody else watches system calls here; when patience is at an end go on, and tell it."""
    while others := attached() - {os.getpid()}:
        if findings.patience <= 0:
            told = f"round {number}: process {', '.join(map(str, sorted(others)))}"
            if told not in findings.others:
                findings.others.append(told)
                say(f"  somebody else watches system calls here, too, {told}")
            return
        findings.patience -= 0.2
        time.sleep(0.2)


def prepared(candidates: Sequence[Any], absent: dict[str, str]) -> list[Any]:
    """Return the sides or workloads that can run here; the others go into *absent* with the reason."""
    there = []
    for candidate in candidates:
        try:
            candidate.prepare()
        except BenchError as error:
            absent[candidate.name] = str(error)
            say(f"  absent: {candidate.name}: {error}")
        else:
            there.append(candidate)
    return there


def train(bench: Bench, loads: Sequence[Workload], seconds: float) -> Path:
    """Record the very workloads for a while, and learn from that what is normal."""
    recorder = watchers.Record(bench)
    nobody = Watcher(bench)
    with recorder.watching():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for load in loads:
                with load.open(nobody):
                    load.run(max(load.floor, load.first), nobody)
    model = bench.work / "model"
    run([*KSENTINEL, "train", recorder.file, "--out", model], recorder.environment(), seconds=600)
    return model


def environment(bench: Bench) -> dict[str, Any]:
    """Return what the numbers depend on."""
    info = Path("/proc/cpuinfo").read_text()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    jit = Path("/proc/sys/net/core/bpf_jit_enable")
    audit = bench.auditing
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": names[0] if names else platform.processor(),
        "virtual": "hypervisor" in info,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "bpf_jit": jit.read_text().strip() if jit.exists() else "?",
        "load_before": os.getloadavg()[0],
        "audit": audit.absent
        or "nobody uses it; kept away from all sides but its own by the rule task,never",
        "ksentinel": ksentinel.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "tools": dict(sorted(bench.tools.used.items())),
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def commit() -> str | None:
    """Return which commit this is, and whether files have been changed since; None outside of a clone."""
    try:
        found = run(["git", "-C", ROOT, "describe", "--always", "--dirty"])
    except (BenchError, OSError):
        return None
    return found.strip()


def everything(settings: Settings) -> dict[str, Any]:
    """Measure, and return what was found; the host is as before at the end, however that comes."""
    findings = Findings()
    BUILD.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=BUILD, prefix="run-")))
        tools = Tools(BUILD)
        say("fetching and building what is needed")
        auditing = stack.enter_context(Auditing(tools, work))
        bench = Bench(BUILD, work, tools, auditing)
        loads = prepared(
            [load(bench) for load in workloads.ALL if load.name in settings.workloads], findings.absent
        )
        sides = prepared(
            [side(bench) for side in watchers.ALL if side.name in settings.sides], findings.absent
        )
        about = environment(bench)
        for monitor in [side for side in sides if isinstance(side, watchers.Monitor)]:
            say(f"recording {settings.training_seconds:.0f} s of the workloads, and training a model on that")
            try:
                bench.model = train(bench, loads, settings.training_seconds)
            except BenchError as error:
                findings.absent[monitor.name] = f"no model: {error}"
                sides.remove(monitor)
        measure(sides, loads, settings, findings)
        observer = None
        flooded: dict[str, Any] = {}
        if bench.model is not None:
            say(f"watching nothing happen for {settings.idle_seconds:.0f} s")
            observer = attempt(
                findings,
                "idle",
                lambda: idle.measure(bench, settings.idle_seconds, 1 if settings.quick else 3),
            )
        for side in sides:
            if isinstance(side, watchers.Ksentinel):
                say(f"a flood of {settings.flood_seconds:.0f} s under {side.name}")
                found = attempt(
                    findings,
                    f"flood under {side.name}",
                    partial(flood.measure, side, seconds=settings.flood_seconds),
                )
                if found is not None:
                    flooded[side.name] = found
    return {
        "environment": about | {"load_after": os.getloadavg()[0], "tools": dict(sorted(tools.used.items()))},
        "settings": asdict(settings),
        "sides": [about_side(side, findings) for side in watchers.ALL if side.name in settings.sides],
        "workloads": [
            {
                "name": load.name,
                "what": load.what,
                "unit": load.unit,
                "absent": findings.absent.get(load.name),
            }
            for load in workloads.ALL
            if load.name in settings.workloads
        ],
        "results": figures.summary(
            findings.runs, SIDES, WORKLOADS, [load.name for load in workloads.ALL if load.server]
        ),
        "observer": observer,
        "flood": flooded,
        "left_out": left_out(settings),
        "failures": findings.failures,
        "others": findings.others,
        "background": findings.background,
        "runs": figures.raw(findings.runs),
    }


def attempt(
    findings: Findings, what: str, measurement: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    """Return what a measurement gives; None if it fails, and why is kept."""
    try:
        return measurement()
    except (BenchError, LookupError) as error:
        findings.failed(what, 0, error)
        return None


def about_side(side: type[Watcher], findings: Findings) -> dict[str, Any]:
    """Return what is to be said of a side apart from times."""
    attaching = findings.attach_seconds.get(side.name)
    told = findings.told.get(side.name, [])
    return {
        "name": side.name,
        "what": side.what,
        "scope": side.scope,
        "absent": findings.absent.get(side.name),
        "attach_seconds": None if attaching is None else asdict(figures.spread(attaching)),
        "told": told,
    }


def left_out(settings: Settings) -> list[str]:
    """Return what a full run would have measured besides."""
    full = Settings()
    lacking = [f"side {name}" for name in full.sides if name not in settings.sides]
    lacking += [f"workload {name}" for name in full.workloads if name not in settings.workloads]
    if settings.runs < full.runs:
        lacking.append(f"{full.runs - settings.runs} of {full.runs} rounds")
    if settings.seconds < full.seconds:
        lacking.append(f"runs of {full.seconds:g} s instead of {settings.seconds:g} s")
    return lacking


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; ends with status 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip().splitlines()[0],
        epilog=f"Sides: {', '.join(SIDES)}. Workloads: {', '.join(WORKLOADS)}.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under five minutes")
    parser.add_argument("--runs", type=int, metavar="N", help="rounds, of which the first is dropped")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long one run of a workload is to take"
    )
    parser.add_argument(
        "--sides", metavar="A,B", help="only these, and nothing and empty-probe to compare with"
    )
    parser.add_argument("--workloads", metavar="A,B", help="only these")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write overhead.md, .svg and .json there")
    parser.add_argument(
        "--from", dest="measured", type=Path, metavar="JSON", help="measure nothing: use these figures"
    )
    found = parser.parse_args(arguments)
    settings = QUICK if found.quick else Settings()
    if found.runs is not None:
        if found.runs < 2:
            parser.error("--runs: at least 2, since the first is dropped")
        settings = replace(settings, runs=found.runs)
    if found.seconds is not None:
        if not 0.01 <= found.seconds <= 10:
            parser.error("--seconds: between 0.01 and 10")
        settings = replace(settings, seconds=found.seconds)
    for option, known in (("sides", SIDES), ("workloads", WORKLOADS)):
        if (text := getattr(found, option)) is None:
            continue
        wanted = set(text.split(","))
        if unknown := wanted - set(known):
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        if option == "sides":
            wanted |= {figures.NOTHING, figures.EMPTY}
        chosen = tuple(name for name in known if name in wanted)
        settings = (
            replace(settings, sides=chosen) if option == "sides" else replace(settings, workloads=chosen)
        )
    found.settings = settings
    return found


def main() -> None:
    """Measure, and print tables or JSON."""
    arguments = parse()
    if arguments.measured is not None:
        result = json.loads(arguments.measured.read_text(encoding="utf-8"))
    else:
        if os.geteuid():
            sys.exit("overhead: needs root, as watching every system call does (sudo)")
        end_in_good_order()
        try:
            result = everything(arguments.settings)
        except KeyboardInterrupt as why:
            sys.exit(f"overhead: interrupted by {why or 'Ctrl-C'}; everything was stopped and given back")
        except BenchError as error:
            sys.exit(f"overhead: {error}")
    if arguments.docs is not None:
        page.write(result, arguments.docs)
    print(json.dumps(result) if arguments.json else page.tables(result))


if __name__ == "__main__":
    main()
