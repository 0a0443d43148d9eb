# SPDX-License-Identifier: Apache-2.0
"""
What makes a process more than it was, as a program: it is told names on its standard input, and answers with an errno.

Run as ``python -m vm.guest.powers``, so that two programs can be told apart by their executables. Each power is a generator: what comes
before its ``yield`` is its preparation.
"""

import ctypes
import os
import signal
import struct
import sys
import time

from vm.guest.calls import (
    AT_FDCWD,
    CLONE_NEWUSER,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REMOUNT,
    checked,
    in_child,
    libc,
    mount,
    own_mounts,
    syscall,
    umount,
)

PTRACE_TRACEME, PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SEIZE = 0, 16, 17, 0x4206
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
FSCONFIG_SET_FLAG, FSCONFIG_CREATE, FSCONFIG_RECONFIGURE = 0, 6, 7
MOUNT_ATTR_RDONLY = 1
MNT_DETACH = 2
BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_PROG_GET_NEXT_ID, BPF_MAP_GET_NEXT_ID, BPF_BTF_LOAD = 0, 5, 11, 12, 18
ABSURD = 0x7FFFFFFF
KEXEC_FILE_NO_INITRAMFS = 4
PR_SET_NAME, PR_GET_TIMERSLACK, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 15, 30, 28, 38
SECBIT_NO_SETUID_FIXUP = 4
CAPABILITY_VERSION = 0x20080522
SHORT = "/sys/kernel/uevent_seqnum"
"""A file that is shorter than it says."""
USER = 1000


class Sleeper:
    """A process that waits, and can be reached into."""

    def __init__(self):
        self.memory = ctypes.create_string_buffer(b"here", 8)
        self.pid = os.fork()
        if not self.pid:
            signal.pause()
            os._exit(0)
        self.pidfd = os.pidfd_open(self.pid)

    def vector(self, at):
        """Return a struct iovec of four bytes."""
        return struct.pack("QQ", at, 4)


sleeper = None


def folder():
    path = f"/tmp/{time.monotonic_ns()}"
    os.mkdir(path)  # noqa: PTH102 -- nothing is imported that isn't needed: it takes seconds in there
    return path


def mounted():
    at = folder()
    mount("none", at, "tmpfs")
    return at


# --- taking hold of others ----------------------------------------------------------------------------------------


def hold(request):
    def power():
        yield
        in_child(lambda: syscall("ptrace", request, sleeper.pid, 0, 0))

    return power


def reach(name):
    def power():
        own = ctypes.create_string_buffer(b"mine", 8)
        here = sleeper.vector(ctypes.addressof(own))
        there = sleeper.vector(ctypes.addressof(sleeper.memory))
        yield
        syscall(name, sleeper.pid, here, 1, there, 1, 0)

    return power


def opens(name, flags):
    def power():
        yield
        os.close(os.open(f"/proc/{sleeper.pid}/{name}", flags))

    return power


def take_descriptor():
    yield
    os.close(syscall("pidfd_getfd", sleeper.pidfd, 0, 0))


def traced():
    yield
    in_child(lambda: syscall("ptrace", PTRACE_TRACEME, 0, 0, 0))


# --- code for the kernel ------------------------------------------------------------------------------------------


def module_from_memory():
    yield
    syscall("init_module", None, 4096, b"")


def module_from_file():
    descriptor = os.open(SHORT, os.O_RDONLY)
    yield
    syscall("finit_module", descriptor, b"", 0)


def kernel_from_memory():
    yield
    syscall("kexec_load", 0, ABSURD, None, ABSURD)


def kernel_from_file():
    descriptor = os.open(SHORT, os.O_RDONLY)
    yield
    syscall("kexec_file_load", descriptor, -1, 1, b"", KEXEC_FILE_NO_INITRAMFS)


def bpf(command, *words):
    def power():
        attributes = struct.pack(f"{len(words)}I", *words).ljust(120, b"\0")
        yield
        result = syscall("bpf", command, attributes, 120)
        if result > 2:
            os.close(result)

    return power


# --- mounts, namespaces -------------------------------------------------------------------------------------------


def mount_new():
    at = folder()
    yield
    mount("none", at, "tmpfs")


def mount_again():
    at = folder()
    yield
    mount("/etc", at, flags=MS_BIND)


def remount():
    at = mounted()
    yield
    mount("none", at, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def make_private():
    at = mounted()
    yield
    mount("none", at, flags=MS_PRIVATE)


def move():
    at, to = mounted(), folder()
    yield
    mount(at, to, flags=MS_MOVE)


def move_detached():
    tree = syscall("open_tree", AT_FDCWD, mounted().encode(), OPEN_TREE_CLONE)
    to = folder().encode()
    yield
    syscall("move_mount", tree, b"", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH)


def move_by_path():
    at, to = mounted().encode(), folder().encode()
    yield
    syscall("move_mount", AT_FDCWD, at, AT_FDCWD, to, 0)


def configure():
    to = folder().encode()
    yield
    context = syscall("fsopen", b"tmpfs", 0)
    syscall("fsconfig", context, FSCONFIG_CREATE, None, None, 0)
    made = syscall("fsmount", context, 0, 0)
    syscall("move_mount", made, b"", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH)


def reconfigure():
    at = mounted().encode()
    yield
    context = syscall("fspick", AT_FDCWD, at, 0)
    syscall("fsconfig", context, FSCONFIG_SET_FLAG, b"ro", None, 0)
    syscall("fsconfig", context, FSCONFIG_RECONFIGURE, None, None, 0)


def set_attributes():
    at = mounted().encode()
    yield
    syscall("mount_setattr", AT_FDCWD, at, 0, struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0), 32)


def pivot():
    at = mounted()
    mount(at, at, flags=MS_BIND)
    yield
    in_child(lambda: (os.chdir(at), syscall("pivot_root", b".", b".")))


def unmount(flags):
    def power():
        at = mounted()
        yield
        umount(at, flags)

    return power


def unshare_user():
    yield
    in_child(lambda: checked(libc.unshare(CLONE_NEWUSER)))


def clone_user():
    yield
    pid = syscall("clone", CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
    end(pid)


def clone3_user():
    arguments = struct.pack("8Q", CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    yield
    end(syscall("clone3", arguments, len(arguments)))


def end(pid):
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


# --- who one is ---------------------------------------------------------------------------------------------------


def become_root(become):
    def power():
        yield

        def act():
            os.setresuid(USER, USER, USER)  # capabilities stay, see main
            become()

        in_child(act)

    return power


def root_for_files():
    """Only file accesses are root's: its return value is what was before, refused or not."""
    yield

    def act():
        os.setresuid(USER, USER, USER)
        libc.setfsuid(0)
        if libc.setfsuid(-1) != 0:
            raise PermissionError(1, "still not root's")

    in_child(act)


def set_capabilities():
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall("capget", header, data)
    yield
    syscall("capset", header, data)


def prctl(option, *arguments):
    def power():
        yield
        in_child(
            lambda: checked(
                libc.prctl(option, *(ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]))
            )
        )

    return power


# --- signals ------------------------------------------------------------------------------------------------------


def sends(act):
    def power():
        yield
        act()

    return power


def queue():
    # Signal 0 by sigqueue: SI_QUEUE, ours.
    yield
    syscall("rt_sigqueueinfo", sleeper.pid, 0, struct.pack("iii", 0, 0, -1).ljust(128, b"\0"))


POWERS = {
    "attach": (hold(PTRACE_ATTACH), "ptrace_access_check"),
    "seize": (hold(PTRACE_SEIZE), "ptrace_access_check"),
    "read memory": (reach("process_vm_readv"), "ptrace_access_check"),
    "write memory": (reach("process_vm_writev"), "ptrace_access_check"),
    "open memory": (opens("mem", os.O_RDONLY), "ptrace_access_check"),
    "open memory to write": (opens("mem", os.O_RDWR), "ptrace_access_check"),
    "take a descriptor": (take_descriptor, "ptrace_access_check"),
    "module out of memory": (module_from_memory, "kernel_load_data"),
    "module out of a file": (module_from_file, "kernel_read_file"),
    "kernel out of memory": (kernel_from_memory, "kernel_load_data"),
    "kernel out of a file": (kernel_from_file, "kernel_read_file"),
    "make a map": (bpf(BPF_MAP_CREATE, 2, 4, 4, 1), "bpf"),
    "load a program": (bpf(BPF_PROG_LOAD, 1, 0), "bpf"),
    "list programs": (bpf(BPF_PROG_GET_NEXT_ID), "bpf"),
    "list maps": (bpf(BPF_MAP_GET_NEXT_ID), "bpf"),
    "load types": (bpf(BPF_BTF_LOAD), "bpf"),
    "mount": (mount_new, "sb_mount"),
    "bind": (mount_again, "sb_mount"),
    "remount": (remount, "sb_mount"),
    "make private": (make_private, "sb_mount"),
    "move": (move, "sb_mount"),
    "move a detached one": (move_detached, "move_mount"),
    "move by path": (move_by_path, "move_mount"),
    "configure and mount": (configure, "move_mount"),
    "unmount": (unmount(0), "sb_umount"),
    "unmount lazily": (unmount(MNT_DETACH), "sb_umount"),
    "unshare": (unshare_user, "userns_create"),
    "clone": (clone_user, "userns_create"),
    "clone3": (clone3_user, "userns_create"),
    "setuid": (become_root(lambda: os.setuid(0)), "task_fix_setuid"),
    "setreuid": (become_root(lambda: os.setreuid(-1, 0)), "task_fix_setuid"),
    "setresuid": (become_root(lambda: os.setresuid(-1, 0, -1)), "task_fix_setuid"),
    "real user": (become_root(lambda: os.setresuid(0, -1, -1)), "task_fix_setuid"),
    "setfsuid": (root_for_files, "task_fix_setuid"),
    "capset": (set_capabilities, "capset"),
    "ask by prctl": (prctl(PR_GET_TIMERSLACK), "task_prctl"),
    "set a name": (prctl(PR_SET_NAME, ctypes.addressof(ctypes.create_string_buffer(b"name"))), "task_prctl"),
    "no new privileges": (prctl(PR_SET_NO_NEW_PRIVS, 1), "task_prctl"),
    "kill": (sends(lambda: os.kill(sleeper.pid, 0)), "task_kill"),
    "tkill": (sends(lambda: syscall("tkill", sleeper.pid, signal.SIGCONT)), "task_kill"),
    "tgkill": (sends(lambda: syscall("tgkill", sleeper.pid, sleeper.pid, signal.SIGCONT)), "task_kill"),
    "by a pidfd": (sends(lambda: signal.pidfd_send_signal(sleeper.pidfd, signal.SIGCONT)), "task_kill"),
    "queue": (queue, "task_kill"),
}
"""By name: what it does, and the hook that it comes by."""

UNASKED = {
    "let oneself be traced": traced,
    "reconfigure": reconfigure,
    "set attributes": set_attributes,
    "pivot": pivot,
    "become root's group": become_root(lambda: os.setresgid(0, 0, 0)),
}
"""What comes by none of the guards."""


def main():
    """Do as told until there is nobody to tell."""
    global sleeper  # noqa: PLW0603
    own_mounts()
    mount("none", "/tmp", "tmpfs")
    # Who stops to be root keeps capabilities: there are programs that can come back.
    checked(libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    sleeper = Sleeper()
    print("up", flush=True)  # noqa: T201
    while line := sys.stdin.readline():
        name = line.strip()
        power = POWERS[name][0] if name in POWERS else UNASKED[name]
        steps = power()
        next(steps)
        print("ready", flush=True)  # noqa: T201
        sys.stdin.readline()
        number = 0
        try:
            next(steps, None)
        except OSError as error:
            number = error.errno
        print(number, flush=True)  # noqa: T201
    os.kill(sleeper.pid, signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
