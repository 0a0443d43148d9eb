# SPDX-License-Identifier: Apache-2.0
"""The walk of an event, top to bottom: the one module that joins the rooms, and the counters."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator

from ksentinel.alert import Alert
from ksentinel.detectors import Anomaly
from ksentinel.detectors.model import Model
from ksentinel.event import Event
from ksentinel.flight import Flight
from ksentinel.incident import Incidents
from ksentinel.level import Level
from ksentinel.rules.correlator import Correlator
from ksentinel.rules.ruleset import RuleSet
from ksentinel.sources import Item, Stream
from ksentinel.window import Window

Explain = Callable[[Alert], Alert]


class Pipeline:
    """
    Leads every item of a stream past the rules or the model, and what they say to the incidents.

    Parameters
    ----------
    model
        None: rules alone; windows are counted as ``windows_unscored``.
    explain
        Adds its explanation to an alert.
    watch
        Is shown every window's anomaly, also those below every threshold (for a live display).
    flight
        Is handed every item and every alert, to keep what came before and after.
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
    ) -> None:
        self.rules = rules
        self.correlator = Correlator(rules.correlations)
        self.model = model
        self.incidents = incidents
        self.explain = explain
        self.watch = watch
        self.flight = flight
        self.counts: Counter[str] = Counter()
        # What adds up is counted at once: another thread may ask for the account at any time.
        self._counting = threading.Lock()

    def walk(self, stream: Stream) -> Iterator[Alert]:
        """
        Yield an alert whenever there is something new to tell.

        In batches, because a model scores 256 windows in the time of two. An alert from a batch in which the source
        lost something says so.
        """
        lost = stream.lost()
        for batch in stream:
            now_lost = stream.lost()
            lossy = now_lost > lost
            lost = now_lost
            # The rules may be others than before.
            self.correlator.reload(self.rules.correlations)
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
        yield from self._tell(self.incidents.finish())
        if self.flight is not None:
            self.flight.flush()

    def account(self) -> dict[str, int]:
        """
        Return the counters: items = events + windows; windows = windows_scored + windows_unscored.

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
            "revisions",
        )
        flight = {} if self.flight is None else self.flight.account()
        with self._counting:
            return {name: self.counts[name] for name in names} | self.correlator.account() | flight

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

    def _match(self, event: Event, *, lossy: bool) -> Iterator[Alert]:
        for match in self.correlator.take(event, self.rules.match(event)):
            self.counts["matches"] += 1
            yield from self.incidents.match(match, lossy=lossy)

    def _tell(self, alerts: Iterator[Alert]) -> Iterator[Alert]:
        for alert in alerts:
            self.counts["alerts" if alert.revision == 1 else "revisions"] += 1
            if self.flight is not None:
                self.flight.alert(alert)
            yield alert if self.explain is None else self.explain(alert)
