# SPDX-License-Identifier: Apache-2.0
"""
The process table: who is who, who started whom, and which service it all belongs to.

**Service.** A shell under a web server is judged as *that server's* shell, so every process belongs to a service: the
topmost ancestor below the *launchers* (init, sshd, cron, a container's shim). Two rules keep that honest:

- A launcher's child starts a service of its own.
- ``setsid`` leaves a *terminal* (a shell and what it runs: so a daemon started by hand is a service), never a
  daemon: a web shell that calls ``setsid`` still belongs to the web server.

Ancestry is by fork, not by today's parent: a double fork doesn't get away.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from ksentinel.event import BEFORE, Process, ProcessKey

LAUNCHERS = frozenset(
    "agetty anacron atd conmon containerd containerd-shim containerd-shim-runc-v2 cron crond dbus-daemon dockerd "
    "dumb-init getty init login podman runc s6-supervise sshd sshd-session supervisord systemd systemd-executor tini"
    .split()
)  # fmt: skip
TERMINALS = frozenset("ash bash csh dash doas fish ksh make screen script sh su sudo tcsh tmux zsh".split())

_SYSTEM_DIRS = ("/usr/", "/bin/", "/sbin/", "/lib/")
_MAX_DEPTH = 32


class ProcessTable:
    """
    Processes by PID, as they are now.

    Parameters
    ----------
    limit
        How many processes to keep; beyond it the one heard of least recently goes (`forgotten` counts them).

    Examples
    --------
    >>> table = ProcessTable()
    >>> nginx = table.add(Process(ProcessKey(10, 1), exe="/usr/sbin/nginx"))
    >>> child = table.fork(nginx.key, ProcessKey(11, 2))
    >>> shell = table.exec(child.key, exe="/bin/sh", argv=("sh", "-c", "id"))
    >>> shell.was, shell.service_exe
    ('/usr/sbin/nginx', '/usr/sbin/nginx')
    """

    def __init__(self, limit: int = 131072) -> None:
        self.limit = limit
        self.forgotten = 0
        self._by_pid: OrderedDict[int, Process] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_pid)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._by_pid.values()))

    def get(self, pid: int) -> Process | None:
        """Return the process that has this *pid* now, or None."""
        return self._by_pid.get(pid)

    def find(self, key: ProcessKey) -> Process:
        """Return the process of that *key*; one nothing is known of is entered as such."""
        process = self._by_pid.get(key.pid)
        if process is not None and process.key == key:
            return process
        return self._keep(Process(key))

    def add(self, process: Process) -> Process:
        """Enter a process known from elsewhere (``/proc``, a recording); its service is derived if not given."""
        if process.service is None:
            process = replace(process, service=_service(process))
        return self._keep(process)

    def fork(
        self,
        parent: ProcessKey,
        child: ProcessKey,
        *,
        session: int | None = None,
        uid: int | None = None,
        euid: int | None = None,
        cgroup: int | None = None,
    ) -> Process:
        """Enter a *child*: its parent's program, one step further down."""
        born = _born(self.find(parent), child)
        return self._keep(
            replace(
                born,
                session=born.session if session is None else session,
                uid=born.uid if uid is None else uid,
                euid=born.euid if euid is None else euid,
                cgroup=born.cgroup if cgroup is None else cgroup,
            )
        )

    def change_user(self, process: Process, uid: int, euid: int) -> Process:
        """Note that a process now runs as someone else."""
        return self._keep(replace(process, uid=uid, euid=euid))

    def exec(
        self,
        key: ProcessKey,
        *,
        exe: str,
        argv: tuple[str, ...] = (),
        uid: int | None = None,
        euid: int | None = None,
        auid: int | None = None,
        session: int | None = None,
        cwd: str = "",
        comm: str = "",
        script: str = "",
        cgroup: int | None = None,
    ) -> Process:
        """Let a process become another program; what isn't given stays as it was."""
        old = self.find(key)
        # The kernel side counts in the same way: what is unknown is a step only between known ones.
        before = (old.program, *old.before)[:BEFORE] if old.program or old.before else ()
        new = replace(
            old,
            exe=exe,
            argv=argv,
            was=old.exe,
            uid=old.uid if uid is None else uid,
            euid=old.euid if euid is None else euid,
            auid=old.auid if auid is None else auid,
            session=old.session if session is None else session,
            cwd=cwd or old.cwd,
            comm=comm or PurePosixPath(exe).name[:15],
            script=script,
            before=before,
            cgroup=old.cgroup if cgroup is None else cgroup,
        )
        return self._keep(replace(new, service=_service(new)))

    def update(self, process: Process) -> Process:
        """Replace what is known of a process (its key stays)."""
        return self._keep(process)

    def exit(self, key: ProcessKey) -> Process:
        """Let a process go; returns what it was."""
        process = self.find(key)
        if self._by_pid.get(key.pid) is process:
            del self._by_pid[key.pid]
        return process

    def _keep(self, process: Process) -> Process:
        now = self._by_pid.get(process.key.pid)
        if now is not None and now.key > process.key:
            # Late word of a process whose PID another one has by now: that one stays.
            return process
        self._by_pid[process.key.pid] = process
        self._by_pid.move_to_end(process.key.pid)
        if len(self._by_pid) > self.limit:
            self._by_pid.popitem(last=False)
            self.forgotten += 1
        return process


def _born(parent: Process, key: ProcessKey) -> Process:
    # A chain of forks (each parent exits) would keep every ancestor alive: beyond some depth the middle is cut out.
    if parent.depth >= _MAX_DEPTH:
        kept = list(parent.lineage())[: _MAX_DEPTH // 2]
        top: Process | None = parent.service
        for ancestor in reversed(kept):
            top = replace(ancestor, parent=top, depth=0 if top is None else top.depth + 1)
        parent = top or parent
    child = replace(parent, key=key, parent=parent, was=parent.was, depth=parent.depth + 1)
    return replace(child, service=_service(child))


def _service(process: Process) -> Process | None:
    """Return the service that *process* belongs to; None if it is one itself."""
    parent = process.parent
    if parent is None or parent.key.pid <= 1 or is_launcher(parent):
        return None
    root = parent if parent.service is None else parent.service
    if process.session == process.key.pid and is_terminal(root):
        return None
    return root


def is_launcher(process: Process) -> bool:
    """Tell whether *process* starts services: what it starts doesn't belong to it."""
    return _is(process, LAUNCHERS)


def is_terminal(process: Process) -> bool:
    """Tell whether *process* is a shell, a multiplexer or the like: ``setsid`` leaves it."""
    return _is(process, TERMINALS)


def _is(process: Process, programs: frozenset[str]) -> bool:
    # By name, but only where a package manager puts programs: /tmp/sshd launches no services.
    return (
        not process.script
        and process.exe.startswith(_SYSTEM_DIRS)
        and PurePosixPath(process.exe).name in programs
    )
