# SPDX-License-Identifier: Apache-2.0
"""What makes a process more than it was: refused, or told, of one program; another may."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from vm.guest.powers import POWERS, UNASKED
from vm.guest.workload import Op, forbidden, untouched, walk

from ksentinel.enforce import Mode

TAKES = 40
TOGETHER = "most guards"

ENTRIES = """
entries:
  - id: powers
    deny: [ptrace, module, kexec, bpf, mount, umount, userns, capset, prctl, kill]
    by: [%(by)s]
  - {id: root, deny: [setuid], to_root: true, by: [%(by)s]}
"""


class Powerful:
    """A program that does what it is told."""

    def __init__(self, executable):
        self.process = subprocess.Popen(
            [executable, "-S", "-B", "-m", "vm.guest.powers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={"PYTHONPATH": "tests", "PATH": os.environ["PATH"]},
        )
        self.said("up")

    def said(self, expected=None):
        """Return its next line."""
        line = self.process.stdout.readline().strip()
        assert expected is None or line == expected, line
        return line

    def prepare(self, op):
        """Have something prepared."""
        self.process.stdin.write(f"{op.name}\n")
        self.said("ready")
        return self

    def go(self):
        """Have it done; raises OSError."""
        self.process.stdin.write("go\n")
        number = int(self.said())
        if number:
            raise OSError(number, os.strerror(number))

    def close(self):
        """End it."""
        with self.process:
            self.process.stdin.close()


def op(name, hook):
    # To open another's memory is refused with the errno of a file.
    opens = name.startswith("open memory")
    return Op(name, Powerful.go, (hook,), errno.EACCES if opens else errno.EPERM)


OPS = tuple(op(name, hook) for name, (_, hook) in POWERS.items())


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The same program twice."""
    copy = shutil.copy(os.path.realpath(sys.executable), tmp_path_factory.mktemp("by") / "forbidden")
    found = {"forbidden": Powerful(copy), "free": Powerful(os.path.realpath(sys.executable)), "path": copy}
    yield found
    found["forbidden"].close()
    found["free"].close()


@pytest.fixture
def policy(guards, programs):
    guards.use(ENTRIES % {"by": programs["path"]})


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_forbidden(guards, programs, mode):
    """Each is refused and told once; permissive, each goes on and is told once."""
    assert walk(guards, OPS, programs["forbidden"].prepare, mode) == forbidden(OPS, mode)


@pytest.mark.usefixtures("policy")
def test_beside(guards, programs):
    """Another program does the same: nothing is refused, nothing is told."""
    assert walk(guards, OPS, programs["free"].prepare, Mode.ENFORCE) == untouched(OPS)


@pytest.mark.usefixtures("policy")
def test_not_refused(guards, programs):
    """What these operations don't mean, although it leads to similar things."""
    ops = tuple(op(name, "") for name in UNASKED)

    assert walk(guards, ops, programs["forbidden"].prepare, Mode.ENFORCE) == untouched(ops)
