# SPDX-License-Identifier: Apache-2.0
"""Levels: how bad, in Sigma's five words and a sixth for nothing at all."""

from enum import IntEnum
from typing import Self


class Level(IntEnum):
    """Ordered, so that ``max`` and ``<`` mean what they say."""

    NONE = 0
    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, name: str) -> Self:
        """
        Return the level of that *name*.

        Raises
        ------
        ValueError
            If there is none; the message lists those there are.

        Examples
        --------
        >>> Level.parse("high") > Level.parse("medium")
        True
        """
        try:
            return cls[name.upper()]
        except KeyError:
            known = ", ".join(str(level) for level in cls if level is not cls.NONE)
            raise ValueError(f"level {name!r} is none of {known}") from None
