# SPDX-License-Identifier: Apache-2.0
"""
The currency: what happened, in words that no longer depend on whether audit or BPF saw it.

Everything here is frozen. An event carries the `Process` that did it as it was at that moment; a process carries its
parent as *that* was at fork. So ancestry needs no look-up, can't change under a reader, and goes when nothing refers
to it any more.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address, ip_address


class Origin(StrEnum):
    """Who saw it."""

    AUDIT = "audit"
    BPF = "bpf"
    PROC = "proc"


BEFORE = 2
"""How many earlier programs of a process are known; the same as KS_BEFORE in lsm_bpf/ksentinel_abi.h."""


@dataclass(frozen=True, slots=True, order=True)
class ProcessKey:
    """
    A process across PID reuse: its PID and when it started.

    *start_ns* is the start in nanoseconds since boot, rounded down to 10 ms (what ``/proc/PID/stat`` can tell, so
    that both sources agree). Audit doesn't tell starts: there it is the time at which the PID was first seen, in
    nanoseconds since the epoch.
    """

    pid: int
    start_ns: int

    def __str__(self) -> str:
        return f"{self.pid}@{self.start_ns}"


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process at one moment.

    Attributes
    ----------
    exe
        Absolute path of the file that the kernel executed; empty if unknown.
    argv
        Its arguments, secrets masked; empty if unknown.
    parent
        Who forked it, as that was then; None for the first process, or if unknown.
    was
        The executable before the last exec: *who became what*.
    script
        The script that the kernel was asked to execute by an absolute path, if it was one; *exe* is then its interpreter.
    before
        The programs before this one, the newest first, at most `BEFORE`; a child has its parent's.
    cgroup
        Id of its control group (v2), as it was at its last fork or exec, if known.
    unit, container
        systemd's unit and a runtime's container that this control group belongs to, by its name.
    service
        The topmost ancestor that belongs to the same service (see `normalize.processes`); None if that is
        this process itself.
    session
        Session id (``getsid``), if known.
    auid
        The user who logged in (audit's login uid), if known.
    """

    key: ProcessKey
    exe: str = ""
    argv: tuple[str, ...] = ()
    parent: "Process | None" = field(default=None, repr=False, compare=False)
    was: str = ""
    service: "Process | None" = field(default=None, repr=False, compare=False)
    uid: int | None = None
    euid: int | None = None
    auid: int | None = None
    session: int | None = None
    cwd: str = ""
    comm: str = ""
    script: str = ""
    before: tuple[str, ...] = ()
    cgroup: int | None = None
    unit: str = ""
    container: str = ""
    depth: int = field(default=0, repr=False, compare=False)

    @property
    def command_line(self) -> str:
        """The arguments, joined by blanks: what Sigma calls CommandLine."""
        return " ".join(self.argv)

    @property
    def program(self) -> str:
        """What it is profiled as: its executable, or ``#!`` and the script."""
        return f"#!{self.script}" if self.script else self.exe

    @property
    def service_program(self) -> str:
        """Program of the service that this process belongs to."""
        return self.program if self.service is None else self.service.program

    @property
    def service_exe(self) -> str:
        """Executable of the service that this process belongs to."""
        return self.exe if self.service is None else self.service.exe

    @property
    def service_key(self) -> ProcessKey:
        """Key of the service that this process belongs to."""
        return self.key if self.service is None else self.service.key

    def lineage(self) -> Iterator["Process"]:
        """Yield this process, its parent, and so on, up to and including its service."""
        process: Process | None = self
        root = self.service_key
        while process is not None:
            yield process
            if process.key == root:
                return
            process = process.parent

    def ancestors(self) -> Iterator["Process"]:
        """Yield parent, grandparent and so on, as far as known."""
        process = self.parent
        while process is not None:
            yield process
            process = process.parent


@dataclass(frozen=True, slots=True)
class Address:
    """A socket address: *family* is ``inet``, ``inet6``, ``unix``, ``netlink`` or ``af_N``."""

    family: str
    host: str = ""
    port: int | None = None
    path: str = ""

    def __str__(self) -> str:
        if self.path or not self.host:
            return self.path or self.family
        host = f"[{self.host}]" if self.family == "inet6" else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def reach(self) -> str:
        """``loopback``, ``private``, ``public`` or ``local``."""
        if not self.host:
            return "local"
        address = ip_address(self.host)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_loopback:
            return "loopback"
        return "private" if address.is_private or address.is_link_local else "public"


@dataclass(frozen=True, slots=True)
class Record:
    """One audit line as it came: its type (``SYSCALL``, ``PATH``, ...) and its fields, raw names, decoded values."""

    type: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return the first value of the field *name*."""
        return next((value for key, value in self.fields if key == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happened:
    time_ns: int
    """Nanoseconds since the epoch."""
    process: Process
    tid: int
    origin: Origin
    records: tuple[Record, ...] = field(default=(), repr=False)
    """The audit records that the event was made of; empty for BPF."""
    token: int | None = field(default=None, repr=False)
    """The system call as models see it; None if there is none, or if the collector's windows have it already (BPF)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkEvent(_Happened):
    """A process was born; ``process`` is the child."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecEvent(_Happened):
    """
    A process became another program; ``process`` is it afterwards.

    *path* is the file as it was asked for (for a script: the script; ``process.exe`` is then its interpreter).
    """

    path: str = ""
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitEvent(_Happened):
    """A process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyscallEvent(_Happened):
    """
    A system call with its arguments.

    Attributes
    ----------
    syscall
        Its name, without ABI prefix: ``openat``.
    abi
        ``native``, or ``i386``, ``x32``, ``compat``.
    paths
        Absolute where the directory was known; ``rename`` has two.
    flags, mode
        Of open, mount, clone, ...; None if the call has none.
    address
        Of connect, bind, sendto.
    target
        The process id it is about: kill, ptrace, process_vm_writev.
    values
        Other numbers worth a name: ``("request", 16)``, ``("signal", 9)``, ``("uid", 0)``.
    result
        Return value, negative errno on failure; None where only the entry was seen (BPF).
    truncated, unreadable
        An argument was cut at the collector's limit; or was not in memory when the collector looked.
    """

    syscall: str
    abi: str = "native"
    paths: tuple[str, ...] = ()
    flags: int | None = None
    mode: int | None = None
    address: Address | None = None
    target: int | None = None
    values: tuple[tuple[str, int], ...] = ()
    result: int | None = None
    truncated: bool = False
    unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent(_Happened):
    """Something that audit says and that is no system call: a login, a configuration change; see ``records``."""

    type: str


class Outcome(StrEnum):
    """What became of an operation that a guard spoke against; the most told first."""

    DENIED = "denied"
    WOULD_DENY = "would_deny"
    LOGGED = "logged"
    SPARED = "spared"
    """By the list of who is never denied anything."""
    RELEASED = "released"
    """Everything had been let go."""

    @property
    def rank(self) -> int:
        """How much it weighs: of several the highest is told."""
        return len(Outcome) - list(Outcome).index(self)


@dataclass(frozen=True, slots=True)
class Score:
    """What the kernel had scored by then: the thread's mean and CUSUM, and the process's own."""

    mean: int
    cusum: int
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HookEvent(_Happened):
    """
    A guard in the kernel has spoken against an operation; ``process`` is who tried.

    Attributes
    ----------
    hook
        The LSM hook: ``file_open``.
    call, abi
        The system call it was asked in, as of `SyscallEvent`; ``io_uring`` where that did it.
    rule, title
        Whose guard it is; empty if that is no longer known.
    epoch, way
        Of the policy that decided, and which of its ways it was.
    action, mode
        What was asked for (log, deny, kill), and how much that was meant.
    anomalous
        A score was over its threshold.
    sentence
        ``quarantine`` or ``kill`` if a verdict on the process spoke, and no guard of its own.
    nonce
        Of the proof that the guard works, which this is part of; None for what really happened.
    untold
        Something could not be told, and that counts against the operation.
    killed
        The process was ended.
    paths
        The files, as the kernel has them; a rename has two. One that begins with ``...`` could not be told from the root.
    numbers
        What else the hook saw: ``("flags", 577)``.
    traits
        Facts that have names: ``memfd``, ``write``.
    """

    hook: str
    outcome: Outcome
    call: str = ""
    abi: str = "native"
    rule: str = ""
    title: str = ""
    epoch: int = 0
    way: int = 0
    action: str = "deny"
    mode: str = ""
    anomalous: bool = False
    sentence: str = ""
    nonce: int | None = None
    untold: bool = False
    killed: bool = False
    paths: tuple[str, ...] = ()
    address: Address | None = None
    numbers: tuple[tuple[str, int], ...] = ()
    traits: tuple[str, ...] = ()
    score: Score | None = None
    cgroup: int | None = None

    @property
    def operation(self) -> "ExecEvent | SyscallEvent":
        """
        What was tried, as the event that rules would have seen of it.

        The kernel tells no event of an execution that it refused: there the process is what it would have become, as far as
        that is known.
        """
        happened = {"time_ns": self.time_ns, "tid": self.tid, "origin": self.origin}
        if self.hook in _EXECUTIONS and self.paths:
            # Of a script the last path is the interpreter's, which is what is executed.
            exe = self.paths[-1]
            process = replace(self.process, exe=exe, argv=(), was=self.process.exe, script="")
            return ExecEvent(**happened, process=process, path=self.paths[0])  # type: ignore[arg-type]
        numbers = dict(self.numbers)
        return SyscallEvent(
            **happened,  # type: ignore[arg-type]
            process=self.process,
            syscall=self.call,
            abi=self.abi,
            paths=self.paths,
            flags=numbers.get("flags"),
            mode=numbers.get("mode"),
            address=self.address,
            values=tuple(pair for pair in self.numbers if pair[0] not in _NO_VALUES),
        )


_EXECUTIONS = frozenset({"bprm_check_security", "bprm_creds_from_file"})
# Numbers that an event of a call has elsewhere, or not at all.
_NO_VALUES = frozenset({"flags", "mode", "port", "euid", "another"})

Event = ForkEvent | ExecEvent | ExitEvent | SyscallEvent | AuditEvent | HookEvent
