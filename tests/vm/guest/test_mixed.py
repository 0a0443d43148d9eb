# SPDX-License-Identifier: Apache-2.0
"""Mixed operations by several processes, under a policy that is full: the kernel decides each as the reference does."""

import os
import random
import shutil
import struct
import subprocess
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from mmap import mmap
from pathlib import Path

import pytest
from vm import mixed
from vm.mixed import ACTORS, CONTROL, INTS, PLAN, SIGNALLED

from ksentinel.bpf import abi
from ksentinel.bpf.guard_abi import Action, Denial, Hook, Outcome
from ksentinel.enforce import Mode
from ksentinel.enforce.guards import CONFINING
from ksentinel.enforce.never import Spared
from ksentinel.enforce.places import resolve

TAKES = 60

SOURCE = Path(__file__).with_name("mixed.c")
ROOT = Path("/tmp/mixed")
CGROUPS = Path("/sys/fs/cgroup")
NAMESPACES = Path("/proc/sys/user/max_cgroup_namespaces")
EPERM = 1
FULL = bool(os.environ.get("KSENTINEL_FULL"))
DISTINCT = 100 if FULL else 40
"""Of an actor; more of them take time to be decided by the reference."""
SAID = struct.Struct("=I2xH4xBBB")
LIFE = {abi.Kind.FORK, abi.Kind.EXEC, abi.Kind.EXIT}


def count():
    """Return how many operations are done."""
    return 100_000 if FULL else 10_000


@pytest.fixture
def tree():
    ROOT.mkdir(mode=0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, ROOT)
        program = ROOT / "program"
        subprocess.run(
            ["clang", "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True
        )
        made = mixed.Tree(ROOT, program, mounts=True)
        stack.callback(made.take_away)
        before = NAMESPACES.read_text()
        NAMESPACES.write_text("0")
        stack.callback(NAMESPACES.write_text, before)
        yield made


@pytest.fixture
def cgroups():
    made = {}
    for mode in Mode:
        made[mode] = CGROUPS / f"mixed-{mode}" / "below"
        made[mode].mkdir(parents=True)
    yield made
    for folder in made.values():
        until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), "a control group is empty")
        folder.rmdir()
        folder.parent.rmdir()


def until(holds, what, seconds=30):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def above(pid):
    """Yield the executables of a process and of those above it."""
    while pid:
        yield str(Path(f"/proc/{pid}/exe").readlink())
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Acting:
    """The program's processes."""

    def __init__(self, plans):
        self.path = ROOT / "control"
        self.path.write_bytes(bytes(CONTROL.size))
        for slot, plan in enumerate(plans):
            Path(f"{self.path}.{slot}").write_bytes(plan)
        with self.path.open("r+b") as file:
            self.memory = mmap(file.fileno(), CONTROL.size)
        self.parents = []
        for parent in dict.fromkeys(actor.parent for actor in ACTORS):
            told = [
                str(one)
                for slot, actor in enumerate(ACTORS)
                if actor.parent == parent
                for one in (slot, f"{ROOT}/{actor.exe}", actor.uid, actor.suid)
            ]
            self.parents.append(subprocess.Popen([f"{ROOT}/{parent}", "parent", self.path, *told], cwd="/"))

    def told(self):
        """Return what the processes say of themselves."""
        return CONTROL.unpack_from(self.memory)

    @property
    def ready(self):
        """How many are ready."""
        return self.told()[0]

    @property
    def done(self):
        """How many are through."""
        return self.told()[2]

    @property
    def pids(self):
        """Who they are."""
        return self.told()[4 : 4 + len(ACTORS)]

    def go(self):
        """Let them begin."""
        struct.pack_into("=I", self.memory, 4, 1)

    def stop(self):
        """Let them end."""
        struct.pack_into("=I", self.memory, 12, 1)
        for parent in self.parents:
            parent.wait(30)
        self.memory.close()

    def results(self, slot, number):
        """Return error and child of each operation."""
        raw = Path(f"{self.path}.{slot}").read_bytes()
        start = PLAN.unpack_from(raw)[2]
        ints = memoryview(raw)[start : start + number * INTS * 4].cast("i")
        return ints[INTS - 2 :: INTS].tolist(), ints[INTS - 1 :: INTS].tolist()


def heard(live, said, epoch, seconds):
    """Take in what has been said since, by thread; whether there was anything."""
    records = live.collector.poll(seconds)
    for record in records:
        kind = int.from_bytes(record[:2], "little")
        if kind == abi.Kind.DENIAL:
            tid = int.from_bytes(record[TID : TID + 4], "little")
            if int.from_bytes(record[EPOCH : EPOCH + 4], "little") == epoch:
                said[tid].append(SAID.unpack_from(record, RULE))
        elif kind in LIFE:
            live.normalizer.item(record)
    return bool(records)


TID, EPOCH, RULE = abi.Header.tid.offset, Denial.epoch.offset, Denial.rule.offset


def in_words(records):
    """Return records as words."""
    return [
        (Hook(hook).name, rule, Outcome(outcome).name, Action(action).name, mode)
        for rule, hook, outcome, action, mode in records
    ]


def as_told(expected):
    """Return what is to be told of a call."""
    return [
        (one.rule, int(hook), int(one.outcome), int(one.action), one.mode.rank) for hook, one in expected.said
    ]


def test_mixed(guards, tree, cgroups, kernel, record_property):
    """Each is refused exactly where the reference says so; what is told of it and what is counted is the same, too."""
    began = time.monotonic()
    guards.use()
    real, live = guards.guards, guards.live
    compiled = mixed.full_policy(1, str(ROOT), resolve, also=CONFINING)
    judge = mixed.Judge(compiled, Mode.ENFORCE)
    lineage = tuple(above(os.getpid()))
    service = live.normalizer.table.get(os.getpid()).service_exe
    by_path = tuple(int(part) for part in kernel.split("-")[0].split(".")[:2]) < (6, 2)
    scripts = []
    for slot, actor in enumerate(ACTORS):
        exe = f"{ROOT}/{actor.exe}"
        who = mixed.Who(exe, resolve(exe), (f"{ROOT}/{actor.parent}", *lineage), service)
        scene = mixed.Scene(tree, actor, who, random.Random(slot), by_path)
        scripts.append(mixed.script(scene, judge, DISTINCT, count() // len(ACTORS)))
    # The judge leaves out rules that have no way at a hook, by the compiler's word: that is tried, too.
    for step, decision in random.Random(0).sample(judge.asked, 30):
        assert judge.whole(step) == decision
    planned = time.monotonic()
    kept = [
        [f"{ROOT}/{one}{slot if 'deleted' in one else ''}" if "/" in one else one for one in mixed.KEPT_FILES]
        for slot in range(len(ACTORS))
    ]
    plans = [mixed.plan(calls, order, kept[slot]) for slot, (calls, _, order) in enumerate(scripts)]
    said = defaultdict(list)
    acting = Acting(plans)
    try:
        until(lambda: acting.ready == len(ACTORS), "all actors are ready")
        pids = acting.pids
        for pid, actor in zip(pids, ACTORS, strict=True):
            if actor.cgroup is not None:
                (cgroups[actor.cgroup] / "cgroup.procs").write_text(str(pid))
        while heard(live, said, -1, 0.1):
            pass
        real.cgroup_modes({folder.parent.stat().st_ino: mode for mode, folder in cgroups.items()})
        spared = [
            str(Path("/proc/self/exe").readlink()),
            *(f"{ROOT}/{actor.exe}" for actor in ACTORS if actor.spared),
        ]
        real.spare([Spared(path, "a test", resolve(path)) for path in spared])
        real._switch.denials_a_second = 0
        guards.policies.add(real.epoch + 1, compiled)
        epoch = real.use(compiled, list(live.normalizer.table))
        before = real.counters()
        start = time.monotonic()
        acting.go()
        while acting.done < len(ACTORS):
            heard(live, said, epoch, 0.1)
            assert time.monotonic() < start + 250, f"{acting.done} of {len(ACTORS)} are through"
        end = time.monotonic()
        while heard(live, said, epoch, 0.1):
            pass
        after = real.counters()
    finally:
        real._switch.denials_a_second = 200
        guards.use()
        acting.stop()
    results = [acting.results(slot, len(order)) for slot, (_, _, order) in enumerate(scripts)]

    wrong = Counter()
    examples = {}
    outcomes = Counter()
    refused = 0
    for slot, ((calls, expected, order), (errors, children), pid) in enumerate(
        zip(scripts, results, pids, strict=True)
    ):
        wants = [as_told(one) for one in expected]
        for index, times in Counter(order).items():
            refused += times * expected[index].refused
            for _, decision in expected[index].said:
                outcomes[decision.outcome.name] += times
        records, at = said[pid], 0
        for index, error, child in zip(order, errors, children, strict=True):
            want = wants[index]
            if child:
                got = said.get(child, [])
            else:
                got = records[at : at + len(want)]
                at += len(want)
            if got == want and (error == EPERM) == expected[index].refused:
                continue
            if got == want and expected[index].by_signal and error > SIGNALLED:
                continue
            call = calls[index]
            key = (slot, call.name, tuple(step.operation.hook.name for step in call.steps))
            wrong[key] += 1
            examples.setdefault(key, (error, in_words(got), in_words(want), call))
        if len(records) != at:
            wrong[slot, "records left", len(records) - at] += 1
    number = sum(len(order) for _, _, order in scripts)
    counted = {name: after[name] - before[name] for name in after}
    figures = {
        "operations": number, "refused": refused, **outcomes, "ways": len(compiled.ways), "rules": len(compiled.rules),
        "planning_seconds": round(planned - began, 1), "seconds": round(end - start, 1), "counted": counted,
        "check_seconds": round(time.monotonic() - end, 1),
    }  # fmt: skip
    print(figures)  # noqa: T201 -- -rP shows it
    record_property("figures", str(figures))
    report = [
        f"{times} x {key}: error, told, expected, call: {examples.get(key)}"
        for key, times in wrong.most_common(40)
    ]
    assert not wrong, "\n\n".join([str(figures), *report])
    assert refused > number // 10
    assert {"DENIED", "WOULD_DENY", "LOGGED", "SPARED"} <= outcomes.keys()
    assert {name: counted[name.lower()] for name in ("DENIED", "WOULD_DENY", "LOGGED")} == {
        name: outcomes[name] for name in ("DENIED", "WOULD_DENY", "LOGGED")
    }
    assert counted["spared"] >= outcomes["SPARED"]
    assert (
        counted["no_room"],
        counted["too_deep"],
        counted["records_dropped"],
        counted["records_limited"],
    ) == (0, 0, 0, 0)
