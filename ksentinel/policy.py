# SPDX-License-Identifier: Apache-2.0
"""
The policy: what a rule's level and a model's are worth together, as a table that an operator can read and change.

A policy file has one table for each context; its lines are the rules' level, its columns the model's, its cells the
level of the alert and the most that a rule may have done about it (``high deny``; an alert alone if nothing is said).
Where several contexts hold, the lowest level and the least action of their tables count.

What no policy may say, wherever it stands, is refused with its place: an action or a level above medium without a
rule, a match that isn't told at all, an action for an excepted match.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from ksentinel.detectors import Anomaly
from ksentinel.errors import Location, RuleError
from ksentinel.level import Level
from ksentinel.rules.document import List, Map, Node, Scalar, parse, read, suggest

MODEL_ALONE = Level.MEDIUM
"""A model knows unusual, not harmful: without a rule there is no higher level, and no action."""

VERSION = "1"
_REMEDY = "see docs/verdict.md"
_MOST_WINDOWS = 1_000_000


class Action(StrEnum):
    """What a verdict justifies, from least to most; what is above *alert* only a rule can ask for."""

    NONE = "none"
    ALERT = "alert"
    DENY = "deny"
    KILL = "kill"
    QUARANTINE = "quarantine"

    @property
    def rank(self) -> int:
        """Its place in that order: texts have another."""
        return _RANKS[self]


_RANKS = {action: rank for rank, action in enumerate(Action)}

_Choice = TypeVar("_Choice", Level, Action)


class Context(StrEnum):
    """What else bears on a verdict: each is a table of the policy."""

    KNOWN = "known"
    """None of the others: the model knows the program, nothing was lost, nothing is excepted."""
    LEARNING = "learning"
    """The model knows the program by few windows, or as it was before it was changed."""
    UNSEEN = "unseen"
    """Training never saw the program."""
    LOSSY = "lossy"
    """Records were lost meanwhile."""
    EXCEPTED = "excepted"
    """An exception covers the match."""


@dataclass(frozen=True, slots=True)
class Cell:
    """
    What the policy says in one place.

    Attributes
    ----------
    permits
        The most that is done if a rule asks for it.
    """

    level: Level
    permits: Action = Action.ALERT

    def __str__(self) -> str:
        return f"{self.level} {self.permits}" if self.permits.rank > Action.ALERT.rank else str(self.level)


Table = Mapping[tuple[Level, Level], Cell]
"""By the rules' level and the model's."""


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The tables, and from when on a model knows a program.

    Attributes
    ----------
    learning_windows
        A profile of fewer windows than this is still being learnt.
    """

    file: str
    tables: Mapping[Context, Table]
    learning_windows: int

    def to_plain(self) -> dict[str, Any]:
        """Return the JSON form: by context, the rules' level and the model's."""
        return {
            "file": self.file,
            "learning_windows": self.learning_windows,
            "tables": {
                str(context): {
                    str(rule): {str(model): _plain(table[rule, model]) for model in Level} for rule in Level
                }
                for context, table in self.tables.items()
            },
        }

    def cell(self, rule: Level, model: Level, contexts: Collection[Context] = ()) -> Cell:
        """
        Return what holds in all of *contexts*: the lowest level and the least action.

        Parameters
        ----------
        contexts
            None is `Context.KNOWN`.
        """
        if len(contexts) <= 1:
            return self.tables[next(iter(contexts), Context.KNOWN)][rule, model]
        cells = [self.tables[context][rule, model] for context in contexts]
        return Cell(min(c.level for c in cells), min((c.permits for c in cells), key=lambda a: a.rank))

    def doubt(self, anomaly: Anomaly) -> Context | None:
        """Return why the model's word on that program is worth less; None if it isn't."""
        if anomaly.unseen:
            return Context.UNSEEN
        if anomaly.changed or 0 < anomaly.trained_on < self.learning_windows:
            return Context.LEARNING
        return None


def load(path: Path, *, trusted_uids: Collection[int] | None) -> Policy:
    """
    Read a policy file.

    Parameters
    ----------
    trusted_uids
        Who may own it, as for rules.

    Raises
    ------
    RuleError
        For the first thing wrong with it.
    """
    return parse_policy(read(path, trusted_uids=trusted_uids), path)


def parse_policy(text: str, file: str | Path) -> Policy:
    """Return the policy that *text* is; raises RuleError as `load` does."""
    root = parse(text, file)
    if not isinstance(root, Map) or root.get("policy") is None:
        raise RuleError(f"is no policy: that begins with policy: {VERSION}", root.at, _REMEDY)
    parts = _parts(root, ("policy", "learning_windows", "model", "tables"), "a policy")
    version = parts["policy"]
    if not isinstance(version, Scalar) or version.text != VERSION:
        raise RuleError(f"policy must be {VERSION}, the only version there is", version.at)
    _columns(parts["model"])
    named = _parts(parts["tables"], Context, "tables")
    tables = {context: MappingProxyType(_table(named[context], context)) for context in Context}
    return Policy(str(file), MappingProxyType(tables), _number(parts["learning_windows"], "learning_windows"))


def forbidden(cell: Cell, rule: Level, model: Level, context: Context) -> str:
    """Return why no policy may have *cell* in that place; empty if it may."""
    acts = cell.permits.rank > Action.ALERT.rank
    if rule is Level.NONE:
        if acts:
            return "a model alone never acts: that needs a rule that asks for it"
        if cell.level > MODEL_ALONE:
            return f"a model alone is at most {MODEL_ALONE}"
        if model is Level.NONE and cell.level is not Level.NONE:
            return "where nobody says anything there is no alert"
    elif cell.level is Level.NONE:
        return "what matched is told: at least informational"
    if acts and context is Context.EXCEPTED:
        return "nothing is done about an excepted match"
    return ""


def _plain(cell: Cell) -> dict[str, str]:
    return {"level": str(cell.level), "permits": str(cell.permits)}


def _parts(node: Node, names: Iterable[str], what: str) -> dict[str, Node]:
    """Return what stands under each of *names*: all of them, and nothing else."""
    known = [str(name) for name in names]
    if not isinstance(node, Map):
        raise RuleError(f"{what} must be a mapping: {', '.join(known)}", node.at, _REMEDY)
    for key, _ in node.items:
        if key.text not in known:
            remedy = suggest(str(key.text), known) or f"it has {', '.join(known)}"
            raise RuleError(f"{what} has no {key.text!r}", key.at, remedy)
    found = {str(key.text): value for key, value in node.items}
    for name in known:
        if name not in found:
            raise RuleError(f"{what} lacks {name!r}: every line must be there", node.at, _REMEDY)
    return found


def _columns(node: Node) -> None:
    names = [str(level) for level in Level]
    told = [item.text for item in node.items if isinstance(item, Scalar)] if isinstance(node, List) else []
    if told != names:
        raise RuleError(f"model names the columns: it must be [{', '.join(names)}]", node.at)


def _number(node: Node, name: str) -> int:
    text = node.text if isinstance(node, Scalar) else None
    if text is not None and text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_WINDOWS)):
        number = int(text)
        if number <= _MOST_WINDOWS:
            return number
    raise RuleError(f"{name} must be a number from 0 to {_MOST_WINDOWS}", node.at)


def _table(node: Node, context: Context) -> dict[tuple[Level, Level], Cell]:
    lines = _parts(node, map(str, Level), f"table {str(context)!r}")
    table: dict[tuple[Level, Level], Cell] = {}
    for rule in Level:
        line = lines[str(rule)]
        if not isinstance(line, List) or len(line.items) != len(Level):
            raise RuleError(
                f"{context}, rule {rule}: a line has {len(Level)} cells, one for each level of the model",
                line.at,
                _REMEDY,
            )
        for model, item in zip(Level, line.items, strict=True):
            cell = table[rule, model] = _cell(item)
            wrong = forbidden(cell, rule, model, context)
            if wrong:
                raise RuleError(f"{context}, rule {rule}, model {model}: {wrong}", item.at, _REMEDY)
    return table


def _cell(node: Node) -> Cell:
    text = node.text if isinstance(node, Scalar) else None
    if text is None:
        raise RuleError("a cell is a level, and what is permitted: high deny", node.at, _REMEDY)
    level, _, action = text.partition(" ")
    named = _one_of(level, Level, "level", node.at)
    permitted = [a for a in Action if a.rank > Action.ALERT.rank]
    return Cell(named, _one_of(action.strip(), permitted, "action", node.at) if action else Action.ALERT)


def _one_of(text: str, choices: Iterable[_Choice], what: str, at: Location) -> _Choice:
    by_name = {str(choice): choice for choice in choices}
    if text not in by_name:
        raise RuleError(f"{what} {text[:50]!r} is none of {', '.join(by_name)}", at, suggest(text, by_name))
    return by_name[text]
