# SPDX-License-Identifier: Apache-2.0
"""Tests below guest/ run in a virtual machine and nowhere else: with --kernel one is started, without it they are skipped."""

import os
from pathlib import Path

import pytest
from vm.results import IN_GUEST

GUEST = Path(__file__).with_name("guest")


def pytest_addoption(parser):
    group = parser.getgroup("virtual machine")
    group.addoption(
        "--kernel", metavar="SERIES", help="run tests/vm/guest under Debian's kernel, 6.1 or 6.12"
    )
    group.addoption("--lsm", help="security modules the guest starts with, joined by commas")
    group.addoption("--cpus", type=int, default=2, help="processors of the guest (default: %(default)s)")
    group.addoption("--memory", type=int, default=2048, help="its memory in MiB (default: %(default)s)")
    group.addoption(
        "--machines",
        type=int,
        default=2,
        help="guests side by side, which share the tests (default: %(default)s)",
    )
    group.addoption(
        "--machine-seconds", type=float, default=330, help="how long it may live (default: %(default)g)"
    )


def pytest_configure(config):
    series = config.getoption("kernel", None)
    if series and not config.pluginmanager.has_plugin(IN_GUEST):
        # Here and not above: the guest needs nothing of it, and takes seconds to compile it.
        from vm import host, kernel, machine

        from ksentinel.errors import KsentinelError

        try:
            machine.need_root()
            setup = host.setup_of(config, kernel.prepare(series))
        except KsentinelError as error:
            raise pytest.UsageError(str(error)) from None
        config.pluginmanager.register(
            host.Plugin(setup, config.getoption("machine_seconds"), machines=config.getoption("machines")),
            "vm",
        )


def version(config):
    """Return which kernel the guest's tests run under; None if they don't."""
    if config.pluginmanager.has_plugin(IN_GUEST):
        return os.environ["KSENTINEL_KERNEL"]
    plugin = config.pluginmanager.get_plugin("vm")
    return plugin.setup.kernel.version if plugin else None


def in_guest(path):
    """Tell whether a test is the guest's."""
    return GUEST in path.parents


def pytest_generate_tests(metafunc):
    found = version(metafunc.config)
    if found and in_guest(metafunc.definition.path):
        metafunc.fixturenames.append("kernel")
        metafunc.parametrize("kernel", [found])


def pytest_itemcollected(item):
    if in_guest(item.path):
        item.add_marker("vm")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if in_guest(item.path) and not item.config.pluginmanager.has_plugin(IN_GUEST):
        pytest.skip("make test-vm runs these in a virtual machine")
