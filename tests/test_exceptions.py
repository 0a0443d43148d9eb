# SPDX-License-Identifier: Apache-2.0
"""Exceptions: what they cover, until when, and what is wrong with them."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.errors import RuleError
from ksentinel.exceptions import MOST, Exceptions, ended, load, parse_exceptions
from ksentinel.rules import Match
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.sigma import compile_rule

DAY = 86_400_000_000_000
END = int(datetime(2027, 2, 1, tzinfo=UTC).timestamp()) * 1_000_000_000

RULE = """\
title: Reads secrets
id: {id}
name: {name}
logsource: {{{source}}}
detection: {{s: {{{field}: '*'}}, condition: s}}
level: high
"""
TABLE = sources()


def rule(number, name, source, field):
    """Return a rule that matches whatever has that field."""
    identity = f"2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c{number}"
    return compile_rule(
        RULE.format(id=identity, name=name, source=source, field=field), f"x/{name}_file.yml", TABLE
    )


EXEC = rule(10, "execs", "category: process_creation", "Image")
CALL = rule(11, "calls", "category: syscall", "path")
AUDIT = rule(12, "audits", "service: auditd", "exe")
RULES = [one.rule for one in (EXEC, CALL, AUDIT)]
SET = RuleSet([EXEC, CALL, AUDIT])

CAT = {"event": "exec", "time_ns": END - DAY, "process": {"exe": "/bin/cat", "argv": ["cat", "x"]}}
BACKUP = """\
exceptions:
  - id: backup
    rules: {rules}
    where: {where}
    owner: storage team
    reason: Reads everything,
      every night
    expires: {expires}
"""


def backup(rules="'*'", where="{Image: /bin/cat}", expires="2027-01-31"):
    """Return one exception."""
    return parse_exceptions(BACKUP.format(rules=rules, where=where, expires=expires), "e.yml", RULES)


def marked(exceptions, plain=CAT, **changes):
    """Return by which exception the first match on an event is excepted."""
    match, *_ = SET.match(event_from_plain(plain | changes))
    exception = exceptions.mark(match).exception
    return None if exception is None else exception.id


@pytest.mark.parametrize(
    ("rules", "where", "covers"),
    [
        ("'*'", "{Image: /bin/cat}", True),
        ("execs", "{Image: /bin/cat}", True),
        ("execs_file", "{Image: /bin/cat}", True),
        (f"[{EXEC.rule.id}]", "{Image: /bin/cat}", True),
        ("[calls, execs]", "{Image: /bin/cat}", True),
        ("calls", "{Image: /bin/cat}", False),
        ("execs", "{Image|endswith: /dog}", False),
        ("execs", "{Image|endswith: /cat, CommandLine|contains: y}", False),
        ("execs", "[{Image: /bin/dog}, {CommandLine|contains: x}]", True),
        ("'*'", "{path: /etc/shadow}", False),
    ],
)
def test_covers(rules, where, covers):
    """By id, name, or file; with the selections of Sigma."""
    assert ("backup" if covers else None) == marked(backup(rules, where))


def test_covers_calls_and_records():
    """Each log source is asked as its rules see it; audit's record by record."""
    call = {"event": "syscall", "time_ns": END - DAY, "syscall": "openat", "paths": ["/etc/shadow"], "process": {"exe": "/bin/cat"}}  # fmt: skip
    record = [["SYSCALL", [["exe", "/bin/cat"], ["uid", "0"]]]]

    assert marked(backup("calls", "{path: /etc/shadow}"), call) == "backup"
    assert marked(backup("calls", "{path: /etc/passwd}"), call) is None
    match = Match(AUDIT.rule, replace(event_from_plain(CAT), records=event_from_plain(CAT | {"records": record}).records), ())  # fmt: skip
    assert backup("audits", "{exe: /bin/cat}").mark(match).exception
    assert not backup("audits", "{exe: /bin/dog}").mark(match).exception


def test_covers_what_guards_say():
    """A denial is asked about as the event of its operation."""
    made = {"event": "hook", "hook": "file_open", "outcome": "denied", "call": "openat", "time_ns": END - DAY}
    opened = event_from_plain(made | {"paths": ["/etc/shadow"], "process": {"exe": "/bin/cat"}})
    refused = event_from_plain(
        made
        | {
            "hook": "bprm_check_security",
            "call": "execve",
            "paths": ["/bin/cat"],
            "process": {"exe": "/bin/sh"},
        }
    )
    calls = next(one for one in RULES if one.name == "calls")

    assert backup("calls", "{path: /etc/shadow}").mark(Match(calls, opened, ())).exception
    assert not backup("calls", "{path: /etc/passwd}").mark(Match(calls, opened, ())).exception
    part, *_ = SET.match(event_from_plain(CAT))
    assert backup("'*'", "{Image: /bin/cat}").mark(Match(part.rule, refused, ())).exception
    assert not backup("'*'", "{Image: /bin/sh}").mark(Match(part.rule, refused, ())).exception


def test_correlation_is_covered_by_its_last_part():
    """What a correlation is about is its parts' log source."""
    part, *_ = SET.match(event_from_plain(CAT))
    correlated = Match(replace(part.rule, id="c", source="correlation"), part.event, (), parts=(part,))
    rules = [*RULES, correlated.rule]

    def named(names, where):
        text = BACKUP.format(rules=names, where=where, expires="2027-01-31")
        return parse_exceptions(text, "e.yml", rules)

    assert named("c", "{Image: /bin/cat}").mark(correlated).exception
    with pytest.raises(RuleError, match="no source for field 'Image' in auditd"):
        named("[c, audits]", "{Image: /bin/cat}")
    assert backup("'*'").mark(correlated).exception
    assert not backup("'*'", "{Image: /bin/dog}").mark(correlated).exception


@pytest.mark.parametrize(
    ("expires", "end"),
    [
        ("2027-01-31", END),
        ("2027-01-31T18:00:00Z", END - DAY // 4),
        ("2027-02-01T01:00:00+01:00", END),
    ],
)
def test_expires(expires, end):
    """A date holds to the end of its day; event time decides."""
    exceptions = backup(expires=expires)

    assert marked(exceptions, time_ns=end - 1) == "backup"
    assert marked(exceptions, time_ns=end) is None
    assert exceptions.account()["matches_excepted"] == 1


def test_told_once():
    """Each end is told once, with whose it was; the account counts it."""
    exceptions = backup()

    assert list(exceptions.expire(END - 1)) == []
    (exemption,) = exceptions.expire(END)
    assert list(exceptions.expire(END + 1)) == []
    assert ended(exemption) == (
        "exception backup of storage team has ended, 2027-02-01 00:00 UTC: what it covered is told as if there were "
        "none (Reads everything, every night)"
    )
    assert exceptions.account() == {"matches_excepted": 0, "exceptions_active": 0, "exceptions_expired": 1}


def test_plain():
    """The JSON form says which are in force."""
    (plain,) = backup().to_plain(END)

    assert (plain["id"], plain["rules"], plain["active"], plain["at"]) == ("backup", "*", False, "e.yml:2:5")


def test_none():
    """Without any, nothing is excepted."""
    assert marked(Exceptions()) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    owner: storage team\n", "", "e.yml:2:5: an exception without owner"),
        ("    reason: Reads everything,\n      every night\n", "", "an exception without reason"),
        ("    expires: 2027-01-31\n", "", "an exception without expires"),
        ("storage team", "''", "e.yml:5:12: owner must be text"),
        ("2027-01-31", "2027-01-31T18:00:00", "e.yml:8:14: expires '2027-01-31T18:00:00' names no zone"),
        ("2027-01-31", "never", "'never' is no date"),
        ("2027-01-31", "9999-12-31", "beyond the calendar|never ends"),
        ("2027-01-31", "2300-01-01", "never ends"),
        ("owner:", "ovner:", r"e.yml:5:5: an exception has no 'ovner' \(did you mean owner\?\)"),
        ("exceptions:", "exemptions:", "is no list of exceptions"),
        ("exceptions:", "more: 1\nexceptions:", "e.yml:1:1: beside exceptions there is no 'more'"),
        ("'*'", "exec", r"e.yml:3:12: no rule 'exec' is loaded \(did you mean execs\?\)"),
        ("'*'", "[]", "rules is empty"),
        ("'*'", "['*', execs]", "no others beside it"),
        ("{Image: /bin/cat}", "{Imago: /bin/cat}", "e.yml:4:13: no source for field 'Imago'"),
        ("{Image: /bin/cat}", "{}", "selection 'where' is empty"),
        ("  - id", "  - nothing\n  - id", "e.yml:2:5: an exception is a mapping"),
    ],
)  # fmt: skip
def test_refused(old, new, said):
    """What is missing, misspelt or endless is refused, with its place."""
    text = BACKUP.format(rules="'*'", where="{Image: /bin/cat}", expires="2027-01-31").replace(old, new, 1)

    with pytest.raises(RuleError, match=said):
        parse_exceptions(text, "e.yml", RULES)


def test_bounded():
    """Ids are unique, and there is a most."""
    one = BACKUP.format(rules="'*'", where="{Image: /bin/cat}", expires="2027-01-31")
    entry = one.removeprefix("exceptions:\n")

    with pytest.raises(RuleError, match=r"id 'backup' is taken by e\.yml:2:5"):
        parse_exceptions(one + entry, "e.yml", RULES)
    with pytest.raises(RuleError, match=f"{MOST + 1} exceptions, more than {MOST}"):
        parse_exceptions(one + entry * MOST, "e.yml", RULES)


def test_documented():
    """The example of docs/verdict.md is one, for the rules that ship."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "verdict.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shipped = RuleSet.load([root / "rules"], trusted_uids=None).rules

    (excepted,) = parse_exceptions(example, "e.yml", shipped).excepted
    assert len(excepted.rules) == 2
    assert f"at most {MOST:,} exceptions" in page


def test_trust(tmp_path):
    """They are read under the same condition as rules."""
    path = tmp_path / "exceptions.yml"
    path.write_text("exceptions: []\n")
    path.chmod(0o666)

    with pytest.raises(RuleError, match="writable by others"):
        load(path, RULES, trusted_uids={path.stat().st_uid})
    path.chmod(0o644)
    assert load(path, RULES, trusted_uids={path.stat().st_uid}).file == str(path)
