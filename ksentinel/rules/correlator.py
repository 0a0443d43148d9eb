# SPDX-License-Identifier: Apache-2.0
"""
The correlator: what matches come to, counted by group within a time span, in bounded memory.

Time is the events' own. A match of a group begins with its newest event and looks back: what is older than the time span
is forgotten. A count that must be *at least* something matches at once, and its group begins anew, so that one burst is told
once. Any other condition (at most, exactly, between, not) can be true and cease to be: it is judged when the time span, that
begins with the group's first match, is over by the time of any later event; if none comes, it isn't.

What is kept has limits; beyond them the groups heard of least recently go, and are counted. Nobody can make it grow by many
values, nor make it forget without a trace.
"""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ksentinel.event import Event
from ksentinel.rules import Clause, Match
from ksentinel.rules.correlation import MAX_COUNT, MAX_RULES, Correlation, silenced

MAX_GROUPS = 10_000
"""Groups kept of one correlation."""
MAX_KEPT = 50_000
"""Matches kept of all correlations together, with the parts of those that are correlations'."""
MAX_PARTS = MAX_RULES
"""Parts that a match shows: the first ones, and the last."""
SLACK_NS = 1_000_000_000
"""How much later than others of its time an event may come and still be counted: processors deliver independently."""

Key = tuple[str | None, ...]


@dataclass(slots=True)
class _Entry:
    time_ns: int
    sequence: int
    what: Hashable
    """Which rule (temporal), or which value (value_count): the same one is kept once."""
    match: Match
    weight: int
    """How many matches that is, with its parts."""

    @property
    def order(self) -> tuple[int, int]:
        return self.time_ns, self.sequence


@dataclass(slots=True)
class _Group:
    entries: list[_Entry] = field(default_factory=list)
    """In the order of time; what comes at the same time, as it came."""
    by_what: dict[Hashable, _Entry] = field(default_factory=dict)
    first_ns: int = 0
    """When it began: the time of the first one that came."""
    latest_ns: int = 0
    latest: Event | None = None
    more: int = 0
    """Counted, but not kept."""


class _State:
    """The groups of one correlation."""

    def __init__(self, correlation: Correlation, counts: Counter[str]) -> None:
        self.correlation = correlation
        self.counts = counts
        self.groups: OrderedDict[Key, _Group] = OrderedDict()
        self.kept = 0
        self.sequence = 0
        self.span = correlation.timespan_ns
        self.ordered = correlation.type == "temporal_ordered"
        self.distinct = correlation.type in {"value_count", "temporal"}
        self.at_once = self.ordered or correlation.condition.final

    def take(self, place: int, match: Match) -> Match | None:
        """Take a match of the base rule at that *place*; return what it comes to, if that is enough."""
        key, value = self.correlation.bases[place].values(match)
        if self.correlation.counted and value is None:
            return None
        time_ns = match.event.time_ns
        group = self._group(key, time_ns)
        if not (self.distinct or self.ordered) and group.latest is match.event:
            # One event, however many of the rules it matches.
            return None
        group.latest = match.event
        group.latest_ns = max(group.latest_ns, time_ns)
        self.sequence += 1
        what = value if self.correlation.counted else place
        self._enter(group, _Entry(time_ns, self.sequence, what, match, _weight(match)))
        if not self.at_once:
            return None
        self._forget(group, group.latest_ns - self.span)
        if self.ordered:
            chain = _chain(group.entries, len(self.correlation.bases))
            if not chain:
                return None
        elif self.correlation.condition.holds(len(group.entries)):
            chain = group.entries
        else:
            return None
        made = self._match(key, chain, str(len(chain)))
        self.drop(key)
        return made

    def close(self, time_ns: int) -> Iterator[Match]:
        """Yield what the groups come to whose time span is over."""
        while not self.at_once and self.groups:
            key, group = next(iter(self.groups.items()))
            end = group.first_ns + self.span
            if end + SLACK_NS >= time_ns:
                return
            inside = [entry for entry in group.entries if entry.time_ns <= end]
            count = len(inside) + group.more
            if self.correlation.condition.holds(count):
                # Of values that aren't kept it is unknown whether they differ.
                text = f"{len(inside)} or more" if group.more and self.distinct else str(count)
                yield self._match(key, inside, text)
            rest = group.entries[len(inside) :]
            self.drop(key)
            for entry in rest:
                self._enter(self._group(key, entry.time_ns), entry)

    def drop(self, key: Key) -> int:
        """Forget a group; return how many matches it had."""
        entries = self.groups.pop(key).entries
        self.kept -= sum(entry.weight for entry in entries)
        return len(entries)

    def evict(self) -> None:
        """Forget the group heard of least recently, and count that."""
        self.counts["correlation_groups_evicted"] += 1
        self.counts["correlation_matches_evicted"] += self.drop(next(iter(self.groups)))

    def _group(self, key: Key, time_ns: int) -> _Group:
        group = self.groups.get(key)
        if group is not None and time_ns < group.latest_ns - self.span - SLACK_NS:
            # The clock was set back, or another log begins: what is known is of another time.
            self.counts["correlation_matches_evicted"] += self.drop(key)
            self.counts["correlation_groups_restarted"] += 1
            group = None
        if group is None:
            if self.at_once:
                self._expire(time_ns)
            if len(self.groups) >= MAX_GROUPS:
                self.evict()
            group = self.groups[key] = _Group(first_ns=time_ns, latest_ns=time_ns)
        elif self.at_once:
            # Groups that wait for their end stay in the order in which they began.
            self.groups.move_to_end(key)
        return group

    def _expire(self, time_ns: int) -> None:
        while self.groups:
            key, group = next(iter(self.groups.items()))
            if group.latest_ns >= time_ns - self.span - SLACK_NS:
                return
            self.drop(key)

    def _enter(self, group: _Group, entry: _Entry) -> None:
        entries = group.entries
        # Beyond the span of one that waits for its end is what the next one begins with.
        if self.distinct and (self.at_once or entry.time_ns <= group.first_ns + self.span):
            known = group.by_what.get(entry.what)
            if known is not None:
                if not self.at_once or known.order > entry.order:
                    return
                # The newer one is in every span that the older one could still be in.
                self._remove(group, known)
            group.by_what[entry.what] = entry
        elif self.ordered and entries and entries[-1].what == entry.what and entries[-1].order < entry.order:
            # Of one rule's matches in a row the last one serves: it is the nearest to what may follow.
            self._remove(group, entries[-1])
        if len(entries) >= MAX_COUNT + 1:
            if not self.ordered:
                group.more += 1
                self.counts["correlation_matches_not_kept"] += 1
                return
            self.counts["correlation_matches_evicted"] += 1
            self._remove(group, entries[0])
        insort(entries, entry, key=lambda one: one.order)
        self.kept += entry.weight

    def _remove(self, group: _Group, entry: _Entry) -> None:
        del group.entries[bisect_left(group.entries, entry.order, key=lambda one: one.order)]
        self.kept -= entry.weight

    def _forget(self, group: _Group, before_ns: int) -> None:
        old = bisect_left(group.entries, before_ns, key=lambda one: one.time_ns)
        for entry in group.entries[:old]:
            self.kept -= entry.weight
            if group.by_what.get(entry.what) is entry:
                del group.by_what[entry.what]
        del group.entries[:old]

    def _match(self, key: Key, entries: list[_Entry], count: str) -> Match:
        correlation = self.correlation
        matches = [entry.match for entry in entries]
        parts = matches if len(matches) <= MAX_PARTS else [*matches[: MAX_PARTS - 1], matches[-1]]
        name = correlation.rule.name or "correlation"
        counted = Clause(name, correlation.subject, correlation.test, count)
        same = (
            Clause(name, by, "the same in all", value)
            for by, value in zip(correlation.group_by, key, strict=True)
        )
        return Match(correlation.rule, matches[-1].event, (counted, *same), tuple(parts))


def _weight(match: Match) -> int:
    return 1 + sum(_weight(part) for part in match.parts)


def _chain(entries: list[_Entry], length: int) -> list[_Entry]:
    """Return entries of rule 0, 1, ... in the order of time, of different events; the latest there are, or none."""
    chain: list[_Entry] = []
    wanted = length - 1
    for entry in reversed(entries):
        if entry.what == wanted and not (chain and entry.match.event is chain[-1].match.event):
            chain.append(entry)
            wanted -= 1
            if wanted < 0:
                return chain[::-1]
    return []


class Correlator:
    """
    Counts matches, and yields those of correlations among them.

    Parameters
    ----------
    correlations
        Each after those that it speaks of, as `correlation.resolve` has them.
    """

    def __init__(self, correlations: Sequence[Correlation] = ()) -> None:
        self._counts: Counter[str] = Counter()
        self._states: list[_State] = []
        self._correlations: Sequence[Correlation] | None = None
        self.reload(correlations)

    def reload(self, correlations: Sequence[Correlation]) -> None:
        """
        Count for these *correlations* from now on; costs nothing if they are the ones it has.

        What was counted of those that are still the same is kept, that of the others forgotten; the account goes on.
        """
        if correlations is self._correlations:
            return
        self._correlations = correlations
        known = {state.correlation: state for state in self._states}
        states: list[_State] = []
        fed: dict[str, list[tuple[_State, int]]] = defaultdict(list)
        for correlation in correlations:
            state = _State(correlation, self._counts)
            former = known.get(correlation)
            if former is not None:
                state.groups, state.kept, state.sequence = former.groups, former.kept, former.sequence
            states.append(state)
            for place, base in enumerate(correlation.bases):
                fed[base.rule.id].append((state, place))
        self._states = states
        self._fed = dict(fed)
        self._silent = silenced(correlations)
        self._waiting = [state for state in states if not state.at_once]

    def take(self, event: Event, matches: Iterable[Match]) -> Iterator[Match]:
        """
        Yield the matches that are to be told.

        Parameters
        ----------
        event
            Any event: its time may be the end of what a correlation waits for.
        matches
            The rules that fire on it. Those that only feed correlations aren't yielded, the correlations' are.
        """
        for state in self._waiting:
            for made in state.close(event.time_ns):
                yield from self._tell(made)
        for match in matches:
            yield from self._tell(match)

    def account(self) -> dict[str, int]:
        """Return what is kept, and what was forgotten before its time; nothing if there are no correlations."""
        if not self._states and not self._counts:
            return {}
        return {
            "correlation_groups": sum(len(state.groups) for state in self._states),
            "correlation_matches_kept": sum(state.kept for state in self._states),
        } | {
            name: self._counts[name]
            for name in (
                "correlation_groups_evicted",
                "correlation_groups_restarted",
                "correlation_matches_evicted",
                "correlation_matches_not_kept",
            )
        }

    def _tell(self, match: Match) -> Iterator[Match]:
        if match.rule.id not in self._silent:
            yield match
        for state, place in self._fed.get(match.rule.id, ()):
            made = state.take(place, match)
            self._bound()
            if made is not None:
                yield from self._tell(made)

    def _bound(self) -> None:
        while sum(state.kept for state in self._states) > MAX_KEPT:
            # One correlation's flood is at its own expense.
            max(self._states, key=lambda state: state.kept).evict()
