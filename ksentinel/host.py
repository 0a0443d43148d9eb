# SPDX-License-Identifier: Apache-2.0
"""
The host, as the rooms are handed it: its clock, its user, its signals, its live system calls.

With `cli` the only place that asks for any of these.
"""

import grp
import json
import os
import platform
import pwd
import re
import resource
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import ksentinel
from ksentinel.config import Config
from ksentinel.errors import InputError, UsageError

SYSTEM_STORE = Path("/var/lib/ksentinel/alerts.db")
SYSTEM_CACHE = Path("/var/cache/ksentinel")
SYSTEM_SOCKET = Path("/run/ksentinel/control.sock")


def default_store() -> Path:
    """Return where alerts are kept: system-wide for root, in the user's state folder otherwise."""
    if os.geteuid() == 0:
        return SYSTEM_STORE
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        try:
            state = Path.home() / ".local/state"
        except RuntimeError:
            raise UsageError(
                "this user has no home to keep alerts in", remedy="name a file by --store"
            ) from None
    return state / "ksentinel" / "alerts.db"


def rules_cache() -> Path | None:
    """Return where compiled rules are kept: system-wide for root, in the user's cache otherwise; None without a home."""
    if os.geteuid() == 0:
        return SYSTEM_CACHE
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():
        try:
            home = Path.home()
        except RuntimeError:
            return None
        if not home.is_dir():  # a service's user: /nonexistent
            return None
        folder = home / ".cache"
    return folder / "ksentinel"


def mutes_beside(store: Path) -> Path:
    """Return where the mutes of the monitor that writes *store* are kept."""
    return store.with_name(f"{store.name}.mutes.json")


def mutes_in_force(settings: Config, store: Path) -> Any:
    """
    Return the mutes of the monitor that writes *store*; raises InputError.

    Theirs alone who may change a monitor: the caller through sudo, whose store it may be, isn't among them.
    """
    from ksentinel.mutes import Mutes

    longest_ns = round(settings.noise.longest_mute_seconds * 1e9)
    return Mutes(mutes_beside(store), os.geteuid(), longest_ns)


def store_to_read() -> Path:
    """Return `default_store` for reading; raises InputError if root keeps one and the user doesn't."""
    path = default_store()
    if not path.exists() and path != SYSTEM_STORE and SYSTEM_STORE.parent.exists():
        raise InputError(
            "there is no store",
            at=path,
            remedy=f"what root has monitored is in {SYSTEM_STORE}: use sudo; or name one by --store",
        )
    return path


def default_socket() -> Path | None:
    """Return where the daemon can be asked: system-wide for root; None for others who have no XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    return folder / "ksentinel" / SYSTEM_SOCKET.name if folder.is_absolute() else None


def socket_to_ask() -> Path:
    """Return `default_socket` if there is one, the system's otherwise: members of its group may ask there."""
    path = default_socket()
    return path if path is not None and path.exists() else SYSTEM_SOCKET


def user() -> int:
    """Return whose files are trusted besides root's: the caller's, also through sudo (who could do as root anyway)."""
    caller = os.environ.get("SUDO_UID", "")
    return int(caller) if os.geteuid() == 0 and caller.isdigit() else os.getuid()


def now() -> datetime:
    """Return the time, in this host's zone."""
    return datetime.now().astimezone()


def now_ns() -> int:
    """Return the time, in nanoseconds since the epoch."""
    return time.time_ns()


def local(naive: datetime) -> datetime:
    """Return a time of this host's zone, as it was then (summer or winter); ValueError if there is none."""
    try:
        return naive.astimezone()
    except OSError as error:  # as far from today as that is, the C library knows no zones
        raise ValueError(str(error)) from None


def one_thread() -> None:
    """Keep numpy to one thread; before it is imported. Its helpers spin while they wait, on cores that aren't ours to use."""
    for library in ("OPENBLAS", "OMP", "MKL", "BLIS"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def facts() -> dict[str, Any]:
    """Return what a recording must know of this host."""
    from ksentinel.event import Origin

    return {
        "ksentinel": ksentinel.__version__,
        "host": platform.node(),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "origin": str(Origin.BPF),
        "started_ns": time.time_ns(),
    }


def redactor(settings: Config) -> Any:
    """Return what masks secrets; None if the configuration says to keep them."""
    from ksentinel.normalize.redact import Redactor

    return Redactor() if settings.privacy.redact else None


@contextmanager
def stopping(
    seconds: float | None, hang_up: Callable[[str], None] | None = None
) -> Iterator[Callable[[], bool]]:
    """
    Give a function that tells when to stop: at a signal, or *seconds* after it was first asked.

    Parameters
    ----------
    hang_up
        Is called, in the handler, instead of stopping when SIGHUP comes; with the signal's name.
    """
    signalled = False

    def handler(number: int, _frame: FrameType | None) -> None:
        nonlocal signalled
        if number == signal.SIGHUP and hang_up is not None:
            hang_up(signal.Signals(number).name)
        else:
            signalled = True

    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        caught.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in caught}
    begun: list[float] = []

    def stop() -> bool:
        # Time counts from the first question: attaching is over by then.
        if not begun:
            begun.append(time.monotonic())
        return signalled or (seconds is not None and time.monotonic() >= begun[0] + seconds)

    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def live(
    settings: Config,
    stop: Callable[[], bool],
    *,
    wanted: Any = None,
    keep: Callable[[Any], bool] | None = None,
    table: Any = None,
    gate: bool = False,
    attend: Callable[[Any], None] | None = None,
    contents: Any = None,
    tell: Callable[[str], None] | None = None,
) -> Iterator[Any]:
    """
    Give the stream of this host's system calls, the collector attached; raises HostError.

    Parameters
    ----------
    wanted
        A `ksentinel.sources.ringbuf.Wanted`: who is watched; None: everybody.
    keep
        Which items to let through of those that arrive.
    table
        What the kernel scores with.
    gate
        Let out only what is unusual by it, and a sample.
    attend
        Is shown each item, and None after each batch.
    contents
        What recognises programs by content, in its place.
    tell
        Is told when an overload begins, and when it is over.
    """
    from ksentinel.bpf.abi import Class, NameFlag
    from ksentinel.normalize.bpf import BpfNormalizer
    from ksentinel.normalize.cgroups import Cgroups
    from ksentinel.normalize.processes import LAUNCHERS, TERMINALS, ProcessTable
    from ksentinel.shipped import shipped
    from ksentinel.sources.procfs import running
    from ksentinel.sources.ringbuf import IN_HOMES, PREFIXES, Collector
    from ksentinel.streams import Live
    from ksentinel.support import serves_32_bit

    epoch_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    arch = platform.machine()
    normalizer = BpfNormalizer(ProcessTable(), epoch_ns, arch, redactor(settings), Cgroups())
    path_seed = int.from_bytes(os.urandom(8), "little")

    def introduce() -> Any:
        normalizer.known(running())
        return normalizer.introductions(path_seed, () if wanted is None else wanted.pids)

    homes = {
        entry.pw_dir.rstrip("/")
        for entry in pwd.getpwall()
        if entry.pw_dir.count("/") > 1 or entry.pw_uid == 0
    }
    prefixes = {f"{home}/": Class.HOME for home in homes if home.startswith(("/home/", "/root"))}
    prefixes |= {f"{home}{part}": Class.SECRET for home in list(prefixes) for part in IN_HOMES}
    with Collector(
        shipped("lsm_bpf/trace.bpf.o"),
        os.getpid(),
        arch,
        idle_seconds=settings.collector.idle_seconds,
        ring_bytes=settings.collector.ring_megabytes << 20,
        table=table,
        gate=gate,
        sample=settings.collector.sample,
        wanted=wanted,
        calls_a_second=settings.collector.calls_a_second,
        compat=serves_32_bit(arch),
        path_seed=path_seed,
        names=dict.fromkeys(LAUNCHERS, NameFlag.LAUNCHER) | dict.fromkeys(TERMINALS, NameFlag.TERMINAL),
        prefixes={**PREFIXES, **prefixes},
        processes=introduce,
    ) as collector:
        if contents is not None:
            contents.recognise, attend = collector.recognise, contents.attend
        yield Live(collector, normalizer, stop, keep, attend=attend, contents=contents, tell=tell)


class Actors:
    """
    Processes that do what rules are about, a few at a time; one that takes too long is ended by the kernel.

    Parameters
    ----------
    actions
        By rule.
    pids
        Is told the PID of each before it acts.

    Attributes
    ----------
    said
        By rule: what its actor had to say.
    """

    AT_ONCE = 4
    SETTLE = 2.0  # seconds until what the last one did has come through the ring buffer
    MOST_SAID = 4096

    def __init__(self, actions: dict[str, Any], pids: dict[int, str]) -> None:
        self.waiting = list(actions.items())
        self.pids = pids
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.said: dict[str, str] = {}
        self._ended = 0.0

    def go_on(self) -> None:
        """Note who has ended, and start the next ones."""
        for rule, process in list(self.running.items()):
            if process.poll() is not None:
                self._end(rule)
        while self.waiting and len(self.running) < self.AT_ONCE:
            rule, action = self.waiting.pop(0)
            self._start(rule, action)
        if not self.running and not self._ended:
            self._ended = time.monotonic()

    def done(self) -> bool:
        """Tell whether all have ended, and what they did has had its time to come through."""
        return bool(self._ended) and time.monotonic() > self._ended + self.SETTLE

    def _start(self, rule: str, action: Any) -> None:
        from ksentinel import actor
        from ksentinel.selftest import CALLS
        from ksentinel.syscalls import names

        numbers = {name: number for number, name in names(platform.machine()).items() if name in CALLS}
        plan = {
            "as": action.programs,
            "do": action.steps,
            "numbers": numbers,
            "interpreter": os.path.realpath(sys.executable),
            "script": actor.__file__,
            "home": sys.base_prefix,
            "libraries": [f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib")],
        }
        process = subprocess.Popen(
            [sys.executable, "-I", actor.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={}, cwd="/",
        )  # fmt: skip
        self.running[rule] = process
        # It waits for its plan: by then everybody knows whose it is.
        self.pids[process.pid] = rule
        plans: Any = process.stdin
        with suppress(BrokenPipeError), plans:
            plans.write(json.dumps(plan).encode())

    def _end(self, rule: str) -> None:
        process = self.running.pop(rule)
        process.kill()  # the namespaces' first process ends with it, and so does everything in them
        process.wait()
        told: Any = process.stderr
        with told:
            self.said[rule] = told.read(self.MOST_SAID).decode("utf-8", "replace")
        if process.returncode:
            self.said[rule] += f"\nit ended with {process.returncode}"


@contextmanager
def actors(actions: dict[str, Any], pids: dict[int, str]) -> Iterator[Actors]:
    """Give what does the *actions* of rules; nothing of it goes on afterwards."""
    some = Actors(actions, pids)
    try:
        yield some
    finally:
        for rule in list(some.running):
            some._end(rule)  # noqa: SLF001


def hashes(programs: set[str], *, most: int = 4096) -> dict[str, str]:
    """Return the SHA-256 of programs as they are on this host now: of those that can be read and named in UTF-8."""
    from ksentinel.executables import Executables

    files, found = Executables(), {}
    for program in sorted(programs)[:most]:
        if not program.isprintable():
            continue
        if sha256 := files.look(program.removeprefix("#!"), follow=True).sha256:
            found[program] = sha256
    return found


@contextmanager
def contents(manifest: Any, model: Any, tell: Callable[[str], None]) -> Iterator[Any]:
    """Give what recognises programs by content, for a model; for the kernel's part of it once that is attached."""
    from ksentinel.contents import Asked, Contents
    from ksentinel.executables import Executables, Hasher, Kind, Known, Recognition, Recognizer

    known = [Known(program, sha256) for program, sha256 in manifest.facts.contents.items()]

    def recognised(found: Recognition) -> None:
        if found.kind is Kind.UNCHECKED or (found.profile, "") not in model.profiles.roots:
            return
        if found.kind is Kind.COPY:
            note = f"it has the content of {found.content_of}"
            watcher.recognise(found.path, found.profile)
        else:
            other = f": it has the content of {found.content_of}" if found.content_of else ""
            note = f"its content has changed since training{other}"
        model.recognise(found.path, found.profile, note, changed=found.kind is not Kind.COPY)
        tell(f"{found.path}: {note}; it is compared with {found.profile}")

    def executes(pid: int) -> tuple[str, int, int] | None:
        place = Path("/proc", str(pid), "exe")
        try:
            status = place.stat()
            return str(place.readlink()), status.st_dev, status.st_ino
        except OSError:
            return None

    with Hasher[Asked](Executables()) as hasher:
        watcher: Any = Contents(hasher, Recognizer(known), recognised, executes)
        yield watcher


def watching(
    exes: list[str], pids: list[int], uids: list[str], cgroups: list[str]
) -> tuple[Any, Callable[[Any], bool] | None]:
    """
    Return who is watched, for the kernel's side, and which items to keep of the lifecycle of all others, for ours.

    None and None if all lists are empty: everything is watched. Raises UsageError for what can't be there.
    """
    from ksentinel.event import ExecEvent, SyscallEvent
    from ksentinel.sources.ringbuf import Wanted
    from ksentinel.window import Window

    if not exes and not pids and not uids and not cgroups:
        return None, None
    for exe in exes:
        # One that isn't there may be a container's; a bare name is a mistake, and nothing would ever be kept.
        if not exe.startswith("/") and not Path(exe).is_file():
            raise UsageError(
                f"--exe {exe!r} is no file", remedy=f"name its path, e.g. --exe $(command -v {exe})"
            )
    for pid in pids:
        if not Path("/proc", str(pid)).exists():
            raise UsageError(f"--pid {pid}: there is no such process", remedy="`ps -e` lists them")
    names = {str(Path(exe).resolve()) for exe in exes}
    # A script is known by the path that it is executed by, be that a link.
    names |= {f"#!{path}" for exe in exes for path in (Path(exe).resolve(), Path(exe).absolute())}
    numbers, users, groups = set(pids), {user_id(name) for name in uids}, set()
    if cgroups:
        from ksentinel.normalize.cgroups import Cgroups

        groups = {number for text in cgroups for number in Cgroups().find(text)}
    wanted = Wanted(tuple(sorted(names)), tuple(sorted(users)), tuple(sorted(groups)), tuple(sorted(numbers)))

    def keep(item: Any) -> bool:
        if isinstance(item, Window | SyscallEvent):
            return True  # the kernel's side sends nobody else's; who runs as whom it knows first
        process = item.process
        if process.program in names or process.exe in names:
            return True
        if isinstance(item, ExecEvent) and process.before and process.before[0] in names:
            return True  # what it became, and no more of that
        if process.uid in users or process.cgroup in groups:
            return True
        return bool(numbers) and (
            process.key.pid in numbers or any(a.key.pid in numbers for a in process.ancestors())
        )

    return wanted, keep


def user_id(name: str) -> int:
    """Return a user's id, given by name or number; raises UsageError."""
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise UsageError(f"--uid {name!r}: there is no such user", remedy="say a name or a number") from None


@contextmanager
def control(
    settings: Config,
    path: Path,
    stream: Any,
    pipeline: Any,
    *,
    model: Path | None,
    store: Path,
    reloader: Any,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Answer what the control socket is asked, meanwhile; raises InputError if it can't be there."""
    from dataclasses import asdict

    from ksentinel.control import Control
    from ksentinel.mutes import Mute, in_words
    from ksentinel.protocol import (
        Group,
        ModeArguments,
        MuteArguments,
        ReleaseArguments,
        Request,
        UnmuteArguments,
    )
    from ksentinel.status import Meter, Status

    meter = Meter(time.monotonic, cpu_seconds, memory_bytes)
    noise, enforcing = pipeline.noise, pipeline.enforcing
    since_ns, since = time.time_ns(), time.monotonic()
    about = None if model is None else model_status(model)

    def status(_arguments: Any) -> dict[str, Any]:
        told = Status(
            version=ksentinel.__version__,
            pid=os.getpid(),
            mode="monitor" if enforcing is None else "enforce",
            since_ns=since_ns,
            seconds=round(time.monotonic() - since, 3),
            model=about,
            rules=len(pipeline.rules),
            rules_loaded_ns=reloader.loaded_ns,
            last_reload=reloader.last,
            store=str(store),
            lost=stream.lost(),
            account=stream.account(),
            walk=pipeline.account(),
            control=asked.account(),
            usage=meter.usage(),
        )
        return asdict(told) | {
            "noise": noise.told(),
            "enforcement": None if enforcing is None else enforcing.told(),
        }

    def mute(asked_for: MuteArguments) -> dict[str, Any]:
        now_ns = time.time_ns()
        made = noise.mutes.add(
            Mute(
                id="",
                begun_ns=now_ns,
                until_ns=now_ns + int(max(min(asked_for.for_seconds, 1e9), 0.0) * 1e9),
                reason=asked_for.reason,
                exe=asked_for.exe,
                rule=rule_id(asked_for.rule, pipeline.rules.rules),
                parent=asked_for.parent,
                level=asked_for.level,
            )
        )
        tell(f"muted: {in_words(made)}")
        return asdict(made)

    def unmute(asked_for: UnmuteArguments) -> dict[str, Any]:
        gone = noise.mutes.remove(asked_for.id)
        tell(f"unmuted: {in_words(gone)}")
        return asdict(gone)

    def mutes(_arguments: Any) -> list[dict[str, Any]]:
        return [asdict(one) for one in noise.mutes.all()]

    def mode(asked_for: ModeArguments) -> dict[str, Any]:
        from ksentinel.enforce import Mode

        if asked_for.mode not in set(Mode):
            raise UsageError(f"mode {asked_for.mode!r} is none of {', '.join(Mode)}")
        if asked_for.rule and asked_for.cgroup:
            raise UsageError("a mode is of a rule or of a control group", remedy="say one of them")
        wanted = Mode(asked_for.mode)
        if asked_for.rule:
            enforcing.set_rule_mode(asked_for.rule, wanted)
        elif asked_for.cgroup:
            enforcing.set_cgroup_mode(asked_for.cgroup, wanted)
        else:
            enforcing.set_mode(wanted)
        whose = asked_for.rule or asked_for.cgroup
        tell(f"asked for: mode {wanted}{f' of {whose}' if whose else ''}")
        return dict(enforcing.told())

    def release(asked_for: ReleaseArguments) -> dict[str, Any]:
        if not asked_for.pid:
            enforcing.release()
            return {"released": True, "lifted": 0}
        return {"released": False, "lifted": enforcing.lift(asked_for.pid)}

    def confirm(_arguments: Any, peer: Any) -> dict[str, Any]:
        # Whose login it is the kernel says: who asks could name anybody's.
        login = enforcing.world.login(peer.pid) if peer.pid else None
        if login is None:
            raise UsageError(
                "nobody is seen who confirms it", remedy="confirm it from a login shell of this host"
            )
        enforcing.confirm(login)
        return dict(enforcing.told())

    def tick() -> None:
        meter.sample()
        noise.expire(time.time_ns())
        noise.mutes.save()

    def reload(_arguments: Any) -> dict[str, Any]:
        return asdict(reloader.reload())

    asked = Control(
        path,
        Group(settings.control.group, group_id(settings.control.group)),
        {
            "status": Request(status, changes=False),
            "reload": Request(reload, changes=True),
            "mutes": Request(mutes, changes=False),
            "mute": Request(mute, changes=True, arguments=MuteArguments),
            "unmute": Request(unmute, changes=True, arguments=UnmuteArguments),
            **(
                {}
                if enforcing is None
                else {
                    "mode": Request(mode, changes=True, arguments=ModeArguments),
                    "release": Request(release, changes=True, arguments=ReleaseArguments),
                    "confirm": Request(confirm, changes=True, by=True),
                }
            ),
        },
        owner=os.geteuid(),
        trail=reloader.trail,
        tick=tick,
        tell=tell,
    )
    with asked:
        yield


@contextmanager
def reloading(
    load: Callable[[], Any], pipeline: Any, store: Path, tell: Callable[[str], None]
) -> Iterator[Any]:
    """Give what reloads the rules of *pipeline*, and writes down in the audit trail beside *store* that it did."""
    from ksentinel.reload import Reloader
    from ksentinel.trail import Trail

    trail = Trail(store.parent / "changes.jsonl", os.geteuid())
    with Reloader(load, pipeline, trail, tell=tell, time_ns=time.time_ns) as reloader:
        yield reloader


def rule_id(name: str, rules: Any) -> str:
    """Return the id of the rule that somebody means by id, name or title; raises UsageError if it isn't exactly one."""
    from ksentinel.mutes import MODEL

    if name in {"", MODEL}:
        return name
    found = {rule.id for rule in rules if name in {rule.id, rule.name}}
    found = found or {rule.id for rule in rules if rule.title.casefold() == name.casefold()}
    if len(found) != 1:
        what = "more than one rule is called" if found else "no rule that is loaded has the id or title"
        raise UsageError(f"{what} {name!r}", remedy=f"`ksentinel rules list` lists them; or say {MODEL}")
    return str(found.pop())


def group_id(name: str) -> int | None:
    """Return a group's number; None if there is none, or if this user can't give files to it."""
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        return None
    return gid if os.geteuid() == 0 or gid in os.getgroups() else None


def model_status(folder: Path) -> Any:
    """Return what the model in *folder* says of itself; raises ModelError."""
    from ksentinel.detectors.artifact import read_manifest
    from ksentinel.status import ModelStatus

    known = read_manifest(folder, uid=user()).facts
    return ModelStatus(
        path=str(folder),
        written_ns=(folder / "manifest.json").stat().st_mtime_ns,
        host=known.host,
        kernel=known.kernel,
        recordings=tuple(recording.name for recording in known.recordings),
        windows=known.fit,
        executables=len(known.executables),
    )


def cpu_seconds() -> float:
    """Return the CPU time of this process so far, all threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes() -> tuple[int, int]:
    """
    Return this process's resident memory and its peak.

    Not ru_maxrss: it begins with what the process was before exec, whoever that was.
    """
    found = re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    kilobytes = {name: int(number) for name, number in found}
    return kilobytes["VmRSS"] << 10, kilobytes["VmHWM"] << 10
