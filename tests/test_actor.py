# SPDX-License-Identifier: Apache-2.0
"""The actor does every step, and the host is afterwards as it was before."""

import json
import os
import platform
import select
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import in_chroot

from ksentinel import actor
from ksentinel.selftest import CALLS
from ksentinel.syscalls import names

STEPS = [
    ["exec", "/bin/sh", "sh", "-c", "id"],
    ["exec", "/opt/ksentinel-made-up/x"],
    ["read", "/etc/ksentinel-made-up"],
    ["write", "/etc/ksentinel-made-up-too"],
    ["unlink", "/etc/shadow"],
    ["rename", "/etc/passwd", "/etc/ksentinel-made-up-passwd"],
    ["symlink", "/dev/null", "/root/.ksentinel-made-up"],
    ["chmod", "/tmp/ksentinel-made-up", "4755"],
    ["mount", "/var/ksentinel-made-up"],
    ["connect", "192.0.2.1", 443],
    ["connect", "2001:db8::1", 443],
    ["memfd"],
    ["ptrace"],
    ["bpf"],
    ["init_module"],
    ["kexec"],
    ["setns"],
    ["userns"],
]
REFUSED = {"connect", "bpf", "init_module", "kexec"}


def acted(steps, programs=()):
    plan = {
        "as": list(programs),
        "do": steps,
        "numbers": {name: n for n, name in names(platform.machine()).items() if name in CALLS},
        "interpreter": os.path.realpath(sys.executable),
        "script": actor.__file__,
        "home": sys.base_prefix,
        "libraries": [f"{sys.base_prefix}/lib", sysconfig.get_path("stdlib")],
    }
    return subprocess.run(
        [sys.executable, "-I", actor.__file__],
        input=json.dumps(plan), capture_output=True, text=True, check=False, env={}, cwd="/", timeout=60,
    )  # fmt: skip


def host():
    """Return what an action could have changed."""
    named = {path for step in STEPS for path in step if isinstance(path, str) and path.startswith("/")}
    files = {path: os.stat(path) if os.path.exists(path) else None for path in named - {"/dev/null"}}  # noqa: PTH110, PTH116
    about = {path: s and (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for path, s in files.items()}
    return about, Path("/proc/self/mountinfo").read_text(), sorted(os.listdir("/"))  # noqa: PTH208


@pytest.fixture
def namespaces():
    """Skip where root may not make namespaces, or has no root of a namespace to leave."""
    if in_chroot():
        pytest.skip("no namespaces to be had: in a chroot no root can be left")
    asked = subprocess.run(["unshare", "-mnpif", "true"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"no namespaces to be had: {asked.stderr.strip()}")


@pytest.mark.root
@pytest.mark.usefixtures("namespaces")
def test_every_step():
    """Each of them is done, or tried and refused; the host doesn't notice, whatever paths are named."""
    before = host()
    ran = acted(STEPS, ["/usr/sbin/cron", "/usr/sbin/nginx"])
    told = [line.partition(":")[0] for line in ran.stderr.splitlines()]

    assert {step[0] for step in STEPS} == set(actor.STEPS)
    assert (ran.returncode, sorted(set(told))) == (0, sorted(REFUSED))
    assert host() == before


@pytest.mark.root
@pytest.mark.usefixtures("namespaces")
def test_what_does_not_go_is_told():
    """A program among the libraries can't be made; a step that fails by itself is named."""
    among = acted([["exec", "/usr/lib/ksentinel-made-up"]])
    odd = acted([["chmod", "/tmp/x", "9"]])

    assert among.returncode == 1
    assert "Read-only file system" in among.stderr
    assert (odd.returncode, odd.stderr.partition(":")[0]) == (1, "chmod")


@pytest.mark.root
@pytest.mark.usefixtures("namespaces")
def test_ends_with_its_starter():
    """Whoever is killed outside takes all of it along."""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", SLEEPER, actor.__file__], stdout=subprocess.PIPE, env={}
    ) as process:
        first = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        ended, _, _ = select.select([first], [], [], 30)
        os.close(first)

    assert ended


SLEEPER = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("actor", sys.argv[1])
actor = importlib.util.module_from_spec(spec)
spec.loader.exec_module(actor)
def sleep(plan):
    time.sleep(60)
actor._root = sleep
fork = os.fork
def forked():
    pid = fork()
    if pid:
        time.sleep(0.5)  # until it has asked to be ended together
        print(pid, flush=True)
    return pid
os.fork = forked
actor.outside({})
"""


def test_nothing(tmp_path):
    """The program that does nothing ends well, with any arguments."""
    program = tmp_path / "x"
    program.write_bytes(actor.nothing(platform.machine()))
    program.chmod(0o755)
    ran = subprocess.run([program, "-c", "x"], capture_output=True, check=False)

    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_no_program():
    """For a machine that isn't known there is none."""
    with pytest.raises(ValueError, match="no program for vax"):
        actor.nothing("vax")
