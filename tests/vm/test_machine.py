# SPDX-License-Identifier: Apache-2.0
"""What a guest is given, and that nothing of it outlives the run."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from vm import machine
from vm.kernel import Kernel

from ksentinel.errors import HostError

SETUP = machine.Setup(Kernel("6.1.0-56", "6.1.192", Path("/nowhere")))


def test_environment():
    """Of the host's environment only what its Python needs, and nothing that could tell secrets."""
    found = machine.environment(SETUP, {"PYTHONPATH": "/p", "TERM": "xterm", "TOKEN": "secret"}, 80)

    assert (found["PYTHONPATH"], found["TERM"], found["KSENTINEL_KERNEL"]) == ("/p", "xterm", "6.1.192")
    assert found["PYTHON"] == sys.executable
    assert "secret" not in found.values()


@pytest.mark.parametrize("counted", [False, True])
def test_clock(counted):
    """Counted, its clock is that of its one processor's instructions."""
    setup = machine.Setup(SETUP.kernel, cpus=1, counted=counted)
    guest = machine.Machine(setup, machine.Job({}), Path("/nowhere/console"))
    command = guest._command("qemu", Path("/nowhere"), Path("/nowhere/files.sock"))

    assert ("-icount" in command) is counted
    assert command[command.index("-accel") + 1] == f"tcg,thread={'single' if counted else 'multi'}"


@pytest.mark.parametrize(
    ("root", "kept"),
    [
        ("/root/my clone", ["/root/my clone"]),
        ("/var/lib/k", ["/var/lib/k"]),
        ("/srv/k", []),
        ("/rootless/k", []),
    ],
)
def test_kept(root, kept, monkeypatch):
    """A checkout below a place that the guest covers is put back on top of it."""
    monkeypatch.setattr(sys, "prefix", f"{root}/.venv")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    found = machine.environment(SETUP, {}, 80, Path(root))["KEPT"]

    assert found.splitlines() == kept


def test_job():
    """A shell reads back what the job says, whatever is in it."""
    values = {"A": "it's $HOME `id`", "B": "two\nlines", "C": ""}
    shown = "; ".join(f'printf "%s\\0" "${name}"' for name in values)
    script = machine.Job(values).script() + shown

    assert subprocess.check_output(["/bin/sh", "-c", script]).decode().split("\0")[:-1] == list(
        values.values()
    )


def test_last_words(tmp_path):
    """The console's last lines, escaped."""
    console = tmp_path / "console"
    guest = machine.Machine(SETUP, machine.Job({}), console)
    assert guest.last_words() == "(the console is empty)"

    console.write_bytes(b"first\r\nsecond\r\n\r\n\x1b[31mBUG\xff\r\n")
    assert guest.last_words(2) == "second\n\\x1b[31mBUG\\xff"


def test_lines(tmp_path):
    """Lines as they come, in whatever pieces; the last one may be cut."""
    ours, guests = socket.socketpair()
    guest = machine.Machine(SETUP, machine.Job({}), tmp_path / "console")
    guest._channel = ours
    with ours, guests:
        found = guest.lines(time.monotonic() + 10)
        guests.sendall(b"one\ntw")
        assert next(found) == b"one"
        guests.sendall(b"o\nthr")
        assert next(found) == b"two"
        guests.shutdown(socket.SHUT_WR)
        assert list(found) == [b"thr"]


def test_time_is_up(tmp_path):
    """A guest that keeps silent, or never stops talking, is waited for no longer than was said."""
    ours, guests = socket.socketpair()
    guest = machine.Machine(SETUP, machine.Job({}), tmp_path / "console")
    guest._channel = ours
    with ours, guests:
        with pytest.raises(TimeoutError):
            next(guest.lines(time.monotonic() + 0.05))
        guests.sendall(b"one\n")
        with pytest.raises(TimeoutError):
            next(guest.lines(time.monotonic() - 1))


def test_not_root():
    """It is said before anything is fetched."""
    machine.need_root(0)
    with pytest.raises(HostError, match=r"needs root \(run this with sudo"):
        machine.need_root(1000)


def test_no_server():
    """The error names the places that were looked at, and the remedy."""
    with pytest.raises(HostError, match=r"no virtiofsd here: none of /nowhere \(make debs-vm"):
        machine.found_server(["/nowhere"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_server_that_ends(tmp_path):
    """A file server that can't be is told with what it says."""
    (tmp_path / "boot").mkdir()
    with (tmp_path / "log").open("w+b") as log:
        command = ["/bin/sh", "-c", "echo no such option >&2; exit 3"]
        with (
            machine.process(command, log) as running,
            pytest.raises(HostError, match="ends with 3: no such option"),
        ):
            machine.wait_for(tmp_path / "socket", running, log)


def test_ends_with_us(tmp_path):
    """What was started is gone after its block, and when the one who started it is killed."""
    with (tmp_path / "log").open("w+b") as log, machine.process(["sleep", "60"], log) as running:
        assert running.poll() is None
    assert running.poll() == -signal.SIGKILL

    script = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from vm import machine
        with open({str(tmp_path / "log")!r}, "w+b") as log, machine.process(["sleep", "60"], log) as running:
            print(running.pid, flush=True)
            sys.stdin.read()
    """
    killed = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with killed:
        child = int(killed.stdout.readline())
        killed.kill()
    end = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and running_state(child) != "Z" and time.monotonic() < end:
        time.sleep(0.01)

    assert not Path(f"/proc/{child}").exists() or running_state(child) == "Z"


def running_state(pid):
    """Return the letter of a process's state; Z if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.root
def test_served_read_only(tmp_path):
    """Who is shown the host's files can't write them, nor what is mounted below them, and only they see the view."""
    view = tmp_path / "view"
    view.mkdir()
    files = [tmp_path / "file", Path("/dev/shm/ksentinel-vm-test")]
    there = " ".join(shlex.quote(f"{view}{file}") for file in files)
    script = f"for f in {there}; do touch $f && echo written; done; ls -d {view}/proc/self {view}/usr"
    done = subprocess.run(
        [sys.executable, machine.SERVE, view, "/bin/sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split() == [f"{view}/proc/self", f"{view}/usr"], done.stderr
    assert done.stderr.count("Read-only file system") == 2
    assert not any(file.exists() for file in files)
    assert list(view.iterdir()) == []
