# SPDX-License-Identifier: Apache-2.0
"""Guards as people are shown them."""

import pytest

from ksentinel.report.guards import guards_list
from ksentinel.rules.derivation import derive, unmet
from ksentinel.rules.fields import sources
from ksentinel.rules.sigma import compile_rule

TEXT = """\
title: A rule
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
logsource: {{category: {source}}}
detection:
{detection}
{asks}
"""


@pytest.fixture
def shown(capsys):
    """Return a function that shows a rule's guards."""

    def show(detection, source="process_creation", asks=""):
        lines = "\n".join(f"  {line}" for line in detection.splitlines())
        text = TEXT.format(source=source, detection=lines, asks=asks)
        rule = compile_rule(text, "x.yml", sources())
        guards_list([(derive(rule), unmet(rule))])
        return capsys.readouterr().out.splitlines()

    return show


END = "Guards are derived, not loaded: nothing is enforced."


def test_ways(shown):
    """What all ways have is shown once, then what they differ in."""
    detection = (
        "a: {Exe: /a}\nb: {ParentImage: /b, User: 0}\nc: {ServiceImage: /c}\ncondition: a and (b or c)"
    )

    assert shown(detection, "lineage") == [
        "high  A rule  asks for nothing",
        "  x.yml",
        "  inline: bprm_creds_from_file in execve, execveat",
        "    if  executed is /a",
        "    and one of",
        "        - parent is /b",
        "          and euid is 0",
        "        - service is /c",
        "    narrower: paths with bytes outside ASCII stay in user space",
        "1 rules: 1 with guards, 0 asking for them, 0 of these in vain.",
        END,
    ]


def test_nothing_in_common(shown):
    """Ways that have nothing in common, at several hooks."""
    assert shown(
        "a: {syscall: kill, signal: 9}\nb: {syscall: [bpf, kill], User: 0}\ncondition: a or b", "syscall"
    ) == [
        "high  A rule  asks for nothing",
        "  x.yml",
        "  inline: bpf in bpf",
        "    if  euid is 0",
        "  inline: task_kill in kill",
        "    if  one of",
        "        - signal is 9",
        "        - euid is 0",
        "1 rules: 1 with guards, 0 asking for them, 0 of these in vain.",
        END,
    ]


def test_always(shown):
    """A call that is enough by itself, at a hook of its own."""
    assert "    always" in shown("s: {syscall: init_module}\ncondition: s", "syscall")


def test_in_vain(shown):
    """A rule that asks for what can't be had is told so."""
    left = "CommandLine is 'x' in selection s: arguments aren't compared in the kernel"

    assert shown("s: {CommandLine: x}\ncondition: s", asks="ksentinel: {action: deny, inline: true}") == [
        "high  A rule  asks for deny, inline",
        "  x.yml",
        f"  asks for inline, and the kernel can't decide it: {left}",
        f"  user space: {left}",
        "1 rules: 0 with guards, 1 asking for them, 1 of these in vain.",
        END,
    ]


def test_second_key(shown):
    """What a rule asks for stands behind its title."""
    told = shown(
        "s: {Exe: /a}\ncondition: s", asks="ksentinel: {action: kill, inline: true, when: anomalous}"
    )

    assert told[0] == "high  A rule  asks for kill, inline, anomalous"
    assert "    narrower: only with a score over its threshold" in told


def test_escapes(shown):
    """What a rule says is shown with escapes."""
    told = shown('s: {Exe: "/a\\e[31m"}\ncondition: s')

    assert "\x1b" not in "".join(told)
