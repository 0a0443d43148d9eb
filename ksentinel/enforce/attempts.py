# SPDX-License-Identifier: Apache-2.0
"""
What the canary attempts: for each LSM hook one operation that comes by there. A program of its own that imports nothing of ours.

It is started once, as root, with a plan on its standard input. It takes a mount namespace and a network namespace of its
own, with a small file system in memory in the one and only the loopback device in the other, and says ``up``. From then on
it is told what to do, a line at a time:

    prepare NAME      everything that this attempt needs is made, and a child that waits. It says ``ready TID``, or
                      ``cannot REASON`` where such an attempt can't be made on this host
    go                the child does its one system call and ends. It says ``done ERRNO NANOSECONDS AS-USUAL``, or
                      ``ended STATUS`` of a child that told nothing

Between the two the child does nothing but wait: whoever arms a guard for it hits that one system call. Nothing it attempts
changes anything beyond its namespaces. When its standard input ends, so does it, and its children with it.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 0x4000, 0x40000, 2
AT_FDCWD, AT_REMOVEDIR = -100, 0x200
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
PTRACE_SEIZE, PR_GET_TIMERSLACK = 0x4206, 30
CAPABILITY_VERSION = 0x20080522
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
KEXEC_FILE_NO_INITRAMFS = 4
NOBODY = 65534
ABSURD = 0x7FFFFFFF
"""No command of bpf; more segments than kexec takes, with flags that it doesn't know."""
SHORT = b"/sys/kernel/uevent_seqnum"
"""A file that is shorter than it says: reading it whole fails, and the kernel's log has nothing of it."""
SECONDS = 5
"""After which the kernel ends a child, come what may."""
LINE = 512
"""The longest line that is said."""

_REPORT = struct.Struct("=iqq")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Impossible(Exception):  # noqa: N818 -- an answer, not a mistake
    """Such an attempt can't be made on this host."""


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = [os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data)), f"mount {target}")


# --- what an attempt finds prepared -------------------------------------------------------------------------------


class Scene:
    """
    What is made for one attempt, and goes with it.

    Parameters
    ----------
    plan
        ``numbers`` of system calls, ``program`` as hexadecimal digits.
    folder
        An empty directory.
    after
        What is undone afterwards, last first.
    no_network
        Why there is no network namespace; empty if there is one.
    """

    def __init__(self, plan: dict[str, Any], folder: Path, after: ExitStack, no_network: str) -> None:
        self.plan = plan
        self.folder = folder
        self.after = after
        self.no_network = no_network

    def call(self, name: str, *arguments: int | bytes | ctypes.Array[Any] | None) -> "Call":
        """Return a system call that only has to be done."""
        words: list[Any] = [ctypes.c_long(self.plan["numbers"][name])]
        for argument in arguments:
            if isinstance(argument, int):
                words.append(ctypes.c_long(argument))
            elif argument is None:
                words.append(ctypes.c_void_p())
            else:
                words.append(argument)
        return Call(tuple(words))

    def path(self, name: str) -> bytes:
        """Return the path of a file that isn't there."""
        return os.fsencode(self.folder / name)

    def file(self, name: str, content: bytes = b"x", mode: int = 0o644) -> bytes:
        """Return the path of a file."""
        there = self.folder / name
        there.write_bytes(content)
        there.chmod(mode)
        return os.fsencode(there)

    def directory(self, name: str) -> bytes:
        """Return the path of an empty directory."""
        (self.folder / name).mkdir()
        return self.path(name)

    def program(self) -> bytes:
        """Return the path of a program that does nothing."""
        return self.file("program", bytes.fromhex(self.plan["program"]), 0o755)

    def opened(self, path: bytes) -> int:
        """Return a descriptor for reading."""
        descriptor = os.open(path, os.O_RDONLY)
        self.after.callback(os.close, descriptor)
        return descriptor

    def mounted(self, name: str) -> bytes:
        """Return a directory that a file system of its own is mounted on."""
        path = self.directory(name)
        _mount("none", os.fsdecode(path), "tmpfs", MS_NOSUID | MS_NODEV, "size=64k")
        self.unmounts(path)
        return path

    def unmounts(self, path: bytes) -> None:
        """See to it that nothing stays mounted there."""
        self.after.callback(_libc.umount2, path, MNT_DETACH)

    def sleeper(self) -> int:
        """Return the PID of a process that waits until it is ended."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(write)
            _or_exit(lambda: os.read(read, 1))
        os.close(read)

        def end() -> None:
            os.close(write)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

        self.after.callback(end)
        return pid

    def endpoint(self, family: int, kind: int) -> socket.socket:
        """
        Return a socket.

        Raises
        ------
        Impossible
            If it would be one of the host's network.
        """
        if family == socket.AF_INET and self.no_network:
            raise Impossible(self.no_network)
        return self.after.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK))

    def bound(self, family: int, kind: int) -> tuple[socket.socket, bytes]:
        """Return a socket that has an address, and that address as the kernel takes it."""
        one = self.endpoint(family, kind)
        if family == socket.AF_UNIX:
            path = self.path("socket")
            one.bind(path)
            return one, struct.pack("=H", family) + path + b"\0"
        one.bind(("127.0.0.1", 0))
        return one, _loopback(one.getsockname()[1])


class Call(tuple[Any, ...]):
    """A system call: its number and its arguments."""

    __slots__ = ()

    def __call__(self) -> int:
        """Do it; returns what it returned, and -1 with an errno if it failed."""
        return int(_libc.syscall(*self))


def _loopback(port: int) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, bytes((127, 0, 0, 1)))


def _exec(scene: Scene) -> Call:
    path = scene.program()
    words = (ctypes.c_char_p * 2)(b"canary", None)
    return scene.call("execve", path, words, (ctypes.c_char_p * 1)(None))


def _map(scene: Scene) -> Call:
    opened = scene.opened(scene.program())
    return scene.call("mmap", 0, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, opened, 0)


def _connect(scene: Scene) -> Call:
    # Of a socket for datagrams: nothing is sent.
    _, address = scene.bound(socket.AF_INET, socket.SOCK_DGRAM)
    caller = scene.endpoint(socket.AF_INET, socket.SOCK_DGRAM)
    return scene.call("connect", caller.fileno(), address, len(address))


def _bind(scene: Scene) -> Call:
    address = _loopback(0)
    return scene.call(
        "bind", scene.endpoint(socket.AF_INET, socket.SOCK_DGRAM).fileno(), address, len(address)
    )


def _listen(scene: Scene) -> Call:
    one, _ = scene.bound(socket.AF_INET, socket.SOCK_STREAM)
    return scene.call("listen", one.fileno(), 1)


def _send(family: int) -> Callable[[Scene], Call]:
    def send(scene: Scene) -> Call:
        _, address = scene.bound(family, socket.SOCK_DGRAM)
        sender = scene.endpoint(family, socket.SOCK_DGRAM)
        return scene.call("sendto", sender.fileno(), b"x", 1, socket.MSG_DONTWAIT, address, len(address))

    return send


def _connect_unix(scene: Scene) -> Call:
    server, address = scene.bound(socket.AF_UNIX, socket.SOCK_STREAM)
    server.listen(1)
    caller = scene.endpoint(socket.AF_UNIX, socket.SOCK_STREAM)
    return scene.call("connect", caller.fileno(), address, len(address))


def _ptrace(scene: Scene, scope: Path = Path("/proc/sys/kernel/yama/ptrace_scope")) -> Call:
    if scope.exists() and scope.read_text().strip() == "3":
        raise Impossible("kernel.yama.ptrace_scope is 3: nobody takes hold of a process until the next boot")
    return scene.call("ptrace", PTRACE_SEIZE, scene.sleeper(), 0, 0)


def _load_data(scene: Scene) -> Call:
    if _takes_modules(scene):
        # From where nothing can be read: the kernel complains of a module that is none in its log, of this it doesn't.
        return scene.call("init_module", None, mmap.PAGESIZE, b"")
    return scene.call("kexec_load", 0, ABSURD, None, ABSURD)


def _read_file(scene: Scene) -> Call:
    opened = scene.opened(SHORT)
    if _takes_modules(scene):
        return scene.call("finit_module", opened, b"", 0)
    return scene.call("kexec_file_load", opened, -1, 1, b"", KEXEC_FILE_NO_INITRAMFS)


def _takes_modules(scene: Scene) -> bool:
    """Tell whether a module would get as far as the hook; a module of no bytes doesn't."""
    scene.call("init_module", None, 0, None)()
    return ctypes.get_errno() not in {errno.ENOSYS, errno.EPERM}


def _mount_on(scene: Scene) -> Call:
    path = scene.directory("on")
    scene.unmounts(path)
    return scene.call("mount", b"none", path, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=64k")


def _move_mount(scene: Scene) -> Call:
    source, target = scene.mounted("from"), scene.directory("to")
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    tree = _checked(scene.call("open_tree", AT_FDCWD, source, flags)(), "open_tree")
    scene.after.callback(os.close, tree)
    scene.unmounts(target)
    return scene.call("move_mount", tree, b"", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)


def _userns(scene: Scene, most: Path = Path("/proc/sys/user/max_user_namespaces")) -> Call:
    if most.exists() and most.read_text().strip() == "0":
        raise Impossible("user.max_user_namespaces is 0: nobody makes a user namespace")
    return scene.call("unshare", CLONE_NEWUSER)


def _capset(scene: Scene) -> Call:
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    _checked(scene.call("capget", header, data)(), "capget")
    return scene.call("capset", header, data)


# --- the table ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """
    An operation that comes by a hook.

    Attributes
    ----------
    prepare
        Makes what it needs, and returns the system call.
    ends
        How it ends where no guard speaks: errno, 0 for success.
    same
        Whether it returns the same each time: a guard that lets it through must not change that.
    executes
        Whether the child becomes another program, and so tells nothing more: it ends with 0.
    lacks
        What a kernel hasn't that knows no such call.
    """

    prepare: Callable[[Scene], Call]
    ends: tuple[int, ...] = (0,)
    same: bool = False
    executes: bool = False
    lacks: str = "this call"


ATTEMPTS: dict[str, Attempt] = {
    "bprm_check_security": Attempt(_exec, executes=True),
    "bprm_creds_from_file": Attempt(_exec, executes=True),
    "mmap_file": Attempt(_map),
    "file_open": Attempt(lambda s: s.call("openat", AT_FDCWD, s.file("x"), os.O_RDONLY | os.O_CLOEXEC, 0)),
    "path_mknod": Attempt(lambda s: s.call("mknodat", AT_FDCWD, s.path("x"), 0o100600, 0)),
    "path_mkdir": Attempt(lambda s: s.call("mkdirat", AT_FDCWD, s.path("x"), 0o700)),
    "path_rename": Attempt(lambda s: s.call("renameat2", AT_FDCWD, s.file("x"), AT_FDCWD, s.path("y"), 0)),
    "path_link": Attempt(lambda s: s.call("linkat", AT_FDCWD, s.file("x"), AT_FDCWD, s.path("y"), 0)),
    "path_symlink": Attempt(lambda s: s.call("symlinkat", b"x", AT_FDCWD, s.path("y"))),
    "path_truncate": Attempt(lambda s: s.call("truncate", s.file("x"), 0)),
    "path_chmod": Attempt(lambda s: s.call("fchmodat", AT_FDCWD, s.file("x"), 0o600)),
    "path_chown": Attempt(lambda s: s.call("fchownat", AT_FDCWD, s.file("x"), NOBODY, NOBODY, 0)),
    "path_unlink": Attempt(lambda s: s.call("unlinkat", AT_FDCWD, s.file("x"), 0)),
    "path_rmdir": Attempt(lambda s: s.call("unlinkat", AT_FDCWD, s.directory("x"), AT_REMOVEDIR)),
    "socket_connect": Attempt(_connect),
    "socket_bind": Attempt(_bind),
    "socket_listen": Attempt(_listen),
    "socket_sendmsg": Attempt(_send(socket.AF_INET)),
    "unix_stream_connect": Attempt(_connect_unix),
    "unix_may_send": Attempt(_send(socket.AF_UNIX)),
    "ptrace_access_check": Attempt(_ptrace),
    # Of kexec_load: too many segments, or the kernel is locked down, which is found out after the hook.
    "kernel_load_data": Attempt(
        _load_data, (errno.EFAULT, errno.EINVAL, errno.EPERM), lacks="modules or kexec_load"
    ),
    "kernel_read_file": Attempt(_read_file, (errno.EIO,), lacks="modules or kexec_file_load"),
    "bpf": Attempt(lambda s: s.call("bpf", ABSURD, bytes(8), 8), (errno.EINVAL,)),
    "sb_mount": Attempt(_mount_on),
    "move_mount": Attempt(_move_mount),
    "sb_umount": Attempt(lambda s: s.call("umount2", s.mounted("on"), MNT_DETACH)),
    "userns_create": Attempt(_userns),
    "task_kill": Attempt(lambda s: s.call("kill", s.sleeper(), 0)),
    "task_fix_setuid": Attempt(lambda s: s.call("setresuid", -1, NOBODY, -1)),
    "task_fix_setgid": Attempt(lambda s: s.call("setresgid", -1, NOBODY, -1)),
    "capset": Attempt(_capset),
    "task_prctl": Attempt(lambda s: s.call("prctl", PR_GET_TIMERSLACK, 0, 0, 0, 0), same=True),
}
"""By the hook's name. A test holds that none is missing."""

CALLS = frozenset(
    """
    execve mmap openat mknodat mkdirat renameat2 linkat symlinkat truncate fchmodat fchownat unlinkat connect bind listen sendto
    ptrace init_module finit_module kexec_load kexec_file_load bpf mount move_mount open_tree umount2 unshare kill setresuid
    setresgid capget capset prctl
    """.split()
)
"""System calls whose numbers the plan has."""


# --- the program --------------------------------------------------------------------------------------------------


def _or_exit(act: Callable[[], Any]) -> None:
    """Act, in a forked process, which must not go on as its parent."""
    status = 1
    try:
        # Whoever started us may have blocked all signals, this one among them.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(SECONDS)
        act()
        status = 0
    finally:
        os._exit(status)


def _say(text: str) -> None:
    line = text.encode("ascii", "backslashreplace").replace(b"\n", b" ")[: LINE - 1]
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _take_namespaces(plan: dict[str, Any]) -> tuple[Path, str]:
    """Return where the file system in memory is, and why there is no network namespace; empty if there is one."""
    _checked(_libc.unshare(CLONE_NEWNS), "unshare mounts")
    _mount("none", "/", "none", MS_REC | MS_PRIVATE)
    # Covered, in this namespace alone.
    at = next((Path(name) for name in plan["at"] if Path(name).is_dir()), None)
    if at is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), " ".join(plan["at"]))
    _mount("none", str(at), "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=700")
    try:
        _checked(_libc.unshare(CLONE_NEWNET), "unshare network")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))
    except OSError as error:
        return at, f"no network of its own: {error}"
    return at, ""


def _attempt(
    attempt: Attempt, call: Call, go: int, report: int, now: Callable[[], int] = time.monotonic_ns
) -> None:
    """Wait, do it, tell how it went: in the child."""
    usual = call() if attempt.same else 0
    ctypes.set_errno(0)
    os.write(report, b"!")
    if not os.read(go, 1):
        return
    before = now()
    result = call()
    took = now() - before
    number = ctypes.get_errno() if result == -1 else 0
    os.write(report, _REPORT.pack(number, took, int(not attempt.same or result == usual)))


def _go_through(attempt: Attempt, scene: Scene, now: Callable[[], int] = time.monotonic_ns) -> str:
    """Make one attempt, from its preparation on; returns what is to be said of it."""
    call = attempt.prepare(scene)
    go, tell = os.pipe()
    report, told = os.pipe()
    pid = os.fork()
    if not pid:
        # With our ends open it would not hear that we are gone.
        os.close(tell)
        os.close(report)
        _or_exit(lambda: _attempt(attempt, call, go, told))
    os.close(go)
    os.close(told)
    before = None
    content = b""
    try:
        if os.read(report, 1):
            _say(f"ready {pid}")
            if sys.stdin.buffer.readline(LINE) == b"go\n":
                before = now()
                os.write(tell, b"!")
    finally:
        os.close(tell)
        # It ends with the child, and before that with an execution.
        while part := os.read(report, _REPORT.size):
            content += part
        os.close(report)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if len(content) == _REPORT.size:
        number, took, usual = _REPORT.unpack(content)
        return f"done {number} {took} {usual}"
    if attempt.executes and before is not None and status == 0:
        return f"done 0 {now() - before} 1"
    return f"ended {status}"


def serve(plan: dict[str, Any]) -> int:
    """Take the namespaces and do as told until there is nobody to tell."""
    try:
        at, no_network = _take_namespaces(plan)
    except OSError as error:
        _say(f"failed {error}")
        return 1
    _say("up")
    while line := sys.stdin.buffer.readline(LINE):
        word, _, name = line.decode("ascii", "replace").rstrip("\n").partition(" ")
        if word != "prepare" or name not in ATTEMPTS:
            _say("failed it is told something else than to prepare an attempt")
            return 1
        folder = at / name
        folder.mkdir()
        try:
            with ExitStack() as after:
                said = _go_through(ATTEMPTS[name], Scene(plan, folder, after, no_network))
        except Impossible as why:
            said = f"cannot {why}"
        except OSError as error:
            said = f"cannot it can't be prepared: {error}"
        shutil.rmtree(folder)
        _say(said)
    return 0


if __name__ == "__main__":
    sys.exit(serve(json.loads(sys.stdin.buffer.readline())))
