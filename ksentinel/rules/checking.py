# SPDX-License-Identifier: Apache-2.0
"""
Checking: everything that is wrong with a rule file, and what is merely unwise.

The compiler is asked, and nobody else: it stops at the first thing wrong, so that thing is taken out of the document
and it is asked again. What it refuses is found here, too, whatever it learns to refuse.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ksentinel.errors import Location, RuleError
from ksentinel.rules import Rule
from ksentinel.rules.condition import And, Expression, Not, Or
from ksentinel.rules.correlation import Draft
from ksentinel.rules.correlation import read as read_correlation
from ksentinel.rules.coverage import TACTICS
from ksentinel.rules.derivation import unmet
from ksentinel.rules.document import List, Map, Node, Scalar, parse_all, read, suggest
from ksentinel.rules.fields import Source
from ksentinel.rules.pattern import Item
from ksentinel.rules.ruleset import RuleSet, is_correlation, rule_files
from ksentinel.rules.sigma import Compiled, compile_document

MOST = 50
"""Problems of one file; beyond that the rest isn't looked at, and that is said."""
_MOST_OF_LARGE = 5
_LARGE = 64 << 10  # characters: to compile that again and again takes its time

EVENTS = ".events.jsonl"
ACTION = ".selftest.json"

_NOWHERE = Location("")
# What takes the place of what is wrong, in the order in which the compiler misses it.
_INSTEAD: Mapping[str, Node] = {
    "title": Scalar("x", _NOWHERE),
    "id": Scalar("00000000-0000-0000-0000-000000000000", _NOWHERE),
    "logsource": Map(
        ((Scalar("category", _NOWHERE), Scalar("process_creation", _NOWHERE)),),
        _NOWHERE,
    ),
    "detection": Map(
        (
            (Scalar("x", _NOWHERE), Scalar("x", _NOWHERE)),
            (Scalar("condition", _NOWHERE), Scalar("x", _NOWHERE)),
        ),
        _NOWHERE,
    ),
    "level": Scalar("low", _NOWHERE),
}
_ANY_SELECTION = Scalar("1 of *", _NOWHERE)
_KEYWORD = Scalar("x", _NOWHERE)
_PROGRAMS = frozenset("Image Exe ParentImage ServiceImage Ancestors was exe".split())
_TECHNIQUE = re.compile(r"attack\.t\d{4}(\.\d{3})?")
_OTHER = re.compile(r"attack\.[gs]\d{4}")  # groups and software


@dataclass(frozen=True, slots=True)
class Remark:
    """Something unwise about a rule that loads: what, where, and what to do about it."""

    what: str
    at: Location
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """
    A file, looked at.

    Attributes
    ----------
    rules
        Those that could be loaded.
    problems
        Why others couldn't, in the order of the file.
    more
        Whether there may be further problems: more than `MOST`, or what stands behind one that hides them.
    remarks
        What is unwise about those that load.
    correlates
        Whether it speaks of rules that may stand in other files.
    """

    file: Path | str
    rules: tuple[Rule, ...] = ()
    problems: tuple[RuleError, ...] = ()
    more: bool = False
    remarks: tuple[Remark, ...] = ()
    correlates: bool = False

    @property
    def loaded(self) -> bool:
        """Whether all that is in it would be."""
        return not self.problems


def beside(rule: str | Path, suffix: str) -> Path | None:
    """Return the file of that *suffix* beside a rule's file; None if there is none."""
    path = Path(rule).with_suffix(suffix)
    return path if os.path.exists(path) else None  # noqa: PTH110 - never raises, however long the name is


def check(paths: Iterable[str | Path], table: dict[str, Source]) -> Iterator[Checked]:
    """
    Yield every rule file below *paths*, looked at; whoever owns it, and one at a time, however many there are.

    Files with correlations come last: the rules that these speak of may stand anywhere.
    """
    paths = tuple(paths)
    taken: dict[str, Location] = {}
    waiting: list[Checked] = []
    for checked in _each(paths, table, taken):
        if checked.correlates:
            waiting.append(checked)
        else:
            yield checked
    if waiting:
        _, errors = RuleSet.load_reporting(paths, trusted_uids=None)
        for checked in waiting:
            known = {str(error) for error in checked.problems}
            new = [error for error in errors if _file(error) == checked.file and str(error) not in known]
            yield replace(checked, problems=tuple(sorted((*checked.problems, *new), key=_order)))


def _file(error: RuleError) -> Path | str | None:
    return error.at.file if isinstance(error.at, Location) else error.at


def _each(
    paths: Iterable[str | Path], table: dict[str, Source], taken: dict[str, Location]
) -> Iterator[Checked]:
    for found in rule_files(paths, None):
        if isinstance(found, RuleError):
            place = found.at.file if isinstance(found.at, Location) else str(found.at)
            yield Checked(place, problems=(found,))
            continue
        try:
            text = read(found, trusted_uids=None)
        except RuleError as error:
            yield Checked(found, problems=(error,))
            continue
        yield check_text(text, found, table, taken)


def check_text(text: str, file: Path, table: dict[str, Source], taken: dict[str, Location]) -> Checked:
    """
    Look at the text of a rule file.

    Parameters
    ----------
    taken
        Ids of other rules, and where they stand; those of this file are added.
    """
    try:
        documents = parse_all(text, file)
    except RuleError as error:
        return Checked(file, problems=(error,), more=True)
    rules: list[Rule] = []
    problems: list[RuleError] = []
    remarks: list[Remark] = []
    most = _MOST_OF_LARGE if len(text) > _LARGE else MOST
    more = correlates = False
    for root in documents:
        if len(problems) >= most:
            more = True
            break
        compiled: Compiled | Draft | None
        if is_correlation(root):
            correlates = True
            try:
                compiled = read_correlation(root, file)
            except RuleError as error:
                problems.append(error)
                more = True
                continue
        else:
            wrong, compiled, hidden = _problems(root, file, table, most - len(problems))
            problems += wrong
            more |= hidden
        if compiled is None:
            continue
        first = taken.setdefault(compiled.rule.id, compiled.at)
        if first is not compiled.at:
            what = f"id {compiled.rule.id} is taken by {first}"
            problems.append(RuleError(what, compiled.at, "give it one of its own"))
            continue
        rules.append(compiled.rule)
        remarks += _remarks(compiled, root, file)
    return Checked(file, tuple(rules), tuple(problems), more, tuple(remarks), correlates)


def _problems(
    root: Node, file: Path, table: dict[str, Source], most: int
) -> tuple[list[RuleError], Compiled | None, bool]:
    """Return what is wrong; the rule, if nothing is; and whether there may be more."""
    found: dict[tuple[str, str], RuleError] = {}
    while True:
        try:
            compiled = compile_document(root, file, table)
        except RuleError as error:
            again = (error.what, str(error.at)) in found
            found[error.what, str(error.at)] = error
            rest = _without(root, error, whole=again)
            if rest is None or rest == root or len(found) >= most:
                return sorted(found.values(), key=_order), None, True
            root = rest
        else:
            return sorted(found.values(), key=_order), None if found else compiled, False


def _order(error: RuleError) -> tuple[int, int]:
    return (error.at.line, error.at.column) if isinstance(error.at, Location) else (0, 0)


def _without(root: Node, error: RuleError, *, whole: bool) -> Map | None:
    """
    Return the document without what is wrong with it; None if that can't be told.

    Parameters
    ----------
    whole
        Take out all of the rule's key in which it is: a smaller part has not helped.
    """
    if not isinstance(root, Map) or not isinstance(error.at, Location):
        return None
    missing = [name for name in _INSTEAD if root.get(name) is None]
    if error.at == root.at and missing and not whole:
        return Map((*root.items, (Scalar(missing[0], _NOWHERE), _INSTEAD[missing[0]])), root.at)
    pairs: list[tuple[Scalar, Node]] = []
    hit = _last_before(root, error.at)
    for number, (key, value) in enumerate(root.items):
        name = str(key.text)
        if number != hit:
            pairs.append((key, value))
        elif name == "detection" and isinstance(value, Map) and not whole:
            pairs.append((key, _without_in_detection(value, error.at)))
        elif name in _INSTEAD:
            pairs.append((key, _INSTEAD[name]))
        elif not whole and (rest := _cut(value, error.at)) is not None and error.at != key.at:
            pairs.append((key, rest))
    if hit is not None and root.items[hit][0].text == "logsource":
        # Which fields there are depends on it.
        pairs = [(key, _INSTEAD["detection"] if key.text == "detection" else value) for key, value in pairs]
    return Map(tuple(pairs), root.at)


def _without_in_detection(detection: Map, at: Location) -> Map:
    if detection.get("condition") is None and at == detection.at:
        return Map((*detection.items, (Scalar("condition", _NOWHERE), _ANY_SELECTION)), _NOWHERE)
    hit = _last_before(detection, at)
    pairs: list[tuple[Scalar, Node]] = []
    for number, (key, value) in enumerate(detection.items):
        if number != hit:
            pairs.append((key, value))
        elif key.text == "condition":
            pairs.append((key, _ANY_SELECTION))
        elif key.text != "timeframe":
            # A condition may name it: something has to stand there.
            pairs.append((key, _KEYWORD if at == key.at else _cut(value, at) or _KEYWORD))
    return Map(tuple(pairs), detection.at)


def _cut(node: Node, at: Location) -> Node | None:
    """Return *node* without the smallest part at that place; None if that is all of it."""
    if isinstance(node, Scalar):
        return None
    hit = _last_before(node, at)
    if hit is None:
        return None
    if isinstance(node, List):
        rest = _cut(node.items[hit], at)
        items = [*node.items[:hit], *(() if rest is None else (rest,)), *node.items[hit + 1 :]]
        return List(tuple(items), node.at) if items else None
    key, value = node.items[hit]
    rest = None if at == key.at else _cut(value, at)
    pairs = [*node.items[:hit], *(() if rest is None else ((key, rest),)), *node.items[hit + 1 :]]
    return Map(tuple(pairs), node.at) if pairs else None


def _last_before(node: Map | List, at: Location) -> int | None:
    """Return the number of the part in which that place is."""
    starts = [item[0].at if isinstance(item, tuple) else item.at for item in node.items]
    place = (at.line, at.column)
    before = [
        n for n, start in enumerate(starts) if (start.line, start.column) <= place and start != _NOWHERE
    ]
    return before[-1] if before else None


# --- remarks ----------------------------------------------------------------------------------------------------


def _remarks(compiled: Compiled | Draft, root: Node, file: Path) -> Iterator[Remark]:
    rule = compiled.rule
    if not isinstance(root, Map):
        return
    if not rule.description:
        yield Remark("no description", root.at, "say why this is worth an alert")
    if not rule.false_positives:
        yield Remark("no falsepositives", root.at, "say when this is harmless, or 'None known'")
    if not rule.status:
        yield Remark("no status", root.at, "begin with experimental")
    yield from _tags(rule.tags, root)
    if beside(file, EVENTS) is None:
        yield Remark(f"no {file.stem}{EVENTS} beside it", root.at, "see docs/authoring.md")
    if rule.status == "stable" and beside(file, ACTION) is None:
        yield Remark(f"stable, and no {file.stem}{ACTION} beside it", root.at, "see docs/authoring.md")
    if isinstance(compiled, Draft):
        return
    yield from _items(compiled.tree, root, compiled.source)
    in_vain = unmet(compiled)
    if in_vain is not None:
        at = in_vain.at if isinstance(in_vain.at, Location) else root.at
        yield Remark(in_vain.what, at, in_vain.remedy)


def _tags(tags: Collection[str], root: Map) -> Iterator[Remark]:
    node = root.get("tags")
    at = root.at if node is None else node.at
    places = (
        {str(i.text): i.at for i in node.items if isinstance(i, Scalar)} if isinstance(node, List) else {}
    )
    if not any(_TECHNIQUE.fullmatch(tag) for tag in tags):
        yield Remark("no ATT&CK technique among its tags", at, "for example attack.t1059.004")
    known = [f"attack.{tactic.slug}" for tactic in TACTICS]
    if tags and not any(tag in known for tag in tags):
        yield Remark("no ATT&CK tactic among its tags", at, "for example attack.execution")
    for tag in tags:
        if tag.startswith("attack.") and not (
            tag in known or _TECHNIQUE.fullmatch(tag) or _OTHER.fullmatch(tag)
        ):
            yield Remark(
                f"tag {tag[:100]!r} is neither a tactic nor a technique of ATT&CK",
                places.get(tag, at),
                suggest(tag, known) or "techniques look like attack.t1059.004",
            )


def _items(tree: Expression, root: Map, source: Source) -> Iterator[Remark]:
    seen: set[tuple[str, str, bool]] = set()
    for item, negated, anchored in _leaves(tree, negated=False):
        key = (item.selection, item.field.name, negated)
        if key in seen:
            continue
        at = _place(root, item.selection, item.field.name)
        if negated and not anchored and item.field.name in _PROGRAMS:
            loose = [p for p in item.patterns if p.kind in {"endswith", "contains"}]
            if loose:
                seen.add(key)
                yield Remark(
                    f"{item.selection} excepts programs by a part of their path ({loose[0].text[:100]}): "
                    "whoever calls a file so is excepted, too",
                    at,
                    "name programs by their full path",
                )
        elif not negated and item.field.name in {"success", "result"} and source.name != "auditd":
            seen.add(key)
            yield Remark(
                f"asks for {item.field.name}, which BPF doesn't know: with audit alone it can fire",
                at,
                "ask for the attempt",
            )


def _leaves(
    tree: Expression, *, negated: bool, anchored: frozenset[str] = frozenset()
) -> Iterator[tuple[Item, bool, bool]]:
    """Yield each test, whether it stands under a ``not``, and whether another says how its field must begin."""
    match tree:
        case Item():
            yield tree, negated, tree.field.name in anchored
        case Not(part):
            yield from _leaves(part, negated=not negated)
        case And(parts):
            begun = {
                part.field.name
                for part in parts
                if isinstance(part, Item) and all(p.kind in {"startswith", "is"} for p in part.patterns)
            }
            for part in parts:
                yield from _leaves(part, negated=negated, anchored=anchored | begun)
        case Or(parts):
            for part in parts:
                yield from _leaves(part, negated=negated, anchored=anchored)


def _place(root: Map, selection: str, field: str) -> Location:
    """Return where a selection asks for a field."""
    detection = root.get("detection")
    node = detection.get(selection) if isinstance(detection, Map) else None
    if node is None:
        return root.at
    for each in node.items if isinstance(node, List) else (node,):
        if isinstance(each, Map):
            for key, _ in each.items:
                if str(key.text).split("|")[0] == field:
                    return replace(key.at)
    return node.at
