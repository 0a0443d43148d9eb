# SPDX-License-Identifier: Apache-2.0
"""
The canary: proves of each attached guard that it stands, by an operation that only it may refuse.

A guard that doesn't refuse looks like a quiet day. So a child attempts, for each hook, one operation that comes by there
(`ksentinel.enforce.attempts`), after the kernel has been told its thread and a nonce: the canary's own way then speaks against this
thread, at this hook, and against nobody else. What came back and the record that was written are held against each other.
"""

import ctypes
import errno
import os
import platform
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from threading import Condition
from types import MappingProxyType, TracebackType
from typing import IO, Protocol, Self

import orjson

from ksentinel.bpf.abi import Header, Kind
from ksentinel.bpf.guard_abi import Denial, DenialFlag, Hook, Outcome
from ksentinel.enforce import Mode, attempts
from ksentinel.enforce.attempts import ATTEMPTS, CALLS, LINE, Attempt
from ksentinel.enforce.compiled import CANARY_RULE
from ksentinel.errors import HostError
from ksentinel.printable import printable
from ksentinel.syscalls import numbers

SECONDS = 2.0
"""That one attempt may take."""
ROUND_SECONDS = 10.0
"""That all of them together may."""
COVERED = ("/mnt", "/media", "/srv", "/tmp")  # noqa: S108 -- covered in a mount namespace of its own, by a file system of its own
"""Directories of which the helper covers the first that is there."""
_KEPT = 256
_DENIAL = ctypes.sizeof(Denial)
_SHOWN = 200


class Finding(StrEnum):
    """What came out for one hook."""

    VERIFIED = "verified"
    SILENT = "never fired"
    UNRECORDED = "refused without a record"
    NOT_REFUSED = "recorded, but not refused"
    NOT_AS_ASKED = "decided otherwise than asked"
    IMPOSSIBLE = "can't be attempted here"
    ASTRAY = "ended before the hook"
    DIED = "helper died"
    LATE = "took too long"


@dataclass(frozen=True, slots=True)
class Result:
    """
    What came out for one hook.

    Attributes
    ----------
    what
        The reason, with its remedy; empty if it is verified.
    errno
        How the attempt ended; 0 for success, None if it didn't come to it.
    microseconds
        How long its system call took, decision included.
    """

    finding: Finding
    what: str = ""
    errno: int | None = None
    microseconds: int | None = None

    @property
    def verified(self) -> bool:
        """Whether the guard is proven."""
        return self.finding is Finding.VERIFIED


@dataclass(frozen=True, slots=True)
class Proof:
    """
    One round.

    Attributes
    ----------
    time
        When it began, by the clock that the canary was given.
    mode
        That was to be proven.
    results
        By hook, in the order asked.
    """

    time: float
    mode: Mode
    results: Mapping[Hook, Result]

    @property
    def verified(self) -> bool:
        """
        Whether all guards are proven that can be, and there are some; where nothing is enforced there is nothing to prove.

        What nobody can attempt on this host (a kernel without modules, user namespaces switched off) is no reason to enforce
        nothing else; it stays among the `unproven`.
        """
        if self.mode is Mode.OFF:
            return True
        tried = [one for one in self.results.values() if one.finding is not Finding.IMPOSSIBLE]
        return bool(tried) and all(result.verified for result in tried)

    @property
    def unproven(self) -> dict[Hook, Result]:
        """Those that aren't."""
        return {hook: result for hook, result in self.results.items() if not result.verified}


@dataclass(frozen=True, slots=True)
class Done:
    """
    An attempt that was made: which thread made it, how it ended, and whether it returned what it always returns.

    Attributes
    ----------
    ended
        Of a child that told nothing: how it ended, a signal negative.
    """

    tid: int
    errno: int = 0
    nanoseconds: int = 0
    usual: bool = True
    ended: int | None = None


def judge(hook: Hook, mode: Mode, done: Done, record: Denial | None, attempt: Attempt) -> Result:
    """
    Hold against each other what came back and what was recorded.

    Verified is: refused with EPERM and a record that says so (enforce); gone through as it does without guards and a record
    that says it would have been refused (permissive). Everything else has its own words, because its remedy is another.
    """

    def result(finding: Finding, what: str = "") -> Result:
        number = None if done.ended is not None else done.errno
        return Result(finding, what, number, None if number is None else done.nanoseconds // 1000)

    if record is not None and (
        record.hook != hook or record.header.tid != done.tid or not record.flags & DenialFlag.CANARY
    ):
        return result(
            Finding.NOT_AS_ASKED,
            f"a record has this attempt's nonce, but hook {record.hook}, thread {record.header.tid}, flags {record.flags:#x}: "
            "kernel side and user space are not of one version (restart ksentinel)",
        )
    if record is not None and record.rule != CANARY_RULE:
        return result(
            Finding.NOT_AS_ASKED,
            f"rule {record.rule} of the policy speaks louder than the canary here: it is about operations of ksentinel's own "
            "(except its interpreter from it)",
        )
    if done.ended is not None:
        return result(
            Finding.DIED,
            f"the child {_ended(done.ended)} before it told anything (what ends processes here?)",
        )
    if done.errno == errno.ENOSYS:
        return result(
            Finding.IMPOSSIBLE, f"this kernel doesn't have {attempt.lacks}, so this guard can't be proven"
        )
    normal = done.errno in attempt.ends and done.usual
    if record is None:
        if done.errno == errno.EPERM:
            return result(
                Finding.UNRECORDED,
                "refused, but no record came: another security module or a setting refused first, or the record was lost "
                "(see records_dropped among the guards' counters, and which modules stand before bpf in /sys/kernel/security/lsm)",
            )
        if normal:
            return result(
                Finding.SILENT,
                "went through, and no record came: the hook isn't asked, or its guard had no policy or no working room "
                "(see no_room among the guards' counters; restart ksentinel)",
            )
        return result(
            Finding.ASTRAY,
            f"ended with {_named(done.errno)}, which it shouldn't, before any guard was asked "
            "(another security module, or a limit of this host)",
        )
    outcome = record.outcome
    if mode is Mode.ENFORCE and outcome == Outcome.DENIED:
        if done.errno == errno.EPERM:
            return result(Finding.VERIFIED)
        return result(
            Finding.NOT_REFUSED,
            f"the record says denied, but the operation ended with {_named(done.errno)}: "
            "this kernel doesn't heed the hook's answer",
        )
    if mode is Mode.PERMISSIVE and outcome == Outcome.WOULD_DENY:
        if normal:
            return result(Finding.VERIFIED)
        said = _named(done.errno) if done.errno not in attempt.ends else "another value than usual"
        return result(
            Finding.ASTRAY,
            f"the guard let it through, and it ended with {said} all the same "
            "(another security module, or a limit of this host)",
        )
    return result(Finding.NOT_AS_ASKED, f"asked for {mode}, but {_outcome(outcome)}")


def _outcome(outcome: int) -> str:
    says = {
        Outcome.DENIED: "it was denied: a control group's mode or the switch says enforce",
        Outcome.WOULD_DENY: "it would only have been denied: a control group's mode or the switch says permissive",
        Outcome.RELEASED: "enforcement is released, or its heartbeat is too old",
        Outcome.SPARED: "the never-list spared it, which it never should",
        Outcome.LOGGED: "it was only logged, which the canary's way doesn't ask for",
    }
    return says.get(Outcome(outcome), "") if outcome in list(Outcome) else f"the outcome is {outcome}"


def _named(number: int) -> str:
    return "success" if not number else errno.errorcode.get(number, f"errno {number}")


def _ended(status: int) -> str:
    return f"was ended by signal {-status}" if status < 0 else f"ended with {status}"


# --- the helper ---------------------------------------------------------------------------------------------------


class HelperError(HostError):
    """The helper can't be used any more."""

    finding = Finding.DIED


class LateHelperError(HelperError):
    """It took too long."""

    finding = Finding.LATE


class Cannot(Exception):  # noqa: N818 -- an answer, not a mistake
    """Such an attempt can't be made on this host."""


class Attempting(Protocol):
    """Who makes the attempts."""

    pid: int

    def prepare(self, hook: Hook, seconds: float) -> int:
        """Have everything prepared; returns the waiting thread."""

    def go(self, tid: int, seconds: float) -> Done:
        """Let it go."""

    def interrupt(self) -> None:
        """End it, by another thread than the one that it serves: that one finds it dead."""

    def close(self) -> None:
        """End it."""


class Helper:
    """
    The program that makes the attempts, in namespaces of its own.

    Parameters
    ----------
    program
        An executable file's content that does nothing and exits with 0.
    started
        Is told its PID before it does anything.
    command
        What is run.
    clock
        Seconds, for deadlines.

    Raises
    ------
    HelperError
        If it can't be started, with its reason.
    """

    def __init__(
        self,
        program: bytes,
        started: Callable[[int], object] = lambda _: None,
        *,
        command: Collection[str] = (sys.executable, "-I", "-S", "-B", attempts.__file__),
        machine: str = platform.machine(),
        clock: Callable[[], float] = time.monotonic,
        seconds: float = SECONDS,
    ) -> None:
        self._clock = clock
        self._rest = b""
        known = numbers(machine)
        below = tuple(os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, attempts.__file__))
        plan = {
            "numbers": {name: known[name] for name in CALLS},
            "program": program.hex(),
            # Not where it has its own files from.
            "at": [path for path in COVERED if not any(one.startswith(path + "/") for one in below)],
        }
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, cwd="/", env={}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise HelperError(f"the canary's helper can't be started: {error}") from None
        self.pid = self._process.pid
        try:
            started(self.pid)
            self._tell(orjson.dumps(plan))
            self._numbers(*self._hear(self._clock() + seconds), "up", 0)
        except BaseException:
            self.close()
            raise

    def prepare(self, hook: Hook, seconds: float) -> int:
        """
        Have everything prepared for a hook's attempt; returns the thread that waits to make it.

        Raises
        ------
        Cannot
            If it can't be made on this host.
        HelperError
            If the helper died, said nonsense or took too long.
        """
        self._tell(f"prepare {hook.name.lower()}".encode())
        word, text = self._hear(self._clock() + seconds)
        if word == "cannot":
            raise Cannot(text)
        (tid,) = self._numbers(word, text, "ready", 1)
        if tid <= 1:
            raise self._nonsense(word, text)
        return tid

    def go(self, tid: int, seconds: float) -> Done:
        """
        Let it go; returns how it ended.

        Raises
        ------
        HelperError
            If the helper died, said nonsense or took too long.
        """
        self._tell(b"go")
        word, text = self._hear(self._clock() + seconds)
        if word == "ended":
            return Done(tid, ended=self._numbers(word, text, "ended", 1)[0])
        number, took, usual = self._numbers(word, text, "done", 3)
        return Done(tid, number, took, bool(usual))

    def interrupt(self) -> None:
        """End it, by another thread than the one that it serves: that one finds it dead."""
        self._process.kill()

    def close(self) -> None:
        """End it; the kernel takes its namespaces down, and its children see that nobody tells them to go."""
        with suppress(OSError):
            self._in.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs in the kernel is left to itself
            self._process.wait(1)
        self._out.close()

    @property
    def _in(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101
        return self._process.stdin

    @property
    def _out(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101
        return self._process.stdout

    def _tell(self, line: bytes) -> None:
        try:
            self._in.write(line + b"\n")
        except OSError:
            raise self._gone() from None

    def _hear(self, deadline: float) -> tuple[str, str]:
        """Return the next line's first word and the rest of it."""
        while b"\n" not in self._rest:
            left = max(0.0, deadline - self._clock())
            ready, _, _ = select.select([self._out], [], [], left)
            if not ready:
                raise LateHelperError("the canary's helper didn't answer in time (is the machine that busy?)")
            part = os.read(self._out.fileno(), LINE)
            if not part:
                raise self._gone()
            self._rest += part
            if len(self._rest) > LINE:
                raise HelperError("the canary's helper said more than it may")
        line, _, self._rest = self._rest.partition(b"\n")
        word, _, text = line.decode("ascii", "replace").partition(" ")
        if word == "failed":
            raise HelperError(f"the canary's helper can't work here: {printable(text, _SHOWN)}")
        return word, printable(text, _SHOWN)

    def _numbers(self, word: str, text: str, wanted: str, count: int) -> list[int]:
        parts = text.split()
        if word != wanted or len(parts) != count or not all(re.fullmatch(r"-?[0-9]{1,18}", p) for p in parts):
            raise self._nonsense(word, text)
        return [int(part) for part in parts]

    def _nonsense(self, word: str, text: str) -> HelperError:
        return HelperError(f"the canary's helper said {printable(word, 50)!r} {printable(text, 50)!r}")

    def _gone(self) -> HelperError:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return HelperError("the canary's helper closed its output")
        return HelperError(f"the canary's helper {_ended(status)}")


def proof_in(record: memoryview) -> Denial | None:
    """Return what a guard says of an attempt; None of any other record."""
    if len(record) < _DENIAL or Header.from_buffer_copy(record).kind != Kind.DENIAL:
        return None
    told = Denial.from_buffer_copy(record)
    return told if told.flags & DenialFlag.CANARY else None


# --- the prover ---------------------------------------------------------------------------------------------------


class Mailbox:
    """
    Where records of attempts arrive, and are waited for.

    Whoever reads the ring buffer puts in what has the flag CANARY; the prover takes out by nonce, in a thread of its own or in the same
    one (then *poll* reads the ring).

    Parameters
    ----------
    poll
        Reads what is there within so many seconds; None if another thread does.
    """

    def __init__(
        self, poll: Callable[[float], object] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._records: dict[int, Denial] = {}
        self._changed = Condition()
        self._closed = False

    def put(self, record: Denial) -> None:
        """Take in a record; of those that nobody waits for the oldest go."""
        with self._changed:
            self._records[record.nonce] = record
            while len(self._records) > _KEPT:
                del self._records[next(iter(self._records))]
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer: no more records will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, nonce: int, seconds: float) -> Denial | None:
        """Return the record with that nonce as soon as it is there; None if it doesn't come in time."""
        deadline = self._clock() + seconds
        while True:
            with self._changed:
                if nonce in self._records:
                    return self._records.pop(nonce)
                left = deadline - self._clock()
                if left <= 0 or self._closed:
                    return None
                if self._poll is None:
                    self._changed.wait(left)
            if self._poll is not None:
                self._poll(left)


class Canary:
    """
    Proves guards.

    Its helper is started with the first round, and anew when it died.

    Parameters
    ----------
    arm
        Tells the kernel thread, hook and nonce: only there and then the canary's way speaks.
    disarm
        Ends that.
    take
        Returns the record with a nonce, waiting for it so many seconds; see `Mailbox`.
    start
        Starts a helper: `Helper`.
    clock
        Seconds, for deadlines.
    now
        The time that a proof has.
    nonce
        The first one.
    """

    def __init__(
        self,
        arm: Callable[[int, Hook, int], object],
        disarm: Callable[[], object],
        take: Callable[[int, float], Denial | None],
        start: Callable[[], Attempting],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        nonce: int = 1,
        seconds: float = SECONDS,
        round_seconds: float = ROUND_SECONDS,
    ) -> None:
        self._arm = arm
        self._disarm = disarm
        self._take = take
        self._start = start
        self._clock = clock
        self._now = now
        self._nonce = nonce
        self._seconds = seconds
        self._round_seconds = round_seconds
        self._helper: Attempting | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the helper."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()

    def stop(self) -> None:
        """Have a round that another thread is at end soon, without a proof."""
        self._stopped = True
        helper = self._helper
        if helper is not None:
            helper.interrupt()

    def prove(self, hooks: Iterable[Hook], mode: Mode) -> Proof:
        """
        Prove that the guards at *hooks* do what *mode* says.

        All attempts are made first, then their records are waited for, together no longer than for one attempt: a dead ring
        buffer doesn't make a round longer.
        """
        asked = [] if mode is Mode.OFF else list(dict.fromkeys(hooks))
        began = self._now()
        end = self._clock() + self._round_seconds
        results: dict[Hook, Result] = {}
        made: dict[Hook, tuple[int, Done]] = {}
        broken: HelperError | None = None
        for hook in asked:
            if broken is not None:
                results[hook] = Result(broken.finding, str(broken))
                continue
            if self._stopped:
                results[hook] = Result(Finding.LATE, "ksentinel is ending")
                continue
            if self._clock() >= end:
                results[hook] = Result(
                    Finding.LATE, "no time was left for it in this round (is the machine that busy?)"
                )
                continue
            try:
                if self._helper is None:
                    self._helper = self._start()
            except HelperError as error:
                broken = error  # and it would be so for all others
                results[hook] = Result(error.finding, str(error))
                continue
            try:
                made[hook] = self._attempt(self._helper, hook)
            except Cannot as why:
                results[hook] = Result(Finding.IMPOSSIBLE, f"{why}; so this guard can't be proven")
            except HelperError as error:
                results[hook] = Result(error.finding, str(error))
                self.close()
        end = self._clock() + self._seconds
        for hook, (nonce, done) in made.items():
            record = self._take(nonce, max(0.0, end - self._clock()))
            results[hook] = judge(hook, mode, done, record, ATTEMPTS[hook.name.lower()])
        return Proof(began, mode, MappingProxyType({hook: results[hook] for hook in asked}))

    def _attempt(self, helper: Attempting, hook: Hook) -> tuple[int, Done]:
        end = self._clock() + self._seconds
        tid = helper.prepare(hook, self._seconds)
        nonce, self._nonce = self._nonce, self._nonce % 0xFFFFFFFF + 1
        try:
            self._arm(tid, hook, nonce)
            return nonce, helper.go(tid, max(0.0, end - self._clock()))
        except BaseException:
            # A child that waits would otherwise be let go unarmed by the next round.
            self.close()
            raise
        finally:
            self._disarm()
