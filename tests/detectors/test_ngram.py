# SPDX-License-Identifier: Apache-2.0
"""The language model against a slow one written from the formula."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_host import ATTACK, CRON_SHELL, NGINX, NGINX_SHELL, NORMAL, make_window

from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.profiles import HOST

BATCHES = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 2, 0xFFF]), min_size=1, max_size=10),
        st.sampled_from([NGINX, CRON_SHELL, NGINX_SHELL]),
    ),
    min_size=1,
    max_size=6,
)


class Slow:
    """Witten-Bell by dictionaries: profile -> context -> next token -> count."""

    def __init__(self, batch, order):
        self.order = order
        self.next = defaultdict(lambda: defaultdict(Counter))
        for tokens, profile in batch:
            for name in {profile, (profile[0], ""), HOST}:
                for end, token in enumerate(tokens):
                    for k in range(min(end, order - 1) + 1):
                        self.next[name][tuple(tokens[end - k : end])][token] += 1

    def probability(self, name, context, token):
        """Return P(token | context) in that profile."""
        below = 1 / 4096 if name == HOST else self.probability(HOST, context, token)
        for k in range(len(context) + 1):
            seen = self.next[name][context[len(context) - k :]]
            if seen:
                below = (seen[token] + len(seen) * below) / (seen.total() + len(seen))
        return below

    def surprises(self, tokens, profile):
        """Return bits."""
        name = next(n for n in (profile, (profile[0], ""), HOST) if n in self.next)
        contexts = [tuple(tokens[max(end - self.order + 1, 0) : end]) for end in range(len(tokens))]
        return [-np.log2(self.probability(name, c, t)) for c, t in zip(contexts, tokens, strict=True)]


@settings(max_examples=50)
@given(BATCHES, BATCHES, st.integers(1, 5))
def test_formula(batch, asked, order):
    """Every token's surprise is what the formula says, for pairs, executables and the host."""
    model = NGramModel(order).fit([make_window(*one) for one in batch])
    slow = Slow(batch, order)
    strange = [(tokens, (exe, "/other")) for tokens, (exe, _) in asked] + [([0, 1, 5, 0], ("/new", "/new"))]
    for tokens, profile in [*asked, *strange]:
        np.testing.assert_allclose(
            model.surprises(make_window(tokens, profile)), slow.surprises(tokens, profile), rtol=1e-12
        )


@given(BATCHES, st.lists(st.sampled_from([0, 1, 2, 7]), max_size=4))
def test_probabilities_sum_to_one(batch, context):
    """Over all 4096 tokens, seen or not."""
    model = NGramModel().fit([make_window(*one) for one in batch])
    tokens = [*range(8), 0xFFF]
    shown = sum(2 ** -float(model.surprises(make_window([*context, token]))[-1]) for token in tokens)
    unseen = 2 ** -float(model.surprises(make_window([*context, 1000]))[-1])

    assert shown + (4096 - len(tokens)) * unseen == pytest.approx(1)


def test_score_is_mean_surprise():
    """Over the tokens, and over sixteen at least."""
    model = NGramModel().fit(NORMAL)
    short = make_window([59, 101, 310])

    assert float(model.score([ATTACK])[0]) == pytest.approx(model.surprises(ATTACK).mean())
    assert float(model.score([short])[0]) == pytest.approx(model.surprises(short).sum() / 16)


def test_profiles_differ():
    """What cron's shell does all day is unusual for the web server's shell."""
    model = NGramModel().fit(NORMAL)
    as_cron, as_nginx = (make_window([257, 0, 3, 61, 56, 13] * 10, p) for p in (CRON_SHELL, NGINX_SHELL))
    usual, unusual = model.score([as_cron, as_nginx])

    assert 3 * usual < unusual


def test_neutral_is_mean():
    """With everything taken out, what is left is the profile's mean over its training windows."""
    model = NGramModel().fit(NORMAL)
    mine = [w for w in NORMAL if w.profile == CRON_SHELL]
    expected = np.concatenate([model.surprises(w) for w in mine]).mean()

    assert expected == pytest.approx(model.ablate(mine[0], np.ones((1, 64), bool))[0])


def test_counts_for_explanations():
    """How often, and what usually comes next, per profile."""
    model = NGramModel(order=3).fit([make_window([1, 2, 1, 2, 1, 3], CRON_SHELL), make_window([1, 3], NGINX)])

    assert (model.count((1, 2), CRON_SHELL), model.followed((1,), CRON_SHELL)) == (2, 3)
    assert (model.count((1, 2), NGINX), model.count((1, 3)), model.count((1, 2, 1, 2))) == (0, 2, 0)
    assert model.usual_next((1,), CRON_SHELL) == ((2, 2), (3, 1))
    assert model.usual_next((1,), top=1) == ((2, 2),)
    assert model.usual_next((9,), CRON_SHELL) == ()
    assert (model.followed(()), model.followed((9,)), model.count(())) == (8, 0, 0)


def test_profile_of():
    """The profile's name and whether the executable is new."""
    model = NGramModel().fit(NORMAL)

    assert model.profile_of(ATTACK) == (NGINX, False)
    assert model.profile_of(make_window([1], ("/tmp/x", "/usr/sbin/nginx"))) == (HOST, True)
