# SPDX-License-Identifier: Apache-2.0
"""Actions are read without trust; an event counts if it is the action's, and only for its rule."""

import re
from pathlib import Path

import pytest
from made_up import START

from ksentinel import actor, selftest
from ksentinel.errors import RuleError
from ksentinel.event import ExecEvent, Origin, Process, ProcessKey
from ksentinel.level import Level
from ksentinel.rules import Match, Rule
from ksentinel.rules.checking import ACTION
from ksentinel.rules.ruleset import RuleSet
from ksentinel.selftest import Action, Watch, action_from_plain, read_action

FILE = Path("x.selftest.json")
RULES = Path(__file__).parents[1] / "rules"


def test_steps():
    """What can be asked for is what an actor can do; a path is told as such."""
    assert set(selftest._TAKES) == set(actor.STEPS)
    assert set(actor.PATHS) | actor.MADE_FIRST <= set(actor.STEPS)
    assert set(actor.PATHS) >= actor.MADE_FIRST


def test_documented():
    """Each step stands in docs/authoring.md, and no other does."""
    text = (RULES.parent / "docs" / "authoring.md").read_text(encoding="utf-8")

    assert set(re.findall(r'^\| `\["(\w+)"', text, re.MULTILINE)) == set(actor.STEPS)


def test_action():
    """Programs and steps, or the reason why there are none."""
    plain = {"as": ["/usr/sbin/cron"], "do": [["exec", "/bin/sh", "sh", "-c"], ["memfd"]]}

    assert action_from_plain(plain, FILE) == Action(
        ("/usr/sbin/cron",), (("exec", "/bin/sh", "sh", "-c"), ("memfd",))
    )
    assert action_from_plain({"cannot": "because"}, FILE) == Action(cannot="because")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], "an action is an object"),
        ({}, "do is a list of up to 16 steps"),
        ({"do": []}, "do is a list of up to 16 steps"),
        ({"do": [["memfd"]] * 17}, "do is a list of up to 16 steps"),
        ({"doo": [["memfd"]]}, "an action has no 'doo' (did you mean do?)"),
        ({"cannot": ""}, "cannot gives the reason"),
        ({"cannot": "x", "do": [["memfd"]]}, "cannot gives the reason, and stands alone"),
        ({"as": "x", "do": [["memfd"]]}, "as is a list"),
        ({"as": ["nginx"], "do": [["memfd"]]}, "as is a list of up to 4 absolute paths"),
        ({"as": ["/x"] * 5, "do": [["memfd"]]}, "as is a list of up to 4 absolute paths"),
        ({"do": ["memfd"]}, "step 1 is a list"),
        ({"do": [[]]}, "step 1 is a list"),
        ({"do": [["memfd"], ["exe", "/x"]]}, "step 2: there is no 'exe' (did you mean exec?)"),
        ({"do": [["memfd", 1]]}, "step 1: these are not the arguments of memfd"),
        ({"do": [["exec"]]}, "these are not the arguments of exec"),
        ({"do": [["exec", "sh"]]}, "these are not the arguments of exec"),
        ({"do": [["exec", "/x", *["a"] * 64]]}, "these are not the arguments of exec"),
        ({"do": [["exec", "/x", "a\0b"]]}, "these are not the arguments of exec"),
        ({"do": [["read", "/tmp/../../etc/shadow"]]}, "these are not the arguments of read"),
        ({"do": [["read", "/"]]}, "these are not the arguments of read"),
        ({"do": [["rename", "/x"]]}, "these are not the arguments of rename"),
        ({"do": [["chmod", "/x", "9"]]}, "these are not the arguments of chmod"),
        ({"do": [["chmod", "/x", 0o4755]]}, "these are not the arguments of chmod"),
        ({"do": [["connect", "192.0.2.1", 0]]}, "these are not the arguments of connect"),
        ({"do": [["connect", "192.0.2.1", True]]}, "these are not the arguments of connect"),
    ],
)
def test_no_action(plain, said):
    """What is none is refused, with the file and what to do."""
    with pytest.raises(RuleError) as caught:
        action_from_plain(plain, FILE)

    assert str(caught.value).startswith("x.selftest.json: ")
    assert said in str(caught.value)


def test_read(tmp_path):
    """It stands beside the rule; a rule may have none; what can't be read has a place."""
    rule = Rule("1", "x", Level.HIGH, file=str(tmp_path / "x.yml"))
    none = read_action(rule, trusted_uids=None)
    (tmp_path / "x.selftest.json").write_text('{"do": [["memfd"]]}')
    some = read_action(rule, trusted_uids=None)
    (tmp_path / "x.selftest.json").write_text("{\n!")

    assert (none, some) == (None, Action((), (("memfd",),)))
    with pytest.raises(RuleError, match=r"x\.selftest\.json:2:1: not JSON"):
        read_action(rule, trusted_uids=None)


@pytest.mark.parametrize(
    "rule", RuleSet.load([RULES], trusted_uids=None).rules, ids=lambda r: Path(r.file).stem
)
def test_shipped(rule):
    """A stable rule has an action, or the reason why there is none; whatever stands beside a rule can be read."""
    action = read_action(rule, trusted_uids=None)

    assert action is not None or rule.status != "stable"


def test_no_orphans():
    """Every action has its rule."""
    actions = sorted(RULES.rglob(f"*{ACTION}"))

    assert [path for path in actions if not Path(str(path).replace(ACTION, ".yml")).exists()] == []


def executed(*pids):
    """Return an exec by the last of a line of processes."""
    process = None
    for pid in pids:
        process = Process(ProcessKey(pid, 1), exe=f"/{pid}", parent=process)
    return ExecEvent(time_ns=START, process=process, tid=pids[-1], origin=Origin.BPF)


@pytest.mark.parametrize(
    ("pids", "whose"),
    [((1, 50, 51, 52), "a"), ((1, 50, 51, 52, 53), "a"), ((1, 60, 61, 62), "b"), ((1, 50, 51), None), ((1, 50), None), ((1, 51, 52), None), ((1,), None)],
)  # fmt: skip
def test_whose(pids, whose):
    """It is the action's, if its process descends from what the actor has started."""
    assert Watch({50: "a", 60: "b"}).whose(executed(*pids)) == whose


def test_see():
    """Only a rule's own action counts, and of that the first match."""
    watch = Watch({50: "a", 60: "b"})
    rules = {name: Rule(name, name, Level.HIGH) for name in "ab"}
    own, other = executed(1, 50, 51, 52), executed(1, 60, 61, 62)
    first, second = Match(rules["a"], own, ()), Match(rules["a"], own, ())
    watch.see(other, [Match(rules["a"], other, ())])
    watch.see(own, [Match(rules["b"], own, ()), first])
    watch.see(own, [second])

    assert watch.fired == {"a": first}
    assert watch.fired["a"] is first
