# SPDX-License-Identifier: Apache-2.0
"""Events beside a rule: read with the line of what is wrong, and judged with the clauses that decided."""

import pytest

from ksentinel.errors import RuleError
from ksentinel.rules.cases import outcomes, read_cases
from ksentinel.rules.ruleset import EXAMPLE, RuleSet

CAT = '{"match": true, "why": "a cat", "event": "exec", "process": {"exe": "/bin/cat"}}\n'
LS = '{"match": false, "why": "no\u2028cat", "event": "exec", "process": {"exe": "/bin/ls"}}\n'
FORK = '{"match": true, "why": "a birth", "event": "fork", "process": {"exe": "/bin/cat"}}\n'


def written(tmp_path, text):
    file = tmp_path / "x.events.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def test_read(tmp_path):
    """A case a line; a string may hold what other programs take for the end of a line."""
    cases = read_cases(written(tmp_path, CAT + "\n" + LS))

    assert [(case.match, case.why, case.at.line) for case in cases] == [
        (True, "a cat", 1),
        (False, "no\u2028cat", 3),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":2:2: not JSON"),
        ("[]", ":2: a case is an object"),
        ('{"why": "x", "event": "exec"}', ":2: match must be true or false"),
        ('{"match": 1, "why": "x", "event": "exec"}', ":2: match must be true or false"),
        ('{"match": true, "event": "exec"}', ":2: why must say"),
        ('{"match": true, "why": "x", "event": "exek"}', ":2: event 'exek' is none of"),
        ('{"match": true, "why": "x", "events": []}', ":2: events must be a list"),
        ('{"match": true, "why": "x", "events": [{}], "event": "exec"}', ":2: events must be a list"),
        ('{"match": true, "why": "x", "event": "exec", "pid": 1}', ":2: ExecEvent has no pid"),
        ("[" * 100_000, ":2:"),
    ],
)
def test_wrong(tmp_path, line, said):
    """What is no case has a place and a reason."""
    with pytest.raises(RuleError) as caught:
        read_cases(written(tmp_path, CAT + line))

    assert said in str(caught.value)


def test_outcomes(tmp_path, compiled):
    """Right or wrong, it is said which clauses decided; an event of another log source says that."""
    rule = compiled("s:\n  Image|endswith: /cat\n  CommandLine: null\ncondition: s")
    text = CAT + CAT.replace("true", "false") + LS.replace("false", "true") + FORK
    found = list(outcomes(RuleSet([rule]), read_cases(written(tmp_path, text))))

    assert [outcome.good for outcome in found] == [True, False, False, False]
    assert [[(c.field, c.negated) for c in outcome.clauses] for outcome in found] == [
        [("Image", False), ("CommandLine", False)],
        [("Image", False), ("CommandLine", False)],
        [("Image", True)],
        [],
    ]
    assert [outcome.said for outcome in found] == [
        "",
        "",
        "",
        "the event is not of log source process_creation",
    ]


CATS = """\
---
title: Cats
id: 9b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
correlation: {type: event_count, rules: reading, timespan: 1m, condition: {gte: 2}}
"""


def test_several_events(tmp_path):
    """A correlation has cases of several events; each begins anew, and what only feeds it isn't told."""
    file = tmp_path / "cats.yml"
    file.write_text(EXAMPLE + "name: reading\n" + CATS)
    cat = '{"event": "exec", "process": {"exe": "/bin/cat"}}'
    cases = read_cases(
        written(
            tmp_path,
            f'{{"match": true, "why": "two", "events": [{cat}, {cat}]}}\n'
            f'{{"match": false, "why": "one", "events": [{cat}]}}\n'
            f'{{"match": true, "why": "none of these is enough", "events": [{cat}]}}\n',
        )
    )
    found = list(outcomes(RuleSet.load([file], trusted_uids=None), cases))

    assert [outcome.good for outcome in found] == [True, True, False]
    assert [clause.test for clause in found[0].clauses] == [">= 2 within 1m"]
