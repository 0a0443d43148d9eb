# SPDX-License-Identifier: Apache-2.0
"""Numbers, names and tokens."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.bpf import guard_abi
from ksentinel.syscalls import HOOKS, INVALID, NUMBER_MASK, Abi, names, numbers, token, token_name, token_of
from ksentinel.window import LENGTH, Cause

ARCHES = ["x86_64", "i386", "aarch64"]
HEADER = Path(__file__).parents[1] / "lsm_bpf" / "ksentinel_abi.h"


@pytest.mark.parametrize("arch", ARCHES)
def test_tables(arch):
    """Each name has one number that a token can carry, and leads back."""
    table = names(arch)

    assert len(table) == len(numbers(arch)) > 300
    assert all(0 <= number < NUMBER_MASK for number in table)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in table.values())
    assert table == {number: name for name, number in numbers(arch).items()}


@pytest.mark.parametrize("arch", ["", "vax", "../syscalls/x86_64/.."])
def test_unknown_arch(arch):
    """There is no table for it."""
    with pytest.raises(KeyError):
        names(arch)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_names_and_tokens(arch):
    """A name's token has that name."""
    assert list(numbers(arch)) == [token_name(token_of(name, arch), arch) for name in numbers(arch)]


@given(st.integers(-(1 << 32), 1 << 33), st.sampled_from(Abi))
def test_token(number, abi):
    """A token fits into 12 bits, and carries number and ABI or is invalid."""
    got = token(number, abi)
    inside = number & ~0x40000000 if abi is Abi.X32 else number

    assert 0 <= got <= 0xFFF
    assert got == INVALID or (got & 0xC00, got & 0x3FF) == (abi, inside)
    assert (got == INVALID) == (not 0 <= inside < NUMBER_MASK)


def test_apart():
    """One number in three ABIs is three tokens; x32 sets a bit of its own."""
    assert [
        token_name(token(number, abi))
        for number, abi in [(2, Abi.NATIVE), (2, Abi.COMPAT), (0x40000002, Abi.X32)]
    ] == ["open", "i386:fork", "x32:open"]


@given(st.integers(-(1 << 16), 1 << 17), st.sampled_from(["x86_64", "aarch64"]))
def test_any_name(number, arch):
    """Whatever the number, there is a name; what is no token is invalid."""
    name = token_name(number, arch)

    assert name.isprintable()
    assert (name == "invalid") == (not 0 <= number < INVALID)


def test_header():
    """The kernel's side has the same values."""
    defined = dict(re.findall(r"#define (KS_\w+) (0x[0-9a-f]+|\d+)\b", HEADER.read_text()))
    expected = {
        "KS_WINDOW": LENGTH,
        "KS_TOKEN_COMPAT": Abi.COMPAT,
        "KS_TOKEN_X32": Abi.X32,
        "KS_TOKEN_INVALID": INVALID,
        "KS_NUMBERS": NUMBER_MASK,
        "KS_TOKENS": INVALID + 1,
    }

    assert expected == {name: int(defined[name], 0) for name in expected}


def test_causes():
    """So has it the causes of a window's end."""
    text = HEADER.read_text()
    listed = {name: int(number) for name, number in re.findall(r"KS_CAUSE_(\w+) = (\d+)", text)}

    assert listed == {cause.name: cause.value for cause in Cause}


def test_hooks():
    """A token of a guard has the name of its hook; of another there is a number."""
    named = [token_name(0xC00 + hook) for hook in guard_abi.Hook if hook]

    assert [hook.name.lower() for hook in guard_abi.Hook] == ["none", *HOOKS]
    assert named == [f"<{name}>" for name in HOOKS]
    assert (token_name(0xC00), token_name(0xC00 + 34)) == ("<hook_0>", "<hook_34>")
