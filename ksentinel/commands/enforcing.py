# SPDX-License-Identifier: Apache-2.0
"""Enforcement on this host: what it asks of the host, and the thread that keeps it."""

import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ksentinel import host, support
from ksentinel.bpf.guard_abi import Hook
from ksentinel.commands.output import tell
from ksentinel.commands.walk import user_names
from ksentinel.config import Config
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import Breaker, Change, is_roots
from ksentinel.enforce.canary import Canary, Helper, HelperError, Mailbox, proof_in
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
from ksentinel.errors import HostError, InputError, KsentinelError
from ksentinel.event import Process, ProcessKey
from ksentinel.level import Level
from ksentinel.mounts import MOUNTINFO, cgroup_mounts
from ksentinel.policy import Action, Policy
from ksentinel.rules import Rule
from ksentinel.rules.derivation import Derived, derive
from ksentinel.shipped import shipped

_PROC = Path("/proc")
_TICK = 1.0
_HELPERS = 8
_UNSET = 0xFFFFFFFF
_TRIES = 5


def preflight() -> HostError | None:
    """Return why guards can't stand on this host, with the remedy, as `doctor` says; None if they can. Takes a moment."""
    for check in support.examine(load=False):
        if not check.ok and support.ENFORCE in check.needed_for:
            return HostError(
                f"nothing can be enforced here: {check.name}: {check.reason}", remedy=check.remedy
            )
    return None


def load_settings(config: Config) -> Settings:
    """Return the operator's file; raises RuleError."""
    return (
        load(Path(config.enforce.file), trusted_uids={0, host.user()}) if config.enforce.file else Settings()
    )


def derived(rules: Any, policy: Any) -> tuple[Derived, ...]:
    """Return every rule, those with their guards that ask for it and that the verdict's policy lets act."""
    users = user_names()
    found = []
    for one in rules.compiled:
        response, rule = one.rule.response, one.rule
        if response is None or not response.inline:
            found.append(Derived(rule, (), ()))
            continue
        most = permitted(rule, policy)
        if Action(response.action).rank > most.rank:
            tell(
                f"{rule.title}: asks for {response.action} in the kernel, and at level {rule.level} the policy permits "
                f"{'no more than an alert' if most is Action.ALERT else f'at most {most}'}: it has no guard"
            )
            found.append(Derived(replace(rule, response=replace(response, inline=False)), (), ()))
            continue
        found.append(derive(one, users))
    return tuple(found)


def permitted(rule: Rule, policy: Policy) -> Action:
    """Return the most that the policy permits about a rule: by itself, or (two keys) with a model that speaks, too."""
    asked = rule.response is not None and rule.response.anomalous
    models = [level for level in Level if level > Level.NONE] if asked else [Level.NONE]
    return max((policy.cell(rule.level, model, ()).permits for model in models), key=lambda one: one.rank)


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


def key_of(pid: int, proc: Path = _PROC) -> ProcessKey | None:
    """Return who has that PID now; None if nobody."""
    fields = _stat(pid, proc)
    return None if fields is None else _key(pid, fields)


def parent_of(pid: int, proc: Path = _PROC) -> int:
    """Return a process' parent, 0 if it has none."""
    fields = _stat(pid, proc)
    return 0 if fields is None else int(fields[1])


def login_of(pid: int, proc: Path = _PROC) -> Login | None:
    """
    Return the login that a process belongs to; None if it has ended.

    It begins with the oldest process above this one that is of it still: by audit's number, or, where there is none, by having a
    terminal. A session of one's own (``setsid``, sudo's) begins no login.
    """
    fields = _stat(pid, proc)
    if fields is None:
        return None
    number = _number(pid, "sessionid", proc)
    leader = key_of(int(fields[3]), proc) or _key(pid, fields)
    above = int(fields[1])
    while above > 1 and (status := _stat(above, proc)) is not None:
        numbered = number not in {None, _UNSET}
        if _number(above, "sessionid", proc) != number if numbered else not int(status[4]):
            break
        leader = min(leader, _key(above, status), key=lambda one: one.start_ns)
        above = int(status[1])
    return Login(leader, number, _number(pid, "loginuid", proc))


def _key(pid: int, fields: Sequence[bytes]) -> ProcessKey:
    return ProcessKey(pid, int(fields[19]) * 10_000_000)


def _stat(pid: int, proc: Path) -> list[bytes] | None:
    """Return the fields of its stat from the third on; None if there is no such process, or it has ended and nobody has asked how."""
    try:
        fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[0] in {b"Z", b"X"} else fields


def _number(pid: int, name: str, proc: Path) -> int | None:
    try:
        return int((proc / str(pid) / name).read_text())
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
    epoch_ns
        When this host booted, as the stream's events have it: its clock may have been set since.

    Attributes
    ----------
    helpers
        The canary's, the last ones: what they do may come late.
    """

    def __init__(
        self, table: Any, epoch_ns: int, *, store: Path, socket: Path | None, state: Path | None
    ) -> None:
        self.table = table
        self.epoch_ns = epoch_ns
        self.store = store
        self.socket = socket
        self.changes_file = changes_file(state)
        self.boots_file = boots_file(state)
        self._cmdline = release_words((_PROC / "cmdline").read_bytes().decode("utf-8", "replace"))
        self._changes: dict[str, Change] | None = None
        self.helpers: tuple[ProcessKey, ...] = ()

    def boot_ns(self) -> int:
        """Nanoseconds since boot."""
        return boot_ns()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, by the clock that events have."""
        return self.epoch_ns + boot_ns()

    def processes(self) -> Sequence[Process]:
        """Who runs."""
        for _ in range(_TRIES):
            # It is the walk's: whoever is born or ends while another thread looks makes that look again.
            with suppress(RuntimeError):
                return list(self.table)
        return list(self.table)

    def own(self) -> Process:
        """Return this process."""
        key = key_of(os.getpid()) or ProcessKey(os.getpid(), 0)
        found: Process | None = self.table.get(key.pid)
        return found if found is not None and found.key == key else Process(key, exe=sys.executable)

    def is_helper(self, process: Process) -> bool:
        """Tell whether a process is the canary's helper, or one of its children."""
        helpers = self.helpers  # another thread may start one
        return bool(helpers) and any(one.key in helpers for one in (process, *process.ancestors()))

    def login(self, pid: int) -> Login | None:
        """Return the login that a process belongs to; None if it has ended."""
        return login_of(pid)

    def compile(self, rules: Any, settings: Settings) -> Compiled:
        """Return the policy of rules and settings; raises RuleError."""
        return compile_here(rules, settings, store=self.store, socket=self.socket)

    def never(self, settings: Settings) -> Sequence[Spared]:
        """Return who is never denied anything, the canary's helper among them."""
        return (
            *spared_here(settings),
            *(
                Spared("the canary's helper", "it prepares the proofs", process=one, children=True)
                for one in self.helpers[-1:]
            ),
        )

    def cgroups(self, path: str) -> tuple[int, ...]:
        """Return the id of a control group."""
        mounted = cgroup_mounts(MOUNTINFO.read_text())
        if mounted.v2 is None or ".." in path:
            return ()
        place = mounted.v2 / path.lstrip("/")
        with suppress(OSError, ValueError):
            return (place.stat().st_ino,) if place.is_dir() else ()
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

    def forgive(self) -> None:
        """Write down that the boots weren't the guards' doing; raises InputError."""
        Boots(self.boots_file, os.geteuid()).forgive()


class Nowhere:
    """In place of guards on a host that takes none, where that was accepted: nothing stands, and nothing is verified."""

    def __init__(self, why: HostError) -> None:
        self.mode = Mode.OFF
        self.most: Mode | None = None
        self.epoch, self.following = 0, 1
        self.released = False
        self.attached: tuple[Hook, ...] = ()
        self.missing: dict[Hook, str] = {}
        self.why = why

    def use(self, _compiled: Compiled, _processes: Any) -> int:
        """Have nothing decide."""
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


def enforces(mode: Mode, settings: Settings) -> bool:
    """Tell whether anything is to be enforced: on the host, by a rule or an entry, in a control group."""
    named = (*settings.modes.values(), *settings.cgroups.values(), *(one.mode for one in settings.entries))
    return Mode.ENFORCE in {mode, *named}


def start_of(boots: Boots, enforced: bool) -> tuple[Mode, str]:
    """Return the most that the boots before allow, and why, if anything is to be enforced."""
    if not enforced:
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

    normalizer = stream.normalizer
    here = Here(normalizer.table, normalizer.epoch_ns, store=store, socket=socket, state=state)
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
            key = key_of(pid)
            if key is None:
                raise HelperError("the canary's helper has ended at once")
            here.helpers = (*here.helpers, key)[-_HELPERS:]
            try:
                enforcement.spare_helper()
            except HostError as error:
                raise HelperError(f"the canary's helper can't be spared: {error}") from error

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

        enforcement.reload = lambda loaded: enforcement.change(
            derived(loaded.rules, loaded.policy), load_settings(config)
        )

        def divert(record: memoryview) -> bool:
            told = proof_in(record)
            if told is None:
                return False
            mailbox.put(told)
            return True

        watched = stream.keep

        def keep(item: Any) -> bool:
            if here.is_helper(item.process):
                return False  # what it tries is nobody's business
            return watched is None or bool(watched(item))

        normalizer.rule_of, stream.divert, stream.keep = enforcement.policies.rule_of, divert, keep
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
    hold = wanted.on_exit is OnExit.HOLD
    mine = Left(PINS / f"{os.getpid()}-{boot_ns()}")
    pinned = False
    try:
        PINS.mkdir(mode=0o700, exist_ok=True)
        mine.folder.mkdir(mode=0o700)

        def end(kind: type[BaseException] | None, error: object, _trace: object) -> None:
            # What wasn't asked to end is what guards that hold are for; at the start there may be none yet.
            if kind is None or not mine.holds or issubclass(kind, KeyboardInterrupt):
                _unpin(mine)
            else:
                tell(f"guards stay, for {config.enforce.hold_seconds:g} s or until the next start ({error})")

        stack.push(end)
        pinned = True
    except OSError as error:
        if hold:
            raise HostError(
                f"guards can't outlive ksentinel: {mine.folder}: {error.strerror}",
                remedy="mount -t bpf bpf /sys/fs/bpf; or --on-exit open",
            ) from None
        tell(
            f"no BPF file system: `ksentinel release --all` works only while ksentinel answers ({error.strerror})"
        )
    # Of two that start at once at least one sees the other.
    before = ended(left(PINS, os.geteuid()), mine)
    pids = [one.key.pid for one in enforcement.world.processes()]
    for one in before:
        guards.take_over(one, pids)
    guards.hold(
        two_key_ns=int(config.enforce.two_key_seconds * 1e9), all_ns=int(config.enforce.hold_seconds * 1e9)
    )
    enforcement.start()
    if pinned:
        guards.pin(mine.folder, links=hold)
    for one in before:
        one.remove()
        tell(f"took over from the ksentinel of PID {one.pid}, which has ended")


def ended(
    found: Sequence[Left], mine: Left, key_of: Callable[[int], ProcessKey | None] = key_of
) -> list[Left]:
    """Return the runs that have ended without having been asked to; raises HostError if one goes on: there can't be two."""
    others = [one for one in found if one != mine]
    for one in others:
        if one.runs(key_of):
            raise HostError(
                f"a ksentinel enforces here already, of PID {one.pid}",
                remedy="`ksentinel enforce mode` switches its mode; or end it first",
            )
    return others


def _unpin(mine: Left) -> None:
    try:
        mine.remove()
    except HostError as error:
        tell(str(error))


@contextmanager
def _kept(enforcement: Enforcement) -> Iterator[None]:
    """Have it ticked every second by a thread of its own, and proven by another: that takes its time, and a heartbeat mustn't."""
    stopping = threading.Event()

    def tick() -> None:
        enforcement.tick()
        stopping.wait(_TICK)

    def prove() -> None:
        # A proof needs somebody who reads what guards say.
        if enforcement.reading.wait(_TICK) and enforcement.is_due():
            enforcement.prove()
        enforcement.due.wait(_TICK)
        enforcement.due.clear()

    def run(step: Callable[[], None]) -> None:
        # Signals are the main thread's: one that came here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not stopping.is_set():
            try:
                step()
            except Exception as error:  # noqa: BLE001 -- a dead thread would be a heartbeat that stops, and proofs that nobody misses
                enforcement.fail(_broken(error))
                stopping.wait(_TICK)

    threads = [threading.Thread(target=run, args=(step,), name="enforcement") for step in (tick, prove)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        enforcement.stop()
        for thread in threads:
            thread.join()
        enforcement.keep_changes()


def _broken(error: Exception) -> KsentinelError:
    if isinstance(error, KsentinelError):
        return error
    return HostError(f"enforcement has failed: {type(error).__name__}: {error}", remedy="please report this")


def boot_ns() -> int:
    """Return nanoseconds since boot."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def changes_file(state: Path | None) -> Path:
    """Return where it is kept since when rules have been what they are."""
    return CHANGES if state is None else state / CHANGES.name


def boots_file(state: Path | None) -> Path:
    """Return where boots are counted."""
    return BOOTS if state is None else state / BOOTS.name
