# SPDX-License-Identifier: Apache-2.0
"""
The twin: the kernel's decision, step by step, out of the very images that the kernel reads.

Where it differs from the reference the compiler is wrong; where the kernel differs from it, the kernel's side is.
"""

from ipaddress import IPv6Address, ip_address

from ksentinel.bpf import guard_abi
from ksentinel.bpf.abi import PREFIX
from ksentinel.bpf.guard_abi import Action, NameKind, Number, WayFlag, Word
from ksentinel.bpf.pathhash import backwards_hash
from ksentinel.enforce import Mode
from ksentinel.enforce.compiled import ANY_CALL, IO_URING, Compiled, tokens_of
from ksentinel.enforce.operation import NAMED, Operation
from ksentinel.enforce.places import Place
from ksentinel.enforce.reference import Decision, Spoken, strictest

ALL = (1 << 64) - 1

_MODES = {mode.rank: mode for mode in Mode}


class Twin:
    """
    What the kernel would make of a policy.

    Parameters
    ----------
    seed
        Secret behind the hashes.
    """

    def __init__(self, compiled: Compiled, epoch: int = 1, seed: int = 1) -> None:
        self.arch = compiled.arch
        self.seed = seed
        self.policy = compiled.policy(epoch)
        self.names = {(key.hash, key.kind): bits for key, bits in compiled.names(epoch, seed)}
        self.beginnings = {
            (bool(key.cased), bytes(key.path)[: key.bits // 8 - 5]): bits
            for key, bits in compiled.beginnings(epoch)
        }
        self.networks = {(key.bits - 32, bytes(key.address)): bits for key, bits in compiled.networks(epoch)}
        self.places = {
            (key.device, key.inode): (getattr(value, "is"), value.under, value.who)
            for key, value in compiled.places(epoch)
        }
        self.calls = compiled.calls()

    def decide(
        self,
        operation: Operation,
        *,
        host: Mode = Mode.ENFORCE,
        spared: bool = False,
        released: bool = False,
    ) -> Decision | None:
        """Return what becomes of an operation, as `reference.decide` does."""
        return strictest(
            self.spoken(operation),
            None if operation.canary else operation.cgroup,
            host=host,
            spared=spared,
            released=released,
        )

    def spoken(self, operation: Operation) -> list[Spoken]:
        """Return what each way that speaks asks for, in their order."""
        there = self.policy.hooks[operation.hook]
        facts = {word: self.facts(operation, word) for word in Word if there.words >> word & 1}
        call = self._call(operation)
        return [
            Spoken(
                way.rule,
                Action(way.action),
                _MODES.get(way.mode),
                bool(way.flags & WayFlag.TAKEN_BACK),
            )
            for way in self.policy.ways[there.first : there.first + there.count]
            if way.calls & call
            and (operation.anomalous or not way.flags & WayFlag.ANOMALOUS)
            and all(
                self._meets(operation, word, way.need[word], way.forbid[word], *facts[word])
                for word in facts
                if _looks(way, word)
            )
        ]

    def _meets(
        self, operation: Operation, word: Word, need: int, forbid: int, holds: int, known: int
    ) -> bool:
        if self.policy.closed and word in operation.untold:
            return True
        return holds & need == need and known & forbid == forbid and not holds & forbid

    def _call(self, operation: Operation) -> int:
        if operation.io_uring:
            return IO_URING
        tokens = tokens_of(operation.call, self.arch)
        bits = self.calls.get(tokens[0], ANY_CALL) if tokens else ANY_CALL
        return bits | IO_URING if operation.ring else bits

    def facts(self, operation: Operation, word: Word) -> tuple[int, int]:
        """Return the bits of a word that hold, and those that are known."""
        if word in NAMED:
            return self._paths(operation, word)
        match word:
            case Word.TRAITS:
                canary = guard_abi.Trait.CANARY if operation.canary else 0
                uring = guard_abi.Trait.IO_URING if operation.io_uring else 0
                return int(operation.traits) | canary | uring, ALL
            case Word.NUMBERS:
                return self._numbers(operation)
            case Word.WHO:
                if operation.who is None:
                    return 0, 0
                return self._place(operation.who)[2], ALL
            case _:
                return self._places(operation)

    def _paths(self, operation: Operation, word: Word) -> tuple[int, int]:
        holds, known = 0, ALL
        for path in operation.paths(word):
            there, told = self.named(path)
            holds |= there
            known &= told
        return holds, known | holds

    def named(self, path: str | None) -> tuple[int, int]:
        """Return the sets that a path is in, and those of which that is known."""
        if path is None:
            return 0, 0
        raw = path.encode("utf-8", "surrogateescape")
        found = self._compared(raw, NameKind.CASED, cased=True) & self.policy.cased
        if not raw.isascii():
            return found, self.policy.cased
        folded = self._compared(raw.lower(), 0, cased=False) & self.policy.folded
        return found | folded, self.policy.cased | self.policy.folded

    def _compared(self, raw: bytes, kind: int, *, cased: bool) -> int:
        bits = self.names.get((backwards_hash(raw, self.seed), NameKind.EXACT | kind), 0)
        start = len(raw)
        for count in range(guard_abi.SUFFIXES):
            start = raw.rfind(b"/", 0, start)
            if start < 0:
                break
            bits |= self.names.get((backwards_hash(raw[start:], self.seed), count | kind), 0)
        for length in range(min(len(raw), PREFIX), -1, -1):
            if (cased, raw[:length]) in self.beginnings:
                return bits | self.beginnings[cased, raw[:length]]
        return bits

    def _numbers(self, operation: Operation) -> tuple[int, int]:
        holds = known = 0
        there = self.policy.hooks[operation.hook]
        for test in self.policy.tests[there.first_test : there.first_test + there.tests]:
            number = operation.numbers.get(Number(test.number).name.lower())
            if number is None:
                continue
            number &= 0xFFFFFFFF
            known |= 1 << test.bit
            pairs = list(zip(test.first, test.second, strict=True))[: test.count]
            if any(
                number & first == second if test.bits else first <= number <= second
                for first, second in pairs
            ):
                holds |= 1 << test.bit
        if operation.address is not None:
            known |= self.policy.networked
            holds |= self._network(operation.address)
        return holds, known

    def _network(self, text: str) -> int:
        address = ip_address(text)
        raw = (
            address.packed if isinstance(address, IPv6Address) else b"\0" * 10 + b"\xff\xff" + address.packed
        )
        number = int.from_bytes(raw, "big")
        for length in range(128, -1, -1):
            masked = (number >> (128 - length) << (128 - length)).to_bytes(16, "big")
            if (length, masked) in self.networks:
                return self.networks[length, masked]
        return 0

    def _place(self, place: Place) -> tuple[int, int, int]:
        bit = guard_abi.sieve_bit(place.inode, place.device)
        if not self.policy.sieve[bit // 64] >> bit % 64 & 1:
            return 0, 0, 0
        return self.places.get((place.device, place.inode), (0, 0, 0))

    def _places(self, operation: Operation) -> tuple[int, int]:
        holds = 0
        for chain in operation.files:
            for index, place in enumerate(chain):
                same, under, _ = self._place(place)
                holds |= under | (same if index == 0 else 0)
        told = bool(operation.files) and Word.PLACES not in operation.untold
        return holds, ALL if told else holds


def _looks(way: guard_abi.Way, word: Word) -> bool:
    return not any(word in words and not way.flags & flag for flag, words in guard_abi.ASKED.items())
