# SPDX-License-Identifier: Apache-2.0
"""
Sigma: a rule's document becomes a compiled rule, or an error that names line and column.

What is read is the Sigma 2.0 rule format; what isn't supported (aggregations, some modifiers, fields without a source)
is refused by name. A rule that loads can fire. Correlations are another kind of document: `rules.correlation`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NoReturn, Self
from uuid import UUID

from ksentinel.errors import Location, RuleError
from ksentinel.event import Event
from ksentinel.level import Level
from ksentinel.rules import ACTIONS, Match, Response, Rule, specification
from ksentinel.rules.condition import And, Expression, Not, Or, compile_tree, leaves, needed, parse, trace
from ksentinel.rules.document import List, Map, Node, Scalar, suggest
from ksentinel.rules.document import parse as parse_document
from ksentinel.rules.fields import NO_LOGSOURCE, NO_SOURCE, Field, Source, View
from ksentinel.rules.pattern import Item, Modifiers, Pattern, Test, pattern

# What one evaluation may try: no rule can slow the walk beyond that.
MAX_PATTERNS = 20_000

_KEYS = (
    "title id name related taxonomy status description license author references date modified logsource detection "
    "fields falsepositives level tags scope regression_tests_path simulation correlation action ksentinel"
).split()
_REQUIRED = ("title", "id", "logsource", "detection", "level")
_TEXTS = ("title", "id", "name", "status", "description", "license", "author", "date", "modified", "level")
_LISTS = ("references", "fields", "falsepositives", "tags", "scope")
_STATUSES = ("stable", "test", "experimental", "deprecated", "unsupported")
_RESPONSE = {"action": ACTIONS, "inline": ("true", "false"), "when": ("always", "anomalous")}
_LOGSOURCE = ("product", "category", "service", "definition")


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """
    A rule ready to be asked.

    Attributes
    ----------
    test
        Tells whether it fires on a view of an event of *source*.
    keys
        The values of the source's index field that it can fire on, in lower case; None if on any.
    at
        Where its id stands.
    response_at
        Where what it asks for stands (``ksentinel``); None if that isn't known.
    """

    rule: Rule
    source: Source
    tree: Expression
    test: Test
    keys: frozenset[str] | None
    at: Location
    response_at: Location | None = None

    @classmethod
    def make(
        cls,
        rule: Rule,
        source: Source,
        tree: Expression,
        at: Location,
        response_at: Location | None = None,
    ) -> Self:
        """Return the rule with all that follows from its tree."""
        keys = needed(tree, source.index) if source.index else None
        return cls(rule, source, tree, compile_tree(tree), keys, at, response_at)

    def match(self, event: Event, view: View) -> Match:
        """Return the match, with its decisive clauses; only if *test* has held for that view."""
        return Match(self.rule, event, trace(self.tree, view), record=view.record)


def compile_rule(text: str, file: str | Path, table: dict[str, Source]) -> Compiled:
    """
    Compile the text of a rule file.

    Parameters
    ----------
    file
        Its name, for errors and for `Rule.file`.
    table
        Log sources, from `fields.sources`.

    Raises
    ------
    RuleError
        If anything is wrong with it.
    """
    return compile_document(parse_document(text, file), file, table)


def compile_document(root: Node, file: str | Path, table: dict[str, Source]) -> Compiled:
    """
    Compile the document of a rule; parameters and errors as for `compile_rule`.

    Raises
    ------
    RuleError
        If anything is wrong with it.
    """
    if not isinstance(root, Map):
        raise RuleError("a rule is a mapping: title, id, logsource, detection, level", root.at)
    at = next((key.at for key, _ in root.items if key.text == "correlation"), None)
    if at is not None:
        raise RuleError("a correlation, not a rule with a detection", at, "one or the other in a document")
    check_keys(root, _REQUIRED)
    source = _source(_map(root, "logsource"), table)
    rule, id_at = described(root, file, source.name)
    tree = _tree(_map(root, "detection"), source)
    specification.check(root)
    return Compiled.make(rule, source, tree, id_at, _place(root, "ksentinel"))


def described(root: Map, file: str | Path, source: str) -> tuple[Rule, Location]:
    """
    Return what a rule or a correlation says of itself, and where its id stands.

    Raises
    ------
    RuleError
        If anything of that is wrong.
    """
    for name in _TEXTS:
        _text(root, name)
    identity = _text(root, "id")
    id_at = _place(root, "id")
    try:
        identity = str(UUID(identity))
    except ValueError:
        raise RuleError(f"id {identity[:50]!r} is no UUID", id_at) from None
    status = _text(root, "status")
    if status and status not in _STATUSES:
        raise RuleError(
            f"status {status!r} is none of {', '.join(_STATUSES)}",
            _place(root, "status"),
            suggest(status, _STATUSES),
        )
    lists = {name: _strings(root, name) for name in _LISTS}
    rule = Rule(
        id=identity,
        title=_text(root, "title"),
        level=_level(root),
        tags=lists["tags"],
        description=_text(root, "description").strip(),
        false_positives=lists["falsepositives"],
        file=str(file),
        name=_text(root, "name"),
        status=status,
        source=source,
        references=lists["references"],
        response=_response(root),
    )
    return rule, id_at


def compile_selection(node: Node, source: Source) -> Test:
    """Return what tells whether a selection alone holds on a view of an event of *source*; raises RuleError."""
    tree = _selection("where", node, source)
    patterns = leaves(tree)
    if patterns > MAX_PATTERNS:
        raise RuleError(f"tries {patterns} patterns, more than {MAX_PATTERNS}", node.at)
    return compile_tree(tree)


def check_keys(root: Map, required: Collection[str]) -> None:
    """
    Refuse misspelt keys, those of other formats, and the lack of *required* ones.

    Raises
    ------
    RuleError
        At the first of them.
    """
    present = {key.text for key, _ in root.items}
    for key, _ in root.items:
        name = str(key.text)
        if name == "action":
            raise RuleError("action rules are not supported", key.at, "write each document out")
        # Sigma lets a rule carry keys of its own; one that nearly is Sigma's is a slip of the pen.
        remedy = "" if name in _KEYS else suggest(name, [k for k in _KEYS if k not in present])
        if remedy:
            raise RuleError(f"a rule has no {name!r}", key.at, remedy)
    for name in required:
        if name not in present:
            raise RuleError(f"no {name}", root.at)


def _place(root: Map, name: str) -> Location:
    value = root.get(name)
    return root.at if value is None else value.at


def _text(root: Map, name: str) -> str:
    value = root.get(name)
    if value is None and name not in _REQUIRED:
        return ""
    if isinstance(value, Scalar) and value.text is None and name not in _REQUIRED:
        return ""
    if not isinstance(value, Scalar) or not value.text or not value.text.strip():
        raise RuleError(f"{name} must be text", _place(root, name))
    return value.text


def _strings(root: Map, name: str) -> tuple[str, ...]:
    value = root.get(name)
    if value is None or (isinstance(value, Scalar) and value.text is None):
        return ()
    if not isinstance(value, List):
        raise RuleError(f"{name} must be a list", value.at)
    texts: list[str] = []
    for item in value.items:
        if not isinstance(item, Scalar) or item.text is None:
            raise RuleError(f"{name} must be a list of texts", item.at)
        texts.append(item.text)
    return tuple(texts)


def _map(root: Map, name: str) -> Map:
    value = root.get(name)
    if not isinstance(value, Map):
        raise RuleError(f"{name} must be a mapping", _place(root, name))
    return value


def _response(root: Map) -> Response | None:
    """Return what the key ``ksentinel`` asks for; None if there is no such key."""
    node = root.get("ksentinel")
    if node is None:
        return None
    if not isinstance(node, Map):
        raise RuleError("ksentinel must be a mapping: action, inline, when", node.at)
    told: dict[str, str] = {}
    for key, value in node.items:
        allowed = _RESPONSE.get(str(key.text))
        if allowed is None:
            remedy = suggest(str(key.text), _RESPONSE) or f"there are: {', '.join(_RESPONSE)}"
            raise RuleError(f"ksentinel has no {key.text!r}", key.at, remedy)
        text = value.text if isinstance(value, Scalar) else None
        if text not in allowed:
            raise RuleError(f"{key.text} must be one of {', '.join(allowed)}", value.at)
        told[str(key.text)] = text
    if "action" not in told:
        raise RuleError("ksentinel has no action", node.at, f"there are: {', '.join(ACTIONS)}")
    return Response(told["action"], told.get("inline") == "true", told.get("when") == "anomalous")


def _level(root: Map) -> Level:
    name = _text(root, "level")
    try:
        level = Level.parse(name)
    except ValueError as error:
        raise RuleError(str(error), _place(root, "level")) from None
    if level is Level.NONE:
        raise RuleError("level 'none': a rule without a level says nothing", _place(root, "level"))
    return level


def _source(logsource: Map, table: dict[str, Source]) -> Source:
    values: dict[str, str] = {}
    for key, value in logsource.items:
        name = str(key.text)
        remedy = "" if name in _LOGSOURCE else suggest(name, _LOGSOURCE)
        if remedy:
            raise RuleError(f"a logsource has no {name!r}", key.at, remedy)
        if name in _LOGSOURCE:
            if not isinstance(value, Scalar) or not value.text:
                raise RuleError(f"logsource's {name} must be text", value.at)
            values[name] = value.text
    product = values.get("product", "linux")
    if product != "linux":
        raise RuleError(f"logsource: product {product!r} is not linux", _place(logsource, "product"))
    category, service = values.get("category"), values.get("service")
    categories = [name for name in table if name != "auditd"]
    known = f"there are: category {', '.join(categories)}; service auditd"
    if category is not None and service is not None:
        raise RuleError("logsource: category and service together have no source", logsource.at, known)
    if category is not None:
        if category not in categories:
            raise RuleError(
                f"logsource: no source for category {category!r}",
                _place(logsource, "category"),
                NO_LOGSOURCE.get(f"category {category}") or suggest(category, categories) or known,
            )
        return table[category]
    if service is None:
        raise RuleError("logsource: names neither category nor service", logsource.at, NO_LOGSOURCE[""])
    if service != "auditd":
        raise RuleError(
            f"logsource: no source for service {service!r}",
            _place(logsource, "service"),
            NO_LOGSOURCE.get(f"service {service}") or suggest(service, ["auditd"]) or known,
        )
    return table["auditd"]


def _tree(detection: Map, source: Source) -> Expression:
    selections: dict[str, Expression] = {}
    condition: Node | None = None
    written = 0
    for key, value in detection.items:
        name = str(key.text)
        if name == "condition":
            condition = value
        elif name == "timeframe":
            raise RuleError("timeframe (an aggregation) is not supported", key.at)
        else:
            selections[name] = _selection(name, value, source)
            # A dash may stand for 125 patterns: looked at before the condition says how often.
            written += leaves(selections[name])
            if written > MAX_PATTERNS:
                raise RuleError(f"more than {MAX_PATTERNS} patterns", key.at)
    if condition is None:
        near = next((n for n in selections if suggest(n, ["condition"])), None)
        remedy = f"{near}: did you mean condition?" if near else ""
        raise RuleError("detection has no condition", detection.at, remedy)
    if not selections:
        raise RuleError("detection has no selection", detection.at)
    conditions = condition.items if isinstance(condition, List) else (condition,)
    if not conditions:
        raise RuleError("an empty condition", condition.at)
    trees: list[Expression] = []
    for each in conditions:
        if not isinstance(each, Scalar) or each.text is None:
            raise RuleError("condition must be text", each.at)
        trees.append(parse(each.text, selections, _within(each)))
    tree = trees[0] if len(trees) == 1 else Or(tuple(trees))
    patterns = leaves(tree)
    if patterns > MAX_PATTERNS:
        raise RuleError(f"tries {patterns} patterns, more than {MAX_PATTERNS}", condition.at)
    return tree


def _within(scalar: Scalar) -> Callable[[int], Location]:
    def at(offset: int) -> Location:
        return replace(scalar.at, column=scalar.at.column + offset) if scalar.inline else scalar.at

    return at


def _selection(name: str, node: Node, source: Source) -> Expression:
    if isinstance(node, Map):
        return _fields(name, node, source)
    if isinstance(node, Scalar):
        return _keywords(name, node, source, Modifiers(shape="contains"))
    if not node.items:
        raise RuleError(f"selection {name!r} is empty", node.at)
    parts: list[Expression] = []
    words: list[Node] = []
    for item in node.items:
        if isinstance(item, Map):
            parts.append(_fields(name, item, source))
        else:
            words.append(item)
    if words:
        parts.append(_keywords(name, List(tuple(words), node.at), source, Modifiers(shape="contains")))
    return parts[0] if len(parts) == 1 else Or(tuple(parts))


def _keywords(name: str, node: Node, source: Source, modifiers: Modifiers) -> Expression:
    if not modifiers.shape:
        modifiers = replace(modifiers, shape="contains")
    return _item(name, source.keywords, node, modifiers)


def _fields(name: str, node: Map, source: Source) -> Expression:
    if not node.items:
        raise RuleError(f"selection {name!r} is empty", node.at)
    parts: list[Expression] = []
    for key, value in node.items:
        field_name, *names = str(key.text).split("|")
        modifiers = Modifiers.parse(names, key.at)
        if not field_name:
            parts.append(_keywords(name, value, source, modifiers))
            continue
        field = source.fields.get(field_name)
        if field is None:
            _unknown(field_name, source, key.at)
        parts.append(_item(name, field, value, modifiers))
    return parts[0] if len(parts) == 1 else And(tuple(parts))


def _unknown(name: str, source: Source, at: Location) -> NoReturn:
    known: Collection[str] = source.fields
    why = NO_SOURCE.get(name, "")
    remedy = why or suggest(name, known) or f"there are: {', '.join(known)}"
    raise RuleError(f"no source for field {name!r} in {source.name}", at, remedy)


def _item(selection: str, field: Field, node: Node, modifiers: Modifiers) -> Expression:
    values = node.items if isinstance(node, List) else (node,)
    if not values:
        raise RuleError("an empty list matches nothing", node.at)
    patterns: list[tuple[Pattern, ...]] = []
    count = 0
    for value in values:
        if not isinstance(value, Scalar):
            raise RuleError("a value must be text, a number or null", value.at)
        patterns.append(pattern(value, modifiers, field))
        count += len(patterns[-1])
        if count > MAX_PATTERNS:
            raise RuleError(f"more than {MAX_PATTERNS} patterns", value.at)
    tree: Expression
    if modifiers.every and any(len(variants) > 1 for variants in patterns):
        # Every value must be there, in one of its variants.
        tree = And(tuple(Item(selection, field, variants) for variants in patterns))
    else:
        tree = Item(selection, field, tuple(chain.from_iterable(patterns)), every=modifiers.every)
    return Not(tree) if modifiers.negated else tree
