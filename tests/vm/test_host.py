# SPDX-License-Identifier: Apache-2.0
"""A test of the guest's is a test here: with its result, or with why there is none."""

import textwrap

import pytest
from vm.host import DiedError, Talk
from vm.results import Broken, Ended, KernelLog, Report, dump, records

A, B = "guest/test_a.py::test_a[6.1]", "guest/test_a.py::test_b[6.1]"


class Console:
    """One that shows how it ended."""

    def last_words(self):
        return "Kernel panic - not syncing"


def phases(test, *when):
    """Return the reports of these phases of a test."""
    return [Report(test, phase, {}) for phase in when or ("setup", "call", "teardown")]


def talk(*said):
    """Return what a guest that says all this is asked by."""
    return Talk(said, Console())


def test_every_phase():
    """In their order, and what comes of the kernel's log is kept."""
    guest = talk(*phases(A), *phases(B), KernelLog(("booted",)), Ended(0))

    assert [r.when for r in guest.reports(A)] == ["setup", "call", "teardown"]
    assert [r.when for r in guest.reports(B)] == ["setup", "call", "teardown"]
    assert guest.kernel_log().lines == ("booted",)


def test_no_call():
    """A test that is skipped, or whose setup fails, has none."""
    guest = talk(*phases(A, "setup", "teardown"), *phases(B))

    assert [r.when for r in guest.reports(A)] == ["setup", "teardown"]
    assert [r.when for r in guest.reports(B)] == ["setup", "call", "teardown"]


def test_another_order():
    """The guest may run them in its own."""
    guest = talk(*phases(B), *phases(A))

    assert [r.test for r in guest.reports(A)] == [A] * 3
    assert [r.test for r in guest.reports(B)] == [B] * 3


def test_died_halfway():
    """The test it died in is told how; those after it, that it had died."""
    guest = talk(*phases(A, "setup"))
    first = guest.reports(A)

    assert next(first).when == "setup"
    with pytest.raises(DiedError, match="the guest ended before its tests did; .*\nKernel panic"):
        next(first)
    with pytest.raises(DiedError, match="had ended before: the guest ended before its tests did$"):
        list(guest.reports(B))
    with pytest.raises(DiedError, match="had ended before"):
        guest.kernel_log()


def test_died_in_a_line():
    """A line that is cut is no result, whatever it began with."""
    cut = [dump(report) for report in phases(A)]
    cut[1] = cut[1][:-9]
    guest = Talk(records(cut), Console())

    with pytest.raises(DiedError, match="none of its results.*\nKernel panic"):
        list(guest.reports(A))


def test_hangs():
    """Time that is up is told with the console's last lines."""

    def silent():
        yield from phases(A)
        raise TimeoutError

    guest = Talk(silent(), Console())

    assert len(list(guest.reports(A))) == 3
    with pytest.raises(DiedError, match="time is up; .*\nKernel panic"):
        list(guest.reports(B))


def test_broken():
    """What the guest can't import is told with its traceback."""
    guest = talk(Broken("guest/test_a.py", "ImportError: no x"), KernelLog(("booted",)), Ended(2))

    with pytest.raises(DiedError, match=r"can't use guest/test_a.py:\nImportError: no x"):
        list(guest.reports(A))


def test_says_nothing_of_a_test():
    """A guest that ends in good order has still not run what it says nothing of."""
    guest = talk(*phases(A), KernelLog(("booted",)), Ended(0))

    list(guest.reports(A))
    with pytest.raises(DiedError, match="ended with 0, and says nothing of this test"):
        list(guest.reports(B))
    assert guest.kernel_log().lines == ("booted",)


GUESTS_TESTS = """
    import pytest

    def test_good(): print("said in the guest")
    def test_bad(): print("said in the guest"); assert 1 + 1 == 3
    @pytest.mark.skip(reason="not today")
    def test_skipped(): pass
    @pytest.mark.xfail(strict=True)
    def test_expected(): assert not 1
    @pytest.fixture
    def broken(): raise OSError("no fixture")
    def test_error(broken): pass
"""


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """Give the reports of tests as the guest's pytest makes them, and the plugin that sends them."""
    from vm import inside

    file = tmp_path / "test_those.py"
    file.write_text(textwrap.dedent(GUESTS_TESTS))
    sent = tmp_path / "sent"
    with sent.open("wb") as out:
        guest = inside.Guest(out)
        pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(file)], plugins=[guest])
    return [load for load in records(sent.read_bytes().splitlines())]


def test_what_is_sent(reported):
    """Every phase, with its outcome, what a failure looks like, what was printed, and why one is skipped."""
    found = {(r.test.rpartition("::")[2], r.when): r.data for r in reported}

    assert {test: data["outcome"] for (test, when), data in found.items() if when == "call"} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_expected": "skipped",
    }
    assert found["test_bad", "call"]["sections"] == [["Captured stdout call", "said in the guest\n"]]
    assert "assert (1 + 1) == 3" in str(found["test_bad", "call"]["longrepr"])
    assert found["test_skipped", "setup"]["longrepr"][2] == "Skipped: not today"
    assert "wasxfail" in found["test_expected", "call"]
    assert found["test_error", "setup"]["outcome"] == "failed"
