# SPDX-License-Identifier: Apache-2.0
"""
Incidents: where the two witnesses meet. Rules speak of events, models of windows.

They **agree** when a match and an anomaly are of one lineage (the same process, or one is an ancestor of the other
within the service) and within `Incidents.within_ns`, in either order. Siblings don't agree, nor does a whole branch.

An incident belongs to a *branch*: the process just below the service (the request's handler, the session) with all its
descendants; the service itself is a branch of its own. Who gets what:

- A match stays in its own branch. If that has no incident yet, it takes over the one of an anomaly that it agrees
  with, unless a match is in there already: the later one upgrades what the earlier one opened.
- An anomaly stays in its own branch, too. If that has no incident, the newest match it agrees with has it; and every
  other incident with a match it agrees with has it, but only if nothing agrees there yet: a service's own windows
  concern all of its branches, and would let each grow with all the others.

What happens in one branch is told as one alert, until the branch has been quiet for a while. An incident that looks just
like one already told (same service, same programs, same rules) is counted there instead of told again; it is told
after all when it gets worse, or when the last telling was long ago.

What a guard in the kernel says is a match of its rule like any other. The event of the same operation may come as well, and
say the same once more: of one rule the two are one piece of evidence, and not counted twice.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ksentinel.alert import Alert, Evidence
from ksentinel.detectors import Anomaly
from ksentinel.event import HookEvent, Process, ProcessKey
from ksentinel.level import Level
from ksentinel.policy import Action, Context, Policy
from ksentinel.rules import Match
from ksentinel.verdict import Verdict, judge, worst

SECOND = 1_000_000_000
_MAX_WITNESSES = 256
_MAX_ANOMALIES = 5
_MAX_RULES = 50

Kind = tuple[str, bool]
"""Of a match: `Match.kind`, its rule and whether it is excepted."""
Signature = tuple[str, frozenset[Kind], frozenset[str], str]


@dataclass(slots=True)
class _Incident:
    id: str
    branch: ProcessKey
    process: Process
    opened_ns: int
    updated_ns: int
    matches: dict[Kind, Evidence] = field(default_factory=dict)
    events: Counter[Kind] = field(default_factory=Counter)
    """By kind of match, how many of them were events of user space; the others are a guard's word."""
    anomalies: list[Evidence] = field(default_factory=list)
    agreeing: dict[Kind, Anomaly] = field(default_factory=dict)
    """By kind of match: the anomaly that agrees with it; one of a program that the model knows, then the most unusual."""
    lossy: bool = False
    revision: int = 0
    repeats: int = 0
    told: Alert | None = None
    told_counts: tuple[int, int] = (0, 0)
    same_as: "_Incident | None" = None

    @property
    def counts(self) -> tuple[int, int]:
        """Repeats, and what the evidence adds up to."""
        seen = sum(e.count for e in self.matches.values()) + sum(e.count for e in self.anomalies)
        return self.repeats, seen


@dataclass(slots=True)
class _Witness:
    """One match or anomaly, reduced to what bringing them together needs."""

    time_ns: int
    process: Process
    tid: int
    lossy: bool
    match: Match | None = None
    anomaly: Anomaly | None = None
    incident: _Incident | None = None

    @property
    def key(self) -> tuple[ProcessKey, Kind]:
        """Of several with the same key the latest is remembered, so that one process can't flush out the others."""
        return self.process.key, ("", False) if self.match is None else self.match.kind


@dataclass(slots=True)
class _Recent:
    """The latest witnesses of one service: apart, so that a flood of one kind doesn't flush out the other."""

    matches: OrderedDict[tuple[ProcessKey, Kind], _Witness] = field(default_factory=OrderedDict)
    anomalies: OrderedDict[tuple[ProcessKey, Kind], _Witness] = field(default_factory=OrderedDict)
    latest_ns: int = 0


class Incidents:
    """
    Brings matches and anomalies together and says what there is to tell.

    Parameters
    ----------
    policy
        What rules and model are worth together.
    within_ns
        How far apart two witnesses may be and still agree.
    quiet_ns
        A branch that was quiet this long has its incident closed.
    fold_ns
        For how long after it was told an alert counts incidents that look like it.
    limit
        Open incidents, services and alerts kept at most; beyond it the one heard of least recently goes.
    arch
        Whose system call names alerts use.

    Attributes
    ----------
    act
        Is told what the policy grants about each match of a rule that asks for something, also where there is nothing to tell: what
        looks like an incident of before has to be acted upon like that; None: nobody acts.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        within_ns: int = 30 * SECOND,
        quiet_ns: int = 300 * SECOND,
        fold_ns: int = 3600 * SECOND,
        limit: int = 10_000,
        arch: str = "x86_64",
        judge: Callable[..., Verdict] = judge,
    ) -> None:
        self.policy = policy
        self.within_ns = within_ns
        self.quiet_ns = quiet_ns
        self.fold_ns = fold_ns
        self.limit = limit
        self.arch = arch
        self.act: Callable[[Match, Action], None] | None = None
        self._judge = judge
        self._recent: OrderedDict[ProcessKey, _Recent] = OrderedDict()
        self._open: OrderedDict[ProcessKey, _Incident] = OrderedDict()
        self._told: OrderedDict[Signature, _Incident] = OrderedDict()

    def match(self, match: Match, *, lossy: bool = False) -> Iterator[Alert]:
        """Take a match in; yield the alerts it opens or changes, if any."""
        event = match.event
        witness = _Witness(event.time_ns, event.process, event.tid, lossy, match=match)
        yield from self._take(witness)

    def anomaly(self, anomaly: Anomaly, *, lossy: bool = False) -> Iterator[Alert]:
        """Take an anomaly in; those below every threshold say nothing."""
        if anomaly.level is Level.NONE:
            return
        window = anomaly.window
        lossy |= window.lossy
        yield from self._take(_Witness(window.last_ns, window.process, window.tid, lossy, anomaly=anomaly))

    def finish(self) -> Iterator[Alert]:
        """Yield once more each alert whose counts have risen since it was told."""
        for incident in sorted(self._told.values(), key=lambda incident: incident.updated_ns):
            yield from self._tell_counts(incident)

    def _take(self, witness: _Witness) -> Iterator[Alert]:
        self._forget(witness.time_ns)
        partners = self._partners(witness)
        witness.incident = self._home(witness, partners)
        concerned = [witness.incident]
        if witness.anomaly is not None:
            for partner in reversed(partners):
                other = partner.incident
                if other is not None and not other.agreeing and all(other is not c for c in concerned):
                    concerned.append(other)
        self._remember(witness)
        for incident in concerned:
            new = self._enter(incident, witness, partners)
            incident.updated_ns = max(incident.updated_ns, witness.time_ns)
            if self._open.get(incident.branch) is incident:
                self._open.move_to_end(incident.branch)
            yield from self._tell(incident, new=new)
        if self.act is not None:
            for one, action in self._granted(witness, partners):
                self.act(one, action)

    def _granted(self, witness: _Witness, partners: Sequence[_Witness]) -> Iterator[tuple[Match, Action]]:
        """Yield what is granted about the match that has come, or the matches that an anomaly agrees with; each by itself."""
        pairs = [(witness, partners)] if witness.match is not None else [(p, [witness]) for p in partners]
        for one, others in pairs:
            if one.match is None or one.match.rule.response is None:
                continue
            lossy = one.lossy or any(other.lossy for other in others)
            contexts = (Context.LOSSY,) if lossy or (one.incident is not None and one.incident.lossy) else ()
            anomalies = [other.anomaly for other in others if other.anomaly is not None]
            witnessed = ([], anomalies) if anomalies else ([],)
            found = [self._judge([one.match], some, contexts, self.policy) for some in witnessed]
            for answer in worst(found).answers:
                yield one.match, answer.action

    def _home(self, witness: _Witness, partners: Sequence[_Witness]) -> _Incident:
        """Return the incident that *witness* belongs to, as the module says."""
        branch = branch_of(witness.process)
        incident = self._open.get(branch)
        if incident is not None:
            return incident
        earlier = partners[-1].incident if partners else None
        if earlier is not None and witness.anomaly is not None:
            return earlier
        if earlier is not None and not earlier.matches:
            if self._open.get(earlier.branch) is earlier:
                del self._open[earlier.branch]
            incident = earlier
            incident.branch = branch
        else:
            incident = _Incident(_id(witness), branch, witness.process, witness.time_ns, witness.time_ns)
        self._open[branch] = incident
        if len(self._open) > self.limit:
            self._open.popitem(last=False)
        return incident

    def _partners(self, witness: _Witness) -> list[_Witness]:
        """Return the witnesses of the other kind that *witness* agrees with, in the order in which they came."""
        recent = self._recent.get(witness.process.service_key)
        if recent is None:
            return []
        return [
            other
            for other in (recent.anomalies if witness.anomaly is None else recent.matches).values()
            if abs(witness.time_ns - other.time_ns) <= self.within_ns
            and related(witness.process, other.process)
        ]

    def _remember(self, witness: _Witness) -> None:
        service = witness.process.service_key
        recent = self._recent.setdefault(service, _Recent())
        self._recent.move_to_end(service)
        recent.latest_ns = max(recent.latest_ns, witness.time_ns)
        kind = recent.matches if witness.anomaly is None else recent.anomalies
        kind[witness.key] = witness
        kind.move_to_end(witness.key)
        if len(kind) > _MAX_WITNESSES:
            kind.popitem(last=False)
        if len(self._recent) > self.limit:
            self._recent.popitem(last=False)

    def _forget(self, now_ns: int) -> None:
        """Close what was quiet for long enough, and let go of witnesses that nothing can agree with any more."""
        while self._open:
            branch, incident = next(iter(self._open.items()))
            if now_ns - incident.updated_ns < self.quiet_ns:
                break
            del self._open[branch]
        while self._recent:
            service, recent = next(iter(self._recent.items()))
            if now_ns - recent.latest_ns <= self.within_ns:
                break
            del self._recent[service]

    def _verdict(self, incident: _Incident) -> Verdict:
        """
        Judge what agrees together, all of each kind for itself, and return the worst.

        Apart, because a harmless match that agrees with an anomaly must not lift another one that doesn't.
        """
        contexts = (Context.LOSSY,) if incident.lossy else ()

        def say(matches: Sequence[Match], anomalies: Sequence[Anomaly]) -> Verdict:
            return self._judge(matches, anomalies, contexts, self.policy)

        matches = [e.match for e in incident.matches.values() if e.match is not None]
        anomalies = [e.anomaly for e in incident.anomalies if e.anomaly is not None]
        agreeing = [match for match in matches if match.kind in incident.agreeing]
        kinds = [(agreeing, list(incident.agreeing.values())), (matches, []), ([], anomalies)]
        return worst([say(*kind) for kind in kinds if kind[0] or kind[1]])

    def _tell(self, incident: _Incident, *, new: bool) -> Iterator[Alert]:
        """Yield *incident* if there is something to tell: *new* evidence, or a worse verdict."""
        verdict = self._verdict(incident)
        if verdict.level is Level.NONE:
            return
        if incident.told is None:
            if self._fold(incident, verdict):
                return
        elif not new and _badness(verdict) <= _badness(incident.told.verdict):
            return
        signature = _signature(incident)
        before = self._told.get(signature)
        if before is not None and before is not incident:
            yield from self._tell_counts(before)
        self._told[signature] = incident
        self._told.move_to_end(signature)
        yield self._alert(incident, verdict)
        if len(self._told) > self.limit:
            _, oldest = self._told.popitem(last=False)
            yield from self._tell_counts(oldest)

    def _tell_counts(self, incident: _Incident) -> Iterator[Alert]:
        if incident.counts != incident.told_counts:
            yield self._alert(incident, self._verdict(incident))

    def _fold(self, incident: _Incident, verdict: Verdict) -> bool:
        """Count *incident* where one like it was told already, if it is no worse than that one."""
        like = self._told.get(_signature(incident))
        if (
            like is None
            or like.told is None
            or incident.updated_ns - like.told.updated_ns > self.fold_ns
            or _badness(verdict) > _badness(like.told.verdict)
        ):
            like = None
        before = incident.same_as
        if like is not before:
            if before is not None:
                before.repeats -= 1
            if like is not None:
                like.repeats += 1
            incident.same_as = like
        if like is None:
            return False
        like.updated_ns = max(like.updated_ns, incident.updated_ns)
        return True

    def _alert(self, incident: _Incident, verdict: Verdict) -> Alert:
        incident.revision += 1
        incident.told_counts = incident.counts
        evidence = (
            *sorted(
                incident.matches.values(),
                key=lambda e: (-_level(e), e.first_ns),
            ),
            *incident.anomalies,
        )
        incident.told = Alert(
            id=incident.id,
            revision=incident.revision,
            opened_ns=incident.opened_ns,
            updated_ns=incident.updated_ns,
            process=_speaker(evidence[0]),
            verdict=verdict,
            evidence=evidence,
            repeats=incident.repeats,
            arch=self.arch,
        )
        return incident.told

    def _enter(self, incident: _Incident, witness: _Witness, partners: Sequence[_Witness]) -> bool:
        """Add *witness*, and with whom it agrees, to the evidence; tell whether something is new."""
        incident.lossy |= witness.lossy
        if witness.match is not None:
            new = _enter_match(incident, witness.match, witness.time_ns)
            best = min(
                (
                    (self._weakness(p.anomaly), p.time_ns, p.lossy, p.anomaly)
                    for p in partners
                    if p.anomaly is not None
                ),
                key=lambda one: one[:2],
                default=None,
            )
            if best is not None and witness.match.kind in incident.matches:
                _, time_ns, lossy, anomaly = best
                incident.lossy |= lossy
                self._agree(incident, witness.match, anomaly)
                new |= self._enter_anomaly(incident, anomaly, time_ns)
            return new
        if witness.anomaly is None:
            return False
        for partner in partners:
            if partner.match is not None and partner.incident is incident:
                self._agree(incident, partner.match, witness.anomaly)
        return self._enter_anomaly(incident, witness.anomaly, witness.time_ns)

    def _agree(self, incident: _Incident, match: Match, anomaly: Anomaly) -> None:
        known = incident.matches.get(match.kind)
        if known is None:
            return
        agreed = incident.agreeing.get(match.kind)
        if agreed is None:
            # The first match of this rule may have been another process's: the one that agrees is the better evidence.
            incident.matches[match.kind] = replace(known, match=match)
        if agreed is None or self._weakness(anomaly) < self._weakness(agreed):
            incident.agreeing[match.kind] = anomaly

    def _enter_anomaly(self, incident: _Incident, anomaly: Anomaly, time_ns: int) -> bool:
        """
        Keep those that agree with a match, and then those that weigh the most; the last one stands for all that were dropped.

        By what each would be told as, before its p-value: an incident doesn't get milder because something that weighs less,
        a program that training never saw, is more unusual.
        """
        if any(e.anomaly is anomaly for e in incident.anomalies):
            return False
        first = not incident.anomalies
        incident.anomalies.append(Evidence(1, time_ns, time_ns, anomaly=anomaly))
        agreeing = {id(agreed) for agreed in incident.agreeing.values()}

        def order(evidence: Evidence) -> tuple[bool, int, float, int]:
            one = evidence.anomaly
            if one is None:
                return True, 0, 1.0, evidence.first_ns
            return id(one) not in agreeing, -self._alone(one), one.p_value, evidence.first_ns

        incident.anomalies.sort(key=order)
        for dropped in incident.anomalies[_MAX_ANOMALIES:]:
            last = incident.anomalies[_MAX_ANOMALIES - 1]
            incident.anomalies[_MAX_ANOMALIES - 1] = replace(
                last, count=last.count + dropped.count, last_ns=max(last.last_ns, dropped.last_ns)
            )
        del incident.anomalies[_MAX_ANOMALIES:]
        return first

    def _alone(self, anomaly: Anomaly) -> Level:
        """Return the level that it would have by itself."""
        return self._judge([], [anomaly], (), self.policy).level

    def _weakness(self, anomaly: Anomaly) -> tuple[bool, float]:
        """Order anomalies by what they are worth as a second witness, the best first."""
        return self.policy.doubt(anomaly) is not None, anomaly.p_value


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


def _enter_match(incident: _Incident, match: Match, time_ns: int) -> bool:
    kind = match.kind
    guard = match.event if isinstance(match.event, HookEvent) else None
    known = incident.matches.get(kind)
    if known is None:
        if len(incident.matches) >= _MAX_RULES:
            mildest = min(incident.matches, key=lambda k: _level(incident.matches[k]))
            if _level(incident.matches[mildest]) >= match.level:
                return False
            del incident.matches[mildest]
            incident.events.pop(mildest, None)
            incident.agreeing.pop(mildest, None)
        incident.events[kind] = guard is None
        incident.matches[kind] = Evidence(
            1, time_ns, time_ns, match=match, enforcement=guard, enforced=int(guard is not None)
        )
        return True
    incident.events[kind] += guard is None
    enforced = known.enforced + (guard is not None)
    before = known.enforcement
    graver = guard is not None and (before is None or guard.outcome.rank > before.outcome.rank)
    # The event says more of the operation than the hook saw; what that saw is kept beside it.
    fuller = guard is None and known.match is not None and isinstance(known.match.event, HookEvent)
    incident.matches[kind] = replace(
        known,
        count=max(incident.events[kind], enforced),
        last_ns=max(known.last_ns, time_ns),
        match=match if fuller else known.match,
        enforcement=guard if graver else before,
        enforced=enforced,
    )
    return graver


def _speaker(evidence: Evidence) -> Process:
    """Return the process that the evidence is about: that of the first piece is the alert's."""
    if evidence.match is not None:
        return evidence.match.event.process
    assert evidence.anomaly is not None  # noqa: S101  # it is one or the other
    return evidence.anomaly.window.process


def _level(evidence: Evidence) -> Level:
    return Level.NONE if evidence.match is None else evidence.match.level


def _badness(verdict: Verdict) -> tuple[Level, bool, int]:
    return verdict.level, verdict.agreed, verdict.action.rank


def _signature(incident: _Incident) -> Signature:
    programs = {e.match.event.process.exe for e in incident.matches.values() if e.match is not None}
    if not incident.matches:
        programs = {e.anomaly.window.process.exe for e in incident.anomalies if e.anomaly is not None}
    # What was denied doesn't hide in what wasn't.
    outcomes = [e.enforcement.outcome for e in incident.matches.values() if e.enforcement is not None]
    outcome = str(max(outcomes, key=lambda o: o.rank)) if outcomes else ""
    return incident.process.service_exe, frozenset(incident.matches), frozenset(programs), outcome


def _id(witness: _Witness) -> str:
    """Return the same id for the same witness, in every replay."""
    what = witness.match.rule.id if witness.match is not None else "anomaly"
    text = f"{witness.time_ns} {witness.process.key} {witness.tid} {what}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
