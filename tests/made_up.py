# SPDX-License-Identifier: Apache-2.0
"""A web server with its branches, what rules and models say of it, and arbitrary events, for tests."""

from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from ksentinel import incident, policy, verdict
from ksentinel.detectors import Anomaly, MemberScore
from ksentinel.event import (
    BEFORE,
    Address,
    AuditEvent,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HookEvent,
    Origin,
    Outcome,
    Process,
    ProcessKey,
    Record,
    Score,
    SyscallEvent,
)
from ksentinel.level import Level
from ksentinel.rules import Clause, Match, Rule
from ksentinel.window import LENGTH, Cause, Window

SECOND = 1_000_000_000
POLICY = policy.load(Path(__file__).parents[1] / "rules" / "policy.yml", trusted_uids=None)
START = 1_700_000_000 * SECOND


def judge(matches, anomalies, contexts=(), by=POLICY):
    """Return the verdict by the policy that ships."""
    return verdict.judge(matches, anomalies, contexts, by)


def Incidents(**options):  # noqa: N802 -- stands for the class
    """Return incidents by the policy that ships."""
    return incident.Incidents(POLICY, **options)


def child(parent, pid, exe):
    """Return a process that *parent* started, of the same service."""
    service = parent if parent.service is None else parent.service
    return Process(ProcessKey(pid, pid), exe=exe, argv=(exe,), parent=parent, service=service)


INIT = Process(ProcessKey(1, 1), exe="/sbin/init")
HTTPD = Process(ProcessKey(10, 10), exe="/usr/sbin/httpd", argv=("httpd",), parent=INIT)
SHELL = child(HTTPD, 11, "/bin/sh")
CAT = child(SHELL, 12, "/bin/cat")
ID = child(SHELL, 13, "/usr/bin/id")
OTHER_SHELL = child(HTTPD, 21, "/bin/sh")
CROND = Process(ProcessKey(30, 30), exe="/usr/sbin/cron", argv=("cron",), parent=INIT)
JOB = child(CROND, 31, "/bin/sh")


def match(process=SHELL, at=0.0, level=Level.MEDIUM, rule="web shell", *, exception=None, **fields):
    """Return what a rule says of an exec, *at* seconds after the start."""
    event = ExecEvent(
        time_ns=START + round(at * SECOND), process=process, tid=process.key.pid, origin=Origin.BPF
    )
    clause = Clause("selection", "Image", f"endswith {process.exe!r}", process.exe, (0, len(process.exe)))
    return Match(Rule(rule, rule.capitalize(), level, **fields), event, (clause,), exception=exception)


def anomaly(process=SHELL, at=0.0, level=Level.MEDIUM, p_value=1e-5, *, unseen=False, lossy=False, **fields):
    """Return what a model says of a window that ends *at* seconds after the start."""
    last_ns = START + round(at * SECOND)
    window = Window(process, process.key.pid, last_ns - SECOND, last_ns, (59, 101, 165), lossy=lossy)
    members = (MemberScore("ngram", 9.5, p_value),)
    return Anomaly(window, p_value, level, members, "ngram", window.profile, unseen, **fields)


def denial(process=SHELL, at=0.0, rule="web shell", outcome=Outcome.DENIED, **fields):
    """Return what a guard says of an open, *at* seconds after the start."""
    told = {
        "hook": "file_open",
        "call": "openat",
        "title": rule.capitalize(),
        "mode": "enforce" if outcome is Outcome.DENIED else "permissive",
        "paths": ("/etc/shadow",),
    }
    return HookEvent(
        time_ns=START + round(at * SECOND),
        process=process,
        tid=process.key.pid,
        origin=Origin.BPF,
        rule=rule,
        outcome=outcome,
        **told | fields,
    )


# Text as it comes from the kernel: any bytes but NUL, those that are no UTF-8 as surrogates.
texts = st.binary(max_size=12).map(lambda b: b.replace(b"\0", b"").decode(errors="surrogateescape"))
numbers = st.integers(-(1 << 63), (1 << 63) - 1)
times = st.integers(0, (1 << 63) - 1)
pids = st.integers(1, 1 << 22)
tokens = st.integers(0, 0xFFF)
_some = st.none() | numbers
_bare = st.builds(
    Process,
    st.builds(ProcessKey, pids, times),
    exe=texts,
    argv=st.lists(texts, max_size=3).map(tuple),
    was=texts,
    uid=_some,
    euid=_some,
    auid=_some,
    session=_some,
    cwd=texts,
    comm=texts,
    script=texts,
    before=st.lists(texts, max_size=BEFORE).map(tuple),
    cgroup=st.none() | st.integers(0, (1 << 64) - 1),
)


@st.composite
def processes(draw):
    """Return a process with up to three ancestors; its service is one of them, another one, or itself."""
    line = draw(st.lists(_bare, min_size=1, max_size=4, unique_by=lambda p: p.key))
    above = None
    for bare in line:
        above = replace(bare, parent=above, depth=0 if above is None else above.depth + 1)
    ancestors = list(above.ancestors())
    stranger = Process(ProcessKey(1 << 23, 0), exe=draw(texts), script=draw(texts))
    return replace(above, service=draw(st.sampled_from([None, stranger, *ancestors])))


_addresses = st.one_of(
    st.builds(Address, st.just("unix"), path=texts),
    st.builds(Address, st.just("inet"), st.ip_addresses(v=4).map(str), st.integers(0, 65535)),
    st.builds(Address, st.just("inet6"), st.ip_addresses(v=6).map(str), st.integers(0, 65535)),
)
_records = st.lists(
    st.builds(Record, texts, st.lists(st.tuples(texts, texts), max_size=3).map(tuple)), max_size=2
).map(tuple)
_happened = {
    "time_ns": times,
    "process": processes(),
    "tid": pids,
    "origin": st.sampled_from(Origin),
    "records": _records,
    "token": st.none() | tokens,
}
hook_events = st.builds(
    HookEvent,
    hook=texts,
    outcome=st.sampled_from(Outcome),
    call=texts,
    abi=st.sampled_from(["native", "i386"]),
    rule=texts,
    title=texts,
    epoch=st.integers(0, (1 << 32) - 1),
    way=st.integers(0, 1023),
    action=st.sampled_from(["log", "deny", "kill"]),
    mode=st.sampled_from(["", "permissive", "enforce"]),
    anomalous=st.booleans(),
    sentence=st.sampled_from(["", "quarantine", "kill"]),
    nonce=st.none() | st.integers(0, (1 << 32) - 1),
    untold=st.booleans(),
    killed=st.booleans(),
    paths=st.lists(texts, max_size=2).map(tuple),
    address=st.none() | _addresses,
    numbers=st.lists(st.tuples(texts, numbers), max_size=2).map(tuple),
    traits=st.lists(texts, max_size=2).map(tuple),
    score=st.none() | st.builds(Score, *[st.integers(0, (1 << 32) - 1)] * 3),
    cgroup=st.none() | st.integers(0, (1 << 64) - 1),
    **_happened,
)
events = st.one_of(
    st.builds(ForkEvent, **_happened),
    st.builds(ExitEvent, **_happened),
    st.builds(ExecEvent, path=texts, truncated=st.booleans(), **_happened),
    st.builds(AuditEvent, type=texts, **_happened),
    st.builds(
        SyscallEvent,
        syscall=texts,
        abi=st.sampled_from(["native", "i386", "x32"]),
        paths=st.lists(texts, max_size=2).map(tuple),
        flags=_some,
        mode=_some,
        address=st.none() | _addresses,
        target=_some,
        values=st.lists(st.tuples(texts, numbers), max_size=2).map(tuple),
        result=_some,
        truncated=st.booleans(),
        unreadable=st.booleans(),
        **_happened,
    ),
    hook_events,
)
windows = st.builds(
    Window,
    process=processes(),
    tid=pids,
    first_ns=times,
    last_ns=times,
    tokens=st.lists(st.integers(0, 0xFFFF), max_size=LENGTH).map(tuple),
    cause=st.sampled_from(Cause),
    origin=st.sampled_from(Origin),
    lossy=st.booleans(),
)


def family(process):
    """Return all that a process is, ancestors and services included: what `==` leaves out."""
    above = None if process.parent is None else family(process.parent)
    service = process.service
    return process, above, None if service is None else (service.key, service.exe, service.program)
