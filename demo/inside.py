# SPDX-License-Identifier: Apache-2.0
"""
In the virtual machine: the shop, used and attacked while guards only tell, while they refuse, and when they have let go.

With ``learn`` as its argument a recording of the shop's ordinary use is made instead, and sent to who has started the machine.
"""

import base64
import contextlib
import errno
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from attacks import SECRET, Listener, code_injection_that_tells, decoy
from rich import box
from rich.table import Table
from rich.text import Text
from webserver import Visitors, WebServer

from demo import HERE, KSENTINEL, Attack, DemoError, fresh, out, run, step
from demo import why as told_why
from ksentinel.printable import printable

WORK = Path("/var/lib/shop")
LIGHTTPD = HERE.parent / "build" / "lighttpd"
STORE, CONTROL = "state/alerts.db", "control.sock"  # below WORK, as everything
ALERTS, SAID = WORK / "alerts.jsonl", WORK / "said"
MODEL = HERE.parent / "build" / "demo-vm" / "model"
RECORD_SECONDS = 120
QUIET_SECONDS = 8
RECORDING = b"\1"
"""What the line with the recording begins with."""
ORDERS = 4
PATIENCE = 120.0
SETTLED = 4.0
"""The model's say may come a moment after the guard's."""

SHELL = "6f0f0a53-5a0e-4c0b-9a55-0b7a3f1d2c64"  # guards/shell_below_web_server.yml
EPERM = os.strerror(errno.EPERM)
TWO_KEY = "entry:key-of-the-shop"
OPERATORS_FILE = """\
entries:
  - id: key-of-the-shop
    title: The shop's key is read by a process that behaves unusually
    deny: [read]
    file: {{is: [{key}]}}
    when: anomalous
"""
CONFIG = """\
enforce:
  file: {file}
  # Without KVM everything is slow, the proof that guards work too.
  proof_seconds: 60
  # What counts is the score at this very moment: a web server that was unusual a while ago must not cost the next customer his order.
  over_seconds: 0.01
"""


@dataclass(frozen=True)
class Got:
    """What somebody has got out of the shop: whether that is what he wanted, and what he sees of it."""

    wanted: bool
    seen: str


class Shop:
    """What customers and attackers do to the shop."""

    def __init__(self, server: WebServer, secret: Path, listener: Listener) -> None:
        self.server, self.secret, self.listener = server, secret, listener

    def order(self) -> Got:
        """Order something: the shop's script reads the key."""
        page = self._page(q="oak", order="1")
        return Got("ordered" in page, last(page))

    def command_injection(self) -> Got:
        """(a) The diagnosis page's shell shows the key."""
        page = self._page(q="oak", ping=f"localhost; cat {self.secret}")
        if SECRET.strip() in page:
            return Got(True, SECRET.strip())
        return Got(False, last((self.server.work / "scripts.log").read_text(errors="replace")))

    def code_injection(self) -> Got:
        """(b) The sort key is code: the script's own process connects out, reads the key and sends it."""
        before = len(self.listener.received)
        code_injection_that_tells(self.server, self.secret, self.listener)
        end = time.monotonic() + 10
        while len(self.listener.received) == before and time.monotonic() < end:
            time.sleep(0.1)
        got = b"".join(self.listener.received[before:]).decode(errors="replace")
        return Got(got == SECRET, last(got))

    def _page(self, **query: str) -> str:
        try:
            return self.server.get("/shop.py", **query)
        except urllib.error.HTTPError as error:
            return str(error)


class Daemon:
    """``ksentinel enforce``, permissive at first, with its guards proven, for as long as the block lasts."""

    def __enter__(self) -> Self:
        command = [
            "enforce", "--mode", "permissive", "--model", "model", "--rules", "guards", "--config", "config.yml",
            "--store", STORE, "--control", CONTROL, "--json",
        ]  # fmt: skip
        shown(*command)
        with ALERTS.open("wb") as alerts, SAID.open("wb") as said:
            self.process = subprocess.Popen([*KSENTINEL, *command], stdout=alerts, stderr=said)
        try:
            self.wait(
                lambda: "verified: permissive" in self.said() and "watching" in self.said(),
                "it doesn't start",
            )
        except BaseException:
            self.__exit__()
            raise
        out.print(Text(self.said().rstrip()))
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """Return all that it has said."""
        return SAID.read_text(errors="replace")

    def wait(self, what: Callable[[], Any], otherwise: str) -> Any:
        """Wait until *what* is something, and return it."""
        end = time.monotonic() + PATIENCE
        while not (found := what()):
            if self.process.poll() is not None:
                raise DemoError(f"ksentinel enforce has ended: {self.said()}")
            if time.monotonic() > end:
                raise DemoError(f"{otherwise} in {PATIENCE:.0f} s; ksentinel says: {self.said()}")
            time.sleep(0.2)
        return found

    def alert(self, rule: str, outcome: str, since: float) -> dict[str, Any]:
        """Return the newest form of an alert about what a guard has done since then; it may take a while to be told."""

        def found() -> dict[str, Any] | None:
            told = list(whole_lines(ALERTS))
            return next((one for one in reversed(told) if spoke(one, rule, outcome, since)), None)

        try:
            alert: dict[str, Any] = self.wait(found, f"no alert that a guard of {rule} says {outcome}")
        except DemoError:
            shown("status", "--control", CONTROL, now=True)
            shown("alerts", "--store", STORE, now=True)
            shown("enforce", "denials", "--store", STORE, now=True)
            raise
        time.sleep(SETTLED)
        return found() or alert


def spoke(alert: dict[str, Any], rule: str, outcome: str, since: float) -> bool:
    """Tell whether an alert has it that a rule's guard did this, and that it was since then."""
    return any(
        e.get("match", {}).get("rule", {}).get("id") == rule
        and e.get("enforcement", {}).get("outcome") == outcome
        and e["last_ns"] / 1e9 >= since
        for e in alert.get("evidence", ())
    )


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON of the lines that have been written to their end."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


class Phases:
    """What was done in each mode, and what came of it; and what should have come of it, but didn't."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.rows: dict[str, list[str]] = {name: [name] for name in ("orders", "attack (a)", "attack (b)")}
        self.wrong: list[str] = []

    def go(self, mode: str, *, refused: bool) -> float:
        """Have customers order, attackers attack, and a customer order again; returns when the attacks began."""
        placed = sum(self.shop.order().wanted for _ in range(ORDERS))
        self._told(
            mode, "orders", f"{placed} of {ORDERS} placed, the key being read for each", placed == ORDERS
        )
        since = time.time()
        for name, act in (
            ("attack (a)", self.shop.command_injection),
            ("attack (b)", self.shop.code_injection),
        ):
            got = act()
            what = "the attacker has" if got.wanted else "refused"
            right = not got.wanted and EPERM in got.seen if refused else got.wanted
            self._told(mode, name, f"{what}: {got.seen}", right, "refused" if refused else "went through")
        again = self.shop.order()
        if not again.wanted:
            self.wrong.append(f"{mode}: after the attacks nobody can order: {again.seen}")
        return since

    def _told(self, mode: str, name: str, text: str, right: bool, short: str = "") -> None:
        out.print(Text(f"  {name:<12}{printable(text, 300)}"))
        self.rows[name].append((short or text.partition(",")[0]) if right else f"WRONG: {text}")
        if not right:
            self.wrong.append(f"{mode}: {name}: {text}")


def main(part: str = "") -> int:
    """Do one part of the demonstration; returns the exit status."""
    os.umask(0o022)
    try:
        work = fresh(WORK)
        os.chdir(work)
        site = shutil.copytree(HERE / "site", work / "site")
        secret = decoy(work)
        with WebServer(LIGHTTPD, site, work) as server, Listener() as listener:
            shop = Shop(server, secret, listener)
            for _ in range(2):
                shop.order()  # what a script does the very first time it never does again
            if part == "learn":
                learn(server)
            else:
                guarded(shop)
    except DemoError as failed:
        said = "\n".join(printable(line, 1000) for line in str(failed).splitlines())
        out.print(Text(f"\nThe demonstration failed: {said}", "bold red"))
        return 1
    except subprocess.CalledProcessError as failed:
        out.print(
            Text(f"\nA step failed (exit {failed.returncode}): {' '.join(map(str, failed.cmd))}", "bold red")
        )
        return 1
    return 0


def learn(server: WebServer) -> None:
    """Record ordinary use, and send it."""
    step(f"Recording {RECORD_SECONDS} s of ordinary use of http://127.0.0.1:{server.port}/, in the machine")
    command = ["record", "--out", "normal.db", "--for", f"{RECORD_SECONDS}s", "--pid", str(server.pid)]
    with SAID.open("wb") as said:
        recording = subprocess.Popen([*KSENTINEL, *command], stdout=subprocess.DEVNULL, stderr=said)
    # Nobody visits before: loading BPF programs takes long enough without.
    end = time.monotonic() + PATIENCE
    while b"recording to" not in SAID.read_bytes():
        if recording.poll() is not None or time.monotonic() > end:
            recording.kill()
            raise DemoError(f"ksentinel record doesn't start: {SAID.read_text(errors='replace')}")
        time.sleep(0.2)
    requests = 0
    while recording.poll() is None:
        # A server that nobody asks anything for a while is ordinary, too.
        waited(recording, QUIET_SECONDS)
        with Visitors(server, rate=4.0, threads=3, seed=requests, orders=0.4) as visitors:
            waited(recording, 3 * QUIET_SECONDS)
        requests += visitors.requests
    if recording.returncode:
        raise DemoError(f"ksentinel record failed: {SAID.read_text(errors='replace')}")
    out.print(f"{requests} requests", style="dim")
    packed = lzma.compress(Path("normal.db").read_bytes(), preset=1)
    sys.stdout.flush()
    sys.stdout.buffer.write(RECORDING + base64.b64encode(packed) + b"\n")
    sys.stdout.buffer.flush()


def waited(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process to end, but no longer than this."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def guarded(shop: Shop) -> None:
    """Stand by, refuse, let go."""
    shutil.copytree(MODEL, "model")
    # Of a clone that isn't root's, root's ksentinel takes no rules.
    shutil.copytree(HERE / "guards", "guards")
    Path("enforce.yml").write_text(OPERATORS_FILE.format(key=shop.secret))
    Path("config.yml").write_text(CONFIG.format(file=WORK / "enforce.yml"))
    step("Permissive: guards tell what they would refuse, and refuse nothing")
    out.print(Text(Path("enforce.yml").read_text().rstrip(), "cyan"))
    with Daemon() as daemon:
        phases = Phases(shop)
        since = phases.go("permissive", refused=False)
        for label, rule in (("a", SHELL), ("b", TWO_KEY)):
            why(label, daemon.alert(rule, "would_deny", since))

        step("Enforcing: the same guards refuse")
        shown("enforce", "mode", "enforce", "--control", CONTROL, now=True)
        show_posture()
        since = phases.go("enforce", refused=True)
        daemon.alert(SHELL, "denied", since)
        alert = daemon.alert(TWO_KEY, "denied", since)
        shown("explain", alert["id"], "--store", STORE, now=True)

        step("Released: everything as before")
        shown("release", "--control", CONTROL, now=True)
        phases.go("released", refused=False)
    summary(phases)
    shown("enforce", "denials", "--store", STORE, now=True)
    calm_spared(phases)
    if phases.wrong:
        raise DemoError("; ".join(phases.wrong))


def shown(*command: object, now: bool = False) -> None:
    """Show a command as one would type it; run it *now*."""
    out.print(Text(f"$ ksentinel {shlex.join(map(str, command))}", "bold"))
    if now:
        run(*command)


def why(label: str, alert: dict[str, Any]) -> None:
    """Show the explanation of an alert, as the demonstration without guards does, and what guards made of it."""
    told_why(Attack(label, "", alerts=[alert]))
    for evidence in alert["evidence"]:
        if said := evidence.get("enforcement"):
            out.print(Text(f"  guard         {said['outcome']} at {said['hook']} in {said['call']}", "green"))


def show_posture() -> None:
    """Show what a status says of enforcement, and leave out the rest."""
    out.print(Text(f"$ ksentinel status --control {CONTROL} | grep -A 2 requested", "bold"))
    told = subprocess.check_output([*KSENTINEL, "status", "--control", CONTROL], text=True).splitlines()
    first = next(i for i, line in enumerate(told) if "requested" in line)
    out.print(Text("\n".join(told[first : first + 3])))


def summary(phases: Phases) -> None:
    """Show all three modes side by side."""
    out.rule("What became of it")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "permissive", "enforce", "released"):
        table.add_column(heading, overflow="fold")
    for row in phases.rows.values():
        table.add_row(*(Text(cell, "bold red" if cell.startswith("WRONG") else "") for cell in row))
    out.print(table)


def calm_spared(phases: Phases) -> None:
    """See that the two-key guard has spoken once in each mode of the shop's script: against the attack, and against no order."""
    command = [*KSENTINEL, "enforce", "denials", "--json", "--store", STORE]
    counts = [json.loads(line) for line in subprocess.check_output(command).splitlines()]
    for outcome in ("would_deny", "denied"):
        mine = [
            c["count"]
            for c in counts
            if (c["rule"], c["outcome"]) == (TWO_KEY, outcome) and "python" in c["exe"]
        ]
        if mine != [1]:
            phases.wrong.append(
                f"{TWO_KEY} {outcome} {sum(mine)} times of the shop's script, where one attack was made"
            )


def last(text: str) -> str:
    """Return the last line that isn't empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "(nothing)")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
