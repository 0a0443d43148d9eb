# SPDX-License-Identifier: Apache-2.0
"""The collector as tests hold it: attached for as long as a workload runs, its account checked at the end."""

import contextlib
import ctypes
import errno
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

from ksentinel import report, syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.libbpf import _SYS_BPF
from ksentinel.event import Event, SyscallEvent
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import LAUNCHERS, TERMINALS, ProcessTable
from ksentinel.sources.procfs import running
from ksentinel.sources.ringbuf import Collector, Wanted
from ksentinel.window import Window

ARCH = platform.machine()
SEED = 0x5EED
OBJECT = Path(__file__).parents[1] / "lsm_bpf" / "trace.bpf.o"


KINDS = {
    abi.Kind.WINDOW: abi.Window,
    abi.Kind.FORK: abi.Fork,
    abi.Kind.EXEC: abi.Exec,
    abi.Kind.EXIT: abi.Exit,
    abi.Kind.CALL: abi.Call,
}
FAMILY = Wanted(pids=(os.getpid(),))
"""This process and what it starts: a flood by anybody else on this machine is no business of a test."""
EVERYBODY = Wanted()


class Watch:
    """
    A collector and what came of it; `poll` while the workload runs.

    Parameters
    ----------
    known
        Whether it is told who runs already.
    options
        The collector's.
    """

    def __init__(self, *, known=True, wanted=FAMILY, **options):
        self.table = ProcessTable()
        self.epoch_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.normalizer = BpfNormalizer(self.table, self.epoch_ns, ARCH, None)
        self.families = wanted.pids
        self.collector = Collector(
            OBJECT, os.getpid(), ARCH, path_seed=SEED, wanted=wanted,
            names=dict.fromkeys(LAUNCHERS, abi.NameFlag.LAUNCHER) | dict.fromkeys(TERMINALS, abi.NameFlag.TERMINAL),
            processes=self._introduce if known else tuple, **options,
        )  # fmt: skip
        self.items: list[Event | Window] = []
        self.records: list[bytes] = []  # of the items, as they came
        self.taken: Counter[str] = Counter()
        self.account = {}

    def __enter__(self):
        self.collector.__enter__()
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for records in self.collector.finish():
                    self._take(records)
                self.account = self.collector.account()
                self._adds_up()
        finally:
            self.collector.__exit__(kind, error, trace)

    def poll(self, seconds=0.05):
        """Take what has arrived; returns how much that was."""
        return self._take(self.collector.poll(seconds))

    def drain(self):
        """Take all that is there: whoever has been waited for has told everything."""
        for _ in range(1000):
            if not self.poll(0) and not self.collector.fill():  # nor is one just being written
                break

    def forget(self):
        """Begin anew: what has come so far is another test's."""
        self.drain()
        self.items, self.records = [], []
        self._before = self.collector.counters()

    def counted(self, name):
        """Return what the kernel's side has counted since then."""
        return self.collector.counters()[name] - self._before[name]

    def family(self, kind):
        """Return the items of a kind that this process' children and theirs have made."""
        ours = os.getpid()
        return [i for i in self.of(kind) if any(a.key.pid == ours for a in i.process.ancestors())]

    def run(self, *command, **options):
        """Run a command to its end; returns its pid and output."""
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as child:
            while child.poll() is None:
                self.poll()
            self.drain()
            return child.pid, child.stdout.read()

    def python(self, code, *arguments, **options):
        """Run a Python program to its end; returns its pid and output."""
        return self.run(sys.executable, "-ISWignore", "-c", textwrap.dedent(code), *arguments, **options)

    def raw(self, kind, pid):
        """Return a process' records of a kind as they came."""
        found = [kind.from_buffer_copy(r) for r in self.records if len(r) >= ctypes.sizeof(kind)]
        return [r for r in found if (KINDS[r.header.kind], r.header.tgid) == (kind, pid)]

    def of(self, kind, pid=None):
        """Return the items of a kind, of one process or of all."""
        return [i for i in self.items if isinstance(i, kind) and pid in {None, i.process.key.pid}]

    def calls(self, pid, *names):
        """Return a process' calls of these names."""
        return [c for c in self.of(SyscallEvent, pid) if c.syscall in names]

    def tokens(self, pid):
        """Return each thread's system calls, in order; what they are about, and that a program begins, left out."""
        found: dict[int, list[int]] = {}
        for window in self.of(Window, pid):
            found.setdefault(window.tid, []).extend(t for t in window.tokens if is_call(t))
        return found

    def _introduce(self):
        self.normalizer.known(running())
        return self.normalizer.introductions(SEED, self.families)

    def _take(self, records):
        for record in records:
            item = self.normalizer.item(record)
            if item is not None:
                self.items.append(item)
                self.records.append(bytes(record))
                self.taken["records"] += 1
                if isinstance(item, Window):
                    self.taken["windows"] += 1
                    self.taken["tokens"] += len(item.tokens)
        return len(records)

    def _adds_up(self):
        a, found = self.account, sums(self.account)
        assert [label for label, _, _ in found] == [
            "system calls seen", "their tokens", "windows closed", "windows not gated", "argument events",
            "forks, execs, exits", "records delivered", "records missing",
        ]  # fmt: skip
        assert [one for one in found if one[1] != one[2]] == []
        assert a["records_delivered"] == self.taken["records"]
        assert a["windows_sent"] == self.taken["windows"]
        assert a["tokens_sent"] == self.taken["tokens"]
        assert self.normalizer.malformed == 0


def sums(account):
    """Return what must add up: its label, and both sides of the equation."""
    return [
        (label, sum(account[name] for name in wholes), sum(account[name] for name in parts))
        for label, wholes, parts in report._SUMS
        if all(name in account for name in (*wholes, *parts))
    ]


def is_call(number):
    """Tell whether a token is a system call."""
    return number < syscalls.CLASS or number == syscalls.INVALID


def token(name):
    return syscalls.token_of(name, ARCH)


def in_full(path):
    """Return a program's path as the kernel sees it."""
    return str(Path(path).resolve())


def bpf_ids(pid):
    """Return the BPF objects that a process holds: kind -> ids."""
    held: dict[str, set[int]] = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):
            for line in entry.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in {"prog_id", "link_id", "map_id"}:
                    held.setdefault(name, set()).add(int(value))
    return held


def exists(kind, number):
    """Ask the kernel for an object by its id (bpf(2), BPF_*_GET_FD_BY_ID)."""
    command = {"prog_id": 13, "map_id": 14, "link_id": 30}[kind]
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_BPF[ARCH], command, (ctypes.c_uint32 * 32)(number), 128)
    if fd < 0:
        assert ctypes.get_errno() == errno.ENOENT
        return False
    os.close(fd)
    return True
