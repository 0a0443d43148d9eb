# SPDX-License-Identifier: Apache-2.0
"""Where the cgroup hierarchies are, on hosts of every kind."""

from pathlib import Path

import pytest

from ksentinel.mounts import MOUNTINFO, CgroupMounts, cgroup_mounts

ROOT = Path("/sys/fs/cgroup")

PURE = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
23 28 0:22 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,size=4096k,mode=755
32 31 0:38 / /sys/fs/cgroup/unified rw,nosuid,nodev shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:30 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:16 - cgroup cgroup rw,clone_children,memory
"""
V1 = "".join(line for line in HYBRID.splitlines(keepends=True) if "cgroup2" not in line)
CONTAINER = "900 899 0:26 /docker/ab /sys/fs/cgroup ro,nosuid master:9 - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PURE, CgroupMounts(ROOT, main=True)),
        (HYBRID, CgroupMounts(ROOT / "unified", v1=("cpu", "cpuacct", "memory", "name=systemd"))),
        (V1, CgroupMounts(None, v1=("cpu", "cpuacct", "memory", "name=systemd"))),
        ("", CgroupMounts(None)),
        ("not a mount\n1 2 - x\n\n", CgroupMounts(None)),
        (CONTAINER, CgroupMounts(ROOT, below="/docker/ab", main=True)),
        # A VPN that wants net_cls puts it beside v2, which stays what systemd and container runtimes use.
        (
            PURE + "99 30 0:50 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls\n",
            CgroupMounts(ROOT, v1=("net_cls",), main=True),
        ),
        # Mounted elsewhere, by hand.
        (
            "50 1 0:40 / /mnt/cgroup\\0402 rw - cgroup2 none rw\n",
            CgroupMounts(Path("/mnt/cgroup 2"), main=True),
        ),
        (
            V1 + "50 1 0:40 / /mnt/c rw - cgroup2 none rw\n",
            CgroupMounts(Path("/mnt/c"), v1=("cpu", "cpuacct", "memory", "name=systemd")),
        ),
        # More than once: the usual place, then one that shows everything.
        ("50 1 0:40 / /mnt/c rw - cgroup2 none rw\n" + PURE, CgroupMounts(ROOT, main=True)),
        (
            "50 1 0:40 /a /mnt/a rw - cgroup2 none rw\n51 1 0:40 / /mnt/all rw - cgroup2 none rw\n",
            CgroupMounts(Path("/mnt/all"), main=True),
        ),
        # What lies under another mount isn't there.
        (PURE + "60 30 0:60 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", CgroupMounts(None)),
    ],
)
def test_cgroup_mounts(text, found):
    """v2 where it is, v1's controllers, and whether v2 is what counts."""
    assert cgroup_mounts(text) == found


def test_here():
    """This host's own mountinfo can be read."""
    found = cgroup_mounts(MOUNTINFO.read_text())

    assert found.v2 is None or found.v2.is_dir()
