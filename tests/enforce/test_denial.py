# SPDX-License-Identifier: Apache-2.0
"""Denials as matches: whose, by which tests, and what the hook saw of each."""

import ctypes
import os
from pathlib import Path

import pytest
from hypothesis import given
from made_up import SHELL, START, Incidents, denial, hook_events

from ksentinel.bpf import abi, guard_abi
from ksentinel.bpf.guard_abi import Hook
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.denial import (
    Asked,
    Denied,
    Policies,
    asked_of,
    identity,
    match_of,
    rule_behind,
    seen_of,
)
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import parse_settings
from ksentinel.event import Address, Outcome, Score
from ksentinel.level import Level
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import ProcessTable
from ksentinel.rules import Clause, Response, Rule
from ksentinel.rules.derivation import derive
from ksentinel.rules.ruleset import RuleSet
from ksentinel.store import Store
from ksentinel.syscalls import token_of

RULES = [
    derive(one) for one in RuleSet.load([Path(__file__).parents[2] / "rules"], trusted_uids=None).compiled
]
PRELOAD = "e7d47e3a-5947-4441-b39a-dc9bd5f4e52f"
ENTRIES = """
entries:
  - {id: no-nc, title: No netcat, deny: [exec], file: {is: [/usr/bin/nc], kind: [memfd]}, unless_by: [/usr/bin/dpkg]}
  - {id: no-lan, deny: [connect], network: {to: [10.0.0.0/8], port: [22]}, by: [/usr/sbin/nginx], action: log}
  - {id: odd, deny: [write], file: {under: [/etc]}, when: anomalous, action: kill}
"""


def place(path):
    """Return where a path is said to be: each somewhere else."""
    return Place(1, abs(hash(path)) or 1)


@pytest.fixture(scope="module")
def compiled():
    """Return a policy of the rules that ship and some entries."""
    return compile_policy(RULES, parse_settings(ENTRIES, "enforce.yml"), resolve=place, arch="x86_64")


def ways(compiled, name, hook):
    """Return the numbers of a rule's ways at a hook."""
    return [
        number
        for number, way in enumerate(compiled.ways)
        if way.hook is hook and way.rule < len(compiled.rules) and compiled.rules[way.rule].id == name
    ]


def told(compiled, name, hook):
    """Return what a rule's ways at a hook ask, in words."""
    return [
        [f"{'not ' if one.negated else ''}{one.subject} {one.words}" for one in asked_of(compiled, number)]
        for number in ways(compiled, name, hook)
    ]


def test_asked_by_a_rule(compiled):
    """A rule's own tests, as they were derived; the second key is one, too."""
    assert told(compiled, PRELOAD, Hook.PATH_RENAME) == [
        [
            "target ends with /etc/ld.so.preload",
            "target is known",
            "not program is /usr/bin/dpkg or /usr/bin/rpm",
            "score is over its threshold",
        ]
    ]
    opened = told(compiled, PRELOAD, Hook.FILE_OPEN)
    assert "flags opened for writing" in opened[0]


def test_asked_by_an_entry(compiled):
    """What an operator has written: files, addresses, programs, kinds."""
    assert told(compiled, "no-nc", Hook.BPRM_CHECK_SECURITY) == [
        ["traits has memfd", "path is /usr/bin/nc", "not program is /usr/bin/dpkg"]
    ]
    assert [sorted(one) for one in told(compiled, "no-lan", Hook.SOCKET_CONNECT)] == [
        ["destination is in 10.0.0.0/8", "port is 22", "program is /usr/sbin/nginx"]
    ]
    assert told(compiled, "odd", Hook.FILE_OPEN) == [
        ["traits has write", "path is below /etc", "score is over its threshold"]
    ]


def test_every_way_has_words(compiled):
    """Of each way that isn't a canary's something is asked, and each in words."""
    for number, way in enumerate(compiled.ways):
        asked = list(asked_of(compiled, number))
        assert bool(asked) == (way.rule < len(compiled.rules))
        assert all(one.subject and one.words for one in asked)


def test_rules_of_entries(compiled):
    """An entry is a rule of level high; what is only noted asks for nothing."""
    rules = {identity(one): rule_behind(one) for one in compiled.rules}

    assert rules["entry:no-nc"] == Rule(
        "entry:no-nc",
        "No netcat",
        Level.HIGH,
        file="enforce.yml:3:5",
        name="no-nc",
        source="guard",
        response=Response("deny", inline=True),
    )
    assert rules["entry:no-lan"].response is None
    assert rules["entry:odd"].response == Response("kill", inline=True, anomalous=True)
    assert rules[PRELOAD] is next(one.rule for one in RULES if one.rule.id == PRELOAD)


def test_policies(compiled):
    """A denial is told by the policy that decided it, also when there is another one by now."""
    policies = Policies(most=2)
    policies.add(1, compiled)
    number = next(n for n, one in enumerate(compiled.rules) if one.id == PRELOAD)
    (way,) = ways(compiled, PRELOAD, Hook.PATH_RENAME)
    event = denial(rule=PRELOAD, epoch=1, way=way, hook="path_rename", paths=("/tmp/x", "/etc/ld.so.preload"))
    empty = compile_policy([], parse_settings("{}", "x"), resolve=place, arch="x86_64")
    policies.add(2, empty)
    match = policies.match(event)

    assert policies.rule_of(1, number) == (PRELOAD, "Library to be loaded into every program")
    assert match.rule.level is Level.CRITICAL
    assert match.clauses[0] == Clause(
        "guard", "target", "ends with /etc/ld.so.preload", "/etc/ld.so.preload", negated=False
    )
    assert (match.clauses[2].negated, match.clauses[2].value) == (True, "/bin/sh")
    policies.add(3, empty)
    assert policies.rule_of(1, number) == ("", "")
    assert [one.field for one in policies.match(event).clauses] == ["hook"]
    assert policies.rule_of(3, 0) == ("", "")


def test_sentences():
    """A verdict on a process is told by the rule that it was passed by."""
    policies = Policies()
    policies.sentence(7, Rule("r", "Web shell", Level.CRITICAL))
    match = policies.match(denial(rule="r", sentence="quarantine", way=3))

    assert (policies.rule_of(None, 7), policies.rule_of(None, 8)) == (("r", "Web shell"), ("", ""))
    assert match.rule.level is Level.CRITICAL
    assert match.clauses == (Clause("guard", "sentence", "is in force", "quarantine"),)


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"outcome": Outcome.DENIED}, True),
        ({"outcome": Outcome.WOULD_DENY}, True),
        ({"outcome": Outcome.LOGGED}, True),
        ({"outcome": Outcome.RELEASED}, True),
        ({"outcome": Outcome.SPARED}, False),
        ({"outcome": Outcome.DENIED, "nonce": 0}, False),
    ],
)
def test_what_matches(fields, matches):
    """What is spared is expected, and a proof is none of anybody's doing."""
    assert (match_of(denial(**fields), {}) is not None) == matches


@pytest.mark.parametrize(("title", "called"), [("Gone", "Gone"), ("", "A guard in the kernel")])
def test_unknown_rule(title, called):
    """A denial whose rule has gone is told all the same, and not mildly."""
    rule = match_of(denial(rule="", title=title), {}).rule

    assert (rule.id, rule.title, rule.level) == ("guard:unknown", called, Level.HIGH)


SEEN = denial(
    SHELL,
    paths=("/a", "/b"),
    address=Address("inet", "10.0.0.1", 22),
    numbers=(("flags", 0o101), ("signal", 9)),
    traits=("write", "not_roots"),
    score=Score(1, 2, 3),
)


@pytest.mark.parametrize(
    ("subject", "value"),
    [
        ("path", "/a, /b"),
        ("target", "/b"),
        ("program", "/bin/sh"),
        ("parent", "/usr/sbin/httpd"),
        ("service", "/usr/sbin/httpd"),
        ("ancestors", "/usr/sbin/httpd, /sbin/init"),
        ("destination", "10.0.0.1:22"),
        ("flags", "0o101"),
        ("signal", "9"),
        ("uid", None),
        ("traits", "write, not roots"),
        ("score", "mean 1, CUSUM 2, process 3"),
        ("anything", None),
    ],
)
def test_seen(subject, value):
    """What the hook saw of what a test is about."""
    assert seen_of(SEEN, subject) == value


@given(hook_events)
def test_any_denial(event):
    """Whatever a record said, it is a match with a clause, or none; and it can be counted."""
    match = match_of(event, {}, [Asked("path", "is /x"), Asked("program", "is /y", negated=True)])

    assert match is None or len(match.clauses) == 2
    assert Denied.of(event).count == 1


def test_from_the_record_to_the_store(compiled, tmp_path):
    """What the kernel wrote becomes one alert with its tests, and one count; the operation's own event adds nothing."""
    policies = Policies()
    policies.add(5, compiled)
    (way,) = ways(compiled, PRELOAD, Hook.PATH_RENAME)
    paths = (b"/tmp/x", b"/etc/ld.so.preload")
    told = guard_abi.Denial(
        epoch=5, rule=compiled.ways[way].rule, way=way, hook=Hook.PATH_RENAME, token=token_of("rename"),
        outcome=guard_abi.Outcome.DENIED, action=guard_abi.Action.DENY, mode=guard_abi.Mode.ENFORCE,
        flags=guard_abi.DenialFlag.ANOMALOUS, lengths=tuple(map(len, paths)),
    )  # fmt: skip
    told.header = abi.Header(
        kind=abi.Kind.DENIAL,
        size=ctypes.sizeof(told) + sum(map(len, paths)),
        time_ns=7,
        start_ns=1,
        tgid=10,
        tid=10,
    )
    normalizer = BpfNormalizer(ProcessTable(), START, "x86_64", None, rule_of=policies.rule_of)
    event = normalizer.item(memoryview(bytes(told) + b"".join(paths)))
    incidents = Incidents()
    (alert,) = incidents.match(policies.match(event))
    rules = RuleSet.load([Path(__file__).parents[2] / "rules"], trusted_uids=None)
    again = [m for m in rules.match(event.operation) if m.rule.id == PRELOAD]
    later = [one for match in again for one in incidents.match(match)]
    with Store(tmp_path / "alerts.db", os.getuid(), write=True) as store:
        store.put(alert)
        store.denied([event])
        kept, counted = store.get(alert.id), list(store.denials())

    assert (alert.level, alert.enforced, len(again), later) == (Level.CRITICAL, "denied", 1, [])
    assert [one["test"] for one in kept["evidence"][0]["match"]["clauses"]] == [
        "ends with /etc/ld.so.preload",
        "is known",
        "is /usr/bin/dpkg or /usr/bin/rpm",
        "is over its threshold",
    ]
    assert kept["evidence"][0]["enforcement"]["anomalous"] is True
    assert [(one.rule, one.hook, one.count) for one in counted] == [(PRELOAD, "path_rename", 1)]
