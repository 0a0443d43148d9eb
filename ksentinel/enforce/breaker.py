# SPDX-License-Identifier: Apache-2.0
"""
The breaker: a rule that denies unrelated services right after it was changed is taken back by itself.

It is for the mistake of whoever wrote the rule, and must be no off-switch for whom the rule is against. A mistake and an attack
differ in *who* is denied: the mistake hits services that have nothing to do with each other, the attack is one intruder's, however
many processes he has. So a rule trips only when so many **unrelated, established** services were denied within a short time after
the rule or its mode was changed. Each of these stands against one way to make up the others:

==============================  ======================================================================================
he could                        but
==============================  ======================================================================================
deny himself a thousand times,  one service counts once, however often it is denied, and all that descends from it is it
fork, double-fork
leave his session (``setsid``)  a service of its own then, but of the same *principal*: who logged in, else the user, else the
                                container, else the unit of systemd; one principal counts once
copy or rename programs         a service counts by a program of the host's packages (*trusted*: root's, in root's directories)
start many programs of the      they have one user, one login, one container: one principal
host
start services as root          they count only if program and principal were there when the rule was changed
run one program in all of       one program counts once, too
their names
wait                            the time runs from the change, and a restart of ksentinel is no change
==============================  ======================================================================================

What is left is an intruder who held so many established services of different principals before the change. Rules that must
stand even then are *pinned*, and never trip. Nor does what needs a second key (an anomalous lineage) or is a verdict on a process:
those are about single lineages, by their nature.

It counts too little rather than too much: of services that share a program or a principal, the first that was denied stands for
all. A rule that trips becomes permissive: it still tells. It stays so until somebody changes it or says otherwise.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from ksentinel.event import HookEvent, Outcome, Process, ProcessKey

SECOND = 1_000_000_000
LEAST = 5
"""So many unrelated services. One mistake seldom hits fewer; an intruder seldom has so many."""
WITHIN_NS = 600 * SECOND
"""Whoever has just changed a rule is still looking."""

_ROOT = 0
_UNSET = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, order=True)
class Service:
    """
    A service as an identity that an intruder can't make up, as far as one host's own records tell.

    Attributes
    ----------
    program
        Executable of the service.
    principal
        On whose behalf it runs: ``container 3f…``, ``login 1000``, ``user 33``, ``unit cron.service`` or ``root``.
    """

    program: str
    principal: str

    def __str__(self) -> str:
        return f"{self.program} ({self.principal})"

    @classmethod
    def of(cls, process: Process) -> "Service | None":
        """
        Return the service that *process* belongs to; None if too little is known of it to tell it from others.

        The real user counts, not the effective one: a program that runs as its owner is still its caller's.
        """
        service = process if process.service is None else process.service
        if not service.exe or service.uid is None:
            return None
        container = service.container or process.container
        # Of the two the process' own login is asked first: who came in by a service is not that service.
        login = next((p.auid for p in (process, service) if p.auid not in {None, _UNSET}), None)
        if container:
            principal = f"container {container}"
        elif login is not None:
            principal = f"login {login}"
        elif service.uid != _ROOT:
            principal = f"user {service.uid}"
        else:
            principal = f"unit {service.unit}" if service.unit else "root"
        return cls(service.exe, principal)


@dataclass(frozen=True, slots=True)
class Lineage:
    """A service that a rule denied something: which one, the process that it is, and when first."""

    service: Service
    key: ProcessKey
    exe: str
    hook: str
    time_ns: int


@dataclass(frozen=True, slots=True)
class Trip:
    """A rule was taken back."""

    rule: str
    title: str
    time_ns: int
    changed_ns: int
    lineages: tuple[Lineage, ...]

    def words(self) -> str:
        """
        Return it as people are told.

        Examples
        --------
        >>> told = Lineage(
        ...     Service("/usr/sbin/cron", "unit cron.service"), ProcessKey(7, 0), "/bin/sh", "file_open", 0
        ... )
        >>> Trip("r", "Shadow read", 90 * SECOND, 0, (told,)).words()
        "rule 'Shadow read' (r) is permissive now: within 90 s after it was changed it denied 1 unrelated services: /usr/sbin/cron (unit cron.service)"
        """
        whose = ", ".join(str(one.service) for one in self.lineages)
        named = f"{self.title!r} ({self.rule})" if self.title else repr(self.rule)
        return (
            f"rule {named} is permissive now: within {(self.time_ns - self.changed_ns) // SECOND} s after it was changed it denied "
            f"{len(self.lineages)} unrelated services: {whose}"
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "rule": self.rule,
            "title": self.title,
            "time_ns": self.time_ns,
            "changed_ns": self.changed_ns,
            "services": [
                {
                    "program": one.service.program,
                    "principal": one.service.principal,
                    "pid": one.key.pid,
                    "exe": one.exe,
                    "hook": one.hook,
                    "time_ns": one.time_ns,
                }
                for one in self.lineages
            ],
        }


@dataclass(slots=True)
class _Changed:
    """A rule that may still trip."""

    at_ns: int
    established: frozenset[Service]
    lineages: list[Lineage] = field(default_factory=list)
    above: list[frozenset[ProcessKey]] = field(default_factory=list)


class Breaker:
    """
    Sees what is denied, and says when a rule has to be taken back.

    Time is the events' own, as nanoseconds since the epoch. Memory is bounded: *least* services a rule.

    Parameters
    ----------
    trusted
        Whether an executable is one of the host's own: `is_roots`.
    pinned
        Ids of rules that never trip.
    least, within_ns
        How many services, and for how long after a change.
    """

    def __init__(
        self,
        trusted: Callable[[str], bool],
        *,
        pinned: Collection[str] = (),
        least: int = LEAST,
        within_ns: int = WITHIN_NS,
    ) -> None:
        self.trusted = trusted
        self.pinned = frozenset(pinned)
        self.least = least
        self.within_ns = within_ns
        self.trips: dict[str, Trip] = {}
        self._changed: dict[str, _Changed] = {}

    def changed(self, rules: Mapping[str, int], processes: Iterable[Process]) -> None:
        """
        Note that rules were changed (or their modes), and when; what is counted of them begins anew.

        Parameters
        ----------
        rules
            By id, the time. See `changes`: a rule that only was loaded again isn't one.
        processes
            That ran when they were changed: only their services count.
        """
        found = (Service.of(process) for process in processes)
        established = frozenset(service for service in found if service is not None)
        for rule, at_ns in rules.items():
            self.trips.pop(rule, None)
            self._changed[rule] = _Changed(at_ns, established)

    def forget(self, rules: Collection[str]) -> None:
        """Let go of all rules but these."""
        for known in (self._changed, self.trips):
            for rule in [rule for rule in known if rule not in rules]:
                del known[rule]

    def denied(self, event: HookEvent) -> Trip | None:
        """Take a denial in; return the trip that it causes, if it does."""
        changed = self._changed.get(event.rule)
        if (
            changed is None
            or event.outcome is not Outcome.DENIED
            or event.nonce is not None
            or event.anomalous
            or event.sentence
            or event.rule in self.pinned
            or event.rule in self.trips
            or not 0 <= event.time_ns - changed.at_ns <= self.within_ns
        ):
            return None
        if not self._take(changed, event) or len(changed.lineages) < self.least:
            return None
        trip = Trip(event.rule, event.title, event.time_ns, changed.at_ns, tuple(changed.lineages))
        self.trips[event.rule] = trip
        return trip

    def _take(self, changed: _Changed, event: HookEvent) -> bool:
        """Count the service that was denied, if it is unrelated to those that are counted already."""
        process = event.process
        service = Service.of(process)
        if service is None or service not in changed.established:
            return False
        for one, above in zip(changed.lineages, changed.above, strict=True):
            if (
                one.service.program == service.program
                or one.service.principal == service.principal
                or one.key == process.service_key
                or process.service_key in above
                or any(ancestor.key == one.key for ancestor in process.ancestors())
            ):
                return False
        if not self.trusted(service.program):  # asked last: it looks at files
            return False
        changed.lineages.append(Lineage(service, process.service_key, process.exe, event.hook, event.time_ns))
        changed.above.append(frozenset(ancestor.key for ancestor in process.ancestors()))
        return True


def is_roots(path: str, status: Callable[[str], os.stat_result] = os.lstat) -> bool:
    """
    Tell whether nobody but root, and so the package manager, can have put an executable there.

    It and all directories above it belong to root and are writable by nobody else. A link on the way is no answer: an executable's
    path, as the kernel has it, has none.
    """
    place = PurePosixPath(path)
    if not place.is_absolute() or ".." in place.parts:
        return False
    try:
        return all(
            (found := status(str(each))).st_uid == _ROOT
            and not found.st_mode & 0o022
            and (stat.S_ISREG if each is place else stat.S_ISDIR)(found.st_mode)
            for each in (place, *place.parents)
        )
    except (OSError, ValueError):  # the latter: a NUL in it
        return False


@dataclass(frozen=True, slots=True)
class Change:
    """
    What a rule's guard is, and since when.

    Attributes
    ----------
    digest
        Of all that the rule says.
    mode
        That it is enforced by, whoever named it.
    taken_back
        Why the breaker has taken it back; empty if it hasn't. It stays so over restarts, and whatever else's mode changes.
    """

    digest: str
    since_ns: int
    mode: str = ""
    taken_back: str = ""


def changes(
    before: Mapping[str, Change],
    digests: Mapping[str, str],
    now_ns: int,
    modes: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Change]:
    """
    Return since when each rule has been what it is.

    Parameters
    ----------
    before
        What the last one returned; kept over restarts, or a restart would be a change.
    modes
        That rules are enforced by: a rule that is enforced from now on is one that has changed.

    Examples
    --------
    >>> first = changes({}, {"a": "1", "b": "1"}, 100)
    >>> second = changes(first, {"a": "1", "b": "2"}, 200)
    >>> [(rule, change.since_ns) for rule, change in second.items()]
    [('a', 100), ('b', 200)]
    """
    found = {}
    for rule, digest in digests.items():
        known, mode = before.get(rule), modes.get(rule, "")
        if known is None or known.digest != digest:
            found[rule] = Change(digest, now_ns, mode)
        else:
            found[rule] = known if known.mode == mode else replace(known, mode=mode, since_ns=now_ns)
    return found
