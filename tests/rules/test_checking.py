# SPDX-License-Identifier: Apache-2.0
"""Everything wrong with a rule is said at once; what is unwise is said, too, and doesn't keep it from loading."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.errors import RuleError
from ksentinel.rules.checking import MOST, check, check_text
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE
from ksentinel.rules.sigma import compile_rule

TABLE = sources()
BAD = """\
titel: x
id: nope
status: stabel
tags: [attack.t99, [1]]
logsource: {category: process_creation, product: linux}
detection:
  sel:
    Image|endswith: /cat
    Imag: x
    ProcessId: abc
    CommandLine|re: ['ok', '(', '(?=x)']
    User|foo: x
  other: {}
  condition: sel and nothing
level: terrible
ksentinel: {action: explode}
"""
GOOD = EXAMPLE.replace(
    "level: low",
    "description: Why.\nstatus: test\nfalsepositives: [Cats]\ntags: [attack.execution, attack.t1059.004]\nlevel: low",
)


def looked_at(text, file="x.yml"):
    return check_text(text, Path(file), TABLE, {})


def places(problems):
    return [f"{one.at.line}:{one.at.column}: {one.what[:16]}" for one in problems]


def test_every_problem():
    """All of them, in the order of the file, each with its place; none that only another one made."""
    checked = looked_at(BAD)

    assert places(checked.problems) == [
        "1:1: a rule has no 't",
        "2:5: id 'nope' is no ",
        "3:9: status 'stabel' ",
        "4:20: tags must be a l",
        "9:5: no source for fi",
        "10:16: ProcessId is a n",
        "11:28: RE2 refuses this",
        "11:33: RE2 refuses this",
        "12:5: modifier 'foo' i",
        "13:10: selection 'other",
        "14:22: no selection 'no",
        "15:8: level 'terrible'",
        "16:21: action must be o",
    ]
    assert not checked.rules
    assert not checked.more


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11\n", "", ["1:1: no id", "7:8: level 'odd' is n"]),
        ("  condition: selection\n", "", ["5:3: detection has no", "7:8: level 'odd' is n"]),
        ("process_creation", "x", ["3:23: logsource: no so", "8:8: level 'odd' is n"]),
        ("detection:\n", "detection:\n  timeframe: 5s\n", ["5:3: timeframe (an ag", "9:8: level 'odd' is n"]),
    ],
)
def test_what_is_missing_hides_nothing(old, new, expected):
    """Nor does a log source that doesn't exist."""
    checked = looked_at(EXAMPLE.replace("level: low", "level: odd").replace(old, new))

    assert places(checked.problems) == expected


def test_bounded():
    """There is a last problem, and it is said that there may be more."""
    values = "".join(f"      - '({n}'\n" for n in range(MOST + 10))
    checked = looked_at(
        EXAMPLE.replace("    Image|endswith: /cat", f"    CommandLine|re:\n{values}".rstrip())
    )

    assert len(checked.problems) == MOST
    assert checked.more


def test_not_yaml():
    """Of what can't be read there is one problem, and there may be more."""
    checked = looked_at("a: [")

    assert len(checked.problems) == 1
    assert checked.more


def test_nothing_to_remark(tmp_path):
    """A rule that has everything has no remarks."""
    (tmp_path / "cat.events.jsonl").touch()

    assert looked_at(GOOD, tmp_path / "cat.yml").remarks == ()


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("description: Why.\n", "", "1:1", "no description"),
        ("falsepositives: [Cats]\n", "", "1:1", "no falsepositives"),
        ("status: test\n", "", "1:1", "no status"),
        ("status: test\n", "status: stable\n", "1:1", "stable, and no cat.selftest.json beside it"),
        (", attack.t1059.004", "", "11:7", "no ATT&CK technique among its tags"),
        ("attack.execution, ", "", "11:7", "no ATT&CK tactic among its tags"),
        ("attack.t1059.004", "attack.t1059.004, attack.executon", "11:44", "tag 'attack.executon' is neither"),
        ("  condition: selection", "  filter:\n    ParentImage|endswith: /dpkg\n  condition: selection and not filter", "8:5", "filter excepts programs by a part"),
        ("  condition: selection", "  filter:\n    ParentImage|startswith: /usr/\n    ParentImage|endswith: /dpkg\n  condition: selection and not filter", "", ""),
        ("  condition: selection", "  filter:\n    Image|startswith: /usr/\n    ParentImage|endswith: /dpkg\n  condition: selection and not filter", "9:5", "filter excepts programs by a part"),
        ("category: process_creation", "category: syscall", "", ""),
        ("category: process_creation, product: linux}\ndetection:\n  selection:\n", "category: syscall}\ndetection:\n  selection:\n    success: 'yes'\n", "6:5", "asks for success, which BPF doesn't know"),
    ],
)  # fmt: skip
def test_remarks(tmp_path, old, new, place, said):
    """What is unwise is said, once, with its place; the rule loads all the same."""
    (tmp_path / "cat.events.jsonl").touch()
    assert old in GOOD
    checked = looked_at(GOOD.replace(old, new), tmp_path / "cat.yml")
    told = [(f"{one.at.line}:{one.at.column}", one.what[: len(said)]) for one in checked.remarks]

    assert checked.loaded
    assert told == ([(place, said)] if said else [])


def test_no_events(tmp_path):
    """A rule without events is remarked upon."""
    (remark,) = looked_at(GOOD, tmp_path / "cat.yml").remarks

    assert remark.what == "no cat.events.jsonl beside it"


def test_taken_id(tmp_path):
    """The second rule of an id can't be loaded, and says who has it."""
    for name in ("a.yml", "b.yml"):
        (tmp_path / name).write_text(EXAMPLE)
    first, second = check([tmp_path], TABLE)

    assert first.loaded
    assert [one.what for one in second.problems] == [
        f"id {first.rules[0].id} is taken by {tmp_path / 'a.yml'}:2:5"
    ]


def test_what_is_no_file(tmp_path):
    """What can't be read is a file that isn't loaded, and doesn't end the walk."""
    (tmp_path / "a.yml").mkdir()
    (tmp_path / "b.yml").write_bytes(b"\xff")
    (tmp_path / "c.yml").write_text(EXAMPLE)
    (tmp_path / "d.yml").symlink_to("nowhere")
    (tmp_path / "e.yml").symlink_to("/proc/self/mem")

    assert [checked.loaded for checked in check([tmp_path], TABLE)] == [False, True, False, False]


def test_longest_name(tmp_path):
    """Beside a file whose name is as long as can be there is no room for another, and that is no error."""
    (tmp_path / f"{'x' * 251}.yml").write_text(EXAMPLE)
    (checked,) = check([tmp_path], TABLE)

    assert checked.loaded


def test_deep_folders(tmp_path):
    """Folders in folders end somewhere: what is too deep is said, the rest looked at."""
    (tmp_path / "a.yml").write_text(EXAMPLE)
    within = os.open(tmp_path, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d", dir_fd=within)
        below = os.open("d", os.O_RDONLY, dir_fd=within)
        os.close(within)
        within = below
    os.close(within)
    good, deep = check([tmp_path], TABLE)

    assert good.loaded
    assert deep.problems[0].what == "folders nested more than 32 deep"


def refusal(text):
    """Return why the loader refuses a rule; empty if it doesn't."""
    try:
        compile_rule(text, Path("x.yml"), TABLE)
    except RuleError as error:
        return str(error)
    return ""


PIECES = [
    "level: low",
    "title",
    "selection",
    ":",
    "\n",
    "/cat",
    "Image",
    "|endswith",
    "{",
    "[",
    "'",
    " ",
    "-",
    "null",
    "condition",
]


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([*PIECES, ""])), max_size=3))
def test_says_what_the_loader_says(changes):
    """A file is refused exactly if the loader refuses it, and the loader's reason is among the problems."""
    text = EXAMPLE
    for old, new in changes:
        text = text.replace(old, new, 1)
    checked = looked_at(text)
    refused = refusal(text)

    assert checked.loaded == bool(checked.rules) == (not refused)
    assert (refused in [str(one) for one in checked.problems]) == bool(refused)
