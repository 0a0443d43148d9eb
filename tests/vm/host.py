# SPDX-License-Identifier: Apache-2.0
"""On the host: tests of the guest as tests of this pytest, each with what the guest said of it."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from vm.kernel import BUILD, Kernel
from vm.machine import LSM, Job, Machine, Setup, environment
from vm.results import Broken, Ended, KernelLog, Record, Report, records

from ksentinel.errors import InputError, KsentinelError

GUEST = Path(__file__).with_name("guest")
PHASES = ("setup", "call", "teardown")


class DiedError(Exception):
    """The guest says no more: what it said last is the message."""


class Talk:
    """
    What a guest says, asked for test by test.

    Parameters
    ----------
    said
        Its records, as they come.
    last_words
        Tells the end of its console.
    """

    def __init__(self, said: Iterable[Record], console: "Console") -> None:
        self._said = iter(said)
        self._console = console
        self._reports: dict[tuple[str, str], Report] = {}
        self._why = ""
        self.log: KernelLog | None = None

    def reports(self, test: str) -> Iterator[Report]:
        """
        Yield the reports of the phases of a test, as soon as they are there.

        Raises
        ------
        DiedError
            If the guest ends before the test does.
        """
        for when in PHASES:
            while (test, when) not in self._reports:
                if when == "call" and (test, "teardown") in self._reports:
                    break  # its setup has failed, or it is skipped
                self._read()
            else:
                yield self._reports.pop((test, when))

    def kernel_log(self) -> KernelLog:
        """Return the kernel's log, once all tests are through."""
        while self.log is None:
            self._read()
        return self.log

    def _read(self) -> None:
        if self._why:
            raise DiedError(f"the guest had ended before: {self._why}")
        try:
            match next(self._said, None):
                case None:
                    self._die("the guest ended before its tests did")
                case Report() as report:
                    self._reports[report.test, report.when] = report
                case Broken(place, text):
                    self._die(f"the guest can't use {place}:\n{text}", console=False)
                case KernelLog() as log:
                    self.log = log
                case Ended(code):
                    self._die(f"the guest's pytest ended with {code}, and says nothing of this test")
        except TimeoutError:
            self._die("the guest's time is up")
        except InputError as error:
            self._die(str(error))

    def _die(self, why: str, *, console: bool = True) -> None:
        self._why = why.splitlines()[0]
        raise DiedError(
            f"{why}; the last lines of its console:\n{self._console.last_words()}" if console else why
        )


class Console(Protocol):
    """What has a console."""

    def last_words(self) -> str:
        """Return its last lines."""


class Plugin:
    """
    Runs tests of the guest in a virtual machine, which starts with the first of them.

    Parameters
    ----------
    setup
        What the machine is like.
    seconds
        How long it may live.
    folder
        Where its tests are.
    start
        Makes the machine.
    """

    def __init__(
        self, setup: Setup, seconds: float, folder: Path = GUEST, start: Callable[..., Any] = Machine
    ) -> None:
        self.setup = setup
        self.seconds = seconds
        self.folder = folder
        self._start = start
        self.tests: list[pytest.Item] = []
        self._ends = ExitStack()
        self._talk: Talk | None = None

    def talk(self) -> Talk:
        """Return what the guest says; it is started if it isn't there yet."""
        if self._talk is None:
            config = self.tests[0].config
            wanted = {"tests": [test.nodeid for test in self.tests], "options": options(config)}
            variables = {"JOB": "tests", **environment(self.setup, os.environ, columns=100)}
            job = Job(variables, {"tests": json.dumps(wanted)})
            console = BUILD / f"console-{self.setup.kernel.version}.log"
            deadline = time.monotonic() + self.seconds
            try:
                machine = self._ends.enter_context(self._start(self.setup, job, console))
            except KsentinelError as error:
                pytest.exit(f"no virtual machine: {error}", returncode=pytest.ExitCode.TESTS_FAILED)
            self._talk = Talk(records(machine.lines(deadline)), machine)
        return self._talk

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the guest's tests at the end, and after them one of our own, about its kernel."""
        self.tests = [item for item in items if self.folder in item.path.parents]
        if self.tests:
            parents = (node for node in self.tests[-1].iter_parents() if isinstance(node, pytest.Collector))
            folder = next(node for node in parents if node.path == self.folder)
            log = CleanLog.from_parent(folder, name=f"kernel log[{self.setup.kernel.version}]", plugin=self)
            items[:] = [item for item in items if item not in self.tests] + self.tests + [log]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a test of the guest's."""
        if item not in self.tests:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            for said in self.talk().reports(item.nodeid):
                data = {name: as_tuple(value) for name, value in said.data.items()}
                report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
                self._tell(item, report)
        except DiedError as died:
            self._tell(item, pytest.TestReport(item.nodeid, item.location, {}, "failed", str(died), "call"))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _tell(self, item: pytest.Item, report: pytest.TestReport) -> None:
        call: pytest.CallInfo[Any] = pytest.CallInfo.from_call(lambda: report, report.when)
        item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=call))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> pytest.TestReport | None:
        """Give the guest's report in place of one of what was done here."""
        return call.result if item in self.tests else None

    def pytest_unconfigure(self) -> None:
        """Switch the machine off, however this ends."""
        self._ends.close()


class CleanLog(pytest.Item):
    """What the guest's kernel has logged, all its tests through, tells of no fault."""

    def __init__(self, *, plugin: Plugin, **others: Any) -> None:
        super().__init__(**others)
        self.plugin = plugin

    def runtest(self) -> None:
        """Look through the log."""
        log = self.plugin.talk().kernel_log()
        bad = log.bad()
        if bad:
            pytest.fail("the kernel has logged\n" + "\n".join(bad), pytrace=False)
        if log.forgotten:
            pytest.fail("the kernel has logged more than it keeps", pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what is wrong, without a traceback through this file."""
        return (
            str(excinfo.value)
            if isinstance(excinfo.value, DiedError)
            else super().repr_failure(excinfo, style)
        )

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return where it stands."""
        return self.path, None, self.name


def as_tuple(value: Any) -> Any:
    """Return a report's value as pytest had it: JSON knows no tuples, and a skip's place and reason are one."""
    return tuple(value) if isinstance(value, list) else value


def options(config: pytest.Config) -> list[str]:
    """Return what of our pytest's options the guest's has to know; which tests are wanted it is told one by one."""
    told = [f"--maxfail={config.getoption('maxfail') or 0}", f"--tb={config.getoption('tbstyle')}"]
    return [*told, *(["--showlocals"] if config.getoption("showlocals") else [])]


def setup_of(config: pytest.Config, kernel: Kernel) -> Setup:
    """Return the machine that the command line asks for."""
    return Setup(kernel, config.getoption("lsm") or LSM, config.getoption("cpus"), config.getoption("memory"))
