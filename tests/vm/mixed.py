# SPDX-License-Identifier: Apache-2.0
"""
Mixed operations: a tree of files, a policy that is full, actors, and what they do, each with what hooks are asked about it.

All of it is made from a seed. Operations are such that nothing is left changed, whether they are refused or not: who may not write
to a directory fails there after the hooks have been asked.
"""

import ctypes
import os
import random
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ksentinel import syscalls
from ksentinel.bpf.guard_abi import Action, Hook, Trait
from ksentinel.enforce import Mode
from ksentinel.enforce.compiled import Compiled
from ksentinel.enforce.compiler import MOST, _Builder, _named
from ksentinel.enforce.operation import Operation
from ksentinel.enforce.places import Place, Resolve, chain, resolve
from ksentinel.enforce.reference import Decision, decide
from ksentinel.enforce.settings import Does, Entry, Family, FileKind, Settings
from ksentinel.errors import Location, RuleError
from ksentinel.level import Level
from ksentinel.rules import Response, Rule
from ksentinel.rules.derivation import Derived
from ksentinel.rules.guard import (
    INTERNET,
    WRITING,
    Bits,
    Guard,
    Known,
    Literal,
    Names,
    Networks,
    Numbers,
    Reach,
)
from ksentinel.rules.hooks import HOOKS

USER = 1000
NO_TRAIT = Trait(0)
LARGEFILE, CLOEXEC, CREAT, EXCL, TRUNC, APPEND, NONBLOCK = (
    0o100000,
    0o2000000,
    0o100,
    0o200,
    0o1000,
    0o2000,
    0o4000,
)
FOR_EXECUTION = 0x20
CALLS = syscalls.numbers("x86_64")
PLAIN, WITH_SOCKET, IN_CHILD = range(3)
VALUE, POINTER, OWN_PID, TARGET_PID, SOCKET, KEPT, VECTOR, MESSAGE, ARGV = range(9)
OP = struct.Struct("=IBBBB8B6Qii")
PLAN = struct.Struct("=4Q")
CONTROL = struct.Struct("=4I32I")
SIGNALLED = 1000
INTS = OP.size // 4

PORTS = (22, 53, 80, 443, 8080, 9999)
IPV4 = (
    "127.0.0.1",
    "127.1.2.3",
    "10.1.2.3",
    "10.200.0.1",
    "192.168.7.7",
    "8.8.8.8",
    "169.254.1.1",
    "203.0.113.9",
)
IPV6 = ("::1", "2600::1", "2001:db8::5", "fd00::77", "2002::1")
NETWORKS = (
    "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "127.0.0.0/8", "0.0.0.0/0", "8.0.0.0/7", "192.168.0.0/16", "::/0", "2600::/12",
    "2001:db8::/32", "fd00::/8", "::1/128", "203.0.113.0/24",
)  # fmt: skip

# Files


@dataclass(frozen=True, slots=True)
class File:
    """
    A path to be used, and what the kernel makes of it.

    Attributes
    ----------
    path
        As it is used.
    real
        Its own, from the root; None: it has none.
    files
        Its place and those above.
    """

    path: str
    real: str | None
    files: tuple[Place, ...]
    traits: Trait = NO_TRAIT
    there: bool = True

    @classmethod
    def at(cls, path: str, find: Callable[[str], tuple[Place, ...]]) -> "File":
        """Look at what is there, or the directory that it would come into."""
        try:
            found = Path(path).stat()
        except FileNotFoundError:
            name, above = Path(path).name, os.path.realpath(Path(path).parent)
            # A name that isn't there yet stands for its directory.
            return cls(path, f"{above}/{name}", find(above), there=False)
        return cls(path, os.path.realpath(path), find(path), traits_of(found))


def traits_of(found: os.stat_result) -> Trait:
    """Return what of a file has a name."""
    mode, traits = found.st_mode, Trait(0)
    if stat.S_ISREG(mode) and mode & stat.S_IWOTH:
        traits |= Trait.OTHERS_WRITE
    if mode & stat.S_ISUID or mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
        traits |= Trait.SETUID
    return traits | (Trait.NOT_ROOTS if found.st_uid else Trait(0))


FOLDERS = (
    "a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e", "a/b/c/d/e/f", "bin", "sbin", "opt/x/bin", "etc", "etc/SECRET", "var", "mnt",
    "bind", "sock", "odd", "own",
)  # fmt: skip
PLAIN_FILES = (
    "one", "a/one", "a/two", "a/b/two", "a/b/c/three", "a/b/c/d/e/f/deep", "etc/passwd", "etc/Shadow", "etc/SECRET/key", "var/log",
    "odd/\N{KELVIN SIGN}mod", "odd/\udcff\udcfe", "odd/" + "x" * 70, "odd/with space", "odd/UPPER", "mnt/inside", "own/mine",
)  # fmt: skip
EMPTY_FOLDERS = ("a/empty", "etc/empty", "mnt/empty")
MISSING = ("new", "a/new", "a/b/c/new", "etc/new", "mnt/new", "odd/n\udcffew", "etc/SECRET/new")
EXECUTABLES = ("bin/actor", "bin/SH", "sbin/server", "opt/x/bin/tool", "bin/\N{KELVIN SIGN}", "sbin/spared")
PARENTS = ("bin/init", "opt/x/bin/login")
CHILDREN = ("bin/child", "sbin/child", "opt/x/bin/suid", "odd/child")
KEPT_FILES = ("own/kept0", "own/kept1", "a/kept", "etc/kept", "own/deleted", "memfd")
SOCKETS = ("sock/stream", "sock/dgram", "sock/other", "a/dgram")


class Tree:
    """The files, made below *root*; with *mounts* two of its directories are mount points."""

    def __init__(self, root: Path, program: Path, *, mounts: bool) -> None:
        self.root = str(root)
        self.files: dict[str, File] = {}
        self.places: dict[str, Place | None] = {}
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        if mounts:
            mount("tmpfs", root / "mnt", "tmpfs", 0)
            (root / "mnt").chmod(0o755)
            mount(root / "a", root / "bind", None, 4096)
        for name in EMPTY_FOLDERS:
            (root / name).mkdir()
        for name in PLAIN_FILES:
            write(root / name, b"", 0o666)
        for name in ("own/chmod", "own/chown", "own/theirs", *KEPT_FILES[:-1]):
            write(root / name, b"junk", 0o666)
        for name in ("own/chmod", "own/theirs", "own/mine"):
            if not os.geteuid():
                os.chown(root / name, USER, USER)
        (root / "var/log").chmod(0o4755 | 0o022)
        write(root / "a/junk", b"junk\n", 0o755)
        write(root / "etc/Junk", b"junk\n", 0o757)
        write(root / "a/script", f"#!{root}/a/junk\n".encode(), 0o755)
        write(root / "odd/script", f"#!{root}/etc/Junk\n".encode(), 0o6755)
        for name in (*EXECUTABLES, *PARENTS, *CHILDREN):
            write(root / name, program.read_bytes(), 0o755)
        (root / "opt/x/bin/suid").chmod(0o4755)
        (root / "link").symlink_to(root / "etc/passwd")
        (root / "linked").symlink_to(root / "a")
        os.link(root / "a/one", root / "var/hard")
        self.sockets = [bound(root / name) for name in SOCKETS]
        self.mounted = mounts

    def file(self, name: str) -> File:
        """Return one of them as it is used, looked at once."""
        if name not in self.files:
            self.files[name] = File.at(f"{self.root}/{name}", self.chain)
        return self.files[name]

    def place(self, path: str) -> Place | None:
        """Return a file's place, looked at once."""
        if path not in self.places:
            self.places[path] = resolve(path)
        return self.places[path]

    def chain(self, path: str) -> tuple[Place, ...]:
        """Return its place and those above."""
        return chain(path, self.place)

    def take_away(self) -> None:
        """Unmount, and close."""
        for one in self.sockets:
            one.close()
        if self.mounted:
            umount(f"{self.root}/bind")
            umount(f"{self.root}/mnt")


def write(path: Path, data: bytes, mode: int) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def bound(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM if path.name == "stream" else socket.SOCK_DGRAM)
    one.bind(str(path))
    path.chmod(0o666)
    if path.name == "stream":
        one.listen(4096)
    return one


def _libc(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args):
        raise OSError(ctypes.get_errno(), name)


def mount(what: str | Path, where: Path, kind: str | None, flags: int) -> None:
    """Mount something."""
    _libc(
        "mount",
        os.fsencode(what),
        os.fsencode(where),
        None if kind is None else kind.encode(),
        ctypes.c_ulong(flags),
        None,
    )


def umount(where: str) -> None:
    """Unmount it."""
    _libc("umount2", os.fsencode(where), 2)


# A policy


class Author:
    """Writes rules and entries that are about a tree, as many as fit."""

    def __init__(self, seed: int, root: str) -> None:
        self.chance = random.Random(seed)
        self.root = root
        self.paths = [
            f"{root}/{name}"
            for name in (*PLAIN_FILES, *MISSING, *EMPTY_FOLDERS, *SOCKETS, *CHILDREN, *EXECUTABLES, *PARENTS)
        ]
        self.sets = [self.set() for _ in range(MOST - 2)]
        self.numbers = [self.number() for _ in range(40)]
        self.nets = [
            *(Networks(tuple(self.some(NETWORKS, 1, 3))) for _ in range(12)),
            Reach(("loopback",)),
            Reach(("private",)),
            Reach(("public", "private")),
            INTERNET,
        ]

    def some(self, values: Sequence, least: int, most: int) -> list:
        """Return some of them."""
        return self.chance.sample(list(values), self.chance.randint(least, most))

    def set(self) -> tuple:
        """Return what a set of names is made of; paths that get into it are of several kinds."""
        exact = self.some(self.paths, 0, 3)
        prefixes = [path[: self.chance.randint(len(self.root), 63)] for path in self.some(self.paths, 0, 1)]
        prefixes = [text for text in prefixes if len(text.encode("utf-8", "surrogateescape")) <= 64]
        ends = []
        for path in self.some(self.paths, 1 if not exact and not prefixes else 0, 2):
            names = path.split("/")[1:]
            ends.append("/" + "/".join(names[-self.chance.randint(1, min(4, len(names))) :]))
        cased = self.chance.random() < 0.4
        # Sets that aren't cased come with ASCII letters in lower case.
        fold = [[text if cased else text.lower() for text in texts] for texts in (exact, prefixes, ends)]
        return (*(tuple(dict.fromkeys(texts)) for texts in fold), cased)

    def number(self) -> Bits | Numbers:
        """Return a test of a number."""
        subject = self.chance.choice("flags flags mode port port signal cmd uid gid euid another".split())
        if subject == "flags":
            return self.chance.choice(
                [
                    WRITING,
                    Bits(
                        "flags",
                        tuple((bit, bit) for bit in self.some((CREAT, TRUNC, APPEND, NONBLOCK, 2, 1), 1, 3)),
                    ),
                    Bits("flags", ((3, self.chance.randint(0, 2)),)),
                    Bits("flags", tuple((1 << bit, 1 << bit) for bit in self.some(range(31), 9, 14))),
                ]
            )
        if subject == "mode":
            return Bits(
                "mode",
                ((0o7777, self.chance.choice((0o644, 0o755, 0o4755, 0o666))), (0o4000, 0o4000))[
                    : self.chance.randint(1, 2)
                ],
            )
        if subject == "another":
            return Numbers("another", ((1, 1),) if self.chance.random() < 0.6 else ((0, 0),))
        values = {
            "port": (*PORTS, 0, 65535),
            "signal": (0, 1, 2, 10, 15, 17, 23),
            "cmd": (1, 2, 3, 4),
            "uid": (0, 1, USER, -1),
            "gid": (0, 1, USER, -1),
            "euid": (0, USER),
        }[subject]
        ranges = []
        for _ in range(self.chance.randint(1, 10)):
            low = self.chance.choice(values)
            ranges.append((low, low + self.chance.choice((0, 0, 0, 1, 100))))
        return Numbers(subject, tuple(dict.fromkeys(ranges)))

    def literal(self, call_sees: frozenset[str]) -> Literal:
        """Return a test of what a hook sees."""
        subjects = ["program", "parent", "service", "ancestors"]
        subjects += [
            name for name in ("target", "path", "image", "executed", "asked") if name in call_sees
        ] * 4
        kind = self.chance.random()
        numbers = [one for one in self.numbers if one.subject in call_sees | {"euid"}]
        if "destination" in call_sees and kind < 0.4:
            test = self.chance.choice(self.nets)
        elif numbers and kind < 0.6:
            test = self.chance.choice(numbers)
        else:
            subject = self.chance.choice(subjects)
            if self.chance.random() < 0.03 and subject in call_sees:
                return Literal(Known(subject))
            exact, prefixes, suffixes, cased = self.chance.choice(self.sets)
            test = Names(subject, exact, prefixes, suffixes, cased)
        return Literal(test, negated=self.chance.random() < 0.35)

    def guard(self, hook) -> Guard:
        """Return a guard at one hook."""
        # By setresuid who has become root goes back.
        named = [call for call in hook.calls if call != "setresuid"]
        calls = tuple(self.some(named, 1, min(4, len(named))))
        ways = tuple(
            tuple(dict.fromkeys(self.literal(hook.sees) for _ in range(self.chance.randint(1, 3))))
            for _ in range(self.chance.randint(1, 4))
        )
        return Guard(hook.name, calls, ways)

    def rules(self) -> Iterator[tuple[Derived, Mode | None]]:
        """Yield rules, and the modes that are named for them."""
        number = 0
        for _ in range(5):
            for hook in HOOKS:
                guards = [self.guard(hook)]
                if self.chance.random() < 0.3:
                    guards.append(self.guard(self.chance.choice(HOOKS)))
                anomalous = self.chance.random() < 0.05
                # To be killed nobody must stand at a hook that an actor itself comes by.
                kills = (
                    all(guard.hook == "bprm_creds_from_file" for guard in guards)
                    and self.chance.random() < 0.4
                )
                mode = self.chance.choices([None, *Mode], weights=(5, 3, 3, 1))[0]
                yield derived(f"r{number}", guards, "kill" if kills else "deny", anomalous=anomalous), mode
                number += 1

    def entries(self, count: int) -> Iterator[Entry]:
        """Yield entries."""
        folders = [f"{self.root}/{name}" for name in (*FOLDERS, *EMPTY_FOLDERS, "gone")]
        files = [
            f"{self.root}/{name}"
            for name in (
                *PLAIN_FILES,
                *CHILDREN,
                "a/junk",
                "etc/Junk",
                "a/script",
                "var/hard",
                "link",
                "gone",
            )
        ]
        who = [f"{self.root}/{name}" for name in (*EXECUTABLES, *CHILDREN)]
        under_sets = [tuple(self.some(folders, 1, 3)) for _ in range(28)]
        same_sets = [tuple(self.some([*files, *folders], 1, 3)) for _ in range(28)]
        who_sets = [tuple(self.some(who, 1, 3)) for _ in range(40)]
        of_file = (Does.CREATE, Does.UNLINK, Does.RENAME, Does.LINK, Does.ATTRIBUTES, Does.MOUNT, Does.UMOUNT)
        of_kind = (Does.EXEC, Does.READ, Does.WRITE)
        others = (Does.LISTEN, Does.PTRACE, Does.BPF, Does.USERNS, Does.KILL, Does.CAPSET, Does.PRCTL)
        for number in range(count):
            asks: dict = {}
            shape = self.chance.choice("file file kind kind net net unix other setuid family".split())
            if shape == "file":
                asks = {"does": tuple(self.some((*of_file, *of_kind), 1, 2))}
                asks |= self.chance.choice(
                    [{"under": self.chance.choice(under_sets)}, {"same": self.chance.choice(same_sets)}]
                )
            elif shape == "kind":
                kinds = self.some(tuple(FileKind), 1, 2)
                asks = {
                    "does": tuple(self.some(of_kind, 1, 2)),
                    "kinds": tuple(kinds),
                    "under": self.chance.choice(under_sets),
                }
            elif shape == "net":
                asks = {
                    "does": tuple(self.some((Does.CONNECT, Does.BIND), 1, 2)),
                    "networks": self.chance.choice(self.nets[:12]).networks,
                    "ports": tuple((port, port + 1) for port in self.some(PORTS[:3], 0, 1)),
                    "families": tuple(self.some((Family.INET, Family.INET6), 0, 1)),
                }
            elif shape == "unix":
                sockets = tuple(f"{self.root}/{name}" for name in self.some(SOCKETS, 1, 2))
                asks = {"does": (Does.CONNECT,), "sockets": sockets}
            elif shape == "family":
                asks = {
                    "does": tuple(self.some((Does.CONNECT, Does.LISTEN), 1, 2)),
                    "families": (self.chance.choice(tuple(Family)),),
                }
            elif shape == "setuid":
                asks = {"does": (Does.SETUID,), "to_root": True}
            else:
                asks = {"does": (self.chance.choice(others),)}
            if shape in {"other", "setuid", "family"} or self.chance.random() < 0.5:
                which = self.chance.choice(("by", "by", "unless_by") if shape != "other" else ("by",))
                asks[which] = self.chance.choice(who_sets)
            yield Entry(
                id=f"e{number}",
                at=Location("enforce.yml", number + 1, 1),
                action=self.chance.choice((Action.DENY, Action.DENY, Action.LOG)),
                mode=self.chance.choices([None, *Mode], weights=(5, 3, 3, 2))[0],
                anomalous=self.chance.random() < 0.05,
                **asks,
            )


def derived(identity: str, guards: Sequence[Guard], action: str, *, anomalous: bool) -> Derived:
    """Return a rule with these guards."""
    asks = Response(action, inline=True, anomalous=anomalous)
    rule = Rule(
        identity,
        f"Rule {identity}",
        Level.HIGH,
        file=f"rules/{identity}.yml",
        source="syscall",
        response=asks,
    )
    ones = tuple(replace(guard, anomalous=anomalous) for guard in guards)
    return Derived(rule, ones, ())


def full_policy(seed: int, root: str, find: Resolve, also: Sequence[Hook] = ()) -> Compiled:
    """Return a policy of rules and entries until nothing more fits."""
    author = Author(seed, root)
    rules = list(author.rules())
    entries = list(author.entries(160))
    settings = Settings(
        modes={one.rule.id: mode for one, mode in rules if mode is not None}, entries=tuple(entries)
    )
    builder = _Builder(settings, find, "x86_64", _named([one for one, _ in rules]), hooks=set(also))
    for one in [*(rule for rule, _ in rules), *entries]:
        kept = _copy(builder)
        try:
            (builder.add_entry if isinstance(one, Entry) else builder.add_rule)(one)
        except RuleError:
            builder = kept  # this one doesn't fit, a later one may
    builder.settings = replace(
        settings,
        modes={
            rule.id: rule.mode
            for rule in builder.rules
            if isinstance(rule.source, Derived) and rule.mode is not None
        },
        entries=tuple(rule.source for rule in builder.rules if isinstance(rule.source, Entry)),
    )
    compiled = builder.finish()
    back = {rule.id for rule in compiled.rules if author.chance.random() < 0.03}
    return compiled.without(back, lambda rule: rule.id)


def _copy(builder: _Builder) -> _Builder:
    return replace(
        builder,
        rules=list(builder.rules), ways=list(builder.ways), sets=dict(builder.sets), asked=dict(builder.asked), places=dict(builder.places),
        executables=dict(builder.executables), missing=list(builder.missing), hooks=set(builder.hooks),
    )  # fmt: skip


# What is done


@dataclass(frozen=True, slots=True)
class Actor:
    """
    A process that does operations.

    Attributes
    ----------
    parent, exe
        Their names in the tree.
    uid, suid
        User ids that it changes to: effective, and saved.
    cgroup
        The mode of its control group.
    """

    parent: str
    exe: str
    uid: int = 0
    suid: int = 0
    cgroup: Mode | None = None
    spared: bool = False


ACTORS = (
    Actor("bin/init", "bin/actor"),
    Actor("bin/init", "bin/SH", USER, USER),
    Actor("opt/x/bin/login", "sbin/server", cgroup=Mode.PERMISSIVE),
    Actor("opt/x/bin/login", "opt/x/bin/tool", USER, USER, cgroup=Mode.ENFORCE),
    Actor("bin/init", "bin/\N{KELVIN SIGN}", USER, USER),
    Actor("bin/init", "bin/SH", USER, 0, cgroup=Mode.OFF),
    Actor("opt/x/bin/login", "bin/actor", USER, 0),
    Actor("opt/x/bin/login", "sbin/spared", USER, USER, spared=True),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One question to one hook; *spared*: whether who asks is on the never-list."""

    operation: Operation
    spared: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """
    One system call, as the program is told it, and the questions that it asks as long as the answers let it go on.

    Attributes
    ----------
    dies
        From this step on a refusal is a signal.
    """

    name: str
    args: tuple = ()
    kinds: tuple[int, ...] = ()
    how: int = PLAIN
    domain: int = 0
    type: int = 0
    closes: bool = False
    steps: tuple[Step, ...] = ()
    dies: int = 99
    executes: int = 99
    """The steps from this one on are the executed program's: they come by its exit status."""


@dataclass(frozen=True, slots=True)
class Who:
    """What is known of an actor by the names of its process and those above."""

    exe: str
    place: Place
    parents: tuple[str, ...]
    service: str


@dataclass(slots=True)
class Scene:
    """Makes operations of an actor."""

    tree: Tree
    actor: Actor
    who: Who
    chance: random.Random
    truncate_by_path: bool = True

    def file(self, name: str) -> File:
        """Return one of the tree's files."""
        return self.tree.file(name)

    def any(self, names: Sequence[str]) -> File:
        """Return any of some."""
        return self.file(self.chance.choice(names))

    # Questions

    def step(self, hook: Hook, call: str, *files: File, names: Mapping | None = None, unseen: bool = False, numbers: Mapping[str, int] | None = None,
             traits: Trait = NO_TRAIT, of_file: bool = True, address: str | None = None) -> Step:  # fmt: skip
        """Return a question: about files, of which the first may have no path there."""
        known = self.names()
        if files:
            paths: tuple[str | None, ...] = tuple(file.real for file in files)
            if unseen:
                paths = (None, *paths[1:]) if len(paths) > 1 else (None, *paths)
            known |= {"target": (paths[-1],), "path": paths}
            if of_file:
                traits |= files[0].traits
        return Step(
            Operation(
                hook, call, names=known | dict(names or {}), numbers={"euid": self.actor.uid} | dict(numbers or {}), address=address,
                traits=traits, files=tuple(file.files for file in files), who=self.who.place, cgroup=self.actor.cgroup,
            ),
            self.actor.spared,
        )  # fmt: skip

    def names(self) -> dict[str, tuple[str | None, ...]]:
        """Return the names of the process and of those above it."""
        who = self.who
        return {
            "program": (who.exe,),
            "parent": who.parents[:1],
            "service": (who.service,),
            "ancestors": who.parents,
        }

    # Calls

    def opens(self) -> Call:
        """Open a file, or make one where that fails after the hook."""
        name = self.chance.choice(("open", "openat", "openat", "openat2", "creat"))
        file = self.any((*PLAIN_FILES, "link", "linked/two", "bind/one", "var/hard", "var/log", "a/junk"))
        flags = self.chance.choice((0, 1, 2, 3)) if file.traits & Trait.OTHERS_WRITE else 0
        writes = file.traits & Trait.OTHERS_WRITE
        more = (
            CLOEXEC,
            NONBLOCK,
            APPEND,
            *((TRUNC,) if flags in {1, 2} and not file.traits & Trait.SETUID else ()),
            *((CREAT,) if writes else ()),
        )
        for flag in self.chance.sample(more, self.chance.randint(0, 3)):
            flags |= flag
        if self.chance.random() < 0.2:
            file = self.any(("a", "etc", "mnt", "bind/b", "a/b/c/d/e"))
            flags = self.chance.choice((0, CLOEXEC, 0o200000))
            name = "openat" if name == "creat" else name
        if (not writes or file.traits & Trait.SETUID) and name == "creat":
            name = "open"
        new = self.actor.uid == USER and self.actor.suid != 0 and self.chance.random() < 0.25
        if new:
            file = self.any(MISSING)
            flags = (flags & ~0o200000) | CREAT
        if name == "creat":
            flags = CREAT | 1 | TRUNC
        kept = flags & ~CLOEXEC | (0 if name == "openat2" else LARGEFILE)
        path = relative(file.path, self.tree, self.chance) if name == "openat" else file.path
        args = {
            "open": (path, flags, 0o600),
            "creat": (path, 0o600),
            "openat": (-100, path, flags, 0o600),
            "openat2": (-100, path, struct.pack("=QQQ", flags, 0o600 if flags & CREAT else 0, 0), 24),
        }[name]
        steps = []
        if new:
            # openat2's flags stand in memory, where no hook looks for them.
            numbers = {} if name == "openat2" else {"flags": flags}
            return Call(
                name, args, closes=True, steps=(self.step(Hook.PATH_MKNOD, name, file, numbers=numbers),)
            )
        traits = (Trait.READ if flags & 3 in {0, 2} else Trait(0)) | (
            Trait.WRITE if flags & 3 or flags & TRUNC else Trait(0)
        )
        steps.append(self.step(Hook.FILE_OPEN, name, file, numbers={"flags": kept}, traits=traits))
        if flags & TRUNC and self.truncate_by_path:
            steps.append(self.step(Hook.PATH_TRUNCATE, name, file, traits=Trait.WRITE))
        return Call(name, args, closes=True, steps=tuple(steps))

    def reopens(self) -> Call:
        """Open what has no name any more, or never had one."""
        number = self.chance.choice((4, 5))
        flags = self.chance.choice((0, 1, 2))
        deleted = Trait.DELETED | Trait.MEMFD | Trait.OTHERS_WRITE
        above = self.tree.chain(f"{self.tree.root}/own") if number == 4 else ()
        file = File(f"/proc/self/fd/{200 + number}", None, (Place(0, number), *above), deleted)
        traits = (Trait.READ if flags in {0, 2} else Trait(0)) | (Trait.WRITE if flags else Trait(0))
        steps = (
            self.step(Hook.FILE_OPEN, "openat", file, numbers={"flags": flags | LARGEFILE}, traits=traits),
        )
        return Call("openat", (-100, file.path, flags, 0), closes=True, steps=steps)

    def truncates(self) -> Call:
        """Cut a file that is empty."""
        file = self.any((*PLAIN_FILES, "link", "bind/one", "var/hard"))
        if not file.traits & Trait.OTHERS_WRITE or file.traits & Trait.SETUID:
            file = self.file("one")
        return Call(
            "truncate",
            (file.path, 0),
            steps=(self.step(Hook.PATH_TRUNCATE, "truncate", file, traits=Trait.WRITE),),
        )

    def makes(self) -> Call:
        """Make what this actor may not make, once the hook has been asked."""
        file = self.any(MISSING)
        name = self.chance.choice(
            ("mknod", "mknodat", "mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat")
        )
        if name.startswith("mknod"):
            args = (file.path, stat.S_IFIFO | 0o600, 0)
            steps = (self.step(Hook.PATH_MKNOD, name, file),)
        elif name.startswith("mkdir"):
            args = (file.path, 0o700)
            steps = (self.step(Hook.PATH_MKDIR, name, file),)
        elif name.startswith("symlink"):
            args = ("/etc/passwd", file.path) if name == "symlink" else ("/etc/passwd", -100, file.path)
            return Call(name, args, steps=(self.step(Hook.PATH_SYMLINK, name, file, unseen=True),))
        else:
            old = self.any(("a/one", "a/two", "etc/Shadow", "odd/UPPER", "one"))
            if file.path.startswith(f"{self.tree.root}/mnt/"):
                old = self.file("mnt/inside")
            args = (old.path, file.path) if name == "link" else (-100, old.path, -100, file.path, 0)
            numbers = {} if name == "link" else {"flags": 0}
            steps = (self.step(Hook.PATH_LINK, name, old, file, unseen=True, numbers=numbers),)
            return Call(name, args, steps=steps)
        return Call(name, (-100, *args) if name.endswith("at") else args, steps=steps)

    def removes(self) -> Call:
        """Remove what this actor may not remove."""
        name = self.chance.choice(("unlink", "unlinkat", "rmdir", "unlinkat"))
        folder = name == "rmdir" or (name == "unlinkat" and self.chance.random() < 0.5)
        file = (
            self.any((*EMPTY_FOLDERS, "a/b/c"))
            if folder
            else self.any((*PLAIN_FILES, "var/hard", "linked/two"))
        )
        hook = Hook.PATH_RMDIR if folder else Hook.PATH_UNLINK
        flags = 0x200 if folder else 0
        args = (-100, file.path, flags) if name == "unlinkat" else (file.path,)
        numbers = {"flags": flags} if name == "unlinkat" else {}
        return Call(name, args, steps=(self.step(hook, name, file, numbers=numbers),))

    def renames(self) -> Call:
        """Rename what it may not rename, or exchange two."""
        name = self.chance.choice(("rename", "renameat", "renameat2"))
        old = self.any([one for one in PLAIN_FILES if not one.startswith("mnt")])
        new = self.any([one for one in (*MISSING, *PLAIN_FILES) if not one.startswith("mnt")])
        if old.files[:1] == new.files[:1] and old.there and new.there:
            new = self.file("a/new")
        swap = name == "renameat2" and new.there
        args = (
            (old.path, new.path)
            if name == "rename"
            else (-100, old.path, -100, new.path, *((2 if swap else 0,) if name == "renameat2" else ()))
        )
        return Call(name, args, steps=(self.step(Hook.PATH_RENAME, name, old, new),))

    def attributes(self) -> Call:
        """Change mode or owner of files that nothing else is done with."""
        name = self.chance.choice(
            (
                "chmod",
                "fchmodat",
                "fchmod",
                *(("chown", "lchown", "fchownat", "fchown") if not self.actor.uid else ()),
            )
        )
        mode = self.chance.choice((0o644, 0o755, 0o4755, 0o666, 0o600))
        owner, group = self.chance.choice((0, 1, USER)), self.chance.choice((0, 1, USER))
        file = self.file("own/chmod")
        if "chown" in name:
            file = self.file("own/chown")
            numbers = {"uid": owner, "gid": group}
            args: tuple = {"chown": (file.path, owner, group), "lchown": (file.path, owner, group),
                           "fchownat": (-100, file.path, owner, group, 0), "fchown": (0, owner, group)}[name]  # fmt: skip
            kinds: tuple[int, ...] = ()
            if name == "fchown":
                file, kinds = self.file("own/kept0"), (KEPT,)
            return Call(
                name,
                args,
                kinds,
                steps=(self.step(Hook.PATH_CHOWN, name, file, numbers=numbers, of_file=False),),
            )
        args = {"chmod": (file.path, mode), "fchmodat": (-100, file.path, mode), "fchmod": (1, mode)}[name]
        kinds = ()
        if name == "fchmod":
            if self.actor.uid:
                return self.attributes()
            file, kinds = self.file("own/kept1"), (KEPT,)
        return Call(
            name,
            args,
            kinds,
            steps=(self.step(Hook.PATH_CHMOD, name, file, numbers={"mode": mode}, of_file=False),),
        )

    def maps(self) -> Call:
        """Map a file to be executed."""
        number = self.chance.choice((2, 3))
        file = self.file(KEPT_FILES[number])
        return Call(
            "mmap",
            (0, 4096, 5, 2, number, 0),
            (0, 0, 0, 0, KEPT),
            steps=(self.step(Hook.MMAP_FILE, "mmap", file, traits=Trait.MAPPED),),
        )

    def nets(self) -> Call:
        """Use an Internet address."""
        name = self.chance.choice(("connect", "connect", "sendto", "sendmsg", "bind", "listen"))
        wide = self.chance.random() < 0.4
        address, port = self.chance.choice(IPV6 if wide else IPV4), self.chance.choice(PORTS)
        domain = socket.AF_INET6 if wide else socket.AF_INET
        traits = Trait.IPV6 if wide else Trait.IPV4
        raw = sockaddr(address, port)
        if name == "listen":
            return Call(
                name,
                (0, 1),
                (SOCKET,),
                WITH_SOCKET,
                domain,
                socket.SOCK_STREAM,
                steps=(self.step(Hook.SOCKET_LISTEN, name, traits=traits),),
            )
        hook = {"connect": Hook.SOCKET_CONNECT, "bind": Hook.SOCKET_BIND}.get(name, Hook.SOCKET_SENDMSG)
        return self.addressed(
            name,
            raw,
            domain,
            socket.SOCK_DGRAM,
            (self.step(hook, name, numbers={"port": port}, traits=traits, address=address),),
        )

    def addressed(self, name: str, raw: bytes, domain: int, kind: int, steps: tuple[Step, ...]) -> Call:
        """Return a call that takes an address."""
        if name == "sendto":
            args, kinds = (0, b"x", 1, 0x40, raw, len(raw)), (SOCKET, 0, 0, 0, 0, 0)
        elif name == "sendmsg":
            args, kinds = (0, raw, 0x40), (SOCKET, MESSAGE, 0)
        else:
            args, kinds = (0, raw, len(raw)), (SOCKET, 0, 0)
        return Call(name, args, kinds, WITH_SOCKET, domain, kind, steps=steps)

    def unixes(self) -> Call:
        """Use a socket's path."""
        name = self.chance.choice(
            ("connect", "connect", "sendto", "sendmsg", "listen", *(("bind",) if self.actor.uid else ()))
        )
        if name == "listen":
            return Call(
                name,
                (0, 1),
                (SOCKET,),
                WITH_SOCKET,
                socket.AF_UNIX,
                socket.SOCK_STREAM,
                steps=(self.step(Hook.SOCKET_LISTEN, name, traits=Trait.UNIX),),
            )
        file = self.any(SOCKETS if name == "connect" else SOCKETS[1:])
        if name == "bind":
            file = self.any([one for one in MISSING if "\udcff" not in one])
        raw = struct.pack("=H", socket.AF_UNIX) + os.fsencode(file.path) + b"\0"
        stream = file.path.endswith("/stream")
        kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
        first = {"connect": Hook.SOCKET_CONNECT, "bind": Hook.SOCKET_BIND}.get(name, Hook.SOCKET_SENDMSG)
        steps = [self.step(first, name, traits=Trait.UNIX)]
        if name == "bind":
            steps.append(self.step(Hook.PATH_MKNOD, name, file))
        else:
            second = Hook.UNIX_STREAM_CONNECT if stream else Hook.UNIX_MAY_SEND
            steps.append(self.step(second, name, file, traits=Trait.UNIX, of_file=False))
        return self.addressed(name, raw, socket.AF_UNIX, kind, tuple(steps))

    def signals(self) -> Call:
        """Send itself a signal that does nothing."""
        number = self.chance.choice((0, 1, 2, 10, 15, 17, 23, 28))
        name = self.chance.choice(("kill", "kill", "tgkill"))
        args, kinds = (
            ((0, number), (OWN_PID, 0)) if name == "kill" else ((0, 0, number), (OWN_PID, OWN_PID, 0))
        )
        return Call(name, args, kinds, steps=(self.step(Hook.TASK_KILL, name, numbers={"signal": number}),))

    def controls(self) -> Call:
        """Ask for an option of its own."""
        return Call(
            "prctl",
            (self.chance.choice((3, 7, 21, 27)), 0, 0, 0, 0),
            steps=(self.step(Hook.TASK_PRCTL, "prctl"),),
        )

    def capabilities(self) -> Call:
        """Ask for the capabilities that it has: none."""
        return Call(
            "capset",
            (struct.pack("=II", 0x20080522, 0), bytes(24)),
            steps=(self.step(Hook.CAPSET, "capset"),),
        )

    def users(self) -> Call:
        """Become who it is."""
        name = self.chance.choice(("setuid", "setreuid", "setgid", "setregid"))
        args = (USER,) if name in {"setuid", "setgid"} else (self.chance.choice((USER, -1)), USER)
        hook, number = (Hook.TASK_FIX_SETUID, "uid") if "uid" in name else (Hook.TASK_FIX_SETGID, "gid")
        return Call(name, args, steps=(self.step(hook, name, numbers={number: args[0]}),))

    def becomes_root(self) -> Call:
        """Become root, as its saved user id allows."""
        name, args = self.chance.choice([("setuid", (0,)), ("setresuid", (-1, 0, -1)), ("setreuid", (-1, 0))])
        return Call(
            name,
            args,
            steps=(self.step(Hook.TASK_FIX_SETUID, name, numbers={"uid": args[0]}, traits=Trait.TO_ROOT),),
        )

    def becomes_user(self) -> Call:
        """Be nobody special again."""
        step = self.step(Hook.TASK_FIX_SETUID, "setresuid", numbers={"uid": -1, "euid": 0})
        return Call("setresuid", (-1, USER, -1), steps=(step,))

    def unshares(self) -> Call:
        """Ask for a user namespace that can't be had in the end."""
        # No more namespaces of control groups may be made: it ends there.
        flags = 0x10000000 | 0x02000000 | self.chance.choice((0, 0x200, 0x04000000))
        return Call(
            "unshare", (flags,), steps=(self.step(Hook.USERNS_CREATE, "unshare", numbers={"flags": flags}),)
        )

    def bpfs(self) -> Call:
        """Use a map that there isn't."""
        cmd = self.chance.choice((1, 2, 3, 4))
        return Call(
            "bpf",
            (cmd, b"\xff" * 4 + bytes(28), 32),
            steps=(self.step(Hook.BPF, "bpf", numbers={"cmd": cmd}),),
        )

    def reaches_in(self) -> Call:
        """Read another process' memory, or write to it."""
        name = self.chance.choice(("process_vm_readv", "process_vm_writev"))
        step = self.step(Hook.PTRACE_ACCESS_CHECK, name, numbers={"another": 1}, traits=Trait.ATTACH)
        return Call(name, (0, 0, 1, 0, 1, 0), (TARGET_PID, VECTOR, 0, VECTOR, 0, 0), steps=(step,))

    def mounts(self) -> Call:
        """Mount nothing, or unmount in a way that there isn't."""
        if self.chance.random() < 0.4:
            flags = self.chance.choice((5, 6, 13))
            step = self.step(
                Hook.SB_UMOUNT, "umount2", self.file("mnt"), numbers={"flags": flags}, of_file=False
            )
            return Call("umount2", (f"{self.tree.root}/mnt", flags), steps=(step,))
        file = self.any(("mnt", "a", "etc", "var", "a/b/c", "bind"))
        flags = 4096 | self.chance.choice((0, 1, 2, 4, 16384))
        step = self.step(Hook.SB_MOUNT, "mount", file, unseen=True, numbers={"flags": flags}, of_file=False)
        return Call("mount", (b"\0", file.path, b"\0", flags, 0), steps=(step,))

    def execution(
        self, call: str, file: File, asked: str | None, who: Mapping, *, script: bool = False
    ) -> list[Step]:
        """Return the first questions of an execution."""
        names = {"executed": (file.real,), "asked": (asked,), **who}
        return [
            self.step(
                Hook.FILE_OPEN,
                call,
                file,
                names=who,
                numbers={"flags": LARGEFILE | FOR_EXECUTION},
                traits=Trait.FORCED,
            ),
            self.step(
                Hook.BPRM_CHECK_SECURITY,
                call,
                file,
                names=names,
                traits=Trait.INTERPRETER if script else Trait(0),
            ),
        ]

    def junk(self) -> Call:
        """Execute what can't be executed: the kernel finds out after its first question."""
        name = self.chance.choice(("a/junk", "etc/Junk", "a/script", "odd/script", "bind/junk"))
        file = self.file(name)
        path = relative(file.path, self.tree, self.chance)
        asked = path if path.startswith("/") and "/." not in path else None
        call = self.chance.choice(("execve", "execveat"))
        steps = self.execution(call, file, asked, {})
        if name.endswith("script"):
            steps += self.execution(
                call, self.file("a/junk" if name == "a/script" else "etc/Junk"), asked, {}, script=True
            )
        args, kinds = ((path, 0, 0), (0, ARGV)) if call == "execve" else ((-100, path, 0, 0, 0), (0, 0, ARGV))
        return Call(call, args, kinds, steps=tuple(steps))

    def child(self) -> Call:
        """Fork, execute, and open a file as what has been executed."""
        file = self.any(CHILDREN)
        opened, flags = (
            self.any(("one", "a/two", "etc/passwd", "odd/UPPER", "a/b/c/three", "mnt/inside")),
            self.chance.choice((0, 1, 2)),
        )
        who = self.names() | {"parent": (self.who.exe,), "ancestors": (self.who.exe, *self.who.parents)}
        steps = self.execution("execve", file, file.path, who)
        euid = 0 if file.traits & Trait.SETUID else self.actor.uid
        names = {"executed": (file.real,), "asked": (file.path,), **who}
        steps.append(
            self.step(Hook.BPRM_CREDS_FROM_FILE, "execve", file, names=names, numbers={"euid": euid})
        )
        mapped = self.step(
            Hook.MMAP_FILE, "execve", file, names=who, numbers={"euid": euid}, traits=Trait.MAPPED
        )
        # Who executes is told once the program stands; who is spared is asked of the new one.
        steps.append(Step(mapped.operation))
        born = who | {"program": (file.real,)}
        traits = (Trait.READ if flags in {0, 2} else Trait(0)) | (Trait.WRITE if flags else Trait(0))
        last = self.step(
            Hook.FILE_OPEN,
            "openat",
            opened,
            names=born,
            numbers={"euid": euid, "flags": flags | LARGEFILE},
            traits=traits,
        )
        steps.append(Step(replace(last.operation, who=file.files[0])))
        return Call(
            "execve", (file.path, opened.path, flags), how=IN_CHILD, steps=tuple(steps), dies=3, executes=4
        )

    def calls(self) -> dict:
        """Return what this actor does, and how often each."""
        found = {self.opens: 30, self.truncates: 4, self.maps: 3, self.nets: 14, self.unixes: 10, self.signals: 8, self.controls: 4,
                 self.junk: 6, self.attributes: 5}  # fmt: skip
        if self.actor.uid == USER and self.actor.suid == USER:
            found |= {
                self.makes: 14,
                self.removes: 8,
                self.renames: 8,
                self.users: 6,
                self.reopens: 4,
                self.capabilities: 2,
            }
        if not self.actor.uid:
            found |= {self.bpfs: 6, self.reaches_in: 6, self.mounts: 8, self.reopens: 4}
        return found


RARE = ("child", "unshares")


def relative(path: str, tree: Tree, chance: random.Random) -> str:
    """Return a path as it may also be asked for: the actors stand in the root directory."""
    return chance.choice(
        (
            path,
            path,
            path,
            path.removeprefix("/"),
            path.replace(tree.root, f"{tree.root}/./..{tree.root[tree.root.rindex('/') :]}", 1),
        )
    )


def sockaddr(address: str, port: int) -> bytes:
    """Return an address as the kernel takes it."""
    if ":" in address:
        return (
            struct.pack("=H", socket.AF_INET6)
            + struct.pack(">HI", port, 0)
            + socket.inet_pton(socket.AF_INET6, address)
            + bytes(4)
        )
    return (
        struct.pack("=H", socket.AF_INET)
        + struct.pack(">H", port)
        + socket.inet_pton(socket.AF_INET, address)
        + bytes(8)
    )


# What is expected


@dataclass(frozen=True, slots=True)
class Expected:
    """
    What becomes of a call.

    Attributes
    ----------
    said
        Of each step that some way speaks of: the hook, and the decision.
    refused
        It fails by a guard; *by_signal*: with a signal.
    """

    said: tuple[tuple[Hook, Decision], ...]
    refused: bool = False
    by_signal: bool = False


class Judge:
    """
    The reference, asked at each hook about those rules alone that have a way there: without a compiler of its own it takes ten times as long.

    Attributes
    ----------
    asked
        Steps, and what was said of them.
    """

    def __init__(self, compiled: Compiled, host: Mode) -> None:
        self.compiled = compiled
        self.host = host
        self.asked: list[tuple[Step, Decision | None]] = []
        self._there = {
            hook: sorted(
                {way.rule for way in compiled.ways if way.hook is hook and way.rule < len(compiled.rules)}
            )
            for hook in compiled.hooks
        }
        self._rules = {
            hook: replace(compiled, rules=tuple(compiled.rules[index] for index in there))
            for hook, there in self._there.items()
        }

    def decide(self, step: Step) -> Decision | None:
        """Return what becomes of an operation."""
        hook = step.operation.hook
        if hook not in self._rules:
            return None
        found = decide(self._rules[hook], step.operation, host=self.host, spared=step.spared)
        found = None if found is None else replace(found, rule=self._there[hook][found.rule])
        self.asked.append((step, found))
        return found

    def whole(self, step: Step) -> Decision | None:
        """Return the same, all rules asked."""
        return decide(self.compiled, step.operation, host=self.host, spared=step.spared)

    def expect(self, call: Call) -> Expected:
        """Return what becomes of a call."""
        said = []
        for index, step in enumerate(call.steps):
            decision = self.decide(step)
            if decision is None:
                continue
            said.append((step.operation.hook, decision))
            if decision.denies:
                killed = decision.action is Action.KILL
                return Expected(tuple(said), True, killed or call.dies <= index < call.executes)
        return Expected(tuple(said))


class Blob:
    """What operations point to."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.at: dict[bytes, int] = {}

    def put(self, raw: bytes) -> int:
        """Return where something stands."""
        if raw not in self.at:
            self.data += bytes(-len(self.data) % 8)
            self.at[raw] = len(self.data)
            self.data += raw
        return self.at[raw]


def packed(call: Call, blob: Blob, base: int) -> bytes:
    """Return an operation as the program reads it."""
    args, kinds = [], []
    for index in range(6):
        given = call.args[index] if index < len(call.args) else 0
        kind = call.kinds[index] if index < len(call.kinds) else VALUE
        if isinstance(given, str):
            given = os.fsencode(given) + b"\0"
        if isinstance(given, bytes):
            length = len(given)
            given = base + blob.put(given)
            if kind == MESSAGE:
                given |= length << 32
            else:
                kind = POINTER
        args.append(given & 0xFFFFFFFFFFFFFFFF)
        kinds.append(kind)
    return OP.pack(
        CALLS[call.name], call.how, call.domain, call.type, call.closes, *kinds, 0, 0, *args, -1, 0
    )


def plan(calls: Sequence[Call], order: Sequence[int], kept: Sequence[str], rounds: int = 1) -> bytearray:
    """Return an actor's file: the operations in their order, and what they point to."""
    base = PLAN.size
    blob = Blob()
    files = blob.put(b"".join(os.fsencode(one) + b"\0" for one in kept) + b"\0")
    ones = [packed(call, blob, base) for call in calls]
    blob.data += bytes(-len(blob.data) % 8)
    image = bytearray(PLAN.pack(len(order), base + files, base + len(blob.data), rounds))
    image += blob.data
    image += b"".join([ones[index] for index in order])
    return image


def script(
    scene: Scene, judge: Judge, distinct: int, count: int
) -> tuple[list[Call], list[Expected], list[int]]:
    """Return an actor's calls, what is expected of each, and the order in which they are done, *count* in all."""
    chance = scene.chance
    makers = scene.calls()
    calls = [maker() for maker in chance.choices(list(makers), weights=list(makers.values()), k=distinct)]
    expected = [judge.expect(call) for call in calls]
    units = [(index,) for index in range(len(calls))]
    if scene.actor.uid and not scene.actor.suid:
        back = len(calls)
        calls.append(scene.becomes_user())
        expected.append(judge.expect(calls[-1]))
        assert not expected[-1].refused, "who has become root must be able to go back"
        for _ in range(20):
            calls.append(scene.becomes_root())
            expected.append(judge.expect(calls[-1]))
            units.append((len(calls) - 1,) if expected[-1].refused else (len(calls) - 1, back))
    rare = []
    for name in RARE:
        for _ in range(12):
            rare.append((len(calls),))
            calls.append(getattr(scene, name)())
            expected.append(judge.expect(calls[-1]))
    order: list[int] = []
    while len(order) < count:
        order += chance.choice(rare) if chance.random() < 0.005 else chance.choice(units)
    return calls, expected, order
