# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: nothing is skipped unseen, and no example fails because the machine was busy."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ksentinel import support

pytest.register_assert_rewrite("watch")
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

collect_ignore = ["fuzz"]  # asks for atheris, and runs until it is told to stop


def pytest_addoption(parser):
    parser.addoption(
        "--known-skips",
        type=Path,
        metavar="FILE",
        help="fail on a skip that no line of FILE allows (regular expression on 'test: reason')",
    )


def pytest_configure(config):
    config.stash[SKIPPED] = []


SKIPPED = pytest.StashKey[list[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        item.config.stash[SKIPPED].append(f"{item.nodeid}: {reason.removeprefix('Skipped: ')}")
    return report


def pytest_sessionfinish(session, exitstatus):
    file = session.config.getoption("known_skips")
    if file is None or exitstatus:
        return
    lines = [line.strip() for line in file.read_text().splitlines()]
    known = [re.compile(line) for line in lines if line and not line.startswith("#")]
    unknown = [skip for skip in session.config.stash[SKIPPED] if not any(k.search(skip) for k in known)]
    if unknown:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.section(f"skipped, and not in {file}", red=True)
        for skip in unknown:
            reporter.line(skip)


def pytest_collection_modifyitems(items):
    why = why_no_bpf() if any(item.get_closest_marker("bpf") for item in items) else None
    for item in items:
        if os.geteuid() and (item.get_closest_marker("root") or item.get_closest_marker("bpf")):
            item.add_marker(pytest.mark.skip(reason="needs root"))
        elif why is not None and item.get_closest_marker("bpf"):
            item.add_marker(pytest.mark.skip(reason=why))


def why_no_bpf():
    """
    Return why BPF programs can't be loaded here, and the remedy; None if they can.

    The collector itself is not asked: where programs of its kind load and it doesn't, tests fail.
    """
    if os.geteuid():
        return None
    if in_chroot():
        return "chroot: the collector tells paths from the host's root (run the tests there)"
    asked = {"libbpf", "pid namespace", "BTF", "BPF raw_tp", "BPF iter/task", "ring buffer"}
    for check in support.examine():
        if check.name in asked and not check.ok:
            return f"{check.name}: {check.reason} ({check.remedy})"
    return None


def in_chroot():
    """Tell whether this root is a mere directory of another: then none of the mounts seen from here is at ``/``."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return all(mount.split()[4] != "/" for mount in mounts)
