# SPDX-License-Identifier: Apache-2.0
"""
Enforcement: which operations the kernel refuses by itself, how that is decided, and the proof that it is.

Each kind of statement has the same three words: how much is meant (`Mode`), what happens to what can't be told (`Posture`),
and what remains when ksentinel ends (`OnExit`).
"""

from enum import StrEnum

from ksentinel.bpf import guard_abi


class Mode(StrEnum):
    """How much a guard is meant, from least to most."""

    OFF = "off"
    """It isn't asked."""
    PERMISSIVE = "permissive"
    """It tells what it would refuse."""
    ENFORCE = "enforce"
    """It refuses."""

    @property
    def rank(self) -> int:
        """Its place in that order, from 1: the kernel's number for it."""
        return int(guard_abi.Mode[self.name])


class Posture(StrEnum):
    """What happens where the kernel can't tell a path or a place, because it is too deep or there is no room to work."""

    OPEN = "open"
    """The guard keeps quiet."""
    CLOSED = "closed"
    """It speaks as if what can't be told were against the operation."""


class OnExit(StrEnum):
    """What becomes of the guards when ksentinel ends without having been asked to."""

    OPEN = "open"
    """They end with it."""
    HOLD = "hold"
    """Those that are pinned stay."""
