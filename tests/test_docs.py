# SPDX-License-Identifier: Apache-2.0
"""What the documentation says of commands, options, keys and targets is so, and is all there is."""

import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import typer.main
import yaml

from ksentinel.cli import app
from ksentinel.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "models" / "README.md"]
MAIN = typer.main.get_command(app)


def leaves(group, *names):
    """Yield (name, command) of every command below a group: ``rules list``; a group that does something by itself is one, too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, *names, name)
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield " ".join([*names, name]), command


LEAVES = dict(leaves(MAIN))
COMMANDS = sorted(LEAVES)
SECTIONS = sorted(f.name for f in fields(Config))


def sections(page):
    """Return the text below each heading of the second level; before the first of them under ''."""
    title, *parts = re.split(r"^## (.+)\n", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return {"": title} | dict(zip(parts[::2], parts[1::2], strict=True))


def table(text):
    """Return the first two columns of the rows whose first is code."""
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]*?) ?\|", text, re.MULTILINE))


def options(command):
    """Return the defaults of a command's options by name, as the table gives them."""
    found = {}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            default = "required" if parameter.required else parameter.default
            shown = str(default) if isinstance(default, str | int) and not isinstance(default, bool) else None
            found.update(dict.fromkeys((name for name in parameter.opts if name != "--help"), shown))
    return found


def test_every_command_has_a_section():
    """Those there are, and no others."""
    told = {
        title.removeprefix("ksentinel ") for title in sections("cli.md") if title.startswith("ksentinel ")
    }

    assert sorted(told) == COMMANDS


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_option(name):
    """Each option of a command stands in its table, no other does, and where the default is a value it is that."""
    told = table(sections("cli.md")[f"ksentinel {name}" if name else ""])
    told.pop("--help", None)
    there = options(LEAVES[name] if name else MAIN)

    assert sorted(told) == sorted(there)
    assert {option: told[option] for option, default in there.items() if default is not None} == {
        option: default for option, default in there.items() if default is not None
    }


def test_every_section_of_the_configuration():
    """Those there are, and no others."""
    assert sorted(title for title in sections("configuration.md") if title) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key(name):
    """Each key of a section stands in its table with its default, in YAML's words; no other does."""
    (room,) = (f.type for f in fields(Config) if f.name == name)
    told = {
        key: yaml.safe_load(default) for key, default in table(sections("configuration.md")[name]).items()
    }
    there = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(room)}

    assert MISSING not in there.values()
    assert told == there


def test_example_of_a_configuration():
    """It is one."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "configuration.md").read_text(), re.DOTALL)

    assert Config.from_dict(yaml.safe_load(example)).collector.ring_megabytes == 32


def commands():
    """Yield every line of a code block that calls ksentinel."""
    for page in PAGES:
        blocks = re.findall(
            r"```[a-z]*\n(.*?)```|((?:^    .*\n)+)", page.read_text(), re.DOTALL | re.MULTILINE
        )
        for block in blocks:
            for line in "".join(block).splitlines():
                call = re.match(r"\s*(?:\$ |# |.*\| *)?(?:sudo )?ksentinel +([^|]*)$", line)
                if call:
                    yield pytest.param(call[1], id=f"{page.name}: ksentinel {call[1]}")


def stands_alone(group, arguments):
    """Tell whether a group is called for itself: by nothing, or options."""
    return group.invoke_without_command and (not arguments or arguments[0].startswith("-"))


@pytest.mark.parametrize("line", list(commands()))
def test_commands_parse(line):
    """A command line of the documentation is understood."""
    arguments = shlex.split(line, comments=True)
    command = MAIN
    with MAIN.make_context("ksentinel", arguments, resilient_parsing=True) as context:
        name = "ksentinel"
        while hasattr(command, "commands") and not stands_alone(command, arguments):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, arguments, parent=context).close()


def test_commands_are_found():
    """There are some to be tested, in README too."""
    ids = [parameter.id for parameter in commands()]

    assert {one.partition(":")[0] for one in ids} >= {"README.md", "cli.md"}
    assert {one.split()[2] for one in ids} >= {
        "doctor",
        "record",
        "train",
        "monitor",
        "replay",
        "alerts",
        "explain",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets(page):
    """Every target of make that a page names is in the Makefile."""
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\s*)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))

    assert named - known == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    """Every file that a page links to is there."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_target_is_declared():
    """Makefile targets that are no files are phony, or make would one day do nothing."""
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)

    assert targets - set(phony.split()) == set()
