# SPDX-License-Identifier: Apache-2.0
"""
The ctypes mirror of ``lsm_bpf/ksentinel_abi.h``.

A test compares the two through BTF: names, offsets, sizes.
"""

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

VERSION = 3
WINDOW = 64
TOKENS = 4096
TEXT = 4096
COMPONENTS = 256
ENTRIES = 65536
NEVER = 255
ROWS = 66
ROW_HOST = 0
ROW_LINEAGE = 1
ROW_NONE = 0xFFFFFFFF
ORDER = 8
PREFIX = 64
BEFORE = 2


class Kind(IntEnum):
    """What a record is."""

    WINDOW = 1
    FORK = 2
    EXEC = 3
    EXIT = 4
    CALL = 5
    DENIAL = 6


class Choice(IntEnum):
    """Why a window goes to user space, or doesn't."""

    UNGATED = 0
    FLAGGED = 1
    SAMPLED = 2
    GATED = 3


class Over(IntFlag):
    """What was over its limit."""

    MEAN = 1
    CUSUM = 2
    PROCESS = 4


class Class(IntEnum):
    """What a call is about, as a token."""

    SECRET = 0
    HOME = 1
    TMP = 2
    DEVICE = 3
    PROC = 4
    SYSTEM = 5
    LOOPBACK = 6
    PRIVATE = 7
    PUBLIC = 8


CLASSES = 16


class ProcessFlag(IntFlag):
    """What the kernel side knows of a process."""

    SERVED = 1
    BY_TERMINAL = 2
    LAUNCHER = 4
    TERMINAL = 8
    FAMILY = 16


class FilterKind(IntFlag):
    """What a filter is about."""

    PROGRAM = 1
    UID = 2
    CGROUP = 4
    FAMILY = 8


class NameFlag(IntFlag):
    """What a name makes of the program that has it, or of the directory."""

    LAUNCHER = 1
    TERMINAL = 2
    SYSTEM = 4


class Flag(IntFlag):
    """What must be said about a record."""

    TRUNCATED = 1
    UNREADABLE = 2
    LOSSY = 4
    UNLINKED = 8
    LATE = 16
    SCRIPT = 32


class Wanted(IntEnum):
    """When to read a call's arguments if they aren't in memory: at the thread's next call, or at once or never."""

    PATIENTLY = 1
    AT_ONCE = 2


class PartKind(IntEnum):
    """What the parts behind a record are."""

    PATH1 = 1
    PATH2 = 2
    BASE1 = 3
    BASE2 = 4
    ADDRESS = 5
    ARGV = 6
    EXE = 7
    NAME = 8
    CWD = 9
    WORDS = 10


PART_CUT = 0x8000
"""Added to the kind of a part of names: it ends below the root."""


class Header(ctypes.Structure):
    """struct ks_header: starts every record."""

    _fields_ = (
        ("kind", c_uint16),
        ("flags", c_uint16),
        ("size", c_uint32),
        ("time_ns", c_uint64),
        ("start_ns", c_uint64),
        ("tgid", c_uint32),
        ("tid", c_uint32),
        ("sequence", c_uint32),
        ("cpu", c_uint16),
        ("program", c_uint8),
        ("unused", c_uint8),
    )


class Window(ctypes.Structure):
    """struct ks_window: up to 64 system calls of a thread."""

    _fields_ = (
        ("header", Header),
        ("first_ns", c_uint64),
        ("last_ns", c_uint64),
        ("sequence", c_uint32),
        ("count", c_uint16),
        ("cause", c_uint16),
        ("epoch", c_uint32),
        ("row", c_uint32),
        ("begin_mean", c_uint32),
        ("begin_cusum", c_uint32),
        ("mean", c_uint32),
        ("cusum", c_uint32),
        ("peak_mean", c_uint32),
        ("peak_cusum", c_uint32),
        ("process", c_uint32),
        ("scored", c_uint16),
        ("choice", c_uint8),
        ("over", c_uint8),
        ("tokens", c_uint16 * WINDOW),
    )


class Fork(ctypes.Structure):
    """struct ks_fork; the header is the child's."""

    _fields_ = (
        ("header", Header),
        ("parent_start_ns", c_uint64),
        ("cgroup", c_uint64),
        ("parent_tgid", c_uint32),
        ("session", c_uint32),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("mean", c_uint32),
        ("cusum", c_uint32),
        ("process", c_uint32),
        ("unused", c_uint32),
    )


class Exec(ctypes.Structure):
    """struct ks_exec; parts follow at `PARTS`."""

    _fields_ = (
        ("header", Header),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("auid", c_uint32),
        ("session", c_uint32),
        ("cgroup", c_uint64),
        ("program", c_uint64),
        ("before", c_uint64 * BEFORE),
        ("service", c_uint64),
        ("epoch", c_uint32),
        ("row", c_uint32),
        ("mean", c_uint32),
        ("cusum", c_uint32),
        ("known", c_uint16),
        ("surprise", c_uint16),
        ("process", c_uint32),
    )


class Exit(ctypes.Structure):
    """struct ks_exit."""

    _fields_ = (("header", Header),)


class Call(ctypes.Structure):
    """struct ks_call; parts follow at `PARTS`."""

    _fields_ = (
        ("header", Header),
        ("args", c_uint64 * 6),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("token", c_uint16),
        ("unused", c_uint16),
        ("unused2", c_uint32),
    )


class Part(ctypes.Structure):
    """struct ks_part: kind and length of the bytes that follow."""

    _fields_ = (("kind", c_uint16), ("len", c_uint16))


class Capture(ctypes.Structure):
    """struct ks_capture: which arguments of a call to read; argument numbers from 1, 0 for none."""

    _fields_ = tuple(
        (name, c_uint8)
        for name in ("wanted", "path1", "dir1", "path2", "dir2", "address", "address_len", "words")
    )


class Config(ctypes.Structure):
    """struct ks_config."""

    _fields_ = (
        ("abi_version", c_uint32),
        ("own_tgid", c_uint32),
        ("idle_ns", c_uint64),
        ("path_seed", c_uint64),
        ("stopping", c_uint32),
        ("epoch", c_uint32),
        ("base", c_uint32),
        ("scoring", c_uint32),
        ("gate", c_uint32),
        ("sample", c_uint32),
        ("filters", c_uint32),
        ("calls_a_second", c_uint32),
        ("compat", c_uint32),
        ("unused", c_uint32),
    )


class Profile(ctypes.Structure):
    """struct ks_profile: a row of a model; docs/kernel-scoring.md."""

    _fields_ = (
        ("seed0", c_uint64),
        ("seed1", c_uint64),
        ("epoch", c_uint32),
        ("mask", c_uint32),
        ("drift", c_uint32),
        ("mean_limit", c_uint32),
        ("cusum_limit", c_uint32),
        ("process_limit", c_uint32),
        ("carry_fork", c_uint16),
        ("carry_exec", c_uint16),
        ("order", c_uint8),
        ("decay", c_uint8),
        ("never", c_uint8),
        ("outside", c_uint8),
        ("penalty", c_uint8 * ORDER),
        ("unused", c_uint64),
        ("surprise", c_uint8 * ENTRIES),
    )


class ProfileKey(ctypes.Structure):
    """struct ks_profile_key: who has which row."""

    _fields_ = (("program", c_uint64), ("service", c_uint64), ("epoch", c_uint32), ("unused", c_uint32))


class Told(IntFlag):
    """What is known of a path."""

    PATH = 1
    ASCII = 2


class Named(ctypes.Structure):
    """struct ks_named: which sets of names a process' paths are in."""

    _fields_ = (
        ("program", c_uint64),
        ("parent", c_uint64),
        ("service", c_uint64),
        ("ancestors", c_uint64),
        ("who", c_uint64),
        ("known", c_uint8 * 4),
        ("epoch", c_uint32),
    )


class Process(ctypes.Structure):
    """struct ks_process: what the kernel side knows of a process."""

    _fields_ = (
        ("program", c_uint64),
        ("before", c_uint64 * BEFORE),
        ("service", c_uint64),
        ("known", c_uint32),
        ("flags", c_uint32),
        ("score", c_uint32),
        ("calls", c_uint32),
        ("second_tick", c_uint64),
        ("over_ns", c_uint64),
        ("gone", c_uint32),
        ("row", c_uint32),
        ("denials", c_uint32),
        ("denials_second", c_uint32),
        ("named", Named),
    )


class Filter(ctypes.Structure):
    """struct ks_filter: somebody who is wanted."""

    _fields_ = (("value", c_uint64), ("kind", c_uint32), ("unused", c_uint32))


class Prefix(ctypes.Structure):
    """struct ks_prefix: how paths of one class begin."""

    _fields_ = (("bits", c_uint32), ("path", c_uint8 * PREFIX))


class Counters(ctypes.Structure):
    """struct ks_counters, of one program on one CPU."""

    _fields_ = (
        ("seen", c_uint64),
        ("scored", c_uint64),
        ("unscored", c_uint64),
        ("own", c_uint64),
        ("excluded", c_uint64),
        ("no_storage", c_uint64),
        ("contended", c_uint64),
        ("closed", c_uint64 * 5),
        ("choices", c_uint64 * 4),
        ("classes", c_uint64 * CLASSES),
        ("exec_tokens", c_uint64),
        ("hook_tokens", c_uint64),
        ("windows_sent", c_uint64),
        ("windows_dropped", c_uint64),
        ("windows_shed", c_uint64),
        ("tokens_sent", c_uint64),
        ("tokens_dropped", c_uint64),
        ("tokens_gated", c_uint64),
        ("calls", c_uint64),
        ("calls_sent", c_uint64),
        ("calls_dropped", c_uint64),
        ("calls_limited", c_uint64),
        ("calls_truncated", c_uint64),
        ("calls_unreadable", c_uint64),
        ("calls_late", c_uint64),
        ("lifecycle", c_uint64),
        ("lifecycle_sent", c_uint64),
        ("lifecycle_dropped", c_uint64),
        ("records", c_uint64),
        ("process_missed", c_uint64),
        ("no_inheritance", c_uint64),
    )


PARTS = max(ctypes.sizeof(Call), ctypes.sizeof(Exec))
"""Where the parts of a call or an exec start."""

MIRRORS: dict[str, type[ctypes.Structure]] = {
    "ks_header": Header,
    "ks_window": Window,
    "ks_fork": Fork,
    "ks_exec": Exec,
    "ks_exit": Exit,
    "ks_call": Call,
    "ks_part": Part,
    "ks_capture": Capture,
    "ks_config": Config,
    "ks_profile": Profile,
    "ks_profile_key": ProfileKey,
    "ks_named": Named,
    "ks_process": Process,
    "ks_filter": Filter,
    "ks_prefix": Prefix,
    "ks_counters": Counters,
}
