# SPDX-License-Identifier: Apache-2.0
"""The same number everywhere: the loaded program, its twin, and a reference written from the documentation alone."""

import contextlib
import os
import platform
import random
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from detectors.slow_reference import Reference
from detectors.slow_reference import program_hash as slow_program_hash
from detectors.slow_reference import script_hash as slow_script_hash

from ksentinel import syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.pathhash import program_hash
from ksentinel.detectors.kerneltable import NEVER, KernelTable, Row, Thread, calibrated
from ksentinel.detectors.ngram import NGramModel
from ksentinel.event import Process, ProcessKey
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import LAUNCHERS, TERMINALS, ProcessTable
from ksentinel.shipped import shipped
from ksentinel.sources.procfs import running
from ksentinel.sources.ringbuf import CAPTURES, Collector, Wanted
from ksentinel.window import Cause, Window

pytestmark = pytest.mark.bpf

ARCH = platform.machine()
SEED = 0x5EED
ME = "/me/myself"
REGISTERS = 8  # of nobody: the thread is found by its task
FILLER = syscalls.numbers(ARCH)["getppid"]


def row(chance, order, *, full=0.4, drift=9):
    """Return a row of random numbers; *full* is the share of entries that are taken."""
    surprise = np.array([chance.randrange(255) for _ in range(1 << 12)] * 16, np.uint8)
    empty = np.random.default_rng(chance.randrange(1 << 30)).random(len(surprise)) > full
    surprise[empty] = NEVER
    return Row(
        chance.getrandbits(64), chance.getrandbits(64), order, surprise, drift=drift,
        mean_limit=chance.randrange(100 << 16), cusum_limit=chance.randrange(1 << 12), process_limit=chance.randrange(1 << 14),
        carry_fork=chance.randrange(257), carry_exec=chance.randrange(257), decay=chance.randrange(1, 9),
        never=chance.randrange(200, 255), outside=chance.randrange(40),
        penalty=(0, *sorted(chance.randrange(120) for _ in range(7))), mask=(1 << chance.randrange(10, 17)) - 1,
    )  # fmt: skip


def table(seed, order=5, **options):
    """Return a model of random numbers: the host's row, lineages, and one of our own."""
    chance = random.Random(seed)
    lineages = {
        ("/a",): 10, ("/b",): 30, ("/b", "/a"): 70, ("/a", "/b"): 90, ("/b", "/a", "/b"): 200, (ME,): 5,
    }  # fmt: skip
    rows = [row(chance, order, full=0.7, **options), row(chance, 3), row(chance, order, **options)]
    rows[1].surprise[:] = NEVER
    return KernelTable(rows, {(ME, ""): 2}, lineages)


@contextlib.contextmanager
def loaded(model, **options):
    """Give the collector, loaded and attached, watching this very process but no other."""
    me = abi.Process(program=program_hash(ME, SEED), flags=abi.ProcessFlag.FAMILY)
    with Collector(
        shipped("lsm_bpf/trace.bpf.o"), 0, ARCH, table=model, path_seed=SEED, processes=lambda: [(os.getpid(), me)],
        wanted=Wanted(pids=(os.getpid(),)), **options,
    ) as collector:  # fmt: skip
        # Calls by test run only: none of our own may come between.
        collector._object.detach_program(collector.entry)
        # What this process did before fills windows, too: until the second one is full there, and `FILLER` alone is in
        # the history.
        for _ in range(2):
            while not windows(collector):
                collector._object.run(collector.entry, REGISTERS, FILLER)
        yield collector


def windows(collector):
    """Return the windows that have arrived."""
    return [
        abi.Window.from_buffer_copy(record)
        for record in collector._take()
        if abi.Header.from_buffer_copy(record).kind == abi.Kind.WINDOW
    ]


def sequences(chance, count):
    """Return system call numbers as programs make them: loops with variations, and now and then anything."""
    quiet = [n for n in range(300) if n not in {syscalls.numbers(ARCH).get(name) for name in CAPTURES}]
    motifs = [[chance.choice(quiet) for _ in range(chance.randrange(1, 9))] for _ in range(6)]
    calls = []
    while len(calls) < count:
        calls += chance.choice(motifs) if chance.random() < 0.9 else [chance.choice([9999, -1, *quiet])]
    return calls[:count]


@pytest.mark.parametrize(
    ("seed", "order", "count"), [(1, 5, 3000), (2, 8, 1500), (3, 1, 700), (4, 6, 700), (5, 2, 700)]
)
def test_equal_to_the_bit(seed, order, count):
    """Thousands of calls, one test run each: windows, means, CUSUMs, the process' score: all three agree."""
    model = table(seed, order, drift=random.Random(seed).choice([9, 60, 130]))
    calls = sequences(random.Random(seed), count - count % abi.WINDOW)
    with loaded(model) as collector:
        mine = collector._object.map("processes")
        descriptor = os.pidfd_open(os.getpid())
        before = mine.lookup(descriptor, abi.Process).score
        os.close(descriptor)
        for call in calls:
            collector._object.run(collector.entry, REGISTERS, call & (1 << 64) - 1)
        found = windows(collector)

    reference = Reference(model.images(2, SEED))
    twin, slow = Thread(model, 2), None
    tokens = [syscalls.token(call) for call in calls]
    assert [list(w.tokens) for w in found] == [tokens[i : i + 64] for i in range(0, len(tokens), 64)]
    for i, window in enumerate(found):
        # What this process did before it was this test's is in the first window's beginning.
        if slow is None:
            twin, slow = Thread(model, 2), reference.thread(2)
            for _ in range(abi.WINDOW):
                twin.feed([FILLER])
                slow.token(FILLER)
            for thread in (twin, slow):
                thread.close()
                thread.mean, thread.cusum = window.begin_mean, window.begin_cusum
                thread.process.score = before
            twin.begin_mean, twin.begin_cusum = twin.mean, twin.cusum
        part = tokens[64 * i : 64 * i + 64]
        assert twin.feed(part) == [slow.token(token) for token in part]
        fast, closed = twin.close(), slow.close()
        kernel = (
            window.mean,
            window.cusum,
            window.peak_mean,
            window.peak_cusum,
            window.scored,
            window.process,
        )
        assert kernel == (fast.mean, fast.cusum, fast.peak_mean, fast.peak_cusum, fast.scored, fast.process)
        assert kernel == (
            closed.mean, closed.cusum, closed.peak_mean, closed.peak_cusum, closed.scored, closed.process,
        )  # fmt: skip
        assert (window.row, window.begin_mean, window.begin_cusum) == (2, fast.begin_mean, fast.begin_cusum)
        assert bool(window.over) == closed.flagged == bool(fast.over(model.rows[2]))
        names = {limit.name.lower() for limit in abi.Over if limit & window.over}
        assert names == set(fast.over(model.rows[2]))


def test_twin_and_reference():
    """Also where the kernel isn't asked: exec, fork and clone, in any order, by many threads."""
    chance = random.Random(7)
    for seed in range(6):
        model = table(seed, chance.randrange(1, 9))
        reference = Reference(model.images(1, SEED))
        pairs = [(Thread(model, 2), reference.thread(2))]
        for _ in range(300):
            twin, slow = chance.choice(pairs)
            what = chance.random()
            if what < 0.6:
                tokens = [chance.randrange(4096) for _ in range(chance.randrange(1, 30))]
                assert twin.feed(tokens) == [slow.token(token) for token in tokens]
            elif what < 0.8:
                fast, closed = twin.close(), slow.close()
                assert (fast.mean, fast.cusum, fast.sum, fast.process) == (
                    closed.mean, closed.cusum, closed.sum, closed.process,
                )  # fmt: skip
            elif what < 0.9:
                chain = tuple(chance.choice(["/a", "/b", "/c"]) for _ in range(chance.randrange(1, 4)))
                to = chance.choice([0, 2])
                twin.close()
                surprise = twin.exec(to, chain)
                hashes = [program_hash(name, SEED) for name in chain]
                _, expected = slow.exec(to, hashes)
                assert surprise == expected
            elif what < 0.95:
                pairs.append((twin.fork(), slow.fork()))
            else:
                pairs.append((twin.clone(), slow.clone()))


def test_path_hashes():
    """Programs and scripts are known by the same hashes as the documentation says."""
    for path in ("/usr/bin/sh", "/a", "//x//y", "/srv/caf\udce9/run"):
        raw = path.encode("utf-8", "surrogateescape")
        assert program_hash(path, SEED) == slow_program_hash(raw, SEED)
        assert program_hash(f"#!{path}", SEED) == slow_script_hash(raw, SEED)


class Live:
    """Raw records of everything that runs while the block lasts, and the processes as user space knows them."""

    def __init__(self, model, **options):
        # A flood by anybody else is no business of these tests.
        self.model, self.records, self.options = model, [], {"wanted": Wanted(pids=(os.getpid(),)), **options}
        self.normalizer = BpfNormalizer(ProcessTable(), 0, ARCH, None)

    def __enter__(self):
        def introduce():
            self.normalizer.known(running())
            return self.normalizer.introductions(SEED, (os.getpid(),))

        names = dict.fromkeys(LAUNCHERS, abi.NameFlag.LAUNCHER) | dict.fromkeys(
            TERMINALS, abi.NameFlag.TERMINAL
        )
        self.collector = Collector(
            shipped("lsm_bpf/trace.bpf.o"), os.getpid(), ARCH, table=self.model, path_seed=SEED, names=names,
            processes=introduce, **self.options,
        )  # fmt: skip
        self.collector.__enter__()
        return self

    def __exit__(self, kind, error, trace):
        for records in self.collector.finish():
            self._take(records)
        self.account = self.collector.account()
        self.collector.__exit__(kind, error, trace)

    def _take(self, records):
        for record in records:
            self.records.append((bytes(record), self.normalizer.item(record)))

    def run(self, *command):
        """Run a command to its end."""
        with subprocess.Popen(command) as child:
            while child.poll() is None:
                self._take(self.collector.poll(0.05))
        while records := self.collector.poll(0):  # what has been waited for has told everything
            self._take(records)
        assert child.returncode == 0
        return child.pid


WORKLOAD = """
import os, subprocess, sys, threading
def spin():
    for _ in range(300): os.getppid(); os.stat("/"); os.getuid()
threads = [threading.Thread(target=spin) for _ in range(5)]
[t.start() for t in threads]; [t.join() for t in threads]
for i in range(8):
    subprocess.run(["/bin/sh", "-c", "cat /etc/hostname >/dev/null; exec true"])
with open(sys.argv[1], "w") as f: f.write("#!/bin/sh\\nid >/dev/null\\n")
os.chmod(sys.argv[1], 0o755)
for i in range(3): subprocess.run([sys.argv[1]])
pid = os.fork()
if not pid:
    spin(); os._exit(0)
os.waitpid(pid, 0)
"""


def test_live(tmp_path):
    """Real threads, forks and execs: each window follows from the one before, to the bit; rows and lineages are right."""
    chance = random.Random(11)
    profiles = ["/usr/bin/dash", "/usr/bin/cat", os.path.realpath(sys.executable), f"#!{tmp_path}/script"]
    rows = [row(chance, 5, full=0.7), row(chance, 3), *(row(chance, 5) for _ in profiles)]
    rows[1].surprise[:] = NEVER
    names = {(name, ""): 2 + i for i, name in enumerate(profiles)}
    names["/usr/bin/cat", os.path.realpath(sys.executable)] = names["/usr/bin/dash", ""]
    lineages = {("/usr/bin/dash",): 4, ("/usr/bin/cat", "/usr/bin/dash"): 44, ("/usr/bin/true",): 3}
    model = KernelTable(rows, names, lineages)
    with Live(model) as live:
        pid = live.run(sys.executable, "-ISc", textwrap.dedent(WORKLOAD), str(tmp_path / "script"))

    twins, checked, execs, rows_used = {}, 0, 0, set()
    for record, item in live.records:
        # Others' processes may be born as the collector is attached, or execute as it stops.
        if item is None or not any(p.key.pid == pid for p in (item.process, *item.process.ancestors())):
            continue
        header = abi.Header.from_buffer_copy(record)
        if header.kind == abi.Kind.EXEC:
            told = abi.Exec.from_buffer_copy(record)
            process = item.process
            chain = (process.program, *process.before)
            assert told.program == program_hash(process.program, SEED)
            before = [program_hash(name, SEED) for name in process.before]
            assert [told.before[n] for n in range(told.known)] == before
            assert told.service == program_hash(process.service_program, SEED)
            assert told.row == model.row_of((process.program, process.service_program))
            assert told.surprise == model.lineage_surprise(chain)
            last = twins.get((header.tgid, header.tid))
            if last is not None and not last.scored:
                share = model.rows[last.row].carry_exec
                assert (told.mean, told.cusum) == (last.mean * share >> 8, last.cusum * share >> 8)
            # The exec token: as in `Thread.exec`, but the scores are those that the record says were carried over.
            twin = Thread(model, told.row, mean=told.mean, cusum=told.cusum)
            twin.low, twin.high, twin.depth, twin.level = syscalls.EXEC, 0, 1, 1
            new = model.rows[told.row]
            twin.mean += ((told.surprise << 16) - twin.mean) >> new.decay
            twin.cusum = max(twin.cusum + told.surprise - new.drift, 0)
            twin.peak_mean, twin.peak_cusum, twin.sum, twin.scored = twin.mean, twin.cusum, told.surprise, 1
            twins[header.tgid, header.tid] = twin
            execs += 1
        if header.kind != abi.Kind.WINDOW:
            continue
        window = abi.Window.from_buffer_copy(record)
        key = (header.tgid, header.tid)
        twin = twins.get(key)
        tokens = list(window.tokens[: window.count])
        if twin is None:
            if window.sequence:
                continue  # it ran before
            twin = twins[key] = Thread(model, window.row, mean=window.begin_mean, cusum=window.begin_cusum)
        elif tokens[0] == syscalls.EXEC:
            tokens = tokens[1:]
        assert window.row == twin.row
        assert (twin.begin_mean, twin.begin_cusum) == (window.begin_mean, window.begin_cusum)
        twin.feed(tokens)
        fast = twin.close()
        assert (fast.mean, fast.cusum, fast.peak_mean, fast.peak_cusum, fast.scored) == (
            window.mean, window.cusum, window.peak_mean, window.peak_cusum, window.scored,
        )  # fmt: skip
        rows_used.add(window.row)
        checked += 1
    assert execs >= 30
    assert checked > 100
    assert rows_used >= set(range(2, 6))
    assert live.account["unscored"] == 0
    assert live.account["records_missing"] == live.account["windows_dropped"] == 0


def test_lineage(tmp_path):
    """A shell below a server: server, shell and cat are each common on this host, only who started whom is new."""
    for name in ("server", "timer"):
        shutil.copy("/usr/bin/dash", tmp_path / name)
    server, timer, shell, cat = (
        str(tmp_path / "server"),
        str(tmp_path / "timer"),
        "/usr/bin/dash",
        "/usr/bin/cat",
    )
    python = os.path.realpath(sys.executable)
    chains = [
        (server, python),
        (timer, python),
        (shell, timer, python),
        (cat, shell, timer),
        (cat, shell, python),
    ]
    windows = []
    for n in range(300):
        program, *before = chains[n % len(chains)]
        process = Process(ProcessKey(n + 2, n), exe=program, before=tuple(before))
        windows.append(Window(process, n + 2, n, n + 1, (syscalls.EXEC, *range(20)), Cause.EXIT))
    ngram = NGramModel(5).fit(windows[:200])
    model = calibrated(KernelTable.fit(ngram, windows[:200], os.urandom), ngram, windows[200:])
    what = f"{shell} -c '{cat} /dev/null; :'; :"
    surprises = {}
    with Live(model) as live:
        for program in (timer, server):
            pid = live.run(program, "-c", what)
            for record, item in live.records:
                if abi.Header.from_buffer_copy(record).kind == abi.Kind.EXEC and any(
                    p.key.pid == pid for p in (item.process, *item.process.ancestors())
                ):
                    surprises[program, item.process.program] = abi.Exec.from_buffer_copy(record).surprise

    assert surprises[server, shell] >= surprises[timer, shell] + 8 * 3
    assert surprises[server, cat] >= surprises[timer, cat] + 8 * 3
    assert surprises[server, server] == surprises[timer, timer]
