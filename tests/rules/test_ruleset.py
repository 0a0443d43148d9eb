# SPDX-License-Identifier: Apache-2.0
"""The rule set: loading, trust, and that no index hides a rule from an event."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.rules.fields import View, sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule

ME = frozenset({os.getuid()})
OTHER = EXAMPLE.replace("2b3c1a52", "2b3c1a53")


@pytest.fixture
def folder(tmp_path):
    """Return a directory with two rules, one of them deeper."""
    (tmp_path / "one.yml").write_text(EXAMPLE)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "two.yaml").write_text(OTHER)
    (tmp_path / "README").write_text("no rule")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    return tmp_path


def test_load(folder):
    """Directories are read to the bottom; a file that is met twice is one rule."""
    rules = RuleSet.load([folder, folder / "one.yml", folder / "deeper"], trusted_uids=ME)

    assert [str(folder / "one.yml"), str(folder / "deeper" / "two.yaml")] == [
        rule.file for rule in rules.rules
    ]


def test_settings_are_no_rules(folder):
    """A policy and exceptions may stand among rules: by their names they are none; named itself, a file is a rule."""
    for name in ("policy.yml", "exceptions.yml"):
        (folder / name).write_text("policy: 1")

    assert len(RuleSet.load([folder], trusted_uids=None)) == 2
    with pytest.raises(RuleError, match="no title"):
        RuleSet.load([folder / "policy.yml"], trusted_uids=None)


def test_duplicate_ids(folder):
    """Two files can't share an id."""
    (folder / "three.yml").write_text(EXAMPLE)
    with pytest.raises(RuleError, match=r"two\.yaml|taken by .*one\.yml:2:5") as caught:
        RuleSet.load([folder], trusted_uids=None)

    assert str(folder / "three.yml:2:5") == str(caught.value.at)


def test_reporting(folder):
    """A checker gets all that is wrong, and the rules that aren't; load says how much more there is."""
    (folder / "bad1.yml").write_text("level: low")
    (folder / "bad2.yml").write_bytes(b"title: a\n\xff")
    rules, errors = RuleSet.load_reporting([folder], trusted_uids=None)

    assert len(rules) == 2
    assert [f"{folder}/bad1.yml:1:1: no title", f"{folder}/bad2.yml:2:1: not UTF-8: byte 0xff"] == [
        str(error) for error in errors
    ]
    with pytest.raises(RuleError, match="1 more rule file can't be used"):
        RuleSet.load([folder], trusted_uids=None)


@pytest.mark.parametrize("name", ["one.yml", "deeper", "."])
def test_writable_by_others(folder, name):
    """What others can write isn't trusted, unless nobody has to be; nor are the rules of such a directory."""
    (folder / name).chmod((folder / name).stat().st_mode | 0o020)
    with pytest.raises(RuleError, match=r"writable by others \(mode 0[0-7]{3}\).*chmod go-w"):
        RuleSet.load([folder], trusted_uids=ME)

    assert len(RuleSet.load([folder], trusted_uids=None)) == 2


def test_owned_by_a_stranger(folder):
    """Nor what someone else owns."""
    with pytest.raises(RuleError, match="who may not write rules"):
        RuleSet.load([folder], trusted_uids={os.getuid() + 1})


def test_not_to_be_read(folder):
    """A missing file, a directory without rules, a FIFO and a giant are errors."""
    (folder / "empty").mkdir()
    os.mkfifo(folder / "fifo.yml")
    (folder / "giant.yml").write_text(EXAMPLE + "#" * (1 << 20))
    paths = [folder / "missing.yml", folder / "empty", folder / "fifo.yml", folder / "giant.yml"]
    _, errors = RuleSet.load_reporting(paths, trusted_uids=None)

    assert [error.what for error in errors] == ["can't be read: No such file or directory", "no rules in this directory", "not a regular file",
            "larger than 1048576 bytes"]  # fmt: skip


def test_links(folder):
    """A link to a directory isn't followed, and that is said; one that leads to itself is an error."""
    (folder / "linked").symlink_to(folder / "deeper")
    (folder / "loop.yml").symlink_to(folder / "loop.yml")
    rules, errors = RuleSet.load_reporting([folder], trusted_uids=None)

    assert len(rules) == 2
    assert [error.what for error in errors] == [
        "can't be read: Too many levels of symbolic links",
        "a link to a directory, not followed",
    ]


def test_users():
    """User has the names that the caller hands in."""
    text = EXAMPLE.replace("Image|endswith: /cat", "User: www-data")
    rule = compile_rule(text, "x.yml", sources({33: "www-data"}))
    event = event_from_plain({"event": "exec", "process": {"exe": "/bin/cat", "uid": 33}})

    assert rule.test(View(event))
    assert RuleSet([rule]).match(event)


SELECTIONS = st.sampled_from(
    [
        "{syscall: openat}",
        "{syscall: [open, OPENAT]}",
        "{syscall|startswith: open}",
        "{syscall: openat, path: /x}",
        "[{syscall: openat}, {syscall: unlink}]",
        "[{syscall: openat}, {path: /x}]",
        "{path|contains: x}",
        "{syscall|re: ^un}",
        "{syscall: connect}",
    ]
)
CONDITIONS = st.sampled_from(["a", "not a", "a and b", "a or b", "a and not b", "not (a or b)", "1 of them"])
CALLS = [
    event_from_plain({"event": "syscall", "process": {}, "syscall": name, "paths": paths, "flags": 1})
    for name in ("open", "openat", "unlink", "connect", "getpid")
    for paths in ([], ["/x"])
]


@given(a=SELECTIONS, b=SELECTIONS, condition=CONDITIONS)
def test_index_hides_nothing(compiled, a, b, condition):
    """An event is asked every rule that could fire on it: the set and the rule alone agree."""
    rule = compiled(f"a: {a}\nb: {b}\ncondition: {condition}", "category: syscall")
    rules = RuleSet([rule])

    assert [rule.test(View(event)) for event in CALLS] == [bool(rules.match(event)) for event in CALLS]


def test_one_event_many_sources(compiled):
    """A write is asked the rules about files, and those about calls; an exec those about processes and lineage."""
    by_source = [
        compiled("s: {TargetFilename: /x}\ncondition: s", "category: file_event"),
        compiled("s: {path: /x}\ncondition: s", "category: syscall"),
        compiled("s: {Image: /x}\ncondition: s", "category: process_creation"),
        compiled("s: {Image: /x}\ncondition: s", "category: lineage"),
    ]
    write = {"event": "syscall", "process": {}, "syscall": "openat", "paths": ["/x"], "flags": 1}
    rules = RuleSet(by_source)

    assert len(rules.match(event_from_plain(write))) == 2
    assert len(rules.match(event_from_plain({"event": "exec", "process": {"exe": "/x"}}))) == 2
    assert rules.match(event_from_plain({"event": "exit", "process": {"exe": "/x"}})) == ()


def test_records_fire_once(compiled):
    """An event whose records all match is one match."""
    rule = compiled("s: {type: PATH}\ncondition: s", "service: auditd")
    records = [["PATH", [["name", "/a"]]], ["PATH", [["name", "/b"]]]]
    event = event_from_plain({"event": "audit", "type": "PATH", "process": {}, "records": records})

    assert len(RuleSet([rule]).match(event)) == 1


def test_too_many(folder, monkeypatch):
    """A set is bounded: what is over it isn't loaded, and that is said once, with the first that isn't."""
    monkeypatch.setattr("ksentinel.rules.ruleset.MAX_RULES", 1)
    rules, errors = RuleSet.load_reporting([folder], trusted_uids=None)

    assert len(rules) == 1
    assert [f"{folder}/deeper/two.yaml: more than 1 rules: the rest is not loaded"] == [
        str(error) for error in errors
    ]


def test_too_many_patterns(folder, monkeypatch):
    """So are its patterns."""
    monkeypatch.setattr("ksentinel.rules.ruleset.MAX_PATTERNS", 0)
    rules, errors = RuleSet.load_reporting([folder], trusted_uids=None)

    assert len(rules) == 1
    assert "more than 0 patterns" in str(errors[0])


MANY = """\
---
title: Much is read
id: 9b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
correlation:
  type: event_count
  rules: reading
  timespan: 1m
  condition: {gte: 2}
"""


def test_several_documents(tmp_path):
    """A correlation stands beside its rules; one that stands before them, in another file, finds them, too."""
    named = EXAMPLE + "name: reading\n"
    (tmp_path / "a.yml").write_text(MANY.replace("9b3c1a52", "9b3c1a53"))
    (tmp_path / "b.yml").write_text(named + MANY)
    rules = RuleSet.load([tmp_path], trusted_uids=None)

    assert [(rule.source, Path(rule.file).name) for rule in rules.rules] == [
        ("process_creation", "b.yml"),
        ("correlation", "a.yml"),
        ("correlation", "b.yml"),
    ]
    assert len(rules) == 3
    assert rules.silenced == {rules.rules[0].id}
    assert [one.bases[0].rule.name for one in rules.correlations] == ["reading", "reading"]


def test_several_documents_reported(tmp_path):
    """A document that is wrong doesn't take the others with it; each error has its own line."""
    text = EXAMPLE + MANY + "---\ntitle: none\n" + MANY.replace("9b3c1a52", "2b3c1a52")
    (tmp_path / "a.yml").write_text(text)
    rules, errors = RuleSet.load_reporting([tmp_path], trusted_uids=None)

    assert [rule.title for rule in rules.rules] == ["Something reads something"]
    assert [str(error).removeprefix(f"{tmp_path}/") for error in errors] == [
        "a.yml:19:1: no id",
        "a.yml:22:5: id 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11 is taken by " + f"{tmp_path}/a.yml:2:5",
        "a.yml:15:10: no rule 'reading' (name a rule of the files that are loaded, or its id)",
    ]


def test_record_of_a_match(compiled):
    """A match of audit's says which record it is, for who counts that record's values."""
    rule = compiled("s: {name: /b}\ncondition: s", "service: auditd")
    records = [["PATH", [["name", "/a"]]], ["PATH", [["name", "/b"]]]]
    event = event_from_plain({"event": "audit", "type": "PATH", "process": {}, "records": records})
    (match,) = RuleSet([rule]).match(event)

    assert match.record is event.records[1]
