# SPDX-License-Identifier: Apache-2.0
"""
How fast is the walk? Audit events a second, tokens a second; ratios in one run, not absolute times, are the result.

The audit log is generated (an execve, two opens, a connect and a login in turn, with changing processes, times and
paths) and read by bare ``auparse`` and by the whole walk in turn. Tokens are those of a synthetic host whose programs
have habits of their own. One core each (``os.sched_setaffinity``).
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

from ksentinel import policy
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.stide import Stide
from ksentinel.event import Process, ProcessKey
from ksentinel.incident import Incidents
from ksentinel.normalize.redact import Redactor
from ksentinel.pipeline import Pipeline
from ksentinel.rules.ruleset import RuleSet
from ksentinel.shipped import shipped
from ksentinel.streams import AuditLogs
from ksentinel.window import Window

_SYSCALL = (
    "type=SYSCALL msg=audit({time}:{serial}): arch=c000003e syscall={nr} success=yes exit={result} a0=7ffd5c3 "
    "a1={a1} a2=55d0 a3=8 items={items} ppid={ppid} pid={pid} auid=1000 uid=1000 gid=1000 euid=1000 suid=1000 fsuid=1000 "
    'egid=1000 sgid=1000 fsgid=1000 tty=pts1 ses=3 comm="{comm}" exe="/usr/bin/{comm}" subj=unconfined key="watch"\n'
)
_PATH = (
    'type=PATH msg=audit({time}:{serial}): item={item} name="{path}" inode={inode} dev=fe:01 mode=0100644 ouid=0 ogid=0 '
    "rdev=00:00 nametype=NORMAL cap_fp=0 cap_fi=0 cap_fe=0 cap_fver=0 cap_frootid=0\n"
)
_CWD = 'type=CWD msg=audit({time}:{serial}): cwd="/home/ann/work"\n'
_EXECVE = 'type=EXECVE msg=audit({time}:{serial}): argc=3 a0="{comm}" a1="-l" a2="/srv/data/{inode}"\n'
_SOCKADDR = "type=SOCKADDR msg=audit({time}:{serial}): saddr=020001BB5DB8D8220000000000000000\n"
_TITLE = "type=PROCTITLE msg=audit({time}:{serial}): proctitle=6C73002D6C002F7372762F64617461\n"
_LOGIN = (
    "type=USER_LOGIN msg=audit({time}:{serial}): pid={pid} uid=0 auid=1000 ses=3 subj=unconfined msg='op=login id=1000 "
    'exe="/usr/sbin/sshd" hostname=192.0.2.7 addr=192.0.2.7 terminal=/dev/pts/1 res=success\'\n'
)
_KINDS = (
    (59, (_SYSCALL, _EXECVE, _CWD, _PATH, _TITLE)),
    (257, (_SYSCALL, _CWD, _PATH, _TITLE)),
    (257, (_SYSCALL, _CWD, _PATH, _TITLE)),
    (42, (_SYSCALL, _SOCKADDR, _TITLE)),
    (0, (_LOGIN,)),
)


def write_log(path: Path, events: int) -> int:
    """Write an audit log of *events* events; returns its lines."""
    chance = random.Random(7)
    programs = ["ls", "cat", "grep", "rsync", "python3", "git", "tar", "curl"]
    lines = 0
    with path.open("w") as file:
        for serial in range(events):
            number, records = _KINDS[serial % len(_KINDS)]
            pid = 1000 + serial // 40 % 30000
            values = {
                "time": f"{1.7e9 + serial / 500:.3f}",
                "serial": serial + 1,
                "nr": number,
                "result": 0 if number == 59 else 3,
                "a1": "80000",
                "items": sum(record is _PATH for record in records),
                "item": 0,
                "pid": pid,
                "ppid": 900 + pid % 50,
                "comm": programs[serial // 40 % len(programs)],
                "path": f"/srv/data/{chance.randrange(5000)}/file",
                "inode": chance.randrange(1 << 20),
            }
            file.writelines(record.format(**values) for record in records)
            lines += len(records)
    return lines


def bare_auparse(path: Path) -> int:
    """Iterate over the log by auparse alone, every record of every event; returns the events."""
    import auparse

    parser = auparse.AuParser(auparse.AUSOURCE_FILE, str(path))
    events = 0
    while parser.parse_next_event():
        events += 1
        more = parser.first_record()
        while more:
            more = parser.next_record()
    return events


def bare_fields(path: Path) -> int:
    """The same, and every field of every record."""
    import auparse

    parser = auparse.AuParser(auparse.AUSOURCE_FILE, str(path))
    events = 0
    while parser.parse_next_event():
        events += 1
        more_records = parser.first_record()
        while more_records:
            more = parser.first_field()
            while more:
                parser.get_field_name()
                parser.get_field_str()
                more = parser.next_field()
            more_records = parser.next_record()
    return events


def whole_walk(path: Path) -> int:
    """Lead the log through the whole walk with the shipped rules; returns the events."""
    incidents = Incidents(policy.load(shipped("rules/policy.yml"), trusted_uids=None))
    pipeline = Pipeline(RuleSet.load([shipped("rules")], trusted_uids=None), None, incidents)
    stream = AuditLogs([path], Redactor())
    for _ in pipeline.walk(stream):
        pass
    return int(stream.account()["events"])


def windows(count: int) -> list[Window]:
    """Return *count* full windows of eight programs, each with a habit of its own."""
    chance = random.Random(3)
    habits = [[chance.randrange(330) for _ in range(chance.randrange(20, 60))] for _ in range(8)]
    programs = [Process(ProcessKey(100 + n, 1), exe=f"/usr/bin/program{n}") for n in range(8)]
    made = []
    for n in range(count):
        habit, tokens = habits[n % 8], []
        at = chance.randrange(len(habit))
        while len(tokens) < 64:
            tokens.append(habit[at] if chance.random() > 0.02 else chance.randrange(330))
            at = (at + 1 if chance.random() > 0.1 else chance.randrange(len(habit))) % len(habit)
        made.append(Window(programs[n % 8], 100 + n % 8, n, n + 1, tuple(tokens)))
    return made


def timed(action: Callable[[], Any]) -> float:
    """Return the seconds of CPU that *action* takes."""
    before = time.process_time()
    action()
    return time.process_time() - before


def audit_sides(path: Path, runs: int) -> Iterator[dict[str, Any]]:
    """Time the readers of the log in turn."""
    sides = {"auparse, records": bare_auparse, "auparse, fields": bare_fields, "whole walk": whole_walk}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    events = dict.fromkeys(sides, 0)
    for _ in range(runs):
        for name, side in sides.items():
            before = time.process_time()
            events[name] = side(path)
            seconds[name].append(time.process_time() - before)
    base = statistics.median(seconds["auparse, records"])
    for name, took in seconds.items():
        median = statistics.median(took)
        yield {
            "what": name,
            "events": events[name],
            "per_second": round(events[name] / median),
            "ratio_to_auparse": round(median / base, 2),
            "spread": round(max(took) / min(took), 2),
        }


def model_sides(count: int, runs: int) -> Iterator[dict[str, Any]]:
    """Time fitting and scoring of each detector."""
    made = windows(count)
    tokens = count * 64
    for kind in (NGramModel, Stide, OneClass):
        fits, scores = [], []
        for _ in range(runs):
            detector = kind()
            fits.append(timed(lambda detector=detector: detector.fit(made)))
            scores.append(
                timed(
                    lambda detector=detector: [
                        detector.score(made[n : n + 4096]) for n in range(0, count, 4096)
                    ]
                )
            )
        for what, took in (("fit", fits), ("score", scores)):
            median = statistics.median(took)
            yield {
                "what": f"{kind.name} {what}",
                "tokens": tokens,
                "per_second": round(tokens / median),
                "spread": round(max(took) / min(took), 2),
            }


def main() -> None:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--events", type=int, default=200_000, help="audit events to generate")
    parser.add_argument("--windows", type=int, default=16_384, help="windows of 64 tokens to generate")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "audit.log"
        lines = write_log(log, arguments.events)
        audit = list(audit_sides(log, arguments.runs))
    models = list(model_sides(arguments.windows, arguments.runs))
    if arguments.json:
        json.dump({"audit_lines": lines, "audit": audit, "models": models}, sys.stdout)
        print()
        return
    print(f"{'audit, ' + format(lines, ',') + ' lines':28} {'events/s':>10} {'x auparse':>10} {'max/min':>8}")
    for row in audit:
        print(
            f"{row['what']:28} {row['per_second']:10,} {row['ratio_to_auparse']:10.2f} {row['spread']:8.2f}"
        )
    print(
        f"\n{'models, ' + format(models[0]['tokens'], ',') + ' tokens':28} {'tokens/s':>10} {'':10} {'max/min':>8}"
    )
    for row in models:
        print(f"{row['what']:28} {row['per_second']:10,} {'':10} {row['spread']:8.2f}")


if __name__ == "__main__":
    main()
