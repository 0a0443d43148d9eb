# SPDX-License-Identifier: Apache-2.0
"""The walk of an event, top to bottom: the one module that joins the rooms, and the counters."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from ksentinel.alert import Alert
from ksentinel.detectors import Anomaly
from ksentinel.detectors.model import Model
from ksentinel.event import Event, HookEvent, Process
from ksentinel.exceptions import Exceptions, ended
from ksentinel.flight import Flight
from ksentinel.incident import Incidents
from ksentinel.level import Level
from ksentinel.noise import Fate, Noise
from ksentinel.policy import Action, Policy
from ksentinel.rules import Match, Rule
from ksentinel.rules.correlator import Correlator
from ksentinel.rules.ruleset import RuleSet
from ksentinel.sources import Item, Stream
from ksentinel.window import Window

Explain = Callable[[Alert], Alert]


class Enforcing(Protocol):
    """What guards in the kernel have to do with the walk: `ksentinel.enforce.enforcement.Enforcement`."""

    def match(self, event: HookEvent) -> Match | None:
        """Return a denial as a match of its rule."""

    def notices(self) -> list[Match]:
        """Return what there is to alert about enforcement itself."""

    def denied(self, events: Sequence[HookEvent]) -> None:
        """Take denials in."""

    def carry_out(self, rule: Rule, action: str, process: Process) -> None:
        """Carry out what the policy grants about a rule's match, on the process that it is of."""

    def posture(self) -> tuple[str, str]:
        """Return the mode that was asked for, and the one that is verified."""


@dataclass(frozen=True, slots=True)
class InForce:
    """
    What an operator loads, and may replace while the walk goes on: all of it together.

    Attributes
    ----------
    exceptions
        Mark matches that are expected.
    policy
        What rules and model are worth together; None: the incidents keep theirs.
    """

    rules: RuleSet
    exceptions: Exceptions = field(default_factory=Exceptions)
    policy: Policy | None = None


class Pipeline:
    """
    Leads every item of a stream past the rules or the model, and what they say to the incidents.

    Parameters
    ----------
    rules, exceptions
        What is in force at first.
    model
        None: rules alone; windows are counted as ``windows_unscored``.
    explain
        Adds its explanation to an alert.
    watch
        Is shown every window's anomaly, also those below every threshold (for a live display).
    flight
        Is handed every item and every alert, to keep what came before and after.
    noise
        Says which alerts are suppressed, or marked as muted; None: all are told.
    tell
        Is told when an exception has ended.
    clock
        Nanoseconds since the epoch, to see an exception end while nothing happens; None: time is that of the events.
    enforcing
        The guards in the kernel: names what they denied, and carries out verdicts; None: nothing is enforced.

    Attributes
    ----------
    in_force
        May be replaced at any time, by any thread: no batch is judged by two sets, the next one by the new set.
    """

    def __init__(
        self,
        rules: RuleSet,
        model: Model | None,
        incidents: Incidents,
        *,
        explain: Explain | None = None,
        watch: Callable[[Anomaly], None] | None = None,
        flight: Flight | None = None,
        noise: Noise | None = None,
        exceptions: Exceptions | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], int] | None = None,
        enforcing: Enforcing | None = None,
    ) -> None:
        self.in_force = InForce(rules, exceptions or Exceptions())
        self._used = self.in_force
        self._silenced = rules.silenced
        self.correlator = Correlator(rules.correlations)
        self.model = model
        self.incidents = incidents
        self.explain = explain
        self.watch = watch
        self.flight = flight
        self.noise = noise
        self.tell = tell
        self.clock = clock
        self.enforcing = enforcing
        self.counts: Counter[str] = Counter()
        # What adds up is counted at once: another thread may ask for the account at any time.
        self._counting = threading.Lock()

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self.in_force.rules

    def walk(self, stream: Stream) -> Iterator[Alert]:
        """
        Yield an alert whenever there is something new to tell.

        In batches, because a model scores 256 windows in the time of two. An alert from a batch in which the source
        lost something says so. One that is muted comes marked; one that is suppressed doesn't come, and is counted.
        """
        lost = stream.lost()
        if self.enforcing is not None:
            self.incidents.act = self._act
        self._expire([])
        for batch in stream:
            self._take_up()
            self._expire(batch)
            now_lost = stream.lost()
            lossy = now_lost > lost
            lost = now_lost
            if self.enforcing is not None:
                self.enforcing.denied([item for item in batch if isinstance(item, HookEvent)])
                yield from self._notices(lossy=lossy)
            anomalies = iter(self._assess(batch))
            for item in batch:
                if self.flight is not None:
                    self.flight.item(item)
                if isinstance(item, Window):
                    anomaly = next(anomalies)
                    if anomaly is None:
                        continue
                    self.counts["windows_flagged"] += anomaly.level is not Level.NONE
                    if self.watch is not None:
                        self.watch(anomaly)
                    if anomaly.level is not Level.NONE:
                        yield from self._tell(self.incidents.anomaly(anomaly, lossy=lossy))
                else:
                    yield from self._tell(self._match(item, lossy=lossy))
            if self.flight is not None:
                self.flight.flush()
            if self.noise is not None:
                if batch:
                    self.noise.advance(_time(batch[-1]))
                self.noise.flush()
        # Why enforcement has ended may have been said since the last batch.
        yield from self._notices(lossy=False)
        yield from self._tell(self.incidents.finish())
        if self.flight is not None:
            self.flight.flush()
        if self.noise is not None:
            self.noise.finish()

    def account(self) -> dict[str, int]:
        """
        Return the counters.

        items = events + windows; windows = windows_scored + windows_unscored;
        alerts = alerts_shown + alerts_muted + alerts_capped + alerts_quietened, and revisions likewise.

        Thread safe, and the sums are equal at any time.
        """
        names = (
            "items",
            "events",
            "windows",
            "windows_scored",
            "windows_unscored",
            "tokens_scored",
            "windows_flagged",
            "matches",
            "alerts",
            *(f"alerts_{fate}" for fate in Fate),
            "revisions",
            *(f"revisions_{fate}" for fate in Fate),
        )
        flight = {} if self.flight is None else self.flight.account()
        noise = {} if self.noise is None else self.noise.account()
        with self._counting:
            counted = {name: self.counts[name] for name in names}
        return counted | self.correlator.account() | self._used.exceptions.account() | noise | flight

    def _assess(self, batch: list[Item]) -> list[Anomaly | None]:
        """Return what the model says of each window of *batch*, None where it has no say."""
        windows = [item for item in batch if isinstance(item, Window)]
        # A model of one collector's windows has no say in another's: audit sees the calls its rules name, not all.
        fitting = [w for w in windows if self.model is not None and w.origin == self.model.origin]
        with self._counting:
            self.counts["items"] += len(batch)
            self.counts["windows"] += len(windows)
            self.counts["events"] += len(batch) - len(windows)
            self.counts["windows_scored"] += len(fitting)
            self.counts["windows_unscored"] += len(windows) - len(fitting)
            self.counts["tokens_scored"] += sum(len(window.tokens) for window in fitting)
        if self.model is None:
            return [None] * len(windows)
        assessed = iter(self.model.assess(fitting))
        return [next(assessed) if window.origin == self.model.origin else None for window in windows]

    def _take_up(self) -> None:
        """Use what is in force now."""
        before, self._used = self._used, self.in_force
        if self._used is before:
            return
        self._silenced = self._used.rules.silenced
        self.correlator.reload(self._used.rules.correlations)
        if self._used.exceptions is not before.exceptions:
            self._used.exceptions.carry(before.exceptions)
        if self._used.policy is not None:
            self.incidents.policy = self._used.policy

    def _match(self, event: Event, *, lossy: bool) -> Iterator[Alert]:
        matches = list(self._used.rules.match(event))
        if self.enforcing is not None and isinstance(event, HookEvent):
            guarded = self.enforcing.match(event)
            matches += [guarded] if guarded is not None else []
        marked = [self._used.exceptions.mark(match) for match in matches]
        # What is expected is no part of a correlation, and told for itself only if its rule is.
        expected = [match for match in marked if match.exception and match.rule.id not in self._silenced]
        standing = [match for match in marked if not match.exception]
        # A correlation may be expected although its parts were not.
        found = [
            self._used.exceptions.mark(match) if match.parts else match
            for match in self.correlator.take(event, standing)
        ]
        for match in (*expected, *found):
            self.counts["matches"] += 1
            yield from self.incidents.match(match, lossy=lossy)

    def _notices(self, *, lossy: bool) -> Iterator[Alert]:
        for notice in () if self.enforcing is None else self.enforcing.notices():
            yield from self._tell(self.incidents.match(notice, lossy=lossy))

    def _expire(self, batch: list[Item]) -> None:
        """Say which exceptions have ended by now."""
        if self.clock is not None:
            now_ns = self.clock()
        else:
            now_ns = max((i.last_ns if isinstance(i, Window) else i.time_ns for i in batch), default=0)
        for exemption in self._used.exceptions.expire(now_ns):
            if self.tell is not None:
                self.tell(ended(exemption))

    def _act(self, match: Match, action: Action) -> None:
        if self.enforcing is not None:
            self.enforcing.carry_out(match.rule, str(action), match.event.process)

    def _tell(self, alerts: Iterator[Alert]) -> Iterator[Alert]:
        for alert in map(self._enforced, alerts):
            fate, told = (Fate.SHOWN, alert) if self.noise is None else self.noise.judge(alert)
            kind = "alerts" if alert.revision == 1 else "revisions"
            with self._counting:
                self.counts[kind] += 1
                self.counts[f"{kind}_{fate}"] += 1
            if fate.suppressed:
                continue
            if self.flight is not None:
                self.flight.alert(told)
            yield told if self.explain is None else self.explain(told)

    def _enforced(self, alert: Alert) -> Alert:
        """Mark an alert with what was asked for, and how far that is verified."""
        if self.enforcing is None:
            return alert
        requested, verified = self.enforcing.posture()
        return replace(alert, requested=requested, verified=verified)


def _time(item: Item) -> int:
    return item.last_ns if isinstance(item, Window) else item.time_ns
