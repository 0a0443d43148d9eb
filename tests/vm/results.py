# SPDX-License-Identifier: Apache-2.0
"""What a guest says of its tests: JSON, a line each; `inside` writes it, the host reads it."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ksentinel.errors import InputError
from ksentinel.printable import printable

IN_GUEST = "the guest"
"""What the plugin is called that a pytest has if it runs in a guest."""

BAD = re.compile(
    r"""
    \b(BUG|WARNING|Oops|KASAN|KCSAN|UBSAN|KFENCE|KMSAN|INFO:\ task)\b | Kernel\ panic
    | general\ protection\ fault | [Uu]nable\ to\ handle | invalid\ opcode | double\ fault
    | possible\ (recursive|circular|irq)\ lock | suspicious\ RCU\ usage | inconsistent\ lock\ state
    | detected\ (expedited\ )?stalls? | rcu.*\bstarved\b | lockup | blocked\ for\ more\ than
    | verifier\ (bug|error) | refcount_t: | list_(add|del)\ corruption | scheduling\ while\ atomic | use-after-free
    """,
    re.VERBOSE,
)
"""Words of the kernel's log after which nothing that ran there can be trusted."""


@dataclass(frozen=True, slots=True)
class Began:
    """The guest's tests begin, under this kernel."""

    release: str
    version: str


@dataclass(frozen=True, slots=True)
class Report:
    """What pytest says of one phase (setup, call, teardown) of a test, as it serializes it."""

    test: str
    when: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Broken:
    """A file of tests, or what they run in, that the guest can't even read."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class KernelLog:
    """All that the kernel has said, and how many messages it had forgotten before we looked."""

    lines: tuple[str, ...]
    forgotten: int = 0

    def bad(self) -> list[str]:
        """Return the lines that tell of a fault in the kernel, fit to be shown."""
        return [printable(line) for line in self.lines if BAD.search(line)]


@dataclass(frozen=True, slots=True)
class Ended:
    """The guest's tests are through; pytest's exit code there."""

    code: int


Record = Began | Report | Broken | KernelLog | Ended
KINDS: dict[str, type[Record]] = {
    "began": Began, "report": Report, "broken": Broken, "log": KernelLog, "ended": Ended,
}  # fmt: skip


def dump(record: Record) -> bytes:
    """Return a record as its line."""
    (kind,) = (name for name, cls in KINDS.items() if cls is type(record))
    values = {name: getattr(record, name) for name in record.__slots__}
    return json.dumps([kind, values], ensure_ascii=True).encode() + b"\n"


def load(line: bytes) -> Record:
    """
    Return the record of a line.

    Raises
    ------
    InputError
        If it is none: cut, or written over by something else.
    """
    try:
        kind, values = json.loads(line)
        record = KINDS[kind](**values)
    except (ValueError, TypeError, KeyError):
        shown = printable(line.decode(errors="surrogateescape"), 200)
        raise InputError(f"the guest sent a line that is none of its results: {shown!r}") from None
    if isinstance(record, KernelLog):
        return KernelLog(tuple(record.lines), record.forgotten)
    return record


def records(lines: Iterable[bytes]) -> Iterator[Record]:
    """Yield the records of these lines up to the last one, `Ended`; without that one the guest has died."""
    for line in lines:
        record = load(line)
        yield record
        if isinstance(record, Ended):
            return
