# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive this one, and what they cost."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Self

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Nothing else is inherited: not MAKEFLAGS, not a proxy, no LD_PRELOAD."""

_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """One measurement failed; the others go on, and this one is told."""


class AbsentError(BenchError):
    """Something that a side or a workload needs isn't there: says what, and what would help."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program, where its libraries are, and which version it is."""

    path: Path
    libraries: tuple[Path, ...] = ()
    version: str = ""

    def environment(self, **more: str) -> dict[str, str]:
        """Return what it is started with."""
        found = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"} | more
        if self.libraries:
            found["LD_LIBRARY_PATH"] = ":".join(str(path) for path in self.libraries)
        return found


def mortal(command: Sequence[str | Path]) -> list[str]:
    """Return *command* so that the kernel ends it when this process has ended, even by ``kill -9``."""
    return ["setpriv", "--pdeathsig", "TERM", *map(str, command)]


def with_tracefs(command: Sequence[str | Path]) -> list[str]:
    """Return *command* with tracefs mounted for it alone: nothing of that is seen outside."""
    script = 'mount -t tracefs nodev /sys/kernel/tracing && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)]


class Child:
    """
    A program that runs beside us for as long as the ``with`` block lasts.

    In a session of its own, so that Ctrl-C reaches only us, and we end it in our order.

    Parameters
    ----------
    command
        What to start.
    log
        Where its standard output (``.out``) and standard error (``.err``) go.
    environment
        All of it.
    end_by
        The signal by which it ends in good order.
    patience
        So many seconds it has for that; then it is killed, and that is an error.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: dict[str, str] | None = None,
        *,
        end_by: signal.Signals = signal.SIGTERM,
        patience: float = 60.0,
    ) -> None:
        self.command = mortal(command)
        self.out, self.err = log.with_suffix(".out"), log.with_suffix(".err")
        self.environment = environment or {"PATH": PATH, "LANG": "C.UTF-8"}
        self.end_by, self.patience = end_by, patience

    def __enter__(self) -> Self:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Its process id: the programs in front of it replace themselves by it."""
        return self.process.pid

    def end(self) -> None:
        """End it; raises BenchError if it has to be killed. Nothing happens if it has ended."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(self.end_by)
        try:
            self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{self.said_by} did not end within {self.patience:g} s and was killed"
            ) from None
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def wait_until(self, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when *ready* says so; raises BenchError if the program ends or takes too long."""
        end = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise BenchError(f"{self.said_by} ended with {self.process.returncode}: {self.last_words()}")
            if time.monotonic() > end:
                raise BenchError(f"{self.said_by} was not ready in {seconds:g} s: {self.last_words()}")
            time.sleep(0.01)

    def says(self, text: str) -> bool:
        """Tell whether it has written *text*."""
        return any(text in path.read_text(errors="replace") for path in (self.out, self.err))

    def last_words(self) -> str:
        """Return the last line of its standard error."""
        lines = self.err.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    @property
    def said_by(self) -> str:
        """What it is called in messages."""
        return self.out.stem


def run(
    command: Sequence[str | Path],
    environment: dict[str, str] | None = None,
    *,
    seconds: float = 120.0,
    folder: Path | None = None,
) -> str:
    """
    Run a command to its end and return what it printed.

    Raises
    ------
    BenchError
        If it fails, or takes longer than *seconds* (it is ended then, with all its children).
    """
    name = Path(command[0]).name
    with subprocess.Popen(
        mortal(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment or {"PATH": PATH, "LANG": "C.UTF-8"},
        cwd=folder,
        start_new_session=True,
        text=True,
        errors="replace",
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{name} took longer than {seconds:g} s and was ended") from None
        finally:
            if process.returncode is None:
                _end_group(process)
    if process.returncode:
        said = (err.strip() or out.strip()).splitlines()
        raise BenchError(f"{name} ended with {process.returncode}: {said[-1] if said else 'it said nothing'}")
    return out


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a process with its session: SIGTERM lets strace let go of what it traces."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def cpu_seconds(pids: Iterable[int], proc: Path = Path("/proc")) -> float:
    """Return the CPU time that these processes have used so far, all threads, in the kernel and outside."""
    total = 0
    for pid in pids:
        try:
            # The name in brackets may hold anything, brackets too.
            fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def busy(stat: str) -> tuple[int, int]:
    """
    Return how many ticks all CPUs have been busy, and how many there were, by the first line of ``/proc/stat``.

    Examples
    --------
    >>> busy("cpu  10 5 20 100 30 1 2 3 0 0")
    (41, 171)
    """
    ticks = [int(word) for word in stat.split()[1:9]]  # guests are in user already
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def busy_share(seconds: float, stat: Path = Path("/proc/stat")) -> float:
    """Return which share of the CPUs is used during the next *seconds*, in which we do nothing."""
    before = busy(stat.read_text())
    time.sleep(seconds)
    after = busy(stat.read_text())
    return (after[0] - before[0]) / max(after[1] - before[1], 1)


def peak_mebibytes(pid: int, proc: Path = Path("/proc")) -> float:
    """Return the most memory that a process has had resident."""
    for line in (proc / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise BenchError(f"process {pid} has no memory")


def settle(pids: Sequence[int], seconds: float, quiet: float = 0.15) -> bool:
    """
    Wait until these processes have caught up, so that their work doesn't fall into the next measurement.

    Returns whether they have: false after *seconds*.
    """
    if not pids:
        return True
    end = time.monotonic() + seconds
    before = cpu_seconds(pids)
    while time.monotonic() < end:
        time.sleep(quiet)
        now = cpu_seconds(pids)
        if now - before <= 0.1 * quiet + 1 / _TICKS:
            return True
        before = now
    return False


def threads_named(name: str, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes (kernel threads, too) of that name."""
    found = []
    for path in proc.glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def end_in_good_order() -> None:
    """Let SIGTERM and SIGHUP clean up like Ctrl-C does."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    # Threads and files of a bench are few; a core file would be the only large thing left behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
