# SPDX-License-Identifier: Apache-2.0
"""Where the files are that ship with ksentinel."""

import pytest

from ksentinel import shipped as module
from ksentinel.errors import HostError
from ksentinel.shipped import shipped


def test_clone():
    """In a clone the rules stand beside the package, or in it."""
    assert list(shipped("rules").rglob("*.yml"))


def test_wheel_first(tmp_path, monkeypatch):
    """What is inside the package comes before what is beside it."""
    package = tmp_path / "ksentinel"
    (tmp_path / "rules").mkdir()
    (package / "data" / "rules").mkdir(parents=True)
    monkeypatch.setattr(module, "_PACKAGE", package)

    assert package / "data" / "rules" == shipped("rules")
    (package / "data" / "rules").rmdir()
    assert tmp_path / "rules" == shipped("rules")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("x.bpf.o", r"make bpf"), ("lsm_bpf/y.bpf.o", "make bpf"), ("poems", "install ksentinel")],
)
def test_missing(name, remedy):
    """What isn't there says how to get it."""
    with pytest.raises(HostError, match=f"this installation has no {name}.*{remedy}"):
        shipped(name)
