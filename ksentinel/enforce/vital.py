# SPDX-License-Identifier: Apache-2.0
"""
What no policy may deny: what a host lives on, tried out before the kernel has the policy.

The never-list isn't counted on here: a policy that needs it to leave PID 1 alive is a mistake. Nor is a mode, which can be
changed at any time: ways that only log are left out, all others are tried as if enforced.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ksentinel.bpf.guard_abi import Action, Hook, Trait
from ksentinel.enforce.compiled import Compiled, GuardRule
from ksentinel.enforce.operation import Operation
from ksentinel.enforce.places import Place, Resolve
from ksentinel.enforce.reference import speaks
from ksentinel.errors import HostError, RuleError

INIT = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/sbin/init")

_READ_ONLY = 0o2000000  # O_CLOEXEC
_WRITE = 0o2000001
_CREATE = 0o2000101
_EXEC_HOOKS = (Hook.BPRM_CHECK_SECURITY, Hook.BPRM_CREDS_FROM_FILE)
_PURPOSE = Trait.READ | Trait.WRITE
_NOWHERE = Place(0, 0)
_BY_EVERYBODY = frozenset({*_EXEC_HOOKS, Hook.FILE_OPEN})
"""Hooks at which even a second key doesn't make up for a way that asks for nothing."""


@dataclass(frozen=True, slots=True)
class Own:
    """What ksentinel itself executes and writes."""

    executable: str = sys.executable
    store: str = "/var/lib/ksentinel/alerts.db"
    socket: str = "/run/ksentinel/control.sock"


@dataclass(frozen=True, slots=True)
class Vital:
    """An operation, in words."""

    words: str
    operation: Operation


def check(compiled: Compiled, resolve: Resolve, own: Own) -> None:
    """
    Refuse a policy that would deny everybody something ordinary, or PID 1 or ksentinel what they live on.

    Raises
    ------
    RuleError
        Naming the rule or the entry, and what it would deny.
    """
    judged = [rule for rule in compiled.rules if rule.action is not Action.LOG]
    if not judged:
        return
    made = _Made(resolve, own)
    ordinary: defaultdict[tuple[Hook, Trait], list[Vital]] = defaultdict(list)
    for one in made.ordinary():
        ordinary[one.operation.hook, one.operation.traits & _PURPOSE].append(one)
    vital = list(made.vital())
    for rule in judged:
        for (hook, _), ones in ordinary.items():
            if rule.anomalous and hook not in _BY_EVERYBODY:
                continue
            if all(speaks(compiled, rule, one.operation) for one in ones):
                told = "; ".join(dict.fromkeys(one.words for one in ones))
                raise RuleError(
                    f"{_named(rule)} would deny everything at {hook.name.lower()}: {told}",
                    rule.at,
                    "ask for a file, a network, or a program",
                )
        for one in vital:
            if speaks(compiled, rule, one.operation):
                raise RuleError(
                    f"{_named(rule)} would deny what this host lives on: {one.words}",
                    rule.at,
                    "make it narrower, or leave the program out by unless_by",
                )


def _named(rule: GuardRule) -> str:
    return rule.id if rule.title in {"", rule.id} else f"{rule.title} ({rule.id})"


@dataclass(frozen=True, slots=True)
class _Made:
    """Makes operations of processes as they are on every host."""

    resolve: Resolve
    own: Own
    found: dict[str, Place] = field(default_factory=dict)

    def inits(self) -> tuple[str, ...]:
        """Return the paths of what may be PID 1 here, by the names that hooks see."""
        by_place: dict[Place, str] = {}
        for path in INIT:
            by_place.setdefault(self.place(path), path)
        by_place.pop(_NOWHERE, None)
        return tuple(by_place.values()) or INIT[:1]

    def vital(self) -> Iterator[Vital]:
        for init in self.inits():
            who = f"PID 1 ({init})"
            for path in ("/bin/sh", "/usr/bin/dash", "/usr/lib/systemd/systemd-executor", "/usr/bin/mount"):
                yield from self.executes(who, init, path)
            for path in (
                "/etc/passwd",
                "/usr/lib/x86_64-linux-gnu/libc.so.6",
                "/usr/lib64/libc.so.6",
                "/usr/lib/systemd/system/dbus.service",
            ):
                yield from self.opens(who, init, path, write=False)
            for path in ("/dev/null", "/run/systemd/units/x", "/sys/fs/cgroup/system.slice/cgroup.procs"):
                yield from self.opens(who, init, path, write=True)
            yield from self.makes(who, init, "/run/systemd/units/x")
            process = self.process(init, init, ())
            yield Vital(
                f"{who} ends a service",
                Operation(
                    Hook.TASK_KILL,
                    "kill",
                    names=process,
                    numbers={"signal": 15, "euid": 0},
                    who=self.place(init),
                    anomalous=True,
                ),
            )
            yield Vital(
                f"{who} mounts",
                Operation(
                    Hook.SB_MOUNT,
                    "mount",
                    names=process | {"target": ("/run/user/1000",), "path": (None, "/run/user/1000")},
                    numbers={"flags": 0, "euid": 0},
                    files=(self.chain("/run/user/1000"),),
                    who=self.place(init),
                    anomalous=True,
                ),
            )
        yield from self.of_ksentinel()

    def of_ksentinel(self) -> Iterator[Vital]:
        who, exe = "ksentinel", self.own.executable
        yield from self.executes(who, INIT[0], exe)
        yield from self.opens(who, exe, self.own.store, write=True, anomalous=False)
        yield from self.opens(who, exe, "/sys/kernel/btf/vmlinux", write=False, anomalous=False)
        names, numbers = self.process(exe, INIT[0], (INIT[0],)), {"euid": 0}
        place = self.place(exe)
        yield Vital(
            f"{who} opens its control socket",
            Operation(Hook.SOCKET_BIND, "bind", names=names, numbers=numbers, traits=Trait.UNIX, who=place),
        )
        yield Vital(
            f"{who} listens at its control socket",
            Operation(
                Hook.SOCKET_LISTEN, "listen", names=names, numbers=numbers, traits=Trait.UNIX, who=place
            ),
        )
        socket = self.own.socket
        yield Vital(
            "ksentinel's command line asks it to let go",
            Operation(
                Hook.UNIX_STREAM_CONNECT,
                "connect",
                names=names | {"path": (socket,), "target": (socket,)},
                numbers=numbers,
                traits=Trait.UNIX,
                files=(self.chain(socket),),
                who=place,
                anomalous=False,
            ),
        )
        for cmd in range(40):
            yield Vital(
                f"{who} changes its guards",
                Operation(Hook.BPF, "bpf", names=names, numbers=numbers | {"cmd": cmd}, who=place),
            )

    def ordinary(self) -> Iterator[Vital]:
        """Yield what anybody does all day: by a user's shell, a job of root's, and a server."""
        for exe, parent, euid, home in (
            ("/usr/bin/bash", "/usr/sbin/sshd", 1000, "/home/user"),
            ("/usr/bin/dash", "/usr/sbin/cron", 0, "/root"),
            ("/usr/sbin/nginx", "/usr/lib/systemd/systemd", 33, "/var/www"),
        ):
            who = exe.rpartition("/")[2]
            for path in ("/usr/bin/ls", "/usr/bin/env", "/usr/bin/grep"):
                yield from self.executes(who, exe, path, parent=parent, euid=euid)
            for path in ("/etc/passwd", "/usr/share/zoneinfo/UTC", f"{home}/notes"):
                yield from self.opens(who, exe, path, write=False, parent=parent, euid=euid)
            for path in ("/dev/null", "/tmp/x", f"{home}/notes"):  # noqa: S108 -- nothing is opened
                yield from self.opens(who, exe, path, write=True, parent=parent, euid=euid)
            for path in ("/tmp/x", f"{home}/notes"):  # noqa: S108 -- nothing is made
                yield from self.makes(who, exe, path, parent=parent, euid=euid)
            names, place = self.process(exe, parent, (parent,)), self.place(exe)
            for hook, call, address, port, traits in (
                (Hook.SOCKET_CONNECT, "connect", "127.0.0.1", 53, Trait.IPV4),
                (Hook.SOCKET_CONNECT, "connect", "192.0.2.1", 443, Trait.IPV4),
                (Hook.SOCKET_CONNECT, "connect", "2001:db8::1", 443, Trait.IPV6),
                (Hook.SOCKET_SENDMSG, "sendto", "10.0.0.1", 53, Trait.IPV4),
                (Hook.SOCKET_SENDMSG, "sendto", "2001:db8::1", 123, Trait.IPV6),
                (Hook.SOCKET_BIND, "bind", "127.0.0.1", 8080, Trait.IPV4),
                (Hook.SOCKET_BIND, "bind", "::", 0, Trait.IPV6),
            ):
                yield Vital(
                    f"{call} by {who}",
                    Operation(
                        hook,
                        call,
                        names=names,
                        numbers={"port": port, "euid": euid},
                        address=address,
                        traits=traits,
                        who=place,
                        anomalous=True,
                    ),
                )
            for path in ("/run/dbus/system_bus_socket", "/run/systemd/journal/socket"):
                yield Vital(
                    f"connect to a socket by {who}",
                    Operation(
                        Hook.UNIX_STREAM_CONNECT,
                        "connect",
                        names=names | {"path": (path,), "target": (path,)},
                        numbers={"euid": euid},
                        traits=Trait.UNIX,
                        files=(self.chain(path),),
                        who=place,
                        anomalous=True,
                    ),
                )
            for signal in (15, 9, 17):
                yield Vital(
                    f"a signal of {who}",
                    Operation(
                        Hook.TASK_KILL,
                        "kill",
                        names=names,
                        numbers={"signal": signal, "euid": euid},
                        who=place,
                        anomalous=True,
                    ),
                )

            for hook, call in (
                (Hook.TASK_FIX_SETUID, "setuid"),
                (Hook.TASK_PRCTL, "prctl"),
                (Hook.CAPSET, "capset"),
            ):
                yield Vital(
                    f"{call} by {who}",
                    Operation(
                        hook,
                        call,
                        names=names,
                        numbers={"uid": 1000, "euid": euid},
                        who=place,
                        anomalous=True,
                    ),
                )

    def executes(
        self, who: str, exe: str, path: str, *, parent: str = INIT[0], euid: int = 0
    ) -> Iterator[Vital]:
        names = self.process(exe, parent, (parent,)) | {"executed": (path,), "asked": (path,)}
        for hook in _EXEC_HOOKS:
            yield Vital(
                f"{who} executes {path}",
                Operation(
                    hook,
                    "execve",
                    names=names,
                    numbers={"euid": euid},
                    files=(self.chain(path),),
                    who=self.place(exe),
                    anomalous=True,
                ),
            )

    def opens(
        self,
        who: str,
        exe: str,
        path: str,
        *,
        write: bool,
        parent: str = INIT[0],
        euid: int = 0,
        anomalous: bool = True,
    ) -> Iterator[Vital]:
        flags = _WRITE if write else _READ_ONLY
        yield Vital(
            f"{who} opens {path} for {'writing' if write else 'reading'}",
            Operation(
                Hook.FILE_OPEN,
                "openat",
                names=self.process(exe, parent, (parent,)) | {"path": (path,), "target": (path,)},
                numbers={"flags": flags, "euid": euid},
                traits=Trait.WRITE if write else Trait.READ,
                files=(self.chain(path),),
                who=self.place(exe),
                anomalous=anomalous,
            ),
        )

    def makes(
        self, who: str, exe: str, path: str, *, parent: str = INIT[0], euid: int = 0
    ) -> Iterator[Vital]:
        """Yield a file's coming, its change of name, and its going."""
        names = self.process(exe, parent, (parent,)) | {"path": (path,), "target": (path,)}
        numbers = {"euid": euid, "flags": _CREATE, "mode": 0o600}
        for hook, call, verb in (
            (Hook.PATH_MKNOD, "openat", "makes"),
            (Hook.PATH_RENAME, "rename", "renames"),
            (Hook.PATH_UNLINK, "unlink", "removes"),
            (Hook.PATH_MKDIR, "mkdir", "makes the directory"),
            (Hook.PATH_CHMOD, "chmod", "changes the mode of"),
        ):
            yield Vital(
                f"{who} {verb} {path}",
                Operation(
                    hook,
                    call,
                    names=names,
                    numbers=numbers if call != "unlink" else {"euid": euid},
                    files=(
                        self.chain(path)[1:]
                        if hook in {Hook.PATH_MKNOD, Hook.PATH_MKDIR}
                        else self.chain(path),
                    ),
                    who=self.place(exe),
                    anomalous=True,
                ),
            )

    def process(self, exe: str, parent: str, ancestors: tuple[str, ...]) -> dict[str, tuple[str | None, ...]]:
        return {"program": (exe,), "parent": (parent,), "service": (parent,), "ancestors": ancestors}

    def place(self, path: str) -> Place:
        """Return the place of a path; what isn't there, or can't be looked at, has one that is in no set."""
        if path not in self.found:
            try:
                self.found[path] = self.resolve(path) or _NOWHERE
            except HostError:  # then no entry can name it either
                self.found[path] = _NOWHERE
        return self.found[path]

    def chain(self, path: str) -> tuple[Place, ...]:
        """Return the places of a path and of the directories above."""
        names = path.split("/")
        above = ["/".join(names[:count]) or "/" for count in range(len(names), 0, -1)]
        return tuple(self.place(one) for one in above)
