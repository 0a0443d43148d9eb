# SPDX-License-Identifier: Apache-2.0
"""
Calibration: from scores, which mean nothing by themselves, to p-values: how often is a normal window as unusual?

A conformal p-value (V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a Random World", 2005) counts the
calibration scores that are at least as high, ``(1 + #{cal >= s}) / (n + 1)``; within a profile where it has enough
of them (Mondrian), among all otherwise. It holds for any detector, as far as tomorrow's windows are exchangeable with
the calibration windows; windows of one process are alike, so treat it as a good estimate and not as a guarantee.

It can't go below ``1 / (n + 1)``, and alerts live below that: beyond the highest calibration score a fitted tail says
how fast it falls from there. Beyond a high quantile the excesses of almost any distribution follow a generalised Pareto distribution (S. Coles, "An Introduction to Statistical Modeling of Extreme
Values", 2001; for anomaly detection: A. Siffer et al., "Anomaly detection in streams with extreme value theory", KDD
2017). It is fitted by probability-weighted moments (J. R. M. Hosking and J. R. Wallis, Technometrics 29(3), 1987), in
closed form. Its shape is never taken below zero: a tail with an end would call windows impossible on the word of
a few samples; this errs towards fewer alerts. Nor is it ever lighter than the exponential tail that the upper half of
the scores suggests: programs that do the same thing over and over have scores in a few heaps, and the highest heap alone
has no width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, Floats, array
from ksentinel.detectors.profiles import HOST, Profile, Profiles
from ksentinel.errors import ModelError

QUANTILE = 0.95
"""Where the tail begins."""

LEAST_TAIL = 20
"""A tail has at least this many calibration scores (if they exist), even if it begins below `QUANTILE`."""

LEAST_OWN = 100
"""A profile with fewer calibration windows is compared with all."""

LEAST = 20
"""Fewer calibration windows than this say nothing."""

SMALLEST = 1e-12
"""No p-value is smaller: so far beyond the data, the fitted tail is only a formula."""


_LEAST_FIT = 10
"""Fewer scores than this say nothing of a tail."""

# Names of no executable: those are absolute paths.
_ALL: Profile = ("all", "")
_STRANGERS: Profile = ("strangers", "")


@dataclass(frozen=True, slots=True)
class Pool:
    """
    The calibration scores of one profile.

    Attributes
    ----------
    scores
        Ascending.
    start
        Where the tail that was fitted begins.
    shape, scale
        Of the generalised Pareto distribution of what exceeds *start*; a scale of 0 means that nothing
        could be fitted: p-values stay where the count leaves them.
    """

    scores: Floats
    start: float
    shape: float
    scale: float

    @classmethod
    def fit(cls, scores: Floats) -> Self:
        """Sort *scores* and fit the tail."""
        ordered = np.sort(scores)
        size = len(ordered)
        in_tail = min(max(round((1 - QUANTILE) * size), LEAST_TAIL), size // 2)
        start = float(ordered[size - in_tail - 1])
        if start == ordered[-1]:  # the highest heap is larger than the tail: it begins below it
            start = float(ordered[max(int(np.searchsorted(ordered, start)) - 1, 0)])
        shape, scale = _pareto(ordered[ordered > start] - start)
        middle = float(np.median(ordered))
        upper = ordered[ordered > middle] - middle
        return cls(
            ordered, start, shape, max(scale, float(upper.mean()) if len(upper) >= _LEAST_FIT else 0.0)
        )

    def p_values(self, scores: Floats) -> Floats:
        """Return how often a calibration score is at least as high, shape of *scores*; positive, at most 1."""
        size = len(self.scores)
        counted = (1 + size - np.searchsorted(self.scores, scores, side="left")) / (size + 1)
        highest = self.scores[-1]
        if self.scale == 0:
            return np.asarray(counted)
        beyond = self._survival(scores) / self._survival(highest)
        return np.where(scores > highest, np.maximum(beyond / (size + 1), SMALLEST), counted)

    def _survival(self, scores: Floats) -> Floats:
        """Return the tail's share above *scores*, as if all of it lay above `start`."""
        excess = np.maximum(scores - self.start, 0.0)
        if self.shape < 1e-9:
            return np.asarray(np.exp(-excess / self.scale))
        return np.asarray(np.power(1 + self.shape * excess / self.scale, -1 / self.shape))


class Calibration:
    """
    Scores of normal windows that no detector was fitted on, by profile.

    Windows of executables that training never saw are compared host-wide and look stranger than any that it saw,
    however harmless. They are compared with their like (*strangers*), where there are some.

    Examples
    --------
    >>> calibration = Calibration().fit(np.arange(99.0), [("", "")] * 99)
    >>> calibration.p_values(np.array([0.0, 50.0]), [("/bin/sh", "")] * 2).tolist()
    [1.0, 0.5]
    """

    def fit(self, scores: Floats, profiles: Sequence[Profile], strangers: Floats | None = None) -> Self:
        """
        Keep *scores* and fit their tails.

        Parameters
        ----------
        scores
            Shape (n,), of windows held out from training.
        profiles
            What each was compared with, `Profiles.find`.
        strangers
            Scores of normal windows by detectors that were fitted without their executables.

        Raises
        ------
        ModelError
            If there are fewer than 20, or one is not finite.
        """
        if len(scores) < LEAST:
            raise ModelError(
                f"{len(scores)} windows are too few to calibrate on", remedy=f"at least {LEAST} are needed"
            )
        if not bool(np.isfinite(scores).all()):
            raise ModelError("a score to calibrate on is not finite")
        places: dict[Profile, list[int]] = {}
        for place, profile in enumerate(profiles):
            places.setdefault(profile, []).append(place)
        own = {profile: scores[at] for profile, at in places.items() if profile != HOST}
        if strangers is not None:
            own[_STRANGERS] = strangers
        everything = Pool.fit(scores)
        pools = {profile: Pool.fit(part) for profile, part in own.items() if len(part) >= LEAST_OWN}
        # A program that always scores the same says nothing of how scores spread; the host's are spread wider.
        self.pools_ = {
            profile: pool if pool.scale else replace(pool, shape=everything.shape, scale=everything.scale)
            for profile, pool in pools.items()
        }
        self.pools_[_ALL] = everything
        return self

    def p_values(self, scores: Floats, profiles: Sequence[Profile]) -> Floats:
        """
        Return p-values, shape (n,).

        A higher score never has a larger p-value in the same profile; none is 0.
        """
        self._check()
        places: dict[Profile, list[int]] = {}
        for place, profile in enumerate(profiles):
            places.setdefault(self._pool(profile), []).append(place)
        p = np.ones(len(scores))
        for pool, at in places.items():
            p[at] = self.pools_[pool].p_values(scores[at])
        return p

    def size(self, profile: Profile) -> int:
        """Return how many calibration scores those of *profile* are compared with."""
        self._check()
        return len(self.pools_[self._pool(profile)].scores)

    def _pool(self, profile: Profile) -> Profile:
        pool = _STRANGERS if profile == HOST else profile
        return pool if pool in self.pools_ else _ALL

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return profiles, sizes, scores and tails."""
        self._check()
        names = sorted(self.pools_)
        pools = [self.pools_[name] for name in names]
        profiles = Profiles({name: place for place, name in enumerate(names, 1)})
        return {
            **profiles.to_arrays(),
            "sizes": np.array([len(pool.scores) for pool in pools], np.uint32),
            "scores": np.concatenate([pool.scores for pool in pools]),
            "tails": np.array([(pool.start, pool.shape, pool.scale) for pool in pools]),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError."""
        profiles = Profiles.from_arrays(arrays)
        sizes = array(arrays, "sizes", kind="u").astype(np.int64)
        scores = array(arrays, "scores", kind="f").astype(np.float64, copy=False)
        tails = array(arrays, "tails", kind="f", ndim=2)
        if (
            len(sizes) != profiles.count - 1
            or _ALL not in profiles.roots
            or tails.shape != (len(sizes), 3)
            or int(sizes.sum()) != len(scores)
            or bool((sizes < 1).any() or (tails[:, 1:] < 0).any())
        ):
            raise ModelError("the calibration of the model is not consistent")
        parts = np.split(scores, np.cumsum(sizes)[:-1])
        if any(bool((part[1:] < part[:-1]).any()) for part in parts):
            raise ModelError("the calibration scores of the model are in no order")
        calibration = cls()
        calibration.pools_ = {
            name: Pool(parts[place - 1], *(float(x) for x in tails[place - 1]))
            for name, place in profiles.roots.items()
            if place
        }
        return calibration

    def _check(self) -> None:
        if not hasattr(self, "pools_"):
            raise ModelError("the calibration is not fitted")


def combine(p_values: Mapping[str, Floats]) -> Floats:
    """
    Return one p-value from those of several detectors that look at the same windows.

    The Cauchy combination (Y. Liu and J. Xie, Journal of the American Statistical Association 115, 2020): its small
    p-values hold however dependent the detectors are. A p-value near 1 would veto all others; as Liu et al. (ACAT,
    2019) do for 1 itself, those above ``1 - 1/d`` are taken as that, for d detectors.

    Parameters
    ----------
    p_values
        By detector, each of shape (n,).

    Returns
    -------
    Shape (n,), positive.

    Examples
    --------
    >>> combine({"a": np.array([1e-4]), "b": np.array([1.0])}).round(6).tolist()
    [0.0002]
    """
    stacked = np.stack(list(p_values.values()))
    if len(stacked) == 1:
        return np.asarray(stacked[0])
    capped = np.minimum(stacked, 1 - 1 / len(stacked))
    mean = np.mean(1 / np.tan(np.pi * capped), axis=0)
    return np.asarray(np.arctan2(1.0, mean) / np.pi)


def _pareto(excesses: Floats) -> tuple[float, float]:
    """Return shape (from 0 to 1) and scale by probability-weighted moments; (0, 0) if there is too little to fit."""
    size = len(excesses)
    if size < _LEAST_FIT:
        return 0.0, 0.0
    mean = float(excesses.mean())
    ordered = np.sort(excesses)
    weighted = float((ordered * np.arange(size - 1, -1, -1) / (size - 1)).mean())
    if mean <= 2 * weighted:
        return 0.0, mean
    shape = 2 - mean / (mean - 2 * weighted)
    if shape <= 0:
        return 0.0, mean
    return shape, 2 * mean * weighted / (mean - 2 * weighted)
