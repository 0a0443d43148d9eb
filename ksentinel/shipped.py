# SPDX-License-Identifier: Apache-2.0
"""Where the files that ship with ksentinel are: inside the wheel, or beside the package in a clone."""

from pathlib import Path

from ksentinel.errors import HostError

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """
    Return the path of *name* (``rules``, ``lsm_bpf/trace.bpf.o``, ...).

    Raises
    ------
    HostError
        If this installation lacks it.
    """
    for root in (_PACKAGE / "data", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    remedy = "run `make bpf` in the clone" if name.endswith(".bpf.o") else "install ksentinel anew"
    raise HostError(f"this installation has no {name}", at=_PACKAGE, remedy=remedy)
