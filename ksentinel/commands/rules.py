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
        rules_table(ruleset.rules)
        return
    for rule in ruleset.rules:
        print_json(asdict(rule) | {"level": str(rule.level), "techniques": list(rule.techniques)})


@app.command("fields")
def list_fields(json: Json = False) -> None:
    """List what rules can ask for: log sources, their fields, and why others are not to be had."""
    from ksentinel.report.rules import fields_tables
    from ksentinel.rules.fields import NO_LOGSOURCE, NO_SOURCE, sources

    table = sources()
    if not json:
        fields_tables(table.values())
        return
    for source in table.values():
        for field in source.fields.values():
            print_json(
                {
                    "logsource": source.logsource,
                    "field": field.name,
                    "what": field.what,
                    "origins": [str(origin) for origin in field.origins],
                    "number": field.number,
                    "values": None if field.choices is None else sorted(field.choices),
                }
            )
    for name, why in NO_SOURCE.items():
        print_json({"logsource": None, "field": name, "no_source": why})
    for logsource, why in NO_LOGSOURCE.items():
        print_json({"logsource": logsource, "field": None, "no_source": why})
