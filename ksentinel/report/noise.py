# SPDX-License-Identifier: Apache-2.0
"""Noise, as people are shown it: what isn't told, who makes it, and what can be done."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ksentinel import report
from ksentinel.mutes import in_words
from ksentinel.offenders import Offender
from ksentinel.status import NoiseStatus


def suppressed_table(rules: Sequence[Mapping[str, Any]]) -> None:
    """Print how many alerts of which rule were suppressed; nothing if none were."""
    if not rules:
        return
    out = report.console()
    out.print(Text("Suppressed alerts, by rule", "bold"))
    width = max(len(f"{told['alerts']:,}") for told in rules)
    for told in rules:
        out.print(report.plain(f"  {told['alerts']:>{width},}  {told['title']} ({told['rule']})"))
    out.print()


def noise_lines(noise: NoiseStatus) -> None:
    """Print what a running daemon doesn't tell, and why."""
    suppressed_table([{"rule": r.rule, "title": r.title, "alerts": r.alerts} for r in noise.suppressed])
    told = [
        f"quietened until the day (UTC) is over: {one.exe or 'an unknown program'} below "
        f"{one.parent or 'an unknown program'}, rule {one.rule}: {one.alerts:,} alerts"
        for one in noise.quietened
    ]
    told += [f"muted: {in_words(mute)}" for mute in noise.mutes]
    report.lines(told)
    if told:
        report.console().print()


def offenders_table(offenders: Sequence[Offender], *, removed: int = 0) -> None:
    """Print who makes the most noise; *removed* alerts and counts had to make room, and aren't in it."""
    out = report.console()
    if not offenders:
        out.print("no alerts")
        return
    total = sum(offender.tally.all for offender in offenders)
    table = Table("Share", "Alerts", "Repeats", "Suppressed", "Level", "Rule", box=None, pad_edge=False)
    for offender in offenders:
        tally = offender.tally
        level = str(tally.level) if tally.level else "-"
        table.add_row(
            f"{tally.all / total:.0%}" if total else "-",
            f"{tally.alerts:,}" + (f" ({tally.muted:,} muted)" if tally.muted else ""),
            f"{tally.repeats:,}",
            f"{tally.suppressed:,}",
            report.plain(level, style=report.STYLES.get(level, "")),
            report.plain(f"{offender.title} ({offender.rule})"),
        )
    out.print(table)
    for offender in offenders:
        out.print()
        out.print(report.plain(offender.title, style="bold"))
        loudest = offender.loudest()
        for exe, parent, tally in loudest:
            share = tally.all / offender.tally.all if offender.tally.all else 0
            who = f"{exe or 'an unknown program'} below {parent or 'an unknown program'}"
            report.lines([f"  {share:4.0%}  {who}: {tally.all:,}"])
            remedies = offender.remedies(exe, parent, tally)
            if "where" in remedies:
                report.lines(
                    [f"        expected? an exception of rule {offender.rule} where: {remedies['where']}"]
                )
            if "mute" in remedies:
                report.lines([f"        for a while: {remedies['mute']}"])
        if len(offender.sources) > len(loudest):
            report.lines([f"  and {len(offender.sources) - len(loudest):,} others"])
    if removed:
        out.print()
        report.lines(
            [f"{removed:,} alerts and counts had to make room for newer ones, and aren't counted here"]
        )
