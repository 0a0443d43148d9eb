# SPDX-License-Identifier: Apache-2.0
"""
What guards and user space say to each other: the other part of the ctypes mirror of ``lsm_bpf/ksentinel_abi.h``.

The header says what the fields mean; a test compares the two through BTF.
"""

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

from ksentinel.bpf.abi import PREFIX, Header

WAYS = 1024
"""Of a policy: each a conjunction of tests at one hook."""
NUMBER_TESTS = 512
"""Of a policy: comparisons of numbers."""
RANGES = 8
"""Of one comparison."""
DEPTH = 256
"""How many directories and mount points above a file are looked at."""
SUFFIXES = 4
"""Names at a path's end that are compared."""
SIEVE = 1024
"""Words of 64 bits: which places there may be."""
SIEVE_FACTOR = 0x9E3779B97F4A7C15
SIEVE_SHIFT = 48


class Hook(IntEnum):
    """Where a guard may stand; part of hook tokens: enum ks_hook."""

    NONE = 0
    BPRM_CHECK_SECURITY = 1
    BPRM_CREDS_FROM_FILE = 2
    MMAP_FILE = 3
    FILE_OPEN = 4
    PATH_MKNOD = 5
    PATH_MKDIR = 6
    PATH_RENAME = 7
    PATH_LINK = 8
    PATH_SYMLINK = 9
    PATH_TRUNCATE = 10
    PATH_CHMOD = 11
    PATH_CHOWN = 12
    PATH_UNLINK = 13
    PATH_RMDIR = 14
    SOCKET_CONNECT = 15
    SOCKET_BIND = 16
    SOCKET_LISTEN = 17
    SOCKET_SENDMSG = 18
    UNIX_STREAM_CONNECT = 19
    UNIX_MAY_SEND = 20
    PTRACE_ACCESS_CHECK = 21
    KERNEL_LOAD_DATA = 22
    KERNEL_READ_FILE = 23
    BPF = 24
    SB_MOUNT = 25
    MOVE_MOUNT = 26
    SB_UMOUNT = 27
    USERNS_CREATE = 28
    TASK_KILL = 29
    TASK_FIX_SETUID = 30
    TASK_FIX_SETGID = 31
    CAPSET = 32
    TASK_PRCTL = 33


HOOKS = 40


class Word(IntEnum):
    """Words of facts: enum ks_word."""

    TRAITS = 0
    NUMBERS = 1
    PROGRAM = 2
    PARENT = 3
    SERVICE = 4
    ANCESTORS = 5
    IMAGE = 6
    EXECUTED = 7
    ASKED = 8
    TARGET = 9
    PATH = 10
    PLACES = 11
    WHO = 12


WORDS = 13


class Trait(IntFlag):
    """Facts whose meaning is fixed: enum ks_trait."""

    CANARY = 0x1
    IO_URING = 0x2
    READ = 0x4
    WRITE = 0x8
    MEMFD = 0x10
    DELETED = 0x20
    OTHERS_WRITE = 0x40
    SETUID = 0x80
    NOT_ROOTS = 0x100
    SCRIPT = 0x200
    INTERPRETER = 0x400
    MAPPED = 0x800
    FORCED = 0x1000
    ATTACH = 0x2000
    MODULE = 0x4000
    FIRMWARE = 0x8000
    KEXEC = 0x10000
    UNIX = 0x20000
    IPV4 = 0x40000
    IPV6 = 0x80000
    TO_ROOT = 0x100000


class Number(IntEnum):
    """Numbers that tests compare: enum ks_number."""

    FLAGS = 0
    MODE = 1
    PORT = 2
    REQUEST = 3
    SIGNAL = 4
    CMD = 5
    UID = 6
    GID = 7
    ANOTHER = 8
    EUID = 9


NUMBERS = 10


class Mode(IntEnum):
    """What is done about what a way says: enum ks_mode."""

    UNNAMED = 0
    OFF = 1
    PERMISSIVE = 2
    ENFORCE = 3


class Action(IntEnum):
    """What a way asks for: enum ks_action."""

    LOG = 1
    DENY = 2
    KILL = 3


class WayFlag(IntFlag):
    """Flags of a way: enum ks_way_flag."""

    ANOMALOUS = 1
    TAKEN_BACK = 2
    OF_NUMBERS = 4
    OF_PROCESS = 8
    OF_WHO = 16
    OF_NAMES = 32
    OF_PLACES = 64


ASKED = {
    WayFlag.OF_NUMBERS: (Word.NUMBERS,),
    WayFlag.OF_PROCESS: (Word.PROGRAM, Word.PARENT, Word.SERVICE, Word.ANCESTORS),
    WayFlag.OF_WHO: (Word.WHO,),
    WayFlag.OF_NAMES: (Word.IMAGE, Word.EXECUTED, Word.ASKED, Word.TARGET, Word.PATH),
    WayFlag.OF_PLACES: (Word.PLACES,),
}
"""Which words a flag is about: without it the kernel doesn't look at them."""


class NameKind(IntEnum):
    """How a path is compared: enum ks_name_kind."""

    SUFFIX1 = 0
    SUFFIX4 = 3
    EXACT = 4
    PREFIX = 5
    CASED = 8


class SparedKind(IntEnum):
    """Who is never denied anything: enum ks_spared_kind."""

    EXECUTABLE = 1
    PROCESS = 2


class SparedFlag(IntFlag):
    """Flags of who is spared: enum ks_spared_flag."""

    CHILDREN = 1
    ROOTS = 2
    EXECUTED = 4


class SentenceKind(IntEnum):
    """A verdict on a process: enum ks_sentence_kind."""

    QUARANTINE = 1
    KILL = 2


class Outcome(IntEnum):
    """How it ended: enum ks_outcome."""

    DENIED = 1
    WOULD_DENY = 2
    LOGGED = 3
    SPARED = 4
    RELEASED = 5


OUTCOMES = 6


class DenialFlag(IntFlag):
    """Flags of a denial: enum ks_denial_flag."""

    ANOMALOUS = 1
    SENTENCE = 2
    CANARY = 4
    UNTOLD = 8
    KILLED = 16
    CUT = 32
    IO_URING = 64


class Way(ctypes.Structure):
    """struct ks_way."""

    _fields_ = (
        ("need", c_uint64 * WORDS),
        ("forbid", c_uint64 * WORDS),
        ("calls", c_uint64),
        ("rule", c_uint32),
        ("mode", c_uint8),
        ("action", c_uint8),
        ("flags", c_uint8),
        ("unused", c_uint8),
    )


class NumberTest(ctypes.Structure):
    """struct ks_number_test."""

    _fields_ = (
        ("number", c_uint8),
        ("bits", c_uint8),
        ("bit", c_uint8),
        ("count", c_uint8),
        ("unused", c_uint32),
        ("first", c_uint32 * RANGES),
        ("second", c_uint32 * RANGES),
    )


class HookPolicy(ctypes.Structure):
    """struct ks_hook_policy."""

    _fields_ = (
        ("first", c_uint16),
        ("count", c_uint16),
        ("first_test", c_uint16),
        ("tests", c_uint16),
        ("words", c_uint64),
    )


class Policy(ctypes.Structure):
    """struct ks_policy."""

    _fields_ = (
        ("epoch", c_uint32),
        ("closed", c_uint32),
        ("cased", c_uint64),
        ("folded", c_uint64),
        ("kinds", c_uint32),
        ("unused", c_uint32),
        ("tested", c_uint64),
        ("networked", c_uint64),
        ("sieve", c_uint64 * SIEVE),
        ("hooks", HookPolicy * HOOKS),
        ("tests", NumberTest * NUMBER_TESTS),
        ("ways", Way * WAYS),
    )


def sieve_bit(inode: int, device: int) -> int:
    """Return which bit of `Policy.sieve` is set for a place."""
    return ((inode ^ device << 32) * SIEVE_FACTOR & (1 << 64) - 1) >> SIEVE_SHIFT


class NameKey(ctypes.Structure):
    """struct ks_name_key."""

    _fields_ = (
        ("hash", c_uint64),
        ("epoch", c_uint32),
        ("kind", c_uint32),
    )


class Beginning(ctypes.Structure):
    """struct ks_beginning."""

    _fields_ = (
        ("bits", c_uint32),
        ("epoch", c_uint32),
        ("cased", c_uint8),
        ("path", c_uint8 * PREFIX),
        ("unused", c_uint8 * 3),
    )


class Network(ctypes.Structure):
    """struct ks_network."""

    _fields_ = (
        ("bits", c_uint32),
        ("epoch", c_uint32),
        ("address", c_uint8 * 16),
    )


class Place(ctypes.Structure):
    """struct ks_place."""

    _fields_ = (
        ("inode", c_uint64),
        ("device", c_uint32),
        ("epoch", c_uint32),
    )


class Places(ctypes.Structure):
    """struct ks_places."""

    _fields_ = (
        ("is", c_uint64),
        ("under", c_uint64),
        ("who", c_uint64),
    )


class FlagsAt(ctypes.Structure):
    """struct ks_flags_at."""

    _fields_ = (
        ("argument", c_uint8),
        ("given", c_uint8),
        ("unused", c_uint16),
        ("value", c_uint32),
    )


class Spared(ctypes.Structure):
    """struct ks_spared."""

    _fields_ = (
        ("b", c_uint64),
        ("a", c_uint32),
        ("kind", c_uint32),
    )


class Sentenced(ctypes.Structure):
    """struct ks_sentenced."""

    _fields_ = (
        ("start_ns", c_uint64),
        ("tgid", c_uint32),
        ("unused", c_uint32),
    )


class Sentence(ctypes.Structure):
    """struct ks_sentence."""

    _fields_ = (
        ("until_ns", c_uint64),
        ("rule", c_uint32),
        ("kind", c_uint8),
        ("mode", c_uint8),
        ("unused", c_uint16),
    )


class Switch(ctypes.Structure):
    """struct ks_switch."""

    _fields_ = (
        ("mode", c_uint32),
        ("released", c_uint32),
        ("sentences", c_uint32),
        ("canary_tid", c_uint32),
        ("canary_hook", c_uint32),
        ("canary_nonce", c_uint32),
        ("heartbeat_ns", c_uint64),
        ("hold_ns", c_uint64),
        ("two_key_ns", c_uint64),
        ("over_ns", c_uint64),
        ("own_tgid", c_uint32),
        ("denials_a_second", c_uint32),
        ("cgroups", c_uint32),
        ("most", c_uint32),
    )


class Denial(ctypes.Structure):
    """struct ks_denial."""

    _fields_ = (
        ("header", Header),
        ("epoch", c_uint32),
        ("rule", c_uint32),
        ("way", c_uint16),
        ("hook", c_uint16),
        ("token", c_uint16),
        ("flags", c_uint16),
        ("outcome", c_uint8),
        ("action", c_uint8),
        ("mode", c_uint8),
        ("kind", c_uint8),
        ("nonce", c_uint32),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("mean", c_uint32),
        ("cusum", c_uint32),
        ("process", c_uint32),
        ("traits", c_uint32),
        ("known", c_uint32),
        ("numbers", c_uint32 * NUMBERS),
        ("address", c_uint8 * 16),
        ("unused2", c_uint32),
        ("cgroup", c_uint64),
        ("addressed", c_uint16),
        ("lengths", c_uint16 * 2),
        ("unused", c_uint16),
    )


class GuardCounters(ctypes.Structure):
    """struct ks_guard_counters."""

    _fields_ = (
        ("outcomes", c_uint64 * OUTCOMES),
        ("records_sent", c_uint64),
        ("records_dropped", c_uint64),
        ("records_limited", c_uint64),
        ("too_deep", c_uint64),
        ("no_room", c_uint64),
        ("sequence", c_uint64),
        ("sentences_lost", c_uint64),
        ("evaluated", c_uint64),
    )


MIRRORS: dict[str, type[ctypes.Structure]] = {
    "ks_way": Way,
    "ks_number_test": NumberTest,
    "ks_hook_policy": HookPolicy,
    "ks_policy": Policy,
    "ks_name_key": NameKey,
    "ks_beginning": Beginning,
    "ks_network": Network,
    "ks_place": Place,
    "ks_places": Places,
    "ks_flags_at": FlagsAt,
    "ks_spared": Spared,
    "ks_sentenced": Sentenced,
    "ks_sentence": Sentence,
    "ks_switch": Switch,
    "ks_denial": Denial,
    "ks_guard_counters": GuardCounters,
}
