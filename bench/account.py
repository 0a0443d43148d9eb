# SPDX-License-Identifier: Apache-2.0
"""The collector's account held against the equations of ``docs/collector.md``: exact, or not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "collector.md"


@dataclass(frozen=True, slots=True)
class Equation:
    """``whole = part + part + ...``, by the names the document uses."""

    whole: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.whole} = {' + '.join(self.parts)}"


@dataclass(frozen=True, slots=True)
class Sum:
    """An equation with numbers in it."""

    equation: Equation
    whole: int
    parts: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether both sides are equal."""
        return self.whole == sum(self.parts)


def equations(text: str) -> list[Equation]:
    r"""
    Return the equations of the section *Accounting*: its indented lines.

    Examples
    --------
    >>> [
    ...     str(e)
    ...     for e in equations("## Accounting\n\n    seen = recorded + no storage\n\n## Next\n\n    a = b\n")
    ... ]
    ['seen = recorded + no storage']
    """
    section = re.search(r"^## Accounting\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^ {4}(\w[\w ]*?) *= *(.+)$", section[1] if section else "", re.MULTILINE)
    return [Equation(whole, tuple(part.strip() for part in parts.split("+"))) for whole, parts in found]


def value(account: Mapping[str, float], name: str) -> int:
    """
    Return the number of that name; where only its kinds are counted (``closed_full``, ...), their sum.

    Raises
    ------
    LookupError
        If the account has neither.

    Examples
    --------
    >>> value({"no_storage": 3, "closed_full": 2, "closed_exit": 1}, "no storage")
    3
    >>> value({"closed_full": 2, "closed_exit": 1}, "closed")
    3
    """
    key = name.replace(" ", "_")
    if key in account:
        return int(account[key])
    kinds = [int(number) for other, number in account.items() if other.startswith(f"{key}_")]
    if not kinds:
        raise LookupError(f"the account has no {name!r}: does docs/collector.md speak of this version?")
    return sum(kinds)


def dropped(account: Mapping[str, float]) -> dict[str, float]:
    """
    Return which share was dropped of all that was sent or dropped, for whatever the account counts both of.

    Examples
    --------
    >>> dropped({"windows_sent": 3, "windows_dropped": 1, "calls_sent": 0, "calls_dropped": 0, "seen": 9})
    {'windows': 0.25, 'calls': 0.0}
    """
    kinds = [name.removesuffix("_sent") for name in account if name.endswith("_sent")]
    both = {kind: (account[f"{kind}_sent"], account.get(f"{kind}_dropped")) for kind in kinds}
    return {
        kind: lost / (sent + lost) if lost else 0.0 for kind, (sent, lost) in both.items() if lost is not None
    }


def sums(account: Mapping[str, float], of: Sequence[Equation]) -> list[Sum]:
    """Return the equations with the account's numbers in them."""
    return [
        Sum(equation, value(account, equation.whole), tuple(value(account, part) for part in equation.parts))
        for equation in of
    ]


def told(account: Mapping[str, float], document: Path = DOCUMENT) -> list[Sum]:
    """Return *account* in the equations of the document."""
    return sums(account, equations(document.read_text(encoding="utf-8")))
