# SPDX-License-Identifier: Apache-2.0
"""
Rolling out, and getting out: what ends enforcement although nobody could reach the host any more.

Four things, none of which needs ksentinel to work:

- `Confirmation`: who starts enforcement confirms it from *another* login that began afterwards. Who can't log in any more confirms
  nothing, and after a while it ends by itself.
- `Boots`: two boots within ten minutes, and the next start is permissive: a host that enforcement keeps from coming up comes up.
- `release_words`: a word on the kernel's command line, for who stands at the boot loader.
- `flag`: a file of root's, for who can write one.

Each errs to the side of the host: what can't be read makes enforcement permissive, and says so. That an intruder with root could
use them is no loss: he can end ksentinel altogether.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ksentinel.enforce import Mode
from ksentinel.enforce.breaker import Change
from ksentinel.errors import InputError, UsageError
from ksentinel.event import ProcessKey
from ksentinel.printable import printable

SECOND = 1_000_000_000
BOOTS = Path("/var/lib/ksentinel/boots.json")
CHANGES = Path("/var/lib/ksentinel/changes.json")
FLAG = Path("/etc/ksentinel/release")
SOON_NS = 600 * SECOND
"""A boot that follows another one so soon may be the guards' doing."""
WORD = "ksentinel="

_KEPT = 16
_LARGEST = 1 << 20
_ROOT = 0
_UNSET = 0xFFFFFFFF
_T = TypeVar("_T")


# Confirmed by another login


@dataclass(frozen=True, slots=True)
class Login:
    """
    A session, as the kernel knows it.

    Attributes
    ----------
    leader
        The session's leader (``getsid``): its PID and when it started, in nanoseconds since boot.
    session
        Audit's number of the login; None on a kernel without audit, or for what no login has started.
    auid
        Who logged in.
    """

    leader: ProcessKey
    session: int | None = None
    auid: int | None = None

    @property
    def number(self) -> int | None:
        """Audit's number, if it is one."""
        return None if self.session == _UNSET else self.session


class Stage(StrEnum):
    """Where a confirmation stands."""

    WAITING = "waiting"
    CONFIRMED = "confirmed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Confirmation:
    """
    Enforcement that ends by itself unless somebody who has logged in since confirms it.

    All times are nanoseconds since boot, which nobody can set.

    Attributes
    ----------
    login
        Who has started it; None: nobody who was logged in (it was started at boot).
    """

    begun_ns: int
    within_ns: int
    login: Login | None = None
    confirmed_ns: int | None = None

    def stage(self, now_ns: int) -> Stage:
        """Return where it stands."""
        if self.confirmed_ns is not None:
            return Stage.CONFIRMED
        return Stage.WAITING if now_ns < self.begun_ns + self.within_ns else Stage.EXPIRED

    def confirm(self, login: Login, now_ns: int) -> "Confirmation":
        """
        Return it, confirmed.

        Raises
        ------
        UsageError
            If it is too late, or *login* proves nothing: it is the one that started enforcement, or began before.
        """
        if self.stage(now_ns) is Stage.CONFIRMED:
            return self
        if self.stage(now_ns) is Stage.EXPIRED:
            after = (now_ns - self.begun_ns - self.within_ns) // SECOND
            raise UsageError(
                f"it has ended {after} s ago: nobody confirmed it in time",
                remedy="start it again, and confirm it from a new login",
            )
        remedy = "log in anew, and confirm it from there: that proves that one can"
        if self.login is not None and _same(login, self.login):
            raise UsageError("this is the login that started it", remedy=remedy)
        if self.login is not None and self.login.number is not None and login.number is None:
            raise UsageError("this is no login", remedy=remedy)
        if login.leader.start_ns <= self.begun_ns:
            raise UsageError("this login began before enforcement did", remedy=remedy)
        return replace(self, confirmed_ns=now_ns)

    def words(self, now_ns: int) -> str:
        """Return where it stands, as people are told."""
        match self.stage(now_ns):
            case Stage.CONFIRMED:
                return "confirmed"
            case Stage.EXPIRED:
                return f"nobody confirmed it within {self.within_ns // SECOND} s: permissive again"
        left = -(-(self.begun_ns + self.within_ns - now_ns) // SECOND)
        return f"ends in {left} s unless it is confirmed from a new login"


def _same(one: Login, other: Login) -> bool:
    # Who leaves his session (setsid) keeps the number of his login.
    return one.leader == other.leader or (one.number is not None and one.number == other.number)


# Boots


@dataclass(frozen=True, slots=True)
class Boot:
    """
    A boot in which enforcement was to be started.

    Attributes
    ----------
    id
        The kernel's own, ``/proc/sys/kernel/random/boot_id``.
    booted_ns
        When the kernel began, in nanoseconds since the epoch.
    forgiven
        Somebody has said that it wasn't the guards.
    doubt
        Why nothing is known of the boots before it, if that is so.
    """

    id: str
    booted_ns: int
    forgiven: bool = False
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """How enforcement starts: at most in that mode, and why not more; empty: as it was asked for."""

    most: Mode
    why: str = ""


class Boots:
    """
    The last boots in which enforcement was to be started, in a small file.

    Parameters
    ----------
    path
        Made with mode 0600 if it doesn't exist.
    uid
        Who may own it besides root.
    """

    def __init__(self, path: Path = BOOTS, uid: int = _ROOT) -> None:
        self.path = path
        self.uid = uid

    def begin(self, boot_id: str, booted_ns: int) -> Start:
        """
        Write this boot down, and say how to start. Called before anything is enforced, and only if something is to be.

        A restart in the same boot gets the same answer, until `forgive`.

        Raises
        ------
        InputError
            If it can't be written down: then nobody would notice the next one, and to enforce is not safe.
        """
        doubt = ""
        try:
            known = self._read()
        except InputError as error:
            known, doubt = (), str(error)
        this = next((boot for boot in known if boot.id == boot_id), Boot(boot_id, booted_ns, doubt=doubt))
        if this not in known:
            known = (*known, this)[-_KEPT:]
            self._write(known)
        before = [
            # A clock that was set back between two boots leaves them no less near.
            abs(this.booted_ns - boot.booted_ns)
            for boot in known[: known.index(this)]
            if not boot.forgiven
        ]
        soon = min(before, default=SOON_NS + 1)
        if this.doubt and not this.forgiven:
            return Start(
                Mode.PERMISSIVE, f"it is not known how often this host has booted lately: {this.doubt}"
            )
        if this.forgiven or soon > SOON_NS:
            return Start(Mode.ENFORCE)
        return Start(
            Mode.PERMISSIVE,
            f"this host has booted twice within {max(soon // SECOND, 1)} s with enforcement on: permissive until somebody says "
            "that the guards were not the reason",
        )

    def forgive(self) -> None:
        """Write down that the guards weren't the reason: the boots up to now count no more."""
        self._write(tuple(replace(boot, forgiven=True) for boot in self._read()))

    def _read(self) -> tuple[Boot, ...]:
        boots = read(self.path, self.uid, tuple[Boot, ...])
        return () if boots is None else boots

    def _write(self, boots: Sequence[Boot]) -> None:
        write(self.path, [asdict(boot) for boot in boots])


# Since when rules are what they are


def read_changes(path: Path = CHANGES, uid: int = _ROOT) -> dict[str, Change]:
    """Return since when each rule has been what it is, as `breaker.changes` said last; raises InputError."""
    return read(path, uid, dict[str, Change]) or {}


def write_changes(changes: Mapping[str, Change], path: Path = CHANGES) -> None:
    """Keep that; raises InputError."""
    write(path, {rule: asdict(change) for rule, change in changes.items()})


# Break-glass


@dataclass(frozen=True, slots=True)
class Release:
    """
    Somebody wants out.

    Attributes
    ----------
    most
        The highest mode that is left; None: what was said is no release.
    words
        By what, or why it is none.
    """

    most: Mode | None
    words: str


_RELEASES = {"off": Mode.OFF, "permissive": Mode.PERMISSIVE}


def release_words(cmdline: str) -> Release | None:
    """
    Return what the kernel's command line says of us; None if nothing. Of several words the one that releases most counts.

    Examples
    --------
    >>> release_words("root=/dev/sda1 ro ksentinel=permissive quiet").most
    <Mode.PERMISSIVE: 'permissive'>
    >>> release_words("ksentinel=of")
    Release(most=None, words="ksentinel=of on the kernel's command line says nothing: off or permissive")
    """
    # What stands behind -- is for the first process.
    words = cmdline.replace("\0", " ").partition(" -- ")[0].split()
    said = [
        word.strip('"').removeprefix(WORD).strip('"') for word in words if word.strip('"').startswith(WORD)
    ]
    if not said:
        return None
    known = [_RELEASES[word] for word in said if word in _RELEASES]
    if not known:
        told = printable(said[0], 40)
        return Release(None, f"{WORD}{told} on the kernel's command line says nothing: off or permissive")
    most = min(known, key=lambda mode: mode.rank)
    return Release(most, f"{WORD}{most} on the kernel's command line")


def flag(path: Path = FLAG, uid: int = _ROOT) -> Release | None:
    """
    Return what the flag file says; None if there is none.

    It must be a regular file of root's that nobody else can write to, in such a directory: otherwise it is no release, and the
    words say why. What stands in it is ``off`` or ``permissive``; empty, or anything else, is permissive.
    """
    try:
        folder = path.parent.stat()
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Release(None, f"{path}: can't be looked at: {error.strerror}")
    for what, found in (("", status), ("its directory ", folder)):
        if found.st_uid not in {_ROOT, uid}:
            return Release(None, f"{path}: {what}belongs to uid {found.st_uid}: it releases nothing")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return Release(None, f"{path}: {what}is writable by others: it releases nothing")
    if not stat.S_ISREG(status.st_mode):
        return Release(None, f"{path}: is no regular file: it releases nothing")
    try:
        with os.fdopen(
            os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb"
        ) as file:
            word = file.read(64).decode(errors="replace").strip()
    except OSError:
        word = ""  # that it is there is enough
    most = _RELEASES.get(word, Mode.PERMISSIVE)
    return Release(most, f"{path}: {most}")


def least(mode: Mode, *limits: Mode | None) -> Mode:
    """
    Return *mode*, or the lowest of the limits.

    Examples
    --------
    >>> least(Mode.ENFORCE, None, Mode.PERMISSIVE)
    <Mode.PERMISSIVE: 'permissive'>
    """
    return min((mode, *(limit for limit in limits if limit is not None)), key=lambda one: one.rank)


# Small files of root's


def read(path: Path, uid: int, kind: type[_T]) -> _T | None:
    """
    Return what a file of ours says; None if there is none.

    Raises
    ------
    InputError
        If it can't be read, others than root and *uid* could have written it, or it says what can't be.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", at=path, remedy="move it away") from None
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file", at=path, remedy="move it away")
        if status.st_uid not in {_ROOT, uid}:
            raise InputError(f"belongs to uid {status.st_uid}", at=path, remedy="move it away")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError("is writable by others", at=path, remedy=f"chmod go-w {path}")
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise InputError(f"is larger than {_LARGEST:,} bytes", at=path, remedy="move it away")
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"is damaged: {error}", at=path, remedy="move it away") from None


def write(path: Path, plain: Any) -> None:
    """Keep *plain* at *path*, whole or not at all, for root alone; raises InputError."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
            file.flush()
            os.fsync(fd)
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"can't be written: {error.strerror}", at=path, remedy="is the disk full?") from None
