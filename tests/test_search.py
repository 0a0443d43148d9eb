# SPDX-License-Identifier: Apache-2.0
"""A search: times, patterns and addresses as people write them, and which events fit."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up import CAT, SECOND, SHELL, START, events, windows

from ksentinel.errors import UsageError
from ksentinel.event import ExecEvent, Origin, SyscallEvent
from ksentinel.flight import Facts, facts
from ksentinel.search import (
    KINDS,
    Endpoint,
    Found,
    Glob,
    Search,
    among,
    parse_endpoint,
    parse_glob,
    parse_kind,
    parse_syscall,
    parse_time,
)
from ksentinel.window import Window

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2024, 5, 2, 9, 30, tzinfo=BERLIN)


def local(naive):
    return naive.replace(tzinfo=BERLIN)


def parsed(text, now=NOW):
    return parse_time(text, "--since", now, local)


def ns(*parts, zone=BERLIN):
    return round(datetime(*parts, tzinfo=zone).timestamp() * 1e6) * 1000


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("now", ns(2024, 5, 2, 9, 30)),
        ("10m", ns(2024, 5, 2, 9, 20)),
        ("90s ago", ns(2024, 5, 2, 9, 28, 30)),
        ("1.5h ago", ns(2024, 5, 2, 8, 0)),
        ("2d", ns(2024, 4, 30, 9, 30)),
        ("1w  ago", ns(2024, 4, 25, 9, 30)),
        ("today", ns(2024, 5, 2)),
        ("yesterday", ns(2024, 5, 1)),
        ("14:30", ns(2024, 5, 2, 14, 30)),
        ("7:05", ns(2024, 5, 2, 7, 5)),
        ("14:30:05", ns(2024, 5, 2, 14, 30, 5)),
        ("14:30:05.25", ns(2024, 5, 2, 14, 30, 5, 250_000)),
        ("2024-05-01", ns(2024, 5, 1)),
        ("2024-01-15", ns(2024, 1, 15)),  # in winter, an hour from now's zone
        ("2024-05-01 14:30", ns(2024, 5, 1, 14, 30)),
        ("2024-05-01T14:30:05", ns(2024, 5, 1, 14, 30, 5)),
        ("2024-05-01T14:30:05Z", ns(2024, 5, 1, 14, 30, 5, zone=UTC)),
        ("2024-05-01T14:30:05.123456+05:30", ns(2024, 5, 1, 9, 0, 5, 123_456, zone=UTC)),
        (" 2024-05-01 ", ns(2024, 5, 1)),
        ("1969-12-31T23:59:59Z", -SECOND),
    ],
)
def test_time(text, time_ns):
    """Relative to now, of today, or absolute; what has no zone is the host's, as it was then."""
    assert parsed(text) == time_ns


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "soon", "10", "10 m", "-10m", "1e3s", "m", "10y", "10mago", "ago", "25:00", "24:00", "12:60", "1:2", "12:30pm", "noon",
        "2024-13-01", "2024-02-30", "2024-05-01T25:00", "2024-05-01T14:30:05+99:00", "01.05.2024", "20240501", "0000-01-01",
        "99999999w", "1" * 400 + "s", "9999-12-31T23:59:59-23:59x", "2024-05-01\0", "\u0661\u0660m", "\udcff",
    ],
)  # fmt: skip
def test_no_time(text):
    """What is none is refused, by the option's name and with a remedy."""
    with pytest.raises(UsageError, match=r"^--since .* is no time") as refused:
        parsed(text)

    assert "2h ago" in refused.value.remedy


_moments = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001 -- with and without zones
_zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(_moments, st.none() | _zones, st.sampled_from(["T", " "]))
def test_any_moment(moment, zone, between):
    """Every moment that can be written is read as that, to the microsecond."""
    if zone is not None:
        moment = moment.replace(tzinfo=zone)
    expected = moment if zone is not None else local(moment)

    assert (
        parsed(moment.isoformat(between))
        == (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    )


@given(st.times(), st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=_zones))  # noqa: DTZ001
def test_any_time_of_today(time, now):
    """A time of day is of the day that it is here, whatever the day elsewhere."""
    found = parse_time(time.isoformat(), "--until", now, lambda naive: naive.replace(tzinfo=now.tzinfo))
    day = datetime(now.year, now.month, now.day, tzinfo=now.tzinfo)

    assert 0 <= found - ns(now.year, now.month, now.day, zone=now.tzinfo) < 86400 * SECOND
    assert datetime.fromtimestamp(found // SECOND, now.tzinfo).time() == time.replace(microsecond=0)
    assert day.tzinfo is now.tzinfo


@given(st.integers(0, 10_000), st.sampled_from("smhdw"), st.sampled_from(["", " ago"]))
def test_any_time_ago(number, unit, ago):
    """So long before now, and the same with and without *ago*."""
    seconds = number * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit]
    if seconds <= 100 * 365 * 86400:
        assert parsed(f"{number}{unit}{ago}") == parsed("now") - seconds * SECOND
    else:
        with pytest.raises(UsageError):
            parsed(f"{number}{unit}{ago}")


@given(st.text(max_size=30) | st.from_regex(r"[0-9]{1,5}[-:.TZsmhd +0-9]{0,25}", fullmatch=True))
@example("0001-01-01T00:00:00+14:00")
@example("9999-12-31T23:59:59-14:00")
@example("0001-01-01")
def test_any_text(text):
    """Whatever is written is a time, or refused; nothing else."""
    try:
        assert isinstance(parsed(text), int)
    except UsageError:
        assert text not in {"now", "today"}


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/etc/shadow", "/etc/shadow", True),
        ("/etc/shadow", "/etc/shadow-", False),
        ("/etc/*", "/etc/ssh/sshd_config", True),
        ("/etc/*", "/srv/etc/x", False),
        ("*/.ssh/*", "/root/.ssh/authorized_keys", True),
        ("sh", "/bin/sh", True),
        ("sh", "/bin/dash", False),
        ("*sh", "/bin/dash", True),
        ("python3*", "/usr/bin/python3.11", True),
        ("/proc/[0-9]*/mem", "/proc/12/mem", True),
        ("/tmp/[!a]", "/tmp/b", True),
        ("sh", "sh", True),
        ("SH", "/bin/sh", False),
        ("a.b", "/x/axb", False),
        ("/x\n*", "/x\ny", True),
        (r"/x\x0a*", "/x\ny", True),
        (r"/tmp/\xff*", "/tmp/\udcff1", True),
        (r"/tmp/\xff*", r"/tmp/\xff1", True),
        ("/tmp/\udcff", "/tmp/\udcff", True),
        ("*", "", True),
    ],
)
def test_glob(pattern, path, fits):
    """A shell's patterns, on the whole path or, without a slash, on its last part; both as they are shown."""
    assert parse_glob(pattern, "--path").fits(path) is fits


@pytest.mark.parametrize("pattern", ["", "[", "/etc/[a", "x[!", "a[]", "[a]["])
def test_no_glob(pattern):
    """What a shell wouldn't take for a pattern, either, is refused."""
    with pytest.raises(UsageError, match=r"^--exe .*(is empty|has a \[ without its \])"):
        parse_glob(pattern, "--exe")


@pytest.mark.parametrize("pattern", ["[[]", "[]]", "[!]]x", "a[b]c[d]", "]"])
def test_brackets(pattern):
    """Closed brackets are none of these."""
    assert parse_glob(pattern, "--exe") == Glob(pattern)


@pytest.mark.parametrize(
    ("text", "fits", "fails"),
    [
        ("10.0.0.1", [("10.0.0.1", 1), ("::ffff:10.0.0.1", 2), ("10.0.0.1", None)], [("10.0.0.2", 1), ("", None)]),
        ("10.0.0.0/8", [("10.255.0.1", 1)], [("11.0.0.1", 1), ("::1", 1)]),
        ("10.1.2.3/8", [("10.255.0.1", 1)], [("11.0.0.1", 1)]),
        ("10.0.0.1:443", [("10.0.0.1", 443)], [("10.0.0.1", 80), ("10.0.0.1", None)]),
        ("10.0.0.0/8:443", [("10.9.9.9", 443)], [("10.9.9.9", 80)]),
        (":53", [("192.0.2.1", 53), ("::1", 53)], [("192.0.2.1", 54), ("", 53)]),
        ("::1", [("::1", 1)], [("::2", 1)]),
        ("[::1]", [("::1", 1)], [("::2", 1)]),
        ("[2001:db8::/32]:53", [("2001:db8:1::1", 53)], [("2001:db9::1", 53), ("2001:db8::1", 54)]),
        ("2001:db8::/32", [("2001:DB8::9", 5)], [("2001:db9::1", 5)]),
        ("0.0.0.0/0", [("1.2.3.4", 1)], [("::1", 1), ("nonsense", 1)]),
    ],
)  # fmt: skip
def test_endpoint(text, fits, fails):
    """An address, a network, a port; IPv4 in IPv6 clothes is IPv4."""
    asked = parse_endpoint(text, "--address")

    assert [asked.fits(*one) for one in (*fits, *fails)] == [True] * len(fits) + [False] * len(fails)


@pytest.mark.parametrize(
    "text",
    ["", ":", "example.org", "10.0.0.1:", "10.0.0.1:x", "10.0.0.1:65536", "10.0.0", "10.0.0.0/33", "[::1", "::1]", "[]:1", "1:2:3",
     "10.0.0.1:-1", "[10.0.0.1]:443]", "\u0661.0.0.1"],
)  # fmt: skip
def test_no_endpoint(text):
    """Names are not looked up, and nonsense is refused."""
    with pytest.raises(UsageError, match=r"^--address .* is neither an IP address nor a network") as refused:
        parse_endpoint(text, "--address")

    assert "names are not looked up" in refused.value.remedy


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_any_endpoint(address, port):
    """Every address is read as itself."""
    text = str(address) if port is None else f"[{address}]:{port}"
    asked = parse_endpoint(text.replace("%", ""), "--address") if "%" not in text else None

    assert asked is None or (str(asked.network.network_address), asked.port) == (str(address), port)


def test_syscall_and_kind():
    """Names that no architecture has are refused, with the nearest one that there is."""
    known = ("openat", "i386:open", "socketcall", "syscall_999", "i386:412")
    assert [parse_syscall(name, "--syscall") for name in known] == list(known)
    with pytest.raises(UsageError, match=r"^--syscall 'opnat' is no system call") as refused:
        parse_syscall("opnat", "--syscall")
    assert refused.value.remedy == "did you mean openat?"
    with pytest.raises(UsageError, match=r"^--syscall '' is no system call"):
        parse_syscall("", "--syscall")
    assert [parse_kind(kind, "--kind") for kind in KINDS] == list(KINDS)
    with pytest.raises(
        UsageError, match=r"^--kind 'teapot' is none of fork, exec, exit, syscall, audit, hook, window"
    ):
        parse_kind("teapot", "--kind")


ONE = Facts(
    START, START + SECOND, "syscall", 12, 13, "/bin/cat", ("/etc/shadow", "/x"), "10.0.0.1", 443, ("i386:open",)
)  # fmt: skip


@pytest.mark.parametrize(
    ("search", "fits"),
    [
        (Search(), True),
        (Search(since_ns=START + SECOND), True),
        (Search(since_ns=START + SECOND + 1), False),
        (Search(until_ns=START), True),
        (Search(until_ns=START - 1), False),
        (Search(pid=12), True),
        (Search(pid=13), True),
        (Search(pid=14), False),
        (Search(exe=Glob("cat")), True),
        (Search(exe=Glob("/sbin/*")), False),
        (Search(path=Glob("/x")), True),
        (Search(path=Glob("/bin/cat")), False),
        (Search(address=Endpoint(port=443)), True),
        (Search(address=Endpoint(port=80)), False),
        (Search(syscall="open"), True),
        (Search(syscall="i386:open"), True),
        (Search(syscall="x32:open"), False),
        (Search(kind="syscall"), True),
        (Search(kind="exec"), False),
        (Search(pid=12, kind="syscall", syscall="open", since_ns=START), True),
        (Search(pid=12, kind="syscall", syscall="read"), False),
    ],
)
def test_fits(search, fits):
    """All that is asked for must hold; of a window's time any part."""
    assert search.fits(ONE) is fits


def test_fits_nothing_there():
    """Who has no path, no address and no call fits no search for one."""
    bare = replace(ONE, paths=(), host="", port=None, calls=())
    searches = (Search(path=Glob("*")), Search(address=Endpoint(port=443)), Search(syscall="open"))

    assert [search.fits(bare) for search in searches] == [False] * 3


def test_among():
    """The last ones of what fits, in their order, and how many there are in all."""
    items = [
        SyscallEvent(time_ns=n, process=CAT, tid=n, origin=Origin.BPF, syscall="openat", paths=(f"/{n}",))
        for n in range(7)
    ]
    other = ExecEvent(time_ns=3, process=SHELL, tid=1, origin=Origin.BPF, path="/bin/sh")
    results = among(
        [items[:4], [other, Window(CAT, 1, 1, 2, (257,))], items[4:]], Search(syscall="openat"), 3, "x86_64"
    )

    assert results.total == 8
    assert [found.facts.tid for found in results.found] == [4, 5, 6]
    assert results.found[0].body["paths"] == ("/4",)
    assert "alerts" not in results.found[0].to_plain()


def test_found_to_plain():
    """The JSON form has a time for people, and for which alerts it is kept."""
    found = Found(ONE, {"event": "syscall", "time_ns": ONE.time_ns}, (("a1", "before"),))

    assert found.to_plain() == {
        "time": "2023-11-14T22:13:21.000000+00:00", "event": "syscall", "time_ns": ONE.time_ns,
        "alerts": [{"id": "a1", "phase": "before"}],
    }  # fmt: skip


def test_times_in_words():
    """What was asked for is repeated in UTC: whoever forgot the zone sees it."""
    assert Search().times() == ""
    assert Search(since_ns=START).times() == "from 2023-11-14 22:13:20 UTC"
    assert (
        Search(since_ns=START, until_ns=START).times()
        == "from 2023-11-14 22:13:20 until 2023-11-14 22:13:20 UTC"
    )


@given(events | windows)
def test_everything_is_found(item):
    """What is asked for by its own facts fits."""
    one = facts(item)
    if one.begun_ns > one.time_ns:
        return
    assert Search(since_ns=one.begun_ns, until_ns=one.time_ns, pid=one.pid, kind=one.kind).fits(one)
    for call in one.calls:
        assert Search(syscall=call).fits(one)
