# SPDX-License-Identifier: Apache-2.0
"""Children end with us, and what they cost is read right."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import BenchError, Child, Tool, busy_share, cpu_seconds, peak_mebibytes, run, settle

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_cpu_seconds(tmp_path):
    """User and system time, whatever the program is called; who has ended counts no more."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 150 50 9 9 20 0 1 0")

    assert cpu_seconds([7, 8], tmp_path) == 200 / os.sysconf("SC_CLK_TCK")


def test_peak(tmp_path):
    """The high-water mark, in MiB."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n")

    assert peak_mebibytes(7, tmp_path) == 2


def test_busy_share(tmp_path):
    """Between 0 and 1; where no tick has passed, none was used."""
    (tmp_path / "stat").write_text("cpu  10 5 20 100 30 1 2 3 0 0\n")

    assert busy_share(0, tmp_path / "stat") == 0
    assert 0 <= busy_share(0.1) <= 1


def test_child_ends(tmp_path):
    """At the end of the block it is gone."""
    with Child(["sleep", "60"], tmp_path / "sleep") as child:
        assert child.process.poll() is None

    assert child.process.returncode == -signal.SIGTERM


def test_stubborn_child(tmp_path):
    """Who doesn't end in time is killed, and that is told."""
    child = Child([sys.executable, "-c", STUBBORN], tmp_path / "stubborn", patience=0.2)
    with pytest.raises(BenchError, match=r"stubborn did not end within 0\.2 s and was killed"), child:
        child.wait_until(lambda: child.says("up"))

    assert child.process.returncode == -signal.SIGKILL


def test_early_end(tmp_path):
    """Waiting for somebody who has ended isn't waiting for ever."""
    with (
        pytest.raises(BenchError, match="false ended with 1: it said nothing"),
        Child(["false"], tmp_path / "false") as child,
    ):
        child.wait_until(lambda: False)


def test_ends_with_us():
    """The kernel ends it when its parent is killed."""
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2] / 'bench')!r})\n"
        "import os, pathlib, signal, tempfile\n"
        "from children import Child\n"
        "log = pathlib.Path(tempfile.mkdtemp()) / 'sleep'\n"
        "with Child(['sleep', '60'], log) as child:\n"
        "    child.wait_until(lambda: open(f'/proc/{child.pid}/comm').read() == 'sleep\\n')\n"
        "    print(child.pid, log.parent, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    pid, folder = told.stdout.split()
    for left in Path(folder).iterdir():
        left.unlink()
    Path(folder).rmdir()

    assert told.returncode == -signal.SIGKILL
    assert ended(int(pid))


def ended(pid):
    """Tell whether a process ends in the next seconds; a zombie has."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_run():
    """What a command prints; only what is given is in its environment."""
    assert run(["env"], Tool(Path("/usr/bin/env"), (Path("/a"), Path("/b"))).environment()).splitlines() == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
        "LANG=C.UTF-8",
        "TERM=dumb",
        "LD_LIBRARY_PATH=/a:/b",
    ]


def test_run_fails():
    """Its last words are ours."""
    with pytest.raises(BenchError, match="sh ended with 3: two"):
        run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"])


def test_run_takes_too_long():
    """It is ended, with its children."""
    begin = time.monotonic()
    with pytest.raises(BenchError, match=r"sh took longer than 0\.2 s"):
        run(["sh", "-c", "sleep 50 & sleep 60"], seconds=0.2)

    assert time.monotonic() - begin < 10


def test_settle_nobody():
    """Nobody has caught up at once."""
    assert settle([], 1.0)


def test_settle_busy():
    """Who goes on working hasn't when time is up."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            assert not settle([busy.pid], 0.7)
        finally:
            busy.kill()
