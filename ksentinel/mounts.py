# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, as far as ksentinel asks: the cgroup hierarchies, out of the text of a mountinfo."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
CGROUP_ROOT = Path("/sys/fs/cgroup")

# Every controller a v1 hierarchy can have; the other words among its options are no controllers (rw, clone_children, ...).
_CONTROLLERS = frozenset(
    "blkio cpu cpuacct cpuset debug devices freezer hugetlb memory misc net_cls net_prio perf_event pids rdma".split()
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class CgroupMounts:
    """
    Where the cgroup hierarchies are.

    Attributes
    ----------
    v2
        Where the v2 hierarchy is mounted; None if it isn't.
    below
        Which part of it that mount shows: ``/`` is all of it.
    v1
        Controllers (``cpu``) and names (``name=systemd``) that v1 hierarchies have, sorted.
    main
        The v2 hierarchy is *the* one: it stands where cgroups are looked for, or there is no other. Then every service
        and container has its place in it.
    """

    v2: Path | None
    below: str = "/"
    v1: tuple[str, ...] = ()
    main: bool = False


def cgroup_mounts(mountinfo: str, root: Path = CGROUP_ROOT) -> CgroupMounts:
    """
    Return where the cgroup hierarchies are.

    Where v2 is mounted more than once, the usual places go first (*root*; ``unified`` below it, where hybrid systems
    have it), then a mount that shows all of the hierarchy.

    Parameters
    ----------
    mountinfo
        Text of a ``/proc/PID/mountinfo`` (proc(5)).
    root
        Where cgroups are looked for on this kind of host.

    Examples
    --------
    >>> cgroup_mounts("41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw").v2.name
    'unified'
    """
    # What is mounted over something hides it: the last line for a place counts.
    top = {place: (kind, below, options) for place, kind, below, options in _mounts(mountinfo)}
    v2 = {place: below for place, (kind, below, _) in top.items() if kind == "cgroup2"}
    v1 = {
        word
        for kind, _, options in top.values()
        if kind == "cgroup"
        for word in options
        if word in _CONTROLLERS or word.startswith("name=")
    }
    usual = (root, root / "unified")
    best = min(v2, key=lambda place: (place != usual[0], place != usual[1], v2[place] != "/"), default=None)
    return CgroupMounts(
        v2=best,
        below=v2[best] if best is not None else "/",
        v1=tuple(sorted(v1)),
        main=best is not None and (best == root or not v1),
    )


def _mounts(text: str) -> Iterator[tuple[Path, str, str, list[str]]]:
    """Yield where, what kind, which part of it, and the options of its super block."""
    for line in text.splitlines():
        # Between the mount's own options and the hyphen stand any number of optional fields.
        mount, hyphen, rest = line.partition(" - ")
        fields, source = mount.split(" "), rest.split(" ")
        if hyphen and len(fields) >= 6 and len(source) >= 3:
            yield Path(_plain(fields[4])), source[0], _plain(fields[3]), source[2].split(",")


def _plain(field: str) -> str:
    # Blanks, tabs, newlines and backslashes stand as octal numbers.
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), field)
