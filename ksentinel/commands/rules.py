# SPDX-License-Identifier: Apache-2.0
"""Rules: what is loaded, what could be said, what is wrong with them, and what they cost. No root needed."""

from typing import Annotated

import typer

from ksentinel import host
from ksentinel.commands.options import Json, RulePaths, StoreFile
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


@app.command("noise")
def noise(
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="From then on: 2d, '2h ago', 14:30, 2024-05-01T14:30:00Z."),
    ] = None,
    store: StoreFile = None,
    json: Json = False,
) -> None:
    """Rank rules by the noise they make, with the programs that cause it, and what can be done about each."""
    from ksentinel.offenders import rank
    from ksentinel.report.noise import offenders_table
    from ksentinel.search import parse_time
    from ksentinel.store import Store

    since_ns = 0 if since is None else parse_time(since, "--since", host.now(), host.local)
    with Store(store or host.store_to_read(), host.user()) as kept:
        alerts = kept.alerts(since_ns=since_ns, limit=kept.bounds.max_alerts * 1000)
        offenders = rank(alerts, kept.suppressed(since_ns))
        removed = kept.removed()
    total = sum(offender.tally.all for offender in offenders)
    if json:
        for offender in offenders:
            print_json(offender.to_plain(total))
    else:
        offenders_table(offenders, removed=removed["alerts_removed"] + removed["suppressed_removed"])
