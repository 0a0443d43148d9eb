# SPDX-License-Identifier: Apache-2.0
"""Rules: which are loaded, what they can ask for, what they are worth, and which are noisy. No root needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksentinel import host
from ksentinel.commands.options import ConfigFile, Json, RulePaths, StoreFile, read_config
from ksentinel.commands.output import print_json
from ksentinel.commands.walk import load_exceptions, load_policy, load_rules, user_names

if TYPE_CHECKING:
    from ksentinel.rules.sigma import Compiled

Guard = Annotated[
    bool,
    typer.Option("--guard", help="Show what of each rule the kernel could decide, and what not, and why."),
]


def list_rules(rules: RulePaths = None, guard: Guard = False, json: Json = False) -> None:
    """List the rules that would be loaded."""
    from dataclasses import asdict

    from ksentinel.report.rules import rules_table

    ruleset = load_rules(rules)
    if guard:
        _list_guards(ruleset.compiled, json=json)
        return
    if not json:
        rules_table(ruleset.rules, ruleset.silenced)
        return
    for rule in ruleset.rules:
        print_json(
            asdict(rule)
            | {"level": str(rule.level), "techniques": list(rule.techniques)}
            | {"silenced": rule.id in ruleset.silenced}
        )


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


def policy(rules: RulePaths = None, config: ConfigFile = None, json: Json = False) -> None:
    """Print what rules and model are worth together, and what is excepted."""
    from ksentinel.report.policy import exceptions_table, policy_tables

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
