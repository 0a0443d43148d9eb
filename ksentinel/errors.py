# SPDX-License-Identifier: Apache-2.0
"""
What can go wrong, and where: one tree, caught once, in ``cli.py``.

KsentinelError
├── UsageError         the command line asks for something that makes no sense      exit 2
│   └── ConfigError    a configuration file does
├── InputError         a file that can't be used: wrong kind, cut, another version  exit 1
│   ├── RuleError      a rule file
│   └── ModelError     a model
└── HostError          this host can't do what was asked; the message has the remedy  exit 1
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Location:
    """A place that a person can go to: a file, a line and a column (both from 1; 0 if unknown)."""

    file: str | Path
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join([str(self.file), *(str(n) for n in (self.line, self.column) if n)])


class KsentinelError(Exception):
    """
    Anything ksentinel reports in one line instead of a traceback.

    Parameters
    ----------
    what
        What is wrong.
    at
        Where, if there is a place.
    remedy
        What the user can do about it.
    """

    exit_status = 1

    def __init__(self, what: str, at: Location | str | Path | None = None, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.at = at
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.at}: " if self.at is not None else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.what}{remedy}"


class UsageError(KsentinelError):
    """The command line asks for something that makes no sense."""

    exit_status = 2


class ConfigError(UsageError):
    """The configuration does."""


class InputError(KsentinelError):
    """A file that can't be used."""


class RuleError(InputError):
    """A rule file that can't be used."""


class ModelError(InputError):
    """A model that can't be used."""


class HostError(KsentinelError):
    """This host can't do what was asked."""
