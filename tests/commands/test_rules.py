# SPDX-License-Identifier: Apache-2.0
"""The commands for people who write rules."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ksentinel.cli import main
from ksentinel.codec import event_from_plain
from ksentinel.recording import Writer
from ksentinel.rules.ruleset import EXAMPLE

ROOT = Path(__file__).parents[2]
WEBSHELL = ROOT / "tests" / "data" / "audit" / "webshell.log"
SHELL = ROOT / "rules" / "execution" / "shell_from_service.yml"
EVENTS = """\
{"match": true, "why": "a cat", "event": "exec", "process": {"exe": "/bin/cat"}}
{"match": false, "why": "a dog", "event": "exec", "process": {"exe": "/bin/dog"}}
"""


@pytest.fixture
def run(capsysbinary):
    """Run ``ksentinel rules``."""

    def run(*arguments):
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["rules", *map(str, arguments)])
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(
            status=ended.value.code or 0,
            text=out.decode(),
            err=err.decode(),
            objects=[json.loads(line) for line in out.splitlines()] if "--json" in arguments else [],
        )

    return run


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one rule and its events."""
    (tmp_path / "cat.yml").write_text(EXAMPLE)
    (tmp_path / "cat.events.jsonl").write_text(EVENTS)
    return tmp_path


def test_check(run, folder):
    """A folder whose rules would load: 0; with one that wouldn't: 1, and each problem is a line with its place."""
    good = run("check", folder)
    (folder / "bad.yml").write_text(EXAMPLE.replace("level: low", "level: odd").replace("Image", "Imag"))
    bad = run("check", folder)

    assert (good.status, bad.status) == (0, 1)
    assert good.err.startswith("ksentinel: 1 files: 1 would be loaded, 0 not; 0 problems")
    assert f"{folder}/bad.yml:6:5: no source for field 'Imag'" in bad.text
    assert f"{folder}/bad.yml:8:8: level 'odd'" in bad.text


def test_check_json(run, folder):
    """One object a file: whether it is loaded, the first reason with its place, everything else."""
    (folder / "bad.yml").write_text(EXAMPLE.replace("level: low", "level: odd"))
    bad, good = run("check", folder, "--json").objects

    assert (bad["file"], bad["loaded"], bad["line"], bad["column"]) == (f"{folder}/bad.yml", False, 8, 8)
    assert bad["reason"].startswith("level 'odd' is none of")
    assert [one["line"] for one in bad["problems"]] == [8]
    assert (good["loaded"], good["reason"], good["title"], good["level"]) == (
        True,
        "",
        "Something reads something",
        "low",
    )
    assert {one["reason"] for one in good["warnings"]} >= {"no falsepositives", "no description"}


def test_check_of_anybody(run, folder):
    """A file that others can write is looked at: it is not acted on."""
    (folder / "cat.yml").chmod(0o666)

    assert run("check", folder).status == 0
    assert run("list", "--rules", folder).status == 1


def test_check_hostile_names(run, folder):
    """A name or a text in a file doesn't reach the terminal as it is."""
    (folder / "\x1b[2J\u202e.yml").write_text("level: '\x9b31m'\n")
    ran = run("check", folder)

    assert ran.status == 1
    assert not set(ran.text) & {"\x1b", "\u202e", "\x9b"}


def test_test(run, folder):
    """Good events: 0; a wrong one: 1, with the clause that decided."""
    good = run("test", folder)
    (folder / "cat.events.jsonl").write_text(EVENTS.replace("/bin/dog", "/opt/cat").replace("/bin/cat", "/x"))
    bad = run("test", folder)

    assert (good.status, bad.status) == (0, 1)
    assert good.err == "ksentinel: 1 rules: 2 cases, 0 wrong; 0 rules can't be tested\n"
    assert f"{folder}/cat.events.jsonl:1: doesn't fire, and should: a cat" in bad.text
    assert "selection: Image not endswith '/cat': /x" in bad.text
    assert f"{folder}/cat.events.jsonl:2: fires, and should not: a dog" in bad.text
    assert "selection: Image endswith '/cat': /opt[/cat]" in bad.text


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (None, "no cat.events.jsonl beside it"),
        ("", "needs events that must match, and events that must not"),
        (EVENTS.split("\n", maxsplit=1)[0], "needs events that must match, and events that must not"),
        ("{", "not JSON"),
    ],
)
def test_untested(run, folder, events, said):
    """A rule without events is not taken for a good one."""
    if events is None:
        (folder / "cat.events.jsonl").unlink()
    else:
        (folder / "cat.events.jsonl").write_text(events)
    ran = run("test", folder, "--json")

    assert ran.status == 1
    assert said in ran.objects[0]["reason"]
    assert "0 wrong; 1 rules can't be tested" in ran.err


def test_test_shipped(run):
    """Those that ship pass, and are what is tested by default."""
    ran = run("test", "--json")

    assert ran.status == 0
    assert len(ran.objects) == len(list(ROOT.glob("rules/*/*.yml")))
    assert all(one["tested"] and not one["wrong"] and one["cases"] >= 4 for one in ran.objects)


def test_try(run):
    """On a log: each match with its clauses, whose they are, and the sums; passwords are masked."""
    ran = run("try", SHELL, "--on", WEBSHELL)

    assert ran.status == 0
    assert "by_parent: ParentImage endswith '/httpd': /srv/app[/httpd]" in ran.text
    assert "91 events, 23 of lineage: 11 matches, 0 near misses" in ran.text
    assert "hunter2" not in ran.text


def test_try_json(run):
    """Matches, misses, then the account: the sums are those of what was shown, unless that is limited."""
    *shown, account = run("try", SHELL, "--on", WEBSHELL, "--json").objects
    limited = run("try", SHELL, "--on", WEBSHELL, "--limit", 2, "--json").objects

    assert {one["kind"] for one in shown} == {"match"}
    assert account["matches"] == len(shown) == sum(account["executables"].values())
    assert len(limited) == 3
    assert limited[-1] == account


@pytest.mark.parametrize("on", ["nowhere.log", "."])
def test_try_on_nothing(run, folder, on):
    """What can't be read is said."""
    ran = run("try", folder / "cat.yml", "--on", folder / on)

    assert ran.status == 1
    assert "name an audit log or a recording" in ran.err


def test_coverage(run, folder):
    """As a table, a page, a layer and JSON: the shipped rules' techniques."""
    page, layer = folder / "x.html", folder / "x.json"
    ran = run("coverage", "--html", page, "--navigator", layer, "--json")
    techniques = {name for one in ran.objects for name in one["techniques"]}
    told = run("coverage").text

    assert len(ran.objects) == 14
    assert techniques >= {"T1059.004", "T1611"}
    assert {one["techniqueID"] for one in json.loads(layer.read_text())["techniques"]} == techniques
    assert all(name in page.read_text() and name in told for name in techniques)


def test_try_on_a_recording(run, tmp_path):
    """A recording is tried like a log; a near miss says which clause was missing, whatever it is called."""
    nginx = {"exe": "/usr/sbin/nginx"}
    plains = [
        {
            "event": "exec",
            "path": "/bin/sh",
            "process": {"exe": "/bin/sh", "parent": nginx, "service": nginx},
        },
        {
            "event": "exec",
            "path": "/bin/sh",
            "process": {"exe": "/bin/sh", "parent": {"exe": "/opt/\x1b[2Jx"}},
        },
        {"event": "fork", "process": nginx},
    ]
    file = tmp_path / "made.db"
    with Writer(file, {"arch": "x86_64"}) as writer:
        writer.write([event_from_plain(plain) for plain in plains])
        writer.account({"seen": 3})
    told = run("try", SHELL, "--on", file)
    few = run("try", SHELL, "--on", file, "--misses", 0)

    assert told.status == 0
    assert "3 events, 2 of lineage: 1 matches, 1 near misses" in told.text
    assert "ParentImage not " in told.text
    assert r"/opt/\x1b[2Jx" in told.text
    assert "\x1b" not in told.text
    assert "3 events, 2 of lineage: 1 matches, 1 near misses" in few.text
    assert "Near misses" not in few.text
