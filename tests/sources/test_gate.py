# SPDX-License-Identifier: Apache-2.0
"""The collector with a model, live: who inherits scores, what a new model changes, and which windows get out."""

import copy
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from scipy.stats import binom
from watch import ARCH, OBJECT, SEED, Watch, in_full, token

from ksentinel import syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.pathhash import program_hash
from ksentinel.detectors.kerneltable import ENTRIES, NEVER, ROW_FIRST, KernelTable, Row, Thread
from ksentinel.errors import ModelError
from ksentinel.event import SyscallEvent
from ksentinel.sources.ringbuf import Collector
from ksentinel.window import Window

pytestmark = pytest.mark.bpf

PYTHON = in_full(sys.executable)
MOST = 0xFFFFFFFF
NOBODY = Row(1, 2, 0, np.full(ENTRIES, NEVER, np.uint8))
"""A row of no lineages."""


def random_table(seed, *, row=ROW_FIRST, drift=60):
    """Return a model of random numbers in which Python has a row of its own."""
    chance = np.random.default_rng(seed)

    def one(full):
        surprise = chance.integers(0, 250, ENTRIES).astype(np.uint8)
        surprise[chance.random(ENTRIES) > full] = NEVER
        return Row(
            *(int(n) for n in chance.integers(0, 1 << 63, 2)), 4, surprise, drift=drift,
            mean_limit=int(chance.integers(60, 160)) << 16, cusum_limit=int(chance.integers(1000, 4000)),
            process_limit=MOST, carry_fork=int(chance.integers(50, 250)), carry_exec=200,
            decay=int(chance.integers(3, 7)), never=200,
        )  # fmt: skip

    rows = [one(0.8), NOBODY, *(one(0.5) for _ in range(row - 1))]
    return KernelTable(rows, {(PYTHON, ""): row}, {})


def flat_table(limit, names=None, **others):
    """Return a model to which everything is equally surprising; *others* have limits of their own."""
    nothing = np.full(ENTRIES, NEVER, np.uint8)

    def row(limit):
        return Row(3, 4, 2, nothing, 1, limit, limit, limit, never=200)

    rows = [row(limit), NOBODY, *(row(other) for other in others.values())]
    names = {(in_full(name), ""): ROW_FIRST + n for n, name in enumerate(names or ())}
    return KernelTable(rows, names, {})


def begun(model, mean, cusum):
    """Return the twin of a thread that has just become Python."""
    twin = Thread(model, model.names[PYTHON, ""], mean=mean, cusum=cusum)
    twin.low, twin.high, twin.depth, twin.level = syscalls.EXEC, 0, 1, 1
    return twin


def test_inheritance():
    """A child process begins with its share of its parent's scores, a thread with all of its maker's: at that very call."""
    model = random_table(5)
    share = model.rows[ROW_FIRST].carry_fork
    with Watch(table=model) as watch:
        pid, output = watch.python("""
            import os, threading
            def spin(n):
                for _ in range(n): os.getppid(); os.getuid(); os.stat("/")
            def work():
                print(threading.get_native_id(), flush=True)
                spin(30)
            spin(40)
            for _ in range(3):
                if not os.fork(): spin(30); os._exit(0)
                os.wait()
                spin(17)
            for _ in range(3):
                thread = threading.Thread(target=work)
                thread.start(); thread.join()
                spin(5)
        """)
    (told,) = watch.raw(abi.Exec, pid)
    windows = [w for w in watch.raw(abi.Window, pid) if w.header.time_ns >= told.header.time_ns]
    births, twin, process = [], begun(model, told.mean, told.cusum), [(0, told.process)]
    for window in windows:
        process.append((window.header.time_ns, window.process))
        if window.header.tid != pid:
            continue
        for number in window.tokens[: window.count]:
            if number != syscalls.EXEC:
                twin.feed([number])
            if number in {token("clone"), token("clone3")}:
                births.append((twin.mean, twin.cusum))
        assert (window.mean, window.cusum) == (twin.close().mean, twin.cusum)
    forks = [f for f in map(as_fork, watch.records) if f is not None and f.parent_tgid == pid]
    threads = [int(line) for line in output.splitlines()]

    assert (len(births), len(forks), len(threads)) == (6, 3, 3)
    assert all(mean and cusum for mean, cusum in births)
    for (mean, cusum), fork in zip(births, forks, strict=False):
        first = watch.raw(abi.Window, fork.header.tgid)[0]
        last = [score for time, score in process if time <= fork.header.time_ns][-1]
        assert (fork.mean, fork.cusum) == (mean * share >> 8, cusum * share >> 8)
        assert (first.sequence, first.begin_mean, first.begin_cusum) == (0, fork.mean, fork.cusum)
        assert fork.process == last * share >> 8 > 0
    for scored, tid in zip(births[3:], threads, strict=True):
        first = next(w for w in windows if w.header.tid == tid)
        assert (first.sequence, (first.begin_mean, first.begin_cusum)) == (0, scored)
    assert watch.account["no_inheritance"] == 0


def as_fork(record):
    """Return a record as a fork, None if it is something else."""
    return abi.Fork.from_buffer_copy(record) if record[0] == abi.Kind.FORK else None


def switched(twin, model, row):
    """Return the twin of a thread that goes on with another model, all else as it was."""
    other = copy.copy(twin)
    other.table, other.row, other._known = model, row, {}
    return other


def test_new_models_under_load():
    """Models change while threads run: each window's numbers follow from the one it names, from one of its calls on."""
    models = {2: random_table(1), 3: random_table(2, row=3), 4: random_table(3)}
    code = """
        import os, sys, threading, time
        stop = []
        def work():
            while not stop: os.getppid(); os.getuid(); os.stat("/"); time.sleep(0.0003)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads: t.start()
        print(flush=True)
        sys.stdin.readline()
        stop.append(1)
        for t in threads: t.join()
    """
    command = [sys.executable, "-ISc", textwrap.dedent(code)]
    with (
        Watch(table=models[2]) as watch,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):
        child.stdout.readline()
        for epoch, model in models.items():
            if epoch > 2:
                watch.collector.use(model)
            for _ in range(2000):
                watch.poll()
                if len({w.header.tid for w in watch.raw(abi.Window, child.pid) if w.epoch == epoch}) >= 3:
                    break
        child.stdin.close()
        while child.poll() is None:
            watch.poll()
    windows = watch.raw(abi.Window, child.pid)
    twins, epochs, changes = {}, {}, 0
    for window in windows:
        tid, tokens = window.header.tid, list(window.tokens[: window.count])
        row = models[window.epoch].names[PYTHON, ""]
        twin = twins.get(tid)
        if twin is None:
            assert window.sequence == 0
            twin = Thread(models[window.epoch], row, mean=window.begin_mean, cusum=window.begin_cusum)
        if tokens[0] == syscalls.EXEC:
            twin = begun(models[window.epoch], window.begin_mean, window.begin_cusum)
            tokens = tokens[1:]
        assert window.row == row
        assert (twin.begin_mean, twin.begin_cusum) == (window.begin_mean, window.begin_cusum)
        told = (window.mean, window.cusum, window.peak_mean, window.peak_cusum, window.scored)
        if epochs.get(tid, window.epoch) == window.epoch:
            candidates = [through(twin, tokens, twin, [])]
        else:
            changes += 1
            candidates = [
                through(twin, tokens[:at], switched(twin, models[window.epoch], row), tokens[at:])
                for at in range(len(tokens))
            ]
        fitting = [after for after, found in candidates if found == told]
        assert fitting
        twins[tid], epochs[tid] = fitting[0], window.epoch
        limits = models[window.epoch].rows[row]
        over = (window.peak_mean > limits.mean_limit) * abi.Over.MEAN
        assert window.over == over | (window.peak_cusum > limits.cusum_limit) * abi.Over.CUSUM

    assert {window.epoch for window in windows} == {2, 3, 4}
    assert changes >= 2 * 3
    assert watch.account["unscored"] == 0


def through(twin, tokens, then, more):
    """Return what becomes of a thread by *tokens*, and by *more* with another model; and what its window says."""
    before = copy.copy(twin)
    before._known = twin._known if then is twin else {}
    before.feed(tokens)
    after = copy.copy(before)
    after.table, after.row, after._known = then.table, then.row, then._known
    after.feed(more)
    closed = after.close()
    return after, (closed.mean, closed.cusum, closed.peak_mean, closed.peak_cusum, closed.scored)


class Fake:
    """A model whose rows are what a test says."""

    def __init__(self, *images):
        self.given = images

    def images(self, *_):
        """Return them."""
        return self.given

    def keys(self, _):
        """Return nothing."""
        return iter(())


def test_impossible_models():
    """One that doesn't fit is refused, and the one before it stays in use."""
    whole = bytes(abi.Profile())
    with Watch(table=flat_table(0)) as watch:
        with pytest.raises(ModelError, match=r"has 67 rows, the kernel has room for 66 \(train it again\)"):
            watch.collector.use(Fake(*[whole] * 67))
        with pytest.raises(ModelError, match=r"row 1 has 65599 bytes, the kernel's have 65600 \(train"):
            watch.collector.use(Fake(whole, whole[:-1]))
        pid, _ = watch.run("/bin/true")

    assert {window.epoch for window in watch.raw(abi.Window, pid)} == {2}
    assert {window.over for window in watch.raw(abi.Window, pid)} == {7}
    with pytest.raises(ModelError, match="row 0 has 3 bytes"), Collector(OBJECT, 1, ARCH, table=Fake(b"abc")):
        pass


SPIN = """
    import os
    for _ in range(64000): os.getppid()
    try: os.open("/nowhere", os.O_RDONLY)
    except OSError: pass
"""


@pytest.mark.parametrize(
    ("limit", "sample"), [(MOST, 0.25), (MOST, 0.0), (MOST, 1.0), (0, 0.25), (None, 0.25)]
)
def test_gate(limit, sample):
    """What is over a limit gets out, of all else a share by chance; without a model there is nothing to tell them by."""
    table = None if limit is None else flat_table(limit)
    with Watch(table=table, gate=True, sample=sample) as watch:
        pid, _ = watch.python(SPIN)
    account = watch.account
    flagged, sampled, gated, ungated = (
        account[f"windows_{name}"] for name in ("flagged", "sampled", "gated", "ungated")
    )
    spun = [w for w in watch.of(Window, pid) if set(w.tokens) == {token("getppid")}]
    numbers = [w.sequence for w in watch.raw(abi.Window, pid)]

    assert numbers == sorted(set(numbers))
    assert {w.kernel.choice for w in spun if w.kernel} <= {"flagged", "sampled", "ungated"}
    assert [c for c in watch.of(SyscallEvent, pid) if c.paths == ("/nowhere",)]
    if limit is None:
        assert (flagged, sampled, gated) == (0, 0, 0)
        assert len(spun) >= 999
    elif limit == 0:
        assert (sampled, gated) == (0, 0)
        assert len(spun) >= 999
        assert {w.kernel.over for w in spun} == {("mean", "cusum", "process")}
    else:
        low, high = binom.ppf(5e-10, sampled + gated, sample), binom.isf(5e-10, sampled + gated, sample)
        assert flagged == 0
        assert low <= sampled <= high
        assert sampled + gated >= 999
        assert len(spun) <= sampled
    assert ungated == 0 or limit is None


def test_worse_windows_find_room(tmp_path):
    """Under a flood chance has to wait, then what is over a limit still gets out, and arguments, and lifecycle."""
    table = flat_table(1, ["/bin/cat", PYTHON], cat=1, python=MOST)
    with Watch(table=table, gate=True, sample=1.0, ring_bytes=256 << 10) as watch:
        subprocess.run([sys.executable, "-ISc", textwrap.dedent(SPIN)], check=True)
        fill = watch.collector.fill()
        with subprocess.Popen(["/bin/cat", "/nowhere"], stderr=subprocess.DEVNULL) as cat:
            cat.wait()
    account = watch.account

    assert 0.4 < fill < 0.75
    assert account["windows_shed"] > 300
    assert account["windows_dropped"] == account["windows_shed"]
    assert account["calls_dropped"] == account["lifecycle_dropped"] == 0
    assert {w.kernel.choice for w in watch.of(Window, cat.pid)} == {"flagged"}
    assert [c for c in watch.of(SyscallEvent, cat.pid) if c.paths == ("/nowhere",)]


def test_recognised(tmp_path):
    """A copy of a program that the model knows has its row from the next execution on."""
    shutil.copy("/bin/cat", tmp_path / "other")
    copied = str(tmp_path / "other")
    table = flat_table(MOST, ["/bin/cat"], cat=MOST)
    with Watch(table=table) as watch:
        first, _ = watch.run(copied, "/dev/null")
        watch.collector.recognise(copied, in_full("/bin/cat"))
        second, _ = watch.run(copied, "/dev/null")
        watch.collector.recognise(copied, "/bin/unknown")
        third, _ = watch.run("/bin/cat", "/dev/null")

    assert [watch.raw(abi.Exec, pid)[-1].row for pid in (first, second, third)] == [0, ROW_FIRST, ROW_FIRST]


def test_nothing_to_recognise():
    """Without a model there is nobody to be taken for."""
    with Watch() as watch:
        watch.collector.recognise("/a", "/b")
        pid, _ = watch.run("/bin/true")
    (told,) = watch.raw(abi.Exec, pid)

    assert (told.row, told.surprise, told.epoch) == (abi.ROW_NONE, NEVER, 1)
    assert told.program == program_hash(in_full("/bin/true"), SEED)
