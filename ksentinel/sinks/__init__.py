# SPDX-License-Identifier: Apache-2.0
"""Sinks: where alerts go besides the store. One protocol: `Sink`."""

from typing import Protocol

from ksentinel.alert import Alert


class Sink(Protocol):
    """Takes alerts, and their later revisions under the same id."""

    def send(self, alert: Alert) -> None:
        """Hand *alert* on; raises InputError, or OSError of its file, if that is impossible."""
        ...
