# SPDX-License-Identifier: Apache-2.0
"""
The n-gram model as the kernel has it: one byte an n-gram, found by a keyed hash.

The arithmetic is that of ``docs/kernel-scoring.md``, and `Thread` is its twin in user space: what training calibrates
with, and what tests compare the kernel with, bit by bit.
"""

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log2
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.bpf.pathhash import program_hash
from ksentinel.detectors import Arrays, Floats, array
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import Ints, Profile
from ksentinel.detectors.trie import ALPHABET
from ksentinel.errors import ModelError
from ksentinel.event import Process, ProcessKey
from ksentinel.syscalls import EXEC
from ksentinel.window import Cause, Window

NEVER = 255
MOST = 254
"""The largest surprise: in eighths of a bit."""
TOP = 1 << 24
"""The largest CUSUM."""
ENTRIES = 1 << 16
PROFILES = 64
ROW_HOST, ROW_LINEAGE, ROW_FIRST = 0, 1, 2
DEEPEST = 10
LINEAGE = 3
"""Programs in the longest lineage n-gram."""

_MASK = (1 << 64) - 1
_MIX1, _MIX2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53
_BITS, _HALF = 12, 5
_SCALE = 8
_HEADER = struct.Struct("=QQIIIIIIHHBBBB8sQ")
_FULL = 0.15
"""Share of a row's entries that may be taken: with more, too much that is new would pass for something else."""
_SAMPLE = 2000
_ENOUGH = 20
_OWN = 500

Words = npt.NDArray[np.uint64]
Chain = tuple[str, ...]
"""A program, what it was before, and before that: names as in `ksentinel.event.Process.program`."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """
    One profile, or the lineages.

    Attributes
    ----------
    surprise
        By hash, shape (65536,), eighths of a bit; `NEVER` where training saw nothing.
    taken
        How many of the entries are taken.
    others
        As in ``struct ks_profile``.
    """

    seed0: int
    seed1: int
    order: int
    surprise: npt.NDArray[np.uint8] = field(repr=False)
    drift: int = 0
    mean_limit: int = 0
    cusum_limit: int = 0
    process_limit: int = 0
    carry_fork: int = 128
    carry_exec: int = 128
    decay: int = 5
    never: int = 120
    outside: int = 8
    penalty: tuple[int, ...] = (0, 8, 16, 24, 32, 40, 48, 56)
    mask: int = ENTRIES - 1

    @property
    def taken(self) -> int:
        """How many entries are taken."""
        return int((self.surprise != NEVER).sum())

    def entry(self, low: int, high: int, length: int) -> int:
        """Return the place of the n-gram of *length* that ends a history."""
        if length > _HALF:
            high &= (1 << _BITS * (length - _HALF)) - 1
        else:
            high, low = 0, low & (1 << _BITS * length) - 1
        x = (low ^ self.seed0) * _MIX1 & _MASK
        x ^= x >> 32
        x = x + high + (length << 60) & _MASK
        return ((x ^ self.seed1) * _MIX2 & _MASK) >> 48 & self.mask

    def entries(self, low: Words, high: Words, length: int) -> Ints:
        """Return `entry` of many n-grams of one *length*."""
        x = (low ^ np.uint64(self.seed0)) * np.uint64(_MIX1)
        x ^= x >> np.uint64(32)
        x += high + np.uint64(length << 60)
        x = (x ^ np.uint64(self.seed1)) * np.uint64(_MIX2)
        found: Ints = ((x >> np.uint64(48)) & np.uint64(self.mask)).astype(np.int64)
        return found

    def find(self, low: int, high: int, longest: int) -> tuple[int, int]:
        """Return the entry of the longest n-gram found, *longest* at most, and its length; or `NEVER` and 0."""
        for length in range(min(self.order, longest), 0, -1):
            found = int(self.surprise[self.entry(low, high, length)])
            if found != NEVER:
                return found, length
        return NEVER, 0

    def lineage_entry(self, hashes: Sequence[int]) -> int:
        """Return the place of a lineage, given the path hashes of its programs."""
        y = self.seed0
        for program in hashes:
            y = (y ^ program) * _MIX1 & _MASK
            y ^= y >> 32
        x = y + (len(hashes) << 60) & _MASK
        return ((x ^ self.seed1) * _MIX2 & _MASK) >> 48 & self.mask

    def image(self, epoch: int) -> bytes:
        """Return the bytes of ``struct ks_profile``."""
        header = _HEADER.pack(
            self.seed0, self.seed1, epoch, self.mask, self.drift, self.mean_limit, self.cusum_limit,
            self.process_limit, self.carry_fork, self.carry_exec, self.order, self.decay, self.never, self.outside,
            bytes(self.penalty), 0,
        )  # fmt: skip
        return header + self.surprise.tobytes()


class KernelTable:
    """
    All rows of a model.

    Parameters
    ----------
    rows
        Host-wide, lineage, profiles.
    names
        Which profile has which row; those not named share the host-wide one.
    lineages
        Surprise of each lineage n-gram, by names: their hashes depend on a secret that changes with each run.

    Attributes
    ----------
    evicted
        Profiles of training that found no room.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        names: Mapping[Profile, int],
        lineages: Mapping[Chain, int],
        evicted: int = 0,
    ) -> None:
        if len(rows) < ROW_FIRST or len(rows) > ROW_FIRST + PROFILES:
            raise ModelError(
                f"a kernel table of {len(rows)} rows; it has {ROW_FIRST} to {ROW_FIRST + PROFILES}"
            )
        self.rows = tuple(rows)
        self.names = dict(names)
        self.lineages = dict(lineages)
        self.evicted = evicted

    @classmethod
    def fit(cls, ngram: NGramModel, windows: Sequence[Window], seed: Callable[[int], bytes]) -> Self:
        """
        Compress a fitted n-gram model.

        Parameters
        ----------
        windows
            What the model was fitted on: lineages are taken from here.
        seed
            Gives so many secret bytes.
        """
        levels = _levels(ngram)
        size = np.bincount(
            levels[-1].root, weights=levels[-1].count * levels[-1].saved, minlength=ngram.profiles_.count
        )
        ranked = [int(root) for root in np.argsort(-size, kind="stable") if root]
        chosen = ranked[:PROFILES]

        def empty(order: int) -> Row:
            seeds = [int.from_bytes(seed(8), "little") for _ in range(2)]
            return Row(seeds[0], seeds[1], order, np.full(ENTRIES, NEVER, np.uint8))

        rows = [_filled(empty(ngram.order), levels, 0)]
        lineages = _lineages(windows)
        rows.append(empty(min(LINEAGE, 3) if lineages else 0))
        rows += [_filled(empty(ngram.order), levels, root) for root in chosen]
        place = {root: ROW_FIRST + i for i, root in enumerate(chosen)}
        names = {name: place[root] for name, root in ngram.profiles_.roots.items() if root in place}
        return cls(rows, names, lineages, evicted=len(ranked) - len(chosen))

    def row_of(self, profile: Profile) -> int:
        """Return the row of a profile: its own, its program's, or the host-wide one."""
        for name in (profile, (profile[0], "")):
            if name[0] and name in self.names:
                return self.names[name]
        return ROW_HOST

    def lineage_surprise(self, chain: Chain) -> int | None:
        """Return the surprise of an exec token; None if no lineages are known."""
        row = self.rows[ROW_LINEAGE]
        if not row.order:
            return None
        longest = min(row.order, len(chain))
        for length in range(longest, 0, -1):
            found = self.lineages.get(chain[:length])
            if found is not None:
                return min(found + row.penalty[longest - length], MOST)
        return row.never

    def with_rows(self, change: Callable[[int, Row], Row]) -> "KernelTable":
        """Return a table with changed rows."""
        rows = [change(i, row) for i, row in enumerate(self.rows)]
        return KernelTable(rows, self.names, self.lineages, self.evicted)

    def images(self, epoch: int, path_seed: int) -> list[bytes]:
        """Return the rows as the kernel has them; lineages are hashed with *path_seed*."""
        lineage = self.rows[ROW_LINEAGE]
        surprise = lineage.surprise.copy()
        # The least surprising last: where two share an entry, the usual one has it.
        for chain, value in sorted(self.lineages.items(), key=lambda one: (-one[1], one[0])):
            surprise[lineage.lineage_entry([program_hash(name, path_seed) for name in chain])] = value
        rows = [*self.rows]
        rows[ROW_LINEAGE] = replace(lineage, surprise=surprise)
        return [row.image(epoch) for row in rows]

    def keys(self, path_seed: int) -> Iterator[tuple[int, int, int]]:
        """Yield program, service (0: any) and row of each profile as the kernel knows them, programs by path hash."""
        for (program, service), row in sorted(self.names.items()):
            if hashed := program_hash(program, path_seed):
                yield hashed, program_hash(service, path_seed), row

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything as plain arrays."""
        text = json.dumps(
            {
                "names": [[*name, row] for name, row in sorted(self.names.items())],
                "lineages": [[list(chain), value] for chain, value in sorted(self.lineages.items())],
            }
        )
        images = [row.image(0) for row in self.rows]
        return {
            "headers": np.frombuffer(b"".join(image[: _HEADER.size] for image in images), np.uint8).reshape(
                len(images), _HEADER.size
            ),
            "surprise": np.stack([row.surprise for row in self.rows]),
            "text": np.frombuffer(text.encode(), np.uint8),
            "evicted": np.array([self.evicted], np.uint32),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError if the arrays are no kernel table."""
        headers = array(arrays, "headers", kind="u", ndim=2)
        surprise = array(arrays, "surprise", kind="u", ndim=2)
        evicted = array(arrays, "evicted", kind="u")
        text = array(arrays, "text", kind="u").astype(np.uint8).tobytes()
        if (
            headers.shape[1:] != (_HEADER.size,)
            or surprise.shape != (len(headers), ENTRIES)
            or len(evicted) != 1
            or headers.dtype != np.uint8
            or surprise.dtype != np.uint8
        ):
            raise ModelError("the kernel table has rows of another size")
        rows = [_row(header.tobytes(), numbers) for header, numbers in zip(headers, surprise, strict=True)]
        try:
            told = json.loads(text)
            names = {(str(program), str(service)): int(row) for program, service, row in told["names"]}
            lineages = {tuple(str(name) for name in chain): int(value) for chain, value in told["lineages"]}
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise ModelError(f"the names in the kernel table can't be read: {error}") from None
        if not all(ROW_FIRST <= row < len(rows) for row in names.values()) or not all(
            0 <= value <= MOST and 1 <= len(chain) <= LINEAGE for chain, value in lineages.items()
        ):
            raise ModelError("the names in the kernel table don't fit its rows")
        for i, row in enumerate(rows):
            least = 0 if i == ROW_LINEAGE else 1
            if (
                not least <= row.order <= (LINEAGE if i == ROW_LINEAGE else 8)
                or row.decay > 15
                or row.never > MOST
            ):
                raise ModelError(f"row {i} of the kernel table has impossible numbers")
            if row.mask & (row.mask + 1) or row.mask >= ENTRIES or max(row.carry_fork, row.carry_exec) > 256:
                raise ModelError(f"row {i} of the kernel table has impossible numbers")
        return cls(rows, names, lineages, int(evicted[0]))


@dataclass(slots=True)
class ProcessScore:
    """The one number that the threads of a process share."""

    score: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """What a window's tokens have led to; see docs/kernel-scoring.md."""

    row: int
    begin_mean: int
    begin_cusum: int
    mean: int
    cusum: int
    peak_mean: int
    peak_cusum: int
    sum: int
    scored: int
    process: int

    def over(self, row: Row) -> tuple[str, ...]:
        """Return what is over the limits of *row*."""
        limits = (
            ("mean", self.peak_mean, row.mean_limit),
            ("cusum", self.peak_cusum, row.cusum_limit),
            ("process", self.process, row.process_limit),
        )
        return tuple(name for name, score, limit in limits if self.scored and score > limit)


class Thread:
    """
    The twin of a thread's state in the kernel.

    Parameters
    ----------
    table
        The model.
    row
        Its row.
    """

    def __init__(
        self,
        table: KernelTable,
        row: int,
        *,
        mean: int = 0,
        cusum: int = 0,
        process: ProcessScore | None = None,
    ) -> None:
        self.table = table
        self.row = row
        self.mean = mean
        self.cusum = cusum
        self.process = process or ProcessScore()
        self.low = self.high = self.depth = self.level = 0
        self._known: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self.begin_mean, self.begin_cusum = mean, cusum
        self.peak_mean = self.peak_cusum = self.sum = self.scored = 0

    def feed(self, tokens: Iterable[int]) -> list[int]:
        """Append tokens; return their surprises."""
        row = self.table.rows[self.row]
        mean, cusum, peak_mean, peak_cusum = self.mean, self.cusum, self.peak_mean, self.peak_cusum
        low, high, depth, level, known = self.low, self.high, self.depth, self.level, self._known
        low_mask = (1 << _BITS * _HALF) - 1
        # What lies beyond the longest n-gram of either row makes no difference.
        order = max(row.order, self.table.rows[ROW_HOST].order)
        keep_low = (1 << _BITS * min(order, _HALF)) - 1
        keep_high = (1 << _BITS * max(order - _HALF, 0)) - 1
        found = []
        for token in tokens:
            high = (high << _BITS | low >> _BITS * (_HALF - 1)) & low_mask
            low = (low << _BITS | token) & low_mask
            depth = min(depth + 1, DEEPEST)
            key = (low & keep_low, high & keep_high, min(depth, order), level)
            answer = known.get(key)
            if answer is None:
                answer = known[key] = self._surprise(row, low, high, depth, level)
            surprise, level = answer
            mean += ((surprise << 16) - mean) >> row.decay
            cusum = min(max(cusum + surprise - row.drift, 0), TOP)
            peak_mean, peak_cusum = max(peak_mean, mean), max(peak_cusum, cusum)
            found.append(surprise)
        self.mean, self.cusum, self.peak_mean, self.peak_cusum = mean, cusum, peak_mean, peak_cusum
        self.low, self.high, self.depth, self.level = low, high, depth, level
        self.sum += sum(found)
        self.scored += len(found)
        return found

    def close(self) -> Scored:
        """End the window."""
        row = self.table.rows[self.row]
        self.process.score = min(max(self.process.score + self.sum - self.scored * row.drift, 0), TOP)
        scored = Scored(
            row=self.row, begin_mean=self.begin_mean, begin_cusum=self.begin_cusum, mean=self.mean, cusum=self.cusum,
            peak_mean=self.peak_mean, peak_cusum=self.peak_cusum, sum=self.sum, scored=self.scored,
            process=self.process.score,
        )  # fmt: skip
        self._begin()
        return scored

    def exec(self, row: int, chain: Chain) -> int | None:
        """Become another program, between two windows; return the exec token's surprise, None if it isn't scored."""
        old = self.table.rows[self.row]
        self.mean = self.mean * old.carry_exec >> 8
        self.cusum = self.cusum * old.carry_exec >> 8
        self.process.score = self.process.score * old.carry_exec >> 8
        self.row = row
        self._known = {}
        self._begin()
        self.low, self.high, self.depth, self.level = EXEC, 0, 1, 1
        surprise = self.table.lineage_surprise(chain)
        if surprise is not None:
            new = self.table.rows[row]
            self.mean += ((surprise << 16) - self.mean) >> new.decay
            self.cusum = min(max(self.cusum + surprise - new.drift, 0), TOP)
            self.peak_mean, self.peak_cusum = max(0, self.mean), self.cusum
            self.sum, self.scored = surprise, 1
        return surprise

    def fork(self) -> "Thread":
        """Return the first thread of a child process."""
        share = self.table.rows[self.row].carry_fork
        process = ProcessScore(self.process.score * share >> 8)
        return Thread(
            self.table, self.row, mean=self.mean * share >> 8, cusum=self.cusum * share >> 8, process=process
        )

    def clone(self) -> "Thread":
        """Return a new thread of the same process."""
        return Thread(self.table, self.row, mean=self.mean, cusum=self.cusum, process=self.process)

    def _begin(self) -> None:
        self.begin_mean, self.begin_cusum = self.mean, self.cusum
        self.peak_mean = self.peak_cusum = self.sum = self.scored = 0

    def _surprise(self, row: Row, low: int, high: int, depth: int, level: int) -> tuple[int, int]:
        """Return the surprise of the last token, and the length at which it was found."""
        longest = min(row.order, depth, level + 1)
        found, length = row.find(low, high, longest)
        if found != NEVER:
            return min(found + row.penalty[longest - length], MOST), length
        if self.row == ROW_HOST:
            return row.never, 0
        host = self.table.rows[ROW_HOST]
        longest = min(host.order, depth)
        found, length = host.find(low, high, longest)
        found = host.never if found == NEVER else min(found + host.penalty[longest - length], MOST)
        return min(found + row.outside, MOST), 0


def follow(table: KernelTable, windows: Iterable[Window]) -> list[Scored]:
    """
    Return what the kernel would have made of recorded windows, in their order.

    What a recording doesn't tell (when within its parent's window a process was born) is left out: threads begin at 0.
    """
    threads: dict[tuple[ProcessKey, int], Thread] = {}
    processes: defaultdict[ProcessKey, ProcessScore] = defaultdict(ProcessScore)
    scored = []
    for window in windows:
        key = (window.process.key, window.tid)
        row = table.row_of(window.profile)
        thread = threads.get(key)
        if thread is None:
            thread = threads[key] = Thread(table, row, process=processes[window.process.key])
        tokens: Sequence[int] = window.tokens
        if tokens and tokens[0] == EXEC:
            thread.exec(row, chain_of(window.process))
            tokens = tokens[1:]
        elif row != thread.row:  # its program was found out only later
            thread.row, thread._known = row, {}  # noqa: SLF001 -- its own
        thread.feed(tokens)
        scored.append(thread.close())
        if window.cause is Cause.EXIT:
            del threads[key]
    return scored


def chain_of(process: Process) -> Chain:
    """Return a program and what it was before, newest first."""
    return (process.program, *process.before)[:LINEAGE]


# ---- compressing ----


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """
    All n-grams of one length, shape (size,) each.

    *low* and *high* are their tokens as the kernel packs them; *parent* and *shorter* are the places of the n-grams without
    the last and without the first token, among those one shorter; *own* and *rest* say how likely the last token is: own + rest * base, where base is what the
    whole host's model says.
    """

    root: Ints
    low: Words
    high: Words
    count: Floats
    own: Floats
    rest: Floats
    parent: Ints
    shorter: Ints
    probability: Floats
    saved: Floats


def _levels(ngram: NGramModel) -> list[_Level]:
    """
    Return the n-grams of each length with their interpolated probability.

    As `NGramModel` computes it for a position, but for all n-grams at once: the shorter n-gram that ends with the same
    token is found from its parent's.
    """
    trie = ngram.trie_
    count = ngram.profiles_.count
    zeros = np.zeros(count, np.uint64)
    root, low, high = np.arange(count), zeros, zeros
    shorter = np.arange(count)  # at depth 0 there is nothing shorter
    twin = np.zeros(count, np.int64)
    own, rest = np.zeros(count), np.ones(count)
    levels: list[_Level] = []
    for depth in range(1, trie.order + 1):
        key = trie.keys[depth - 1]
        parent = (key >> np.uint64(16)).astype(np.int64)
        token = (key & np.uint64(0xFFFF)).astype(np.int64)
        if depth == 1:
            suffix = root[parent]
            own_below, rest_below = np.zeros(len(key)), np.ones(len(key))
        else:
            suffix = trie.child(depth - 1, shorter[parent], token)
            own_below, rest_below = levels[-1].own[suffix], levels[-1].rest[suffix]
        host = trie.child(depth, twin[parent], token)
        total, types = trie.totals[depth - 1][parent], trie.types[depth - 1][parent]
        counted = trie.counts[depth - 1].astype(np.float64)
        own = (counted + types * own_below) / (total + types)
        rest = types * rest_below / (total + types)
        new_root = root[parent]
        # The host-wide profile rests on the alphabet, the others on the host-wide profile's n-gram of the same length.
        on_host = own + rest / ALPHABET
        probability = np.where(new_root == 0, on_host, own + rest * on_host[host])
        new_high = (
            (high[parent] << np.uint64(_BITS)) | (low[parent] >> np.uint64(_BITS * (_HALF - 1)))
        ) & np.uint64((1 << _BITS * _HALF) - 1)
        new_low = ((low[parent] << np.uint64(_BITS)) | token.astype(np.uint64)) & np.uint64(
            (1 << _BITS * _HALF) - 1
        )
        saved = np.maximum(np.log2(probability) - np.log2(on_host[host]), 0.0)
        levels.append(
            _Level(new_root, new_low, new_high, counted, own, rest, parent, suffix, probability, saved)
        )
        root, low, high, shorter, twin = new_root, new_low, new_high, suffix, host
    return levels


def _filled(row: Row, levels: Sequence[_Level], root: int) -> Row:
    """
    Return *row* with the n-grams of one root: as many as fit, those that say most first.

    Those say little that are as surprising as one would think from the n-gram without their first token (A. Stolcke,
    "Entropy-based pruning of backoff language models", 1998).
    """
    parts = []
    above: Floats = np.zeros(0)
    for length in range(len(levels), 0, -1):
        level = levels[length - 1]
        mine = level.root == root
        bits = -np.log2(level.probability)
        if length == 1:
            worth = np.full(len(mine), np.inf)
        else:
            shorter = -np.log2(levels[length - 2].probability[level.shorter])
            worth = np.where(mine, level.count * np.abs(bits - (shorter + 1.0)), 0.0)
        # As much as the longer ones that begin with it: without it they would not be looked for.
        if len(above):
            np.maximum.at(worth, levels[length].parent, above)
        above = worth
        quantised = np.clip(np.rint(bits[mine] * _SCALE), 0, MOST).astype(np.uint8)
        entry = row.entries(level.low[mine], level.high[mine], length)
        parts.append((entry, quantised, worth[mine], level.count[mine]))
    entry, quantised, worth, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = np.argsort(worth, kind="stable")[-int(_FULL * ENTRIES) :]
    # Where two share an entry, the later one has it: the one seen more often.
    kept = kept[np.argsort(count[kept], kind="stable")]
    row.surprise[entry[kept]] = quantised[kept]
    return row


def _lineages(windows: Sequence[Window]) -> dict[Chain, int]:
    """Return the surprise of each lineage n-gram, interpolated as the n-grams of calls are (Witten-Bell)."""
    counts: Counter[Chain] = Counter()
    for window in windows:
        if window.tokens and window.tokens[0] == EXEC:
            chain = chain_of(window.process)
            counts.update(chain[:length] for length in range(1, len(chain) + 1))
    # What a program became, by what it had been: the newest comes first in a chain, the context is the rest of it.
    totals: Counter[Chain] = Counter()
    types: Counter[Chain] = Counter()
    for chain, count in counts.items():
        totals[chain[1:]] += count
        types[chain[1:]] += 1
    probability: dict[Chain, float] = {}
    programs = max(types[()], 1) + 1
    for chain in sorted(counts, key=len):
        shorter = probability[chain[:-1]] if len(chain) > 1 else 1 / programs
        context = chain[1:]
        probability[chain] = (counts[chain] + types[context] * shorter) / (totals[context] + types[context])
    return {chain: int(np.clip(round(-np.log2(p) * _SCALE), 0, MOST)) for chain, p in probability.items()}


def _row(header: bytes, surprise: npt.NDArray[np.uint8]) -> Row:
    (seed0, seed1, _, mask, drift, mean_limit, cusum_limit, process_limit, carry_fork, carry_exec, order, decay, never,
     outside, penalty, _) = _HEADER.unpack(header)  # fmt: skip
    return Row(
        seed0, seed1, order, surprise, drift, mean_limit, cusum_limit, process_limit, carry_fork, carry_exec, decay,
        never, outside, tuple(penalty), mask,
    )  # fmt: skip


# ---- calibrating ----


def calibrated(
    table: KernelTable, ngram: NGramModel, windows: Sequence[Window], *, share: float = 0.01
) -> KernelTable:
    """
    Set what giving up context costs, what the CUSUM takes off, and the limits.

    Parameters
    ----------
    windows
        Normal ones that the model was not fitted on, in the order in which they happened.
    share
        How many of them may be flagged, about.
    """
    table = _with_penalties(table, ngram, windows)
    table = _with_drift(table, windows)
    return _with_limits(table, windows, share)


def _with_penalties(table: KernelTable, ngram: NGramModel, windows: Sequence[Window]) -> KernelTable:
    """Compare what is found after giving up context with what the model itself says."""
    step = max(1, len(windows) // _SAMPLE)
    given: defaultdict[int, list[float]] = defaultdict(list)
    outside: list[tuple[float, int, int]] = []
    nowhere: list[float] = []
    host = table.rows[ROW_HOST]
    for window in windows[::step]:
        row = table.rows[table.row_of(window.profile)]
        low = high = level = 0
        for depth, (token, bits) in enumerate(zip(window.tokens, ngram.surprises(window), strict=True), 1):
            high = (high << _BITS | low >> _BITS * (_HALF - 1)) & (1 << _BITS * _HALF) - 1
            low = (low << _BITS | token) & (1 << _BITS * _HALF) - 1
            longest = min(row.order, depth, level + 1)
            found, level = row.find(low, high, longest)
            if found != NEVER:
                given[longest - level].append(bits * _SCALE - found)
                continue
            longest = min(host.order, depth)
            found, length = host.find(low, high, longest)
            if found != NEVER and row is not host:
                outside.append((bits * _SCALE, found, longest - length))
            elif found == NEVER:
                nowhere.append(bits * _SCALE)
    penalty = [0]
    for lost in range(1, 8):
        differences = given[lost]
        step_up = float(np.mean(differences)) if len(differences) >= _ENOUGH else penalty[-1] + _SCALE
        penalty.append(int(np.clip(round(max(step_up, penalty[-1])), 0, 120)))
    differences = [bits - found - penalty[lost] for bits, found, lost in outside]
    beyond = (
        int(np.clip(round(float(np.mean(differences))), 0, 120)) if len(differences) >= _ENOUGH else _SCALE
    )
    never = int(np.clip(round(float(np.mean(nowhere))), 96, MOST)) if len(nowhere) >= _ENOUGH else 120

    by_lineage, new_program = _lineage_penalties(table, windows)

    def change(i: int, row: Row) -> Row:
        if i == ROW_LINEAGE:
            return replace(row, penalty=by_lineage, never=new_program, outside=0)
        return replace(row, penalty=tuple(penalty), outside=beyond, never=never)

    return table.with_rows(change)


def _lineage_penalties(table: KernelTable, windows: Sequence[Window]) -> tuple[tuple[int, ...], int]:
    """
    Return what it costs to know less of a lineage, and of a program not at all: as much as it is seldom among *windows*.

    Where counts say nothing, one in two more than there are is assumed (Laplace's rule of succession).
    """
    known, order = table.lineages, table.rows[ROW_LINEAGE].order
    given_up: Counter[int] = Counter()
    execs = 0
    for window in windows:
        if window.tokens and window.tokens[0] == EXEC:
            chain = chain_of(window.process)[:order]
            length = next((n for n in range(len(chain), 0, -1) if chain[:n] in known), 0)
            given_up[len(chain) - length if length else LINEAGE] += 1
            execs += 1

    def cost(least: int, of: int) -> float:
        among = execs if of == 0 else sum(count for lost, count in given_up.items() if lost >= of)
        seldom = sum(count for lost, count in given_up.items() if lost >= least)
        return -_SCALE * log2((seldom + 1) / (among + 2))

    once = cost(1, 0)
    twice = once + cost(2, 1)
    penalty = tuple(int(np.clip(round(bits), 0, 120)) for bits in (0.0, once, *[twice] * 6))
    return penalty, int(np.clip(round(twice + cost(LINEAGE, 2)), 0, MOST))


def _by_row(scored: Sequence[Scored]) -> dict[int, list[Scored]]:
    found: defaultdict[int, list[Scored]] = defaultdict(list)
    for one in scored:
        if one.scored:
            found[one.row].append(one)
    return found


def _with_drift(table: KernelTable, windows: Sequence[Window]) -> KernelTable:
    """Let the CUSUM take off what is usual and a bit more: Page's reference value, half way to what shall be noticed."""
    rows = _by_row(follow(table, windows))
    everything = [one for some in rows.values() for one in some]

    def drift(some: Sequence[Scored]) -> int:
        means = np.array([one.sum / one.scored for one in some])
        weights = np.array([one.scored for one in some], np.float64)
        usual = float(np.average(means, weights=weights))
        spread = float(np.sqrt(np.average((means - usual) ** 2, weights=weights)))
        return round(usual + max(_SCALE / 2, spread))

    pooled = drift(everything) if everything else 2 * _SCALE
    return table.with_rows(
        lambda i, row: replace(row, drift=drift(rows[i]) if len(rows.get(i, ())) >= _OWN else pooled)
    )


def _with_limits(table: KernelTable, windows: Sequence[Window], share: float) -> KernelTable:
    """Set the limits so that about *share* of normal windows are over one of them."""
    rows = _by_row(follow(table, windows))
    everything = [one for some in rows.values() for one in some]

    def limit(some: Sequence[Scored], score: str) -> int:
        return int(np.quantile([getattr(one, score) for one in some], 1 - share / 2, method="higher"))

    def change(i: int, row: Row) -> Row:
        some = rows[i] if len(rows.get(i, ())) >= _OWN else everything
        if not some:
            return replace(row, mean_limit=4 * _SCALE << 16, cusum_limit=32 * _SCALE, process_limit=TOP - 1)
        return replace(
            row,
            mean_limit=limit(some, "peak_mean"),
            cusum_limit=max(limit(some, "peak_cusum"), 8 * _SCALE),
            process_limit=max(limit(some, "process"), 16 * _SCALE),
        )

    return table.with_rows(change)
