# SPDX-License-Identifier: Apache-2.0
"""What the guest sends is understood, and what it doesn't send to the end is no success."""

import pytest
from vm.results import Began, Broken, Ended, KernelLog, Report, dump, load, records

from ksentinel.errors import InputError

RECORDS = [
    Began("6.1.0-56-cloud-amd64", "#1 SMP Debian 6.1.192-2"),
    Report(
        "tests/vm/guest/test_a.py::test_b[6.1.192]", "call", {"outcome": "failed", "longrepr": "é\n\x1b[2J"}
    ),
    Broken("tests/vm/guest/test_a.py", "ImportError: no such thing"),
    KernelLog(("[    1.0] Linux", "[    2.0] ready"), 3),
    Ended(1),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_there_and_back(record):
    """A record is one line of ASCII, and the same afterwards."""
    line = dump(record)

    assert load(line) == record
    assert line.isascii()
    assert line.count(b"\n") == 1


def test_until_the_end():
    """What comes after the end, from a console that is shared, is no result."""
    lines = [*map(dump, RECORDS), b"Powering off"]

    assert list(records(lines)) == RECORDS


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[    3.1] BUG: kernel NULL pointer",
        dump(RECORDS[1])[:40],
        b"3",
        b'["ended"]',
        b'["ended", {}]',
        b'["ended", {"code": 0, "more": 1}]',
        b'["unheard", {}]',
        b'[["ended"], {"code": 0}]',
        b"\xff\xfe",
    ],
)
def test_no_result(line):
    """A line that is cut, or none of the guest's, is an error that shows it."""
    with pytest.raises(InputError, match="none of its results"):
        load(line)


def test_no_result_is_escaped():
    """What shows it moves no cursor."""
    with pytest.raises(InputError) as error:
        load(b"\x1b[2J\xff")

    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "WARNING: CPU: 0 PID: 1 at kernel/bpf/verifier.c:3141 check_reg+0x1",
        "Oops: 0000 [#1] PREEMPT SMP NOPTI",
        "general protection fault, probably for non-canonical address 0xdead",
        "WARNING: possible recursive locking detected",
        "possible circular locking dependency detected",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [python3:211]",
        "INFO: task python3:211 blocked for more than 120 seconds.",
        "Kernel panic - not syncing: Fatal exception",
        "verifier bug: no immediate",
        "refcount_t: underflow; use-after-free.",
    ],
)
def test_bad_line(line):
    """A fault of the kernel is found in its log."""
    log = KernelLog(("[ 0.1] Linux version 6.1", f"[ 0.2] {line}", "[ 0.3] later"))

    assert log.bad() == [f"[ 0.2] {line}"]


@pytest.mark.parametrize(
    "line",
    [
        'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
        "rcu: Hierarchical RCU implementation.",
        "LSM: Security Framework initializing",
        "DEBUG: nothing",
        "systemd[1]: verifier finished",
    ],
)
def test_good_line(line):
    """What kernels say of themselves while they start is none."""
    assert KernelLog((line,)).bad() == []
