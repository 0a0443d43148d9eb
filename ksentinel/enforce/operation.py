# SPDX-License-Identifier: Apache-2.0
"""Operations as guards see them, whole: what a hook is asked, and everything about it that a policy can ask for."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ksentinel.bpf.guard_abi import Hook, Trait, Word
from ksentinel.enforce import Mode
from ksentinel.enforce.places import Place
from ksentinel.rules.fields import unmapped
from ksentinel.rules.hooks import Seen

SIGNED = frozenset({"request", "signal", "cmd", "uid", "gid"})
"""Numbers that events show as signed ones of 32 bits; the kernel compares them unsigned."""

Names = Mapping[str, tuple[str | None, ...]]


@dataclass(frozen=True, slots=True)
class Operation:
    """
    One question to one hook.

    Attributes
    ----------
    call
        Name of the system call that the thread is in; empty for any that has none.
    io_uring
        The thread works for io_uring, or has entered it.
    ring
        The thread has a ring of its own: the operation may be the ring's, whatever call the thread is in.
    names
        Paths by subject, as in `ksentinel.rules.hooks.Seen`; None where there is none. ``image`` is ``executed`` and
        ``asked`` where it isn't given.
    numbers
        By name; either signed or as the kernel has them.
    address
        The Internet address.
    files
        Of each of the operation's files the place, then those of all directories above, as `places.chain` has them.
    who
        The place of the process' executable; None if it has none.
    untold
        Words that could not be told for want of depth or room.
    anomalous
        The score of the thread or its process is over its threshold.
    cgroup
        The strictest mode that is named for the process' control group or one above it.
    canary
        The thread is the canary, at this hook.
    """

    hook: Hook
    call: str = ""
    io_uring: bool = False
    ring: bool = False
    names: Names = field(default_factory=dict)
    numbers: Mapping[str, int | None] = field(default_factory=dict)
    address: str | None = None
    traits: Trait = Trait(0)  # noqa: RUF009 -- a frozen number
    files: tuple[tuple[Place, ...], ...] = ()
    who: Place | None = None
    untold: frozenset[Word] = frozenset()
    anomalous: bool = False
    cgroup: Mode | None = None
    canary: bool = False

    @classmethod
    def of(cls, seen: Seen) -> "Operation":
        """Return what a hook saw of an event as an operation."""
        return cls(
            Hook[seen.hook.upper()],
            seen.call,
            names=seen.names,
            numbers=seen.numbers,
            address=seen.destination,
            anomalous=seen.anomalous is True,
        )

    @property
    def seen(self) -> Seen:
        """The operation as a rule's guard is asked about it."""
        return Seen(
            self.hook.name.lower(),
            self.call,
            {word.name.lower(): self.paths(word) for word in NAMED},
            {name: signed(name, number) for name, number in self.numbers.items()},
            None if self.address is None else unmapped(self.address),
            self.anomalous,
        )

    def paths(self, word: Word) -> tuple[str | None, ...]:
        """Return the paths that a word is about: none at all for a process without ancestors, (None,) for what isn't seen."""
        name = word.name.lower()
        if word is Word.IMAGE and name not in self.names:
            return self.paths(Word.EXECUTED) + self.paths(Word.ASKED)
        return self.names.get(name, (None,))

    def at(self, hook: Hook, traits: Trait = Trait(0)) -> "Operation":  # noqa: B008 -- a frozen number
        """Return the same at another hook, with further traits."""
        return replace(self, hook=hook, traits=self.traits | traits)


NAMED = (
    Word.PROGRAM,
    Word.PARENT,
    Word.SERVICE,
    Word.ANCESTORS,
    Word.IMAGE,
    Word.EXECUTED,
    Word.ASKED,
    Word.TARGET,
    Word.PATH,
)
"""Words about paths."""


def signed(name: str, number: int | None) -> int | None:
    """Return a number as events show it."""
    if number is None:
        return None
    number &= 0xFFFFFFFF
    return ctypes.c_int32(number).value if name in SIGNED else number
