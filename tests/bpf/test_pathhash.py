# SPDX-License-Identifier: Apache-2.0
"""The hashes by which the kernel's side knows programs, against the documentation's words and by hand."""

import pytest
from detectors.slow_reference import bytes_hash
from detectors.slow_reference import program_hash as documented
from detectors.slow_reference import script_hash as documented_script
from hypothesis import assume, given
from hypothesis import strategies as st

from ksentinel.bpf.pathhash import backwards_hash, name_hash, program_hash

SEED = 0x61
seeds = st.integers(0, (1 << 64) - 1)
names = st.binary(min_size=1, max_size=20).map(lambda b: b.replace(b"\0", b"x").replace(b"/", b"y"))


def text(raw):
    """Return bytes as paths are kept here."""
    return raw.decode(errors="surrogateescape")


@pytest.mark.parametrize(
    "program",
    [
        "",
        "/",
        "//",
        "bin/sh",
        "./sh",
        ".../sbin/sshd",
        "/usr/bin/x (deleted)",
        "/memfd:x (deleted)",
        "socket:[1]",
    ],
)
def test_nameless(program):
    """What has no path from the root has no hash."""
    assert program_hash(program, SEED) == 0


def test_by_hand():
    """The name's hash is 0 where its only byte is the seed: what is left is one multiplication."""
    p = 0x61 * 0xC4CEB9FE1A85EC53 % 2**64

    assert name_hash(b"a", SEED) == 0
    assert program_hash("/a", SEED) == p ^ p >> 29


@given(st.lists(names, min_size=1, max_size=6), seeds)
def test_programs(path, seed):
    """A program's hash is the documentation's, whatever bytes are in its path; more slashes than one make no difference."""
    raw = b"/" + b"/".join(path)
    assume(not raw.endswith(b" (deleted)"))

    assert program_hash(text(raw), seed) == documented(raw, seed)
    assert program_hash(text(b"/" + b"//".join(path) + b"/"), seed) == documented(raw, seed)


@given(st.binary(max_size=30), seeds)
def test_scripts(raw, seed):
    """So is a script's, byte for byte."""
    raw = b"/" + raw.replace(b"\0", b"x")

    assert program_hash(f"#!{text(raw)}", seed) == documented_script(raw, seed)


@given(names, seeds)
def test_names(name, seed):
    """So is a single name's."""
    assert name_hash(name, seed) == bytes_hash(name, seed)


def test_never_none():
    """The hash 0 is nobody's."""
    assert program_hash("/\0", 0) == 1
    assert program_hash("#!/", 0x2F ^ 1) == 1


def test_different():
    """Order of names, seed and being a script: each makes another hash."""
    found = [
        program_hash(program, seed)
        for program in ("/a/b", "/b/a", "/ab", "/a", "#!/a/b", "#!/a//b", "#!/a")
        for seed in (1, 2, 3)
    ]

    assert len(set(found)) == len(found)


@given(st.binary(max_size=30), seeds)
def test_backwards(raw, seed):
    """A path's hash for guards is that of its bytes the other way round; on the way to it are those of all its ends."""
    value, ends = seed, []
    for byte in raw[::-1]:
        ends.append(value)
        value = (value ^ byte) * 0x100000001B3 % 2**64

    assert backwards_hash(raw, seed) == bytes_hash(raw[::-1], seed)
    for count, end in enumerate(ends):
        mixed = (end ^ end >> 33) * 0xFF51AFD7ED558CCD % 2**64
        assert backwards_hash(raw[len(raw) - count :], seed) == mixed ^ mixed >> 33
