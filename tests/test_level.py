# SPDX-License-Identifier: Apache-2.0
"""Levels: order and names."""

import pytest

from ksentinel.level import Level


def test_order():
    """From nothing to critical."""
    names = ["none", "informational", "low", "medium", "high", "critical"]

    assert names == [str(level) for level in sorted(Level)]
    assert max(Level.LOW, Level.HIGH) is Level.HIGH


@pytest.mark.parametrize("level", Level)
def test_parse(level):
    """Names lead back to their level, in any case."""
    assert level is Level.parse(str(level))
    assert level is Level.parse(str(level).upper())


@pytest.mark.parametrize("name", ["", "terrible", "4", "high ", "__class__", "parse"])
def test_unknown(name):
    """The message lists what there is."""
    with pytest.raises(ValueError, match="is none of informational, low, medium, high, critical"):
        Level.parse(name)
