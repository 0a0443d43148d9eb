# SPDX-License-Identifier: Apache-2.0
"""
What is left in the BPF file system by a ksentinel that runs, or that has ended without having been asked to.

Each run has a folder of its own there. In it are always the switch and the verdicts, so that everything can be let go by nobody's
leave, and with ``--on-exit hold`` the guards themselves.
"""

import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ksentinel.bpf import abi
from ksentinel.bpf.guard_abi import Sentence, Sentenced, Switch
from ksentinel.bpf.libbpf import Map, pinned
from ksentinel.errors import HostError
from ksentinel.event import ProcessKey

PINS = Path("/sys/fs/bpf/ksentinel")
"""Where folders of runs are."""
SWITCHES, SENTENCES, PROCESSES = "switches", "sentences", "processes"
_MOST = 65536
_RELEASED = slice(Switch.released.offset, Switch.released.offset + Switch.released.size)


@dataclass(frozen=True, slots=True)
class Left:
    """
    One run's folder.

    Attributes
    ----------
    folder
        Its name is the PID of that run, and when it began.
    """

    folder: Path

    @property
    def pid(self) -> int:
        """Whose it is."""
        return self._numbers[0]

    @property
    def began_ns(self) -> int:
        """When that run began, in nanoseconds since boot."""
        return self._numbers[1]

    @property
    def _numbers(self) -> tuple[int, int]:
        pid, _, began = self.folder.name.partition("-")
        return (int(pid), int(began)) if pid.isdecimal() and began.isdecimal() else (0, 0)

    def runs(self, key_of: Callable[[int], ProcessKey | None]) -> bool:
        """Tell whether that run goes on. A process that has got its PID since began later than it."""
        key = key_of(self.pid) if self.pid else None
        return key is not None and key.start_ns <= self.began_ns

    @property
    def holds(self) -> tuple[str, ...]:
        """The programs that are pinned: guards, and what tells processes apart."""
        try:
            return tuple(sorted(one.name for one in self.folder.iterdir() if one.name.startswith("on_")))
        except OSError:
            return ()

    def release(self) -> bool:
        """Have nothing denied any more by these guards; whether there was a switch to say so. Raises HostError."""
        with _opened(self.folder / SWITCHES) as table:
            if table is None:
                return False
            try:
                # One field: whoever runs sets others meanwhile, and each run of a program reads them.
                with mmap.mmap(table.fd, mmap.PAGESIZE) as memory:
                    memory[_RELEASED] = struct.pack("=I", 1)
            except (OSError, ValueError) as error:  # the latter: it is smaller than a page
                raise HostError(
                    f"can't be switched: {error}",
                    at=self.folder / SWITCHES,
                    remedy="as root: rm -r its folder",
                ) from None
            return True

    def remove(self) -> None:
        """Take it away: guards that nobody else holds end with that. Raises HostError."""
        try:
            # Guards first: they mustn't stand for a moment without what they need to know who is who.
            for one in sorted(
                self.folder.iterdir(), key=lambda one: one.name in {"on_exit", "on_fork", "on_exec"}
            ):
                one.unlink()
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(
                f"can't be removed: {error.strerror}", at=self.folder, remedy="as root: rm -r"
            ) from None

    def sentences(self) -> dict[ProcessKey, Sentence]:
        """Return who is under a verdict; raises HostError."""
        found: dict[ProcessKey, Sentence] = {}
        with _opened(self.folder / SENTENCES) as table:
            for key in () if table is None else table.keys(Sentenced):
                value = table.lookup(key, Sentence) if table is not None else None
                if isinstance(key, Sentenced) and isinstance(value, Sentence):
                    found[ProcessKey(int(key.tgid), int(key.start_ns))] = value
        return found

    def scores(self, pids: Iterable[int]) -> Iterator[tuple[int, int, int]]:
        """Yield of each of these processes that was known: its PID, its score, and when it was last over its threshold."""
        with _opened(self.folder / PROCESSES) as table:
            for pid in pids:
                known = None if table is None else of_process(table, pid)
                if known is not None and (known.score or known.over_ns):
                    yield pid, int(known.score), int(known.over_ns)


def left(folder: Path = PINS, uid: int = 0) -> list[Left]:
    """
    Return what runs have left, the latest last.

    Parameters
    ----------
    uid
        Whose *folder* is trusted besides root's: in a BPF file system that anybody may write to, anybody could have made one.

    Raises
    ------
    HostError
        If it is somebody else's, who could have put other maps there.
    """
    try:
        status = folder.lstat()
        found = [Left(one) for one in folder.iterdir() if one.is_dir()]
    except OSError:
        return []
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in {0, uid}:
        raise HostError(
            f"belongs to uid {status.st_uid}, who could put anything there",
            at=folder,
            remedy="as root: rm -r",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise HostError(
            "is writable by others, who could put anything there", at=folder, remedy=f"chmod go-w {folder}"
        )
    return sorted(found, key=lambda one: (one.began_ns, one.pid))


def of_process(table: Map, pid: int) -> abi.Process | None:
    """Return what the kernel's side knows of a process that runs."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        known = table.lookup(descriptor, abi.Process)
    except HostError:  # it has ended
        return None
    finally:
        os.close(descriptor)
    return known if isinstance(known, abi.Process) else None


@contextmanager
def _opened(path: Path) -> Iterator[Map | None]:
    """Give a pinned map, None if it isn't there."""
    fd = pinned(path)
    try:
        yield None if fd is None else Map(fd, _MOST)
    finally:
        if fd is not None:
            os.close(fd)
