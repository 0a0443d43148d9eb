# SPDX-License-Identifier: Apache-2.0
"""Distinct rows and exact counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_host import make_window

from ksentinel.detectors.trie import Trie, rows, tokens_of
from ksentinel.errors import ModelError

BATCHES = st.lists(st.lists(st.sampled_from([0, 1, 2, 0x402, 0xFFF]), max_size=12), min_size=1, max_size=6)


def last(tokens, end, order):
    return tuple(tokens[max(end + 1 - order, 0) : end + 1])


@given(BATCHES, st.integers(1, 6))
def test_rows(batch, order):
    """Two positions share a row if and only if group and last tokens agree; neighbours are linked."""
    tokens = tokens_of([make_window(b) for b in batch])
    group = np.arange(len(batch)) % 2
    found = rows(tokens, group, order)
    expected = [(i % 2, last(b, end, order)) for i, b in enumerate(batch) for end in range(len(b))]
    by_row = dict(zip(found.row.tolist(), expected, strict=True))

    assert len(set(expected)) == len(found.token)
    assert [by_row[row] for row in found.row.tolist()] == expected
    assert Counter(expected) == {by_row[row]: n for row, n in enumerate(found.count.tolist())}
    for row, (number, ngram) in by_row.items():
        assert found.token[row] == ngram[-1]
        assert found.depth[row] == len(ngram) - 1
        if len(ngram) > 1:
            before_group, before = by_row[int(found.before[row])]
            assert (number, ngram[:-1]) == (before_group, before[-len(ngram[:-1]) :])


def test_rows_beyond_64_bits():
    """Rows that don't fit into 64 bits are still told apart exactly."""
    rng = np.random.default_rng(1)
    batch = [rng.integers(0, 4096, 64).tolist() for _ in range(200)]
    tokens = tokens_of([make_window(b) for b in [*batch, *batch]])
    found = rows(tokens, np.zeros(400, np.int64), 9)
    expected = {last(b, end, 9) for b in batch for end in range(64)}

    assert len(expected) == len(found.token)


@given(BATCHES, st.integers(1, 5))
def test_counts(batch, order):
    """Each n-gram is counted as often as it occurs, under each root."""
    tokens = tokens_of([make_window(b) for b in batch])
    found = rows(tokens, np.zeros(len(batch), np.int64), order)
    under = np.array([np.zeros(len(found.token)), np.ones(len(found.token)), np.full(len(found.token), -1)])
    trie = Trie.grow(found, under.astype(np.int64), 3, order)
    expected = Counter(
        tuple(b[i : i + k]) for b in batch for k in range(1, order + 1) for i in range(len(b) - k + 1)
    )

    assert 2 * len(expected) == trie.size
    for ngram, count in expected.items():
        for root in (0, 1):
            assert count == trie.counts[len(ngram) - 1][trie.find(root, ngram)]
        assert trie.find(2, ngram) == -1
    token, count = trie.followers(0, 1)
    assert {t[0]: n for t, n in expected.items() if len(t) == 1} == dict(
        zip(token.tolist(), count.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("keys1", lambda a: a[::-1]),
        ("keys2", lambda a: a + (np.uint64(1) << np.uint64(40))),
        ("keys1", lambda a: a | np.uint64(0x8000)),
        ("counts1", lambda a: a * 0),
        ("counts2", lambda a: a[1:]),
        ("shape", lambda a: a + 100),
        ("shape", lambda a: a[:1]),
    ],
)
def test_damaged(name, change):
    """Arrays that make no trie are refused."""
    tokens = tokens_of([make_window([1, 2, 3, 1, 2])])
    found = rows(tokens, np.zeros(1, np.int64), 2)
    arrays = Trie.grow(found, np.zeros((1, len(found.token)), np.int64), 1, 2).to_arrays()

    with pytest.raises(ModelError):
        Trie.from_arrays({**arrays, name: change(arrays[name])})
