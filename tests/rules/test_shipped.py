# SPDX-License-Identifier: Apache-2.0
"""The rules that ship: each fires on what it is for, and keeps quiet beside it. A case is a line in the NAME.events.jsonl beside NAME.yml."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.event import AuditEvent, Origin
from ksentinel.rules.ruleset import RuleSet

RULES = Path(__file__).parents[2] / "rules"
FILES = sorted(RULES.glob("*/*.yml"))
SET = RuleSet.load([RULES], trusted_uids=None)


def cases(file):
    """Return (match, why, event) for each line of a rule's file of events."""
    lines = file.with_suffix(".events.jsonl").read_text(encoding="utf-8").splitlines()
    plains = [json.loads(line) for line in lines]
    return [(plain.pop("match"), plain.pop("why"), event_from_plain(plain)) for plain in plains]


CASES = [(file, *case) for file in FILES for case in cases(file)]


@pytest.mark.parametrize(
    ("file", "fires", "event"),
    [pytest.param(file, fires, event, id=f"{file.stem}: {why}") for file, fires, why, event in CASES],
)
def test_event(file, fires, event):
    """The rule fires on the event, with a clause, or doesn't."""
    matches = [match for match in SET.match(event) if match.rule.file == str(file)]

    assert fires == bool(matches)
    assert all(any(not clause.negated for clause in match.clauses) for match in matches)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_enough_events(file):
    """Two events must match and two must not; both collectors are there where both can see it."""
    counts = Counter(fires for fires, _, _ in cases(file))
    origins = {event.origin for _, _, event in cases(file) if not isinstance(event, AuditEvent)}
    from_audit = "service: auditd" in file.read_text(encoding="utf-8")

    assert counts[True] >= 2
    assert counts[False] >= 2
    assert from_audit or origins >= {Origin.AUDIT, Origin.BPF}


def test_no_orphans():
    """Every file of events has its rule, and stems are unique."""
    events = sorted(RULES.glob("*/*.jsonl"))

    assert [file.with_suffix(".events.jsonl") for file in FILES] == events
    assert len(FILES) == len({file.stem for file in FILES})


@pytest.mark.parametrize("rule", SET.rules, ids=lambda rule: Path(rule.file).stem)
def test_described(rule):
    """Each rule says what it is about, how it may be wrong, and which technique it is; its folder is a tactic of it."""
    folder = Path(rule.file).parent.name.replace("_", "-")

    assert rule.description
    assert rule.false_positives
    assert rule.techniques
    assert f"attack.{folder}" in rule.tags


def test_unique_ids():
    """No two rules share an id."""
    assert len(FILES) == len({rule.id for rule in SET.rules})


@pytest.mark.parametrize("rule", SET.rules, ids=lambda rule: Path(rule.file).stem)
def test_documented(rule):
    """Each rule stands in docs/rules.md, with its title, techniques and level."""
    file = Path(rule.file)
    row = f"| `{file.parent.name}/{file.stem}` | {rule.title} | {', '.join(rule.techniques)} |"
    rows = (RULES.parent / "docs" / "rules.md").read_text(encoding="utf-8").splitlines()

    assert [str(rule.level)] == [line.split(" | ")[-1].strip(" |") for line in rows if line.startswith(row)]
