# SPDX-License-Identifier: Apache-2.0
"""
The never-list: who is never denied anything, whatever a policy says.

Without them a mistake in a policy couldn't be taken back: who logs in to repair it, what starts services, what installs the
next version. It is a list of executables by place and of processes, not of names: a copy under such a name is nobody special.
PID 1 is spared as the process that it is. Its executable isn't: anybody can run that, and have it start something.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ksentinel.bpf.guard_abi import Spared as SparedKey
from ksentinel.bpf.guard_abi import SparedFlag, SparedKind
from ksentinel.enforce.places import Place, Resolve
from ksentinel.errors import HostError
from ksentinel.event import ProcessKey

if TYPE_CHECKING:
    from ksentinel.enforce.settings import Settings

_LOGIN = "logging in, to repair what a policy broke"
_BUS = "logins and services wait for it"
_RUNTIME = "half a container is worse than none; what runs inside isn't spared"
_PACKAGES = "installs repairs; its maintainer scripts, which it starts, too"

_BY_REASON: Mapping[str, tuple[str, ...]] = {
    _LOGIN: (
        "/usr/sbin/sshd",
        "/usr/lib/openssh/sshd-session",
        "/usr/lib/openssh/sshd-auth",
        "/usr/libexec/openssh/sshd-session",
        "/usr/libexec/openssh/sshd-auth",
        "/usr/lib/systemd/systemd-logind",
        "/usr/sbin/agetty",
        "/usr/bin/login",
    ),
    _BUS: ("/usr/bin/dbus-daemon", "/usr/bin/dbus-broker", "/usr/bin/dbus-broker-launch"),
    _RUNTIME: (
        "/usr/bin/containerd",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/bin/dockerd",
        "/usr/bin/runc",
        "/usr/sbin/runc",
        "/usr/bin/crun",
        "/usr/bin/podman",
        "/usr/bin/conmon",
        "/usr/bin/crio",
        "/usr/bin/kubelet",
    ),
    _PACKAGES: (
        "/usr/bin/dpkg",
        "/usr/bin/apt",
        "/usr/bin/apt-get",
        "/usr/bin/rpm",
        "/usr/bin/dnf5",  # dnf and yum before it are scripts: their executable is Python, whoever runs it
        "/usr/bin/zypper",
        "/usr/bin/pacman",
        "/sbin/apk",
        "/usr/lib/snapd/snapd",
    ),
}
DEFAULTS: Mapping[str, str] = MappingProxyType(
    {path: reason for reason, paths in _BY_REASON.items() for path in paths}
)
"""Executables that are spared where they exist, and why."""


@dataclass(frozen=True, slots=True)
class Spared:
    """
    Who is never denied anything.

    Attributes
    ----------
    who
        The executable's path, or what the process is.
    why
        The reason, and where that comes from.
    place
        The executable's; None for a process, and for an executable that was asked for and isn't there.
    children
        Processes that it starts are spared, too, as long as it is their parent.
    roots
        Only as root's, or started by root's: anybody can start it with a library of his own in it.
    """

    who: str
    why: str
    place: Place | None = None
    process: ProcessKey | None = None
    children: bool = False
    roots: bool = False

    def key(self) -> SparedKey | None:
        """Return it as the kernel knows it; None if it isn't there."""
        if self.process is not None:
            return SparedKey(b=self.process.start_ns, a=self.process.pid, kind=int(SparedKind.PROCESS))
        if self.place is None:
            return None
        return SparedKey(b=self.place.inode, a=self.place.device, kind=int(SparedKind.EXECUTABLE))

    @property
    def flags(self) -> SparedFlag:
        """The value that goes with the key."""
        flags = SparedFlag.CHILDREN if self.children else SparedFlag(0)
        return flags | (SparedFlag.ROOTS if self.roots else SparedFlag(0))


def never_list(
    settings: "Settings", resolve: Resolve, processes: Iterable[tuple[str, ProcessKey]] = ()
) -> tuple[Spared, ...]:
    """
    Return who is never denied anything on this host.

    Parameters
    ----------
    processes
        Those that are spared themselves, whatever they execute: PID 1 and ksentinel, and what they are.

    Returns
    -------
    tuple
        Processes first, then defaults that are there, then what the operator added, there or not; each place once.
    """
    found = [Spared(who, "without it nothing can be taken back", process=key) for who, key in processes]
    seen: set[Place] = set()
    for path, reason in DEFAULTS.items():
        place = None if path in settings.unspare else _found(path, resolve)
        if place is not None and place not in seen:
            seen.add(place)
            found.append(
                Spared(
                    path,
                    f"by default: {reason}",
                    place,
                    children=reason is _PACKAGES,
                    roots=reason is not _BUS,
                )
            )
    for path in settings.spare:
        place = resolve(path)
        if place is None or place not in seen:
            at = settings.at.get(("never add", path), settings.file)
            found.append(Spared(path, f"{at}: never add", place))
            seen |= {place} if place is not None else set()
    return tuple(found)


def _found(path: str, resolve: Resolve) -> Place | None:
    """Return where a default is; None also where files can't be told apart."""
    try:
        return resolve(path)
    except HostError:
        return None


def missing(spared: Sequence[Spared]) -> tuple[Spared, ...]:
    """Return those that were asked for and aren't there."""
    return tuple(one for one in spared if one.place is None and one.process is None)
