# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 -- the signs for times and from-to are meant
"""
The figures of ``overhead.py`` for people: tables, a page, and a picture.

Every number in the page's prose is computed from the figures; what isn't in them, the page doesn't say.
"""

import html
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import counted
from figures import CHEAPEST_CALL, EMPTY, NOTHING

OURS = ("monitor", "record")
_QUIET = 0.05
"""Share of the CPUs that others may use on a machine that is called quiet."""
_COLOURS = {"ours": "#1a66cc", "base": "#8a8f98", "other": "#c77d0a"}

Result = dict[str, Any]


def write(result: Result, folder: Path) -> None:
    """Write ``overhead.json``, ``overhead.svg`` and ``overhead.md``; what ``guards.py`` has counted stays there."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        before = json.loads((folder / "overhead.json").read_text(encoding="utf-8"))
        if "guards" in before:
            result = {"guards": before["guards"]} | result
    (folder / "overhead.json").write_text(stored(result), encoding="utf-8")
    (folder / "overhead.svg").write_text(svg(result), encoding="utf-8")
    (folder / "overhead.md").write_text(markdown(result), encoding="utf-8")


def stored(result: Result) -> str:
    """Return *result* as JSON: what is long, one entry a line."""
    parts = []
    for name, value in result.items():
        if isinstance(value, list) and value:
            rows = ",\n  ".join(json.dumps(row) for row in value)
            parts.append(f'"{name}": [\n  {rows}\n ]')
        else:
            parts.append(f'"{name}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def entries(result: Result, workload: str) -> dict[str, dict[str, Any]]:
    """Return a workload's entries by side, in the order of the sides."""
    return {entry["side"]: entry for entry in result["results"] if entry["workload"] == workload}


def tables(result: Result) -> str:
    """Return *result* for a terminal."""
    lines = []
    for workload in measured(result):
        lines += [
            f"{workload['name']}: {workload['what']}",
            (
                f"  {'side':16} {'a ' + workload['unit']:>16} {'quartiles':>21} {'x nothing':>10} {'x empty':>9} "
                f"{'watcher CPU s/s':>16}"
            ),
        ]
        for side, entry in entries(result, workload["name"]).items():
            ns = entry["ns"]
            lines.append(
                f"  {side:16} {duration(ns['median']):>16} {duration(ns['q1']) + ' .. ' + duration(ns['q3']):>21} "
                f"{ratio(entry['ratio_to_nothing']):>10} {ratio(entry['ratio_to_empty_probe']):>9} "
                f"{cores(entry):>16}"
            )
        lines.append("")
    lines += [plain(line) for line in [*in_short(result), *reservations(result)]]
    return "\n".join(lines)


def measured(result: Result) -> list[dict[str, Any]]:
    """Return the workloads that have figures."""
    there = {entry["workload"] for entry in result["results"]}
    return [workload for workload in result["workloads"] if workload["name"] in there]


def in_short(result: Result) -> list[str]:
    """Return the main figures as sentences, the bad ones too."""
    return [
        *_a_call(result),
        *_whole_workloads(result),
        *_beaten(result),
        *_own_use(result),
        *_losses(result),
        *_floods(result),
    ]


def _a_call(result: Result) -> Iterable[str]:
    calls = entries(result, CHEAPEST_CALL)
    if NOTHING not in calls:
        return
    text = f"A system call that does next to nothing takes **{duration(calls[NOTHING]['ns']['median'])}**"
    if EMPTY in calls and calls[EMPTY]["added_ns"]:
        text += f"; with an empty probe attached **{_added(calls[EMPTY])}** more"
    yield text + "."
    for side in OURS:
        if side in calls and calls[side]["added_ns"]:
            times = calls[side]["ratio_of_added_to_empty_probe"]
            more = "" if times is None else f", {times:.2f} × what the empty probe adds"
            yield f"`ksentinel {side}` adds **{_added(calls[side])}**{more}."
    others = [side for side in calls if side not in {NOTHING, EMPTY, *OURS} and calls[side]["added_ns"]]
    if others:
        others.sort(key=lambda side: float(calls[side]["added_ns"]["median"]))
        yield "The others add " + ", ".join(f"{side} {_added(calls[side])}" for side in others) + "."


def _whole_workloads(result: Result) -> Iterable[str]:
    for side in OURS:
        found = [
            (entry["ratio_to_nothing"]["median"], workload["name"])
            for workload in measured(result)
            if workload["name"] != CHEAPEST_CALL
            and (entry := entries(result, workload["name"]).get(side))
            and entry["ratio_to_nothing"]
        ]
        if found:
            told = ", ".join(f"{name} {times:.2f}" for times, name in sorted(found))
            yield f"Under `ksentinel {side}` workloads take, times what they take with nobody watching: {told}."


def _beaten(result: Result) -> Iterable[str]:
    """Say where somebody else is cheaper than ksentinel monitor."""
    watching = {side["name"] for side in result["sides"] if side["scope"] != "-"} - {EMPTY, *OURS}
    better: dict[str, list[str]] = {}
    for workload in measured(result):
        found = entries(result, workload["name"])
        ours = found.get("monitor")
        if ours is None:
            continue
        for side, entry in found.items():
            if side in watching and entry["ns"]["median"] < ours["ns"]["median"]:
                better.setdefault(side, []).append(workload["name"])
    for side, where in better.items():
        yield f"{side} is cheaper than `ksentinel monitor` in: {', '.join(where)}."


def _explaining(observer: Result) -> str:
    plain = observer.get("peak_rss_before_explaining_mebibytes")
    if not observer.get("explained") or plain is None:
        return ""
    return (
        f" ({number(plain)} MiB before it had its first alert to explain, which takes LIME and scikit-learn)"
    )


def _own_use(result: Result) -> Iterable[str]:
    observer = result["observer"]
    if observer:
        yield (
            f"On a host that makes {number(observer['host_calls_per_second'])} system calls a second, "
            f"`ksentinel monitor` itself uses **{observer['cpu_share_of_a_core']:.1%} of a core** and at most "
            f"{number(observer['peak_rss_mebibytes'])} MiB{_explaining(observer)}; it watches "
            f"{observer['seconds_until_watching']:.1f} s after its start."
        )
    for side in OURS:
        behind = [
            f"{workload['name']} ({entry['watcher_cores']:.1f} s)"
            for workload in measured(result)
            if (entry := entries(result, workload["name"]).get(side)) and (entry["watcher_cores"] or 0) > 1
        ]
        if behind:
            yield (
                f"`ksentinel {side}` **can't keep up** where it needs more than a second of CPU for each second of a "
                f"workload: {', '.join(behind)}."
            )


def _losses(result: Result) -> Iterable[str]:
    for side in result["sides"]:
        told = [one for one in side["told"] if one["round"]]
        shares: dict[str, float] = {}
        for one in told:
            for name, share in one.get("dropped_share", {}).items():
                shares[name] = max(share, shares.get(name, 0.0))
        if shares:
            limited = max(one.get("limited_share", 0.0) for one in told)
            beyond = f" ({limited:.3%} because one process sent more than its share)" if limited else ""
            text = ", ".join(
                f"{name} {share:.3%}{beyond if name == 'calls' else ''}" for name, share in shares.items()
            )
            exact = all(one["exact"] for one in told)
            yield (
                f"Dropped under `ksentinel {side['name']}` in its worst round: {text}; its sums are "
                f"{'exact in every round' if exact else '**not exact**'}."
            )
        lost = [one["lost"] / (one["seen"] + one["lost"]) for one in told if one.get("lost")]
        if lost:
            yield f"{side['name']} lost up to {max(lost):.3%} of what it was to see."


def _floods(result: Result) -> Iterable[str]:
    for side, found in (result["flood"] or {}).items():
        shares = [f"{kind} {share:.3%}" for kind, share in found["dropped_share"].items()]
        yield (
            f"Under {number(found['made_per_second'])} calls a second for {found['seconds']:g} s the accounting of "
            f"`ksentinel {side}` is **{'exact' if found['exact'] else 'not exact'}**; dropped: {', '.join(shares)}."
        )


def reservations(result: Result) -> list[str]:
    """Return what speaks against these very figures: what is absent, failed, left out or disturbed."""
    told = []
    others = background(result)
    if others > _QUIET:
        told.append(
            f"The machine was not quiet: between turns others used {others:.0%} of its CPUs (mean of "
            f"{len(result['background'])} looks). Their work is in the figures, and all sides slow them down, too."
        )
    for kind in ("sides", "workloads"):
        told += [f"Absent: {one['name']}: {one['absent']}" for one in result[kind] if one["absent"]]
    if result["left_out"]:
        told.append(f"Left out of this run: {', '.join(result['left_out'])}.")
    told += [f"Failed: {one['what']}, round {one['round']}: {one['reason']}" for one in result["failures"]]
    told += [f"Somebody else watched system calls, too: {one}." for one in result["others"]]
    unsettled = sum(entry["unsettled"] for entry in result["results"])
    if unsettled:
        told.append(
            f"After {unsettled} runs a side hadn't caught up in time: its work is in the next figures."
        )
    return told


def background(result: Result) -> float:
    """Return which share of the CPUs others used, on the average: they come and go."""
    return statistics.fmean(result["background"]) if result["background"] else 0.0


def disturbed(result: Result) -> bool:
    """Tell whether the figures can't be relied on: somebody else worked, or watched, meanwhile."""
    return background(result) > _QUIET or bool(result["others"])


def markdown(result: Result) -> str:
    """Return the page."""
    environment, settings = result["environment"], result["settings"]
    told = "\n".join(f"- {line}" for line in in_short(result))
    doubts = "\n".join(f"- {line}" for line in reservations(result)) or "- None that the run knows of."
    parts = [
        "# What watching costs",
        (
            f"Made by `bench/overhead.py --docs docs` from [overhead.json](overhead.json); measured "
            f"{environment['measured']} with ksentinel {environment['ksentinel']}"
            f"{' (' + environment['commit'] + ')' if environment['commit'] else ''}. Times depend on the machine: the "
            "ratios are the result."
        ),
        "**This run was disturbed; don't rely on its figures. See the reservations below.**"
        if disturbed(result)
        else "",
        told,
        "![time of each workload relative to nobody watching](overhead.svg)",
        "## Reservations about this run",
        doubts,
        "## One system call",
        _calls_table(result),
        "## Workloads",
        (
            "Time, times that with nobody watching (quartiles in brackets). In italics: one is between the quartiles, "
            "so it is within the noise."
        ),
        _ratio_table(result),
        _workload_list(result),
        _server_section(result),
        "## What the watchers themselves use",
        (
            "Seconds of CPU that the watching processes use for each second of a workload, counted until they have "
            "caught up, what they do for the rest of the host included: with more than one, somebody falls behind for as "
            "long as it lasts. What a side does inside of "
            "the system calls of others (all that bpftrace does here, and strace's stops) is in the times above instead."
        ),
        _cpu_table(result),
        _sides_table(result),
        _flood_section(result),
        _guards_section(result),
        "## How it is measured",
        _method(settings),
        "## Repeat it",
        "    make setup\n    sudo .venv/bin/python bench/overhead.py --docs docs",
        (
            "`--quick` takes less than five minutes, `--sides`, `--workloads` and `--runs` choose, `--json` prints everything, "
            "`--from docs/overhead.json` makes the page again without measuring. It needs root and clang; what else it "
            "compares with (bpftrace, auditd, redis, lighttpd, ab) is used if installed, otherwise fetched by "
            "`apt-get download` and unpacked under `build/`; strace and perf likewise. What can't be had is reported "
            "as absent, with the reason. `bench/flood.py` is the flood alone."
        ),
        (
            "While it runs, *every* process of the host is watched by each side in turn, so all of them are slowed down, "
            "most by auditd, whose queue holds up everybody. Use a machine that may be slow. Audit rules and settings "
            "are put back as they were, whatever ends the run; if somebody uses audit here, its sides are left out."
        ),
        "## What these numbers don't show",
        _LIMITS,
        "## The machine",
        _machine(environment),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_LIMITS = """\
- Other machines: more cores, where watchers don't compete with what they watch; bare metal; other kernels and CPUs. In a
  virtual machine the clock and the scheduler have their own noise.
- Work of one user's real programs. A program that computes makes few system calls and loses less than any of these.
- Long times. Runs are short, and a burst that fits the ring buffer is dealt with afterwards; that is counted as the
  watcher's CPU, and the flood is the only longer load here.
- Latency. Means are compared; a request's slowest hundredth isn't.
- That all sides do the same: they don't. strace and perf trace print arguments and results of each call, auditd writes
  who did it, bpftrace-count knows nothing but a number, the empty probe not even that. strace watches
  the workload alone, the others the whole host. auditd's own filters, which anybody in need of speed would use, are
  left open on purpose: all system calls, as ksentinel sees them.
- Detection. Cheap and blind would win here."""


_GUARDS = """\
What it costs that guards decide: whole operations, counted in instructions, the kernel's and the program's, in the virtual machine of
`tests/vm` (one processor, whose clock counts instructions: the same work comes to the same number). In each cell: times what the
operation takes with an empty LSM program at each of the hooks it comes by, and the instructions added to that; everything but
the first two rows beside the collector, to whose empty row those ratios are. The file lies three directories deep in
a file system of its own, so all its directories and mount points are looked at. Unless a side is *spoken*, none of its ways applies.
Instructions aren't time: they count a miss in the cache as little as a hit. Repeat it by `sudo .venv/bin/python bench/guards.py --kernel 6.1
--docs docs`."""


def _method(settings: dict[str, Any]) -> str:
    return f"""\
- All sides take turns in one run: each is attached, does every workload, and is detached; then all again, beginning with
  another one. {settings["runs"]} rounds, the first dropped. Ratios are those of two sides in the same
  round; median and quartiles of these are shown.
- In the dropped round each side finds out how many operations take about {settings["seconds"]:g} s, so a slow side does
  fewer. What is told is the time of one operation, measured inside: starting the workload or the
  side isn't in it.
- A side has to be active before anything is timed (ksentinel says *watching* and holds its program; bpftrace says that
  its probes are attached; perf trace writes; auditd's rule is in the kernel's list), and what it has counted at its end
  has to be at least what was done before its eyes. If not, none of its runs in that round counts.
- Before each run that counts there is a short one, an eighth as long, that doesn't: a server's start, cold caches,
  and a monitor's first alert, for which it loads LIME, are not in the figures.
- After each run the watching processes are given time to catch up.
- The model of `ksentinel monitor` is trained beforehand, on a recording of the same workloads.
- Once audit has been enabled, every process born later carries an audit context until the next boot, and each of its system
  calls takes the slow way, even with audit disabled and no rule loaded. So that `nothing` is nothing, the rule
  `task,never` is loaded while the other sides are measured; *auditd-no-rules* shows what it would cost.
- Servers are started anew before each side, and talk to their clients over the loopback."""


def _calls_table(result: Result) -> str:
    rows = [
        (
            _name(side),
            f"{duration(entry['ns']['median'])} ({_range(entry['ns'], duration)})",
            _added(entry) if side != NOTHING else "",
            _times(entry["ratio_of_added_to_empty_probe"]) if side != NOTHING else "",
            ratio(entry["ratio_to_empty_probe"]),
        )
        for side, entry in entries(result, CHEAPEST_CALL).items()
    ]
    if not rows:
        return "Not measured in this run."
    return "`getppid()` in a loop; quartiles in brackets.\n\n" + table(
        ("side", "a call", "added", "× what the empty probe adds", "time, × empty probe's"), rows
    )


def _ratio_table(result: Result) -> str:
    loads = measured(result)
    rows = []
    for side in _sides(result):
        cells = []
        for load in loads:
            entry = entries(result, load["name"]).get(side)
            found = entry and entry["ratio_to_nothing"]
            if not found:
                cells.append("–")
                continue
            text = f"{_times(found['median'])} ({_range(found, _times)})"
            noise = side != NOTHING and found["q1"] <= 1 <= found["q3"]
            cells.append(f"*{text}*" if noise else text)
        rows.append((_name(side), *cells))
    return table(("side", *(load["name"] for load in loads)), rows)


def _workload_list(result: Result) -> str:
    lines = []
    for load in measured(result):
        entry = entries(result, load["name"]).get(NOTHING)
        took = (
            ""
            if entry is None
            else f": {duration(entry['ns']['median'])} a {load['unit']} with nobody watching"
        )
        lines.append(f"- *{load['name']}*: {load['what']}{took}")
    return "\n".join(lines)


def _server_section(result: Result) -> str:
    loads = [
        load
        for load in measured(result)
        if any("throughput_to_nothing" in entry for entry in entries(result, load["name"]).values())
    ]
    if not loads:
        return ""
    rows = []
    for side in _sides(result):
        cells = []
        for load in loads:
            entry = entries(result, load["name"]).get(side)
            share = entry and entry.get("throughput_to_nothing")
            cells.append(
                "–"
                if not share
                else f"{number(entry['per_second'])} ({share['median']:.1%})"
                if entry
                else "–"
            )
        rows.append((_name(side), *cells))
    return "\n\n".join(
        [
            "## Servers",
            "Requests a second, and the share of what is served with nobody watching.",
            table(("side", *(load["name"] for load in loads)), rows),
        ]
    )


def _cpu_table(result: Result) -> str:
    loads = measured(result)
    rows = []
    for side in _sides(result):
        found = [entries(result, load["name"]).get(side) for load in loads]
        if any(entry and entry["watcher_cores"] is not None for entry in found):
            rows.append((_name(side), *(cores(entry) if entry else "–" for entry in found)))
    return table(("side", *(load["name"] for load in loads)), rows) if rows else ""


def _sides_table(result: Result) -> str:
    rows = []
    for side in result["sides"]:
        attaching = side["attach_seconds"]
        rows.append(
            (
                _name(side["name"]),
                side["what"].replace("|", "\\|"),
                side["scope"],
                "absent" if side["absent"] else f"{attaching['median']:.2f} s" if attaching else "–",
            )
        )
    return table(("side", "what", "watches", "active after"), rows)


def _flood_section(result: Result) -> str:
    parts = []
    for side, found in (result["flood"] or {}).items():
        rows = [
            (
                one["equation"],
                f"{one['whole']:,} = {' + '.join(f'{part:,}' for part in one['parts'])}",
                "exact" if one["exact"] else "**not exact**",
            )
            for one in found["equations"]
        ]
        parts += [
            (
                f"`ksentinel {side}`: {found['made']:,} calls made in {found['seconds']:g} s by {found['threads']} threads, "
                f"{found['seen']:,} seen on the host; the kernel skipped {number(found['missed_runs'] or 0)} runs."
            ),
            table(("sum", "numbers", ""), rows),
        ]
    return "\n\n".join(["## Under a flood", *parts]) if parts else ""


def _guards_section(result: Result) -> str:
    """Return what guards cost; nothing where it hasn't been counted."""
    parts = []
    for release, found in result.get("guards", {}).items():
        counts = found["counts"]
        head = [counted.OPERATIONS[one] for one in counts[counted.EMPTY]]
        empty = ", ".join(
            f"{counted.OPERATIONS[one]} {count:,}" for one, count in counts[counted.EMPTY].items()
        )
        targets = [
            (target.side, target.of, f"{target.most:g}", *row) for target, row in counted.judged(counts)
        ]
        parts += [
            f"Under Linux {release}, counted {found['measured']}; instructions beside empty programs: {empty}.",
            table(("side", *head), ((side, *row) for side, row in counted.cells(counts))),
            table(("side", "times", "at most", *head), targets),
        ]
    return "\n\n".join(["## Guards", _GUARDS, *parts]) if parts else ""


def _machine(environment: dict[str, Any]) -> str:
    words = {
        "kernel": "Linux " + environment["kernel"] + ", " + environment["machine"],
        "CPUs": f"{environment['cpus']} × {environment['cpu']}"
        + (", in a virtual machine" if environment["virtual"] else ""),
        "memory": f"{environment['memory_gib']} GiB",
        "BPF": f"net.core.bpf_jit_enable = {environment['bpf_jit']}",
        "load average": f"{environment['load_before']:.2f} before, {environment['load_after']:.2f} after",
        "audit": environment["audit"],
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"Python": environment["python"], **environment["tools"]}.items()
        ),
    }
    return table(("", ""), [(name, text.replace("|", "\\|")) for name, text in words.items()])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    Return a table of Markdown.

    Examples
    --------
    >>> print(table(("side", "ns"), [("nothing", "132")]))
    | side | ns |
    |---|---|
    | nothing | 132 |
    """
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float) -> str:
    """
    Return three digits of *value*, or all before the point.

    Examples
    --------
    >>> number(0.01234), number(1.5), number(1234567.8)
    ('0.0123', '1.50', '1,234,568')
    """
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def duration(ns: float) -> str:
    """
    Return nanoseconds in the unit that fits.

    Examples
    --------
    >>> duration(132.4), duration(36_000), duration(24_865_462)
    ('132 ns', '36.0 µs', '24.9 ms')
    """
    for unit, size in (("ns", 1.0), ("µs", 1e3), ("ms", 1e6)):
        if abs(ns) < 1000 * size:
            return f"{number(ns / size)} {unit}"
    return f"{number(ns / 1e9)} s"


def ratio(found: dict[str, float] | None) -> str:
    """Return a ratio's median; a dash if there is none."""
    return "–" if found is None else _times(found["median"])


def cores(entry: dict[str, Any]) -> str:
    """Return the watchers' seconds of CPU in each second of a workload."""
    return "–" if entry["watcher_cores"] is None else f"{entry['watcher_cores']:.2f}"


def plain(line: str) -> str:
    """Return a line without Markdown."""
    return line.replace("**", "").replace("`", "")


def svg(result: Result) -> str:
    """Return a picture: a panel for each workload, a bar for each side, from 1 (nobody watches) on a logarithmic axis."""
    width, left, right, row, head, foot = 460, 118, 62, 17, 34, 24
    loads = measured(result)
    sides = [side for side in _sides(result) if side != NOTHING]
    height = head + row * len(sides) + foot
    columns = 2
    total = height * math.ceil(len(loads) / columns) + 30
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * columns} {total}" font-family="sans-serif" '
            'font-size="11" role="img">'
        ),
        "<title>Time of each workload relative to nobody watching</title>",
        f'<rect width="{width * columns}" height="{total}" fill="#ffffff"/>',
    ]
    for index, load in enumerate(loads):
        x, y = width * (index % columns), height * (index // columns)
        found = entries(result, load["name"])
        there = {side: found[side]["ratio_to_nothing"] for side in sides if side in found}
        there = {side: spread for side, spread in there.items() if spread}
        low = min([0.9, *(spread["q1"] for spread in there.values())])
        high = max([2.0, *(spread["q3"] for spread in there.values())])
        span = math.log(high / low)
        room = width - left - right

        def at(value: float, x: float = x, low: float = low, span: float = span, room: float = room) -> float:
            return x + left + room * math.log(value / low) / span

        bottom = y + head + row * len(sides)
        out.append(
            f'<text x="{x + left}" y="{y + 20}" font-weight="bold" fill="#222">{html.escape(load["name"])}'
            f'<tspan font-weight="normal" fill="#555"> · {html.escape(_short(load["what"]))}</tspan></text>'
        )
        for tick in ticks(low, high):
            colour = "#666" if tick == 1 else "#ddd"
            out += [
                f'<line x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{y + head - 4}" y2="{bottom}" stroke="{colour}"/>',
                f'<text x="{at(tick):.1f}" y="{bottom + 13}" text-anchor="middle" fill="#555">{tick:g}</text>',
            ]
        for place, side in enumerate(sides):
            middle = y + head + row * place + row / 2
            colour = _COLOURS["ours" if side in OURS else "base" if side == EMPTY else "other"]
            out.append(
                f'<text x="{x + left - 6}" y="{middle + 4:.1f}" text-anchor="end" fill="#222">{html.escape(side)}</text>'
            )
            if side not in there:
                out.append(f'<text x="{at(1) + 4:.1f}" y="{middle + 4:.1f}" fill="#999">not measured</text>')
                continue
            spread = there[side]
            begin, end = sorted((at(1), at(spread["median"])))
            out += [
                (
                    f'<rect x="{begin:.1f}" y="{middle - 5:.1f}" width="{max(end - begin, 0.5):.1f}" height="10" '
                    f'fill="{colour}"/>'
                ),
                (
                    f'<line x1="{at(spread["q1"]):.1f}" x2="{at(spread["q3"]):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
                    'stroke="#222" stroke-width="1.5"/>'
                ),
                (
                    f'<text x="{max(at(1), at(spread["q3"])) + 5:.1f}" y="{middle + 4:.1f}" fill="#222">'
                    f"{_times(spread['median'])}</text>"
                ),
            ]
    out += [
        (
            f'<text x="8" y="{total - 10}" fill="#555">time, × nobody watching, logarithmic; lines: quartiles; blue: ksentinel, '
            "grey: empty probe, orange: others</text>"
        ),
        "</svg>",
    ]
    return "\n".join(out) + "\n"


def ticks(low: float, high: float) -> list[float]:
    """
    Return round numbers between *low* and *high*, few enough to stand beside each other.

    Examples
    --------
    >>> ticks(0.9, 4), ticks(0.9, 300)
    ([1.0, 2.0], [1.0, 10.0, 100.0])
    """
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 3 else (1, 2, 5) if high / low < 60 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        float(step * 10.0**power)
        for power in exponents
        for step in steps
        if low <= step * 10.0**power <= high
    ]


def _short(text: str) -> str:
    return text if len(text) <= 52 else text[:51].rsplit(" ", 1)[0].rstrip(",") + " …"


def _sides(result: Result) -> list[str]:
    there = {entry["side"] for entry in result["results"]}
    return [side["name"] for side in result["sides"] if side["name"] in there]


def _name(side: str) -> str:
    return f"**ksentinel {side}**" if side in OURS else side


def _added(entry: dict[str, Any]) -> str:
    added = entry["added_ns"]
    return "–" if not added else duration(added["median"]) if added["q1"] > 0 else "nothing measurable"


def _times(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else number(value) if value < 100 else f"{value:,.0f}"


def _range(found: dict[str, float], show: Any) -> str:
    return f"{show(found['q1'])}–{show(found['q3'])}"
