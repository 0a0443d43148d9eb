# SPDX-License-Identifier: Apache-2.0
"""JSON lines: one object a line and revision, on a file or standard output."""

from typing import BinaryIO

from ksentinel.alert import Alert
from ksentinel.store import to_json


class JsonLines:
    """Writes each alert as a line of JSON, at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def send(self, alert: Alert) -> None:
        """Write *alert*."""
        self._file.write(to_json(alert.to_plain()) + b"\n")
        self._file.flush()
