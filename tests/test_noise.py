# SPDX-License-Identifier: Apache-2.0
"""Noise: everything told becomes one thing, what is suppressed is counted, and what matters is told always."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import HTTPD, SHELL, START, anomaly, child, judge, match

from ksentinel.alert import Alert, Evidence
from ksentinel.config import NoiseConfig
from ksentinel.level import Level
from ksentinel.mutes import MODEL, Mute, Mutes
from ksentinel.noise import DAY, HOUR, LATE, Fate, Noise, Triple

MIDNIGHT = START // DAY * DAY


def alert(number=0, rule="r", exe="/bin/sh", level=Level.MEDIUM, at=0, revision=1, repeats=0):
    """Return an alert, *at* nanoseconds after midnight."""
    process = child(HTTPD, 100, exe)
    one = match(process, level=level, rule=rule)
    time_ns = MIDNIGHT + at
    evidence = (Evidence(1, time_ns, time_ns, match=one),)
    return Alert(f"{number:x}", revision, time_ns, time_ns, process, judge([one], []), evidence, repeats)


class Told:
    """A noise whose notices and counts a test reads."""

    def __init__(self, hour=3, day=0, mutes=None, **config):
        self.said = []
        self.kept = []
        settings = NoiseConfig(alerts_an_hour=hour, alerts_a_day=day, **config)
        self.noise = Noise(settings, mutes, keep=self.kept.extend, tell=self.said.append)

    def fates(self, *alerts):
        """Return what became of *alerts*."""
        return [str(self.noise.judge(one)[0]) for one in alerts]


def test_cap():
    """A rule tells so many in an hour; others tell theirs, the next hour is new, and both ends are told."""
    told = Told(hour=2)
    fates = told.fates(*(alert(n) for n in range(4)), alert(5, rule="other"), alert(6, at=HOUR))
    told.noise.advance(MIDNIGHT + HOUR + LATE - 1)
    begun = list(told.said)
    told.noise.advance(MIDNIGHT + HOUR + LATE)
    told.noise.flush()
    told.noise.finish()

    assert fates == ["shown", "shown", "capped", "capped", "shown", "shown"]
    assert len(begun) == 1
    assert begun[0].startswith(
        "rule 'R' has told 2 new alerts in the hour from 2023-11-14 00:00: more of them below level high"
    )
    assert told.said[1:] == [
        "rule 'R' is told again: the hour from 2023-11-14 00:00 is over, 2 alerts were suppressed in it"
    ]
    (kept,) = told.kept
    assert (kept.triple, kept.hour_ns, kept.fate) == (
        Triple("r", "/bin/sh", "/usr/sbin/httpd"),
        MIDNIGHT,
        Fate.CAPPED,
    )
    assert (kept.alerts, kept.repeats) == (2, 0)
    assert told.noise.told()["suppressed"] == [{"rule": "r", "title": "R", "alerts": 2}]
    assert told.noise.account()["caps_reached"] == 1


def test_end_of_the_stream():
    """What still holds when a stream ends is told to be over, once."""
    told = Told(hour=1)
    told.fates(alert(1), alert(2))
    told.noise.finish()
    told.noise.finish()

    assert ["told again" in said for said in told.said] == [False, True]
    assert [one.alerts for one in told.kept] == [1]


def test_late():
    """An alert belongs to its own hour, however late it comes, and one that claims the far future spends that hour alone."""
    told = Told(hour=1)
    fates = told.fates(alert(1), alert(2, at=10**6 * DAY), alert(3, at=HOUR), alert(4), alert(5, at=HOUR))

    assert fates == ["shown", "shown", "shown", "capped", "capped"]


def test_high_is_spared():
    """What is high neither is suppressed nor uses up what others may tell; and what gets high is told after all."""
    told = Told(hour=1, day=2)
    high = [alert(n, level=level) for n in range(9) for level in (Level.HIGH, Level.CRITICAL)]
    fates = told.fates(
        *high, alert(20), alert(21), alert(21, revision=2), alert(21, level=Level.HIGH, revision=3)
    )

    assert fates == ["shown"] * 19 + ["capped", "capped", "shown"]
    assert told.fates(alert(21, level=Level.HIGH, revision=4)) == ["shown"]


def test_revisions():
    """A revision goes the way of its alert, also when there would be room again; its new repeats are counted."""
    told = Told(hour=1)
    fates = told.fates(alert(1), alert(2), alert(1, revision=2), alert(2, revision=2, at=HOUR, repeats=3))
    fates += told.fates(alert(2, revision=3, at=HOUR, repeats=5))
    told.noise.finish()

    assert fates == ["shown", "capped", "shown", "capped", "capped"]
    assert [(one.hour_ns - MIDNIGHT, one.alerts, one.repeats) for one in told.kept] == [
        (0, 1, 0),
        (HOUR, 0, 5),
    ]


def test_replayed_again():
    """The first revision of a known id is a new alert: a replay in the same process isn't the past's."""
    told = Told(hour=1)

    assert told.fates(alert(1), alert(2), alert(2, at=HOUR)) == ["shown", "capped", "shown"]


def test_budget():
    """Who spent most of the day is quietened until it is over; whoever is new, or rare, is told."""
    told = Told(hour=0, day=10)
    loud = [alert(n, exe="/loud") for n in range(6)]
    rare = [alert(n + 10, exe=f"/rare/{n}") for n in range(4)]
    assert told.fates(*loud, *rare) == ["shown"] * 10
    later = [
        alert(20, exe="/loud"),
        alert(21, exe="/new"),
        alert(22, exe="/rare/1"),
        alert(23, exe="/loud", rule="x"),
    ]
    fates = told.fates(*later, alert(24, exe="/loud"), alert(25, exe="/loud", level=Level.HIGH))
    quietened = told.noise.told()["quietened"]
    fates += told.fates(alert(26, exe="/loud", at=DAY))
    told.noise.advance(MIDNIGHT + DAY + LATE)

    assert fates == ["quietened", "shown", "shown", "shown", "quietened", "shown", "shown"]
    assert quietened == [{"rule": "r", "exe": "/loud", "parent": "/usr/sbin/httpd", "alerts": 2}]
    assert told.noise.told()["quietened"] == []
    begun, ended = told.said
    assert begun.startswith(
        "the budget of 10 alerts for 2023-11-14 (UTC) is spent, most of it by /loud (r): 6. Who has told 6 or more"
    )
    assert ended.endswith("2 alerts were suppressed")


def test_budget_of_many():
    """If nobody stands out, everybody is told twice."""
    told = Told(hour=0, day=10)
    everybody = [alert(n, exe=f"/{n}") for n in range(10)]

    assert [told.fates(*everybody) for _ in range(3)] == [["shown"] * 10, ["shown"] * 10, ["quietened"] * 10]


def test_triples_are_bounded():
    """Beyond so many the one heard of least recently is forgotten, counted, and told again."""
    told = Told(hour=0, day=4, max_triples=2)
    told.fates(alert(1, exe="/a"), alert(2, exe="/a"), alert(3, exe="/b"), alert(4, exe="/a"))

    assert told.fates(alert(5, exe="/a")) == ["quietened"]
    assert told.fates(alert(6, exe="/c"), alert(7, exe="/d"), alert(8, exe="/a")) == ["shown"] * 3
    assert told.noise.account()["triples_forgotten"] == 3


def test_model_alone():
    """What no rule says is capped like a rule."""
    told = Told(hour=1)
    said = anomaly(SHELL)
    one = replace(alert(1), verdict=judge([], [said]), evidence=(Evidence(1, START, START, anomaly=said),))

    assert told.fates(one, replace(one, id="2")) == ["shown", "capped"]
    assert told.said[0].startswith("the model alone has told 1 new alerts")
    assert told.noise.told()["suppressed"] == [{"rule": MODEL, "title": "The model alone", "alerts": 1}]


def test_mute():
    """What is muted is marked and uses up nothing; its end is told, and what was muted is shown again."""
    mutes = Mutes()
    one = mutes.add(Mute("", MIDNIGHT, MIDNIGHT + HOUR, "so", exe="/bin/sh"))
    told = Told(hour=1, mutes=mutes)
    muted = [told.noise.judge(alert(n)) for n in range(5)]
    fates = told.fates(alert(9, exe="/x"), alert(10, exe="/x"))
    told.noise.advance(MIDNIGHT + HOUR)

    assert {(fate, marked.muted) for fate, marked in muted} == {(Fate.MUTED, one.id)}
    assert fates == ["shown", "capped"]
    assert told.said[1].startswith(
        f"mute is over: {one.id}: /bin/sh up to level medium, until 2023-11-14 01:00:00 UTC"
    )
    assert told.said[1].endswith("5 alerts muted")
    assert told.fates(alert(0, revision=2, at=HOUR), alert(11, at=HOUR)) == ["shown", "shown"]


def test_mute_of_what_is_capped():
    """A mute in between doesn't bring back what was suppressed."""
    mutes = Mutes()
    told = Told(hour=1, mutes=mutes)
    fates = told.fates(alert(1), alert(2))
    mutes.add(Mute("", MIDNIGHT, MIDNIGHT + HOUR, "so", exe="/bin/sh"))
    fates += told.fates(alert(2, revision=2), alert(2, revision=3, at=HOUR))

    assert fates == ["shown", "capped", "muted", "capped"]


@pytest.mark.parametrize(("hour", "day"), [(0, 0), (0, 1), (1, 0)])
def test_no_limit(hour, day):
    """0 is no limit."""
    told = Told(hour=hour, day=day)
    fates = told.fates(*(alert(n) for n in range(300)))

    assert (set(fates) == {"shown"}) == (hour == day == 0)


class Remembered(Mutes):
    """Mutes of which also those are known that are over."""

    def __init__(self):
        super().__init__()
        self.over = ()

    def expire(self, now_ns):
        """Let go of them, and remember."""
        over = super().expire(now_ns)
        self.over += over
        return over


tellings = st.lists(
    st.builds(
        alert,
        number=st.integers(0, 12),
        rule=st.sampled_from("rst"),
        exe=st.sampled_from(["/bin/sh", "/a", "/b"]),
        level=st.sampled_from([level for level in Level if level]),
        at=st.integers(-2 * DAY, 2 * DAY),
        revision=st.integers(1, 3),
        repeats=st.integers(0, 5),
    ),
    max_size=60,
)


@given(tellings, st.integers(0, 3), st.integers(0, 5), st.integers(1, 3), st.booleans())
def test_conservation(told_of, hour, day, triples, muted):
    """Whatever comes, in whatever order: made = shown + suppressed + muted, and every count of it agrees."""
    mutes = Remembered()
    if muted:
        mutes.add(Mute("", MIDNIGHT - HOUR, MIDNIGHT + HOUR, "so", exe="/a", level="high"))
    told = Told(hour, day, mutes, max_triples=triples)
    fates = Counter()
    for one in told_of:
        fate, marked = told.noise.judge(one)
        fates[fate, one.revision == 1] += 1
        assert bool(marked.muted) == (fate is Fate.MUTED)
        assert not (fate.suppressed and one.level >= Level.HIGH)
        assert not (fate is Fate.MUTED and one.level is Level.CRITICAL)
    counted = (*mutes.all(), *mutes.over)
    told.noise.finish()

    assert sum(fates.values()) == len(told_of)
    suppressed = fates[Fate.CAPPED, True] + fates[Fate.QUIETENED, True]
    assert sum(one.alerts for one in told.kept) == suppressed
    assert sum(one["alerts"] for one in told.noise.told()["suppressed"]) == suppressed
    for fate in (Fate.CAPPED, Fate.QUIETENED):
        assert sum(one.alerts for one in told.kept if one.fate is fate) == fates[fate, True]
    assert sum(mute.alerts for mute in counted) == fates[Fate.MUTED, True]
    assert sum(mute.revisions for mute in counted) == fates[Fate.MUTED, False]
    begun = [said for said in told.said if "more of them" in said or "budget of" in said]
    ended = [said for said in told.said if "is over, " in said and "mute" not in said]
    assert len(begun) == len(ended) == sum(told.noise.account()[n] for n in ("caps_reached", "budgets_spent"))


@given(st.lists(st.integers(0, 3 * HOUR - 1), max_size=40), st.randoms())
def test_order_of_hours(times, random):
    """How many are capped doesn't depend on the order in which alerts come."""
    alerts = [alert(n, at=at) for n, at in enumerate(times)]
    in_order = Counter(Told(hour=2).fates(*alerts))
    random.shuffle(alerts)

    assert Counter(Told(hour=2).fates(*alerts)) == in_order
