# SPDX-License-Identifier: Apache-2.0
"""One event in a few words: what happened to what, and that outside words can't pass for ours."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import CAT, START, denial, events, windows

from ksentinel.event import (
    Address,
    AuditEvent,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    Origin,
    Outcome,
    Process,
    ProcessKey,
    Record,
    SyscallEvent,
)
from ksentinel.explain.event import in_words
from ksentinel.flight import to_plain
from ksentinel.store import to_json
from ksentinel.window import Cause, Window


def told(kind, process=CAT, **fields):
    """Return the words for an event, as it comes from a store."""
    event = kind(time_ns=START, process=process, tid=12, origin=Origin.BPF, **fields)
    return in_words(orjson.loads(to_json(to_plain(event))))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"syscall": "openat", "paths": ("/etc/shadow",), "flags": 0}, "openat /etc/shadow (O_RDONLY)"),
        (
            {"syscall": "openat", "paths": ("/x",), "flags": 0o2000101, "mode": 0o100600, "result": 3},
            "openat /x (O_WRONLY|O_CREAT|O_CLOEXEC, mode 0600)",
        ),
        ({"syscall": "open", "abi": "i386", "paths": ("/x",), "flags": 2, "result": -13}, "i386:open /x (O_RDWR): EACCES"),
        ({"syscall": "rename", "paths": ("/a", "/b")}, "rename /a → /b"),
        ({"syscall": "connect", "address": Address("inet", "10.0.0.1", 443), "values": (("fd", 3),)}, "connect 10.0.0.1:443"),
        ({"syscall": "connect", "address": Address("inet6", "::1", 443)}, "connect [::1]:443"),
        ({"syscall": "connect", "address": Address("unix", path="/run/a b")}, "connect '/run/a b'"),
        ({"syscall": "kill", "target": 7, "values": (("signal", 9),)}, "kill process 7 (SIGKILL)"),
        ({"syscall": "kill", "target": 7, "values": (("signal", 63),)}, "kill process 7 (signal 63)"),
        ({"syscall": "ptrace", "target": 7, "values": (("request", 16),)}, "ptrace process 7 (PTRACE_ATTACH)"),
        ({"syscall": "bpf", "values": (("command", 5),)}, "bpf (BPF_PROG_LOAD)"),
        ({"syscall": "setresuid", "values": (("uid", 0), ("euid", -1))}, "setresuid (uid 0, euid -1)"),
        ({"syscall": "umount2", "paths": ("/mnt",), "flags": 2}, "umount2 /mnt (flags 0x2)"),
        ({"syscall": "umount2", "paths": ("/mnt",), "flags": 0}, "umount2 /mnt"),
        ({"syscall": "chmod", "paths": ("/x",), "mode": 0o4755, "result": -9999}, "chmod /x (mode 4755): error 9999"),
        ({"syscall": "openat", "truncated": True, "unreadable": True}, "openat (cut) (arguments not readable)"),
        ({"syscall": "openat", "paths": ("/a (O_RDONLY)", "/b' → c")}, "openat '/a (O_RDONLY)' → \"/b' → c\""),
    ],
)  # fmt: skip
def test_syscall(fields, words):
    """Name, paths, address, whom it is about, flags by their names, and what became of it."""
    assert told(SyscallEvent, **fields) == words


def test_exec():
    """The file that was asked for, what ran it or where it led, its arguments, and what it was before."""
    shell = Process(
        ProcessKey(1, 1), exe="/usr/bin/dash", argv=("sh", "-c", "echo 'x y' > \"$1\""), was="/srv/a b"
    )
    same = Process(ProcessKey(1, 1), exe="/bin/id", was="/bin/id")

    assert told(ExecEvent, shell, path="/bin/sh", truncated=True) == (
        "exec /bin/sh → /usr/bin/dash: sh -c \"echo 'x y' > \\\"$1\\\"\" (cut) (was '/srv/a b')"
    )
    assert told(ExecEvent, same, path="/bin/id") == "exec /bin/id"
    assert told(ExecEvent, Process(ProcessKey(1, 1))) == "exec 'an unknown program'"


def test_life():
    """Birth and end."""
    assert told(ForkEvent) == "forked by 11 /bin/sh"
    assert told(ForkEvent, Process(ProcessKey(1, 1))) == "fork"
    assert told(ExitEvent) == "exit"


def test_audit():
    """What audit says that is no system call: the fields that say most, in their order."""
    fields = (
        ("res", "failed"),
        ("acct", "ro ot"),
        ("op", "login"),
        ("ses", "1"),
        ("op", "second"),
        ("exe", ""),
    )
    records = (Record("CWD", (("op", "wrong"),)), Record("USER_LOGIN", fields))

    assert (
        told(AuditEvent, type="USER_LOGIN", records=records) == "USER_LOGIN op=login acct='ro ot' res=failed"
    )
    assert told(AuditEvent, type="DAEMON_END") == "DAEMON_END"


def test_window():
    """How many calls in which time; repeats are counted, and of a long one the beginning is told."""
    one = Window(CAT, 12, START, START + 500_000_000, (0, 0, 0, 1, 0), Cause.FULL, lossy=True)
    long = Window(CAT, 12, START, START, tuple([0, 1] * 32))

    assert in_words(to_plain(one)) == "5 calls in 0.5 s: read*3 write read; records were lost meanwhile"
    assert in_words(to_plain(long)) == f"64 calls: {' '.join(['read write'] * 12)} …"
    assert in_words({"event": "window", "syscalls": ["read"]}) == "1 call: read"


@given(events | windows)
def test_any_item(item):
    """There are words for everything, also after it was stored."""
    assert in_words(to_plain(item)) or getattr(item, "syscall", "x") == "" or getattr(item, "type", "x") == ""
    assert isinstance(in_words(orjson.loads(to_json(to_plain(item)))), str)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_names = st.sampled_from(
    "path paths process address target flags mode values result records type syscalls first_ns time_ns syscall abi".split()
)


@given(
    st.sampled_from(["exec", "fork", "exit", "syscall", "window", "audit", "teapot", None, 7]),
    st.dictionaries(_names, _json),
)
def test_any_body(kind, body):
    """A store may hold anything: it is told as far as it makes sense."""
    assert isinstance(in_words(body | {"event": kind}), str)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"numbers": (("flags", 0o101), ("euid", 0)), "traits": ("write", "not_roots")},
            'openat /etc/shadow (O_WRONLY|O_CREAT, write, not roots): denied in the kernel at file_open by "Web shell"',
        ),
        (
            {"outcome": Outcome.WOULD_DENY, "anomalous": True},
            (
                'openat /etc/shadow: would have been denied in the kernel at file_open by "Web shell" '
                "(permissive, the score was over its threshold)"
            ),
        ),
        (
            {
                "hook": "socket_connect",
                "call": "connect",
                "paths": (),
                "address": Address("inet", "10.0.0.1", 22),
            },
            'connect 10.0.0.1:22: denied in the kernel at socket_connect by "Web shell"',
        ),
        (
            {
                "hook": "task_kill",
                "call": "kill",
                "paths": (),
                "numbers": (("signal", 9),),
                "killed": True,
                "untold": True,
            },
            'kill (SIGKILL): denied in the kernel at task_kill by "Web shell" (not all of it could be told, the process was ended)',
        ),
        (
            {"title": "", "rule": "", "abi": "i386", "paths": ()},
            "i386:openat: denied in the kernel at file_open",
        ),
        (
            {"title": 'a" \\', "nonce": 3, "sentence": "quarantine"},
            'openat /etc/shadow: denied in the kernel at file_open by "a\\" \\\\" (sentence: quarantine, a proof that the guard works)',
        ),
    ],
)
def test_denials(fields, words):
    """What was tried, where it was stopped, by whose guard, and what else is to be known."""
    assert in_words(orjson.loads(to_json(to_plain(denial(**fields))))) == words
