# SPDX-License-Identifier: Apache-2.0
"""Rules fired for real."""

import json
import os
from pathlib import Path

import pytest
from watch import bpf_ids

from ksentinel.cli import main

RULE = """\
title: {name}
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c{number}
status: {status}
logsource: {{{source}}}
detection:
  selection:
    {test}
  condition: selection
level: low
"""
RULES = {
    "fires": ("stable", "category: lineage", "ServiceImage|endswith: /nginx", {"as": ["/usr/sbin/cron", "/usr/sbin/nginx"], "do": [["exec", "/bin/sh"]]}),
    "reads": ("stable", "category: syscall", "path: /etc/shadow", {"do": [["read", "/etc/shadow"]]}),
    "silent": ("stable", "category: process_creation", "Image: /opt/never", {"do": [["exec", "/opt/other"], ["connect", "192.0.2.1", 1]]}),
    "prepared": ("stable", "category: process_creation", "CommandLine|contains: actor.py --never", {"do": [["memfd"]]}),
    "cannot": ("stable", "category: process_creation", "Image: /x", {"cannot": "it would hurt"}),
    "audit": ("stable", "service: auditd", "type: LOGIN", {"do": [["memfd"]]}),
    "bare": ("stable", "category: process_creation", "Image: /x", None),
    "young": ("test", "category: process_creation", "Exe|contains: memfd", {"do": [["memfd"]]}),
    "younger": ("test", "category: process_creation", "Image: /x", None),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for number, (name, (status, source, test, action)) in enumerate(RULES.items(), 10):
        text = RULE.format(name=name, number=number, status=status, source=source, test=test)
        (tmp_path / f"{name}.yml").write_text(text)
        if action is not None:
            (tmp_path / f"{name}.selftest.json").write_text(json.dumps(action))
    return tmp_path


def ran(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["selftest", *map(str, arguments)])
    return ended.value.code or 0, *capsys.readouterr()


@pytest.mark.bpf
def test_selftest(folder, capsys):
    """Each stable rule has the outcome that it must have; those that aren't stable only when asked for; nothing stays."""
    before = bpf_ids(os.getpid()), Path("/proc/self/mountinfo").read_text()
    status, out, _ = ran(capsys, "--rules", folder, "--all", "--json")
    told = {Path(one["file"]).stem: one for one in map(json.loads, out.splitlines())}

    assert status == 1
    assert {name: one["outcome"] for name, one in told.items()} == {
        "fires": "fired",
        "reads": "fired",
        "silent": "not fired",
        "prepared": "not fired",
        "cannot": "can't be done",
        "audit": "can't be done",
        "bare": "no action",
        "young": "fired",
    }
    assert told["cannot"]["said"] == "it would hurt"
    assert "connect: Network is unreachable" in told["silent"]["said"]
    assert told["fires"]["clauses"][0]["value"] == "/usr/sbin/nginx"
    assert (bpf_ids(os.getpid()), Path("/proc/self/mountinfo").read_text()) == before


@pytest.mark.bpf
@pytest.mark.slow
def test_shipped(capsys):
    """Every rule that ships, and says what to do for it, fires on this host."""
    _, out, _ = ran(capsys, "--all", "--json")
    told = {Path(one["file"]).stem: one["outcome"] for one in map(json.loads, out.splitlines())}

    assert {
        name: outcome for name, outcome in told.items() if outcome not in {"fired", "can't be done"}
    } == {}


def test_nothing_to_do(tmp_path, capsys):
    """Without a stable rule there is nothing to do, and that is said: no collector is needed for it."""
    (tmp_path / "x.yml").write_text(
        RULE.format(name="x", number=99, status="test", source="category: lineage", test="Image: /x")
    )
    status, _, err = ran(capsys, "--rules", tmp_path)

    assert status == 0
    assert "no rule is stable" in err


def test_untrusted_action(tmp_path, capsys):
    """What others could have written is not done."""
    (tmp_path / "x.yml").write_text(
        RULE.format(name="x", number=99, status="stable", source="category: lineage", test="Image: /x")
    )
    action = tmp_path / "x.selftest.json"
    action.write_text('{"do": [["memfd"]]}')
    action.chmod(0o666)
    status, _, err = ran(capsys, "--rules", tmp_path)

    assert status == 1
    assert f"{action}: writable by others (mode 0666) (chmod go-w)" in err


def test_bad_action(tmp_path, capsys):
    """An action that is none ends it before anything is done."""
    (tmp_path / "x.yml").write_text(
        RULE.format(name="x", number=99, status="stable", source="category: lineage", test="Image: /x")
    )
    (tmp_path / "x.selftest.json").write_text('{"do": [["format", "/"]]}')
    status, _, err = ran(capsys, "--rules", tmp_path)

    assert status == 1
    assert f"{tmp_path}/x.selftest.json: step 1: there is no 'format'" in err
