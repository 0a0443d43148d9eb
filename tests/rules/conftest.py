# SPDX-License-Identifier: Apache-2.0
"""Rules in a few words."""

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.rules.fields import View, sources
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.sigma import compile_rule

TEMPLATE = """\
title: A rule
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
logsource: {{{logsource}}}
detection:
{detection}
"""


@pytest.fixture(scope="session")
def compiled():
    """Return a function that compiles a detection for a log source."""
    table = sources()

    def compile_detection(detection, logsource="category: process_creation"):
        body = "\n".join(f"  {line}" for line in detection.strip("\n").splitlines())
        return compile_rule(TEMPLATE.format(logsource=logsource, detection=body), "x.yml", table)

    return compile_detection


@pytest.fixture(scope="session")
def fires(compiled):
    """Return a function that tells whether a detection holds for an event in plain form."""

    def check(detection, plain, logsource="category: process_creation"):
        rule = compiled(detection, logsource)
        event = event_from_plain(plain)
        return rule.source.applies(event) and rule.test(View(event))

    return check


@pytest.fixture(scope="session")
def fires_on_records(compiled):
    """Return a function that tells whether a selection for audit holds for some record of an event."""

    def check(selection, plain):
        rules = RuleSet([compiled(f"s: {selection}\ncondition: s", "service: auditd")])
        return bool(rules.match(event_from_plain(plain)))

    return check
