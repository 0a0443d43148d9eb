# SPDX-License-Identifier: Apache-2.0
"""
The actor: does what a rule is about, where it can harm nothing. A program of its own that imports nothing of ours.

It is run three times over. *Outside*, as root: it takes namespaces of its own (mounts, network, processes, IPC, host
name) and makes their first process. That one builds an empty root file system in memory, with the C and Python
libraries (read-only) and whatever the action names, leaves the host's, gives up what could reach beyond (modules, BPF,
reboot, raw devices, ...), and becomes *inside* the first of the action's programs: a copy of the interpreter that runs
this file again. The last program does the steps. When the first process ends the kernel ends all others, and the
namespaces, the file system in memory with them, are gone.

The steps that the kernel refuses are done all the same: what is watched is the attempt.
"""

import ctypes
import json
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 0x20, 0x1000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2
PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 23, 24
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
BPF_PROG_LOAD = 5
CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SYS_ADMIN = 1, 3, 21
CAP_SYS_BOOT = 22
SECONDS = 20
"""After which the kernel ends it, come what may."""

SELF = "/actor.py"
PLAN = "/plan.json"
NAMESPACE = 9
"""The file descriptor of its own network namespace."""

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = [os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


def nothing(machine: str) -> bytes:
    """
    Return a program that does nothing: an ELF file of one page that exits with 0.

    Raises
    ------
    ValueError
        If that machine's instructions aren't known here.
    """
    codes = {
        "x86_64": (62, "31ff 6a3c 58 0f05"),  # exit is 60
        "aarch64": (183, "000080d2 a80b80d2 010000d4"),  # exit is 93
    }
    if machine not in codes:
        raise ValueError(f"no program for {machine}")
    number, text = codes[machine]
    code = bytes.fromhex(text)
    base, start = 0x400000, 64 + 56
    header = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", 2, 1, 1, 0, 2, number, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    size = start + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


# --- outside ----------------------------------------------------------------------------------------------------


def outside(plan: dict[str, Any]) -> int:
    """Take namespaces, have the first process in them act, and wait for its end; returns its exit status."""
    names = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    signal.alarm(SECONDS)
    _checked(_libc.unshare(names), "unshare")
    pid = os.fork()
    if not pid:
        _or_exit(lambda: _first(plan))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _first(plan: dict[str, Any]) -> int:
    # Whoever ends the one outside ends all of this.
    _checked(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    # The first process of a namespace hears only of signals that it has a handler for.
    signal.signal(signal.SIGALRM, lambda _number, _frame: os._exit(1))
    signal.alarm(SECONDS)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    os.dup2(own, NAMESPACE, inheritable=True)
    _root(plan)
    pid = os.fork()
    if not pid:
        _or_exit(lambda: _enter(plan))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _root(plan: dict[str, Any]) -> None:
    """Make an empty root file system and leave the host's."""
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    new = "/tmp"  # noqa: S108 -- covered, in this namespace alone, by a file system of its own
    interpreter = Path(plan["interpreter"]).read_bytes()
    script = Path(plan["script"]).read_bytes()
    cache = Path("/etc/ld.so.cache")
    known = cache.read_bytes() if cache.exists() else b""
    libraries = dict.fromkeys(["/usr/lib", "/usr/lib64", "/lib", "/lib64", *plan["libraries"]])
    _mount("none", new, "tmpfs", MS_NOSUID | MS_NODEV, "size=128m,mode=755")
    for name in libraries:
        _library(name, new)
    Path(new, "host").mkdir()
    os.chdir(new)
    _checked(_libc.syscall(plan["numbers"]["pivot_root"], b".", b"host"), "pivot_root")
    os.chdir("/")
    _checked(_libc.umount2(b"/host", MNT_DETACH), "umount2")
    Path("/host").rmdir()
    # Only now, when no link can lead anywhere else, is anything put at a path that an action names.
    _file(SELF, script)
    _file(PLAN, json.dumps(plan).encode())
    _file("/etc/ld.so.cache", known)
    _file("/.interpreter", interpreter, 0o755)
    _file("/.nothing", nothing(platform.machine()), 0o755)
    Path("/empty").mkdir()
    for program in [plan["interpreter"], *plan["as"]]:
        _link("/.interpreter", program)
    for name, *arguments in plan["do"]:
        for path in arguments[: PATHS.get(name, 0)]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        if name == "exec":
            _link("/.nothing", arguments[0])
        elif name in MADE_FIRST:
            _file(arguments[0], b"")
        elif name == "mount":
            Path(arguments[0]).mkdir(parents=True, exist_ok=True)


def _library(name: str, new: str) -> None:
    path = Path(name)
    there = Path(new + name)
    if path.is_symlink():
        if not there.is_symlink():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path.readlink())
    elif path.is_dir() and not there.is_dir():
        there.mkdir(parents=True)
        _mount(name, str(there), "none", MS_BIND)
        _mount("none", str(there), "none", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _file(path: str, content: bytes, mode: int = 0o644) -> None:
    there = Path(path)
    there.parent.mkdir(parents=True, exist_ok=True)
    if not there.exists():
        there.write_bytes(content)
        there.chmod(mode)


def _link(existing: str, path: str) -> None:
    there = Path(path)
    there.parent.mkdir(parents=True, exist_ok=True)
    if not there.exists():
        there.hardlink_to(existing)


def _enter(plan: dict[str, Any]) -> int:
    """Give up what could reach beyond, and become the first program; the exec makes that final."""
    kept = {CAP_DAC_OVERRIDE, CAP_FOWNER}
    if any(name in {"mount", "setns"} for name, *_ in plan["do"]):
        kept.add(CAP_SYS_ADMIN)
    capability = 0
    while _libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if capability not in kept:
            _checked(_libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
        capability += 1
    _become(plan, 0)
    return 1


# --- inside -----------------------------------------------------------------------------------------------------


def inside(plan: dict[str, Any], generation: int) -> int:
    """Start the next program, or do the steps, of which those that don't go are told."""
    if generation + 1 < len(plan["as"]):
        return _child(lambda: _become(plan, generation + 1))
    failed = 0
    for name, *arguments in plan["do"]:
        try:
            STEPS[name](plan, *arguments)
        except OSError as error:
            sys.stderr.write(f"{name}: {error.strerror}\n")
        except Exception as error:  # noqa: BLE001 -- the next one may go
            failed += 1
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
    return int(failed > 0)


def _become(plan: dict[str, Any], generation: int) -> int:
    program = plan["as"][generation] if plan["as"] else plan["interpreter"]
    # Without site-packages, and writing nothing; where its own library is can't be told by where it lies.
    arguments = [program, "-S", "-B", SELF, str(generation)]
    os.execve(program, arguments, {"PYTHONHOME": plan["home"]})  # noqa: S606


def _child(act: Callable[[], int]) -> int:
    pid = os.fork()
    if not pid:
        _or_exit(act)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _or_exit(act: Callable[[], int]) -> None:
    status = 1
    try:
        status = act()
    except Exception as error:  # noqa: BLE001 -- a forked process must not go on as its parent
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _execute(_plan: dict[str, Any], path: str, *arguments: str) -> None:
    words = list(arguments) or [path.rpartition("/")[2]]
    _child(lambda: os.execve(path, words, {}))  # noqa: S606


def _read(_plan: dict[str, Any], path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _write(_plan: dict[str, Any], path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _connect(_plan: dict[str, Any], address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect((address, port))


def _memfd(_plan: dict[str, Any]) -> None:
    descriptor = os.memfd_create("x")
    os.write(descriptor, nothing(platform.machine()))
    _child(lambda: os.execve(descriptor, ["x"], {}))  # noqa: S606


def _pause() -> int:
    signal.pause()
    return 0


def _ptrace(_plan: dict[str, Any]) -> None:
    pid = os.fork()
    if not pid:
        _or_exit(_pause)
    try:
        none = ctypes.c_void_p()
        _checked(_libc.ptrace(ctypes.c_long(PTRACE_ATTACH), pid, none, none), "ptrace")
        os.waitpid(pid, 0)
        _checked(_libc.ptrace(ctypes.c_long(PTRACE_DETACH), pid, none, none), "ptrace")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _bpf(plan: dict[str, Any]) -> None:
    _checked(_libc.syscall(plan["numbers"]["bpf"], BPF_PROG_LOAD, ctypes.c_void_p(), 0), "bpf")


def _init_module(plan: dict[str, Any]) -> None:
    none = ctypes.c_void_p()
    _checked(_libc.syscall(plan["numbers"]["init_module"], none, ctypes.c_ulong(), none), "init_module")


def _kexec(plan: dict[str, Any]) -> None:
    # Without segments it would unload what is loaded, if it were allowed to.
    if _libc.prctl(PR_CAPBSET_READ, CAP_SYS_BOOT, 0, 0, 0) != 0:
        raise PermissionError(0, "this process may reboot, so it doesn't try")
    zero = ctypes.c_ulong()
    _checked(_libc.syscall(plan["numbers"]["kexec_load"], zero, zero, ctypes.c_void_p(), zero), "kexec_load")


def _setns(_plan: dict[str, Any]) -> None:
    _checked(_libc.setns(NAMESPACE, CLONE_NEWNET), "setns")


def _userns(_plan: dict[str, Any]) -> None:
    _checked(_libc.unshare(CLONE_NEWUSER), "unshare")


STEPS: dict[str, Callable[..., object]] = {
    "exec": _execute,
    "read": _read,
    "write": _write,
    "unlink": lambda _plan, path: Path(path).unlink(),
    "rename": lambda _plan, old, new: Path(old).rename(new),
    "symlink": lambda _plan, target, path: Path(path).symlink_to(target),
    "chmod": lambda _plan, path, mode: Path(path).chmod(int(mode, 8)),
    "mount": lambda _plan, path: _mount("/empty", path, "none", MS_BIND),
    "connect": _connect,
    "memfd": _memfd,
    "ptrace": _ptrace,
    "bpf": _bpf,
    "init_module": _init_module,
    "kexec": _kexec,
    "setns": _setns,
    "userns": _userns,
}
"""What an action can do; the plan is handed to each."""
MADE_FIRST = frozenset({"read", "unlink", "rename", "chmod"})
"""Steps whose first path is made before."""
PATHS = {"exec": 1, "read": 1, "write": 1, "unlink": 1, "rename": 2, "symlink": 2, "chmod": 1, "mount": 1}
"""How many of a step's arguments are paths; their directories are made before."""


def main(arguments: list[str]) -> int:
    """Run outside with the plan on standard input; inside with the generation as the argument."""
    if arguments:
        return inside(json.loads(Path(PLAN).read_text()), int(arguments[0]))
    return outside(json.load(sys.stdin))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
