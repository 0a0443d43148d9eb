# SPDX-License-Identifier: Apache-2.0
"""
The live source: the BPF collector's ring buffer.

Loads ``lsm_bpf/trace.bpf.c``, tells it which arguments to read, and yields its records as bytes; `normalize.bpf`
makes events and windows of them.
"""

import ctypes
import os
import select
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ksentinel import syscalls
from ksentinel.bpf import abi
from ksentinel.bpf.guard_abi import GuardCounters
from ksentinel.bpf.libbpf import ANY, NOEXIST, Object, kernel_has, run_iterator, wait_for_programs
from ksentinel.bpf.pathhash import name_hash, program_hash
from ksentinel.bpf.ring import Ring
from ksentinel.errors import HostError, ModelError
from ksentinel.sources import Account

# Name -> (path1, dir1, path2, dir2, address, address_len, words): argument numbers from 1. See struct ks_capture.
CAPTURES: dict[str, tuple[int, ...]] = {
    "execve": (1,),
    "execveat": (2, 1),
    "open": (1,),
    "openat": (2, 1),
    "openat2": (2, 1, 0, 0, 0, 0, 3),
    "creat": (1,),
    "truncate": (1,),
    "truncate64": (1,),
    "unlink": (1,),
    "unlinkat": (2, 1),
    "rename": (1, 0, 2),
    "renameat": (2, 1, 4, 3),
    "renameat2": (2, 1, 4, 3),
    "link": (1, 0, 2),
    "linkat": (2, 1, 4, 3),
    "symlink": (1, 0, 2),
    "symlinkat": (1, 0, 3, 2),
    "chmod": (1,),
    "fchmodat": (2, 1),
    "fchmodat2": (2, 1),
    "chown": (1,),
    "lchown": (1,),
    "chown32": (1,),
    "lchown32": (1,),
    "fchownat": (2, 1),
    "mount": (1, 0, 2),
    "umount2": (1,),
    "umount": (1,),
    "connect": (0, 0, 0, 0, 2, 3),
    "bind": (0, 0, 0, 0, 2, 3),
    "sendto": (0, 0, 0, 0, 5, 6),
    "memfd_create": (1,),
    "delete_module": (1,),
    "finit_module": (),
    "init_module": (),
    "ptrace": (),
    "process_vm_readv": (),
    "process_vm_writev": (),
    "setuid": (),
    "setgid": (),
    "setreuid": (),
    "setregid": (),
    "setresuid": (),
    "setresgid": (),
    "setuid32": (),
    "setgid32": (),
    "setreuid32": (),
    "setregid32": (),
    "setresuid32": (),
    "setresgid32": (),
    "capset": (),
    "prctl": (),
    "unshare": (),
    "setns": (),
    "bpf": (),
    "kill": (),
    "fchmod": (),
    "kexec_load": (),
}

PREFIXES: dict[str, abi.Class | None] = {
    "/etc/shadow": abi.Class.SECRET,
    "/etc/gshadow": abi.Class.SECRET,
    "/etc/sudoers": abi.Class.SECRET,
    "/etc/ssh/ssh_host_": abi.Class.SECRET,
    "/etc/ssl/private/": abi.Class.SECRET,
    "/etc/kubernetes/": abi.Class.SECRET,
    "/var/run/secrets/": abi.Class.SECRET,
    "/run/secrets/": abi.Class.SECRET,
    "/home/": abi.Class.HOME,
    "/tmp/": abi.Class.TMP,
    "/var/tmp/": abi.Class.TMP,
    "/dev/shm/": abi.Class.TMP,
    "/run/shm/": abi.Class.TMP,
    "/dev/": abi.Class.DEVICE,
    "/dev/null": None,
    "/dev/zero": None,
    "/dev/urandom": None,
    "/dev/random": None,
    "/dev/tty": None,
    "/dev/pts/": None,
    "/dev/fd/": None,
    "/proc/": abi.Class.PROC,
    "/proc/self/": None,
    "/etc/": abi.Class.SYSTEM,
    "/etc/ld.so.cache": None,
    "/etc/ld.so.preload": None,  # the loader of every program asks for it; who writes it is a rule's business
    "/etc/localtime": None,
    "/etc/nsswitch.conf": None,
    "/etc/passwd": None,
    "/etc/group": None,
    "/etc/hosts": None,
    "/etc/resolv.conf": None,
    "/etc/host.conf": None,
    "/boot/": abi.Class.SYSTEM,
    "/usr/lib/systemd/": abi.Class.SYSTEM,
    "/lib/modules/": abi.Class.SYSTEM,
}
"""How paths of a class begin, the longest match counts; None: of no class, because everybody opens these."""

IN_HOMES = (
    ".ssh/",
    ".aws/",
    ".gnupg/",
    ".kube/",
    ".docker/",
    ".netrc",
    ".git-credentials",
    ".pgpass",
    ".config/gcloud/",
)
"""What is secret in a home."""

SYSTEM_DIRS = ("usr", "bin", "sbin", "lib")

_SWEEP_EVERY = 1.0
_SWEEPS = 10
_GATHER = 0.05
_FULL = 0.25
_CHANCES = 1 << 32
# Those of the lifecycle in the order of attaching, and backwards when detaching: what an exec begins, an exit must send.
_LIFECYCLE = ("on_exit", "on_fork", "on_exec")
_ENTRIES = ("on_sys_enter", "on_sys_enter_old")
_PLACE = struct.Struct("=IHB")
_PLACE_AT = abi.Header.sequence.offset


class Table(Protocol):
    """A model for the kernel: `ksentinel.detectors.kerneltable.KernelTable`."""

    def images(self, epoch: int, path_seed: int) -> Sequence[bytes]:
        """Return the rows, each as struct ks_profile."""
        ...

    def keys(self, path_seed: int) -> Iterator[tuple[int, int, int]]:
        """Yield program, service and row of each profile."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    Who is watched: whoever is named in any of these; everybody, if nothing is named.

    Attributes
    ----------
    programs
        As in `ksentinel.event.Process.program`.
    uids, cgroups
        Real user ids, control group ids.
    pids
        Processes whose families are watched: themselves, and whatever they fork.
    """

    programs: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    cgroups: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()

    def entries(self, path_seed: int) -> list[tuple[abi.FilterKind, int]]:
        """Return kind and value of each filter; families are marked on the processes themselves."""
        return [
            *((abi.FilterKind.PROGRAM, program_hash(name, path_seed)) for name in self.programs),
            *((abi.FilterKind.UID, uid) for uid in self.uids),
            *((abi.FilterKind.CGROUP, number) for number in self.cgroups),
        ]

    def kinds(self) -> int:
        """Return the kinds in use."""
        used = ((self.programs, abi.FilterKind.PROGRAM), (self.uids, abi.FilterKind.UID),
                (self.cgroups, abi.FilterKind.CGROUP), (self.pids, abi.FilterKind.FAMILY))  # fmt: skip
        return sum(int(kind) for some, kind in used if some)


class Sequences:
    """
    Notices what is missing: each of the collector's programs numbers its records on each CPU, dropped ones included.

    Attributes
    ----------
    missing
        Numbers that were passed over: records that were dropped.
    """

    def __init__(self) -> None:
        self.missing = 0
        self._next: dict[tuple[int, int], int] = {}

    def seen(self, record: memoryview) -> None:
        """Take a record's number in."""
        number, cpu, program = _PLACE.unpack_from(record, _PLACE_AT)
        key = (program, cpu)
        self.missing += (number - self._next.get(key, 0)) & 0xFFFFFFFF
        self._next[key] = number + 1 & 0xFFFFFFFF

    def behind(self, program: int, cpu: int, numbered: int) -> int:
        """Return how many of *numbered* records came after the last one seen."""
        return (numbered - self._next.get((program, cpu), 0)) & 0xFFFFFFFF


class Collector:
    """
    The collector, attached for as long as the ``with`` block lasts.

    Parameters
    ----------
    path
        The compiled ``trace.bpf.o``.
    own_pid
        The process that isn't observed: ksentinel itself (counted as ``own``).
    arch
        This machine's architecture, as in ``uname -m``.
    idle_seconds
        A thread that has slept this long on a part-filled window has it flushed.
    ring_bytes
        Size of the ring buffer; a power of two.
    table
        A model to score with; None: windows go out unscored.
    gate
        Let only flagged windows out, and a sample of the others; without a model there is nothing to tell them by.
    sample
        Share of windows that go out although they aren't flagged.
    wanted
        Who is watched.
    calls_a_second
        Argument events that one process may send in a second; 0: no limit.
    compat
        Whether this kernel serves a 32-bit ABI, too: then each call is asked for it, which costs some time.
    path_seed
        Secret behind the path hashes.
    names
        Names of programs that start services, or are terminals'.
    prefixes
        How paths of a class begin.
    processes
        What runs already, as pid and what the kernel's side shall know; asked twice, so that no child falls between.
    clock, sleep
        Seconds, monotonic; and what waits for some.

    Raises
    ------
    HostError
        On entering: what this host refuses, and the remedy.
    """

    def __init__(
        self,
        path: Path,
        own_pid: int,
        arch: str,
        *,
        idle_seconds: float = 2.0,
        ring_bytes: int = 16 << 20,
        table: Table | None = None,
        gate: bool = False,
        sample: float = 0.01,
        wanted: Wanted | None = None,
        calls_a_second: int = 5000,
        compat: bool = True,
        path_seed: int = 1,
        names: Mapping[str, abi.NameFlag] | None = None,
        prefixes: Mapping[str, abi.Class | None] = PREFIXES,
        processes: Callable[[], Iterable[tuple[int, abi.Process]]] = tuple,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self.own_pid = own_pid
        self.arch = arch
        self.idle_seconds = idle_seconds
        self.ring_bytes = ring_bytes
        self.table = table
        self.gate = gate
        self.sample = sample
        self.wanted = wanted or Wanted()
        self.calls_a_second = calls_a_second
        self.compat = compat
        self.path_seed = path_seed
        self.names = names or {}
        self.prefixes = prefixes
        self.processes = processes
        self.clock = clock
        self.sleep = sleep
        self._stack = ExitStack()
        self._records = 0
        self._duration = 0.0
        self._sequences = Sequences()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._object = stack.enter_context(Object(self.path))
            self._object.resize("ring", self.ring_bytes)
            # The first reads a task without a call into the kernel, where that is possible.
            self.entry, other = _ENTRIES if kernel_has("bpf_rdonly_cast") else _ENTRIES[::-1]
            self._object.leave_out(other)
            self._object.load()
            self._config = abi.Config(
                abi_version=abi.VERSION,
                own_tgid=self.own_pid,
                idle_ns=int(self.idle_seconds * 1e9),
                path_seed=self.path_seed,
                epoch=1,
                gate=self.gate,
                sample=min(int(self.sample * _CHANCES), _CHANCES - 1),
                filters=self.wanted.kinds(),
                calls_a_second=self.calls_a_second,
                compat=self.compat,
            )
            self._configure()
            self._fill()
            if self.table is not None:
                self.use(self.table)
            self._ring = stack.enter_context(Ring(self._object.map("ring")))
            # Who runs already is told first, so that no child has a parent nobody knows; then the lifecycle is attached,
            # and a second look finds who was born or executed in between.
            told = self._introduce({})
            for program in _LIFECYCLE:
                self._object.attach(program)
            self._introduce(told)
            self._object.attach(self.entry)
            self._sweeper = self._object.iterator("sweep")
            run_iterator(self._sweeper)  # its first pass sets the clock that the second compares with
            self._stack = stack.pop_all()
        self._started = self._swept = self.clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def object(self) -> Object:
        """What is loaded: guards stand beside it, and share its maps."""
        return self._object

    def use(self, table: Table) -> None:
        """
        Let the kernel score with *table* from now on, in place of an earlier one, if there was one.

        It is written beside the one in use; then all threads change over at once, each between two calls.
        """
        self.table = table
        epoch, old = self._config.epoch + 1, self._object.map("profiles").keys(abi.ProfileKey)
        base = abi.ROWS - self._config.base if self._config.scoring else 0
        wait_for_programs()  # none may still be reading what lies there
        images = table.images(epoch, self.path_seed)
        if len(images) > abi.ROWS:
            raise ModelError(
                f"has {len(images)} rows, the kernel has room for {abi.ROWS}", remedy="train it again"
            )
        for number, image in enumerate(images):
            if len(image) != ctypes.sizeof(abi.Profile):
                raise ModelError(
                    f"row {number} has {len(image)} bytes, the kernel's have {ctypes.sizeof(abi.Profile)}",
                    remedy="train it again",
                )
            self._object.map("models").update(base + number, abi.Profile.from_buffer_copy(image))
        for program, service, row in table.keys(self.path_seed):
            key = abi.ProfileKey(program=program, service=service, epoch=epoch)
            self._object.map("profiles").update(key, ctypes.c_uint32(base + row))
        self._config.epoch, self._config.base, self._config.scoring = epoch, base, 1
        self._configure()
        wait_for_programs()
        for key in old:
            self._object.map("profiles").delete(key)

    def recognise(self, program: str, known: str) -> None:
        """Let *program* have the rows of *known* from its next execution on: it is a copy of it."""
        if self.table is None:
            return
        hashed, wanted = program_hash(program, self.path_seed), program_hash(known, self.path_seed)
        for of, service, row in self.table.keys(self.path_seed):
            if of == wanted and hashed:
                key = abi.ProfileKey(program=hashed, service=service, epoch=self._config.epoch)
                self._object.map("profiles").update(key, ctypes.c_uint32(self._config.base + row))

    def poll(self, seconds: float = 0.2) -> list[memoryview]:
        """Return the records that have arrived, waiting at most *seconds* for the first; sweeps idle threads."""
        # One waking up for many records instead of one for each; a ring that fills up is emptied at once.
        if self._ring.wait(seconds) and self._ring.fill < _FULL:
            self.sleep(_GATHER)
        if self.clock() - self._swept >= _SWEEP_EVERY:
            run_iterator(self._sweeper)
            self._swept = self.clock()
        return list(self._take())

    def finish(self) -> Iterator[list[memoryview]]:
        """Stop collecting, flush every thread, and yield all that is left."""
        self._config.stopping = 1
        self._configure()
        self._object.detach_program(self.entry)
        wait_for_programs()
        self._duration = self.clock() - self._started
        # No thread gains a token any more. Those that end meanwhile flush themselves, so the other programs stay until
        # the sweep is through; one that was just doing so was busy, so look again.
        for _ in range(_SWEEPS):
            run_iterator(self._sweeper)
            while records := list(self._take()):
                yield records
            now = self.counters()
            if now["seen"] == sum(now[part] for part in SEEN_PARTS):
                break
        for program in (*reversed(_LIFECYCLE), self.entry):
            self._object.detach_program(program)
        wait_for_programs()
        while records := list(self._take()):
            yield records

    def counters(self) -> dict[str, int]:
        """Return struct ks_counters summed over programs and CPUs, its arrays with a name for each place."""
        total: dict[str, int] = {}
        for program in range(_ACCOUNTS):
            for one in self._object.map("counters").lookup_percpu(program, abi.Counters):
                for name, value in numbers(one):
                    total[name] = total.get(name, 0) + value
        return total

    def lost(self) -> int:
        """Return how many records were dropped."""
        now = self.counters()
        guards = self._object.map("guard_counters").lookup_percpu(0, GuardCounters)
        dropped = sum(int(one.records_dropped) for one in guards)
        return now["windows_dropped"] + now["calls_dropped"] + now["lifecycle_dropped"] + dropped

    def account(self) -> Account:
        """
        Return the counters, the runs the kernel itself missed, and what was delivered.

        ``records_missing`` is counted here, by the records' own numbers; after `finish` it is what the kernel says
        that it has dropped.
        """
        missed = sum(self._object.missed(program) for program in (self.entry, *_LIFECYCLE))
        seconds = self._duration or self.clock() - self._started
        missing = self._sequences.missing
        if self._duration:
            for program in range(_ACCOUNTS):
                for cpu, one in enumerate(self._object.map("counters").lookup_percpu(program, abi.Counters)):
                    missing += self._sequences.behind(program, cpu, one.records)
            for cpu, guards in enumerate(self._object.map("guard_counters").lookup_percpu(0, GuardCounters)):
                missing += self._sequences.behind(_ACCOUNTS, cpu, guards.sequence)
        return {
            **self.counters(),
            "missed_runs": missed,
            "records_delivered": self._records,
            "records_missing": missing,
            "seconds": round(seconds, 3),
        }

    def fill(self) -> float:
        """Return how full the ring buffer is, from 0 to 1."""
        return self._ring.fill

    def _take(self) -> Iterator[memoryview]:
        for record in self._ring.read():
            self._records += 1
            self._sequences.seen(record)
            yield record

    def _configure(self) -> None:
        self._object.map("config").update(0, self._config)

    def _fill(self) -> None:
        """Write what doesn't change while the collector runs."""
        for name, arguments in CAPTURES.items():
            self._capture(name, arguments)
        for text, what in self.prefixes.items():
            path = text.encode("utf-8", "surrogateescape")[: abi.PREFIX]
            key = abi.Prefix(bits=8 * len(path), path=(ctypes.c_uint8 * abi.PREFIX)(*path))
            number = ctypes.c_uint32(NO_CLASS if what is None else what)
            self._object.map("prefixes").update(key, number)
        nothing = abi.NameFlag(0)
        for name in {*SYSTEM_DIRS, *self.names}:
            flags = self.names.get(name, nothing) | (abi.NameFlag.SYSTEM if name in SYSTEM_DIRS else nothing)
            hashed = ctypes.c_uint64(name_hash(name.encode(), self.path_seed))
            self._object.map("names").update(hashed, ctypes.c_uint32(flags))
        for kind, value in self.wanted.entries(self.path_seed):
            self._object.map("filters").update(abi.Filter(value=value, kind=kind), ctypes.c_uint32(1))

    def _introduce(self, told: Mapping[int, bytes]) -> dict[int, bytes]:
        """
        Tell the kernel's side who runs already; what it has learnt by itself since it was *told* is fresher, and stays.

        Returns
        -------
        What it was told, by pid.
        """
        known, now = self._object.map("processes"), {}
        for pid, process in self.processes():
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # it has ended
                continue
            try:
                now[pid] = bytes(process)
                present = known.lookup(descriptor, abi.Process)
                if present is None or bytes(present) == told.get(pid):
                    known.update(descriptor, process, NOEXIST if present is None else ANY)
            except HostError:
                if not _ended(descriptor):
                    raise
            finally:
                os.close(descriptor)
        return now

    def _capture(self, name: str, arguments: tuple[int, ...]) -> None:
        fields = ("path1", "dir1", "path2", "dir2", "address", "address_len", "words")
        wanted = abi.Wanted.AT_ONCE if name.startswith("execve") else abi.Wanted.PATIENTLY
        capture = abi.Capture(wanted=wanted, **dict(zip(fields, arguments, strict=False)))
        tables = [(self.arch, (syscalls.Abi.NATIVE, syscalls.Abi.X32)), ("i386", (syscalls.Abi.COMPAT,))]
        known = False
        for arch, abis in tables if self.arch == "x86_64" else tables[:1]:
            number = syscalls.numbers(arch).get(name)
            if number is not None:
                known = True
                for one in abis:
                    self._object.map("captures").update(syscalls.token(number, one), capture)
        if not known and self.arch == "x86_64":
            raise HostError(f"no system call is named {name}", remedy="please report this")


SEEN_PARTS = ("scored", "unscored", "own", "excluded", "no_storage", "contended")
"""What the system calls seen are the sum of."""

NO_CLASS = 255
_ACCOUNTS = 5
"""The collector's programs, by their numbers; guards are all one, behind them."""
_PLACES = {
    "closed": ("full", "exit", "exec", "idle", "stop"),
    "choices": ("ungated", "flagged", "sampled", "gated"),
    "classes": (*syscalls.CLASSES, *(f"class_{n}" for n in range(len(syscalls.CLASSES), abi.CLASSES))),
}
_SINGULAR = {"closed": "closed", "choices": "windows", "classes": "tokens"}


def numbers(counters: abi.Counters) -> Iterator[tuple[str, int]]:
    """Yield name and value of each counter, those of arrays with a name for each place."""
    for name, _ in abi.Counters._fields_:
        value = getattr(counters, name)
        if name not in _PLACES:
            yield name, value
            continue
        for place, one in zip(_PLACES[name], value, strict=True):
            if not place.startswith("class_"):
                yield f"{_SINGULAR[name]}_{place}", one


def _ended(descriptor: int) -> bool:
    readable, _, _ = select.select([descriptor], [], [], 0)
    return bool(readable)
