# SPDX-License-Identifier: Apache-2.0
"""What guards cost, as a table: ratios to empty programs, and which targets are missed."""

import counted
import pytest
from page import _guards_section

SIDES = dict.fromkeys(side for target in counted.TARGETS for side in (target.side, target.of))


def counts(**those):
    """Return counts of 1,000 each, but for *those* sides."""
    sides = ["nothing", counted.BARE, *SIDES]
    return {
        side: dict.fromkeys(counted.OPERATIONS, those.get(side.split(",")[0].replace(" ", "_"), 1000))
        for side in sides
    }


def test_cells():
    """Each ratio is to the empty programs of its own half: without the collector, or beside it."""
    found = dict(counted.cells(counts(nothing=900, empty_programs=1800, permissive=1250)))

    assert found["nothing"][0] == "0.50 (-900)"
    assert found[counted.EMPTY][0] == "1.00 (+0)"
    assert found["permissive, spoken"][0] == "1.25 (+250)"


@pytest.mark.parametrize(("cost", "told"), [(1200, "1.20"), (1201, "1.20 (missed)")])
def test_targets(cost, told):
    """What is over its target is marked; where refusing leaves nothing to compare, there is no ratio."""
    found = {target.side: row for target, row in counted.judged(counts(permissive=cost))}

    assert found["permissive, spoken"] == [told, "-", "-", told]


def test_section():
    """A table for each kernel, as wide in all its rows; nothing where nothing was counted."""
    found = _guards_section({"guards": {"6.1.0": {"measured": "2026-01-02", "counts": counts()}}})

    assert "Under Linux 6.1.0, counted 2026-01-02" in found
    for block in found.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert _guards_section({}) == ""


def test_lines():
    """The terminal has every side."""
    told = "\n".join(counted.lines(counts()))

    assert all(side in told for side in SIDES)
