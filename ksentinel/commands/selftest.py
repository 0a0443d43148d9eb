# SPDX-License-Identifier: Apache-2.0
"""Fire rules for real on this host, harmlessly, and see whether they are seen."""

from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.options import ConfigFile, Json, RulePaths, read_config
from ksentinel.commands.output import print_json, tell
from ksentinel.commands.walk import load_rules, rule_paths

_FAILED = 1


def selftest(
    rules: RulePaths = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also rules that aren't stable, if they have an action.")
    ] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """
    Fire each stable rule for real, harmlessly, through a running collector. Needs root and BPF.

    What is done stands beside each rule; it is done in namespaces of its own, on an empty file system in memory.
    """
    from ksentinel.report.selftest import findings_table
    from ksentinel.rules.ruleset import RuleSet
    from ksentinel.selftest import Action, Finding, Outcome, Watch, read_action

    settings = read_config(config)
    ruleset: RuleSet = load_rules(rule_paths(settings, rules))
    results: dict[str, Finding] = {}
    actions: dict[str, Action] = {}
    by_id = {rule.id: rule for rule in ruleset.rules}
    for rule in ruleset.rules:
        action = read_action(rule, trusted_uids={0, host.user()})
        if rule.status != "stable" and not (every and action is not None):
            continue
        if action is None:
            results[rule.id] = Finding(rule, Outcome.UNTESTED, "docs/authoring.md says how one looks")
        elif action.cannot:
            results[rule.id] = Finding(rule, Outcome.CANNOT, action.cannot)
        elif rule.source == "auditd":
            results[rule.id] = Finding(rule, Outcome.CANNOT, "it reads audit's records, and BPF has none")
        else:
            actions[rule.id] = action
    watch = Watch()
    said, lost = _act(settings, ruleset, watch, actions) if actions else ({}, 0)
    for identity in actions:
        match = watch.fired.get(identity)
        outcome = Outcome.SILENT if match is None else Outcome.FIRED
        reason = "; ".join(part for part in said[identity].splitlines() if part) if match is None else ""
        if match is None and lost:
            reason += f" ({lost} records were lost meanwhile)"
        results[identity] = Finding(by_id[identity], outcome, reason, match)
    tested = [results[rule.id] for rule in ruleset.rules if rule.id in results]
    if json:
        for one in tested:
            print_json(_plain(one))
    else:
        findings_table(tested)
    if not tested:
        tell("no rule is stable: --all tests those with an action")
    if any(one.outcome in {Outcome.SILENT, Outcome.UNTESTED} for one in tested):
        raise typer.Exit(_FAILED)


def _act(settings: Any, ruleset: Any, watch: Any, actions: dict[str, Any]) -> tuple[dict[str, str], int]:
    """Do what is to be done while the collector watches; returns what the actors said, and how many records were lost."""
    from ksentinel.window import Window

    with host.actors(actions, watch.rules) as actors, host.live(settings, actors.done) as stream:
        for batch in stream:
            actors.go_on()
            for item in batch:
                if not isinstance(item, Window) and watch.whose(item) is not None:
                    watch.see(item, ruleset.match(item))
        return actors.said, stream.lost()


def _plain(one: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "file": one.rule.file,
        "id": one.rule.id,
        "title": one.rule.title,
        "outcome": str(one.outcome),
        "said": one.said,
        "clauses": [] if one.match is None else [asdict(clause) for clause in one.match.clauses],
    }
