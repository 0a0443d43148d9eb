# SPDX-License-Identifier: Apache-2.0
r"""
Cgroups: the kernel's 64-bit ids become paths, systemd's units and containers.

``bpf_get_current_cgroup_id()`` gives the number of a directory in the **v2** hierarchy: on a 64-bit kernel its inode
number. No number is given twice and no directory is ever moved, so what an id means is known once and for all, also
after the cgroup has gone.

A path is what the kernel says. A unit or container is what the path's *names* say: whoever was delegated a part of the
hierarchy (a user's own service manager, a container) names directories in it as they like. Whoever needs proof
compares the path.
"""

import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import ENODEV, ENOENT
from pathlib import Path

from ksentinel.errors import HostError, UsageError
from ksentinel.mounts import CGROUP_ROOT, MOUNTINFO, CgroupMounts, cgroup_mounts

LEAST_PREFIX = 12
"""How much of a container's id names it: what `docker ps` shows."""

_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice)")
_ESCAPES = re.compile(r"(?:\\x[0-9a-f]{2})+")
_HEX = re.compile(r"[0-9a-f]+")
_DIGITS = 20  # of the largest id

# How runtimes name the cgroup of a container, as "parent/name"; the first that fits counts. {hex} is an id, {name} a
# name. The monitors beside a container (conmon, lxc.monitor) are none. What stands between colons is for systemd, by a
# runtime that was told not to use it.
_CONTAINERS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (runtime, re.compile(pattern.replace("{hex}", r"([0-9a-f]{64})").replace("{name}", r"([^/]+)")))
    for runtime, pattern in (
        ("docker", r".*/docker-{hex}\.scope"),
        ("docker", r"docker/{hex}"),
        ("docker", r".*/.*:docker:{hex}"),
        ("containerd", r".*/cri-containerd-{hex}\.scope"),
        ("containerd", r".*/.*:cri-containerd:{hex}"),
        ("containerd", r".*/nerdctl-{hex}\.scope"),
        ("podman", r".*/libpod-(?:payload-)?{hex}(?:\.scope)?"),
        ("cri-o", r".*/crio-{hex}(?:\.scope)?"),
        ("cri-o", r".*/.*:crio:{hex}"),
        # Kubernetes without systemd: containerd, or another with the same manners.
        ("cri", r"(?:kubepods|pod)[^/]*/{hex}"),
        ("lxc", r".*/lxc\.payload\.{name}"),
        ("lxc", r"lxc(?:\.payload)?/{name}"),
        ("libvirt-lxc", r".*/machine-lxc\\x2d[0-9]+\\x2d{name}\.scope"),
        # Machines of libvirt's QEMU have scopes of that kind, too; a virtual machine is no container.
        ("nspawn", r".*/machine-(?!qemu\\x2d){name}\.scope"),
        ("nspawn", r"machine\.slice/systemd-nspawn@{name}\.service"),
        ("", r".*/{hex}"),
    )
)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """
    A cgroup of the v2 hierarchy.

    Attributes
    ----------
    id
        As the kernel numbers it.
    path
        From the hierarchy's root: ``/system.slice/nginx.service``.
    unit
        The innermost systemd unit it belongs to, escapes resolved for display; empty if there is none.
    container
        The innermost container it belongs to, by id (64 hexadecimal digits) or name; empty if there is none.
    runtime
        What runs that container: ``docker``, ``containerd``, ``podman``, ``cri-o``, ``lxc``, ``nspawn``,
        ``libvirt-lxc``; ``cri`` for one of Kubernetes that could be of several; empty if unknown.
    """

    id: int
    path: str
    unit: str = ""
    container: str = ""
    runtime: str = ""

    def answers_to(self, text: str) -> bool:
        r"""
        Tell whether *text* names this cgroup or one that it lies in.

        It may be a path from the root, a part of one, a unit (also escaped), a container's id or at least
        twelve digits of it, or a container's name.

        Examples
        --------
        >>> worker = describe(7, "/system.slice/nginx.service/worker")
        >>> [worker.answers_to(text) for text in ("/system.slice", "nginx.service", "/system", "nginx")]
        [True, True, False, False]
        """
        if text.startswith("/"):
            return _is_below(self.path, text)
        if "/" in text and f"/{text.strip('/')}/" in f"{self.path}/":
            return True
        names = self.path.split("/")[1:]
        if text in names or text in map(unescaped, names):
            return True
        short = len(text) >= LEAST_PREFIX and _HEX.fullmatch(text) is not None
        return any(
            container == text or (short and len(container) == 64 and container.startswith(text))
            for _, container in _containers(names)
        )


def describe(number: int, path: str) -> Cgroup:
    r"""
    Return the cgroup *number* with everything its path tells.

    Examples
    --------
    >>> describe(7, r"/machine.slice/machine-web\x2d1.scope/payload")
    Cgroup(id=7, path='/machine.slice/machine-web\\x2d1.scope/payload', unit='machine-web-1.scope', container='web-1', runtime='nspawn')
    """
    names = path.split("/")[1:]
    unit = next((unescaped(name) for name in reversed(names) if _UNIT.fullmatch(name)), "")
    runtime, container = next(_containers(names), ("", ""))
    return Cgroup(number, path, unit, container, runtime)


def unescaped(name: str) -> str:
    r"""
    Return the name of a unit's cgroup as a person writes it; what could not be shown stays escaped.

    systemd puts an underscore before names that a file of the kernel could have.

    Examples
    --------
    >>> print(unescaped(r"dev-disk-by\x2dlabel-data\x1b.swap"), unescaped("_cpu.service"))
    dev-disk-by-label-data\x1b.swap cpu.service
    """
    return _ESCAPES.sub(_resolved, name.removeprefix("_") if _UNIT.fullmatch(name) else name)


class Cgroups:
    """
    The cgroups of this host by id.

    The tree is walked when an id is asked for that isn't known yet: at most once a second, and for at most a tenth of the
    time (anyone with a delegated cgroup can make the tree large). An id that a whole walk didn't find has gone for good
    and isn't looked for again.

    Parameters
    ----------
    root
        Where this host has its cgroups; see `mounts.cgroup_mounts`.
    mountinfo
        The file that says what is mounted where.
    clock
        Seconds, from any start.
    limit
        How many cgroups a walk looks at, the upper levels first, and how many that have gone are remembered.
    keep_seconds
        How long one that has gone stays known: records of its processes may still come.

    Attributes
    ----------
    misses
        Times that an id could not be told.
    walks, cut
        Walks, and those that ended at *limit*.
    unreadable
        Directories that could not be read, other than by having gone.
    """

    def __init__(
        self,
        root: Path = CGROUP_ROOT,
        *,
        mountinfo: Path = MOUNTINFO,
        clock: Callable[[], float] = time.monotonic,
        limit: int = 65536,
        keep_seconds: float = 300.0,
    ) -> None:
        self.root = root
        self.mountinfo = mountinfo
        self.clock = clock
        self.limit = limit
        self.keep_seconds = keep_seconds
        self.misses = self.walks = self.cut = self.unreadable = 0
        self._mounts: CgroupMounts | None = None
        self._known: dict[int, Cgroup] = {}
        self._gone: OrderedDict[int, float] = OrderedDict()
        self._never: OrderedDict[int, None] = OrderedDict()
        self._next_walk = float("-inf")

    @property
    def mounts(self) -> CgroupMounts:
        """
        Where the hierarchies are; looked up once.

        Raises
        ------
        HostError
            If the mountinfo can't be read.
        """
        if self._mounts is None:
            try:
                text = self.mountinfo.read_text(errors="surrogateescape")
            except OSError as error:
                raise HostError(
                    f"can't be read: {error.strerror}", at=self.mountinfo, remedy="mount -t proc proc /proc"
                ) from None
            self._mounts = cgroup_mounts(text, self.root)
        return self._mounts

    def look(self, number: int) -> Cgroup | None:
        """Return the cgroup of that id; None (and counted) if it can't be told, or not yet."""
        found = self._known.get(number)
        if found is None and number not in self._never and self._may_walk():
            complete = self._walk()
            found = self._known.get(number)
            if found is None and complete:
                self._never[number] = None
                if len(self._never) > self.limit:
                    self._never.popitem(last=False)
        if found is None:
            self.misses += 1
        return found

    def find(self, text: str) -> set[int]:
        """
        Return the ids of the cgroups that *text* names, with everything below them, as they are now.

        A cgroup made later is not among them: ask again, or ask it by `Cgroup.answers_to`.

        Parameters
        ----------
        text
            An id; a path, from the hierarchy's root or as it is mounted; a unit, ``.service`` may be left out; a
            container's id, or its first twelve digits or more; a container's name, where the path has it.

        Raises
        ------
        HostError
            If there is no v2 hierarchy.
        UsageError
            If nothing has that name.
        """
        top = self._top()
        self._walk()
        there = [cgroup for number, cgroup in self._known.items() if number not in self._gone]
        if not there:
            raise HostError("this cgroup hierarchy can't be read", at=top, remedy="run as root (sudo)")
        asked = self._from_root(text)
        if text.isascii() and text.isdigit() and len(text) <= _DIGITS:
            named = [cgroup for cgroup in there if cgroup.id == int(text)]
            asked = named[0].path if named else asked
        for name in (asked, f"{asked}.service"):
            found = {cgroup.id for cgroup in there if name and cgroup.answers_to(name)}
            if found:
                return found
        raise self._no_such(text, top, there)

    def _top(self) -> Path:
        if self.mounts.v2 is None:
            raise HostError(
                "no cgroup v2 hierarchy is mounted, and cgroups are told by it",
                remedy="boot with systemd.unified_cgroup_hierarchy=1 (without systemd: cgroup_no_v1=all)",
            )
        return self.mounts.v2

    def _from_root(self, text: str) -> str:
        """Return *text* as it would be told from the root of the hierarchy, if it is a path below the mount."""
        if not text.startswith("/"):
            return text
        path = f"/{'/'.join(part for part in text.split('/') if part not in {'', '.'})}"
        top = str(self._top())
        if path != top and not path.startswith(f"{top}/"):
            return path
        return self._prefix() + path.removeprefix(top) or "/"

    def _prefix(self) -> str:
        return self.mounts.below.rstrip("/")

    def _no_such(self, text: str, top: Path, there: list[Cgroup]) -> UsageError:
        short = len(text) < LEAST_PREFIX and _HEX.fullmatch(text) is not None
        if short and any(cgroup.container.startswith(text) for cgroup in there):
            return UsageError(
                f"{text!r} is too short for a container's id",
                remedy=f"give at least {LEAST_PREFIX} of its digits",
            )
        remedy = (
            f"`systemd-cgls` or `find {top} -type d` lists them; a container goes by its id: "
            "docker inspect --format '{{.Id}}' NAME"
        )
        if not self.mounts.main:
            remedy += "; this host has v1 hierarchies, and what is only in those has no cgroup here: see `ksentinel doctor`"
        return UsageError(f"{text!r} names no cgroup, unit or container", at=top, remedy=remedy)

    def _may_walk(self) -> bool:
        return self.mounts.v2 is not None and self.clock() >= self._next_walk

    def _walk(self) -> bool:
        """Walk the tree and keep what is there; tell whether all of it was seen."""
        begun = self.clock()
        before = self.cut, self.unreadable
        there = set()
        for number, path in self._directories(self._top()):
            there.add(number)
            if number not in self._known:
                self._known[number] = describe(number, path)
        self.walks += 1
        now = self.clock()
        self._next_walk = now + max(1.0, 10 * (now - begun))
        self._let_go(there, now)
        return before == (self.cut, self.unreadable)

    def _let_go(self, there: set[int], now: float) -> None:
        for number in self._known:
            if number in there:
                self._gone.pop(number, None)
            else:
                self._gone.setdefault(number, now)
        while self._gone:
            number, since = next(iter(self._gone.items()))
            if now - since < self.keep_seconds and len(self._gone) <= self.limit:
                return
            del self._gone[number], self._known[number]

    def _directories(self, top: Path) -> Iterator[tuple[int, str]]:
        """Yield id and path of every cgroup below *top*, level by level: what is deep can't hide what is high."""
        # The mount may show a part of the hierarchy only; paths are told from the root all the same.
        waiting: deque[tuple[int, str]] = deque([(0, "")])
        count = device = 0
        while waiting:
            number, below = waiting.popleft()
            count += 1
            if count > self.limit:
                self.cut += 1
                return
            path = self._prefix() + below or "/"
            if number:
                yield number, path
            try:
                place = os.open(f"{top}{below}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                self.unreadable += error.errno not in {ENOENT, ENODEV}
                continue
            try:
                status = os.fstat(place)
                if not below:
                    device = status.st_dev
                    yield status.st_ino, path
                elif status.st_dev != device:
                    continue  # something else is mounted there (a v1 hierarchy), with ids of its own
                with os.scandir(place) as entries:
                    waiting.extend(
                        (entry.inode(), f"{below}/{entry.name}")
                        for entry in entries
                        if entry.is_dir(follow_symlinks=False)
                    )
            except OSError as error:
                self.unreadable += error.errno not in {ENOENT, ENODEV}
            finally:
                os.close(place)


def _containers(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield runtime and id (or name) of every container that a path leads through, the innermost first."""
    for depth in range(len(names) - 1, -1, -1):
        # nspawn's own processes stand beside its payload, in the same scope.
        if names[depth + 1 : depth + 2] == ["supervisor"]:
            continue
        pair = f"{names[depth - 1] if depth else ''}/{names[depth]}"
        for runtime, pattern in _CONTAINERS:
            found = pattern.fullmatch(pair)
            if found is not None:
                yield runtime, unescaped(found[1])
                break


def _is_below(path: str, top: str) -> bool:
    return top in {"/", path} or path.startswith(f"{top}/")


def _resolved(found: re.Match[str]) -> str:
    text = bytes.fromhex(found[0].replace("\\x", "")).decode(errors="surrogateescape")
    return text if text.isprintable() else found[0]
