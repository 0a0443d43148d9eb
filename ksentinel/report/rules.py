# SPDX-License-Identifier: Apache-2.0
"""Rules, as people are shown them."""

from collections.abc import Iterable, Sequence

from rich.table import Table

from ksentinel import report
from ksentinel.rules import Rule
from ksentinel.rules.fields import NO_LOGSOURCE, NO_SOURCE, Source


def rules_table(rules: Sequence[Rule]) -> None:
    """Print one row a rule, in the order in which they are asked."""
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
    out.print(f"{len(rules)} rules")


def fields_tables(sources: Iterable[Source]) -> None:
    """Print what each log source offers, whose events have it, and what is not to be had."""
    out = report.console()
    for source in sources:
        out.print(report.plain(source.logsource, style="bold"))
        out.print(report.plain(f"  {source.what}"))
        named = [field for field in source.fields.values() if field.what]
        if named:
            table = Table("Field", "From", "What it is", box=None, pad_edge=False)
            for field in named:
                table.add_row(
                    report.plain(field.name),
                    report.plain(", ".join(field.origins)),
                    report.plain(field.what),
                )
            out.print(table)
        # Audit's own: their names are all there is to say.
        rest = [field.name for field in source.fields.values() if not field.what]
        if rest:
            out.print(report.plain(", ".join(rest)))
        out.print()
    table = Table("Not to be had", "Why", box=None, pad_edge=False)
    for name, why in (*NO_SOURCE.items(), *NO_LOGSOURCE.items()):
        table.add_row(report.plain(name or "neither category nor service"), report.plain(why))
    out.print(table)
