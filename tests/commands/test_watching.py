# SPDX-License-Identifier: Apache-2.0
"""Watching: what is loaded while guards begin or end goes to nobody who isn't there."""

import os
import threading
from types import SimpleNamespace

from ksentinel.commands import watching
from ksentinel.reload import Reloader
from ksentinel.trail import Trail

RULES = SimpleNamespace(rules=["one"])


def test_end_reloads(tmp_path):
    """One that goes on is waited for; the next is for the walk alone."""
    walk, taken = SimpleNamespace(in_force=SimpleNamespace(rules=[])), []
    applying, ended = threading.Event(), threading.Event()
    trail = Trail(tmp_path / "changes.jsonl", os.getuid())
    reloader = Reloader(lambda: RULES, walk, trail, tell=lambda _: None, time_ns=lambda: 0)

    def apply(loaded):
        taken.append(loaded)
        applying.set()
        ended.wait(0.1)
        taken.append(ended.is_set())

    reloader.apply = apply
    with reloader:
        reloader.signal("SIGHUP")
        assert applying.wait(10)
        watching._end_reloads(reloader)
        ended.set()
        reloader.signal("SIGHUP")

    assert taken == [RULES, False]
    assert walk.in_force is RULES
