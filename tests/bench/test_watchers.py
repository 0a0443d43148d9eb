# SPDX-License-Identifier: Apache-2.0
"""Sides are told apart, and who else watches is found."""

import pytest
import watchers
import workloads
from children import BenchError
from watchers import attached, told_of

RAW = "pos:\t0\nlink_type:\traw_tracepoint\nlink_id:\t3\ntp_name:\t{}\n"


def descriptor(proc, pid, number, target, info=""):
    """Make a file descriptor of a made-up process."""
    for folder in ("fd", "fdinfo"):
        (proc / str(pid) / folder).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "fd" / str(number)).symlink_to(target)
    (proc / str(pid) / "fdinfo" / str(number)).write_text(info)


def test_attached(tmp_path):
    """Those with a program on sys_enter; not those with one elsewhere, or without."""
    descriptor(tmp_path, 10, 3, "/dev/null")
    descriptor(tmp_path, 11, 3, "anon_inode:bpf_link", RAW.format("sched_process_fork"))
    descriptor(tmp_path, 12, 3, "anon_inode:bpf_link", RAW.format("sched_process_exit"))
    descriptor(tmp_path, 12, 4, "anon_inode:bpf_link", RAW.format("sys_enter"))
    descriptor(tmp_path, 13, 3, "anon_inode:bpf_link", RAW.format("sys_enter_open"))

    assert attached(tmp_path) == {12}


@pytest.mark.parametrize("kinds", [watchers.ALL, workloads.ALL], ids=["sides", "workloads"])
def test_names(kinds):
    """Each has one of its own, fit for an option, and says what it is."""
    names = [kind.name for kind in kinds]

    assert len(set(names)) == len(names)
    assert not any("," in name or " " in name for name in names)
    assert all(kind.what for kind in kinds)


@pytest.mark.parametrize("load", workloads.ALL, ids=lambda load: load.name)
def test_bounds(load):
    """Calibration begins within its bounds."""
    assert load.floor <= load.first <= load.cap


def test_account_of_another_version():
    """An account that lacks what the documentation speaks of is an error of that side, not of the whole run."""
    with pytest.raises(BenchError, match="the account has no"):
        told_of({"seen": 1})


@pytest.mark.parametrize(
    "text", ["", "Failed requests:        3\nRequests per second:    100.0 [#/sec] (mean)\n"]
)
def test_web_failures(text):
    """Requests that failed are no throughput."""
    with pytest.raises(BenchError, match="ab: "):
        workloads.web_rate(text)


def test_redis_failures():
    """Neither is anything else that redis-benchmark may say."""
    with pytest.raises(BenchError, match="printed something else"):
        workloads.redis_rates("Could not connect to Redis\n")
