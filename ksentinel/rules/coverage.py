# SPDX-License-Identifier: Apache-2.0
"""
Coverage: which tactics and techniques of MITRE ATT&CK the rules speak of, as a matrix and as a Navigator layer.

Everything is taken from the rules' own tags; what a technique is called, or whether there is one of that number, is
nowhere looked up. A rule stands under each of its tactics with each of its techniques.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ksentinel.rules import Rule


@dataclass(frozen=True, slots=True)
class Tactic:
    """A tactic of ATT&CK for enterprises: its id, its name in tags and layers, its name for people."""

    id: str
    slug: str
    name: str


TACTICS = tuple(
    Tactic(id_, name.lower().replace(" ", "-"), name)
    for id_, name in (
        ("TA0043", "Reconnaissance"),
        ("TA0042", "Resource Development"),
        ("TA0001", "Initial Access"),
        ("TA0002", "Execution"),
        ("TA0003", "Persistence"),
        ("TA0004", "Privilege Escalation"),
        ("TA0005", "Defense Evasion"),
        ("TA0006", "Credential Access"),
        ("TA0007", "Discovery"),
        ("TA0008", "Lateral Movement"),
        ("TA0009", "Collection"),
        ("TA0011", "Command and Control"),
        ("TA0010", "Exfiltration"),
        ("TA0040", "Impact"),
    )
)
"""The tactics of ATT&CK for enterprises, in the order of its matrix."""

ATTACK_VERSION = "17"
LAYER_VERSION = "4.5"
NAVIGATOR_VERSION = "5.1.0"


@dataclass(frozen=True, slots=True)
class Coverage:
    """
    What the rules cover.

    Attributes
    ----------
    matrix
        By tactic (every one, in ATT&CK's order) and technique: the rules, in their own order.
    elsewhere
        Rules without a tactic or without a technique: they stand nowhere in the matrix.
    """

    matrix: Mapping[Tactic, Mapping[str, tuple[Rule, ...]]]
    elsewhere: tuple[Rule, ...]

    @property
    def techniques(self) -> tuple[str, ...]:
        """Every technique that is covered, once."""
        return tuple(sorted({technique for column in self.matrix.values() for technique in column}))


def coverage(rules: Iterable[Rule]) -> Coverage:
    """
    Sort *rules* into the matrix.

    Examples
    --------
    >>> from ksentinel.level import Level
    >>> rule = Rule("1", "A shell", Level.HIGH, tags=("attack.execution", "attack.t1059.004"))
    >>> [(tactic.name, list(column)) for tactic, column in coverage([rule]).matrix.items() if column]
    [('Execution', ['T1059.004'])]
    """
    columns: dict[Tactic, dict[str, list[Rule]]] = {tactic: defaultdict(list) for tactic in TACTICS}
    elsewhere: list[Rule] = []
    for rule in rules:
        tactics = [tactic for tactic in TACTICS if f"attack.{tactic.slug}" in rule.tags]
        if not tactics or not rule.techniques:
            elsewhere.append(rule)
        for tactic in tactics:
            for technique in rule.techniques:
                columns[tactic][technique].append(rule)
    matrix = {
        tactic: {technique: tuple(column[technique]) for technique in sorted(column)}
        for tactic, column in columns.items()
    }
    return Coverage(matrix, tuple(elsewhere))


def navigator_layer(covered: Coverage, *, name: str = "ksentinel") -> dict[str, Any]:
    """Return it as a layer for ATT&CK Navigator: the score of a technique is the number of its rules."""
    techniques = [
        {
            "techniqueID": technique,
            "tactic": tactic.slug,
            "score": len(rules),
            "comment": "\n".join(f"{rule.title} ({rule.level})" for rule in rules),
            "enabled": True,
            "metadata": [{"name": "rule", "value": PurePath(rule.file).stem or rule.id} for rule in rules],
        }
        for tactic, column in covered.matrix.items()
        for technique, rules in column.items()
    ]
    most = max((len(rules) for column in covered.matrix.values() for rules in column.values()), default=1)
    return {
        "name": name,
        "versions": {"attack": ATTACK_VERSION, "navigator": NAVIGATOR_VERSION, "layer": LAYER_VERSION},
        "domain": "enterprise-attack",
        "description": "Techniques that rules of ksentinel speak of; the score is the number of rules.",
        "sorting": 3,
        "hideDisabled": False,
        "techniques": techniques,
        "gradient": {"colors": ["#ffffff", "#66b1ff"], "minValue": 0, "maxValue": most},
        "legendItems": [],
        "metadata": [],
    }
