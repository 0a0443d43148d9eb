# SPDX-License-Identifier: Apache-2.0
"""The account is held against the equations that the documentation states."""

import pytest
from account import DOCUMENT, Equation, dropped, equations, sums, told, value

from ksentinel.bpf import abi
from ksentinel.sources.ringbuf import numbers

SEEN = Equation("seen", ("recorded", "no storage"))
CLOSED = Equation("closed", ("windows sent", "windows dropped"))
ACCOUNT = {
    "seen": 10,
    "recorded": 9,
    "no_storage": 1,
    "closed_full": 3,
    "closed_exit": 2,
    "windows_sent": 4,
    "windows_dropped": 1,
}


def test_exact():
    """Equal sums are, also where only the kinds of the whole are counted."""
    seen, closed = sums(ACCOUNT, [SEEN, CLOSED])

    assert (seen.exact, closed.whole, closed.exact) == (True, 5, True)


@pytest.mark.parametrize("changed", [{"seen": 11}, {"recorded": 8}])
def test_not_exact(changed):
    """One off is not exact."""
    (seen,) = sums(ACCOUNT | changed, [SEEN])

    assert not seen.exact


@pytest.mark.parametrize(
    ("counted", "share"),
    [
        (ACCOUNT, {"windows": 0.2}),
        ({"windows_sent": 0, "windows_dropped": 7}, {"windows": 1}),
        ({"windows_sent": 7, "windows_shed": 1, "calls_dropped": 1}, {}),
    ],
    ids=["some", "all", "unpaired"],
)
def test_dropped(counted, share):
    """Of what was sent or dropped; what is counted one way only has no share."""
    assert dropped(counted) == share


def test_unknown_name():
    """A name that the account lacks isn't taken for 0."""
    with pytest.raises(LookupError, match=r"no 'gated'.*collector\.md"):
        value(ACCOUNT, "gated")


def test_document():
    """There are equations in the document, of system calls and of what can be dropped."""
    found = equations(DOCUMENT.read_text())

    assert "seen" in {one.whole for one in found}
    assert any("dropped" in part for one in found for part in one.parts)


def test_document_fits_the_collector():
    """The names in the document are those that the collector counts."""
    counted = dict(numbers(abi.Counters())) | {"records_missing": 0}

    assert all(one.exact for one in told(counted))
