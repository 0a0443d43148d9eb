# SPDX-License-Identifier: Apache-2.0
"""The audit trail: who had the daemon change what, and how that went; JSON lines that are only ever added to."""

import os
import stat
from pathlib import Path
from typing import Any

from ksentinel.errors import InputError
from ksentinel.store import to_json

_REMEDY = "is the disk full, or the file somebody else's?"


class Trail:
    """
    A file that lines are added to, each on disk before anything else happens.

    It is opened for every line, so it may be moved away (rotated) at any time. A line that an earlier run couldn't
    finish stays as it is: the next begins on a line of its own.

    Parameters
    ----------
    path
        Made with mode 0600 if it doesn't exist, its directory with 0700.
    uid
        Who may own it besides root.
    """

    def __init__(self, path: Path, uid: int) -> None:
        self.path = path
        self.uid = uid

    def write(self, entry: dict[str, Any]) -> None:
        """
        Add *entry*; it is on disk when this returns.

        Raises
        ------
        InputError
            If it can't be written, or others could have written what stands there.
        """
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            existed = self.path.exists()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(self.path, flags, 0o600)
            try:
                self._check(os.fstat(fd))
                self._add(fd, to_json(entry) + b"\n")
            finally:
                os.close(fd)
            if not existed:
                self._keep_name()
        except OSError as error:
            raise InputError(f"can't be written: {error.strerror}", at=self.path, remedy=_REMEDY) from None

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise InputError("is no regular file", at=self.path, remedy="move it away")
        if status.st_uid not in {0, self.uid}:
            raise InputError(f"belongs to uid {status.st_uid}", at=self.path, remedy="move it away")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError("is writable by others", at=self.path, remedy=f"chmod go-w {self.path}")

    def _add(self, fd: int, line: bytes) -> None:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        whole = b"\n" + line if torn else line
        written = os.write(fd, whole)
        if written != len(whole):
            raise InputError(
                f"only {written} of {len(whole)} bytes could be written", at=self.path, remedy=_REMEDY
            )
        os.fsync(fd)

    def _keep_name(self) -> None:
        """A new file's name is kept in its directory, which has to reach the disk, too."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
