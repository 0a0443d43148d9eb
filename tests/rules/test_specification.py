# SPDX-License-Identifier: Apache-2.0
"""The specification: what pySigma reads in a rule is what ours does, and what it refuses is refused at its place."""

import operator
import re
import subprocess
import sys
from base64 import b64encode
from ipaddress import ip_address

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sigma import types
from sigma.conditions import ConditionAND, ConditionFieldEqualsValueExpression, ConditionNOT, ConditionOR
from sigma.rule import SigmaRule

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.rules.document import parse
from ksentinel.rules.fields import View, sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule
from ksentinel.rules.specification import plain

TABLE = sources()
RULE = """\
title: A rule
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
logsource: {{category: process_creation}}
detection:
  a: {a}
  b: {b}
  condition: {condition}
"""


def holds(node, event):
    """Evaluate pySigma's tree on an event, a dict of lists of texts, in the plainest way."""
    if isinstance(node, ConditionNOT):
        return not holds(node.args[0], event)
    if isinstance(node, ConditionAND | ConditionOR):
        return (all if isinstance(node, ConditionAND) else any)(holds(arg, event) for arg in node.args)
    if isinstance(node, ConditionFieldEqualsValueExpression):
        return has(node.value, [text for text in event[node.field] if text])
    # A keyword stands anywhere in any field.
    everything = [text for texts in event.values() for text in texts if text]
    return any(re.search(glob(node.value), text, re.DOTALL | re.IGNORECASE) for text in everything)


def has(value, texts):
    """Tell whether one of the texts is what pySigma's value asks for."""
    match value:
        case types.SigmaExpansion():
            return any(has(one, texts) for one in value.values)
        case types.SigmaNull():
            return not texts
        case types.SigmaExists():
            return bool(texts) is value.exists
        case types.SigmaCIDRExpression():
            return any(ip_address(text) in value.network for text in texts)
        case types.SigmaCompareExpression():
            compare = {"LT": operator.lt, "LTE": operator.le, "GT": operator.gt, "GTE": operator.ge}[
                value.op.name
            ]
            return any(compare(int(text), value.number.number) for text in texts)
        case types.SigmaRegularExpression():
            flags = re.DOTALL
            for flag in value.flags:
                flags |= value.sigma_to_python_flags[flag]
            return any(re.search(str(value.regexp), text, flags) for text in texts)
        case types.SigmaCasedString():
            return any(re.fullmatch(glob(value), text, re.DOTALL) for text in texts)
        case types.SigmaString():
            if not value.s:
                return not texts  # empty and absent are one
            return any(re.fullmatch(glob(value), text, re.DOTALL | re.IGNORECASE) for text in texts)
    raise AssertionError(f"{value!r} is not expected")


def glob(value):
    """Return pySigma's text with wildcards as a regular expression."""
    special = {types.SpecialChars.WILDCARD_MULTI: ".*", types.SpecialChars.WILDCARD_SINGLE: "."}
    return "".join(special[part] if part in special else re.escape(part) for part in value.s)


WORD = st.text(alphabet="abAB/-*?\\ ", min_size=1, max_size=5)
LONGER = st.text(alphabet="abA/- ", min_size=3, max_size=6)
SHAPE = st.sampled_from(
    ["", "|contains", "|startswith", "|endswith", "|contains|all", "|all", "|cased", "|contains|cased", "|endswith|all|cased",
     "|windash", "|windash|contains", "|windash|contains|all", "|contains|windash", "|windash|startswith", "|neq", "|contains|neq"]
)  # fmt: skip
EXPRESSION = st.sampled_from(["a", "a+b", "^a", "B$", "a.b", "[ab]-", "(a|b)/"])
ITEM = st.one_of(
    st.tuples(st.sampled_from(["CommandLine", "Image", "CurrentDirectory"]), SHAPE, st.lists(WORD, min_size=1, max_size=3)),
    st.tuples(st.just("CommandLine"), st.sampled_from(["|re", "|re|i", "|re|m|i", "|re|multiline|ignorecase", "|re|all"]), st.lists(EXPRESSION, min_size=1, max_size=2)),
    st.tuples(st.just("CommandLine"), st.sampled_from(["|base64offset|contains", "|base64offset|contains|all"]), st.lists(LONGER, min_size=1, max_size=2)),
    st.tuples(st.just("ProcessId"), st.sampled_from(["|lt", "|lte", "|gt", "|gte"]), st.integers(1, 4)),
    st.tuples(st.just("CurrentDirectory"), st.just("|exists"), st.booleans()),
    st.tuples(st.just("CurrentDirectory"), st.just(""), st.sampled_from([None, ""])),
    st.tuples(st.just(""), st.sampled_from(["|contains", "|all"]), st.lists(st.text(alphabet="abA/", min_size=1, max_size=3), min_size=1, max_size=2)),
)  # fmt: skip
SELECTION = st.one_of(
    st.lists(ITEM, min_size=1, max_size=3),
    st.lists(st.lists(ITEM, min_size=1, max_size=2), min_size=2, max_size=3),
    st.lists(st.text(alphabet="abA/", min_size=1, max_size=3), min_size=1, max_size=2),
)
CONDITION = st.sampled_from(
    [
        "a",
        "not a",
        "a and b",
        "a or b",
        "a and not b",
        "not (a or b)",
        "1 of them",
        "all of them",
        "not 1 of b*",
    ]
)


def written(value):
    """Write a selection as YAML on one line."""
    if isinstance(value, list) and all(isinstance(item, tuple) for item in value):
        return (
            "{"
            + ", ".join(f"{quoted(field + shape)}: {written(values)}" for field, shape, values in value)
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else quoted(value)
    )


def quoted(value):
    """Quote a text for YAML."""
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def words_overlap(value):
    """Tell whether a selection names a key twice, which YAML refuses."""
    keys = (
        [field + shape for field, shape, _ in value] if all(isinstance(item, tuple) for item in value) else []
    )
    return len(set(keys)) < len(keys) or any(words_overlap(item) for item in value if isinstance(item, list))


TEXT = st.one_of(
    st.text(alphabet="abAB/-*?\\ \N{EN DASH}", max_size=8),
    st.tuples(st.sampled_from(["", "x", "xy"]), LONGER).map(
        lambda pair: b64encode("".join(pair).encode()).decode()
    ),
)


@settings(max_examples=400)
@given(
    SELECTION,
    SELECTION,
    CONDITION,
    st.lists(
        st.tuples(TEXT, TEXT, st.sampled_from(["", "/", "/a/b"]), st.integers(1, 4)), min_size=1, max_size=6
    ),
)
def test_same_meaning(a, b, condition, seen):
    """A rule with any modifiers holds for what pySigma's tree of it holds for."""
    assume(not words_overlap(a))
    assume(not words_overlap(b))
    text = RULE.format(a=written(a), b=written(b), condition=condition)
    ours = compile_rule(text, "x.yml", TABLE)
    theirs = SigmaRule.from_dict(plain(parse(text, "x.yml"))).detection.parsed_condition[0].parsed

    for command, image, folder, pid in seen:
        event = event_from_plain(
            {"event": "exec", "process": {"pid": pid, "exe": image, "argv": [command], "cwd": folder}}
        )
        known = {name: View(event).values(field) for name, field in ours.source.fields.items()}
        assert holds(theirs, known) == ours.test(View(event))
        assert ours.test(View(event)) == bool(RuleSet([ours]).match(event))


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("10.1.2.3", "10.0.0.0/8"),
        ("11.1.2.3", "10.0.0.0/8"),
        ("fd00::1", "fc00::/7"),
        ("192.168.1.1", "192.168.1.1/32"),
    ],
)
def test_same_networks(host, network):
    """So do networks."""
    text = EXAMPLE.replace("process_creation", "network_connection").replace(
        "Image|endswith: /cat", f"DestinationIp|cidr: {network}"
    )
    ours = compile_rule(text, "x.yml", TABLE)
    theirs = SigmaRule.from_dict(plain(parse(text, "x.yml"))).detection.parsed_condition[0].parsed
    address = {"family": "inet6" if ":" in host else "inet", "host": host, "port": 1}
    event = event_from_plain({"event": "syscall", "syscall": "connect", "address": address})

    assert holds(theirs, {"DestinationIp": [host]}) == ours.test(View(event))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("level: low", "level: low\ndate: yesterday", "x.yml:9:7: pySigma: Rule date 'yesterday' is invalid"),
        ("level: low", "level: low\nmodified: 2024-13-13", "x.yml:9:11: pySigma: Rule modified"),
        (
            "level: low",
            "level: low\ntags: [execution]",
            "x.yml:9:7: pySigma: Sigma tag must start with namespace",
        ),
        ("level: low", "level: low\nrelated: [x]", "x.yml:9:10: pySigma"),
        ("selection", "sel.ection", "x.yml:7:14: pySigma: Expected end of text"),
    ],
)
def test_refused(old, new, expected):
    """What pySigma alone refuses is refused, at the key that it is about."""
    with pytest.raises(RuleError) as caught:
        compile_rule(EXAMPLE.replace(old, new), "x.yml", TABLE)

    assert str(caught.value).startswith(expected)


def test_numbers_stay_as_written():
    """Only where a modifier wants a number or a truth is it one: 0755 is no 493."""
    text = "{a: 0755, b|gt: 07, c|exists: 'true', d|gte: [1, x], e: true, f: null}"

    assert plain(parse(text, "x.yml")) == {
        "a": "0755",
        "b|gt": 7,
        "c|exists": True,
        "d|gte": [1, "x"],
        "e": "true",
        "f": None,
    }


def test_nothing_that_fetches():
    """PySigma's validators, which fetch lists from elsewhere, are not imported; nor is anything that could."""
    code = (
        "import sys; from ksentinel.rules.sigma import compile_rule; from ksentinel.rules.fields import sources;"
        "from ksentinel.rules.ruleset import EXAMPLE; compile_rule(EXAMPLE, 'x.yml', sources());"
        "print([m for m in sys.modules if m.startswith(('sigma.validators', 'sigma.data', 'sigma.plugins', 'requests', 'urllib3'))])"
    )

    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
