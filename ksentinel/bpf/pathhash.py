# SPDX-License-Identifier: Apache-2.0
"""The path hashes by which the kernel's side knows programs: as in ``docs/kernel-scoring.md``."""

_MASK = (1 << 64) - 1
_MIX1, _MIX2, _FNV = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x100000001B3


def program_hash(program: str, seed: int) -> int:
    """
    Return the path hash of a program (as in `ksentinel.event.Process.program`); 0 if its name says nothing.

    Examples
    --------
    >>> program_hash("", 1), program_hash("/memfd:x (deleted)", 1), program_hash(".../sbin/sshd", 1)
    (0, 0, 0)
    >>> program_hash("/bin/sh", 1) != program_hash("#!/bin/sh", 1)
    True
    """
    if program.startswith("#!"):
        script = seed ^ 1
        for byte in program[2:].encode("utf-8", "surrogateescape"):
            script = (script ^ byte) * _FNV & _MASK
        return _mixed(script) or 1
    if not program.startswith("/") or program.endswith(" (deleted)"):
        return 0
    names = [name for name in program.encode("utf-8", "surrogateescape").split(b"/") if name]
    path = seed
    for name in reversed(names):
        path = (path ^ name_hash(name, seed)) * _MIX2 & _MASK
        path ^= path >> 29
    return (path or 1) if names else 0


def name_hash(name: bytes, seed: int) -> int:
    """Return the hash of one name in a path."""
    value = seed
    for byte in name:
        value = (value ^ byte) * _FNV & _MASK
    return _mixed(value)


def backwards_hash(data: bytes, seed: int) -> int:
    """
    Return the hash of a path, or of its end, taken from the last byte to the first, as guards compare it.

    So the hashes of all ends of a path come up on the way to that of the whole.

    Examples
    --------
    >>> backwards_hash(b"", 0), backwards_hash(b"a", 0x61)
    (0, 0)
    >>> backwards_hash(b"/ab", 1) == backwards_hash(b"/ba", 1)
    False
    """
    value = seed
    for byte in reversed(data):
        value = (value ^ byte) * _FNV & _MASK
    return _mixed(value)


def _mixed(x: int) -> int:
    x ^= x >> 33
    x = x * _MIX1 & _MASK
    return x ^ x >> 33
