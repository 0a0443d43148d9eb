# SPDX-License-Identifier: Apache-2.0
"""Patterns: values, wildcards and modifiers."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sigma.types import SigmaString, SpecialChars

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.rules.fields import View
from ksentinel.rules.pattern import _ANY, _STAR, wildcards


def run(*argv, exe="/usr/bin/cat", **rest):
    """Return an exec in plain form."""
    return {"event": "exec", "process": {"exe": exe, "argv": list(argv)}, **rest}


def item(text, condition="s"):
    """Return a detection of one field."""
    return f"s:\n  {text}\ncondition: {condition}"


@pytest.mark.parametrize(
    ("field", "argv", "expected"),
    [
        ("CommandLine: cat x", "cat x", True),
        ("CommandLine: CAT X", "cat x", True),
        ("CommandLine: cat", "cat x", False),
        ("CommandLine|cased: CAT x", "cat x", False),
        ("CommandLine|cased: cat x", "cat x", True),
        ("CommandLine|cased|contains: At", "cat x", False),
        ("CommandLine: c*x", "cat x", True),
        ("CommandLine: c?t x", "cat x", True),
        ("CommandLine: c?t", "cat x", False),
        ("CommandLine: '*at*'", "cat x", True),
        ("CommandLine: '*'", "cat x", True),
        ("CommandLine: 'cat*'", "cat x", True),
        (r"CommandLine: 'cat \*'", "cat *", True),
        (r"CommandLine: 'cat \*'", "cat x", False),
        (r"CommandLine: 'cat \?'", "cat ?", True),
        (r"CommandLine: 'a\b'", r"a\b", True),
        (r"CommandLine: 'a\\b'", r"a\b", True),
        ("CommandLine|contains: 'a?c'", "xabcx", True),
        ("CommandLine|contains: [zz, at]", "cat", True),
        ("CommandLine|contains|all: [c, at]", "cat", True),
        ("CommandLine|contains|all: [c, zz]", "cat", False),
        ("CommandLine|startswith: [do, CA]", "cat", True),
        ("CommandLine|endswith: [og, AT]", "cat", True),
        ("CommandLine|startswith: at", "cat", False),
        ("CommandLine|re: 'c.t$'", "a cat", True),
        ("CommandLine|re: 'C.T'", "a cat", False),
        ("CommandLine|re|i: 'C.T'", "a cat", True),
        ("CommandLine|re: 'a.*c'", "a\nc", True),
        ("CommandLine|re|m: '^c$'", "a\nc", True),
        ("CommandLine: 'a*c'", "a\nc", True),
        ("CommandLine|windash|startswith: -x", "/xyz", True),
        ("CommandLine|windash: -x", "-x", True),
        ("CommandLine|windash|contains|all: [' -x', ' -y']", "a \N{EM DASH}x /y", True),
        ("CommandLine|windash|contains|all: [' -x', ' -y']", "a /x", False),
        ("CommandLine|windash|contains: 'a -x --y'", "a /x -/y", True),
        ("CommandLine|windash|contains: 'a-x'", "a/x", False),
        ("CommandLine|windash: '-x*'", "/xyz", True),
        ("CommandLine|re|ignorecase: 'C.T'", "a cat", True),
        ("CommandLine|neq: cat", "cat", False),
        ("CommandLine|contains|neq: [x, y]", "cat", True),
        ("CommandLine|contains|neq: [x, a]", "cat", False),
        ("CommandLine|base64offset|contains: /bin/sh", "echo L2Jpbi9zaCAtaQo= | base64 -d", True),
        ("CommandLine|base64offset|contains: /bin/sh", "echo IC9iaW4vc2ggLWkK | base64 -d", True),
        ("CommandLine|base64offset|contains: /bin/sh", "echo ICAvYmluL3NoIC1pCg== | base64 -d", True),
        ("CommandLine|base64offset|contains: /bin/sh", "echo ICAvYmluL2FzaCAtaQo= | base64 -d", False),
        ("CommandLine|base64offset|contains|all: [/bin/sh, ' -i']", "echo L2Jpbi9zaCAtaQo=", True),
        ("CommandLine|base64offset|contains|all: [/bin/sh, ' -x']", "echo L2Jpbi9zaCAtaQo=", False),
        ("CommandLine|cased|base64offset|contains: /bin/sh", "echo l2jpbi9zacataqo=", False),
        ("CommandLine|contains: Ü", "aüb", True),
        ("CommandLine: null", "cat", False),
        ("CommandLine: ''", "cat", False),
        ("CurrentDirectory: null", "cat", True),
        ("CurrentDirectory: ''", "cat", True),
        ("CurrentDirectory: [null, /tmp]", "cat", True),
        ("CurrentDirectory|exists: false", "cat", True),
        ("CommandLine|exists: true", "cat", True),
        ("CommandLine|exists: false", "cat", False),
        ("ProcessId: 1000", "cat", True),
        ("ProcessId|gte: 1000", "cat", True),
        ("ProcessId|gt: 1000", "cat", False),
        ("ProcessId|lt: 1001", "cat", True),
        ("ProcessId|lte: 999", "cat", False),
    ],
)
def test_value(fires, field, argv, expected):
    """A value means what Sigma says it does."""
    assert expected == fires(item(field), run(argv))


@pytest.mark.parametrize(
    ("network", "host", "expected"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("fc00::/7", "fd00::1", True),
        ("fc00::/7", "10.0.0.1", False),
        ("['192.168.0.0/16', '127.0.0.0/8']", "127.0.0.1", True),
    ],
)
def test_cidr(fires, network, host, expected):
    """A network holds its addresses, also where IPv4 wears IPv6 clothes."""
    family = "inet6" if ":" in host else "inet"
    event = {
        "event": "syscall",
        "syscall": "connect",
        "address": {"family": family, "host": host, "port": 80},
    }

    assert expected == fires(item(f"DestinationIp|cidr: {network}"), event, "category: network_connection")


def test_lists_of_maps(fires):
    """Maps in a list are alternatives; fields in a map must hold together."""
    detection = "s:\n  - CommandLine: a\n    Image|endswith: /cat\n  - CommandLine: b\ncondition: s"

    assert fires(detection, run("a"))
    assert fires(detection, run("b", exe="/x"))
    assert not fires(detection, run("a", exe="/x"))


def test_keywords(fires):
    """A value without a field is looked for in all of them."""
    assert fires("k:\n  - shadow\ncondition: k", run("cat", "/etc/shadow"))
    assert fires("k:\n  '|all': [shadow, bin]\ncondition: k", run("cat", "/etc/shadow"))
    assert not fires("k:\n  '|all': [shadow, sbin]\ncondition: k", run("cat", "/etc/shadow"))


def test_conditions_in_a_list(fires):
    """Several conditions are alternatives."""
    assert fires("a:\n  Image: x\nb:\n  Image|endswith: cat\ncondition: [a, b]", run("cat"))


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("CommandLine|base64offset: xyz", "write base64offset|contains"),
        ("CommandLine|contains|base64offset: xyz", "write base64offset|contains"),
        ("CommandLine|base64offset|contains: xy", "3 bytes or more"),
        ("CommandLine|base64offset|contains: x*yz", "takes no wildcards"),
        ("CommandLine|base64offset|endswith: xyz", "write base64offset|contains"),
        ("CommandLine|base64: xyz", "modifier 'base64' is not supported (the whole value"),
        ("CommandLine|wide: xyz", "not UTF-16"),
        ("CommandLine|utf16|base64offset|contains: xyz", "not UTF-16"),
        ("CommandLine|expand: '%x%'", "no placeholders"),
        ("CommandLine|hour: 3", "don't ask for the time"),
        ("CommandLine|windash: '-a -b -c -d'", "more than 3 parameters"),
        ("CommandLine|ignorecase: x", "'ignorecase' belongs behind 're'"),
        ("CommandLine|all|re: [x, y]", "write it first: re|..."),
        ("CommandLine|fieldref: Image", "modifier 'fieldref' is not supported"),
        ("CommandLine|contain: x", "did you mean contains?"),
        ("CommandLine|contains|endswith: x", "don't go together"),
        ("CommandLine|all|all: x", "twice"),
        ("CommandLine|i: x", "belongs behind 're'"),
        ("CommandLine|re: '(?=a)'", "RE2 refuses"),
        ("CommandLine|re: '('", "RE2 refuses"),
        (r"CommandLine|re: '(a)\1'", "RE2 refuses"),
        ("CommandLine|re: '((a{1000}){1000}){1000}'", "RE2 refuses"),
        (f"CommandLine|re: '{'a' * 9000}'", "more than 8192 characters"),
        ("CommandLine|cidr: 10.0.0.1/8", "not a network"),
        ("CommandLine|gt: many", "whole number"),
        ("CommandLine|exists: maybe", "true or false"),
        ("CommandLine|contains: ''", "match anything"),
        ("CommandLine|contains: null", "null can't go"),
        ("CommandLine: []", "empty list"),
        ("CommandLine: {a: b}", "must be text"),
        ("CommandLine: [[a]]", "must be text"),
        ("Commandline: x", "did you mean CommandLine?"),
        ("Hashes: x", "files are not hashed"),
        ("ProcessId: init", "is a number, never 'init'"),
    ],
)
def test_errors(compiled, field, what):
    """What can't be asked is refused by name, at its place."""
    with pytest.raises(RuleError) as caught:
        compiled(item(field))

    assert what in str(caught.value)
    assert caught.value.at.line == 7
    assert caught.value.at.column >= 5


@given(st.text(alphabet="ab*?\\", min_size=1, max_size=12))
def test_wildcards_same_as_pysigma(text):
    """A value is split at its wildcards as pySigma does it."""
    special = {SpecialChars.WILDCARD_MULTI: _STAR, SpecialChars.WILDCARD_SINGLE: _ANY}
    theirs = [special.get(part, part) for part in SigmaString(text).s]
    # Stars in a row are one.
    merged = [p for n, p in enumerate(theirs) if not (p is _STAR and n and theirs[n - 1] is _STAR)]

    assert merged == wildcards(text)


@given(
    pattern=st.text(alphabet="abA*?.$[ü\n", min_size=1, max_size=8),
    value=st.text(alphabet="abA.$[ü\n", min_size=1, max_size=10),
    shape=st.sampled_from(["", "|contains", "|startswith", "|endswith"]),
)
def test_same_as_a_naive_matcher(compiled, pattern, value, shape):
    """Whatever shortcut a pattern takes, it matches what the plain translation to a regular expression does."""
    body = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern.lower())
    body = (".*" if shape in {"|contains", "|endswith"} else "") + body
    body += ".*" if shape in {"|contains", "|startswith"} else ""
    expected = re.fullmatch(body, value.lower(), re.DOTALL) is not None
    quoted = pattern.replace("\n", "\\n")
    rule = compiled(f's:\n  CommandLine{shape}: "{quoted}"\ncondition: s')

    assert expected == rule.test(View(event_from_plain(run(value))))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("CommandLine|contains: AT", "a cat", (3, 5)),
        ("CommandLine|startswith: a", "a cat", (0, 1)),
        ("CommandLine|endswith: cat", "a cat", (2, 5)),
        ("CommandLine: a cat", "a cat", (0, 5)),
        ("CommandLine|re: 'c.'", "ä cat", (2, 4)),
        ("CommandLine: '*c?t'", "ä cat", (2, 5)),
        ("CommandLine|re: 'c.'", "\udcff cat", (2, 4)),
        ("CommandLine|contains: cat", "\u0130 cat", None),
        ("CommandLine: '*'", "a cat", None),
    ],
)
def test_span(compiled, field, value, expected):
    """A clause says where in the value it matched, in characters; nothing where that is unknown."""
    rule = compiled(item(field))
    event = event_from_plain(run(value))
    view = View(event)

    assert rule.test(view)
    assert expected == rule.match(event, view).clauses[0].span


def test_clauses(compiled):
    """A match names what was decisive: of alternatives the first, of exceptions what was looked at."""
    rule = compiled(
        "s:\n  CommandLine|contains: [zz, shadow]\n  Image|endswith: /cat\n"
        "filter:\n  User: root\ncondition: s and not filter"
    )
    event = event_from_plain(
        {"event": "exec", "process": {"exe": "/bin/cat", "argv": ["cat", "/etc/shadow"], "uid": 7}}
    )
    clauses = rule.match(event, View(event)).clauses

    assert [(c.selection, c.field, c.test, c.value, c.span, c.negated) for c in clauses] == [
        ("s", "CommandLine", "contains 'shadow'", "cat /etc/shadow", (9, 15), False),
        ("s", "Image", "endswith '/cat'", "/bin/cat", (4, 8), False),
        ("filter", "User", "is 'root'", "7", None, True),
    ]


@pytest.mark.parametrize(
    "field", ["CommandLine|re: '(a+)+$'", "CommandLine: '*a*a*a*a*a*a*b'", "CommandLine|re: '(a|aa)*b'"]
)
def test_no_event_hangs_a_rule(fires, field):
    """What takes a backtracking engine for ever takes this one milliseconds."""
    started = time.perf_counter()

    assert not fires(item(field), run("a" * 100_000 + "c"))
    assert time.perf_counter() - started < 1
