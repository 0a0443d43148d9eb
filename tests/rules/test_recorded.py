# SPDX-License-Identifier: Apache-2.0
"""
What was really done, as auditd wrote it down and as BPF saw it: rules on it fire, with the right evidence, and no others.

The logs of tests/data/audit were recorded by auditd, those of tests/data/bpf by the collector, both at once.
"""

import json
from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.level import Level
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.sigma import compile_rule
from ksentinel.streams import AuditLogs

DATA = Path(__file__).parents[1] / "data"
SHIPPED = Path(__file__).parents[2] / "rules"

RULE = """\
title: {name}
id: 0d9f3a55-0000-4000-8000-00000000000{number}
logsource: {{product: linux, {source}}}
detection: {detection}
level: high
"""
PROCESS, AUDITD = "category: process_creation", "service: auditd"
RULES = {
    "account list copied": (
        PROCESS,
        "{tool: {Image|endswith: /cp}, what: {CommandLine|contains|all: [passwd, /tmp/]}, condition: all of them}",
    ),
    "program in shared memory": (PROCESS, "{place: {Image|startswith: /dev/shm/}, condition: place}"),
    "web passwords looked for": (
        PROCESS,
        "{tool: {Image|endswith: /find}, what: {CommandLine|contains: .htpasswd}, condition: tool and what}",
    ),
    "passwords searched": (
        AUDITD,
        "{record: {type: execve}, words: {'|all': [grep, password]}, tool: {a0: grep}, condition: all of them}",
    ),
    "miner": (
        AUDITD,
        "{first: {a1|startswith: --cpu-prio}, other: {a2|startswith: --cpu-prio}, condition: 1 of them}",
    ),
    "preloaded library": (
        AUDITD,
        "{made: {type: PATH, name: /etc/ld.so.preload}, gone: {nametype: DELETE}, condition: made and not gone}",
    ),
}
SET = RuleSet(
    compile_rule(
        RULE.format(name=name, number=number, source=source, detection=detection),
        f"{name}.yml",
        sources(),
    )
    for number, (name, (source, detection)) in enumerate(RULES.items())
)

# By recording: rule -> (selection, field, value, what its span covers) of every positive clause.
FOUND = {
    "copied-accounts": {
        "account list copied": [
            ("tool", "Image", "/usr/bin/cp", "/cp"),
            ("what", "CommandLine", "cp /srv/made-up/passwd.txt /tmp/accounts-copy", "passwd"),
            ("what", "CommandLine", "cp /srv/made-up/passwd.txt /tmp/accounts-copy", "/tmp/"),
        ],
        "program in shared memory": [("place", "Image", "/dev/shm/tidy", "/dev/shm/")],
    },
    "searched-files": {
        "web passwords looked for": [
            ("tool", "Image", "/usr/bin/find", "/find"),
            ("what", "CommandLine", "find /srv/made-up -name .htpasswd", ".htpasswd"),
        ],
        "passwords searched": [
            ("record", "type", "EXECVE", "EXECVE"),
            ("words", "keywords", "grep", "grep"),
            ("words", "keywords", "password", "password"),
            ("tool", "a0", "grep", "grep"),
        ],
    },
    "preloaded": {
        "miner": [("first", "a1", "--cpu-priority=5", "--cpu-prio")],
        "preloaded library": [
            ("made", "type", "PATH", "PATH"),
            ("made", "name", "/etc/ld.so.preload", "/etc/ld.so.preload"),
        ],
    },
}


def audited(name):
    """Return the events of a log that auditd wrote."""
    pytest.importorskip("auparse", reason="apt install python3-audit, and run Debian's interpreter")
    return [item for batch in AuditLogs([DATA / "audit" / f"{name}.log"], None) for item in batch]


def watched(name):
    """Return the events that the collector saw at the same time."""
    lines = (DATA / "bpf" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [event_from_plain(json.loads(line)) for line in lines]


def fired(rules, events):
    """Return the first match of each rule, by title."""
    found = {}
    for event in events:
        if not hasattr(event, "tokens"):
            for match in rules.match(event):
                found.setdefault(match.rule.title, match)
    return found


def evidence(match):
    """Return what the positive clauses of a match point at."""
    return [
        (clause.selection, clause.field, clause.value, clause.value[slice(*clause.span)])
        for clause in match.clauses
        if not clause.negated
    ]


@pytest.mark.parametrize("name", FOUND)
def test_audit(name):
    """What the rules describe fires them, each clause at its place in the value; nothing else fires."""
    found = fired(SET, audited(name))

    assert {title: evidence(match) for title, match in found.items()} == FOUND[name]


@pytest.mark.parametrize("name", FOUND)
def test_bpf(name):
    """BPF alone fires the same rules on programs, with the same evidence."""
    found = fired(SET, watched(name))

    assert {title: evidence(match) for title, match in found.items()} == {
        title: clauses for title, clauses in FOUND[name].items() if RULES[title][0] == PROCESS
    }


def test_negated():
    """What was looked at and wasn't there is in the evidence, too."""
    match = fired(SET, audited("preloaded"))["preloaded library"]

    assert [(c.selection, c.field, c.negated) for c in match.clauses if c.negated] == [
        ("gone", "nametype", True)
    ]


@pytest.mark.parametrize("events", [audited, watched], ids=["audit", "bpf"])
@pytest.mark.parametrize("name", FOUND)
def test_shipped(name, events):
    """Of the rules that ship none of level high fires on these, but for the library that is really preloaded."""
    found = fired(RuleSet.load([SHIPPED], trusted_uids=None), events(name))
    worst = {Path(match.rule.file).stem for match in found.values() if match.rule.level >= Level.HIGH}

    assert worst == ({"ld_so_preload"} if name == "preloaded" else set())
