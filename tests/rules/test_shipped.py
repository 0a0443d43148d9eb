# SPDX-License-Identifier: Apache-2.0
"""The rules that ship: each fires on what it is for, and keeps quiet beside it. A case is a line in the NAME.events.jsonl beside NAME.yml."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ksentinel.event import AuditEvent, Origin
from ksentinel.rules.cases import outcomes, read_cases
from ksentinel.rules.correlator import Correlator
from ksentinel.rules.ruleset import RuleSet
from ksentinel.sources.ringbuf import CAPTURES
from ksentinel.syscalls import names

RULES = Path(__file__).parents[2] / "rules"
FILES = sorted(RULES.glob("*/*.yml"))
SET = RuleSet.load([RULES], trusted_uids=None)
TOLD = [rule for rule in SET.rules if rule.id not in SET.silenced]
"""One a file: what only feeds a correlation stands beside it."""
STATUS = {Path(rule.file): rule.status for rule in TOLD}
CASES = {file: read_cases(file.with_suffix(".events.jsonl")) for file in FILES}


@pytest.mark.parametrize(
    ("file", "case"),
    [
        pytest.param(file, case, id=f"{file.stem}: {case.why}")
        for file, cases in CASES.items()
        for case in cases
    ],
)
def test_event(file, case):
    """Of all rules this one fires on the events, with a clause, or doesn't."""
    correlator = Correlator(SET.correlations)
    found = [match for event in case.events for match in correlator.take(event, SET.match(event))]
    matches = [match for match in found if match.rule.file == str(file)]

    assert case.match == bool(matches)
    assert all(any(not clause.negated for clause in match.clauses) for match in matches)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_outcome(file):
    """`ksentinel rules test` says the same of the file by itself."""
    rules = RuleSet.load([file], trusted_uids=None)

    assert [outcome.good for outcome in outcomes(rules, CASES[file])] == [True] * len(CASES[file])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_enough_events(file):
    """Three events must match and three must not; both collectors are there where both can see it."""
    counts = Counter(case.match for case in CASES[file])
    events = [event for case in CASES[file] for event in case.events]
    origins = {event.origin for event in events if not isinstance(event, AuditEvent)}
    from_audit = "service: auditd" in file.read_text(encoding="utf-8")

    assert counts[True] >= 3
    assert counts[False] >= 3
    assert from_audit or origins >= {Origin.AUDIT, Origin.BPF}


def test_no_orphans():
    """Every file of events or of an action has its rule, every stable rule has an action, and stems are unique."""
    events = sorted(RULES.glob("*/*.jsonl"))
    actions = set(RULES.glob("*/*.json"))

    assert [file.with_suffix(".events.jsonl") for file in FILES] == events
    assert actions <= {file.with_suffix(".selftest.json") for file in FILES}
    assert actions >= {file.with_suffix(".selftest.json") for file in FILES if STATUS[file] == "stable"}
    assert len(FILES) == len({file.stem for file in FILES})


@pytest.mark.parametrize("rule", TOLD, ids=lambda rule: Path(rule.file).stem)
def test_described(rule):
    """Each rule says what it is about, how it may be wrong, and which technique it is; its folder is a tactic of it."""
    folder = Path(rule.file).parent.name.replace("_", "-")

    assert rule.description
    assert rule.false_positives
    assert rule.techniques
    assert f"attack.{folder}" in rule.tags


@pytest.mark.parametrize("rule", TOLD, ids=lambda rule: Path(rule.file).stem)
def test_status(rule):
    """A shipped rule is proven, or says that it is yet to be."""
    assert rule.status in {"stable", "test"}


def test_unique_ids():
    """No two rules share an id."""
    assert len(FILES) == len({rule.id for rule in TOLD})


@pytest.mark.parametrize("rule", TOLD, ids=lambda rule: Path(rule.file).stem)
def test_documented(rule):
    """Each rule stands in docs/rules.md, with its title, techniques, log source, status and level."""
    file = Path(rule.file)
    row = (
        f"| `{file.parent.name}/{file.stem}` | {rule.title} | {', '.join(rule.techniques)} "
        f"| {rule.source} | {rule.status} | {rule.level} |"
    )

    assert row in (RULES.parent / "docs" / "rules.md").read_text(encoding="utf-8").splitlines()


ATTACKS = (RULES.parent / "docs" / "attacks.md").read_text(encoding="utf-8")
ROWS = [re.split(r"(?<!\\)\|", line.strip("|")) for line in ATTACKS.splitlines() if line.startswith("| T")]
ROWS = [tuple(cell.strip() for cell in row) for row in ROWS]
BY_NAME = {f"{Path(rule.file).parent.name}/{Path(rule.file).stem}": rule for rule in TOLD}
SEEN_BY = {"BPF, audit", "BPF: call alone; audit", "audit", "nothing"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_attack(row):
    """An attack names its technique, what it leaves and who sees it; rules that cover it are there and are about that technique."""
    techniques, attack, leaves, seen_by, covered_by = row
    rules = re.findall(r"`(\w+/\w+)`", covered_by)

    assert attack
    assert leaves
    assert all(re.fullmatch(r"T\d{4}(\.\d{3})?", each) for each in techniques.split(", "))
    assert seen_by in SEEN_BY
    assert rules or covered_by.startswith(("model", "nothing: "))
    assert seen_by != "nothing" or covered_by.startswith("nothing: ")
    for name in rules:
        assert set(techniques.split(", ")) & set(BY_NAME[name].techniques)
        assert (BY_NAME[name].source == "auditd") <= ("record `" in leaves)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_attack_is_seen(row):
    """Where the table says that BPF sees a call's arguments, the collector asks for them; where it says the call alone, not for all."""
    calls = {word for word in re.findall(r"`(\w+)`", row[2]) if word in names("x86_64").values()}

    if row[3] == "BPF, audit":
        assert calls <= CAPTURES.keys()
    if row[3] == "BPF: call alone; audit":
        assert calls - CAPTURES.keys()


def test_attacks_are_complete():
    """Each rule stands in the table of attacks."""
    assert BY_NAME.keys() == {name for row in ROWS for name in re.findall(r"`(\w+/\w+)`", row[4])}
