# SPDX-License-Identifier: Apache-2.0
"""The kernel's side and ours say the same: the header's mirror, compared through the compiled object's BTF."""

import ctypes
import re
import struct
from pathlib import Path

import pytest

from ksentinel import syscalls
from ksentinel.bpf import abi, guard_abi
from ksentinel.window import LENGTH, Cause

SOURCES = Path(__file__).parents[2] / "lsm_bpf"
OBJECTS = [path.with_suffix(".o") for path in sorted(SOURCES.glob("*.bpf.c"))]

_STRUCT = 4
# How many bytes follow each kind of type: a fixed part, and a part for each of its members (linux/btf.h).
_FOLLOW = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}


def section(elf: bytes, wanted: bytes) -> bytes:
    """Return a section of a 64-bit little-endian ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + n * size) for n in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if elf[start : elf.index(b"\0", start)] == wanted:
            return elf[offset : offset + length]
    raise KeyError(wanted)


def structs(btf: bytes) -> dict[str, tuple[int, list[tuple[str, int]]]]:
    """Return each struct's size, and its members with their offsets in bytes."""
    _, _, _, header, types, length, strings, _ = struct.unpack_from("<HBBIIIII", btf)
    at, end = header + types, header + types + length

    def text(offset: int) -> str:
        start = header + strings + offset
        return btf[start : btf.index(b"\0", start)].decode()

    found = {}
    while at < end:
        name, info, size = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        fixed, each = _FOLLOW.get(kind, (0, 0))
        if kind == _STRUCT:
            members = [struct.unpack_from("<III", btf, at + n * each) for n in range(count)]
            found[text(name)] = size, [(text(member), (bits & 0xFFFFFF) // 8) for member, _, bits in members]
        at += fixed + count * each
    return found


@pytest.fixture(scope="module")
def btf():
    if not all(path.is_file() for path in OBJECTS):
        pytest.skip("no compiled BPF object: make bpf")
    found = {}
    for path in OBJECTS:
        found |= structs(section(path.read_bytes(), b".BTF"))
    return found


MIRRORS = abi.MIRRORS | guard_abi.MIRRORS


@pytest.fixture(scope="module")
def header():
    """Return the numbers of ksentinel_abi.h by name: its macros and its enumerators."""
    text = re.sub(r"/\*.*?\*/", "", (SOURCES / "ksentinel_abi.h").read_text(), flags=re.DOTALL)
    pairs = re.findall(r"#define\s+(KS_\w+)\s+(\w+)", text) + re.findall(
        r"(KS_\w+)\s*=\s*(\w+)(?![\w ]*<<)", text
    )
    bits = re.findall(r"(KS_\w+)\s*=\s*1 << (\d+)", text)
    return {name: int(value, 0) for name, value in pairs} | {name: 1 << int(bit) for name, bit in bits}


@pytest.mark.parametrize(("name", "mirror"), MIRRORS.items())
def test_layout(btf, name, mirror):
    """Size, field names, their order and their offsets agree."""
    size, members = btf[name]

    assert members == [(field[0], getattr(mirror, field[0]).offset) for field in mirror._fields_]
    assert size == ctypes.sizeof(mirror)


def test_every_struct_has_a_mirror(btf):
    """No struct of the header is forgotten."""
    assert {name for name in btf if name.startswith("ks_")} == set(MIRRORS)


@pytest.mark.parametrize("name", MIRRORS)
def test_no_padding(btf, name):
    """A struct is as large as its fields: nothing unwritten of the kernel's memory travels."""
    fields = MIRRORS[name]._fields_

    assert btf[name][0] == sum(ctypes.sizeof(field[1]) for field in fields)


@pytest.mark.parametrize(
    ("prefix", "mirror", "others"),
    [
        ("KS_KIND_", abi.Kind, {}),
        ("KS_FLAG_", abi.Flag, {}),
        ("KS_WANT_", abi.Wanted, {"NOT": 0}),
        ("KS_PART_", abi.PartKind, {"CUT": abi.PART_CUT}),
        ("KS_CAUSE_", Cause, {}),
        ("KS_CHOICE_", abi.Choice, {}),
        ("KS_OVER_", abi.Over, {}),
        ("KS_CLASS_", abi.Class, {"NONE": 255}),
        ("KS_PROCESS_", abi.ProcessFlag, {}),
        ("KS_FILTER_", abi.FilterKind, {}),
        ("KS_NAME_", abi.NameFlag, {}),
        ("KS_SPELLED_", guard_abi.NameKind, {}),
        ("KS_TRAIT_", guard_abi.Trait, {}),
        ("KS_HOOK_", guard_abi.Hook, {}),
        ("KS_OUTCOME_", guard_abi.Outcome, {}),
        ("KS_MODE_", guard_abi.Mode, {}),
        (
            "KS_TOKEN_",
            syscalls.Abi,
            {"INVALID": syscalls.INVALID, "CLASS": syscalls.CLASS, "EXEC": syscalls.EXEC},
        ),
    ],
)
def test_enumerations(header, prefix, mirror, others):
    """Names and numbers agree (native calls have no name in the collector)."""
    ours = {member.name: int(member) for member in mirror if member.name != "NATIVE"}

    assert {k.removeprefix(prefix): v for k, v in header.items() if k.startswith(prefix)} == ours | others


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KS_ABI_VERSION", abi.VERSION),
        ("KS_WINDOW", abi.WINDOW),
        ("KS_WINDOW", LENGTH),
        ("KS_TOKENS", abi.TOKENS),
        ("KS_TEXT", abi.TEXT),
        ("KS_COMPONENTS", abi.COMPONENTS),
        ("KS_NUMBERS", syscalls.NUMBER_MASK),
        ("KS_CAUSES", len(Cause)),
        ("KS_ENTRIES", abi.ENTRIES),
        ("KS_NEVER", abi.NEVER),
        ("KS_ROWS", abi.ROWS),
        ("KS_ROW_HOST", abi.ROW_HOST),
        ("KS_ROW_LINEAGE", abi.ROW_LINEAGE),
        ("KS_ROW_NONE", abi.ROW_NONE),
        ("KS_ORDER", abi.ORDER),
        ("KS_PREFIX", abi.PREFIX),
        ("KS_SIEVE", guard_abi.SIEVE),
        ("KS_SIEVE_FACTOR", guard_abi.SIEVE_FACTOR),
        ("KS_SIEVE_SHIFT", guard_abi.SIEVE_SHIFT),
        ("KS_BEFORE", abi.BEFORE),
        ("KS_CLASSES", abi.CLASSES),
        ("KS_CHOICES", len(abi.Choice)),
    ],
)
def test_constants(header, name, value):
    """Sizes and limits agree."""
    assert header[name] == value


def test_parts_fit_the_scratch_space(btf, header):
    """Four parts of the greatest length fit; a per-CPU value may have 32 KiB at most (PCPU_MIN_UNIT_SIZE)."""
    size, members = btf["scratch"]
    last_start = 3 * (ctypes.sizeof(abi.Part) + header["KS_TEXT"])

    assert dict(members)["data"] == abi.PARTS
    assert last_start < header["KS_DATA"]
    assert last_start + ctypes.sizeof(abi.Part) + header["KS_TEXT"] <= size - abi.PARTS
    assert size <= 32768


def test_class_names():
    """Each class that the collector tells has a name."""
    assert tuple(member.name.lower() for member in abi.Class) == syscalls.CLASSES


def test_capture_limits():
    """What the collector is asked for names arguments that exist."""
    from ksentinel.sources.ringbuf import CAPTURES

    fields = len(abi.Capture._fields_) - 1

    assert [name for name, n in CAPTURES.items() if len(n) > fields or not all(0 <= a <= 6 for a in n)] == []
