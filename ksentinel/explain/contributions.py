# SPDX-License-Identifier: Apache-2.0
"""
Contributions: which system calls made the n-gram model's score, exactly.

The score is a sum over the window's tokens, so nothing has to be estimated: what each n-gram contributes is known, and
all contributions together are the score.
"""

from dataclasses import dataclass

import numpy as np

from ksentinel.detectors.ngram import SHORTEST, NGramModel
from ksentinel.syscalls import token_name
from ksentinel.window import Window


@dataclass(frozen=True, slots=True)
class Contribution:
    """
    What one distinct n-gram of a window adds to its score.

    Attributes
    ----------
    positions
        Where in the window it ends, ascending, from 0.
    tokens, names
        The n-gram: a call, last, and what came before it.
    bits
        What it adds to the score, all positions together: bits of surprise, shared out over the window's length.
        The contributions of a window sum up to its score.
    share
        The same as a share of the score, 0 to 1.
    surprise
        Surprise of its last call in bits, mean over its positions.
    seen_in_training
        How often training showed this n-gram in the window's profile.
    context_seen
        How often it showed what comes before the last call, followed by anything.
    usual_next
        What followed there in training, most often first: name and share of the cases.
    """

    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    names: tuple[str, ...]
    bits: float
    share: float
    surprise: float
    seen_in_training: int
    context_seen: int
    usual_next: tuple[tuple[str, float], ...]

    @property
    def position(self) -> int:
        """Where it ends for the first time."""
        return self.positions[0]


def contributions(
    model: NGramModel, window: Window, *, top: int | None = None, arch: str = "x86_64", usual: int = 3
) -> tuple[Contribution, ...]:
    """
    Return what the n-grams of *window* contribute to its score, largest first.

    Parameters
    ----------
    top
        How many; None for all of them, whose bits sum up to the score.
    arch
        Whose names the calls get.
    usual
        How many usual successors to name.

    Raises
    ------
    ModelError
        If the model is not fitted.
    """
    surprises = model.surprises(window)
    length = max(len(window.tokens), SHORTEST)
    places: dict[tuple[int, ...], list[int]] = {}
    for end in range(len(window.tokens)):
        places.setdefault(window.tokens[max(end + 1 - model.order, 0) : end + 1], []).append(end)
    sums = {ngram: float(np.sum(surprises[at])) for ngram, at in places.items()}
    total = sum(sums.values())
    profile, _ = model.profile_of(window)
    found = []
    for ngram in sorted(places, key=lambda ngram: (-sums[ngram], places[ngram]))[:top]:
        followers = model.usual_next(ngram[:-1], profile, top=usual)
        context = model.followed(ngram[:-1], profile)
        found.append(
            Contribution(
                positions=tuple(places[ngram]),
                tokens=ngram,
                names=tuple(token_name(token, arch) for token in ngram),
                bits=sums[ngram] / length,
                share=sums[ngram] / total if total else 0.0,
                surprise=sums[ngram] / len(places[ngram]),
                seen_in_training=model.count(ngram, profile),
                context_seen=context,
                usual_next=tuple((token_name(token, arch), count / context) for token, count in followers),
            )
        )
    return tuple(found)
