# SPDX-License-Identifier: Apache-2.0
"""A search among events: times, patterns and addresses as people write them, and whether an event fits."""

import difflib
import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from fnmatch import translate
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from ksentinel.alert import when
from ksentinel.codec import KINDS as EVENT_KINDS
from ksentinel.errors import UsageError
from ksentinel.flight import WINDOW, Facts, facts, to_plain
from ksentinel.printable import printable
from ksentinel.rules.fields import unmapped
from ksentinel.sources import Item
from ksentinel.syscalls import names

KINDS = (*EVENT_KINDS, WINDOW)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST = 100 * 365 * 86400
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ARCHES = ("x86_64", "i386", "aarch64")
_HIGHEST_PORT = 65535

Local = Callable[[datetime], datetime]
"""Gives a time without a zone that of this host; raises ValueError or OverflowError where there is none."""


@dataclass(frozen=True, slots=True)
class Glob:
    """
    A shell pattern on a path; one without a slash is on its last part.

    Examples
    --------
    >>> (
    ...     Glob("*.conf").fits("/etc/nginx/nginx.conf"),
    ...     Glob("/etc/*").fits("/srv/etc/x"),
    ...     Glob("sh").fits("/bin/dash"),
    ... )
    (True, False, False)
    """

    pattern: str

    def fits(self, path: str) -> bool:
        r"""Tell whether *path* fits, both as they are shown: ``\x1b`` finds an escape."""
        shown = printable(path)
        return (
            _compiled(self.pattern).match(shown if "/" in self.pattern else shown.rpartition("/")[2])
            is not None
        )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(printable(pattern)))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Addresses of one network (None: of any), and a port (None: any)."""

    network: IPv4Network | IPv6Network | None = None
    port: int | None = None

    def fits(self, host: str, port: int | None) -> bool:
        """Tell whether an address is among them; IPv4 in IPv6 clothes is IPv4."""
        if not host or (self.port is not None and port != self.port):
            return False
        try:
            address = ip_address(unmapped(host))
        except ValueError:
            return False
        return self.network is None or address in self.network


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for; what is None is not asked for."""

    since_ns: int | None = None
    until_ns: int | None = None
    pid: int | None = None
    exe: Glob | None = None
    path: Glob | None = None
    address: Endpoint | None = None
    syscall: str | None = None
    kind: str | None = None

    def fits(self, one: Facts) -> bool:
        """Tell whether an event or a window fits; a window does if a part of its time does."""
        return (
            (self.kind is None or one.kind == self.kind)
            and (self.pid is None or self.pid in {one.pid, one.tid})
            and (self.since_ns is None or one.time_ns >= self.since_ns)
            and (self.until_ns is None or one.begun_ns <= self.until_ns)
            and (self.syscall is None or self._called(one))
            and (self.exe is None or self.exe.fits(one.exe))
            and (self.path is None or any(self.path.fits(path) for path in one.paths))
            and (self.address is None or self.address.fits(one.host, one.port))
        )

    def times(self) -> str:
        """Return which times are asked for, in words; empty if all."""
        since = "" if self.since_ns is None else f"from {when(self.since_ns)[:19].replace('T', ' ')}"
        until = "" if self.until_ns is None else f"until {when(self.until_ns)[:19].replace('T', ' ')}"
        return f"{' '.join(part for part in (since, until) if part)} UTC" if since or until else ""

    def _called(self, one: Facts) -> bool:
        return any(self.syscall in {call, call.rpartition(":")[2]} for call in one.calls)


@dataclass(frozen=True, slots=True)
class Found:
    """
    One that fits.

    Attributes
    ----------
    body
        As `flight.to_plain` gives it.
    alerts
        For which alerts it is kept, and whether it was before or after; empty in a recording.
    """

    facts: Facts
    body: dict[str, Any]
    alerts: tuple[tuple[str, str], ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form."""
        alerts = [{"id": alert, "phase": phase} for alert, phase in self.alerts]
        return {"time": when(self.facts.time_ns), **self.body} | ({"alerts": alerts} if alerts else {})


@dataclass(frozen=True, slots=True)
class Results:
    """The last of all that fit, in their order, and how many there are in all."""

    found: tuple[Found, ...]
    total: int


def among(items: Iterable[Iterable[Item]], search: Search, limit: int, arch: str) -> Results:
    """Return the last *limit* items that fit of what comes in batches."""
    last: deque[tuple[Facts, Item]] = deque(maxlen=limit)
    total = 0
    for batch in items:
        for item in batch:
            one = facts(item, arch)
            if search.fits(one):
                total += 1
                last.append((one, item))
    return Results(tuple(Found(one, to_plain(item, arch)) for one, item in last), total)


def parse_time(text: str, option: str, now: datetime, local: Local) -> int:
    """
    Return a time in nanoseconds since the epoch.

    Parameters
    ----------
    text
        Before *now*: ``10m``, ``2h ago`` (s, m, h, d, w). Today: ``14:30``, ``14:30:05``. Or ISO 8601, a date alone
        begins with it; and ``now``, ``today``, ``yesterday``. What has no zone is meant locally.
    option
        Its name, for the error.
    now
        With a zone.

    Raises
    ------
    UsageError
        If it is none of these.

    Examples
    --------
    >>> now = datetime(2024, 5, 2, 12, tzinfo=UTC)
    >>> def at(text: str) -> str:
    ...     ns = parse_time(text, "--since", now, lambda naive: naive.replace(tzinfo=UTC))
    ...     return f"{datetime.fromtimestamp(ns / 1e9, UTC):%d %H:%M}"
    >>> at("90m ago"), at("1:30"), at("2024-05-01T12:00+02:00"), at("yesterday")
    ('02 10:30', '02 01:30', '01 10:00', '01 00:00')
    """
    try:
        return _nanoseconds(_moment(text.strip(), now, local))
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r} is no time",
            remedy="say 10m, '2h ago', 14:30, 2024-05-01 or 2024-05-01T14:30:00Z",
        ) from None


def _moment(text: str, now: datetime, local: Local) -> datetime:
    relative = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])(?:\s+ago)?", text, re.ASCII)
    if relative:
        seconds = float(relative[1]) * _UNITS[relative[2]]
        if not math.isfinite(seconds) or seconds > _LONGEST:
            raise ValueError(text)
        # Elapsed time, not the clock's: an hour may have been put in or left out since.
        return now.astimezone(UTC) - timedelta(seconds=seconds)
    today = now.date()
    words = {"today": today, "yesterday": today - timedelta(days=1)}
    if text == "now":
        return now
    if text in words:
        return local(datetime.combine(words[text], time()))
    # Only these: fromisoformat takes a bare hour, too, which is more likely to be a number without its unit.
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?", text, re.ASCII):
        return local(datetime.combine(today, time.fromisoformat(text if text[2] == ":" else f"0{text}")))
    if not re.match(r"[0-9]{4}-", text, re.ASCII):
        raise ValueError(text)
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else local(moment)


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000


def parse_glob(text: str, option: str) -> Glob:
    """
    Return a pattern.

    Raises
    ------
    UsageError
        If it is empty, or a bracket isn't closed: fnmatch would take it literally.
    """
    if not text:
        raise UsageError(f"{option} is empty", remedy="say a path, or a pattern: '/etc/*', '*.so', nginx")
    if "[" in re.sub(r"\[!?+\]?+[^\]]*\]", "", text):
        raise UsageError(f"{option} {text!r} has a [ without its ]", remedy="a [ itself is written [[]")
    return Glob(text)


def parse_endpoint(text: str, option: str) -> Endpoint:
    """
    Return addresses: an IP address or network, a port, or both.

    Raises
    ------
    UsageError
        If it is neither.

    Examples
    --------
    >>> parse_endpoint("10.0.0.0/8:443", "--address")
    Endpoint(network=IPv4Network('10.0.0.0/8'), port=443)
    >>> parse_endpoint("[2001:db8::1]:53", "--address")
    Endpoint(network=IPv6Network('2001:db8::1/128'), port=53)
    >>> parse_endpoint(":53", "--address")
    Endpoint(network=None, port=53)
    """
    try:
        return _endpoint(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is neither an IP address nor a network",
            remedy="say 10.0.0.1, 10.0.0.0/8, 10.0.0.1:443, [::1]:443 or :443; names are not looked up",
        ) from None


def _endpoint(text: str) -> Endpoint:
    parts = re.fullmatch(r"\[([^\]]+)\](?::([0-9]+))?|([^:\[\]]*)(?::([0-9]+))?|([^\[\]]+)", text, re.ASCII)
    if not text or parts is None:
        raise ValueError(text)
    host, port = parts[1] or parts[3] or parts[5] or "", parts[2] or parts[4]
    if port is not None and int(port) > _HIGHEST_PORT:
        raise ValueError(port)
    # A network may be named by any of its addresses.
    network = ip_network(host, strict=False) if host else None
    return Endpoint(network, None if port is None else int(port))


def parse_syscall(text: str, option: str) -> str:
    """
    Return the name of a system call, perhaps with its ABI before it: ``i386:open``.

    Raises
    ------
    UsageError
        If no architecture has it.
    """
    bare = text.rpartition(":")[2]
    known = {name for arch in _ARCHES for name in names(arch).values()}
    if bare not in known and not re.fullmatch(r"(syscall_)?[0-9]+|invalid", bare, re.ASCII):
        close = difflib.get_close_matches(bare, sorted(known), n=1)
        raise UsageError(
            f"{option} {text!r} is no system call",
            remedy=f"did you mean {close[0]}?" if close else "say openat, connect, ...",
        )
    return text


def parse_kind(text: str, option: str) -> str:
    """Return a kind of event; raises UsageError if there is none such."""
    if text not in KINDS:
        raise UsageError(f"{option} {text!r} is none of {', '.join(KINDS)}")
    return text
