# SPDX-License-Identifier: Apache-2.0
"""The mixed operations of the guest's test, without its kernel: a policy that is full, and three that agree on what becomes of them."""

import random
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from vm import mixed

from ksentinel.bpf import guard_abi
from ksentinel.bpf.guard_abi import Hook, Outcome
from ksentinel.enforce import Mode
from ksentinel.enforce.compiler import MOST
from ksentinel.enforce.places import resolve
from ksentinel.enforce.twin import Twin

UNTRIED = {
    Hook.NONE,
    Hook.KERNEL_LOAD_DATA,
    Hook.KERNEL_READ_FILE,
    Hook.MOVE_MOUNT,
}
"""Hooks that no operation comes by."""


@pytest.fixture(scope="module")
def root():
    # A socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="mixed-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tree(root):
    program = root / "program"
    program.write_bytes(b"#!/bin/true\n")
    made = mixed.Tree(root, program, mounts=False)
    yield made
    made.take_away()


@pytest.fixture(scope="module")
def policy(root, tree):
    return mixed.full_policy(1, str(root), resolve)


def scenes(tree, root):
    """Yield what each actor sees."""
    for number, actor in enumerate(mixed.ACTORS):
        exe = f"{root}/{actor.exe}"
        who = mixed.Who(
            exe, resolve(exe), (f"{root}/{actor.parent}", sys.executable), f"{root}/{actor.parent}"
        )
        yield mixed.Scene(tree, actor, who, random.Random(number))


def test_full(policy):
    """Hundreds of ways at all hooks, and no more sets of names."""
    assert guard_abi.WAYS / 2 < len(policy.ways) <= guard_abi.WAYS
    assert len(policy.sets) == MOST
    assert set(Hook) - UNTRIED <= set(policy.hooks)


def test_agree(policy, tree, root):
    """Reference and twin come to the same, and so does the reference asked about the rules at a hook alone."""
    judge, twin = mixed.Judge(policy, Mode.ENFORCE), Twin(policy, seed=5)
    outcomes, hooks = set(), set()
    for scene in scenes(tree, root):
        calls, expected, order = mixed.script(scene, judge, 25, 100)
        assert len(mixed.plan(calls, order, ())) > 100 * mixed.OP.size
        assert any(one.refused for one in expected)
    for number, (step, decision) in enumerate(judge.asked):
        assert twin.decide(step.operation, spared=step.spared) == decision
        if number % 5 == 0:
            assert judge.whole(step) == decision
        hooks.add(step.operation.hook)
        outcomes |= {None if decision is None else decision.outcome}

    assert outcomes == {None, Outcome.DENIED, Outcome.WOULD_DENY, Outcome.LOGGED, Outcome.SPARED}
    assert len(hooks) > 25
