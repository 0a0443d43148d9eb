# SPDX-License-Identifier: Apache-2.0
"""
Guards: rules, or parts of them, in a form that an LSM hook could decide in a few look-ups.

A guard is data: some *ways*, each of them tests of which all must hold. What the hook doesn't see makes no test hold, plain
or negated, so a guard may speak more seldom than its rule, never more often. Nothing here enforces anything.
"""

from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import ClassVar

from ksentinel.event import Address
from ksentinel.rules.hooks import Seen

O_CREAT, O_TRUNC, O_ACCMODE = 0o100, 0o1000, 3


@dataclass(frozen=True, slots=True)
class Names:
    """
    Whether one of a subject's paths is one of *exact*, begins with one of *prefixes*, or ends with one of *suffixes*.

    Attributes
    ----------
    suffixes
        Whole names, a slash before each: ``/etc/ld.so.preload``.
    cased
        Bytes as they are. Otherwise ASCII letters count without regard to case, and a path with other letters is not decided:
        what Unicode makes of those takes tables.
    """

    subject: str
    exact: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    cased: bool = False

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        answers = [self._one(text) for text in at.names.get(self.subject, (None,))]
        return True if True in answers else None if None in answers else False

    def _one(self, text: str | None) -> bool | None:
        if text is None or not (self.cased or text.isascii()):
            return None
        text = text if self.cased else text.lower()
        return text in self.exact or text.startswith(self.prefixes) or text.endswith(self.suffixes)

    def words(self) -> str:
        """Return it as a person reads it."""
        told = [
            f"{verb} {' or '.join(texts)}"
            for verb, texts in (
                ("is", self.exact),
                ("begins with", self.prefixes),
                ("ends with", self.suffixes),
            )
            if texts
        ]
        return f"{self.subject} {', or '.join(told)}{' (cased)' if self.cased else ''}"


@dataclass(frozen=True, slots=True)
class Known:
    """Whether a subject has a path at all: where the hook sees it, it has."""

    subject: str

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        return True if any(text is not None for text in at.names.get(self.subject, ())) else None

    def words(self) -> str:
        """Return it as a person reads it."""
        return f"{self.subject} is known"


@dataclass(frozen=True, slots=True)
class Bits:
    """Whether a number has, under one of the masks, its value: pairs of both."""

    subject: str
    pairs: tuple[tuple[int, int], ...]

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        number = at.numbers.get(self.subject)
        return None if number is None else any(number & mask == value for mask, value in self.pairs)

    def words(self) -> str:
        """Return it as a person reads it."""
        if self == WRITING:
            return "opened for writing"
        return " or ".join(f"{self.subject} & {mask:#o} is {value:#o}" for mask, value in self.pairs)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Whether a number lies in one of the ranges: pairs of the lowest and the highest."""

    subject: str
    ranges: tuple[tuple[int, int], ...]

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        number = at.numbers.get(self.subject)
        return None if number is None else any(low <= number <= high for low, high in self.ranges)

    def words(self) -> str:
        """Return it as a person reads it."""
        if self.subject == "another":
            whose = {0: "its own", 1: "another"}
            return f"about {' or '.join(whose[low] for low, _ in self.ranges)} process"
        told = (str(low) if low == high else f"{low} to {high}" for low, high in self.ranges)
        return f"{self.subject} is {' or '.join(told)}"


@dataclass(frozen=True, slots=True)
class Networks:
    """Whether the destination is in one of the networks, in canonical form; IPv4 in IPv6 is IPv4."""

    networks: tuple[str, ...]
    subject: ClassVar[str] = "destination"

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        if at.destination is None:
            return None
        address = ip_address(at.destination)
        return any(address in ip_network(network) for network in self.networks)

    def words(self) -> str:
        """Return it as a person reads it."""
        if self == INTERNET:
            return "destination is an Internet address"
        return f"destination is in {' or '.join(self.networks)}"


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the destination is of one of these classes, by the longest prefix in `reaches`."""

    classes: tuple[str, ...]
    subject: ClassVar[str] = "destination"

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook doesn't see enough to tell."""
        if at.destination is None:
            return None
        address = ip_address(at.destination)
        within = [(network.prefixlen, kind) for network, kind in reaches() if address in network]
        return max(within, key=lambda one: one[0])[1] in self.classes

    def words(self) -> str:
        """Return it as a person reads it."""
        return f"destination is {' or '.join(self.classes)}"


Test = Names | Known | Bits | Numbers | Networks | Reach

WRITING = Bits(
    "flags", ((O_ACCMODE, 1), (O_ACCMODE, 2), (O_ACCMODE, 3), (O_CREAT, O_CREAT), (O_TRUNC, O_TRUNC))
)
"""What makes an open an event of a file, as `fields.writes` has it."""
INTERNET = Networks(("0.0.0.0/0", "::/0"))

_SPECIAL = """
    0.0.0.0/0 0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.9/32
    192.0.0.10/32 192.0.0.170/31 192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
    224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
    ::/0 ::/128 ::1/128 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:1::1/128 2001:1::2/128 2001:2::/48 2001:3::/32
    2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10
""".split()


@cache
def reaches() -> tuple[tuple[IPv4Network | IPv6Network, str], ...]:
    """
    Return the networks that differ in reach from what is around them, as the field ``reach`` has it, for a prefix trie.

    The list is IANA's registries of special addresses; what each is called is asked of the very code that rules ask, as it
    differs between versions of Python.
    """
    table = []
    for text in _SPECIAL:
        network = ip_network(text)
        # Of a whole family the first address is a special one, the last but one of these is not.
        first = {"0.0.0.0/0": "1.0.0.0", "::/0": "2600::"}.get(text, str(network.network_address))
        table.append((network, Address("inet", first).reach))
    return tuple(table)


@dataclass(frozen=True, slots=True)
class Literal:
    """A test, or its opposite. What the hook can't tell makes neither hold."""

    test: Test
    negated: bool = False

    def holds(self, at: Seen) -> bool | None:
        """Return whether it holds; None if the hook can't tell."""
        answer = self.test.holds(at)
        return answer if answer is None else answer is not self.negated

    def words(self) -> str:
        """Return it as a person reads it."""
        return f"not ({self.test.words()})" if self.negated else self.test.words()


Way = tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """
    What one hook could decide of a rule.

    Attributes
    ----------
    calls
        Only in these system calls; what the kernel does otherwise is none of the rule's business.
    ways
        It speaks if all tests of one way hold.
    anomalous
        And only if the lineage's score is over its calibrated threshold.
    whole
        Nothing of the condition is left to user space in these calls: where it is sure that no way holds, the rule doesn't match.
    """

    hook: str
    calls: tuple[str, ...]
    ways: tuple[Way, ...]
    anomalous: bool = False
    whole: bool = True

    def holds(self, at: Seen) -> bool | None:
        """
        Return whether the rule's condition holds; None if that isn't decided here.

        Three-valued: a way fails by one test that fails, and holds only if all do.
        """
        if at.hook != self.hook or at.call not in self.calls:
            return None
        answers = []
        for way in self.ways:
            parts = [literal.holds(at) for literal in way]
            answers.append(False if False in parts else None if None in parts else True)
        if True in answers:
            return True
        return False if self.whole and None not in answers else None

    def speaks(self, at: Seen) -> bool:
        """Return whether the guard would speak against the operation."""
        return self.holds(at) is True and (not self.anomalous or at.anomalous is True)

    @property
    def narrower(self) -> tuple[str, ...]:
        """When it keeps silent although the condition may hold, in words."""
        literals = [literal for way in self.ways for literal in way]
        subjects = {literal.test.subject for literal in literals}
        told = []
        if any(isinstance(literal.test, Names) and not literal.test.cased for literal in literals):
            told.append("paths with bytes outside ASCII stay in user space")
        if subjects & {"asked", "image"}:
            told.append("what is asked for counts as asked if absolute, without '.', '..' and double slashes")
        if self.hook in {"path_link", "path_symlink", "sb_mount"} and "path" in subjects:
            told.append("of two paths only the second is seen")
        if "openat2" in self.calls and self.hook == "path_mknod" and "flags" in subjects:
            told.append("not in openat2, whose flags are only known when the file is there")
        if self.anomalous:
            told.append("only with a score over its threshold")
        return tuple(told)
