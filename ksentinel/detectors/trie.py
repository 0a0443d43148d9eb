# SPDX-License-Identifier: Apache-2.0
"""
Trie: which n-grams training showed, and how often. Exact, in sorted arrays, thousands of look-ups at a time.

A node at depth k is an n-gram of length k; its key is its parent's number and its last token, ``parent << 16 | token``,
and its own number is its place among the sorted keys of its depth. Depth 0 are the roots, one for each profile.

Real system call streams repeat themselves, so a batch is first brought down to its distinct rows (profile and the last
n tokens): `rows`. In it, the n-gram of length k that ends at a position is the one of length k - 1 that ends at the
position *before*, and one token more: so each length costs one look-up, whatever n is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, Floats, array
from ksentinel.detectors.profiles import Ints
from ksentinel.errors import ModelError
from ksentinel.syscalls import INVALID
from ksentinel.window import Window

ALPHABET = INVALID + 1
"""Tokens there can be, seen or not: 12 of a token's 16 bits are in use (see `syscalls`)."""

_TOKEN_BITS = 16
_ABSENT = -1


@dataclass(frozen=True, slots=True)
class Tokens:
    """
    The tokens of a batch of windows, one after the other.

    Attributes
    ----------
    token, window, position
        Shape (total,): the token, which window it stands in, and where in it.
    lengths
        Shape (len(windows),).
    """

    token: Ints
    window: Ints
    position: Ints
    lengths: Ints


def tokens_of(windows: Sequence[Window]) -> Tokens:
    """
    Return the tokens of *windows*.

    Raises
    ------
    ModelError
        If one is no token.
    """
    lengths = np.fromiter((len(w.tokens) for w in windows), np.int64, len(windows))
    total = int(lengths.sum())
    token = np.fromiter(chain.from_iterable(w.tokens for w in windows), np.int64, total)
    if total and (int(token.min()) < 0 or int(token.max()) >= ALPHABET):
        wrong = int(token[(token < 0) | (token >= ALPHABET)][0])
        raise ModelError(f"{wrong:#x} is no system call token: they end at {INVALID:#x}")
    window = np.repeat(np.arange(len(windows)), lengths)
    position = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Tokens(token, window, position, lengths)


@dataclass(frozen=True, slots=True)
class Rows:
    """
    The distinct rows of a batch: a group, and up to n tokens.

    Attributes
    ----------
    token
        Shape (d,): the last token.
    depth
        Shape (d,): how many tokens there are before it, n - 1 at most.
    before
        Shape (d,): the row whose tokens end one earlier; only where ``depth > 0``.
    example
        Shape (d,): a position in the batch where it occurs.
    row
        Shape (total,): the row of each position.
    count
        Shape (d,): how often it occurs.
    """

    token: Ints
    depth: Ints
    before: Ints
    example: Ints
    row: Ints
    count: Ints


def rows(tokens: Tokens, group: Ints, order: int) -> Rows:
    """
    Return the distinct n-grams of a batch.

    Parameters
    ----------
    group
        Shape (len(windows),), not negative: rows of different groups are different.
    order
        Length of the n-grams, n; shorter at a window's beginning.
    """
    # Packed into 64 bits in mixed radix: exact, no hash. Where that would overflow, what there is so far is numbered
    # anew by its rank.
    present = np.zeros(ALPHABET, bool)
    present[tokens.token] = True
    code = np.cumsum(present)[tokens.token]
    radix = int(present.sum()) + 1
    packed = group[tokens.window]
    span = int(packed.max(initial=0)) + 1
    for back in range(order - 1, -1, -1):
        if span * radix >= 1 << 63:
            packed = _ranks(packed)[0]
            span = int(packed.max(initial=0)) + 1
        earlier = code if back == 0 else np.concatenate([np.zeros(back, np.int64), code[:-back]])[: len(code)]
        packed = packed * radix + (earlier if back == 0 else np.where(tokens.position >= back, earlier, 0))
        span *= radix
    row, example, count = _ranks(packed)
    before = row[np.maximum(example - 1, 0)]
    depth = np.minimum(tokens.position[example], order - 1)
    return Rows(tokens.token[example], depth, before, example, row, count)


def _ranks(values: Ints) -> tuple[Ints, Ints, Ints]:
    """Return for each value its rank among the distinct ones; for each of these a place and a count."""
    order = np.argsort(values)
    ordered = values[order]
    new = np.ones(len(values), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.cumsum(new) - 1
    return ranks, order[starts], np.diff(starts, append=len(values))


class Trie:
    """
    N-grams up to a length, with their counts, under one root for each profile.

    Parameters
    ----------
    roots
        How many.
    keys
        For each depth from 1: strictly increasing ``parent << 16 | token``.
    counts
        For each depth from 1: how often that n-gram was seen; positive.

    Attributes
    ----------
    totals
        For each depth from 0: how often something followed that n-gram; a last 0 for an absent one.
    types
        For each depth from 0: how many different tokens did; a last 0.
    """

    def __init__(
        self, roots: int, keys: Sequence[npt.NDArray[np.uint64]], counts: Sequence[npt.NDArray[np.uint32]]
    ) -> None:
        self.roots = roots
        self.keys = tuple(keys)
        self.counts = tuple(counts)
        sizes = [roots, *(len(k) for k in self.keys)]
        self.totals: list[Floats] = []
        self.types: list[Floats] = []
        for size, key, count in zip(sizes[:-1], self.keys, self.counts, strict=True):
            parent = (key >> np.uint64(_TOKEN_BITS)).astype(np.int64)
            # One more at the end, so that an absent n-gram (-1) finds a count of zero.
            self.totals.append(np.bincount(parent, weights=count, minlength=size + 1).astype(np.float64))
            self.types.append(np.bincount(parent, minlength=size + 1).astype(np.float64))
        self._counts = [np.append(c.astype(np.float64), 0.0) for c in self.counts]

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.keys)

    @property
    def size(self) -> int:
        """How many distinct n-grams there are, of all lengths and profiles."""
        return sum(len(k) for k in self.keys)

    @classmethod
    def grow(cls, found: Rows, under: Ints, roots: int, order: int) -> Self:
        """
        Count n-grams.

        Parameters
        ----------
        found
            Distinct rows of the training windows.
        under
            Shape (r, d): the roots that each row is counted under; -1 for none.
        """
        keys: list[npt.NDArray[np.uint64]] = []
        counts: list[npt.NDArray[np.uint32]] = []
        nodes = under
        for depth in range(1, order + 1):
            parents = nodes if depth == 1 else nodes[:, found.before]
            known = (parents != _ABSENT) & (found.depth >= depth - 1)
            which, row = np.nonzero(known)
            packed = (parents[which, row] << _TOKEN_BITS) | found.token[row]
            place, example, _ = _ranks(packed)
            keys.append(packed[example].astype(np.uint64))
            sums = np.bincount(place, weights=found.count[row], minlength=len(example))
            counts.append(np.minimum(sums, np.iinfo(np.uint32).max).astype(np.uint32))
            nodes = np.full(under.shape, _ABSENT)
            nodes[which, row] = place
        return cls(roots, keys, counts)

    def child(self, depth: int, parents: Ints, token: Ints) -> Ints:
        """Return the nodes at *depth* (from 1) below *parents*, of the same shape; -1 where there is none."""
        keys = self.keys[depth - 1]
        if not len(keys):
            return np.full(parents.shape, _ABSENT)
        wanted = ((np.maximum(parents, 0) << _TOKEN_BITS) | token).astype(np.uint64)
        at = np.searchsorted(keys, wanted)
        at[at == len(keys)] = 0
        return np.where((parents != _ABSENT) & (keys[at] == wanted), at, _ABSENT)

    def walk(self, found: Rows, roots: Ints) -> list[tuple[Ints, Ints]]:
        """
        Look up the n-grams of a batch.

        Parameters
        ----------
        roots
            Shape (d,).

        Returns
        -------
        For each length k from 1, context (depth k - 1) and n-gram (depth k) of each row as nodes, -1 where training
        never saw it, or where the window isn't that long yet.
        """
        steps = []
        nodes = roots
        for depth in range(1, self.order + 1):
            contexts = (
                nodes if depth == 1 else np.where(found.depth >= depth - 1, nodes[found.before], _ABSENT)
            )
            nodes = self.child(depth, contexts, found.token)
            steps.append((contexts, nodes))
        return steps

    def count(self, depth: int, nodes: Ints) -> Floats:
        """Return how often the n-grams at *depth* (from 1) were seen; 0 for -1."""
        found: Floats = self._counts[depth - 1][nodes]
        return found

    def find(self, root: int, ngram: Sequence[int]) -> int:
        """Return the node of *ngram*, -1 if there is none."""
        node = root
        for depth, token in enumerate(ngram, 1):
            if depth > self.order or node == _ABSENT:
                return _ABSENT
            node = int(self.child(depth, np.array([node]), np.array([token]))[0])
        return node

    def followers(self, depth: int, node: int) -> tuple[Ints, Ints]:
        """Return the tokens that followed the n-gram *node* at *depth*, and how often."""
        if node == _ABSENT or depth >= self.order:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        low, high = (np.uint64(n << _TOKEN_BITS) for n in (node, node + 1))
        part = slice(*np.searchsorted(self.keys[depth], np.array([low, high])))
        mask = np.uint64((1 << _TOKEN_BITS) - 1)
        return (self.keys[depth][part] & mask).astype(np.int64), self.counts[depth][part].astype(np.int64)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return keys and counts of each depth."""
        arrays: dict[str, npt.NDArray[Any]] = {"shape": np.array([self.roots, self.order], np.uint32)}
        for depth, (key, count) in enumerate(zip(self.keys, self.counts, strict=True), 1):
            arrays[f"keys{depth}"] = key
            arrays[f"counts{depth}"] = count
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError if the arrays make no trie."""
        shape = array(arrays, "shape", kind="u")
        if len(shape) != 2 or not 1 <= shape[1] <= 64:
            raise ModelError("the n-grams of the model have no roots and order")
        roots, order = (int(n) for n in shape)
        keys, counts = [], []
        above = roots
        for depth in range(1, order + 1):
            key = array(arrays, f"keys{depth}", kind="u").astype(np.uint64, copy=False)
            count = array(arrays, f"counts{depth}", kind="u").astype(np.uint32, copy=False)
            if len(key) != len(count) or not bool((key[1:] > key[:-1]).all()) or not bool((count > 0).all()):
                raise ModelError(f"the {depth}-grams of the model are in no order")
            if len(key) and (
                int(key[-1] >> np.uint64(_TOKEN_BITS)) >= above
                or int((key & np.uint64(0xFFFF)).max()) >= ALPHABET
            ):
                raise ModelError(f"the {depth}-grams of the model hang in the air")
            above = len(key)
            keys.append(key)
            counts.append(count)
        return cls(roots, keys, counts)
