# SPDX-License-Identifier: Apache-2.0
"""Errors say what, where and what to do, in one line."""

from pathlib import Path

import pytest

from ksentinel.errors import (
    ConfigError,
    HostError,
    InputError,
    KsentinelError,
    Location,
    ModelError,
    RuleError,
    UsageError,
)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        (Location("a.yml"), "a.yml"),
        (Location(Path("/x/a.yml"), 3), "/x/a.yml:3"),
        (Location("a.yml", 3, 8), "a.yml:3:8"),
    ],
)
def test_location(location, text):
    """What isn't known is left out."""
    assert text == str(location)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KsentinelError("is damaged"), "is damaged"),
        (InputError("is damaged", at="x.ksr"), "x.ksr: is damaged"),
        (
            InputError("is damaged", at=Path("x.ksr"), remedy="record again"),
            "x.ksr: is damaged (record again)",
        ),
        (RuleError("no title", Location("a.yml", 1, 2)), "a.yml:1:2: no title"),
    ],
)
def test_text(error, text):
    """Place, what is wrong, remedy."""
    assert text == str(error)


@pytest.mark.parametrize(
    ("kind", "status", "bases"),
    [
        (UsageError, 2, (KsentinelError,)),
        (ConfigError, 2, (UsageError,)),
        (InputError, 1, (KsentinelError,)),
        (RuleError, 1, (InputError,)),
        (ModelError, 1, (InputError,)),
        (HostError, 1, (KsentinelError,)),
    ],
)
def test_tree(kind, status, bases):
    """The tree is the one in the docstring, with its exit statuses."""
    assert (status, bases) == (kind.exit_status, kind.__bases__)
