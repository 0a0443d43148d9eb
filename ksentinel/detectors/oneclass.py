# SPDX-License-Identifier: Apache-2.0
"""
A one-class support vector machine over which n-grams a window has, in whatever order they come.

A scikit-learn pipeline: counts of hashed n-grams -> TF-IDF -> Nyström approximation of a Gaussian kernel (C. Williams
and M. Seeger, "Using the Nyström method to speed up kernel machines", NIPS 2001) -> linear one-class SVM by stochastic
gradient descent. An exact one-class SVM after a truncated SVD was worse than chance on ADFA-LD: the projection takes
new n-grams to the origin, where they look ordinary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, Bools, Floats, array
from ksentinel.detectors.ngram import SHORTEST
from ksentinel.detectors.profiles import Ints
from ksentinel.detectors.trie import Tokens, tokens_of
from ksentinel.errors import ModelError
from ksentinel.window import Window

LONGEST = 3
"""Length of the longest n-grams."""

_CHUNK = 2048
_DIGITS = 9


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """
    How often each window has each n-gram, where it has any.

    Attributes
    ----------
    window, bucket, count
        Shape (m,); sorted by window.
    windows
        How many there are.
    """

    window: Ints
    bucket: Ints
    count: Floats
    windows: int


class Support:
    """
    What the fitted pipeline has learnt, and what it says: in numpy alone, so that watching needs no scikit-learn.

    Parameters
    ----------
    idf
        Weight of each n-gram, shape (features,).
    data, indices, starts
        The landmarks, compressed sparse rows: shape (k,), (k,), (rank + 1,).
    normalization
        Of the kernel's approximation, shape (rank, rank).
    coef, offset
        Of the linear machine, shape (rank,).
    """

    def __init__(
        self,
        idf: Floats,
        data: Floats,
        indices: Ints,
        starts: Ints,
        normalization: Floats,
        coef: Floats,
        offset: float,
        gamma: float,
    ) -> None:
        self.idf = idf
        self.data = data
        self.indices = indices
        self.starts = starts
        self.normalization = normalization
        self.coef = coef
        self.offset = offset
        self.gamma = gamma
        # Only n-grams that some landmark has make a product: these columns, dense.
        self._columns, column = np.unique(indices, return_inverse=True)
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        self._landmarks = np.zeros((len(self._columns), len(starts) - 1))
        self._landmarks[column, row] = data
        self._lengths = np.bincount(row, data**2, len(starts) - 1)
        self._weights: Floats = normalization.T @ coef

    def decide(self, counts: Counts) -> Floats:
        """
        Return what scikit-learn's ``decision_function`` would: positive inside, shape (counts.windows,).

        Sublinear TF-IDF, rows of length one, a Gaussian kernel with the landmarks, a linear machine on that.
        """
        value = (1.0 + np.log(counts.count)) * self.idf[counts.bucket]
        length = np.sqrt(np.bincount(counts.window, value**2, counts.windows))
        value = value / length[counts.window]
        place = np.searchsorted(self._columns, counts.bucket)
        place[place == len(self._columns)] = 0
        shared = self._columns[place] == counts.bucket if len(self._columns) else np.zeros(len(place), bool)
        rows = np.zeros((counts.windows, len(self._columns)))
        rows[counts.window[shared], place[shared]] = value[shared]
        squared = (length > 0).astype(np.float64)
        distance = squared[:, None] + self._lengths[None, :] - 2.0 * (rows @ self._landmarks)
        kernel = np.exp(-self.gamma * np.maximum(distance, 0.0))
        decided: Floats = kernel @ self._weights - self.offset
        return decided


class OneClass:
    """
    Distance from the bulk of training windows, host-wide.

    It sees combinations of calls that are each usual, which the n-gram model does not; it knows no profiles.

    Parameters
    ----------
    features
        Hash buckets, a power of two.
    subsample
        Training windows used at most, chosen by *seed*; more change little and cost much.
    components
        Rank of the kernel's approximation.
    gamma
        Of the kernel ``exp(-gamma |x - y|²)``; TF-IDF rows have length one.
    nu
        Share of the training windows that may lie outside.

    Attributes
    ----------
    svm_
        What the fitted scikit-learn pipeline has learnt; the sign is turned in `score`.
    neutral_
        Median training score; what a window says that is too short to say anything.
    """

    name = "oneclass"

    def __init__(
        self,
        features: int = 1 << 14,
        subsample: int = 5000,
        components: int = 500,
        gamma: float = 4.0,
        nu: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.subsample = subsample
        self.components = components
        self.gamma = gamma
        self.nu = nu
        self.seed = seed

    def fit(self, windows: Sequence[Window]) -> Self:
        """
        Learn from at most `subsample` of *windows*.

        Raises
        ------
        ModelError
            If there are fewer than two, or one has something that is no token.
        """
        if len(windows) < 2:
            raise ModelError("the one-class model needs two windows to learn from")
        chosen = list(windows)
        if len(chosen) > self.subsample:
            places = np.random.default_rng(self.seed).permutation(len(chosen))[: self.subsample]
            chosen = [windows[i] for i in np.sort(places)]
        self.svm_ = self._fitted(
            self._counts(tokens_of(chosen), len(chosen)), min(self.components, len(chosen))
        )
        self.neutral_ = 0.0
        full = [w for w in chosen if len(w.tokens) >= SHORTEST] or chosen
        self.neutral_ = float(np.median(self.score(full)))
        return self

    def score(self, windows: Sequence[Window]) -> Floats:
        """
        Return how far outside each window lies, shape (len(windows),); negative inside.

        A window of fewer than 16 tokens is drawn towards the median training score.
        """
        self._check()
        scores = np.zeros(len(windows))
        for start in range(0, len(windows), _CHUNK):
            part = windows[start : start + _CHUNK]
            tokens = tokens_of(part)
            scores[start : start + _CHUNK] = self._outside(self._counts(tokens, len(part)), tokens.lengths)
        return scores

    def ablate(self, window: Window, removed: Bools) -> Floats:
        """Return scores without the n-grams (of every length) that end at *removed* positions."""
        self._check()
        if not len(removed):
            return np.zeros(0)
        bucket, _, position = self._buckets(tokens_of([window]))
        used, column = np.unique(bucket, return_inverse=True)
        present = np.zeros((len(window.tokens), len(used)))
        np.add.at(present, (position, column), 1.0)
        row, place = np.nonzero(counts := (~removed).astype(np.float64) @ present)
        ablated = Counts(row, used[place], counts[row, place], len(removed))
        return self._outside(ablated, np.full(len(removed), len(window.tokens)))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what each step of the pipeline has learnt, and the parameters."""
        self._check()
        svm = self.svm_
        return {
            "parameters": np.array([self.features, self.subsample, self.components, self.seed], np.uint32),
            "constants": np.array([self.gamma, self.nu, self.neutral_, svm.offset], np.float64),
            "idf": svm.idf,
            "landmarks.data": svm.data,
            "landmarks.indices": svm.indices.astype(np.uint32),
            "landmarks.starts": svm.starts.astype(np.uint32),
            "normalization": svm.normalization,
            "coef": svm.coef,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError."""
        parameters, constants = array(arrays, "parameters", kind="u"), array(arrays, "constants", kind="f")
        if len(parameters) != 4 or len(constants) != 4:
            raise ModelError("the one-class model has no parameters")
        features, subsample, components, seed = (int(n) for n in parameters)
        gamma, nu, neutral, offset = (float(x) for x in constants)
        if features.bit_count() != 1 or gamma <= 0 or not 0 < nu <= 1:
            raise ModelError("the parameters of the one-class model make no sense")
        idf, coef = array(arrays, "idf", kind="f"), array(arrays, "coef", kind="f")
        normalization = array(arrays, "normalization", kind="f", ndim=2)
        data = array(arrays, "landmarks.data", kind="f")
        indices = array(arrays, "landmarks.indices", kind="u").astype(np.int64)
        starts = array(arrays, "landmarks.starts", kind="u").astype(np.int64)
        rank = len(starts) - 1
        consistent = (
            rank >= 1
            and idf.shape == (features,)
            and coef.shape == (rank,)
            and normalization.shape == (rank, rank)
            and len(data) == len(indices) == int(starts[-1])
            and int(starts[0]) == 0
            and bool((np.diff(starts) >= 0).all())
            and bool((indices < features).all() and (indices >= 0).all())
        )
        if not consistent:
            raise ModelError("the arrays of the one-class model don't fit together")
        model = cls(features, subsample, components, gamma, nu, seed)
        model.svm_ = Support(idf, data, indices, starts, normalization, coef, offset, gamma)
        model.neutral_ = neutral
        return model

    def _check(self) -> None:
        if not hasattr(self, "svm_"):
            raise ModelError("the one-class model is not fitted")

    def _fitted(self, counts: Counts, components: int) -> "Support":
        # Imported here: scikit-learn costs most of a second, and 115 MB, and only training needs it.
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import TfidfTransformer
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import SGDOneClassSVM
        from sklearn.pipeline import make_pipeline

        pipeline = make_pipeline(
            TfidfTransformer(sublinear_tf=True),
            Nystroem(gamma=self.gamma, n_components=components, random_state=self.seed),
            SGDOneClassSVM(nu=self.nu, random_state=self.seed),
        )
        shape = (counts.windows, self.features)
        pipeline.fit(csr_matrix((counts.count, (counts.window, counts.bucket)), shape=shape))
        tfidf, kernel, svm = (step for _, step in pipeline.steps)
        landmarks = csr_matrix(kernel.components_)
        landmarks.sort_indices()
        return Support(
            np.asarray(tfidf.idf_, np.float64),
            landmarks.data.astype(np.float64),
            landmarks.indices.astype(np.int64),
            landmarks.indptr.astype(np.int64),
            np.asarray(kernel.normalization_, np.float64),
            np.asarray(svm.coef_, np.float64),
            float(svm.offset_[0]),
            self.gamma,
        )

    def _outside(self, counts: Counts, lengths: Ints) -> Floats:
        # Rounded, because matrix products differ in the last bits with the number of rows: a window's score must not
        # depend on the company it was scored in.
        outside = -np.round(self.svm_.decide(counts), _DIGITS)
        heard = np.minimum(lengths, SHORTEST) / SHORTEST
        return np.asarray(self.neutral_ + heard * (outside - self.neutral_))

    def _counts(self, tokens: Tokens, windows: int) -> Counts:
        bucket, window, _ = self._buckets(tokens)
        pairs, count = np.unique(window * self.features + bucket, return_counts=True)
        return Counts(pairs // self.features, pairs % self.features, count.astype(np.float64), windows)

    def _buckets(self, tokens: Tokens) -> tuple[Ints, Ints, Ints]:
        """Return bucket, window and last position of every n-gram of length 1 to `LONGEST`."""
        token = tokens.token.astype(np.uint64)
        ngram = np.zeros(len(token), np.uint64)
        parts = []
        for back in range(min(LONGEST, len(token))):
            earlier = token if back == 0 else np.concatenate([np.zeros(back, np.uint64), token[:-back]])
            ngram = (ngram << np.uint64(16)) | (earlier + np.uint64(1))
            whole = tokens.position >= back
            bucket = (_mixed(ngram) % np.uint64(self.features)).astype(np.int64)
            parts.append((bucket[whole], tokens.window[whole], tokens.position[whole]))
        if not parts:
            return tokens.token, tokens.window, tokens.position
        bucket, window, position = (np.concatenate(column) for column in zip(*parts, strict=True))
        return bucket, window, position


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return well-mixed hashes: the finaliser of SplitMix64 (G. Steele, D. Lea and C. Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
