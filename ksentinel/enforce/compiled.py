# SPDX-License-Identifier: Apache-2.0
"""Compiled policies: what guards enforce, as values to look at and as the images that the kernel reads."""

import ctypes
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from ksentinel import syscalls
from ksentinel.bpf import guard_abi
from ksentinel.bpf.abi import Told
from ksentinel.bpf.guard_abi import Action, Hook, NameKind, Number, WayFlag, Word
from ksentinel.bpf.pathhash import backwards_hash
from ksentinel.enforce import Mode, Posture
from ksentinel.enforce.operation import SIGNED
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import Entry
from ksentinel.errors import Location
from ksentinel.rules.derivation import Derived
from ksentinel.rules.guard import Bits, Names, Networks, Numbers, Reach, reaches
from ksentinel.rules.hooks import HOOKS, Seen

CANARY_RULE = 0xFFFF
"""Stands for a rule where the canary is meant."""

ANY_CALL = 1 << 62
IO_URING = 1 << 63
NUMBERED_CALLS = tuple(sorted({call for hook in HOOKS for call in hook.calls}))
"""
Calls that policies tell apart, each by its bit; all others are one. Always the same: the kernel has one table of them, which stays
when a policy is exchanged.
"""
EVERY_CALL = (1 << 64) - 1

OF_IO_URING = frozenset(
    "openat openat2 unlinkat renameat renameat2 mkdirat symlinkat linkat connect sendto sendmsg bind listen".split()
)
"""Calls that io_uring can do in their place."""

WIDE = frozenset(
    "chown32 lchown32 setuid32 setgid32 setreuid32 setregid32 setresuid32 setresgid32 truncate64".split()
)
"""Calls of 32-bit ABIs that events show by their plain name."""

_COMPAT = {"x86_64": "i386"}
_MASK = 0xFFFFFFFF
_SIGN = 1 << 31
_MAPPED = 96
_NEVER = (0, 1)  # no number under mask 0 is 1


@dataclass(frozen=True, slots=True)
class GuardRule:
    """
    A rule or an entry, as guards know it: by its place in `Compiled.rules`.

    Attributes
    ----------
    mode
        That is named for it; None: the control group's, or the host's.
    pinned
        Its guards stay where ksentinel ends.
    anomalous
        Only for a score over its threshold.
    taken_back
        It is no more than permissive, whatever mode it or a control group has.
    source
        The rule with its guards, or the entry.
    words
        For each of its ways, in the order of `Compiled.ways`, where it stands and what it asks.
    """

    id: str
    title: str
    action: Action
    mode: Mode | None
    pinned: bool
    anomalous: bool
    source: Derived | Entry
    words: tuple[str, ...] = ()
    taken_back: bool = False

    @property
    def at(self) -> Location | str:
        """Where it can be read."""
        return self.source.at if isinstance(self.source, Entry) else self.source.rule.file


@dataclass(frozen=True, slots=True)
class Way:
    """
    One conjunction of tests at one hook, in bits.

    Attributes
    ----------
    need, forbid
        Bits that must hold, and bits that must be known not to; a number for each word.
    rule
        Place in `Compiled.rules`, or `CANARY_RULE`.
    """

    hook: Hook
    rule: int
    need: tuple[int, ...]
    forbid: tuple[int, ...]
    calls: int = EVERY_CALL
    action: Action = Action.DENY
    mode: Mode | None = None
    anomalous: bool = False

    @property
    def words(self) -> int:
        """Which words it asks for: a bit each."""
        return sum(1 << word for word in Word if self.need[word] | self.forbid[word])


@dataclass(frozen=True, slots=True)
class NameSet:
    """Paths: exact ones, beginnings and ends, compared as `ksentinel.rules.guard.Names` does, whatever they are asked of."""

    exact: tuple[str, ...]
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]
    cased: bool

    def has(self, path: str) -> bool:
        """Tell whether a path is in it; one that isn't ASCII is only in cased ones."""
        names = Names("path", self.exact, self.prefixes, self.suffixes, self.cased)
        return names.holds(Seen("", "", {"path": (path,)})) is True


@dataclass(frozen=True, slots=True)
class Missing:
    """A path that an entry names where nothing is."""

    path: str
    rule: str
    at: Location


Asked = Bits | Numbers | Networks | Reach
"""What a bit of the word NUMBERS stands for."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """
    A policy.

    Attributes
    ----------
    ways
        By hook; each hook's canary first, then in the order of the rules.
    hooks
        That any way stands at.
    sets
        Sets of names, in the order of their bits.
    asked
        Tests of numbers and addresses, in the order of their bits.
    places_of
        Bits by place: of sets that it is in, of sets that whatever is below it is in, of sets of executables that it is in.
    where
        Each path that an entry names, and its place.
    """

    rules: tuple[GuardRule, ...]
    ways: tuple[Way, ...]
    hooks: tuple[Hook, ...]
    sets: tuple[NameSet, ...]
    asked: tuple[Asked, ...]
    places_of: Mapping[Place, tuple[int, int, int]]
    where: Mapping[str, Place | None]
    places_missing: tuple[Missing, ...]
    posture: Posture
    arch: str

    def without(self, taken_back: Collection[str], identity: Callable[[GuardRule], str]) -> "Compiled":
        """Return it with these rules, by their identity, no more than permissive."""
        rules = tuple(replace(rule, taken_back=identity(rule) in taken_back) for rule in self.rules)
        return replace(self, rules=rules)

    def policy(self, epoch: int) -> guard_abi.Policy:
        """Return the image of ways and tests."""
        image = guard_abi.Policy(epoch=epoch, closed=int(self.posture is Posture.CLOSED))
        image.cased = sum(1 << bit for bit, one in enumerate(self.sets) if one.cased)
        image.folded = sum(1 << bit for bit, one in enumerate(self.sets) if not one.cased)
        image.kinds = 0
        for _, kind, _ in self._keys():
            image.kinds |= 1 << kind
        for bit, one in enumerate(self.sets):
            if any(True for _ in _beginnings(one)):
                image.kinds |= 1 << (NameKind.PREFIX | _cased(self.sets[bit]))
        for bit, test in enumerate(self.asked):
            if isinstance(test, Bits | Numbers):
                image.tested |= 1 << bit
            else:
                image.networked |= 1 << bit
        for place in self.places_of:
            bit = guard_abi.sieve_bit(place.inode, place.device)
            image.sieve[bit // 64] |= 1 << bit % 64
        for index, way in enumerate(self.ways):
            back = way.rule != CANARY_RULE and self.rules[way.rule].taken_back
            _fill(image.ways[index], way, WayFlag.TAKEN_BACK if back else WayFlag(0))
        test_index = 0
        for hook in self.hooks:
            there = [index for index, way in enumerate(self.ways) if way.hook is hook]
            tests = self.number_tests(hook)
            image.hooks[hook] = guard_abi.HookPolicy(
                first=there[0],
                count=len(there),
                first_test=test_index,
                tests=len(tests),
                words=_any(self.ways[index].words for index in there),
            )
            for comparison in tests:
                image.tests[test_index] = comparison
                test_index += 1
        return image

    def number_tests(self, hook: Hook) -> list[guard_abi.NumberTest]:
        """Return the comparisons of numbers that the ways at a hook ask for."""
        asked = _any(
            way.need[Word.NUMBERS] | way.forbid[Word.NUMBERS] for way in self.ways if way.hook is hook
        )
        return [
            image
            for bit, test in enumerate(self.asked)
            if asked >> bit & 1 and isinstance(test, Bits | Numbers)
            for image in _number_tests(bit, test)
        ]

    def names(self, epoch: int, seed: int) -> Iterator[tuple[guard_abi.NameKey, int]]:
        """Yield the hash of each exact path and each end of one, and the sets that it is in."""
        found: defaultdict[tuple[int, int], int] = defaultdict(int)
        for raw, kind, bits in self._keys():
            found[backwards_hash(raw, seed), kind] |= bits
        for (value, kind), bits in found.items():
            yield guard_abi.NameKey(hash=value, epoch=epoch, kind=kind), bits

    def beginnings(self, epoch: int) -> Iterator[tuple[guard_abi.Beginning, int]]:
        """Yield each beginning of paths, and the sets that paths with it are in, those of shorter ones among them."""
        found: dict[tuple[bool, bytes], int] = defaultdict(int)
        for bit, one in enumerate(self.sets):
            for raw in _beginnings(one):
                found[one.cased, raw] |= 1 << bit
        for cased, raw in sorted(found):
            bits = _any(
                held for (other, shorter), held in found.items() if other is cased and raw.startswith(shorter)
            )
            key = guard_abi.Beginning(bits=8 * (4 + 1 + len(raw)), epoch=epoch, cased=int(cased))
            ctypes.memmove(key.path, raw, len(raw))
            yield key, bits

    def networks(self, epoch: int) -> Iterator[tuple[guard_abi.Network, int]]:
        """Yield each network that makes a difference, with all bits that hold in it, as far as no smaller one is there."""
        tests = [(bit, test) for bit, test in enumerate(self.asked) if isinstance(test, Networks | Reach)]
        nodes: set[IPv4Network | IPv6Network] = set()
        held: dict[int, _Held] = {}
        for bit, test in tests:
            # Both families' roots: an IPv4 address isn't in ::/0, though it is written below it.
            nodes |= {ip_network("0.0.0.0/0"), ip_network("::/0")}
            if isinstance(test, Reach):
                nodes |= {network for network, _ in reaches()}
            else:
                networks = tuple(map(ip_network, test.networks))
                held[bit] = _Held.of(networks)
                nodes |= {network for network in networks if not _is_mapped(network)}
        for node in sorted(nodes, key=lambda one: (one.version, one.network_address.packed, one.prefixlen)):
            address = node.network_address
            packed = b"\0" * 10 + b"\xff\xff" + address.packed if node.version == 4 else address.packed
            length = node.prefixlen + (_MAPPED if node.version == 4 else 0)
            key = guard_abi.Network(bits=32 + length, epoch=epoch)
            ctypes.memmove(key.address, packed, len(packed))
            yield (
                key,
                sum(
                    1 << bit
                    for bit, test in tests
                    if (_reaches(test, node) if isinstance(test, Reach) else held[bit].has(node))
                ),
            )

    def places(self, epoch: int) -> Iterator[tuple[guard_abi.Place, guard_abi.Places]]:
        """Yield each file and directory, and the sets that it, what is below it, and who executes it are in."""
        for place, (same, under, who) in self.places_of.items():
            value = guard_abi.Places(under=under, who=who)
            setattr(value, "is", same)
            yield guard_abi.Place(inode=place.inode, device=place.device, epoch=epoch), value

    def calls(self) -> dict[int, int]:
        """Return the bits of each token that isn't just any other call: the same of all policies of an architecture."""
        return numbered_calls(self.arch)

    def holds(self, path: str) -> tuple[int, Told]:
        """Return the sets that a path is in, and what is known of it."""
        bits = sum(1 << bit for bit, one in enumerate(self.sets) if one.has(path))
        return bits, Told.PATH | Told.ASCII if path.isascii() else Told.PATH

    def _keys(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield the bytes of each exact path and end, how they are compared, and the set's bit."""
        for bit, one in enumerate(self.sets):
            for text in one.exact:
                yield _raw(text), NameKind.EXACT | _cased(one), 1 << bit
            for text in one.suffixes:
                yield _raw(text), (text.count("/") - 1) | _cased(one), 1 << bit


def numbered_calls(arch: str) -> dict[int, int]:
    """Return the bits of each token that isn't just any other call."""
    found = {token: 1 << bit for bit, name in enumerate(NUMBERED_CALLS) for token in tokens_of(name, arch)}
    return found | dict.fromkeys(tokens_of("io_uring_enter", arch), IO_URING)


@cache
def tokens_of(name: str, arch: str) -> tuple[int, ...]:
    """
    Return the tokens that a call has in all ABIs of an architecture; none if it has no such call.

    Examples
    --------
    >>> [hex(token) for token in tokens_of("openat", "x86_64")]
    ['0x101', '0x901', '0x527']
    """
    native = syscalls.numbers(arch).get(name)
    tokens = [] if native is None else [syscalls.token(native)]
    compat = _COMPAT.get(arch)
    if compat is not None:
        tokens += [] if native is None else [syscalls.token(native, syscalls.Abi.X32)]
        tokens += [
            syscalls.token(number, syscalls.Abi.COMPAT)
            for known, number in syscalls.numbers(compat).items()
            if name in {known, known.removesuffix("32").removesuffix("64") if known in WIDE else known}
        ]
    return tuple(tokens)


def u32_ranges(test: Numbers) -> tuple[tuple[int, int], ...]:
    """
    Return the ranges as they are for a number without sign.

    Examples
    --------
    >>> u32_ranges(Numbers("uid", ((-5, 7),))), u32_ranges(Numbers("port", ((-5, 7),)))
    (((4294967291, 4294967295), (0, 7)), ((0, 7),))
    """
    spans = ((-_SIGN, -1, 1 << 32), (0, _SIGN - 1, 0)) if test.subject in SIGNED else ((0, _MASK, 0),)
    return tuple(
        (max(low, first) + shift, min(high, last) + shift)
        for low, high in test.ranges
        for first, last, shift in spans
        if max(low, first) <= min(high, last)
    )


def _number_tests(bit: int, test: Bits | Numbers) -> Iterator[guard_abi.NumberTest]:
    number = Number[test.subject.upper()]
    bits = isinstance(test, Bits)
    pairs: Sequence[tuple[int, int]]
    if isinstance(test, Bits):
        pairs = [(mask, value) for mask, value in test.pairs if not (mask | value) & ~_MASK]
    else:
        pairs = u32_ranges(test)
    if not pairs:
        # It never holds; but that it doesn't is known where the number is.
        bits, pairs = True, (_NEVER,)
    for start in range(0, len(pairs), guard_abi.RANGES):
        some = pairs[start : start + guard_abi.RANGES]
        image = guard_abi.NumberTest(number=int(number), bits=int(bits), bit=bit, count=len(some))
        for index, (first, second) in enumerate(some):
            image.first[index], image.second[index] = first, second
        yield image


def _fill(image: guard_abi.Way, way: Way, flags: WayFlag) -> None:
    for word in Word:
        image.need[word], image.forbid[word] = way.need[word], way.forbid[word]
    image.calls = way.calls
    image.rule = way.rule
    image.mode = 0 if way.mode is None else way.mode.rank
    image.action = int(way.action)
    asked = (flag for flag, words in guard_abi.ASKED.items() if any(way.words >> word & 1 for word in words))
    image.flags = (
        _any(int(flag) for flag in asked) | flags | (WayFlag.ANOMALOUS if way.anomalous else WayFlag(0))
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """Networks, to be asked which lies in one of them: by length, so that many don't take longer than few."""

    by_length: Mapping[tuple[int, int], frozenset[int]]

    @classmethod
    def of(cls, networks: Iterable[IPv4Network | IPv6Network]) -> "_Held":
        found: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for one in networks:
            found[one.version, one.prefixlen].add(int(one.network_address))
        return cls({length: frozenset(starts) for length, starts in found.items()})

    def has(self, node: IPv4Network | IPv6Network) -> bool:
        start, bits = int(node.network_address), node.max_prefixlen
        return any(
            version == node.version
            and length <= node.prefixlen
            and start >> (bits - length) << (bits - length) in starts
            for (version, length), starts in self.by_length.items()
        )


def _reaches(test: Reach, node: IPv4Network | IPv6Network) -> bool:
    around = [(network.prefixlen, kind) for network, kind in reaches() if _within(node, network)]
    return max(around, key=lambda one: one[0])[1] in test.classes


def _within(node: IPv4Network | IPv6Network, network: IPv4Network | IPv6Network) -> bool:
    if isinstance(node, IPv4Network):
        return isinstance(network, IPv4Network) and node.subnet_of(network)
    return isinstance(network, IPv6Network) and node.subnet_of(network)


def _is_mapped(network: IPv4Network | IPv6Network) -> bool:
    """Tell whether it is IPv4 in IPv6: no destination is ever written so."""
    return isinstance(network, IPv6Network) and network.subnet_of(IPv6Network("::ffff:0:0/96"))


def _beginnings(one: NameSet) -> Iterator[bytes]:
    # Behind a path's end there are zeros: one with a zero in it would seem to begin some.
    return (_raw(text) for text in one.prefixes if "\0" not in text)


def _cased(one: NameSet) -> int:
    return NameKind.CASED if one.cased else 0


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _any(numbers: Iterator[int] | Sequence[int]) -> int:
    found = 0
    for number in numbers:
        found |= number
    return found
