# SPDX-License-Identifier: Apache-2.0
"""Incidents: who agrees with whom, what grows, what is counted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import (
    CAT,
    CROND,
    HTTPD,
    ID,
    JOB,
    OTHER_SHELL,
    SECOND,
    SHELL,
    START,
    Incidents,
    anomaly,
    child,
    denial,
    match,
)

from ksentinel.enforce.denial import match_of
from ksentinel.event import Origin, Outcome, Process, ProcessKey, SyscallEvent
from ksentinel.incident import branch_of, related
from ksentinel.level import Level
from ksentinel.rules import Exemption, Match, Response

T = 30
EXEMPTION = Exemption("backup", "storage", "nightly", START + 3600 * SECOND)


def tell(incidents, *witnesses):
    """Return for each of *witnesses* the list of alerts it leads to."""
    return [list(incidents.match(w) if isinstance(w, Match) else incidents.anomaly(w)) for w in witnesses]


def flat(told):
    """Return all alerts."""
    return [alert for alerts in told for alert in alerts]


def newest(told):
    """Return the newest alert of each incident, by id."""
    return {alert.id: alert for alert in flat(told)}


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (CAT, CAT, True),
        (CAT, SHELL, True),
        (CAT, HTTPD, True),
        (SHELL, HTTPD, True),
        (HTTPD, HTTPD, True),
        (CAT, ID, False),
        (SHELL, OTHER_SHELL, False),
        (CAT, OTHER_SHELL, False),
        (SHELL, JOB, False),
        (HTTPD, CROND, False),
        (SHELL, Process(SHELL.key, exe="/bin/cat", parent=HTTPD, service=HTTPD), True),
        (SHELL, Process(ProcessKey(11, 12), exe="/bin/sh", parent=HTTPD, service=HTTPD), False),
    ],
)
@pytest.mark.parametrize("match_first", [True, False])
def test_lineage(one, other, agree, match_first):
    """A process agrees with itself and its ancestors up to the service, in either order; with nobody else."""
    witnesses = [match(one, 0), anomaly(other, 5)] if match_first else [anomaly(one, 0), match(other, 5)]
    told = newest(tell(Incidents(), *witnesses))

    assert agree == related(one, other) == related(other, one)
    assert [agree] == sorted({alert.verdict.agreed for alert in told.values()})
    assert (1 if agree or branch_of(one) == branch_of(other) else 2) == len(told)
    assert (Level.HIGH if agree else Level.MEDIUM) is max(alert.level for alert in told.values())


@pytest.mark.parametrize("apart", [0, 1, T - 0.001, T, T + 0.001, 100])
@pytest.mark.parametrize("match_first", [True, False])
@pytest.mark.parametrize("process", [SHELL, CAT])
def test_within(apart, match_first, process):
    """They agree within T, in either order, and not beyond: also while their incident is open."""
    witnesses = (
        [match(process, 0), anomaly(SHELL, apart)]
        if match_first
        else [anomaly(process, 0), match(SHELL, apart)]
    )
    *_, last = flat(tell(Incidents(within_ns=T * SECOND), *witnesses))

    assert (apart <= T) == last.verdict.agreed
    assert (Level.HIGH if apart <= T else Level.MEDIUM) is last.level


def test_late_word():
    """The order that counts is that of time, not of arrival."""
    (first,), (second,) = tell(Incidents(), match(SHELL, 40), anomaly(SHELL, 20))

    assert second.verdict.agreed
    assert first.id == second.id


def test_upgrade():
    """The later witness upgrades what the earlier one opened: same id, next revision, both in the evidence."""
    said, seen = anomaly(SHELL, 0), match(CAT, 5)
    (first,), (second,) = tell(Incidents(), said, seen)

    assert (first.id, 1, Level.MEDIUM) == (second.id, first.revision, first.level)
    assert (2, Level.HIGH, (seen,), (said,)) == (
        second.revision,
        second.level,
        second.matches,
        second.anomalies,
    )
    assert (first.opened_ns, 5) == (second.opened_ns, (second.updated_ns - second.opened_ns) // SECOND)


@pytest.mark.parametrize("match_first", [True, False])
def test_agreement_that_changes_no_level(match_first):
    """What is critical already is still told when the model comes to agree."""
    witnesses = [match(level=Level.CRITICAL), anomaly(SHELL, 1)]
    *_, last = flat(tell(Incidents(), *(witnesses if match_first else witnesses[::-1])))

    assert (last.level, last.verdict.agreed) == (Level.CRITICAL, True)


def test_agreement_after_a_stranger():
    """An anomaly that agrees with nothing doesn't hide the next one, that does."""
    told = tell(
        Incidents(),
        match(CAT, 0, Level.CRITICAL),
        anomaly(ID, 1, p_value=1e-9),
        anomaly(CAT, 2, p_value=1e-5),
    )

    assert [alert.verdict.agreed for alert in flat(told)] == [False, False, True]
    assert flat(told)[-1].anomalies[0].p_value == 1e-5


def test_harmless_agreement_lifts_nothing_else():
    """A mild match that agrees doesn't make a high one that stands alone critical, nor worth blocking."""
    *_, last = flat(
        tell(Incidents(), match(ID, 0, Level.HIGH, "bad"), match(CAT, 1, Level.LOW, "mild"), anomaly(CAT, 2))
    )

    assert (last.level, last.verdict.agreed, last.verdict.action) == (Level.HIGH, False, "alert")


def test_later_match_that_agrees():
    """Where a rule's first match agrees with nothing and a later one does, that one is the evidence."""
    *_, last = flat(tell(Incidents(), match(ID, 0), match(CAT, 1), anomaly(CAT, 2)))

    assert (last.matches[0].event.process.exe, last.evidence[0].count) == ("/bin/cat", 2)
    assert last.verdict.agreed


@pytest.mark.parametrize("response", [None, Response("kill"), Response("deny", anomalous=True)])
@pytest.mark.parametrize("level", [Level.LOW, Level.MEDIUM, Level.HIGH])
@pytest.mark.parametrize("doubt", [{}, {"unseen": True}, {"changed": True}])
def test_order_is_no_matter(response, level, doubt):
    """Whoever speaks first, the verdict in the end is the same, to the words."""
    said, seen = anomaly(CAT, 3, **doubt), match(CAT, 3, level, response=response)
    one, other = (flat(tell(Incidents(), *w))[-1].verdict for w in ([said, seen], [seen, said]))

    assert one == other


@pytest.mark.parametrize("trained_first", [True, False])
def test_witness_without_doubt_goes_first(trained_first):
    """A stranger that is more unusual doesn't take the place of the witness that agrees."""
    knows, stranger = anomaly(CAT, 1, p_value=1e-3), anomaly(SHELL, 2, p_value=1e-9, unseen=True)
    said = [knows, stranger] if trained_first else [stranger, knows]

    assert flat(tell(Incidents(), *said, match(CAT, 3)))[-1].verdict.agreed
    assert flat(tell(Incidents(), match(CAT, 3), *said))[-1].verdict.agreed


def test_agreement_permits():
    """A rule with two keys gets its action when the model agrees, and the incident is told again."""
    seen = match(CAT, 0, Level.CRITICAL, response=Response("quarantine", anomalous=True))
    (first,), (second,) = tell(Incidents(), seen, anomaly(CAT, 5))

    assert (first.verdict.action, second.verdict.action) == ("alert", "quarantine")
    assert first.id == second.id


@pytest.mark.parametrize("excepted_first", [True, False])
def test_excepted_match_stands_for_no_other(excepted_first):
    """Of one rule, what is excepted and what isn't are two pieces of evidence: the second is told in full."""
    excepted = match(CAT, 0, Level.HIGH, exception=EXEMPTION)
    open_ = match(CAT, 1, Level.HIGH)
    told = flat(tell(Incidents(), *([excepted, open_] if excepted_first else [open_, excepted])))

    assert told[-1].level is Level.HIGH
    assert [m.exception for m in told[-1].matches] == [None, EXEMPTION]
    assert (told[0].level is Level.INFORMATIONAL) == excepted_first


def test_excepted_matches_are_counted():
    """They aren't thrown away: one alert, with how many there were."""
    incidents = Incidents()
    (told,), *others = tell(incidents, *(match(CAT, at, exception=EXEMPTION) for at in range(5)))
    (counted,) = incidents.finish()

    assert (told.level, others) == (Level.INFORMATIONAL, [[]] * 4)
    assert counted.evidence[0].count == 5


def test_branches_stay_apart():
    """The service's own windows concern both branches, and take nothing from one into the other."""
    incidents = Incidents()
    first = match(SHELL, 0, rule="first")
    told = tell(incidents, first, anomaly(SHELL, 0.5), anomaly(HTTPD, 1))
    ended = newest([*told, list(incidents.finish())])
    second = match(OTHER_SHELL, 4, rule="second")
    after = tell(incidents, second, anomaly(OTHER_SHELL, 4.5), anomaly(HTTPD, 5), anomaly(HTTPD, 6))

    assert len(ended) == 1
    assert len(newest(after)) == 1
    assert not ended.keys() & newest(after).keys()
    assert [(second,)] == [alert.matches for alert in newest(after).values()]
    assert all(alert.verdict.agreed for alert in newest(after).values())
    assert not ended.keys() & {alert.id for alert in incidents.finish()}


def test_services_window_upgrades_all_that_wait():
    """A window of the service agrees with each branch that a rule spoke of, once."""
    incidents = Incidents()
    branches = [child(HTTPD, 100 + n, "/bin/sh") for n in range(3)]
    opened = flat(tell(incidents, *(match(b, n, rule=f"rule {n}") for n, b in enumerate(branches))))
    (upgraded, again) = tell(incidents, anomaly(HTTPD, 5), anomaly(HTTPD, 6))

    assert {alert.id for alert in opened} == {alert.id for alert in upgraded}
    assert len(upgraded) == 3
    assert {(2, Level.HIGH)} == {(alert.revision, alert.level) for alert in upgraded}
    assert again == []


def test_services_window_lifts_nothing_old():
    """In a branch it agrees with what is recent there, not with an old match whose rule fired elsewhere just now."""
    incidents = Incidents()
    told = tell(
        incidents,
        match(SHELL, 0, Level.HIGH, "bad"),
        match(SHELL, 100, Level.LOW, "mild"),
        match(OTHER_SHELL, 100, Level.HIGH, "bad"),
        anomaly(HTTPD, 101),
    )
    levels = {a.process.key: (a.level, a.verdict.agreed) for a in newest(told).values()}

    assert levels == {SHELL.key: (Level.HIGH, False), OTHER_SHELL.key: (Level.CRITICAL, True)}


def test_take_over():
    """A rule's match upgrades the incident that the service's window opened; the next branch has its own."""
    incidents = Incidents()
    (first,), (second,), (third,) = tell(
        incidents, anomaly(HTTPD, 0), match(SHELL, 1, rule="a"), match(OTHER_SHELL, 2, rule="b")
    )

    assert (first.id, 2, Level.HIGH) == (second.id, second.revision, second.level)
    assert (third.revision, third.level, len(third.matches)) == (1, Level.HIGH, 1)
    assert third.id != first.id
    assert tell(incidents, match(SHELL, 3, rule="a"), anomaly(SHELL, 4), anomaly(HTTPD, 5)) == [[], [], []]


def test_services_match():
    """A match of the service itself agrees with a branch's anomaly, and upgrades that incident."""
    (first,), (second,), third = tell(Incidents(), anomaly(SHELL, 0), match(HTTPD, 1), anomaly(SHELL, 2))

    assert (first.id, 2, True, []) == (second.id, second.revision, second.verdict.agreed, third)


def test_quiet():
    """After a while of quiet the branch's next witness opens an incident of its own."""
    incidents = Incidents(quiet_ns=300 * SECOND, fold_ns=0)
    first, second, third = tell(incidents, match(SHELL, 0), match(SHELL, 299), match(SHELL, 599))

    assert [len(first), len(second), len(third)] == [1, 0, 2]
    assert first[0].id != third[-1].id


def test_below_every_threshold():
    """What is not unusual says nothing, and can't agree."""
    told = tell(Incidents(), anomaly(level=Level.NONE), match(SHELL, 1), anomaly(SHELL, 2, Level.NONE))

    assert [len(alerts) for alerts in told] == [0, 1, 0]
    assert not told[1][0].verdict.agreed


def test_known_evidence():
    """More of the same is counted, and told at the end."""
    incidents = Incidents()
    told = tell(incidents, match(CAT, 0), match(CAT, 1), match(ID, 2))
    (last,) = incidents.finish()

    assert [len(alerts) for alerts in told] == [1, 0, 0]
    assert (
        last.revision,
        last.evidence[0].count,
        last.evidence[0].last_ns - last.evidence[0].first_ns,
    ) == (2, 3, 2 * SECOND)
    assert list(incidents.finish()) == []


def test_new_rule():
    """Another rule is something new, also if it is milder."""
    told = tell(Incidents(), match(rule="bad"), match(at=1, rule="mild", level=Level.LOW))

    assert [alert.revision for alert in flat(told)] == [1, 2]
    assert [m.rule.id for m in told[1][0].matches] == ["bad", "mild"]


def shells(count):
    """Return as many branches of the service, that look alike."""
    return [child(HTTPD, 1000 + n, "/bin/sh") for n in range(count)]


def test_repeats():
    """What looks like an alert already told is counted there, and told at the end."""
    incidents = Incidents()
    told = tell(incidents, *(match(shell, n) for n, shell in enumerate(shells(5))))
    (last,) = incidents.finish()

    assert [len(alerts) for alerts in told] == [1, 0, 0, 0, 0]
    assert (told[0][0].id, 2, 4, 4) == (
        last.id,
        last.revision,
        last.repeats,
        (last.updated_ns - last.opened_ns) // SECOND,
    )


def test_other_programs():
    """The same rule on another program, or in another service, is no repeat."""
    told = tell(Incidents(), match(SHELL, 0), match(child(HTTPD, 50, "/bin/dash"), 1), match(JOB, 2))

    assert [len(alerts) for alerts in told] == [1, 1, 1]


def test_folded_gets_worse():
    """A folded incident that gets worse is told after all, and counted nowhere any more."""
    incidents = Incidents()
    one, two, three = shells(3)
    (first,), _, (worse,), _ = tell(incidents, match(one, 0), match(two, 1), anomaly(two, 2), match(three, 3))
    rest = [(alert.id, alert.repeats) for alert in incidents.finish()]

    assert (first.level, worse.level, worse.revision) == (Level.MEDIUM, Level.HIGH, 1)
    assert first.id != worse.id
    assert [(worse.id, 1)] == rest


def test_folded_grows():
    """A folded incident in which another rule speaks is no repeat any more: told, and counted nowhere."""
    incidents = Incidents()
    one, two = shells(2)
    (first,), _, (other,) = tell(incidents, match(one, 0), match(two, 1), match(two, 2, rule="another"))

    assert first.id != other.id
    assert list(incidents.finish()) == []


def test_told_incident_is_not_folded():
    """An incident once told keeps being told under its own id, whatever it looks like by now."""
    incidents = Incidents()
    one, two = shells(2)
    told = tell(
        incidents,
        match(one, 0, rule="a"),
        match(one, 1, rule="b", level=Level.HIGH),
        match(two, 2, rule="b", level=Level.LOW),
        match(two, 3, rule="a", level=Level.HIGH),
    )

    assert [len(alerts) for alerts in told] == [1, 1, 1, 1]
    assert [(told[2][0].id, 2, Level.HIGH)] == [(a.id, a.revision, a.level) for a in told[3]]


def test_fold_ends():
    """Long after it was told an alert counts no more: its count is told, and the next one is told anew."""
    incidents = Incidents(fold_ns=3600 * SECOND, quiet_ns=10 * SECOND)
    told = tell(incidents, *(match(shell, 1000 * n) for n, shell in enumerate(shells(6))))

    assert [(n, alert.revision, alert.repeats) for n, alerts in enumerate(told) for alert in alerts] == [
        (0, 1, 0),
        (4, 2, 3),
        (4, 1, 0),
    ]
    assert [alert.repeats for alert in incidents.finish()] == [1]


@pytest.mark.parametrize("lossy", ["batch", "window", "match", "borrowed", None])
def test_lossy(lossy):
    """A loss meanwhile is among the reasons, also if it concerns only a window that another branch lent."""
    incidents = Incidents()
    if lossy == "borrowed":
        list(incidents.anomaly(anomaly(HTTPD, 0), lossy=True))
        list(incidents.match(match(OTHER_SHELL, 0, rule="first")))
    else:
        list(incidents.anomaly(anomaly(SHELL, 0, lossy=lossy == "window"), lossy=lossy == "batch"))
    *_, last = incidents.match(match(SHELL, 1), lossy=lossy == "match")

    assert (lossy is not None) == any("were lost" in reason for reason in last.verdict.reasons)


def test_unseen():
    """So is that training never saw the executable."""
    *_, last = flat(tell(Incidents(), anomaly(unseen=True), match(at=1)))

    assert any("never saw" in reason for reason in last.verdict.reasons)


def test_many_rules():
    """Evidence is bounded; what is worse than all that is there still gets in."""
    incidents = Incidents()
    tell(incidents, *(match(rule=f"rule {n}", level=Level.LOW) for n in range(200)))
    mild, (bad,) = tell(incidents, match(rule="mild", level=Level.LOW), match(rule="bad", level=Level.HIGH))

    assert mild == []
    assert (bad.level, len(bad.matches), bad.matches[0].rule.id) == (Level.HIGH, 50, "bad")


def test_many_anomalies():
    """The most unusual are kept, the last of them stands for the rest: nothing is uncounted."""
    incidents = Incidents()
    tell(incidents, match(CAT, 0), *(anomaly(ID, 1, p_value=10.0 ** (-3 - n)) for n in range(20)))
    ((last,),) = tell(incidents, anomaly(CAT, 2, p_value=1e-3))
    counts = [e.count for e in last.evidence if e.anomaly is not None]

    assert (counts, sum(counts)) == ([1, 1, 1, 1, 17], 21)
    assert [pytest.approx(a.p_value) for a in last.anomalies] == [1e-3, 1e-22, 1e-21, 1e-20, 1e-19]
    assert last.verdict.agreed


def test_many_branches():
    """What is kept is bounded, whatever comes."""
    incidents = Incidents(limit=10, within_ns=10**9 * SECOND, quiet_ns=10**9 * SECOND)
    for n in range(300):
        service = Process(ProcessKey(10_000 + n, 1), exe=f"/usr/sbin/service{n}")
        branch = child(service, 20_000 + n, f"/bin/program{n}")
        tell(incidents, match(branch, n), anomaly(branch, n))

    assert [len(incidents._open), len(incidents._told), len(incidents._recent)] == [10, 10, 10]


def test_flood_in_one_service():
    """Nor do a service's witnesses pile up; and one process can't flush out another's by repeating itself."""
    incidents = Incidents()
    tell(incidents, match(SHELL, 0), *(match(OTHER_SHELL, 1, rule="noise") for _ in range(1000)))
    tell(incidents, *(anomaly(JOB, 1) for _ in range(1000)))
    tell(incidents, *(match(shell, 1, rule="noise") for shell in shells(200)))
    ((upgraded,),) = tell(incidents, anomaly(SHELL, 2))
    tell(incidents, *(match(shell, 3, rule="noise") for shell in shells(1000)))

    assert (True, SHELL.key) == (upgraded.verdict.agreed, upgraded.process.key)
    assert all(len(r.matches) <= 256 >= len(r.anomalies) for r in incidents._recent.values())


def test_forgotten():
    """Nothing that can't agree any more is remembered."""
    incidents = Incidents()
    tell(incidents, match(SHELL, 0), anomaly(JOB, 400))

    assert [CROND.key] == list(incidents._recent)
    assert [JOB.key] == list(incidents._open)


def test_counts_of_what_goes():
    """An alert that has to go to make room has its counts told first."""
    incidents = Incidents(limit=2)
    one, two = shells(2)
    tell(incidents, match(one, 0), match(two, 1))
    told = flat(tell(incidents, match(SHELL, 2, rule="b"), match(JOB, 3, rule="c")))

    assert [(a.matches[0].rule.id, a.repeats) for a in told] == [("b", 0), ("c", 0), ("web shell", 1)]


_processes = st.sampled_from([HTTPD, SHELL, CAT, ID, OTHER_SHELL, CROND, JOB])
_times = st.floats(0, 500, allow_nan=False)
_RULES = [(level, f"rule {level}") for level in Level if level]
_witnesses = st.lists(
    st.one_of(
        st.builds(
            lambda process, at, rule: match(process, at, *rule), _processes, _times, st.sampled_from(_RULES)
        ),
        st.builds(
            anomaly,
            _processes,
            _times,
            st.sampled_from([Level.LOW, Level.MEDIUM]),
            st.floats(1e-12, 1e-3),
            lossy=st.booleans(),
        ),
    ),
    max_size=30,
    unique_by=lambda w: w.event.time_ns if isinstance(w, Match) else w.window.last_ns,
)


def run(witnesses):
    """Return all alerts, the end's included."""
    incidents = Incidents(within_ns=T * SECOND)
    return [*flat(tell(incidents, *witnesses)), *incidents.finish()]


@given(_witnesses)
def test_same_again(witnesses):
    """The same witnesses lead to the same alerts, ids included."""
    assert [a.to_plain() for a in run(witnesses)] == [a.to_plain() for a in run(witnesses)]


def test_level_stays():
    """What weighs more isn't pushed out by what is only more unusual: an incident never gets milder."""
    known = anomaly(HTTPD, 0, Level.MEDIUM, 1e-4)
    milder = [anomaly(HTTPD, n, Level.LOW, 10.0**-n) for n in range(5, 12)]
    alerts = run([known, *milder])

    assert {Level.MEDIUM} == {alert.level for alert in alerts}
    assert all(known in alert.anomalies for alert in alerts)


@settings(max_examples=300)
@given(_witnesses)
def test_life_of_an_incident(witnesses):
    """Revisions count up, levels never fall, every level has its reason, and agreement its pair."""
    alerts = run(witnesses)
    for id_ in {alert.id for alert in alerts}:
        life = [alert for alert in alerts if alert.id == id_]

        assert list(range(1, len(life) + 1)) == [alert.revision for alert in life]
        assert sorted(alert.level for alert in life) == [alert.level for alert in life]
    for alert in alerts:
        pairs = [
            (m, a)
            for m in [w for w in witnesses if isinstance(w, Match)]
            for a in alert.anomalies
            if m.rule.id in {known.rule.id for known in alert.matches}
            and related(m.event.process, a.window.process)
            and abs(m.event.time_ns - a.window.last_ns) <= T * SECOND
        ]

        assert alert.verdict.reasons
        assert pairs or not alert.verdict.agreed
        assert alert.matches or alert.level <= Level.MEDIUM


@given(_witnesses)
def test_nothing_is_untold(witnesses):
    """Each rule that matched a service stands in some alert of it, and each alert is at least as bad as its rules."""
    alerts = run(witnesses)
    matched = {(w.rule, w.event.process.service_exe) for w in witnesses if isinstance(w, Match)}
    told = {(m.rule, m.event.process.service_exe) for alert in alerts for m in alert.matches}

    assert matched == told
    assert all(alert.level >= m.rule.level for alert in alerts for m in alert.matches)


def test_ids():
    """Short, in hexadecimal, and different for what differs."""
    witnesses = [match(shell, n % 3, rule=f"rule {n}") for n, shell in enumerate(shells(100))]
    ids = [alert.id for alert in flat(tell(Incidents(), *witnesses))]

    assert len(set(ids)) == 100
    assert all(len(i) == 12 and int(i, 16) >= 0 for i in ids)


# What guards say


def said(process=SHELL, at=0.0, outcome=Outcome.DENIED, **fields):
    """Return what a guard of the rule that `match` is of says, as a match."""
    one = match(process)
    return match_of(denial(process, at, one.rule.id, outcome, **fields), {one.rule.id: one.rule})


def test_denied():
    """A denial is a match of its rule, and says what it is."""
    (alert,) = flat(tell(Incidents(), said()))

    assert (alert.level, alert.enforced, alert.title) == (Level.MEDIUM, "denied", "Web shell")
    assert alert.reasons == (
        "rule 'Web shell' (medium)",
        "denied in the kernel at file_open: rule 'Web shell'",
    )
    assert [e.enforcement.outcome for e in alert.evidence] == [Outcome.DENIED]


@pytest.mark.parametrize("guard_first", [True, False])
def test_denial_and_event(guard_first):
    """The event of the same operation is the same evidence: it says more, and isn't counted twice."""
    incidents = Incidents()
    several = [(match(at=at), said(at=at)) for at in range(3)]
    told = flat(
        tell(incidents, *[one for pair in several for one in (reversed(pair) if guard_first else pair)])
    )
    (alert,) = incidents.finish()

    assert [(one.enforced, one.revision) for one in told] == (
        [("denied", 1)] if guard_first else [("none", 1), ("denied", 2)]
    )
    (evidence,) = alert.evidence
    assert (evidence.count, evidence.enforced) == (3, 3)
    assert evidence.match == several[0][0]
    assert alert.reasons[-1] == "denied in the kernel at file_open, 3 times: rule 'Web shell'"


def test_graver():
    """Of what guards did the gravest is told, and a graver one is news."""
    outcomes = [Outcome.RELEASED, Outcome.LOGGED, Outcome.WOULD_DENY, Outcome.DENIED, Outcome.WOULD_DENY]
    told = tell(Incidents(), *[said(at=n, outcome=outcome) for n, outcome in enumerate(outcomes)])

    assert [[alert.enforced for alert in alerts] for alerts in told] == [
        ["none"],
        ["none"],
        ["would_deny"],
        ["denied"],
        [],
    ]


def test_denied_does_not_hide():
    """An incident that was denied isn't folded into one that looks the same and wasn't."""
    incidents = Incidents()
    tell(incidents, said(SHELL, outcome=Outcome.WOULD_DENY))
    other, again = tell(incidents, said(OTHER_SHELL, 1), said(child(HTTPD, 22, "/bin/sh"), 2))

    assert [alert.enforced for alert in other] == ["denied"]
    assert again == []


def test_denied_and_unusual():
    """It agrees with an anomaly of its lineage as any match does."""
    *_, alert = flat(tell(Incidents(), anomaly(SHELL), said(SHELL, 3)))

    assert (alert.verdict.agreed, alert.level, alert.enforced) == (True, Level.HIGH, "denied")


def test_excepted_denial():
    """One that is expected is another kind of match: it never makes one that isn't milder."""
    excepted = Match(*(getattr(said(), name) for name in ("rule", "event", "clauses")), exception=EXEMPTION)
    *_, alert = flat(tell(Incidents(), excepted, match(at=1)))

    assert [(e.match.exception is not None, e.enforced) for e in alert.evidence] == [(False, 0), (True, 1)]
    assert alert.level is Level.MEDIUM


def test_events_counted_apart():
    """An operation that no guard was asked about counts all the same."""
    incidents = Incidents()
    event = SyscallEvent(time_ns=START, process=SHELL, tid=11, origin=Origin.BPF, syscall="openat")
    tell(incidents, said(), *[Match(match().rule, event, ()) for _ in range(4)])
    (alert,) = incidents.finish()

    assert (alert.evidence[0].count, alert.evidence[0].enforced) == (4, 1)


# What is granted


def granted(*witnesses):
    """Return what is granted about which process' matches, in the order in which that comes out."""
    incidents, found = Incidents(), []
    incidents.act = lambda match, action: found.append((match.event.process.exe, str(action)))
    for one in witnesses:
        take = incidents.match if isinstance(one, Match) else incidents.anomaly
        list(take(one))
    return found


KILL = Response("kill")


def test_granted_to_each():
    """Each match is judged by itself: the second of a rule, and one in a branch like an earlier one, as the first."""
    asks = [match(one, n, Level.CRITICAL, response=KILL) for n, one in enumerate((SHELL, CAT, OTHER_SHELL))]

    assert granted(*asks, match(ID, 3, Level.CRITICAL)) == [
        ("/bin/sh", "kill"),
        ("/bin/cat", "kill"),
        ("/bin/sh", "kill"),
    ]


@pytest.mark.parametrize("anomaly_first", [False, True])
def test_granted_to_who_agrees(anomaly_first):
    """Where rule and model have to agree, they do on a lineage: a sibling's match comes to nothing by that."""
    strange, asks = anomaly(CAT, 2), [match(one, 1, response=KILL) for one in (CAT, ID)]
    found = granted(*([strange, *asks] if anomaly_first else [*asks, strange]))
    later = [] if anomaly_first else [("/bin/cat", "alert")]

    assert sorted(found) == sorted([*later, ("/bin/cat", "kill"), (ID.exe, "alert")])


def test_granted_of_what_was_lost():
    """Where records were lost nothing is ended; what is expected comes to an alert."""
    incidents, found = Incidents(), []
    incidents.act = lambda _match, action: found.append(str(action))
    list(incidents.match(match(level=Level.CRITICAL, response=KILL), lossy=True))
    list(incidents.match(match(OTHER_SHELL, level=Level.CRITICAL, response=KILL, exception=EXEMPTION)))

    list(incidents.match(match(JOB, level=Level.CRITICAL, response=KILL)))

    assert found == ["alert", "alert", "kill"]
