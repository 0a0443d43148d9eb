# SPDX-License-Identifier: Apache-2.0
"""STIDE against sets of tuples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_host import CRON_SHELL, NGINX, make_window

from ksentinel.detectors.stide import Stide

TRACES = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def ngrams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


@given(st.lists(TRACES, min_size=1, max_size=4), TRACES, st.integers(1, 6))
def test_definition(batch, asked, n):
    """The score is the share of n-grams that training doesn't have."""
    stide = Stide(n=n).fit([make_window(tokens) for tokens in batch])
    known = {ngram for tokens in batch for ngram in ngrams(tokens, n)}
    new = sum(ngram not in known for ngram in ngrams(asked, n))

    assert new / (max(len(asked), 16) - n + 1) == pytest.approx(stide.score([make_window(asked)])[0])


@pytest.mark.parametrize(("least", "expected"), [(1, 1.0), (2, 0.0)])
def test_little_data(least, expected):
    """A profile with too few windows is compared with the host."""
    stide = Stide(n=2, least=least).fit([make_window([1, 2] * 8, CRON_SHELL), make_window([3, 4] * 8, NGINX)])

    assert [expected] == stide.score([make_window([1, 2] * 8, NGINX)]).tolist()
