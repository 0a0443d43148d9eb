# SPDX-License-Identifier: Apache-2.0
"""BPF records become events and windows: bytes in, the currency out."""

import ctypes
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv6Address
from posixpath import dirname, normpath

from ksentinel import syscalls
from ksentinel.bpf import abi, guard_abi
from ksentinel.bpf.pathhash import program_hash
from ksentinel.event import (
    Address,
    Event,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HookEvent,
    Origin,
    Outcome,
    Process,
    ProcessKey,
    Score,
    SyscallEvent,
)
from ksentinel.normalize.cgroups import Cgroups
from ksentinel.normalize.processes import ProcessTable, is_launcher, is_terminal
from ksentinel.normalize.redact import Redactor
from ksentinel.normalize.sockaddr import socket_address
from ksentinel.sources.procfs import Running
from ksentinel.window import Cause, KernelScore, Window

_TICK_NS = 10_000_000
_UNSET = 0xFFFFFFFF
_AT_EMPTY_PATH = 0x1000

_HEADER = struct.Struct("=HHIQQII8x")
_WINDOW = struct.Struct("=QQIHHIIIIIIIIIHBB")
_FORK = struct.Struct("=QQIIII")
_EXEC = struct.Struct("=IIIIQ")
_CALL = struct.Struct("=6QIIH")
_PART = struct.Struct("=HH")
_DENIAL = ctypes.sizeof(guard_abi.Denial)
_DENIAL_FLAGS = sum(guard_abi.DenialFlag)
_TRAITS = sum(guard_abi.Trait)

# Which argument (from 1) holds flags, mode, the process it is about, and other numbers worth a name.
_FLAGS = {
    "open": 2, "openat": 3, "execveat": 5, "unlinkat": 3, "linkat": 5, "renameat2": 5, "mount": 4, "umount2": 2,
    "memfd_create": 2, "unshare": 1, "setns": 2, "finit_module": 3, "delete_module": 2, "fchownat": 5,
    "fchmodat2": 4,
}  # fmt: skip
_MODE = {"creat": 2, "open": 3, "openat": 4, "chmod": 2, "fchmod": 2, "fchmodat": 3, "fchmodat2": 3}
_TARGET = {"kill": 1, "process_vm_readv": 1, "process_vm_writev": 1, "ptrace": 2}
_VALUES: dict[str, tuple[tuple[str, int], ...]] = {
    "kill": (("signal", 2),),
    "ptrace": (("request", 1),),
    "prctl": (("option", 1), ("arg2", 2)),
    "bpf": (("command", 1),),
    "setuid": (("uid", 1),),
    "setgid": (("gid", 1),),
    "setreuid": (("uid", 1), ("euid", 2)),
    "setregid": (("gid", 1), ("egid", 2)),
    "setresuid": (("uid", 1), ("euid", 2), ("suid", 3)),
    "setresgid": (("gid", 1), ("egid", 2), ("sgid", 3)),
    "chown": (("uid", 2), ("gid", 3)),
    "lchown": (("uid", 2), ("gid", 3)),
    "fchownat": (("uid", 3), ("gid", 4)),
    "connect": (("fd", 1),),
    "bind": (("fd", 1),),
    "sendto": (("fd", 1),),
    "fchmod": (("fd", 1),),
}
# Calls whose first name is no file of a directory.
_NOT_PATHS = {"memfd_create", "delete_module", "mount"}
_SYMLINKS = {"symlink", "symlinkat"}
# i386 has calls twice: narrow ids and offsets, and these. They do the same.
_WIDE = {
    wide: wide.removesuffix("32").removesuffix("64")
    for wide in "chown32 lchown32 setuid32 setgid32 setreuid32 setregid32 setresuid32 setresgid32 truncate64".split()
}
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000


RuleOf = Callable[[int | None, int], tuple[str, str]]
"""Whose guard spoke: from the policy's epoch and the rule's number in it to id and title, both empty if that isn't known. A
verdict on a process outlives policies: its rule has a number of its own, and the epoch is None."""


def _nobody(_epoch: int | None, _number: int) -> tuple[str, str]:
    return "", ""


_LATE = 4096
"""How many ended processes are remembered for a record that another CPU was still writing."""


class BpfNormalizer:
    """
    Turns the collector's records into events and windows, and keeps the process table up to date.

    Parameters
    ----------
    table
        Who is who.
    epoch_ns
        What to add to the kernel's boot clock to get nanoseconds since the epoch.
    arch
        Architecture of the kernel.
    redact
        Masks secrets in arguments; None keeps them.
    cgroups
        Names control groups; None leaves units and containers out.
    rule_of
        Names the rules of guards.
    """

    def __init__(
        self,
        table: ProcessTable,
        epoch_ns: int,
        arch: str,
        redact: Redactor | None,
        cgroups: Cgroups | None = None,
        rule_of: RuleOf = _nobody,
    ) -> None:
        self.table = table
        self.epoch_ns = epoch_ns
        self.arch = arch
        self.redact = redact
        self.cgroups = cgroups
        self.rule_of = rule_of
        self.malformed = 0
        self._ended: OrderedDict[ProcessKey, Process] = OrderedDict()

    def known(self, processes: Iterable[Running]) -> None:
        """Enter the processes that run already."""
        for found in processes:
            parent = self.table.get(found.parent_pid)
            self.table.add(
                Process(
                    found.key,
                    exe=found.exe,
                    argv=self._masked(found.argv),
                    parent=parent,
                    uid=found.uid,
                    euid=found.euid,
                    auid=found.auid,
                    session=found.session,
                    cwd=found.cwd,
                    comm=found.comm,
                    depth=0 if parent is None else parent.depth + 1,
                )
            )

    def introductions(
        self, path_seed: int, families: Collection[int] = ()
    ) -> Iterator[tuple[int, abi.Process]]:
        """
        Yield what the kernel's side shall know of each process of the table, by pid.

        Parameters
        ----------
        path_seed
            Secret behind the path hashes.
        families
            Processes whose families are watched.
        """
        for process in self.table:
            flags = abi.ProcessFlag(0)
            if process.service is not None:
                flags |= abi.ProcessFlag.SERVED
                flags |= abi.ProcessFlag.BY_TERMINAL if is_terminal(process.service) else abi.ProcessFlag(0)
            flags |= abi.ProcessFlag.LAUNCHER if is_launcher(process) else abi.ProcessFlag(0)
            flags |= abi.ProcessFlag.TERMINAL if is_terminal(process) else abi.ProcessFlag(0)
            if process.key.pid in families or any(a.key.pid in families for a in process.ancestors()):
                flags |= abi.ProcessFlag.FAMILY
            before = [program_hash(program, path_seed) for program in process.before]
            yield (
                process.key.pid,
                abi.Process(
                    program=program_hash(process.program, path_seed),
                    before=(ctypes.c_uint64 * abi.BEFORE)(*before),
                    service=0
                    if process.service is None
                    else program_hash(process.service.program, path_seed),
                    known=len(before),
                    flags=flags,
                ),
            )

    def item(self, record: memoryview) -> Event | Window | None:
        """Return what *record* says; None (and counted) if it can't be understood."""
        try:
            kind, flags, size, time_ns, start_ns, tgid, tid = _HEADER.unpack_from(record)
            kind = kind if size == len(record) else None
            key = ProcessKey(tgid, start_ns // _TICK_NS * _TICK_NS)
            when = time_ns + self.epoch_ns
            match kind:
                case abi.Kind.WINDOW:
                    return self._window(record, key, tid, flags)
                case abi.Kind.CALL:
                    return self._call(record, key, tid, flags, when)
                case abi.Kind.FORK:
                    return self._fork(record, key, tid, when)
                case abi.Kind.EXEC:
                    return self._exec(record, key, tid, flags, when)
                case abi.Kind.EXIT:
                    return self._exit(key, tid, when)
                case abi.Kind.DENIAL:
                    return self._denial(record, key, tid, when)
        except (struct.error, ValueError):
            pass
        self.malformed += 1
        return None

    def _window(self, record: memoryview, key: ProcessKey, tid: int, flags: int) -> Window:
        (first, last, _, count, cause, epoch, row, begin_mean, begin_cusum, mean, cusum, peak_mean, peak_cusum, process,
         scored, choice, over) = _WINDOW.unpack_from(record, _HEADER.size)  # fmt: skip
        tokens = struct.unpack_from(f"={count}H", record, _HEADER.size + _WINDOW.size)
        if not 0 < count <= abi.WINDOW or max(tokens) >= abi.TOKENS:
            raise ValueError(count)
        why, kernel = Cause(cause), None
        if scored:
            kernel = KernelScore(
                epoch=epoch, row=row, begin_mean=begin_mean, begin_cusum=begin_cusum, mean=mean, cusum=cusum,
                peak_mean=peak_mean, peak_cusum=peak_cusum, process=process, scored=scored,
                choice=abi.Choice(choice).name.lower(),
                over=tuple(limit.name.lower() for limit in abi.Over if limit & over and limit.name is not None),
            )  # fmt: skip
        return Window(
            process=self._who(key),
            tid=tid,
            first_ns=first + self.epoch_ns,
            last_ns=last + self.epoch_ns,
            tokens=tokens,
            cause=why,
            origin=Origin.BPF,
            lossy=bool(flags & abi.Flag.LOSSY),
            kernel=kernel,
        )

    def _fork(self, record: memoryview, key: ProcessKey, tid: int, when: int) -> ForkEvent:
        parent_start, cgroup, parent_pid, session, uid, euid = _FORK.unpack_from(record, _HEADER.size)
        # Also if /proc has told of the child already: that was its state later on, and its execs are still to come.
        parent = ProcessKey(parent_pid, parent_start // _TICK_NS * _TICK_NS)
        child = self.table.fork(parent, key, session=session, uid=uid, euid=euid, cgroup=cgroup)
        child = self._placed(child)
        return ForkEvent(time_ns=when, process=child, tid=tid, origin=Origin.BPF)

    def _exit(self, key: ProcessKey, tid: int, when: int) -> ExitEvent:
        process = self._ended[key] = self.table.exit(key)
        if len(self._ended) > _LATE:
            self._ended.popitem(last=False)
        return ExitEvent(time_ns=when, process=process, tid=tid, origin=Origin.BPF)

    def _who(self, key: ProcessKey) -> Process:
        # The threads of a process end at the same time on several CPUs: the last window may come after the exit.
        return self._ended.get(key) or self.table.find(key)

    def _exec(self, record: memoryview, key: ProcessKey, tid: int, flags: int, when: int) -> ExecEvent:
        uid, euid, auid, session, cgroup = _EXEC.unpack_from(record, _HEADER.size)
        parts = _parts(record)
        argv = parts.get(abi.PartKind.ARGV, b"")
        exe = _names(parts, abi.PartKind.EXE)
        cwd = _names(parts, abi.PartKind.CWD)
        name = _string(parts.get(abi.PartKind.NAME, b""))
        path = _absolute(name, "" if name.startswith("/") else cwd)
        # Known by what it was executed by, byte for byte, or the kernel's side would know it by another hash. That side can't
        # tell where a relative path leads, and a descriptor is no name: then it is its interpreter, here as there.
        named = name.startswith("/") and not name.startswith("/dev/fd/")
        script = name if flags & abi.Flag.SCRIPT and named else ""
        process = self.table.exec(
            key,
            exe=f"{exe} (deleted)" if flags & abi.Flag.UNLINKED else exe,
            argv=self._masked(tuple(_text(word) for word in argv.removesuffix(b"\0").split(b"\0")))
            if argv
            else (),
            uid=uid,
            euid=euid,
            auid=None if auid == _UNSET else auid,
            session=session,
            cwd=cwd,
            script=script,
            cgroup=cgroup,
        )
        process = self._placed(process)
        return ExecEvent(
            time_ns=when,
            process=process,
            tid=tid,
            origin=Origin.BPF,
            path=path,
            truncated=bool(flags & abi.Flag.TRUNCATED),
        )

    def _call(self, record: memoryview, key: ProcessKey, tid: int, flags: int, when: int) -> SyscallEvent:
        *args, uid, euid, token = _CALL.unpack_from(record, _HEADER.size)
        if token >= abi.TOKENS:
            raise ValueError(token)
        parts = _parts(record)
        variant, _, name = syscalls.token_name(token, self.arch).rpartition(":")
        name = _WIDE.get(name, name) if variant else name
        process = self._who(key)
        if (process.uid, process.euid) != (uid, euid) and key not in self._ended:
            process = self.table.change_user(process, uid, euid)

        open_flags = _number(args, _FLAGS.get(name))
        if name == "openat2" and parts.get(abi.PartKind.WORDS):
            open_flags = int.from_bytes(parts[abi.PartKind.WORDS], sys.byteorder)
        told = parts.get(abi.PartKind.ADDRESS, b"")
        address = socket_address(told, sys.byteorder)
        mode = _number(args, _MODE.get(name))
        if name in {"open", "openat"} and not (open_flags or 0) & (_O_CREAT | _O_TMPFILE):
            mode = None  # whatever stood in the register
        return SyscallEvent(
            time_ns=when,
            process=process,
            tid=tid,
            origin=Origin.BPF,
            syscall=name,
            abi=variant or "native",
            paths=self._masked(_paths(name, parts)),
            flags=open_flags,
            mode=mode,
            address=address,
            target=_number(args, _TARGET.get(name), signed=True),
            values=tuple((label, _number(args, n, signed=True) or 0) for label, n in _VALUES.get(name, ())),
            truncated=bool(flags & abi.Flag.TRUNCATED) or bool(told and address is None),
            unreadable=bool(flags & abi.Flag.UNREADABLE),
        )

    def _denial(self, record: memoryview, key: ProcessKey, tid: int, when: int) -> HookEvent:
        told = guard_abi.Denial.from_buffer_copy(record)
        first, second = told.lengths
        if len(record) != _DENIAL + first + second:
            raise ValueError((first, second))
        # Each of these is an error, if the number stands for nothing.
        hook, flags = guard_abi.Hook(told.hook), guard_abi.DenialFlag(told.flags)
        outcome = Outcome[guard_abi.Outcome(told.outcome).name]
        action, mode = guard_abi.Action(told.action), guard_abi.Mode(told.mode)
        sentence = guard_abi.SentenceKind(told.kind).name.lower() if told.kind else ""
        unknown = flags & ~_DENIAL_FLAGS or told.known >> guard_abi.NUMBERS or told.addressed > 1
        if not hook or unknown or bool(sentence) != bool(flags & guard_abi.DenialFlag.SENTENCE):
            raise ValueError((hook, flags, told.known, told.addressed, told.kind))
        call, variant = self._called(told.token, io_uring=bool(flags & guard_abi.DenialFlag.IO_URING))
        traits = guard_abi.Trait(told.traits & _TRAITS)
        numbers = tuple(
            (number.name.lower(), told.numbers[number])
            for number in guard_abi.Number
            if told.known >> number & 1
        )
        cut = bool(flags & guard_abi.DenialFlag.CUT)
        raw = bytes(record[_DENIAL:])
        if traits & guard_abi.Trait.UNIX:  # of an abstract socket NUL is a character like any other
            raw = raw.replace(b"\0", b"@")
        paths = tuple(_whole(part, cut=cut) for part in (raw[:first], raw[first:]) if part)
        canary = bool(flags & guard_abi.DenialFlag.CANARY)
        rule, title = "", ""
        if not canary:
            rule, title = self.rule_of(None if sentence else told.epoch, told.rule)
        process = self._who(key)
        if (process.uid, process.euid) != (told.uid, told.euid) and key not in self._ended:
            process = self.table.change_user(process, told.uid, told.euid)
        paths = self._masked(paths)
        return HookEvent(
            time_ns=when, process=process, tid=tid, origin=Origin.BPF, hook=hook.name.lower(), outcome=outcome, call=call,
            abi=variant, rule=rule, title=title, epoch=told.epoch, way=told.way, action=action.name.lower(),
            mode=mode.name.lower(), anomalous=bool(flags & guard_abi.DenialFlag.ANOMALOUS), sentence=sentence,
            nonce=told.nonce if canary else None, untold=bool(flags & guard_abi.DenialFlag.UNTOLD),
            killed=bool(flags & guard_abi.DenialFlag.KILLED), paths=paths, address=_destination(told, traits, paths),
            numbers=numbers, traits=tuple(trait.name.lower() for trait in traits if trait.name),
            score=Score(told.mean, told.cusum, told.process), cgroup=told.cgroup or None,
        )  # fmt: skip

    def _called(self, token: int, *, io_uring: bool) -> tuple[str, str]:
        """Return name and ABI of the system call that a guard was asked in."""
        if token >= abi.TOKENS:
            raise ValueError(token)
        if io_uring:
            return "io_uring", "native"
        variant, _, name = syscalls.token_name(token, self.arch).rpartition(":")
        return (_WIDE.get(name, name), variant) if variant else (name, "native")

    def _placed(self, process: Process) -> Process:
        """Return *process* with the names of where it runs."""
        if self.cgroups is None or process.cgroup is None:
            return process
        found = self.cgroups.look(process.cgroup)
        unit, container = ("", "") if found is None else (found.unit, found.container)
        if (unit, container) == (process.unit, process.container):
            return process
        return self.table.update(replace(process, unit=unit, container=container))

    def _masked(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return words if self.redact is None else self.redact.argv(words)


def _whole(raw: bytes, *, cut: bool) -> str:
    """Return a path that is told from the root; one that is cut begins with ``...``."""
    if b"\0" in raw:
        raise ValueError("a path has no NUL")
    text = _text(raw)
    return f".../{text.removeprefix('/')}" if cut else text


def _destination(told: guard_abi.Denial, traits: guard_abi.Trait, paths: Sequence[str]) -> Address | None:
    """Return the address that a socket was to have, or to talk to."""
    port = told.numbers[guard_abi.Number.PORT] if told.known >> guard_abi.Number.PORT & 1 else None
    if told.addressed:
        address = IPv6Address(bytes(told.address))
        if address.ipv4_mapped is not None and not traits & guard_abi.Trait.IPV6:
            return Address("inet", str(address.ipv4_mapped), port)
        # Written alike by every Python.
        host = str(address) if address.ipv4_mapped is None else f"::ffff:{address.ipv4_mapped}"
        return Address("inet6", host, port)
    return Address("unix", path=paths[0] if paths else "") if traits & guard_abi.Trait.UNIX else None


def _paths(name: str, parts: dict[int, bytes]) -> tuple[str, ...]:
    """Return the paths a call names, absolute where it is known what they are relative to."""
    found = []
    if abi.PartKind.PATH2 in parts:
        found = [_absolute(_string(parts[abi.PartKind.PATH2]), _names(parts, abi.PartKind.BASE2))]
    if abi.PartKind.PATH1 in parts:
        first = _string(parts[abi.PartKind.PATH1])
        if name in _SYMLINKS and found and not first.startswith("/"):
            # What a link says is meant from where the link lies; what begins with a slash, from the root.
            first = _absolute(first, dirname(found[0])) if first else first
        elif name not in _NOT_PATHS:
            first = _absolute(first, _names(parts, abi.PartKind.BASE1))
        found.insert(0, first)
    return tuple(found)


def _parts(record: memoryview) -> dict[int, bytes]:
    parts: dict[int, bytes] = {}
    at = abi.PARTS
    while at + _PART.size <= len(record):
        kind, length = _PART.unpack_from(record, at)
        at += _PART.size
        if at + length > len(record):
            raise struct.error("a part is longer than its record")
        parts[kind] = bytes(record[at : at + length])
        at += length
    return parts


def _names(parts: dict[int, bytes], kind: abi.PartKind) -> str:
    """Return a directory's or a file's path; one that begins with ``...`` was too deep to be told from the root."""
    cut = parts.get(kind | abi.PART_CUT)
    raw = parts.get(kind) if cut is None else cut
    if raw is None:
        return ""
    names = [_text(name) for name in reversed(raw.split(b"\0")) if name]
    return ("/" if cut is None else ".../") + "/".join(names)


def _string(raw: bytes) -> str:
    return _text(raw.partition(b"\0")[0])


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _absolute(path: str, base: str) -> str:
    if not path:
        return base
    if path.startswith(
        "/"
    ):  # its base, if it has one, is the caller's root: there is no way out of it by ".."
        path = base + normpath(path)
    elif not base:
        return path
    else:
        path = f"{base}/{path}"
    return normpath(path).replace("//", "/", 1)


def _number(args: Sequence[int], argument: int | None, *, signed: bool = False) -> int | None:
    """Return the low 32 bits of an argument: what the kernel uses of an int."""
    if argument is None:
        return None
    number = args[argument - 1] & 0xFFFFFFFF
    return ctypes.c_int32(number).value if signed else number
