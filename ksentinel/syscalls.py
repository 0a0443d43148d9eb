# SPDX-License-Identifier: Apache-2.0
"""
System calls: numbers and names per architecture, and tokens that carry their ABI.

A *token* is what models see of one system call: 16 bits, the number and which ABI it was called through. Number 2
is ``open`` for a 64-bit program and ``fork`` for a 32-bit one on the same x86-64 kernel, so the two never share a
token::

    0x0000 + n   the native (64-bit) ABI
    0x0400 + n   compat: i386 on x86-64, 32-bit Arm on arm64
    0x0800 + n   x32
    0x0c00 + n   no call: a guard at the LSM hook n has spoken
    0x0d00 + n   not a call but what one is about: a class of its path or address, right behind it
    0x0e00       not a call either: a program begins
    0x0fff       a number outside its ABI's range

The same values stand in ``lsm_bpf/ksentinel_abi.h``; a test compares them.

Numbers come from the Linux headers (``asm/unistd_64.h``, ``asm/unistd_32.h``, ``asm-generic/unistd.h``), up to 6.18.
"""

from enum import IntEnum
from functools import cache
from importlib.resources import files

INVALID = 0x0FFF
ABI_MASK = 0x0C00
NUMBER_MASK = 0x03FF
CLASS = 0x0D00
EXEC = 0x0E00
CLASSES = (
    "secret", "home", "tmp", "device", "proc", "system", "loopback", "private", "public",
)  # fmt: skip
"""Names of the classes, in the order of their tokens."""
HOOKS = (
    "bprm_check_security", "bprm_creds_from_file", "mmap_file", "file_open", "path_mknod", "path_mkdir", "path_rename",
    "path_link", "path_symlink", "path_truncate", "path_chmod", "path_chown", "path_unlink", "path_rmdir", "socket_connect",
    "socket_bind", "socket_listen", "socket_sendmsg", "unix_stream_connect", "unix_may_send", "ptrace_access_check",
    "kernel_load_data", "kernel_read_file", "bpf", "sb_mount", "move_mount", "sb_umount", "userns_create", "task_kill",
    "task_fix_setuid", "task_fix_setgid", "capset", "task_prctl",
)  # fmt: skip
"""Names of the hooks where guards stand, in the order of their tokens, from 1."""


class Abi(IntEnum):
    """Which table a system call number belongs to."""

    NATIVE = 0x0000
    COMPAT = 0x0400
    X32 = 0x0800
    HOOK = 0x0C00


# Audit's ``arch=`` field: ELF machine | 0x80000000 (64 bit) | 0x40000000 (little endian), see linux/audit.h.
AUDIT_ARCHES = {
    0xC000003E: "x86_64",
    0x40000003: "i386",
    0xC00000B7: "aarch64",
}

# The 32-bit table that a 64-bit kernel of this architecture also serves.
_COMPAT = {"x86_64": "i386"}
_X32_BIT = 0x40000000


@cache
def numbers(arch: str) -> dict[str, int]:
    """Return name -> number for *arch* (``x86_64``, ``i386`` or ``aarch64``)."""
    return {name: number for number, name in names(arch).items()}


@cache
def names(arch: str) -> dict[int, str]:
    """
    Return number -> name for *arch*.

    Raises
    ------
    KeyError
        If there is no table for *arch*.

    Examples
    --------
    >>> names("x86_64")[59], names("i386")[11], names("aarch64")[221]
    ('execve', 'execve', 'execve')
    """
    table = files("ksentinel") / "data" / "syscalls" / f"{arch}.tsv"
    if not table.is_file():
        raise KeyError(arch)
    pairs = (line.split("\t") for line in table.read_text(encoding="ascii").splitlines())
    return {int(number): name for number, name in pairs}


def token(number: int, abi: Abi = Abi.NATIVE) -> int:
    """
    Return the token of a system call *number*.

    Examples
    --------
    >>> hex(token(2)), hex(token(2, Abi.COMPAT)), hex(token(9999))
    ('0x2', '0x402', '0xfff')
    """
    if abi is Abi.X32:
        number &= ~_X32_BIT
    if not 0 <= number < NUMBER_MASK:
        return INVALID
    return int(abi) | number


def token_name(token: int, arch: str = "x86_64") -> str:
    """
    Return a readable name: ``openat``, ``i386:open``, ``x32:read``, ``syscall_999``, ``<tmp>``, ``<exec>``, ``invalid``.

    Examples
    --------
    >>> token_name(257), token_name(0x402), token_name(0x801), token_name(0x3FE), token_name(0xFFF)
    ('openat', 'i386:fork', 'x32:write', 'syscall_1022', 'invalid')
    >>> token_name(CLASS), token_name(EXEC), token_name(0xC07)
    ('<secret>', '<exec>', '<path_rename>')
    """
    if not 0 <= token < INVALID:
        return "invalid"
    if token >= CLASS:
        kind = token - CLASS
        return "<exec>" if token == EXEC else f"<{CLASSES[kind] if kind < len(CLASSES) else f'class_{kind}'}>"
    number = token & NUMBER_MASK
    match Abi(token & ABI_MASK):
        case Abi.NATIVE:
            return names(arch).get(number, f"syscall_{number}")
        case Abi.COMPAT:
            compat = _COMPAT.get(arch)
            if compat is None:
                return f"compat:{number}"
            return f"{compat}:{names(compat).get(number, number)}"
        case Abi.X32:
            return f"x32:{names(arch).get(number, number)}"
        case Abi.HOOK:
            return f"<{HOOKS[number - 1] if 0 < number <= len(HOOKS) else f'hook_{number}'}>"


def token_of(name: str, arch: str = "x86_64") -> int:
    """
    Return the native token of a system call's *name*; the inverse of `token_name`.

    Raises
    ------
    KeyError
        If *arch* has no such call.
    """
    return token(numbers(arch)[name])
