# SPDX-License-Identifier: Apache-2.0
"""Rule files: what is wrong with one is said with line and column, and nothing in one does harm."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.level import Level
from ksentinel.rules.fields import View, sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule

TABLE = sources()


def error(text):
    """Return what is wrong with a rule, as a person sees it."""
    with pytest.raises(RuleError) as caught:
        compile_rule(text, "x.yml", TABLE)
    return str(caught.value)


def test_rule():
    """What an alert must know of a rule is taken from its file."""
    text = EXAMPLE + "tags: [attack.execution, attack.t1059.004]\ndescription: Why.\nfalsepositives: [Cats]\n"
    rule = compile_rule(text, "x.yml", TABLE).rule

    assert (rule.title, rule.level, rule.file) == ("Something reads something", Level.LOW, "x.yml")
    assert (rule.techniques, rule.description, rule.false_positives) == (("T1059.004",), "Why.", ("Cats",))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("level: low", "levle: low", "x.yml:8:1: a rule has no 'levle' (did you mean level?)"),
        ("level: low", "level: awful", "x.yml:8:8: level 'awful' is none of informational, low"),
        ("level: low", "level: none", "x.yml:8:8: level 'none': a rule without a level says nothing"),
        ("level: low", "level: [low]", "x.yml:8:8: level must be text"),
        ("level: low", "level:", "level must be text"),
        ("level: low", "", "no level"),
        ("level: low", "level: low\nlevel: high", "x.yml:9:1: 'level' stands here a second time, first in line 8"),
        ("title: Something reads something\n", "", "no title"),
        ("title: Something reads something", "title: {a: b}", "x.yml:1:8: title must be text"),
        ("id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11\n", "", "no id"),
        ("id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11", "id: 12", "x.yml:2:5: id '12' is no UUID"),
        ("  condition: selection\n", "", "x.yml:5:3: detection has no condition"),
        ("  condition:", "  conditon:", "conditon: did you mean condition?"),
        ("condition: selection", "condition: selecton", "x.yml:7:14: no selection 'selecton' (did you mean selection?)"),
        ("condition: selection", "condition: [[a]]", "condition must be text"),
        ("Image|endswith: /cat", "Imgae|endswith: /cat", "x.yml:6:5: no source for field 'Imgae' in process_creation (did"),
        ("    Image|endswith: /cat", "    {}", "selection 'selection' is empty"),
        ("    Image|endswith: /cat", "    []", "selection 'selection' is empty"),
        ("process_creation", "process_craetion", "no source for category 'process_craetion' (did you mean process_creation?)"),
        ("category: process_creation", "service: sshd", "no source for service 'sshd' (that is a service's log"),
        ("category: process_creation", "service: nothing", "no source for service 'nothing' (there are: category"),
        ("process_creation", "file_delete", "no source for category 'file_delete' (ask for unlink and unlinkat"),
        ("category: process_creation, ", "", "names neither category nor service (without either, words"),
        ("category: process_creation", "catgory: process_creation", "a logsource has no 'catgory' (did you mean category?)"),
        ("product: linux", "product: windows", "product 'windows' is not linux"),
        ("category: process_creation", "category: process_creation, service: auditd", "together have no source"),
        ("logsource: {category: process_creation, product: linux}", "logsource: linux", "logsource must be a mapping"),
        ("detection:\n", "correlation: {}\ndetection:\n", "x.yml:4:1: a correlation, not a rule with a detection"),
        ("  condition:", "  timeframe: 5m\n  condition:", "timeframe (an aggregation) is not supported"),
        ("level: low", "level: low\nstatus: stabel", "status 'stabel' is none of stable"),
        ("level: low", "level: low\ntags: attack.t1", "tags must be a list"),
        ("level: low", "level: low\ntags: [[a]]", "tags must be a list of texts"),
        ("level: low", "level: &a low", "x.yml:8:8: anchors and aliases are not supported"),
        ("level: low", "level: *a", "x.yml:8:8: anchors and aliases are not supported"),
        ("level: low", "level: !!python/object:os.system low", "is not supported"),
        ("level: low", "level: low\n---\nlevel: low", "a second document"),
        ("level: low", "level: low\n? [a]\n: b", "a key must be text"),
        ("level: low", "level: 'low", "not YAML"),
        ("level: low", "level: \x00", "not YAML"),
        ("level: low", "level: \udcff", "not YAML"),
        ("level: low", "fields: " + "[" * 40 + "]" * 40, "nested more than 32 levels deep"),
    ],
)  # fmt: skip
def test_errors(old, new, expected):
    """What is wrong is said, with its place and what was probably meant."""
    assert old in EXAMPLE
    assert expected in error(EXAMPLE.replace(old, new))


@pytest.mark.parametrize("text", ["", "- a", "text", "{}", "# nothing", "---\n"])
def test_no_rule(text):
    """What isn't a rule at all is refused."""
    assert error(text).startswith("x.yml")


def test_keys_of_ones_own():
    """Sigma lets a rule carry other keys, as long as they aren't nearly Sigma's."""
    assert compile_rule(EXAMPLE + "team: blue\n", "x.yml", TABLE).rule.title


@pytest.mark.parametrize(
    ("logsource", "field", "expected"),
    [
        ("category: syscall", "syscall: opnat", "syscall is never 'opnat' (did you mean openat?)"),
        ("category: syscall", "flags: O_WRITE", "flags is never 'o_write'"),
        ("category: syscall", "reach: far", "there are: local, loopback, private, public"),
        ("category: network_connection", "Initiated: false", "Initiated is never 'false'"),
        ("category: network_connection", "DestinationHostname: a.b", "ask for DestinationIp"),
        ("service: auditd", "nmae: x", "did you mean name?"),
    ],
)
def test_never_fires(compiled, logsource, field, expected):
    """A value that a field can't have is refused: the rule would never fire."""
    with pytest.raises(RuleError) as caught:
        compiled(f"s: {{'{field.split(':')[0]}': {field.split(': ')[1]}}}\ncondition: s", logsource)

    assert expected in str(caught.value)


PIECES = st.sampled_from(
    "title: x|id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11|logsource:|  category: process_creation|  service: auditd|"
    "detection:|  s:|    Image: x|    Image|endswith: [a, b]|  condition: s|  condition: 1 of s*|level: low|level:|"
    "  - a|    - {a: b}|'|\"|&a|*a|!!x|? |: |[[[[|{{{{|}|]|---|%YAML 9|\t|\x85|\ufeff|<<: *a|not not (".split(
        "|"
    )
)


@given(st.one_of(st.text(), st.lists(PIECES, max_size=30).map("\n".join)))
def test_any_text_is_a_rule_or_an_error(text):
    """Whatever stands in a file, it is a rule or a RuleError."""
    try:
        said = compile_rule(text, "x.yml", TABLE).rule.file
    except RuleError as refused:
        said = str(refused)

    assert said.startswith("x.yml")


@given(st.data())
def test_any_change_of_a_rule(data):
    """A rule with some characters replaced is still a rule or a RuleError."""
    start = data.draw(st.integers(0, len(EXAMPLE)))
    end = data.draw(st.integers(start, min(len(EXAMPLE), start + 20)))
    test_any_text_is_a_rule_or_an_error.hypothesis.inner_test(
        EXAMPLE[:start] + data.draw(st.text(max_size=10)) + EXAMPLE[end:]
    )


@pytest.mark.parametrize(
    "text",
    [
        "[" * 500_000,
        "{a: " * 100_000,
        "- " * 400_000,
        "a: b\n" * 100_000,
        "? " * 400_000,
        "'" + "a" * 1_000_000,
        "a: &a [x]\n" + "".join(f"b{n}: &b{n} [*a, *a]\n" for n in range(9)),
        EXAMPLE.replace("/cat", "[" + ", ".join(f"a{n}" for n in range(100_000)) + "]"),
        EXAMPLE.replace(
            "Image|endswith: /cat", "CommandLine|windash: [" + ", ".join(["x -a -b -c"] * 80_000) + "]"
        ),
        EXAMPLE.replace(
            "  selection:\n",
            "".join(
                f"  s{n}:\n    CommandLine|windash|contains: [{', '.join(['x -a -b -c'] * 150)}]\n"
                for n in range(500)
            )
            + "  selection:\n",
        ),
        EXAMPLE.replace("  condition: selection", "  condition: " + "(" * 100_000),
        EXAMPLE.replace("  condition: selection", "  condition: " + "not " * 100_000 + "selection"),
    ],
    ids=lambda text: text[:12],
)
def test_time_is_bounded(text):
    """A megabyte made to hurt is refused in seconds."""
    started = time.process_time()  # how long others kept the processor is none of its business
    error(text)

    assert time.process_time() - started < 5


KEY = st.builds(
    "|".join,
    st.lists(
        st.sampled_from(
            ["CommandLine", "Image", "ProcessId", "", "contains", "all", "re", "i", "cidr", "exists", "gt", "windash", "base64offset",
             "cased", "neq", "expand", "fieldref", "wide", "hour", "x"]
        ),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=6),
        st.sampled_from(["a*", "(", "10.0.0.0/8", "-a -b -c -d", "%x%"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["a", "b_1", "b_2", "_c", "condition", "timeframe", "and", "1", "a-b", "ä", "a.b", ""]
)
CONDITIONS = st.one_of(
    st.lists(
        st.sampled_from("a b_1 b_* _c a-b ä a.b and or not ( ) 1 all any of them * | 2 AND".split()),
        max_size=8,
    ).map(" ".join),
    VALUES,
)


@settings(max_examples=500)
@given(st.dictionaries(NAMES, VALUES, max_size=4), CONDITIONS)
def test_any_detection_is_a_rule_or_an_error(detection, condition):
    """Whatever stands where in a detection, it is a rule or a RuleError with a place; and what is a rule can be asked."""
    head = EXAMPLE.partition("detection:")[0] + "level: low\ndetection: "
    text = head + json.dumps({"s": {"Image": "x"}, **detection, "condition": condition})
    try:
        rule = compile_rule(text, "x.yml", TABLE)
    except RuleError as refused:
        assert refused.at.line >= 1  # noqa: PT017 - both are good
    else:
        assert RuleSet([rule]).match(EVENT) == (
            (rule.match(EVENT, View(EVENT)),) if rule.test(View(EVENT)) else ()
        )


EVENT = event_from_plain({"event": "exec", "process": {"pid": 5, "exe": "x", "argv": ["a", "-b"]}})


@pytest.mark.parametrize(
    "expression",
    [
        "a" * 1_000_000,
        "(a*)*" * 1000,
        "((((a+)+)+)+)+$",
        "(" * 4000 + ")" * 4000,
        "a{1000}{1000}",
        "[" * 8000,
        "(a{500}){500}",
    ],
)
def test_any_expression_is_quick(compiled, expression):
    """Long, nested and repeated expressions are refused, or harmless."""
    try:
        rule = compiled(f"s:\n  CommandLine|re: {expression!r}\ncondition: s")
    except RuleError as refused:
        assert (refused.at.line, refused.at.column > 1) == (7, True)  # noqa: PT017 - both are good
    else:
        assert (
            rule.test(
                View(event_from_plain({"event": "exec", "process": {"argv": ["a" * 50_000 + "b", "a"]}}))
            )
            is True
        )
