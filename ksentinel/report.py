# SPDX-License-Identifier: Apache-2.0
"""What the command line shows to people: tables and paragraphs, nothing untrusted unescaped."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from ksentinel.alert import Alert
from ksentinel.printable import printable
from ksentinel.support import Support

STYLES = {
    "critical": "bold white on red",
    "high": "bold red",
    "medium": "yellow",
    "low": "cyan",
    "informational": "dim",
}
_BAR = 24


def console() -> Console:
    """Return a console on standard output; NO_COLOR and pipes are respected."""
    return Console(highlight=False, soft_wrap=False)


def plain(value: object, limit: int = 0, style: str = "") -> Text:
    """Return untrusted text as something rich shows literally."""
    return Text(printable(str(value), limit), style=style)


def doctor_table(checks: Sequence[Support], works: Mapping[str, bool]) -> None:
    """Print what this host can do."""
    out = console()
    width = max(len(check.name) for check in checks)
    for check in checks:
        bad = "bold red" if check.needed_for else "yellow"
        out.print(
            Text("yes  ", "green") if check.ok else Text("no   ", bad),
            plain(f"{check.name:{width}}  {check.reason}"),
            sep="",
            soft_wrap=True,
        )
        if check.remedy:
            needs = f"{', '.join(check.needed_for)}: " if check.needed_for else ""
            out.print(plain(f"{'':{width + 7}}{needs}{check.remedy}", style="yellow"), soft_wrap=True)
    out.print()
    for what, good in works.items():
        verdict = Text("would work", "green") if good else Text("would not work", "bold red")
        out.print(Text(f"{what:{width + 7}}") + verdict)


def alert_line(alert: Alert) -> None:
    """Print an alert as it happens: a line, and its paragraph below."""
    level = str(alert.level)
    out = console()
    out.print(
        Text.assemble(
            plain(_clock(alert.updated_ns), style="dim"),
            "  ",
            (f"{level.upper():13}", STYLES.get(level, "")),
            plain(alert.title, 80, "bold"),
            "  ",
            (f"{alert.id}{'' if alert.revision == 1 else f' (revision {alert.revision})'}", "dim"),
        )
    )
    out.print(Text("  ") + plain(alert.explanation.get("paragraph", "")), soft_wrap=True)


def alerts_table(alerts: Sequence[Mapping[str, Any]]) -> None:
    """Print stored alerts."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("id", "updated (UTC)", "level", "program", "what", "more"):
        table.add_column(heading, overflow="fold")
    for alert in alerts:
        level = str(alert["level"])
        table.add_row(
            plain(alert["id"]),
            plain(str(alert["updated"])[:19].replace("T", " ")),
            plain(level, style=STYLES.get(level, "")),
            plain(alert["process"].get("exe", "?"), 60),
            plain(alert["title"], 80),
            plain(f"+{alert['repeats']}" if alert["repeats"] else ""),
        )
    out = console()
    out.print(table)
    out.print(f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'}; `ksentinel explain ID` says why")


def explanation(alert: Mapping[str, Any]) -> None:
    """Print why an alert was raised."""
    out = console()
    level = str(alert["level"])
    out.print(
        Text.assemble(
            (f" {level.upper()} ", STYLES.get(level, "")), "  ", plain(alert["title"], style="bold")
        )
    )
    out.print(plain(f"{alert['id']}, {alert['opened']}, action: {alert['action']}", style="dim"))
    out.print()
    told = alert["explanation"]
    out.print(plain(told.get("paragraph", "")))
    out.print()
    for reason in alert["reasons"]:
        out.print(Text("• ") + plain(reason))
    _ancestry(out, alert["process"])
    for evidence in alert["evidence"]:
        if "match" in evidence:
            _rule(out, evidence)
    anomalies = [e["anomaly"] for e in alert["evidence"] if "anomaly" in e]
    if anomalies:
        _p_values(out, anomalies)
    if told.get("ngrams"):
        _ngrams(out, told["ngrams"])
    if told.get("lime"):
        _lime(out, told["lime"])


def account_table(account: Mapping[str, float], title: str = "Accounting") -> None:
    """Print counters."""
    table = Table(box=None, pad_edge=False, show_header=False, title=title, title_justify="left")
    table.add_column(justify="right")
    table.add_column()
    for name, number in account.items():
        shown = f"{number:,.0f}" if float(number).is_integer() else f"{number:,.3f}"
        lost = number and any(
            word in name for word in ("dropped", "missed", "malformed", "no_storage", "gaps")
        )
        table.add_row(Text(shown, "bold red" if lost else ""), Text(name.replace("_", " ")))
    out = console()
    out.print(table)
    for text in _sums(account):
        out.print(Text(text, "dim"))
    out.print()


def files_table(files: Sequence[Mapping[str, Any]]) -> None:
    """Print the account of each file, and where lines made no sense."""
    out = console()
    for told in files:
        numbers = ", ".join(
            f"{number} {name.replace('_', ' ')}" for name, number in told.items() if isinstance(number, int)
        )
        out.print(plain(f"{told['file']}: {numbers}"))
        for bad in told.get("malformed_at", ()):
            out.print(plain(f"  {bad['at']}: {bad['reason']}", 200, "red"))


class Progress:
    """A progress bar on standard error; nothing if *quiet*."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._bar = RichProgress(console=Console(stderr=True), transient=True, disable=quiet)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, what: str, done: float) -> None:
        """Show what is being done, and which share of the whole (0 to 1) is behind it."""
        if self._task is None:
            self._task = self._bar.add_task(what, total=1.0)
        self._bar.update(self._task, description=what, completed=done)


def _sums(account: Mapping[str, float]) -> list[str]:
    """Say what must add up, with the numbers in it."""
    told = []
    if "seen" in account:
        parts = ("recorded", "own", "excluded", "no_storage", "contended")
        told.append(_sum(account, "seen", parts))
        told.append(_sum(account, "calls", ("calls_sent", "calls_dropped")))
        told.append(_sum(account, "lifecycle", ("lifecycle_sent", "lifecycle_dropped")))
    if "lines" in account:
        told.append(_sum(account, "lines", ("lines_in_events", "malformed", "pending")))
    return told


def _sum(account: Mapping[str, float], whole: str, parts: Sequence[str]) -> str:
    total = sum(account[part] for part in parts)
    sign = "=" if total == account[whole] else "≠"
    right = " + ".join(f"{account[part]:,.0f} {part.replace('_', ' ')}" for part in parts)
    return f"{account[whole]:,.0f} {whole} {sign} {right}"


def _clock(time_ns: int) -> str:
    from ksentinel.alert import when

    return when(time_ns)[11:23]


def _ancestry(out: Console, process: Mapping[str, Any]) -> None:
    chain: list[Mapping[str, Any]] = []
    step: Mapping[str, Any] | None = process
    while step is not None and len(chain) < 12:
        chain.append(step)
        step = step.get("parent")
    out.print()
    out.print(Text("Who started whom", "bold"))
    for depth, one in enumerate(reversed(chain)):
        line = " ".join(one.get("argv", ())) or one.get("exe", "?")
        out.print(Text("  " * depth + ("└ " if depth else "")) + plain(f"{one['pid']} {line}", 120))


def _rule(out: Console, evidence: Mapping[str, Any]) -> None:
    match = evidence["match"]
    rule = match["rule"]
    out.print()
    out.print(
        Text.assemble(("Rule ", "bold"), plain(rule["title"], style="bold"), plain(f" ({rule['level']})"))
        + plain(f"  {rule['file']}  seen {evidence['count']} time(s)", style="dim")
    )
    for clause in match["clauses"]:
        value = Text("-") if clause["value"] is None else _span(clause["value"], clause["span"])
        head = "  not " if clause["negated"] else "  "
        out.print(
            Text(head) + plain(f"{clause['selection']}: {clause['field']} {clause['test']}  ← ", 200) + value
        )


def _span(value: str, span: Sequence[int] | None) -> Text:
    if span is None:
        return plain(value, 160)
    start, end = span
    return (
        plain(value[max(start - 60, 0) : start])
        + plain(value[start:end], 120, "bold reverse")
        + plain(value[end : end + 60])
    )


def _p_values(out: Console, anomalies: Sequence[Mapping[str, Any]]) -> None:
    worst = anomalies[0]
    out.print()
    profile = " under ".join(printable(name) for name in worst["profile"] if name) or "the whole host"
    out.print(
        Text("Model", "bold")
        + plain(f"  compared with {profile}; {len(anomalies)} window(s) kept", style="dim")
    )
    out.print(plain(f"  p = {worst['p_value']:.3g} ({worst['level']}), decided by {worst['decided_by']}"))
    for member in worst["members"]:
        out.print(plain(f"  {member['name']:10} score {member['score']:8.3f}   p = {member['p_value']:.3g}"))


def _ngrams(out: Console, ngrams: Sequence[Mapping[str, Any]]) -> None:
    out.print()
    out.print(Text("Exact contributions of n-grams", "bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in (
        ("bits", "right"),
        ("share", "left"),
        ("n-gram", "left"),
        ("in training", "left"),
    ):
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for one in ngrams:
        usual = ", ".join(f"{name} {share:.0%}" for name, share in one["usual_next"]) or "nothing"
        seen = f"{one['seen_in_training']} of {one['context_seen']}; usual: {usual}"
        table.add_row(
            f"{one['bits']:.2f}",
            Text("█" * max(round(one["share"] * _BAR), 1)),
            plain(" → ".join(one["ngram"])),
            plain(seen, 90),
        )
    out.print(table)


def _lime(out: Console, lime: Mapping[str, Any]) -> None:
    out.print()
    out.print(
        Text("LIME", "bold")
        + plain(
            f"  on {lime['detector']}, R² {lime['r2']:.3f}, {lime['samples']} samples, seed {lime['seed']}",
            style="dim",
        )
    )
    largest = max((abs(w["weight"]) for w in lime["weights"]), default=0.0) or 1.0
    for one in lime["weights"]:
        bar = "█" * max(round(abs(one["weight"]) / largest * _BAR), 1)
        out.print(
            plain(f"  {one['weight']:+.4f}  ")
            + Text(f"{bar:{_BAR}}")
            + plain("  " + " → ".join(one["ngram"]))
        )
