# SPDX-License-Identifier: Apache-2.0
"""What the command line shows to people: tables and paragraphs, nothing untrusted unescaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TaskID
from rich.table import Table
from rich.text import Text

from ksentinel.alert import Alert, when
from ksentinel.explain.event import in_words
from ksentinel.flight import Flown, Phase
from ksentinel.printable import printable
from ksentinel.search import Found, Results
from ksentinel.status import Status
from ksentinel.support import Support
from ksentinel.syscalls import CLASSES
from ksentinel.verdict import p_text

STYLES = {
    "critical": "bold white on red",
    "high": "bold red",
    "medium": "yellow",
    "low": "cyan",
    "informational": "dim",
}
_BAR = 24
_MANY = 6
_LONGEST_EVENT = 1000
_MINUTE = 60.0
_ENDLESS = 100_000
"""Width of what is no terminal: files and pipes get whole lines, for grep."""

# What the verdict's action is worth in words; "block" is what stores of earlier versions have.
_ACTIONS = {
    "alert": "worth an alert",
    "deny": "would justify refusing it",
    "kill": "would justify ending the process",
    "quarantine": "would justify cutting its lineage off",
    "block": "would justify blocking",
}

# What guards in the kernel made of it.
_ENFORCED = {"denied": ("  denied", "bold green"), "would_deny": ("  would be denied", "yellow")}

# What must add up: the whole, and its parts, as the counters are called. Several wholes: their sum.
_SUMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "system calls seen",
        ("seen",),
        ("scored", "unscored", "own", "excluded", "no_storage", "contended"),
    ),
    (
        "their tokens",
        ("scored", "unscored", "exec_tokens", *(f"tokens_{name}" for name in CLASSES)),
        ("tokens_sent", "tokens_gated", "tokens_dropped"),
    ),
    (
        "windows closed",
        ("closed_full", "closed_exit", "closed_exec", "closed_idle", "closed_stop"),
        ("windows_ungated", "windows_flagged", "windows_sampled", "windows_gated"),
    ),
    (
        "windows not gated",
        ("windows_ungated", "windows_flagged", "windows_sampled"),
        ("windows_sent", "windows_dropped"),
    ),
    ("argument events", ("calls",), ("calls_sent", "calls_dropped")),
    ("forks, execs, exits", ("lifecycle",), ("lifecycle_sent", "lifecycle_dropped")),
    ("records delivered", ("records_delivered",), ("windows_sent", "calls_sent", "lifecycle_sent")),
    ("records missing", ("records_missing",), ("windows_dropped", "calls_dropped", "lifecycle_dropped")),
    ("audit lines", ("lines",), ("lines_in_events", "malformed", "pending")),
    ("items", ("items",), ("events", "windows")),
    ("windows", ("windows",), ("windows_scored", "windows_unscored")),
    ("alerts", ("alerts",), ("alerts_shown", "alerts_muted", "alerts_capped", "alerts_quietened")),
    (
        "revisions",
        ("revisions",),
        ("revisions_shown", "revisions_muted", "revisions_capped", "revisions_quietened"),
    ),
    (
        "connections",
        ("connections",),
        ("open", "left", "idle", "timed_out", "slow", "cut_off", "faults", "rejected", "strangers"),
    ),
    ("requests", ("requests",), ("answered", "malformed", "refused", "failed")),
)
_LOSSES = (
    "dropped",
    "groups_evicted",
    "matches_evicted",
    "missed",
    "missing",
    "malformed",
    "no_storage",
    "contended",
    "forgotten",
    "no_inheritance",
)


def console() -> Console:
    """Return a console on standard output: whole lines into pipes; no escape codes there, nor with NO_COLOR."""
    out = Console(highlight=False)
    if not out.is_terminal:
        return Console(highlight=False, color_system=None, width=_ENDLESS)
    # By itself rich would leave out colours only, and keep bold and dim.
    return Console(highlight=False, color_system=None) if out.no_color else out


def plain(value: object, limit: int = 0, style: str = "") -> Text:
    """Return untrusted text as something rich shows literally."""
    return Text(printable(str(value), limit), style=style)


def lines(told: Iterable[str]) -> None:
    """Print lines, wrapped at words where the terminal is narrow."""
    out = console()
    for line in told:
        _hang(out, plain(line), 4)


def doctor_table(checks: Sequence[Support], works: Mapping[str, bool]) -> None:
    """Print what this host can do."""
    out = console()
    width = max(len(check.name) for check in checks)
    for check in checks:
        bad = "bold red" if check.needed_for else "yellow"
        answer = ("yes  ", "green") if check.ok else ("no   ", bad)
        _hang(out, Text.assemble(answer, plain(f"{check.name:{width}}  {check.reason}")), width + 7)
        if check.remedy:
            needs = f"{', '.join(check.needed_for)}: " if check.needed_for else ""
            _hang(out, plain(needs + check.remedy, style="yellow"), width + 7, first=width + 7)
    out.print()
    for what, good in works.items():
        verdict = Text("would work", "green") if good else Text("would not work", "bold red")
        out.print(Text(f"{what:{width + 7}}") + verdict)


def alert_line(alert: Alert) -> None:
    """Print an alert as it happens: a line, and its paragraph below."""
    level = str(alert.level)
    out = console()
    head = Text.assemble(
        plain(_clock(alert.updated_ns), style="dim"),
        "  ",
        (f"{level.upper():8}", STYLES.get(level, "")),
        "  ",
        (alert.id, "dim"),
        "  ",
        plain(alert.title, 80, "bold"),
        _ENFORCED.get(alert.enforced, ""),
        ("" if alert.revision == 1 else f"  revision {alert.revision}", "dim"),
    )
    _hang(out, head, 4)
    if alert.revision == 1:
        _hang(out, plain(alert.explanation.get("paragraph", "")), 4, first=4)
        return
    # What has been read before is not said again: `explain` has all of it.
    rules = [match.rule.title for match in alert.matches]
    model = (
        [f"the model ({sum(e.count for e in alert.evidence if e.anomaly)} windows)"]
        if alert.anomalies
        else []
    )
    like = [f"{alert.repeats} more like it"] if alert.repeats else []
    _hang(out, plain("now: " + "; ".join([*rules, *model, *like]), style="dim"), 4, first=4)


def alerts_table(
    alerts: Sequence[Mapping[str, Any]],
    *,
    limit: int,
    removed: int = 0,
    suppressed: int = 0,
    mutes: Sequence[str] = (),
) -> None:
    """
    Print stored alerts.

    Parameters
    ----------
    limit
        How many were asked for at most.
    removed, suppressed
        How many had to make room for others, and how many were never stored.
    mutes
        Those in force, in words.
    """
    out = console()
    if alerts:
        _alerts(out, alerts, limit, removed)
    else:
        out.print("no alerts")
    told = (
        f"{suppressed:,} suppressed alerts are counted alone: `ksentinel rules noise`" if suppressed else ""
    )
    for line in ([told] if told else []) + [f"muted: {mute}" for mute in mutes]:
        _hang(out, plain(line, style="yellow"), 4)


def _alerts(out: Console, alerts: Sequence[Mapping[str, Any]], limit: int, removed: int) -> None:
    width = max(len(str(alert["level"])) for alert in alerts)
    before = max(len(str(alert["id"])) for alert in alerts) + 2 + 19 + 2 + width + 2
    for alert in alerts:
        level = str(alert["level"])
        more = f"  +{alert['repeats']} like it" if alert["repeats"] else ""
        more += f"  muted by {alert['muted']}" if alert.get("muted") else ""
        more += _ENFORCED[alert["enforced"]][0] if alert.get("enforced") in _ENFORCED else ""
        row = Text.assemble(
            plain(alert["id"], style="bold"),
            "  ",
            plain(str(alert["updated"])[:19].replace("T", " "), style="dim"),
            "  ",
            plain(f"{level:{width}}", style=STYLES.get(level, "")),
            "  ",
            plain(alert["title"], 100),
            plain(more, style="dim"),
        )
        _hang(out, row, before)
        _hang(out, plain(_who(alert["process"]), style="dim"), before, first=before)
    out.print()
    told = (
        f"{len(alerts)} alert{'' if len(alerts) == 1 else 's'}, times in UTC; `ksentinel explain ID` says why"
    )
    if len(alerts) == limit:
        told += f"; there may be more than these {limit}: --limit"
    if removed:
        told += f"; {_gone(removed, 'max_alerts')}"
    _hang(out, Text(told, "dim"), 0)


def events_table(
    results: Results, *, alert: Mapping[str, Any] | None = None, removed: int = 0, asked: str = ""
) -> None:
    """
    Print what was found, in its order.

    Parameters
    ----------
    alert
        Whose events these are: times are then told from its opening on, too.
    removed
        How many kept events had to make room for others.
    asked
        Which times were asked for, in words.
    """
    out = console()
    gone = _gone(removed, "max_events")
    if not results.total:
        about = "; ".join(part for part in (asked, gone) if part)
        _hang(out, plain(f"nothing kept matches{f' ({about})' if about else ''}"), 4)
        return
    opened_ns = 0 if alert is None else int(alert["opened_ns"])
    beside = [_beside(one, None if alert is None else opened_ns) for one in results.found]
    wide, width = max(map(len, beside)), max(len(str(one.facts.pid)) for one in results.found)
    opened = alert is None
    for one, stands in zip(results.found, beside, strict=True):
        facts = one.facts
        if alert is not None and not opened and facts.time_ns > opened_ns:
            opened = True
            _hang(out, plain(f"{_moment(opened_ns)}  ── {alert['title']} ──", style="bold"), 4)
        row = Text.assemble(
            plain(_moment(facts.time_ns), style="dim"),
            f"  {stands:>{wide}}" if wide else "",
            plain(f"  {facts.pid:>{width}}  "),
            plain(PurePosixPath(facts.exe).name or "(unknown)", 20, "cyan"),
            "  ",
            plain(in_words(one.body), _LONGEST_EVENT),
        )
        _hang(out, row, 25)  # below what stands after the time
    out.print()
    shown = len(results.found)
    told = f"{shown:,} event{'' if shown == 1 else 's'}, times in UTC"
    if shown < results.total:
        told = f"the last {shown:,} of {results.total:,} events, times in UTC; --limit shows more"
    _hang(out, Text("; ".join(part for part in (told, gone) if part), "dim"), 0)


def _gone(removed: int, bound: str) -> str:
    """Say how many had to make room, and which key of the configuration says so; empty if none had."""
    return f"{removed:,} older one{'s' if removed > 1 else ''} had to make room ({bound})" if removed else ""


def _beside(one: Found, opened_ns: int | None) -> str:
    """Return how an event stands to the alerts that keep it, or to the one that was opened then."""
    if not one.alerts:
        return ""
    identity, phase = one.alerts[0]
    if opened_ns is not None:
        apart = abs(one.facts.time_ns - opened_ns) / 1e9
        return f"{phase} {'+' if phase == Phase.AFTER else '-'}{apart:.3f} s"
    return f"{phase} {identity}" + (f" +{len(one.alerts) - 1}" if len(one.alerts) > 1 else "")


def _moment(time_ns: int) -> str:
    return when(time_ns)[:23].replace("T", " ")


def explanation(alert: Mapping[str, Any], flown: Flown | None = None, command: str = "") -> None:
    """
    Print why an alert was raised.

    Parameters
    ----------
    flown, command
        How many events are kept for it, and what shows them.
    """
    out = console()
    level = str(alert["level"])
    title = Text.assemble(
        (f" {level.upper()} ", STYLES.get(level, "")), "  ", plain(alert["title"], style="bold")
    )
    _hang(out, title, 4)
    times = f"{str(alert['opened'])[:19].replace('T', ' ')} to {str(alert['updated'])[11:19]} UTC"
    action = _ACTIONS.get(str(alert["action"]), "")
    about = f"{alert['id']}  {times}  {action}"
    if alert.get("techniques"):
        about += f"  {', '.join(alert['techniques'])}"
    _hang(out, plain(about, style="dim"), 4)
    if alert.get("enforced") in _ENFORCED:
        said, style = _ENFORCED[alert["enforced"]]
        _hang(out, Text(said.strip() + " in the kernel", style), 4)
    out.print()
    told = alert["explanation"]
    _hang(out, plain(told.get("paragraph", "")), 0)
    out.print()
    for reason in (*alert["reasons"], *(answer["reason"] for answer in alert.get("answers", ()))):
        _hang(out, Text("• ") + plain(reason), 2)
    if place := alert.get("policy"):
        contexts = " + ".join(place["contexts"]) or "known"
        _hang(out, plain(f"policy: rule {place['rule']}, model {place['model']}, {contexts}", style="dim"), 4)
    if alert["repeats"]:
        like = "incident that looked" if alert["repeats"] == 1 else "incidents that looked"
        _hang(
            out,
            Text("• ")
            + plain(f"{alert['repeats']:,} more {like} just like it: counted here, not told again"),
            2,
        )
    if alert.get("muted"):
        _hang(
            out,
            Text("• ")
            + plain(f"muted by {alert['muted']}: stored, not shown when it happened", style="yellow"),
            2,
        )
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
    if flown is not None:
        out.print()
        _hang(out, Text.assemble(("Events  ", "bold"), plain(_flown(flown, command))), 8)


def _flown(flown: Flown, command: str) -> str:
    if not flown.before + flown.after:
        return f"none are kept{', they had to make room for newer ones' if flown.removed else ''}"
    told = f"{flown.before:,} from before and {flown.after:,} from after it are kept"
    if flown.beyond:
        told += f", {flown.beyond:,} more were too many"
    if flown.removed:
        told += f", {flown.removed:,} had to make room for newer ones"
    return f"{told}: {command}"


def status_table(status: Status) -> None:
    """Print what a running daemon says of itself."""
    from ksentinel.alert import when
    from ksentinel.report.enforce import posture_lines
    from ksentinel.report.noise import noise_lines

    out = console()
    model = status.model
    usage = status.usage
    about = "none: rules alone"
    if model is not None:
        where = ", ".join(part for part in (model.host, model.kernel) if part) or "a host it doesn't name"
        about = (
            f"{model.path}, written {when(model.written_ns)[:19].replace('T', ' ')} UTC; trained on {where}: "
            f"{model.windows:,} windows of {model.executables:,} executables"
        )
    lately = (
        "the last minute" if usage.lately_seconds >= _MINUTE else f"the last {usage.lately_seconds:.0f} s"
    )
    rows = {
        "version": status.version,
        "process": status.pid,
        "mode": status.mode,
        "since": f"{when(status.since_ns)[:19].replace('T', ' ')} UTC, for {_span_of(status.seconds)}",
        "model": about,
        "rules": _rules_in_use(status),
        "store": status.store,
        "cpu": f"{usage.cpu_share:.1%} of a core since then, {usage.cpu_share_lately:.1%} over {lately}",
        "memory": f"{_megabytes(usage.memory_bytes)}, at its peak {_megabytes(usage.memory_peak_bytes)}",
        "lost": f"{status.lost:,} records",
    }
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        style = "bold red" if name == "lost" and status.lost else ""
        _hang(out, Text(f"{name:{width}}  ", "bold") + plain(value, style=style), width + 2)
    if status.enforcement is not None:
        out.print()
        posture_lines(asdict(status.enforcement))
    out.print()
    noise_lines(status.noise)
    account_table(status.account, live=True)
    account_table(status.walk, title="The walk", live=True)
    account_table(status.control, title="The control socket", live=True)


def _rules_in_use(status: Status) -> str:
    from ksentinel.alert import when

    told = str(status.rules)
    if status.rules_loaded_ns:
        told += f", loaded {when(status.rules_loaded_ns)[:19].replace('T', ' ')} UTC"
    last = status.last_reload
    if last is not None and not last.ok:
        told += f"; the reload at {when(last.time_ns)[:19].replace('T', ' ')} UTC failed: {last.error}"
    elif last is not None:
        told += ", by a reload"
    return told


def account_table(account: Mapping[str, float], title: str = "Accounting", *, live: bool = False) -> None:
    """
    Print counters: first what must add up, then the others, at last those at zero in one line.

    Parameters
    ----------
    live
        They were read while all went on: what a sum lacks was on its way from one counter to the other.
    """
    out = console()
    out.print(Text(title, "bold"))
    width = max((len(_number(value)) for value in account.values()), default=0)
    shown: set[str] = set()
    for label, wholes, parts in _SUMS:
        if all(name in account for name in (*wholes, *parts)):
            shown.update(wholes, parts)
            if any(account[name] for name in (*wholes, *parts)):
                _hang(out, _sum(account, width, label, wholes, parts, live=live), width + 4)
    rest = {name: value for name, value in account.items() if name not in shown}
    for name, value in rest.items():
        if value:
            style = "bold red" if _is_loss(name) else ""
            out.print(Text(f"  {_number(value):>{width}}  {_words(name)}", style))
    zero = [_words(name) for name, value in rest.items() if not value]
    if zero:
        _hang(out, Text(f"  {0:>{width}}  {', '.join(zero)}", "dim"), width + 4)
    if not account:
        out.print(Text("  none was kept: recording was cut short", "bold red"))
    out.print()


def files_table(files: Sequence[Mapping[str, Any]]) -> None:
    """Print the account of each file, and where lines made no sense."""
    out = console()
    for told in files:
        numbers = ", ".join(
            f"{number:,} {_words(name)}"
            for name, number in told.items()
            if isinstance(number, int) and not isinstance(number, bool)
        )
        cut = "" if told.get("complete", True) else ", cut short (it has no account)"
        _hang(out, plain(f"{told['file']}: {numbers}{cut}"), 4)
        for bad in told.get("malformed_at", ()):
            _hang(out, plain(f"{bad['at']}: {bad['reason']}", 200, "red"), 4, first=2)
        hidden = told.get("malformed", 0) - len(told.get("malformed_at", ()))
        if hidden > 0:
            out.print(Text(f"  and {hidden:,} more malformed lines", "red"))


class Progress:
    """A progress bar on standard error; nothing if *quiet*, or if that is no terminal."""

    def __init__(self, *, quiet: bool = False) -> None:
        shown = Console(stderr=True)
        self._bar = RichProgress(console=shown, transient=True, disable=quiet or not shown.is_terminal)
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


def _hang(out: Console, text: Text, indent: int, first: int = 0) -> None:
    """Print *text* wrapped at words, its first line *first* cells in, the following ones *indent*."""
    indent = min(indent, out.width - 20)
    first = min(first, indent)
    text = Text(" " * first) + text
    if text.cell_len <= out.width:
        out.print(text, soft_wrap=True)
        return
    head, *rest = text.wrap(out, out.width)
    head.rstrip()
    out.print(head, soft_wrap=True)
    if rest:
        # What is left is narrower than the first line was: wrapped anew.
        left = text[len(head) :]
        begin = len(left.plain) - len(left.plain.lstrip())
        for line in left[begin:].wrap(out, out.width - indent):
            line.rstrip()
            out.print(Text(" " * indent) + line, soft_wrap=True)


def _sum(
    account: Mapping[str, float],
    width: int,
    label: str,
    wholes: Sequence[str],
    parts: Sequence[str],
    *,
    live: bool,
) -> Text:
    whole = sum(account[name] for name in wholes)
    total = sum(account[name] for name in parts)
    text = Text(f"  {_number(whole):>{width}}  {label} ")
    if len(wholes) > 1:
        text += Text("= ", "green") + _addends(account, wholes) + Text(" ")
    text += Text("= ", "green") if total == whole or live else Text(f"≠ {_number(total)} = ", "bold red")
    text += _addends(account, parts)
    if live and total != whole:
        text += Text(f" {'+' if total < whole else '-'} {_number(abs(whole - total))} on their way", "dim")
    return text


def _addends(account: Mapping[str, float], names: Sequence[str]) -> Text:
    common = {name.split("_")[0] for name in names}
    prefix = f"{common.pop()}_" if len(common) == 1 else ""
    told = [
        Text(
            f"{_number(account[name])} {_words(name.removeprefix(prefix))}",
            "bold red" if account[name] and _is_loss(name) else "",
        )
        for name in _worth_telling(account, names)
    ]
    return Text(" + ").join(told)


def _worth_telling(account: Mapping[str, float], names: Sequence[str]) -> Sequence[str]:
    """Return *names*; of many, those that are not zero."""
    if len(names) <= _MANY:
        return names
    return [name for name in names if account[name]] or names[:1]


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _span_of(seconds: float) -> str:
    """Return a time as its two largest units."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    left, told = int(seconds), []
    for size, unit in units:
        number, left = divmod(left, size)
        if number:
            told.append(f"{number} {unit}")
    return " ".join(told[:2]) or "0 s"


def _words(name: str) -> str:
    return printable(name.replace("_", " "), 40)


def _is_loss(name: str) -> bool:
    return any(word in name for word in _LOSSES)


def _who(process: Mapping[str, Any]) -> str:
    exe = process.get("exe") or "an unknown program"
    root = process.get("service")
    if root is None:
        return exe
    # It stands among the ancestors, or else has its executable with it.
    step: Mapping[str, Any] | None = process
    while step is not None and (step["pid"], step["start_ns"]) != (root["pid"], root["start_ns"]):
        step = step.get("parent")
    service = (root if step is None else step).get("exe")
    return exe if service in {None, "", exe} else f"{exe} under {service}"


def _clock(time_ns: int) -> str:
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
        lead = f"  {'  ' * (depth - 1)}└ " if depth else "  "
        _cut(out, Text(lead) + plain(f"{one['pid']} {_command(one)}", 1000))


def _cut(out: Console, text: Text) -> None:
    """Print one line, cut where the terminal ends."""
    out.print(text, no_wrap=True, overflow="ellipsis", crop=False)


def _command(process: Mapping[str, Any]) -> str:
    return " ".join(process.get("argv", ())) or process.get("exe") or "(unknown)"


def _rule(out: Console, evidence: Mapping[str, Any]) -> None:
    match = evidence["match"]
    rule = match["rule"]
    process = match["event"].get("process", {})
    out.print()
    count = "" if evidence["count"] == 1 else f", seen {evidence['count']} times"
    head = Text.assemble(
        ("Rule  ", "bold"), plain(rule["title"], style="bold"), plain(f" ({rule['level']}{count})")
    )
    _hang(out, head, 6)
    _cut(out, plain(f"  {rule['file']}", style="dim"))
    if process:
        _cut(out, plain(f"  on {process.get('pid')} {_command(process)}", 1000))
    for clause in match["clauses"]:
        _hang(out, _clause(clause), 6, first=4)
    if guard := evidence.get("enforcement"):
        _hang(out, _guard(guard), 6, first=2)
    parts = match.get("parts", ())
    if parts:
        out.print("  made of")
    for part in parts:
        who = part["process"]
        line = f"{_clock(part['time_ns'])}  {part['rule']['title']}: {who['pid']} {_command(who)}"
        _cut(out, plain(f"    {line}", 1000))
        decisive = [clause for clause in part["clauses"] if not clause["negated"]] or part["clauses"]
        for clause in decisive[:1]:
            _hang(out, _clause(clause), 10, first=8)


def _guard(guard: Mapping[str, Any]) -> Text:
    """Return what the rule's guard did: where, how, and by which scores."""
    told = f"guard: {str(guard['outcome']).replace('_', ' ')} at {guard['hook']}"
    told += f" in {guard['call']}" if guard["call"] else ""
    told += f" ({guard['action']}, {guard['mode']}" if guard["mode"] else f" ({guard['action']}"
    told += f"; {guard['sentence']}" if guard["sentence"] else ""
    told += "; score over its threshold" if guard["anomalous"] else ""
    told += "; not all of it could be told" if guard["untold"] else ""
    told += "; the process was ended" if guard["killed"] else ""
    told += f"), {guard['count']:,} time{'' if guard['count'] == 1 else 's'}"
    if score := guard.get("score"):
        told += f", scores then: mean {score['mean']}, CUSUM {score['cusum']}, process {score['process']}"
    return plain(told, style="bold green" if guard["outcome"] == "denied" else "yellow")


def _clause(clause: Mapping[str, Any]) -> Text:
    value = Text("-") if clause["value"] is None else _span(clause["value"], clause["span"])
    style = "dim" if clause["negated"] else ""
    selection = f"not {clause['selection']}" if clause["negated"] else clause["selection"]
    return plain(f"{selection}: {clause['field']} {clause['test']}  ← ", 300, style) + value


def _span(value: str, span: Sequence[int] | None) -> Text:
    if span is None:
        return plain(value, 160)
    start, end = span
    return (
        plain("…" if start > 60 else "")
        + plain(value[max(start - 60, 0) : start])
        + plain(value[start:end], 120, "bold reverse")
        + plain(value[end : end + 60])
        + plain("…" if len(value) > end + 60 else "")
    )


def _p_values(out: Console, anomalies: Sequence[Mapping[str, Any]]) -> None:
    first = anomalies[0]
    out.print()
    profile = " under ".join(printable(name) for name in first["profile"] if name) or "the whole host"
    kept = f"{len(anomalies)} window{'' if len(anomalies) == 1 else 's'} kept, this one explained:"
    about = plain(f"compared with {profile}; {kept}", style="dim")
    _hang(out, Text.assemble(("Model  ", "bold"), about), 7)
    out.print(plain(f"  {p_text(first['p_value'])} ({first['level']}), decided by {first['decided_by']}"))
    for member in first["members"]:
        out.print(plain(f"  {member['name']:10} score {member['score']:8.3f}   {p_text(member['p_value'])}"))


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
        # The whole n-gram was seen so often, of the times that its beginning was.
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
    about = f"on {lime['detector']}, R² {lime['r2']:.3f}, {lime['samples']} samples, seed {lime['seed']}"
    _hang(out, Text.assemble(("LIME  ", "bold"), plain(about, style="dim")), 6)
    largest = max((abs(w["weight"]) for w in lime["weights"]), default=0.0) or 1.0
    for one in lime["weights"]:
        bar = "█" * max(round(abs(one["weight"]) / largest * _BAR), 1)
        row = (
            plain(f"  {one['weight']:+.4f}  ")
            + Text(f"{bar:{_BAR}}")
            + plain("  " + " → ".join(one["ngram"]))
        )
        _hang(out, row, 13 + _BAR)
