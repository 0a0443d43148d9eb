# SPDX-License-Identifier: Apache-2.0
"""For people who write rules: what is wrong with them, whether they do what they are for, and what they cover. No root needed."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.options import Json, RulePaths
from ksentinel.commands.output import complain, print_json, tell
from ksentinel.commands.walk import load_rules, user_names
from ksentinel.config import Config
from ksentinel.errors import InputError, Location, RuleError

_FAILED = 1
_PATHS = typer.Argument(
    metavar="PATH...", readable=False, help="Rule files, or folders of them; anybody's: none is acted on."
)


def check_rules(paths: Annotated[list[Path], _PATHS], json: Json = False) -> None:
    """Say everything that is wrong with rule files, and what is unwise. Exit status 1 if one can't be loaded."""
    from ksentinel.report.rules import checked_lines
    from ksentinel.rules.checking import check
    from ksentinel.rules.fields import sources

    counts: Counter[str] = Counter()
    for checked in check(paths, sources(user_names())):
        counts["files"] += 1
        counts["loaded"] += checked.loaded
        counts["problems"] += len(checked.problems)
        counts["remarks"] += len(checked.remarks)
        print_json(_checked_plain(checked)) if json else checked_lines(checked)
    refused = counts["files"] - counts["loaded"]
    tell(
        f"{counts['files']} files: {counts['loaded']} would be loaded, {refused} not; "
        f"{counts['problems']} problems, {counts['remarks']} remarks"
    )
    if refused:
        raise typer.Exit(_FAILED)


def _checked_plain(checked: Any) -> dict[str, Any]:
    problems = [_said(one) for one in checked.problems]
    first = problems[0] if problems else {"reason": "", "line": 0, "column": 0, "remedy": ""}
    rule = checked.rules[0] if checked.rules else None
    return {
        "file": str(checked.file),
        "loaded": checked.loaded,
        **first,
        "id": None if rule is None else rule.id,
        "title": None if rule is None else rule.title,
        "level": None if rule is None else str(rule.level),
        "problems": problems,
        "more": checked.more,
        "warnings": [_said(one) for one in checked.remarks],
    }


def _said(one: Any) -> dict[str, Any]:
    at = one.at if isinstance(one.at, Location) else Location(str(one.at or ""))
    return {"reason": one.what, "line": at.line, "column": at.column, "remedy": one.remedy}


def run_cases(
    paths: Annotated[list[Path] | None, _PATHS] = None,
    json: Json = False,
) -> None:
    """Test each rule on the events beside it (default: the shipped rules). Exit status 1 if one fails or has none."""
    from ksentinel.report.rules import outcome_lines
    from ksentinel.shipped import shipped

    counts: Counter[str] = Counter()
    for file, found in _tested(paths or [shipped("rules")]):
        counts["rules"] += 1
        if isinstance(found, RuleError):
            counts["untested"] += 1
            if json:
                print_json({"file": str(file), "tested": False, **_said(found)})
            else:
                complain(found)
            continue
        bad = [outcome for outcome in found if not outcome.good]
        counts["cases"] += len(found)
        counts["wrong"] += len(bad)
        if json:
            print_json(
                {
                    "file": str(file),
                    "tested": True,
                    "cases": len(found),
                    "match": sum(outcome.case.match for outcome in found),
                    "wrong": [_outcome_plain(outcome) for outcome in bad],
                }
            )
        else:
            outcome_lines(bad)
    tell(
        f"{counts['rules']} rules: {counts['cases']} cases, {counts['wrong']} wrong; "
        f"{counts['untested']} rules can't be tested"
    )
    if counts["wrong"] or counts["untested"]:
        raise typer.Exit(_FAILED)


def _tested(paths: list[Path]) -> Iterator[tuple[Path | str, Any]]:
    """Yield each rule's file with the outcomes of its cases, or why there are none."""
    from ksentinel.rules.cases import outcomes, read_cases
    from ksentinel.rules.checking import EVENTS, beside
    from ksentinel.rules.ruleset import RuleSet, rule_files

    # Without this host's users: events that were written down mean the same everywhere.
    for file in rule_files(paths, None):
        if isinstance(file, RuleError):
            yield str(file.at), file
            continue
        events = beside(file, EVENTS)
        try:
            rules = RuleSet.load([file], trusted_uids=None)
            if events is None:
                raise RuleError(f"no {file.stem}{EVENTS} beside it", Location(file), "see docs/authoring.md")  # noqa: TRY301
            cases = read_cases(events)
            if {case.match for case in cases} != {True, False}:
                raise RuleError(  # noqa: TRY301
                    "needs events that must match, and events that must not", Location(events)
                )
        except RuleError as error:
            yield file, error
        else:
            yield file, list(outcomes(rules, cases))


def _outcome_plain(outcome: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "line": outcome.case.at.line,
        "why": outcome.case.why,
        "match": outcome.case.match,
        "said": outcome.said,
        "clauses": [asdict(clause) for clause in outcome.clauses],
    }


def try_rule(
    rule: Annotated[Path, typer.Argument(metavar="RULE", readable=False, help="A rule file.")],
    on: Annotated[
        list[Path],
        typer.Option(
            "--on", metavar="FILE", readable=False, help="A recording, or an audit log (repeatable)."
        ),
    ],
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="How many matches to show; all are counted.")
    ] = 100,
    misses: Annotated[
        int, typer.Option("--misses", metavar="N", min=0, help="How many near misses to show.")
    ] = 20,
    json: Json = False,
) -> None:
    """Try one rule on what was recorded: what it fires on, what it only just doesn't, and whose that is."""
    from ksentinel.report.rules import match_lines, trial_lines
    from ksentinel.rules.ruleset import RuleSet
    from ksentinel.rules.trial import Trial, TrialTogether
    from ksentinel.window import Window

    rules = RuleSet.load([rule], trusted_uids=None, users=user_names())
    trial = (
        TrialTogether(rules)
        if rules.correlations or len(rules.compiled) != 1
        else Trial(rules.compiled[0], most=misses)
    )
    failures: list[InputError] = []
    shown = 0
    for batch in _recorded(on, failures):
        for event in batch:
            if isinstance(event, Window):
                continue
            for match in trial.told(event):
                if shown == limit:
                    break
                shown += 1
                print_json(_evidence(match.event, match.clauses, "match")) if json else match_lines(match)
    if json:
        for miss in trial.misses:
            print_json(_evidence(miss.event, miss.clauses, "miss"))
        counts = {name: getattr(trial, name) for name in ("events", "of_source", "matches", "near")}
        by = {"executables": dict(trial.executables), "parents": dict(trial.parents)}
        print_json({"kind": "account", "source": trial.source} | counts | by)
    else:
        trial_lines(trial, limit)
    for failure in failures:
        complain(failure)
    if failures:
        raise typer.Exit(InputError.exit_status)


def _recorded(paths: list[Path], failures: list[InputError]) -> Iterator[Any]:
    """Yield batches of what recordings and logs hold; adds what couldn't be read."""
    from ksentinel.recording import Reader, is_recording
    from ksentinel.streams import AuditLogs

    for path in paths:
        if path.is_dir() or not path.exists():
            raise InputError(
                "is a directory" if path.is_dir() else "there is no such file",
                at=path,
                remedy="name an audit log or a recording",
            )
    recorded = [path for path in paths if is_recording(path)]
    for path in recorded:
        with Reader(path) as reader:
            yield from reader
    # Masked as live events are: what is shown here is pasted elsewhere.
    logs = AuditLogs([path for path in paths if path not in recorded], host.redactor(Config()))
    if logs.logs:
        yield from logs
    failures += logs.failures


def _evidence(event: Any, clauses: Any, kind: str) -> dict[str, Any]:
    from dataclasses import asdict

    from ksentinel.codec import event_to_plain

    return {
        "kind": kind,
        "event": event_to_plain(event),
        "clauses": [asdict(clause) for clause in clauses],
    }


def show_coverage(
    rules: RulePaths = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", readable=False, help="Write the matrix there, as a page of its own."
        ),
    ] = None,
    navigator: Annotated[
        Path | None,
        typer.Option(
            "--navigator", metavar="FILE", readable=False, help="Write a layer for ATT&CK Navigator there."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show which tactics and techniques of ATT&CK the rules speak of."""
    from ksentinel.report.coverage import coverage_page, coverage_table
    from ksentinel.rules.coverage import coverage, navigator_layer
    from ksentinel.store import to_json

    covered = coverage(load_rules(rules).rules)
    if html is not None:
        html.write_text(coverage_page(covered), encoding="utf-8")
    if navigator is not None:
        navigator.write_bytes(to_json(navigator_layer(covered)) + b"\n")
    if not json:
        coverage_table(covered)
        return
    for tactic, column in covered.matrix.items():
        print_json(
            {
                "tactic": tactic.id,
                "name": tactic.name,
                "techniques": {name: [rule.id for rule in found] for name, found in column.items()},
            }
        )
