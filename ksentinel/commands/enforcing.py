# SPDX-License-Identifier: Apache-2.0
"""Enforcement on this host: what it asks of the host, and the thread that keeps it."""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ksentinel import host, support
from ksentinel.bpf import probe
from ksentinel.bpf.guard_abi import Hook
from ksentinel.commands.output import tell
from ksentinel.commands.walk import user_names
from ksentinel.config import Config
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import Breaker, Change, is_roots
from ksentinel.enforce.canary import Canary, Helper, Mailbox, proof_in
from ksentinel.enforce.compiled import Compiled
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.enforcement import Enforcement, Wanted
from ksentinel.enforce.guards import CONFINING, Guards
from ksentinel.enforce.left import PINS, Left, left
from ksentinel.enforce.never import Spared, never_list
from ksentinel.enforce.places import resolve
from ksentinel.enforce.rollout import (
    BOOTS,
    CHANGES,
    FLAG,
    Boots,
    Login,
    Release,
    flag,
    read_changes,
    release_words,
    write_changes,
)
from ksentinel.enforce.settings import Settings, load
from ksentinel.enforce.vital import Own
from ksentinel.errors import HostError, InputError
from ksentinel.event import Process, ProcessKey
from ksentinel.mounts import MOUNTINFO, cgroup_mounts
from ksentinel.rules.derivation import Derived, derive
from ksentinel.shipped import shipped

_PROC = Path("/proc")
_TICK = 1.0


def preflight() -> HostError | None:
    """Return why guards can't stand on this host, with the remedy; None if they can. Takes a moment."""
    active = support.active_lsms()
    checks = [support.kernel(), support.capabilities(), support.btf(), support.libbpf(probe.why_no_libbpf())]
    if all(check.ok for check in checks):
        checks += [support.bpf_lsm(active), support.lsm_program(probe.try_program(probe.LSM), active)]
    for check in checks:
        if not check.ok:
            return HostError(
                f"nothing can be enforced here: {check.name}: {check.reason}", remedy=check.remedy
            )
    return None


def load_settings(config: Config) -> Settings:
    """Return the operator's file; raises RuleError."""
    return (
        load(Path(config.enforce.file), trusted_uids={0, host.user()}) if config.enforce.file else Settings()
    )


def derived(ruleset: Any) -> tuple[Derived, ...]:
    """Return every rule, those that ask for it with their guards."""
    users = user_names()
    return tuple(
        derive(one, users)
        if one.rule.response is not None and one.rule.response.inline
        else Derived(one.rule, (), ())
        for one in ruleset.compiled
    )


def compile_here(
    rules: Sequence[Derived], settings: Settings, *, store: Path, socket: Path | None
) -> Compiled:
    """Return the policy of rules and the operator's file on this host; raises RuleError."""
    own = Own(sys.executable, str(store), str(socket or host.SYSTEM_SOCKET))
    return compile_policy(
        rules, settings, resolve=resolve, arch=platform.machine(), own=own, also=confining(rules)
    )


def confining(rules: Sequence[Derived]) -> Collection[Hook]:
    """Return where guards must stand to carry out verdicts; nowhere if no rule asks for one."""
    asked = {one.rule.response.action for one in rules if one.rule.response is not None}
    return CONFINING if asked & {"quarantine", "kill"} else ()


def key_of(pid: int) -> ProcessKey | None:
    """Return who has that PID now; None if nobody."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return ProcessKey(pid, int(fields[19]) * 10_000_000)


def parent_of(pid: int) -> int:
    """Return a process' parent, 0 if it has none."""
    try:
        return int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def login_of(pid: int) -> Login | None:
    """Return the login that a process belongs to; None if it has ended."""
    try:
        leader = key_of(os.getsid(pid))
    except OSError:
        return None
    return None if leader is None else Login(leader, _number(pid, "sessionid"), _number(pid, "loginuid"))


def _number(pid: int, name: str) -> int | None:
    try:
        return int((_PROC / str(pid) / name).read_text())
    except (OSError, ValueError):
        return None


def spared_here(settings: Settings) -> tuple[Spared, ...]:
    """Return who is never denied anything on this host: PID 1, ksentinel and what it was started from among them."""
    processes = []
    pid = os.getpid()
    while pid > 1:
        if (key := key_of(pid)) is not None:
            processes.append(("ksentinel" if pid == os.getpid() else "what ksentinel was started from", key))
        pid = parent_of(pid)
    if (first := key_of(1)) is not None:
        processes.append(("PID 1", first))
    return never_list(settings, resolve, processes)


class Here:
    """
    This host, as enforcement asks it.

    Parameters
    ----------
    table
        Who runs, as the live stream knows it.
    """

    def __init__(self, table: Any, *, store: Path, socket: Path | None, state: Path | None) -> None:
        self.table = table
        self.store = store
        self.socket = socket
        self.changes_file = changes_file(state)
        self._cmdline = release_words((_PROC / "cmdline").read_bytes().decode("utf-8", "replace"))
        self._changes: dict[str, Change] | None = None
        self.helper: ProcessKey | None = None

    def boot_ns(self) -> int:
        """Nanoseconds since boot."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return host.now_ns()

    def processes(self) -> Sequence[Process]:
        """Who runs."""
        return list(self.table)

    def own(self) -> Process:
        """Return this process."""
        key = key_of(os.getpid()) or ProcessKey(os.getpid(), 0)
        found: Process = self.table.find(key)
        return found

    def compile(self, rules: Any, settings: Settings) -> Compiled:
        """Return the policy of rules and settings; raises RuleError."""
        return compile_here(rules, settings, store=self.store, socket=self.socket)

    def never(self, settings: Settings) -> Sequence[Spared]:
        """Return who is never denied anything, the canary's helper among them."""
        helper = self.helper
        own = (
            ()
            if helper is None
            else (Spared("the canary's helper", "it prepares the proofs", process=helper, children=True),)
        )
        return (*spared_here(settings), *own)

    def cgroups(self, path: str) -> tuple[int, ...]:
        """Return the id of a control group."""
        mounted = cgroup_mounts(MOUNTINFO.read_text())
        if mounted.v2 is None or ".." in path:
            return ()
        with suppress(OSError, ValueError):
            return ((mounted.v2 / path.lstrip("/")).stat().st_ino,)
        return ()

    def releases(self) -> Sequence[Release]:
        """Return who wants out."""
        return [one for one in (self._cmdline, flag(FLAG)) if one is not None]

    def changes(self) -> dict[str, Change]:
        """Return since when rules have been what they are."""
        if self._changes is None:
            try:
                self._changes = read_changes(self.changes_file, os.geteuid())
            except InputError as error:
                tell(f"{error}: all rules count as changed now")
                self._changes = {}
        return self._changes

    def keep_changes(self, changes: Mapping[str, Change]) -> None:
        """Keep that."""
        self._changes = dict(changes)
        try:
            write_changes(changes, self.changes_file)
        except InputError as error:
            tell(f"{error}: the next start will count all rules as changed")


class Nowhere:
    """In place of guards on a host that takes none, where that was accepted: nothing stands, and nothing is verified."""

    def __init__(self, why: HostError) -> None:
        self.mode = Mode.OFF
        self.most: Mode | None = None
        self.epoch = 0
        self.released = False
        self.attached: tuple[Hook, ...] = ()
        self.missing: dict[Hook, str] = {}
        self.why = why

    def use(self, compiled: Compiled, _processes: Any) -> int:
        """Note where guards would stand."""
        self.missing = dict.fromkeys(compiled.hooks, self.why.what)
        return 0

    def release(self, *, on: bool) -> None:
        """Let everything go: it is gone."""
        self.released = on

    def sentences(self) -> dict[ProcessKey, Any]:
        """Return nobody."""
        return {}

    def counters(self) -> dict[str, int]:
        """Return nothing."""
        return {}

    def sentence(self, *_arguments: Any) -> None:
        """Refuse to; raises HostError."""
        raise self.why

    def _nothing(self, *_arguments: Any) -> None:
        """Do nothing: there is nobody to do it."""

    beat = lift = spare = cgroup_modes = _nothing


def start_of(boots: Boots, mode: Mode) -> tuple[Mode, str]:
    """Return the most that the boots before allow, and why."""
    if mode is not Mode.ENFORCE:
        return Mode.ENFORCE, ""
    boot_id = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    booted_ns = host.now_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    try:
        start = boots.begin(boot_id, booted_ns)
    except InputError as error:
        return (
            Mode.PERMISSIVE,
            f"boots can't be counted, and so nobody would notice a host that doesn't come up: {error}",
        )
    return start.most, start.why


@contextmanager
def enforcing(
    config: Config,
    stream: Any,
    rules: Sequence[Derived],
    settings: Settings,
    wanted: Wanted,
    *,
    store: Path,
    socket: Path | None,
    state: Path | None,
    refused: HostError | None,
) -> Iterator[Enforcement]:
    """
    Give enforcement, its guards attached; proofs are made by a thread of its own, and need the stream to be read meanwhile.

    Parameters
    ----------
    refused
        Why no guard can stand here; None if they can.
    """
    from ksentinel.actor import nothing

    here = Here(stream.normalizer.table, store=store, socket=socket, state=state)
    collector = stream.collector
    mailbox = Mailbox()
    with ExitStack() as stack:
        guards: Any = Nowhere(refused) if refused is not None else None
        if guards is None:
            guards = stack.enter_context(
                Guards(
                    collector.object,
                    shipped("lsm_bpf"),
                    collector.path_seed,
                    collector.arch,
                    os.getpid(),
                    over_ns=int(config.enforce.over_seconds * 1e9),
                    denials_a_second=config.enforce.denials_a_second,
                )
            )

        def started(pid: int) -> None:
            here.helper = key_of(pid)
            guards.spare(here.never(enforcement.settings))

        canary = stack.enter_context(
            Canary(
                guards.arm if refused is None else lambda *_: None,
                guards.disarm if refused is None else lambda: None,
                mailbox.take,
                lambda: Helper(nothing(platform.machine()), started, seconds=config.enforce.proof_seconds),
                seconds=config.enforce.proof_seconds,
                round_seconds=5 * config.enforce.proof_seconds,
            )
        )
        breaker = Breaker(is_roots, pinned=settings.pinned)
        enforcement = Enforcement(guards, canary, mailbox, breaker, here, wanted, rules, settings, tell)

        enforcement.reload = lambda loaded: enforcement.change(derived(loaded.rules), load_settings(config))

        def divert(record: memoryview) -> bool:
            told = proof_in(record)
            if told is None:
                return False
            mailbox.put(told)
            return True

        watched = stream.keep

        def keep(item: Any) -> bool:
            process = item.process
            if canary.is_canary(process.key.pid) or any(
                canary.is_canary(one.key.pid) for one in process.ancestors()
            ):
                return False  # what it tries is nobody's business
            return watched is None or bool(watched(item))

        stream.normalizer.rule_of, stream.divert, stream.keep = enforcement.policies.rule_of, divert, keep
        if refused is None:
            _pinning(stack, config, guards, enforcement, wanted)
        else:
            enforcement.start()
        stack.enter_context(_kept(enforcement))
        yield enforcement


def _pinning(
    stack: ExitStack, config: Config, guards: Guards, enforcement: Enforcement, wanted: Wanted
) -> None:
    """Attach, take over from runs that have ended, and only then let go of what they have left."""
    before = [one for one in left(PINS) if key_of(one.pid) is None or one.holds]
    pids = [one.key.pid for one in enforcement.world.processes()]
    for one in before:
        guards.take_over(one, pids)
    hold = wanted.on_exit is OnExit.HOLD
    folder = PINS / f"{os.getpid()}-{time.clock_gettime_ns(time.CLOCK_BOOTTIME)}"
    pinned = False
    try:
        folder.mkdir(mode=0o700, parents=True)
        stack.callback(_unpin, Left(folder))
        pinned = True
    except OSError as error:
        if hold:
            raise HostError(
                f"guards can't outlive ksentinel: {folder}: {error.strerror}",
                remedy="mount -t bpf bpf /sys/fs/bpf; or --on-exit open",
            ) from None
        tell(
            f"no BPF file system: `ksentinel release --all` works only while ksentinel answers ({error.strerror})"
        )
    guards.hold(
        two_key_ns=int(config.enforce.two_key_seconds * 1e9), all_ns=int(config.enforce.hold_seconds * 1e9)
    )
    enforcement.start()
    if pinned:
        guards.pin(folder, links=hold)
    for one in before:
        one.remove()
        tell(f"took over from the ksentinel of PID {one.pid}, which has ended")


def _unpin(mine: Left) -> None:
    try:
        mine.remove()
    except HostError as error:
        tell(str(error))


@contextmanager
def _kept(enforcement: Enforcement) -> Iterator[None]:
    """Have it ticked every second by a thread of its own."""
    stopping = threading.Event()

    def run() -> None:
        # Signals are the main thread's: one that came here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not stopping.is_set():
            try:
                enforcement.tick()
            except Exception as error:  # noqa: BLE001 -- a dead thread would be a heartbeat that stops, and proofs that nobody misses
                enforcement.failure = enforcement.failure or HostError(
                    f"enforcement has failed: {type(error).__name__}: {error}", remedy="please report this"
                )
            stopping.wait(_TICK)

    thread = threading.Thread(target=run, name="enforcement")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def boot_ns() -> int:
    """Return nanoseconds since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def changes_file(state: Path | None) -> Path:
    """Return where it is kept since when rules have been what they are."""
    return CHANGES if state is None else state / CHANGES.name


def boots_file(state: Path | None) -> Path:
    """Return where boots are counted."""
    return BOOTS if state is None else state / BOOTS.name
