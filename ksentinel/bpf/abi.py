# SPDX-License-Identifier: Apache-2.0
"""
The ctypes mirror of ``lsm_bpf/ksentinel_abi.h``.

A test compares the two through BTF: names, offsets, sizes.
"""

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag

VERSION = 1
WINDOW = 64
TOKENS = 4096
TEXT = 4096
COMPONENTS = 256


class Kind(IntEnum):
    """What a record is."""

    WINDOW = 1
    FORK = 2
    EXEC = 3
    EXIT = 4
    CALL = 5


class Flag(IntFlag):
    """What must be said about a record."""

    TRUNCATED = 1
    UNREADABLE = 2
    LOSSY = 4
    UNLINKED = 8
    LATE = 16


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
        ("tokens", c_uint16 * WINDOW),
    )


class Fork(ctypes.Structure):
    """struct ks_fork; the header is the child's."""

    _fields_ = (
        ("header", Header),
        ("parent_start_ns", c_uint64),
        ("parent_tgid", c_uint32),
        ("session", c_uint32),
        ("uid", c_uint32),
        ("euid", c_uint32),
    )


class Exec(ctypes.Structure):
    """struct ks_exec; parts follow at `PARTS`."""

    _fields_ = (
        ("header", Header),
        ("uid", c_uint32),
        ("euid", c_uint32),
        ("auid", c_uint32),
        ("session", c_uint32),
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
        ("stopping", c_uint32),
        ("unused", c_uint32),
    )


class Counters(ctypes.Structure):
    """struct ks_counters, of one program on one CPU."""

    _fields_ = (
        ("seen", c_uint64),
        ("recorded", c_uint64),
        ("own", c_uint64),
        ("excluded", c_uint64),
        ("no_storage", c_uint64),
        ("contended", c_uint64),
        ("closed", c_uint64 * 5),
        ("windows_sent", c_uint64),
        ("windows_dropped", c_uint64),
        ("tokens_sent", c_uint64),
        ("tokens_dropped", c_uint64),
        ("calls", c_uint64),
        ("calls_sent", c_uint64),
        ("calls_dropped", c_uint64),
        ("calls_truncated", c_uint64),
        ("calls_unreadable", c_uint64),
        ("calls_late", c_uint64),
        ("lifecycle", c_uint64),
        ("lifecycle_sent", c_uint64),
        ("lifecycle_dropped", c_uint64),
    )


PARTS = ctypes.sizeof(Call)
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
    "ks_counters": Counters,
}
