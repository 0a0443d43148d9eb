# SPDX-License-Identifier: Apache-2.0
"""
The n-gram language model: how surprising is each system call after the ones before it, in bits.

Interpolated Witten-Bell smoothing (I. H. Witten and T. C. Bell, "The zero-frequency problem", IEEE Transactions on
Information Theory 37(4), 1991, method C; interpolated as in S. F. Chen and J. Goodman, "An empirical study of smoothing
techniques for language modeling", 1999). For a context c that was followed n(c) times by T(c) different tokens::

    P(w | c) = (n(c w) + T(c) P(w | c without its first token)) / (n(c) + T(c))

The chain ends, for a profile, in what the host-wide model says of w in its full context, and for the host-wide model in
the uniform distribution over all 4096 tokens. So a profile that has seen little leans on the host, and a token that
nobody has ever seen still has a probability.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, Bools, Floats, array
from ksentinel.detectors.profiles import HOST, Ints, Profile, Profiles
from ksentinel.detectors.trie import ALPHABET, Rows, Tokens, Trie, rows, tokens_of
from ksentinel.errors import ModelError
from ksentinel.window import Window

SHORTEST = 16
"""A window of fewer tokens counts as this long: few tokens can't say much."""

_CHUNK = 16384
"""Windows looked at together: a million tokens, about 100 MB while it lasts."""


class NGramModel:
    """
    Mean surprise of a window's system calls.

    Strong on order and on novelty; blind to arguments, and to an attacker who pads with what the profile does anyway.

    Parameters
    ----------
    order
        Length of the longest n-grams: a call and up to ``order - 1`` before it.

    Attributes
    ----------
    profiles_
        The profiles that training saw.
    trie_
        N-grams and counts.
    mean_bits_
        Shape (roots,): mean surprise over the training windows of each profile, in bits.

    Examples
    --------
    >>> from ksentinel.event import Process, ProcessKey
    >>> cat = Process(ProcessKey(1, 1), exe="/bin/cat")
    >>> def window(*tokens):
    ...     return Window(cat, 1, 0, 1, tokens)
    >>> model = NGramModel(order=3).fit([window(*[257, 0, 1, 3] * 16)] * 50)
    >>> usual, odd = model.score([window(*[257, 0, 1, 3] * 4), window(*[257, 0, 101, 3] * 4)])
    >>> round(float(usual), 1), round(float(odd), 1)
    (0.1, 18.1)
    """

    name = "ngram"

    def __init__(self, order: int = 5) -> None:
        self.order = order

    def fit(self, windows: Sequence[Window]) -> Self:
        """
        Learn counts from *windows*.

        Raises
        ------
        ModelError
            If there are none, or one has something that is no token.
        """
        tokens = tokens_of(windows)
        if not len(tokens.token):
            raise ModelError("no system calls to learn from")
        profiles = Profiles.among(w.profile for w in windows)
        under = profiles.counted_under(windows)
        # Windows that count under the same roots are one group of rows.
        groups, group = np.unique(under, axis=1, return_inverse=True)
        found = rows(tokens, group.reshape(-1), self.order)
        rooted = groups[:, group.reshape(-1)[tokens.window[found.example]]]
        trie = Trie.grow(found, rooted, profiles.count, self.order)

        bits, seen = np.zeros(profiles.count), np.zeros(profiles.count)
        for roots in rooted:
            part = np.flatnonzero(roots >= 0)
            if not len(part):
                continue
            all_bits = self._bits(trie, found, np.maximum(roots, 0))
            bits += np.bincount(roots[part], all_bits[part] * found.count[part], profiles.count)
            seen += np.bincount(roots[part], found.count[part], profiles.count)
        self.profiles_ = profiles
        self.trie_ = trie
        self.mean_bits_: Floats = bits / np.maximum(seen, 1)
        return self

    def score(self, windows: Sequence[Window]) -> Floats:
        """Return the mean surprise of each window in bits a token, shape (len(windows),)."""
        self._check()
        scores = np.zeros(len(windows))
        for start in range(0, len(windows), _CHUNK):
            part = windows[start : start + _CHUNK]
            tokens = tokens_of(part)
            sums = np.bincount(tokens.window, self._surprises(part, tokens), len(part))
            scores[start : start + _CHUNK] = sums / np.maximum(tokens.lengths, SHORTEST)
        return scores

    def surprises(self, window: Window) -> Floats:
        """Return the surprise of each token in bits, shape (len(window.tokens),)."""
        self._check()
        return self._surprises([window], tokens_of([window]))

    def ablate(self, window: Window, removed: Bools) -> Floats:
        """Return scores with the profile's mean training surprise at *removed* positions."""
        bits = self.surprises(window)
        neutral = self.mean_bits_[self.profiles_.root(window.profile)]
        # A running sum, as in `score`: removing nothing gives the very same number.
        sums = np.cumsum(np.where(removed, neutral, bits), axis=1)
        last: Floats = sums[:, -1] if sums.shape[1] else np.zeros(len(removed))
        return last / max(len(window.tokens), SHORTEST)

    def profile_of(self, window: Window) -> tuple[Profile, bool]:
        """Return the profile that *window* is compared with, and whether its executable is unseen."""
        self._check()
        return self.profiles_.find(window.profile)

    def count(self, ngram: Sequence[int], profile: Profile = HOST) -> int:
        """Return how often training saw *ngram* in that profile; 0 if it is longer than the model's order."""
        self._check()
        node = self.trie_.find(self.profiles_.root(profile), ngram)
        if node < 0 or not ngram:
            return 0
        return int(self.trie_.counts[len(ngram) - 1][node])

    def followed(self, context: Sequence[int], profile: Profile = HOST) -> int:
        """Return how often anything followed *context* in that profile; of the empty one: all its tokens."""
        self._check()
        node = self.trie_.find(self.profiles_.root(profile), context)
        if node < 0 or len(context) >= self.order:
            return 0
        return int(self.trie_.totals[len(context)][node])

    def usual_next(
        self, context: Sequence[int], profile: Profile = HOST, top: int = 3
    ) -> tuple[tuple[int, int], ...]:
        """Return the *top* tokens that followed *context* in that profile and how often, most often first."""
        self._check()
        node = self.trie_.find(self.profiles_.root(profile), context)
        token, count = self.trie_.followers(len(context), node)
        order = np.lexsort((token, -count))[:top]
        return tuple((int(token[i]), int(count[i])) for i in order)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return profiles, trie and means."""
        self._check()
        arrays = {f"profiles.{k}": v for k, v in self.profiles_.to_arrays().items()}
        arrays |= {f"trie.{k}": v for k, v in self.trie_.to_arrays().items()}
        return {**arrays, "mean_bits": self.mean_bits_}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError."""
        profiles, trie = parts_from_arrays(arrays)
        means = array(arrays, "mean_bits", kind="f")
        if len(means) != profiles.count:
            raise ModelError("profiles and means of the n-gram model don't fit together")
        model = cls(trie.order)
        model.profiles_, model.trie_ = profiles, trie
        model.mean_bits_ = means.astype(np.float64, copy=False)
        return model

    def _check(self) -> None:
        if not hasattr(self, "trie_"):
            raise ModelError("the n-gram model is not fitted")

    def _surprises(self, windows: Sequence[Window], tokens: Tokens) -> Floats:
        root = self.profiles_.root_of(windows)
        found = rows(tokens, root, self.order)
        return self._bits(self.trie_, found, root[tokens.window[found.example]])[found.row]

    @staticmethod
    def _bits(trie: Trie, found: Rows, roots: Ints) -> Floats:
        """Return the surprise of each row under its root, shape (d,)."""
        host = np.zeros_like(roots)
        probability = _interpolate(trie, trie.walk(found, host), np.full(len(roots), 1 / ALPHABET))
        if bool(roots.any()):
            own = _interpolate(trie, trie.walk(found, roots), probability)
            probability = np.where(roots > 0, own, probability)
        return -np.log2(probability)


def parts_from_arrays(arrays: Arrays) -> tuple[Profiles, Trie]:
    """Rebuild profiles and trie of one model; raises ModelError if they don't fit together."""
    profiles, trie = (
        kind.from_arrays({k.removeprefix(p): v for k, v in arrays.items() if k.startswith(p)})
        for kind, p in ((Profiles, "profiles."), (Trie, "trie."))
    )
    if not isinstance(profiles, Profiles) or not isinstance(trie, Trie) or trie.roots != profiles.count:
        raise ModelError("profiles and n-grams of the model don't fit together")
    return profiles, trie


def _interpolate(trie: Trie, steps: list[tuple[Ints, Ints]], base: Floats) -> Floats:
    """Return P(token | context) of each row, Witten-Bell from *base* up to the longest context seen."""
    probability = base
    for depth, (context, node) in enumerate(steps, 1):
        types = trie.types[depth - 1][context]
        total = trie.totals[depth - 1][context]
        longer = (trie.count(depth, node) + types * probability) / np.maximum(total + types, 1)
        # A context that nothing ever followed says nothing.
        probability = np.where(total > 0, longer, probability)
    return probability
