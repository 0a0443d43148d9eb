# SPDX-License-Identifier: Apache-2.0
"""Conditions, against a naive evaluator and against pySigma."""

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sigma.conditions import ConditionAND, ConditionNOT, ConditionOR
from sigma.rule import SigmaDetections

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.rules.fields import View

NAMES = ("a", "b", "c_1", "c_2", "_d")
DETECTION = "\n".join(f"{name}:\n  CommandLine|contains: '<{name}>'" for name in NAMES) + "\ncondition: "


def view(truth):
    """Return a view of an event in which the selections of that *truth* hold."""
    argv = [f"<{name}>" for name, holds in truth.items() if holds]
    return View(event_from_plain({"event": "exec", "process": {"exe": "/x", "argv": argv}}))


def truths():
    """Return every assignment of truth to the selections."""
    return [dict(zip(NAMES, values, strict=True)) for values in product([False, True], repeat=len(NAMES))]


TABLE = {
    "a": lambda t: t["a"],
    "not a": lambda t: not t["a"],
    "not not a": lambda t: t["a"],
    "a and b": lambda t: t["a"] and t["b"],
    "a or b and c_1": lambda t: t["a"] or (t["b"] and t["c_1"]),
    "(a or b) and c_1": lambda t: (t["a"] or t["b"]) and t["c_1"],
    "not a and b": lambda t: (not t["a"]) and t["b"],
    "not (a and b)": lambda t: not (t["a"] and t["b"]),
    "not (a or b) or c_1": lambda t: not (t["a"] or t["b"]) or t["c_1"],
    "1 of c_*": lambda t: t["c_1"] or t["c_2"],
    "any of c_*": lambda t: t["c_1"] or t["c_2"],
    "all of c_*": lambda t: t["c_1"] and t["c_2"],
    "a and not 1 of c_*": lambda t: t["a"] and not (t["c_1"] or t["c_2"]),
    "a and not all of c_*": lambda t: t["a"] and not (t["c_1"] and t["c_2"]),
    "1 of them": lambda t: t["a"] or t["b"] or t["c_1"] or t["c_2"],
    "all of them": lambda t: t["a"] and t["b"] and t["c_1"] and t["c_2"],
    "1 of *_1": lambda t: t["c_1"],
    "((((a))))": lambda t: t["a"],
    "_d or a": lambda t: t["_d"] or t["a"],
}


@pytest.mark.parametrize("condition", TABLE)
def test_truth_table(compiled, condition):
    """A condition means what its words say, whatever holds; and it has clauses exactly where it holds."""
    rule = compiled(DETECTION + f"'{condition}'")

    for truth in truths():
        seen = view(truth)
        assert TABLE[condition](truth) == rule.test(seen)
        assert rule.test(seen) == bool(rule.match(seen.event, seen).clauses)


TREES = st.recursive(
    st.sampled_from([*NAMES, "1 of c_*", "all of c_*", "1 of them", "all of them", "any of b*"]),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner).map(" ".join),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=8,
)


def sigma_holds(node, truth):
    """Evaluate pySigma's tree."""
    if isinstance(node, ConditionNOT):
        return not sigma_holds(node.args[0], truth)
    if isinstance(node, ConditionAND | ConditionOR):
        return (all if isinstance(node, ConditionAND) else any)(sigma_holds(arg, truth) for arg in node.args)
    return truth[str(node.value).strip("*<>")]


@given(TREES)
def test_same_as_pysigma(compiled, condition):
    """A random condition holds where pySigma's reading of it does."""
    plain = {name: {"CommandLine|contains": f"<{name}>"} for name in NAMES}
    theirs = SigmaDetections.from_dict({**plain, "condition": condition}).parsed_condition[0].parsed
    ours = compiled(DETECTION + f"'{condition}'")

    for truth in truths()[::3]:
        assert sigma_holds(theirs, truth) == ours.test(view(truth))


@pytest.mark.parametrize(
    ("condition", "what", "column"),
    [
        ("a and", "ends where a selection should be", 19),
        ("a and nothing", "no selection 'nothing'", 20),
        ("a b", "'b' where 'and', 'or' or the end should be", 16),
        ("(a or b", "parenthesis is missing", 21),
        ("a)", "parenthesis too many", 15),
        ("and a", "'and' where a selection should be", 14),
        ("2 of c_*", "'2 of' is none of", 14),
        ("1 of x*", "no selection 'x*'", 19),
        ("a | count() by User > 5", "aggregations", 16),
        ("a AND b", "'AND' where 'and'", 16),
        ("(" * 33 + "a" + ")" * 33, "more than 32 parentheses", 46),
        ("a" + " or a" * 600, "more than 1000 words", 14),
    ],
)
def test_errors(compiled, condition, what, column):
    """What is wrong with a condition is said with its column."""
    with pytest.raises(RuleError) as caught:
        compiled(DETECTION + condition)

    assert what in str(caught.value)
    assert (16, column) == (caught.value.at.line, caught.value.at.column)


def test_work_is_bounded(compiled):
    """A condition that multiplies many selections by many mentions is refused, and quickly."""
    many = "\n".join(f"s{n}:\n  CommandLine: x{n}" for n in range(2000))
    started = time.perf_counter()

    with pytest.raises(RuleError, match="more than 20000"):
        compiled(f"{many}\ncondition: {' or '.join(['1 of them'] * 100)}")
    assert time.perf_counter() - started < 2


def test_patterns_of_names_take_linear_time(compiled):
    """Stars in a selection's name don't multiply."""
    started = time.perf_counter()

    with pytest.raises(RuleError, match="no selection"):
        compiled("a" * 900 + ":\n  Image: x\ncondition: 1 of " + "a*" * 300 + "b")
    assert time.perf_counter() - started < 1


EVIDENCE = """\
a:
  CommandLine|contains: [zz, '-c']
  Image|endswith: /sh
f_1:
  User: root
f_2:
  - ParentImage: /sbin/init
  - CurrentDirectory: /usr
k: [secret, word]
e:
  CommandLine|base64offset|contains: /bin/sh
n:
  CommandLine|contains|neq: [yes, no]
condition: """
EXEC = event_from_plain(
    {
        "event": "exec",
        "process": {
            "exe": "/bin/sh",
            "argv": ["sh", "-c", "a secret L2Jpbi9zaCAtaQo="],
            "uid": 7,
            "cwd": "/srv",
        },
    }
)
LINE = "sh -c a secret L2Jpbi9zaCAtaQo="


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (
            "a and not 1 of f_*",
            [
                ("a", "CommandLine", "contains '-c'", LINE, (3, 5), False),
                ("a", "Image", "endswith '/sh'", "/bin/sh", (4, 7), False),
                ("f_1", "User", "is 'root'", "7", None, True),
                ("f_2", "ParentImage", "is '/sbin/init'", None, None, True),
                ("f_2", "CurrentDirectory", "is '/usr'", "/srv", None, True),
            ],
        ),
        # Of "all of" under a not the first that didn't hold is enough.
        (
            "k and not all of f_*",
            [
                ("k", "keywords", "contains 'secret'", LINE, (8, 14), False),
                ("f_1", "User", "is 'root'", "7", None, True),
            ],
        ),
        # What stands under two nots speaks for the rule.
        (
            "not (f_1 or not k)",
            [
                ("f_1", "User", "is 'root'", "7", None, True),
                ("k", "keywords", "contains 'secret'", LINE, (8, 14), False),
            ],
        ),
        ("not not e", [("e", "CommandLine", "base64offset contains '/bin/sh'", LINE, (15, 24), False)]),
        (
            "n and not f_1",
            [
                ("n", "CommandLine", "contains 'yes' or contains 'no'", LINE, None, True),
                ("f_1", "User", "is 'root'", "7", None, True),
            ],
        ),
        ("f_1 or e or a", [("e", "CommandLine", "base64offset contains '/bin/sh'", LINE, (15, 24), False)]),
    ],
)
def test_evidence(compiled, condition, expected):
    """A match names each clause that was decisive, and each that was looked at and did not match, with field, value and span."""
    rule = compiled(EVIDENCE + condition)
    clauses = rule.match(EXEC, View(EXEC)).clauses

    assert rule.test(View(EXEC))
    assert expected == [(c.selection, c.field, c.test, c.value, c.span, c.negated) for c in clauses]


def test_many_nots(compiled):
    """More negations in a row than parentheses may nest are refused: pySigma's parser would recurse as deep."""
    assert compiled(DETECTION + "not " * 32 + "a")
    with pytest.raises(RuleError, match="more than 32 'not' in a row"):
        compiled(DETECTION + "not " * 33 + "a")
