# SPDX-License-Identifier: Apache-2.0
"""The policy and its exceptions, as people are shown them."""

from rich.table import Table
from rich.text import Text

from ksentinel import report
from ksentinel.exceptions import Exceptions
from ksentinel.level import Level
from ksentinel.policy import Cell, Policy


def policy_tables(policy: Policy) -> None:
    """Print a policy: a table for each context, the rules' level down, the model's across."""
    out = report.console()
    out.print(report.plain(policy.file), highlight=False)
    for context, cells in policy.tables.items():
        table = Table(f"{context}: rule", *(f"model {model}" for model in Level), box=None, pad_edge=False)
        for rule in Level:
            table.add_row(str(rule), *(_cell(cells[rule, model]) for model in Level))
        out.print()
        out.print(table)
    out.print()
    out.print(f"learning: a profile of fewer than {policy.learning_windows:,} windows, or a changed program")


def exceptions_table(exceptions: Exceptions, now_ns: int) -> None:
    """Print one row an exception, those that have ended marked."""
    out = report.console()
    out.print()
    plains = exceptions.to_plain(now_ns)
    if plains:
        table = Table("Exception", "Rules", "Owner", "Until", "Reason", "At", box=None, pad_edge=False)
        for plain in plains:
            rules = plain["rules"]
            until = plain["expires"] if plain["active"] else f"{plain['expires']} (ended)"
            table.add_row(
                report.plain(plain["id"]),
                report.plain(rules if isinstance(rules, str) else ", ".join(rules)),
                report.plain(plain["owner"]),
                report.plain(until, style="" if plain["active"] else "bold red"),
                report.plain(plain["reason"]),
                report.plain(plain["at"]),
            )
        out.print(table)
    active = sum(plain["active"] for plain in plains)
    out.print(f"{active} exceptions in force, {len(plains) - active} ended")


def _cell(cell: Cell) -> Text:
    return Text(str(cell), report.STYLES.get(str(cell.level), ""))
