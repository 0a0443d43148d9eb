# SPDX-License-Identifier: Apache-2.0
"""What ksentinel itself uses while nothing much happens: CPU, memory, and the time until it watches."""

import statistics
import time
from typing import Any

from children import cpu_seconds, peak_mebibytes
from watchers import Bench, Monitor

_AFTER_START = 2.0


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


def _watch(pid: int, seconds: float) -> dict[str, float]:
    time.sleep(_AFTER_START)  # a start leaves things to be done
    before, begin = cpu_seconds([pid]), time.monotonic()
    time.sleep(seconds)
    used, lasted = cpu_seconds([pid]) - before, time.monotonic() - begin
    return {
        "seconds": round(lasted, 1),
        "cpu_share_of_a_core": used / lasted,
        "peak_rss_mebibytes": round(peak_mebibytes(pid), 1),
    }
