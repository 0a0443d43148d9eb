# SPDX-License-Identifier: Apache-2.0
"""The self-test, as people are shown it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ksentinel import report
from ksentinel.selftest import Finding, Outcome

_STYLES = {
    Outcome.FIRED: "green",
    Outcome.SILENT: "bold red",
    Outcome.CANNOT: "dim",
    Outcome.UNTESTED: "yellow",
}


def findings_table(tested: Sequence[Finding]) -> None:
    """Print one row a rule, then the sums."""
    out = report.console()
    table = Table("Outcome", "Rule", "Reason", box=None, pad_edge=False)
    for one in tested:
        table.add_row(
            report.plain(one.outcome, style=_STYLES[one.outcome]),
            report.plain(Path(one.rule.file).stem),
            report.plain(one.said, 300),
        )
    out.print(table)
    counts = Counter(one.outcome for one in tested)
    out.print(", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome))
