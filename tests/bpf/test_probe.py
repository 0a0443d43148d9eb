# SPDX-License-Identifier: Apache-2.0
"""Trials: what is asked of the kernel, and that nothing of it stays."""

import ctypes
import errno
import os
from types import SimpleNamespace

import pytest

from ksentinel.bpf import probe
from ksentinel.errors import HostError


class Kernel:
    """Stands for libbpf: notes what is asked, answers what it was told to."""

    def __init__(self, answer, hook=42):
        self.answer, self.hook = answer, hook
        self.asked = []
        self.log = ["libbpf: something"]
        self.lib = SimpleNamespace(
            libbpf_find_vmlinux_btf_id=self.find, bpf_prog_load=self.load, bpf_map_create=self.create
        )

    def find(self, name, attach):
        """Look a hook up."""
        self.asked.append((name, attach))
        return self.hook

    def load(self, kind, name, license_, code, count, options):
        """Load a program."""
        one = options._obj
        assert (name, license_, len(code)) == (b"ks_probe", b"GPL", 8 * count)
        self.asked.append((kind, one.sz, one.attempts, one.expected_attach_type, one.attach_btf_id))
        return self.answer

    def create(self, kind, name, key, value, entries, options):
        """Make a map."""
        assert name == b"ks_probe"
        self.asked.append((kind, key, value, entries, options))
        return self.answer


@pytest.fixture
def kernel(monkeypatch):
    def make(*answers):
        one = Kernel(*answers)
        monkeypatch.setattr(probe, "library", lambda: one)
        return one

    return make


SIZE = ctypes.sizeof(probe._LoadOptions)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        (probe.RAW_TP, [(17, SIZE, 1, 0, 0)]),
        (probe.TP_BTF, [(b"sched_process_fork", 23), (26, SIZE, 1, 23, 42)]),
        (probe.ITER, [(b"task", 28), (26, SIZE, 1, 28, 42)]),
        (probe.LSM, [(b"bprm_check_security", 27), (29, SIZE, 1, 27, 42)]),
    ],
    ids=lambda value: value.name if isinstance(value, probe.ProgramType) else "",
)
def test_what_is_asked(kernel, kind, asked):
    """The numbers of linux/bpf.h; and the program that was loaded is closed again."""
    closed = os.open("/dev/null", os.O_RDONLY)
    one = kernel(closed)

    assert probe.try_program(kind) == 0
    assert one.asked == asked
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(closed)


def test_refused(kernel):
    """A refusal is its error number; what libbpf said of it doesn't turn up in another error."""
    one = kernel(-errno.EPERM)

    assert probe.try_program(probe.RAW_TP) == errno.EPERM
    assert one.log == []


@pytest.mark.parametrize(("hook", "code"), [(-errno.ESRCH, errno.ESRCH), (0, errno.ENOENT)])
def test_no_such_hook(kernel, hook, code):
    """A hook that this kernel lacks is not tried."""
    one = kernel(7, hook)

    assert probe.try_program(probe.LSM) == code
    assert len(one.asked) == 1


def test_ring_buffer(kernel):
    """A ring buffer of a page: no key, no value."""
    one = kernel(-errno.EINVAL)

    assert probe.try_ring_buffer() == errno.EINVAL
    assert one.asked == [(27, 0, 0, 4096, None)]


def test_why_no_libbpf(monkeypatch):
    """Without libbpf the reason is returned, not raised."""
    problem = HostError("none", remedy="apt")

    def missing():
        raise problem

    monkeypatch.setattr(probe, "library", missing)

    assert probe.why_no_libbpf() is problem


@pytest.mark.bpf
@pytest.mark.parametrize("kind", [probe.RAW_TP, probe.TP_BTF, probe.ITER, probe.LSM], ids=lambda k: k.name)
def test_trial_leaves_nothing(kind):
    """Tried for real: an answer, and no descriptor left."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208

    assert probe.try_program(kind) in {0, errno.EPERM, errno.EINVAL, errno.ENOENT, errno.ESRCH}
    assert probe.try_ring_buffer() in {0, errno.EPERM, errno.EINVAL}
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.bpf
def test_unknown_hook():
    """A hook that no kernel has is refused before anything is loaded."""
    unknown = probe.ProgramType("x", 26, 23, "no_such_tracepoint_anywhere")

    assert probe.try_program(unknown) in {errno.ESRCH, errno.ENOENT}
