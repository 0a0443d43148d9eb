# SPDX-License-Identifier: Apache-2.0
"""
In the virtual machine of ``guards.py``: the sides, one after the other, each tried with every operation.

    guarded.py OPERATIONS EMPTY RESULTS

*OPERATIONS* is ``native/guards.c``, *EMPTY* is ``native/guards.bpf.c``, both compiled; each line of *RESULTS* is a count, in JSON.
"""

import json
import os
import platform
import subprocess
import sys
import traceback
import tty
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import IO, Any

from ksentinel import host
from ksentinel.bpf.guard_abi import Hook
from ksentinel.bpf.libbpf import Object
from ksentinel.config import Config
from ksentinel.enforce import Mode
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.guards import CONFINING, Guards
from ksentinel.enforce.places import resolve
from ksentinel.enforce.settings import Does, Entry, Settings, parse_settings
from ksentinel.errors import Location
from ksentinel.rules.derivation import Derived, derive
from ksentinel.rules.fields import sources
from ksentinel.rules.sigma import compile_rule
from ksentinel.shipped import shipped

WORK = Path("/tmp/guarded")  # noqa: S108 - the machine is ours alone
FILE = WORK / "some/folder/file"
PROGRAM = WORK / "some/folder/tiny"
MANY = 10_000
PORT = "9"
RUNS = 3
HOOKS = (
    Hook.BPRM_CHECK_SECURITY,
    Hook.BPRM_CREDS_FROM_FILE,
    Hook.MMAP_FILE,
    Hook.FILE_OPEN,
    Hook.SOCKET_CONNECT,
)
"""Where the operations come by; at these stand empty programs, and guards."""

OPERATIONS: Mapping[str, tuple[int, str]] = {
    "open": (400, str(FILE)),
    "exec": (60, str(PROGRAM)),
    "tcp": (100, PORT),
    "udp": (400, PORT),
}
SPOKEN: Mapping[str, tuple[int, str]] = {name: (50, what) for name, (_, what) in OPERATIONS.items()}
"""Where a guard speaks each time: fewer than one process may have records in a second."""

TEN = f"""
entries:
  - {{id: secrets, deny: [read, write], file: {{under: [{WORK}/secrets, /etc/ssl]}}}}
  - {{id: shadow, deny: [read], file: {{is: [/etc/shadow]}}, unless_by: [/usr/bin/passwd]}}
  - {{id: system, deny: [write, create, unlink, rename], file: {{under: [/usr/lib/modules, /boot]}}}}
  - {{id: memfd, deny: [exec], file: {{kind: [memfd, deleted]}}}}
  - {{id: dropped, deny: [exec], file: {{under: [{WORK}/dropped, /dev/shm]}}}}
  - {{id: tools, deny: [exec], file: {{is: [/usr/bin/unshare, /usr/bin/nsenter]}}}}
  - {{id: metadata, deny: [connect], network: {{to: [169.254.169.254/32], port: [80]}}}}
  - {{id: mail, deny: [connect], network: {{port: [25, 465, 587]}}, unless_by: [/usr/bin/passwd]}}
  - {{id: inside, deny: [connect], network: {{to: [10.0.0.0/8, 192.168.0.0/16], port: [22]}}}}
  - {{id: docker, deny: [connect], network: {{unix: [/run/docker.sock]}}}}
"""
"""As an operator may have them; none is about what is done here."""

SPEAKING = f"""
entries:
  - {{id: file, deny: [read, exec], file: {{is: [{FILE}, {PROGRAM}]}}}}
  - {{id: port, deny: [connect], network: {{to: [127.0.0.0/8], port: [{PORT}]}}}}
"""

RULE = """\
title: One of {kind}
id: 00000000-0000-0000-0000-{number:012}
logsource: {{product: linux, category: {category}}}
level: high
ksentinel: {{action: deny, inline: true}}
detection:
  selection:
    {asked}
  condition: selection
"""


@dataclass(frozen=True, slots=True)
class Side:
    """What decides, and how it is told."""

    name: str
    settings: Settings = field(default_factory=Settings)
    rules: tuple[Derived, ...] = ()
    mode: Mode = Mode.ENFORCE
    speaks: bool = False


def entries(*more: Entry) -> Settings:
    """Return the ten entries and those."""
    ten = parse_settings(TEN, "ten.yml")
    return replace(ten, entries=(*ten.entries, *more))


def entry(name: str, *does: Does, **what: Any) -> Entry:
    """Return an entry longer than a file may have one."""
    return Entry(name, does, Location(name), **what)


def rules(count: int) -> tuple[Derived, ...]:
    """Return a rule about opening, and one about executing, one of *count* paths."""
    paths = json.dumps([f"/srv/data/{number % 100}/file-{number}" for number in range(count)])
    asked = {"syscall": f"syscall: [open, openat]\n    path: {paths}", "process_creation": f"Image: {paths}"}
    texts = [
        RULE.format(kind=f"{count} paths", number=number, category=category, asked=text)
        for number, (category, text) in enumerate(asked.items())
    ]
    return tuple(derive(compile_rule(text, "rule.yml", sources())) for text in texts)


def sides() -> Iterator[Side]:
    """Yield the guards' sides."""
    files = tuple(f"{WORK}/files/{number}" for number in range(MANY))
    addresses = ip_network("10.0.0.0/8").subnets(new_prefix=24)
    networks = tuple(str(one) for one, _ in zip(addresses, range(MANY), strict=False))
    yield Side("canary alone")
    yield Side("10 entries", entries())
    yield Side("10 entries, 2 rules of 10 names", entries(), rules(10))
    yield Side("10 entries, 2 rules of 10,000 names", entries(), rules(MANY))
    yield Side("10 entries, 10,000 files", entries(entry("files", Does.READ, Does.EXEC, same=files)))
    several = [
        entry(f"files {begin}", Does.READ, Does.EXEC, same=files[begin : begin + 250])
        for begin in range(0, MANY, 250)
    ]
    yield Side("10 entries, 40 of 250 files", entries(*several))
    yield Side("10 entries, 10,000 networks", entries(entry("networks", Does.CONNECT, networks=networks)))
    speaking = parse_settings(SPEAKING, "speaking.yml")
    yield Side("permissive, spoken", speaking, mode=Mode.PERMISSIVE, speaks=True)
    yield Side("enforced, spoken", speaking, speaks=True)


def prepare() -> None:
    """Make the files that it is about."""
    for folder in ("some/folder", "secrets", "dropped", "files"):
        (WORK / folder).mkdir(parents=True)
    FILE.write_text("x")
    for number in range(MANY):
        (WORK / "files" / str(number)).touch()


class Counting:
    """Tries operations, and writes what they cost."""

    def __init__(self, program: str, out: IO[str]) -> None:
        self.program = program
        self.out = out

    def say(self, **what: object) -> None:
        """Write a line at once."""
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    def side(self, name: str, *, speaks: bool = False, after: Callable[[], object] = lambda: None) -> None:
        """Try all operations before one side."""
        for operation, (count, what) in (SPOKEN if speaks else OPERATIONS).items():
            counts, refused = [], 0
            for _ in range(RUNS):
                done = subprocess.run(
                    [self.program, operation, str(count), what], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    raise RuntimeError(f"{name}: {operation}: {done.stderr.strip()}")
                cost, failed = map(int, done.stdout.split())
                counts.append(cost)
                refused += failed
                after()
            self.say(side=name, operation=operation, counts=counts, refused=refused, of=RUNS * count)


def empty(stack: ExitStack, path: str) -> Object:
    """Attach the empty programs; they go with the block."""
    one = stack.enter_context(Object(Path(path)))
    one.load()
    for hook in HOOKS:
        one.attach(f"on_{hook.name.lower()}")
    return one


def drained(live: Any) -> Iterable[object]:
    """Read what has been said until now: nothing is dropped for want of room."""
    while live._items(live.collector.poll(0.05)):  # noqa: SLF001 - as the pipeline does
        pass
    return ()


def guarded(counting: Counting, path: str) -> None:
    """Try every side."""
    counting.say(release=os.uname().release)
    counting.side("nothing")
    with ExitStack() as stack:
        empty(stack, path)
        counting.side("empty programs")
    with ExitStack() as stack:
        live = stack.enter_context(host.live(Config(), lambda: False))
        counting.side("collector", after=lambda: drained(live))
        with ExitStack() as inner:
            empty(inner, path)
            counting.side("collector, empty programs", after=lambda: drained(live))
        collector = live.collector
        guards = stack.enter_context(
            Guards(collector.object, shipped("lsm_bpf"), collector.path_seed, platform.machine(), own_pid=0)
        )
        guards.spare(())
        for side in sides():
            compiled = compile_policy(
                side.rules, side.settings, resolve=resolve, arch=platform.machine(), also=(*CONFINING, *HOOKS)
            )
            guards.use(compiled, list(live.normalizer.table))
            guards.mode = side.mode
            before = guards.counters()
            drained(live)
            counting.side(side.name, speaks=side.speaks, after=lambda: drained(live))
            after = guards.counters()
            counting.say(side=side.name, counters={name: after[name] - before[name] for name in after})
            guards.mode = Mode.OFF


def main(arguments: Sequence[str]) -> None:
    """Do it; whatever ends it is told."""
    program, path, results = arguments
    with open(results, "w", encoding="utf-8") as out:  # noqa: PTH123 - a device
        if out.isatty():
            tty.setraw(out.fileno())
        counting = Counting(program, out)
        try:
            prepare()
            PROGRAM.write_bytes(Path(program).with_name("tiny").read_bytes())
            PROGRAM.chmod(0o755)
            guarded(counting, path)
        except BaseException:
            counting.say(failed=traceback.format_exc())
            raise
        counting.say(done=True)


if __name__ == "__main__":
    main(sys.argv[1:])
