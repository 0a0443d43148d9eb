# SPDX-License-Identifier: Apache-2.0
"""
The flight recorder: what a lineage did before and after an alert.

In memory it holds the last items of every process, as they came; nothing is copied or encoded until an alert needs it.
An alert then keeps the last `Flight.before` items of its lineage, and what follows for `Flight.after_ns`, in the time of
the events: a replay keeps the same.

**Lineage.** The alert's process, its ancestors up to their service, and its descendants; siblings not. If a later
revision of the alert is about another process, that one's lineage as well.

**Who flushes out whom.** Each process has a ring of its own, the rings of a branch (see `incident.branch_of`) have a
bound together, and so have all branches. So a busy process flushes out the past of its branch at most, and only then
other branches': that of which nothing was heard for longest goes first, and is counted. The service itself belongs to
every lineage below it and is often the busiest of all: at most a quarter of what an alert keeps is the service's own,
unless the alert is about the service, or there is room.

**Before and after** are by time, not by arrival: a window that was closed late may belong to what came before.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from ksentinel.alert import Alert
from ksentinel.codec import KINDS, event_to_plain, process_to_plain
from ksentinel.event import AuditEvent, ExecEvent, HookEvent, Process, ProcessKey, SyscallEvent
from ksentinel.incident import SECOND, branch_of, related
from ksentinel.sources import Item
from ksentinel.syscalls import token_name
from ksentinel.window import Window

WINDOW = "window"
_KINDS: dict[type, str] = {kind: name for name, kind in KINDS.items()}
_SHARE = 4
"""One part in so many is the service's, of what an alert of another process keeps."""
_FOREVER = 1 << 127

_name = lru_cache(maxsize=4096)(token_name)


class Phase(StrEnum):
    """Which side of an alert's opening something happened on."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Facts:
    """
    What an event or a window can be searched by.

    Attributes
    ----------
    begun_ns, time_ns
        The same for events; a window's first and last call.
    kind
        ``exec``, ``fork``, ``exit``, ``syscall``, ``audit``, ``hook`` or ``window``.
    paths
        Files that were named, the socket of a unix address among them.
    host, port
        Of an Internet address.
    calls
        Names of system calls, those of other ABIs with their prefix (``i386:open``); each once.
    """

    begun_ns: int
    time_ns: int
    kind: str
    pid: int
    tid: int
    exe: str
    paths: tuple[str, ...] = ()
    host: str = ""
    port: int | None = None
    calls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """
    One item, as it is kept for one alert.

    Attributes
    ----------
    number
        Which item of this run it was, from 1: the same for every alert that keeps it.
    body
        What `to_plain` makes of it.
    """

    alert: str
    phase: Phase
    number: int
    facts: Facts
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Flown:
    """How much is kept for an alert, how much more came after it, and how much has been removed since."""

    before: int = 0
    after: int = 0
    beyond: int = 0
    removed: int = 0


Keep = Callable[[Sequence[Kept], Mapping[str, int]], None]
"""Takes what is to be kept, and for each alert how many items of it were too many up to now."""

_Entry = tuple[int, Item]
_Marks = tuple[Any, ...]


class _Branch:
    __slots__ = ("count", "key", "rings")

    def __init__(self, key: ProcessKey) -> None:
        self.key = key
        self.rings: OrderedDict[_Ring, None] = OrderedDict()  # the one heard of least recently first
        self.count = 0


class _Ring:
    """The last items of one process; a list, because most processes have only a few."""

    __slots__ = ("branch", "entries", "process")

    def __init__(self, process: Process, branch: _Branch) -> None:
        self.process = process
        self.branch = branch
        self.entries: list[_Entry] = []


class _Followed:
    """An alert whose lineage is followed, or was."""

    __slots__ = ("alert", "asked", "beyond", "keys", "marks", "opened_ns", "processes", "room", "until_ns")

    def __init__(self, alert: Alert, most: int) -> None:
        self.alert = alert.id
        self.opened_ns = alert.opened_ns
        self.until_ns = -_FOREVER
        self.marks: _Marks = ()
        self.processes: dict[ProcessKey, Process] = {}
        self.keys: set[ProcessKey] = set()
        # For items of the service, and for all others.
        self.room = [most // _SHARE, most - most // _SHARE]
        self.beyond = 0
        self.asked: tuple[Process | None, bool] = (None, False)

    def concerns(self, process: Process) -> bool:
        """Tell whether *process* is of a lineage that is followed."""
        last, answer = self.asked  # items come in runs of one process
        if last is process:
            return answer
        # A process that has left its service since is the same all the same.
        answer = process.key in self.processes or any(related(p, process) for p in self.processes.values())
        self.asked = process, answer
        return answer


_NOBODY: dict[str, _Followed] = {}


class Flight:
    """
    Holds the recent past of every lineage, and keeps for each alert what came before and after it.

    Parameters
    ----------
    keep
        Takes what is kept, at every `flush`.
    arch
        Whose system call names windows are told by.
    before
        How many items of its lineage an alert keeps from before it was told; also the most that is held of one process.
    after_ns
        For how long after its newest piece of evidence an alert keeps what follows.
    most
        How many items at most follow; what is beyond is counted.
    branch_items, items
        How many items are held of one branch, and of all.
    branches
        How many branches are held.
    alerts
        How many alerts are followed at the same time; beyond it the oldest is given up (and counted).
    """

    def __init__(
        self,
        keep: Keep,
        *,
        arch: str = "x86_64",
        before: int = 200,
        after_ns: int = 30 * SECOND,
        most: int = 2000,
        branch_items: int = 1000,
        items: int = 50_000,
        branches: int = 4096,
        alerts: int = 200,
    ) -> None:
        self.keep = keep
        self.arch = arch
        self.before = before
        self.after_ns = after_ns
        self.most = most
        self.branch_items = branch_items
        self.items = items
        self.branches = branches
        self.alerts = alerts
        self.counts: Counter[str] = Counter()
        self._number = 0
        self._held = 0
        self._rings: dict[ProcessKey, _Ring] = {}
        self._branches: OrderedDict[ProcessKey, _Branch] = OrderedDict()  # as the rings of a branch
        self._latest: _Ring | None = None
        self._known: OrderedDict[str, _Followed] = OrderedDict()
        self._open: dict[str, _Followed] = {}
        # By branch and by service: an alert below a service is concerned by the service's own items, too. And by
        # service alone: an alert of the service itself is concerned by all that is below it.
        self._following: dict[ProcessKey, dict[str, _Followed]] = {}
        self._following_all: dict[ProcessKey, dict[str, _Followed]] = {}
        self._pending: list[tuple[_Followed, _Entry]] = []
        self._exceeded: dict[str, int] = {}
        self._earliest_ns = _FOREVER

    def item(self, item: Item) -> None:
        """Take an item in; every one, in their order."""
        self._number += 1
        process = item.process
        ring = self._rings.get(process.key)
        if ring is None or ring.process is not process:
            ring = self._placed(process)
        branch = ring.branch
        entry = (self._number, item)
        ring.entries.append(entry)
        if len(ring.entries) > self.before:
            del ring.entries[0]
        else:
            branch.count += 1
            self._held += 1
        if ring is not self._latest:
            branch.rings.move_to_end(ring)
            self._branches.move_to_end(branch.key)
            self._latest = ring
        while branch.count > self.branch_items:
            self._shorten(branch)
        if self._held > self.items or len(self._branches) > self.branches:
            self._evict()
        if self._open:
            self._follow(process, branch.key, entry)

    def alert(self, alert: Alert) -> None:
        """Keep what came before *alert*, and follow its lineage from now on; one that only counts more changes nothing."""
        marks = (
            alert.process.key,
            alert.level,
            alert.verdict.agreed,
            frozenset(match.rule.id for match in alert.matches),
            bool(alert.anomalies),
        )
        followed = self._known.get(alert.id)
        first = followed is None
        if followed is None:
            followed = self._known[alert.id] = _Followed(alert, self.most)
        self._known.move_to_end(alert.id)
        if followed.marks == marks:
            return
        followed.marks = marks
        until_ns = followed.until_ns
        followed.until_ns = max(until_ns, alert.updated_ns + self.after_ns)
        past = self._past(followed, alert.process, until_ns)
        if first:  # what came before takes no room from what follows
            self._pending += [(followed, entry) for entry in past]
        else:
            for entry in past:
                self._take(followed, entry)
        self._enter(followed, alert.process)
        # Those that are over are remembered for a while, in case there is more to tell of them.
        if len(self._known) > 10 * self.alerts:
            _, forgotten = self._known.popitem(last=False)
            self._leave(forgotten)
        if len(self._open) > self.alerts:
            self._leave(next(iter(self._open.values())))
            self.counts["alerts_followed_in_part"] += 1

    def flush(self) -> None:
        """Hand over what is to be kept; then let go of alerts whose time is over."""
        if self._pending or self._exceeded:
            # Items and processes are encoded once, whoever keeps them.
            who: dict[int, Any] = {}

            def process(process: Process) -> Any:
                if id(process) not in who:
                    who[id(process)] = process_to_plain(process)
                return who[id(process)]

            told: dict[int, tuple[Facts, dict[str, Any]]] = {}
            kept = []
            for followed, (number, item) in self._pending:
                if number not in told:
                    told[number] = facts(item, self.arch), to_plain(item, self.arch, process)
                phase = Phase.AFTER if _time(item) > followed.opened_ns else Phase.BEFORE
                kept.append(Kept(followed.alert, phase, number, *told[number]))
            exceeded = self._exceeded
            self._pending, self._exceeded = [], {}
            self.counts["kept"] += len(kept)
            self.keep(kept, exceeded)
        # By the earliest time of a batch: one item that claims a time far ahead ends nothing.
        if self._earliest_ns != _FOREVER:
            for followed in [f for f in self._open.values() if f.until_ns < self._earliest_ns]:
                self._leave(followed)
            self._earliest_ns = _FOREVER

    def account(self) -> dict[str, int]:
        """Return the counters: what was kept, what was beyond the bounds, what was evicted before an alert needed it."""
        names = ("kept", "beyond", "evicted", "lineages_evicted", "alerts_followed_in_part")
        return {f"flight_{name}": self.counts[name] for name in names}

    def _placed(self, process: Process) -> _Ring:
        """Return the ring of *process*, in the branch that it belongs to now."""
        key = branch_of(process)
        branch = self._branches.get(key)
        if branch is None:
            branch = self._branches[key] = _Branch(key)
        ring = self._rings.get(process.key)
        if ring is None:
            ring = self._rings[process.key] = _Ring(process, branch)
        elif ring.branch is not branch:
            # It has left the service that it was started under, and takes its past along.
            left = ring.branch
            del left.rings[ring]
            left.count -= len(ring.entries)
            if not left.rings:
                del self._branches[left.key]
            branch.count += len(ring.entries)
            self._latest = None
        ring.process = process
        ring.branch = branch
        branch.rings[ring] = None
        return ring

    def _shorten(self, branch: _Branch) -> None:
        """Let the oldest item go of the process of *branch* that was heard of least recently."""
        ring = next(iter(branch.rings))
        del ring.entries[0]
        branch.count -= 1
        self._held -= 1
        self.counts["evicted"] += 1
        if not ring.entries:
            del branch.rings[ring]
            del self._rings[ring.process.key]

    def _evict(self) -> None:
        """Let the branch go that was heard of least recently."""
        _, branch = self._branches.popitem(last=False)
        for ring in branch.rings:
            del self._rings[ring.process.key]
        self._held -= branch.count
        self.counts["evicted"] += branch.count
        self.counts["lineages_evicted"] += 1
        self._latest = None

    def _follow(self, process: Process, branch: ProcessKey, entry: _Entry) -> None:
        time_ns, service = _time(entry[1]), process.service_key
        self._earliest_ns = min(self._earliest_ns, time_ns)
        concerned = self._following.get(branch, _NOBODY)
        if service in self._following_all:
            concerned = concerned | self._following_all[service]
        for followed in concerned.values():
            if time_ns <= followed.until_ns and followed.concerns(process):
                self._take(followed, entry)

    def _take(self, followed: _Followed, entry: _Entry) -> None:
        process = entry[1].process
        near = process.service is not None or process.key in followed.processes
        if followed.room[near]:
            followed.room[near] -= 1
            self._pending.append((followed, entry))
        else:
            followed.beyond += 1
            self.counts["beyond"] += 1
            self._exceeded[followed.alert] = followed.beyond

    def _past(self, followed: _Followed, process: Process, until_ns: int) -> list[_Entry]:
        """Return what is held of a lineage and not kept yet; *until_ns* is up to when everything was followed."""
        near: list[_Entry] = []
        far: list[_Entry] = []
        # By each item's process, as that was then: it may have left the service since. Most items share theirs.
        since_ns: dict[int, int | None] = {}
        for ring in self._around(process):
            for entry in ring.entries:
                item = entry[1]
                one = item.process
                if id(one) not in since_ns:
                    if one.key != process.key and not related(one, process):
                        since_ns[id(one)] = None
                    else:
                        since_ns[id(one)] = until_ns if followed.concerns(one) else -_FOREVER
                least = since_ns[id(one)]
                if least is not None and least < _time(item) <= followed.until_ns:
                    service = one.service is None and one.key != process.key
                    (far if service else near).append(entry)
        near.sort()  # by their numbers, of which no two are the same
        far.sort()
        share = self.before // _SHARE
        near = _last(near, max(self.before - share, self.before - len(far)))
        return sorted([*near, *_last(far, self.before - len(near))])

    def _around(self, process: Process) -> Iterator[_Ring]:
        """Yield the rings that can be of the lineage of *process*, and perhaps others."""
        if process.service is None:
            yield from (r for r in self._rings.values() if r.process.service_key == process.key)
            return
        branches = dict.fromkeys((branch_of(process), process.service_key))
        own = self._rings.get(process.key)
        if own is not None and own.branch.key not in branches:
            yield own
        for key in branches:
            if key in self._branches:
                yield from self._branches[key].rings

    def _enter(self, followed: _Followed, process: Process) -> None:
        followed.processes[process.key] = process
        followed.asked = None, False
        self._open.setdefault(followed.alert, followed)
        for one in followed.processes.values():
            # By itself as well: it may leave its service, and is a branch of its own then.
            for key in (branch_of(one), one.service_key, one.key):
                followed.keys.add(key)
                self._following.setdefault(key, {})[followed.alert] = followed
            if one.service is None:
                self._following_all.setdefault(one.key, {})[followed.alert] = followed

    def _leave(self, followed: _Followed) -> None:
        self._open.pop(followed.alert, None)
        for following in (self._following, self._following_all):
            for key in followed.keys:
                there = following.get(key, {})
                there.pop(followed.alert, None)
                if not there:
                    following.pop(key, None)
        followed.keys.clear()


def facts(item: Item, arch: str = "x86_64") -> Facts:
    """Return what *item* can be searched by."""
    process = item.process
    pid, exe = process.key.pid, process.exe
    if isinstance(item, Window):
        calls = tuple(dict.fromkeys(_name(token, arch) for token in item.tokens))
        return Facts(item.first_ns, item.last_ns, WINDOW, pid, item.tid, exe, calls=calls)
    paths: Iterable[str] = ()
    calls = ()
    host, port = "", None
    if isinstance(item, SyscallEvent | HookEvent):
        called = item.call if isinstance(item, HookEvent) else item.syscall
        calls = (called if item.abi == "native" else f"{item.abi}:{called}",) if called else ()
        paths = item.paths
        if item.address is not None:
            paths = (*paths, item.address.path)
            host, port = item.address.host, item.address.port
    elif isinstance(item, ExecEvent):
        calls = ("execve", "execveat")
        paths = (item.path, exe)
    elif isinstance(item, AuditEvent):
        fields = [pair for record in item.records for pair in record.fields]
        paths = (value for name, value in fields if name in {"name", "path"})
        host = next((value for name, value in fields if name == "addr" and _is_address(value)), "")
    paths = tuple(dict.fromkeys(path for path in paths if path))
    return Facts(item.time_ns, item.time_ns, _KINDS[type(item)], pid, item.tid, exe, paths, host, port, calls)


def to_plain(
    item: Item, arch: str = "x86_64", process: Callable[[Process], Any] = process_to_plain
) -> dict[str, Any]:
    """Return *item* as a dict: an event as in `codec`, a window with its system calls by name."""
    if not isinstance(item, Window):
        return event_to_plain(item, process)
    return {
        "event": WINDOW,
        "first_ns": item.first_ns,
        "time_ns": item.last_ns,
        "tid": item.tid,
        "origin": str(item.origin),
        "cause": item.cause.name.lower(),
        "lossy": item.lossy,
        "syscalls": [_name(token, arch) for token in item.tokens],
        "process": process(item.process),
    }


def _time(item: Item) -> int:
    return item.last_ns if isinstance(item, Window) else item.time_ns


def _last(entries: list[_Entry], count: int) -> list[_Entry]:
    return entries[-count:] if count else []


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
