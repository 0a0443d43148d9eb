# SPDX-License-Identifier: Apache-2.0
"""
What this host can do: each "no" with its reason and its remedy. Nothing is believed that can be tried.

Every check takes the world as an argument (a root directory, what a trial returned), so tests hand in another.
"""

import ctypes
import errno
import importlib.util
import mmap
import os
import platform
import re
import resource
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ksentinel.bpf import probe
from ksentinel.bpf.guard_abi import Hook
from ksentinel.bpf.libbpf import Object, kernel_has_hook
from ksentinel.errors import HostError, KsentinelError
from ksentinel.mounts import CGROUP_ROOT, cgroup_mounts
from ksentinel.shipped import shipped

# Capability numbers, linux/capability.h.
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h
_AUDIT_GET, _NLM_F_REQUEST, _NETLINK_AUDIT, _NLMSG_ERROR = 1000, 1, 9, 2
_AUDIT_STATUS = struct.Struct("=10I")

_LSM_LIST_MODULES = 461  # the same on every architecture
_LSM_IDS = dict(  # linux/lsm.h
    enumerate(
        "capability selinux smack tomoyo apparmor yama loadpin safesetid lockdown bpf landlock ima evm ipe".split(),
        100,
    )
)

MONITOR, ENFORCE, AUDIT, REPLAY, BUILD = "monitor", "enforce", "audit", "replay", "build"


@dataclass(frozen=True, slots=True)
class Support:
    """One answer: is it there, what was seen, what to do if it isn't, and what needs it."""

    name: str
    ok: bool
    reason: str
    remedy: str = ""
    needed_for: tuple[str, ...] = ()


def examine(root: Path = Path("/"), *, load: bool = True) -> Iterator[Support]:
    """
    Yield every check of this host.

    Parameters
    ----------
    load
        Also load the collector, which takes seconds: not for who is about to do that anyway.
    """
    yield kernel()
    yield capabilities(root)
    yield pid_namespace(root)
    yield btf(root)
    yield libbpf(probe.why_no_libbpf())
    yield program(probe.RAW_TP, _tried(probe.try_program, probe.RAW_TP), (MONITOR, ENFORCE))
    yield program(probe.ITER, _tried(probe.try_program, probe.ITER), (MONITOR, ENFORCE))
    yield program(probe.TP_BTF, _tried(probe.try_program, probe.TP_BTF), (ENFORCE,))
    yield ring_buffer(_tried(lambda _: probe.try_ring_buffer(), probe.RAW_TP))
    if load:
        yield collector()
    yield cgroups(root)
    active = active_lsms(root)
    yield bpf_lsm(active)
    yield lsm_program(_tried(probe.try_program, probe.LSM), active)
    yield lsm_hooks()
    yield from audit(audit_status())
    yield auparse()
    yield clang()


def would_work(checks: list[Support], what: str) -> bool:
    """Tell whether everything that *what* needs is there."""
    return all(check.ok for check in checks if what in check.needed_for)


def kernel(machine: str = platform.machine(), release: str = platform.release()) -> Support:
    """Tell whether this architecture has a system call table here."""
    known = machine in {"x86_64", "aarch64"}
    return Support(
        "kernel",
        known,
        f"Linux {release} on {machine}",
        "" if known else "ksentinel knows x86_64 and aarch64",
        (MONITOR, ENFORCE),
    )


def capabilities(root: Path = Path("/")) -> Support:
    """Tell whether this process may load BPF programs."""
    try:
        status = (root / "proc/self/status").read_text()
    except OSError as error:
        return _no_proc("capabilities", error)
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    has = {name for name, bit in _CAPABILITIES.items() if held >> bit & 1}
    enough = "CAP_SYS_ADMIN" in has or {"CAP_BPF", "CAP_PERFMON"} <= has
    reason = f"holds {', '.join(sorted(has)) or 'none of CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN'}"
    return Support("capabilities", enough, reason, "" if enough else "run as root (sudo)", (MONITOR, ENFORCE))


def pid_namespace(root: Path = Path("/")) -> Support:
    """Tell whether this is the initial PID namespace: BPF numbers processes as they are there."""
    try:
        initial = (root / "proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError as error:
        return _no_proc("pid namespace", error)
    return Support(
        "pid namespace",
        initial,
        "the initial one" if initial else "a container's own",
        "" if initial else "run on the host, or give the container --pid=host",
        (MONITOR, ENFORCE),
    )


def btf(root: Path = Path("/")) -> Support:
    """Tell whether the kernel describes its types."""
    there = (root / "sys/kernel/btf/vmlinux").is_file()
    reason = "/sys/kernel/btf/vmlinux is there" if there else "there is no /sys/kernel/btf/vmlinux"
    remedy = "" if there else "a kernel with CONFIG_DEBUG_INFO_BTF (and a mounted /sys)"
    return Support("BTF", there, reason, remedy, (MONITOR, ENFORCE))


def libbpf(problem: HostError | None) -> Support:
    """Tell whether libbpf can be used."""
    if problem is not None:
        return Support("libbpf", False, problem.what, problem.remedy, (MONITOR, ENFORCE))
    return Support("libbpf", True, "libbpf.so.1 loads", "", (MONITOR, ENFORCE))


def program(kind: probe.ProgramType, code: int | None, needed_for: tuple[str, ...]) -> Support:
    """Tell whether the kernel takes programs of that kind; *code* is what a trial returned (None: not tried)."""
    name = f"BPF {kind.name}"
    if code is None:
        return Support(name, False, "can't be tried without libbpf", "apt install libbpf1", needed_for)
    if code == 0:
        return Support(name, True, "a program of this type loads", "", needed_for)
    remedy = "a kernel that offers it (6.1 or later)"
    if code == errno.ESRCH:
        remedy = "a kernel with BTF, and a mounted /sys"
    if code == errno.EPERM:
        remedy = (
            "run as root (sudo)" if os.geteuid() else "a container needs CAP_BPF and CAP_PERFMON for that"
        )
    return Support(name, False, f"the kernel refused one: {_errno(code)}", remedy, needed_for)


def ring_buffer(code: int | None) -> Support:
    """Tell whether ring buffers can be made."""
    if code is None:
        return Support(
            "ring buffer", False, "can't be tried without libbpf", "apt install libbpf1", (MONITOR, ENFORCE)
        )
    if code:
        remedy = "run as root (sudo)" if code == errno.EPERM else "a kernel of 5.8 or later"
        return Support(
            "ring buffer", False, f"the kernel refused one: {_errno(code)}", remedy, (MONITOR, ENFORCE)
        )
    return Support("ring buffer", True, "can be made", "", (MONITOR, ENFORCE))


def collector() -> Support:
    """Load the collector, whole, without attaching it."""
    try:
        with Object(shipped("lsm_bpf/trace.bpf.o")) as found:
            found.load()
    except KsentinelError as error:
        return Support("collector", False, error.what, error.remedy, (MONITOR, ENFORCE))
    return Support("collector", True, "trace.bpf.o passes this kernel's verifier", "", (MONITOR, ENFORCE))


def cgroups(root: Path = Path("/")) -> Support:
    """Tell whether processes can be told apart by cgroup; nothing but that filter needs it."""
    try:
        text = (root / "proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError as error:
        return _no_proc("cgroups", error, ())
    found = cgroup_mounts(text)
    boot = "boot with systemd.unified_cgroup_hierarchy=1 (without systemd: cgroup_no_v1=all)"
    v1 = ", ".join(found.v1)
    if found.v2 is None:
        what = f"v1 only ({v1}), and cgroup ids are of v2" if v1 else "no cgroup hierarchy is mounted"
        return Support(
            "cgroups", False, what, boot if v1 else f"mount -t cgroup2 none {CGROUP_ROOT} (as root)"
        )
    place = f"{found.v2}, {_cgroups_below(root / found.v2.relative_to('/'))}"
    if found.main:
        return Support("cgroups", True, f"v2 at {place}" + (f"; v1 beside it: {v1}" if v1 else ""))
    reason = (
        f"hybrid: ids are of v2 (at {place}), and {v1} are v1: "
        "processes placed only in those can't be told apart"
    )
    return Support("cgroups", False, reason, boot)


def _cgroups_below(top: Path) -> str:
    try:
        found = re.search(r"^nr_descendants (\d+)$", (top / "cgroup.stat").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return "how many cgroups it has is unknown"
    return f"{found[1]} cgroups below it" if found[1] != "0" else "no cgroup below it"


def active_lsms(root: Path = Path("/")) -> tuple[str, ...] | None:
    """Return the active Linux security modules, from securityfs or the kernel itself; None if neither tells."""
    try:
        return tuple((root / "sys/kernel/security/lsm").read_text().strip().split(","))
    except OSError:
        return listed_lsms() if root == Path("/") else None


def listed_lsms() -> tuple[str, ...] | None:
    """Return what lsm_list_modules(2) says (Linux 6.8 and later); None if the kernel hasn't got it."""
    ids = (ctypes.c_uint64 * 64)()
    size = ctypes.c_uint32(ctypes.sizeof(ids))
    libc = ctypes.CDLL(None, use_errno=True)
    count = libc.syscall(_LSM_LIST_MODULES, ctypes.byref(ids), ctypes.byref(size), 0)
    return tuple(_LSM_IDS.get(number, f"lsm-{number}") for number in ids[:count]) if count > 0 else None


def bpf_lsm(active: tuple[str, ...] | None) -> Support:
    """Tell whether BPF is among the active security modules."""
    if active is None:
        return Support(
            "BPF LSM",
            False,
            "the list of active LSMs is unknown: /sys/kernel/security/lsm can't be read",
            "mount -t securityfs none /sys/kernel/security (as root)",
            (ENFORCE,),
        )
    if "bpf" in active:
        return Support("BPF LSM", True, f"active: {','.join(active)}", "", (ENFORCE,))
    return Support(
        "BPF LSM",
        False,
        f"bpf is not among the active LSMs: {','.join(active)}",
        f"boot with lsm={','.join([*active, 'bpf'])}",
        (ENFORCE,),
    )


def lsm_program(code: int | None, active: tuple[str, ...] | None) -> Support:
    """Tell whether the kernel takes LSM programs: being on the list is not enough."""
    found = program(probe.LSM, code, (ENFORCE,))
    if code == errno.EPERM and active is not None and "bpf" in active and not os.geteuid():
        return Support(
            found.name,
            False,
            "bpf is an active LSM, but the kernel refused to load an LSM program: EPERM",
            "this host's administrator or hypervisor forbids it; enforce needs a host that doesn't",
            (ENFORCE,),
        )
    return found


def lsm_hooks(has: Callable[[str], bool] = kernel_has_hook) -> Support:
    """Tell at which hooks guards can't stand; a rule that needs one of those is left out, and says so."""
    try:
        lacking = [hook.name.lower() for hook in Hook if hook is not Hook.NONE and not has(hook.name.lower())]
    except HostError as error:
        return Support("LSM hooks", False, error.what, error.remedy)
    if not lacking:
        return Support("LSM hooks", True, f"all {len(Hook) - 1} that guards may stand at")
    return Support(
        "LSM hooks",
        False,
        f"this kernel asks no BPF program at {', '.join(lacking)}",
        "what rules forbid there is reported, not refused: a newer kernel, or one with CONFIG_SECURITY_PATH and CONFIG_SECURITY_NETWORK",
    )


@dataclass(frozen=True, slots=True)
class AuditStatus:
    """The kernel's ``struct audit_status``, as far as it is shown."""

    enabled: int
    pid: int
    backlog_limit: int
    lost: int


def audit_status() -> AuditStatus | int:
    """Ask the kernel; returns the errno if it won't say."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_AUDIT) as asked:
            asked.settimeout(2.0)
            asked.sendto(struct.pack("=IHHII", 16, _AUDIT_GET, _NLM_F_REQUEST, 1, 0), (0, 0))
            answer = asked.recv(8192)
    except OSError as error:
        return error.errno or errno.EIO
    _, kind = struct.unpack_from("=IH", answer)
    if kind == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, 16)
        return abs(int(code))
    _, enabled, _, pid, _, limit, lost, *_ = _AUDIT_STATUS.unpack(answer[16 : 16 + 40].ljust(40, b"\0"))
    return AuditStatus(enabled, pid, limit, lost)


def audit(status: AuditStatus | int, proc: Path = Path("/proc")) -> Iterator[Support]:
    """Tell whether the kernel audits, and who holds the records."""
    if isinstance(status, int):
        remedies = {
            errno.EPROTONOSUPPORT: "a kernel with CONFIG_AUDIT",
            errno.ECONNREFUSED: "run on the host: containers can't speak to the kernel's audit",
        }
        remedy = remedies.get(status, "run as root (sudo)")
        yield Support("audit in kernel", False, f"the kernel won't say: {_errno(status)}", remedy, (AUDIT,))
        return
    yield Support(
        "audit in kernel", True, f"backlog limit {status.backlog_limit}, lost {status.lost}", "", (AUDIT,)
    )
    on = status.enabled > 0
    yield Support(
        "audit enabled",
        on,
        "enabled" if on else "switched off",
        "" if on else "auditctl -e 1 (or start auditd)",
        (AUDIT,),
    )
    holder = "nobody: records go to the kernel log"
    if status.pid:
        try:
            holder = f"{(proc / str(status.pid) / 'comm').read_text().strip()} (pid {status.pid})"
        except OSError:
            holder = f"pid {status.pid}"
    yield Support("audit daemon", bool(status.pid), holder, "" if status.pid else "apt install auditd")


def auparse(find: Callable[[str], object | None] = importlib.util.find_spec) -> Support:
    """Tell whether audit logs can be read."""
    if find("auparse") is not None:
        return Support("auparse", True, "the audit library's bindings are there", "", (AUDIT, REPLAY))
    return Support(
        "auparse",
        False,
        "this Python has no auparse",
        "apt install python3-audit, and a virtual environment of /usr/bin/python3 with --system-site-packages",
        (AUDIT, REPLAY),
    )


def clang(which: Callable[[str], str | None] = shutil.which) -> Support:
    """Tell whether the BPF object can be compiled here (only building needs it)."""
    found = which("clang")
    return Support(
        "clang", bool(found), found or "not found", "" if found else "apt install clang libbpf-dev", (BUILD,)
    )


def _no_proc(name: str, error: OSError, needed_for: tuple[str, ...] = (MONITOR, ENFORCE)) -> Support:
    remedy = "mount -t proc proc /proc (as root)"
    return Support(name, False, f"/proc can't be read: {error.strerror}", remedy, needed_for)


def _tried(trial: Callable[[probe.ProgramType], int], kind: probe.ProgramType) -> int | None:
    try:
        return trial(kind)
    except HostError:
        return None


def _errno(code: int) -> str:
    return f"{errno.errorcode.get(code, code)} ({os.strerror(code)})"


def serves_32_bit(
    machine: str, root: Path = Path("/"), trial: Callable[[], bool | None] | None = None
) -> bool:
    """
    Tell whether this kernel serves the system calls of 32-bit programs, too.

    Where its symbols say that it might, by trying one; where that can't be tried, it is taken for granted.
    """
    names, before = (b" __ia32_sys_", b" __arm64_compat_sys_"), b""
    try:
        with (root / "proc/kallsyms").open("rb") as symbols:
            while part := symbols.read(1 << 20):
                if any(name in before + part for name in names):
                    break
                before = part[-64:]
            else:
                return not before  # nothing to read: hidden
    except OSError:
        return True
    answer = (trial or _try_32_bit)() if machine == "x86_64" else None
    return answer is not False


def _try_32_bit() -> bool | None:
    """Let a child make a 32-bit system call; None if that can't be tried."""
    child = os.fork()
    if not child:
        os._exit(_getpid_by_int_80())
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    return {0: True, 1: False}.get(os.waitstatus_to_exitcode(status))


def _getpid_by_int_80() -> int:
    """Return 0 if it gave the right answer, 1 if not, 2 if it couldn't be asked."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # mov eax, 20 (getpid); push rbx; int 0x80; pop rbx; ret
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(bytes.fromhex("b814000000 53 cd80 5b c3"))
        start = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return 0 if ctypes.CFUNCTYPE(ctypes.c_int)(start)() == os.getpid() else 1
    except Exception:  # noqa: BLE001 -- in the child nothing may get out, to run what the parent has still to do
        return 2
