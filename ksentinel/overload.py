# SPDX-License-Identifier: Apache-2.0
"""
Overload: when the host does more than can be watched, told when it begins and when it is over.

What is given up first is the kernel side's doing (docs/collector.md): sampled windows, then those that are just over
their limit, then arguments. Here it is only noticed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

QUIET_SECONDS = 5.0
"""Nothing lost for this long: it is over."""

_LOST = {
    "windows_shed": "windows given up to leave room for worse ones",
    "windows_lost": "windows that found no room",
    "calls_limited": "argument events beyond what one process may send",
    "calls_lost": "argument events that found no room",
    "lifecycle_dropped": "forks, execs or exits that found no room",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """
    An overload has begun, or is over.

    Attributes
    ----------
    seconds
        How long it lasted; 0 as it begins.
    lost
        What was lost in it so far, by cause: the names that have lost nothing are left out.
    fill
        How full the ring buffer is, from 0 to 1.
    """

    begun: bool
    seconds: float
    lost: Mapping[str, int]
    fill: float

    def __str__(self) -> str:
        what = "; ".join(f"{count:,} {_LOST[name]}" for name, count in self.lost.items())
        if set(self.lost) == {"calls_limited"}:
            return (
                f"a process floods: {what}"
                if self.begun
                else f"the flood is over after {self.seconds:.1f} s: {what}"
            )
        if self.begun:
            return f"overload begins, the ring buffer is {self.fill:.0%} full: {what}. Alerts may be missing until it is over"
        return f"overload is over after {self.seconds:.1f} s: {what}"


class Overload:
    """
    Notices from the collector's counters when an overload begins and ends.

    Attributes
    ----------
    episodes
        How many have begun.
    seconds
        How long all that are over have lasted.
    """

    def __init__(self) -> None:
        self.episodes = 0
        self.seconds = 0.0
        self._known: Mapping[str, int] = dict.fromkeys(_LOST, 0)
        self._at_begin: Mapping[str, int] = self._known
        self._begun: float | None = None
        self._last = 0.0

    @property
    def now(self) -> bool:
        """Whether there is one."""
        return self._begun is not None

    def update(self, counters: Mapping[str, int], seconds: float, fill: float) -> Notice | None:
        """
        Take the counters in, as they are at a time in *seconds*; return what there is to tell.

        Examples
        --------
        >>> overload, quiet = (
        ...     Overload(),
        ...     dict.fromkeys(
        ...         [
        ...             "windows_dropped",
        ...             "windows_shed",
        ...             "calls_dropped",
        ...             "calls_limited",
        ...             "lifecycle_dropped",
        ...         ],
        ...         0,
        ...     ),
        ... )
        >>> overload.update(quiet, 0.0, 0.1)
        >>> print(overload.update(quiet | {"windows_dropped": 7, "windows_shed": 7}, 1.0, 0.6))
        overload begins, the ring buffer is 60% full: 7 windows given up to leave room for worse ones. Alerts may be missing until it is over
        >>> overload.update(quiet | {"windows_dropped": 9, "windows_shed": 9}, 3.0, 0.6)
        >>> overload.update(quiet | {"windows_dropped": 9, "windows_shed": 9}, 7.9, 0.0)
        >>> print(overload.update(quiet | {"windows_dropped": 9, "windows_shed": 9}, 8.0, 0.0))
        overload is over after 2.0 s: 9 windows given up to leave room for worse ones
        """
        now = {
            "windows_shed": counters["windows_shed"],
            "windows_lost": counters["windows_dropped"] - counters["windows_shed"],
            "calls_limited": counters["calls_limited"],
            "calls_lost": counters["calls_dropped"] - counters["calls_limited"],
            "lifecycle_dropped": counters["lifecycle_dropped"],
        }
        before, self._known = self._known, now
        if any(now[name] > before[name] for name in now):
            self._last = seconds
            if self._begun is None:
                self._begun, self._at_begin = seconds, before
                self.episodes += 1
                return Notice(True, 0.0, self._since(now), fill)
        elif self._begun is not None and seconds - self._last >= QUIET_SECONDS:
            lasted, self._begun = self._last - self._begun, None
            self.seconds += lasted
            return Notice(False, lasted, self._since(now), fill)
        return None

    def _since(self, now: Mapping[str, int]) -> dict[str, int]:
        return {name: now[name] - self._at_begin[name] for name in _LOST if now[name] > self._at_begin[name]}
