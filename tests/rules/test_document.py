# SPDX-License-Identifier: Apache-2.0
"""Documents: several of them in one text, each as bounded as one alone."""

import pytest

from ksentinel.errors import RuleError
from ksentinel.rules import document
from ksentinel.rules.document import parse, parse_all


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: b", [1]),
        ("---\na: b", [2]),
        ("a: b\n---\nc: d\n...\n---\n- e", [1, 3, 6]),
        ("a: b\n---\n---\nc: d", [1, 3, 4]),
    ],
)
def test_several(text, lines):
    """Each knows where it stands; an empty one is one, too."""
    assert [one.at.line for one in parse_all(text, "x.yml")] == lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "x.yml: an empty file"),
        ("# nothing", "x.yml: an empty file"),
        ("a: b\n---\na: [", "not YAML"),
        ("a: &x b\n---\nc: *x", "x.yml:1:4: anchors and aliases are not supported"),
        ("a: b\n---\nc: d\nc: e", "x.yml:4:1: 'c' stands here a second time, first in line 3"),
        ("a: b\n---\n" + "[" * 40, "nested more than 32 levels deep"),
    ],
)
def test_refused(text, expected):
    """What is refused in one is refused in the last of several."""
    with pytest.raises(RuleError) as caught:
        parse_all(text, "x.yml")

    assert expected in str(caught.value)


def test_too_many():
    """A megabyte of nothing isn't half a million documents."""
    with pytest.raises(RuleError, match=r"x\.yml:1001:1: more than 1000 documents \(split the file\)"):
        parse_all("---\n" * document.MAX_BYTES, "x.yml")


def test_one():
    """Where one is wanted, a second is refused at its place."""
    with pytest.raises(RuleError, match=r"x\.yml:3:1: a second document"):
        parse("a: b\n---\nc: d", "x.yml")
