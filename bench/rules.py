# SPDX-License-Identifier: Apache-2.0
"""
What do rules cost? Per event at 50, 250 and 1,000 rules, and to load; ratios in one run, not absolute times, are the result.

Rules are generated (a fixed seed) in the manner of those that people publish: a program by its last component with words of
its command line, lists of such, parents with exceptions, paths of files, ports, audit records, a regular expression now and
then. Events are those of an ordinary host, with a few that match. One core (``os.sched_setaffinity``).
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from ksentinel.codec import event_from_plain
from ksentinel.event import Event
from ksentinel.rules.cache import Cache
from ksentinel.rules.ruleset import RuleSet

SIZES = (50, 250, 1000)

_PROGRAMS = (
    "bash sh dash python3 perl ruby curl wget nc ncat socat base64 openssl ssh scp rsync tar gzip zip find grep awk sed xxd "
    "crontab at systemctl service insmod modprobe rmmod lsmod mount umount nsenter unshare chroot docker podman kubectl "
    "useradd usermod passwd sudo su doas chmod chown chattr setfacl getcap setcap iptables nft ufw ip ifconfig netstat ss "
    "lsof ps top kill pkill dmesg journalctl auditctl ausearch history touch rm shred dd cat head tail tee xargs env vi "
    "nano gdb strace ltrace ld cc gcc make go node php java git svn apt dpkg rpm yum dnf pip npm gem whoami id uname hostname"
).split()
_SYLLABLES = (
    "ba con dor el fi gra hu in jo ker lo mi na op pre qui ra sto tu ver wa xen yo zi ex po ta mo re ch"
).split()
_FOLDERS = "/etc /etc/cron.d /etc/systemd/system /usr/bin /usr/lib /var/log /var/spool /tmp /dev/shm /root /home /opt /run".split()
_HEAD = """\
title: Generated rule {number}
id: {id}
logsource: {{product: linux, {logsource}}}
level: medium
detection:
"""


class Author:
    """Writes rules; the same ones each time."""

    def __init__(self, seed: int = 11) -> None:
        self.chance = random.Random(seed)

    def word(self) -> str:
        """Return a word; of three syllables, because what rules ask for hardly ever stands in an ordinary event."""
        return "".join(self.chance.choices(_SYLLABLES, k=self.chance.randrange(3, 6)))

    def words(self, low: int, high: int, before: str = "") -> str:
        """Return a list of such words, as YAML."""
        texts = [before + self.word() for _ in range(self.chance.randrange(low, high + 1))]
        return json.dumps(texts)

    def program(self) -> str:
        """Return a program, of which a few are in many rules."""
        return f"/{_PROGRAMS[min(int(self.chance.expovariate(0.04)), len(_PROGRAMS) - 1)]}"

    def rule(self, number: int) -> str:
        """Return the text of a rule."""
        kind = self.chance.choices(
            [self.command, self.several, self.child, self.pattern, self.file, self.network, self.record],
            weights=[30, 15, 15, 5, 10, 5, 20],
        )[0]
        logsource, detection = kind()
        return _HEAD.format(number=number, id=UUID(int=number + 1), logsource=logsource) + detection

    def command(self) -> tuple[str, str]:
        """Return a program with words among its arguments."""
        how = self.chance.choice(["contains", "contains|all"])
        return "category: process_creation", (
            f"  selection:\n    Image|endswith: {self.program()}\n    CommandLine|{how}: {self.words(1, 6, ' --')}\n"
            "  condition: selection\n"
        )

    def several(self) -> tuple[str, str]:
        """Return some programs, or words alone, with exceptions."""
        programs = json.dumps([self.program() for _ in range(self.chance.randrange(2, 6))])
        return "category: process_creation", (
            f"  selection_img:\n    Image|endswith: {programs}\n  selection_cli:\n    - CommandLine|contains: {self.words(2, 12)}\n"
            f"    - CommandLine|endswith: {self.words(1, 4, ' -')}\n  filter_main_own:\n    ParentImage: /usr/bin{self.program()}\n"
            "  condition: all of selection_* and not 1 of filter_main_*\n"
        )

    def child(self) -> tuple[str, str]:
        """Return a parent with a child."""
        return "category: process_creation", (
            f"  selection:\n    ParentImage|endswith: ['/{self.word()}', '/{self.word()}d']\n    Image|endswith: {self.program()}\n"
            "  filter:\n    CurrentDirectory|startswith: /usr/share\n    User: root\n  condition: selection and not filter\n"
        )

    def pattern(self) -> tuple[str, str]:
        """Return a regular expression."""
        return "category: process_creation", (
            f"  selection:\n    CommandLine|re: '{self.word()}\\s+-[a-z]*{self.chance.choice('xyz')}\\s.*(/tmp|/dev/shm)/'\n"
            "  condition: selection\n"
        )

    def file(self) -> tuple[str, str]:
        """Return files."""
        folder = self.chance.choice(_FOLDERS)
        return "category: file_event", (
            f"  selection:\n    TargetFilename|startswith: {self.words(1, 3, folder + '/')}\n"
            f"  ends:\n    TargetFilename|endswith: ['/{self.word()}.sh', '.{self.word()}']\n  condition: 1 of them\n"
        )

    def network(self) -> tuple[str, str]:
        """Return connections."""
        return "category: network_connection", (
            f"  selection:\n    DestinationPort: {self.chance.randrange(1024, 65536)}\n    Image|endswith: {self.program()}\n"
            "  local:\n    DestinationIp|cidr: [127.0.0.0/8, 10.0.0.0/8]\n  condition: selection and not local\n"
        )

    def record(self) -> tuple[str, str]:
        """Return audit records."""
        return "service: auditd", (
            f"  selection:\n    type: EXECVE\n    a0: {self.program()[1:]}\n    a1|startswith: {self.words(1, 3, '--')}\n"
            "  condition: selection\n"
        )


def write_rules(folder: Path, count: int) -> None:
    """Write *count* rules into a folder."""
    author = Author()
    folder.mkdir(mode=0o755)
    for number in range(count):
        (folder / f"{number:05}.yml").write_text(author.rule(number))


def events(count: int) -> list[Event]:
    """Return events of an ordinary host: half of them execs, half with audit's records."""
    author = Author(5)
    chance = author.chance
    made: list[Event] = []
    for number in range(count):
        program = author.program()
        argv = [program[1:], *(f"--{author.word()}={author.word()}" for _ in range(chance.randrange(6)))]
        parent = {"pid": 7, "exe": f"/usr/bin{author.program()}", "argv": ["-l"]}
        process = {
            "pid": 100 + number, "exe": f"/usr/bin{program}", "argv": argv, "uid": 1000, "cwd": "/home/ann", "parent": parent,
        }  # fmt: skip
        plain: dict[str, Any] = {"event": "exec", "process": process, "path": f"/usr/bin{program}"}
        if number % 2:
            path = f"{chance.choice(_FOLDERS)}/{author.word()}"
            plain = {
                "event": "syscall",
                "process": process,
                "syscall": "openat",
                "paths": [path],
                "flags": 0o101,
            }
        if number % 8 == 3:
            address = {
                "family": "inet",
                "host": f"192.0.2.{number % 200}",
                "port": chance.choice([22, 53, 443, 8080]),
            }
            plain = {"event": "syscall", "process": process, "syscall": "connect", "address": address}
        if number % 4 == 2:
            fields = [["argc", str(len(argv))], *([f"a{n}", text] for n, text in enumerate(argv))]
            plain |= {
                "origin": "audit",
                "records": [["SYSCALL", [["syscall", "59"], ["key", "watch"]]], ["EXECVE", fields]],
            }
        made.append(event_from_plain(plain))
    return made


def _timed(action: Callable[[], Any]) -> float:
    before = time.process_time()
    action()
    return time.process_time() - before


def loads(folder: Path, kept: Path) -> dict[str, float]:
    """Return seconds to load a folder, without a cache and from one."""
    cold = _timed(lambda: RuleSet.load([folder], trusted_uids=None, cache=Cache(kept, os.getuid())))
    cached = _timed(lambda: RuleSet.load([folder], trusted_uids=None, cache=Cache(kept, os.getuid())))
    return {"load_cold_s": round(cold, 3), "load_cached_s": round(cached, 3)}


def rows(sizes: tuple[int, ...], count: int, runs: int, work: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each number of rules; the sets are asked in turn, so that a disturbance hits all."""
    made = events(count)
    sets, facts = {}, {}
    for size in sizes:
        folder = work / str(size)
        write_rules(folder, size)
        facts[size] = loads(folder, work / f"cache{size}")
        sets[size] = RuleSet.load([folder], trusted_uids=None)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(runs):
        for size, rules in sets.items():
            seconds[size].append(_timed(lambda rules=rules: [rules.match(event) for event in made]))
    base = statistics.median(seconds[sizes[0]])
    for size, took in seconds.items():
        median = statistics.median(took)
        yield {
            "rules": size,
            "microseconds_per_event": round(median / count * 1e6, 2),
            "ratio": round(median / base, 2),
            "spread": round(max(took) / min(took), 2),
            "matches": sum(len(sets[size].match(event)) for event in made),
            "always_asked": sets[size].always_asked,
            **facts[size],
        }


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=4000, help="events to generate")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as work:
        found = list(rows(SIZES, arguments.events, arguments.runs, Path(work)))
    if arguments.json:
        json.dump({"events": arguments.events, "rows": found}, sys.stdout)
        print()
        return
    print(
        f"{'rules':>6} {'us/event':>9} {'ratio':>6} {'max/min':>8} {'matches':>8} {'always':>7} {'load':>8} {'cached':>8}"
    )
    for row in found:
        print(
            f"{row['rules']:6,} {row['microseconds_per_event']:9.2f} {row['ratio']:6.2f} {row['spread']:8.2f} {row['matches']:8,} "
            f"{row['always_asked']:7} {row['load_cold_s']:7.2f}s {row['load_cached_s']:7.2f}s"
        )


if __name__ == "__main__":
    main()
