# SPDX-License-Identifier: Apache-2.0
"""Enforcement, as people are shown it."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import CROND, SHELL, START, denial, texts
from rich.console import Console

from ksentinel import report
from ksentinel.codec import event_to_plain
from ksentinel.enforce.breaker import Lineage, Service, Trip
from ksentinel.enforce.denial import Denied
from ksentinel.enforce.readiness import Finding, Plan, Planned, Readiness
from ksentinel.event import Outcome, ProcessKey
from ksentinel.report.enforce import denials_table, plan_table, ready_table, trip_lines

EXAMPLE = event_to_plain(denial())


@pytest.fixture
def shown(capsys):
    """Return a function that shows something, and returns the lines."""

    def show(what, *arguments, **options):
        what(*arguments, **options)
        return capsys.readouterr().out.splitlines()

    return show


def planned(**fields):
    """Return what one rule would have met."""
    told = {
        "rule": "r", "title": "Shadow read", "hook": "file_open", "action": "deny", "mode": "permissive", "anomalous": False,
        "count": 4, "spared": 1, "who": (("/bin/sh", "/usr/sbin/httpd", 3), ("/usr/sbin/cron", "/usr/sbin/cron", 1)),
        "example": EXAMPLE,
    }  # fmt: skip
    return Planned(**told | fields)


def test_plan(shown):
    """Rule, hook, how often, by whom, an example, what would have become of it; and what was looked at."""
    quiet = planned(rule="q", count=0, spared=0, who=(), example=None)

    assert shown(plan_table, Plan(9, START, START, (planned(), quiet))) == [
        "      4  Shadow read  file_open  would have been denied",
        "         r, permissive",
        "         3 by /bin/sh under /usr/sbin/httpd",
        "         1 by /usr/sbin/cron",
        "         1 of them by who is never denied anything",
        '         e.g. openat /etc/shadow: denied in the kernel at file_open by "Web shell"',
        "",
        (
            "9 events, from 2023-11-14 22:13:20 to 2023-11-14 22:13:20 UTC; 1 rule would have met nothing. Events are kept around "
            "alerts only: what nobody was alerted to isn't among them"
        ),
    ]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, "would have been denied"),
        ({"anomalous": True}, "would have been denied, with a score over its threshold"),
        ({"action": "log"}, "would have been noted"),
        ({"action": "kill"}, "would have been denied, and the process ended"),
        ({"spared": 4}, "spared: never denied anything"),
        ({"count": 0}, "nothing met it"),
    ],
)
def test_verdicts(fields, verdict):
    """What would have become of it."""
    assert planned(**fields).verdict == verdict


def test_nothing_planned(shown):
    """No events at all."""
    assert shown(plan_table, Plan(0, 0, 0, ()))[0].startswith("0 events; 0 rules would have met nothing.")


def test_many(shown):
    """Of many only the first are named."""
    who = tuple((f"/bin/{n}", "", 1) for n in range(9))

    assert "         and 4 others" in shown(plan_table, Plan(9, START, START, (planned(who=who),)))


def finding(**fields):
    """Return a finding."""
    told = {
        "rule": "r",
        "title": "Shadow read",
        "exe": "/bin/sh",
        "service": "/usr/sbin/httpd",
        "hooks": ("file_open",),
    }
    told |= {"first_ns": START, "last_ns": START, "count": 3, "example": EXAMPLE, "why": "say something"}
    return Finding(**told | fields)


def test_ready(shown):
    """What has no answer, and why that matters."""
    found = Readiness(
        3.5, 7, (finding(), finding(why="", answer="noted as an attack")), ("watched for 3.5 of 7 days",)
    )

    assert shown(ready_table, found) == [
        "unresolved  Shadow read  /bin/sh under /usr/sbin/httpd  3 times at file_open",
        "            say something",
        '            e.g. openat /etc/shadow: denied in the kernel at file_open by "Web shell"',
        "answered    Shadow read  /bin/sh under /usr/sbin/httpd  3 times at file_open",
        "            noted as an attack",
        '            e.g. openat /etc/shadow: denied in the kernel at file_open by "Web shell"',
        "",
        "watched for 3.5 of 7 days; 2 would have been denied, 1 have an answer",
        "not yet: watched for 3.5 of 7 days",
    ]
    assert shown(ready_table, Readiness(8, 7, (), ()))[-1] == "ready"


def test_denials(shown):
    """A line each: how often, what became of it, where, whose, by whom, when last."""
    told = shown(
        denials_table, [Denied.of(denial()), Denied.of(denial(CROND, outcome=Outcome.WOULD_DENY))], removed=2
    )

    assert [line.split() for line in told] == [
        "Times Outcome Hook Rule By Last (UTC)".split(),
        "1 denied file_open Web shell /bin/sh under /usr/sbin/httpd 2023-11-14 22:13:20".split(),
        "1 would deny file_open Web shell /usr/sbin/cron 2023-11-14 22:13:20".split(),
        "2 counts had to make room for newer ones (max_denials)".split(),
    ]
    assert shown(denials_table, []) == ["no denials"]


def test_trips(shown):
    """What was taken back, and whom it had denied."""
    one = Lineage(
        Service("/usr/sbin/cron", "unit cron.service"), ProcessKey(7, 0), "/bin/sh", "file_open", START
    )
    told = shown(trip_lines, [Trip("r", "Shadow read", START, START, (one,))])

    assert told == [
        (
            "rule 'Shadow read' (r) is permissive now: within 0 s after it was changed it denied 1 unrelated services: "
            "/usr/sbin/cron (unit cron.service)"
        ),
        "    2023-11-14 22:13:20 UTC  /usr/sbin/cron (unit cron.service): /bin/sh (service's pid 7) at file_open",
    ]


@given(texts, st.sampled_from(["title", "exe", "hook", "rule"]))
def test_harmless(text, where):
    """Whatever an intruder calls things, no terminal is told to do anything."""
    file = io.StringIO()
    out = Console(file=file, width=200, highlight=False, force_terminal=True, color_system=None)
    evil = f"{text}\x1b[2J\u202e"
    process = SHELL if where != "exe" else type(SHELL)(SHELL.key, exe=evil)
    fields = {} if where == "exe" else {where: evil}
    event = denial(process, paths=(evil,), **fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "console", lambda: out)
        example = event_to_plain(event)
        told = {"exe": event.process.exe, "title": event.title, "hook": event.hook, "rule": event.rule}
        denials_table([Denied.of(event)])
        plan_table(
            Plan(
                1,
                START,
                START,
                (
                    planned(
                        **{k: v for k, v in told.items() if k != "exe"},
                        who=((told["exe"], "", 1),),
                        example=example,
                    ),
                ),
            )
        )
        ready_table(
            Readiness(
                1, 7, (finding(**{k: v for k, v in told.items() if k != "hook"}, example=example),), (evil,)
            )
        )
        trip_lines([Trip(evil, evil, 0, 0, (Lineage(Service(evil, evil), ProcessKey(1, 1), evil, evil, 0),))])

    assert not {"\x1b", "\u202e"} & set(file.getvalue())
