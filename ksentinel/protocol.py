# SPDX-License-Identifier: Apache-2.0
"""
What goes over the control socket: requests and answers, a JSON line each; who may ask what; and asking.

``docs/control.md`` says it to people.
"""

import os
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import orjson

from ksentinel.errors import HostError, InputError, KsentinelError, UsageError
from ksentinel.printable import printable
from ksentinel.store import to_json

VERSION = 1
"""Of the protocol; one more whenever an older client or daemon would misunderstand."""

LARGEST_ANSWER = 1 << 20
"""In bytes."""

DOCUMENTED = "docs/control.md has the protocol"
"""A remedy."""

_SO_PEERGROUPS = 59  # asm-generic/socket.h: x86 and arm64; Python has no name for it
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_MOST_GROUPS = 256  # what Python's getsockopt has room for
_DEEPEST = 8
_SHORTEST = 0.001  # seconds: 0 would mean not to wait at all
_AGAIN = "try again"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel knew it when they connected; *groups* has the primary one, too."""

    pid: int
    uid: int
    groups: frozenset[int]


@dataclass(frozen=True, slots=True)
class Group:
    """The group that may read; *gid* is None if this host has none of that name."""

    name: str
    gid: int | None


@dataclass(frozen=True, slots=True)
class Permission:
    """May they, and if not: why not, and what can be done about it."""

    allowed: bool
    reason: str = ""
    remedy: str = ""


def permit(peer: Peer, group: Group, owner: int, *, changes: bool) -> Permission:
    """
    Tell whether *peer* may ask for something that *changes* the daemon, or only reads.

    Root may do both, and so may the daemon's *owner*, who could do as they like with it anyway (for a daemon of root
    that is root again). Members of *group* may read. Nobody else may do anything.
    """
    if peer.uid in {0, owner}:
        return Permission(True)
    masters = "root" if owner == 0 else f"root and uid {owner}"
    if changes:
        return Permission(
            False, f"only {masters} may change anything, and this is uid {peer.uid}", "use sudo"
        )
    if group.gid is not None and group.gid in peer.groups:
        return Permission(True)
    if group.gid is None:
        remedy = f"there is no group {group.name} here for others: use sudo"
        return Permission(False, f"only {masters} may ask, and this is uid {peer.uid}", remedy)
    return Permission(
        False,
        f"only {masters} and members of group {group.name} may ask, and uid {peer.uid} is none",
        f"use sudo; or usermod -aG {group.name} USER, and log in again",
    )


def peer_of(connection: socket.socket) -> Peer:
    """
    Return who connected, by SO_PEERCRED and SO_PEERGROUPS.

    Of someone in more groups than Python has room for only the primary one counts: they may be refused, but nobody is
    let in by that.
    """
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        more = b""
    return Peer(pid, uid, frozenset({gid, *(number for (number,) in struct.iter_unpack("=I", more))}))


@dataclass(frozen=True, slots=True)
class Nothing:
    """The arguments of a request that takes none."""


@dataclass(frozen=True, slots=True)
class MuteArguments:
    """The arguments of ``mute``: as of `ksentinel.mutes.Mute`, and for how many seconds."""

    for_seconds: float
    reason: str
    exe: str = ""
    rule: str = ""
    parent: str = ""
    level: str = "medium"


@dataclass(frozen=True, slots=True)
class UnmuteArguments:
    """The arguments of ``unmute``: a mute's id, or how it begins."""

    id: str


@dataclass(frozen=True, slots=True)
class ModeArguments:
    """The arguments of ``mode``: off, permissive or enforce, for a rule, a control group, or (neither) the host."""

    mode: str
    rule: str = ""
    cgroup: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseArguments:
    """The arguments of ``release``: whose verdict ends, by PID; 0: nothing is denied any more at all."""

    pid: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """
    A kind of request.

    Attributes
    ----------
    handler
        Is given the arguments and returns the answer, something that JSON can spell. It is called in the control
        socket's thread, while the daemon's others go on: it must be thread safe. A `KsentinelError` that it raises is
        the answer; another exception is counted, told, and an answer, too.
    changes
        Whether it changes the daemon. Then only root may, and the audit trail has it before it is done.
    arguments
        A dataclass: what comes with the request, beside ``version`` and ``request``.
    by
        The handler is given the `Peer` who asks, too: what it does depends on that.
    """

    handler: Callable[..., Any]
    changes: bool
    arguments: type = Nothing
    by: bool = False


def understand(line: bytes, requests: Collection[str]) -> tuple[str, dict[str, Any]]:
    """
    Return which of *requests* a line asks for, and what it gives with it.

    Raises
    ------
    UsageError
        If it is none.

    Examples
    --------
    >>> understand(b'{"version": 1, "request": "status"}', ["status"])
    ('status', {})
    """
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"a request is a line of JSON, this is none: {error}", remedy=DOCUMENTED) from None
    if not isinstance(plain, dict):
        raise UsageError("a request is a JSON object, this is another value", remedy=DOCUMENTED)
    if _deeper(plain, _DEEPEST):
        raise UsageError(f"a request nests no deeper than {_DEEPEST} levels", remedy=DOCUMENTED)
    version = plain.pop("version", None)
    if type(version) is not int or version != VERSION:
        raise UsageError(
            f"this daemon speaks version {VERSION} of the protocol, not {_shown(version)}",
            remedy="use the ksentinel that runs here",
        )
    name = plain.pop("request", None)
    if not isinstance(name, str) or name not in requests:
        raise UsageError(
            f"there is no request {_shown(name)}", remedy=f"there are: {', '.join(sorted(requests))}"
        )
    return name, plain


def arguments_of(name: str, kind: type, given: Mapping[str, Any]) -> Any:
    """
    Return what was *given* with the request *name* as the dataclass that it takes.

    Raises
    ------
    UsageError
        If something is missing, of the wrong type, or not asked for.

    Examples
    --------
    >>> arguments_of("status", Nothing, {"verbose": True})
    Traceback (most recent call last):
        ...
    ksentinel.errors.UsageError: status takes no 'verbose' (it takes nothing)
    """
    known = [field.name for field in fields(kind)]
    takes = f"it takes {', '.join(known) or 'nothing'}"
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"{name} takes no {_shown(unknown[0])}", remedy=takes)
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{name}: {printable(str(error), 200)}", remedy=takes) from None


def ask(
    path: Path,
    request: str,
    *,
    trusted: Collection[int],
    seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    **arguments: Any,
) -> Any:
    """
    Return what the daemon at *path* answers to a request.

    Parameters
    ----------
    trusted
        The uids whose answers are believed.
    seconds
        For all of it.

    Raises
    ------
    HostError
        If nobody answers, or the daemon says no: with its reason and remedy.
    InputError
        If something else stands there, or answers.
    """
    end = clock() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # Python's own time-out doesn't wait at all where others wait to be accepted; the kernel's does.
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            connection.connect(os.fsencode(path))
        except OSError as error:
            raise _nobody(path, error) from None
        uid = peer_of(connection).uid
        if uid not in trusted:
            raise InputError(
                f"is served by uid {uid}, who may tell anything", at=path, remedy="name another by --control"
            )
        line = as_line({"version": VERSION, "request": request, **arguments})
        answer = b""
        connection.settimeout(max(end - clock(), _SHORTEST))
        try:
            # One that refuses to listen has said why before it closed.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(line)
            while not answer.endswith(b"\n") and len(answer) <= LARGEST_ANSWER:
                connection.settimeout(max(end - clock(), _SHORTEST))
                data = connection.recv(1 << 16)
                if not data:
                    break
                answer += data
        except TimeoutError:
            raise HostError(
                f"doesn't answer within {seconds:g} s", at=path, remedy="it may be busy: try again"
            ) from None
        except OSError as error:
            raise HostError(f"ended without an answer: {error.strerror}", at=path, remedy=_AGAIN) from None
    return _answered(answer, path)


def _answered(line: bytes, path: Path) -> Any:
    if not line.endswith(b"\n"):
        raise HostError("ended without an answer", at=path, remedy=_AGAIN)
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError:
        plain = None
    if not isinstance(plain, dict) or type(plain.get("version")) is not int:
        raise InputError("answers, but not as ksentinel does", at=path, remedy="name another by --control")
    if plain["version"] != VERSION:
        raise InputError(
            f"speaks version {plain['version']} of the protocol, this is {VERSION}",
            at=path,
            remedy="use the ksentinel that runs here",
        )
    if plain.get("ok") is not True:
        raise HostError(str(plain.get("error", "")), at=path, remedy=str(plain.get("remedy", "")))
    return plain.get("answer")


def _nobody(path: Path, error: OSError) -> KsentinelError:
    """Return what it means that one can't connect."""
    start = "start one by `ksentinel monitor` or `ksentinel enforce`, or name its socket by --control"
    if isinstance(error, FileNotFoundError):
        return HostError("no ksentinel is running here", at=path, remedy=start)
    if isinstance(error, ConnectionRefusedError):
        if path.is_socket():
            return HostError("the ksentinel that listened here has ended", at=path, remedy=start)
        return InputError("is no socket", at=path, remedy=start)
    if isinstance(error, PermissionError):
        return HostError(
            "may not be opened: root may, and members of its group",
            at=path,
            remedy="use sudo, or see docs/control.md",
        )
    if isinstance(error, TimeoutError | BlockingIOError):
        return HostError("doesn't answer: too many are asking", at=path, remedy=_AGAIN)
    return InputError(f"can't be asked: {error.strerror or error}", at=path, remedy=start)


def refusal(error: KsentinelError) -> dict[str, Any]:
    """Return the answer that says no, why, and what to do."""
    at = "" if error.at is None else f"{error.at}: "
    return {"version": VERSION, "ok": False, "error": f"{at}{error.what}", "remedy": error.remedy}


def as_line(plain: dict[str, Any]) -> bytes:
    """Return a request or an answer as it is sent."""
    return to_json(plain) + b"\n"


def _shown(value: Any) -> str:
    """Return a value as an error may repeat it: a short one as it is, of others the kind."""
    if isinstance(value, str | int | float | None):
        return printable(repr(value), 60)
    return "an object" if isinstance(value, dict) else "a list"


def _deeper(value: Any, levels: int) -> bool:
    """Tell whether *value* nests deeper than that; without recursion, which it could exhaust."""
    layer = [value]
    for _ in range(levels + 1):
        nested = [one for one in layer if isinstance(one, dict | list)]
        if not nested:
            return False
        layer = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
    return True
