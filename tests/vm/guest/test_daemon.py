# SPDX-License-Identifier: Apache-2.0
"""`ksentinel enforce`, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ksentinel.bpf import probe

TAKES = 100

KSENTINEL = [str(Path(sys.executable).with_name("ksentinel"))]
ENTRIES = """
entries:
  - {{id: secrets, deny: [read], file: {{under: [{0}]}}}}
"""
RULE = """
title: Somebody loads a kernel
id: 5d5ff2ff-6b1d-4d7f-9a35-3f0a7d9b8a10
status: test
level: critical
logsource: {product: linux, category: syscall}
detection:
  sel:
    syscall: kexec_load
  condition: sel
ksentinel: {action: deny, inline: true}
"""


class Daemon:
    """A running `ksentinel enforce`."""

    def __init__(self, folder, *options):
        self.folder = folder
        (folder / "enforce.yml").write_text(ENTRIES.format(folder / "secret"))
        (folder / "config.yml").write_text(
            f"enforce: {{file: {folder}/enforce.yml, hold_seconds: 600, proof_seconds: 20}}\n"
        )
        (folder / "rule.yml").write_text(RULE)
        (folder / "secret").mkdir(exist_ok=True)
        (folder / "secret" / "one").write_text("x")
        self.log = folder / "log"
        self.control = folder / "control.sock"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *KSENTINEL, "enforce", "--config", folder / "config.yml", "--rules", folder / "rule.yml", "--store", folder / "state/alerts.db",
                    "--control", self.control, *options,
                ],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def said(self):
        """Return all that it has said."""
        return self.log.read_text()

    def wait(self, words, seconds=150):
        """Wait until it says that."""
        end = time.monotonic() + seconds
        while words not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.2)

    def ask(self, *command):
        """Run another command on it; returns its exit status and its JSON."""
        done = subprocess.run(
            [*KSENTINEL, *command, "--control", self.control, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.startswith("{") else done.stderr

    def status(self):
        """Return what it says of enforcement."""
        return self.ask("status")[1]["enforcement"]

    def end(self, number=signal.SIGTERM, seconds=60):
        """Send it a signal, and wait."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


@pytest.fixture(scope="module", autouse=True)
def takes_lsm_programs():
    refused = probe.try_program(probe.LSM)
    if refused:
        pytest.skip(f"no LSM program loads here: {os.strerror(refused)}")


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(*options):
        running.append(Daemon(tmp_path, *options))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait(30)
    subprocess.run(
        [*KSENTINEL, "release", "--all", "--control", tmp_path / "control.sock"],
        capture_output=True,
        check=False,
    )


def readable(path):
    """Tell whether another program can read a file: not this one, which started the daemon and is spared."""
    return subprocess.run(["setsid", "cat", path], capture_output=True, check=False).returncode == 0


def test_enforce(start):
    """It enforces, proves it, and says so; modes are switched, everything is released; when it ends, all goes on."""
    daemon = start("--mode", "enforce")
    daemon.wait("verified: enforce")
    told = daemon.status()
    refused = not readable(daemon.folder / "secret/one")

    assert refused, daemon.said()
    assert (told["requested"], told["mode"], told["verified"]) == ("enforce", "enforce", "enforce")
    assert told["attached"]
    assert told["unproven"] == {}
    assert told["missing"] == {}

    code, told = daemon.ask("enforce", "mode", "permissive")
    assert (code, told["verified"]) == (0, "permissive")
    assert readable(daemon.folder / "secret/one")

    code, told = daemon.ask("enforce", "mode", "enforce", "--rule", "secrets")
    assert (code, told["modes"]) == (0, {"entry:secrets": "enforce"})
    assert not readable(daemon.folder / "secret/one")

    assert daemon.ask("release")[0] == 0
    assert readable(daemon.folder / "secret/one")
    assert daemon.status()["verified"] == "no"

    assert daemon.end() == 0
    assert readable(daemon.folder / "secret/one")
    counts = subprocess.run(
        [*KSENTINEL, "enforce", "denials", "--json", "--store", daemon.folder / "state/alerts.db"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert {(one["rule"], one["outcome"]) for one in map(json.loads, counts.splitlines())} >= {
        ("entry:secrets", "denied"),
        ("entry:secrets", "would_deny"),
    }


def test_hold(start):
    """Killed, its guards stay, and the next one takes over; `release --all` needs nobody."""
    mine = Path("/sys/fs/bpf")
    if not os.path.ismount(mine):
        subprocess.run(["mount", "-t", "bpf", "bpf", mine], check=True)
    daemon = start("--mode", "enforce", "--on-exit", "hold")
    daemon.wait("verified: enforce")
    daemon.end(signal.SIGKILL)
    held = not readable(daemon.folder / "secret/one")

    following = start("--mode", "enforce", "--on-exit", "hold")
    following.wait("took over")
    following.wait("verified: enforce")
    taken = not readable(daemon.folder / "secret/one")
    following.end(signal.SIGKILL)
    done = subprocess.run(
        [*KSENTINEL, "release", "--all", "--control", daemon.control],
        capture_output=True,
        text=True,
        check=False,
    )

    assert held
    assert taken
    assert done.returncode == 0, done.stderr
    assert readable(daemon.folder / "secret/one"), done.stderr
    assert list(mine.glob("ksentinel/*")) == []
