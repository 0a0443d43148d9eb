# SPDX-License-Identifier: Apache-2.0
"""
Windows: the last few system calls of each thread, as a stream of their own.

Per thread, because interleaved threads ruin n-grams.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from ksentinel.event import Event, ExecEvent, ExitEvent, Origin, Process

LENGTH = 64
"""Tokens in a full window; the same as KS_WINDOW in lsm_bpf/ksentinel_abi.h."""


class Cause(IntEnum):
    """Why a window was closed; the same numbers as in lsm_bpf/ksentinel_abi.h."""

    FULL = 0
    EXIT = 1
    EXEC = 2
    IDLE = 3
    STOP = 4


@dataclass(frozen=True, slots=True)
class KernelScore:
    """
    What the kernel made of a window: the numbers of docs/kernel-scoring.md.

    Attributes
    ----------
    epoch, row
        Which model scored it, and by which of its rows.
    begin_mean, begin_cusum, mean, cusum
        The thread's scores before and after.
    peak_mean, peak_cusum
        The highest of them within.
    process
        Score of the process afterwards.
    scored
        Tokens that moved the scores.
    choice
        Why it was sent: ``ungated``, ``flagged``, ``sampled``.
    over
        What was over its limit: ``mean``, ``cusum``, ``process``.
    """

    epoch: int
    row: int
    begin_mean: int
    begin_cusum: int
    mean: int
    cusum: int
    peak_mean: int
    peak_cusum: int
    process: int
    scored: int
    choice: str
    over: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """
    Up to 64 consecutive system calls of one thread.

    Attributes
    ----------
    process
        As it was when the window was closed (on exec: the program before it).
    tokens
        System calls in order, as in `syscalls.token`.
    lossy
        Something was dropped on the way while this window was filled: an absence in it proves nothing.
    kernel
        Its scores in the kernel; None if it wasn't scored there, and in recordings.
    """

    process: Process
    tid: int
    first_ns: int
    last_ns: int
    tokens: tuple[int, ...]
    cause: Cause = Cause.FULL
    origin: Origin = Origin.BPF
    lossy: bool = field(default=False)
    kernel: KernelScore | None = field(default=None, compare=False)

    @property
    def profile(self) -> tuple[str, str]:
        """Program and service ancestor: the normal profile this window is compared with."""
        return self.process.program, self.process.service_program


class Assembler:
    """
    Makes windows of single events, for sources that don't deliver windows themselves (audit).

    Per thread, never mixed. At most *limit* threads are kept: the one heard of least recently is closed early.

    Parameters
    ----------
    idle_ns
        A thread that was silent this long has its window closed by the next event of anyone.
    """

    def __init__(self, idle_ns: int = 2_000_000_000, limit: int = 16384) -> None:
        self.idle_ns = idle_ns
        self.limit = limit
        self._open: OrderedDict[int, _Filling] = OrderedDict()

    def add(self, event: Event) -> Iterator[Window]:
        """Take an event in; yield the windows that it closes, its own thread's last."""
        while self._open:
            tid, silent = next(iter(self._open.items()))  # the one silent for longest
            if event.time_ns - silent.last_ns < self.idle_ns:
                break
            yield self._close(tid, Cause.IDLE)
        before = self._open.get(event.tid)
        if before is not None and before.process.key != event.process.key:
            # Nobody saw it end, and its number has another owner by now.
            yield self._close(event.tid, Cause.EXIT)
        if isinstance(event, ExecEvent) and event.tid in self._open:
            yield self._close(event.tid, Cause.EXEC)
        if event.token is not None:
            filling = self._open.setdefault(event.tid, _Filling(event.process, event.time_ns, event.origin))
            self._open.move_to_end(event.tid)
            filling.process, filling.last_ns = event.process, max(filling.last_ns, event.time_ns)
            filling.tokens.append(event.token)
            if len(filling.tokens) >= LENGTH:
                yield self._close(event.tid, Cause.FULL)
        if isinstance(event, ExitEvent) and event.tid in self._open:
            yield self._close(event.tid, Cause.EXIT)
        if len(self._open) > self.limit:
            yield self._close(next(iter(self._open)), Cause.IDLE)

    def finish(self) -> Iterator[Window]:
        """Close what is open."""
        for tid in list(self._open):
            yield self._close(tid, Cause.STOP)

    def _close(self, tid: int, cause: Cause) -> Window:
        filling = self._open.pop(tid)
        return Window(
            process=filling.process,
            tid=tid,
            first_ns=filling.first_ns,
            last_ns=filling.last_ns,
            tokens=tuple(filling.tokens),
            cause=cause,
            origin=filling.origin,
        )


class _Filling:
    __slots__ = ("first_ns", "last_ns", "origin", "process", "tokens")

    def __init__(self, process: Process, first_ns: int, origin: Origin) -> None:
        self.process = process
        self.first_ns = self.last_ns = first_ns
        self.origin = origin
        self.tokens: list[int] = []
