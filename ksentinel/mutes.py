# SPDX-License-Identifier: Apache-2.0
"""
Mutes: what somebody has asked not to be shown for a while, why, and until when.

A mute covers an alert only if *all* of its evidence fits: what is muted of one rule, program or parent hides nothing that
another has to say. It reaches up to `LEVEL` unless it says high. Nothing mutes a critical alert: what is high and
confirmed by a second witness is critical, and who brings somebody to mute a program must not have hidden that. An alert
that is muted is stored all the same, and marked; it is only not shown when it happens.

They are kept beside the store as JSON, which is data and nothing else, and so survive a restart.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec

from ksentinel.alert import Alert, when
from ksentinel.errors import InputError, UsageError
from ksentinel.event import Process
from ksentinel.level import Level
from ksentinel.rules import Match

MODEL = "model"
"""What stands for the rule of evidence that is a model's."""

LEVEL = Level.MEDIUM
HIGHEST = Level.HIGH
MOST = 100
"""In force at once: who needs more needs exceptions in the rules."""

_LONGEST_TEXT = 1000
_LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Mute:
    """
    One of them.

    Attributes
    ----------
    exe, parent
        Path of the executable, and of its parent's; empty: any.
    rule
        Id of the rule, or `MODEL`; empty: any.
    level
        The highest that is muted.
    alerts, revisions
        How many it has muted.
    """

    id: str
    begun_ns: int
    until_ns: int
    reason: str
    exe: str = ""
    rule: str = ""
    parent: str = ""
    level: str = str(LEVEL)
    alerts: int = 0
    revisions: int = 0

    @property
    def about(self) -> str:
        """
        What it is about, in words.

        Examples
        --------
        >>> Mute("5f", 0, 1, "backup runs", exe="/usr/bin/tar", parent="/bin/sh").about
        '/usr/bin/tar below /bin/sh'
        """
        told = [f"rule {self.rule}"] if self.rule and self.rule != MODEL else []
        told += ["the model alone"] if self.rule == MODEL else []
        told += ["of" if told and self.exe else "", self.exe] if self.exe else []
        told += [f"below {self.parent}"] if self.parent else []
        return " ".join(word for word in told if word)

    def covers(self, alert: Alert) -> bool:
        """Tell whether *alert* is what it is about, and within its time."""
        return (
            self.begun_ns <= alert.updated_ns < self.until_ns
            and alert.level <= Level.parse(self.level)
            and all(self._fits(rule, process) for rule, process in _said(alert))
        )

    def _fits(self, rule: str, process: Process) -> bool:
        above = "" if process.parent is None else process.parent.exe
        return self.rule in {"", rule} and self.exe in {"", process.exe} and self.parent in {"", above}

    def check(self) -> None:
        """Raise UsageError if it isn't one that may be."""
        if not (self.exe or self.rule or self.parent):
            raise UsageError("a mute of everything is none", remedy="say --exe, --rule or --parent")
        if not self.reason.strip():
            raise UsageError("a mute has a reason", remedy='say it, e.g. --reason "backup until six"')
        for name in ("exe", "rule", "parent", "reason"):
            text = getattr(self, name)
            if len(text) > _LONGEST_TEXT or not _is_unicode(text):
                raise UsageError(
                    f"--{name} is longer than {_LONGEST_TEXT:,} characters, or no UTF-8",
                    remedy="mute by less than that",
                )
        for name in ("exe", "parent"):
            # Compared with what the kernel says, which is whole paths: anything else would cover nothing.
            if getattr(self, name) and not getattr(self, name).startswith("/"):
                raise UsageError(
                    f"--{name} {getattr(self, name)!r} is no absolute path", remedy="say all of it"
                )
        try:
            level = Level.parse(self.level)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if not Level.NONE < level <= HIGHEST:
            raise UsageError(
                f"a mute reaches up to level {HIGHEST}", remedy="critical alerts are always told"
            )
        if self.begun_ns >= self.until_ns:
            raise UsageError("a mute ends after it begins", remedy="say for how long, e.g. --for 2h")


class Mutes:
    """
    Those in force: found for an alert, added, removed, and let go of when their time is over.

    Thread safe: the walk asks, the control socket changes.

    Parameters
    ----------
    path
        Where they are kept; None: nowhere (a replay has none).
    uid
        Who may own that file besides root.
    longest_ns
        For how long one may be at most.

    Raises
    ------
    InputError
        If what is kept can't be read, is somebody else's, or says what can't be.
    """

    def __init__(
        self, path: Path | None = None, uid: int = 0, longest_ns: int = 86400 * 1_000_000_000
    ) -> None:
        self.path = path
        self.uid = uid
        self.longest_ns = longest_ns
        # Whoever changes them waits for the disk, and for each other; the walk waits for neither.
        self._changing = threading.Lock()
        self._lock = threading.Lock()
        self._changed = False
        self._mutes = {} if path is None else {mute.id: mute for mute in read(path, uid)}

    def all(self) -> tuple[Mute, ...]:
        """Return them, the first to end first."""
        with self._lock:
            return tuple(sorted(self._mutes.values(), key=lambda mute: (mute.until_ns, mute.id)))

    def mute(self, alert: Alert) -> str:
        """Return the id of the mute that covers *alert*, counted there; empty if none does."""
        if not self._mutes:
            return ""
        with self._lock:
            for mute in self._mutes.values():
                if mute.covers(alert):
                    first = alert.revision == 1
                    self._mutes[mute.id] = replace(
                        mute, alerts=mute.alerts + first, revisions=mute.revisions + (not first)
                    )
                    self._changed = True
                    return mute.id
        return ""

    def add(self, mute: Mute) -> Mute:
        """
        Put *mute* in force; on disk when this returns. Its id is given here.

        Raises
        ------
        UsageError
            If it is too long, about everything, or there are too many already.
        InputError
            If it can't be kept: then it isn't in force, either.
        """
        mute.check()
        if mute.until_ns - mute.begun_ns > self.longest_ns:
            hours = self.longest_ns / 3600e9
            raise UsageError(
                f"a mute lasts {hours:g} hours at most",
                remedy="mute it again then, or write an exception; noise.longest_mute_seconds is the limit",
            )
        what = f"{mute.begun_ns}\0{mute.exe}\0{mute.rule}\0{mute.parent}\0{mute.reason}"
        mute = replace(mute, id=hashlib.blake2b(what.encode(), digest_size=4).hexdigest())
        with self._changing:
            there = self.all()
            if len(there) >= MOST:
                raise UsageError(
                    f"{MOST} mutes are in force already", remedy="`ksentinel unmute` one of them"
                )
            self._write((*there, mute))
            with self._lock:
                self._mutes[mute.id] = mute
        return mute

    def remove(self, prefix: str) -> Mute:
        """Let go of the one whose id begins with *prefix*; raises UsageError if that isn't exactly one."""
        with self._changing:
            there = self.all()
            found = [mute for mute in there if mute.id.startswith(prefix)]
            if len(found) != 1:
                what = "more than one mute begins" if found else "no mute begins"
                raise UsageError(f"{what} with {prefix!r}", remedy="`ksentinel mute --list` lists them")
            self._write([mute for mute in there if mute.id != found[0].id])
            with self._lock:
                return self._mutes.pop(found[0].id, found[0])  # its time may be over by now

    def expire(self, now_ns: int) -> tuple[Mute, ...]:
        """Let go of those whose time is over, and return them."""
        with self._lock:
            over = tuple(mute for mute in self._mutes.values() if mute.until_ns <= now_ns)
            for mute in over:
                del self._mutes[mute.id]
            self._changed |= bool(over)
        return over

    def save(self) -> None:
        """Keep what has changed (counts, those that are over); raises InputError."""
        with self._changing:
            with self._lock:
                changed, self._changed = self._changed, False
            if changed:
                try:
                    self._write(self.all())
                except InputError:
                    self._changed = True
                    raise

    def _write(self, mutes: Sequence[Mute]) -> None:
        if self.path is not None:
            write(self.path, mutes)


def read(path: Path, uid: int) -> tuple[Mute, ...]:
    """
    Return the mutes that are kept at *path*; none if nothing is there.

    Raises
    ------
    InputError
        If it can't be read, others than root and *uid* could have written it, or it says what can't be.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise InputError(f"can't be read: {error.strerror}", at=path, remedy="move it away") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file", at=path, remedy="move it away")
        if status.st_uid not in {0, uid}:
            raise InputError(f"belongs to uid {status.st_uid}", at=path, remedy="move it away")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError("is writable by others", at=path, remedy=f"chmod go-w {path}")
        with open(fd, "rb", closefd=False) as file:
            text = file.read(_LARGEST)
    finally:
        os.close(fd)
    try:
        mutes = msgspec.json.decode(text, type=tuple[Mute, ...])
        for mute in mutes:
            mute.check()
    except (msgspec.DecodeError, UnicodeDecodeError, UsageError) as error:
        raise InputError(f"is no list of mutes: {error}", at=path, remedy="move it away") from None
    if len(mutes) > MOST or len({mute.id for mute in mutes}) != len(mutes):
        raise InputError("has too many mutes, or one twice", at=path, remedy="move it away")
    return mutes


def write(path: Path, mutes: Sequence[Mute]) -> None:
    """Keep *mutes* at *path*, whole or not at all; raises InputError."""
    new = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(
                msgspec.json.format(msgspec.json.encode([asdict(mute) for mute in mutes]), indent=1) + b"\n"
            )
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


def in_words(mute: Mute) -> str:
    """
    Return a mute as it is told when it begins, ends, or is asked for.

    Examples
    --------
    >>> in_words(Mute("5f", 0, 3600 * 10**9, "backup runs", exe="/usr/bin/tar", alerts=2))
    '5f: /usr/bin/tar up to level medium, until 1970-01-01 01:00:00 UTC ("backup runs"): 2 alerts muted'
    """
    until = when(mute.until_ns)[:19].replace("T", " ")
    muted = f"{mute.alerts:,} alert{'' if mute.alerts == 1 else 's'} muted"
    return f'{mute.id}: {mute.about} up to level {mute.level}, until {until} UTC ("{mute.reason}"): {muted}'


def _said(alert: Alert) -> Iterator[tuple[str, Process]]:
    """Yield for each piece of evidence which rule says it (`MODEL`: none) of which process; of a correlation, of which ones."""
    for evidence in alert.evidence:
        if evidence.match is not None:
            yield from ((evidence.match.rule.id, process) for process in _processes(evidence.match))
        if evidence.anomaly is not None:
            yield MODEL, evidence.anomaly.window.process


def _processes(match: Match) -> Iterator[Process]:
    yield match.event.process
    for part in match.parts:
        yield from _processes(part)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
