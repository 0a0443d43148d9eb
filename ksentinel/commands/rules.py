# SPDX-License-Identifier: Apache-2.0
"""Rules: what is loaded, what could be said, what is wrong with them, and what they cost. No root needed."""

import typer

from ksentinel.commands.options import Json, RulePaths
from ksentinel.commands.output import print_json
from ksentinel.commands.walk import load_rules

app = typer.Typer(
    name="rules",
    help="List, check, test and try detection rules.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command("list")
def list_rules(rules: RulePaths = None, json: Json = False) -> None:
    """List the rules that would be loaded."""
    from dataclasses import asdict

    from ksentinel.report.rules import rules_table

    ruleset = load_rules(rules)
    if not json:
        rules_table(ruleset.rules, ruleset.silenced)
        return
    for rule in ruleset.rules:
        print_json(
            asdict(rule)
            | {"level": str(rule.level), "techniques": list(rule.techniques)}
            | {"silenced": rule.id in ruleset.silenced}
        )
