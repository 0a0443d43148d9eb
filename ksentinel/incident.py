# SPDX-License-Identifier: Apache-2.0
"""
Incidents: where the two witnesses meet. Rules speak of events, models of windows.

They **agree** when both speak of one lineage (a process, or an ancestor of it up to its service) within
`Incidents.within_ns`, in either order; the later one upgrades the incident that the earlier one opened.

An incident belongs to a *branch*: the process just below the service (the request's handler, the session), or the
service itself. What happens in one branch is told as one alert, until the branch has been quiet for a while. An
incident that looks just like one already told (same service, same programs, same rules) is counted there instead of
told again; it is told after all when it gets worse.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from ksentinel.alert import Alert, Evidence
from ksentinel.detectors import Anomaly
from ksentinel.event import Process, ProcessKey
from ksentinel.level import Level
from ksentinel.rules import Match
from ksentinel.verdict import Context, Verdict, judge

SECOND = 1_000_000_000
_MAX_WITNESSES = 256
_MAX_ANOMALIES = 5
_MAX_RULES = 50

Signature = tuple[str, frozenset[str], frozenset[str]]


@dataclass(slots=True)
class _Witness:
    """One match or anomaly, reduced to what bringing them together needs."""

    time_ns: int
    process: Process
    match: Match | None = None
    anomaly: Anomaly | None = None


@dataclass(slots=True)
class _Incident:
    id: str
    process: Process
    opened_ns: int
    updated_ns: int
    matches: dict[str, Evidence] = field(default_factory=dict)
    anomalies: list[Evidence] = field(default_factory=list)
    lossy: bool = False
    revision: int = 0
    repeats: int = 0
    told: Alert | None = None
    same_as: "_Incident | None" = None
    dirty: bool = False


class Incidents:
    """
    Brings matches and anomalies together and says what there is to tell.

    Parameters
    ----------
    within_ns
        How far apart two witnesses may be and still agree.
    quiet_ns
        A branch that was quiet this long has its incident closed.
    fold_ns
        For how long an alert keeps counting incidents that look like it.
    limit
        Open incidents kept at most; beyond it the one quiet for longest is closed.
    arch
        Whose system call names alerts use.
    """

    def __init__(
        self,
        *,
        within_ns: int = 30 * SECOND,
        quiet_ns: int = 300 * SECOND,
        fold_ns: int = 3600 * SECOND,
        limit: int = 10_000,
        arch: str = "x86_64",
        judge: Callable[..., Verdict] = judge,
    ) -> None:
        self.within_ns = within_ns
        self.quiet_ns = quiet_ns
        self.fold_ns = fold_ns
        self.limit = limit
        self.arch = arch
        self._judge = judge
        self._recent: OrderedDict[ProcessKey, deque[_Witness]] = OrderedDict()
        self._open: OrderedDict[ProcessKey, _Incident] = OrderedDict()
        self._told: OrderedDict[Signature, _Incident] = OrderedDict()

    def match(self, match: Match, *, lossy: bool = False) -> Iterator[Alert]:
        """Take a match in; yield the alert it opens or changes, if any."""
        event = match.event
        yield from self._take(_Witness(event.time_ns, event.process, match=match), lossy=lossy)

    def anomaly(self, anomaly: Anomaly, *, lossy: bool = False) -> Iterator[Alert]:
        """Take an anomaly in; those below every threshold say nothing."""
        if anomaly.level is Level.NONE:
            return
        window = anomaly.window
        witness = _Witness(window.last_ns, window.process, anomaly=anomaly)
        yield from self._take(witness, lossy=lossy or window.lossy)

    def finish(self) -> Iterator[Alert]:
        """Yield once more each alert whose counts have risen since it was told."""
        for incident in [*self._told.values()]:
            if incident.dirty and incident.told is not None:
                incident.revision += 1
                incident.dirty = False
                yield self._alert(incident, incident.told.verdict)

    def _take(self, witness: _Witness, *, lossy: bool) -> Iterator[Alert]:
        self._close_quiet(witness.time_ns)
        incident = self._home(witness)
        new = _enter(incident, witness)
        for other in self._others(witness):
            new = _enter(incident, other, again=False) or new
        incident.lossy |= lossy
        incident.updated_ns = max(incident.updated_ns, witness.time_ns)
        self._remember(witness)

        verdict = self._verdict(incident)
        if verdict.level is Level.NONE:
            return
        before = incident.told.level if incident.told is not None else Level.NONE
        if not new and verdict.level <= before:
            _most(incident).dirty = True
            return
        if self._fold(incident, verdict):
            return
        incident.same_as = None
        incident.revision += 1
        alert = self._alert(incident, verdict)
        incident.told = alert
        incident.dirty = False
        signature = _signature(incident)
        self._told[signature] = incident
        self._told.move_to_end(signature)
        if len(self._told) > self.limit:
            self._told.popitem(last=False)
        yield alert

    def _home(self, witness: _Witness) -> _Incident:
        """Return the incident that *witness* belongs to: its branch's, else one it agrees with, else a new one."""
        branch = branch_of(witness.process)
        incident = self._open.get(branch)
        if incident is None:
            for other in reversed(self._others(witness)):
                incident = self._open.get(branch_of(other.process))
                if incident is not None:
                    break
        if incident is None:
            incident = _Incident(_id(witness), witness.process, witness.time_ns, witness.time_ns)
        self._open[branch] = incident
        self._open.move_to_end(branch)
        if len(self._open) > self.limit:
            self._open.popitem(last=False)
        return incident

    def _others(self, witness: _Witness) -> list[_Witness]:
        """Return the witnesses of the other kind that *witness* agrees with, oldest first."""
        recent = self._recent.get(witness.process.service_key, ())
        return [
            other
            for other in recent
            if (other.match is None) != (witness.match is None)
            and abs(witness.time_ns - other.time_ns) <= self.within_ns
            and related(witness.process, other.process)
        ]

    def _remember(self, witness: _Witness) -> None:
        service = witness.process.service_key
        self._recent.setdefault(service, deque(maxlen=_MAX_WITNESSES)).append(witness)
        self._recent.move_to_end(service)
        if len(self._recent) > self.limit:
            self._recent.popitem(last=False)

    def _close_quiet(self, now_ns: int) -> None:
        while self._open:
            branch, incident = next(iter(self._open.items()))
            if now_ns - incident.updated_ns < self.quiet_ns:
                break
            del self._open[branch]

    def _verdict(self, incident: _Incident) -> Verdict:
        anomalies = [e.anomaly for e in incident.anomalies if e.anomaly is not None]
        matches = [e.match for e in incident.matches.values() if e.match is not None]
        return self._judge(
            matches,
            anomalies,
            Context(lossy=incident.lossy, unseen=any(anomaly.unseen for anomaly in anomalies)),
        )

    def _fold(self, incident: _Incident, verdict: Verdict) -> bool:
        """Count *incident* where one like it was told already, if it is no worse than that one."""
        like = self._told.get(_signature(incident))
        if like is None or like is incident or like.told is None:
            return False
        if incident.updated_ns - like.updated_ns > self.fold_ns or verdict.level > like.told.level:
            return False
        if incident.same_as is not like:
            incident.same_as = like
            like.repeats += 1
            like.updated_ns = max(like.updated_ns, incident.updated_ns)
        like.dirty = True
        return True

    def _alert(self, incident: _Incident, verdict: Verdict) -> Alert:
        return Alert(
            id=incident.id,
            revision=incident.revision,
            opened_ns=incident.opened_ns,
            updated_ns=incident.updated_ns,
            process=incident.process,
            verdict=verdict,
            evidence=(
                *sorted(
                    incident.matches.values(),
                    key=lambda e: (-(e.match.rule.level if e.match else 0), e.first_ns),
                ),
                *incident.anomalies,
            ),
            repeats=incident.repeats,
            arch=self.arch,
        )


def related(one: Process, other: Process) -> bool:
    """Tell whether one of two processes is the other, or an ancestor of it within the same service."""
    if one.service_key != other.service_key:
        return False
    return any(p.key == other.key for p in one.lineage()) or any(p.key == one.key for p in other.lineage())


def branch_of(process: Process) -> ProcessKey:
    """Return the process just below the service that *process* descends from; the service itself if it is one."""
    branch = process
    for ancestor in process.lineage():
        if ancestor.key == process.service_key:
            break
        branch = ancestor
    return branch.key


def _enter(incident: _Incident, witness: _Witness, *, again: bool = True) -> bool:
    """Add *witness* to the evidence; tell whether it is something new. *again*: count one that is known already."""
    if witness.match is not None:
        rule = witness.match.rule.id
        known = incident.matches.get(rule)
        if known is None and len(incident.matches) < _MAX_RULES:
            incident.matches[rule] = Evidence(1, witness.time_ns, witness.time_ns, match=witness.match)
            return True
        if known is not None and again:
            incident.matches[rule] = replace(
                known, count=known.count + 1, last_ns=max(known.last_ns, witness.time_ns)
            )
        return False
    anomaly = witness.anomaly
    if anomaly is None or any(e.anomaly is anomaly for e in incident.anomalies):
        return False
    first = not incident.anomalies
    incident.anomalies.append(Evidence(1, witness.time_ns, witness.time_ns, anomaly=anomaly))
    incident.anomalies.sort(key=lambda e: (e.anomaly.p_value if e.anomaly else 1.0, e.first_ns))
    for dropped in incident.anomalies[_MAX_ANOMALIES:]:
        last = incident.anomalies[_MAX_ANOMALIES - 1]
        incident.anomalies[_MAX_ANOMALIES - 1] = replace(last, count=last.count + dropped.count)
    del incident.anomalies[_MAX_ANOMALIES:]
    return first


def _most(incident: _Incident) -> _Incident:
    return incident if incident.same_as is None else incident.same_as


def _signature(incident: _Incident) -> Signature:
    programs = {e.match.event.process.exe for e in incident.matches.values() if e.match is not None}
    if not incident.matches:
        programs = {e.anomaly.window.process.exe for e in incident.anomalies if e.anomaly is not None}
    return incident.process.service_exe, frozenset(incident.matches), frozenset(programs)


def _id(witness: _Witness) -> str:
    """Return the same id for the same witness, in every replay."""
    what = witness.match.rule.id if witness.match is not None else "anomaly"
    text = f"{witness.time_ns} {witness.process.key} {what}"
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
