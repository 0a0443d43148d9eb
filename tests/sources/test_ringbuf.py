# SPDX-License-Identifier: Apache-2.0
"""The collector, live: it begins, runs full, stops, is killed. Each run's account must add up, whatever it was about."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from watch import ARCH, EVERYBODY, SEED, Watch, bpf_ids, exists, in_full, token

from ksentinel.bpf import abi
from ksentinel.bpf.libbpf import Object
from ksentinel.bpf.pathhash import program_hash
from ksentinel.errors import HostError
from ksentinel.event import ExitEvent, ForkEvent, SyscallEvent
from ksentinel.sources.procfs import running
from ksentinel.sources.ringbuf import Collector, Sequences, Wanted
from ksentinel.window import Cause, Window

pytestmark = pytest.mark.bpf

SECOND = 1_000_000_000


@pytest.fixture(scope="module", autouse=True)
def _clean():
    """Leave nothing behind."""
    yield
    assert bpf_ids(os.getpid()) == {}


def numbered(number, cpu=0, program=0):
    """Return a record of which nothing but its number counts."""
    return memoryview(bytes(abi.Header(sequence=number & 0xFFFFFFFF, cpu=cpu, program=program)))


@pytest.mark.parametrize(
    ("records", "missing", "behind"),
    [
        ([], 0, 5),
        ([0, 1, 2], 0, 2),
        ([0, 2, 4], 2, 0),
        ([1], 1, 3),
        ([4], 4, 0),
    ],
)
def test_sequences(records, missing, behind):
    """Numbers that are passed over are records that are missing, from the first on, and up to how many were numbered."""
    sequences = Sequences()
    for number in records:
        sequences.seen(numbered(number))

    assert (sequences.missing, sequences.behind(0, 0, 5)) == (missing, behind)


def test_sequences_of_their_own():
    """Each program counts for itself on each CPU; after four billion it begins anew."""
    sequences = Sequences()
    for number in range(3):
        for cpu in (0, 1):
            for program in range(5):
                sequences.seen(numbered(number, cpu, program))
    assert sequences.missing == 0
    assert sequences.behind(5, 0, 7) == sequences.behind(0, 2, 7) == 7

    sequences.seen(numbered(-1))
    assert sequences.missing == (1 << 32) - 4
    sequences.seen(numbered(0))
    sequences.seen(numbered(2))
    assert (sequences.missing, sequences.behind(0, 0, (1 << 32) + 3)) == ((1 << 32) - 3, 0)


"""What calls are about: paths, and addresses that a datagram socket is bound to send to, which sends nothing."""


def test_idle():
    """A thread that sleeps has its window sent, with the time of its last call and not of the sweep."""
    code = """
        import os, sys, time
        print(time.clock_gettime_ns(time.CLOCK_BOOTTIME), flush=True)
        sys.stdin.readline()
        os.getppid()
    """
    command = [sys.executable, "-ISc", textwrap.dedent(code)]
    with (
        Watch(idle_seconds=0.3) as watch,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child,
    ):
        printed = int(child.stdout.readline())
        while not (idle := [w for w in watch.raw(abi.Window, child.pid) if w.cause == Cause.IDLE]):
            watch.poll()
        child.stdin.close()
    (window,), swept = idle, idle[0].header.time_ns

    assert printed - SECOND / 50 <= window.last_ns <= swept - 0.3 * SECOND + SECOND / 50
    assert window.first_ns <= window.last_ns
    assert token("getppid") not in window.tokens[: window.count]


def test_stop_flush():
    """At the end every thread's rest is sent, also of those that sleep."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as cat:
        with Watch(idle_seconds=60) as watch:
            cat.stdin.write(b"x")
            cat.stdin.flush()
            watch.poll()
            time.sleep(0.1)
        cat.stdin.close()
    (window,) = watch.of(Window, cat.pid)

    assert window.cause is Cause.STOP
    assert {token("write"), token("read")} == set(window.tokens)


@pytest.mark.slow
def test_many_short_processes():
    """Of ten thousand processes each is born and ends, whatever else happens; at the end the table is what /proc is."""
    with subprocess.Popen(["/bin/sleep", "600"]) as sleeper, Watch() as watch:
        loop = "i=0; while [ $i -lt {} ]; do {}; i=$((i+1)); done"
        pid, _ = watch.run("/bin/sh", "-c", loop.format(9500, "(:)") + "; " + loop.format(500, "/bin/true"))
        watch.poll(0)
        known = {process.key: process for process in watch.table}
        there = {process.key: process for process in running()}
        sleeper.kill()
    born = [e.process.key for e in watch.of(ForkEvent) if e.process.parent.key.pid == pid]
    ended = [
        e.process.key for e in watch.of(ExitEvent) if e.process.parent and e.process.parent.key.pid == pid
    ]

    assert len(born) == len(set(born)) == 10_000
    assert sorted(born) == sorted(ended)
    assert [process for process in watch.table if process.key in set(born)] == []
    assert watch.table.forgotten == watch.account["lifecycle_dropped"] == watch.account["no_inheritance"] == 0
    mine = [key for key in there if key.pid in {os.getpid(), os.getppid(), sleeper.pid, 1}]
    assert [key for key in mine if known[key].exe != there[key].exe] == []
    # Whoever ends or begins as this is looked at is in one of them alone.
    assert len(set(known) ^ set(there)) < 0.2 * len(there) + 10


def test_small_ring():
    """What doesn't fit is counted, and the collector goes on."""
    with Watch(ring_bytes=4096) as watch:
        flood = "import os\nfor _ in range(20000): os.getppid()"
        subprocess.run([sys.executable, "-ISc", flood], check=True)
        watch.poll()
        pid, _ = watch.python("import os, time\nfor _ in range(200): os.getppid(); time.sleep(0.001)")

    assert watch.account["windows_dropped"] > 200
    assert watch.account["tokens_dropped"] > 200 * 50
    assert watch.of(Window, pid)


def test_lossy():
    """After a dropped window the next one of the same thread says so, and the ones after it don't."""
    code = """
        import os, sys
        while line := sys.stdin.readline():
            for _ in range(int(line)):
                os.getppid()
            print(flush=True)
    """
    command = [sys.executable, "-ISc", textwrap.dedent(code)]
    with (
        Watch(ring_bytes=16384, wanted=Wanted(pids=(os.getpid(),))) as watch,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child,
    ):

        def make(calls):
            child.stdin.write(f"{calls}\n")
            child.stdin.flush()
            child.stdout.readline()
            watch.poll(0)

        make(64)
        make(64)
        started = len(watch.of(Window, child.pid))
        make(64 * 200)
        for _ in range(4):
            make(64)
        child.stdin.close()
    flags = [w.lossy for w in watch.of(Window, child.pid)[started:]]

    assert watch.account["windows_dropped"] >= 30
    assert flags.count(True) == 1
    assert flags[:5] == [False] * 5
    assert flags[-2:] == [False] * 2


def test_own():
    """The observer's own threads are counted and not observed."""
    with Watch(wanted=EVERYBODY) as watch:
        before = watch.collector.counters()["own"]
        thread = threading.Thread(target=lambda: [os.getppid() for _ in range(1000)])
        thread.start()
        thread.join()
        own = watch.collector.counters()["own"] - before

    assert own >= 1000
    assert watch.of(Window, os.getpid()) == []
    assert watch.of(SyscallEvent, os.getpid()) == []


def test_finish_while_processes_end():
    """Stopping in the middle of a storm of short processes loses nothing."""
    with subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true; done"]) as storm:
        try:
            for _ in range(2):
                with Watch(wanted=EVERYBODY) as watch:
                    for _ in range(4):
                        watch.poll()
                assert watch.account["lifecycle"] > 0
        finally:
            storm.kill()


def test_attached_and_detached_slowly(monkeypatch):
    """Programs that begin and end between two steps of beginning or ending are accounted for like all others."""
    for name in ("attach", "detach_program"):
        original = getattr(Object, name)

        def slowly(*arguments, step=original):
            time.sleep(0.03)
            step(*arguments)

        monkeypatch.setattr(Object, name, slowly)
    with subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/true; /bin/sleep 0.2 & done"]) as storm:
        try:
            with Watch() as watch:
                watch.poll(0)
        finally:
            storm.kill()

    assert watch.account["exec_tokens"] > 0


def kernel_says(watch, pid):
    """Return what the kernel's side knows of a process."""
    descriptor = os.pidfd_open(pid)
    try:
        return watch.collector._object.map("processes").lookup(descriptor, abi.Process)
    finally:
        os.close(descriptor)


def test_already_running():
    """Processes that ran before are known by name, with their parents."""
    with subprocess.Popen(["/bin/sleep", "60"]) as sleep:
        time.sleep(0.05)
        with Watch() as watch:
            found = kernel_says(watch, sleep.pid)
            sleep.kill()
            sleep.wait()
            watch.poll()
    (ended,) = watch.of(ExitEvent, sleep.pid)

    assert found.program == program_hash(in_full("/bin/sleep"), SEED)
    assert found.flags & abi.ProcessFlag.FAMILY
    assert ended.process.exe == in_full("/bin/sleep")
    assert ended.process.parent.key.pid == os.getpid()


def test_killed_observer_leaves_nothing():
    """However the observer ends, the kernel removes its programs, maps and links."""
    code = f"""
        import os, sys, time
        sys.path[:0] = {sys.path!r}
        from ksentinel.shipped import shipped
        from ksentinel.sources.ringbuf import Collector
        with Collector(shipped("lsm_bpf/trace.bpf.o"), os.getpid(), {ARCH!r}):
            print("up", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-Ic", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as observer:
        try:
            assert observer.stdout.readline() == "up\n"
            held = bpf_ids(observer.pid)
            assert {kind: len(ids) for kind, ids in held.items()}.keys() == {"prog_id", "link_id", "map_id"}
            assert len(held["prog_id"]) == 6
            assert all(exists(kind, number) for kind, ids in held.items() for number in ids)
        finally:
            observer.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    left = {(kind, number) for kind, ids in held.items() for number in ids}
    while left and time.monotonic() < end:
        left = {(kind, number) for kind, number in left if exists(kind, number)}
        time.sleep(0.05)

    assert left == set()


def test_not_compiled(tmp_path):
    """Without the object, the error says how to get it."""
    with pytest.raises(HostError, match="make bpf"), Collector(tmp_path / "none.bpf.o", 1, ARCH):
        pass


def test_not_an_object(tmp_path):
    """A file that is something else is refused with its name, and nothing stays loaded."""
    (tmp_path / "no.bpf.o").write_bytes(b"no ELF at all")
    with pytest.raises(HostError, match=r"no\.bpf\.o"), Collector(tmp_path / "no.bpf.o", 1, ARCH):
        pass


def test_records_carry_one_process_key():
    """A process has the same key from the ring buffer and from /proc."""
    with (
        Watch(known=False, wanted=EVERYBODY) as watch,
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as cat,
    ):
        for _ in range(100):
            watch.poll(0.02)
            if watch.table.get(cat.pid) and watch.table.get(cat.pid).exe == in_full("/bin/cat"):
                break
        (found,) = [process.key for process in running() if process.key.pid == cat.pid]
        assert watch.table.get(cat.pid).key == found
        cat.stdin.close()
