# SPDX-License-Identifier: Apache-2.0
"""Contributions are exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_host import ATTACK, NGINX, NORMAL, make_window

from ksentinel.detectors.ngram import NGramModel
from ksentinel.errors import ModelError
from ksentinel.explain.contributions import contributions

MODEL = NGramModel().fit(NORMAL)


@given(st.lists(st.sampled_from([232, 43, 45, 257, 59, 0xFFF, 0x402]), max_size=64))
def test_sum_is_score(tokens):
    """All contributions together are the score, and each position belongs to one."""
    window = make_window(tokens)
    found = contributions(MODEL, window)

    assert float(MODEL.score([window])[0]) == pytest.approx(sum(c.bits for c in found))
    assert list(range(len(tokens))) == sorted(p for c in found for p in c.positions)
    assert sum(c.share for c in found) == pytest.approx(1 if tokens else 0)


def test_largest_first():
    """Sorted by what they add; *top* cuts."""
    everything = contributions(MODEL, ATTACK)

    assert sorted((c.bits for c in everything), reverse=True) == [c.bits for c in everything]
    assert everything[:3] == contributions(MODEL, ATTACK, top=3)


def test_merged():
    """An n-gram that comes twice stands there once, with both places."""
    found = contributions(NGramModel(order=2).fit(NORMAL), make_window([59, 101, 59, 101]))
    places = {c.names: c.positions for c in found}

    assert places == {("execve",): (0,), ("execve", "ptrace"): (1, 3), ("ptrace", "execve"): (2,)}


def test_what_is_usual():
    """It says how often training saw it and its context, and what came instead."""
    model = NGramModel(order=2).fit([make_window([257, 0, 257, 0, 257, 1])] * 10)
    worst = contributions(model, make_window([257, 59]))[0]

    assert (worst.names, worst.position, worst.positions) == (("openat", "execve"), 1, (1,))
    assert (worst.seen_in_training, worst.context_seen) == (0, 30)
    assert (("read", pytest.approx(2 / 3)), ("write", pytest.approx(1 / 3))) == worst.usual_next
    assert worst.surprise == pytest.approx(model.surprises(make_window([257, 59]))[1])


def test_in_its_profile():
    """Counts are those of the profile it was compared with."""
    shell = make_window([232, 43], ("/bin/sh", "/usr/sbin/cron"))
    seen = {c.names: c.seen_in_training for c in contributions(MODEL, shell)}

    assert seen["epoll_wait", "accept"] == 0 < MODEL.count((232, 43), NGINX)


def test_names_of_other_abis():
    """Names are plain strings, of the token's own ABI."""
    found = contributions(MODEL, make_window([0x40B, 0xFFF]))

    assert {("i386:execve",), ("i386:execve", "invalid")} == {c.names for c in found}
    assert all(type(name) is str for c in found for name in c.names)


def test_unfitted():
    """A model that has learnt nothing explains nothing."""
    with pytest.raises(ModelError, match="not fitted"):
        contributions(NGramModel(), ATTACK)
