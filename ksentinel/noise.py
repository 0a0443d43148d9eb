# SPDX-License-Identifier: Apache-2.0
"""
Noise: how much is told, so that nobody drowns in it; and everything that isn't is counted.

Every telling of an alert (its first, and each revision) has exactly one `Fate`. In this order:

- **Muted**: somebody has asked for it (`mutes`). Stored and marked, but not shown.
- **Capped**: its rule has told as many new alerts in this hour as one may.
- **Quietened**: the day's budget is spent, and its rule, executable and parent are among those that spent most of it. What
  is new on that day is still told, whatever the budget.
- **Shown** otherwise.

What is high or above is neither capped nor quietened, nor does it use up a cap or a budget: otherwise who knows them would
spend them first. An alert stays what it became, until it gets that bad.

Hours and days are UTC's, and the events' own: an alert belongs to the one that it was last updated in. A replay gives the
same, and a log with impossible times spends its own hours only.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from itertools import accumulate
from typing import Any

from ksentinel.alert import Alert, when
from ksentinel.config import NoiseConfig
from ksentinel.level import Level
from ksentinel.mutes import MODEL, Mutes, in_words

SPARED = Level.HIGH
"""From here on nothing is suppressed but by a person."""

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
LATE = 60 * SECOND
"""Events of several processors don't come in order: an hour is over when one is so much later."""

_MOST_KNOWN = 100_000
_MOST_HOURS = 10_000
_MOST_DAYS = 100
_MOST_TOLD = 10
_FIRST_ARE_TOLD = 2
_NAMED = 3
_DEFAULT = NoiseConfig()

MODEL_TITLE = "The model alone"
_COUNTERS = (
    "caps_reached",
    "budgets_spent",
    "triples_forgotten",
    "hours_forgotten",
    "days_forgotten",
    "alerts_forgotten",
)


class Fate(StrEnum):
    """What becomes of a telling; a counter's name ends with it."""

    SHOWN = "shown"
    MUTED = "muted"
    CAPPED = "capped"
    QUIETENED = "quietened"

    @property
    def suppressed(self) -> bool:
        """Whether only a count of it is kept."""
        return self in {Fate.CAPPED, Fate.QUIETENED}


@dataclass(frozen=True, slots=True, order=True)
class Triple:
    """Who makes noise: a rule's id (or `MODEL`), an executable and its parent's."""

    rule: str
    exe: str
    parent: str

    @classmethod
    def of(cls, alert: Alert) -> "Triple":
        """Return that of an alert: its worst rule, and its process."""
        above = alert.process.parent
        rule = alert.matches[0].rule.id if alert.matches else MODEL
        return cls(rule, alert.process.exe, "" if above is None else above.exe)


@dataclass(frozen=True, slots=True)
class Suppressed:
    """
    How much was suppressed of a triple in one hour.

    Attributes
    ----------
    title
        Of the rule's alerts.
    alerts, repeats
        Alerts that were not shown, and how often incidents like them came after.
    """

    triple: Triple
    title: str
    hour_ns: int
    fate: Fate
    alerts: int
    repeats: int


@dataclass(slots=True)
class _Hour:
    """What a rule has told in an hour."""

    rule: str
    title: str
    hour: int
    shown: int = 0
    suppressed: int = 0


@dataclass(slots=True)
class _Day:
    """What all have told in a day."""

    day: int
    shown: int = 0
    suppressed: int = 0
    triples: OrderedDict[Triple, int] = field(default_factory=OrderedDict)
    least: int = 0
    """Once the budget is spent: a triple that told so many is quietened."""
    quietened: dict[Triple, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    """An alert that was told before."""

    fate: Fate
    repeats: int


class Noise:
    """
    Says of every telling what becomes of it.

    One thread walks; `account` and `told` may be asked by others.

    Parameters
    ----------
    keep
        Is handed what was suppressed, after each batch.
    tell
        Is told, in words, when a cap or a budget begins to hold, and when that or a mute is over.
    """

    def __init__(
        self,
        config: NoiseConfig = _DEFAULT,
        mutes: Mutes | None = None,
        *,
        keep: Callable[[list[Suppressed]], None] | None = None,
        tell: Callable[[str], None] = lambda _said: None,
    ) -> None:
        self.config = config
        self.mutes = Mutes() if mutes is None else mutes
        self.keep = keep
        self.tell = tell
        self._hours: OrderedDict[tuple[str, int], _Hour] = OrderedDict()
        self._days: OrderedDict[int, _Day] = OrderedDict()
        # Those of which the beginning was told, and not yet the end.
        self._capped: dict[tuple[str, int], _Hour] = {}
        self._spent: dict[int, _Day] = {}
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._pending: dict[tuple[Triple, int, Fate], Suppressed] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._rules: dict[str, tuple[str, int]] = {}
        self._quietened: dict[Triple, int] = {}

    def judge(self, alert: Alert) -> tuple[Fate, Alert]:
        """Return what becomes of *alert*, and the alert: marked if it is muted."""
        self.advance(alert.updated_ns)
        # The first that is heard of it: what is known of that id is from an earlier replay of the same.
        known = None if alert.revision == 1 else self._known.get(alert.id)
        mute = self.mutes.mute(alert)
        if mute:
            fate = Fate.MUTED
            alert = replace(alert, muted=mute)
        elif alert.level >= SPARED:
            fate = Fate.SHOWN
        elif known is not None and known.fate.suppressed:
            fate = known.fate
        else:  # of one that was muted the mute is over
            fate = self._new(alert) if alert.revision == 1 else Fate.SHOWN
        if fate.suppressed:
            self._suppress(alert, fate, alert.repeats - (0 if known is None else known.repeats))
        # What was suppressed is so for good, also after a mute in between.
        remembered = known.fate if mute and known is not None else fate
        self._known[alert.id] = _Known(remembered, alert.repeats)
        self._known.move_to_end(alert.id)
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
            self._counts["alerts_forgotten"] += 1
        return fate, alert

    def advance(self, now_ns: int) -> None:
        """Tell what is over by then."""
        self.expire(now_ns)
        for hour in [h for h in self._capped.values() if _over((h.hour + 1) * HOUR, now_ns)]:
            self._end_hour(hour)
        for day in [d for d in self._spent.values() if _over((d.day + 1) * DAY, now_ns)]:
            self._end_day(day)

    def expire(self, now_ns: int) -> None:
        """Tell which mutes are over by then. Thread safe, so that a host on which nothing happens hears of it, too."""
        for mute in self.mutes.expire(now_ns):
            self.tell(f"mute is over: {in_words(mute)}")

    def flush(self) -> None:
        """Hand over what was suppressed since the last time."""
        pending, self._pending = self._pending, {}
        if pending and self.keep is not None:
            self.keep(list(pending.values()))

    def finish(self) -> None:
        """Tell the end of all that still holds, as the stream is over."""
        for hour in list(self._capped.values()):
            self._end_hour(hour)
        for day in list(self._spent.values()):
            self._end_day(day)
        self.flush()

    def account(self) -> dict[str, int]:
        """Return how often a cap or a budget began to hold, and what was forgotten to bound the memory."""
        return {name: self._counts[name] for name in _COUNTERS}

    def told(self) -> dict[str, Any]:
        """Return what is suppressed by rule, who is quietened today, and the mutes: as `status` tells it."""
        with self._lock:
            rules = sorted(self._rules.items(), key=lambda one: (-one[1][1], one[0]))
            quietened = sorted(self._quietened.items(), key=lambda one: (-one[1], one[0]))
        return {
            "suppressed": [{"rule": rule, "title": title, "alerts": n} for rule, (title, n) in rules],
            "quietened": [asdict(triple) | {"alerts": n} for triple, n in quietened[:_MOST_TOLD]],
            "mutes": [asdict(mute) for mute in self.mutes.all()],
        }

    def _new(self, alert: Alert) -> Fate:
        """Return what becomes of an alert that nothing spares, and count it in its hour and its day."""
        triple = Triple.of(alert)
        hour = self._hour(triple.rule, alert)
        if self.config.alerts_an_hour and hour.shown >= self.config.alerts_an_hour:
            if not hour.suppressed:
                self._begin_hour(hour)
            hour.suppressed += 1
            return Fate.CAPPED
        day = self._day(alert)
        if day.least and day.triples.get(triple, 0) >= day.least:
            day.suppressed += 1
            day.quietened[triple] = day.quietened.get(triple, 0) + 1
            return Fate.QUIETENED
        hour.shown += 1
        day.shown += 1
        day.triples[triple] = day.triples.get(triple, 0) + 1
        day.triples.move_to_end(triple)
        if len(day.triples) > self.config.max_triples:
            # The one heard of least recently: who makes most noise isn't that.
            day.triples.popitem(last=False)
            self._counts["triples_forgotten"] += 1
        if self.config.alerts_a_day and day.shown >= self.config.alerts_a_day and not day.least:
            self._begin_day(day)
        return Fate.SHOWN

    def _hour(self, rule: str, alert: Alert) -> _Hour:
        key = rule, alert.updated_ns // HOUR
        hour = self._hours.get(key)
        if hour is None:
            hour = self._hours[key] = _Hour(rule, alert.title, key[1])
        self._hours.move_to_end(key)
        if len(self._hours) > _MOST_HOURS:
            forgotten, oldest = self._hours.popitem(last=False)
            if forgotten in self._capped:
                self._end_hour(oldest)
            self._counts["hours_forgotten"] += not _over((oldest.hour + 1) * HOUR, alert.updated_ns)
        return hour

    def _day(self, alert: Alert) -> _Day:
        key = alert.updated_ns // DAY
        day = self._days.setdefault(key, _Day(key))
        self._days.move_to_end(key)
        if len(self._days) > _MOST_DAYS:
            forgotten, oldest = self._days.popitem(last=False)
            if forgotten in self._spent:
                self._end_day(oldest)
            self._counts["days_forgotten"] += not _over((oldest.day + 1) * DAY, alert.updated_ns)
        return day

    def _suppress(self, alert: Alert, fate: Fate, repeats: int) -> None:
        triple = Triple.of(alert)
        first = alert.revision == 1
        key = triple, alert.updated_ns // HOUR, fate
        new = Suppressed(triple, alert.title, key[1] * HOUR, fate, 0, 0)
        before = self._pending.get(key, new)
        self._pending[key] = replace(
            before, alerts=before.alerts + first, repeats=before.repeats + max(repeats, 0)
        )
        with self._lock:
            _, number = self._rules.get(triple.rule, ("", 0))
            title = MODEL_TITLE if triple.rule == MODEL else alert.title
            self._rules[triple.rule] = title, number + first
            if fate is Fate.QUIETENED and first:
                self._quietened[triple] = self._quietened.get(triple, 0) + 1

    def _begin_hour(self, hour: _Hour) -> None:
        self._counts["caps_reached"] += 1
        self._capped[hour.rule, hour.hour] = hour
        self.tell(
            f"{_named(hour)} has told {hour.shown:,} new alerts in the hour from {_moment(hour.hour * HOUR)}: more of them "
            f"below level {SPARED} are counted, not told; `ksentinel rules noise` says whose they are"
        )

    def _end_hour(self, hour: _Hour) -> None:
        del self._capped[hour.rule, hour.hour]
        self.tell(
            f"{_named(hour)} is told again: the hour from {_moment(hour.hour * HOUR)} is over, "
            f"{hour.suppressed:,} alerts were suppressed in it"
        )

    def _begin_day(self, day: _Day) -> None:
        """Quieten the heaviest triples, as few as have spent more than half of the budget."""
        self._counts["budgets_spent"] += 1
        self._spent[day.day] = day
        heaviest = sorted(day.triples.values(), reverse=True)
        enough = next(
            (n for n, sum_ in zip(heaviest, accumulate(heaviest), strict=True) if 2 * sum_ > day.shown), 0
        )
        # One that tells of itself for the first time is never quietened.
        day.least = max(enough, _FIRST_ARE_TOLD)
        loud = sorted(
            ((n, t) for t, n in day.triples.items() if n >= day.least), key=lambda one: (-one[0], one[1])
        )
        whose = [f"{t.exe or 'an unknown program'} ({t.rule}): {n:,}" for n, t in loud[:_NAMED]]
        whose += [f"{len(loud) - _NAMED:,} others"] if len(loud) > _NAMED else []
        self.tell(
            f"the budget of {day.shown:,} alerts for {_moment(day.day * DAY)[:10]} (UTC) is spent"
            f"{', most of it by ' if loud else ''}{', '.join(whose)}. Who has told {day.least:,} or more is counted now, not told, "
            f"until the day ends; level {SPARED} and above is told always"
        )

    def _end_day(self, day: _Day) -> None:
        del self._spent[day.day]
        with self._lock:
            self._quietened = {}
        self.tell(
            f"the day of {_moment(day.day * DAY)[:10]} is over, and so is the quiet that its budget imposed: "
            f"{day.suppressed:,} alerts were suppressed"
        )


def _over(end_ns: int, now_ns: int) -> bool:
    return now_ns >= end_ns + LATE


def _named(hour: _Hour) -> str:
    return "the model alone" if hour.rule == MODEL else f"rule {hour.title!r}"


def _moment(time_ns: int) -> str:
    return when(time_ns)[:16].replace("T", " ")
