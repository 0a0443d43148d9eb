# SPDX-License-Identifier: Apache-2.0
"""The flight recorder: whose past is kept, how much of it, and what follows, by the time of the events alone."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import (
    CAT,
    CROND,
    HTTPD,
    ID,
    JOB,
    OTHER_SHELL,
    SECOND,
    SHELL,
    START,
    Incidents,
    anomaly,
    child,
    events,
    judge,
    match,
    windows,
)

from ksentinel.alert import Alert, Evidence
from ksentinel.codec import event_from_plain
from ksentinel.event import Address, AuditEvent, ExecEvent, ExitEvent, ForkEvent, Origin, Record, SyscallEvent
from ksentinel.flight import Facts, Flight, Phase, facts, to_plain
from ksentinel.incident import related
from ksentinel.level import Level
from ksentinel.pipeline import Pipeline
from ksentinel.recording import Reader, Writer
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule
from ksentinel.store import Store, to_json
from ksentinel.window import Cause, Window

GRANDCHILD = child(CAT, 14, "/usr/bin/less")
BYSTANDERS = [OTHER_SHELL, CROND, JOB]


def at(seconds):
    return START + round(seconds * SECOND)


def opened(process, seconds=0.0, path="/x"):
    """Return an argument event, *seconds* after the start."""
    return SyscallEvent(
        time_ns=at(seconds), process=process, tid=process.key.pid, origin=Origin.BPF, syscall="openat", paths=(path,)
    )  # fmt: skip


def window(process, first, last, tokens=(0, 1)):
    return Window(process, process.key.pid, at(first), at(last), tokens)


def alert(process, seconds=0.0, *, id_="a1", revision=1, rules=("web shell",), updated=None):
    """Return an alert about *process*, opened at that time."""
    found = [match(process, seconds, rule=rule) for rule in rules]
    last_ns = at(seconds if updated is None else updated)
    evidence = tuple(Evidence(1, at(seconds), last_ns, match=one) for one in found)
    return Alert(id_, revision, at(seconds), last_ns, process, judge(found, []), evidence)


class Kept:
    """A flight recorder, and what it has kept: by alert, the numbers of the items with their phases, in order."""

    def __init__(self, **bounds):
        self.flight = Flight(self.keep, **bounds)
        self.kept = {}
        self.beyond = {}
        self.items = []

    def keep(self, kept, beyond):
        """Take what is kept."""
        for one in kept:
            self.kept.setdefault(one.alert, []).append(one)
        self.beyond |= beyond

    def see(self, *items):
        """Let items happen."""
        for item in items:
            self.items.append(item)
            self.flight.item(item)
        return self

    def tell(self, told):
        """Let an alert be told."""
        self.flight.alert(told)
        return self

    def of(self, id_="a1", phase=None):
        """Return the items that an alert keeps."""
        self.flight.flush()
        return [self.items[one.number - 1] for one in self.kept.get(id_, ()) if phase in {None, one.phase}]


def who(items):
    return {item.process.exe for item in items}


@pytest.mark.parametrize(
    ("process", "kept"),
    [
        (CAT, [HTTPD, SHELL, CAT, GRANDCHILD]),
        (SHELL, [HTTPD, SHELL, CAT, ID, GRANDCHILD]),
        (HTTPD, [HTTPD, SHELL, CAT, ID, GRANDCHILD, OTHER_SHELL]),
        (ID, [HTTPD, SHELL, ID]),
        (JOB, [CROND, JOB]),
    ],
    ids=lambda p: getattr(p, "exe", None),
)
def test_lineage(process, kept):
    """Ancestors up to the service and descendants belong to it, siblings and other services don't; before and after."""
    everybody = [HTTPD, SHELL, CAT, ID, GRANDCHILD, *BYSTANDERS]
    recorder = Kept().see(*(opened(p, -1) for p in everybody)).tell(alert(process))
    recorder.see(*(opened(p, 1) for p in everybody))

    for phase in Phase:
        assert [item.process for item in recorder.of(phase=phase)] == [p for p in everybody if p in kept]


def test_last_ones(monkeypatch):
    """Of a long past the last items are kept, in their order; the one that raised the alert among them."""
    past = [opened(SHELL, n / 100 - 3) for n in range(301)]
    recorder = Kept(before=200).see(*past).tell(alert(SHELL))

    assert recorder.of() == past[-200:]
    assert recorder.kept["a1"][-1].phase == Phase.BEFORE


def test_busy_service():
    """The service's own chatter takes a quarter at most, or what room there is: it would flush out all the rest."""
    noise = [opened(HTTPD, -1 + n / 1e6) for n in range(500)]
    much = [opened(SHELL, -5 + n / 1e6) for n in range(300)]
    little = [opened(SHELL, -5 + n / 1e6) for n in range(7)]

    kept = Kept(before=200).see(*much, *noise).tell(alert(SHELL)).of()
    assert [sum(i.process is p for i in kept) for p in (SHELL, HTTPD)] == [150, 50]
    kept = Kept(before=200).see(*little, *noise).tell(alert(SHELL)).of()
    assert [sum(i.process is p for i in kept) for p in (SHELL, HTTPD)] == [7, 193]
    kept = Kept(before=200).see(*much, *noise[:7]).tell(alert(SHELL)).of()
    assert [sum(i.process is p for i in kept) for p in (SHELL, HTTPD)] == [193, 7]


def test_busy_service_afterwards():
    """The same of what follows: a quarter of it at most, and what is beyond is counted."""
    recorder = Kept(most=100).tell(alert(SHELL))
    recorder.see(*(opened(HTTPD, 1 + n / 1e6) for n in range(500)), *(opened(SHELL, 2) for n in range(70)))
    kept = recorder.of()

    assert [sum(i.process is p for i in kept) for p in (SHELL, HTTPD)] == [70, 25]
    assert recorder.beyond == {"a1": 475}


def test_alert_of_the_service_itself():
    """Then its own items have all the room."""
    past = [opened(HTTPD, -1 + n / 1e6) for n in range(300)]

    assert len(Kept(before=200).see(*past).tell(alert(HTTPD)).of()) == 200


def test_busy_neighbours():
    """Neither another branch, nor a sibling, nor another service flushes out the past."""
    quiet = [
        opened(SHELL, -9),
        opened(CAT, -8),
        ExitEvent(time_ns=at(-7), process=CAT, tid=12, origin=Origin.BPF),
    ]
    for busy in (OTHER_SHELL, ID, CROND, HTTPD):
        recorder = Kept().see(*quiet, *(opened(busy, -5 + n / 1e6) for n in range(5000)))

        assert [i for i in recorder.tell(alert(CAT)).of() if i.process is not HTTPD] == quiet


def test_branch_with_many_processes():
    """Within a branch the process that was silent for longest gives way; that is counted."""
    recorder = Kept(branch_items=10).see(*(opened(SHELL, -9) for _ in range(4)))
    children = [child(SHELL, 1000 + n, f"/bin/{n}") for n in range(12)]
    recorder.see(*(opened(p, -5) for p in children))

    assert recorder.flight.account()["flight_evicted"] == 6
    assert who(recorder.tell(alert(SHELL)).of()) == {p.exe for p in children[2:]}


def test_too_many_items():
    """Beyond what is held of all, the branch heard of least recently goes, whole; counted."""
    services = [child(CROND, 1000 + n, f"/bin/{n}") for n in range(4)]
    recorder = Kept(items=25)
    for n, p in enumerate([*services, services[0]]):
        recorder.see(*(opened(p, n) for _ in range(7)))
    for n, p in enumerate(services):
        recorder.tell(alert(p, 9, id_=str(n)))

    assert [len(recorder.of(str(n))) for n in range(4)] == [7, 0, 7, 7]
    assert recorder.flight.account() | {"flight_kept": 0} == {
        "flight_kept": 0,
        "flight_beyond": 0,
        "flight_evicted": 14,
        "flight_lineages_evicted": 2,
        "flight_alerts_followed_in_part": 0,
    }


def test_too_many_branches():
    """Beyond so many branches likewise."""
    many = [child(HTTPD, 1000 + n, f"/bin/{n}") for n in range(20)]
    recorder = Kept(branches=5).see(*(opened(p, n) for n, p in enumerate(many)))

    assert who(recorder.tell(alert(HTTPD, 99)).of()) == {p.exe for p in many[-5:]}
    assert recorder.flight.account()["flight_lineages_evicted"] == 15


def test_half_a_minute():
    """What follows is kept for 30 s after the newest evidence, by the time of the events, in whatever order they come."""
    times = [0.1, 29.9, 30, 30.1, 29.95, 31, 0.2, 3600]
    recorder = Kept().tell(alert(SHELL))
    for seconds in times:  # a batch each
        recorder.see(opened(SHELL, seconds))
        recorder.flight.flush()

    assert recorder.of() == [opened(SHELL, t) for t in (0.1, 29.9, 30)]
    recorder = Kept().tell(alert(SHELL)).see(*(opened(SHELL, t) for t in times))  # all in one
    assert recorder.of() == [opened(SHELL, t) for t in (0.1, 29.9, 30, 29.95, 0.2)]


def test_nothing_follows_for_ever():
    """An alert that is over is no longer looked at; one whose time never comes gives way to newer ones, and is counted."""
    recorder = Kept(alerts=3)
    for n in range(5):
        recorder.tell(alert(SHELL, id_=str(n)))
    recorder.see(opened(SHELL, 1))

    assert [len(recorder.of(str(n))) for n in range(5)] == [0, 0, 1, 1, 1]
    assert recorder.flight.account()["flight_alerts_followed_in_part"] == 2
    recorder.see(opened(CROND, 31)).flight.flush()
    recorder.see(opened(SHELL, 2))
    assert [len(recorder.of(str(n))) for n in range(5)] == [0, 0, 1, 1, 1]
    assert recorder.flight._open == recorder.flight._following == recorder.flight._following_all == {}


def test_a_time_far_ahead():
    """One event that claims a time far ahead ends nothing, unless nothing else came in its batch."""
    recorder = Kept().tell(alert(SHELL)).see(opened(SHELL, 1), opened(OTHER_SHELL, 1 << 40))
    recorder.flight.flush()
    recorder.see(opened(SHELL, 2))

    assert recorder.of() == [opened(SHELL, 1), opened(SHELL, 2)]


def test_too_much_follows():
    """Beyond the bound nothing more is kept, and counted for the alert and in all."""
    recorder = Kept(before=20, most=100).see(*(opened(SHELL, -1) for _ in range(30))).tell(alert(SHELL))
    recorder.see(*(opened(SHELL, 1) for _ in range(300)))

    # The share of the service's own is kept free for it.
    assert (len(recorder.of(phase=Phase.BEFORE)), len(recorder.of(phase=Phase.AFTER))) == (20, 75)
    assert recorder.beyond == {"a1": 225}
    assert recorder.flight.account()["flight_beyond"] == 225
    recorder.see(opened(SHELL, 2))
    recorder.flight.flush()
    assert recorder.beyond == {"a1": 226}


def test_before_or_after():
    """By time, not by arrival: a window that was closed late belongs to before; one that ends later to after."""
    late, across = window(SHELL, -9, -8), window(SHELL, -1, 1)
    recorder = Kept().see(opened(SHELL, -2), opened(SHELL, 0)).tell(alert(SHELL)).see(across, late)

    assert recorder.of(phase=Phase.BEFORE) == [opened(SHELL, -2), opened(SHELL, 0), late]
    assert recorder.of(phase=Phase.AFTER) == [across]


def test_opened_long_before_it_was_told():
    """What came between is after: of the alert's opening, not of its telling."""
    recorder = Kept().see(opened(SHELL, -1), opened(SHELL, 1)).tell(alert(SHELL, updated=2))

    assert recorder.of(phase=Phase.AFTER) == [opened(SHELL, 1)]


def test_children_to_come():
    """Who is born after the alert is followed, too, and so are its own children."""
    young = child(CAT, 500, "/bin/young")
    younger = child(young, 501, "/bin/younger")
    recorder = Kept().tell(alert(SHELL))
    recorder.see(
        *(ForkEvent(time_ns=at(1), process=p, tid=1, origin=Origin.BPF) for p in (young, younger, JOB))
    )

    assert [item.process for item in recorder.of()] == [young, younger]


def test_more_of_the_same():
    """A revision that only counts more changes nothing: neither for how long it is followed, nor what of its past."""
    recorder = Kept().tell(alert(SHELL)).see(opened(SHELL, 1), opened(SHELL, 40))
    recorder.tell(alert(SHELL, revision=2, updated=45)).see(opened(SHELL, 50))

    assert recorder.of() == [opened(SHELL, 1)]


def test_new_evidence():
    """A revision with something new is followed anew, and what came meanwhile is kept: nothing twice."""
    recorder = Kept().see(opened(SHELL, -1)).tell(alert(SHELL)).see(opened(SHELL, 1), opened(SHELL, 40))
    recorder.flight.flush()
    recorder.see(opened(SHELL, 41))
    recorder.tell(alert(SHELL, revision=2, updated=42, rules=("web shell", "other"))).see(
        opened(SHELL, 43), opened(SHELL, 71), opened(SHELL, 73)
    )

    assert recorder.of() == [opened(SHELL, t) for t in (-1, 1, 40, 41, 43, 71)]


def test_another_process():
    """A revision about another process brings the past of that one's lineage, too; nothing is kept twice."""
    recorder = Kept().see(*(opened(p, -1) for p in (HTTPD, SHELL, CAT, ID))).tell(alert(CAT))
    recorder.see(*(opened(p, 1) for p in (HTTPD, SHELL, CAT, ID)))
    assert [i.process for i in recorder.of()] == [HTTPD, SHELL, CAT] * 2

    recorder.tell(alert(ID, 0, revision=2, updated=2)).see(*(opened(p, 3) for p in (HTTPD, SHELL, CAT, ID)))
    assert [(i.process, i.time_ns) for i in recorder.of()[6:]] == [
        (ID, at(-1)), (ID, at(1)), (HTTPD, at(3)), (SHELL, at(3)), (CAT, at(3)), (ID, at(3)),
    ]  # fmt: skip


def test_several_alerts():
    """Each has its own; what both keep has one number."""
    recorder = Kept().see(opened(HTTPD, -1)).tell(alert(SHELL)).tell(alert(OTHER_SHELL, 1, id_="b2"))
    recorder.see(opened(HTTPD, 2), opened(SHELL, 2), opened(OTHER_SHELL, 2))
    recorder.flight.flush()

    assert {a: [one.number for one in kept] for a, kept in recorder.kept.items()} == {
        "a1": [1, 2, 3],
        "b2": [1, 2, 4],
    }


def test_another_program():
    """A process stays the same when it becomes another program or another user."""
    before, after = replace(SHELL, exe="/bin/before"), replace(SHELL, exe="/bin/after", uid=0)
    recorder = Kept().see(opened(before, -1)).tell(alert(before)).see(opened(after, 1), opened(before, 2))

    assert [item.process.exe for item in recorder.of()] == ["/bin/before", "/bin/after", "/bin/before"]


def test_leaving_the_service():
    """One that becomes a service of its own takes its past along, and is followed on."""
    daemon = replace(CAT, service=None)
    recorder = Kept().see(opened(CAT, -2), opened(SHELL, -2), opened(daemon, -1)).tell(alert(daemon))
    assert recorder.of() == [opened(CAT, -2), opened(daemon, -1)]

    recorder = Kept().see(opened(CAT, -2)).tell(alert(CAT)).see(opened(daemon, 1))
    assert recorder.of() == [opened(CAT, -2), opened(daemon, 1)]


def test_history_of_a_reused_pid():
    """A PID's earlier owner is somebody else."""
    earlier = replace(CAT, key=replace(CAT.key, start_ns=1))

    assert Kept().see(opened(earlier, -1)).tell(alert(CAT)).of() == []


def test_flush_hands_over_once():
    """And only if there is something."""
    calls = []
    flight = Flight(lambda kept, beyond: calls.append((len(kept), dict(beyond))), most=1)
    flight.item(opened(SHELL))
    flight.flush()
    flight.alert(alert(SHELL))
    flight.flush()
    flight.flush()

    assert calls == [(1, {})]


FAMILY = [HTTPD, SHELL, CAT, ID, OTHER_SHELL, JOB, replace(CAT, service=None), CROND]
BOUNDS = {"before": 8, "most": 9, "branch_items": 9, "items": 20, "branches": 4, "alerts": 3}
_whose = st.tuples(st.integers(0, len(FAMILY) - 1), st.integers(-40, 90))
_courses = st.lists(
    st.one_of(
        st.tuples(st.just("see"), _whose),
        st.tuples(st.just("see"), _whose),
        st.tuples(
            st.just("tell"), _whose, st.sampled_from("abcd"), st.sets(st.sampled_from("xyz"), min_size=1)
        ),
        st.just(("flush",)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({name: st.integers(1, most) for name, most in BOUNDS.items()}), _courses)
def test_any_course(bounds, course):
    """Whatever happens: the bounds hold, the books are right, nothing is kept twice, and only what is of the lineage."""
    recorder = Kept(**bounds)
    flight = recorder.flight
    subjects = {}
    for step, *about in course:
        if step == "flush":
            flight.flush()
            continue
        (number, seconds), *more = about
        if step == "see":
            recorder.see(opened(FAMILY[number], seconds))
        else:
            id_, rules = more
            subjects.setdefault(id_, []).append(FAMILY[number])
            recorder.tell(alert(FAMILY[number], seconds, id_=id_, rules=sorted(rules)))
        held = [len(ring.entries) for ring in flight._rings.values()]
        branches = flight._branches.values()
        assert sum(held) == flight._held == sum(b.count for b in branches) <= bounds["items"]
        assert max(held, default=1) <= bounds["before"]
        assert all(held)
        assert max((b.count for b in branches), default=0) <= bounds["branch_items"]
        assert len(branches) <= bounds["branches"]
        assert len(flight._open) <= bounds["alerts"]
        assert {ring for b in branches for ring in b.rings} == set(flight._rings.values())
    flight.flush()
    assert sum(len(kept) for kept in recorder.kept.values()) == flight.account()["flight_kept"]
    for id_, kept in recorder.kept.items():
        numbers = [one.number for one in kept]
        assert len(set(numbers)) == len(numbers) <= bounds["before"] + bounds["most"]
        for number in numbers:
            one = recorder.items[number - 1].process
            assert any(one.key == p.key or related(one, p) for p in subjects[id_])


# What is kept of an item


def test_facts():
    """What can be searched by, of each kind."""
    where = Address("inet6", "2001:db8::1", 53)
    common = {"time_ns": 5, "process": CAT, "tid": 13, "origin": Origin.BPF}
    records = (Record("USER_LOGIN", (("addr", "?"), ("addr", "192.0.2.7"), ("name", "/x"))),)

    assert facts(window(CAT, 0, 1, (59, 0, 59, 0x402))) == Facts(
        at(0), at(1), "window", 12, 12, "/bin/cat", calls=("execve", "read", "i386:fork")
    )
    assert [
        facts(one)
        for one in (
            ForkEvent(**common),
            ExitEvent(**common),
            ExecEvent(**common, path="/x/cat"),
            SyscallEvent(**common, syscall="rename", paths=("/a", "", "/b")),
            SyscallEvent(**common, syscall="sendto", abi="i386", address=where),
            SyscallEvent(**common, syscall="connect", address=Address("unix", path="/run/x")),
            AuditEvent(**common, type="USER_LOGIN", records=records),
        )
    ] == [
        Facts(5, 5, "fork", 12, 13, "/bin/cat"),
        Facts(5, 5, "exit", 12, 13, "/bin/cat"),
        Facts(5, 5, "exec", 12, 13, "/bin/cat", ("/x/cat", "/bin/cat"), calls=("execve", "execveat")),
        Facts(5, 5, "syscall", 12, 13, "/bin/cat", ("/a", "/b"), calls=("rename",)),
        Facts(5, 5, "syscall", 12, 13, "/bin/cat", (), "2001:db8::1", 53, ("i386:sendto",)),
        Facts(5, 5, "syscall", 12, 13, "/bin/cat", ("/run/x",), calls=("connect",)),
        Facts(5, 5, "audit", 12, 13, "/bin/cat", ("/x",), "192.0.2.7"),
    ]


def test_window_to_plain():
    """A window is told by the names of its calls, with when, why it was closed and whether something is missing."""
    one = Window(CAT, 13, 1, 9, (59, 0x801), Cause.EXEC, Origin.BPF, lossy=True)
    plain = to_plain(one, "x86_64", lambda process: process.exe)

    assert plain == {
        "event": "window", "first_ns": 1, "time_ns": 9, "tid": 13, "origin": "bpf", "cause": "exec", "lossy": True,
        "syscalls": ["execve", "x32:write"], "process": "/bin/cat",
    }  # fmt: skip
    assert to_plain(one, "aarch64")["syscalls"][0] != "execve"


@given(events | windows)
def test_any_item(item):
    """Whatever comes has facts and a body that JSON can carry; an event can be rebuilt from it."""
    one, plain = facts(item), to_plain(item)

    assert one.begun_ns <= one.time_ns or isinstance(item, Window)
    assert orjson.loads(to_json(plain))["event"] == one.kind
    assert "" not in one.paths
    if not isinstance(item, Window):
        assert event_from_plain(plain) == item


# In the walk


@pytest.fixture
def recorded(tmp_path):
    """Return a recording in which a shell runs cat twice, among others' doings."""
    path = tmp_path / "x.db"
    again = child(OTHER_SHELL, 300, "/bin/\udcff/cat")
    with Writer(path, {"arch": "x86_64"}) as writer:
        for n in range(40):
            items = [opened(SHELL, n), window(HTTPD, n, n + 0.5), opened(JOB, n), opened(ID, n, "/tmp/\x1b")]
            if n == 5:
                items.append(
                    ExecEvent(time_ns=at(5), process=CAT, tid=12, origin=Origin.BPF, path="/bin/cat")
                )
            if n == 20:
                items.append(ExecEvent(time_ns=at(20), process=again, tid=300, origin=Origin.BPF))
            writer.write(items)
    return path


def replay(recording, store, batch=512):
    """Replay *recording* into *store*; return everything that is in it."""
    rules = RuleSet([compile_rule(EXAMPLE, "cat.yml", sources())])
    with Reader(recording, batch=batch) as stream, Store(store, os.getuid(), write=True) as kept:
        pipeline = Pipeline(rules, None, Incidents(), flight=Flight(kept.keep))
        for told in pipeline.walk(stream):
            kept.put(told)
    with closing(sqlite3.connect(store)) as db:
        return list(db.iterdump()), pipeline.account()


def test_replay(recorded, tmp_path):
    """The same recording gives the same store, byte for byte, in batches of any size."""
    first, account = replay(recorded, tmp_path / "one.db")
    again, same = replay(recorded, tmp_path / "two.db")
    small, _ = replay(recorded, tmp_path / "three.db", batch=7)

    assert (first, account) == (again, same)
    rows = [[line for line in dump if 'INTO "event"' in line] for dump in (first, small)]
    # Which batch an event was written in says in which order it stands in the file, and no more.
    assert sorted(line.partition(",")[2] for line in rows[0]) == sorted(
        line.partition(",")[2] for line in rows[1]
    )
    assert account["alerts"] == 2
    assert account["flight_kept"] > 100


def test_replay_into_the_same_store(recorded, tmp_path):
    """A second replay replaces what the first has kept."""
    replay(recorded, tmp_path / "s.db")
    replay(recorded, tmp_path / "s.db")
    _, account = replay(recorded, tmp_path / "other.db")
    with closing(sqlite3.connect(tmp_path / "s.db")) as db:
        (kept,) = db.execute("SELECT count(*) FROM kept").fetchone()
        (orphans,) = db.execute(
            "SELECT count(*) FROM event WHERE id NOT IN (SELECT event FROM kept)"
        ).fetchone()

    assert (kept, orphans) == (account["flight_kept"], 0)


def test_in_the_walk(recorded, tmp_path):
    """Items and alerts come in their order: the event that raised an alert is the last of before."""
    rules = RuleSet([compile_rule(EXAMPLE, "cat.yml", sources())])
    recorder = Kept()
    recorder.flight.item = recorder.see = _noting(recorder, recorder.flight.item)
    with Reader(recorded) as stream:
        pipeline = Pipeline(rules, None, Incidents(), flight=recorder.flight)
        first, _ = pipeline.walk(stream)
    before = recorder.of(first.id, Phase.BEFORE)

    assert isinstance(before[-1], ExecEvent)
    assert {i.process.exe for i in before} == {"/usr/sbin/httpd", "/bin/sh", "/bin/cat"}
    assert max(i.time_ns for i in recorder.of(first.id) if isinstance(i, SyscallEvent)) == at(35)


def _noting(recorder, item):
    def note(one):
        recorder.items.append(one)
        item(one)

    return note


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(events | windows, max_size=4), max_size=4))
def test_any_stream(batches):
    """Whatever comes, an alert of it can be kept."""
    recorder = Kept()
    for batch in batches:
        for item in batch:
            recorder.see(item)
            said = anomaly(item.process) if isinstance(item, Window) else match(item.process)
            evidence = Evidence(1, 0, 0, **{"anomaly" if isinstance(item, Window) else "match": said})
            recorder.tell(Alert(str(item.tid), 1, 0, 1 << 63, item.process, judge([], []), (evidence,)))
        recorder.flight.flush()

    assert {str(item.tid) for item in recorder.items} == set(recorder.kept)
    assert Level.NONE is judge([], []).level
