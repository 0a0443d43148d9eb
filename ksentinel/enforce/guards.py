# SPDX-License-Identifier: Apache-2.0
"""
Guards: the BPF-LSM programs, loaded, attached, and told what is in force.

They stand beside the collector's programs and share their maps: who is who, and how unusual each thread is. A policy is written beside
the one in force and then exchanged as a whole; modes, release, heartbeat and canary are stores into memory that every run of a
program reads once.
"""

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from ksentinel.bpf import abi, guard_abi
from ksentinel.bpf.guard_abi import FlagsAt, GuardCounters, Hook, Outcome, Sentenced, SentenceKind, Switch
from ksentinel.bpf.libbpf import Map, Object, kernel_has_hook, pin, run_iterator, wait_for_programs
from ksentinel.enforce import Mode
from ksentinel.enforce.compiled import Compiled, numbered_calls, tokens_of
from ksentinel.enforce.denial import EARLIER
from ksentinel.enforce.left import PROCESSES, SENTENCES, SWITCHES, Left, of_process
from ksentinel.enforce.never import Spared
from ksentinel.errors import HostError, RuleError
from ksentinel.event import Process, ProcessKey

THEMES: Mapping[str, tuple[Hook, ...]] = MappingProxyType(
    {
        "exec": (Hook.BPRM_CHECK_SECURITY, Hook.BPRM_CREDS_FROM_FILE, Hook.MMAP_FILE),
        "file": tuple(hook for hook in Hook if hook.name.startswith(("FILE_", "PATH_"))),
        "net": tuple(hook for hook in Hook if hook.name.startswith(("SOCKET_", "UNIX_"))),
        "privilege": tuple(hook for hook in Hook if hook >= Hook.PTRACE_ACCESS_CHECK),
    }
)
"""Which object has the guards of which hooks."""

CONFINING = (
    Hook.BPRM_CHECK_SECURITY,
    Hook.FILE_OPEN,
    Hook.PATH_TRUNCATE,
    Hook.SOCKET_CONNECT,
    Hook.SOCKET_SENDMSG,
    Hook.UNIX_STREAM_CONNECT,
    Hook.UNIX_MAY_SEND,
    Hook.PTRACE_ACCESS_CHECK,
)
"""Where verdicts on processes are carried out: what a quarantine is about."""

FLAGS_AT: Mapping[str, int] = MappingProxyType(
    {"open": 2, "openat": 3, "unlinkat": 3, "linkat": 5, "umount2": 2, "unshare": 1}
)
"""In which argument calls have their flags, for hooks that aren't told them; as the events of these calls have them."""
FLAGS_OF: Mapping[str, int] = MappingProxyType({"creat": 0o1101})
"""Flags of calls that always have the same, and no argument for them."""

LIFECYCLE = ("on_exit", "on_fork", "on_exec")
"""The collector's programs without which guards wouldn't know who is who."""
PINNED = (SWITCHES, SENTENCES, PROCESSES)
"""Maps that are pinned: to let everything go, and for the next start to take verdicts and scores over."""
_ROUND_NS = 10_000_000


class Guards:
    """
    The guards, attached for as long as the ``with`` block lasts, or their pins do.

    Parameters
    ----------
    collector
        The collector's object, loaded.
    folder
        Where the compiled objects are.
    path_seed
        The collector's secret behind path hashes.
    arch
        This machine's architecture.
    own_pid
        ksentinel's own process: it is spared.
    over_ns
        For how long a process counts as over its threshold after one of its threads was.
    denials_a_second
        Records of one process, 0: no limit. What is denied beyond is counted, and denied all the same.
    clock_ns
        Nanoseconds since boot.

    Attributes
    ----------
    attached
        Where guards stand.
    missing
        Hooks that a policy asks for and this kernel lacks, and what that means.
    epoch
        Of the policy in force; 0: none.
    following
        Of the next one. No epoch is tried twice: what a policy has left that was refused would speak in the next one.
    unnamed
        Processes that ran already and found no room to be told whose children they are.
    """

    def __init__(
        self,
        collector: Object,
        folder: Path,
        path_seed: int,
        arch: str,
        own_pid: int,
        *,
        over_ns: int = 30_000_000_000,
        denials_a_second: int = 100,
        clock_ns: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        has_hook: Callable[[str], bool] = kernel_has_hook,
    ) -> None:
        self.collector = collector
        self.folder = folder
        self.path_seed = path_seed
        self.arch = arch
        self.own_pid = own_pid
        self.over_ns = over_ns
        self.denials_a_second = denials_a_second
        self.clock_ns = clock_ns
        self.has_hook = has_hook
        self.epoch = 0
        self.following = 1
        self.missing: dict[Hook, str] = {}
        self._standing: dict[Hook, Object] = {}
        self._loaded: dict[Hook, Object] = {}
        self._spared: dict[bytes, guard_abi.Spared] = {}
        self._cgroups: dict[int, Mode] = {}
        self._slot = 0
        self.unnamed = 0
        self._pins: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            memory = stack.enter_context(mmap.mmap(self._map("switches").fd, mmap.PAGESIZE))
            # What stands there is read by each run of a program: fields are stored one by one, never the whole.
            self._switch = Switch.from_buffer(memory)
            stack.callback(self._let_go)
            self._switch.mode = Mode.OFF.rank
            self._switch.own_tgid = self.own_pid
            self._switch.denials_a_second = self.denials_a_second
            self._switch.over_ns = self.over_ns
            self._switch.heartbeat_ns = self.clock_ns()
            for token, bits in numbered_calls(self.arch).items():
                self._map("calls").update(token, ctypes.c_uint64(bits))
            for call, argument in FLAGS_AT.items():
                for token in tokens_of(call, self.arch):
                    self._map("flag_arguments").update(token, FlagsAt(argument=argument))
            for call, value in FLAGS_OF.items():
                for token in tokens_of(call, self.arch):
                    self._map("flag_arguments").update(token, FlagsAt(given=1, value=value))
            self._naming = self.collector.iterator("name_running")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def attached(self) -> tuple[Hook, ...]:
        """Where guards stand."""
        return tuple(sorted(self._standing))

    # What is in force

    def use(self, compiled: Compiled, processes: Iterable[Process]) -> int:
        """
        Have a policy decide from now on; returns its epoch.

        Where it is the first at a hook, the guard there is attached before. Until the running processes are named by it (a few
        milliseconds), tests of who they are make no way speak.

        Parameters
        ----------
        processes
            That run, for the names above them.

        Raises
        ------
        RuleError
            If one of the maps has no room for it.
        HostError
            If the kernel refuses. In both cases the policy before stays, where it stood; unless *epoch* says that this one decides.
        """
        epoch, self.following = self.following, self.following + 1
        old, before, slot = self.epoch, set(self._standing), 1 - self._slot
        with ExitStack() as undo:
            undo.callback(self._forget, epoch)
            undo.callback(self._detach_all_but, before)
            try:
                self._write(compiled, epoch)
            except HostError as error:
                raise RuleError(
                    f"the policy doesn't fit into the kernel: {error}",
                    remedy="enforce fewer rules and entries",
                ) from error
            missing = self._attach(compiled.hooks)
            self._introduce(compiled, processes, epoch)
            free = self._map(("first_policy", "second_policy")[slot])
            wait_for_programs()  # none may still be reading what lay there two policies ago
            free.update(0, compiled.policy(epoch))
            self._map("policies").update(0, ctypes.c_uint32(free.fd))
            undo.pop_all()
        self.epoch, self._slot, self.missing = epoch, slot, missing
        run_iterator(self._naming)
        run_iterator(self._naming)  # who was born during the first pass of a parent that came later
        wait_for_programs()
        self._detach_all_but(compiled.hooks)
        self._forget(old)
        return epoch

    def name(self, compiled: Compiled, processes: Iterable[Process]) -> None:
        """Name running processes once more: those that were born while the first ones were."""
        self._introduce(compiled, processes, self.epoch)
        run_iterator(self._naming)

    def spare(self, never: Iterable[Spared]) -> None:
        """Deny those nothing, whatever a policy says; who was spared and is no longer named isn't. Raises HostError."""
        wanted = {bytes(key): (key, one.flags) for one in never if (key := one.key()) is not None}
        for raw, (key, flags) in wanted.items():
            self._map("spared").update(key, ctypes.c_uint32(flags))
            self._spared[raw] = key
        for raw in self._spared.keys() - wanted.keys():
            self._map("spared").delete(self._spared[raw])
            del self._spared[raw]

    def cgroup_modes(self, modes: Mapping[int, Mode]) -> None:
        """Let control groups, by id, have modes of their own, those below them too; raises HostError, and then they have those before."""
        table = self._map("cgroup_modes")
        try:
            for number, mode in modes.items():
                table.update(ctypes.c_uint64(number), ctypes.c_uint32(mode.rank))
        except HostError:
            for number in modes:
                if number in self._cgroups:
                    table.update(ctypes.c_uint64(number), ctypes.c_uint32(self._cgroups[number].rank))
                else:
                    table.delete(ctypes.c_uint64(number))
            raise
        self._switch.cgroups = int(bool(modes))
        for number in self._cgroups.keys() - modes.keys():
            table.delete(ctypes.c_uint64(number))
        self._cgroups = dict(modes)

    # What can be switched at any time

    @property
    def mode(self) -> Mode:
        """The host's: where neither a rule nor a control group has one."""
        return next(mode for mode in Mode if mode.rank == self._switch.mode)

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._switch.mode = mode.rank

    @property
    def most(self) -> Mode | None:
        """What no mode is more than, whoever names it; None: any."""
        return next((mode for mode in Mode if mode.rank == self._switch.most), None)

    @most.setter
    def most(self, mode: Mode | None) -> None:
        self._switch.most = 0 if mode is None else mode.rank

    @property
    def released(self) -> bool:
        """Whether nothing is denied, whatever else says so."""
        return bool(self._switch.released)

    def release(self, *, on: bool) -> None:
        """Let everything go, or don't any more."""
        self._switch.released = int(on)

    def beat(self) -> None:
        """Tell that somebody still watches."""
        self._switch.heartbeat_ns = self.clock_ns()

    def hold(self, *, two_key_ns: int, all_ns: int) -> None:
        """Say for how long after the last `beat` scores count, and guards deny at all; 0: for ever."""
        self._switch.two_key_ns = two_key_ns
        self._switch.hold_ns = all_ns

    def arm(self, tid: int, hook: Hook, nonce: int) -> None:
        """Let the canary's way speak against a thread, at one hook."""
        self._switch.canary_nonce = nonce
        self._switch.canary_hook = int(hook)
        self._switch.canary_tid = tid

    def disarm(self) -> None:
        """Let it speak against nobody."""
        self._switch.canary_tid = 0

    # Verdicts on processes

    def sentence(
        self, key: ProcessKey, kind: SentenceKind, until_ns: int, number: int, mode: Mode | None = None
    ) -> None:
        """
        Carry out a verdict on a process, and on those that it forks from now on.

        Parameters
        ----------
        until_ns
            When it ends, in nanoseconds since boot.
        number
            What its denials say that it is by.
        mode
            None: as the process' control group or the host has it.

        Raises
        ------
        HostError
            If the kernel has no room for it.
        """
        sentence = guard_abi.Sentence(
            until_ns=until_ns, rule=number, kind=int(kind), mode=0 if mode is None else mode.rank
        )
        self._map("sentences").update(_sentenced(key), sentence)
        self._switch.sentences = 1

    def lift(self, key: ProcessKey) -> None:
        """End a verdict on a process before its time; raises HostError."""
        self._map("sentences").delete(_sentenced(key))

    def sentences(self) -> dict[ProcessKey, guard_abi.Sentence]:
        """Return who is under a verdict, those born under one among them; ended ones are taken away. Raises HostError."""
        table, found, now = self._map("sentences"), {}, self.clock_ns()
        for key in table.keys(Sentenced):
            value = table.lookup(key, guard_abi.Sentence)
            if not isinstance(value, guard_abi.Sentence) or not isinstance(key, Sentenced):
                continue
            if value.until_ns <= now:
                table.delete(key)
            else:
                found[ProcessKey(int(key.tgid), int(key.start_ns))] = value
        if not found:
            self._switch.sentences = 0
            # One may have come between the look and the store.
            self._switch.sentences = int(bool(table.keys(Sentenced)))
        return found

    # What they have done

    def counters(self) -> dict[str, int]:
        """Return struct ks_guard_counters summed over CPUs, outcomes by their names; raises HostError."""
        total = {outcome.name.lower(): 0 for outcome in Outcome}
        for one in self._map("guard_counters").lookup_percpu(0, GuardCounters):
            for outcome in Outcome:
                total[outcome.name.lower()] += int(one.outcomes[outcome])
            for name, _ in GuardCounters._fields_:
                if name not in {"outcomes", "sequence"}:
                    total[name] = total.get(name, 0) + int(getattr(one, name))
        return total

    # Pins

    def pin(self, folder: Path, *, links: bool) -> None:
        """
        Make them known in a BPF file system, in a folder that is there.

        The maps always, so that a release needs nobody's help; with *links* the guards themselves, and what tells processes apart,
        which then outlive this process.

        Raises
        ------
        HostError
            If there is no BPF file system, or it refuses.
        """
        for name in PINNED:
            pin(self._map(name).fd, folder / name)
        if links:
            for program in LIFECYCLE:
                self.collector.pin(program, folder / program)
            for hook, one in self._standing.items():
                one.pin(program_at(hook), folder / program_at(hook))
            self._pins = folder

    def take_over(self, before: Left, pids: Iterable[int]) -> None:
        """Carry on with the verdicts and scores of guards before these ones, which still stand; raises HostError."""
        for key, sentence in before.sentences().items():
            sentence.rule = EARLIER  # numbers of rules are each run's own
            self._map("sentences").update(_sentenced(key), sentence)
            self._switch.sentences = 1
        known = self._map("processes")
        for pid, score, over_ns in before.scores(pids):
            process = of_process(known, pid)
            if process is None:
                continue
            process.score, process.over_ns = (
                max(score, int(process.score)),
                max(over_ns, int(process.over_ns)),
            )
            with suppress(HostError, OSError):  # it has ended
                descriptor = os.pidfd_open(pid)
                try:
                    known.update(descriptor, process)
                finally:
                    os.close(descriptor)

    # Inside

    def _map(self, name: str) -> Map:
        return self.collector.map(name)

    def _write(self, compiled: Compiled, epoch: int) -> None:
        """Write what stands beside the policy in force, by its epoch."""
        for name_key, sets in compiled.names(epoch, self.path_seed):
            self._map("name_sets").update(name_key, ctypes.c_uint64(sets))
        for beginning, sets in compiled.beginnings(epoch):
            self._map("beginnings").update(beginning, ctypes.c_uint64(sets))
        for network, bits in compiled.networks(epoch):
            self._map("networks").update(network, ctypes.c_uint64(bits))
        for place, sets_of in compiled.places(epoch):
            self._map("places").update(place, sets_of)

    def _forget(self, epoch: int) -> None:
        """Take away what an epoch has written."""
        kinds = {
            "name_sets": guard_abi.NameKey,
            "beginnings": guard_abi.Beginning,
            "networks": guard_abi.Network,
            "places": guard_abi.Place,
        }
        for name, kind in kinds.items():
            table = self._map(name)
            for key in table.keys(kind):
                if key.epoch == epoch:
                    table.delete(key)

    def _introduce(self, compiled: Compiled, processes: Iterable[Process], epoch: int) -> None:
        """Tell the names above each process; what it executes the kernel looks at itself."""
        table = self._map("introduced")
        held: dict[str, tuple[int, abi.Told]] = {}
        for process in processes:
            above = tuple(process.ancestors())
            parent = _held(compiled, held, [process.parent] if process.parent is not None else [])
            service = _held(compiled, held, [process.service] if process.service is not None else [])
            ancestors = _held(compiled, held, above)
            named = abi.Named(parent=parent[0], service=service[0], ancestors=ancestors[0], epoch=epoch)
            named.known[1], named.known[2], named.known[3] = parent[1], service[1], ancestors[1]
            try:
                table.update(_sentenced(process.key), named)
            except HostError:
                # No room: whose names aren't told has those of its parent, as the kernel knows them.
                self.unnamed += 1
        for key in table.keys(Sentenced):
            found = table.lookup(key, abi.Named)
            if found is not None and found.epoch != epoch:
                table.delete(key)

    def _attach(self, hooks: Collection[Hook]) -> dict[Hook, str]:
        """Load and attach what doesn't stand yet; returns where nothing can."""
        missing = {
            hook: "this kernel doesn't have it"
            for hook in hooks
            if hook not in self._standing and not self.has_hook(hook.name.lower())
        }
        wanted = [hook for hook in hooks if hook not in self._standing and hook not in missing]
        for theme, those in THEMES.items():
            new = [hook for hook in those if hook in wanted and hook not in self._loaded]
            if new:
                one = self._open(theme, new)
                self._loaded |= dict.fromkeys(new, one)
        for hook in wanted:
            self._loaded[hook].attach(program_at(hook))
            self._standing[hook] = self._loaded[hook]
            if self._pins is not None:
                self._standing[hook].pin(program_at(hook), self._pins / program_at(hook))
        return missing

    def _detach_all_but(self, hooks: Collection[Hook]) -> None:
        """Let guards go that a policy doesn't ask for; one that is pinned would stay, and be attached twice the next time."""
        for hook in set(self._standing) - set(hooks):
            if self._pins is not None:
                with suppress(OSError):  # somebody has taken it away
                    (self._pins / program_at(hook)).unlink()
            self._standing.pop(hook).detach_program(program_at(hook))

    def _open(self, theme: str, hooks: Collection[Hook]) -> Object:
        """Load a theme's object with the programs of these hooks alone."""
        one = self._stack.enter_context(Object(self.folder / f"{theme}.bpf.o"))
        for hook in THEMES[theme]:
            if hook not in hooks:
                one.leave_out(program_at(hook))
        one.share(self.collector)
        one.load()
        return one

    def _let_go(self) -> None:
        # A buffer that something still points to can't be unmapped.
        del self._switch


def program_at(hook: Hook) -> str:
    """Return the name of the program that guards a hook."""
    return f"on_{hook.name.lower()}"


def _sentenced(key: ProcessKey) -> Sentenced:
    return Sentenced(start_ns=key.start_ns // _ROUND_NS * _ROUND_NS, tgid=key.pid)


def _held(
    compiled: Compiled, held: dict[str, tuple[int, abi.Told]], processes: Collection[Process]
) -> tuple[int, int]:
    """Return the sets that any of these programs is in, and what is known of all of them; of nobody nothing is."""
    sets, known = 0, abi.Told.PATH | abi.Told.ASCII if processes else abi.Told(0)
    for process in processes:
        exe = process.exe
        if not exe.startswith("/") or exe.endswith(" (deleted)"):
            known = abi.Told(0)
            continue
        if exe not in held:
            held[exe] = compiled.holds(exe)
        sets |= held[exe][0]
        known &= held[exe][1]
    return sets, int(known)
