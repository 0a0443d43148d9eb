# SPDX-License-Identifier: Apache-2.0
"""A known workload: operations, one after the other, how each ended, and what guards said of it."""

import errno
import os
import time
from collections.abc import Callable
from typing import NamedTuple

from ksentinel.bpf import abi
from ksentinel.enforce import Mode
from ksentinel.event import Outcome

NEW = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 2)
"""Whether this kernel asks about cutting open files at a hook of their own."""


class Op(NamedTuple):
    """
    An operation.

    Attributes
    ----------
    act
        Does it, raising OSError if it fails, where it is handed what was prepared.
    hooks
        Where guards speak of it if it goes on; the first one refuses it.
    error
        What a refusal looks like: some of the kernel's callers have an errno of their own.
    """

    name: str
    act: Callable
    hooks: tuple[str, ...]
    error: int = errno.EPERM


def named(op):
    """Return what an operation's directory is called: a script's first line is cut at a blank."""
    return op.name.replace(" ", "-")


def ended(act):
    """Return the errno that something ended with; 0 if it went through."""
    try:
        act()
    except OSError as error:
        return error.errno
    return 0


def walk(guards, ops, prepare, mode):
    """
    Make each operation; returns by name whether it was refused, and what guards said: hook and outcome.

    *prepare* makes what an operation finds, while nothing is told.
    """
    found = {}
    for op in ops:
        guards.guards.mode = Mode.OFF
        spot = prepare(op)
        guards.guards.mode = mode
        refused = ended(lambda op=op, spot=spot: op.act(spot)) == op.error
        guards.guards.mode = Mode.OFF
        found[op.name] = refused, [(one.hook, one.outcome) for one in guards.denials(0)]
    return found


def forbidden(ops, mode):
    """Return what is expected of operations that a policy is about."""
    if mode is Mode.ENFORCE:
        return {op.name: (True, [(op.hooks[0], Outcome.DENIED)]) for op in ops}
    return {op.name: (False, [(hook, Outcome.WOULD_DENY) for hook in op.hooks]) for op in ops}


def untouched(ops):
    """Return what is expected of operations that no policy is about."""
    return {op.name: (False, []) for op in ops}


def make_anomalous(guards, *, over):
    """Say of this process that its score was over its threshold just now, or that it wasn't."""
    processes = guards.live.collector.object.map("processes")
    pidfd = os.pidfd_open(os.getpid())
    try:
        value = processes.lookup(pidfd, abi.Process) or abi.Process()
        value.over_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if over else 0
        processes.update(pidfd, value)
    finally:
        os.close(pidfd)
