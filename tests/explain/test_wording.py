# SPDX-License-Identifier: Apache-2.0
"""The paragraph: true, the same each time, and harmless whatever an attacker calls things."""

import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import CAT, HTTPD, SHELL, START, anomaly, child, denial, events, judge, match, processes, texts

from ksentinel.alert import Alert, Evidence
from ksentinel.enforce.denial import match_of
from ksentinel.event import Address, AuditEvent, ExecEvent, Origin, Outcome, Process, ProcessKey, SyscallEvent
from ksentinel.explain.wording import clause, did, name, paragraph
from ksentinel.level import Level
from ksentinel.rules import Clause, Exemption, Match, Response, Rule
from ksentinel.verdict import Verdict

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def alert(matches=(), anomalies=(), *, verdict=None, repeats=0):
    """Return an alert with that evidence."""
    evidence = [Evidence(1, START, START, match=m) for m in matches]
    evidence += [Evidence(1, START, START, anomaly=a) for a in anomalies]
    verdict = verdict or judge(matches, anomalies)
    return Alert("0a", 1, START, START, SHELL, verdict, tuple(evidence), repeats=repeats)


def call(**fields):
    """Return a match on a system call."""
    fields = {"syscall": "openat", "time_ns": START, "process": CAT, "tid": 12, "origin": Origin.BPF} | fields
    return replace(match(CAT), event=SyscallEvent(**fields))


def test_rule_alone():
    """Who did what, which rule, why, and that the model is silent."""
    assert paragraph(alert([match(CAT)]), {}) == (
        'cat (pid 12, started by sh, under httpd) ran "/bin/cat". The rule “Web shell” (medium) matched, because '
        "Image is \"/bin/cat\" (endswith '/bin/cat'). No model adds to that, so the level is the rule's: medium."
    )


def test_model_alone():
    """What is unusual, compared with what, how often that is, and that it is no more than that."""
    assert paragraph(alert(anomalies=[anomaly(CAT, p_value=1.23e-4)]), {}) == (
        "In cat (pid 12, started by sh, under httpd) the model finds 3 system calls unusual for cat under httpd: "
        "about one in 8,100 normal windows looks like this (p = 0.00012, decided by ngram). "
        "No rule matched, so this is medium at most: unusual is not yet harmful."
    )


WINDOW = {
    "ngrams": [
        {
            "ngram": ["openat", "ptrace"],
            "seen_in_training": 0,
            "usual_next": [["read", 0.667], ["write", 0.333]],
        }
    ]
}


def test_both():
    """Both witnesses, with the n-gram that speaks most, and that they agree."""
    text = paragraph(
        alert([match(CAT), match(CAT, rule="other")], [anomaly(CAT, p_value=1e-9)], repeats=3), WINDOW
    )

    assert (
        ", and 1 other rule matched too. The model finds 3 system calls there unusual for cat under httpd: "
        "more so than any normal window it was compared with (p < 1e-06, extrapolated, decided by ngram). What speaks most is "
        "openat → ptrace, which training never showed (there it usually went on with read, 67%). "
        "Rule and model are independent and agree, so this is high. 3 more like it were counted here."
    ) in text


def test_apart():
    """Where both speak and don't agree, that is said."""
    text = paragraph(
        alert([match(CAT)], [anomaly(CAT)], verdict=Verdict(Level.MEDIUM, reasons=("rule",))), {}
    )

    assert text.endswith(
        "Rule and model speak of different processes or times and don't agree, so this is medium."
    )


@pytest.mark.parametrize(
    ("p_value", "says"),
    [
        (1.0, "most normal windows look like this (p = 1,"),
        (0.6, "most normal windows look like this (p = 0.6,"),
        (0.5, "about one in 2 normal windows looks like this (p = 0.5,"),
        (0.011, "about one in 91 normal windows looks like this (p = 0.011,"),
        (1e-3, "about one in 1,000 normal windows looks like this (p = 0.001,"),
        (9.99e-4, "about one in 1,000 normal windows"),
        (1.23e-4, "about one in 8,100 normal windows"),
        (1e-5, "about one in 100,000 normal windows"),
        (1.5e-6, "about one in 670,000 normal windows"),
        (1e-6, "about one in 1,000,000 normal windows looks like this (p = 1e-06,"),
        (9.9e-7, "more so than any normal window it was compared with (p < 1e-06, extrapolated,"),
        (1e-300, "more so than any normal window it was compared with (p < 1e-06, extrapolated,"),
    ],
)
def test_how_often(p_value, says):
    """Two digits, and never more than the data can show."""
    assert says in paragraph(alert(anomalies=[anomaly(p_value=p_value)]), {})


def test_beyond_the_data():
    """A p-value that no count of normal windows can show is said to be extrapolated, with how many there were."""
    few, enough = (replace(anomaly(p_value=1e-4), calibrated_on=n) for n in (414, 20_000))

    assert "more so than the 414 normal windows it was compared with (p = 0.0001, extrapolated," in paragraph(
        alert(anomalies=[few]), {}
    )
    assert "about one in 10,000 normal windows" in paragraph(alert(anomalies=[enough]), {})


def test_another_process():
    """Where the model speaks of another process than the rule, it says of which."""
    text = paragraph(alert([match(CAT)], [anomaly(HTTPD)]), {})

    assert "In httpd (pid 10, started by init) the model finds 3 system calls unusual" in text


def test_new_program():
    """A program that training never saw is no second witness, and that is said."""
    told = alert([match(CAT)], [anomaly(CAT, unseen=True)], verdict=Verdict(Level.MEDIUM, reasons=("rule",)))

    assert paragraph(told, {}).endswith("That a program is new is no second witness, so this is medium.")


def test_learning():
    """Nor is one that the model is still learning."""
    told = alert([match(CAT)], [anomaly(CAT, changed=True)])

    assert paragraph(told, {}).endswith(
        "What the model is still learning is no second witness, so this is medium."
    )


def test_excepted():
    """Whose exception it is, why, and until when; made harmless."""
    exemption = Exemption("backup", "sto\x1brage", "Reads all", START)

    assert paragraph(alert([match(CAT, exception=exemption)]), {}).endswith(
        "sto\\x1brage expects that until 2023-11-14 22:13 UTC: Reads all (exception backup); so this is informational."
    )
    assert paragraph(alert([match(CAT, exception=exemption)], [anomaly(CAT)]), {}).endswith(
        "(exception backup); what the model says stands; so this is medium."
    )


@given(st.floats(1e-12, 1))
def test_never_more_than_is_known(p_value):
    """The number said is within five percent and a rounding of 1/p, and never beyond a million."""
    text = paragraph(alert(anomalies=[anomaly(p_value=p_value)]), {})
    found = re.search(r"one in ([\d,]+) normal", text)

    if p_value < 1e-6:
        assert "p < 1e-06, extrapolated" in text
    elif p_value > 0.5:
        assert "most normal windows" in text
    else:
        assert int(found[1].replace(",", "")) == pytest.approx(1 / p_value, rel=0.051, abs=0.5)


@pytest.mark.parametrize(
    ("seen", "says"),
    [(0, "training never showed"), (1, "training showed once"), (1200, "training showed 1,200 times")],
)
def test_seen(seen, says):
    """How often training showed the n-gram."""
    window = {"ngrams": [{"ngram": ["read"], "seen_in_training": seen, "usual_next": []}]}

    assert f"What speaks most is read, which {says}. " in paragraph(alert(anomalies=[anomaly()]), window)


@pytest.mark.parametrize(
    ("process", "called"),
    [
        (HTTPD, "httpd (pid 10, started by init)"),
        (SHELL, "sh (pid 11, started by httpd)"),
        (CAT, "cat (pid 12, started by sh, under httpd)"),
        (child(SHELL, 14, "/bin/sh"), "sh (pid 14, under httpd)"),
        (Process(ProcessKey(7, 1)), "an unknown program (pid 7)"),
        (Process(ProcessKey(7, 1), comm="kthreadd"), "kthreadd (pid 7)"),
        (Process(ProcessKey(7, 1), exe="/tmp/a\nb\x1b[2J"), r"a\x0ab\x1b[2J (pid 7)"),
        (Process(ProcessKey(7, 1), exe="/tmp/" + "x" * 300), "x" * 39 + "… (pid 7)"),
    ],
)
def test_name(process, called):
    """A process is called by its program, with who started it and the service, where that says more."""
    assert called == name(process)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (call(paths=("/etc/shadow",)), 'called openat("/etc/shadow")'),
        (call(paths=("/etc/shadow",), result=-13), 'tried openat("/etc/shadow")'),
        (call(paths=("/a", "/b"), syscall="rename", result=0), 'called rename("/a", "/b")'),
        (call(syscall="connect", address=Address("inet", "10.0.0.1", 80)), "called connect(10.0.0.1:80)"),
        (call(syscall="connect", address=Address("unix", path="/run/x")), 'called connect("/run/x")'),
        (call(syscall="ptrace", target=7), "called ptrace(process 7)"),
        (call(syscall="bpf"), "called bpf()"),
        (
            replace(match(), event=AuditEvent(time_ns=1, process=SHELL, tid=1, origin=Origin.AUDIT, type="USER_LOGIN")),
            "was seen by audit",
        ),
        (
            replace(match(), event=ExecEvent(time_ns=1, process=Process(ProcessKey(7, 1), exe="/x"), tid=1, origin=Origin.BPF)),
            'ran "/x"',
        ),
    ],
)  # fmt: skip
def test_did(one, text):
    """What an event was, as a verb."""
    assert text == did(one)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (Clause("s", "Image", "endswith '/sh'", "/bin/sh"), "Image is \"/bin/sh\" (endswith '/sh')"),
        (Clause("s", "User", "null", None), "User is nothing (null)"),
        (
            Clause("filter", "Image", "equals '/bin/ok'", "/bin/sh", negated=True),
            "Image is \"/bin/sh\", which the exception (equals '/bin/ok') doesn't cover",
        ),
        (Clause("s", "CommandLine", "re x", 'a" (all "well'), r'CommandLine is "a\" (all \"well" (re x)'),
    ],
)  # fmt: skip
def test_clause(one, text):
    """A clause as a person would say it; a value can't end its quotation."""
    assert text == clause(one)


def test_negated_only():
    """A rule that fired for want of something says what it is."""
    one = Match(
        Rule("r", "R", Level.LOW),
        match().event,
        (Clause("f", "Image", "equals '/x'", "/bin/sh", negated=True),),
    )

    assert "which the exception (equals '/x') doesn't cover" in paragraph(alert([one]), {})


HOSTILE = '/tmp/x". The rule “None” (low) matched.\n\x1b[2J\u202eexe.txt\udcff\ud800'


def test_hostile():
    """Names and arguments stay inside their quotation marks, on their line, in their direction."""
    argv = ("sh", "-c", HOSTILE)
    bad = Process(ProcessKey(66, 6), exe="/tmp/x", argv=argv, parent=HTTPD, service=HTTPD)
    text = paragraph(alert([match(bad)], [anomaly(bad)]), {})

    assert (
        r'ran "sh -c /tmp/x\". The rule “None” (low) matched.\x0a\x1b[2J\u202eexe.txt\xff\ud800". The' in text
    )
    assert text.count("The rule “Web shell”") == 1


@given(
    processes(),
    events,
    st.lists(st.builds(Clause, texts, texts, texts, st.none() | texts), max_size=3),
    texts,
)
def test_any(process, event, clauses, title):
    """Whatever stands in an alert: one line, nothing hidden, not too long, and the same each time."""
    one = Match(Rule("r", title, Level.HIGH), event, tuple(clauses) or match().clauses)
    told = alert([one, one], [anomaly(process)])
    text = paragraph(told, WINDOW)

    assert not {unicodedata.category(c) for c in text} & HIDDEN
    assert len(text) < 2500
    assert text == paragraph(told, WINDOW)


def denied(response=None, **fields):
    """Return an alert of what a guard did."""
    event = denial(rule="r", **fields)
    one = match_of(event, {"r": Rule("r", "Shadow read", Level.MEDIUM, response=response)})
    return replace(
        alert([one]), evidence=(Evidence(1, START, START, match=one, enforcement=event, enforced=1),)
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "It was denied in the kernel at file_open."),
        ({"killed": True}, "It was denied in the kernel at file_open and the process ended."),
        ({"anomalous": True}, "It was denied in the kernel at file_open."),
        (
            {"anomalous": True, "response": Response("deny", inline=True, anomalous=True)},
            "It was denied in the kernel at file_open, because its score was over the threshold as well.",
        ),
        ({"sentence": "kill"}, "It was denied in the kernel at file_open by a verdict on the process."),
        (
            {"outcome": Outcome.WOULD_DENY},
            "It would have been denied in the kernel at file_open, but the guard is permissive.",
        ),
    ],
)
def test_denial(fields, said):
    """What the kernel made of it is said at the end, in plain words."""
    told = paragraph(denied(**fields), {})

    assert (
        'sh (pid 11, started by httpd) tried openat("/etc/shadow"). The rule “Shadow read” (medium)' in told
    )
    assert told.endswith(f" {said}")


@pytest.mark.parametrize("outcome", [Outcome.LOGGED, Outcome.RELEASED])
def test_nothing_denied(outcome):
    """What was only noted, or let go, wasn't denied and isn't said to be."""
    assert "denied" not in paragraph(denied(outcome=outcome), {})
