# SPDX-License-Identifier: Apache-2.0
"""What guards are told at the start, held against what rules are told of the same calls."""

from ksentinel.codec import event_from_plain
from ksentinel.enforce.guards import FLAGS_AT, FLAGS_OF
from ksentinel.rules.hooks import HOOKS, seen

TOLD = {"file_open", "sb_mount"}
"""Hooks that are told the flags by the kernel."""
WITHOUT = {"openat2", "mknod", "mknodat", "link", "unlink", "rmdir"}
"""Calls that have none, or have them in memory that anybody can change."""


def test_flags():
    """At a hook that isn't told flags, each call that has some is known by where they stand, or by what they always are."""
    asked = {call for hook in HOOKS if "flags" in hook.sees and hook.name not in TOLD for call in hook.calls}

    assert asked - WITHOUT == {*FLAGS_AT, *FLAGS_OF} - {"umount2"}


def test_creat():
    """What creat always means is what its event says."""
    event = event_from_plain({"event": "syscall", "syscall": "creat", "paths": ["/etc/x"]})

    assert {at.numbers["flags"] for at in seen(event)} == {FLAGS_OF["creat"]}
