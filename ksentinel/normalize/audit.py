# SPDX-License-Identifier: Apache-2.0
"""
Audit's words into ours: the records of one serial become events.

A group with a SYSCALL record is a system call (an exec, a fork, an exit), and everything else in it (AVC, LOGIN,
CONFIG_CHANGE) stays in its ``records``; a group without one is an `AuditEvent`.

What audit can't tell is left open rather than guessed: threads (``pid=`` is the thread group, so *tid* is the same),
``getsid`` (``ses=`` is the login session), the directory behind a descriptor (such a path stays relative).
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from ksentinel.event import (
    Address,
    AuditEvent,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    Origin,
    Process,
    ProcessKey,
    Record,
    SyscallEvent,
)
from ksentinel.normalize.processes import ProcessTable
from ksentinel.normalize.redact import Redactor
from ksentinel.normalize.sockaddr import socket_address
from ksentinel.sources.auditlog import WINDOW_NS, AuditGroup, arguments
from ksentinel.syscalls import AUDIT_ARCHES, INVALID, Abi, names, token

ARGUMENTS: dict[str, tuple[tuple[str, int], ...]] = {
    name: tuple((slot, int(index)) for slot, index in (pair.split("=") for pair in pairs.split()))
    for name, pairs in {
        "accept4": "flags=3",
        "bpf": "cmd=0",
        "chmod": "mode=1",
        "chown": "owner=1 group=2",
        "clone": "flags=0",
        "copy_file_range": "fd_in=0 fd_out=2",
        "creat": "mode=1",
        "delete_module": "flags=1",
        "dup2": "oldfd=0 newfd=1",
        "dup3": "oldfd=0 newfd=1 flags=2",
        "faccessat2": "mode=2 flags=3",
        "fchmod": "fd=0 mode=1",
        "fchmodat": "mode=2",
        "fchmodat2": "mode=2 flags=3",
        "fchown": "fd=0 owner=1 group=2",
        "fchownat": "owner=2 group=3",
        "fcntl": "fd=0 cmd=1",
        "finit_module": "fd=0 flags=2",
        "fsmount": "fd=0 flags=1",
        "ftruncate": "fd=0 length=1",
        "init_module": "length=1",
        "io_uring_setup": "entries=0",
        "ioctl": "fd=0 request=1",
        "kexec_file_load": "fd=0",
        "kexec_load": "segments=1 flags=3",
        "keyctl": "operation=0",
        "kill": "target=0 signal=1",
        "lchown": "owner=1 group=2",
        "listen": "fd=0 backlog=1",
        "memfd_create": "flags=1",
        "mkdir": "mode=1",
        "mkdirat": "mode=2",
        "mknod": "mode=1",
        "mknodat": "mode=2",
        "mmap": "prot=2 flags=3",
        "mmap2": "prot=2 flags=3",
        "mount": "flags=3",
        "mprotect": "prot=2",
        "open": "flags=1 mode=2",
        "open_by_handle_at": "flags=2",
        "openat": "flags=2 mode=3",
        "perf_event_open": "target=1",
        "personality": "persona=0",
        "pidfd_open": "target=0 flags=1",
        "pidfd_send_signal": "fd=0 signal=1 flags=3",
        "pkey_mprotect": "prot=2",
        "prctl": "option=0 arg2=1",
        "prlimit64": "target=0 resource=1",
        "process_vm_readv": "target=0",
        "process_vm_writev": "target=0",
        "ptrace": "request=0 target=1",
        "reboot": "cmd=2",
        "rt_sigqueueinfo": "target=0 signal=1",
        "rt_tgsigqueueinfo": "target=0 signal=2",
        "seccomp": "operation=0 flags=1",
        "setfsgid": "gid=0",
        "setfsuid": "uid=0",
        "setgid": "gid=0",
        "setns": "fd=0 nstype=1",
        "setregid": "gid=0 egid=1",
        "setresgid": "gid=0 egid=1 sgid=2",
        "setresuid": "uid=0 euid=1 suid=2",
        "setreuid": "uid=0 euid=1",
        "setuid": "uid=0",
        "socket": "domain=0 type=1 protocol=2",
        "socketcall": "call=0",
        "socketpair": "domain=0 type=1 protocol=2",
        "splice": "fd_in=0 fd_out=2",
        "tgkill": "target=0 signal=2",
        "tkill": "target=0 signal=1",
        "truncate": "length=1",
        "umask": "mode=0",
        "umount2": "flags=1",
        "unlinkat": "flags=2",
        "unshare": "flags=0",
        "userfaultfd": "flags=0",
    }.items()
}
"""What the numbers in a0 to a3 mean: slot = index, from the signatures in the kernel's ``linux/syscalls.h``."""

_ALIASES = {
    f"{name}32": name
    for name in "chown fchown lchown setfsgid setfsuid setgid setregid setresgid setresuid setreuid setuid".split()
} | {"truncate64": "truncate", "ftruncate64": "ftruncate", "fcntl64": "fcntl"}

_EXECS = frozenset({"execve", "execveat"})
_FORKS = frozenset({"clone", "fork", "vfork"})
# clone3's flags lie in memory that audit doesn't log, and it is how glibc starts threads: never taken for a fork.
_CLONE_PARENT, _CLONE_THREAD = 0x8000, 0x10000
_AT_FDCWD = 0xFFFFFF9C
_CREATES = 0o100 | 0o20000000  # O_CREAT, O_TMPFILE
# Which argument is the directory that the first path (and the second) is relative to.
_DIRECTORIES = {
    **dict.fromkeys(
        "execveat faccessat faccessat2 fchmodat fchmodat2 fchownat futimesat linkat mkdirat mknodat mount_setattr "
        "name_to_handle_at newfstatat open_tree openat openat2 readlinkat renameat renameat2 statx unlinkat "
        "utimensat".split(),
        0,
    ),
    "symlinkat": 1,
}
_SYMLINKS = frozenset({"symlink", "symlinkat"})
_SECOND_DIRECTORIES = {"linkat": 2, "renameat": 2, "renameat2": 2}
_SIGNED = frozenset({"target", "fd", "fd_in", "fd_out", "oldfd", "newfd", "owner", "group", "signal"})
_LITTLE_ENDIAN = 0x40000000
_X32 = 0x40000000
_UNSET = 0xFFFFFFFF
_PROCTITLE_LIMIT = 128  # MAX_PROCTITLE_AUDIT_LEN in the kernel's auditsc.c
# The kernel's own, with no command line in them: nothing to mask.
_PLAIN = frozenset(
    "BPRM_FCAPS CAPSET CWD EOE FD_PAIR MMAP OBJ_PID OPENAT2 PATH SOCKADDR SOCKETCALL SYSCALL".split()
)
_TEXTS = frozenset({"cmd", "cmdline", "data", "old-proctitle"})


class AuditNormalizer:
    """
    Groups of audit records to events, and who did them.

    The table is taught as it goes: audit has no fork records unless a rule asks for them, so a process is entered
    when it is first seen, as a child of ``ppid=``. A PID is taken as used again after its exit was seen, or when its
    parent is neither the one it had nor an ancestor nor init (the only ones that orphans go to).

    Parameters
    ----------
    table
        Processes of the first node met; other nodes of a collected log have tables of their own.
    redact
        Masks secrets in arguments and records; None to keep them.

    Attributes
    ----------
    unknown_arches
        ``arch=`` values that there is no table for -> how often they were met; their calls are ``syscall_N``.

    Examples
    --------
    >>> fields = (("arch", "c000003e"), ("syscall", "62"), ("success", "yes"), ("exit", "0"), ("a0", "2a"))
    >>> fields = (*fields, ("a1", "9"), ("pid", "7"), ("ppid", "1"), ("exe", "/usr/bin/kill"))
    >>> [event] = AuditNormalizer(ProcessTable(), None).events(
    ...     AuditGroup(1, 0, "", (Record("SYSCALL", fields),))
    ... )
    >>> event.syscall, event.target, event.values, event.result
    ('kill', 42, (('signal', 9),), 0)
    """

    def __init__(self, table: ProcessTable, redact: Redactor | None) -> None:
        self.table = table
        self.redact = redact
        # A title is masked as arguments and as a record, and that of a process comes with each of its calls.
        self._mask: Callable[[tuple[str, ...]], tuple[str, ...]] = (
            _clean_all if redact is None else lru_cache(maxsize=64)(redact.argv)
        )
        self.unknown_arches: dict[str, int] = {}
        self._tables: dict[str, ProcessTable] = {}

    def events(self, group: AuditGroup) -> tuple[Event, ...]:
        """Return what happened: usually one event; two for a fork (the call, and the child's birth)."""
        if not group.records:
            return ()
        table = self._table(group.node)
        written, complete = arguments(group.records)
        argv = self._mask(_clean_all(written))
        records = tuple(self._records(group.records, argv))
        call = next((r for r in records if r.type == "SYSCALL"), None)
        if call is None:
            return (self._audit_event(group, table, records),)
        fields = dict(reversed(call.fields))
        number = _number(fields.get("syscall"))
        if number is None:
            return (self._audit_event(group, table, records),)
        name, abi, mark = self._call(fields, number)
        result = _integer(fields.get("exit"))
        title = self._title(group.records, _text(fields.get("exe")), _text(fields.get("comm")))
        happened = _Happening(group, table, records, fields, name, abi, mark, result, title)
        if name in _EXECS and fields.get("success") == "yes":
            return (_exec(happened, argv, complete=complete),)
        if name == "exit_group":
            return (_exit(happened),)
        event = _syscall(happened)
        child = _child(happened, event)
        return (event,) if child is None else (event, child)

    def _table(self, node: str) -> ProcessTable:
        table = self._tables.get(node)
        if table is None:
            # The same PID on two hosts is two processes.
            table = ProcessTable(self.table.limit) if self._tables else self.table
            self._tables[node] = table
        return table

    def _call(self, fields: dict[str, str], number: int) -> tuple[str, str, int]:
        """Return the call's name, its ABI and its token."""
        written = fields.get("arch", "")
        try:
            arch = AUDIT_ARCHES.get(int(written, 16))
        except ValueError:
            arch = None
        if arch is None:
            self.unknown_arches[written] = self.unknown_arches.get(written, 0) + 1
            enriched = fields.get("SYSCALL", "")
            name = enriched if enriched.replace("_", "").isalnum() else f"syscall_{number}"
            return name, "compat", INVALID
        if arch == "i386":
            return names(arch).get(number, f"syscall_{number}"), "i386", token(number, Abi.COMPAT)
        if arch == "x86_64" and number & _X32:
            plain = number & ~_X32
            return names(arch).get(plain, f"syscall_{plain}"), "x32", token(number, Abi.X32)
        return names(arch).get(number, f"syscall_{number}"), "native", token(number)

    def _audit_event(self, group: AuditGroup, table: ProcessTable, records: tuple[Record, ...]) -> AuditEvent:
        first = records[0]
        fields = dict(reversed(first.fields))
        pid = _number(fields.get("pid"))
        if pid is None:
            process = Process(ProcessKey(0, 0), exe=fields.get("exe", ""), comm=fields.get("comm", ""))
        else:
            process = _seen(table, group.time_ns, pid, fields)
        return AuditEvent(
            time_ns=group.time_ns,
            process=process,
            tid=process.key.pid,
            origin=Origin.AUDIT,
            records=records,
            type=first.type,
        )

    def _title(self, records: Iterable[Record], exe: str, comm: str) -> tuple[str, ...]:
        """
        Return the arguments that PROCTITLE tells, if they are this program's.

        The kernel keeps the title of a task's first event in its audit context: after an exec it may still be that
        of the program before (seen on 6.18). No arguments are better than another program's.
        """
        raw = next((r.get("proctitle") for r in records if r.type == "PROCTITLE"), None)
        argv = () if raw in (None, "(null)") else self._title_argv(str(raw))
        if not argv:
            return ()
        # "-bash" is a login shell, "sshd: bob [priv]" was set by sshd itself.
        first = posixpath.basename(argv[0].removeprefix("-").partition(" ")[0].partition(":")[0])
        program = posixpath.basename(exe)
        known = first[:15] == comm[:15] or (first and program.startswith(first))
        return argv if known or not (exe or comm) else ()

    def _title_argv(self, raw: str) -> tuple[str, ...]:
        return self._mask(_clean_all(raw.removesuffix("\0").split("\0")))

    def _records(self, records: Iterable[Record], argv: tuple[str, ...]) -> Iterator[Record]:
        """Yield the records as rules read them: secrets masked, the parts of one EXECVE joined, no undecodable bytes."""
        seen_execve = False
        for record in records:
            if record.type == "EXECVE":
                # One record however many it came in: a rule that reads a0 and a7 must not be evaded by padding.
                if not seen_execve:
                    others = [f for f in record.fields if f[0] in ("argc", "node")]
                    yield Record("EXECVE", (*others, *((f"a{i}", arg) for i, arg in enumerate(argv))))
                seen_execve = True
                continue
            if record.type in _PLAIN and "".join(map("".join, record.fields)).isascii():
                yield record
            else:
                yield Record(record.type, tuple((_clean(n), self._value(n, v)) for n, v in record.fields))

    def _value(self, name: str, value: str) -> str:
        if name == "proctitle":
            return " ".join(self._title_argv(value))
        value = _clean(value)
        return self.redact.text(value) if self.redact is not None and name in _TEXTS else value


@dataclass(frozen=True, slots=True)
class _Happening:
    """What is known of a system call before it is an event."""

    group: AuditGroup
    table: ProcessTable
    records: tuple[Record, ...]
    fields: dict[str, str]
    name: str
    abi: str
    token: int
    result: int | None
    title: tuple[str, ...]

    @property
    def pid(self) -> int:
        return _number(self.fields.get("pid")) or 0

    @property
    def cwd(self) -> str:
        cwd = next((r.get("cwd") for r in self.records if r.type == "CWD"), None)
        return cwd if cwd is not None and cwd.startswith("/") else ""

    def argument(self, index: int) -> int | None:
        try:
            return int(self.fields[f"a{index}"], 16)
        except (KeyError, ValueError):
            return None

    def process(self) -> Process:
        return _seen(self.table, self.group.time_ns, self.pid, self.fields, cwd=self.cwd, title=self.title)


def _exec(happened: _Happening, argv: tuple[str, ...], *, complete: bool) -> ExecEvent:
    fields, table = happened.fields, happened.table
    old = _known(table, happened.group.time_ns, happened.pid, fields, is_exec=True)
    from_title = not argv
    process = table.exec(
        old.key,
        exe=_text(fields.get("exe")),
        argv=argv or happened.title,
        uid=_id(fields.get("uid")),
        euid=_id(fields.get("euid")),
        auid=_id(fields.get("auid")),
        cwd=happened.cwd,
        comm=_text(fields.get("comm")),
    )
    paths = _paths(happened)
    cut = from_title and sum(len(a.encode()) + 1 for a in happened.title) >= _PROCTITLE_LIMIT
    return ExecEvent(
        time_ns=happened.group.time_ns,
        process=process,
        tid=happened.pid,
        origin=Origin.AUDIT,
        records=happened.records,
        token=happened.token,
        path=paths[0] if paths else "",
        truncated=cut or not complete,
    )


def _exit(happened: _Happening) -> ExitEvent:
    process = happened.process()
    happened.table.exit(process.key)
    return ExitEvent(
        time_ns=happened.group.time_ns,
        process=process,
        tid=happened.pid,
        origin=Origin.AUDIT,
        records=happened.records,
        token=happened.token,
    )


def _syscall(happened: _Happening) -> SyscallEvent:
    slots: dict[str, int] = {}
    for slot, index in ARGUMENTS.get(_ALIASES.get(happened.name, happened.name), ()):
        number = happened.argument(index)
        if number is not None:
            slots[slot] = _signed(number) if slot in _SIGNED else number & _UNSET
    for record in happened.records:
        if record.type == "OPENAT2":
            slots |= _openat2(record)
    if happened.name in ("open", "openat") and not slots.get("flags", 0) & _CREATES:
        slots.pop("mode", None)  # whatever was in the register
    flags, mode, target = slots.pop("flags", None), slots.pop("mode", None), slots.pop("target", None)
    others = [_number(r.get("opid")) for r in happened.records if r.type == "OBJ_PID"]
    if target is not None and len(others) == 1 and others[0]:
        # The argument may be a PID inside a container; OBJ_PID has the host's.
        target = others[0]
    address, whole = _address(happened)
    return SyscallEvent(
        time_ns=happened.group.time_ns,
        process=happened.process(),
        tid=happened.pid,
        origin=Origin.AUDIT,
        records=happened.records,
        token=happened.token,
        syscall=happened.name,
        abi=happened.abi,
        paths=_paths(happened),
        flags=flags,
        mode=mode,
        address=address,
        target=target,
        values=tuple(slots.items()),
        result=happened.result,
        truncated=not whole,
    )


def _child(happened: _Happening, call: SyscallEvent) -> ForkEvent | None:
    if happened.name not in _FORKS or happened.result is None or happened.result <= 0:
        return None
    flags = call.flags or 0
    if flags & _CLONE_THREAD:
        return None
    parent = call.process
    if flags & _CLONE_PARENT and parent.parent is not None:
        parent = parent.parent
    # The child may have been heard of already: a call is logged at its end, and the child is quicker now and then.
    known = happened.table.get(happened.result)
    if (
        known is not None
        and known.parent is not None
        and known.parent.key == parent.key
        and happened.group.time_ns - known.key.start_ns <= WINDOW_NS
    ):
        child = known
    else:
        child = happened.table.fork(parent.key, ProcessKey(happened.result, happened.group.time_ns))
    return ForkEvent(time_ns=happened.group.time_ns, process=child, tid=happened.result, origin=Origin.AUDIT)


def _seen(
    table: ProcessTable,
    time_ns: int,
    pid: int,
    fields: dict[str, str],
    *,
    cwd: str = "",
    title: tuple[str, ...] = (),
) -> Process:
    """Return the process that did this, brought up to what the record says of it."""
    old = _known(table, time_ns, pid, fields, is_exec=False)
    exe, comm = _text(fields.get("exe")), _text(fields.get("comm"))
    if exe and old.exe and exe != old.exe:
        # It became another program where no rule was watching.
        old = table.exec(old.key, exe=exe, argv=title, comm=comm)
    new = replace(
        old,
        exe=exe or old.exe,
        argv=old.argv or title,
        uid=_either(_id(fields.get("uid")), old.uid),
        euid=_either(_id(fields.get("euid")), old.euid),
        auid=_either(_id(fields.get("auid")), old.auid),
        cwd=cwd or old.cwd,
        comm=comm or old.comm,
    )
    return old if new == old else table.update(new)


def _known(table: ProcessTable, time_ns: int, pid: int, fields: dict[str, str], *, is_exec: bool) -> Process:
    """Return what the table has of *pid*; enter it, as a child of its parent, if that is another process."""
    old = table.get(pid)
    ppid = _number(fields.get("ppid"))
    if old is not None and not _reused(table, old, ppid, _text(fields.get("exe")), is_exec=is_exec):
        return old
    if not ppid or ppid == pid:
        return table.add(Process(ProcessKey(pid, time_ns)))
    parent = table.get(ppid)
    if parent is None:
        parent = table.add(Process(ProcessKey(ppid, time_ns)))
    return table.fork(parent.key, ProcessKey(pid, time_ns))


def _reused(table: ProcessTable, old: Process, ppid: int | None, exe: str, *, is_exec: bool) -> bool:
    if ppid is None or ppid <= 1 or old.parent is None or old.parent.key.pid == ppid:
        return False
    if any(ancestor.key.pid == ppid for ancestor in old.ancestors()):
        return False
    if not is_exec:
        # A subreaper that no record told of may have adopted it; the same program in it says so.
        return exe != old.exe
    parent = table.get(old.parent.key.pid)
    # Its parent still lives, so nobody can have adopted it.
    return parent is not None


def _paths(happened: _Happening) -> tuple[str, ...]:
    items = [dict(reversed(r.fields)) for r in happened.records if r.type == "PATH"]
    items.sort(key=lambda item: _number(item.get("item")) or 0)
    named = [i for i in items if i.get("name") not in (None, "(null)", "")]
    chosen = [i for i in named if i.get("nametype") != "PARENT"] or named
    if happened.name in _SYMLINKS and len(chosen) > 1:
        # What the link says is text, relative to where the link is.
        link = _absolute(happened, chosen[1]["name"], second=False)
        return posixpath.normpath(posixpath.join(posixpath.dirname(link), chosen[0]["name"])), link
    paths: list[str] = []
    for item in chosen:
        path = _absolute(happened, item["name"], second=bool(paths))
        if path not in paths:
            paths.append(path)
    return tuple(paths)


def _absolute(happened: _Happening, name: str, *, second: bool) -> str:
    if not name.startswith("/"):
        table = _SECOND_DIRECTORIES if second and happened.name in _SECOND_DIRECTORIES else _DIRECTORIES
        index = table.get(happened.name)
        directory = None if index is None else happened.argument(index)
        if not happened.cwd or (directory is not None and directory & _UNSET != _AT_FDCWD):
            return posixpath.normpath(name)
        name = posixpath.join(happened.cwd, name)
    path = posixpath.normpath(name)
    # POSIX lets // at the start mean something else; Linux doesn't.
    return path[1:] if path.startswith("//") else path


def _openat2(record: Record) -> dict[str, int]:
    # "oflag=0%llo mode=0%llo resolve=0x%llx" in audit_log_openat2_how.
    slots: dict[str, int] = {}
    for slot, name, base in (("flags", "oflag", 8), ("mode", "mode", 8), ("resolve", "resolve", 16)):
        try:
            slots[slot] = int(record.get(name) or "", base)
        except ValueError:
            continue
    return slots


def _address(happened: _Happening) -> tuple[Address | None, bool]:
    """Return the address, and whether it was whole."""
    for record in happened.records:
        if record.type != "SOCKADDR":
            continue
        try:
            raw = bytes.fromhex(record.get("saddr") or "")
        except ValueError:
            raw = b""
        if raw:
            arch = int(happened.fields.get("arch", ""), 16) if happened.token != INVALID else _LITTLE_ENDIAN
            address = socket_address(raw, "little" if arch & _LITTLE_ENDIAN else "big")
        else:
            address = _enriched_address(record.get("SADDR") or "")
        return address, address is not None
    return None, True


def _enriched_address(text: str) -> Address | None:
    # Either { saddr_fam=inet laddr=192.0.2.1 lport=443 } or { saddr_fam=local path=/run/x }.
    words = dict(word.partition("=")[::2] for word in text.strip("{} ").split())
    family = {"local": "unix"}.get(words.get("saddr_fam", ""), words.get("saddr_fam", ""))
    host, port = words.get("laddr", ""), _number(words.get("lport"))
    try:
        match family:
            case "inet":
                return Address(family, str(IPv4Address(host)), port)
            case "inet6":
                return Address(family, str(IPv6Address(host)), port)
            case "unix":
                return Address(family, path=words.get("path", ""))
            case "netlink":
                return Address(family)
    except ValueError:
        return None
    return None


def _clean(value: str) -> str:
    # Surrogates can't be stored as JSON or in SQLite: bytes that are no UTF-8 are shown as \xNN.
    if value.isascii():
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _clean_all(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(_clean(value) for value in values)


def _text(value: str | None) -> str:
    return "" if value is None or value in ("(null)", "?") else value


def _number(value: str | None) -> int | None:
    return (
        int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 20 else None
    )


def _integer(value: str | None) -> int | None:
    if value is None:
        return None
    number = _number(value.removeprefix("-"))
    return -number if number is not None and value.startswith("-") else number


def _id(value: str | None) -> int | None:
    number = _number(value)
    return None if number is None or number == _UNSET else number


def _signed(number: int) -> int:
    number &= _UNSET
    return number - (1 << 32) if number >> 31 else number


def _either(new: int | None, old: int | None) -> int | None:
    return old if new is None else new
