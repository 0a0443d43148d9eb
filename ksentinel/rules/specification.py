# SPDX-License-Identifier: Apache-2.0
"""
Specification: Sigma's own reader, pySigma, reads every rule too; what it refuses is refused.

It gets nodes that our reader has bounded (bytes, levels, aliases, duplicates), and conditions that our parser has bounded
(parentheses, words, patterns): its parser of conditions is generic, and knows no limits but Python's stack. It is asked
to parse only: its validators, which fetch lists of ATT&CK's techniques, are never imported.
"""

from collections.abc import Callable
from typing import Any

from ksentinel.errors import Location, RuleError
from ksentinel.rules.document import List, Map, Node, Scalar

# Where an error of pySigma's belongs, by the beginning of its class's name; what isn't here is about the detection.
_PLACES = {
    "SigmaAuthor": "author",
    "SigmaCondition": "condition",
    "SigmaDate": "date",
    "SigmaDescription": "description",
    "SigmaFalsePositives": "falsepositives",
    "SigmaFields": "fields",
    "SigmaIdentifier": "id",
    "SigmaLevel": "level",
    "SigmaLicense": "license",
    "SigmaLogsource": "logsource",
    "SigmaModified": "modified",
    "SigmaName": "name",
    "SigmaReferences": "references",
    "SigmaRelated": "related",
    "SigmaScope": "scope",
    "SigmaStatus": "status",
    "SigmaTag": "tags",
    "SigmaTaxonomy": "taxonomy",
    "SigmaTitle": "title",
}
_NUMERIC = frozenset({"gt", "gte", "lt", "lte"})


def check(rule: Map) -> None:
    """
    Let pySigma read a rule.

    Raises
    ------
    RuleError
        If it has anything against it.
    """
    # Not before a rule has to be compiled: its import takes longer than to load a thousand rules that are known.
    from sigma.exceptions import SigmaConditionError, SigmaError
    from sigma.rule import SigmaRule

    try:
        read = SigmaRule.from_dict(plain(rule), collect_errors=True)
        for error in read.errors:
            raise error
        for condition in read.detection.parsed_condition:
            _ = condition.parsed
    except SigmaError as error:
        raise RuleError(f"pySigma: {_said(error)}", _place(rule, error)) from error
    except RecursionError as error:
        raise RuleError(
            "nested too deeply for pySigma",
            _place(rule, SigmaConditionError("")),
            "fewer 'not' and parentheses",
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A rule that its authors didn't think of.
        raise RuleError(f"pySigma can't read it: {type(error).__name__}: {_said(error)}", rule.at) from error


def plain(node: Node) -> Any:
    """Return a node as the text, lists and dicts that pySigma takes; numbers and truths where a modifier wants them."""
    match node:
        case Scalar(text):
            return text
        case List(items):
            return [plain(item) for item in items]
        case Map(items):
            return {str(key.text): _typed(str(key.text), plain(value)) for key, value in items}


def _typed(key: str, value: Any) -> Any:
    # Without modifiers all values stay the text that was written: YAML would make 493 of 0755.
    names = key.split("|")[1:]
    if not _NUMERIC.isdisjoint(names):
        return _each(value, lambda text: int(text) if text.removeprefix("-").isdecimal() else text)
    if "exists" in names:
        return _each(value, lambda text: {"true": True, "false": False}.get(text.lower(), text))
    return value


def _each(value: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(value, list):
        return [change(one) if isinstance(one, str) else one for one in value]
    return change(value) if isinstance(value, str) else value


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _place(rule: Map, error: Exception) -> Location:
    kind = type(error).__name__
    if kind == "SigmaValueError" and str(error).startswith("Sigma tag"):
        kind = "SigmaTagError"
    name = next((place for start, place in _PLACES.items() if kind.startswith(start)), "detection")
    if name == "condition":
        detection = rule.get("detection")
        node = detection.get("condition") if isinstance(detection, Map) else None
    else:
        node = rule.get(name)
    return rule.at if node is None else node.at
