# SPDX-License-Identifier: Apache-2.0
"""Other rules for a walk that goes on: all or none, told, and written down before and after."""

import json
import os
from types import SimpleNamespace

import pytest

from ksentinel.errors import Location, RuleError
from ksentinel.reload import Reloader
from ksentinel.trail import Trail

OLD, NEW = SimpleNamespace(rules=["old"]), SimpleNamespace(rules=["new", "newer"])
WRONG = RuleError("no level", Location("x.yml", 1, 1), "say one")


class Scene:
    """A reloader, what it is told by, and what came of it."""

    def __init__(self, folder, answers):
        self.file = folder / "changes.jsonl"
        self.said = []
        self.walk = SimpleNamespace(in_force=OLD)
        answers = iter(answers)

        def load():
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        times = iter(range(1000, 2000))
        trail = Trail(self.file, os.getuid())
        self.reloader = Reloader(load, self.walk, trail, tell=self.said.append, time_ns=lambda: next(times))

    def written(self):
        """Return what the trail has, without times."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "time"} for line in lines]


def test_good(tmp_path):
    """The new rules are in use, and it is known since when."""
    scene = Scene(tmp_path, [NEW])
    before = scene.reloader.loaded_ns
    outcome = scene.reloader.reload()

    assert scene.walk.in_force is NEW
    assert (outcome.ok, outcome.rules, outcome.error) == (True, 2, "")
    assert scene.reloader.last == outcome
    assert before < scene.reloader.loaded_ns == outcome.time_ns
    assert scene.said == ["rules reloaded: 2, before 1"]


@pytest.mark.parametrize(
    ("error", "said"), [(WRONG, "x.yml:1:1: no level (say one)"), (MemoryError("full"), "MemoryError: full")]
)
def test_bad(tmp_path, error, said):
    """The old rules stay; the place is said, and remembered; the next one may be good again."""
    scene = Scene(tmp_path, [error, NEW])
    since = scene.reloader.loaded_ns
    with pytest.raises(type(error)):
        scene.reloader.reload()

    assert scene.walk.in_force is OLD
    assert scene.reloader.loaded_ns == since
    assert (scene.reloader.last.ok, scene.reloader.last.rules, scene.reloader.last.error) == (False, 1, said)
    assert said in scene.said[0]
    assert scene.reloader.reload().ok


def test_signals(tmp_path):
    """One after the other, each in the trail before it is done and after; a bad one doesn't end that."""
    scene = Scene(tmp_path, [WRONG, ValueError("odd"), NEW])
    with scene.reloader as reloader:
        for _ in range(3):
            reloader.signal("SIGHUP")
    about = {"uid": None, "pid": None, "request": "reload", "signal": "SIGHUP"}
    outcomes = ["begun", str(WRONG), "begun", "odd", "begun", "done"]

    assert scene.walk.in_force is NEW
    assert scene.written() == [about | {"outcome": outcome} for outcome in outcomes]


def test_no_trail_no_reload(tmp_path):
    """What can't be written down is not done, and that is told."""
    scene = Scene(tmp_path, [NEW])
    scene.file.symlink_to("elsewhere")
    with scene.reloader as reloader:
        reloader.signal("SIGHUP")

    assert scene.walk.in_force is OLD
    assert not scene.reloader.last.ok
    assert scene.said[0].startswith("rules not reloaded, the audit trail can't have it: ")


def test_apply(tmp_path):
    """What was loaded is taken wherever else it counts first: all of it, or none is in use."""
    scene, taken = Scene(tmp_path, [NEW, NEW]), []

    def apply(loaded):
        taken.append((loaded, scene.walk.in_force))
        if len(taken) == 1:
            raise RuleError("too many ways", Location("x.yml", 1, 1), "fewer")

    scene.reloader.apply = apply
    with pytest.raises(RuleError):
        scene.reloader.reload()
    refused = (scene.walk.in_force, scene.reloader.last.ok)
    scene.reloader.reload()

    assert refused == (OLD, False)
    assert taken == [(NEW, OLD), (NEW, OLD)]
    assert scene.walk.in_force is NEW
    assert scene.said[0] == "rules not reloaded, the 1 in use stay: x.yml:1:1: too many ways (fewer)"


def test_not_applied_what_is_not_loaded(tmp_path):
    """Rules that can't be loaded go nowhere."""
    scene, taken = Scene(tmp_path, [WRONG]), []
    scene.reloader.apply = taken.append
    with pytest.raises(RuleError):
        scene.reloader.reload()

    assert taken == []


def test_paused(tmp_path):
    """A reload waits while what it is applied to begins or ends."""
    scene, taken = Scene(tmp_path, [NEW]), []
    with scene.reloader as reloader, reloader.paused():
        reloader.signal("SIGHUP")
        reloader.apply = taken.append
        assert scene.walk.in_force is OLD
    assert taken == [NEW]
    assert scene.walk.in_force is NEW
