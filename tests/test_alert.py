# SPDX-License-Identifier: Apache-2.0
"""Alerts: what they say of themselves, and their JSON form."""

from dataclasses import replace
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import CAT, SHELL, START, anomaly, denial, judge, match

from ksentinel.alert import Alert, Evidence, when, worst
from ksentinel.codec import event_from_plain, process_from_plain
from ksentinel.event import Outcome, Score
from ksentinel.level import Level
from ksentinel.rules import Exemption, Response


def alert(matches=(), anomalies=(), **fields):
    """Return an alert with that evidence."""
    evidence = [Evidence(1, m.event.time_ns, m.event.time_ns, match=m) for m in matches]
    evidence += [Evidence(2, a.window.first_ns, a.window.last_ns, anomaly=a) for a in anomalies]
    fields = {
        "id": "0011",
        "revision": 1,
        "opened_ns": START,
        "updated_ns": START + 1,
        "process": SHELL,
    } | fields
    return Alert(verdict=judge(matches, anomalies), evidence=tuple(evidence), **fields)


def test_title():
    """The worst rule's title, or else the program's name."""
    mild, bad = match(level=Level.LOW, rule="mild"), match(level=Level.HIGH, rule="bad")

    assert alert([mild, bad]).title == "Bad"
    assert alert(anomalies=[anomaly()]).title == "Unusual system calls of /bin/sh"


def test_parts():
    """Matches and anomalies are found in the evidence."""
    m, a = match(), anomaly()
    both = alert([m], [a])

    assert ((m,), (a,), Level.HIGH) == (both.matches, both.anomalies, both.level)


def test_excepted():
    """What is excepted says whose and until when, and titles no alert that something else is about."""
    exemption = Exemption("backup", "storage", "nightly", START)
    excepted = match(level=Level.HIGH, exception=exemption)
    told = alert([excepted, match(level=Level.LOW, rule="mild")])

    assert told.title == "Mild"
    assert told.to_plain()["evidence"][0]["match"]["exception"] == {
        "id": "backup",
        "owner": "storage",
        "reason": "nightly",
        "expires": when(START),
    }
    assert alert([excepted]).title == "Web shell"
    assert alert([excepted], [anomaly()]).title == "Unusual system calls of /bin/sh"
    assert alert([excepted]).to_plain()["policy"]["contexts"] == ["excepted"]


def test_worst():
    """The highest level, or none."""
    assert Level.NONE is worst([])
    assert Level.HIGH is worst([alert([match(level=Level.LOW)]), alert([match(level=Level.HIGH)])])


def test_plain():
    """The JSON form has everything, in words."""
    m = match(
        CAT,
        tags=("attack.execution", "attack.t1059.004"),
        file="rules/x.yml",
        false_positives=("none",),
        response=Response("kill", anomalous=True),
    )
    plain = orjson.loads(orjson.dumps(alert([m], [anomaly()], repeats=3).to_plain()))

    assert {
        name: plain[name]
        for name in (
            "format", "id", "revision", "level", "action", "agreed", "title", "opened", "opened_ns", "updated_ns",
            "repeats", "techniques",
        )
    } == {
        "format": 1,
        "id": "0011",
        "revision": 1,
        "level": "high",
        "action": "kill",
        "agreed": True,
        "title": "Web shell",
        "opened": "2023-11-14T22:13:20.000000+00:00",
        "opened_ns": START,
        "updated_ns": START + 1,
        "repeats": 3,
        "techniques": ["T1059.004"],
    }  # fmt: skip
    assert plain["policy"] == {"rule": "medium", "model": "medium", "contexts": []}
    assert [(a["rule"], a["asked"], a["action"]) for a in plain["answers"]] == [("web shell", "kill", "kill")]
    assert process_from_plain(plain["process"]) == SHELL
    first, second = plain["evidence"]
    assert m.event == event_from_plain(first["match"]["event"])
    assert tuple(first["match"]["rule"][k] for k in ("id", "level", "file")) == (
        "web shell",
        "medium",
        "rules/x.yml",
    )
    assert first["match"]["clauses"][0] == {
        "selection": "selection",
        "field": "Image",
        "test": "endswith '/bin/cat'",
        "value": "/bin/cat",
        "span": [0, 8],
        "negated": False,
    }
    assert (
        second["count"],
        second["anomaly"]["window"]["syscalls"],
        second["anomaly"]["decided_by"],
    ) == (2, ["execve", "ptrace", "mount"], "ngram")


def test_plain_parts():
    """Of a correlation each part has its rule, time, process and clauses; other matches have none."""
    part = match(CAT, at=1)
    (evidence,) = alert([replace(match(), parts=(part,))]).to_plain()["evidence"]
    (told,) = evidence["match"]["parts"]

    assert (told["rule"], told["time"], told["process"]) == (
        {"id": "web shell", "title": "Web shell", "level": "medium"},
        "2023-11-14T22:13:21.000000+00:00",
        {"pid": 12, "exe": "/bin/cat", "argv": ["/bin/cat"]},
    )
    assert told["clauses"][0]["value"] == "/bin/cat"
    assert "parts" not in alert([part]).to_plain()["evidence"][0]["match"]


@given(st.integers(-(1 << 70), 1 << 70))
def test_any_time(time_ns):
    """Whatever time a log claims can be told, and in order."""
    told = when(time_ns)

    assert datetime.fromisoformat(told).tzinfo is UTC
    assert told <= when(time_ns + 1000)


@pytest.mark.parametrize(
    ("time_ns", "told"),
    [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (-1, "1969-12-31T23:59:59.999999+00:00"),
        (1_700_000_000_123_456_999, "2023-11-14T22:13:20.123456+00:00"),
        (999_999_999_999 * 10**9, "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_when(time_ns, told):
    """To the microsecond, rounded down; the calendar's end is the end."""
    assert told == when(time_ns)


def guarded(*outcomes, **fields):
    """Return an alert of rules whose guards did that."""
    evidence = [
        Evidence(2, START, START, match=match(), enforcement=denial(outcome=outcome, **fields), enforced=2)
        for outcome in outcomes
    ]
    return replace(alert([match()]), evidence=tuple(evidence))


@pytest.mark.parametrize(
    ("outcomes", "enforced"),
    [
        ([], "none"),
        ([Outcome.LOGGED, Outcome.SPARED, Outcome.RELEASED], "none"),
        ([Outcome.WOULD_DENY, Outcome.LOGGED], "would_deny"),
        ([Outcome.WOULD_DENY, Outcome.DENIED], "denied"),
    ],
)
def test_enforced(outcomes, enforced):
    """What guards made of it: the gravest of all evidence."""
    assert guarded(*outcomes).to_plain()["enforced"] == enforced


def test_enforcement_in_json():
    """Of each piece of evidence: where, how, how often, with which scores."""
    one = guarded(Outcome.DENIED, score=Score(1, 2, 3), anomalous=True, killed=True)
    plain = orjson.loads(orjson.dumps(one.to_plain()))

    assert plain["evidence"][0]["enforcement"] == {
        "outcome": "denied", "hook": "file_open", "call": "openat", "mode": "enforce", "action": "deny", "anomalous": True,
        "sentence": "", "untold": False, "killed": True, "count": 2, "time": "2023-11-14T22:13:20.000000+00:00",
        "time_ns": START, "score": {"mean": 1, "cusum": 2, "process": 3},
    }  # fmt: skip
    assert plain["reasons"][-1] == (
        "denied in the kernel at file_open, 2 times: rule 'Web shell'; it was ended; the score was over its threshold"
    )
    assert "enforcement" not in alert([match()]).to_plain()["evidence"][0]
