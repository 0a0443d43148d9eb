# SPDX-License-Identifier: Apache-2.0
"""The canary says of each guard whether it stands, and if not, which way it fails."""

import errno
import itertools
import os
import platform
import signal
import subprocess
import sys
import threading

import pytest

from ksentinel.actor import nothing
from ksentinel.bpf.abi import Kind
from ksentinel.bpf.guard_abi import Denial, DenialFlag, Hook, Outcome
from ksentinel.enforce import Mode
from ksentinel.enforce.attempts import ATTEMPTS
from ksentinel.enforce.canary import (
    Canary,
    Cannot,
    Done,
    Finding,
    Helper,
    HelperError,
    LateHelperError,
    Mailbox,
    Proof,
    Result,
    judge,
    proof_in,
)
from ksentinel.enforce.compiled import CANARY_RULE

HOOKS = [hook for hook in Hook if hook is not Hook.NONE]
OPEN = Hook.FILE_OPEN
PROGRAM = nothing(platform.machine())


def denial(nonce=7, *, outcome=Outcome.DENIED, hook=OPEN, tid=42, flags=DenialFlag.CANARY, rule=CANARY_RULE):
    record = Denial(outcome=outcome, hook=hook, flags=flags, nonce=nonce, rule=rule)
    record.header.tid = tid
    return record


WOULD = denial(outcome=Outcome.WOULD_DENY)
ENFORCE = [
    (errno.EPERM, denial(), Finding.VERIFIED, ""),
    (errno.EPERM, None, Finding.UNRECORDED, "records_dropped"),
    (0, None, Finding.SILENT, "no_room"),
    (errno.ENOSPC, None, Finding.ASTRAY, "ENOSPC"),
    (0, denial(), Finding.NOT_REFUSED, "success"),
    (errno.EACCES, denial(), Finding.NOT_REFUSED, "EACCES"),
    (errno.ENOSYS, None, Finding.IMPOSSIBLE, "doesn't have this call"),
    (0, WOULD, Finding.NOT_AS_ASKED, "permissive"),
    (0, denial(outcome=Outcome.RELEASED), Finding.NOT_AS_ASKED, "released"),
    (0, denial(outcome=Outcome.SPARED), Finding.NOT_AS_ASKED, "never-list"),
    (0, denial(outcome=Outcome.LOGGED), Finding.NOT_AS_ASKED, "logged"),
    (0, denial(outcome=77), Finding.NOT_AS_ASKED, "77"),
    (errno.EPERM, denial(tid=43), Finding.NOT_AS_ASKED, "thread 43"),
    (errno.EPERM, denial(hook=5), Finding.NOT_AS_ASKED, "hook 5"),
    (errno.EPERM, denial(flags=0), Finding.NOT_AS_ASKED, "flags 0x0"),
    (errno.EPERM, denial(rule=3), Finding.NOT_AS_ASKED, "rule 3"),
]
PERMISSIVE = [
    (0, WOULD, Finding.VERIFIED, ""),
    (0, None, Finding.SILENT, "no record"),
    (errno.EPERM, None, Finding.UNRECORDED, "another security module"),
    (errno.EPERM, WOULD, Finding.ASTRAY, "EPERM"),
    (errno.ENOSPC, WOULD, Finding.ASTRAY, "ENOSPC"),
    (errno.EPERM, denial(), Finding.NOT_AS_ASKED, "enforce"),
    (errno.EPERM, denial(rule=3), Finding.NOT_AS_ASKED, "rule 3"),
    (errno.ENOSYS, None, Finding.IMPOSSIBLE, "doesn't have this call"),
]


@pytest.mark.parametrize(
    ("mode", "number", "record", "finding", "says"),
    [(Mode.ENFORCE, *row) for row in ENFORCE] + [(Mode.PERMISSIVE, *row) for row in PERMISSIVE],
)
def test_judge(mode, number, record, finding, says):
    """What came back and what was recorded: one of them alone proves nothing."""
    result = judge(OPEN, mode, Done(42, number, 5600), record, ATTEMPTS["file_open"])

    assert (result.finding, result.verified, result.errno, result.microseconds) == (
        finding,
        finding is Finding.VERIFIED,
        number,
        5,
    )
    assert says in result.what
    assert bool(result.what) != result.verified


def test_judge_other_value():
    """A guard that lets through must not change what is returned."""
    asked = Hook.TASK_PRCTL, Mode.PERMISSIVE, Done(42, usual=False)
    record = denial(outcome=Outcome.WOULD_DENY, hook=Hook.TASK_PRCTL)
    result = judge(*asked, record, ATTEMPTS["task_prctl"])

    assert (result.finding, "another value" in result.what) == (Finding.ASTRAY, True)


@pytest.mark.parametrize("number", ATTEMPTS["kernel_load_data"].ends)
def test_judge_locked_down(number):
    """Where modules are refused anyway, how they are refused doesn't matter; the record does."""
    record = denial(outcome=Outcome.WOULD_DENY, hook=Hook.KERNEL_LOAD_DATA)
    asked = Hook.KERNEL_LOAD_DATA, Mode.PERMISSIVE, Done(42, number)

    assert judge(*asked, record, ATTEMPTS["kernel_load_data"]).verified
    assert not judge(*asked, None, ATTEMPTS["kernel_load_data"]).verified


def test_judge_child_that_was_ended():
    """It told nothing, so nothing is proven, whatever was recorded."""
    for record in (None, denial()):
        result = judge(OPEN, Mode.ENFORCE, Done(42, ended=-9), record, ATTEMPTS["file_open"])

        assert (result.finding, result.errno, "signal 9" in result.what) == (Finding.DIED, None, True)


class _Kernel:
    """A guard that refuses what it is armed for, and a helper that asks it."""

    def __init__(self, *, mode=Mode.ENFORCE, deaf=(), mute=(), impossible=(), dies=(), late=()):
        self.mode = mode
        self.deaf, self.mute, self.impossible, self.dies, self.late = deaf, mute, impossible, dies, late
        self.armed = None
        self.time = 100.0
        self.tids = itertools.count(1000)
        self.pids = itertools.count(500)
        self.started, self.closed, self.waits, self.interrupted = [], [], [], []
        self.mailbox = Mailbox(self.wait, lambda: self.time)

    def wait(self, seconds):
        self.waits.append(seconds)
        self.time += seconds

    def start(self):
        self.pid = next(self.pids)
        self.started.append(self.pid)
        return self

    def close(self):
        self.closed.append(self.pid)

    def interrupt(self):
        self.interrupted.append(self.pid)

    def arm(self, tid, hook, nonce):
        assert self.armed is None
        self.armed = (tid, hook, nonce)

    def disarm(self):
        self.armed = None

    def prepare(self, hook, seconds):
        assert seconds > 0
        assert self.armed is None
        if hook in self.impossible:
            raise Cannot("no such thing here")
        self.hook = hook
        return next(self.tids)

    def go(self, tid, seconds):
        if self.hook in self.dies:
            raise HelperError("the canary's helper was ended by signal 9")
        if self.hook in self.late:
            self.time += seconds
            raise LateHelperError("the canary's helper didn't answer in time")
        usual = ATTEMPTS[self.hook.name.lower()].ends[0]
        if self.armed != (tid, self.hook, self.armed[2]) or self.hook in self.deaf:
            return Done(tid, usual)
        refused = self.mode is Mode.ENFORCE
        outcome = Outcome.DENIED if refused else Outcome.WOULD_DENY
        if self.hook not in self.mute:
            self.mailbox.put(denial(self.armed[2], outcome=outcome, hook=self.hook, tid=tid))
        return Done(tid, errno.EPERM if refused else usual)

    def canary(self, **other):
        return Canary(
            self.arm,
            self.disarm,
            self.mailbox.take,
            self.start,
            clock=lambda: self.time,
            now=lambda: 1.5,
            **other,
        )


def findings(proof):
    return {hook: result.finding for hook, result in proof.results.items() if not result.verified}


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_prove(mode):
    """Each hook is proven by one helper, and nothing stays armed."""
    kernel = _Kernel(mode=mode)
    canary = kernel.canary()
    proof = canary.prove(HOOKS, mode)

    assert (proof.verified, proof.unproven, list(proof.results)) == (True, {}, HOOKS)
    assert (proof.time, proof.mode) == (1.5, mode)
    assert (kernel.started, kernel.closed, kernel.armed, kernel.waits) == ([500], [], None, [])
    assert canary.prove(HOOKS, mode).verified
    assert kernel.started == [500]


def test_wrong_mode():
    """A kernel side in another mode than asked is found out at every hook."""
    for asked, is_in in [(Mode.ENFORCE, Mode.PERMISSIVE), (Mode.PERMISSIVE, Mode.ENFORCE)]:
        proof = _Kernel(mode=is_in).canary().prove(HOOKS, asked)

        assert findings(proof) == dict.fromkeys(HOOKS, Finding.NOT_AS_ASKED)


def test_each_failure_alone():
    """One dead guard is told among 33, with how it died, and the others are proven."""
    kernel = _Kernel(deaf=[Hook.BPF], mute=[Hook.CAPSET], impossible=[Hook.KERNEL_LOAD_DATA])
    proof = kernel.canary().prove(HOOKS, Mode.ENFORCE)

    assert not proof.verified
    assert findings(proof) == {
        Hook.BPF: Finding.SILENT,
        Hook.CAPSET: Finding.UNRECORDED,
        Hook.KERNEL_LOAD_DATA: Finding.IMPOSSIBLE,
    }
    assert "no such thing here" in proof.unproven[Hook.KERNEL_LOAD_DATA].what
    assert sum(kernel.waits) <= 2


def test_ring_buffer_that_lost_all():
    """All records together are waited for as long as for one."""
    kernel = _Kernel(mute=HOOKS)
    proof = kernel.canary().prove(HOOKS, Mode.ENFORCE)

    assert findings(proof) == dict.fromkeys(HOOKS, Finding.UNRECORDED)
    assert sum(kernel.waits) == pytest.approx(2)


def test_helper_that_dies():
    """That proof failed; the next has a helper of its own."""
    kernel = _Kernel(dies=[OPEN])
    proof = kernel.canary().prove(HOOKS, Mode.ENFORCE)

    assert findings(proof) == {OPEN: Finding.DIED}
    assert "signal 9" in proof.results[OPEN].what
    assert (kernel.started, kernel.closed, kernel.armed) == ([500, 501], [500], None)


def test_helper_that_hangs():
    """An attempt has two seconds, a round ten: what is not asked in time says so."""
    kernel = _Kernel(late=HOOKS)
    proof = kernel.canary().prove(HOOKS, Mode.ENFORCE)

    assert findings(proof) == dict.fromkeys(HOOKS, Finding.LATE)
    assert kernel.time == pytest.approx(110)
    assert len(kernel.started) == 5
    assert "no time was left" in proof.results[HOOKS[-1]].what


def test_no_helper_to_be_had():
    """One reason, tried once a round."""
    kernel = _Kernel()
    tried = []

    def start():
        tried.append(1)
        raise HelperError("the canary's helper can't work here: unshare mounts")

    kernel.start = start
    canary = kernel.canary()
    proof = canary.prove(HOOKS, Mode.ENFORCE)

    assert findings(proof) == dict.fromkeys(HOOKS, Finding.DIED)
    assert len(tried) == 1
    canary.prove(HOOKS, Mode.ENFORCE)
    assert len(tried) == 2


def test_arm_that_fails():
    """Nothing stays armed, and the child that waits is not let go."""
    kernel = _Kernel()
    canary = kernel.canary()

    def arm(tid, hook, nonce):
        kernel.armed = 1
        raise OSError("no such map")

    canary._arm = arm
    with pytest.raises(OSError, match="no such map"):
        canary.prove([OPEN], Mode.ENFORCE)

    assert (kernel.armed, kernel.closed) == (None, [500])


def test_nothing_to_prove():
    """Where nothing is enforced nothing is attempted; without guards nothing is proven."""
    kernel = _Kernel()

    assert kernel.canary().prove(HOOKS, Mode.OFF) == Proof(1.5, Mode.OFF, {})
    assert kernel.canary().prove(HOOKS, Mode.OFF).verified
    assert kernel.started == []
    assert not kernel.canary().prove([], Mode.ENFORCE).verified


def test_nonces():
    """Each attempt has one of its own, never 0."""
    kernel = _Kernel()
    seen = []
    arm = kernel.arm
    kernel.arm = lambda tid, hook, nonce: (seen.append(nonce), arm(tid, hook, nonce))
    kernel.canary(nonce=0xFFFFFFFE).prove(HOOKS[:4], Mode.ENFORCE)

    assert seen == [0xFFFFFFFE, 0xFFFFFFFF, 1, 2]


def test_closes():
    """With the canary goes its helper, once."""
    kernel = _Kernel()
    with kernel.canary() as canary:
        canary.prove([OPEN], Mode.ENFORCE)
    canary.close()

    assert kernel.closed == [500]


def test_result():
    """Only one finding is a proof."""
    assert [finding for finding in Finding if Result(finding).verified] == [Finding.VERIFIED]


def test_mailbox_between_threads():
    """A record wakes who waits for it, and is taken once."""
    mailbox = Mailbox()
    later = threading.Timer(0.05, mailbox.put, [denial(9)])
    later.start()
    record = mailbox.take(9, 30)
    later.join()

    assert record.nonce == 9
    assert mailbox.take(9, 0) is None


def test_mailbox_is_bounded():
    """Records that nobody asks for don't pile up."""
    mailbox = Mailbox()
    for nonce in range(1000):
        mailbox.put(denial(nonce))

    assert len(mailbox._records) == 256
    assert mailbox.take(0, 0) is None
    assert mailbox.take(999, 0).nonce == 999


# --- the helper -------------------------------------------------------------------------------------------------


def helper(code="", **other):
    """Return a helper that runs *code* after it has read its plan."""
    command = [sys.executable, "-I", "-S", "-c", f"import sys, time\nsys.stdin.readline()\n{code}"]
    return Helper(PROGRAM, command=command, **other)


UP = "print('up', flush=True); sys.stdin.readline(); "


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "ended with 0"),
        ("sys.exit(3)", "ended with 3"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import os; os.close(1); time.sleep(60)", "closed its output"),
        ("print('failed unshare: \\x1b[2J')", r"can't work here: unshare: \x1b[2J"),
        ("print('down')", "said 'down'"),
        ("print('up 1')", "said 'up' '1'"),
        ("print('\\x1b]0;x')", r"said '\\x1b]0;x'"),
        ("sys.stdout.buffer.write(b'\\xff\\n')", "said"),
        ("sys.stdout.write('x' * 100000)", "more than it may"),
        ("print()", "said ''"),
    ],
)
def test_helper_that_does_not_start(code, says):
    """Whatever it says instead, the reason is one line that a terminal can show, and nothing is left behind."""
    with pytest.raises(HelperError) as raised:
        helper(code)

    assert says in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("ready", "said 'ready' ''"),
        ("ready x", "said 'ready' 'x'"),
        ("ready 0", "said 'ready' '0'"),
        ("ready 1", "said 'ready' '1'"),
        ("ready -5", "said 'ready' '-5'"),
        ("ready 1 2", "said 'ready' '1 2'"),
        ("ready 1e3", "said 'ready' '1e3'"),
        ("ready " + "9" * 100, "said 'ready'"),
        ("done 0 1 1", "said 'done'"),
        ("up", "said 'up'"),
    ],
)
def test_helper_that_answers_nonsense(answer, says):
    """What isn't an answer to the question is none."""
    one = helper(UP + f"print({answer!r}, flush=True); time.sleep(60)")
    try:
        with pytest.raises(HelperError, match=says):
            one.prepare(OPEN, 30)
    finally:
        one.close()


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        ("done 1 900 1", Done(7, 1, 900)),
        ("done 0 900 0", Done(7, 0, 900, usual=False)),
        ("ended -9", Done(7, ended=-9)),
        ("done 1 900", None),
        ("done 1 900 1 1", None),
        ("done 1 x 1", None),
        ("ended", None),
        ("cannot be", None),
        ("ready 7", None),
    ],
)
def test_helper_reports(answer, done):
    """How it ended is three numbers or one, and nothing else."""
    one = helper(UP + f"print('ready 7', flush=True); sys.stdin.readline(); print({answer!r}, flush=True)")
    try:
        assert one.prepare(OPEN, 30) == 7
        if done is None:
            with pytest.raises(HelperError, match="said"):
                one.go(7, 30)
        else:
            assert one.go(7, 30) == done
    finally:
        one.close()


def test_helper_that_cannot():
    """Why not is its own text, made harmless."""
    one = helper(UP + r"print('cannot no\x9b2J modules', flush=True); time.sleep(60)")
    try:
        with pytest.raises(Cannot) as raised:
            one.prepare(OPEN, 30)
    finally:
        one.close()

    assert str(raised.value).isprintable()


def test_helper_in_time():
    """One that says nothing is waited for no longer than that."""
    with pytest.raises(LateHelperError, match="in time"):
        helper("time.sleep(60)", seconds=0.1)

    one = helper(UP + "time.sleep(60)")
    try:
        with pytest.raises(LateHelperError, match="in time"):
            one.prepare(OPEN, 0.1)
    finally:
        one.close()


def test_helper_that_ended():
    """It isn't written to in vain."""
    one = helper("print('up', flush=True)")
    try:
        one._process.wait(30)
        with pytest.raises(HelperError, match="ended with 0"):
            one.prepare(OPEN, 30)
    finally:
        one.close()


def test_helper_is_told_of_first():
    """Whoever has to spare it knows its PID before it does anything, and can prevent it."""
    seen = []

    def started(pid):
        seen.append(pid)
        os.kill(pid, 0)
        raise RuntimeError("not that one")

    with pytest.raises(RuntimeError, match="not that one"):
        helper("", started=started)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


def test_no_interpreter():
    """A program that isn't there is told as such."""
    with pytest.raises(HelperError, match="can't be started"):
        Helper(PROGRAM, command=["/nowhere/python"])


def test_not_over_its_own_files(monkeypatch):
    """Its file system never covers where its interpreter is from."""
    monkeypatch.setattr(sys, "base_prefix", "/mnt/python")
    monkeypatch.setattr(sys, "prefix", "/srv/venv")

    with pytest.raises(HelperError, match=r"here: /media /tmp$"):
        Helper(PROGRAM, command=[sys.executable, "-I", "-S", "-c", PLAN])


PLAN = "import sys, json; print('failed', *json.loads(sys.stdin.readline())['at'])"


def test_mailbox_that_closes():
    """Whoever waits is let go, and nobody waits any more."""
    mailbox = Mailbox()
    later = threading.Timer(0.05, mailbox.close)
    later.start()
    record = mailbox.take(9, 3600)
    later.join()
    mailbox.put(denial(9))

    assert record is None
    assert mailbox.take(8, 3600) is None
    assert mailbox.take(9, 0).nonce == 9


def test_stop():
    """A round ends after the attempt that is being made; the helper finds its end, and what wasn't tried says why."""
    kernel = _Kernel()
    canary = kernel.canary()
    go = kernel.go

    def stopped(tid, seconds):
        canary.stop()
        return go(tid, seconds)

    kernel.go = stopped
    proof = canary.prove(HOOKS, Mode.ENFORCE)

    assert kernel.interrupted == [500]
    assert findings(proof) == dict.fromkeys(HOOKS[1:], Finding.LATE)
    assert "ending" in proof.results[HOOKS[1]].what


def test_helper_interrupted():
    """By another thread: who waits for its answer finds it dead, at once."""
    one = helper(UP + "time.sleep(60)")
    later = threading.Timer(0.05, one.interrupt)
    later.start()
    try:
        with pytest.raises(HelperError, match="signal 9"):
            one.prepare(OPEN, 3600)
    finally:
        later.join()
        one.close()


def test_proof_in():
    """Of all records only a guard's that has the flag; a short one is none, whatever it says."""
    proof = denial(7)
    proof.header.kind = Kind.DENIAL
    bare, other = type(proof).from_buffer_copy(proof), type(proof).from_buffer_copy(proof)
    bare.flags, other.header.kind = 0, Kind.EXEC

    assert proof_in(memoryview(bytes(proof))).nonce == 7
    assert proof_in(memoryview(bytes(proof) + b"/etc/shadow")).nonce == 7
    for record in (bytes(bare), bytes(other), bytes(proof)[:-1], b""):
        assert proof_in(memoryview(record)) is None


def test_ended_by_the_timer():
    """A child that hangs is ended by the kernel, also if whoever started it had all signals blocked."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    code = "from ksentinel.enforce import attempts; attempts.SECONDS = 1; attempts._or_exit(lambda: attempts.time.sleep(30))"
    try:
        ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    assert ended == -signal.SIGALRM
