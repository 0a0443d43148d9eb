# SPDX-License-Identifier: Apache-2.0
"""
Derivation: from a rule's condition to its guards, and the clauses that must stay in user space, each with the reason.

The condition is translated for each system call at each hook: to a disjunction of conjunctions where a clause that the kernel
can't decide is missing, and so can only make it hold too seldom.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from itertools import product
from typing import Any, TypeVar

from ksentinel.errors import RuleError
from ksentinel.rules import Rule
from ksentinel.rules.condition import And, Expression, Not, Or
from ksentinel.rules.fields import FLAGS, OPEN_ACCESS, ROOT, WORDS, Users, unmapped
from ksentinel.rules.guard import (
    INTERNET,
    O_ACCMODE,
    WRITING,
    Bits,
    Guard,
    Known,
    Literal,
    Names,
    Networks,
    Numbers,
    Reach,
    Test,
    Way,
)
from ksentinel.rules.hooks import EXEC, HOOKS, NO_HOOK, Hook
from ksentinel.rules.pattern import Item, Pattern
from ksentinel.rules.sigma import Compiled

T = TypeVar("T")

MAX_WAYS = 32
"""Ways of one guard: a hook tries them one after the other."""
MAX_TESTS = 16
"""Tests of one way."""
MAX_NAMES = 4
"""Names at the end of a path that are compared: the hash has them after as many steps."""
MAX_PREFIX = 64
"""Bytes at the beginning of a path that are compared; the same as KS_PREFIX in lsm_bpf/ksentinel_abi.h."""

_MOST = 0xFFFFFFFF
_NAMED = 3

NOT_SEEN = {
    "CommandLine": "arguments aren't compared in the kernel",
    "ParentCommandLine": "arguments aren't compared in the kernel",
    "keywords": "nothing is searched for in the kernel",
    "CurrentDirectory": "the working directory isn't looked at in the kernel",
    "ProcessId": "numbers of processes aren't compared in the kernel",
    "ParentProcessId": "numbers of processes aren't compared in the kernel",
    "target": "numbers of processes aren't compared in the kernel",
    "LogonId": "who logged in isn't compared in the kernel",
    "was": "a process's earlier program is known only while it executes the next one",
    "abi": "the ABI isn't compared in the kernel",
    "result": "a hook is asked before there is a result",
    "success": "a hook is asked before there is a result",
    "family": "an address is compared by networks alone",
    "socket": "paths of sockets aren't compared in the kernel",
}
"""Fields that no guard asks for, and why."""

_PROCESS = {"ParentImage": "parent", "ServiceImage": "service", "Ancestors": "ancestors"}
_NAMES = {
    "exec": _PROCESS | {"Image": "image", "Exe": "executed", "path": "asked", "was": "program"},
    "call": _PROCESS | {"Image": "program", "TargetFilename": "target", "path": "path"},
}
_ALWAYS = frozenset({"program", "parent", "service", "ancestors", "euid"})
"""What is known of the process at every hook."""


@dataclass(frozen=True, slots=True)
class Derived:
    """
    What of a rule the kernel could decide.

    Attributes
    ----------
    left
        What stays in user space, and why: a line each.
    """

    rule: Rule
    guards: tuple[Guard, ...]
    left: tuple[str, ...]


# What patterns join in, if any does, and which don't, and why.
_Joined = tuple[Test | None, list[tuple[Pattern, str]]]


class _TooManyError(Exception):
    """More ways or tests than a guard may have."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A disjunction of conjunctions, and the clauses that are missing in it: so it may hold too seldom, never too often."""

    ways: tuple[Way, ...] = ()
    left: tuple[str, ...] = ()


_TRUE, _FALSE = _Form(((),)), _Form()


def _constant(value: bool) -> _Form:
    return _TRUE if value else _FALSE


def _literal(test: Test, *, negated: bool) -> _Form:
    return _Form(((Literal(test, negated),),))


def _both(parts: Iterable[_Form]) -> _Form:
    forms = list(parts)
    if _FALSE in forms:
        return _FALSE
    ways: list[Way] = [()]
    for form in forms:
        ways = _distinct(_joined(one, other) for one, other in product(ways, form.ways))
    return _Form(tuple(ways), _unique(text for form in forms for text in form.left))


def _either(parts: Iterable[_Form]) -> _Form:
    forms = list(parts)
    ways = _distinct(way for form in forms for way in form.ways)
    if () in ways:
        return _TRUE
    return _Form(tuple(ways), _unique(text for form in forms for text in form.left))


def _joined(one: Way, other: Way) -> Way | None:
    """Return both together; None if they contradict each other."""
    way = _unique((*one, *other))
    if any(Literal(literal.test, not literal.negated) in way for literal in way):
        return None
    if len(way) > MAX_TESTS:
        raise _TooManyError(f"more than {MAX_TESTS} tests in one way")
    return way


def _distinct(ways: Iterable[Way | None]) -> list[Way]:
    """Return the ways that aren't others with further tests."""
    kept: list[Way] = []
    for way in ways:
        if way is None or any(set(other) <= set(way) for other in kept):
            continue
        kept = [other for other in kept if not set(way) <= set(other)]
        kept.append(way)
        if len(kept) > MAX_WAYS:
            raise _TooManyError(f"more than {MAX_WAYS} ways for it to hold")
    return kept


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def derive(compiled: Compiled, users: Users = ROOT) -> Derived:
    """
    Return what of a rule the kernel could decide.

    Parameters
    ----------
    users
        Names of users by uid, as the rule was loaded with.

    Examples
    --------
    >>> from ksentinel.rules.fields import sources
    >>> from ksentinel.rules.ruleset import EXAMPLE
    >>> from ksentinel.rules.sigma import compile_rule
    >>> (guard,) = derive(compile_rule(EXAMPLE, "cat.yml", sources())).guards
    >>> guard.hook, [[literal.words() for literal in way] for way in guard.ways]
    ('bprm_creds_from_file', [['image ends with /cat']])
    """
    rule, source = compiled.rule, compiled.source
    if source.name == "auditd":
        return Derived(rule, (), ("service auditd: audit's records are written afterwards",))
    left: list[str] = []
    found: dict[tuple[str, tuple[Way, ...], bool], list[str]] = {}
    for call, hooks in _places(compiled, left):
        for hook in hooks:
            form = _form(compiled.tree, source.name, hook, call, users)
            left += form.left
            if form.ways:
                found.setdefault((hook.name, form.ways, not form.left), []).append(call)
    anomalous = rule.response is not None and rule.response.anomalous
    guards = (
        Guard(hook, tuple(calls), ways, anomalous, whole) for (hook, ways, whole), calls in found.items()
    )
    return Derived(rule, tuple(guards), _unique(left))


def unmet(compiled: Compiled, users: Users = ROOT) -> RuleError | None:
    """Return what is wrong with a rule that asks to be decided inline and can't be; None with all others."""
    if compiled.rule.response is None or not compiled.rule.response.inline:
        return None
    derived = derive(compiled, users)
    if derived.guards:
        return None
    why = "; ".join(derived.left[:3]) or "it can't hold at any hook"
    return RuleError(
        f"asks for inline, and the kernel can't decide it: {why}",
        compiled.response_at or compiled.at,
        "leave inline out, or ask in the condition for what docs/guards.md lists",
    )


def to_plain(derived: Derived) -> dict[str, Any]:
    """Return it as a plain dict, each test with its name, its data and its words."""
    rule = derived.rule
    return {
        "id": rule.id,
        "title": rule.title,
        "file": rule.file,
        "level": str(rule.level),
        "source": rule.source,
        "response": None if rule.response is None else asdict(rule.response),
        "guards": [
            asdict(guard) | {"ways": [_way_to_plain(way) for way in guard.ways], "narrower": guard.narrower}
            for guard in derived.guards
        ],
        "left": derived.left,
    }


def _way_to_plain(way: Way) -> list[dict[str, Any]]:
    return [
        {"test": type(literal.test).__name__.lower(), "negated": literal.negated}
        | asdict(literal.test)
        | {"subject": literal.test.subject, "words": literal.words()}
        for literal in way
    ]


def _places(compiled: Compiled, left: list[str]) -> list[tuple[str, list[Hook]]]:
    """Return the calls that a rule speaks of, with their hooks; what has none is *left*."""
    source = compiled.source
    if source.name in {"process_creation", "lineage"}:
        return [(call, [EXEC]) for call in EXEC.calls]
    calls = source.calls or compiled.keys
    if calls is None:
        calls = frozenset(call for hook in HOOKS if hook is not EXEC for call in hook.calls)
        left.append("any other system call: the rule names none")
    places = []
    for call in sorted(calls):
        hooks = [hook for hook in HOOKS if hook is not EXEC and call in hook.calls]
        if hooks:
            places.append((call, hooks))
        else:
            left.append(f"system call {call}: {NO_HOOK.get(call, 'no hook for it')}")
    return places


def _form(tree: Expression, source: str, hook: Hook, call: str, users: Users) -> _Form:
    """Return a rule's condition as that *hook* could decide it in that *call*."""
    base: list[_Form] = []
    if source == "file_event":
        base.append(_literal(Known("target"), negated=False))
        if hook.name == "file_open":
            base.append(_literal(WRITING, negated=False))
    elif source == "network_connection":
        base.append(_literal(INTERNET, negated=False))
    try:
        return _both([*base, _Translation(hook, call, users).form(tree, negated=False)])
    except _TooManyError as error:
        return _Form((), (f"condition at {hook.name}: {error}",))


@dataclass(frozen=True, slots=True)
class _Translation:
    """From the condition's tree to a disjunction of conjunctions, for one system call at one hook."""

    hook: Hook
    call: str
    users: Users

    def form(self, tree: Expression, *, negated: bool) -> _Form:
        match tree:
            case Item():
                return self.item(tree, negated=negated)
            case Not(part):
                return self.form(part, negated=not negated)
            case And(parts) | Or(parts):
                forms = (self.form(part, negated=negated) for part in parts)
                return _both(forms) if isinstance(tree, And) is not negated else _either(forms)

    def item(self, item: Item, *, negated: bool) -> _Form:
        # Of any pattern at all: their tests join in one. Of every one: each has its own.
        groups = [(pattern,) for pattern in item.patterns] if item.every else [item.patterns]
        forms = [self.group(item, group, negated=negated) for group in groups]
        return _either(forms) if negated else _both(forms)

    def group(self, item: Item, patterns: tuple[Pattern, ...], *, negated: bool) -> _Form:
        name = item.field.name
        constant = {"syscall": self.call, "Initiated": "true"}.get(name)
        if constant is not None:
            fires = any(p.kind != "null" and p.find(constant) is not None for p in patterns)
            return _constant(fires is not negated)
        if name == "target_is":
            return self.target_is(item, patterns, negated=negated)
        if name in NOT_SEEN and not (name == "was" and self.hook is EXEC):
            return _left(item, patterns, NOT_SEEN[name])
        forms = self.tests(item, patterns, negated=negated)
        return _both(forms) if negated else _either(forms)

    def tests(self, item: Item, patterns: tuple[Pattern, ...], *, negated: bool) -> list[_Form]:
        """Return a form for all patterns that one test can have, and one for each other."""
        name = item.field.name
        subject = _NAMES["exec" if self.hook is EXEC else "call"].get(name)
        join: Callable[[list[Pattern], str], _Joined]
        if subject is not None:
            join = _names
        elif name in {"flags", "mode"}:
            join, subject = self.bits, name
        elif name in {"DestinationIp", "reach"}:
            join, subject = _networks, "destination"
        elif name == "User":
            join, subject = self.numbers, "euid"
        else:
            join, subject = self.numbers, "port" if name == "DestinationPort" else name
        if subject not in self.hook.sees | _ALWAYS:
            why = f"{self.hook.name} doesn't see it"
            return [_left(item, patterns, why)]
        if subject == "ancestors" and not negated:
            why = "user space forgets the middle of long lines, so only that there is none is sure"
            return [_left(item, patterns, why)]
        forms = []
        asked = [pattern for pattern in patterns if pattern.kind not in {"null", "exists"}]
        for pattern in patterns:
            if pattern.kind not in {"null", "exists"}:
                continue
            if join is _names and subject not in {"parent", "ancestors"}:
                absent = pattern.kind == "null"
                forms.append(_literal(Known(subject), negated=negated is not absent))
            else:
                forms.append(_left(item, (pattern,), "whether there is one isn't asked in the kernel"))
        if asked:
            test, undecided = join(asked, subject)
            forms += [
                _left(item, [pattern for pattern, reason in undecided if reason == why], why)
                for why in _unique(why for _, why in undecided)
            ]
            if test is not None:
                forms.append(_literal(test, negated=negated))
            elif not undecided:
                # Numbers and words that this call has never, wherever it is seen.
                forms.append(_constant(negated))
        return forms

    def bits(self, patterns: list[Pattern], subject: str) -> _Joined:
        pairs: list[tuple[int, int]] = []
        undecided = []
        names = WORDS["mode"] if subject == "mode" else FLAGS.get(self.call, {})
        for pattern in patterns:
            needle = pattern.needle
            if pattern.kind != "is":
                undecided.append((pattern, "only whole names of bits are compared in the kernel"))
            elif subject == "mode" and len(needle) == 4 and set(needle) <= set("01234567"):
                pairs.append((0o7777, int(needle, 8)))
            elif needle.lstrip("-").isdigit():
                if subject == "flags":
                    undecided.append((pattern, "flags are compared by their names, bit by bit"))
            elif self.call == "openat2" and needle.lower() == "o_cloexec":
                undecided.append((pattern, "the file that openat2 opens doesn't show it"))
            else:
                pairs += [(bit, bit) for bit, name in names.items() if _is(pattern, name)]
                if subject == "flags" and names is FLAGS["open"]:
                    pairs += [(O_ACCMODE, low) for low, name in OPEN_ACCESS.items() if _is(pattern, name)]
        return (Bits(subject, _unique(pairs)) if pairs else None), undecided

    def numbers(self, patterns: list[Pattern], subject: str) -> _Joined:
        names = self.users if subject == "euid" else WORDS.get(subject, {})
        ranges: list[tuple[int, int]] = []
        undecided = []
        for pattern in patterns:
            needle = pattern.needle
            if pattern.kind == "compare" and subject != "euid":
                ranges.append(_range(pattern))
            elif pattern.kind != "is":
                undecided.append((pattern, "only whole names and numbers are compared in the kernel"))
            else:
                ranges += [(number, number) for number, name in names.items() if _is(pattern, name)]
                if re.fullmatch(r"0|-?[1-9][0-9]{0,9}", needle):
                    ranges.append((int(needle), int(needle)))
        return (Numbers(subject, _unique(ranges)) if ranges else None), undecided

    def target_is(self, item: Item, patterns: tuple[Pattern, ...], *, negated: bool) -> _Form:
        wanted = {pattern.needle.lower() for pattern in patterns}
        why = ""
        if "another" not in self.hook.sees:
            why = f"{self.hook.name} doesn't see it"
        elif any(pattern.kind != "is" for pattern in patterns) or "group" in wanted:
            why = "only self, and parent together with other, are compared in the kernel"
        elif ("other" in wanted) is not ("parent" in wanted):
            why = "which other process is the parent isn't compared in the kernel"
        if why:
            return _left(item, patterns, why)
        values = [number for number, word in ((0, "self"), (1, "other")) if word in wanted]
        return _literal(Numbers("another", tuple((number, number) for number in values)), negated=negated)


def _left(item: Item, patterns: Sequence[Pattern], why: str) -> _Form:
    """Return a form that never holds, with the clause that is to blame."""
    texts = [pattern.text for pattern in patterns[:_NAMED]]
    if len(patterns) > _NAMED:
        texts.append(f"{len(patterns) - _NAMED} more")
    return _Form((), (f"{item.field.name} {' or '.join(texts)} in selection {item.selection}: {why}",))


def _is(pattern: Pattern, name: str) -> bool:
    return (name if pattern.cased else name.lower()) == pattern.needle


def _names(patterns: list[Pattern], subject: str) -> _Joined:
    exact, prefixes, suffixes = [], [], []
    undecided = []
    for pattern in patterns:
        needle = pattern.needle
        size = len(needle.encode("utf-8", "surrogateescape"))
        if not pattern.cased and not needle.isascii():
            undecided.append((pattern, "letters outside ASCII are compared in the kernel only if cased"))
        elif pattern.kind == "is":
            exact.append(needle)
        elif pattern.kind == "startswith":
            if size > MAX_PREFIX:
                undecided.append(
                    (pattern, f"beginnings of over {MAX_PREFIX} bytes aren't compared in the kernel")
                )
            else:
                prefixes.append(needle)
        elif pattern.kind == "endswith" and needle.startswith("/"):
            if needle.count("/") > MAX_NAMES:
                undecided.append(
                    (pattern, f"more than {MAX_NAMES} names at the end aren't compared in the kernel")
                )
            elif needle == "/":
                undecided.append((pattern, "only whole names are compared in the kernel"))
            else:
                suffixes.append(needle)
        elif pattern.kind == "endswith":
            undecided.append((pattern, "only whole names are compared in the kernel, not ends of them"))
        else:
            undecided.append((pattern, "nothing is searched for in the kernel"))
    if not (exact or prefixes or suffixes):
        return None, undecided
    cased = all(pattern.cased for pattern in patterns)
    return Names(subject, _unique(exact), _unique(prefixes), _unique(suffixes), cased), undecided


def _networks(patterns: list[Pattern], _: str) -> _Joined:
    networks: list[str] = []
    classes: list[str] = []
    undecided = []
    for pattern in patterns:
        needle = pattern.needle
        try:
            if pattern.kind == "is" and needle == "local":
                undecided.append((pattern, "only Internet addresses are compared in the kernel"))
            elif pattern.kind == "is" and needle in {"loopback", "private", "public"}:
                classes.append(needle)
            elif pattern.kind == "is":
                networks += [str(ip_network(needle))] if unmapped(needle) == needle else []
            elif pattern.kind == "cidr":
                networks.append(str(ip_network(needle)))
            elif pattern.kind == "startswith":
                networks.append(_octets(needle))
            else:
                undecided.append((pattern, "addresses are compared in the kernel by networks alone"))
        except ValueError:
            if pattern.kind == "startswith":
                undecided.append((pattern, "addresses are compared in the kernel by networks alone"))
    test = Networks(_unique(networks)) if networks else Reach(_unique(classes)) if classes else None
    return test, undecided


def _octets(text: str) -> str:
    """
    Return the network of the IPv4 addresses that begin with a text of whole octets.

    Examples
    --------
    >>> _octets("192.168.")
    '192.168.0.0/16'
    """
    *octets, end = text.split(".")
    if end or not 0 < len(octets) < 4 or any(str(int(octet)) != octet for octet in octets):
        raise ValueError(text)
    return str(ip_network(f"{'.'.join([*octets, *['0'] * (4 - len(octets))])}/{8 * len(octets)}"))


def _range(pattern: Pattern) -> tuple[int, int]:
    shape, number = pattern.text.split()
    bound = int(number)
    return {
        "gt": (bound + 1, _MOST),
        "gte": (bound, _MOST),
        "lt": (-_MOST, bound - 1),
        "lte": (-_MOST, bound),
    }[shape]
