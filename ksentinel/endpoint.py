# SPDX-License-Identifier: Apache-2.0
"""A unix socket's place in the file system: where nobody else can put theirs, and without a trace afterwards."""

import fcntl
import os
import socket
import stat
import struct
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ksentinel.errors import InputError

_ANOTHER = "name another by --control, or say --no-control"
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_LONGEST = 107  # bytes: sun_path without its final NUL, unix(7)
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Endpoint:
    """
    A listening unix stream socket at a path, for as long as the ``with`` block lasts.

    A directory that doesn't exist is made (0750), but not its parents. What a daemon that was killed has left there is
    replaced. Two that start at once can't both do so: each holds a lock, in a file beside the socket.

    Parameters
    ----------
    path
        Where.
    gid
        The group whose members may connect (the socket is 0660 then); None: the owner alone (0600).
    owner
        The uid whose directories are trusted besides root's: the daemon's own.
    backlog
        How many connections may wait to be accepted.

    Attributes
    ----------
    listener
        The socket, non-blocking.

    Raises
    ------
    InputError
        On entering: somebody listens there already, something else stands there, others could put something there.
    """

    def __init__(self, path: Path, gid: int | None, owner: int, backlog: int = 64) -> None:
        self.path = path
        self.gid = gid
        self.owner = owner
        self.backlog = backlog
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if len(os.fsencode(self.path)) > _LONGEST:
            raise InputError(
                f"is longer than the {_LONGEST} bytes that a socket's path may have",
                at=self.path,
                remedy=_ANOTHER,
            )
        try:
            with ExitStack() as stack:
                self._directory(stack)
                self._lock(stack)
                self._clear()
                self.listener = self._listen(stack)
                self._stack = stack.pop_all()
        except OSError as error:
            raise InputError(
                f"can't be made a control socket: {error.strerror or error}",
                at=error.filename or self.path,
                remedy=_ANOTHER,
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _directory(self, stack: ExitStack) -> None:
        folder = self.path.parent
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            stack.callback(_remove_empty, folder)
            if self.gid is not None:
                os.chown(folder, -1, self.gid)
            folder.chmod(0o750)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            what = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is no directory"
            raise InputError(f"{what}: a control socket can't stand in there", at=folder, remedy=_ANOTHER)
        self._check(folder, status)
        for above in folder.resolve().parents:
            status = above.stat()
            # Where anybody may make files, but only their owner can move them (as in /tmp), ours stay.
            self._check(above, status, sticky=bool(status.st_mode & stat.S_ISVTX))

    def _check(self, folder: Path, status: os.stat_result, *, sticky: bool = False) -> None:
        if status.st_uid not in {0, self.owner}:
            raise InputError(
                f"belongs to uid {status.st_uid}, who could put another socket there",
                at=folder,
                remedy=_ANOTHER,
            )
        if status.st_mode & _OTHERS and not sticky:
            raise InputError(
                "is writable by others, who could put another socket there",
                at=folder,
                remedy=f"{_ANOTHER}; its directory must be writable by its owner alone",
            )

    def _lock(self, stack: ExitStack) -> None:
        path = self.path.with_name(f"{self.path.name}.lock")
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise self._in_use() from None
            # Whoever held it may have removed it on leaving: then it locks nothing any more.
            if _same(os.fstat(fd), path):
                stack.callback(os.close, fd)
                stack.callback(_remove_lock, fd, path)
                return
            os.close(fd)

    def _clear(self) -> None:
        """Remove what a daemon has left that was killed; raises InputError for everything else."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            what = "is a symbolic link" if stat.S_ISLNK(mode) else "is there already and is no socket"
            raise InputError(what, at=self.path, remedy=_ANOTHER)
        if self._someone() is not None:
            raise self._in_use()
        self.path.unlink()

    def _someone(self) -> int | None:
        """Return the PID of who listens there, 0 if that can't be told, None if nobody does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fsencode(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return None
            except BlockingIOError:  # more wait there than it accepts: it's there
                return 0
            raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return int(_CREDENTIALS.unpack(raw)[0])

    def _in_use(self) -> InputError:
        pid = self._someone()
        by = f"by process {pid}" if pid else "already"
        return InputError(
            f"is in use {by}",
            at=self.path,
            remedy=f"stop what runs there (`ksentinel status`); or {_ANOTHER}",
        )

    def _listen(self, stack: ExitStack) -> socket.socket:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.setblocking(False)
        listener.bind(os.fsencode(self.path))
        stack.callback(_remove, self.path, self.path.lstat())
        # Nobody can connect before it listens, so nobody did while it had another mode.
        if self.gid is not None:
            os.chown(self.path, -1, self.gid, follow_symlinks=False)
        self.path.chmod(0o600 if self.gid is None else 0o660)
        listener.listen(self.backlog)
        return listener


def _same(status: os.stat_result, path: Path) -> bool:
    try:
        now = path.lstat()
    except FileNotFoundError:
        return False
    return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove a file, if it's still the one that was made."""
    if _same(made, path):
        path.unlink()


def _remove_lock(fd: int, path: Path) -> None:
    """Remove the lock; with something in it, it was somebody's file all along."""
    status = os.fstat(fd)
    if not status.st_size:
        _remove(path, status)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # something else has moved in
        folder.rmdir()
