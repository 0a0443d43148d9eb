# SPDX-License-Identifier: Apache-2.0
"""What already runs: the processes in ``/proc``, when a live source starts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ksentinel.event import ProcessKey

_TICK_NS = 10_000_000
"""/proc counts starts in units of USER_HZ, which Linux fixes at 100 a second."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process as ``/proc`` shows it."""

    key: ProcessKey
    parent_pid: int
    exe: str
    argv: tuple[str, ...]
    uid: int | None
    euid: int | None
    auid: int | None
    session: int
    cwd: str
    comm: str


def running(proc: Path = Path("/proc")) -> Iterator[Running]:
    """
    Yield every process under *proc*, the oldest first: so parents before children, also where PIDs have wrapped.

    What vanishes while it is looked at, or is hidden from us (``hidepid``), is left out; what can't be read (another
    user's executable) is empty.
    """
    found = []
    for pid in sorted(
        int(entry.name) for entry in proc.iterdir() if entry.name.isascii() and entry.name.isdigit()
    ):
        try:
            found.append(_look(proc / str(pid), pid))
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError):
            continue
    yield from sorted(found, key=lambda process: (process.key.start_ns, process.key.pid))


def _look(place: Path, pid: int) -> Running:
    # The name in parentheses may hold anything, also parentheses and blanks.
    head, _, tail = (place / "stat").read_bytes().decode(errors="surrogateescape").rpartition(")")
    stat = tail.split()
    status = dict(
        line.split(":", 1)
        for line in (place / "status").read_bytes().decode(errors="surrogateescape").splitlines()
        if ":" in line
    )
    uids = [int(word) for word in status.get("Uid", "").split()]
    arguments = _bytes(place / "cmdline").decode(errors="surrogateescape").rstrip("\0")
    login = _bytes(place / "loginuid").decode(errors="surrogateescape").strip()
    return Running(
        key=ProcessKey(pid, int(stat[19]) * _TICK_NS),
        parent_pid=int(stat[1]),
        exe=_link(place / "exe"),
        argv=tuple(arguments.split("\0")) if arguments else (),
        uid=uids[0] if uids else None,
        euid=uids[1] if uids else None,
        auid=int(login) if login.isdigit() and int(login) != 0xFFFFFFFF else None,
        session=int(stat[3]),
        cwd=_link(place / "cwd"),
        comm=head.partition("(")[2],
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (PermissionError, ProcessLookupError, FileNotFoundError):
        return b""


def _link(path: Path) -> str:
    try:
        target = str(path.readlink())
    except OSError:
        return ""
    # A daemon whose file a package upgrade has replaced is what it was; what lies in memory never had a file.
    return target if target.startswith("/memfd:") else target.removesuffix(" (deleted)")
