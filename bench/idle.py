# SPDX-License-Identifier: Apache-2.0
"""What ksentinel itself uses while nothing much happens: CPU, memory, and the time until it watches."""

import statistics
import time
from pathlib import Path
from typing import Any

from children import cpu_seconds, peak_mebibytes
from watchers import Bench, Monitor

_AFTER_START = 2.0
_LOOK_EVERY = 0.5


def measure(bench: Bench, seconds: float, starts: int = 3) -> dict[str, Any]:
    """Start a monitor *starts* times, and let the last one watch for so many *seconds* how we do nothing."""
    took = []
    for number in range(1, starts + 1):
        monitor = Monitor(bench)
        begin = time.monotonic()
        with monitor.watching():
            took.append(time.monotonic() - begin)
            if number == starts:
                found = _watch(monitor.pids()[0], seconds)
    counted = monitor.told.more["account"]
    return found | {
        "seconds_until_watching": statistics.median(took),
        "starts": [round(one, 2) for one in took],
        "host_calls_per_second": (counted["seen"] - counted["own"]) / counted["seconds"],
        "own_calls_per_second": counted["own"] / counted["seconds"],
    }


def explains(pid: int, proc: Path = Path("/proc")) -> bool:
    """Tell whether a monitor has had an alert to explain: LIME and scikit-learn are loaded then, and stay."""
    return "/sklearn/" in (proc / str(pid) / "maps").read_text()


def _watch(pid: int, seconds: float) -> dict[str, Any]:
    time.sleep(_AFTER_START)  # a start leaves things to be done
    before, begin = cpu_seconds([pid]), time.monotonic()
    plain = None
    while time.monotonic() < begin + seconds:
        peak = peak_mebibytes(pid)
        if not explains(pid):
            plain = peak
        time.sleep(min(_LOOK_EVERY, seconds))
    used, lasted = cpu_seconds([pid]) - before, time.monotonic() - begin
    return {
        "explained": explains(pid),
        "peak_rss_before_explaining_mebibytes": None if plain is None else round(plain, 1),
        "seconds": round(lasted, 1),
        "cpu_share_of_a_core": used / lasted,
        "peak_rss_mebibytes": round(peak_mebibytes(pid), 1),
    }
