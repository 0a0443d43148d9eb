# SPDX-License-Identifier: Apache-2.0
"""Killed fifty times, guards end with their process or stay, as was chosen; what holds can be let go by anybody who is root."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ksentinel.bpf.guard_abi import Hook
from ksentinel.enforce import Mode
from ksentinel.enforce.left import left

TIMES = 50
ENTRIES = """
entries:
  - {id: secrets, deny: [read], file: {under: [%s]}}
"""


@pytest.fixture(scope="module")
def pins():
    mounted = Path("/sys/fs/bpf")
    if not os.path.ismount(mounted):
        subprocess.run(["mount", "-t", "bpf", "bpf", mounted], check=True)
    folder = mounted / "ksentinel-killed"
    folder.mkdir()
    yield folder
    folder.rmdir()


def opens(path):
    """Tell whether it can be opened."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return False
    return True


def test_killed(guards, pins, tmp_path):
    """A process that has attached and pinned is killed in the middle of nothing."""
    secret = tmp_path / "secret" / "one"
    secret.parent.mkdir()
    secret.write_text("x")
    compiled = guards.use(ENTRIES % secret.parent, also=())
    own = guards.guards
    # Loaded here once, attached by those that are killed: to load takes seconds.
    program = own._standing.pop(Hook.FILE_OPEN)
    program.detach_program("on_file_open")
    after = {"open": [], "hold": []}
    try:
        for number in range(TIMES):
            what = ("open", "hold")[number % 2]
            folder = pins / str(number)
            folder.mkdir()
            reading, writing = os.pipe()
            pid = os.fork()
            if not pid:
                own._attach(compiled.hooks)
                own.pin(folder, links=what == "hold")
                os.write(writing, b"%d" % opens(secret))
                signal.pause()
                os._exit(1)
            os.close(writing)
            assert os.read(reading, 1) == b"0"  # it stands
            os.close(reading)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            after[what].append(opens(secret))
            (one,) = left(pins)
            assert bool(one.holds) is (what == "hold")
            if number % 4 == 1:  # by the switch alone, guards standing
                one.release()
                assert opens(secret)
                own.release(on=False)
                assert not opens(secret)
            one.remove()
            assert opens(secret)
    finally:
        for one in left(pins):
            one.remove()

    assert after == {"open": [True] * (TIMES // 2), "hold": [False] * (TIMES // 2)}
    assert own.mode is Mode.ENFORCE
