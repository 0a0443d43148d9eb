# SPDX-License-Identifier: Apache-2.0
"""Who is watched, live: by program, user, family or control group; the calls of everybody else are counted to the last."""

import contextlib
import os
import subprocess
import sys
import textwrap
import time

import pytest
from watch import ARCH, EVERYBODY, OBJECT, SEED, Watch, in_full, token

from ksentinel import syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.pathhash import program_hash
from ksentinel.event import ExecEvent, ForkEvent, SyscallEvent
from ksentinel.mounts import MOUNTINFO, cgroup_mounts
from ksentinel.sources.ringbuf import CAPTURES, Collector, Wanted
from ksentinel.window import Window

pytestmark = pytest.mark.bpf

USER = 12345
NOWHERE = 8
"""Registers that nobody has: the thread is found by its task."""

CALLER = """
    import os, sys
    for line in sys.stdin:
        for word in line.split():
            if word == "open": os.path.exists("/x") or os.open("/", os.O_RDONLY)
            elif word == "fork":
                if not os.fork():
                    for _ in range(100): os.getppid()
                    os._exit(0)
                os.wait()
            elif word == "user": os.setresuid(12345, 12345, 12345)
            else:
                for _ in range(int(word)): os.getppid()
        print(flush=True)
"""


@contextlib.contextmanager
def caller(**options):
    """Give a child that was there before anybody looked, and a function that tells it what to do and waits for that."""
    command = [sys.executable, "-ISc", textwrap.dedent(CALLER)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as child:

        def tell(what):
            child.stdin.write(f"{what}\n")
            child.stdin.flush()
            child.stdout.readline()

        tell("1")
        try:
            yield child, tell
        finally:
            child.stdin.close()


def watched(watch):
    """Return the pids of whom there are windows."""
    return {window.process.key.pid for window in watch.of(Window)}


def test_counted_exactly():
    """Calls of a thread that nobody wants are counted, each of them, and none of its tokens or arguments is kept."""
    numbers = syscalls.numbers(ARCH)
    with Collector(OBJECT, 0, ARCH, wanted=Wanted(uids=(USER,)), path_seed=SEED) as collector:
        collector._object.detach_program("on_sys_enter")  # from here on there are only those made here
        before = collector.counters()["seen"]
        for number in [numbers["getppid"], numbers["openat"], 9999, 64] * 160:
            collector._object.run("on_sys_enter", NOWHERE, number)
        seen = collector.counters()["seen"] - before
        excluded = collector.counters()["excluded"]
        for _ in collector.finish():
            pass
        account = collector.account()

    assert seen == 640
    assert account["excluded"] - excluded >= 640
    assert account["seen"] == account["excluded"]
    assert [account[name] for name in ("scored", "unscored", "calls", "windows_sent", "tokens_sent")] == [
        0
    ] * 5


def test_family():
    """By pid: a process that ran already and what it forks from then on, and nobody else."""
    with (
        caller() as (mine, tell),
        caller() as (other, tell_other),
        Watch(wanted=Wanted(pids=(mine.pid,))) as watch,
    ):
        tell("640 fork open")
        tell_other("640 fork open")
        watch.poll()
    children = {e.process.key.pid for e in watch.of(ForkEvent) if e.process.parent.key.pid == mine.pid}
    calls = [t for tokens in watch.tokens(mine.pid).values() for t in tokens]

    assert len(children) == 1
    assert watched(watch) == {mine.pid, *children}
    assert calls.count(token("getppid")) == 640
    assert {c.process.key.pid for c in watch.of(SyscallEvent)} <= {mine.pid, *children}
    assert watch.calls(mine.pid, "open", "openat")
    assert watch.account["excluded"] >= 640
    # Lifecycle is everybody's: without it nobody knows who is who.
    assert [e for e in watch.of(ForkEvent) if e.process.parent.key.pid == other.pid]


def test_program():
    """By program: one that ran already and one that begins; what another becomes is no longer watched, and before it wasn't."""
    env = in_full("/usr/bin/env")
    with (
        subprocess.Popen(["/usr/bin/env", "-i", "/bin/sleep", "0"]) as early,
        caller() as (python, tell),
        Watch(wanted=Wanted(programs=(env, "/nothing"))) as watch,
    ):
        early.wait()
        tell("640")
        pid, _ = watch.run("/bin/sh", "-c", "exec /usr/bin/env -i /bin/true")
    programs = {window.process.program for window in watch.of(Window)}

    assert programs == {env}
    assert watched(watch) == {pid}
    assert python.pid not in watched(watch)
    assert [e.process.program for e in watch.of(ExecEvent, pid)] == [
        in_full("/bin/sh"),
        env,
        in_full("/bin/true"),
    ]
    assert watch.of(Window, pid)[0].tokens[0] == syscalls.EXEC
    assert {c.process.program for c in watch.of(SyscallEvent)} <= {env}


def test_program_that_ran_before():
    """A process that was there already is known by its program, too."""
    with caller() as (child, tell), Watch(wanted=Wanted(programs=(in_full(sys.executable),))) as watch:
        tell("640")
        watch.poll()
    calls = [t for tokens in watch.tokens(child.pid).values() for t in tokens]

    assert calls.count(token("getppid")) == 640


def test_script(tmp_path):
    """A script is a program of its own, known by the path that it was executed by: not its interpreter, nor a link to it."""
    script, link = tmp_path / "script", tmp_path / "link"
    script.write_text("#!/bin/sh\n:\n")
    script.chmod(0o755)
    link.symlink_to(script)
    with Watch(wanted=Wanted(programs=(f"#!{script}",))) as watch:
        pid, _ = watch.run(script)
        others = [
            watch.run(link)[0],
            watch.run("./script", cwd=tmp_path)[0],
            watch.run("/bin/sh", str(script))[0],
        ]
    named = {pid: watch.of(ExecEvent, pid)[-1].process.program for pid in (pid, *others)}

    assert watched(watch) == {pid}
    assert {w.process.program for w in watch.of(Window)} == {f"#!{script}"}
    assert list(named.values()) == [f"#!{script}", f"#!{link}", in_full("/bin/sh"), in_full("/bin/sh")]


def test_user():
    """By user: whoever runs as one, from the start or from an exec on."""
    with Watch(wanted=Wanted(uids=(USER,))) as watch:
        pid, _ = watch.run("/bin/sh", "-c", "/bin/true; :", user=USER)
        other, _ = watch.run("/bin/sh", "-c", ":")
    family = {pid} | {e.process.key.pid for e in watch.of(ForkEvent) if e.process.parent.key.pid == pid}

    assert len(family) == 2
    assert watched(watch) == family
    assert {w.process.uid for w in watch.of(Window)} == {USER}
    assert other not in watched(watch)


def test_user_from_then_on():
    """A daemon that gives up its rights without an exec is that user's from its next call on."""
    with caller() as (child, tell), Watch(wanted=Wanted(uids=(USER,))) as watch:
        tell("640")
        tell("user 320")
        watch.poll()
    calls = [t for tokens in watch.tokens(child.pid).values() for t in tokens]

    assert calls.count(token("getppid")) == 320


def test_user_no_longer():
    """Who becomes somebody else isn't watched any more."""
    with caller() as (child, tell), Watch(wanted=Wanted(uids=(os.getuid(),))) as watch:
        tell("320")
        tell("user 640")
        watch.poll()
    calls = [t for tokens in watch.tokens(child.pid).values() for t in tokens]

    assert calls.count(token("getppid")) == 320


def test_control_group():
    """By control group: those in it, from the moment on at which they come there."""
    top = cgroup_mounts(MOUNTINFO.read_text()).v2
    if top is None or not os.access(top, os.W_OK):
        pytest.skip("no cgroup v2 hierarchy that can be written")
    place = top / f"ksentinel-test-{os.getpid()}"
    place.mkdir()
    try:
        enter = f"echo $$ > {place}/cgroup.procs && exec /bin/sh -c '/bin/true; :'"
        with Watch(wanted=Wanted(cgroups=(place.stat().st_ino,))) as watch:
            pid, _ = watch.run("/bin/sh", "-c", enter)
            other, _ = watch.run("/bin/sh", "-c", "/bin/true; :")
    finally:
        place.rmdir()
    family = {pid} | {e.process.key.pid for e in watch.of(ForkEvent) if e.process.parent.key.pid == pid}

    moving, *rest = watch.of(Window, pid)

    assert len(family) == 2
    assert watched(watch) == family
    assert (moving.process.argv[-1], moving.tokens[-1]) == (enter, token("execve"))
    assert not {token("openat"), token("write")} & set(moving.tokens)
    assert len({w.process.cgroup for w in rest}) == 1
    assert rest[0].process.cgroup not in {None, watch.of(ExecEvent, other)[-1].process.cgroup}


def test_any_of_them():
    """Named in one way is enough."""
    wanted = Wanted(programs=(in_full("/bin/cat"),), uids=(USER,))
    with Watch(wanted=wanted) as watch:
        cat, _ = watch.run("/bin/cat", "/dev/null")
        somebody, _ = watch.run("/bin/true", user=USER)
        neither, _ = watch.run("/bin/true")

    assert watched(watch) == {cat, somebody}
    assert neither not in watched(watch)


@pytest.mark.parametrize(
    ("wanted", "kinds", "entries"),
    [
        (EVERYBODY, 0, []),
        (Wanted(pids=(5,)), abi.FilterKind.FAMILY, []),
        (Wanted(uids=(5, 6)), abi.FilterKind.UID, [(abi.FilterKind.UID, 5), (abi.FilterKind.UID, 6)]),
        (
            Wanted(programs=("/a", "#!/a"), cgroups=(7,), pids=(5,)),
            abi.FilterKind.PROGRAM | abi.FilterKind.CGROUP | abi.FilterKind.FAMILY,
            [
                (abi.FilterKind.PROGRAM, program_hash("/a", SEED)),
                (abi.FilterKind.PROGRAM, program_hash("#!/a", SEED)),
                (abi.FilterKind.CGROUP, 7),
            ],
        ),
    ],
)
def test_entries(wanted, kinds, entries):
    """What the kernel's side is told of whom to watch."""
    assert (wanted.kinds(), wanted.entries(SEED)) == (kinds, entries)


FLOOD = """
    import os, sys
    sys.stdin.readline()
    for n in range(int(sys.argv[1])):
        try: os.open(f"/nowhere/{n}", os.O_RDONLY)
        except OSError: pass
    print(flush=True)
"""


def test_calls_a_second():
    """A process that floods costs nobody else an argument; what it may not send is counted to the last."""
    flood = [sys.executable, "-ISc", textwrap.dedent(FLOOD)]
    with Watch(calls_a_second=500) as watch, contextlib.ExitStack() as stack:
        many, few = (
            stack.enter_context(
                subprocess.Popen([*flood, number], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for number in ("20000", "200")
        )
        for child in (many, few):
            child.stdin.write("\n")
            child.stdin.flush()
        while many.poll() is None or few.poll() is None:
            watch.poll()
    sent = {child.pid: len(watch.of(SyscallEvent, child.pid)) for child in (many, few)}
    captured = {syscalls.numbers(ARCH).get(name) for name in CAPTURES} - {None}
    made = sum(t in captured for child in (many, few) for ts in watch.tokens(child.pid).values() for t in ts)
    asked = {
        child.pid: [p for c in watch.calls(child.pid, "open", "openat") for p in c.paths if "/nowhere/" in p]
        for child in (many, few)
    }
    events = watch.of(SyscallEvent, many.pid)
    seconds = (events[-1].time_ns - events[0].time_ns) / 1e9

    assert asked[few.pid] == [f"/nowhere/{n}" for n in range(200)]
    assert 500 <= sent[many.pid] <= 500 * (seconds + 2)
    assert watch.account["calls_limited"] == watch.account["calls_dropped"] > 0
    assert watch.account["calls_limited"] == made - sum(sent.values())
    assert not any(w.lossy for w in watch.of(Window, few.pid))
    assert any(w.lossy for w in watch.of(Window, many.pid))


def test_no_limit():
    """With 0 there is none."""
    with Watch(calls_a_second=0) as watch:
        pid, _ = watch.run(sys.executable, "-ISc", textwrap.dedent(FLOOD), "8000", stdin=subprocess.DEVNULL)

    assert watch.account["calls_limited"] == 0
    assert len(watch.calls(pid, "open", "openat")) >= 8000


def test_nobody_is_introduced_who_has_gone():
    """A process that ended before it could be told of is left out; what the kernel has learnt meanwhile stays."""
    with (
        subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as cat,
        subprocess.Popen(["/bin/true"]) as gone,
    ):
        time.sleep(0.05)
        ours = abi.Process(program=5, flags=abi.ProcessFlag.LAUNCHER)
        asked = []

        def processes():
            asked.append(1)
            return [(gone.pid, ours), (cat.pid, ours), (1 << 22, ours)]

        gone.wait()
        with Collector(OBJECT, os.getpid(), ARCH, processes=processes) as collector:
            descriptor = os.pidfd_open(cat.pid)
            try:
                found = collector._object.map("processes").lookup(descriptor, abi.Process)
            finally:
                os.close(descriptor)
        cat.stdin.close()

    assert len(asked) == 2
    assert bytes(found) == bytes(ours)
