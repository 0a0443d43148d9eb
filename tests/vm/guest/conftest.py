# SPDX-License-Identifier: Apache-2.0
"""Guards on the guest's own kernel, as the daemon has them: the collector with them, and what they say read back."""

import os
import platform
import time
from contextlib import ExitStack

import pytest

from ksentinel import host
from ksentinel.bpf import probe
from ksentinel.config import Config
from ksentinel.enforce import Mode
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.denial import Policies
from ksentinel.enforce.guards import CONFINING, Guards
from ksentinel.enforce.places import resolve
from ksentinel.enforce.settings import parse_settings
from ksentinel.enforce.vital import Own
from ksentinel.event import HookEvent
from ksentinel.shipped import shipped

NOBODY = Own("/usr/sbin/ksentinel")
"""ksentinel itself is Python, and so are those whom these policies deny something."""


class Standing:
    """
    Guards that stand.

    Attributes
    ----------
    live
        The collector's stream; read by `denials` alone.
    """

    def __init__(self, live, guards):
        self.live, self.guards = live, guards
        self.policies = Policies()
        live.normalizer.rule_of = self.policies.rule_of
        self.compiled = None

    def use(self, entries="", rules=(), *, also=CONFINING, **settings):
        """Have a policy decide: entries as in an operator's file, rules with their guards."""
        text = "\n".join([f"{key}: {value}" for key, value in settings.items()] + [entries or "entries: []"])
        # What it would do to a host is what the tests are about.
        self.compiled = compile_policy(
            rules,
            parse_settings(text, "enforce.yml"),
            resolve=resolve,
            arch=platform.machine(),
            also=also,
            own=NOBODY,
        )
        self.policies.add(self.guards.epoch + 1, self.compiled)
        self.denials()
        self.guards.use(self.compiled, list(self.live.normalizer.table))
        return self.compiled

    def denials(self, seconds=0.3, *, canaries=False):
        """Return what guards have said until now."""
        found = []
        end = time.monotonic() + 30
        while time.monotonic() < end:
            records = self.live.collector.poll(seconds)
            found += [item for item in self.live._items(records) if isinstance(item, HookEvent)]
            if not records:
                break
        return [one for one in found if canaries or one.nonce is None]

    def mine(self, seconds=0.3, pids=()):
        """Return what they have said of this process and its children."""
        own = {os.getpid(), *pids}
        return [
            one
            for one in self.denials(seconds)
            if one.process.key.pid in own or any(above.key.pid in own for above in one.process.ancestors())
        ]


@pytest.fixture(scope="session")
def standing():
    """Guards, with a policy that denies nothing; not spared is this process, which makes the attempts."""
    refused = probe.try_program(probe.LSM)
    if refused:
        pytest.skip(f"no LSM program loads here: {os.strerror(refused)}")
    with ExitStack() as stack:
        live = stack.enter_context(host.live(Config(), lambda: False))
        guards = stack.enter_context(
            Guards(
                live.collector.object,
                shipped("lsm_bpf"),
                live.collector.path_seed,
                platform.machine(),
                own_pid=0,
            )
        )
        yield Standing(live, guards)


@pytest.fixture
def guards(standing):
    """The same, enforcing, and nobody under a verdict; afterwards off again."""
    standing.guards.mode = Mode.ENFORCE
    yield standing
    standing.guards.mode = Mode.OFF
    standing.guards.most = None
    standing.guards.hold(two_key_ns=0, all_ns=0)
    standing.guards.cgroup_modes({})
    standing.guards.spare(())
    standing.guards.release(on=False)
    for key in standing.guards.sentences():
        standing.guards.lift(key)
