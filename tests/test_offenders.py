# SPDX-License-Identifier: Apache-2.0
"""Offenders: whoever makes the most noise stands first, with what can be done about it."""

import json
import shlex

import pytest
from made_up import HTTPD, SHELL, START, anomaly, child, judge, match

from ksentinel.alert import Alert, Evidence
from ksentinel.level import Level
from ksentinel.mutes import MODEL
from ksentinel.noise import Fate, Suppressed, Triple
from ksentinel.offenders import MOST_SOURCES, Offender, Tally, rank


def plain(exe="/bin/sh", rule="r", level=Level.MEDIUM, **fields):
    """Return an alert as a store has it."""
    process = child(HTTPD, 100, exe)
    one = match(process, level=level, rule=rule)
    evidence = (Evidence(1, START, START, match=one),)
    return Alert("a", 1, START, START, process, judge([one], []), evidence, **fields).to_plain()


def suppressed(exe="/bin/sh", rule="r", alerts=1, repeats=0):
    """Return a count of what was suppressed."""
    return Suppressed(Triple(rule, exe, "/usr/sbin/httpd"), rule.upper(), 0, Fate.CAPPED, alerts, repeats)


def test_rank():
    """By alerts, repeats and what was suppressed together; muted ones are among the alerts."""
    alerts = [plain(rule="a", repeats=2), plain(rule="b"), plain("/x", rule="b", muted="m", level=Level.HIGH)]
    ranked = rank(alerts, [suppressed(rule="b", alerts=5, repeats=1), suppressed("/y", rule="c")])
    total = sum(one.tally.all for one in ranked)

    assert [(one.rule, one.title, one.tally) for one in ranked] == [
        ("b", "B", Tally(alerts=2, repeats=1, suppressed=5, muted=1, level=Level.HIGH)),
        ("a", "A", Tally(alerts=1, repeats=2, level=Level.MEDIUM)),
        ("c", "C", Tally(suppressed=1)),
    ]
    assert [one.to_plain(total)["share"] for one in ranked] == [0.6667, 0.25, 0.0833]
    assert [(exe, parent, tally.all) for exe, parent, tally in ranked[0].loudest()] == [
        ("/bin/sh", "/usr/sbin/httpd", 7),
        ("/x", "/usr/sbin/httpd", 1),
    ]


def test_nothing():
    """Without alerts there is nobody."""
    assert rank([], []) == []


def test_model_alone():
    """What no rule says is the model's, and no exception helps."""
    said = anomaly(SHELL)
    alert = Alert("a", 1, START, START, SHELL, judge([], [said]), (Evidence(1, START, START, anomaly=said),))
    (one,) = rank([alert.to_plain()], [])

    assert (one.rule, one.title) == (MODEL, "The model alone")
    assert set(one.remedies("/bin/sh", "", one.tally)) == {"mute"}


def test_many_sources():
    """Of many sources the loudest are told, and how many others there are."""
    (one,) = rank([plain(f"/{n}") for n in range(9)], [suppressed("/7")])
    told = one.to_plain(one.tally.all)

    assert [len(told["sources"]), told["others"]] == [MOST_SOURCES, 9 - MOST_SOURCES]
    assert (told["sources"][0]["exe"], told["sources"][0]["share"]) == ("/7", 0.2)


@pytest.mark.parametrize(
    ("level", "words"),
    [
        (Level.NONE, []),
        (Level.MEDIUM, []),
        (Level.HIGH, ["--level", "high"]),
    ],
)
def test_mute(level, words):
    """The mute is a command that can be given, and reaches as far as it must."""
    remedies = Offender("r", kind="exec").remedies("/opt/a b'c", "/bin/sh", Tally(level=level))

    assert shlex.split(remedies["mute"]) == [
        "ksentinel", "mute", "--exe", "/opt/a b'c", "--parent", "/bin/sh", "--rule", "r", "--for", "2h", *words,
        "--reason", "...",
    ]  # fmt: skip


def test_critical():
    """What can't be muted isn't suggested to be."""
    assert set(Offender("r", kind="exec").remedies("/x", "", Tally(level=Level.CRITICAL))) == {"where"}


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("exec", {"Exe": "/opt/\\*", "ParentImage": "/p"}),
        ("syscall", {"Image": "/opt/\\*", "ParentImage": "/p"}),
        ("audit", {"exe": "/opt/\\*"}),
    ],
)
def test_where(kind, where):
    """The exception asks in the fields of the rule's log source, and means the name literally."""
    remedies = Offender("r", kind=kind).remedies("/opt/*", "/p", Tally())

    assert json.loads(remedies["where"]) == where


@pytest.mark.parametrize("exe", ["", "/tmp/\x1b[2J", "/tmp/\udcff", "/tmp/\\xff", "/tmp/\u202e"])
def test_hostile(exe):
    """A name that can't be spelled is in no command: with its escapes it would be another's."""
    assert Offender("r", kind="exec").remedies(exe, "/bin/sh", Tally()) == {}
    assert exe == "" or Offender("r", kind="exec").remedies("/bin/sh", exe, Tally()) == {}
