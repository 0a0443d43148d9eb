# SPDX-License-Identifier: Apache-2.0
"""A rule tried on events: what it fires on, what it only just doesn't, and why not."""

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.trial import Trial, lacking, views

DETECTION = """
cat:
  Image|endswith: /cat
file:
  CommandLine|contains: shadow
filter:
  ParentImage: /sbin/backup
condition: cat and file and not filter
"""


def executed(exe, line, parent="/bin/sh"):
    return event_from_plain(
        {"event": "exec", "process": {"exe": exe, "argv": line.split(), "parent": {"exe": parent}}}
    )


def test_counts_and_misses(compiled):
    """Each event is counted once; a miss says which part was missing; nothing else is near."""
    trial = Trial(compiled(DETECTION))
    fired = [
        trial.look(event) is not None
        for event in (
            executed("/bin/cat", "cat /etc/shadow"),
            executed("/bin/cat", "cat /etc/motd"),
            executed("/bin/cat", "cat /etc/shadow", parent="/sbin/backup"),
            executed("/bin/ls", "ls"),
            event_from_plain({"event": "fork"}),
        )
    ]

    assert fired == [True, False, False, False, False]
    assert (trial.events, trial.of_source, trial.matches, trial.near) == (5, 4, 1, 2)
    assert (trial.executables, trial.parents) == ({"/bin/cat": 1}, {"/bin/sh": 1})
    assert [[(c.selection, c.field, c.negated) for c in miss.clauses] for miss in trial.misses] == [
        [("file", "CommandLine", True)],
        [("filter", "ParentImage", False)],
    ]


def test_misses_are_bounded(compiled):
    """One of a kind is kept, and no more kinds than asked for; all are counted."""
    trial = Trial(compiled(DETECTION), most=2)
    for number in range(6):
        trial.look(executed(f"/bin/{number // 2}/cat", "cat /etc/motd"))

    assert trial.near == 6
    assert [miss.event.process.exe for miss in trial.misses] == ["/bin/0/cat", "/bin/1/cat"]


def test_one_part_has_no_near_misses(compiled):
    """Or every event would be one."""
    trial = Trial(compiled("s:\n  Image: /bin/cat\ncondition: s"))
    trial.look(executed("/bin/ls", "ls"))

    assert trial.near == 0


@pytest.mark.parametrize(
    ("exe", "line", "lacks"),
    [("/bin/cat", "cat /etc/shadow", 0), ("/bin/cat", "cat", 1), ("/bin/ls", "ls", 2)],
)
def test_lacking(compiled, exe, line, lacks):
    """Parts that are lacking are counted; of alternatives the nearest; none lack exactly if the rule holds."""
    rule = compiled(DETECTION.replace("cat and", "(cat or (file and 1 of *)) and"))
    (view,) = views(rule, executed(exe, line))

    assert len(lacking(rule.tree, view)) == lacks
    assert rule.test(view) == (lacks == 0)


def test_same_as_the_rule_set(compiled):
    """On audit's records it finds what the rule set finds."""
    rule = compiled("s:\n  type: EXECVE\n  a0: cat\n  a1: x\ncondition: s", "service: auditd")
    events = [
        event_from_plain(
            {
                "event": "exec",
                "origin": "audit",
                "records": [["SYSCALL", [["exe", "/bin/cat"]]], ["EXECVE", [["a0", "cat"], ["a1", a1]]]],
            }
        )
        for a1 in ("x", "y")
    ]
    trial = Trial(rule)
    found = [trial.look(event) for event in events]

    assert [() if one is None else (one,) for one in found] == [RuleSet([rule]).match(e) for e in events]
    assert trial.near == 1
