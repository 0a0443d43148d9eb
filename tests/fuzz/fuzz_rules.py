# SPDX-License-Identifier: Apache-2.0
"""
Fuzzing, guided by coverage, of what reads rules, policies and exceptions. No test: it runs until it is told to stop.

    pip install atheris
    python tests/fuzz/fuzz_rules.py -max_total_time=60 -timeout=1 CORPUS rules/*/

Whatever it is given, there is a result or a RuleError, within a second. What covers something new is kept in CORPUS, a folder of yours; libFuzzer's
options apply. What it finds belongs into the tests.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ksentinel"]):
    from ksentinel.codec import event_from_plain
    from ksentinel.errors import RuleError
    from ksentinel.exceptions import parse_exceptions
    from ksentinel.policy import parse_policy
    from ksentinel.rules.checking import check_text
    from ksentinel.rules.correlation import read, resolve
    from ksentinel.rules.correlator import Correlator
    from ksentinel.rules.document import parse_all
    from ksentinel.rules.fields import sources
    from ksentinel.rules.ruleset import EXAMPLE, RuleSet, is_correlation
    from ksentinel.rules.sigma import compile_document, compile_rule

TABLE = sources()
CAT = compile_rule(EXAMPLE, "cat.yml", TABLE)
EVENTS = [
    event_from_plain(plain)
    for plain in (
        {"event": "exec", "process": {"exe": "/bin/cat", "argv": ["cat", "-n", "/etc/shadow"]}},
        {"event": "syscall", "syscall": "openat", "paths": ["/etc/shadow"], "flags": 1, "process": {"exe": "/bin/cat"}},
        {
            "event": "syscall", "syscall": "connect", "process": {"exe": "/usr/bin/nc"},
            "address": {"family": "inet", "host": "203.0.113.9", "port": 4444},
        },
    )
]  # fmt: skip
FILE = Path("fuzzed.yml")


def as_rules(text: str) -> None:
    """Compile every document, and ask what came of it about some events."""
    compiled, drafts = [], []
    for root in parse_all(text, FILE):
        if is_correlation(root):
            drafts.append(read(root, FILE))
        else:
            compiled.append(compile_document(root, FILE, TABLE))
    correlations, _ = resolve(drafts, compiled)
    rules = RuleSet(compiled, correlations)
    correlator = Correlator(rules.correlations)
    for event in EVENTS:
        for match in correlator.take(event, rules.match(event)):
            if not match.clauses:
                raise AssertionError(f"{match.rule.title} fired without a reason")


def as_checked(text: str) -> None:
    """Find everything that is wrong with it."""
    check_text(text, FILE, TABLE, {})


def as_policy(text: str) -> None:
    """Read it as a policy: what loads lets no model act alone."""
    parse_policy(text, FILE)


def as_exceptions(text: str) -> None:
    """Read it as exceptions of one rule, and ask them."""
    excepted = parse_exceptions(text, FILE, [CAT.rule])
    for match in RuleSet([CAT]).match(EVENTS[0]):
        excepted.mark(match)


TARGETS = (as_rules, as_rules, as_checked, as_policy, as_exceptions)


def one(data: bytes) -> None:
    """Read the text that begins at the second byte; the first one chooses as what."""
    if not data:
        return
    text = data[1:].decode("utf-8", "replace")
    try:
        TARGETS[data[0] % len(TARGETS)](text)
    except RuleError as error:
        if not error.what:
            raise AssertionError("an error that says nothing") from error


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
