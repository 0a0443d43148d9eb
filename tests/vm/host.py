# SPDX-License-Identifier: Apache-2.0
"""On the host: tests of the guest as tests of this pytest, each with what the guest said of it."""

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import pytest
from vm.kernel import BUILD, Kernel
from vm.machine import LSM, Job, Machine, Setup, environment
from vm.results import Broken, Ended, KernelLog, Record, Report, records

from ksentinel.errors import InputError, KsentinelError

GUEST = Path(__file__).with_name("guest")
PHASES = ("setup", "call", "teardown")
TAKES = "TAKES"
"""Name of a number in a file of the guest's tests: how many seconds they take, about."""
TOGETHER = "TOGETHER"
"""Name of a word there: files that have the same are done by one machine, because they share what takes long to set up."""


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
    Runs tests of the guest in virtual machines, which start with the first of them.

    Parameters
    ----------
    setup
        What a machine is like.
    seconds
        How long it may live.
    folder
        Where its tests are.
    start
        Makes a machine.
    machines
        How many, side by side: Python in a guest has one processor busy. The tests of a file stay together.
    """

    def __init__(
        self,
        setup: Setup,
        seconds: float,
        folder: Path = GUEST,
        start: Callable[..., Any] = Machine,
        machines: int = 1,
    ) -> None:
        self.setup = setup
        self.seconds = seconds
        self.folder = folder
        self.machines = machines
        self._start = start
        self.groups: list[list[pytest.Item]] = []
        self._ends = ExitStack()
        self._talks: list[Talk] = []

    def talk(self, group: int) -> Talk:
        """Return what the guest of a group says; all are started if they aren't there yet."""
        if not self._talks:
            for number, tests in enumerate(self.groups):
                self._talks.append(self._begin(number, tests))
        return self._talks[group]

    def _begin(self, number: int, tests: list[pytest.Item]) -> Talk:
        wanted = {"tests": [test.nodeid for test in tests], "options": options(tests[0].config)}
        variables = {"JOB": "tests", **environment(self.setup, os.environ, columns=100)}
        job = Job(variables, {"tests": json.dumps(wanted)})
        console = BUILD / f"console-{self.setup.kernel.version}{f'-{number + 1}' if number else ''}.log"
        deadline = time.monotonic() + self.seconds
        try:
            machine = self._ends.enter_context(self._start(self.setup, job, console))
        except KsentinelError as error:
            pytest.exit(f"no virtual machine: {error}", returncode=pytest.ExitCode.TESTS_FAILED)
        lines = machine.lines(deadline)
        # Of the first one each line is taken when its test's turn has come; the others mustn't wait for that.
        return Talk(records(meanwhile(lines) if number else lines), machine)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the guests' tests at the end, and after each guest's one of our own, about its kernel."""
        tests = [item for item in items if self.folder in item.path.parents]
        if not tests:
            return
        parents = (node for node in tests[-1].iter_parents() if isinstance(node, pytest.Collector))
        folder = next(node for node in parents if node.path == self.folder)
        items[:] = [item for item in items if item not in tests]
        self.groups = shared_out(tests, self.machines)
        for number, group in enumerate(self.groups):
            name = f"kernel log[{self.setup.kernel.version}{f'-{number + 1}' if number else ''}]"
            items += [*group, CleanLog.from_parent(folder, name=name, plugin=self, group=number)]

    def group_of(self, item: pytest.Item) -> int | None:
        """Return which guest's a test is; None if nobody's."""
        return next((number for number, group in enumerate(self.groups) if item in group), None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a test of the guest's."""
        group = self.group_of(item)
        if group is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        try:
            for said in self.talk(group).reports(item.nodeid):
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
        return call.result if self.group_of(item) is not None else None

    def pytest_unconfigure(self) -> None:
        """Switch the machines off, however this ends."""
        self._ends.close()


class CleanLog(pytest.Item):
    """What the guest's kernel has logged, all its tests through, tells of no fault."""

    def __init__(self, *, plugin: Plugin, group: int, **others: Any) -> None:
        super().__init__(**others)
        self.plugin = plugin
        self.group = group

    def runtest(self) -> None:
        """Look through the log."""
        log = self.plugin.talk(self.group).kernel_log()
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


def shared_out(tests: list[pytest.Item], machines: int) -> list[list[pytest.Item]]:
    """Return the tests in so many groups or fewer, by how long they take: files whole, and those together that say so."""
    files: dict[str, list[pytest.Item]] = {}
    takes: dict[str, float] = defaultdict(float)
    for test in tests:
        module = getattr(test, "module", None)
        key = getattr(module, TOGETHER, str(test.path))
        if test.path not in {one.path for one in files.get(key, ())}:
            takes[key] += getattr(module, TAKES, 10)
        files.setdefault(key, []).append(test)
    groups: list[list[str]] = [[] for _ in range(min(machines, len(files)))]
    for path in sorted(files, key=lambda path: -takes[path]):
        min(groups, key=lambda group: sum(takes[one] for one in group)).append(path)
    return [[test for path in group for test in files[path]] for group in groups]


def meanwhile(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines that a thread takes as they come; raises what it met."""
    taken: SimpleQueue[bytes | BaseException | None] = SimpleQueue()

    def take() -> None:
        try:
            for line in lines:
                taken.put(line)
            taken.put(None)
        except BaseException as error:  # noqa: BLE001 -- whoever asks for the lines shall have it
            taken.put(error)

    Thread(target=take, daemon=True).start()
    while (one := taken.get()) is not None:
        if isinstance(one, BaseException):
            raise one
        yield one


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
