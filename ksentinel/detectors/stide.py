# SPDX-License-Identifier: Apache-2.0
"""STIDE: which share of a window's n-grams did training never show? The honest baseline of this field."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, Bools, Floats, array
from ksentinel.detectors.ngram import SHORTEST, parts_from_arrays
from ksentinel.detectors.profiles import Profiles
from ksentinel.detectors.trie import Tokens, Trie, rows, tokens_of
from ksentinel.errors import ModelError
from ksentinel.window import Window


class Stide:
    """
    Sequence time-delay embedding.

    S. A. Hofmeyr, S. Forrest and A. Somayaji, "Intrusion detection using sequences of system calls", Journal of
    Computer Security 6(3), 1998. It forgets how often it saw something: rare and usual are the same to it.

    Parameters
    ----------
    n
        Length of the n-grams. Why six: K. M. C. Tan and R. A. Maxion, "Why 6?", IEEE Symposium on Security and
        Privacy, 2002.
    least
        A profile of fewer training windows has no set of its own: nothing here smooths, so it would call
        everything new. Its windows are compared with the executable's, or the host's.

    Examples
    --------
    >>> from ksentinel.event import Process, ProcessKey
    >>> def window(*tokens):
    ...     return Window(Process(ProcessKey(1, 1)), 1, 0, 1, tokens)
    >>> stide = Stide(n=2).fit([window(*[257, 0, 1, 3] * 16)])
    >>> stide.score([window(*[257, 0, 1, 3] * 16), window(*[257, 0, 1, 59] * 16)]).round(2).tolist()
    [0.0, 0.49]
    """

    name = "stide"

    def __init__(self, n: int = 6, least: int = 50) -> None:
        self.n = n
        self.least = least

    def fit(self, windows: Sequence[Window]) -> Self:
        """
        Learn the n-grams of *windows*.

        Raises
        ------
        ModelError
            If there are none, or one has something that is no token.
        """
        tokens = tokens_of(windows)
        if not len(tokens.token):
            raise ModelError("no system calls to learn from")
        profiles = Profiles.among((w.profile for w in windows), least=self.least)
        groups, group = np.unique(profiles.counted_under(windows), axis=1, return_inverse=True)
        found = rows(tokens, group.reshape(-1), self.n)
        rooted = groups[:, group.reshape(-1)[tokens.window[found.example]]]
        self.trie_ = Trie.grow(found, rooted, profiles.count, self.n)
        self.profiles_ = profiles
        return self

    def score(self, windows: Sequence[Window]) -> Floats:
        """
        Return the share of mismatches of each window, shape (len(windows),), from 0 to 1.

        A window of fewer than 16 tokens counts as 16 long.
        """
        self._check()
        tokens = tokens_of(windows)
        mismatches = np.bincount(tokens.window, self._mismatches(windows, tokens), len(windows))
        scores: Floats = mismatches / self._ngrams(tokens.lengths)
        return scores

    def ablate(self, window: Window, removed: Bools) -> Floats:
        """Return scores with the n-grams at *removed* positions counted as matches."""
        self._check()
        mismatches = self._mismatches([window], tokens_of([window]))
        left: Floats = (mismatches & ~removed).sum(axis=1) / self._ngrams(len(window.tokens))
        return left

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return profiles, trie and parameters."""
        self._check()
        arrays = {f"profiles.{k}": v for k, v in self.profiles_.to_arrays().items()}
        arrays |= {f"trie.{k}": v for k, v in self.trie_.to_arrays().items()}
        return {**arrays, "parameters": np.array([self.n, self.least], np.uint32)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError."""
        profiles, trie = parts_from_arrays(arrays)
        parameters = array(arrays, "parameters", kind="u")
        if len(parameters) != 2 or int(parameters[0]) != trie.order:
            raise ModelError("the parameters of the STIDE model don't fit its n-grams")
        model = cls(n=trie.order, least=int(parameters[1]))
        model.profiles_, model.trie_ = profiles, trie
        return model

    def _check(self) -> None:
        if not hasattr(self, "trie_"):
            raise ModelError("the STIDE model is not fitted")

    def _mismatches(self, windows: Sequence[Window], tokens: Tokens) -> Bools:
        """Return for each token whether the n-gram that ends there is new; a shorter one never is."""
        root = self.profiles_.root_of(windows)
        found = rows(tokens, root, self.n)
        _, nodes = self.trie_.walk(found, root[tokens.window[found.example]])[-1]
        new: Bools = (found.depth == self.n - 1) & (nodes < 0)
        return new[found.row]

    def _ngrams(self, lengths: npt.ArrayLike) -> npt.NDArray[Any]:
        return np.asarray(np.maximum(np.maximum(lengths, SHORTEST) - self.n + 1, 1))
