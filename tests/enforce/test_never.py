# SPDX-License-Identifier: Apache-2.0
"""The never-list: who is on it on a host, and why."""

from pathlib import Path

import pytest

from ksentinel.bpf.guard_abi import SparedFlag, SparedKind
from ksentinel.enforce.never import DEFAULTS, missing, never_list
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import Settings, parse_settings
from ksentinel.event import ProcessKey

THERE = {"/usr/sbin/sshd": Place(1, 10), "/usr/bin/dpkg": Place(1, 11), "/usr/bin/apt": Place(1, 12)}


def test_defaults():
    """Of the defaults those that are there, as root's; what package managers start, too."""
    found = {one.who: one for one in never_list(Settings(), THERE.get)}

    assert set(found) == set(THERE)
    assert {who: one.flags for who, one in found.items()} == {
        "/usr/sbin/sshd": SparedFlag.ROOTS,
        "/usr/bin/dpkg": SparedFlag.CHILDREN | SparedFlag.ROOTS,
        "/usr/bin/apt": SparedFlag.CHILDREN | SparedFlag.ROOTS,
    }
    assert all(one.why.startswith("by default: ") for one in found.values())


def test_processes():
    """Processes are spared as what they are."""
    (init,) = never_list(Settings(), {}.get, [("PID 1", ProcessKey(1, 5))])
    key = init.key()

    assert (key.kind, key.a, key.b) == (SparedKind.PROCESS, 1, 5)


def test_executables():
    """An executable is spared by its place."""
    found = next(one for one in never_list(Settings(), THERE.get) if one.who == "/usr/bin/apt")
    key = found.key()

    assert (key.kind, key.a, key.b) == (SparedKind.EXECUTABLE, 1, 12)


def test_settings():
    """An operator adds and removes; what was added and isn't there is told."""
    asked = parse_settings("never: {add: [/usr/sbin/x, /gone], remove: [/usr/bin/apt]}", "e.yml")
    found = never_list(asked, (THERE | {"/usr/sbin/x": Place(1, 20)}).get)

    assert [one.who for one in found] == ["/usr/sbin/sshd", "/usr/bin/dpkg", "/usr/sbin/x", "/gone"]
    assert [(one.who, one.why, one.key()) for one in missing(found)] == [
        ("/gone", "e.yml:1:28: never add", None)
    ]


def test_once():
    """Two names of one file are one."""
    same = dict.fromkeys(["/usr/bin/apt", "/usr/bin/apt-get", "/x"], Place(1, 1))
    found = never_list(Settings(spare=("/x",)), same.get)

    assert [one.who for one in found] == ["/usr/bin/apt"]


@pytest.mark.parametrize("path", DEFAULTS)
def test_documented(path):
    """Each default stands in the documentation, and no default is what everybody can have start anything."""
    page = (Path(__file__).parents[2] / "docs" / "enforcement-policy.md").read_text(encoding="utf-8")
    name = path.rpartition("/")[2]

    assert f"`{name}`" in page
    assert name not in {"systemd", "python3", "sh", "bash"}
