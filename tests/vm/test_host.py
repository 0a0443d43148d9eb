# SPDX-License-Identifier: Apache-2.0
"""A test of the guest's is a test here: with its result, or with why there is none."""

import json
import os
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from vm import inside
from vm.host import DiedError, Plugin, Talk, meanwhile, shared_out
from vm.kernel import Kernel
from vm.machine import Setup
from vm.results import Broken, Ended, KernelLog, Report, dump, records

A, B = "guest/test_a.py::test_a[6.1]", "guest/test_a.py::test_b[6.1]"


class Console:
    """One that shows how it ended."""

    def last_words(self):
        """Return its last lines."""
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
    with pytest.raises(DiedError, match=r"the guest ended before its tests did; .*\nKernel panic"):
        next(first)
    with pytest.raises(DiedError, match=r"had ended before: the guest ended before its tests did$"):
        list(guest.reports(B))
    with pytest.raises(DiedError, match="had ended before"):
        guest.kernel_log()


def test_died_in_a_line():
    """A line that is cut is no result, whatever it began with."""
    cut = [dump(report) for report in phases(A)]
    cut[1] = cut[1][:-9]
    guest = Talk(records(cut), Console())

    with pytest.raises(DiedError, match=r"none of its results.*\nKernel panic"):
        list(guest.reports(A))


def test_hangs():
    """Time that is up is told with the console's last lines."""

    def silent():
        yield from phases(A)
        raise TimeoutError

    guest = Talk(silent(), Console())

    assert len(list(guest.reports(A))) == 3
    with pytest.raises(DiedError, match=r"time is up; .*\nKernel panic"):
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

    def test_good():
        with open("ran", "a") as file:
            file.write("once ")
    def test_bad(): print("said in the guest"); assert 1 + 1 == 3
    @pytest.mark.skip(reason="not today")
    def test_skipped(): pass
    @pytest.mark.xfail(strict=True)
    def test_expected(): assert not 1
    @pytest.fixture
    def broken(): raise OSError("no fixture")
    def test_error(broken): pass
"""


RUNNING = []


class Machine:
    """One that runs its tests in this process, with nothing of a virtual machine about it."""

    lines_kept = None
    log = KernelLog(("[ 0.1] booted",))

    def __init__(self, setup, job, console):
        self.job = json.loads(job.files["tests"])
        self.name = f"{console.stem} {setup.kernel.version}"

    def __enter__(self):
        RUNNING.append(self)
        return self

    def __exit__(self, *exception):
        RUNNING.remove(self)

    def lines(self, deadline):
        """Yield what the guest's pytest sends."""
        assert deadline > time.monotonic()
        folder = Path(os.environ["GUEST"])
        sent = folder.parent / "sent"
        with sent.open("wb") as out:
            guest = inside.Guest(out)
            code = run(folder, *self.job["options"], *self.job["tests"], plugins=[guest])
            guest.send(self.log)
            guest.send(Ended(int(code)))
        yield from sent.read_bytes().splitlines()[: self.lines_kept]

    def last_words(self):
        """Show how it ended."""
        return f"{self.name}: Kernel panic - not syncing"


def run(folder, *arguments, plugins):
    """Run pytest in a directory of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        rootdir = f"--rootdir={folder.parent}"
        return pytest.main(["-q", "-p", "no:cacheprovider", rootdir, *arguments], plugins=plugins)


class Outcomes:
    """What a pytest reports."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        """Keep a report, unless it says nothing but that a phase was passed."""
        if report.when == "call" or not report.passed:
            self.found[report.nodeid.rpartition("::")[2]] = report


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Give a function that runs the host's pytest on tests of such a guest."""
    folder = tmp_path / "guest"
    folder.mkdir()
    (folder / "test_those.py").write_text(textwrap.dedent(GUESTS_TESTS))
    monkeypatch.setitem(sys.modules, "test_those", None)
    del sys.modules["test_those"]
    monkeypatch.setenv("GUEST", str(folder))
    setup = Setup(Kernel("6.1.0-56", "6.1.192", tmp_path))

    def ask(*arguments, machines=1):
        outcomes = Outcomes()
        plugin = Plugin(setup, 9, folder, Machine, machines)
        code = run(folder, *arguments, str(folder), plugins=[plugin, outcomes])
        assert RUNNING == []
        return code, outcomes.found

    return ask


def test_outcomes(host):
    """Each test has the guest's outcome, with what a failure looked like there, what was printed, and why one is skipped."""
    code, found = host()

    assert code == pytest.ExitCode.TESTS_FAILED
    assert {name: report.outcome for name, report in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_expected": "skipped",
        "test_error": "failed",
        "kernel log[6.1.192]": "passed",
    }
    assert "assert (1 + 1) == 3" in found["test_bad"].longreprtext
    assert found["test_bad"].capstdout == "said in the guest\n"
    assert found["test_skipped"].longrepr[2] == "Skipped: not today"
    assert found["test_expected"].wasxfail == ""
    assert (found["test_error"].when, "no fixture" in found["test_error"].longreprtext) == ("setup", True)


def test_chosen(host, tmp_path):
    """What is selected here runs in the guest, and only there; the kernel's log is looked at all the same."""
    code, found = host("-k", "good")

    assert (tmp_path / "ran").read_text().split() == ["once"]
    assert code == pytest.ExitCode.OK
    assert sorted(found) == ["kernel log[6.1.192]", "test_good"]


def test_first_failure(host):
    """With -x the guest stops, too."""
    code, found = host("-x")

    assert code == pytest.ExitCode.TESTS_FAILED
    assert sorted(found) == ["test_bad", "test_good"]


def test_bad_log(host, monkeypatch):
    """A fault of the kernel fails a run whose tests are all right."""
    monkeypatch.setattr(Machine, "log", KernelLog(("[ 0.1] booted", "[ 0.2] BUG: \x1b[2Jmade up")))
    code, found = host("-k", "good")

    assert code == pytest.ExitCode.TESTS_FAILED
    assert found["test_good"].passed
    assert found["kernel log[6.1.192]"].longreprtext == "the kernel has logged\n[ 0.2] BUG: \\x1b[2Jmade up"


def test_lost_log(host, monkeypatch):
    """So does a log that isn't whole."""
    monkeypatch.setattr(Machine, "log", KernelLog((), forgotten=1))
    code, _ = host("-k", "good")

    assert code == pytest.ExitCode.TESTS_FAILED


def test_no_results(host, monkeypatch):
    """A guest that says nothing fails every test, and shows its console once."""
    monkeypatch.setattr(Machine, "lines_kept", 0)
    code, found = host()

    assert code == pytest.ExitCode.TESTS_FAILED
    assert {report.outcome for report in found.values()} == {"failed"}
    assert len(found) == 6
    assert sum("Kernel panic" in report.longreprtext for report in found.values()) == 1


class Some:
    """A test, and what its file says of itself."""

    def __init__(self, path, **told):
        self.path = Path(path)
        self.module = SimpleNamespace(**told)


def test_shared_out():
    """Files stay whole, those that belong together do, and each guest has about as much to do."""
    tests = [
        Some("a", TAKES=90),
        Some("a", TAKES=90),
        Some("b", TAKES=50),
        Some("c", TAKES=30),
        Some("d"),
        Some("e"),
    ]
    groups = [[str(test.path) for test in group] for group in shared_out(tests, 2)]
    together = [Some("a", TOGETHER="x"), Some("b"), Some("c", TOGETHER="x")]

    assert groups == [["a", "a", "e"], ["b", "c", "d"]]
    assert shared_out(tests[:2], 2) == [tests[:2]]
    assert shared_out(together, 3) == [[together[0], together[2]], [together[1]]]


def test_meanwhile():
    """Lines are taken while nobody asks for them; what goes wrong is told whoever asks."""
    taken = threading.Event()

    def lines():
        yield b"one"
        taken.set()
        raise TimeoutError

    said = meanwhile(lines())
    assert next(said) == b"one"
    assert taken.wait(5)
    with pytest.raises(TimeoutError):
        next(said)
