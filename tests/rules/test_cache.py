# SPDX-License-Identifier: Apache-2.0
"""The cache: what comes out is what went in, and nothing odd is believed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.rules import cache as cache_module
from ksentinel.rules.cache import FILE, Cache
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet

RULES = Path(__file__).parents[2] / "rules"
ME = os.getuid()

MANY = """\
title: Everything that a pattern can be
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c12
logsource: {category: process_creation}
detection:
  a:
    CommandLine|contains|all: [x, Ü]
    CommandLine|cased|startswith: X
    CommandLine: '*a?b*'
  b:
    CommandLine|re|i: 'c+d'
    ProcessId|gte: 10
    CurrentDirectory: null
  c: [keyword, other]
  d:
    CommandLine|base64offset|contains: hello
    CommandLine|neq: y
    User|exists: true
  e:
    CommandLine|windash|contains|all: [' -x', ' -y']
  condition: a or b or not c and d or 1 of e*
level: low
"""
NETWORK = EXAMPLE.replace("process_creation", "network_connection").replace(
    "Image|endswith: /cat", "DestinationIp|cidr: 10.0.0.0/8"
)


@pytest.fixture
def kept(tmp_path):
    """Return a folder of rules and a function that loads it with a cache, which it returns too."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "many.yml").write_text(MANY)
    (rules / "network.yml").write_text(NETWORK)

    def load(uid=ME):
        cache = Cache(tmp_path / "kept", uid)
        return RuleSet.load([rules], trusted_uids=None, cache=cache), cache

    return tmp_path / "kept" / FILE, load


EVENTS = [
    event_from_plain({"event": "exec", "process": {"pid": pid, "exe": "/bin/cat", "argv": argv, "uid": uid}})
    for pid in (1, 20)
    for uid in (None, 0)
    for argv in (["X", "xü", "acb"], ["CCD"], ["y"], ["aGVsbG8="], ["other"], [" /x", "\N{EN DASH}y"], ["keyword", "IGhlbGxv"])
] + [event_from_plain({"event": "syscall", "syscall": "connect", "address": {"family": "inet", "host": "10.1.1.1", "port": 1}})]  # fmt: skip


def test_same_rules(kept):
    """From the cache come the same rules with the same matches and clauses, and no other is compiled."""
    file, load = kept
    cold, first = load()
    cached, second = load()

    assert (first.hits, first.misses, first.odd) == (0, 2, "")
    assert (second.hits, second.misses, second.odd) == (2, 0, "")
    assert cold.rules == cached.rules
    assert [cold.match(event) for event in EVENTS] == [cached.match(event) for event in EVENTS]
    assert sum(len(cold.match(event)) for event in EVENTS) > 8
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0


def test_shipped_rules(tmp_path):
    """The rules that ship come back as they were; a second look writes nothing, and compiles only files of several rules."""
    cold = RuleSet.load([RULES], trusted_uids=None, cache=Cache(tmp_path / "kept", ME))
    written = (tmp_path / "kept" / FILE).stat()
    cache = Cache(tmp_path / "kept", ME)
    cached = RuleSet.load([RULES], trusted_uids=None, cache=cache)

    assert cold.rules == cached.rules
    several = {one.rule.file for one in cold.correlations}
    assert (cache.hits, cache.misses) == (len({rule.file for rule in cold.rules} - several), len(several))
    assert written.st_ino == (tmp_path / "kept" / FILE).stat().st_ino


def test_sigma_is_not_imported(kept):
    """Whoever has all rules in the cache doesn't wait for pySigma."""
    file, load = kept
    load()
    code = (
        "import sys; from pathlib import Path; from ksentinel.rules.ruleset import RuleSet; from ksentinel.rules.cache import Cache;"
        f"cache = Cache(Path({str(file.parent)!r}), {ME});"
        f"RuleSet.load([{str(file.parents[1] / 'rules')!r}], trusted_uids=None, cache=cache);"
        "print(cache.hits, 'sigma' in sys.modules, 'pyparsing' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split() == ["2", "False", "False"]


def test_changed_rule(kept):
    """A file whose text has changed is compiled; one that was moved isn't, and has its new name."""
    file, load = kept
    load()
    rules = file.parents[1] / "rules"
    (rules / "many.yml").write_text(MANY.replace("level: low", "level: high"))
    (rules / "network.yml").rename(rules / "moved.yml")
    found, cache = load()

    assert (cache.hits, cache.misses) == (1, 1)
    assert sorted(Path(rule.file).name for rule in found.rules) == ["many.yml", "moved.yml"]


def test_duplicate_ids_are_seen(kept):
    """Two files with one id are an error, cached or not, at the same place."""
    file, load = kept
    load()
    (file.parents[1] / "rules" / "z.yml").write_text(NETWORK)
    (file.parents[1] / "rules" / "zz.yml").write_text(NETWORK + "\n")
    _, errors = RuleSet.load_reporting(
        [file.parents[1] / "rules"], trusted_uids=None, cache=Cache(file.parent, ME)
    )

    assert [str(error.at).rpartition("/")[2] for error in errors] == ["z.yml:2:5", "zz.yml:2:5"]


def _flip(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def _link(file):
    file.rename(file.with_suffix(".real"))
    file.symlink_to(file.with_suffix(".real"))


def _fifo(file):
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_flip, "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "damaged"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: file.chmod(0o640), "open to others (mode 0640)"),
        (lambda file: file.parent.chmod(0o770), "open to others (mode 0770)"),
        (_link, "Too many levels of symbolic links"),
        (_fifo, "not a regular file"),
    ],
)
def test_odd(kept, spoil, why):
    """What is odd is said, with what it means, and the rules are compiled: they are the same."""
    file, load = kept
    cold, _ = load()
    spoil(file)
    found, cache = load()

    assert cache.odd == f"{file}: {why}: rules are compiled anew"
    assert (cache.hits, found.rules) == (0, cold.rules)


def test_strangers_cache(kept):
    """Who else owns it could have put anything in."""
    _, load = kept
    cold, _ = load()
    found, cache = load(uid=ME + 1)

    assert f"owned by uid {ME}: rules are compiled anew" in cache.odd
    assert (cache.hits, found.rules) == (0, cold.rules)


def test_not_kept(tmp_path):
    """Where nothing can be written the rules are there all the same, and it is said."""
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "kept", ME)

    assert len(RuleSet.load([RULES], trusted_uids=None, cache=cache)) > 20
    assert cache.odd.endswith("Not a directory: rules are compiled anew")


@pytest.mark.parametrize("thing", ["version", "sources"])
def test_made_by_others(kept, monkeypatch, thing):
    """Of another version, or for other fields, nothing is taken: nothing is odd about that."""
    _, load = kept
    load()
    if thing == "version":
        monkeypatch.setattr(cache_module, "version", lambda _: "99")
    else:
        table = sources()
        monkeypatch.setattr(
            "ksentinel.rules.ruleset.sources", lambda _: {n: s for n, s in table.items() if n != "lineage"}
        )
    _, cache = load()

    assert (cache.hits, cache.misses, cache.odd) == (0, 2, "")


def test_bounded(kept, monkeypatch):
    """Too many rules that are no longer asked for are let go."""
    file, load = kept
    load()
    monkeypatch.setattr(cache_module, "MAX_KEPT", 2)
    (file.parents[1] / "rules" / "many.yml").write_text(MANY + "# changed\n")
    load()

    assert len(json.loads(file.read_bytes().partition(b"\n")[2])["rules"]) == 2
