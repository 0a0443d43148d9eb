# SPDX-License-Identifier: Apache-2.0
"""Audit is left alone where somebody uses it."""

import pytest
from auditing import in_use, moved


@pytest.mark.parametrize(
    ("status", "rules", "reason"),
    [
        ({"enabled": "0", "pid": "0"}, [], None),
        ({"enabled": "1", "pid": "0"}, [], None),
        ({"enabled": "1", "pid": "5"}, [], "process 5"),
        ({"enabled": "1", "pid": "0"}, ["-a always,exit -S all"], "1 audit rules"),
        ({"enabled": "2", "pid": "0"}, [], "locked"),
    ],
)
def test_in_use(status, rules, reason):
    """By a daemon, by rules, or by a lock."""
    found = in_use(status, rules)

    assert found is None if reason is None else reason in found


def test_moved(tmp_path):
    """Only the two places of the configuration change."""
    shipped = "# log_file is\nlog_file = /var/log/audit/audit.log\nlog_format = ENRICHED\nplugin_dir = /etc/audit/plugins.d\n"

    assert moved(shipped, tmp_path).splitlines() == [
        "# log_file is",
        f"log_file = {tmp_path}/audit.log",
        "log_format = ENRICHED",
        f"plugin_dir = {tmp_path}/plugins.d",
    ]
