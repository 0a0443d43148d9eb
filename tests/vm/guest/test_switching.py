# SPDX-License-Identifier: Apache-2.0
"""Switches under load: each operation sees one mode and one policy, and none is let through in between."""

import os
import platform
import struct
import subprocess
import time
from mmap import mmap
from pathlib import Path

import pytest

from ksentinel.bpf.abi import Kind
from ksentinel.enforce import Mode
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.guards import CONFINING
from ksentinel.enforce.places import resolve
from ksentinel.enforce.settings import parse_settings

TAKES = 40

SOURCE = Path(__file__).with_name("hammer.c")
CONTROL = struct.Struct("=II9Q")
SWITCHES = 1000 if os.environ.get("KSENTINEL_FULL") else 150
EXCHANGES = 50
PROCESSES = 2

FORBIDDEN = """
entries:
  - {id: secret, deny: [read], file: {is: [%s]}}
  - {id: %s, deny: [write], file: {under: [%s]}}
"""


class Hammer:
    """Processes that open a file all the time."""

    def __init__(self, program, folder, path):
        control = folder / "control"
        control.write_bytes(bytes(CONTROL.size))
        with control.open("r+b") as file:
            self.memory = mmap(file.fileno(), CONTROL.size)
        self.command = [program, control, path, str(PROCESSES)]
        self.process = None

    def start(self):
        """Let them begin."""
        self.process = subprocess.Popen(self.command)

    def counts(self):
        """Return what has happened: under the first and the second state, then in all; each as went on, refused, otherwise."""
        told = CONTROL.unpack_from(self.memory)[2:]
        return told[:3], told[3:6], told[6:]

    @property
    def sequence(self):
        """What is in force, and whether it is just changing."""
        return struct.unpack_from("=I", self.memory)[0]

    @sequence.setter
    def sequence(self, value):
        struct.pack_into("=I", self.memory, 0, value)

    def stop(self):
        """Let it end."""
        struct.pack_into("=I", self.memory, 4, 1)
        if self.process is not None:
            self.process.wait(30)


@pytest.fixture
def hammer(guards, tmp_path):
    program, path = tmp_path / "hammer", tmp_path / "secret"
    path.write_text("x")
    subprocess.run(
        ["clang", "-O1", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True
    )
    one = Hammer(program, tmp_path, path)
    yield one
    one.stop()
    while drain(guards):
        pass


def until(holds, seconds=30):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end


def drain(guards):
    """Make room in the ring; of what is in it only births and ends of processes are looked at. Returns how much it was."""
    live = guards.live
    records = live.collector.poll(0.1)
    for record in records:
        if int.from_bytes(record[:2], "little") in {Kind.FORK, Kind.EXEC, Kind.EXIT}:
            live.normalizer.item(record)
    return len(records)


def changed(guards, before):
    """Return by how much the counters have grown."""
    return {name: value - before[name] for name, value in guards.guards.counters().items()}


def test_modes(guards, hammer, tmp_path, record_property):
    """Switches under load: nothing is refused while permissive, nothing goes on while enforced."""
    guards.guards.mode = Mode.PERMISSIVE
    guards.use(FORBIDDEN % (tmp_path / "secret", "other", tmp_path / "nothing"))
    hammer.sequence = 4
    start = guards.guards.counters()
    hammer.start()
    began = time.monotonic()
    for number in range(SWITCHES):
        enforced = number % 2 == 0
        hammer.sequence += 1
        guards.guards.mode = Mode.ENFORCE if enforced else Mode.PERMISSIVE
        # After 4 comes 6, whose second bit says that it is enforced.
        hammer.sequence += 1
        seen = sum(hammer.counts()[enforced])
        if number % 50 == 0:
            drain(guards)
        until(lambda enforced=enforced, seen=seen: sum(hammer.counts()[enforced]) > seen)
    seconds = time.monotonic() - began
    hammer.stop()
    permissive, enforce, every = hammer.counts()
    counted = changed(guards, start)

    figures = {
        "switches": SWITCHES,
        "seconds": round(seconds, 1),
        "permissive": permissive,
        "enforce": enforce,
        "all": every,
    }
    print(figures)  # noqa: T201 -- -rP shows it
    record_property("figures", str(figures))
    assert permissive[1:] == (0, 0)
    assert enforce[0] == enforce[2] == 0
    assert permissive[0] >= SWITCHES / 2
    assert enforce[1] >= SWITCHES / 2
    # What was under way when this began is counted as it ended.
    assert abs(counted["denied"] - every[1]) <= PROCESSES
    assert counted["no_room"] == 0


def test_exchange(guards, hammer, tmp_path, record_property):
    """Fifty times another policy, each forbidding the same: it never succeeds in between."""
    policies = [
        compile_policy(
            [], parse_settings(FORBIDDEN % (tmp_path / "secret", name, tmp_path / name), "enforce.yml"), resolve=resolve, arch=platform.machine(), also=CONFINING
        )
        for name in ("one", "other")
    ]  # fmt: skip
    guards.use()
    guards.guards.use(policies[0], [])
    hammer.sequence = 2
    hammer.start()
    until(lambda: hammer.counts()[1][1] > PROCESSES)
    start, epoch = guards.guards.counters(), guards.guards.epoch
    began = time.monotonic()
    for number in range(EXCHANGES):
        if number % 10 == 0:
            drain(guards)
        guards.guards.use(policies[number % 2 == 0], [])
    seconds = time.monotonic() - began
    refused = hammer.counts()[1][1]
    hammer.stop()
    every = hammer.counts()[1]
    counted = changed(guards, start)

    figures = {"exchanges": EXCHANGES, "seconds": round(seconds, 1), "enforce": every}
    print(figures)  # noqa: T201 -- -rP shows it
    record_property("figures", str(figures))
    assert guards.guards.epoch == epoch + EXCHANGES
    assert every[0] == every[2] == 0
    assert refused > 10 * EXCHANGES
    assert counted["no_room"] == 0
    assert counted["would_deny"] == counted["released"] == 0
