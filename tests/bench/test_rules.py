# SPDX-License-Identifier: Apache-2.0
"""The benchmark of rules: what it generates is what it says, and loads."""

import rules as bench
from ksentinel.rules.ruleset import RuleSet


def test_rows(tmp_path):
    """A row for each number of rules, the first of which is the measure."""
    first, second = bench.rows((20, 60), 200, 1, tmp_path)

    assert (first["rules"], second["rules"], first["ratio"]) == (20, 60, 1.0)
    assert first["matches"] <= second["matches"]
    assert min(row["load_cold_s"] + row["load_cached_s"] for row in (first, second)) > 0


def test_same_rules_each_time(tmp_path):
    """The seed is fixed: two runs measure the same; a larger set has the smaller one in it."""
    bench.write_rules(tmp_path / "few", 30)
    bench.write_rules(tmp_path / "many", 40)
    few = RuleSet.load([tmp_path / "few"], trusted_uids=None)
    many = RuleSet.load([tmp_path / "many"], trusted_uids=None)

    assert [(tmp_path / "few" / name).read_text() for name in names(few)] == [
        (tmp_path / "many" / name).read_text() for name in names(many)[:30]
    ]
    assert {"process_creation", "file_event", "auditd"} <= {rule.source for rule in few.rules}


def names(rules):
    """Return the names of the files of a set."""
    return [rule.file.rpartition("/")[2] for rule in rules.rules]
