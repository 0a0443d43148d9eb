# SPDX-License-Identifier: Apache-2.0
"""
Sources: where events and windows come from, and an exact account of what was lost on the way.

A *stream* yields batches of `Item` s in the order in which they happened, and can be asked for its `account`.
"""

from collections.abc import Iterator
from typing import Protocol

from ksentinel.event import Event
from ksentinel.window import Window

Item = Event | Window
Account = dict[str, int | float]
"""What a stream has seen, kept and lost, each in its own unit; the names say what adds up to what."""


class Stream(Protocol):
    """What the walk is fed from: live BPF, audit logs, recordings."""

    def __iter__(self) -> Iterator[list[Item]]:
        """Yield batches until the source ends."""
        ...

    def account(self) -> Account:
        """Return the counters so far."""
        ...

    def lost(self) -> int:
        """Return how many records were lost so far: a rise marks a lossy interval."""
        ...
