# SPDX-License-Identifier: Apache-2.0
"""The breaker: it trips for a mistake that hits many services, and for nothing that one intruder can do."""

import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import INIT, SECOND, START, child, denial

from ksentinel.enforce.breaker import WITHIN_NS, Breaker, Change, Service, changes, is_roots
from ksentinel.event import Outcome, Process, ProcessKey

HOST = ("/usr/sbin/", "/usr/bin/", "/usr/lib/")


def trusted(path):
    """Stand for files that only root can have put there."""
    return path.startswith(HOST)


def service(number, exe=None, **who):
    """Return a service of the host, a process with a user and a unit of its own."""
    told = {"uid": 0, "euid": 0, "unit": f"s{number}.service"} | who
    return Process(ProcessKey(100 + number, number), exe=exe or f"/usr/sbin/s{number}", parent=INIT, **told)


SERVICES = [service(number) for number in range(8)]


def breaker(*established, pinned=(), rule="r", **options):
    """Return a breaker for a rule that was changed at the start."""
    made = Breaker(trusted, pinned=pinned, **options)
    made.changed({rule: START}, established or SERVICES)
    return made


def trips(made, processes, **fields):
    """Return at which of the denials it trips."""
    fields = {"rule": "r", "at": 1} | fields
    return [n for n, process in enumerate(processes, 1) if made.denied(denial(process, **fields)) is not None]


def test_a_mistake():
    """Five services that have nothing to do with each other: the rule is taken back, once, and they are named."""
    made = breaker()

    assert trips(made, SERVICES) == [5]
    trip = made.trips["r"]
    assert [one.service.program for one in trip.lineages] == [f"/usr/sbin/s{n}" for n in range(5)]
    assert trip.words() == (
        "rule 'R' (r) is permissive now: within 1 s after it was changed it denied 5 unrelated services: "
        "/usr/sbin/s0 (unit s0.service), /usr/sbin/s1 (unit s1.service), /usr/sbin/s2 (unit s2.service), "
        "/usr/sbin/s3 (unit s3.service), /usr/sbin/s4 (unit s4.service)"
    )
    assert [one["pid"] for one in trip.to_plain()["services"]] == [100, 101, 102, 103, 104]


def test_workers():
    """What a service has started counts as the service."""
    workers = [child(one, 1000 + n, f"/usr/bin/w{n}") for n, one in enumerate(SERVICES)]

    assert trips(breaker(), workers) == [5]


def test_users():
    """Services of users of their own are unrelated, whatever their units are; so are containers."""
    users = [service(n, uid=33 + n, euid=33 + n, unit="") for n in range(3)]
    boxes = [service(n, container=f"c{n}") for n in range(3, 6)]

    assert trips(breaker(*users, *boxes), [*users, *boxes]) == [5]


def line(exe, count, pid=5000, below=SERVICES[0], **who):
    """Return processes, each the last one's child: an intruder's forks."""
    found = []
    for number in range(count):
        below = replace(child(below, pid + number, exe), **who)
        found.append(below)
    return found


MINE = {"uid": 1000, "euid": 1000, "auid": 1000}


def alone(number, exe, **who):
    """Return a process that has left its service: it is one of its own."""
    return Process(ProcessKey(7000 + number, number), exe=exe, parent=INIT, **who)


ATTACKS = {
    "a thousand denials of one": [SERVICES[0]] * 1000,
    "a chain of forks": line("/usr/bin/sh", 200),
    "many children": [child(SERVICES[0], 5000 + n, f"/usr/bin/tool{n}") for n in range(200)],
    "setsid": [alone(n, f"/usr/bin/tool{n}", **MINE) for n in range(200)],
    "setsid below many logins of one user": [
        alone(n, f"/usr/bin/tool{n}", session=n, **MINE) for n in range(200)
    ],
    "sudo to other users": [
        alone(n, f"/usr/bin/tool{n}", uid=2000 + n, euid=2000 + n, auid=1000) for n in range(200)
    ],
    "programs that run as root": [
        alone(n, f"/usr/bin/suid{n}", uid=1000, euid=0, auid=1000) for n in range(200)
    ],
    "user services of one user": [
        alone(n, f"/usr/bin/tool{n}", uid=1000, euid=1000, unit=f"u{n}.service") for n in range(200)
    ],
    "renamed copies as many users": [
        alone(n, f"/tmp/copy{n}", uid=3000 + n, euid=3000 + n) for n in range(200)
    ],
    "one program as many users": [
        alone(n, "/usr/bin/python3", uid=3000 + n, euid=3000 + n) for n in range(200)
    ],
    "all of one container": [alone(n, f"/usr/bin/tool{n}", uid=n, euid=n, container="c") for n in range(200)],
    "root's programs outside of units": [alone(n, f"/usr/sbin/d{n}", uid=0, euid=0) for n in range(200)],
    "nobody knows who": [alone(n, f"/usr/sbin/d{n}") for n in range(200)],
    "nobody knows what": [alone(n, "", uid=n, euid=n) for n in range(200)],
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_no_switch(attack):
    """What one intruder can do trips nothing, even if all of it was there when the rule was changed."""
    made = breaker(*SERVICES, *attack)

    assert trips(made, attack) == []


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nor_with_what_he_has(attack):
    """Nor does it help towards it more than one service that he has taken over."""
    made = breaker(*SERVICES, *attack)
    trips(made, attack)

    assert trips(made, SERVICES[1:4]) == []


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(["/usr/bin/a", "/usr/bin/b", "/tmp/c"])), max_size=60
    )
)
def test_any_of_one_login(tries):
    """However many processes of whatever names and users one login makes."""
    found = [alone(n, exe, uid=n, euid=0, auid=1000, unit=f"run-{n}.service") for n, exe in tries]
    made = breaker(*SERVICES, *found)

    assert trips(made, found) == []


def test_made_up_afterwards():
    """Root can start services of any name, with programs of the host; they weren't there when the rule was changed."""
    new = [service(number, unit=f"run-{number}.service") for number in range(100, 120)]

    assert trips(breaker(), new) == []
    assert trips(breaker(*SERVICES, *new), new) == [5]


def test_restarted():
    """A service that was started anew since is the same service."""
    again = [replace(one, key=ProcessKey(9000 + n, n)) for n, one in enumerate(SERVICES)]

    assert trips(breaker(), again) == [5]


def test_ancestors():
    """A service that another one has started is related to it, either way."""
    above = service(20)
    below = replace(service(21), parent=above)

    assert trips(breaker(above, below, least=2), [above, below]) == []
    assert trips(breaker(above, below, least=2), [below, above]) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": Outcome.WOULD_DENY},
        {"outcome": Outcome.SPARED},
        {"nonce": 5},
        {"anomalous": True},
        {"sentence": "quarantine"},
        {"at": -1},
        {"at": WITHIN_NS / SECOND + 1},
        {"rule": "another"},
    ],
    ids=str,
)
def test_what_does_not_count(fields):
    """Only what a rule by itself has denied, after it was changed and within the time."""
    assert trips(breaker(), SERVICES, **fields) == []


def test_pinned():
    """A pinned rule never trips."""
    assert trips(breaker(pinned={"r"}), SERVICES) == []


def test_within():
    """The last moment counts."""
    assert trips(breaker(), SERVICES, at=WITHIN_NS / SECOND) == [5]


def test_changed_again():
    """A rule that is changed begins anew, be it tripped or half way; others go on."""
    made = breaker()
    made.changed({"other": START}, SERVICES)
    trips(made, SERVICES[:4])
    trips(made, SERVICES[:4], rule="other")
    made.changed({"r": START + SECOND}, SERVICES)

    assert trips(made, SERVICES[4:8]) == []
    assert trips(made, SERVICES[4:5], rule="other") == [1]
    assert trips(made, SERVICES[:1]) == [1]
    made.changed({"r": START + 2 * SECOND}, SERVICES)
    assert set(made.trips) == {"other"}
    made.forget({"r"})
    assert made.trips == {}


def test_files_are_asked_last():
    """Whether a program is the host's is asked only of those that would count."""
    asked = []
    made = Breaker(lambda path: bool(asked.append(path)) or True)
    made.changed({"r": START}, SERVICES)
    trips(made, [SERVICES[0]] * 3 + ATTACKS["setsid"])

    assert asked == ["/usr/sbin/s0"]


@pytest.mark.parametrize(
    ("fields", "principal"),
    [
        ({"uid": 0, "unit": "cron.service"}, "unit cron.service"),
        ({"uid": 0}, "root"),
        ({"uid": 33, "euid": 0, "unit": "x.service"}, "user 33"),
        ({"uid": 0, "auid": 1000, "unit": "x.service"}, "login 1000"),
        ({"uid": 0, "auid": 0xFFFFFFFF}, "root"),
        ({"uid": 0, "auid": 1000, "container": "c"}, "container c"),
    ],
)
def test_principal(fields, principal):
    """On whose behalf a service runs."""
    assert Service.of(Process(ProcessKey(5, 5), exe="/usr/bin/x", **fields)) == Service(
        "/usr/bin/x", principal
    )


def test_login_below_a_service():
    """Who came in by a service is not that service."""
    sshd = service(1, "/usr/sbin/sshd")

    assert Service.of(replace(child(sshd, 50, "/bin/sh"), auid=1000)).principal == "login 1000"


def status(mode, uid=0):
    """Return what the file system says of a file."""
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("path", "odd", "roots"),
    [
        ("/usr/bin/x", {}, True),
        ("/usr/bin/x", {"/usr/bin/x": (stat.S_IFREG | 0o775, 0)}, False),
        ("/usr/bin/x", {"/usr/bin/x": (stat.S_IFREG | 0o755, 1000)}, False),
        ("/usr/bin/x", {"/usr/bin": (stat.S_IFDIR | 0o777, 0)}, False),
        ("/tmp/x", {"/tmp": (stat.S_IFDIR | 0o1777, 0)}, False),
        ("/home/me/x", {"/home/me": (stat.S_IFDIR | 0o755, 1000)}, False),
        ("/usr/bin/x", {"/usr/bin/x": (stat.S_IFLNK | 0o777, 0)}, False),
        ("/usr/bin/x", {"/usr/bin/x": (stat.S_IFDIR | 0o755, 0)}, False),
        ("/usr/bin/x", {"/": (stat.S_IFDIR | 0o777, 0)}, False),
        ("/usr/bin/../bin/x", {}, False),
        ("usr/bin/x", {}, False),
        ("", {}, False),
    ],
)
def test_is_roots(path, odd, roots):
    """It and everything above it are root's alone."""

    def told(asked):
        mode, uid = odd.get(asked, (stat.S_IFREG | 0o755 if asked == path else stat.S_IFDIR | 0o755, 0))
        return status(mode, uid)

    assert is_roots(path, told) is roots


def test_is_roots_of_nothing(tmp_path):
    """What isn't there is nobody's."""
    assert not is_roots(str(tmp_path / "none"))
    assert not is_roots("/\0")


def test_changes():
    """A rule that is loaded again is no other rule; one that comes back is."""
    first = changes({}, {"a": "1", "b": "1"}, 10)
    second = changes(first, {"a": "1"}, 20)

    assert changes(second, {"a": "1", "b": "1"}, 30) == {"a": Change("1", 10), "b": Change("1", 30)}
