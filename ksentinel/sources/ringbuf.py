# SPDX-License-Identifier: Apache-2.0
"""
The live source: the BPF collector's ring buffer.

Loads ``lsm_bpf/trace.bpf.c``, tells it which arguments to read, and yields its records as bytes; `normalize.bpf`
makes events and windows of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from ksentinel import syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.libbpf import Object, run_iterator, wait_for_programs
from ksentinel.bpf.ring import Ring
from ksentinel.errors import HostError
from ksentinel.sources import Account

# Name -> (path1, dir1, path2, dir2, address, address_len, words): argument numbers from 1. See struct ks_capture.
CAPTURES: dict[str, tuple[int, ...]] = {
    "execve": (1,),
    "execveat": (2, 1),
    "open": (1,),
    "openat": (2, 1),
    "openat2": (2, 1, 0, 0, 0, 0, 3),
    "creat": (1,),
    "truncate": (1,),
    "truncate64": (1,),
    "unlink": (1,),
    "unlinkat": (2, 1),
    "rename": (1, 0, 2),
    "renameat": (2, 1, 4, 3),
    "renameat2": (2, 1, 4, 3),
    "link": (1, 0, 2),
    "linkat": (2, 1, 4, 3),
    "symlink": (1, 0, 2),
    "symlinkat": (1, 0, 3, 2),
    "chmod": (1,),
    "fchmodat": (2, 1),
    "fchmodat2": (2, 1),
    "chown": (1,),
    "lchown": (1,),
    "chown32": (1,),
    "lchown32": (1,),
    "fchownat": (2, 1),
    "mount": (1, 0, 2),
    "umount2": (1,),
    "umount": (1,),
    "connect": (0, 0, 0, 0, 2, 3),
    "bind": (0, 0, 0, 0, 2, 3),
    "sendto": (0, 0, 0, 0, 5, 6),
    "memfd_create": (1,),
    "delete_module": (1,),
    "finit_module": (),
    "init_module": (),
    "ptrace": (),
    "process_vm_readv": (),
    "process_vm_writev": (),
    "setuid": (),
    "setgid": (),
    "setreuid": (),
    "setregid": (),
    "setresuid": (),
    "setresgid": (),
    "setuid32": (),
    "setgid32": (),
    "setreuid32": (),
    "setregid32": (),
    "setresuid32": (),
    "setresgid32": (),
    "capset": (),
    "prctl": (),
    "unshare": (),
    "setns": (),
    "bpf": (),
    "kill": (),
    "fchmod": (),
    "kexec_load": (),
}

_SWEEP_EVERY = 1.0
_SWEEPS = 10
_GATHER = 0.05
_FULL = 0.25
_PROGRAMS = ("on_sys_enter", "on_fork", "on_exec", "on_exit")


class Collector:
    """
    The collector, attached for as long as the ``with`` block lasts.

    Parameters
    ----------
    path
        The compiled ``trace.bpf.o``.
    own_pid
        The process that isn't observed: ksentinel itself (counted as ``own``).
    arch
        This machine's architecture, as in ``uname -m``.
    idle_seconds
        A thread that has slept this long on a part-filled window has it flushed.
    ring_bytes
        Size of the ring buffer; a power of two.
    clock, sleep
        Seconds, monotonic; and what waits for some.

    Raises
    ------
    HostError
        On entering: what this host refuses, and the remedy.
    """

    def __init__(
        self,
        path: Path,
        own_pid: int,
        arch: str,
        *,
        idle_seconds: float = 2.0,
        ring_bytes: int = 16 << 20,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self.own_pid = own_pid
        self.arch = arch
        self.idle_seconds = idle_seconds
        self.ring_bytes = ring_bytes
        self.clock = clock
        self.sleep = sleep
        self._stack = ExitStack()
        self._records = 0
        self._duration = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._object = stack.enter_context(Object(self.path))
            self._object.resize("ring", self.ring_bytes)
            self._object.load()
            self._configure(stopping=False)
            for name, arguments in CAPTURES.items():
                self._capture(name, arguments)
            self._ring = stack.enter_context(Ring(self._object.map("ring")))
            # The lifecycle first: a process born from now on is never seen without its birth.
            for program in reversed(_PROGRAMS):
                self._object.attach(program)
            self._sweeper = self._object.iterator("sweep")
            run_iterator(self._sweeper)  # its first pass sets the clock that the second compares with
            self._stack = stack.pop_all()
        self._started = self._swept = self.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def poll(self, seconds: float = 0.2) -> list[memoryview]:
        """Return the records that have arrived, waiting at most *seconds* for the first; sweeps idle threads."""
        # One waking up for many records instead of one for each; a ring that fills up is emptied at once.
        if self._ring.wait(seconds) and self._ring.fill < _FULL:
            self.sleep(_GATHER)
        if self.clock() - self._swept >= _SWEEP_EVERY:
            run_iterator(self._sweeper)
            self._swept = self.clock()
        return list(self._take())

    def finish(self) -> Iterator[list[memoryview]]:
        """Stop collecting, flush every thread, and yield all that is left."""
        self._configure(stopping=True)
        self._object.detach_program("on_sys_enter")
        wait_for_programs()
        self._duration = self.clock() - self._started
        # No thread gains a token any more. Those that end meanwhile flush themselves, so the other programs stay until
        # the sweep is through; one that was just doing so was busy, so look again.
        for _ in range(_SWEEPS):
            run_iterator(self._sweeper)
            while records := list(self._take()):
                yield records
            now = self.counters()
            if now["recorded"] == now["tokens_sent"] + now["tokens_dropped"]:
                break
        for program in _PROGRAMS:
            self._object.detach_program(program)
        wait_for_programs()
        while records := list(self._take()):
            yield records

    def counters(self) -> dict[str, int]:
        """Return struct ks_counters summed over programs and CPUs, with ``closed_full`` etc. for its array."""
        total = dict.fromkeys((name for name, _ in abi.Counters._fields_), 0)
        closed = [0] * 5
        for program in range(5):
            for one in self._object.map("counters").lookup_percpu(program, abi.Counters):
                for name in total:
                    if name != "closed":
                        total[name] += getattr(one, name)
                closed = [a + b for a, b in zip(closed, one.closed, strict=True)]
        del total["closed"]
        causes = ("full", "exit", "exec", "idle", "stop")
        return total | {f"closed_{cause}": n for cause, n in zip(causes, closed, strict=True)}

    def lost(self) -> int:
        """Return how many records the ring buffer had no room for."""
        now = self.counters()
        return now["windows_dropped"] + now["calls_dropped"] + now["lifecycle_dropped"]

    def account(self) -> Account:
        """Return the counters, the runs the kernel itself missed, and what was delivered."""
        missed = sum(self._object.missed(program) for program in _PROGRAMS)
        seconds = self._duration or self.clock() - self._started
        return {
            **self.counters(),
            "missed_runs": missed,
            "records_delivered": self._records,
            "seconds": round(seconds, 3),
        }

    def _take(self) -> Iterator[memoryview]:
        for record in self._ring.read():
            self._records += 1
            yield record

    def _configure(self, *, stopping: bool) -> None:
        config = abi.Config(
            abi_version=abi.VERSION,
            own_tgid=self.own_pid,
            idle_ns=int(self.idle_seconds * 1e9),
            stopping=stopping,
        )
        self._object.map("config").update(0, config)

    def _capture(self, name: str, arguments: tuple[int, ...]) -> None:
        fields = ("path1", "dir1", "path2", "dir2", "address", "address_len", "words")
        wanted = abi.Wanted.AT_ONCE if name.startswith("execve") else abi.Wanted.PATIENTLY
        capture = abi.Capture(wanted=wanted, **dict(zip(fields, arguments, strict=False)))
        tables = [(self.arch, (syscalls.Abi.NATIVE, syscalls.Abi.X32)), ("i386", (syscalls.Abi.COMPAT,))]
        known = False
        for arch, abis in tables if self.arch == "x86_64" else tables[:1]:
            number = syscalls.numbers(arch).get(name)
            if number is not None:
                known = True
                for one in abis:
                    self._object.map("captures").update(syscalls.token(number, one), capture)
        if not known and self.arch == "x86_64":
            raise HostError(f"no system call is named {name}", remedy="please report this")
