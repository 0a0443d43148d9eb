# SPDX-License-Identifier: Apache-2.0
"""Status: what a running daemon says of itself, what it costs among it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from ksentinel.errors import InputError
from ksentinel.mutes import Mute

_MINUTE = 60.0
_SAMPLE_EVERY = 1.0  # at most, however often somebody asks


@dataclass(frozen=True, slots=True)
class Usage:
    """
    What the daemon's own process has used; what its BPF programs cost is charged to whoever makes the system calls.

    Attributes
    ----------
    cpu_seconds
        Of all threads, since the process began.
    cpu_share
        Share of one core since the daemon began to watch.
    cpu_share_lately
        The same over the last *lately_seconds*: a minute, or less if it hasn't run for one.
    memory_bytes, memory_peak_bytes
        Resident.
    """

    cpu_seconds: float
    cpu_share: float
    cpu_share_lately: float
    lately_seconds: float
    memory_bytes: int
    memory_peak_bytes: int


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """
    The model in use.

    Attributes
    ----------
    path
        Its folder.
    written_ns
        When its manifest was written.
    host, kernel
        Where it was trained; empty if nobody said.
    recordings
        What it was trained on.
    windows, executables
        How many windows it was fitted on, of how many executables.
    """

    path: str
    written_ns: int
    host: str
    kernel: str
    recordings: tuple[str, ...]
    windows: int
    executables: int


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """
    How a reload of the rules ended.

    Attributes
    ----------
    rules
        How many were in use afterwards.
    error
        Why those from before stayed, with the place; empty if they didn't.
    """

    time_ns: int
    ok: bool
    rules: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class SuppressedRule:
    """How many alerts of a rule were suppressed."""

    rule: str
    title: str
    alerts: int


@dataclass(frozen=True, slots=True)
class QuietenedTriple:
    """Who is quietened for the rest of the day, and how many alerts of theirs that concerned."""

    rule: str
    exe: str
    parent: str
    alerts: int


@dataclass(frozen=True, slots=True)
class NoiseStatus:
    """
    What isn't shown, as `ksentinel.noise` tells it.

    Attributes
    ----------
    suppressed
        Rules, each with how many of its alerts were capped or quietened.
    quietened
        Rule, executable and parent that are quietened today, with how many of their alerts.
    mutes
        In force, the first to end first.
    """

    suppressed: tuple[SuppressedRule, ...] = ()
    quietened: tuple[QuietenedTriple, ...] = ()
    mutes: tuple[Mute, ...] = ()


@dataclass(frozen=True, slots=True)
class EnforcementStatus:
    """
    What is enforced, as `ksentinel.enforce.enforcement` tells it.

    Attributes
    ----------
    requested, mode, verified
        What the operator asked for; what is in force; what the canary has seen in force (``no``: nothing).
    why
        Why *mode* is less than *requested*.
    released
        Nothing is denied, whatever else says so.
    proven_ns
        When it was tried last, in nanoseconds since the epoch; 0: never.
    attached
        Hooks with a guard.
    missing, unproven
        Hooks that this kernel lacks, and hooks whose guard isn't verified, each with the reason.
    confirm
        Where a confirmation stands; empty: none is waited for.
    policy
        Epoch, and how many rules, entries and ways it has.
    modes
        Of rules, entries and control groups that have one of their own.
    taken_back
        Rules that the breaker has made permissive.
    sentences
        Processes under a verdict.
    counters
        The guards'.
    """

    requested: str
    mode: str
    verified: str
    why: tuple[str, ...] = ()
    released: bool = False
    on_exit: str = "open"
    proven_ns: int = 0
    attached: tuple[str, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
    unproven: dict[str, str] = field(default_factory=dict)
    confirm: str = ""
    policy: dict[str, Any] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    taken_back: tuple[str, ...] = ()
    sentences: int = 0
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """
    Answer to the request ``status``.

    Attributes
    ----------
    version
        Of ksentinel.
    mode
        What it does about what it sees: ``monitor`` tells, and nothing else; ``enforce`` also refuses, as *enforcement* says.
    since_ns, seconds
        When it began to watch, and for how long it has.
    model
        None: rules alone.
    rules, rules_loaded_ns
        How many are loaded, and since when (0: an older daemon, which doesn't say).
    last_reload
        None if there was none.
    lost
        Records that were lost so far.
    account, walk, control
        Counters: of the collector and the stream, of the walk, of the control socket. Read while all of them go on:
        what is on its way from one to the next is in no sum yet.
    noise
        What is suppressed by rule, who is quietened today, and the mutes; an older daemon doesn't say.
    enforcement
        None: nothing is enforced.
    """

    version: str
    pid: int
    mode: str
    since_ns: int
    seconds: float
    model: ModelStatus | None
    rules: int
    store: str
    lost: int
    account: dict[str, int | float]
    walk: dict[str, int]
    control: dict[str, int]
    usage: Usage
    rules_loaded_ns: int = 0
    last_reload: ReloadStatus | None = None
    noise: NoiseStatus = NoiseStatus()
    enforcement: EnforcementStatus | None = None

    @classmethod
    def from_plain(cls, plain: Any, at: Path) -> "Status":
        """Return what came as JSON from the socket *at*; unknown fields are a newer daemon's; raises InputError."""
        try:
            return msgspec.convert(plain, cls)
        except msgspec.ValidationError as error:
            raise InputError(
                f"answers something else than a status: {error}", at=at, remedy="is it another version's?"
            ) from None


class Meter:
    """
    Measures what this process uses.

    Not thread safe: made anywhere, then used by one thread.

    Parameters
    ----------
    clock
        Seconds, monotonic.
    cpu
        Seconds of CPU time that the process has used.
    memory
        Its resident memory in bytes, and the peak of that.

    Examples
    --------
    >>> times = iter([(0.0, 1.0), (30.0, 4.0), (90.0, 4.0)])
    >>> clock, cpu = zip(*times)
    >>> meter = Meter(iter(clock).__next__, iter(cpu).__next__, lambda: (10, 20))
    >>> meter.sample()
    >>> usage = meter.usage()
    >>> round(usage.cpu_share, 3), usage.cpu_share_lately, usage.lately_seconds
    (0.033, 0.0, 60.0)
    """

    def __init__(
        self, clock: Callable[[], float], cpu: Callable[[], float], memory: Callable[[], tuple[int, int]]
    ) -> None:
        self.clock = clock
        self.cpu = cpu
        self.memory = memory
        self._first = (clock(), cpu())
        self._samples = deque([self._first])

    def sample(self) -> None:
        """Remember what was used until now: to be called every few seconds."""
        self._sample(self.clock(), self.cpu())

    def usage(self) -> Usage:
        """Return what was used."""
        now, used = self.clock(), self.cpu()
        self._sample(now, used)
        before, used_before = self._samples[0]
        resident, peak = self.memory()
        return Usage(
            cpu_seconds=round(used, 3),
            cpu_share=_share(used - self._first[1], now - self._first[0]),
            cpu_share_lately=_share(used - used_before, now - before),
            lately_seconds=round(now - before, 3),
            memory_bytes=resident,
            memory_peak_bytes=peak,
        )

    def _sample(self, now: float, used: float) -> None:
        # The last one that is a minute old, or older, is what a minute is counted from.
        while len(self._samples) > 1 and self._samples[1][0] <= now - _MINUTE:
            self._samples.popleft()
        if now - self._samples[-1][0] >= _SAMPLE_EVERY:
            self._samples.append((now, used))


def _share(used: float, seconds: float) -> float:
    return round(used / seconds, 5) if seconds > 0 else 0.0
