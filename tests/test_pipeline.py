# SPDX-License-Identifier: Apache-2.0
"""The walk: every item once, in order, and every one accounted for."""

import os
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import (
    CAT,
    HTTPD,
    JOB,
    OTHER_SHELL,
    SECOND,
    SHELL,
    START,
    Incidents,
    child,
    denial,
    events,
    match,
)
from small_host import ATTACK, make_windows

from ksentinel.config import NoiseConfig
from ksentinel.detectors.calibration import Calibration
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.event import ExecEvent, Origin, SyscallEvent
from ksentinel.exceptions import parse_exceptions
from ksentinel.explain.explanation import Explainer
from ksentinel.level import Level
from ksentinel.mutes import Mute, Mutes
from ksentinel.noise import Fate, Noise
from ksentinel.pipeline import InForce, Pipeline
from ksentinel.recording import Reader, Writer
from ksentinel.rules import Response
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule
from ksentinel.store import to_json
from ksentinel.window import Window

FIT, CALIBRATE = make_windows(60, seed=1), make_windows(60, seed=2)


@pytest.fixture(scope="module")
def model():
    """Return a model of a small host."""
    members = [NGramModel().fit(FIT), Stide().fit(FIT)]
    profiles = Profiles.among(w.profile for w in FIT)
    names = [profiles.find(w.profile)[0] for w in CALIBRATE]
    return Model(members, {m.name: Calibration().fit(m.score(CALIBRATE), names) for m in members}, profiles)


@pytest.fixture(scope="module")
def rules():
    """Return a rule that fires when cat is run."""
    return RuleSet([compile_rule(EXAMPLE, "cat.yml", sources())])


class Batches:
    """A stream of *batches*; *losses* says how much is lost by the time each of them comes."""

    def __init__(self, *batches, losses=(), before=0):
        self.batches = batches
        self.losses = iter(losses)
        self._lost = before

    def __iter__(self):
        """Yield the batches."""
        for batch in self.batches:
            self._lost = next(self.losses, self._lost)
            yield batch

    def account(self):
        """Return no counters."""
        return {}

    def lost(self):
        """Return what was lost so far."""
        return self._lost


def cat(at=0.0, process=CAT):
    """Return the exec that the rule is about."""
    return ExecEvent(
        time_ns=START + round(at * SECOND), process=process, tid=process.key.pid, origin=Origin.BPF
    )


def attack(at=0.0, process=CAT, **fields):
    """Return an unusual window."""
    last_ns = START + round(at * SECOND)
    return replace(ATTACK, process=process, tid=process.key.pid, first_ns=last_ns, last_ns=last_ns, **fields)


NOTHING = SyscallEvent(time_ns=START, process=HTTPD, tid=10, origin=Origin.BPF, syscall="close")


def test_agree(rules, model, monkeypatch):
    """Rule and model meet: one incident, told twice, explained each time."""
    assess = model.assess
    monkeypatch.setattr(model, "assess", lambda windows: [replace(a, unseen=False) for a in assess(windows)])
    pipeline = Pipeline(rules, model, Incidents(), explain=Explainer(model))
    alerts = list(pipeline.walk(Batches([NOTHING, cat(), NORMAL], [attack(1)])))

    assert [(a.revision, a.verdict.agreed) for a in alerts] == [(1, False), (2, True)]
    assert all("cat" in a.explanation["paragraph"] for a in alerts)
    assert pipeline.account() == {
        "items": 4,
        "events": 2,
        "windows": 2,
        "windows_scored": 2,
        "windows_unscored": 0,
        "tokens_scored": 128,
        "windows_flagged": 1,
        "matches": 1,
        "matches_excepted": 0,
        "exceptions_active": 0,
        "exceptions_expired": 0,
        "alerts": 1,
        "alerts_shown": 1,
        "alerts_muted": 0,
        "alerts_capped": 0,
        "alerts_quietened": 0,
        "revisions": 1,
        "revisions_shown": 1,
        "revisions_muted": 0,
        "revisions_capped": 0,
        "revisions_quietened": 0,
    }


NORMAL = CALIBRATE[0]
EXPECTED = """\
exceptions:
  - {id: reader, rules: cat, where: {Image: /bin/cat}, owner: ops, reason: It reads, expires: 2023-11-14T22:13:30Z}
"""


def test_excepted(rules):
    """What is expected is told quietly and counted, until the exception ends by the time of the events: which is told."""
    said = []
    exceptions = parse_exceptions(EXPECTED, "e.yml", rules.rules)
    pipeline = Pipeline(rules, None, Incidents(quiet_ns=5 * SECOND), exceptions=exceptions, tell=said.append)
    first, second, counted = pipeline.walk(Batches([cat(1), cat(2)], [NOTHING, cat(20)]))
    account = pipeline.account()

    assert [a.level for a in (first, second, counted)] == [
        Level.INFORMATIONAL,
        Level.LOW,
        Level.INFORMATIONAL,
    ]
    assert counted.evidence[0].count == 2
    assert [text.partition(",")[0] for text in said] == ["exception reader of ops has ended"]
    assert (account["matches"], account["matches_excepted"]) == (3, 2)
    assert (account["exceptions_active"], account["exceptions_expired"]) == (0, 1)


@pytest.mark.parametrize(("now", "told"), [(START, 0), (START + 10 * SECOND, 1)])
def test_clock(rules, now, told):
    """Live an exception's end is told by the clock: at the start, or while nothing happens."""
    said = []
    exceptions = parse_exceptions(EXPECTED, "e.yml", rules.rules)
    pipeline = Pipeline(rules, None, Incidents(), exceptions=exceptions, tell=said.append, clock=lambda: now)

    assert list(pipeline.walk(Batches())) == []
    assert told == len(said) == pipeline.account()["exceptions_expired"]


def test_correlation(tmp_path):
    """What matches come to is told at the last one's process, with all that made it; what is kept is accounted for."""
    file = tmp_path / "cats.yml"
    file.write_text(EXAMPLE + "name: reading\n" + CATS)
    pipeline = Pipeline(RuleSet.load([file], trusted_uids=None), None, Incidents(), explain=Explainer(None))
    other = child(OTHER_SHELL, 22, "/bin/cat")
    (alert,) = pipeline.walk(Batches([cat(0)], [cat(1), cat(2, other)], [cat(3)]))

    assert (alert.title, alert.process, alert.level) == ("Many cats", other, Level.MEDIUM)
    assert [part.event.time_ns for part in alert.matches[0].parts] == [
        START,
        START + SECOND,
        START + 2 * SECOND,
    ]
    assert "event_count" in alert.explanation["paragraph"]
    assert pipeline.account()["matches"] == 1
    assert pipeline.account()["correlation_matches_kept"] == 1


def test_correlation_after_a_reload(tmp_path):
    """Other rules are taken up with the next batch; what a correlation that is in both has counted goes on."""
    file = tmp_path / "cats.yml"
    file.write_text(EXAMPLE + "name: reading\n" + CATS)
    pipeline = Pipeline(RuleSet(), None, Incidents())

    def batches():
        yield [cat(0), cat(1), cat(2)]
        for seconds in (3, 4, 5):
            pipeline.in_force = InForce(RuleSet.load([file], trusted_uids=None))
            yield [cat(seconds)]

    stream = Batches()
    stream.batches = batches()
    (alert,) = pipeline.walk(stream)

    assert [part.event.time_ns for part in alert.matches[0].parts] == [START + n * SECOND for n in (3, 4, 5)]


def test_correlation_of_what_is_expected(tmp_path):
    """What an exception covers is no part of a correlation; of a rule that only feeds one it isn't told either, and counted."""
    file = tmp_path / "cats.yml"
    file.write_text(EXAMPLE + "name: reading\n" + CATS)
    rules = RuleSet.load([file], trusted_uids=None)
    text = (
        "exceptions: [{id: cats, rules: [reading], where: {Image|endswith: /cat}, owner: ops, reason: so, "
        "expires: 2199-01-01}]"
    )
    expected = parse_exceptions(text, "exceptions.yml", rules.rules)
    pipeline = Pipeline(rules, None, Incidents(), exceptions=expected)

    assert list(pipeline.walk(Batches([cat(n) for n in range(5)]))) == []
    assert pipeline.account()["matches_excepted"] == 5
    assert len(list(Pipeline(rules, None, Incidents()).walk(Batches([cat(n) for n in range(5)])))) == 1


def test_exceptions_replaced(rules):
    """With other rules come other exceptions; what the ones from before have covered stays counted."""
    text = "exceptions: [{id: all, rules: '*', where: {Image|exists: true}, owner: ops, reason: so, expires: 2199-01-01}]"
    pipeline = Pipeline(
        rules, None, Incidents(), exceptions=parse_exceptions(text, "exceptions.yml", rules.rules)
    )

    def batches():
        yield [cat(0)]
        pipeline.in_force = InForce(rules)
        yield [cat(1)]

    stream = Batches()
    stream.batches = batches()
    levels = [alert.level for alert in pipeline.walk(stream)]

    assert levels[0] is Level.INFORMATIONAL
    assert levels[-1] > Level.INFORMATIONAL
    assert pipeline.account()["matches_excepted"] == 1


CATS = """\
---
title: Many cats
id: 9b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: medium
correlation: {type: event_count, rules: reading, timespan: 1m, condition: {gte: 3}}
"""


def test_account_from_another_thread(rules):
    """Asked at any time, what adds up does so."""
    noise = Noise(NoiseConfig(alerts_an_hour=1))
    pipeline = Pipeline(rules, None, Incidents(fold_ns=0, quiet_ns=0), noise=noise)
    accounts, done = [], threading.Event()

    def ask():
        while not done.is_set():
            accounts.append(pipeline.account())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        list(pipeline.walk(Batches(*[[NORMAL, cat()]] * 20_000)))
    finally:
        sys.setswitchinterval(before)
        done.set()
        asking.join()

    assert len(accounts) > 10
    for account in accounts:
        assert account["items"] == account["events"] + account["windows"]
        assert account["windows"] == account["windows_scored"] + account["windows_unscored"]
        for kind in ("alerts", "revisions"):
            assert account[kind] == sum(account[f"{kind}_{fate}"] for fate in Fate)


class Heard:
    """A flight recorder that only remembers which alerts it was handed."""

    def __init__(self):
        self.alerts = []

    def item(self, _item):
        """Take an item."""

    def alert(self, alert):
        """Take an alert."""
        self.alerts.append(alert)

    def flush(self):
        """Do nothing."""

    def account(self):
        """Return no counters."""
        return {}


def test_noise(rules):
    """What is suppressed is neither explained, nor kept, nor told; what is muted comes, and is marked; all is counted."""
    mutes, kept, flight = Mutes(), [], Heard()
    one = mutes.add(Mute("", START, START + 60 * SECOND, "so", parent=OTHER_SHELL.exe))
    noise = Noise(NoiseConfig(alerts_an_hour=1), mutes, keep=kept.extend)
    explained = []

    def explain(alert):
        explained.append(alert.id)
        return alert

    pipeline = Pipeline(rules, None, Incidents(fold_ns=0), explain=explain, flight=flight, noise=noise)
    top = [child(HTTPD, 50 + n, "/bin/cat") for n in range(3)]
    alerts = list(pipeline.walk(Batches([cat(at=n, process=p) for n, p in enumerate([CAT, *top])])))

    assert [(a.process.key.pid, a.muted) for a in alerts] == [(12, one.id), (50, "")]
    assert flight.alerts == alerts
    assert explained == [a.id for a in alerts]
    assert [(k.fate, k.alerts) for k in kept] == [(Fate.CAPPED, 2)]
    account = pipeline.account()
    counted = {
        name: account[name] for name in ("alerts", *(f"alerts_{fate}" for fate in Fate), "caps_reached")
    }
    assert list(counted.values()) == [4, 1, 1, 2, 0, 1]


def test_without_model(rules):
    """Without a model the rules go on, and windows are counted as what they are."""
    pipeline = Pipeline(rules, None, Incidents())
    (alert,) = pipeline.walk(Batches([cat(), attack(), attack(1)], []))
    account = pipeline.account()

    assert (alert.matches[0].event, {}) == (cat(), alert.explanation)
    assert tuple(
        account[k] for k in ("items", "events", "windows", "windows_scored", "windows_unscored")
    ) == (3, 1, 2, 0, 2)


def test_other_origin(rules, model):
    """A model has no say in another collector's windows; the others of the batch keep their answers."""
    seen = []
    pipeline = Pipeline(rules, model, Incidents(), watch=seen.append)
    batch = [attack(n, origin=o) for n, o in enumerate([Origin.AUDIT, Origin.BPF, Origin.AUDIT, Origin.BPF])]
    list(pipeline.walk(Batches(batch)))
    account = pipeline.account()

    assert [batch[1], batch[3]] == [anomaly.window for anomaly in seen]
    assert (4, 2, 2, 2 * len(ATTACK.tokens)) == tuple(
        account[k] for k in ("windows", "windows_scored", "windows_unscored", "tokens_scored")
    )


def test_watched(rules, model):
    """A live display sees every scored window, harmless ones too, in order."""
    seen = []
    pipeline = Pipeline(rules, model, Incidents(), watch=seen.append)
    alerts = list(pipeline.walk(Batches([NORMAL, cat(), attack(1)], [CALIBRATE[1]])))

    assert [NORMAL, attack(1), CALIBRATE[1]] == [anomaly.window for anomaly in seen]
    assert [anomaly.level for anomaly in seen] == [Level.NONE, Level.MEDIUM, Level.NONE]
    assert [a.verdict.agreed for a in alerts][1:] == [False], "training never saw the program"


def test_order(rules, model):
    """What comes first opens the incident: items are taken in their order, not windows or events first."""
    shells = [child(HTTPD, 100 + n, "/bin/cat") for n in range(4)]
    for batch in ([cat(0, shells[0]), attack(1, shells[0])], [attack(0, shells[1]), cat(1, shells[1])]):
        first, second = Pipeline(rules, model, Incidents()).walk(Batches(batch))

        assert [isinstance(batch[0], ExecEvent), True] == [bool(first.matches), bool(second.matches)]
        assert first.id == second.id


@pytest.mark.parametrize(
    ("losses", "before", "lossy"),
    [
        ((0, 0, 0), 0, [False, False, False]),
        ((0, 3, 3), 0, [False, True, False]),
        ((5, 5, 9), 5, [False, False, True]),
        ((6, 6, 6), 5, [True, False, False]),
    ],
)
def test_lossy(rules, losses, before, lossy):
    """An alert says that something was lost while its batch was gathered, and only then."""
    processes = [child(HTTPD, 100 + n, f"/bin/{n}/cat") for n in range(3)]
    stream = Batches(*([cat(n, p)] for n, p in enumerate(processes)), losses=losses, before=before)
    alerts = Pipeline(rules, None, Incidents()).walk(stream)

    assert lossy == [any("were lost" in reason for reason in a.verdict.reasons) for a in alerts]


def test_repeats_at_the_end(rules):
    """When the stream ends, what was counted is told."""
    pipeline = Pipeline(rules, None, Incidents())
    batch = [cat(n, child(SHELL, 100 + n, "/bin/cat")) for n in range(5)]
    first, last = pipeline.walk(Batches(batch))

    assert (first.evidence[0].count, last.evidence[0].count) == (1, 5)
    assert (pipeline.account()["alerts"], pipeline.account()["revisions"]) == (1, 1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.lists(events | st.sampled_from([NORMAL, ATTACK, attack(origin=Origin.AUDIT), cat()]), max_size=4),
        max_size=3,
    ),
    st.booleans(),
)
def test_adds_up(rules, model, batches, with_model):
    """Whatever comes, the counters add up, and each alert can be explained and written."""
    used = model if with_model else None
    pipeline = Pipeline(rules, used, Incidents(), explain=Explainer(used))
    alerts = list(pipeline.walk(Batches(*batches)))
    account = pipeline.account()

    assert account["items"] == account["events"] + account["windows"] == sum(map(len, batches))
    assert account["windows"] == account["windows_scored"] + account["windows_unscored"]
    assert account["windows_flagged"] <= account["windows_scored"]
    assert len(alerts) == account["alerts"] + account["revisions"]
    assert len({a.id for a in alerts}) == account["alerts"]
    assert all(to_json(a.to_plain()) for a in alerts)


def test_replay(rules, model, tmp_path):
    """A recording walked twice gives the same JSON, byte for byte; and the same as its items walked directly."""
    path = tmp_path / "x.ksr"
    items = [cat(), NORMAL, attack(1), cat(2, child(OTHER_SHELL, 300, "/bin/\udcff/cat")), attack(3, HTTPD)]
    with Writer(path, {"arch": "x86_64"}) as writer:
        for item in items:
            writer.write([item])

    def walk(stream):
        pipeline = Pipeline(rules, model, Incidents(), explain=Explainer(model))
        return [to_json(alert.to_plain()) for alert in pipeline.walk(stream)]

    with Reader(path) as reader:
        once, again = walk(reader), walk(reader)

    assert once == again == walk(Batches(items))
    assert len(once) >= 3


def test_nothing(rules, model):
    """An empty stream is no alert and no count."""
    pipeline = Pipeline(rules, model, Incidents())

    assert list(pipeline.walk(Batches([], []))) == []
    assert {0} == set(pipeline.account().values())
    assert isinstance(NORMAL, Window)


def test_rules_replaced(rules):
    """Other rules are asked from the next batch on: what is left of this one meets those from before."""
    walk = Pipeline(rules, None, Incidents())
    counts = []

    class Watched(RuleSet):
        def match(self, event):
            counts.append(type(self).__name__)
            return super().match(event)

    class Replaced(Watched):
        pass

    walk.in_force = InForce(Watched())

    def batches():
        yield [cat(0), cat(1)]
        yield [cat(2)]

    class Stream(Batches):
        def __iter__(self):
            return batches()

    original = walk._match

    def replacing(event, *arguments, **options):
        yield from original(event, *arguments, **options)
        walk.in_force = InForce(Replaced())

    walk._match = replacing
    list(walk.walk(Stream()))

    assert counts == ["Watched", "Watched", "Replaced"]


class _Enforcing:
    """Enforcement as the walk has it: guards have *ruled*, there is something to say, and all of it is noted."""

    def __init__(self, ruled=None, notices=()):
        self.ruled, self.left = ruled, [*notices]
        self.denied_, self.acted, self.verified = [], [], "enforce"

    def match(self, event):
        return None if self.ruled is None else replace(self.ruled, event=event)

    def notices(self):
        found, self.left = self.left, []
        return found

    def denied(self, events):
        self.denied_.append(events)

    def carry_out(self, rule, action, process):
        self.acted.append((rule.id, action, process.exe))

    def posture(self):
        return "enforce", self.verified


def test_enforcing(rules):
    """Denials are told as matches, and counted; each alert has what was asked for and what is verified at that time."""
    enforcing = _Enforcing(match(rule="secret", level=Level.HIGH))
    pipeline = Pipeline(rules, None, Incidents(), enforcing=enforcing)
    denied = denial(CAT, 1, "secret")

    def batches():
        yield [cat(), denied, NOTHING]
        enforcing.verified = "no"
        yield [denial(JOB, 2, "secret")]

    stream = Batches()
    stream.batches = batches()
    alerts = list(pipeline.walk(stream))

    assert enforcing.denied_ == [[denied], [denial(JOB, 2, "secret")]]
    assert [(one.title, one.requested, one.verified, one.enforced) for one in alerts] == [
        ("Something reads something", "enforce", "enforce", "none"),
        ("Secret", "enforce", "enforce", "denied"),
        ("Secret", "enforce", "no", "denied"),
    ]
    assert enforcing.acted == []
    assert pipeline.account()["matches"] == 3
    assert alerts[0].to_plain()["enforcement"] == {"requested": "enforce", "verified": "enforce"}


def test_not_enforcing(rules):
    """Without enforcement alerts say nothing of it, and what a recording has of denials is no match."""
    (alert,) = Pipeline(rules, None, Incidents()).walk(Batches([cat(), denial(CAT, 1, "secret")]))

    assert (alert.requested, alert.verified) == ("", "")
    assert "enforcement" not in alert.to_plain()


def test_denial_that_is_none(rules):
    """What enforcement says is no match (a proof, who is spared) is none, and is kept account of."""
    enforcing = _Enforcing()
    pipeline = Pipeline(rules, None, Incidents(), enforcing=enforcing)

    assert list(pipeline.walk(Batches([denial()]))) == []
    assert (enforcing.denied_, pipeline.account()["events"]) == ([[denial()]], 1)


def test_denial_excepted(rules):
    """An operator's exception is for denials, too; no verdict is carried out then."""
    asks = replace(rules.rules[0], level=Level.HIGH, response=Response("deny", inline=True))
    enforcing = _Enforcing(replace(match(), rule=asks))
    exceptions = parse_exceptions(EXPECTED.replace("2023", "2199"), "e.yml", rules.rules)
    pipeline = Pipeline(rules, None, Incidents(), exceptions=exceptions, enforcing=enforcing)
    (alert,) = pipeline.walk(
        Batches([denial(CAT, 1, hook="bprm_check_security", call="execve", paths=("/bin/cat",))])
    )

    assert alert.matches[0].exception is not None
    assert (alert.level, enforcing.acted) == (Level.INFORMATIONAL, [(asks.id, "alert", "/bin/cat")])
    assert pipeline.account()["matches_excepted"] == 1


@pytest.mark.parametrize("at_end", [False, True])
def test_notices(rules, at_end):
    """What there is to say about enforcement itself is alerted about, also if it is said after the last batch."""
    enforcing = _Enforcing()
    notice = match(rule="unverified", level=Level.CRITICAL)

    def batches():
        enforcing.left = [] if at_end else [notice]
        yield []
        enforcing.left += [notice] if at_end else []

    stream = Batches()
    stream.batches = batches()
    (alert,) = Pipeline(rules, None, Incidents(), enforcing=enforcing).walk(stream)

    assert (alert.title, alert.level) == ("Unverified", Level.CRITICAL)


def test_acts_on_what_is_not_told(tmp_path):
    """A verdict is carried out on each process that a rule matched, also where that is the same incident, one like it, or muted."""
    file = tmp_path / "cat.yml"
    file.write_text(EXAMPLE.replace("level: low", "level: critical") + "ksentinel: {action: kill}\n")
    rules = RuleSet.load([file], trusted_uids=None)
    enforcing = _Enforcing()
    mutes = Mutes(tmp_path / "mutes.json", os.getuid(), 10**18)
    pipeline = Pipeline(rules, None, Incidents(), noise=Noise(mutes=mutes), enforcing=enforcing)
    branch, other = child(HTTPD, 101, "/bin/sh"), child(HTTPD, 102, "/bin/sh")
    cats = [child(branch, 201, "/bin/cat"), child(branch, 202, "/bin/cat"), child(other, 203, "/bin/cat")]
    seen = []
    enforcing.carry_out = lambda _rule, action, process: seen.append((action, process.key.pid))
    alerts = list(pipeline.walk(Batches([cat(n, one) for n, one in enumerate(cats)])))

    assert seen == [("kill", 201), ("kill", 202), ("kill", 203)]
    assert len({alert.id for alert in alerts}) == 1
