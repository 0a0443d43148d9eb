# SPDX-License-Identifier: Apache-2.0
"""The index: whatever it is made of, it hides nothing."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ksentinel.codec import event_from_plain
from ksentinel.rules.fields import View
from ksentinel.rules.index import Index
from ksentinel.rules.pattern import required
from ksentinel.rules.ruleset import RuleSet

WORDS = [
    "cat",
    "/cat",
    "/bin/cat",
    "cat /etc/shadow",
    "shadow",
    "a",
    "/",
    "É",
    "\u0391Σ",
    "İ",
    "K",
    "\N{LATIN SMALL LETTER LONG S}",
    "sh -i",
    "?",
    "x" * 40,
    "-x",
]
WORD = st.one_of(
    st.sampled_from(WORDS),
    st.text(
        alphabet="abAB/*?-\\ sSkKΣ\N{GREEK SMALL LETTER SIGMA}\N{GREEK SMALL LETTER FINAL SIGMA}\N{LATIN SMALL LETTER LONG S}",
        min_size=1,
        max_size=5,
    ),
)
SHAPE = st.sampled_from(
    ["", "|contains", "|startswith", "|endswith", "|contains|all", "|cased", "|cased|contains", "|cased|endswith",
     "|windash|contains", "|windash|contains|all", "|endswith|neq", "|base64offset|contains"]
)  # fmt: skip
FIELD = st.sampled_from(["Image", "CommandLine", "ParentImage", "CurrentDirectory", ""])
REGEX = st.sampled_from(["c[a]t", "^/bin/(cat|sh)$", "sh +-i", "(?i)SHADOW", "x{40}", "a|b", r"\?", "CAT"])


@st.composite
def selection(draw):
    """Return a selection, as YAML on one line."""
    items = {}
    for _ in range(draw(st.integers(1, 3))):
        field = draw(FIELD)
        kind = draw(st.integers(0, 9))
        if kind == 0 and field:
            items[f"{field}|re{draw(st.sampled_from(['', '|i']))}"] = [draw(REGEX)]
        elif kind == 1 and field:
            items[field] = None
        elif kind == 2 and field:
            items[f"{field}|exists"] = draw(st.booleans())
        else:
            shape = draw(SHAPE)
            values = draw(st.lists(WORD, min_size=1, max_size=3))
            if "base64offset" in shape:
                values = ["sh -i", "/bin/cat"]
            items[field + shape if field or shape else "|contains"] = values
    return items


CONDITIONS = [
    "a",
    "not a",
    "a and b",
    "a or b",
    "a and not b",
    "not (a and not b)",
    "1 of them",
    "all of them",
    "a and (b or not a)",
]


def yaml(value):
    """Write a selection out."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)}: {yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(quoted, value)) + "]"
    return {None: "null", True: "true", False: "false"}[value]


def quoted(text):
    """Quote a text for YAML."""
    return "'" + text.replace("'", "''") + "'"


def event(exe, argv, parent, cwd):
    """Return an exec."""
    process = {"pid": 1, "exe": exe, "argv": argv, "cwd": cwd, "parent": {"pid": 2, "exe": parent}}
    return event_from_plain({"event": "exec", "process": process})


VALUE = st.one_of(
    st.sampled_from([*WORDS, "", "ας", "\u0391Σ\u0391", "echo c2ggLWk=", "\udcff", "a\udcffb", "/x/CAT"]),
    st.lists(st.sampled_from(WORDS), max_size=3).map("".join),
)
EVENT = st.builds(event, VALUE, st.lists(VALUE, max_size=3), VALUE, VALUE)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(selection(), selection(), st.sampled_from(CONDITIONS)), min_size=1, max_size=6),
    st.lists(EVENT, min_size=1, max_size=8),
)
def test_hides_nothing(compiled, drawn, events):
    """The set finds exactly what asking every rule finds, whatever the rules are."""
    rules = [compiled(f"a: {yaml(a)}\nb: {yaml(b)}\ncondition: {condition}") for a, b, condition in drawn]
    found = RuleSet(rules)

    for one in events:
        expected = [rule.match(one, View(one)) for rule in rules if rule.test(View(one))]
        assert expected == list(found.match(one))


@given(
    st.lists(st.tuples(WORD, SHAPE), min_size=1, max_size=5),
    st.lists(st.lists(VALUE, max_size=4), min_size=1, max_size=4),
)
def test_hides_no_record(compiled, drawn, events):
    """Nor for audit's records, one at a time."""
    rules = [
        compiled(
            f"a: {yaml({'a0' + shape: ['/bin/cat' if 'base64' in shape else word], 'type': ['EXECVE']})}\ncondition: a",
            "service: auditd",
        )
        for word, shape in drawn
    ]
    found = RuleSet(rules)
    for values in events:
        records = [["SYSCALL", [["key", "k"]]], *(["EXECVE", [["a0", value]]] for value in values)]
        one = event_from_plain({"event": "exec", "process": {}, "records": records})
        views = [View(one, record) for record in one.records]

        assert [any(rule.test(view) for view in views) for rule in rules] == [
            any(
                match.clauses == rule.match(one, view).clauses
                for match in found.match(one)
                for view in views
                if rule.test(view)
            )
            for rule in rules
        ]


def test_asks_few(compiled):
    """Of many rules an event is asked only those that share a literal with it."""
    rules = [
        compiled(f"s:\n  Image|endswith: /p{n}\n  CommandLine|contains: [word{n}, other{n}]\ncondition: s")
        for n in range(300)
    ]
    index = Index([rule.tree for rule in rules])

    assert index.always == ()
    assert list(index.ask(View(event("/bin/p7", ["word7"], "", "")))) == [7]
    assert list(index.ask(View(event("/bin/q", ["-l"], "", "")))) == []


def test_most_telling_part(compiled):
    """What many rules ask for is not what they are found by."""
    rules = [
        compiled(f"s:\n  Image|endswith: /sh\n  CommandLine|contains: --only-{n}\ncondition: s")
        for n in range(100)
    ]

    assert list(Index([rule.tree for rule in rules]).ask(View(event("/bin/sh", ["--only-42"], "", "")))) == [
        4,
        42,
    ]


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("CommandLine|contains: 'longest?*b'", "longest\udcffxb"),
        (r"CommandLine|contains: 'lo\?ng?b'", "lo\udcffng1b"),
        ("CommandLine|cased|contains: '\u0391\u03a3'", "\u0391\u03a3\u0391"),
        ("CommandLine|cased|contains: '\u0391\u03a3'", "x\u0391\u03a3"),
        ("CommandLine|contains: '\u0130'", "a\u0130b"),
        ("Image|endswith: /", "/a/"),
        ("Image|endswith: b/c", "/a/b/c"),
    ],
)
def test_letters_with_a_life_of_their_own(compiled, item, value):
    """Bytes that are no text, and letters whose lower case depends on where they stand, are found."""
    rule = compiled(f"s:\n  {item}\ncondition: s")
    one = event(value, [value], "", "")

    assert rule.test(View(one))
    assert RuleSet([rule]).match(one)


@pytest.mark.parametrize("condition", ["not s", "s or not s", "e", "r"])
def test_no_literal(compiled, condition):
    """A rule without necessary literals is asked always."""
    detection = f"s:\n  Image: /x\ne:\n  CurrentDirectory: null\nr:\n  CommandLine|re: '[ab]+'\ncondition: {condition}"
    index = Index([compiled(detection).tree])

    assert index.always == (0,)


def test_too_large(compiled):
    """Without memory for its automaton everything that relies on it is asked, and the index says so."""
    rules = [compiled(f"s:\n  CommandLine|contains: word{n}\ncondition: s") for n in range(200)]
    index = Index([rule.tree for rule in rules], memory=4096)

    assert index.without == ("CommandLine",)
    assert list(index.ask(View(event("/bin/x", ["word7"], "", "")))) == list(range(200))


def test_failure_is_no_silence(compiled):
    """An automaton that runs out of memory finds nothing at all, not even the empty text: then all are asked, and it is counted."""
    rules = [compiled(f"s:\n  CommandLine|contains: word{n}\ncondition: s") for n in range(5)]
    index = Index([rule.tree for rule in rules])
    (probe,) = index._probes

    class Exhausted:
        def Match(self, _):  # noqa: N802 - RE2's name
            return []

    object.__setattr__(probe.parts, "automaton", Exhausted())

    assert list(index.ask(View(event("/bin/x", ["word3"], "", "")))) == [0, 1, 2, 3, 4]
    assert index.failures == 1


PIECES = st.lists(
    st.sampled_from(
        ["a", "b", "sk", "ab", "\\.", "\\?", "\\d", "\\x41", "\\b", ".", "[ab]", "[^a]", "[]a]", "[[:alpha:]]", "(a|b)", "(?:ab)", "(?i)",
         "(?i:k)", "(a)b", "^", "$", "{", "}", "{2}", "*", "+", "?", "*?", "{1,2}", "|", "\N{KELVIN SIGN}", "\N{LATIN SMALL LETTER LONG S}", "K", "\\Q.\\E", "\\pL", "\\n", "-", "\\-", " "]
    ),
    min_size=1, max_size=6,
).map("".join)  # fmt: skip


@settings(max_examples=2000)
@example("a(?i)*", False, "")
@example("x41(?U)?b", False, "b")
@example("sk", True, "\N{LATIN SMALL LETTER LONG S}\N{KELVIN SIGN}")
@example("\\x41", False, "A")
@given(
    PIECES,
    st.booleans(),
    st.lists(
        st.sampled_from(
            [
                "a",
                "b",
                "s",
                "S",
                "k",
                "\N{KELVIN SIGN}",
                "\N{LATIN SMALL LETTER LONG S}",
                "K",
                ".",
                "?",
                "A",
                "{",
                "}",
                "-",
                " ",
                "2",
                "1",
            ]
        ),
        max_size=8,
    ).map("".join),
)
def test_required(expression, folds, value):
    """Whatever a regular expression matches has the text that is said to be required."""
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        matches = re2.compile(f"(?{'i' if folds else ''}s){expression}", options).search(value)
    except re2.error:
        return
    text = required(expression, folds=folds or "(?" in expression)

    assert not matches or text.lower() in value.lower()
