# SPDX-License-Identifier: Apache-2.0
"""Rules: what is loaded, what could be said, what is wrong with them, and what they cost. No root needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksentinel import host
from ksentinel.commands.options import ConfigFile, Json, RulePaths, read_config
from ksentinel.commands.output import print_json
from ksentinel.commands.walk import load_exceptions, load_policy, load_rules, user_names

if TYPE_CHECKING:
    from ksentinel.rules.sigma import Compiled

app = typer.Typer(
    name="rules",
    help="List, check, test and try detection rules.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


Guard = Annotated[
    bool,
    typer.Option("--guard", help="Show what of each rule the kernel could decide, and what not, and why."),
]


@app.command("list")
def list_rules(rules: RulePaths = None, guard: Guard = False, json: Json = False) -> None:
    """List the rules that would be loaded."""
    from dataclasses import asdict

    from ksentinel.report.rules import rules_table

    ruleset = load_rules(rules)
    if guard:
        _list_guards(ruleset.compiled, json=json)
        return
    if not json:
        rules_table(ruleset.rules)
        return
    for rule in ruleset.rules:
        print_json(asdict(rule) | {"level": str(rule.level), "techniques": list(rule.techniques)})


def _list_guards(rules: "Sequence[Compiled]", *, json: bool) -> None:
    from ksentinel.report.guards import guards_list
    from ksentinel.rules.derivation import derive, to_plain, unmet

    users = user_names()
    told = [(derive(rule, users), unmet(rule, users)) for rule in rules]
    if not json:
        guards_list(told)
        return
    for derived, error in told:
        print_json(to_plain(derived) | {"error": None if error is None else str(error)})


@app.command("policy")
def policy(rules: RulePaths = None, config: ConfigFile = None, json: Json = False) -> None:
    """Print what rules and model are worth together, and what is excepted."""
    from ksentinel.report.rules import exceptions_table, policy_tables

    settings = read_config(config)
    ruleset = load_rules(rules or [Path(path) for path in settings.rules.paths])
    in_force = load_policy(settings)
    exceptions = load_exceptions(settings, ruleset)
    now_ns = host.now_ns()
    if json:
        print_json({"policy": in_force.to_plain(), "exceptions": exceptions.to_plain(now_ns)})
        return
    policy_tables(in_force)
    exceptions_table(exceptions, now_ns)
