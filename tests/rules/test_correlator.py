# SPDX-License-Identifier: Apache-2.0
"""What matches come to: as a slow reference that keeps everything says, in bounded memory."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.codec import event_from_plain
from ksentinel.level import Level
from ksentinel.rules import Clause, Match, Rule, correlator
from ksentinel.rules.correlation import Base, Condition, Correlation
from ksentinel.rules.correlator import SLACK_NS, Correlator
from ksentinel.rules.fields import sources

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
FIELDS = sources()["process_creation"].fields
A, B, C = (Rule(name, name, Level.LOW, name=name) for name in "abc")


def correlation(kind="event_count", rules=(A,), span=10, by=("User",), name="many", **more):
    """Return a correlation; *bounds* are its condition's."""
    bounds = more.pop("bounds", {"gte": len(rules)})
    counted = "Image" if kind == "value_count" else ""
    names = (*by, counted) if counted else by
    return Correlation(
        Rule(name, name, Level.HIGH, name=name, source="correlation"),
        kind,
        tuple(Base(rule, by, counted, {n: FIELDS[n] for n in names if n in FIELDS}) for rule in rules),
        by,
        f"{span}s",
        span * SECOND,
        Condition(tuple(bounds.items())),
        counted,
        **more,
    )


def ran(at=0.0, uid=0, exe="/bin/x"):
    """Return an exec, *at* seconds after the start."""
    plain = {"event": "exec", "process": {"exe": exe, "uid": uid}, "time_ns": START + round(at * SECOND)}
    return event_from_plain(plain)


def fired(event, rule=A):
    """Return the match of a rule."""
    return Match(rule, event, (Clause("s", "Image", "x", event.process.exe),))


def told(correlator, *matches):
    """Return what is told of matches, one after the other."""
    return [made for match in matches for made in correlator.take(match.event, [match])]


def names(matches):
    """Return which rules matches are of."""
    return [match.rule.name for match in matches]


def test_count():
    """Enough within the time span match once, with all that made it; then it begins anew."""
    many = correlation(bounds={"gte": 3})
    matches = [fired(ran(at)) for at in (0, 4, 8, 9, 10, 11)]
    first, second = told(Correlator([many]), *matches)

    assert (first.event, first.parts) == (matches[2].event, tuple(matches[:3]))
    assert second.parts == tuple(matches[3:])
    assert first.clauses == (
        Clause("many", "event_count", ">= 3 within 10s", "3"),
        Clause("many", "User", "the same in all", "root"),
    )


def test_span():
    """Both ends belong to it; what is older doesn't."""
    many = correlation(bounds={"gte": 2})

    assert len(told(Correlator([many]), fired(ran(0)), fired(ran(10)))) == 1
    assert told(Correlator([many]), fired(ran(0)), fired(ran(10.001))) == []


def test_groups():
    """Only what is of the same values belongs together; without a field to group by all does."""
    matches = [fired(ran(0, uid=1)), fired(ran(1, uid=2))]

    assert told(Correlator([correlation(bounds={"gte": 2})]), *matches) == []
    assert len(told(Correlator([correlation(bounds={"gte": 2}, by=())]), *matches)) == 1


def test_one_event_of_two_rules():
    """An event that two rules match is counted once; it is both of what belongs together, but not one after the other."""
    event = ran()
    both = [fired(event, A), fired(event, B)]
    count = correlation(rules=(A, B), bounds={"gte": 2})

    assert told(Correlator([count]), *both) == []
    assert names(told(Correlator([correlation("temporal", (A, B))]), *both)) == ["many"]
    assert told(Correlator([correlation("temporal_ordered", (A, B))]), *both) == []


def test_order():
    """The order of time counts, not that of arrival."""
    ordered = correlation("temporal_ordered", (A, B, C))
    right = [fired(ran(0), A), fired(ran(1), B), fired(ran(2), C)]
    wrong = [fired(ran(2), A), fired(ran(1), B), fired(ran(3), C)]
    late = [right[0], fired(ran(2.5), C), right[1], right[2]]
    (match,) = told(Correlator([ordered]), *right)

    assert match.parts == tuple(right)
    assert match.clauses[0].test == "a, b, c within 10s"
    assert told(Correlator([ordered]), *wrong) == []
    assert len(told(Correlator([ordered]), *late)) == 1


def test_quiet_rules():
    """A rule that only feeds correlations isn't told itself, unless one of them says so."""
    quiet, loud = correlation(bounds={"gte": 9}), correlation(bounds={"gte": 9}, name="loud", generate=True)

    assert told(Correlator([quiet]), fired(ran())) == []
    assert names(told(Correlator([quiet]), fired(ran(), B))) == ["b"]
    assert names(told(Correlator([quiet, loud]), fired(ran()))) == ["a"]


def test_nested():
    """A correlation's match is one of its rule, with the group's values; it may be quiet, too."""
    many = correlation(bounds={"gte": 2})
    upper = correlation(rules=(many.rule,), name="upper", bounds={"gte": 2})
    (match,) = told(Correlator([many, upper]), *(fired(ran(at)) for at in range(4)))

    assert (match.rule.name, names(match.parts), len(match.parts[0].parts)) == ("upper", ["many", "many"], 2)
    assert match.clauses[1].value == "root"


def test_nested_are_weighed():
    """What is kept counts with its parts."""
    many = correlation(bounds={"gte": 3})
    upper = correlation(rules=(many.rule,), name="upper", bounds={"gte": 2})
    counter = Correlator([many, upper])
    told(counter, *(fired(ran(at)) for at in range(3)))

    assert counter.account()["correlation_matches_kept"] == 4
    assert names(told(counter, *(fired(ran(at)) for at in range(3, 6)))) == ["upper"]
    assert counter.account()["correlation_matches_kept"] == 0


def test_parts_are_capped():
    """The first parts and the last one are kept; how many there were is said."""
    matches = [fired(ran(at / 100)) for at in range(50)]
    (match,) = told(Correlator([correlation(bounds={"gte": 50})]), *matches)

    assert match.parts == (*matches[:19], matches[-1])
    assert match.clauses[0].value == "50"


@pytest.mark.parametrize(
    ("bounds", "counts"),
    [({"lt": 3}, [1, 2]), ({"eq": 2}, [2]), ({"neq": 2}, [1, 3, 4]), ({"gt": 1, "lte": 3}, [2, 3])],
)
def test_what_can_cease(bounds, counts):
    """What more matches would make untrue is judged when the time span is over, by any event's time."""
    for count in range(1, 5):
        correlator = Correlator([correlation(bounds=bounds)])

        assert told(correlator, *(fired(ran(at)) for at in range(count))) == []
        assert list(correlator.take(ran(10.9), ())) == []
        assert len(list(correlator.take(ran(11.1), ()))) == (count in counts)
        assert list(correlator.take(ran(99), ())) == []


def test_clock_set_back():
    """What is much older than its group begins it anew, and that is counted."""
    correlator = Correlator([correlation(bounds={"gte": 2})])

    assert len(told(correlator, fired(ran(1000)), fired(ran(0)), fired(ran(1)))) == 1
    assert correlator.account()["correlation_groups_restarted"] == 1


def test_flood_of_groups(monkeypatch):
    """Many groups can't grow memory; those that go first are those heard of least recently, and they are counted."""
    monkeypatch.setattr(correlator, "MAX_GROUPS", 10)
    counter = Correlator([correlation(bounds={"gte": 2}, by=("Image",))])
    told(counter, *(fired(ran(0, exe=f"/{n}")) for n in range(25)))

    assert counter.account() == {
        "correlation_groups": 10,
        "correlation_matches_kept": 10,
        "correlation_groups_evicted": 15,
        "correlation_groups_restarted": 0,
        "correlation_matches_evicted": 15,
        "correlation_matches_not_kept": 0,
    }
    assert told(counter, fired(ran(1, exe="/14"))) == []
    assert len(told(counter, fired(ran(1, exe="/24")))) == 1


def test_flood_of_matches(monkeypatch):
    """One correlation's flood is at its own expense."""
    monkeypatch.setattr(correlator, "MAX_KEPT", 20)
    many = correlation(bounds={"gte": 100}, by=("Image",), span=100)
    other = correlation(rules=(B,), bounds={"gte": 2}, name="other")
    counter = Correlator([many, other])
    told(counter, fired(ran(0), B), *(fired(ran(n / 10, exe=f"/{n % 5}")) for n in range(200)))

    assert counter.account()["correlation_matches_kept"] <= 20
    assert (
        counter.account()["correlation_matches_evicted"] + counter.account()["correlation_matches_kept"]
        == 201
    )
    assert names(told(counter, fired(ran(9), B))) == ["other"]


def test_flood_of_one_value():
    """The same value, or the same rule in a row, is kept once."""
    values = correlation("value_count", bounds={"gte": 2})
    ordered = correlation("temporal_ordered", (A, B), name="ordered")
    counter = Correlator([values, ordered])
    told(counter, *(fired(ran(n / 1000)) for n in range(500)))

    assert counter.account()["correlation_matches_kept"] == 2


def test_flood_of_an_endless_count(monkeypatch):
    """A count that is decided goes on without keeping more; how many there were is still told."""
    monkeypatch.setattr(correlator, "MAX_COUNT", 10)
    counter = Correlator([correlation(bounds={"neq": 2})])
    told(counter, *(fired(ran(n / 1000)) for n in range(500)))
    (match,) = counter.take(ran(20), ())

    assert match.clauses[0].value == "500"
    assert counter.account()["correlation_matches_not_kept"] == 500 - 11


def test_flood_of_an_order(monkeypatch):
    """Two rules in turn, without the third, are kept so many times; the newest of them, and the rest is counted."""
    monkeypatch.setattr(correlator, "MAX_COUNT", 10)
    counter = Correlator([correlation("temporal_ordered", (A, B, C))])
    told(counter, *(fired(ran(n / 1000), (A, B)[n % 2]) for n in range(500)))

    assert counter.account()["correlation_matches_kept"] == 11
    assert counter.account()["correlation_matches_evicted"] == 489
    assert len(told(counter, fired(ran(1), C))) == 1


def test_expiry_is_no_eviction():
    """Groups whose time is over go without a count."""
    counter = Correlator([correlation(bounds={"gte": 2}, by=("Image",))])
    told(counter, *(fired(ran(n * 100, exe=f"/{n}")) for n in range(50)))

    assert counter.account()["correlation_groups"] == 1
    assert counter.account()["correlation_groups_evicted"] == 0


def test_reload():
    """What is the same after a reload goes on; what has changed begins anew; the account stays."""
    same, before, after = (
        correlation(bounds={"gte": 2}, **more) for more in ({}, {"name": "c"}, {"name": "c", "span": 11})
    )
    counter = Correlator([before, same])
    told(counter, fired(ran()))
    counter.reload([same, after])

    assert names(told(counter, fired(ran(1)))) == ["many"]
    assert counter.account()["correlation_groups"] == 1
    counter.reload([])
    assert names(told(counter, fired(ran(2)))) == ["a"]
    assert counter.account() == {}


def test_nothing_to_count():
    """Without correlations all matches pass, and there is no account."""
    assert names(told(Correlator(), fired(ran()))) == ["a"]
    assert Correlator().account() == {}


# --- the slow reference ------------------------------------------------------------------------------------------


def at_once(one, arrivals):
    """Yield (arrival, group) whenever the whole history of a group, looked at anew each time, is enough."""
    history = defaultdict(list)
    for number, match in enumerate(arrivals):
        base = next(base for base in one.bases if base.rule is match.rule)
        group, value = base.values(match)
        time_ns = match.event.time_ns
        past = history[group]
        latest = max([time_ns, *(m.event.time_ns for m, _ in past)])
        past.append((match, value if one.counted else match.rule.name))
        window = [(m, what) for m, what in past if m.event.time_ns >= latest - one.timespan_ns]
        if one.type == "temporal_ordered":
            rest = sorted((m for m, _ in window), key=lambda m: m.event.time_ns)
            for base in one.bases:
                place = next((n for n, m in enumerate(rest) if m.rule is base.rule), None)
                if place is None:
                    break
                rest = rest[place + 1 :]
            else:
                yield number, group
                past.clear()
            continue
        count = len(window) if one.type == "event_count" else len({what for _, what in window})
        if one.condition.holds(count):
            yield number, group
            past.clear()


def in_the_end(one, arrivals):
    """Return (group, count) of each time span that is over, from the first match on, the matches that were late included."""
    history = defaultdict(list)
    found = []
    for match in [*arrivals, None]:
        now = START * 2 if match is None else match.event.time_ns
        for group in list(history):
            while history[group] and history[group][0][0] + one.timespan_ns + SLACK_NS < now:
                first = history[group][0][0]
                inside = [what for t, what in history[group] if t <= first + one.timespan_ns]
                count = len(inside) if one.type == "event_count" else len(set(inside))
                if one.condition.holds(count):
                    found.append((group, str(count)))
                history[group] = sorted(
                    (entry for entry in history[group] if entry[0] > first + one.timespan_ns),
                    key=lambda entry: entry[0],
                )
        if match is not None:
            group, value = one.bases[0].values(match)
            history[group].append((match.event.time_ns, value if one.counted else match.rule.name))
    return found


@st.composite
def streams(draw, late_ms=1000):
    """Return matches of three rules in the order of time, but for up to a second."""
    now = 0
    matches = []
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.sampled_from([0, 1, 300, 1000, 2500, 6000]))
        at = max(now - draw(st.integers(0, late_ms)), 0) / 1000
        event = ran(at, uid=draw(st.integers(0, 1)), exe=draw(st.sampled_from(["/a", "/b", "/c"])))
        matches.append(fired(event, draw(st.sampled_from([A, B, C]))))
    return matches


def arrivals_told(one, arrivals):
    """Return (arrival, group) of what the correlator tells."""
    counter = Correlator([one])
    return [
        (number, tuple(clause.value for clause in made.clauses[1:]))
        for number, match in enumerate(arrivals)
        for made in counter.take(match.event, [match])
    ]


@given(arrivals=streams(), kind=st.sampled_from(["event_count", "value_count", "temporal"]), least=st.integers(1, 3),
       span=st.integers(1, 8))  # fmt: skip
def test_as_the_reference(arrivals, kind, least, span):
    """What matches at once is what one finds who keeps everything."""
    one = correlation(kind, (A, B, C), span, bounds={"gte": least})

    assert list(at_once(one, arrivals)) == arrivals_told(one, arrivals)


@given(arrivals=streams(late_ms=0), rules=st.permutations([A, B, C]), span=st.integers(1, 8))
def test_order_as_the_reference(arrivals, rules, span):
    """So is what matches in an order."""
    one = correlation("temporal_ordered", rules, span)
    relevant = [match for match in arrivals if match.rule in rules]

    assert list(at_once(one, relevant)) == arrivals_told(one, relevant)


@given(arrivals=streams(), kind=st.sampled_from(["event_count", "value_count", "temporal"]),
       bounds=st.sampled_from([{"lt": 3}, {"lte": 1}, {"eq": 2}, {"neq": 1}, {"gte": 2, "lt": 4}]), span=st.integers(1, 8))  # fmt: skip
def test_the_end_as_the_reference(arrivals, kind, bounds, span):
    """So is what is judged in the end."""
    one = correlation(kind, (A, B, C), span, bounds=bounds)
    counter = Correlator([one])
    made = [*told(counter, *arrivals), *counter.take(ran(START / SECOND), ())]

    assert sorted(in_the_end(one, arrivals)) == sorted(
        ((match.clauses[1].value,), match.clauses[0].value) for match in made
    )


@given(arrivals=streams())
def test_replay(arrivals):
    """The same stream gives the same matches, every time."""
    correlations = [
        correlation("temporal", (A, B), generate=True),
        correlation(bounds={"lt": 3}, name="few"),
        correlation("value_count", (C,), bounds={"gt": 1}, name="values"),
    ]

    assert told(Correlator(correlations), *arrivals) == told(Correlator(correlations), *arrivals)
