# SPDX-License-Identifier: Apache-2.0
"""System calls that Python has no word for, and children to make them in. Imports nothing of ours: a forbidden program runs it, too."""

import ctypes
import os
import signal

AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 0x20, 0x1000, 0x2000, 0x4000, 0x40000
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
NUMBERS = {
    "x86_64": {
        "ptrace": 101, "personality": 135, "init_module": 175, "kexec_load": 246, "process_vm_readv": 310,
        "process_vm_writev": 311, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "capget": 125,
        "capset": 126, "clone": 56, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "pivot_root": 155,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "sendmmsg": 307, "setfsuid": 122,
    },
    "aarch64": {
        "ptrace": 117, "personality": 92, "init_module": 105, "kexec_load": 104, "process_vm_readv": 270,
        "process_vm_writev": 271, "finit_module": 273, "kexec_file_load": 294, "bpf": 280, "execveat": 281, "capget": 90,
        "capset": 91, "clone": 220, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "pivot_root": 41,
        "name_to_handle_at": 264, "open_by_handle_at": 265, "sendmmsg": 269, "setfsuid": 151,
    },
}[os.uname().machine] | {
    # From here on all architectures have the same.
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434, "clone3": 435, "openat2": 437, "pidfd_getfd": 438,
    "mount_setattr": 442,
}  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(result):
    """Return what a call of libc returned; raises OSError if it failed."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def syscall(name, *arguments):
    """Make a system call."""
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name]), *words))


def mount(source, target, kind="", flags=0, data=""):
    """Mount."""
    texts = [os.fsencode(text) for text in (source, target, kind)]
    checked(libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data) or None))


def umount(target, flags=0):
    """Undo it."""
    checked(libc.umount2(os.fsencode(target), flags))


def own_mounts():
    """Let what is mounted from now on be this process' alone."""
    checked(libc.unshare(CLONE_NEWNS))
    mount("none", "/", flags=MS_REC | MS_PRIVATE)


def in_child(act):
    """Act in a child, which may become another program that ends with 0; raises what it met, if it was refused by the kernel."""
    heard, told = os.pipe()  # both ends close at an execution
    pid = os.fork()
    if not pid:
        status = 1
        try:
            signal.alarm(20)
            act()
            status = 0
        except OSError as error:
            os.write(told, str(error.errno).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(told)
    number = os.read(heard, 16)
    os.close(heard)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number:
        raise OSError(int(number), os.strerror(int(number)))
    assert status == 0, f"the child ended with {status}"
