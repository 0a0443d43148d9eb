# SPDX-License-Identifier: Apache-2.0
"""
Windows: the last few system calls of each thread, as a stream of their own.

Per thread, because interleaved threads ruin n-grams.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from ksentinel.event import Origin, Process

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
    """

    process: Process
    tid: int
    first_ns: int
    last_ns: int
    tokens: tuple[int, ...]
    cause: Cause = Cause.FULL
    origin: Origin = Origin.BPF
    lossy: bool = field(default=False)

    @property
    def profile(self) -> tuple[str, str]:
        """Executable and service ancestor: the normal profile this window is compared with."""
        return self.process.exe, self.process.service_exe
