# SPDX-License-Identifier: Apache-2.0
"""The machine is what the other tests take it for."""

import os
import sys
from pathlib import Path

import pytest

from ksentinel.bpf import probe

LSM = Path("/sys/kernel/security/lsm")


def test_kernel(kernel):
    """The kernel is the one whose name the results bear."""
    assert f"Debian {kernel}" in os.uname().version


def test_security_modules():
    """BPF is among the active ones if it was asked for, and not otherwise."""
    asked = os.environ["KSENTINEL_LSM"].split(",")

    assert ("bpf" in LSM.read_text().split(",")) == ("bpf" in asked)


@pytest.mark.parametrize(
    "kind", [probe.RAW_TP, probe.TP_BTF, probe.ITER, probe.LSM], ids=lambda kind: kind.name.replace("/", "_")
)
def test_program_loads(kind):
    """Every kind of program that we have is accepted, LSM programs too."""
    assert probe.try_program(kind) == 0


def test_types():
    """The kernel has the types that programs are fitted to."""
    assert Path("/sys/kernel/btf/vmlinux").stat().st_size > 1 << 20


@pytest.mark.parametrize("place", ["/run", "/tmp", "/dev/shm", "/var/lib", "/var/cache", "/root"])
def test_places_to_write(place):
    """What runs here can keep its files where it does on a host."""
    file = Path(place) / "ksentinel-test"
    file.write_text("kept")

    assert file.read_text() == "kept"


@pytest.mark.parametrize("folder", ["/usr", "/etc", str(Path(__file__).parent)])
def test_host_is_read_only(folder):
    """The host's own files can't be written."""
    with pytest.raises(OSError, match="Read-only"):
        (Path(folder) / "ksentinel-test").write_text("never")


def test_nothing_slow_is_imported():
    """No test here imports scikit-learn, which takes 20 s in a virtual machine."""
    assert "sklearn" not in sys.modules
