# SPDX-License-Identifier: Apache-2.0
"""
The surrogate: a linear model of any detector around one window (LIME).

M. T. Ribeiro, S. Singh and C. Guestrin, "Why should I trust you?", KDD 2016. A feature is a distinct n-gram of the
window, and it is *taken out* by the detector's own `ablate`, which knows what is neutral to it; deleting system calls
from the sequence instead would make new n-grams at every seam, and explain those. The raw score is the target, not
a class. Every feature stays in the regression: at some sixty features there is nothing to select.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from ksentinel.detectors import Bools, Detector, Floats
from ksentinel.errors import ModelError
from ksentinel.syscalls import token_name
from ksentinel.window import Window

SAMPLES = 1000
KERNEL_WIDTH = 0.25
"""Of the kernel ``exp(-d²/w²)`` over the share *d* of features taken out."""

FARTHEST = 0.25
"""
Largest share of the features taken out. LIME takes out up to all of them; to a model that isn't additive an
almost empty window is another world, and no linear model has both (R² 0.05 instead of 0.98 for the one-class model).
"""

_RIDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Weight:
    """
    What one n-gram of the window adds to the score, as the linear model has it.

    Attributes
    ----------
    tokens, names
        The n-gram; shorter ones stand at the window's beginning.
    weight
        In units of the score; positive raises it.
    positions
        Where in the window it ends.
    """

    tokens: tuple[int, ...]
    names: tuple[str, ...]
    weight: float
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """
    A linear model of a detector around one window.

    Attributes
    ----------
    detector
        Its name.
    weights
        Largest absolute weight first.
    intercept
        What is left when everything is taken out.
    score
        The detector's own score of the window.
    r2
        Share of the variance around the window that the linear model explains, weighted by nearness. Far from 1,
        the weights explain little: say so. 1 with all weights 0 where nothing makes a difference, as to a detector
        that finds nothing it knows.
    samples, seed
        How it was drawn.
    """

    detector: str
    weights: tuple[Weight, ...]
    intercept: float
    score: float
    r2: float
    samples: int
    seed: int


def surrogate(
    detector: Detector,
    window: Window,
    *,
    n: int = 3,
    samples: int = SAMPLES,
    seed: int = 0,
    arch: str = "x86_64",
) -> Surrogate:
    """
    Explain what *detector* says of *window*.

    Parameters
    ----------
    n
        Length of the n-grams that are features.
    samples
        How many variants of the window to ask about, itself included; at least two.
    seed
        Same seed, same answer.

    Raises
    ------
    ModelError
        If the window is empty, *n* or *samples* are too small, or the detector is not fitted.
    """
    if not window.tokens or n < 1 or samples < 2:
        raise ModelError("a surrogate needs a window with system calls, n-grams, and two samples")
    places: dict[tuple[int, ...], list[int]] = {}
    for end in range(len(window.tokens)):
        places.setdefault(window.tokens[max(end + 1 - n, 0) : end + 1], []).append(end)
    ngrams = list(places)
    feature = np.empty(len(window.tokens), np.int64)
    for i, at in enumerate(places.values()):
        feature[at] = i

    kept = _neighbourhood(len(ngrams), samples, seed)
    scores = detector.ablate(window, ~kept[:, feature])
    weights, intercept, r2 = _regress(kept, scores, seed)
    # Equal but for the regression's noise: the rarer in the window first, then the earlier, whatever the seed.
    largest = float(np.abs(weights).max()) or 1.0
    often = np.array([len(at) for at in places.values()])
    order = np.lexsort((often, -np.round(np.abs(weights) / largest, 3)))
    return Surrogate(
        detector=detector.name,
        weights=tuple(
            Weight(
                ngrams[i],
                tuple(token_name(token, arch) for token in ngrams[i]),
                float(weights[i]),
                tuple(places[ngrams[i]]),
            )
            for i in order
        ),
        intercept=intercept,
        score=float(scores[0]),
        r2=r2,
        samples=samples,
        seed=seed,
    )


def _neighbourhood(features: int, samples: int, seed: int) -> Bools:
    """Return which features each variant keeps, shape (samples, features); the first one keeps all."""
    rng = np.random.default_rng(seed)
    kept = np.ones((samples, features), bool)
    # As LIME does for texts: first how many go, then which.
    farthest = max(int(features * FARTHEST), 1)
    gone = rng.integers(1, farthest, samples - 1, endpoint=True)
    ranks = rng.random((samples - 1, features)).argsort(axis=1)
    kept[1:] = ranks >= gone[:, None]
    return kept


def _regress(kept: Bools, scores: Floats, seed: int) -> tuple[Floats, float, float]:
    """Return weights, intercept and R² of the linear model."""
    with warnings.catch_warnings():
        # lime's modules hold string escapes that newer Pythons warn of when they compile them.
        warnings.simplefilter("ignore")
        from lime.lime_base import LimeBase
    from sklearn.linear_model import Ridge

    data = kept.astype(np.float64)
    # Scores of one detector are bits, of another thousandths: to the ridge they should look alike.
    scale = float(np.std(scores))
    if scale <= 1e-9 * float(np.abs(scores).max()):
        return np.zeros(kept.shape[1]), float(scores[0]), 1.0
    lime = LimeBase(lambda distances: np.exp(-((distances / KERNEL_WIDTH) ** 2)), random_state=seed)
    intercept, pairs, r2, _ = lime.explain_instance_with_data(
        data,
        (scores / scale)[:, None],
        1 - data.mean(axis=1),
        label=0,
        num_features=kept.shape[1],
        feature_selection="none",
        model_regressor=Ridge(alpha=_RIDGE),
    )
    weights = np.zeros(kept.shape[1])
    for place, weight in pairs:
        weights[int(place)] = weight * scale
    return weights, float(intercept) * scale, float(r2)
