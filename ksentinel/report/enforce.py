# SPDX-License-Identifier: Apache-2.0
"""Enforcement, as people are shown it: what guards have met, what they would meet, and whether they may be enforced."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ksentinel import report
from ksentinel.alert import when
from ksentinel.enforce.breaker import Trip
from ksentinel.enforce.denial import Denied
from ksentinel.enforce.never import Spared
from ksentinel.enforce.readiness import Finding, Plan, Readiness
from ksentinel.explain.event import in_words

_SHOWN = 5
_LONGEST_EVENT = 300
_OUTCOMES = {
    "denied": "bold green",
    "would_deny": "yellow",
    "logged": "cyan",
    "spared": "dim",
    "released": "bold red",
}


def plan_table(plan: Plan) -> None:
    """Print which guards the events of the past would have met: how often, by whom, and one of them."""
    out = report.console()
    met = [one for one in plan.planned if one.count]
    for one in met:
        head = Text.assemble(
            report.plain(f"{one.count:>7,}  "),
            report.plain(one.title, style="bold"),
            report.plain(f"  {one.hook}", style="cyan"),
            report.plain(f"  {one.verdict}", style="dim" if one.count == one.spared else "yellow"),
        )
        out.print(head)
        report.lines([f"         {one.rule}{f', {one.mode}' if one.mode else ''}"])
        report.lines(
            f"         {count:,} by {_who(exe, service)}" for exe, service, count in one.who[:_SHOWN]
        )
        if len(one.who) > _SHOWN:
            report.lines([f"         and {len(one.who) - _SHOWN:,} others"])
        if one.spared and one.spared != one.count:
            report.lines([f"         {one.spared:,} of them by who is never denied anything"])
        if one.example is not None:
            out.print(report.plain(f"         e.g. {in_words(one.example)}", _LONGEST_EVENT, "dim"))
    if met:
        out.print()
    quiet = len({one.rule for one in plan.planned}) - len({one.rule for one in met})
    period = f", from {_moment(plan.first_ns)} to {_moment(plan.last_ns)} UTC" if plan.events else ""
    report.lines(
        [
            (
                f"{plan.events:,} events{period}; {quiet:,} rule{'' if quiet == 1 else 's'} would have met nothing. Events are kept around alerts only: what nobody "
                "was alerted to isn't among them"
            )
        ]
    )


def ready_table(readiness: Readiness) -> None:
    """Print whether guards may be enforced, and what stands in the way."""
    out = report.console()
    for one in readiness.findings:
        _finding(one)
    if readiness.findings:
        out.print()
    answered = sum(one.resolved for one in readiness.findings)
    report.lines(
        [
            (
                f"watched for {readiness.days:.1f} of {readiness.wanted:g} days; {len(readiness.findings):,} would have been denied, "
                f"{answered:,} have an answer"
            )
        ]
    )
    out.print(report.plain(readiness.verdict, style="bold green" if readiness.ready else "bold red"))


def _finding(one: Finding) -> None:
    out = report.console()
    mark = ("answered    ", "green") if one.resolved else ("unresolved  ", "bold red")
    out.print(
        Text.assemble(
            mark,
            report.plain(one.title or one.rule, style="bold"),
            report.plain(f"  {_who(one.exe, one.service)}  {one.count:,} times at {', '.join(one.hooks)}"),
        )
    )
    report.lines([f"            {one.answer or one.why}"])
    out.print(report.plain(f"            e.g. {in_words(one.example)}", _LONGEST_EVENT, "dim"))


def denials_table(denials: Sequence[Denied], *, removed: int = 0) -> None:
    """Print what guards spoke against; *removed* counts had to make room, and aren't in it."""
    out = report.console()
    if not denials:
        out.print("no denials")
    else:
        table = Table("Times", "Outcome", "Hook", "Rule", "By", "Last (UTC)", box=None, pad_edge=False)
        for one in denials:
            outcome = str(one.outcome)
            table.add_row(
                f"{one.count:,}",
                report.plain(outcome.replace("_", " "), style=_OUTCOMES.get(outcome, "")),
                report.plain(one.hook),
                report.plain(one.title or one.rule or "(unknown)", 60),
                report.plain(_who(one.exe, one.service), 100),
                report.plain(_moment(one.last_ns)),
            )
        out.print(table)
    if removed:
        report.lines([f"{removed:,} counts had to make room for newer ones (max_denials)"])


def trip_lines(trips: Sequence[Trip]) -> None:
    """Print which rules were taken back, and whom they had denied."""
    for trip in trips:
        report.lines([trip.words()])
        report.lines(
            f"    {_moment(one.time_ns)} UTC  {one.service}: {one.exe} (service's pid {one.key.pid}) at {one.hook}"
            for one in trip.lineages
        )


def never_table(spared: Sequence[Spared]) -> None:
    """Print who is never denied anything."""
    table = Table("Who", "Why", box=None, pad_edge=False)
    for one in spared:
        who = one.who if one.process is None else f"{one.who} (pid {one.process.pid})"
        there = "" if one.key() is not None else "; it isn't there"
        table.add_row(
            report.plain(who, 100, "" if not there else "dim"),
            report.plain(f"{one.why}{there}", 200),
        )
    report.console().print(table)


def posture_lines(told: Mapping[str, Any]) -> None:
    """Print what was asked for, what is in force and what is verified, as `status` has it."""
    verified = str(told["verified"])
    style = "bold red" if verified == "no" or told["released"] else "bold green"
    report.console().print(
        Text.assemble(
            report.plain(f"requested {told['requested']}, in force {told['mode']}, verified "),
            report.plain(verified, style=style),
            report.plain(f"  at {len(told['attached'])} hooks" if told["attached"] else "  at no hook"),
        )
    )
    lines = [f"why: {why}" for why in told["why"]]
    if told["released"]:
        lines.append("released: nothing is denied")
    lines += [f"not verified: {hook}: {why}" for hook, why in told["unproven"].items()]
    lines += [f"no guard: {hook}: {why}" for hook, why in told["missing"].items()]
    lines += [f"mode of {name}: {mode}" for name, mode in told["modes"].items()]
    lines += [f"taken back: {rule}" for rule in told["taken_back"]]
    if told["confirm"]:
        lines.append(f"confirmation: {told['confirm']}")
    policy, counters = told["policy"], told["counters"]
    if policy:
        lines.append(
            f"policy {policy['epoch']}: {policy['rules']} rules, {policy['entries']} entries, {policy['ways']} ways, posture {policy['posture']}"
        )
    if counters:
        outcomes = ("denied", "would_deny", "logged", "spared", "released")
        lost = ("records_dropped", "records_limited", "too_deep", "no_room", "sentences_lost")
        lines.append(
            ", ".join(f"{name.replace('_', ' ')} {counters.get(name, 0):,}" for name in (*outcomes, *lost))
        )
    if told["sentences"]:
        lines.append(f"{told['sentences']} processes under a verdict")
    report.lines(lines)


def _who(exe: str, service: str) -> str:
    called = exe or "an unknown program"
    return called if service in {"", exe} else f"{called} under {service}"


def _moment(time_ns: int) -> str:
    return when(time_ns)[:19].replace("T", " ")
