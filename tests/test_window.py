# SPDX-License-Identifier: Apache-2.0
"""Windows of single events: per thread, never mixed."""

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import HTTPD, SECOND, SHELL

from ksentinel.event import ExecEvent, ExitEvent, Origin, Process, ProcessKey, SyscallEvent
from ksentinel.window import LENGTH, Assembler, Cause, KernelScore, Window


def call(token, *, tid=11, at=0.0, process=SHELL):
    """Return a system call, *at* seconds."""
    return SyscallEvent(
        time_ns=round(at * SECOND), process=process, tid=tid, origin=Origin.AUDIT, token=token, syscall="x"
    )


def through(events, **options):
    """Return all windows of *events*, those left open at the end, too."""
    assembler = Assembler(**options)
    return [w for event in events for w in assembler.add(event)] + list(assembler.finish())


def test_full():
    """Sixty-four system calls are a window; what is left over is closed at the end."""
    windows = through([call(n, at=n / 100) for n in range(LENGTH + 3)])

    assert [(tuple(range(64)), Cause.FULL), ((64, 65, 66), Cause.STOP)] == [
        (w.tokens, w.cause) for w in windows
    ]
    assert (SHELL, 11, 0, round(0.63 * SECOND), Origin.AUDIT, False) == (
        windows[0].process,
        windows[0].tid,
        windows[0].first_ns,
        windows[0].last_ns,
        windows[0].origin,
        windows[0].lossy,
    )


def test_profile():
    """A window is compared with others of its executable and service."""
    (window,) = through([call(1)])

    assert window.profile == ("/bin/sh", "/usr/sbin/httpd")


def test_profile_of_a_script():
    """A script has its own normal, not its interpreter's."""
    script = replace(SHELL, script="/srv/run")
    (window,) = through([call(1, process=script)])

    assert window.profile == ("#!/srv/run", "/usr/sbin/httpd")
    assert window.kernel is None


def test_idle():
    """Anyone's event closes what was silent for too long, the silent for longest first."""
    assembler = Assembler(idle_ns=2 * SECOND)
    for at, tid in [(0, 1), (0.5, 2), (1, 3)]:
        assert list(assembler.add(call(5, tid=tid, at=at))) == []

    assert [(w.tid, w.cause) for w in assembler.add(call(5, tid=4, at=2.5))] == [
        (1, Cause.IDLE),
        (2, Cause.IDLE),
    ]
    assert [w.tid for w in assembler.finish()] == [3, 4]


def test_exec():
    """An exec closes the window of the program before it; its own call opens the next."""
    after = Process(SHELL.key, exe="/bin/cat", was="/bin/sh", parent=HTTPD, service=HTTPD)
    exec_ = ExecEvent(time_ns=1, process=after, tid=11, origin=Origin.AUDIT, token=59)

    assert [
        (w.process.exe, w.tokens, w.cause) for w in through([call(1), call(2), exec_, call(3, process=after)])
    ] == [("/bin/sh", (1, 2), Cause.EXEC), ("/bin/cat", (59, 3), Cause.STOP)]


def test_exit():
    """The last call is in the window that an exit closes; an exit of nothing closes nothing."""
    end = ExitEvent(time_ns=1, process=SHELL, tid=11, origin=Origin.AUDIT, token=231)
    silent = ExitEvent(time_ns=2, process=SHELL, tid=11, origin=Origin.AUDIT)

    assert [(w.tokens, w.cause) for w in through([call(1), end, silent])] == [((1, 231), Cause.EXIT)]


def test_number_came_back():
    """A thread whose number has another owner by now was another thread."""
    newcomer = Process(ProcessKey(11, 99), exe="/bin/sh")

    assert [(SHELL.key, (1,), Cause.EXIT), (newcomer.key, (2,), Cause.STOP)] == [
        (w.process.key, w.tokens, w.cause) for w in through([call(1), call(2, process=newcomer)])
    ]


def test_limit():
    """Beyond the limit the thread heard of least recently is closed early: nothing is lost, nothing piles up."""
    assembler = Assembler(limit=2)
    events = [call(1, tid=1), call(1, tid=2), call(2, tid=1), call(1, tid=3)]
    windows = [w for event in events for w in assembler.add(event)]

    assert [(w.tid, w.tokens, w.cause) for w in windows] == [(2, (1,), Cause.IDLE)]
    assert [(w.tid, w.tokens) for w in assembler.finish()] == [(1, (1, 2)), (3, (1,))]


def test_clock_set_back():
    """Time that runs backwards makes no window end before it began."""
    (window,) = through([call(1, at=5), call(2, at=3)])

    assert (window.first_ns, window.last_ns) == (5 * SECOND, 5 * SECOND)


def test_no_call():
    """What is no system call, or is in a window already, stands in none."""
    assert through([call(None), ExecEvent(time_ns=1, process=SHELL, tid=11, origin=Origin.AUDIT)]) == []


steps = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from("ccccccccccex"), st.integers(0, 400)), max_size=300
)


@given(steps, st.data())
def test_interleaving(steps, data):
    """However threads interleave, each has the windows that it would have alone."""
    threads = defaultdict(list)
    for number, (tid, kind, token) in enumerate(steps):
        process = Process(ProcessKey(tid, 1), exe="/bin/sh")
        common = {"time_ns": number, "process": process, "tid": tid, "origin": Origin.AUDIT, "token": token}
        threads[tid].append(
            {
                "c": lambda c=common: SyscallEvent(syscall="x", **c),
                "e": lambda c=common: ExecEvent(**c),
                "x": lambda c=common: ExitEvent(**c),
            }[kind]()
        )
    alone = {tid: through(events) for tid, events in threads.items()}
    order = data.draw(st.permutations([tid for tid, events in threads.items() for _ in events]))
    left = {tid: iter(events) for tid, events in threads.items()}
    together = through([next(left[tid]) for tid in order])

    assert alone == {tid: [w for w in together if w.tid == tid] for tid in threads}
    assert all(0 < len(w.tokens) <= LENGTH for w in together)
    assert len(steps) == sum(len(w.tokens) for w in together)


@pytest.mark.parametrize("cause", Cause)
def test_hashable(cause):
    """Windows are values: the same in every respect are equal."""
    one, other = (Window(SHELL, 11, 0, 1, (1, 2), cause) for _ in range(2))
    scored = replace(one, kernel=KernelScore(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "sampled", ()))

    assert (
        len({one, other, scored}) == 1
    )  # what the kernel made of it is no part of it: recordings don't have that
