# SPDX-License-Identifier: Apache-2.0
"""
Offenders: which rules make the most noise, which programs and parents cause it, and what can be done about each.

Counted from what a store holds: alerts, repeats that were folded into them, and what was suppressed. An alert counts for its
worst rule and its own process.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ksentinel.level import Level
from ksentinel.mutes import HIGHEST, LEVEL, MODEL
from ksentinel.noise import MODEL_TITLE, Suppressed, Triple
from ksentinel.printable import printable

MOST_SOURCES = 5
"""Of each rule those that make the most noise; the others are summed up."""


@dataclass(slots=True)
class Tally:
    """
    How much noise somebody made.

    Attributes
    ----------
    alerts
        Stored ones.
    repeats
        Incidents like one that was told, counted there.
    suppressed
        What wasn't told, neither stored: its repeats are among *repeats*.
    muted
        How many of *alerts* a mute kept from being shown.
    level
        The worst of *alerts*.
    """

    alerts: int = 0
    repeats: int = 0
    suppressed: int = 0
    muted: int = 0
    level: Level = Level.NONE

    @property
    def all(self) -> int:
        """Everything, but that what is muted is among the alerts."""
        return self.alerts + self.repeats + self.suppressed

    def add(self, other: "Tally") -> None:
        """Count what *other* counts, too."""
        self.alerts += other.alerts
        self.repeats += other.repeats
        self.suppressed += other.suppressed
        self.muted += other.muted
        self.level = max(self.level, other.level)

    def to_plain(self, of: int) -> dict[str, Any]:
        """Return the counts as JSON has them, with the share of so many."""
        return {
            "alerts": self.alerts,
            "repeats": self.repeats,
            "suppressed": self.suppressed,
            "muted": self.muted,
            "share": round(self.all / of, 4) if of else 0.0,
        }


@dataclass(slots=True)
class Offender:
    """A rule (or the model alone), and who made it speak."""

    rule: str
    title: str = ""
    kind: str = ""
    """Of event: decides what an exception's fields are called."""
    tally: Tally = field(default_factory=Tally)
    sources: dict[tuple[str, str], Tally] = field(default_factory=dict)
    """By executable and its parent's."""

    def loudest(self) -> list[tuple[str, str, Tally]]:
        """Return the sources that made most noise, the worst first."""
        ranked = sorted(self.sources.items(), key=lambda one: (-one[1].all, one[0]))
        return [(exe, parent, tally) for (exe, parent), tally in ranked[:MOST_SOURCES]]

    def to_plain(self, of: int) -> dict[str, Any]:
        """Return it as JSON has it."""
        sources = [
            {"exe": exe, "parent": parent}
            | tally.to_plain(self.tally.all)
            | {"remedies": self.remedies(exe, parent, tally)}
            for exe, parent, tally in self.loudest()
        ]
        about = {"rule": self.rule, "title": self.title, "level": str(self.tally.level)}
        return (
            about | self.tally.to_plain(of) | {"sources": sources, "others": len(self.sources) - len(sources)}
        )

    def remedies(self, exe: str, parent: str, tally: Tally) -> dict[str, str]:
        """
        Return what can be done about one source: an exception's ``where``, and a mute.

        Neither for a program whose name can't be spelled without escapes: it would be another's.

        Examples
        --------
        >>> tally = Tally(alerts=3, level=Level.MEDIUM)
        >>> remedies = Offender("4b1c", kind="exec").remedies("/usr/bin/tar", "/bin/sh", tally)
        >>> remedies["where"]
        '{"Exe": "/usr/bin/tar", "ParentImage": "/bin/sh"}'
        >>> print(remedies["mute"])
        ksentinel mute --exe /usr/bin/tar --parent /bin/sh --rule 4b1c --for 2h --reason '...'
        """
        names = [name for name in (exe, parent) if name]
        if not exe or any(printable(name) != name or "\\" in name for name in names):
            return {}
        told = {}
        if self.rule != MODEL:
            image, above = {"audit": ("exe", ""), "exec": ("Exe", "ParentImage")}.get(
                self.kind, ("Image", "ParentImage")
            )
            where = {image: _literal(exe)} | ({above: _literal(parent)} if above and parent else {})
            told["where"] = msgspec.json.format(msgspec.json.encode(where), indent=0).decode()
        if tally.level <= HIGHEST:
            words = ["ksentinel", "mute", "--exe", exe]
            words += ["--parent", parent] if parent else []
            words += ["--rule", self.rule, "--for", "2h"]
            words += ["--level", str(tally.level)] if tally.level > LEVEL else []
            told["mute"] = f"{shlex.join(words)} --reason '...'"
        return told


def rank(alerts: Iterable[Mapping[str, Any]], suppressed: Iterable[Suppressed]) -> list[Offender]:
    """Return who makes how much noise, the worst first, from alerts in their JSON form and what was suppressed."""
    found: dict[str, Offender] = {}

    def enter(triple: Triple, title: str, kind: str, tally: Tally) -> None:
        offender = found.setdefault(triple.rule, Offender(triple.rule))
        offender.title = offender.title or (MODEL_TITLE if triple.rule == MODEL else title)
        offender.kind = offender.kind or kind
        offender.tally.add(tally)
        offender.sources.setdefault((triple.exe, triple.parent), Tally()).add(tally)

    for alert in alerts:
        tally = Tally(1, alert["repeats"], muted=bool(alert.get("muted")), level=Level.parse(alert["level"]))
        match = next((e["match"] for e in alert["evidence"] if "match" in e), None)
        process = alert["process"]
        rule, kind = (MODEL, "") if match is None else (match["rule"]["id"], match["event"]["event"])
        triple = Triple(rule, process.get("exe", ""), (process.get("parent") or {}).get("exe", ""))
        enter(triple, alert["title"], kind, tally)
    for one in suppressed:
        enter(one.triple, one.title, "", Tally(suppressed=one.alerts, repeats=one.repeats))
    return sorted(found.values(), key=lambda offender: (-offender.tally.all, offender.rule))


def _literal(text: str) -> str:
    """Return text as a Sigma value that means it literally."""
    return "".join(f"\\{c}" if c in "*?" else c for c in text)
