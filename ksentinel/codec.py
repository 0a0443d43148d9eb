# SPDX-License-Identifier: Apache-2.0
"""
Events as plain dicts and back: for recordings, for evidence in alerts, for the test events of rules.

What has its default value is left out, so that a person can write one by hand::

    {
        "event": "exec",
        "process": {
            "exe": "/bin/sh",
            "argv": ["sh"],
            "parent": {"exe": "/usr/sbin/nginx"},
            "service": {"exe": "/usr/sbin/nginx"},
        },
    }
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from itertools import islice
from typing import Any, TypeVar

import msgspec

from ksentinel.errors import InputError
from ksentinel.event import (
    Address,
    AuditEvent,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HookEvent,
    Origin,
    Process,
    ProcessKey,
    Record,
    Score,
    SyscallEvent,
)

KINDS: dict[str, type[Event]] = {
    "fork": ForkEvent,
    "exec": ExecEvent,
    "exit": ExitEvent,
    "syscall": SyscallEvent,
    "audit": AuditEvent,
    "hook": HookEvent,
}
_NAMES = {kind: name for name, kind in KINDS.items()}
_MAX_ANCESTORS = 64
_Records = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

Plain = dict[str, Any]
T = TypeVar("T")


def process_to_plain(process: Process, *, ancestors: int = _MAX_ANCESTORS) -> Plain:
    """Return a process with up to *ancestors* of its parents; the service is marked where it stands in that line."""
    plain = _scalars(process, skip=("key", "parent", "service", "depth"))
    plain["pid"], plain["start_ns"] = process.key.pid, process.key.start_ns
    if process.parent is not None and ancestors:
        plain["parent"] = process_to_plain(process.parent, ancestors=ancestors - 1)
    if process.service is not None:
        plain["service"] = {"pid": process.service_key.pid, "start_ns": process.service_key.start_ns}
        if all(a.key != process.service_key for a in islice(process.ancestors(), ancestors)):
            plain["service"]["exe"] = process.service_exe
            if process.service.script:
                plain["service"]["script"] = process.service.script
    return plain


def process_from_plain(plain: Mapping[str, Any], *, depth: int = 0) -> Process:
    """
    Rebuild a process.

    Raises
    ------
    InputError
        If a name or a type is wrong.
    """
    if depth > _MAX_ANCESTORS:
        raise InputError(f"more than {_MAX_ANCESTORS} ancestors")
    rest = _mapping("process", plain)
    key = _key(rest.pop("pid", 1000 - depth), rest.pop("start_ns", 0))
    parent = rest.pop("parent", None)
    above = None if parent is None else process_from_plain(parent, depth=depth + 1)
    named = rest.pop("service", None)
    process = _build(Process, rest, key=key, parent=above)
    if named is None:
        return process
    named = _mapping("service", named)
    service = _key(named.get("pid", 0), named.get("start_ns", 0))
    for ancestor in process.ancestors():
        if ancestor.key == service or ("pid" not in named and ancestor.exe == named.get("exe")):
            return _build(Process, rest, key=key, parent=above, service=ancestor)
    told: Plain = {name: named[name] for name in ("exe", "script") if name in named}
    stranger = _build(Process, told, key=service)
    return _build(Process, rest, key=key, parent=above, service=stranger)


def event_to_plain(event: Event, process: Callable[[Process], Any] = process_to_plain) -> Plain:
    """Return an event as a dict; *process* says how its process is written."""
    plain = _scalars(event, skip=("process", "records", "address"))
    plain["event"] = _NAMES[type(event)]
    plain["process"] = process(event.process)
    if event.records:
        plain["records"] = [[r.type, [list(pair) for pair in r.fields]] for r in event.records]
    if isinstance(event, SyscallEvent | HookEvent) and event.address is not None:
        plain["address"] = _scalars(event.address)
    return plain


def event_from_plain(
    plain: Mapping[str, Any], process: Callable[[Any], Process] = process_from_plain
) -> Event:
    """
    Rebuild an event from `event_to_plain`, or from what a person wrote.

    Raises
    ------
    InputError
        If a name or a type is wrong.
    """
    rest = _mapping("event", plain)
    kind = rest.pop("event", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"event {kind!r} is none of {', '.join(KINDS)}")
    who = process(rest.pop("process", {}))
    rest.setdefault("time_ns", 0)
    rest.setdefault("tid", who.key.pid)
    rest.setdefault("origin", Origin.BPF)
    records = _convert("records", rest.pop("records", ()), _Records)
    extra: dict[str, Any] = {"process": who, "records": tuple(Record(*record) for record in records)}
    if kind in {"syscall", "hook"} and rest.get("address") is not None:
        extra["address"] = _address(_mapping("address", rest.pop("address")))
    if kind == "hook" and rest.get("score") is not None:
        extra["score"] = _build(Score, _mapping("score", rest.pop("score")))
    return _build(KINDS[kind], rest, **extra)


def _address(plain: Plain) -> Address:
    address = _build(Address, plain)
    try:
        _ = address.reach
    except ValueError as error:
        raise InputError(f"address: {error}") from None
    return address


def _key(pid: Any, start_ns: Any) -> ProcessKey:
    return ProcessKey(_convert("pid", pid, int), _convert("start_ns", start_ns, int))


def _mapping(what: str, plain: Any) -> Plain:
    if not isinstance(plain, Mapping) or not all(isinstance(name, str) for name in plain):
        raise InputError(f"{what} is no mapping of names")
    return dict(plain)


def _scalars(value: Any, skip: tuple[str, ...] = ()) -> Plain:
    plain: Plain = {}
    for f in fields(value):
        if f.name in skip:
            continue
        part = getattr(value, f.name)
        if part != _default(f):
            plain[f.name] = part if isinstance(part, str | int | float | bool) else msgspec.to_builtins(part)
    return plain


def _default(f: Field[Any]) -> Any:
    return MISSING if f.default is MISSING else f.default


def _build(kind: type[T], plain: Mapping[str, Any], **extra: Any) -> T:
    types = {f.name: f.type for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(plain) - set(types) | set(plain) & {*extra, "depth"})
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(unknown)}")
    parts = {name: _convert(f"{kind.__name__}.{name}", value, types[name]) for name, value in plain.items()}
    try:
        return kind(**parts, **extra)
    except TypeError as error:  # something is missing
        raise InputError(f"{kind.__name__}: {error}") from None


def _convert(what: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        # The latter comes from msgspec's own look at a string where none belongs.
        raise InputError(f"{what}: {error}") from None
