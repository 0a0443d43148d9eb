# SPDX-License-Identifier: Apache-2.0
"""The guards' programs load beside the collector's, and one of them refuses what its policy says, in that very call."""

import ctypes
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from ksentinel.bpf.guard_abi import Action, GuardCounters, Hook, Mode, Outcome, Policy, Switch, Trait, Word
from ksentinel.bpf.libbpf import Object, kernel_has
from ksentinel.enforce.guards import THEMES, program_at
from ksentinel.shipped import shipped

TAKES = 30

CANARY_RULE = 0xFFFF


@pytest.fixture(scope="module")
def objects():
    with ExitStack() as stack:
        collector = stack.enter_context(Object(shipped("lsm_bpf/trace.bpf.o")))
        collector.resize("ring", 1 << 20)
        collector.leave_out("on_sys_enter_old" if kernel_has("bpf_rdonly_cast") else "on_sys_enter")
        collector.load()
        found = {"trace": collector}
        found["file"] = stack.enter_context(Object(shipped("lsm_bpf/file.bpf.o")))
        for hook in set(THEMES["file"]) - {Hook.FILE_OPEN}:
            found["file"].leave_out(program_at(hook))
        found["file"].share(collector)
        found["file"].load()
        policy = Policy(epoch=1)
        policy.hooks[Hook.FILE_OPEN].count = 1
        way = policy.ways[0]
        way.need[Word.TRAITS] = Trait.CANARY
        way.calls = (1 << 64) - 1
        way.action = Action.DENY
        way.rule = CANARY_RULE
        collector.map("second_policy").update(0, policy)
        collector.map("policies").update(0, ctypes.c_uint32(collector.map("second_policy").fd))
        found["file"].attach("on_file_open")
        yield found


def outcomes(objects):
    """Return how often each outcome was counted."""
    every = objects["trace"].map("guard_counters").lookup_percpu(0, GuardCounters)
    return {outcome: sum(one.outcomes[outcome] for one in every) for outcome in Outcome}


def arm(objects, mode, *, tid, hook=Hook.FILE_OPEN):
    """Tell the guards who the canary is."""
    objects["trace"].map("switches").update(0, Switch(mode=mode, canary_tid=tid, canary_hook=hook))


def opened(path="/etc/passwd"):
    """Tell whether a file can be opened."""
    try:
        Path(path).open("rb").close()
    except PermissionError:
        return False
    return True


@pytest.mark.parametrize(
    ("mode", "goes_on", "counted"),
    [
        (Mode.ENFORCE, False, Outcome.DENIED),
        (Mode.PERMISSIVE, True, Outcome.WOULD_DENY),
    ],
)
def test_one_operation(objects, mode, goes_on, counted):
    """Enforce refuses it, permissive says that it would have; one count each."""
    before = outcomes(objects)
    arm(objects, mode, tid=threading.get_native_id())
    went_on = opened()
    arm(objects, mode, tid=0)

    after = outcomes(objects)
    assert went_on is goes_on
    assert {one: after[one] - before[one] for one in Outcome if after[one] != before[one]} == {counted: 1}


@pytest.mark.parametrize(
    ("tid", "hook"),
    [(0, Hook.FILE_OPEN), (1, Hook.FILE_OPEN), (None, Hook.PATH_UNLINK)],
    ids=["nobody", "another thread", "another hook"],
)
def test_nobody_else(objects, tid, hook):
    """Who isn't the canary, at this hook, isn't touched."""
    before = outcomes(objects)
    arm(objects, Mode.ENFORCE, tid=threading.get_native_id() if tid is None else tid, hook=hook)
    went_on = opened()
    arm(objects, Mode.ENFORCE, tid=0)

    assert went_on
    assert outcomes(objects) == before


def test_detached(objects):
    """Without the guard the same operation goes on."""
    arm(objects, Mode.ENFORCE, tid=threading.get_native_id())
    refused = not opened()
    objects["file"].detach_program("on_file_open")
    goes_on = opened()
    arm(objects, Mode.ENFORCE, tid=0)

    assert refused
    assert goes_on
