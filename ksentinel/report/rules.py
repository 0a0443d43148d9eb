# SPDX-License-Identifier: Apache-2.0
"""Rules, as people are shown them."""

from collections.abc import Collection, Sequence

from rich.table import Table

from ksentinel import report
from ksentinel.rules import Rule


def rules_table(rules: Sequence[Rule], silenced: Collection[str] = ()) -> None:
    """Print one row a rule, in the order in which they are asked, and how many of them (their ids) are silenced."""
    out = report.console()
    table = Table("Level", "Rule", "Log source", "Techniques", "File", box=None, pad_edge=False)
    for rule in rules:
        table.add_row(
            report.plain(rule.level, style=report.STYLES.get(str(rule.level), "")),
            report.plain(rule.title),
            report.plain(rule.source),
            report.plain(", ".join(rule.techniques)),
            report.plain(rule.file),
        )
    out.print(table)
    quiet = f", {len(silenced)} of them told only as parts of correlations" if silenced else ""
    out.print(f"{len(rules)} rules{quiet}")
