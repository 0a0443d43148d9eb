# SPDX-License-Identifier: Apache-2.0
"""The benchmark of verdicts runs here, too: each takes effect. What it took is told, and no test of speed."""

import importlib.util
from pathlib import Path

BENCH = Path(__file__).parents[3] / "bench/verdict_latency.py"
ROUNDS = 100


def test_effect(guards, record_property):
    """As many verdicts as there are, so many times it is refused at least once."""
    spec = importlib.util.spec_from_file_location("verdict_latency", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    guards.use()
    found = bench.measure(guards.guards, ROUNDS)

    print(bench.table(found))  # noqa: T201 -- -rP shows it
    record_property("figures", str(found))
    assert found["denied"] >= ROUNDS
    assert min(found["verdict_us"].values()) > 0
