# SPDX-License-Identifier: Apache-2.0
"""Self-test: what is done, harmlessly, for a rule to fire on a real host, and whether it did."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import orjson

from ksentinel.actor import PATHS
from ksentinel.errors import Location, RuleError
from ksentinel.event import Event
from ksentinel.rules import Match, Rule
from ksentinel.rules.checking import ACTION, beside
from ksentinel.rules.document import read, suggest

_FORM = "see docs/authoring.md"
_MOST_STEPS = 16
_MOST_PROGRAMS = 4
_MOST_ARGUMENTS = 64
_MOST_TEXT = 4096

# By step: the kinds of its arguments; None: one or more texts after the first.
_TAKES: Mapping[str, tuple[type, ...] | None] = {
    "exec": None,
    "read": (str,),
    "write": (str,),
    "unlink": (str,),
    "rename": (str, str),
    "symlink": (str, str),
    "chmod": (str, str),
    "mount": (str,),
    "connect": (str, int),
    "memfd": (),
    "ptrace": (),
    "bpf": (),
    "init_module": (),
    "kexec": (),
    "setns": (),
    "userns": (),
}

CALLS = ("pivot_root", "bpf", "init_module", "kexec_load")
"""System calls that have no function in the C library: an actor is told their numbers."""


@dataclass(frozen=True, slots=True)
class Action:
    """
    A rule's action.

    Attributes
    ----------
    programs
        Each starts the next, the last does the steps.
    steps
        Name and arguments of each.
    cannot
        Why there are none; empty if there are.
    """

    programs: tuple[str, ...] = ()
    steps: tuple[tuple[Any, ...], ...] = ()
    cannot: str = ""


class Outcome(StrEnum):
    """How a rule's test ended."""

    FIRED = "fired"
    SILENT = "not fired"
    CANNOT = "can't be done"
    UNTESTED = "no action"


@dataclass(frozen=True, slots=True)
class Finding:
    """
    A rule, and how its test ended.

    Attributes
    ----------
    said
        The reason, where there is one: why it can't be done, what the steps said of themselves.
    match
        Of a rule that fired: the first match.
    """

    rule: Rule
    outcome: Outcome
    said: str = ""
    match: Match | None = None


def read_action(rule: Rule, *, trusted_uids: Collection[int] | None) -> Action | None:
    """
    Return the action beside a rule's file; None if there is none.

    Parameters
    ----------
    trusted_uids
        Who may own it; None if anyone: for those who don't act on it.

    Raises
    ------
    RuleError
        If what stands there is none, or not to be trusted.
    """
    path = beside(rule.file, ACTION)
    if path is None:
        return None
    try:
        plain = orjson.loads(read(path, trusted_uids=trusted_uids))
    except orjson.JSONDecodeError as error:
        raise RuleError(f"not JSON: {error.msg}", Location(path, error.lineno, error.colno), _FORM) from None
    return action_from_plain(plain, path)


def action_from_plain(plain: Any, at: Path) -> Action:
    """
    Return the action that a file holds.

    Raises
    ------
    RuleError
        If something is missing, unknown or of the wrong kind.

    Examples
    --------
    >>> action_from_plain({"do": [["read", "/etc/shadow"]]}, Path("x.selftest.json")).steps
    (('read', '/etc/shadow'),)
    """

    def wrong(what: str, remedy: str = _FORM) -> RuleError:
        return RuleError(what, at, remedy)

    if not isinstance(plain, dict):
        raise wrong("an action is an object")
    unknown = [name for name in plain if name not in {"as", "do", "cannot"}]
    if unknown:
        raise wrong(
            f"an action has no {unknown[0][:50]!r}", suggest(unknown[0], ("as", "do", "cannot")) or _FORM
        )
    if "cannot" in plain:
        if not _text(plain["cannot"]) or len(plain) > 1:
            raise wrong("cannot gives the reason, and stands alone")
        return Action(cannot=plain["cannot"])
    programs = plain.get("as", [])
    if not isinstance(programs, list) or not all(map(_path, programs)) or len(programs) > _MOST_PROGRAMS:
        raise wrong(f"as is a list of up to {_MOST_PROGRAMS} absolute paths")
    steps = plain.get("do")
    if not isinstance(steps, list) or not 0 < len(steps) <= _MOST_STEPS:
        raise wrong(f"do is a list of up to {_MOST_STEPS} steps")
    for number, step in enumerate(steps, 1):
        if not isinstance(step, list) or not step or not isinstance(step[0], str):
            raise wrong(f"step {number} is a list: a name and its arguments")
        name, *arguments = step
        if name not in _TAKES:
            remedy = suggest(name, _TAKES) or f"there are: {', '.join(_TAKES)}"
            raise wrong(f"step {number}: there is no {name[:50]!r}", remedy)
        if not _fits(name, arguments):
            raise wrong(f"step {number}: these are not the arguments of {name}")
    return Action(tuple(programs), tuple(tuple(step) for step in steps))


def _fits(name: str, arguments: list[Any]) -> bool:
    kinds = _TAKES[name]
    if kinds is None:
        kinds = (str,) * max(1, min(len(arguments), _MOST_ARGUMENTS))
    if [type(argument) for argument in arguments] != list(kinds):
        return False
    texts = [argument for argument in arguments if isinstance(argument, str)]
    paths = arguments[: PATHS.get(name, 0)]
    if not all(map(_text, texts)) or not all(map(_path, paths)):
        return False
    if name == "chmod":
        return all(digit in "01234567" for digit in arguments[1]) and len(arguments[1]) <= 4
    return name != "connect" or 0 < arguments[1] < 1 << 16


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and "\0" not in value


def _path(value: Any) -> bool:
    """Tell whether it is an absolute path that can't climb out of a directory it is put below."""
    return _text(value) and value.startswith("/") and value != "/" and ".." not in PurePosixPath(value).parts


@dataclass(slots=True)
class Watch:
    """
    What is seen of actors.

    An event belongs to the actor that its process descends from, by at least two generations: what the actor itself
    does, and the first process of its namespaces, is preparation.

    Attributes
    ----------
    rules
        By the actor's PID: the rule's id.
    fired
        By id: its first match.
    """

    rules: dict[int, str] = field(default_factory=dict)
    fired: dict[str, Match] = field(default_factory=dict)

    def whose(self, event: Event) -> str | None:
        """Return the id of the rule whose action this event is a part of; None if it is of none."""
        for generation, ancestor in enumerate(event.process.ancestors(), 1):
            if ancestor.key.pid in self.rules:
                return self.rules[ancestor.key.pid] if generation > 1 else None
        return None

    def see(self, event: Event, matches: Iterable[Match]) -> None:
        """Note what fired on *event*."""
        rule = self.whose(event)
        for match in matches:
            if match.rule.id == rule:
                self.fired.setdefault(rule, match)
