# SPDX-License-Identifier: Apache-2.0
"""
The demonstration: a web server is watched while it is used, then attacked; ksentinel says what happened and why.

Drives the command line as a user would. ``--live`` (needs root, or sudo) or ``--replay`` (no root: recordings and an
audit log that ship with the repository).
"""

import argparse
import contextlib
import json
import lzma
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attacks import Listener, code_injection, command_injection, decoy
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from webserver import Visitors, WebServer, fetch

from ksentinel.printable import printable

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
KSENTINEL = [str(Path(sys.executable).parent / "ksentinel")]
RECORD_SECONDS, CALM_SECONDS = 60, 30
LEVELS = ("none", "informational", "low", "medium", "high", "critical")

out = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass
class Attack:
    """One attack: when it ran, and the alerts that fell into that time."""

    label: str
    what: str
    started: float = 0.0
    ended: float = 0.0
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def covers(self, alert: dict[str, Any]) -> bool:
        """Tell whether *alert* was opened while the attack ran."""
        return self.started <= alert["opened_ns"] / 1e9 <= self.ended + 1.0

    @property
    def best(self) -> dict[str, Any] | None:
        """The worst of its alerts, in the newest form."""
        newest = {alert["id"]: alert for alert in self.alerts}
        return max(newest.values(), key=lambda a: (LEVELS.index(a["level"]), a["updated_ns"]), default=None)


class DemoError(Exception):
    """The demonstration did not show what it promises."""


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--live", action="store_true")
    mode.add_argument("--replay", action="store_true")
    parser.add_argument(
        "--keep-recordings", type=Path, metavar="DIR", help="record what --replay ships, into DIR"
    )
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    begun = time.monotonic()
    try:
        if arguments.live:
            live(arguments.keep_recordings)
        else:
            replayed()
    except KeyboardInterrupt:
        out.print("\ninterrupted: everything that was started has been stopped")
        return 130
    except DemoError as failed:
        out.print(Text(f"\nThe demonstration failed: {failed}", "bold red"))
        return 1
    except subprocess.CalledProcessError as failed:
        out.print(
            Text(f"\nA step failed (exit {failed.returncode}): {' '.join(map(str, failed.cmd))}", "bold red")
        )
        return 1
    out.print(f"took {time.monotonic() - begun:.0f} s", style="dim")
    return 0


def live(keep: Path | None) -> None:
    """Record, train, monitor, attack: on this machine."""
    check = subprocess.run(
        [*as_root(), *KSENTINEL, "doctor", "--for", "monitor"], check=False, capture_output=True
    )
    if check.returncode:
        out.print(check.stdout.decode(errors="replace"))
        raise DemoError(
            "live monitoring doesn't work on this machine (the table above says why); try `make demo-replay`"
        )
    work = fresh(BUILD / "demo")
    site = shutil.copytree(HERE / "site", work / "site")
    secret = decoy(work)
    step("Fetching lighttpd (unpacked under build/, not installed)")
    root = fetch(BUILD)
    attacks = [
        Attack("a", "command injection: a shell reads a secret and connects out"),
        Attack("b", "code injection: the service's own process does the same, nothing is executed"),
    ]
    with WebServer(root, site, work) as server, Listener() as listener:
        scope = ["--pid", str(server.pid)] if keep else []
        step(
            f"Recording {RECORD_SECONDS} s of ordinary use of http://127.0.0.1:{server.port}/ (and of this whole machine)"
        )
        with Visitors(server) as visitors:
            run("record", "--out", work / "normal.db", "--for", f"{RECORD_SECONDS}s", *scope, quiet=True)
        out.print(f"{visitors.requests} requests", style="dim")
        step("Training: what is normal here?")
        run("train", work / "normal.db", "--out", work / "model")

        step(f"Monitoring live: {CALM_SECONDS} s of ordinary use, then two attacks")
        if keep:
            watching = [*as_root(), *KSENTINEL, "record", "--out", work / "attacked.db", *scope]
        else:
            options = [
                "--model",
                work / "model",
                "--store",
                work / "alerts.db",
                "--scores",
                work / "scores.jsonl",
            ]
            watching = [*as_root(), *KSENTINEL, "monitor", "--json", "--no-control", *options]
        with monitoring(watching, work), Visitors(server, seed=100):
            time.sleep(CALM_SECONDS if not keep else 10)
            calm_until = time.time()
            for attack, act in zip(attacks, (command_injection, code_injection), strict=True):
                out.print(f"  attack ({attack.label}): {attack.what}")
                attack.started = time.time()
                act(server, secret, listener)
                attack.ended = time.time()
                time.sleep(4)
        if len(listener.received) != len(attacks):
            raise DemoError(
                f"{len(listener.received)} of {len(attacks)} secrets arrived: the attacks didn't work"
            )
    if keep:
        keep_recordings(keep, work, calm_until, attacks)
        return
    *alerts, account = lines(work / "monitor.jsonl")
    show(work, alerts, account, attacks, calm_until, lines(work / "scores.jsonl"), store=work / "alerts.db")


def replayed() -> None:
    """Train on a shipped recording, replay another one: the same walk, without root."""
    work = fresh(BUILD / "demo-replay")
    for name in ("normal", "attacked"):
        packed = (HERE / "recordings" / f"{name}.db.xz").read_bytes()
        (work / f"{name}.db").write_bytes(lzma.decompress(packed))
    facts = json.loads((HERE / "recordings" / "attacks.json").read_text())
    step("Training on a recording that ships with the repository")
    run("train", work / "normal.db", "--out", work / "model", root=False)
    step("Replaying a recording of ordinary use and two attacks")
    options = ["--model", work / "model", "--store", work / "alerts.db", "--scores", work / "scores.jsonl"]
    with (work / "monitor.jsonl").open("wb") as told:
        run("replay", work / "attacked.db", *options, "--json", root=False, to=told)
    *alerts, account = lines(work / "monitor.jsonl")
    attacks = [Attack(**attack) for attack in facts["attacks"]]
    show(
        work,
        alerts,
        account,
        attacks,
        facts["calm_until"],
        lines(work / "scores.jsonl"),
        store=work / "alerts.db",
    )


def show(
    work: Path,
    alerts: list[dict[str, Any]],
    account: dict[str, Any],
    attacks: list[Attack],
    calm_until: float,
    scores: list[dict[str, Any]],
    store: Path,
) -> None:
    """The last screen; fails if ksentinel didn't do what the demonstration promises."""
    for attack in attacks:
        attack.alerts = [alert for alert in alerts if attack.covers(alert)]
    step("Replaying an audit log in which somebody made himself persistent: attack (c)")
    persistence = Attack("c", "persistence, seen by audit alone")
    with (work / "persistence.jsonl").open("wb") as told:
        run(
            "replay",
            HERE / "persistence.log",
            "--store",
            store,
            "--json",
            to=told,
        )
    *persistence.alerts, audit = lines(work / "persistence.jsonl")

    out.rule("What happened, and what ksentinel said")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("attack", "at", "what was done", "level", "alert", "rules that fired"):
        table.add_column(heading, overflow="fold")
    for attack in [*attacks, persistence]:
        best = attack.best
        at = time.strftime("%H:%M:%S", time.localtime(attack.started)) if attack.started else "(log)"
        if best is None:
            table.add_row(attack.label, at, attack.what, Text("missed", "bold red"), "", "")
            continue
        rules = dict.fromkeys(e["match"]["rule"]["title"] for e in best["evidence"] if "match" in e)
        witnesses = [*rules, *(["the model"] if any("anomaly" in e for e in best["evidence"]) else [])]
        table.add_row(
            attack.label,
            at,
            attack.what,
            Text(best["level"], "bold red"),
            alert_ids(attack),
            "; ".join(witnesses),
        )
    out.print(table)

    calm = [alert for alert in alerts if alert["updated_ns"] / 1e9 < calm_until]
    loud = [alert for alert in calm if LEVELS.index(alert["level"]) >= LEVELS.index("high")]
    by_level = ", ".join(
        f"{sum(a['level'] == level for a in calm)} {level}"
        for level in LEVELS
        if level in {a["level"] for a in calm}
    )
    out.print(f"Alerts before the attacks: {by_level or 'none'}; of level high or above: {len(loud)}")
    p_values(scores, attacks, calm_until)
    for attack in attacks:
        if attack.best is not None:
            why(attack)
    counters(account, audit)
    prefix = "sudo " if as_root() else ""
    ksentinel = os.path.relpath(KSENTINEL[0])
    out.rule("Try next")
    for attack in attacks[:1]:
        if attack.best:
            out.print(f"  {prefix}{ksentinel} explain {attack.best['id']} --store {os.path.relpath(store)}")
    out.print(f"  {prefix}{ksentinel} alerts --store {os.path.relpath(store)}")
    if "--live" in sys.argv:  # a model of the recording's host says nothing of this one
        out.print(f"  {prefix}{ksentinel} monitor --model {os.path.relpath(work / 'model')}")
    else:
        out.print(f"  {ksentinel} train --help")

    missed = [attack.label for attack in [*attacks, persistence] if attack.best is None]
    if missed:
        raise DemoError(f"no alert for attack {', '.join(missed)}")
    if loud:
        raise DemoError(f"{len(loud)} alert(s) of level high before the attacks")
    quiet = [
        a.label
        for a in [*attacks, persistence]
        if a.best and LEVELS.index(a.best["level"]) < LEVELS.index("high")
    ]
    if quiet:
        raise DemoError(f"the alert for attack {', '.join(quiet)} is below level high")


def alert_ids(attack: Attack) -> str:
    """Return the worst alert's id, and how many more there are."""
    more = len({alert["id"] for alert in attack.alerts}) - 1
    return f"{attack.best['id']}{f' and {more} more' if more else ''}" if attack.best else ""


def p_values(scores: list[dict[str, Any]], attacks: list[Attack], calm_until: float) -> None:
    """How unusual were the web server's windows, calm and attacked?"""
    served = [s for s in scores if s["service"].endswith("/lighttpd")]
    groups = {"ordinary use": [s["p_value"] for s in served if s["time_ns"] / 1e9 < calm_until]}
    for attack in attacks:
        groups[f"during attack ({attack.label})"] = [
            s["p_value"] for s in served if attack.started <= s["time_ns"] / 1e9 <= attack.ended + 0.5
        ]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="p-values of the web server's windows",
        title_justify="left",
    )
    for heading in ("", "windows", "median p", "smallest p", "p ≤ 0.001"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in groups.items():
        if values:
            table.add_row(
                name, str(len(values)), f"{statistics.median(values):.2g}", "< 1e-06" if min(values) < 1e-6 else f"{min(values):.2g}",
                str(sum(p <= 1e-3 for p in values)),
            )  # fmt: skip
    out.print(table)


def why(attack: Attack) -> None:
    """The explanation of one attack: paragraph, clause, n-grams."""
    alert = attack.best
    assert alert is not None
    out.rule(f"Why: attack ({attack.label}), alert {alert['id']}, {alert['level']}")
    out.print(Text(alert["explanation"]["paragraph"]))
    for evidence in alert["evidence"]:
        if "match" in evidence:
            for clause in evidence["match"]["clauses"]:
                if not clause["negated"]:
                    value = printable(str(clause["value"]), 160)
                    out.print(
                        Text(f"  rule clause   {clause['field']} {clause['test'][:50]}: {value}", "yellow")
                    )
            break
    for ngram in alert["explanation"].get("ngrams", [])[:3]:
        out.print(Text(f"  n-gram        {ngram['bits']:.2f} bits  {' → '.join(ngram['ngram'])}", "cyan"))
    lime = alert["explanation"].get("lime")
    if lime and lime["weights"]:
        top = lime["weights"][0]
        out.print(
            Text(
                f"  LIME          {top['weight']:+.3f}  {' → '.join(top['ngram'])}  (on {lime['detector']}, R² {lime['r2']:.3f})",
                "magenta",
            )
        )


def counters(account: dict[str, Any], audit: dict[str, Any]) -> None:
    """What was seen, and what was lost."""
    out.rule("Accounting")
    seen, walk = account["account"], account["walk"]
    if "scored" in seen:
        out.print(
            f"{seen['seen']:,.0f} system calls seen = {seen['scored']:,.0f} scored in the kernel + "
            f"{seen['unscored']:,.0f} unscored + {seen['own']:,.0f} own + {seen['excluded']:,.0f} excluded + "
            f"{seen['no_storage']:,.0f} no storage + {seen['contended']:,.0f} contended"
        )
        reached = seen["windows_ungated"] + seen["windows_flagged"] + seen["windows_sampled"]
        out.print(
            f"{reached + seen['windows_gated']:,.0f} windows closed = {seen['windows_gated']:,.0f} stayed in the kernel + "
            f"{seen['windows_flagged']:,.0f} flagged + {seen['windows_sampled']:,.0f} sampled + "
            f"{seen['windows_ungated']:,.0f} not gated; dropped records: "
            f"{seen['windows_dropped'] + seen['calls_dropped'] + seen['lifecycle_dropped']:,.0f}; "
            f"missed runs: {seen.get('missed_runs', 0):,.0f}"
        )
    out.print(
        f"{walk['windows']:,} windows = {walk['windows_scored']:,} scored + {walk['windows_unscored']:,} unscored; "
        f"{walk['events']:,} events; {walk['matches']:,} rule matches; {walk['alerts']:,} alerts"
    )
    out.print(
        f"audit log: {audit['lines']} lines = {audit['lines_in_events']} in events + {audit['malformed']} malformed "
        f"+ {audit['pending']} pending"
    )


@contextlib.contextmanager
def monitoring(command: list[Any], work: Path) -> Iterator[None]:
    """Run ksentinel in the background; it is stopped, by its pid, when the block ends."""
    ready = b"watching", b"recording to"
    with (work / "monitor.jsonl").open("wb") as told, (work / "monitor.err").open("w+b") as said:
        process = subprocess.Popen([str(c) for c in command], stdout=told, stderr=said)
        try:
            for _ in range(150):
                if (
                    any(word in (work / "monitor.err").read_bytes() for word in ready)
                    or process.poll() is not None
                ):
                    break
                time.sleep(0.1)
            if process.poll() is not None:
                raise DemoError(f"monitoring ended: {(work / 'monitor.err').read_text(errors='replace')}")
            yield
        finally:
            stop(process)
    if process.returncode:
        raise DemoError(f"monitoring failed: {(work / 'monitor.err').read_text(errors='replace')}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End *process* gently; sudo hands the signal on."""
    if process.poll() is None:
        if as_root():
            subprocess.run([*as_root(), "kill", "-INT", str(process.pid)], check=False)
        else:
            process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def keep_recordings(target: Path, work: Path, calm_until: float, attacks: list[Attack]) -> None:
    """Keep what --replay needs."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("normal", "attacked"):
        anonymous(work / f"{name}.db")
        (target / f"{name}.db.xz").write_bytes(lzma.compress((work / f"{name}.db").read_bytes(), preset=9))
    told = [{"label": a.label, "what": a.what, "started": a.started, "ended": a.ended} for a in attacks]
    (target / "attacks.json").write_text(
        json.dumps({"calm_until": calm_until, "attacks": told}, indent=1) + "\n"
    )


def anonymous(recording: Path) -> None:
    """Take this host's name, its kernel's build and the command line of its PID 1 out of a recording."""
    facts = {"host": "demo", "kernel": ".".join(os.uname().release.split(".")[:2])}
    init = {"exe": "/usr/sbin/init", "argv": ["/sbin/init"], "comm": "init"}
    with contextlib.closing(sqlite3.connect(recording, isolation_level=None)) as db:
        db.executemany(
            "UPDATE facts SET value = ? WHERE name = ?", [(json.dumps(v), k) for k, v in facts.items()]
        )
        for number, plain in db.execute("SELECT id, facts FROM process").fetchall():
            process = json.loads(plain)
            if process.get("pid") == 1:
                row = json.dumps(process | init).encode()
                db.execute("UPDATE process SET facts = ? WHERE id = ?", (row, number))
        db.execute("VACUUM")


def as_root() -> list[str]:
    """Return what to put before a command that needs root."""
    if os.geteuid() == 0 or "--replay" in sys.argv:
        return []
    return ["sudo", "--"]


def run(*arguments: object, root: bool = True, quiet: bool = False, to: Any = None) -> None:
    """Run ksentinel and wait for it."""
    command = [*(as_root() if root else []), *KSENTINEL, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL if quiet else to)


def lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    with path.open("rb") as file:
        return [json.loads(line) for line in file]


def fresh(work: Path) -> Path:
    """Return an empty folder."""
    if work.exists():
        try:
            shutil.rmtree(work)
        except PermissionError:
            subprocess.run([*as_root(), "rm", "-r", work], check=True)
    work.mkdir(parents=True)
    return work


def step(text: str) -> None:
    """Announce what comes next."""
    out.print()
    out.rule(text, align="left")


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
