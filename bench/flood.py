# SPDX-License-Identifier: Apache-2.0
"""
Does the accounting hold under a flood? Two threads make a million system calls a second while ``ksentinel record`` runs.

What the collector counted is put into the equations of ``docs/collector.md``: they are exact, or they aren't; and
which share was dropped is told. Needs root.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import account
from auditing import Auditing
from children import BenchError, end_in_good_order, run
from tools import Tools
from watchers import Bench, Ksentinel, Record

BUILD = Path(__file__).parents[1] / "build" / "bench"
RATE, SECONDS, THREADS = 1e6, 10.0, 2


def measure(
    watcher: Ksentinel, rate: float = RATE, seconds: float = SECONDS, threads: int = THREADS
) -> dict[str, Any]:
    """Flood while *watcher* watches, and return what its account says of it."""
    load = watcher.bench.tools.compiled("load.c", "-pthread")
    with watcher.watching():
        made = int(run([load, "flood", str(rate), str(seconds), str(threads)], seconds=seconds + 60))
        settled = watcher.settle()
    counted = watcher.told.more["account"]
    sums = account.told(counted)
    if counted["seen"] < made:
        raise BenchError(f"{made:,} calls were made and {counted['seen']:,.0f} seen: it didn't watch")
    return {
        "wanted_per_second": rate,
        "made": made,
        "made_per_second": made / seconds,
        "seconds": seconds,
        "threads": threads,
        "seen": counted["seen"],
        "missed_runs": counted.get("missed_runs"),
        "settled": settled,
        "equations": [
            {
                "equation": str(one.equation),
                "whole": one.whole,
                "parts": list(one.parts),
                "exact": one.exact,
            }
            for one in sums
        ],
        "exact": all(one.exact for one in sums),
        "dropped_share": account.dropped(counted),
        "account": counted,
    }


def table(result: dict[str, Any]) -> str:
    """Return *result* for people."""
    lines = [
        (
            f"{result['made']:,} calls made ({result['made_per_second']:,.0f}/s by {result['threads']} threads), "
            f"{result['seen']:,.0f} seen, missed runs {result['missed_runs']}"
        ),
        "",
    ]
    for one in result["equations"]:
        numbers = f"{one['whole']:,} = {' + '.join(f'{part:,}' for part in one['parts'])}"
        lines += [
            f"{one['equation']}",
            f"    {numbers}   {'exact' if one['exact'] else 'NOT EXACT'}",
        ]
    shares = ", ".join(f"{kind} {share:.3%}" for kind, share in result["dropped_share"].items())
    return "\n".join([*lines, "", f"dropped: {shares}"])


def main() -> None:
    """Flood, print, and fail if a sum isn't exact."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=float, default=RATE, help="system calls a second, of all threads")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    end_in_good_order()
    try:
        with ExitStack() as stack:
            BUILD.mkdir(parents=True, exist_ok=True)
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=BUILD)))
            tools = Tools(BUILD)
            recorder = Record(Bench(BUILD, work, tools, Auditing(tools, work)))
            result = measure(recorder, arguments.rate, arguments.seconds, arguments.threads)
    except (BenchError, LookupError) as error:
        sys.exit(f"flood: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(result) if arguments.json else table(result))
    sys.exit(0 if result["exact"] else 1)


if __name__ == "__main__":
    main()
