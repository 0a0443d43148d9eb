# SPDX-License-Identifier: Apache-2.0
"""
The sides of the comparison: nothing, an empty probe, ksentinel, and what people watch system calls with today.

A side says what it watches and proves that it did: what it has counted is compared with what was done before its eyes.
"""

import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import account
from auditing import EVERYTHING, Auditing
from children import AbsentError, BenchError, Child, Tool, cpu_seconds, run, settle, with_tracefs
from tools import Tools

from ksentinel.bpf.libbpf import Object
from ksentinel.errors import KsentinelError

BOUND = 900
"""Seconds after which ksentinel would end by itself, whatever happens to us."""

SETTLE = 5.0
"""Seconds that a side has to catch up with what it has seen, after each run."""

_ASKING = 1000
"""More records than audit makes of being asked how many it has: auditctl makes system calls, too."""

KSENTINEL = [sys.executable, "-c", "from ksentinel.cli import main; main()"]

_COUNT = """\
tracepoint:raw_syscalls:sys_enter { @calls = count(); }
"""
# Shifted by 12 bits a call, so the last five or so are in it; the golden ratio spreads them over 65,536 counters.
_HASH = """\
tracepoint:raw_syscalls:sys_enter {
  @h[tid] = (@h[tid] << 12) ^ (uint64)args->id;
  @n[((@h[tid] * (uint64)0x9E3779B97F4A7C15) >> 48) & (uint64)0xffff] += 1;
}
tracepoint:sched:sched_process_exit { delete(@h[tid]); }
END { print(@n, 1); clear(@h); clear(@n); }
"""


@dataclass
class Bench:
    """What sides and workloads are handed: where they may write, what they may use."""

    build: Path
    work: Path
    tools: Tools
    auditing: Auditing
    model: Path | None = None


@dataclass
class Told:
    """What a side counted while it was attached; None where it counts nothing of the kind."""

    seen: int | None = None
    lost: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


class Watcher:
    """
    A side. This one watches nothing: the ones that do are made from it.

    Parameters
    ----------
    bench
        What it may use.
    """

    name = "nothing"
    what = "nobody watches"
    scope = "-"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.told = Told()

    def prepare(self) -> None:
        """Fetch and build what is needed; raises AbsentError."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch, really, for as long as the block lasts; `told` is filled at its end."""
        yield

    def around(self, command: Sequence[str | Path]) -> list[str]:
        """Return *command* as this side has it run."""
        return [str(word) for word in command]

    def joined(self, pid: int) -> AbstractContextManager[object]:  # noqa: ARG002
        """Watch a process that runs already, too."""
        return ExitStack()

    def pids(self) -> list[int]:
        """Return the processes that do the watching, apart from the kernel's part in others' system calls."""
        return []

    def cpu(self) -> float | None:
        """Return the CPU seconds that these have used so far; None if there are none."""
        pids = self.pids()
        return cpu_seconds(pids) if pids else None

    def settle(self) -> bool:
        """Wait until what was seen has been dealt with; returns whether it has."""
        return settle(self.pids(), SETTLE)


class EmptyProbe(Watcher):
    """A BPF program that returns at once."""

    name = "empty-probe"
    what = "an empty BPF program on raw_tp/sys_enter: what it costs that anybody looks at all"
    scope = "host"

    def prepare(self) -> None:
        """Compile it, and see whether this host takes it."""
        self._object = self.bench.tools.compiled("empty.bpf.c", bpf=True)
        try:
            with self.watching():
                pass
        except BenchError as error:
            raise AbsentError(str(error)) from None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Attach it."""
        try:
            with Object(self._object) as loaded:
                loaded.load()
                loaded.attach("empty")
                yield
        except KsentinelError as error:
            raise BenchError(str(error)) from None


class Command(Watcher):
    """A side that is a process of its own."""

    scope = "host"
    end_by = signal.SIGINT
    patience = 30.0

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self.child: Child | None = None

    def command(self) -> list[str]:
        """Return what to start."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what it is started with."""
        raise NotImplementedError

    def ready(self, child: Child) -> bool:
        """Tell whether it watches by now."""
        raise NotImplementedError

    def conclude(self, child: Child) -> Told:
        """Return what it said at its end."""
        raise NotImplementedError

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Start it, wait until it watches, and end it in good order."""
        self.told = Told()
        child = Child(
            self.command(),
            self.bench.work / self.name,
            self.environment(),
            end_by=self.end_by,
            patience=self.patience,
        )
        try:
            with child:
                child.wait_until(lambda: self.ready(child))
                self.child = child
                yield
                child.end()
                if child.process.returncode not in {0, 130, -self.end_by}:
                    raise BenchError(
                        f"{self.name} ended with {child.process.returncode}: {child.last_words()}"
                    )
                self.told = self.conclude(child)
        finally:
            self.child = None

    def pids(self) -> list[int]:
        """Return its process."""
        return [self.child.pid] if self.child else []


class Ksentinel(Command):
    """ksentinel's command line, as anybody would start it."""

    phrase = ""
    patience = 180.0  # what its ring buffer still holds is dealt with before it ends

    def prepare(self) -> None:
        """Ask ksentinel whether this host lets it watch."""
        try:
            run([*KSENTINEL, "doctor", "--for", "monitor"], self.environment())
        except BenchError as error:
            raise AbsentError(f"ksentinel can't watch here ({error}): see `ksentinel doctor`") from None

    def arguments(self) -> list[str]:
        """Return the subcommand with its options."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """Return the command line; it ends by itself, too."""
        return [*KSENTINEL, *self.arguments(), "--for", f"{BOUND}s", "--json"]

    def environment(self) -> dict[str, str]:
        """Return a plain environment."""
        return Tool(Path(KSENTINEL[0])).environment()

    def ready(self, child: Child) -> bool:
        """Tell whether it has said so, and holds a program on the hook."""
        return child.says(self.phrase) and child.pid in attached()

    def conclude(self, child: Child) -> Told:
        """Read the account at the end of its output."""
        lines = child.out.read_text(errors="replace").splitlines()
        if not lines:
            raise BenchError(f"{self.name} gave no account: {child.last_words()}")
        return told_of(json.loads(lines[-1])["account"])


def told_of(counted: dict[str, float]) -> Told:
    """Return what an account says of what was seen, and which share of it was dropped."""
    try:
        sums = account.told(counted)
    except LookupError as error:
        raise BenchError(str(error)) from None
    return Told(
        seen=int(counted["seen"]),
        more={
            "dropped_share": account.dropped(counted),
            "limited_share": counted.get("calls_limited", 0) / max(counted.get("calls", 0), 1),
            "missed_runs": counted.get("missed_runs"),
            "exact": all(s.exact for s in sums),
            "account": counted,
        },
    )


class Monitor(Ksentinel):
    """``ksentinel monitor`` with a model of these very workloads."""

    name = "monitor"
    what = "ksentinel monitor: every call meets the model, the relevant ones the rules"
    phrase = "ksentinel: watching"

    def arguments(self) -> list[str]:
        """Return the subcommand with its options."""
        if self.bench.model is None:
            raise AbsentError("no model has been trained")
        store = self.bench.work / "alerts.db"
        return ["monitor", "--model", str(self.bench.model), "--store", str(store)]


class Record(Ksentinel):
    """``ksentinel record``."""

    name = "record"
    what = "ksentinel record: every call into a file"
    phrase = "ksentinel: recording to"

    def arguments(self) -> list[str]:
        """Return the subcommand with its options."""
        self.file = self.bench.work / "recording.db"
        for old in self.bench.work.glob("recording.db*"):
            old.unlink()
        return ["record", "--out", str(self.file)]


class BpfTrace(Command):
    """A bpftrace script."""

    script = ""

    def prepare(self) -> None:
        """Find bpftrace, and see whether it can attach here."""
        self.tool = self.bench.tools.find("bpftrace", "bpftrace")
        self.file = self.bench.work / f"{self.name}.bt"
        self.file.write_text(self.script)
        try:
            with self.watching():
                pass
        except BenchError as error:
            raise AbsentError(str(error)) from None

    def command(self) -> list[str]:
        """Return the command line."""
        return with_tracefs([self.tool.path, self.file])

    def environment(self) -> dict[str, str]:
        """Return one in which it says when its probes are attached, and in which 65,536 counters fit a map."""
        return self.tool.environment(__BPFTRACE_NOTIFY_PROBES_ATTACHED="1", BPFTRACE_MAP_KEYS_MAX="131072")

    def ready(self, child: Child) -> bool:
        """Tell whether it has said so."""
        return child.says("__BPFTRACE_NOTIFY_PROBES_ATTACHED")

    def conclude(self, child: Child) -> Told:
        """Read the counter that it prints at its end."""
        found = re.findall(r"^@\w+(?:\[\d+\])?: (\d+)$", child.out.read_text(), re.MULTILINE)
        return Told(seen=int(found[-1]) if found else 0)


class BpfTraceCount(BpfTrace):
    """One counter, per CPU."""

    name = "bpftrace-count"
    what = "bpftrace counting system calls"
    script = _COUNT


class BpfTraceHash(BpfTrace):
    """The work of scoring n-grams, written as one would in bpftrace."""

    name = "bpftrace-hash"
    what = "bpftrace hashing each thread's last calls and counting the hashes: the bookkeeping of n-grams"
    script = _HASH


class Strace(Watcher):
    """strace, on the workload alone: it can't watch a host."""

    name = "strace"
    what = "strace -f -o FILE"
    scope = "workload"

    def prepare(self) -> None:
        """Find it."""
        self.tool = self.bench.tools.find("strace", "strace")
        self._files = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count from 0."""
        self.told = Told(seen=0)
        yield

    def around(self, command: Sequence[str | Path]) -> list[str]:
        """Put strace in front."""
        return [str(self.tool.path), "-f", "-o", str(self._file()), *map(str, command)]

    @contextmanager
    def joined(self, pid: int) -> Iterator[None]:
        """Attach to a server with all its threads; it is let go at the end."""
        command = [self.tool.path, "-f", "-o", self._file(), "-p", str(pid)]
        log = self.bench.work / "strace-server"
        with Child(command, log, self.tool.environment()) as child:
            child.wait_until(lambda: child.says("attached"))
            yield

    def settle(self) -> bool:
        """Count what it has written, and throw that away."""
        for file in self.bench.work.glob("strace.*.txt"):
            with file.open("rb") as lines:
                self.told.seen = (self.told.seen or 0) + sum(1 for _ in lines)
            file.write_bytes(b"")  # a server's is still being written to, and by offset: nothing is lost
        return True

    def _file(self) -> Path:
        self._files += 1
        return self.bench.work / f"strace.{self._files}.txt"


class PerfTrace(Command):
    """``perf trace``."""

    name = "perf-trace"
    what = "perf trace -a -o FILE"

    def prepare(self) -> None:
        """Find perf, and see whether it can attach here."""
        self.tool = self.bench.tools.find("perf", "linux-perf")
        try:
            with self.watching():
                pass
        except BenchError as error:
            raise AbsentError(str(error)) from None

    def command(self) -> list[str]:
        """Return the command line."""
        self.file = self.bench.work / "perf-trace.txt"
        self.file.unlink(missing_ok=True)
        return with_tracefs([self.tool.path, "trace", "-a", "-o", self.file])

    def environment(self) -> dict[str, str]:
        """Return a plain one."""
        return self.tool.environment()

    def ready(self, child: Child) -> bool:  # noqa: ARG002
        """Tell whether it has written calls: our own looking makes some."""
        return self.file.exists() and self.file.stat().st_size > 0

    def conclude(self, child: Child) -> Told:
        """Count its lines, and what it says that it lost."""
        said = child.err.read_text(errors="replace")
        seen = lost = 0
        with self.file.open(errors="replace") as lines:
            for line in lines:
                if found := re.search(r"LOST (\d+) events", line):
                    lost += int(found[1])
                else:
                    seen += 1
        lost += sum(int(n) for n in re.findall(r"LOST (\d+) events", said))
        self.file.unlink()
        return Told(seen=seen, lost=lost)


class Auditd(Watcher):
    """Debian's auditd, with a rule that audits everything."""

    name = "auditd"
    what = f"auditd, rule -a {EVERYTHING}"
    scope = "host"
    rule: str | None = EVERYTHING

    def prepare(self) -> None:
        """See whether audit is there and nobody uses it."""
        if self.bench.auditing.absent is not None:
            raise AbsentError(self.bench.auditing.absent)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Start auditd and load the rule; all of that is taken back."""
        self.told = Told()
        with self.bench.auditing.watching(self.rule):
            yield
            counted = self.bench.auditing.told()
        if self.rule is not None:
            self.told = Told(seen=counted["seen"], lost=counted["lost"])

    def pids(self) -> list[int]:
        """Return auditd and the kernel's thread that feeds it."""
        return self.bench.auditing.pids

    def settle(self) -> bool:
        """Wait until nothing is left in the backlog; where others keep filling it, that never comes."""
        end = time.monotonic() + SETTLE
        while self.bench.auditing.backlog() > _ASKING:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return settle(self.pids(), SETTLE)


class AuditdIdle(Auditd):
    """auditd as it is after installation."""

    name = "auditd-no-rules"
    what = "auditd running, no rule loaded: as installed"
    scope = "-"
    rule = None


ALL: tuple[type[Watcher], ...] = (
    Watcher,
    EmptyProbe,
    Monitor,
    Record,
    BpfTraceCount,
    BpfTraceHash,
    AuditdIdle,
    Auditd,
    PerfTrace,
    Strace,
)


def attached(proc: Path = Path("/proc")) -> set[int]:
    """Return the processes that hold a BPF program on ``raw_tp/sys_enter``."""
    found = set()
    for link in proc.glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == "anon_inode:bpf_link":
                info = (link.parents[1] / "fdinfo" / link.name).read_text()
                if re.search(r"^tp_name:\s*sys_enter$", info, re.MULTILINE):
                    found.add(int(link.parents[1].name))
        except OSError:  # it has ended meanwhile
            continue
    return found
