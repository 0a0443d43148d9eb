# SPDX-License-Identifier: Apache-2.0
"""The policy: what it says, and what no policy may say."""

import re
from itertools import product
from pathlib import Path

import pytest
from made_up import POLICY, anomaly

from ksentinel.errors import RuleError
from ksentinel.level import Level
from ksentinel.policy import Action, Cell, Context, load, parse_policy

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


@pytest.mark.parametrize(("context", "rule", "model"), list(product(Context, Level, Level)), ids=str)
def test_invariant(context, rule, model):
    """Wherever it stands, what no policy may say is refused with its place; all else is taken as it is said."""
    line, column, start, end = placed(context, rule, model)
    assert TEXT[start:end] == str(POLICY.tables[context][rule, model])
    for level, permits in product(Level, (Action.ALERT, *ACTS)):
        cell = Cell(level, permits)
        good = (
            (level is not Level.NONE and (permits is Action.ALERT or context is not Context.EXCEPTED))
            if rule
            else (permits is Action.ALERT and level <= (Level.MEDIUM if model else Level.NONE))
        )
        text = f"{TEXT[:start]}{cell}{TEXT[end:]}"
        if good:
            assert parse_policy(text, "p.yml").tables[context][rule, model] == cell
        else:
            with pytest.raises(
                RuleError, match=rf"^p.yml:{line}:{column}: {context}, rule {rule}, model {model}: "
            ):
                parse_policy(text, "p.yml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("policy: 1", "policy: 2", "p.yml:8:9: policy must be 1"),
        ("policy: 1", "politics: 1", "is no policy"),
        ("learning_windows: 50", "learning_windows: many", "p.yml:11:19: learning_windows must be a number"),
        ("learning_windows: 50", "learning_windows: 99999999", "learning_windows must be a number"),
        ("learning_windows: 50", "", "lacks 'learning_windows'"),
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


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("kind", ["rule", "model"])
def test_shipped_rises(context, kind):
    """In the tables that ship a worse rule or model is never told at a lower level, nor permits less."""
    if context is Context.EXCEPTED and kind == "rule":
        pytest.skip("an exception lowers whatever matched")
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
        ({"trained_on": 49}, Context.LEARNING),
        ({"trained_on": 50}, None),
    ],
)
def test_doubt(fields, doubt):
    """Unseen, few windows, changed; how many windows there were may not be known."""
    assert doubt is POLICY.doubt(anomaly(**fields))


def test_plain():
    """The JSON form has every cell."""
    plain = POLICY.to_plain()

    assert plain["learning_windows"] == 50
    assert plain["tables"]["known"]["high"]["none"] == {"level": "high", "permits": "deny"}
    assert sum(len(line) for table in plain["tables"].values() for line in table.values()) == 180
