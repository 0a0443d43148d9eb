# SPDX-License-Identifier: Apache-2.0
"""Coverage, as people are shown it: a table, and a page that needs nothing else."""

from html import escape

from rich.table import Table

from ksentinel import report
from ksentinel.printable import printable
from ksentinel.rules import Rule
from ksentinel.rules.coverage import ATTACK_VERSION, Coverage

# No script, no request: whatever a rule's title says, the page shows it and does nothing.
_HEAD = """\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>ATT&amp;CK coverage of the rules</title>
<style>
body { font: 14px/1.4 sans-serif; margin: 1.5em; color: #222 }
table { border-collapse: collapse; border-spacing: 0 }
th, td { border: 1px solid #ccc; padding: .4em .6em; text-align: left; vertical-align: top }
th { background: #eee; white-space: nowrap }
.none { color: #999 }
.critical, .high { color: #b00020 } .medium { color: #a05a00 } .low, .informational { color: #555 }
</style></head><body>
"""


def coverage_table(covered: Coverage) -> None:
    """Print one row a tactic and technique."""
    out = report.console()
    table = Table("Tactic", "Technique", "Rules", box=None, pad_edge=False)
    for tactic, column in covered.matrix.items():
        if not column:
            table.add_row(report.plain(tactic.name), report.plain("-"), report.plain("none"))
        for number, (technique, rules) in enumerate(column.items()):
            table.add_row(
                report.plain("" if number else tactic.name),
                report.plain(technique),
                report.plain("; ".join(rule.title for rule in rules)),
            )
    out.print(table)
    out.print(report.plain(_sums(covered)))
    report.lines(f"In no cell (no tactic, or no technique): {rule.title}" for rule in covered.elsewhere)


def coverage_page(covered: Coverage) -> str:
    """Return the matrix as HTML, complete and without references to anything outside."""
    rows: list[str] = []
    for tactic, column in covered.matrix.items():
        head = f'<th rowspan="{max(len(column), 1)}">{_html(tactic.name)}<br>{tactic.id}</th>'
        if not column:
            rows.append(f'<tr>{head}<td class="none" colspan="2">no rule</td></tr>')
        for technique, rules in column.items():
            rows.append(f"<tr>{head}<td>{_html(technique)}</td><td>{_rules(rules)}</td></tr>")
            head = ""
    elsewhere = f"<p>In no cell:<br>{_rules(covered.elsewhere)}</p>" if covered.elsewhere else ""
    return (
        f"{_HEAD}<h1>ATT&amp;CK coverage of the rules</h1>\n<p>{_html(_sums(covered))}</p>\n"
        "<table>\n<tr><th>Tactic</th><th>Technique</th><th>Rules</th></tr>\n"
        + "\n".join(rows)
        + f"\n</table>\n{elsewhere}</body></html>\n"
    )


def _rules(rules: tuple[Rule, ...]) -> str:
    return "<br>".join(
        f'{_html(rule.title)} <span class="{rule.level}">{rule.level}</span>' for rule in rules
    )


def _sums(covered: Coverage) -> str:
    tactics = sum(bool(column) for column in covered.matrix.values())
    return (
        f"{len(covered.techniques)} techniques in {tactics} of {len(covered.matrix)} tactics "
        f"(of ATT&CK {ATTACK_VERSION}, enterprise)"
    )


def _html(text: str) -> str:
    return escape(printable(text))
