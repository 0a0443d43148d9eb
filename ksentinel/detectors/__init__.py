# SPDX-License-Identifier: Apache-2.0
"""
Detectors: how unusual is a window? One protocol, several implementations, our sign: **higher is worse**.

`Detector` is what a single model keeps; `model.Model` joins several through calibrated p-values into an `Anomaly`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from ksentinel.errors import ModelError
from ksentinel.level import Level
from ksentinel.window import Window

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Arrays = Mapping[str, npt.NDArray[Any]]


def array(arrays: Arrays, name: str, *, kind: str, ndim: int = 1) -> npt.NDArray[Any]:
    """
    Return the array *name* of an artefact.

    Parameters
    ----------
    kind
        Letters of the `numpy.dtype.kind` that will do: ``"iu"``, ``"f"``.

    Raises
    ------
    ModelError
        If it is missing, of another type or of another number of dimensions, or not finite.
    """
    if name not in arrays:
        raise ModelError(f"the model has no array {name}")
    found = arrays[name]
    if found.dtype.kind not in kind or found.ndim != ndim:
        raise ModelError(f"array {name} of the model is {found.ndim}-dimensional {found.dtype}")
    if found.dtype.kind == "f" and not bool(np.isfinite(found).all()):
        raise ModelError(f"array {name} of the model is not finite")
    return found


class Detector(Protocol):
    """
    A model of normal windows.

    In scikit-learn's manners: no logic in ``__init__``, learnt names end in ``_``, unfitted use raises
    `ModelError`. Deterministic: same windows and parameters, same scores.
    """

    name: str

    def fit(self, windows: Sequence[Window]) -> Self:
        """Learn what is normal."""
        ...

    def score(self, windows: Sequence[Window]) -> Floats:
        """Return one score a window, shape (len(windows),); higher is worse."""
        ...

    def ablate(self, window: Window, removed: Bools) -> Floats:
        """
        Return the scores that *window* would have without some of its n-grams.

        Parameters
        ----------
        removed
            Shape (m, len(window.tokens)): True where the n-gram that ends at this position is taken as neutral.

        Returns
        -------
        Shape (m,).
        """
        ...

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything learnt, and the parameters, as plain arrays (no object dtype)."""
        ...

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError if something is missing, or of the wrong shape or type."""
        ...


@dataclass(frozen=True, slots=True)
class MemberScore:
    """What one detector says of a window."""

    name: str
    score: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Anomaly:
    """
    What the model says of a window.

    Attributes
    ----------
    p_value
        How often a normal window is at least as unusual; members combined.
    level
        `Level.NONE` below every threshold.
    decided_by
        Name of the member with the smallest p-value.
    profile
        What it was compared with: ``(exe, service)``, ``(exe, "")`` or ``("", "")`` for the host-wide profile.
    unseen
        True if training never saw this executable.
    calibrated_on
        How many normal windows the deciding member's score was compared with; a p-value below one in that many is
        extrapolated. 0: not told.
    trained_on
        How many windows of its profile training saw (its system calls, by the length of a window). 0: not told.
    changed
        True if the program's content has changed since training.
    note
        What must be known of its program: that its content has changed since training, or whose copy it is.
    """

    window: Window
    p_value: float
    level: Level
    members: tuple[MemberScore, ...]
    decided_by: str
    profile: tuple[str, str]
    unseen: bool = False
    calibrated_on: int = 0
    trained_on: int = 0
    changed: bool = False
    note: str = ""
