# SPDX-License-Identifier: Apache-2.0
"""Correlations: what is read, what is refused and where, and whose rules they speak of."""

from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.rules.correlation import Condition, read, resolve, silenced
from ksentinel.rules.document import parse, parse_all
from ksentinel.rules.fields import View, sources
from ksentinel.rules.sigma import compile_document

ROOT = Path(__file__).parents[2]
RULE = """\
title: Something is run
id: 11111111-1111-4111-8111-111111111111
name: run
logsource: {category: process_creation}
detection: {s: {Image: '*'}, condition: s}
level: low
"""
WRITE = """\
title: Something is written
id: 22222222-2222-4222-8222-222222222222
name: write
logsource: {category: file_event}
detection: {s: {TargetFilename: '*'}, condition: s}
level: low
"""
MANY = """\
title: Much is run
id: 33333333-3333-4333-8333-333333333333
name: much
level: high
correlation:
  type: event_count
  rules: [run]
  group-by: [User]
  timespan: 5m
  condition: {gte: 10}
"""


def resolved(*documents):
    """Return the correlations among *documents*, and what is wrong, as text."""
    roots = parse_all("---\n".join(documents), "x.yml")
    drafts = [read(root, "x.yml") for root in roots if root.get("correlation")]
    rules = [compile_document(root, "x.yml", sources()) for root in roots if not root.get("correlation")]
    correlations, errors = resolve(drafts, rules)
    return correlations, [str(error) for error in errors]


def test_documented():
    """The documentation's example is one."""
    section = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8").partition("## Correlations")[2]
    (one,), errors = resolved(section.partition("```yaml\n")[2].partition("```")[0])

    assert errors == []
    assert (one.subject, one.test) == ("value_count of path", ">= 5 within 1m")


def test_read():
    """What it says is there, and its rule is one of correlations."""
    (many,), errors = resolved(RULE, MANY)

    assert errors == []
    assert (
        many.rule.source,
        many.rule.name,
        many.type,
        many.group_by,
        many.timespan_ns,
    ) == ("correlation", "much", "event_count", ("User",), 300 * 10**9)
    assert (many.test, many.generate, many.bases[0].rule.name) == (">= 10 within 5m", False, "run")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("correlation:\n", "logsource: {category: lineage}\ncorrelation:\n", "x.yml:5:1: a correlation has no logsource"),
        ("high\n", "high\nksentinel: {action: kill, inline: true}\n", "x.yml:5:12: the kernel can't decide a correlation"),
        ("title: Much is run\n", "", "x.yml:1:1: no title"),
        ("event_count", "event_cuont", "x.yml:6:9: type 'event_cuont' is none of event_count, value_count, temporal, temporal_ordered (did you mean event_count?)"),
        ("  type: event_count\n", "", "a correlation without type"),
        ("group-by", "groupby", "x.yml:8:3: a correlation has no 'groupby' (did you mean group-by?)"),
        ("rules: [run]", "rules: []", "no rules to correlate"),
        ("rules: [run]", "rules: [run, run]", "x.yml:7:16: 'run' stands here twice"),
        ("rules: [run]", "rules: [[run]]", "rules must be text"),
        ("rules: [run]", f"rules: [{', '.join(f'r{n}' for n in range(21))}]", "21 rules, more than 20"),
        ("5m", "5 m", "x.yml:9:13: timespan '5 m' is no time span (a number and one of s, m, h, d, w, M, y: 5m)"),
        ("5m", "0s", "timespan '0s' is no time span"),
        ("5m", "\u0665m", "is no time span"),
        ("5m", "2y", "timespan '2y' is longer than a year"),
        ("{gte: 10}", "{gte: ten}", "x.yml:10:20: gte must be a whole number"),
        ("{gte: 10}", "{gte: 10001}", "gte 10001 is more than 10000: not so many are kept"),
        ("{gte: 10}", "{get: 10}", "a condition has no 'get' (did you mean gt?)"),
        ("{gte: 10}", "{gte: 10, gt: 3}", "a condition has one bound, or a lower and an upper one"),
        ("{gte: 10}", "{eq: 10, lt: 30}", "a condition has one bound, or a lower and an upper one"),
        ("{gte: 10}", "{gte: 10, lt: 10}", "no count from 1 to 10001 is >= 10 and < 10: it can never match"),
        ("{gte: 10}", "{lt: 1}", "it can never match"),
        ("{gte: 10}", "{field: User, gte: 10}", "x.yml:10:15: event_count counts no field's values"),
        ("{gte: 10}", "run and run", "condition must be a mapping"),
        ("  condition: {gte: 10}\n", "", "event_count needs a condition"),
        ("event_count", "value_count", "value_count needs the field whose values it counts"),
        ("event_count", "temporal", "temporal needs two rules at least"),
        ("5m", "5m\n  generate: 1", "x.yml:10:13: generate must be true or false"),
        ("5m", "5m\n  aliases: [a]", "aliases must be a mapping"),
        ("5m", "5m\n  aliases: {a: b}", "an alias must be a mapping of rules to fields"),
        ("level: high\n", "level: high\ndate: yesterday\n", "pySigma: "),
    ],
)  # fmt: skip
def test_refused(old, new, expected):
    """What can't be is refused, with its place and what was probably meant."""
    assert old in MANY
    with pytest.raises(RuleError) as caught:
        read(parse(MANY.replace(old, new, 1), "x.yml"), "x.yml")

    assert expected in str(caught.value)


def test_ordered_without_condition():
    """An order has no count."""
    text = MANY.replace("event_count", "temporal_ordered").replace("[run]", "[run, write]")
    with pytest.raises(RuleError, match="temporal_ordered has no condition"):
        read(parse(text, "x.yml"), "x.yml")


def test_more_than_there_are():
    """Of two rules no three can match."""
    text = MANY.replace("event_count", "temporal").replace("[run]", "[run, write]").replace("10", "3")
    with pytest.raises(RuleError, match="no count from 1 to 2 is >= 3"):
        read(parse(text, "x.yml"), "x.yml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[run]", "[rune]", "x.yml:14:11: no rule 'rune' (did you mean run?)"),
        ("[run]", "[run, 11111111-1111-4111-8111-111111111111]", "stands here twice"),
        ("[User]", "[Usr]", "x.yml:15:14: no source for field 'Usr' in process_creation, the log source of 'run' (did you mean User?)"),
        ("[run]", "[much]", "'much' speaks of this one in turn: a cycle"),
        ("5m", "5m\n  aliases: {who: {run: User}}", "x.yml:17:13: alias 'who' is not used"),
        ("[User]", "[who]\n  aliases: {who: {write: User}}", "no rule 'write'"),
        ("[User]", "[who]\n  aliases: {who: {}}", "x.yml:16:13: alias 'who' doesn't say what it is in 'run'"),
        ("[User]", "[who]\n  aliases: {who: {run: Usr}}", "x.yml:16:24: no source for field 'Usr'"),
    ],
)  # fmt: skip
def test_unresolved(old, new, expected):
    """So is what speaks of something that isn't there."""
    assert old in MANY
    correlations, (error,) = resolved(RULE, MANY.replace(old, new, 1))

    assert correlations == []
    assert expected in error


def test_cycle():
    """Two that speak of each other are refused, both."""
    other = MANY.replace("33333333", "44444444").replace("name: much", "name: more")
    correlations, errors = resolved(MANY.replace("[run]", "[more]"), other.replace("[run]", "[much]"))

    assert correlations == []
    assert len(errors) == 2
    assert all("speaks of this one in turn: a cycle" in error for error in errors)


def nested(depth):
    """Return a chain of correlations, each of the one before."""
    texts = [RULE]
    for level in range(depth):
        base = f"level{level - 1}" if level else "run"
        text = MANY.replace("33333333", f"9000{level:04}").replace("[run]", f"[{base}]")
        texts.append(text.replace("name: much", f"name: level{level}"))
    return texts


def test_too_deep():
    """Three correlations of each other are enough; thousands don't exhaust anything."""
    assert resolved(*nested(3))[1] == []
    correlations, errors = resolved(*reversed(nested(900)))

    assert [one.rule.name for one in correlations] == ["level0", "level1", "level2"]
    assert len(errors) == 897
    assert all("more than 3 levels deep" in error for error in errors)


def test_ambiguous():
    """A name that two rules have names neither; an id always does."""
    twin = RULE.replace("1111-1", "1112-1")
    _, (error,) = resolved(RULE, twin, MANY)

    assert "'run' is the name of several rules, x.yml:2:5 and x.yml:9:5 (take an id)" in error
    assert resolved(RULE, twin, MANY.replace("[run]", "11111111-1111-4111-8111-111111111111"))[1] == []


def test_not_silenced():
    """A rule that asks for something isn't silenced by mistake."""
    asking = RULE + "ksentinel: {action: deny}\n"
    _, (error,) = resolved(asking, MANY)

    assert "'run' asks for deny, and would no longer match by itself (say generate: true)" in error
    assert resolved(asking, MANY + "  generate: true\n")[1] == []


def test_silenced():
    """One that says so is enough for a rule to be told."""
    loud = MANY.replace("33333333", "44444444").replace("name: much", "name: more") + "  generate: true\n"
    quiet = MANY.replace("[run]", "[run, write]")

    assert silenced(resolved(RULE, WRITE, quiet)[0]) == {
        "11111111-1111-4111-8111-111111111111",
        "22222222-2222-4222-8222-222222222222",
    }
    assert silenced(resolved(RULE, WRITE, quiet, loud)[0]) == {"22222222-2222-4222-8222-222222222222"}
    assert silenced(resolved(RULE, loud)[0]) == frozenset()


def test_group_of_a_correlation():
    """Of a correlation only what it groups by can be asked."""
    upper = (
        MANY.replace("33333333", "44444444").replace("name: much", "name: more").replace("[run]", "[much]")
    )
    (_, ok), none = resolved(RULE, MANY, upper)
    _, (error,) = resolved(RULE, MANY, upper.replace("[User]", "[Image]"))

    assert none == []
    assert ok.bases[0].rule.name == "much"
    assert "'much' doesn't group by 'Image' (there are: User)" in error


def test_values():
    """A group's value is the kernel's own, of an alias the field that it stands for; None if there is none."""
    both = MANY.replace("event_count", "temporal").replace("[run]", "[run, write]").replace("10", "2")
    aliased = both.replace(
        "[User]",
        "[who, file]\n  aliases: {who: {run: User, write: LogonId}, file: {run: Image, write: TargetFilename}}",
    )
    (one,), errors = resolved(RULE, WRITE, aliased)
    event = event_from_plain(
        {"event": "exec", "process": {"exe": "/usr/bin/dash", "uid": 0}, "path": "/bin/sh"}
    )
    compiled = compile_document(parse(RULE, "x.yml"), "x.yml", sources())
    assert errors == []
    assert one.bases[0].values(compiled.match(event, View(event))) == (("root", "/usr/bin/dash"), None)
    assert one.bases[1].names == ("LogonId", "TargetFilename")


@pytest.mark.parametrize(
    ("bounds", "final", "holding"),
    [
        ({"gt": 2}, True, [3, 4]),
        ({"gte": 2}, True, [2, 3, 4]),
        ({"lt": 2}, False, [0, 1]),
        ({"lte": 2}, False, [0, 1, 2]),
        ({"eq": 2}, False, [2]),
        ({"neq": 2}, False, [0, 1, 3, 4]),
        ({"gte": 2, "lt": 4}, False, [2, 3]),
    ],
)
def test_condition(bounds, final, holding):
    """Each operator is what its name says; only lower bounds stay true."""
    condition = Condition(tuple(bounds.items()))

    assert holding == [count for count in range(5) if condition.holds(count)]
    assert final == condition.final
