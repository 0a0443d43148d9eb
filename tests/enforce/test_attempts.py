# SPDX-License-Identifier: Apache-2.0
"""Every attempt is made for real, ends as it should where no guard speaks, and the host doesn't notice."""

import errno
import os
import platform
import select
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import in_chroot

from ksentinel.actor import nothing
from ksentinel.bpf.guard_abi import Denial, DenialFlag, Hook, Outcome
from ksentinel.enforce import Mode, attempts
from ksentinel.enforce.attempts import ATTEMPTS, CALLS, Attempt, Impossible, Scene
from ksentinel.enforce.canary import COVERED, Canary, Finding, Helper, HelperError, Mailbox
from ksentinel.enforce.compiled import CANARY_RULE
from ksentinel.syscalls import numbers, token_of

HOOKS = [hook for hook in Hook if hook is not Hook.NONE]
CODE = {Hook.KERNEL_LOAD_DATA, Hook.KERNEL_READ_FILE}
PROGRAM = nothing(platform.machine())
SECONDS = 30


def test_every_hook():
    """There is an attempt for each, and no other."""
    assert list(ATTEMPTS) == [hook.name.lower() for hook in HOOKS]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_call(machine):
    """All of them are known on each architecture."""
    assert CALLS - set(numbers(machine)) == set()


@pytest.fixture
def namespaces():
    """Skip where root may not make namespaces."""
    if in_chroot():
        pytest.skip("no namespaces to be had: in a chroot no root can be left")
    asked = subprocess.run(["unshare", "-mn", "true"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"no namespaces to be had: {asked.stderr.strip()}")


@pytest.fixture
def helper(namespaces):
    one = Helper(PROGRAM, seconds=SECONDS)
    yield one
    one.close()


COVERED_HERE = next(path for path in COVERED if Path(path).is_dir())


def host():
    """Return what an attempt could have changed: what is mounted where its file system covers, and what lies there."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [mount for mount in mounts if mount.split()[4].startswith(COVERED_HERE)], os.listdir(COVERED_HERE)  # noqa: PTH208


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name.lower())
def test_ends_as_told(helper, hook):
    """Without a guard it ends as the table says, twice; where it can't be made, this kernel lacks something."""
    before = host()
    attempt = ATTEMPTS[hook.name.lower()]
    for _ in range(2):
        tid = helper.prepare(hook, SECONDS)
        done = helper.go(tid, SECONDS)

        assert (done.tid, done.ended, done.usual) == (tid, None, True)
        assert done.errno in attempt.ends or (hook in CODE and done.errno == errno.ENOSYS)
        assert 0 < done.nanoseconds < SECONDS * 10**9
    assert children(helper.pid) == []
    assert host() == before


@pytest.mark.root
def test_namespaces(helper):
    """It has mounts and a network of its own, and shares all else: a guard sees it as it sees others."""
    own = {
        name: Path(f"/proc/self/ns/{name}").readlink() != Path(f"/proc/{helper.pid}/ns/{name}").readlink()
        for name in ("mnt", "net", "pid", "user", "ipc", "cgroup", "uts")
    }

    assert {name for name, differs in own.items() if differs} == {"mnt", "net"}


@pytest.mark.root
@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name.lower())
def test_waits(helper, hook):
    """What is armed is one system call: before it the child does nothing but wait."""
    tid = helper.prepare(hook, SECONDS)
    end = time.monotonic() + SECONDS
    read = str(token_of("read", platform.machine()))
    waits = False
    while not waits and time.monotonic() < end:
        waits = Path(f"/proc/{tid}/syscall").read_text().split()[0] == read
    threads = os.listdir(f"/proc/{tid}/task")  # noqa: PTH208

    assert waits
    assert threads == [str(tid)]
    helper.go(tid, SECONDS)


@pytest.mark.root
@pytest.mark.parametrize("hook", [Hook.FILE_OPEN, Hook.TASK_KILL, Hook.SB_UMOUNT])
def test_ends_together(helper, hook):
    """Who ends the helper ends the child that waits, and the process it would have signalled."""
    helper.prepare(hook, SECONDS)
    others = [os.pidfd_open(int(pid)) for pid in children(helper.pid)]
    helper.close()
    ended = [bool(select.select([one], [], [], SECONDS)[0]) for one in others]
    for one in others:
        os.close(one)

    assert len(ended) == 1 + (hook is Hook.TASK_KILL)
    assert all(ended)


@pytest.mark.root
def test_told_nonsense(helper):
    """It does what it is told to, or ends."""
    helper._tell(b"prepare ../../etc")

    with pytest.raises(HelperError, match="something else"):
        helper._hear(time.monotonic() + SECONDS)


@pytest.mark.root
def test_round(namespaces):
    """A whole round, with records as of a guard that lets through: all is proven but what this kernel hasn't."""
    mailbox = Mailbox()
    armed = []

    def arm(tid, hook, nonce):
        armed.append(hook)
        record = Denial(
            outcome=Outcome.WOULD_DENY, hook=hook, flags=DenialFlag.CANARY, nonce=nonce, rule=CANARY_RULE
        )
        record.header.tid = tid
        mailbox.put(record)

    with Canary(
        arm, lambda: None, mailbox.take, lambda: Helper(PROGRAM, seconds=SECONDS), seconds=SECONDS, round_seconds=99
    ) as canary:  # fmt: skip
        proof = canary.prove(HOOKS, Mode.PERMISSIVE)
        enforced = canary.prove([Hook.FILE_OPEN, Hook.BPRM_CHECK_SECURITY], Mode.ENFORCE)
        dead = Canary(arm, lambda: None, lambda *_: None, lambda: canary._helper).prove(
            [Hook.FILE_OPEN], Mode.ENFORCE
        )

    assert armed[: len(HOOKS)] == HOOKS
    assert set(proof.unproven) <= CODE
    assert {result.finding for result in proof.unproven.values()} <= {Finding.IMPOSSIBLE}
    assert {result.finding for result in enforced.results.values()} == {Finding.NOT_AS_ASKED}
    assert {result.finding for result in dead.results.values()} == {Finding.SILENT}


@pytest.fixture
def scene(tmp_path):
    known = numbers(platform.machine())
    plan = {"numbers": {name: known[name] for name in CALLS}, "program": PROGRAM.hex()}
    with ExitStack() as after:
        yield Scene(plan, tmp_path, after, "")


@pytest.mark.parametrize(
    ("prepare", "content", "why"),
    [
        (attempts._ptrace, "3\n", "kernel.yama.ptrace_scope"),
        (attempts._userns, "0\n", "user.max_user_namespaces"),
    ],
)
def test_settings(scene, tmp_path, prepare, content, why):
    """Where a setting forbids it to everybody, that is said; otherwise there is a call."""
    setting = tmp_path / "setting"
    setting.write_text(content)

    with pytest.raises(Impossible, match=why):
        prepare(scene, setting)
    setting.write_text("1\n")
    assert prepare(scene, setting)
    assert prepare(scene, tmp_path / "no such setting")


@pytest.mark.parametrize(
    "name", ["socket_connect", "socket_bind", "socket_listen", "socket_sendmsg", "unix_may_send"]
)
def test_no_network(scene, name):
    """Nothing is ever sent or bound in the host's network."""
    scene.no_network = "no network of its own"

    if name == "unix_may_send":
        assert ATTEMPTS[name].prepare(scene)
    else:
        with pytest.raises(Impossible, match="no network"):
            ATTEMPTS[name].prepare(scene)


def test_other_value(scene):
    """A call that returns something else than before is told."""
    values = iter([50000, 0])
    go, tell = os.pipe()
    report, told = os.pipe()
    os.write(tell, b"!")
    attempts._attempt(Attempt(lambda _: None, same=True), lambda: next(values), go, told, lambda: 5)
    said = os.read(report, 1 + attempts._REPORT.size)
    for one in (go, tell, report, told):
        os.close(one)

    assert (said[:1], attempts._REPORT.unpack(said[1:])) == (b"!", (0, 0, 0))
