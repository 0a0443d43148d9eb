# SPDX-License-Identifier: Apache-2.0
"""Each of the canary's attempts comes by its hook, once, and is refused there; the prover sees what a real kernel does."""

import ctypes
import errno
import os
import platform
import subprocess
from pathlib import Path

import pytest

from ksentinel.actor import nothing
from ksentinel.bpf import probe
from ksentinel.bpf.guard_abi import Denial, DenialFlag, Hook, Outcome
from ksentinel.bpf.libbpf import Object
from ksentinel.enforce import Mode
from ksentinel.enforce.canary import Canary, Finding, Helper, Mailbox
from ksentinel.enforce.compiled import CANARY_RULE

TAKES = 25

SOURCE = Path(__file__).with_name("attempts.bpf.c")
ARCHES = {"x86_64": "x86", "aarch64": "arm64"}
HOOKS = [hook for hook in Hook if hook is not Hook.NONE]
SECONDS = 20
"""Without KVM everything takes longer."""


class Armed(ctypes.Structure):
    """struct armed in attempts.bpf.c."""

    _fields_ = (("tid", ctypes.c_uint32), ("hook", ctypes.c_uint32), ("refuse", ctypes.c_uint32))


class Count(ctypes.Structure):
    """How often a thread came by."""

    _fields_ = (("times", ctypes.c_uint32),)


class _Refusing:
    """Programs at all hooks, and a canary that is told what they did."""

    def __init__(self, programs):
        self.armed, self.asked = programs.map("armed"), programs.map("asked")
        self.mailbox = Mailbox()
        self.refuse = True
        self.now = None

    def times(self, hook):
        return self.asked.lookup(int(hook), Count).times

    def arm(self, tid, hook, nonce):
        self.asked.update(int(hook), Count())
        self.now = (tid, hook, nonce)
        self.armed.update(0, Armed(tid, hook, self.refuse))

    def disarm(self):
        self.armed.update(0, Armed())
        tid, hook, nonce = self.now
        if self.times(hook):
            outcome = Outcome.DENIED if self.refuse else Outcome.WOULD_DENY
            record = Denial(
                outcome=outcome, hook=hook, flags=DenialFlag.CANARY, nonce=nonce, rule=CANARY_RULE
            )
            record.header.tid = tid
            self.mailbox.put(record)

    def canary(self):
        return Canary(
            self.arm,
            self.disarm,
            lambda nonce, _: self.mailbox.take(nonce, 0),
            lambda: Helper(nothing(platform.machine()), seconds=SECONDS),
            seconds=SECONDS,
            round_seconds=100,
        )


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    refused = probe.try_program(probe.LSM)
    if refused:
        pytest.skip(f"no LSM program loads here: {os.strerror(refused)}")
    built = tmp_path_factory.mktemp("bpf") / "attempts.o"
    machine = platform.machine()
    subprocess.run(
        [
            "clang", "-g", "-O2", "-mcpu=v3", "-target", "bpf", f"-D__TARGET_ARCH_{ARCHES[machine]}", "-Wall", "-Wextra", "-Werror",
            f"-I/usr/include/{machine}-linux-gnu", "-c", SOURCE, "-o", built,
        ],
        check=True,
    )  # fmt: skip
    with Object(built) as one:
        one.load()
        for hook in HOOKS:
            one.attach(f"on_{hook.name.lower()}")
        yield one


def test_enforce(programs):
    """Every attempt is refused with EPERM, at its hook, once."""
    kernel = _Refusing(programs)
    with kernel.canary() as canary:
        proof = canary.prove(HOOKS, Mode.ENFORCE)

    assert proof.unproven == {}
    assert {result.errno for result in proof.results.values()} == {errno.EPERM}
    assert {hook: kernel.times(hook) for hook in HOOKS} == dict.fromkeys(HOOKS, 1)


def test_permissive(programs):
    """Every attempt comes by its hook, once, and ends as if nobody had asked."""
    kernel = _Refusing(programs)
    kernel.refuse = False
    with kernel.canary() as canary:
        proof = canary.prove(HOOKS, Mode.PERMISSIVE)

    assert proof.unproven == {}
    assert {hook: kernel.times(hook) for hook in HOOKS} == dict.fromkeys(HOOKS, 1)
    assert {hook for hook, result in proof.results.items() if result.errno} == {
        Hook.KERNEL_LOAD_DATA,
        Hook.KERNEL_READ_FILE,
        Hook.BPF,
    }


def test_dead(programs):
    """A hook that is no longer asked is found out, and only that one."""
    kernel = _Refusing(programs)
    arm = kernel.arm
    kernel.arm = lambda tid, hook, nonce: arm(0 if hook is Hook.SB_MOUNT else tid, hook, nonce)
    with kernel.canary() as canary:
        proof = canary.prove([Hook.FILE_OPEN, Hook.SB_MOUNT, Hook.SB_UMOUNT], Mode.ENFORCE)

    assert {hook: result.finding for hook, result in proof.unproven.items()} == {
        Hook.SB_MOUNT: Finding.SILENT
    }
