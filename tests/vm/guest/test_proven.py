# SPDX-License-Identifier: Apache-2.0
"""Every guard is proven by an operation that only it refuses; detached, the same operation goes through, and that is found out."""

import platform

import pytest

from ksentinel.actor import nothing
from ksentinel.bpf.guard_abi import Hook
from ksentinel.enforce import Mode
from ksentinel.enforce.canary import Canary, Finding, Helper, Mailbox, proof_in
from ksentinel.enforce.guards import program_at
from ksentinel.enforce.never import Spared

TAKES = 30
TOGETHER = "most guards"

HOOKS = tuple(hook for hook in Hook if hook is not Hook.NONE)
SECONDS = 20
"""Without KVM everything takes longer."""


@pytest.fixture
def canary(guards):
    """The canary, as the daemon has it, with guards at all hooks."""
    from ksentinel.commands.enforcing import key_of

    guards.use(also=HOOKS)

    def read(seconds):
        for record in guards.live.collector.poll(seconds):
            told = proof_in(record)
            if told is not None:
                mailbox.put(told)

    def spare(pid):
        guards.guards.spare([Spared("the helper", "a test", process=key_of(pid), children=True)])

    mailbox = Mailbox(read)
    with Canary(
        guards.guards.arm,
        guards.guards.disarm,
        mailbox.take,
        lambda: Helper(nothing(platform.machine()), spare, seconds=SECONDS),
        seconds=SECONDS,
        round_seconds=200,
    ) as one:
        yield one


def test_attached(guards):
    """Guards stand at all hooks that there are."""
    guards.use(also=HOOKS)

    assert guards.guards.attached == HOOKS
    assert guards.guards.missing == {}


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_proven(guards, canary, mode):
    """All of them, in both modes."""
    guards.guards.mode = mode

    assert canary.prove(HOOKS, mode).unproven == {}


def test_released(guards, canary):
    """What is released isn't verified."""
    guards.guards.release(on=True)

    assert {result.finding for result in canary.prove(HOOKS[:4], Mode.ENFORCE).results.values()} == {
        Finding.NOT_AS_ASKED
    }


def test_detached(guards, canary):
    """Detached, each of the same operations goes through."""
    own = guards.guards
    for hook in HOOKS:
        own._standing[hook].detach_program(program_at(hook))
    proof = canary.prove(HOOKS, Mode.ENFORCE)
    for hook in HOOKS:
        own._standing[hook].attach(program_at(hook))

    assert {hook: result.finding for hook, result in proof.unproven.items()} == dict.fromkeys(
        HOOKS, Finding.SILENT
    )
