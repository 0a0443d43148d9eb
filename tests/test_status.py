# SPDX-License-Identifier: Apache-2.0
"""What the daemon says of itself survives the way over the socket, and what it costs is measured."""

from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.errors import InputError
from ksentinel.mutes import Mute
from ksentinel.status import (
    Meter,
    ModelStatus,
    NoiseStatus,
    QuietenedTriple,
    Status,
    SuppressedRule,
    Usage,
)

WHOLE = Status(
    version="1", pid=7, mode="monitor", since_ns=1, seconds=2.5, model=ModelStatus("m", 1, "h", "k", ("a",), 3, 4),
    rules=22, store="s", lost=0, account={"seen": 5, "seconds": 2.5}, walk={"items": 1}, control={"open": 1},
    usage=Usage(1.0, 0.5, 0.25, 60.0, 100, 200),
    noise=NoiseStatus(
        (SuppressedRule("r", "R", 3),), (QuietenedTriple("r", "/x", "/y", 2),), (Mute("5f", 1, 2, "so", exe="/x"),)
    ),
)  # fmt: skip


def over_the_wire(status):
    return orjson.loads(orjson.dumps(asdict(status)))


@pytest.mark.parametrize("model", [None, WHOLE.model])
def test_same_after_the_way(model):
    """What is asked for is what was told."""
    plain = over_the_wire(WHOLE) | {"model": model and asdict(model)}

    told = Status.from_plain(plain, Path("s"))

    assert (told.model, told.usage, told.account) == (model, WHOLE.usage, WHOLE.account)


def test_noise_after_the_way():
    """What isn't shown is told as it was; an older daemon says nothing of it."""
    plain = over_the_wire(WHOLE)

    assert Status.from_plain(plain, Path("s")).noise == WHOLE.noise
    del plain["noise"]
    assert Status.from_plain(plain, Path("s")).noise == NoiseStatus()


def test_newer_daemon():
    """What it tells in addition does no harm."""
    assert Status.from_plain(over_the_wire(WHOLE) | {"mood": "good"}, Path("s")) == WHOLE


@pytest.mark.parametrize(
    ("change", "said"),
    [({"pid": "7"}, r"Expected `int`, got `str` - at `\$.pid`"), ({"usage": None}, "Expected `object`")],
)
def test_something_else(change, said):
    """What is no status is said, and where it isn't."""
    with pytest.raises(InputError, match=said):
        Status.from_plain(over_the_wire(WHOLE) | change, Path("s"))
    with pytest.raises(InputError, match="something else than a status"):
        Status.from_plain([], Path("s"))


class World:
    """A process whose clock and work a test moves."""

    def __init__(self):
        self.time = 1000.0
        self.used = 3.0
        self.meter = Meter(lambda: self.time, lambda: self.used, lambda: (10, 20))

    def work(self, seconds, share):
        """Let time pass, some of it at work."""
        self.time += seconds
        self.used += seconds * share


def test_shares():
    """Since the start, and over the last minute, whatever was used before the start."""
    world = World()
    for share in [1.0] * 30 + [0.1] * 30:
        world.work(5, share)
        world.meter.sample()
    usage = world.meter.usage()

    assert usage.cpu_share == pytest.approx(0.55)
    assert usage.cpu_share_lately == pytest.approx(0.1)
    assert usage.lately_seconds == pytest.approx(60)
    assert usage.cpu_seconds == pytest.approx(3 + 165)
    assert (usage.memory_bytes, usage.memory_peak_bytes) == (10, 20)


def test_at_once():
    """Asked at the start it has used nothing."""
    usage = World().meter.usage()

    assert (usage.cpu_share, usage.cpu_share_lately, usage.lately_seconds) == (0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 2), st.booleans()), max_size=300))
def test_last_minute(steps):
    """Lately is a minute or the little more that lies between two samples, and never more samples than that."""
    world = World()
    for seconds, share, asks in steps:
        world.work(seconds, share)
        if asks:
            usage = world.meter.usage()
            assert 0 <= usage.cpu_share_lately <= 2.0001
            assert usage.lately_seconds <= world.time - 1000 + 0.001
        else:
            world.meter.sample()
    assert len(world.meter._samples) <= 62
