# SPDX-License-Identifier: Apache-2.0
"""Guards, as people are shown them: what the kernel could decide of a rule, what not, and why."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from ksentinel import report
from ksentinel.errors import RuleError
from ksentinel.printable import printable
from ksentinel.rules import Rule
from ksentinel.rules.derivation import Derived
from ksentinel.rules.guard import Way

_LONGEST_TEST = 200


def guards_list(rules: Sequence[tuple[Derived, RuleError | None]]) -> None:
    """Print what of each rule the kernel could decide, what it could not, and what is wrong with a rule that asks for it."""
    out = report.console()
    for derived, error in rules:
        rule = derived.rule
        level = report.plain(rule.level, style=report.STYLES.get(str(rule.level), ""))
        out.print(Text.assemble(level, "  ", report.plain(rule.title, style="bold"), f"  {_asks(rule)}"))
        out.print(report.plain(f"  {rule.file}", style="dim"))
        if error is not None:
            out.print(report.plain(f"  {error.what}", style="bold red"))
        report.lines(_told(derived))
    decided = sum(bool(derived.guards) for derived, _ in rules)
    asking = sum(bool(derived.rule.response and derived.rule.response.inline) for derived, _ in rules)
    in_vain = sum(error is not None for _, error in rules)
    out.print(
        f"{len(rules)} rules: {decided} with guards, {asking} asking for them, {in_vain} of these in vain."
    )
    out.print("Guards are derived, not loaded: nothing is enforced.")


def _asks(rule: Rule) -> str:
    if rule.response is None:
        return "asks for nothing"
    asked = {rule.response.action: True, "inline": rule.response.inline, "anomalous": rule.response.anomalous}
    return f"asks for {', '.join(word for word, there in asked.items() if there)}"


def _told(derived: Derived) -> Iterator[str]:
    # The same ways at several hooks are told once.
    together: dict[tuple[tuple[Way, ...], tuple[str, ...]], list[str]] = {}
    for guard in derived.guards:
        place = f"{guard.hook} in {', '.join(guard.calls)}"
        together.setdefault((guard.ways, guard.narrower), []).append(place)
    for (ways, narrower), places in together.items():
        yield f"  inline: {'; '.join(places)}"
        yield from _ways(ways)
        for what in narrower:
            yield f"    narrower: {what}"
    for what in derived.left:
        yield f"  user space: {what}"


def _ways(ways: Sequence[Way]) -> Iterator[str]:
    # What all ways have is told first, and once.
    common = [literal for literal in ways[0] if all(literal in way for way in ways)]
    for position, literal in enumerate(common):
        yield f"    {'and' if position else 'if '} {printable(literal.words(), _LONGEST_TEST)}"
    if len(ways) == 1:
        if not common:
            yield "    always"
        return
    yield f"    {'and' if common else 'if '} one of"
    for way in ways:
        rest = [literal for literal in way if literal not in common]
        for position, literal in enumerate(rest):
            yield f"        {'  and' if position else '-'} {printable(literal.words(), _LONGEST_TEST)}"
