# SPDX-License-Identifier: Apache-2.0
"""What a model was made of, and what it did on windows it had never seen: the truth that its card tells."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of recorded events that a model was trained on."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ExecutableFacts:
    """
    One executable in training.

    Attributes
    ----------
    exe
        Its path, bytes that are no UTF-8 as backslash escapes.
    processes
        How many were seen.
    fit, calibrate, test, gap
        Windows in each part; those left out at the borders of a process that was cut in time.
    cut_in_time
        One process made up most of it, so its time line was cut into blocks instead of keeping it on one side.
    """

    exe: str
    processes: int
    fit: int
    calibrate: int
    test: int
    gap: int = 0
    cut_in_time: bool = False


@dataclass(frozen=True, slots=True)
class Alarms:
    """
    False alarms on the test part, at one level or above.

    Attributes
    ----------
    level
        Its name.
    windows
        How many test windows reached it.
    per_thread_hour, per_host_hour
        Exact Poisson 95 % interval of the rate (F. Garwood, "Fiducial limits for the Poisson distribution",
        Biometrika 28, 1936); None if the test part spans no time.
    """

    level: str
    windows: int
    per_thread_hour: tuple[float, float] | None
    per_host_hour: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Gate:
    """
    What the model's part in the kernel did with the test part.

    Attributes
    ----------
    profiles, evicted
        Profiles that have a row of their own there, and those that share the host-wide one for want of room.
    flagged
        Test windows over a limit: these would have gone to user space.
    alarms, missed
        Test windows that the whole model finds unusual (level low or above), and how many of these the gate keeps.
    """

    profiles: int
    evicted: int
    flagged: int
    alarms: int
    missed: int


@dataclass(frozen=True, slots=True)
class Facts:
    """
    Facts of one training.

    Attributes
    ----------
    recordings, host, kernel
        Where the windows came from; empty if nobody said.
    duration_s
        From the first to the last system call recorded.
    fit, calibrate, test, gap
        Windows in each part, and those left out between parts.
    unseen
        Test windows whose executable the model never saw.
    strangers
        Windows that calibrate executables never seen.
    thread_hours
        Thread life in the test part: the sum over its threads of the time between first and last system call.
    host_hours
        The share of the recording that the test part stands for: its duration, times the test part's share of
        all thread life (of all windows, if no thread lived for any time).
    ngrams
        Distinct n-grams of all lengths and profiles.
    alarms
        By level, lowest first.
    gate
        Of the part in the kernel; None if there is none.
    contents
        SHA-256 of each program as it was when it was recorded, as far as it could be read.
    """

    duration_s: float
    fit: int
    calibrate: int
    test: int
    gap: int
    unseen: int
    strangers: int
    processes: int
    threads: int
    tokens: int
    ngrams: int
    thread_hours: float
    host_hours: float
    seed: int
    order: int
    executables: tuple[ExecutableFacts, ...]
    alarms: tuple[Alarms, ...]
    recordings: tuple[Recording, ...] = ()
    host: str = ""
    kernel: str = ""
    gate: Gate | None = None
    contents: dict[str, str] = field(default_factory=dict)
