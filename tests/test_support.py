# SPDX-License-Identifier: Apache-2.0
"""What this host can do: every check in a made-up world; each "no" has its reason and its remedy."""

import errno
import os
import struct
from types import SimpleNamespace

import pytest

from ksentinel import support
from ksentinel.bpf import probe
from ksentinel.errors import HostError
from ksentinel.support import AUDIT, BUILD, ENFORCE, MONITOR, REPLAY, AuditStatus, Support

STATUS = AuditStatus(enabled=1, pid=0, backlog_limit=64, lost=0)


def world(path, files):
    """Write files below *path*; returns it."""
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def held(path, *capabilities):
    """Return a world in which this process has these capabilities."""
    mask = sum(1 << support._CAPABILITIES[name] for name in capabilities)
    return world(
        path, {"proc/self/status": f"Name:\tx\nCapPrm:\tffff\nCapEff:\t{mask:016x}\nCapBnd:\tffff\n"}
    )


@pytest.fixture(params=[0, 1000], ids=["root", "user"])
def user(request, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: request.param)
    return request.param


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def every_no(path):
    """Yield every way in which something may be missing."""
    yield support.kernel("riscv64", "6.12")
    yield support.capabilities(held(path / "none"))
    yield support.capabilities(path / "no proc")
    yield support.pid_namespace(world(path / "container", {"proc/self/ns/pid": ""}))
    yield support.pid_namespace(path / "no proc")
    yield support.btf(path)
    yield support.libbpf(HostError("libbpf.so.1 can't be loaded", remedy="apt install libbpf1"))
    for kind in (probe.RAW_TP, probe.ITER, probe.TP_BTF, probe.LSM):
        for code in (None, errno.EPERM, errno.EINVAL, errno.ENOENT, 524):
            yield support.program(kind, code, (MONITOR,))
    for code in (None, errno.EPERM, errno.EINVAL):
        yield support.ring_buffer(code)
    yield from cgroup_noes(path)
    for active in (None, ("capability", "yama"), ("capability", "bpf")):
        yield support.lsm_program(errno.EPERM, active)
        yield support.lsm_program(errno.EINVAL, active)
        yield support.lsm_program(None, active)
    yield support.bpf_lsm(None)
    yield support.bpf_lsm(("capability",))
    for code in (errno.EPERM, errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EIO):
        yield from support.audit(code)
    yield from (c for c in support.audit(AuditStatus(0, 0, 64, 0)) if c.name != "audit in kernel")
    yield support.auparse(lambda _: None)
    yield support.clang(lambda _: None)


def test_every_no_has_reason_and_remedy(tmp_path, user):
    """Whatever is missing: what was seen, and what to do."""
    for check in every_no(tmp_path):
        assert not check.ok
        assert check.reason
        assert check.remedy


@pytest.mark.parametrize(("machine", "ok"), [("x86_64", True), ("aarch64", True), ("i686", False)])
def test_kernel(machine, ok):
    """An architecture is known if there is a table of its system calls."""
    found = support.kernel(machine, "6.12.1")

    assert (found.ok, found.reason) == (ok, f"Linux 6.12.1 on {machine}")


@pytest.mark.parametrize(
    ("capabilities", "ok"),
    [
        ((), False),
        (("CAP_BPF",), False),
        (("CAP_PERFMON",), False),
        (("CAP_BPF", "CAP_PERFMON"), True),
        (("CAP_SYS_ADMIN",), True),
    ],
)
def test_capabilities(tmp_path, capabilities, ok):
    """Root is not asked for, its capabilities are."""
    found = support.capabilities(held(tmp_path, *capabilities))

    assert found.ok is ok
    assert all(name in found.reason for name in capabilities)


def test_no_capability_line(tmp_path):
    """A status that tells nothing of capabilities is a no."""
    assert not support.capabilities(world(tmp_path, {"proc/self/status": "Name:\tx\n"})).ok


def test_pid_namespace(tmp_path, monkeypatch):
    """The initial namespace is told by its inode."""
    place = world(tmp_path, {"proc/self/ns/pid": ""})
    monkeypatch.setattr(support, "_INITIAL_PID_NAMESPACE", (place / "proc/self/ns/pid").stat().st_ino)

    assert support.pid_namespace(place).ok


def test_btf(tmp_path):
    """Type information is there or not."""
    assert support.btf(world(tmp_path, {"sys/kernel/btf/vmlinux": "x"})).ok


@pytest.mark.parametrize(
    "check", [support.libbpf(None), support.ring_buffer(0), support.program(probe.ITER, 0, ())]
)
def test_yes(check):
    """What was tried and worked needs no remedy."""
    assert (check.ok, check.remedy) == (True, "")


def test_program_says_why(user):
    """A refusal has the kernel's own word, and root is not told to become root."""
    found = support.program(probe.RAW_TP, errno.EPERM, (MONITOR,))

    assert found == Support(
        "BPF raw_tp",
        False,
        "the kernel refused one: EPERM (Operation not permitted)",
        "run as root (sudo)" if user else "a container needs CAP_BPF and CAP_PERFMON for that",
        (MONITOR,),
    )


def test_unknown_errno():
    """An error number without a name (ENOTSUPP is the kernel's own) is shown as it is."""
    assert "524" in support.program(probe.RAW_TP, 524, ()).reason


def test_collector_without_its_object(monkeypatch):
    """The collector isn't compiled: the answer says how."""

    def shipped(name):
        raise HostError(f"this installation has no {name}", remedy="run `make bpf` in the clone")

    monkeypatch.setattr(support, "shipped", shipped)

    assert support.collector() == Support(
        "collector",
        False,
        "this installation has no lsm_bpf/trace.bpf.o",
        "run `make bpf` in the clone",
        (MONITOR, ENFORCE),
    )


def test_collector_refused(monkeypatch, tmp_path):
    """What the kernel or libbpf says of the object is the reason."""
    monkeypatch.setattr(support, "shipped", lambda name: tmp_path / name)
    found = support.collector()

    assert (found.ok, found.reason, found.remedy) == (False, "there is no compiled BPF object", "make bpf")


@pytest.mark.bpf
def test_collector_loads():
    """The collector passes this kernel's verifier."""
    assert support.collector().ok


V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
UNIFIED = "32 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
V1 = (
    "34 31 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
STAT = "nr_descendants 57\nnr_dying_descendants 3\n"


def cgroup_noes(path):
    """Yield every way in which cgroups may not tell processes apart."""
    yield support.cgroups(path / "no proc")
    for name, text in (("hybrid", UNIFIED + V1), ("v1", V1), ("none", "")):
        yield support.cgroups(world(path / name, {"proc/self/mountinfo": text}))


@pytest.mark.parametrize(
    ("text", "stat", "ok", "reason"),
    [
        (V2, {"sys/fs/cgroup/cgroup.stat": STAT}, True, "v2 at /sys/fs/cgroup, 57 cgroups below it"),
        (V2, {}, True, "v2 at /sys/fs/cgroup, how many cgroups it has is unknown"),
        (
            V2 + "99 30 0:50 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls\n",
            {"sys/fs/cgroup/cgroup.stat": STAT},
            True,
            "v2 at /sys/fs/cgroup, 57 cgroups below it; v1 beside it: net_cls",
        ),
        (
            UNIFIED + V1,
            {"sys/fs/cgroup/unified/cgroup.stat": "nr_descendants 0\n"},
            False,
            "hybrid: ids are of v2 (at /sys/fs/cgroup/unified, no cgroup below it), and cpu, cpuacct, name=systemd are v1: processes placed only in those can't be told apart",
        ),
        (V1, {}, False, "v1 only (cpu, cpuacct, name=systemd), and cgroup ids are of v2"),
        ("", {}, False, "no cgroup hierarchy is mounted"),
    ],
)
def test_cgroups(tmp_path, text, stat, ok, reason):
    """v2 tells processes apart, v1 doesn't; that much is said, and nothing else depends on it."""
    found = support.cgroups(world(tmp_path, {"proc/self/mountinfo": text, **stat}))

    assert (found.name, found.ok, found.reason, found.needed_for) == ("cgroups", ok, reason, ())


@pytest.mark.parametrize("text", [UNIFIED + V1, V1])
def test_cgroups_remedy(tmp_path, text):
    """The remedy is what to boot with."""
    found = support.cgroups(world(tmp_path, {"proc/self/mountinfo": text}))

    assert "systemd.unified_cgroup_hierarchy=1" in found.remedy
    assert "cgroup_no_v1=all" in found.remedy


def test_cgroups_are_no_obstacle(tmp_path):
    """A host without v2 monitors all the same."""
    for check in cgroup_noes(tmp_path):
        assert [
            what for what in (MONITOR, ENFORCE, AUDIT, REPLAY) if not support.would_work([check], what)
        ] == []


def test_active_lsms(tmp_path):
    """Security modules stand in securityfs; a made-up world has no other place to ask."""
    place = world(tmp_path, {"sys/kernel/security/lsm": "lockdown,capability,bpf\n"})

    assert support.active_lsms(place) == ("lockdown", "capability", "bpf")
    assert support.active_lsms(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        ([100, 109], ("capability", "bpf")),
        ([101, 102, 103, 104, 105, 106, 107, 108, 110, 111, 112, 113], ("selinux", "smack", "tomoyo", "apparmor", "yama", "loadpin", "safesetid", "lockdown", "landlock", "ima", "evm", "ipe")),
        ([999], ("lsm-999",)),
        (None, None),
        ([], None),
    ],
)  # fmt: skip
def test_listed_lsms(monkeypatch, answer, names):
    """The kernel's numbers have the names of linux/lsm.h; an older kernel hasn't got the call."""

    def syscall(number, ids, size, flags):
        assert (number, flags) == (461, 0)
        if answer is None:
            return -1
        ids._obj[: len(answer)] = answer
        return len(answer)

    monkeypatch.setattr(support.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(syscall=syscall))

    assert support.listed_lsms() == names


def test_bpf_lsm():
    """BPF is among the active modules; or the remedy has the line to boot with."""
    assert support.bpf_lsm(("lockdown", "bpf")) == Support(
        "BPF LSM", True, "active: lockdown,bpf", "", (ENFORCE,)
    )
    assert support.bpf_lsm(("lockdown", "yama")).remedy == "boot with lsm=lockdown,yama,bpf"


@pytest.mark.usefixtures("root")
def test_lsm_program_refused_though_active():
    """To be on the list is not enough: this very case is named."""
    found = support.lsm_program(errno.EPERM, ("capability", "bpf"))

    assert found.reason == "bpf is an active LSM, but the kernel refused to load an LSM program: EPERM"
    assert "administrator" in found.remedy


def test_lsm_program_as_a_user(monkeypatch):
    """Who isn't root is told to be, before anything else is suspected."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert support.lsm_program(errno.EPERM, ("bpf",)).remedy == "run as root (sudo)"


def test_lsm_program_loads():
    """One that loads is a yes."""
    assert support.lsm_program(0, ("bpf",)).ok


def test_audit_answers(tmp_path):
    """What the kernel says of audit, and who takes the records."""
    proc = world(tmp_path, {"77/comm": "auditd\n"})
    found = list(support.audit(AuditStatus(enabled=1, pid=77, backlog_limit=8192, lost=3), proc))

    assert [(c.name, c.ok, c.reason) for c in found] == [
        ("audit in kernel", True, "backlog limit 8192, lost 3"),
        ("audit enabled", True, "enabled"),
        ("audit daemon", True, "auditd (pid 77)"),
    ]


def test_audit_daemon_that_cannot_be_looked_at(tmp_path):
    """A holder of whom /proc says nothing has its number still; an immutable configuration (2) is enabled."""
    found = list(support.audit(AuditStatus(enabled=2, pid=77, backlog_limit=64, lost=0), tmp_path))

    assert [(c.ok, c.reason) for c in found[1:]] == [(True, "enabled"), (True, "pid 77")]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EPROTONOSUPPORT, "a kernel with CONFIG_AUDIT"),
        (errno.ECONNREFUSED, "run on the host: containers can't speak to the kernel's audit"),
        (errno.EPERM, "run as root (sudo)"),
    ],
)
def test_audit_refuses(code, remedy):
    """The remedy fits the refusal."""
    (found,) = support.audit(code)

    assert (found.ok, found.remedy) == (False, remedy)


class Netlink:
    """Stands for the socket to the kernel's audit."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def settimeout(self, seconds):
        """Take a limit."""
        assert seconds > 0

    def sendto(self, message, address):
        """Check what is asked: AUDIT_GET, of the kernel."""
        assert (struct.unpack_from("=IHH", message), address) == ((16, 1000, 1), (0, 0))

    def recv(self, size):
        """Return the answer, or fail as a socket does."""
        if isinstance(self.answer, OSError):
            raise self.answer
        assert len(self.answer) <= size
        return self.answer


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (
            message(1000, struct.pack("=10I", 1, 2, 1, 77, 0, 8192, 3, 0, 0x7F, 60)),
            AuditStatus(2, 77, 8192, 3),
        ),
        (message(1000, struct.pack("=8I", 0, 1, 1, 0, 0, 64, 5, 0)), AuditStatus(1, 0, 64, 5)),
        (message(2, struct.pack("=i", -errno.EPERM) + bytes(16)), errno.EPERM),
        (OSError(errno.ECONNREFUSED, "refused"), errno.ECONNREFUSED),
        (TimeoutError(), errno.EIO),
    ],
    ids=["status", "old kernel", "error", "refused", "silence"],
)
def test_audit_status(monkeypatch, answer, status):
    """The kernel's answer is read; a refusal is an error number."""
    monkeypatch.setattr(support.socket, "socket", lambda *_: Netlink(answer))

    assert support.audit_status() == status


def test_auparse_and_clang():
    """What is found is a yes."""
    assert support.auparse(lambda name: name == "auparse").ok
    assert support.clang(lambda name: f"/usr/bin/{name}").reason == "/usr/bin/clang"


CHECKS = [
    Support("a", True, "is there", needed_for=(MONITOR, AUDIT)),
    Support("b", False, "isn't", "do", needed_for=(MONITOR,)),
    Support("c", False, "isn't", "do"),
]


@pytest.mark.parametrize(("what", "works"), [(MONITOR, False), (AUDIT, True), (REPLAY, True)])
def test_would_work(what, works):
    """Something works if all it needs is there; what nobody needs is no obstacle."""
    assert support.would_work(CHECKS, what) is works


def test_examine():
    """This very host: every check answers, under a name of its own; each no has a remedy."""
    found = list(support.examine())

    assert len(found) == len({check.name for check in found})
    assert [c for c in found if not c.ok and not c.remedy] == []
    assert {use for check in found for use in check.needed_for} == {MONITOR, ENFORCE, AUDIT, REPLAY, BUILD}


def test_examine_without_libbpf(monkeypatch):
    """Without libbpf nothing is tried, and everything else is still answered."""

    def missing(*_):
        raise HostError("libbpf.so.1 can't be loaded", remedy="apt install libbpf1")

    monkeypatch.setattr(probe, "library", missing)
    monkeypatch.setattr(support, "Object", missing)
    found = {check.name: check for check in support.examine()}

    assert [found[name].ok for name in ("libbpf", "BPF raw_tp", "ring buffer", "collector")] == [False] * 4
    assert found["BPF raw_tp"].reason == "can't be tried without libbpf"
    assert found["kernel"].ok
