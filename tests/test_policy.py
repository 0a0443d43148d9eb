# SPDX-License-Identifier: Apache-2.0
"""The policy: what it says, and what no policy may say."""

import re
from itertools import product
from pathlib import Path

import pytest
from made_up import POLICY, anomaly

from ksentinel.errors import RuleError
from ksentinel.level import Level
from ksentinel.policy import Action, Cell, Context, forbidden, load, parse_policy

FILE = Path(__file__).parents[1] / "rules" / "policy.yml"
TEXT = FILE.read_text()
ACTS = [action for action in Action if action.rank > Action.ALERT.rank]


def placed(context, rule, model):
    """Return line and column of a cell in the file that ships, and where it begins and ends."""
    table = TEXT.index(f"\n  {context}:")
    start = TEXT.index(f"\n    {rule}:", table) + 1
    line = TEXT[start : TEXT.index("\n", start)]
    cell = list(re.finditer(r"[a-z]+(?: [a-z]+)?(?=[,\]])", line))[model]
    return TEXT.count("\n", 0, start) + 1, cell.start() + 1, start + cell.start(), start + cell.end()


PLACES = list(product(Context, Level, Level))


@pytest.mark.parametrize(("context", "rule", "model"), PLACES, ids=str)
def test_forbidden(context, rule, model):
    """No cell lets a model act alone or tell more than medium, keeps quiet about a match, or acts on an excepted one."""
    for level, permits in product(Level, (Action.ALERT, *ACTS)):
        alone = permits is Action.ALERT and level <= (Level.MEDIUM if model else Level.NONE)
        matched = level is not Level.NONE and (permits is Action.ALERT or context is not Context.EXCEPTED)

        assert (matched if rule else alone) == (not forbidden(Cell(level, permits), rule, model, context))


@pytest.mark.parametrize(("context", "rule", "model"), PLACES, ids=str)
def test_forbidden_cells_are_refused(context, rule, model):
    """Wherever it stands, with its place; what stands there in the file that ships is what is read."""
    line, column, start, end = placed(context, rule, model)
    assert TEXT[start:end] == str(POLICY.tables[context][rule, model])
    for wrong in ("none", "none kill") if rule else ("high", "low deny"):
        text = f"{TEXT[:start]}{wrong}{TEXT[end:]}"
        with pytest.raises(
            RuleError, match=rf"^p.yml:{line}:{column}: {context}, rule {rule}, model {model}: "
        ):
            parse_policy(text, "p.yml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("policy: 1", "policy: 2", "p.yml:8:9: policy must be 1"),
        ("policy: 1", "politics: 1", "is no policy"),
        ("learning_windows: 20", "learning_windows: many", "p.yml:11:19: learning_windows must be a number"),
        ("learning_windows: 20", "learning_windows: 99999999", "learning_windows must be a number"),
        ("learning_windows: 20", "", "lacks 'learning_windows'"),
        ("  lossy:", "  losy:", r"tables has no 'losy' \(did you mean lossy\?\)"),
        ("model:", "modle:", r"a policy has no 'modle' \(did you mean model\?\)"),
        ("[none,                informational,       low,                 medium,              high,", "[low,", "model names the columns"),
        ("critical kill, ", "critical, kill, ", "known, rule critical: a line has 6 cells"),
        ("critical kill, ", "critical kil, ", r"action 'kil' is none of deny, kill, quarantine \(did you mean kill\?\)"),
        ("critical kill, ", "critical alert, ", "action 'alert' is none of"),
        ("critical kill, ", "terrible, ", "level 'terrible' is none of"),
        ("critical kill, ", "[], ", "a cell is a level"),
        ("    critical:", "    catastrophic:", "has no 'catastrophic'"),
    ],
)  # fmt: skip
def test_refused(old, new, said):
    """What is misspelt, missing or too much is refused, with its place."""
    with pytest.raises(RuleError, match=said):
        parse_policy(TEXT.replace(old, new, 1), "p.yml")


@pytest.mark.parametrize("text", ["", "[]", "title: A rule", "tables: {}"])
def test_no_policy(text):
    """A rule is no policy, nor is anything else."""
    with pytest.raises(RuleError):
        parse_policy(text, "p.yml")


def test_trust(tmp_path):
    """It is read under the same condition as rules."""
    path = tmp_path / "policy.yml"
    path.write_text(TEXT)
    path.chmod(0o666)

    with pytest.raises(RuleError, match="writable by others"):
        load(path, trusted_uids={path.stat().st_uid})
    path.chmod(0o644)
    with pytest.raises(RuleError, match="who may not write rules"):
        load(path, trusted_uids={path.stat().st_uid + 1})
    assert load(path, trusted_uids={path.stat().st_uid}).file == str(path)


def test_contexts_combine():
    """Of several contexts the lowest level and the least action count."""
    assert Cell(Level.HIGH, Action.DENY) == POLICY.cell(
        Level.HIGH, Level.LOW, (Context.UNSEEN, Context.LOSSY)
    )
    assert Cell(Level.CRITICAL, Action.QUARANTINE) == POLICY.cell(Level.HIGH, Level.LOW)


@pytest.mark.parametrize(
    ("context", "kind"),
    [pair for pair in product(Context, ("rule", "model")) if pair != (Context.EXCEPTED, "rule")],
)
def test_shipped_rises(context, kind):
    """In the tables that ship a worse rule or model is never told lower, nor permits less, but under an exception."""
    for fixed in Level:
        line = [
            POLICY.tables[context][(level, fixed) if kind == "rule" else (fixed, level)] for level in Level
        ]
        assert [c.level for c in line] == sorted(c.level for c in line)
        assert [c.permits.rank for c in line] == sorted(c.permits.rank for c in line)


@pytest.mark.parametrize(
    ("fields", "doubt"),
    [
        ({}, None),
        ({"unseen": True, "changed": True}, Context.UNSEEN),
        ({"changed": True}, Context.LEARNING),
        ({"trained_on": 19}, Context.LEARNING),
        ({"trained_on": 20}, None),
    ],
)
def test_doubt(fields, doubt):
    """Unseen, few windows, changed; how many windows there were may not be known."""
    assert doubt is POLICY.doubt(anomaly(**fields))


@pytest.mark.parametrize("context", Context)
def test_documented(context):
    """docs/verdict.md has each table as it ships."""
    page = (FILE.parents[1] / "docs" / "verdict.md").read_text()
    section = re.split(r"^##+ ", page.partition(f"\n### {context}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]

    assert rows == [
        ["rule \\ model", *map(str, Level)],
        *([f"**{rule}**", *(str(POLICY.tables[context][rule, model]) for model in Level)] for rule in Level),
    ]


def test_plain():
    """The JSON form has every cell."""
    plain = POLICY.to_plain()

    assert plain["learning_windows"] == 20
    assert plain["tables"]["known"]["high"]["none"] == {"level": "high", "permits": "deny"}
    assert sum(len(line) for table in plain["tables"].values() for line in table.values()) == 180
