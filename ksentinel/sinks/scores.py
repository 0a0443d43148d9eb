# SPDX-License-Identifier: Apache-2.0
"""Scores: what the model says of each window, also of the normal ones, as JSON lines; to look at thresholds with."""

from pathlib import Path
from types import TracebackType
from typing import Self

from ksentinel.detectors import Anomaly
from ksentinel.errors import InputError
from ksentinel.store import to_json


class Scores:
    """
    A file of p-values, one line a window.

    Parameters
    ----------
    path
        Must not exist: a log to be replayed is soon named in the wrong place. A pipe or a device may.

    Raises
    ------
    InputError
        On entering: it exists, or can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        try:
            self._file = self.path.open("wb" if self.path.exists() and not self.path.is_file() else "xb")
        except FileExistsError:
            raise InputError(
                "exists already", at=self.path, remedy="name another file, or remove it"
            ) from None
        except OSError as error:
            raise InputError(
                f"can't be written: {error.strerror}", at=self.path, remedy="name another by --scores"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __call__(self, anomaly: Anomaly) -> None:
        """Write what the model says of a window."""
        window = anomaly.window
        plain = {
            "time_ns": window.last_ns,
            "pid": window.process.key.pid,
            "exe": window.process.exe,
            "service": window.process.service_exe,
            "tokens": len(window.tokens),
            "p_value": anomaly.p_value,
            "level": str(anomaly.level),
            "unseen": anomaly.unseen,
            "members": {m.name: [m.score, m.p_value] for m in anomaly.members},
        }
        self._file.write(to_json(plain) + b"\n")
