# SPDX-License-Identifier: Apache-2.0
"""Ids become paths, units and containers; what people call a cgroup becomes ids."""

import ctypes
import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.errors import HostError, UsageError
from ksentinel.mounts import MOUNTINFO, cgroup_mounts
from ksentinel.normalize.cgroups import Cgroup, Cgroups, describe, unescaped

ID = "3a31a360e5aea903274416e0c4cf8ca8c050fd523cc5d91a82ec5707d5ee9fa1"
OTHER = "b2a102854b4969b2ce98dc329c86b4fb2b06e4ad2cc8da9d8a7578c9cd2004a2"
POD = "kubepods-besteffort-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice"
KUBEPODS = f"/kubepods.slice/kubepods-besteffort.slice/{POD}"
USER = "/user.slice/user-1000.slice/user@1000.service"

PATHS = [
    ("/", "", "", ""),
    ("/init.scope", "init.scope", "", ""),
    ("/system.slice", "system.slice", "", ""),
    ("/system.slice/nginx.service", "nginx.service", "", ""),
    ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", "", ""),
    ("/system.slice/nginx.service/worker", "nginx.service", "", ""),
    (r"/system.slice/system-systemd\x2dfsck.slice", "system-systemd-fsck.slice", "", ""),
    (r"/system.slice/srv-my\xc3\xa9.service", "srv-myé.service", "", ""),
    (r"/system.slice/odd\x1b\x5bm.service", r"odd\x1b\x5bm.service", "", ""),  # would move a cursor: stays as it is
    ("/system.slice/_cpu.service", "cpu.service", "", ""),
    ("/user.slice/user-1000.slice/session-4.scope", "session-4.scope", "", ""),
    (f"{USER}/app.slice/app-gnome-firefox-4711.scope", "app-gnome-firefox-4711.scope", "", ""),
    (f"{USER}/init.scope", "init.scope", "", ""),
    ("/batch/job-17", "", "", ""),
    # Docker, by systemd and by itself; with systemd in the container; in another container.
    (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID, "docker"),
    (f"/docker/{ID}", "", ID, "docker"),
    (f"/system.slice/docker-{ID}.scope/system.slice/nginx.service", "nginx.service", ID, "docker"),
    (f"/docker/{OTHER}/docker/{ID}", "", ID, "docker"),
    (f"/docker/{OTHER}/kubepods/besteffort/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/{ID}", "", ID, "cri"),
    (f"/system.slice/docker.service/system.slice:docker:{ID}", "docker.service", ID, "docker"),
    (f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID, "docker"),
    ("/system.slice/docker.service", "docker.service", "", ""),
    ("/system.slice/docker.socket", "system.slice", "", ""),
    # containerd, under Kubernetes and by nerdctl.
    (f"{KUBEPODS}/cri-containerd-{ID}.scope", f"cri-containerd-{ID}.scope", ID, "containerd"),
    (f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}", "containerd.service", ID, "containerd"),
    (f"/{POD}:cri-containerd:{ID}", "", ID, "containerd"),
    (f"/system.slice/nerdctl-{ID}.scope", f"nerdctl-{ID}.scope", ID, "containerd"),
    # Kubernetes without systemd: whose container it is isn't told.
    (f"/kubepods/burstable/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/{ID}", "", ID, "cri"),
    (f"/kubepods/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/{ID}", "", ID, "cri"),
    (f"{KUBEPODS}/{ID}", POD, ID, "cri"),
    (KUBEPODS, POD, "", ""),
    (f"{KUBEPODS}/docker-{ID}.scope", f"docker-{ID}.scope", ID, "docker"),
    # podman: rootful, rootless, in a unit of its own (Quadlet), without systemd. conmon isn't in the container.
    (f"/machine.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", ID, "podman"),
    (f"{USER}/user.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID, "podman"),
    (f"{USER}/app.slice/web.service/libpod-payload-{ID}", "web.service", ID, "podman"),
    (f"/libpod_parent/libpod-{ID}", "", ID, "podman"),
    (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", "", ""),
    # cri-o
    (f"{KUBEPODS}/crio-{ID}.scope", f"crio-{ID}.scope", ID, "cri-o"),
    (f"{KUBEPODS}/crio-{ID}.scope/container", f"crio-{ID}.scope", ID, "cri-o"),
    (f"/kubepods/burstable/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/crio-{ID}", "", ID, "cri-o"),
    (f"/{POD}:crio:{ID}", "", ID, "cri-o"),
    (f"{KUBEPODS}/crio-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", "", ""),
    # lxc: 4 and later (LXD, Incus, Proxmox), and before.
    ("/lxc.payload.web1", "", "web1", "lxc"),
    ("/lxc.payload.web1/system.slice/ssh.service", "ssh.service", "web1", "lxc"),
    ("/lxc.monitor.web1", "", "", ""),
    ("/lxc/101", "", "101", "lxc"),
    ("/lxc/101/ns/init.scope", "init.scope", "101", "lxc"),
    ("/lxc.payload/web1", "", "web1", "lxc"),
    (f"{USER}/lxc.payload.mine", "user@1000.service", "mine", "lxc"),
    (f"/lxc.payload.web1/docker/{ID}", "", ID, "docker"),
    # systemd-nspawn: from the command line, as a service; its own processes stand beside the payload.
    ("/machine.slice/machine-web.scope", "machine-web.scope", "web", "nspawn"),
    (r"/machine.slice/machine-web\x2d1.scope/payload/init.scope", "init.scope", "web-1", "nspawn"),
    ("/machine.slice/machine-web.scope/supervisor", "machine-web.scope", "", ""),
    ("/machine.slice/systemd-nspawn@web.service/payload", "systemd-nspawn@web.service", "web", "nspawn"),
    ("/machine.slice/systemd-nspawn@web.service/supervisor", "systemd-nspawn@web.service", "", ""),
    # libvirt: containers and virtual machines.
    (r"/machine.slice/machine-lxc\x2d2345\x2dweb.scope/libvirt", "machine-lxc-2345-web.scope", "web", "libvirt-lxc"),
    (r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/vcpu0", "machine-qemu-1-web.scope", "", ""),
    # Some other runtime, known by the id alone; and what only looks like one.
    (f"/ecs/0a1b/{ID}", "", ID, ""),
    (f"/{ID}", "", ID, ""),
    (f"/docker/{ID[:-1]}", "", "", ""),
    (f"/docker/{ID.upper()}", "", "", ""),
    (f"/system.slice/docker-{ID}x.scope", f"docker-{ID}x.scope", "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("path", "unit", "container", "runtime"), PATHS)
def test_describe(path, unit, container, runtime):
    """A path tells the unit and the container, as they look in the world."""
    assert describe(5, path) == Cgroup(5, path, unit, container, runtime)


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_name(name, text):
    """A directory may have any name, and a person may ask for anything."""
    found = describe(5, f"/{name}")

    assert found.answers_to(f"/{name}")
    assert isinstance(found.answers_to(text), bool)


@given(st.binary(min_size=1, max_size=8))
def test_unescaped(octets):
    """An escape is resolved only into what can be shown."""
    escaped = "".join(f"\\x{octet:02x}" for octet in octets)
    found = unescaped(escaped)

    assert found == (octets.decode(errors="replace") if found != escaped else escaped)
    assert found.isprintable()


CLOCK_START = 1000.0


@pytest.fixture
def host(tmp_path):
    """Make a host of a kind, its tree, and what is known of it."""

    def made(*paths, kind="pure", below="/", **options):
        root = tmp_path / "cgroup"
        top = root / "unified" if kind == "hybrid" else root
        top.mkdir(parents=True)
        for path in paths:
            (top / path).mkdir(parents=True)
        lines = {
            "pure": f"30 23 0:26 {below} {root} rw shared:9 - cgroup2 cgroup2 rw",
            "hybrid": f"32 31 0:38 {below} {top} rw - cgroup2 cgroup2 rw\n"
            f"33 31 0:31 / {root}/memory rw - cgroup cgroup rw,memory",
            "v1": f"33 31 0:31 / {root}/memory rw - cgroup cgroup rw,memory",
        }
        mountinfo = tmp_path / "mountinfo"
        mountinfo.write_text(lines[kind] + "\n")
        now = SimpleNamespace(seconds=CLOCK_START)
        cgroups = Cgroups(root, mountinfo=mountinfo, clock=lambda: now.seconds, **options)
        return SimpleNamespace(
            top=top,
            now=now,
            cgroups=cgroups,
            id=lambda path: (top / path).stat().st_ino,
            ids=lambda *paths: {(top / path).stat().st_ino for path in paths},
        )

    return made


@pytest.mark.parametrize("kind", ["pure", "hybrid"])
def test_look(host, kind):
    """An id is a directory of the v2 hierarchy, wherever that is."""
    made = host("system.slice/nginx.service", kind=kind)
    number = made.id("system.slice/nginx.service")

    assert made.cgroups.look(number) == Cgroup(number, "/system.slice/nginx.service", "nginx.service")
    assert made.cgroups.look(made.id(".")) == Cgroup(made.id("."), "/")
    assert (made.cgroups.walks, made.cgroups.misses) == (1, 0)


def test_without_v2(host):
    """On a host with v1 only no id can be told, and each is counted; a search says what to do."""
    made = host(kind="v1")

    assert made.cgroups.look(1) is None
    assert (made.cgroups.walks, made.cgroups.misses) == (0, 1)
    with pytest.raises(HostError, match=r"systemd\.unified_cgroup_hierarchy=1"):
        made.cgroups.find("nginx")


def test_part_of_the_hierarchy(host):
    """Where the mount shows a part, paths are from the root all the same."""
    made = host("a.service", below="/docker/x")

    assert made.cgroups.look(made.id("a.service")).path == "/docker/x/a.service"
    assert made.cgroups.look(made.id(".")).path == "/docker/x"
    assert made.cgroups.find(str(made.top / "a.service")) == made.ids("a.service")
    assert made.cgroups.find("/docker/x/a.service") == made.ids("a.service")
    assert made.cgroups.find("/") == made.ids(".", "a.service")


def test_new_one(host):
    """A cgroup made later is found by a new walk, at most one a second; what isn't found till then is a miss."""
    made = host("a")
    made.cgroups.look(made.id("a"))
    (made.top / "b").mkdir()
    made.now.seconds += 0.9

    assert made.cgroups.look(made.id("b")) is None
    made.now.seconds += 0.1
    assert made.cgroups.look(made.id("b")).path == "/b"
    assert (made.cgroups.walks, made.cgroups.misses) == (2, 1)


def test_never_there(host):
    """An id that a whole walk didn't find is not looked for again, however often it is asked for."""
    made = host("a")

    for _ in range(10):
        assert made.cgroups.look(2**63 + 11) is None
        made.now.seconds += 5
    assert (made.cgroups.walks, made.cgroups.misses) == (1, 10)


def test_slow_walks(host):
    """A tree that takes long is walked a tenth of the time at most."""
    made = host("a")
    ticks = iter([0.0, 0.0, 3.0, 32.9, 33.0, 33.0, 33.1])
    made.cgroups.clock = lambda: next(ticks)

    walks = []
    for number in (2**63 + 1, 2**63 + 2, 2**63 + 3):
        made.cgroups.look(number)
        walks.append(made.cgroups.walks)
    assert walks == [1, 1, 2]


def test_gone(host):
    """One that has gone stays known for a while: its processes' last records are still to come."""
    made = host("a", "b", keep_seconds=60.0)
    number = made.id("a")
    made.cgroups.look(number)
    (made.top / "a").rmdir()
    made.now.seconds += 10
    made.cgroups.find("b")  # walks

    assert made.cgroups.look(number).path == "/a"
    with pytest.raises(UsageError):
        made.cgroups.find("a")
    made.now.seconds += 60
    made.cgroups.find("b")
    assert made.cgroups.look(number) is None


def test_back(host):
    """One that a walk with an end didn't reach isn't taken for gone for ever."""
    made = host("a")
    made.cgroups.find("a")
    (made.top / "a").rename(made.top.parent / "a")
    made.cgroups.find("/")
    (made.top.parent / "a").rename(made.top / "a")

    assert made.cgroups.find("a") == made.ids("a")
    assert not made.cgroups._gone


def test_limits(host):
    """Neither a large tree nor many that have gone fill the memory; the upper levels are seen first."""
    made = host(*(f"deep/{n}/x" for n in range(5)), "system.slice", limit=4)

    assert made.cgroups.look(made.id("system.slice")).path == "/system.slice"
    assert made.cgroups.look(made.id("deep/0/x")) is None
    assert made.cgroups.cut == 1
    assert len(made.cgroups._known) == 4


def test_cut_walk_proves_nothing(host):
    """What a walk with an end didn't find may still be there: it is looked for again."""
    made = host(*(f"d/{n}" for n in range(5)), limit=3)
    for _ in range(3):
        made.cgroups.look(2**63 + 1)
        made.now.seconds += 1

    assert made.cgroups.walks == made.cgroups.cut == 3


def test_those_gone_are_bounded(host):
    """Of those that have gone the latest are kept."""
    made = host("x", limit=3)
    numbers = []
    for n in range(6):
        place = made.top / f"gone{n}"
        place.mkdir()
        numbers.append(place.stat().st_ino)
        made.cgroups.find("x")
        # Not removed: a file system gives an inode number again, the kernel's cgroups never do.
        place.rename(made.top.parent / f"away{n}")
        made.cgroups.find("x")
        made.now.seconds += 1

    assert [made.cgroups.look(number) is not None for number in numbers] == [False] * 3 + [True] * 3


def test_something_else_mounted_below(host, monkeypatch):
    """What is mounted below the hierarchy has ids of its own: it is not entered."""
    made = host("net_cls/inside", "a")
    inside = made.id("net_cls/inside")
    inode = made.id("net_cls")
    real = os.fstat

    def fstat(place):
        status = real(place)
        if status.st_ino != inode:
            return status
        return SimpleNamespace(st_ino=status.st_ino, st_dev=status.st_dev + 1)

    monkeypatch.setattr("ksentinel.normalize.cgroups.os.fstat", fstat)

    assert made.cgroups.look(inode).path == "/net_cls"
    assert made.cgroups.look(inside) is None
    assert made.cgroups.unreadable == 0


def test_unreadable(host, monkeypatch):
    """A directory that goes while the tree is walked is no loss; one that can't be read is, and is counted."""
    made = host("a/b", "gone", "secret")
    real = os.open

    def opened(path, flags):
        if path.endswith("gone"):
            raise FileNotFoundError(2, "gone")
        if path.endswith("secret"):
            raise PermissionError(13, "no")
        return real(path, flags)

    monkeypatch.setattr("ksentinel.normalize.cgroups.os.open", opened)

    assert made.cgroups.look(made.id("a/b")).path == "/a/b"
    assert made.cgroups.look(made.id("secret")).path == "/secret"
    assert made.cgroups.unreadable == 1


def test_vanishing_under_the_hand(host, monkeypatch):
    """A directory that goes between being opened and read is no loss either."""
    made = host("a")

    def scandir(_place):
        raise OSError(19, "No such device")

    monkeypatch.setattr("ksentinel.normalize.cgroups.os.scandir", scandir)

    assert made.cgroups.look(made.id("a")) is None
    assert made.cgroups.unreadable == 0


def test_no_mountinfo(tmp_path):
    """Without /proc nothing can be told, and it says what to do."""
    with pytest.raises(HostError, match=r"mountinfo: can't be read: .* \(mount -t proc"):
        Cgroups(mountinfo=tmp_path / "mountinfo").look(1)


TREE = (
    "system.slice/nginx.service/worker", f"system.slice/docker-{ID}.scope/init.scope", f"docker/{OTHER}",
    r"machine.slice/machine-web\x2d1.scope/payload", "user.slice/user-1000.slice/user@1000.service/a.service",
    f"kubepods/pod1/{ID[:20]}{OTHER[:44]}",
)  # fmt: skip
NGINX = ("system.slice/nginx.service", "system.slice/nginx.service/worker")
DOCKER = (f"system.slice/docker-{ID}.scope", f"system.slice/docker-{ID}.scope/init.scope")
NSPAWN = (r"machine.slice/machine-web\x2d1.scope", r"machine.slice/machine-web\x2d1.scope/payload")


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("nginx.service", NGINX),
        ("nginx", NGINX),
        ("/system.slice/nginx.service", NGINX),
        ("/system.slice/nginx.service/", NGINX),
        ("/system.slice//./nginx.service", NGINX),
        ("system.slice/nginx.service", NGINX),
        ("{top}/system.slice/nginx.service", NGINX),
        ("{id}", NGINX),
        ("worker", NGINX[1:]),
        ("system.slice", ("system.slice", *NGINX, *DOCKER)),
        ("/system.slice", ("system.slice", *NGINX, *DOCKER)),
        (ID, DOCKER),
        (ID[:24], DOCKER),
        (ID[:12], (*DOCKER, f"kubepods/pod1/{ID[:20]}{OTHER[:44]}")),
        (f"docker-{ID}.scope", DOCKER),
        (OTHER[:12], (f"docker/{OTHER}",)),
        ("web-1", NSPAWN),
        ("machine-web-1.scope", NSPAWN),
        (r"machine-web\x2d1.scope", NSPAWN),
        ("user@1000.service", ("user.slice/user-1000.slice/user@1000.service", TREE[4])),
        ("user@1000", ("user.slice/user-1000.slice/user@1000.service", TREE[4])),
    ],
)
def test_find(host, text, paths):
    """A cgroup by what people call it, with everything below."""
    made = host(*TREE)
    text = text.format(top=made.top, id=made.id(NGINX[0]))

    assert made.cgroups.find(text) == made.ids(*paths)


def test_find_everything(host):
    """The root is everything, also by its place in the file system."""
    made = host(*TREE)

    assert made.cgroups.find("/") == made.cgroups.find(str(made.top)) == set(made.cgroups._known)
    assert made.cgroups.find(str(made.id("."))) == set(made.cgroups._known)


@pytest.mark.parametrize(
    "text",
    ["", " ", "apache", "/nginx.service", "/system", "system", "0", "9" * 5000, "../etc", "/etc", "gin", "\0", "é"],
)  # fmt: skip
def test_find_nothing(host, text):
    """What isn't there is an error with the way to what is."""
    made = host(*TREE)

    with pytest.raises(
        UsageError, match=r"names no cgroup, unit or container \(`systemd-cgls` or .*docker inspect"
    ):
        made.cgroups.find(text)


def test_find_too_short(host):
    """An id's first digits are an id only if there are enough of them."""
    with pytest.raises(UsageError, match="give at least 12 of its digits"):
        host(*TREE).cgroups.find(ID[:11])


def test_find_on_a_hybrid_host(host):
    """Where v1 may have it, the error says so."""
    made = host("system.slice", kind="hybrid")

    assert made.cgroups.find("system.slice") == made.ids("system.slice")
    with pytest.raises(UsageError, match=r"v1 hierarchies.*see `ksentinel doctor`"):
        made.cgroups.find("nginx")


def test_find_in_what_cannot_be_read(host):
    """A hierarchy that isn't where it is said to be is the host's matter, not the name's."""
    made = host()
    made.top.rmdir()

    with pytest.raises(HostError, match="can't be read"):
        made.cgroups.find("nginx")


@pytest.mark.root
def test_real():
    """A cgroup made here and now: its inode number is the id by which the kernel hands it out."""
    top = cgroup_mounts(MOUNTINFO.read_text()).v2
    if top is None or not os.access(top, os.W_OK):
        pytest.skip("no cgroup v2 hierarchy that can be written")
    made = top / f"ksentinel-test-{os.getpid()}.slice"
    cgroups = Cgroups()
    made.mkdir()
    try:
        number = kernel_id(made)

        assert cgroups.look(number).unit == made.name
        assert cgroups.find(made.name) == cgroups.find(str(made)) == {number}
    finally:
        made.rmdir()
    assert cgroups.look(number).unit == made.name
    with pytest.raises(UsageError):
        cgroups.find(made.name)


def kernel_id(path):
    """Return the id in the file handle of a cgroup's directory: what open_by_handle_at(2) finds it by."""

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64))

    handle, mount = Handle(size=8), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    code = libc.name_to_handle_at(-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0)
    assert code == 0, os.strerror(ctypes.get_errno())
    return handle.id
