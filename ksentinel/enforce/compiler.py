# SPDX-License-Identifier: Apache-2.0
"""
The compiler: from rules that ask to be decided inline, and an operator's entries, to one policy for the kernel.

What doesn't fit is refused, with the rule's name, and so is what would take a host down: nothing is left out in silence.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TypeVar

from ksentinel.bpf import guard_abi
from ksentinel.bpf.abi import PREFIX
from ksentinel.bpf.guard_abi import Action, Hook, Trait, Word
from ksentinel.enforce import Mode
from ksentinel.enforce.compiled import (
    CANARY_RULE,
    EVERY_CALL,
    IO_URING,
    NUMBERED_CALLS,
    OF_IO_URING,
    Asked,
    Compiled,
    GuardRule,
    Missing,
    NameSet,
    Way,
)
from ksentinel.enforce.places import Place, Resolve
from ksentinel.enforce.settings import Entry, Settings
from ksentinel.enforce.vital import Own, check
from ksentinel.enforce.way import Draft, drafts
from ksentinel.errors import Location, RuleError
from ksentinel.rules import Rule
from ksentinel.rules.derivation import Derived
from ksentinel.rules.document import suggest
from ksentinel.rules.guard import Guard, Known, Literal, Names

T = TypeVar("T")

MOST = 64
"""Bits of a word: sets of names, tests of numbers and addresses, sets of files, sets of executables."""

_ACTIONS = {"deny": Action.DENY, "kill": Action.KILL, "quarantine": Action.DENY}
_FEWER = "enforce fewer rules and entries"


def compile_policy(
    rules: Sequence[Derived],
    settings: Settings,
    *,
    resolve: Resolve,
    arch: str,
    own: Own | None = None,
    also: Collection[Hook] = (),
) -> Compiled:
    """
    Return the policy of all *rules* that ask to be decided inline, and of all entries.

    Parameters
    ----------
    resolve
        Finds files; `places.resolve` on this host.
    arch
        Whose system calls.
    own
        What ksentinel itself does, which no policy may deny.
    also
        Hooks where guards have to stand although no rule asks for them: verdicts on processes are carried out there.

    Raises
    ------
    RuleError
        If *settings* name what there isn't, if anything is more than the kernel's side has room for, or if the policy would
        deny everybody something ordinary, or PID 1 or ksentinel what they live on.
    """
    builder = _Builder(settings, resolve, arch, _named(rules), hooks=set(also))
    for derived in rules:
        response = derived.rule.response
        if response is not None and response.inline:
            builder.add_rule(derived)
    for entry in settings.entries:
        builder.add_entry(entry)
    compiled = builder.finish()
    check(compiled, resolve, own or Own())
    return compiled


@dataclass(slots=True)
class _Builder:
    settings: Settings
    resolve: Resolve
    arch: str
    named: dict[str, list[Rule]]
    rules: list[GuardRule] = field(default_factory=list)
    ways: list[Way] = field(default_factory=list)
    sets: dict[NameSet, int] = field(default_factory=dict)
    asked: dict[Asked, int] = field(default_factory=dict)
    places: dict[tuple[str, tuple[str, ...]], int] = field(default_factory=dict)
    executables: dict[tuple[str, ...], int] = field(default_factory=dict)
    where: dict[str, Place | None] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    hooks: set[Hook] = field(default_factory=set)

    def add_rule(self, derived: Derived) -> None:
        rule, response = derived.rule, derived.rule.response
        if response is None or not derived.guards:
            why = "; ".join(derived.left[:3]) or "it can't hold at any hook"
            raise RuleError(
                f"{rule.title}: asks for inline, and the kernel can't decide it: {why}", rule.file
            )
        self.rules.append(
            GuardRule(
                id=rule.id,
                title=rule.title,
                action=_ACTIONS[response.action],
                mode=self._mode(rule),
                pinned=not called(rule).isdisjoint(self.settings.pinned),
                anomalous=response.anomalous,
                source=derived,
            )
        )
        for guard in derived.guards:
            hook = Hook[guard.hook.upper()]
            calls = self._calls(guard)
            told = f"{guard.hook} in {', '.join(guard.calls)}"
            for literals in guard.ways:
                # A hook that doesn't see a path can't tell that there is none: such a way never speaks.
                if any(literal.negated and isinstance(literal.test, Known) for literal in literals):
                    continue
                words = " and ".join(literal.words() for literal in literals)
                self._add(hook, literals, calls, f"{told}: {words}" if words else told)
        if not self.rules[-1].words:
            raise RuleError(
                f"{rule.title}: asks for inline, and it can't hold at any hook: that there is no path isn't seen there",
                rule.file,
            )

    def add_entry(self, entry: Entry) -> None:
        for rule in self.rules:
            if rule.id == entry.id:
                raise RuleError(f"id {entry.id!r} is taken by {rule.at}", entry.at)
        self.rules.append(
            GuardRule(
                id=entry.id,
                title=entry.title or entry.id,
                action=entry.action,
                mode=entry.mode,
                pinned=entry.id in self.settings.pinned,
                anomalous=entry.anomalous,
                source=entry,
            )
        )
        for path in dict.fromkeys((*entry.under, *entry.same, *entry.by, *entry.unless_by)):
            if path not in self.where:
                self.where[path] = self.resolve(path)
            if self.where[path] is None:
                self.missing.append(Missing(path, entry.id, entry.at))
        for draft in drafts(entry):
            self._add(draft.hook, draft.literals, EVERY_CALL, _words(draft), draft)

    def finish(self) -> Compiled:
        self._check_names()
        hooks = tuple(sorted(self.hooks))
        ways = [
            way for hook in hooks for way in (_canary(hook), *(one for one in self.ways if one.hook is hook))
        ]
        compiled = Compiled(
            rules=tuple(self.rules),
            ways=tuple(ways),
            hooks=hooks,
            sets=tuple(self.sets),
            asked=tuple(self.asked),
            places_of=self._places_of(),
            where=self.where,
            places_missing=tuple(self.missing),
            posture=self.settings.posture,
            arch=self.arch,
        )
        if len(ways) > guard_abi.WAYS:
            raise RuleError(
                f"{len(ways)} ways in all, canaries included, more than {guard_abi.WAYS}",
                self.settings.file or None,
                _FEWER,
            )
        tests = sum(len(compiled.number_tests(hook)) for hook in hooks)
        if tests > guard_abi.NUMBER_TESTS:
            raise RuleError(
                f"{tests} comparisons of numbers in all, more than {guard_abi.NUMBER_TESTS}",
                self.settings.file or None,
                _FEWER,
            )
        return compiled

    def _add(
        self, hook: Hook, literals: Iterable[Literal], calls: int, words: str, draft: Draft | None = None
    ) -> None:
        rule = self.rules[-1]
        need, forbid = [0] * guard_abi.WORDS, [0] * guard_abi.WORDS
        for literal in literals:
            word, bit = self._fact(literal)
            (forbid if literal.negated else need)[word] |= 1 << bit
        if draft is not None:
            need[Word.TRAITS], forbid[Word.TRAITS] = int(draft.need), int(draft.forbid)
            for kind, paths in (("under", draft.under), ("is", draft.same)):
                if paths:
                    need[Word.PLACES] |= 1 << self._bit(self.places, (kind, paths), "sets of files")
            if draft.by:
                need[Word.WHO] |= 1 << self._bit(self.executables, draft.by, "sets of executables")
            if draft.unless_by:
                forbid[Word.WHO] |= 1 << self._bit(self.executables, draft.unless_by, "sets of executables")
        way = Way(
            hook,
            len(self.rules) - 1,
            tuple(need),
            tuple(forbid),
            calls,
            rule.action,
            rule.mode,
            rule.anomalous,
        )
        if way in self.ways:
            return
        if len(self.ways) >= guard_abi.WAYS:
            raise self._too_many("ways", guard_abi.WAYS)
        self.hooks.add(hook)
        self.ways.append(way)
        self.rules[-1] = replace(rule, words=(*rule.words, words))

    def _fact(self, literal: Literal) -> tuple[Word, int]:
        """Return the word that a test is about, and its bit there."""
        test = literal.test
        match test:
            case Names(subject, exact, prefixes, suffixes, cased):
                one = NameSet(exact, prefixes, suffixes, cased)
                self._check_set(one)
                return Word[subject.upper()], self._bit(self.sets, one, "sets of names")
            case Known(subject):
                # A beginning of no bytes: whatever can be told has it.
                return Word[subject.upper()], self._bit(
                    self.sets, NameSet((), ("",), (), cased=True), "sets of names"
                )
            case _:
                return Word.NUMBERS, self._bit(self.asked, test, "tests of numbers and addresses")

    def _bit(self, bits: dict[T, int], key: T, what: str, most: int = MOST) -> int:
        if key not in bits:
            if len(bits) >= most:
                raise self._too_many(what, most)
            bits[key] = len(bits)
        return bits[key]

    def _calls(self, guard: Guard) -> int:
        bits = 0
        for call in guard.calls:
            if call not in NUMBERED_CALLS:
                rule = self.rules[-1]
                raise RuleError(f"{rule.title}: no guard tells {call} from other system calls", rule.at)
            bits |= 1 << NUMBERED_CALLS.index(call)
            bits |= IO_URING if call in OF_IO_URING else 0
        return bits

    def _too_many(self, what: str, most: int) -> RuleError:
        rule = self.rules[-1]
        return RuleError(f"{rule.title}: with it there are more than {most} {what}", rule.at, _FEWER)

    def _check_set(self, one: NameSet) -> None:
        """Refuse what the kernel's side can't compare; derivation leaves it out."""
        rule = self.rules[-1]
        for text in one.prefixes:
            if len(text.encode("utf-8", "surrogateescape")) > PREFIX:
                raise RuleError(f"{rule.title}: {text!r} is a beginning of over {PREFIX} bytes", rule.at)
        for text in one.suffixes:
            if not text.startswith("/") or text.count("/") > guard_abi.SUFFIXES:
                raise RuleError(
                    f"{rule.title}: {text!r} is no end of one to {guard_abi.SUFFIXES} whole names", rule.at
                )

    def _mode(self, rule: Rule) -> Mode | None:
        """Return the strictest mode that is named for a rule, by any of its names."""
        modes = [self.settings.modes[name] for name in called(rule) if name in self.settings.modes]
        return max(modes, key=lambda mode: mode.rank, default=None)

    def _check_names(self) -> None:
        """Refuse modes and pins of what isn't there, or isn't decided in the kernel."""
        entries = {entry.id for entry in self.settings.entries}
        for key, names in (("modes", self.settings.modes), ("pinned", self.settings.pinned)):
            for name in names:
                at = self.settings.at.get((key, name)) or Location(self.settings.file)
                if name in entries:
                    if key == "modes":
                        raise RuleError(f"{name!r} is an entry", at, "say mode in the entry itself")
                elif name not in self.named:
                    remedy = suggest(name, self.named) or "say an id, a name or a file without its ending"
                    raise RuleError(f"{key}: no rule {name!r} is loaded", at, remedy)
                elif not any(one.response is not None and one.response.inline for one in self.named[name]):
                    raise RuleError(
                        f"{key}: rule {name!r} isn't decided in the kernel",
                        at,
                        "it asks for no inline action",
                    )

    def _places_of(self) -> dict[Place, tuple[int, int, int]]:
        found: defaultdict[Place, list[int]] = defaultdict(lambda: [0, 0, 0])
        for (kind, paths), bit in self.places.items():
            for place in self._there(paths):
                found[place][kind == "under"] |= 1 << bit
        for paths, bit in self.executables.items():
            for place in self._there(paths):
                found[place][2] |= 1 << bit
        return {place: (same, under, who) for place, (same, under, who) in found.items()}

    def _there(self, paths: tuple[str, ...]) -> list[Place]:
        return [place for path in paths if (place := self.where[path]) is not None]


def _canary(hook: Hook) -> Way:
    need = [0] * guard_abi.WORDS
    need[Word.TRAITS] = int(Trait.CANARY)
    return Way(hook, CANARY_RULE, tuple(need), (0,) * guard_abi.WORDS)


def called(rule: Rule) -> set[str]:
    """Return what settings may call a rule."""
    return {rule.id, rule.name, PurePath(rule.file).stem} - {""}


def renamed(modes: Mapping[str, Mode], name: str, mode: Mode, rules: Iterable[Derived]) -> dict[str, Mode]:
    """
    Return *modes* with another one for the rules that *name* means, by whatever name of theirs they had one.

    The strictest of a rule's names counts: one that is left would outdo what is asked for. Other rules that were meant by it keep
    theirs, by their id.
    """
    everyone = [derived.rule for derived in rules]
    meant = [rule for rule in everyone if name in called(rule)]
    names = {one for rule in meant for one in called(rule)}
    found = {key: value for key, value in modes.items() if key not in names}
    for rule in everyone:
        theirs = [modes[one] for one in called(rule) if one in modes]
        if rule not in meant and theirs and not called(rule).isdisjoint(names):
            found[rule.id] = max(theirs, key=lambda one: one.rank)
    return found | {name: mode}


def _named(rules: Iterable[Derived]) -> dict[str, list[Rule]]:
    named: defaultdict[str, list[Rule]] = defaultdict(list)
    for derived in rules:
        for name in called(derived.rule):
            named[name].append(derived.rule)
    return named


def _words(draft: Draft) -> str:
    """Return one way of an entry as a person reads it."""
    told = [str(trait.name).lower().replace("_", " ") for trait in Trait if trait & draft.need]
    told += [f"not {str(trait.name).lower().replace('_', ' ')}" for trait in Trait if trait & draft.forbid]
    told += [literal.words() for literal in draft.literals]
    told += [
        f"{what} {' or '.join(paths)}"
        for what, paths in (
            ("file is below", draft.under),
            ("file is", draft.same),
            ("by", draft.by),
            ("not by", draft.unless_by),
        )
        if paths
    ]
    return f"{draft.hook.name.lower()}: {' and '.join(told)}" if told else draft.hook.name.lower()
