# SPDX-License-Identifier: Apache-2.0
"""
Reload: other rules for a monitor that goes on watching; all of them, or it keeps those that it has.

They are read and compiled beside the walk, which takes them up with its next batch: no batch is judged by two sets.
"""

import queue
import signal
import threading
from collections.abc import Callable, Sized
from typing import Any, Protocol, Self

from ksentinel.alert import when
from ksentinel.errors import KsentinelError
from ksentinel.status import ReloadStatus
from ksentinel.trail import Trail


class Loaded(Protocol):
    """What is loaded together: `pipeline.InForce`."""

    @property
    def rules(self) -> Sized:
        """The rules."""


class Asking(Protocol):
    """What uses it: `pipeline.Pipeline`."""

    in_force: Any


class Reloader:
    """
    Loads rules when it is asked to, in the ``with`` block's thread of its own or in the caller's.

    Parameters
    ----------
    load
        Returns the rules, and what is loaded with them, as they are now; raises KsentinelError.
    walk
        Where they are replaced.
    trail
        Where a reload that a signal asked for is written down; one by the control socket is already.
    tell
        Is told how each reload ended.
    time_ns
        Since the epoch.

    Attributes
    ----------
    loaded_ns
        When the rules in use were loaded.
    last
        How the last reload ended; None before the first.
    apply
        Takes what was loaded to wherever else it counts, all of it or nothing; raises KsentinelError.
    """

    def __init__(
        self,
        load: Callable[[], Loaded],
        walk: Asking,
        trail: Trail,
        *,
        tell: Callable[[str], None],
        time_ns: Callable[[], int],
    ) -> None:
        self.load = load
        self.walk = walk
        self.trail = trail
        self.tell = tell
        self.time_ns = time_ns
        self.apply: Callable[[Any], None] = lambda _: None
        self.loaded_ns = time_ns()
        self.last: ReloadStatus | None = None
        self._one_at_a_time = threading.Lock()
        # A signal may come while another is being handled: of all queues only this one can bear that.
        self._signals: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="reload")
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._signals.put(None)
        self._thread.join()

    def signal(self, name: str) -> None:
        """Have the rules reloaded soon, because that signal came; may be called from its handler."""
        self._signals.put(name)

    def reload(self) -> ReloadStatus:
        """
        Load the rules, and have them asked from the next batch on; returns how that ended.

        Raises
        ------
        KsentinelError
            If one of them can't be loaded: then those in use stay.
        """
        with self._one_at_a_time:
            before = len(self.walk.in_force.rules)
            try:
                loaded = self.load()
                self.apply(loaded)
            except KsentinelError as error:
                self.last = ReloadStatus(self.time_ns(), ok=False, rules=before, error=str(error))
                self.tell(f"rules not reloaded, the {before} in use stay: {error}")
                raise
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                self.last = ReloadStatus(self.time_ns(), ok=False, rules=before, error=what)
                self.tell(f"rules not reloaded, the {before} in use stay: {what}; please report this")
                raise
            self.walk.in_force = loaded
            rules = loaded.rules
            self.loaded_ns = self.time_ns()
            self.last = ReloadStatus(self.loaded_ns, ok=True, rules=len(rules))
            self.tell(f"rules reloaded: {len(rules)}, before {before}")
            return self.last

    def _run(self) -> None:
        # Signals are the main thread's: one that came here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (name := self._signals.get()) is not None:
            # As for requests: nothing is changed that the trail can't have first.
            try:
                self._write(name, "begun")
            except KsentinelError as error:
                self.last = ReloadStatus(
                    self.time_ns(),
                    ok=False,
                    rules=len(self.walk.in_force.rules),
                    error=f"audit trail: {error}",
                )
                self.tell(f"rules not reloaded, the audit trail can't have it: {error}")
                continue
            try:
                self.reload()
                outcome = "done"
            except Exception as error:  # noqa: BLE001 -- told by then; the next signal is to find somebody
                outcome = str(error)
            try:
                self._write(name, outcome)
            except KsentinelError as error:
                self.tell(f"the audit trail has the beginning of a reload, and not its outcome: {error}")

    def _write(self, name: str, outcome: str) -> None:
        # Whose signal it was the kernel tells to nobody who asks afterwards.
        entry: dict[str, Any] = {"uid": None, "pid": None, "request": "reload", "signal": name}
        self.trail.write({"time": when(self.time_ns()), "outcome": outcome} | entry)
