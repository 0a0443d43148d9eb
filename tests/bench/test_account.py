# SPDX-License-Identifier: Apache-2.0
"""The account is held against the equations that the documentation states."""

import pytest
from account import DOCUMENT, Equation, equations, sums, told, value

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
    """Equal sums are, and the share that was dropped is of the whole."""
    seen, closed = sums(ACCOUNT, [SEEN, CLOSED])

    assert (seen.exact, seen.dropped, seen.dropped_share) == (True, None, None)
    assert (closed.whole, closed.exact, closed.dropped, closed.dropped_share) == (5, True, 1, 0.2)


@pytest.mark.parametrize("changed", [{"seen": 11}, {"recorded": 8}])
def test_not_exact(changed):
    """One off is not exact."""
    (seen,) = sums(ACCOUNT | changed, [SEEN])

    assert not seen.exact


def test_nothing_closed():
    """Of nothing, nothing was dropped."""
    (closed,) = sums({"closed": 0, "windows_sent": 0, "windows_dropped": 0}, [CLOSED])

    assert (closed.exact, closed.dropped_share) == (True, 0)


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
