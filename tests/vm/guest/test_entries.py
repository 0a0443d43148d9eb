# SPDX-License-Identifier: Apache-2.0
"""An operator's entries, on a real kernel: what is forbidden fails and is told, what isn't goes on and is not."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from ksentinel.bpf.guard_abi import SentenceKind
from ksentinel.enforce import Mode
from ksentinel.event import Outcome, ProcessKey

ENTRIES = """
entries:
  - {id: secrets, deny: [read, write, create, unlink, rename, link, attributes], file: {under: [%s]}}
  - {id: net, deny: [connect], network: {to: [127.0.0.0/8], port: [7777]}}
  - {id: kexec, deny: [kexec]}
"""


@pytest.fixture
def secrets(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "one").write_text("x")
    (tmp_path / "open").write_text("y")
    return tmp_path


def fails(act):
    """Tell whether something is refused."""
    try:
        act()
    except PermissionError:
        return True
    return False


def test_file(guards, secrets):
    """Whatever lies below a protected directory; nothing else."""
    guards.use(ENTRIES % (secrets / "secret"))
    one, other = secrets / "secret/one", secrets / "open"

    refused = [
        fails(one.read_text),
        fails(lambda: one.write_text("z")),
        fails(lambda: (secrets / "secret/new").write_text("z")),
        fails(one.unlink),
        fails(lambda: one.rename(secrets / "gone")),
        fails(lambda: other.rename(secrets / "secret/come")),
        fails(lambda: os.link(other, secrets / "secret/link")),
        fails(lambda: one.chmod(0o777)),
    ]
    let = [
        fails(other.read_text),
        fails(lambda: other.chmod(0o600)),
        fails(lambda: os.link(other, secrets / "l")),
    ]
    said = guards.mine()

    assert refused == [True] * 8
    assert let == [False] * 3
    assert [one.hook for one in said] == [
        "file_open", "file_open", "path_mknod", "path_unlink", "path_rename", "path_rename", "path_link", "path_chmod",
    ]  # fmt: skip
    assert {(one.rule, one.outcome) for one in said} == {("entry:secrets", Outcome.DENIED)}
    assert said[0].paths == (str(one),)


def test_permissive(guards, secrets):
    """Permissive, it goes on, and is told all the same; off, nothing is."""
    guards.use(ENTRIES % (secrets / "secret"))
    guards.guards.mode = Mode.PERMISSIVE
    went_on = not fails((secrets / "secret/one").read_text)
    said = guards.mine()
    guards.guards.mode = Mode.OFF
    off = not fails((secrets / "secret/one").read_text)

    assert went_on
    assert [(one.rule, one.outcome, one.mode) for one in said] == [
        ("entry:secrets", Outcome.WOULD_DENY, "permissive")
    ]
    assert off
    assert guards.mine() == []


def test_network(guards, secrets):
    """A network and a port: both."""
    guards.use(ENTRIES % (secrets / "secret"))
    with socket.socket() as one, socket.socket() as other:
        refused = fails(lambda: one.connect(("127.0.0.1", 7777)))
        try:
            other.connect(("127.0.0.1", 7778))
        except ConnectionRefusedError:
            let = True
    said = guards.mine()

    assert refused
    assert let
    assert [(one.hook, str(one.address)) for one in said] == [("socket_connect", "127.0.0.1:7777")]


def started(pid):
    """Return who a process is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ProcessKey(pid, int(fields[19]) * 10_000_000)


def test_quarantine(guards):
    """A verdict on a process: it can't execute, nor write; its children can't either; when it has ended they can."""
    guards.use()
    script = "read x; cat /etc/hostname >/dev/null 2>&1 && echo ran || echo refused; echo y > /tmp/w && echo wrote || echo no; read x; cat /etc/hostname >/dev/null && echo ran"
    with subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as shell:
        key = started(shell.pid)
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
        guards.guards.sentence(key, SentenceKind.QUARANTINE, until, 1, Mode.ENFORCE)
        shell.stdin.write("\n")
        first, second = shell.stdout.readline(), shell.stdout.readline()
        under = guards.guards.sentences()
        guards.guards.lift(key)
        shell.stdin.write("\n")
        third = shell.stdout.readline()

    said = guards.mine(pids=[key.pid])
    assert (first, second, third) == ("refused\n", "no\n", "ran\n")
    assert key in under
    assert {one.sentence for one in said} == {"quarantine"}
    assert {one.outcome for one in said} == {Outcome.DENIED}


def test_never(guards, secrets):
    """Who is on the never-list isn't denied anything, and that is told."""
    from ksentinel.enforce.never import Spared
    from ksentinel.enforce.places import resolve

    guards.use(ENTRIES % (secrets / "secret"))
    place = resolve(os.path.realpath("/bin/cat"))
    path = str(secrets / "secret/one")
    before = subprocess.run(["cat", path], capture_output=True, check=False).returncode
    guards.guards.spare([Spared("cat", "a test", place)])
    after = subprocess.run(["cat", path], capture_output=True, check=False).returncode

    assert (before, after) == (1, 0)
    assert [one.outcome for one in guards.mine()] == [Outcome.DENIED, Outcome.SPARED]


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 40])
def test_depth(guards, secrets, depth):
    """However far below the protected directory, and whatever is mounted between; beside it nothing is refused."""
    names = "/".join("d" * depth)
    for top in ("secret", "beside"):
        (secrets / top / names).mkdir(parents=True)
        (secrets / top / names / "file").write_text("x")
    guards.use(ENTRIES % (secrets / "secret"))
    told = [fails((secrets / top / names / "file").read_text) for top in ("secret", "beside")]

    assert told == [True, False]


@pytest.mark.parametrize("depth", [1, 16, 20])
def test_mounted_below(guards, secrets, depth):
    """A file system mounted below the protected directory is below it, and the same mounted elsewhere isn't."""
    for top in ("secret/inner", "beside"):
        (secrets / top).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", secrets / top], check=True)
    try:
        names = "/".join("d" * depth)
        for top in ("secret/inner", "beside"):
            (secrets / top / names).mkdir(parents=True)
            (secrets / top / names / "file").write_text("x")
        guards.use(ENTRIES % (secrets / "secret"))
        told = [fails((secrets / top / names / "file").read_text) for top in ("secret/inner", "beside")]
        said = guards.mine()
    finally:
        for top in ("secret/inner", "beside"):
            subprocess.run(["umount", secrets / top], check=True)

    assert told == [True, False]
    assert [one.paths for one in said] == [(str(secrets / "secret/inner" / names / "file"),)]


def test_heartbeat(guards, secrets):
    """Where nobody has watched for longer than was said, nothing is denied, and that is told; until somebody does again."""
    guards.use(ENTRIES % (secrets / "secret"))
    one = secrets / "secret/one"
    guards.guards.beat()
    guards.guards.hold(two_key_ns=0, all_ns=1)
    let = not fails(one.read_text)
    guards.guards.hold(two_key_ns=0, all_ns=3600 * 10**9)
    guards.guards.beat()
    refused = fails(one.read_text)
    guards.guards.hold(two_key_ns=0, all_ns=0)

    assert (let, refused) == (True, True)
    assert [one.outcome for one in guards.mine()] == [Outcome.RELEASED, Outcome.DENIED]


def test_most(guards, secrets):
    """A cap is above every mode that anybody has named."""
    guards.use(ENTRIES.replace("- {id: secrets,", "- {id: secrets, mode: enforce,") % (secrets / "secret"))
    one = secrets / "secret/one"
    guards.guards.mode = Mode.OFF
    before = fails(one.read_text)
    guards.guards.most = Mode.PERMISSIVE
    capped = fails(one.read_text)
    guards.guards.most = None
    after = fails(one.read_text)

    assert (before, capped, after) == (True, False, True)
    assert [one.outcome for one in guards.mine()] == [Outcome.DENIED, Outcome.WOULD_DENY, Outcome.DENIED]


def test_ended_verdict(guards):
    """A verdict ends by itself, and one on a process that only would be denied denies nothing."""
    guards.use()
    with subprocess.Popen(
        ["sh", "-c", "read x; cat /etc/hostname >/dev/null && echo ran; read x; cat /etc/hostname >/dev/null && echo ran"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as shell:  # fmt: skip
        key = started(shell.pid)
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        guards.guards.sentence(key, SentenceKind.QUARANTINE, now + 1, 1)
        shell.stdin.write("\n")
        first = shell.stdout.readline()
        left = guards.guards.sentences()
        guards.guards.mode = Mode.PERMISSIVE
        guards.guards.sentence(key, SentenceKind.KILL, now + 60 * 10**9, 1)
        shell.stdin.write("\n")
        second = shell.stdout.readline()

    said = guards.mine(pids=[key.pid])
    assert (first, second) == ("ran\n", "ran\n")
    assert key not in left
    assert {(one.sentence, one.outcome) for one in said} == {("kill", Outcome.WOULD_DENY)}


def test_killed(guards):
    """A verdict of kill ends the process at the next operation that guards are asked about, and its children with it."""
    guards.use()
    with subprocess.Popen(
        ["sh", "-c", "read x; cat /etc/hostname; echo on"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as shell:
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 60 * 10**9
        guards.guards.sentence(started(shell.pid), SentenceKind.KILL, until, 1)
        said, _ = shell.communicate("\n", timeout=30)

    assert said in {
        "",
        "on\n",
    }  # the shell opens nothing itself: its child is ended, or it is at its next operation
    assert any(one.killed and one.sentence == "kill" for one in guards.mine(pids=[shell.pid]))
