# SPDX-License-Identifier: Apache-2.0
"""The demonstration's web server in a virtual machine: attacked while guards in its kernel only tell, and again while they refuse."""

import argparse
import base64
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from inside import RECORDING
from vm import kernel, machine
from vm.results import BAD
from webserver import fetch

from demo import DemoError, fresh, run, step
from ksentinel.errors import KsentinelError
from ksentinel.printable import printable

BUILD = Path(__file__).resolve().parents[1] / "build"
END = b"\0"


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.1", metavar="SERIES")
    parser.add_argument("--seconds", type=float, default=900, help="how long a machine may live")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return demonstrated(given.kernel, given.seconds)
    except (KsentinelError, DemoError) as error:
        print(f"\nThe demonstration failed: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(
            f"\nA step failed (exit {failed.returncode}): {' '.join(map(str, failed.cmd))}", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: the machine is gone, and all that was in it")
        return 130


def demonstrated(series: str, seconds: float) -> int:
    """Record in a machine, train here, and be attacked in another machine; returns the last one's exit status."""
    begun = time.monotonic()
    machine.need_root()
    fetch(BUILD)
    setup = machine.Setup(kernel.prepare(series))
    work = fresh(BUILD / "demo-vm")
    recording = work / "normal.db"
    print(f"A virtual machine with Linux {setup.kernel.release}, without KVM", flush=True)
    status = inside(setup, "learn", seconds, recording)
    if status or not recording.exists():
        return status or 1
    step("Training on this host (in the machine it takes minutes): what is normal there?")
    run("train", recording, "--out", work / "model")
    print("\nThe machine again", flush=True)
    status = inside(setup, "guard", seconds, recording)
    print(f"took {time.monotonic() - begun:.0f} s")
    return status


def inside(setup: machine.Setup, part: str, seconds: float, recording: Path) -> int:
    """Run a part in a machine of its own, show what it prints, keep the recording that it may send, and return its exit status."""
    terminal = sys.stdout.isatty()
    columns = shutil.get_terminal_size().columns if terminal else 110
    host = dict(os.environ) if terminal else {**os.environ, "TERM": "dumb"}
    variables = {"JOB": "program", "PROGRAM": "demo/inside.py", "ARGUMENT": part, "LINES": "50"}
    job = machine.Job({**machine.environment(setup, host, columns), **variables})
    console = kernel.BUILD / f"console-demo-{setup.kernel.version}.log"
    status = None
    with machine.Machine(setup, job, console) as guest:
        try:
            for line in guest.lines(time.monotonic() + seconds):
                if line.startswith(END):
                    status = int(line.removeprefix(END))
                    break
                if line.startswith(RECORDING):
                    recording.write_bytes(lzma.decompress(base64.b64decode(line.removeprefix(RECORDING))))
                    continue
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.buffer.flush()
        except TimeoutError:
            raise DemoError(f"the machine's {seconds:.0f} s are over: {guest.last_words(20)}") from None
        if status is None:
            raise DemoError(f"the machine has ended: {guest.last_words(20)}")
    lines = console.read_text(errors="replace").splitlines()
    if faults := [printable(line) for line in lines if BAD.search(line)]:
        raise DemoError("\n".join(["the machine's kernel complains:", *faults]))
    return status


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
