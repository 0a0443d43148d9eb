# SPDX-License-Identifier: Apache-2.0
"""In the guest: runs the tests that the host has chosen, and sends what comes of them through a serial port."""

import json
import os
import sys
import tty
from pathlib import Path
from typing import IO, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from vm.results import IN_GUEST, Began, Broken, Ended, KernelLog, Record, Report, dump

LOG = "/dev/kmsg"


class Guest:
    """The plugin by which a test knows that it is in the guest, and by which the host hears of it."""

    __name__ = IN_GUEST  # pytest asks a plugin for it

    def __init__(self, out: IO[bytes]) -> None:
        self.out = out

    def send(self, record: Record) -> None:
        """Send a record at once: the machine may not live to send two."""
        self.out.write(dump(record))
        self.out.flush()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Tell of what can't be collected."""
        if report.failed:
            self.send(Broken(report.nodeid, str(report.longreprtext)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Tell of a phase of a test."""
        report = yield
        data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
        self.send(Report(report.nodeid, report.when, data))
        return report

    def pytest_internalerror(self, excrepr: object) -> None:
        """Tell of a fault in pytest itself, or in a plugin."""
        self.send(Broken("pytest", str(excrepr)))


def kernel_log(path: str = LOG) -> KernelLog:
    """Return all the kernel's messages since it started."""
    lines = []
    forgotten = 0
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(file, 1 << 14).decode(errors="backslashreplace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # it has been overwritten: the next read goes on with the oldest there is
                forgotten += 1
                continue
            head, _, text = record.partition(";")
            fields = head.split(",")
            lines.append(f"[{int(fields[2]) / 1e6:12.6f}] {text.splitlines()[0]}")
    finally:
        os.close(file)
    return KernelLog(tuple(lines), forgotten)


def main(job: str, results: str) -> None:
    """Run the tests of the file *job*, and write to the device *results*."""
    wanted = json.loads(Path(job).read_text())
    with open(results, "wb") as out:  # noqa: PTH123 - a device
        if out.isatty():
            tty.setraw(out.fileno())
        guest = Guest(out)
        system = os.uname()
        guest.send(Began(system.release, system.version))
        code = int(pytest.ExitCode.INTERNAL_ERROR)
        try:
            # Its terminal is the console: who hangs there is the last that is named.
            options = ["-p", "no:cacheprovider", "--color=no", "-v", *wanted["options"]]
            code = int(pytest.main([*options, *wanted["tests"]], plugins=[guest]))
        finally:
            guest.send(kernel_log())
            guest.send(Ended(code))


if __name__ == "__main__":
    main(*sys.argv[1:])
