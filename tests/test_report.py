# SPDX-License-Identifier: Apache-2.0
"""What people are shown."""

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import SHELL, START, denial, judge, match
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ksentinel import report
from ksentinel.alert import Alert, Evidence
from ksentinel.event import Outcome, Score
from ksentinel.flight import Facts, Flown
from ksentinel.search import Found, Results
from ksentinel.status import ModelStatus, Status, Usage
from ksentinel.syscalls import CLASSES

LIVE = {
    "seen": 1000, "scored": 890, "unscored": 10, "own": 100, "excluded": 0, "no_storage": 0, "contended": 0,
    "exec_tokens": 3, **dict.fromkeys((f"tokens_{name}" for name in CLASSES), 0), "tokens_tmp": 7,
    "windows_ungated": 0, "windows_flagged": 3, "windows_sampled": 1, "windows_gated": 11,
    "windows_sent": 3, "windows_dropped": 1, "tokens_sent": 200, "tokens_gated": 700, "tokens_dropped": 10,
    "closed_full": 10, "closed_exit": 5, "closed_exec": 0, "closed_idle": 0, "closed_stop": 0,
    "calls": 0, "calls_sent": 0, "calls_dropped": 0, "missed_runs": 0, "records_missing": 2, "seconds": 1.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    """A terminal that calls itself dumb is 80 columns wide to rich, whatever is asked for."""
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def shown(monkeypatch):
    """Return a function that runs something of the report on a terminal without colours, and returns the lines."""

    def shown(show, *arguments, width=80, **options):
        file = io.StringIO()
        out = Console(file=file, width=width, highlight=False, force_terminal=True, color_system=None)
        monkeypatch.setattr(report, "console", lambda: out)
        show(*arguments, **options)
        return file.getvalue().splitlines()

    return shown


def process(**more):
    return {"pid": 7, "start_ns": 1, "exe": "/usr/bin/python3"} | more


def alert(**more):
    return {
        "id": "0123456789ab", "updated": "2026-11-23T07:20:22.5+00:00", "opened": "2026-11-23T07:20:17.5+00:00",
        "level": "high", "title": "Something", "repeats": 0, "process": process(), "action": "alert",
        "explanation": {"paragraph": "In words."}, "reasons": ["a reason"], "evidence": [],
    } | more  # fmt: skip


def test_account(shown):
    """What must add up comes first, with the numbers; counters at zero take one line."""
    assert shown(report.account_table, LIVE) == [
        "Accounting",
        "  1,000  system calls seen = 890 scored + 10 unscored + 100 own + 0 excluded + 0",
        "         no storage + 0 contended",
        "    910  their tokens = 890 scored + 10 unscored + 3 exec tokens + 7 tokens tmp",
        "         = 200 sent + 700 gated + 10 dropped",
        "     15  windows closed = 10 full + 5 exit + 0 exec + 0 idle + 0 stop = 0",
        "         ungated + 3 flagged + 1 sampled + 11 gated",
        "      4  windows not gated = 0 ungated + 3 flagged + 1 sampled = 3 sent + 1",
        "         dropped",
        "      2  records missing",
        "  1.500  seconds",
        "      0  missed runs",
        "",
    ]


def test_account_that_does_not_add_up(shown):
    """A difference is shown, never hidden."""
    _, line, *_ = shown(
        report.account_table, {"lines": 1200, "lines_in_events": 1000, "malformed": 3, "pending": 0}
    )

    assert line == "  1,200  audit lines ≠ 1,003 = 1,000 lines in events + 3 malformed + 0 pending"


def test_every_counter_is_shown(shown):
    """No counter is left out, whether it is part of a sum or not, and whether it is zero or not."""
    account = {name: 1000 + i for i, name in enumerate(LIVE)}
    text = " ".join(shown(report.account_table, account, width=1000))

    assert [f"{number:,}" for number in account.values() if f"{number:,} " not in text] == []


def test_losses_stand_out(capsys, monkeypatch):
    """Whatever was lost is red."""
    out = Console(width=200, highlight=False, force_terminal=True, color_system="standard")
    monkeypatch.setattr(report, "console", lambda: out)
    report.account_table(LIVE)

    red = [part.partition("\x1b[0m")[0] for part in capsys.readouterr().out.split("\x1b[1;31m")[1:]]
    assert red == ["10 dropped", "1 dropped", "      2  records missing"]


STATUS = Status(
    version="0.1.0", pid=77, mode="monitor", since_ns=1_700_000_000 * 10**9, seconds=7384.2,
    model=ModelStatus("/m/web\x1b[2J", 1_699_000_000 * 10**9, "web1", "6.12", ("a.db",), 3235, 12),
    rules=22, store="/s/alerts.db", lost=3, account=LIVE, walk={"items": 5, "events": 2, "windows": 2},
    control={}, usage=Usage(75.0, 0.0123, 0.5, 60.0, 95_000_000, 120_400_000),
)  # fmt: skip


def test_status(shown):
    """What it is, what it runs with, what it costs, and what it has counted."""
    told = shown(report.status_table, STATUS, width=100)

    assert told[: told.index("") + 1] == [
        "version  0.1.0",
        "process  77",
        "mode     monitor",
        "since    2023-11-14 22:13:20 UTC, for 2 h 3 min",
        "model    /m/web\\x1b[2J, written 2023-11-03 08:26:40 UTC; trained on web1, 6.12: 3,235 windows of 12",
        "         executables",
        "rules    22",
        "store    /s/alerts.db",
        "cpu      1.2% of a core since then, 50.0% over the last minute",
        "memory   95 MB, at its peak 120 MB",
        "lost     3 records",
        "",
    ]
    assert "  5  items = 2 events + 2 windows + 1 on their way" in told
    assert [line for line in told if line and not line.startswith(" ")][-3:] == [
        "Accounting",
        "The walk",
        "The control socket",
    ]


def test_status_of_a_young_daemon(shown):
    """One without a model, that hasn't run for a minute."""
    young = replace(STATUS, model=None, seconds=0.4, usage=replace(STATUS.usage, lately_seconds=7.0))
    told = shown(report.status_table, young)

    assert "model    none: rules alone" in told
    assert "since    2023-11-14 22:13:20 UTC, for 0 s" in told
    assert "cpu      1.2% of a core since then, 50.0% over the last 7 s" in told


@pytest.mark.parametrize(
    ("account", "line"),
    [
        ({"items": 5, "events": 3, "windows": 2}, "  5  items = 3 events + 2 windows"),
        ({"items": 5, "events": 3, "windows": 1}, "  5  items = 3 events + 1 windows + 1 on their way"),
        ({"items": 5, "events": 3, "windows": 4}, "  5  items = 3 events + 4 windows - 2 on their way"),
    ],
)
def test_account_that_goes_on(shown, account, line):
    """What was read between one counter and the next is said to be on its way."""
    assert shown(report.account_table, account, live=True)[1] == line


def test_no_account(shown):
    """A recording that was killed has none, and says so."""
    assert shown(report.account_table, {}) == ["Accounting", "  none was kept: recording was cut short", ""]


def test_alerts(shown):
    """Two lines an alert: what, and who."""
    below = process(parent=process(pid=6, exe="/usr/sbin/nginx"), service={"pid": 6, "start_ns": 1})
    apart = process(service={"pid": 5, "start_ns": 1, "exe": "/usr/sbin/cron"})
    rows = [
        alert(process=below, repeats=2),
        alert(level="low", process=apart),
        alert(process={**process(), "exe": ""}),
    ]

    assert shown(report.alerts_table, rows, limit=4, removed=9, width=200)[-1] == (
        "3 alerts, times in UTC; `ksentinel explain ID` says why; 9 older ones had to make room (max_alerts)"
    )
    assert shown(report.alerts_table, rows, limit=3) == [
        "0123456789ab  2026-11-23 07:20:22  high  Something  +2 like it",
        "                                         /usr/bin/python3 under /usr/sbin/nginx",
        "0123456789ab  2026-11-23 07:20:22  low   Something",
        "                                         /usr/bin/python3 under /usr/sbin/cron",
        "0123456789ab  2026-11-23 07:20:22  high  Something",
        "                                         an unknown program",
        "",
        "3 alerts, times in UTC; `ksentinel explain ID` says why; there may be more than",
        "these 3: --limit",
    ]


def test_alerts_and_what_is_not_shown(shown):
    """A muted alert is marked; below stands what was suppressed, and what is muted, without a control character."""
    told = shown(
        report.alerts_table, [alert(muted="5f")], limit=9, suppressed=1234, mutes=["5f: /x\x1b[2J"], width=200
    )

    assert told[0].endswith("Something  muted by 5f")
    assert told[-2:] == [
        "1,234 suppressed alerts are counted alone: `ksentinel rules noise`",
        "muted: 5f: /x\\x1b[2J",
    ]
    assert shown(report.alerts_table, [], limit=9, suppressed=1)[0] == "no alerts"


@pytest.mark.parametrize(
    ("repeats", "said"), [(1, "1 more incident that looked"), (1200, "1,200 more incidents that looked")]
)
def test_explanation_counts_repeats(shown, repeats, said):
    """How often the same happened again stands among the reasons; nothing if it didn't."""
    told = shown(report.explanation, alert(repeats=repeats), width=200)

    assert f"• {said} just like it: counted here, not told again" in told
    assert not [line for line in shown(report.explanation, alert(), width=200) if "just like it" in line]


def test_explanation_of_a_rule(shown):
    """Who, which rule, on what, and each clause with the value it met."""
    clauses = [
        {
            "selection": "s",
            "field": "path",
            "test": "endswith '/x'",
            "value": "/a/x",
            "span": [2, 4],
            "negated": False,
        },
        {"selection": "f", "field": "Image", "test": "is '/y'", "value": None, "span": None, "negated": True},
    ]
    match = {
        "rule": {"title": "A title", "level": "high", "file": "rules/a.yml"},
        "clauses": clauses,
        "event": {"process": process(argv=["python3", "shop.py"])},
    }
    told = alert(
        process=process(parent=process(pid=1, exe="/sbin/init")), evidence=[{"count": 2, "match": match}]
    )

    assert shown(report.explanation, told) == [
        " HIGH   Something",
        "0123456789ab  2026-11-23 07:20:17 to 07:20:22 UTC  worth an alert",
        "",
        "In words.",
        "",
        "• a reason",
        "",
        "Who started whom",
        "  1 /sbin/init",
        "  └ 7 /usr/bin/python3",
        "",
        "Rule  A title (high, seen 2 times)",
        "  rules/a.yml",
        "  on 7 python3 shop.py",
        "    s: path endswith '/x'  ← /a/x",
        "    not f: Image is '/y'  ← -",
    ]


def test_explanation_of_a_correlation(shown):
    """What it is made of: when, which rule, whose process, and the clause that decided; nothing escapes."""
    counted = {
        "selection": "much",
        "field": "event_count",
        "test": ">= 2 within 5m",
        "value": "2",
        "span": None,
        "negated": False,
    }
    part = {
        "rule": {"id": "1", "title": "Read", "level": "low"},
        "time": "2026-11-23T07:20:17.500000+00:00",
        "time_ns": OPENED,
        "process": {"pid": 7, "exe": "/bin/cat", "argv": ["cat", "a\x1b[2J"]},
        "clauses": [
            counted | {"negated": True},
            counted | {"field": "path", "test": "is '/a'", "value": "/a"},
        ],
    }
    match = {
        "rule": {"title": "Much is read", "level": "high", "file": "rules/a.yml"},
        "clauses": [counted],
        "parts": [part],
        "event": {"process": process()},
    }

    assert shown(report.explanation, alert(evidence=[{"count": 1, "match": match}]))[-5:] == [
        "  on 7 /usr/bin/python3",
        "    much: event_count >= 2 within 5m  ← 2",
        "  made of",
        "    02:13:20.000  Read: 7 cat a\\x1b[2J",
        "        much: path is '/a'  ← /a",
    ]


SECOND = 1_000_000_000
OPENED = 1_795_400_000 * SECOND


def found(seconds, body, alerts=(), exe="/usr/bin/python3", pid=7):
    time_ns = OPENED + round(seconds * SECOND)
    return Found(Facts(time_ns, time_ns, "syscall", pid, pid, exe), {"event": "syscall", **body}, alerts)


def test_events_of_an_alert(shown):
    """When, how long before or after the alert, who, and what; the alert stands where it was opened."""
    results = Results(
        (
            found(-12.5, {"syscall": "openat", "paths": ["/x"], "flags": 0}, (("a1", "before"),)),
            found(0, {"syscall": "getpid"}, (("a1", "before"),), exe="", pid=12),
            found(0.25, {"syscall": "connect"}, (("a1", "after"),)),
        ),
        3,
    )

    assert shown(report.events_table, results, alert=alert(opened_ns=OPENED), width=100) == [
        "2026-11-23 02:13:07.500  before -12.500 s   7  python3  openat /x (O_RDONLY)",
        "2026-11-23 02:13:20.000   before -0.000 s  12  (unknown)  getpid",
        "2026-11-23 02:13:20.000  ── Something ──",
        "2026-11-23 02:13:20.250    after +0.250 s   7  python3  connect",
        "",
        "3 events, times in UTC",
    ]


def test_events_of_all_alerts(shown):
    """Without an alert each event says for which it is kept, and for how many more."""
    results = Results(
        (
            found(0, {"syscall": "getpid"}, (("a1", "before"), ("b2", "after"))),
            found(1, {"syscall": "read"}, (("b2", "after"),)),
        ),
        2000,
    )

    assert shown(report.events_table, results, removed=1234, width=100) == [
        "2026-11-23 02:13:20.000  before a1 +1  7  python3  getpid",
        "2026-11-23 02:13:21.000      after b2  7  python3  read",
        "",
        "the last 2 of 2,000 events, times in UTC; --limit shows more; 1,234 older ones had to make room",
        "(max_events)",
    ]


def test_events_of_a_recording(shown):
    """There is no alert to be told from; long ones hang."""
    results = Results((found(0, {"syscall": "openat", "paths": ["/" + "x" * 30 + " y" * 20]}),), 1)

    assert shown(report.events_table, results, width=80) == [
        "2026-11-23 02:13:20.000  7  python3  openat '/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx y y",
        "                         y y y y y y y y y y y y y y y y y y'",
        "",
        "1 event, times in UTC",
    ]


def test_no_events(shown):
    """Nothing is said to be so, with what was asked for and why it may be missing."""
    assert shown(report.events_table, Results((), 0)) == ["nothing kept matches"]
    assert shown(report.events_table, Results((), 0), asked="from x UTC", removed=3, width=100) == [
        "nothing kept matches (from x UTC; 3 older ones had to make room (max_events))"
    ]


@pytest.mark.parametrize(
    ("flown", "said"),
    [
        (Flown(), "Events  none are kept"),
        (Flown(removed=5), "Events  none are kept, they had to make room for newer ones"),
        (Flown(1234, 5), "Events  1,234 from before and 5 from after it are kept: ksentinel events 01"),
        (
            Flown(0, 2, 3, 4),
            "Events  0 from before and 2 from after it are kept, 3 more were too many, 4 had to make room for newer ones: ksentinel events 01",
        ),
    ],
)
def test_explanation_names_the_events(shown, flown, said):
    """One line says how many events are kept, and the command that shows them."""
    assert shown(report.explanation, alert(), flown, "ksentinel events 01", width=200)[-2:] == ["", said]


def test_files(shown):
    """Each file with its numbers, and the first lines that made no sense."""
    told = {
        "file": "audit.log", "lines": 1234, "malformed": 3,
        "malformed_at": [{"at": "audit.log:7", "reason": "blank line"}],
    }  # fmt: skip
    cut = {"file": "x.db", "items": 5, "complete": False}

    assert shown(report.files_table, [told, cut]) == [
        "audit.log: 1,234 lines, 3 malformed",
        "  audit.log:7: blank line",
        "  and 2 more malformed lines",
        "x.db: 5 items, cut short (it has no account)",
    ]


def test_progress_is_for_terminals(capfd):
    """Into a pipe there is no bar."""
    with report.Progress() as progress:
        progress.step("fitting", 0.5)

    assert capfd.readouterr() == ("", "")


WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), max_size=30)


@given(WORDS, st.integers(30, 120), st.integers(0, 50), st.integers(0, 20))
def test_wrapping(words, width, indent, first):
    """No line is wider than the terminal, and nothing but blanks is lost."""
    file = io.StringIO()
    out = Console(file=file, width=width, highlight=False, color_system=None)
    text = report.plain(" ".join(words))

    report._hang(out, Text("  ") + text, indent, first=first)

    lines = file.getvalue().split("\n")
    assert [line for line in lines if cell_len(line) > width] == []
    assert "".join("".join(lines).split()) == "".join(text.plain.split())


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("alert", "worth an alert"),
        ("deny", "would justify refusing it"),
        ("kill", "would justify ending the process"),
        ("quarantine", "would justify cutting its lineage off"),
        ("block", "would justify blocking"),
    ],
)
def test_action(shown, action, words):
    """What the verdict justifies, what a rule got of what it asked for, and the cell of the policy; untrusted text made harmless."""
    place = {"rule": "high", "model": "none", "contexts": ["unseen", "lossy"]}
    answers = [{"rule": "r", "asked": "deny", "action": action, "reason": "rule 'x\x1b' asks for deny"}]
    told = shown(report.explanation, alert(action=action, policy=place, answers=answers), width=200)

    assert words in told[1]
    at = told.index("• a reason")
    assert told[at + 1 : at + 3] == [
        "• rule 'x\\x1b' asks for deny",
        "policy: rule high, model none, unseen + lossy",
    ]


def guarded(outcome=Outcome.DENIED, **fields):
    """Return an alert of a rule whose guard did that."""
    one = match()
    event = denial(outcome=outcome, score=Score(1, 2, 3), **fields)
    evidence = Evidence(3, START, START, match=one, enforcement=event, enforced=3)
    return Alert(
        "0a", 1, START, START, SHELL, judge([one], []), (evidence,), explanation={"paragraph": "In words."}
    )


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (Outcome.DENIED, "Web shell  denied"),
        (Outcome.WOULD_DENY, "Web shell  would be denied"),
        (Outcome.LOGGED, "Web shell"),
    ],
)
def test_denied_alert(shown, outcome, told):
    """What guards made of it stands behind the title, when it happens and in the list."""
    one = guarded(outcome)
    plain = one.to_plain()

    assert shown(report.alert_line, one)[0].endswith(told)
    assert (told.removeprefix("Web shell") in shown(report.alerts_table, [plain], limit=9)[0]) is True


def test_denied_explanation(shown):
    """And with its rule: where, how, how often, and what the scores were."""
    told = shown(report.explanation, guarded(anomalous=True).to_plain(), width=300)

    assert "denied in the kernel" in told
    assert (
        "• denied in the kernel at file_open, 3 times: rule 'Web shell'; the score was over its threshold"
        in told
    )
    assert (
        "  guard: denied at file_open in openat (deny, enforce; score over its threshold), 3 times, scores then: mean 1, CUSUM 2, "
        "process 3"
    ) in told
