# SPDX-License-Identifier: Apache-2.0
"""
Patterns: what a rule asks of one field, ``endswith '/cat'``, as closures over an event's values.

Text is compared without regard to case unless ``cased`` is asked for, as Sigma says. Wildcards that are no plain prefix,
suffix or part become regular expressions, and those run in RE2: linear in the value, whatever rule and attacker write.
"""

import operator
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import product
from typing import Literal

from ksentinel.errors import Location, RuleError
from ksentinel.rules import Clause
from ksentinel.rules.document import Scalar, suggest
from ksentinel.rules.fields import Field, View, unmapped

Test = Callable[[View], bool]
Span = tuple[int, int]

MAX_REGEX = 8192
_SHOWN = 5
_DASHES = "-/\N{EN DASH}\N{EM DASH}\N{HORIZONTAL BAR}"
# A dash that begins a parameter; of "-a-b" the first. At most three a value, as pySigma: each multiplies it by five.
_DASH = re.compile(r"\B[-/]\b")
_MAX_DASHES = 3
# Of fewer bytes so little is left at two of the three offsets that everything has it.
_MIN_ENCODED = 3

Kind = Literal["is", "contains", "startswith", "endswith", "like", "re", "cidr", "compare", "null", "exists"]

SHAPES = ("contains", "startswith", "endswith", "re", "cidr", "exists", "gt", "gte", "lt", "lte")
"""Modifiers that say what is compared; one at most."""
FLAGS = {"i": "i", "m": "m", "s": "s", "ignorecase": "i", "multiline": "m", "dotall": "s"}
"""Flags of regular expressions, by either of their names; only after ``re``."""
MODIFIERS = (*SHAPES, "all", "cased", "windash", "base64offset", "neq", *FLAGS)
"""All modifiers there are."""
UNSUPPORTED = {
    "base64": "the whole value would have to be encoded alone: write base64offset|contains",
    "wide": "command lines on Linux are not UTF-16",
    "utf16": "command lines on Linux are not UTF-16",
    "utf16le": "command lines on Linux are not UTF-16",
    "utf16be": "command lines on Linux are not UTF-16",
    "expand": "there are no placeholders to fill in: write the values out",
    "fieldref": "a field can't be compared with another",
    **dict.fromkeys(
        ("minute", "hour", "day", "week", "month", "year"),
        "rules don't ask for the time, so that replays agree",
    ),
}
"""Why Sigma's other modifiers are not to be had."""

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


@dataclass(frozen=True, slots=True)
class Modifiers:
    """What stands behind the bars of a field's name."""

    shape: str = ""
    every: bool = False
    cased: bool = False
    windash: bool = False
    encoded: bool = False
    negated: bool = False
    flags: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, names: list[str], at: Location) -> "Modifiers":
        """
        Read ``["contains", "all"]``.

        Raises
        ------
        RuleError
            If there is no such modifier here, or they don't go together.
        """
        for name in names:
            if name not in MODIFIERS:
                remedy = (
                    UNSUPPORTED.get(name) or suggest(name, MODIFIERS) or f"there are: {', '.join(MODIFIERS)}"
                )
                raise RuleError(f"modifier {name!r} is not supported", at, remedy)
        if len(set(names)) < len(names):
            raise RuleError("a modifier stands twice", at)
        shapes = [name for name in names if name in SHAPES]
        flags = frozenset(FLAGS[name] for name in names if name in FLAGS)
        if len(shapes) > 1:
            raise RuleError(f"modifiers {' and '.join(shapes)} don't go together", at)
        shape = shapes[0] if shapes else ""
        if flags and shape != "re":
            flag = next(name for name in names if name in FLAGS)
            raise RuleError(f"modifier {flag!r} belongs behind 're'", at)
        textual = shape in {"", "contains", "startswith", "endswith"}
        for name in ("cased", "windash", "base64offset"):
            if name in names and not textual:
                raise RuleError(f"modifiers {shape} and {name} don't go together", at)
        if shape == "exists" and "all" in names:
            raise RuleError("modifiers exists and all don't go together", at)
        if shape in {"re", "cidr", "exists"} and names[0] != shape:
            raise RuleError(
                f"modifier {shape!r} stands behind {names[0]!r}", at, f"write it first: {shape}|..."
            )
        encoded = "base64offset" in names
        if encoded and (shape != "contains" or names.index("base64offset") > names.index("contains")):
            raise RuleError("base64offset gives parts of a value", at, "write base64offset|contains")
        return cls(
            shape, "all" in names, "cased" in names, "windash" in names, encoded, "neq" in names, flags
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """
    One value of a rule.

    Attributes
    ----------
    kind
        What it is after wildcards were looked at: ``endswith`` for both ``|endswith: x`` and ``*x``.
    needle
        What is looked for: lower case unless *cased*; for ``like`` and ``re`` RE2's expression, for ``cidr`` the network,
        for ``compare`` modifier and number. Together with *kind* it is all that *find* is made of.
    text
        As a person reads it: ``endswith '/cat'``.
    literal
        In lower case, a part that every value has that it matches; empty if there is none. An index asks for it.
    find
        Where it matches in a value: a span, an empty span if that has no meaning, None if it doesn't. Expects the
        value lowered unless *cased*.
    """

    kind: Kind
    needle: str
    text: str
    cased: bool
    literal: str
    find: Callable[[str], Span | None]

    @classmethod
    def make(cls, kind: Kind, needle: str, text: str, *, cased: bool = True, literal: str = "") -> "Pattern":
        """
        Return the pattern.

        Raises
        ------
        ValueError
            If RE2 refuses its expression, or it is no network or comparison.
        """
        return cls(kind, needle, text, cased, literal, _finder(kind, needle))


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """
    A field and the patterns of which one (or, with ``|all``, every one) must match one of its values.

    Attributes
    ----------
    selection
        Name of the selection it stands in.
    """

    selection: str
    field: Field
    patterns: tuple[Pattern, ...]
    every: bool = False

    def test(self) -> Test:
        """Return a function that tells whether it holds."""
        if self.every:
            tests = [_test(self.field, (pattern,)) for pattern in self.patterns]
            return lambda view: all(test(view) for test in tests)
        return _test(self.field, self.patterns)

    def literals(self) -> frozenset[str] | None:
        """Return the values one of which the field must have; None if others may do."""
        if any(pattern.kind != "is" for pattern in self.patterns):
            return None
        return frozenset(pattern.needle.lower() for pattern in self.patterns)

    def clauses(self, view: View, *, negated: bool) -> list[Clause] | None:
        """Return the clauses that make it hold (*negated*: fail); None if it doesn't."""
        if not self.every and not negated:
            # The first that hits is enough, and there may be thousands.
            for pattern in self.patterns:
                hit = _hit(self.field, pattern, view)
                if hit is not None:
                    value, span = hit
                    return [Clause(self.selection, self.field.name, pattern.text, value, span)]
            return None
        found = [(pattern, _hit(self.field, pattern, view)) for pattern in self.patterns]
        hits = [(pattern, hit) for pattern, hit in found if hit is not None]
        holds = len(hits) == len(found) if self.every else bool(hits)
        if holds is negated:
            return None
        if holds:
            return [
                Clause(self.selection, self.field.name, pattern.text, value, span)
                for pattern, (value, span) in hits
            ]
        missed = [pattern.text for pattern, hit in found if hit is None]
        values = view.values(self.field)
        shown = None if not values else values[0] if len(values) == 1 else ", ".join(values)[:1000]
        return [Clause(self.selection, self.field.name, _several(missed), shown, None, negated=True)]


def pattern(value: Scalar, modifiers: Modifiers, field: Field) -> tuple[Pattern, ...]:
    """
    Return the patterns of one value (several with ``windash``).

    Raises
    ------
    RuleError
        If the value makes no sense with these modifiers, or can never be this field's.
    """
    shape, text = modifiers.shape, value.text
    if text is None:
        if shape or modifiers.windash or modifiers.every:
            raise RuleError(f"null can't go with modifier {shape or 'all'!r}", value.at)
        return (Pattern.make("null", "", "is null"),)
    if not text and not shape:
        return (Pattern.make("null", "", "is ''"),)
    if not text:
        raise RuleError(f"an empty value: {shape} would match anything", value.at)
    match shape:
        case "re":
            return (_regex(text, modifiers.flags, value.at),)
        case "cidr":
            return (_cidr(text, value.at),)
        case "exists":
            if text.lower() not in {"true", "false"}:
                raise RuleError(f"exists takes true or false, not {text!r}", value.at)
            kind: Kind = "exists" if text.lower() == "true" else "null"
            return (Pattern.make(kind, "", f"exists {text.lower()}"),)
        case "gt" | "gte" | "lt" | "lte":
            return (_comparison(shape, text, value.at),)
    label = f"{'cased ' if modifiers.cased else ''}{shape}"
    parts = wildcards(text)
    variants = _dashed(parts, value.at) if modifiers.windash else [parts]
    if modifiers.encoded:
        return tuple(
            _part(piece, f"base64offset {label} {text!r}", cased=modifiers.cased)
            for each in variants
            for piece in _encoded(each, value.at)
        )
    return tuple(
        _textual(
            each, text if each is parts else _written(each), shape, field, value.at, cased=modifiers.cased
        )
        for each in variants
    )


# A wildcard, or a piece of plain text.
_STAR, _ANY = object(), object()
_Part = str | object


def wildcards(text: str) -> list[_Part]:
    r"""
    Split a Sigma value at its wildcards; a backslash takes the meaning from ``*``, ``?`` and itself.

    Examples
    --------
    >>> wildcards(r"\*a\b\\")
    ['*a\\b\\']
    """
    parts: list[_Part] = []
    plain = ""
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "\\" and text[position : position + 1] in {"*", "?", "\\"}:
            plain += text[position]
            position += 1
        elif char in "*?":
            if plain:
                parts.append(plain)
                plain = ""
            if char == "?" or not parts or parts[-1] is not _STAR:
                parts.append(_STAR if char == "*" else _ANY)
        else:
            plain += char
    if plain:
        parts.append(plain)
    return parts


def _dashed(parts: list[_Part], at: Location) -> list[list[_Part]]:
    """Return the value with each dash that begins a parameter in all of its shapes, as written first."""
    dashes = [(n, found.start()) for n, part in enumerate(parts) for found in _DASH.finditer(_plain(part))]
    if len(dashes) > _MAX_DASHES:
        raise RuleError(
            f"windash with more than {_MAX_DASHES} parameters in one value", at, "write several values"
        )
    variants: list[list[_Part]] = []
    for chosen in product(_DASHES, repeat=len(dashes)):
        made = list(parts)
        for (n, offset), dash in zip(dashes, chosen, strict=True):
            text = _plain(made[n])
            made[n] = text[:offset] + dash + text[offset + 1 :]
        variants.append(parts if made == parts else made)
    variants.sort(key=lambda made: made is not parts)
    return variants


def _plain(part: _Part) -> str:
    return part if isinstance(part, str) else ""


def _written(parts: list[_Part]) -> str:
    """Return a value as a rule would write it."""
    return "".join(
        "*" if part is _STAR else "?" if part is _ANY else re.sub(r"[*?]", r"\\\g<0>", str(part))
        for part in parts
    )


def _encoded(parts: list[_Part], at: Location) -> tuple[str, str, str]:
    """Return what a text is in Base64 wherever in a longer one it stands: the parts that don't depend on its neighbours."""
    match parts:
        case [str(text)] if len(raw := text.encode()) >= _MIN_ENCODED:
            # Of the first and the last character some bits are a neighbour's.
            return (
                b64encode(raw)[: (None, -3, -2)[len(raw) % 3]].decode(),
                b64encode(b" " + raw)[2 : (None, -3, -2)[(len(raw) + 1) % 3]].decode(),
                b64encode(b"  " + raw)[3 : (None, -3, -2)[(len(raw) + 2) % 3]].decode(),
            )
        case [str()]:
            raise RuleError(
                f"base64offset takes {_MIN_ENCODED} bytes or more: of fewer nearly every text has some", at
            )
        case _:
            raise RuleError(
                "base64offset takes no wildcards", at, r"write \* or \? for the characters themselves"
            )


def _part(needle: str, shown: str, *, cased: bool) -> Pattern:
    needle = needle if cased else needle.lower()
    return Pattern.make("contains", needle, shown, cased=cased, literal=_literal_of(needle, cased=cased))


def _textual(
    split: list[_Part], text: str, shape: str, field: Field, at: Location, *, cased: bool
) -> Pattern:
    parts: list[_Part] = [part if cased or not isinstance(part, str) else part.lower() for part in split]
    if shape in {"contains", "endswith"} and parts[0] is not _STAR:
        parts.insert(0, _STAR)
    if shape in {"contains", "startswith"} and parts[-1] is not _STAR:
        parts.append(_STAR)
    label = f"{'cased ' if cased else ''}{shape or ('like' if len(parts) > 1 or parts[0] in {_STAR, _ANY} else 'is')}"
    shown = f"{label} {text!r}"
    kind: Kind
    match parts:
        case [str(needle)]:
            _possible(needle, field, at)
            kind = "is"
        case [str(needle), star] if star is _STAR:
            kind = "startswith"
        case [star, str(needle)] if star is _STAR:
            kind = "endswith"
        case [star, str(needle), end] if star is _STAR and end is _STAR:
            kind = "contains"
        case [star] if star is _STAR:
            return Pattern.make("exists", "", shown, cased=cased)
        case _:
            # Bytes that are no text are question marks to a regular expression, but not to an index.
            plain = [piece for part in parts for piece in _plain(part).split("?")]
            literal = _literal_of(max(plain, key=len), cased=cased)
            return _expression("like", _glob(parts), shown, at, cased=cased, literal=literal)
    return Pattern.make(kind, needle, shown, cased=cased, literal=_literal_of(needle, cased=cased))


def _literal_of(needle: str, *, cased: bool) -> str:
    # Lower case of letters beyond ASCII depends on their neighbours: 'Σ' ends a word as 'ς'.
    return needle if not cased else needle.lower() if needle.isascii() else ""


def _possible(needle: str, field: Field, at: Location) -> None:
    # A value that the field never has is a rule that never fires: more likely a slip of the pen.
    if field.choices is not None and needle.lower() not in field.choices:
        remedy = suggest(needle, field.choices)
        if not remedy and len(field.choices) <= 12:
            remedy = f"there are: {', '.join(sorted(field.choices))}"
        raise RuleError(f"{field.name} is never {needle!r}", at, remedy)
    if field.number and not needle.lstrip("-").isdigit():
        raise RuleError(f"{field.name} is a number, never {needle!r}", at)


def _glob(parts: list[_Part]) -> str:
    """Return the regular expression: unanchored on a side that a star opens."""
    inner = parts[1:] if parts[0] is _STAR else parts
    inner = inner[:-1] if inner and inner[-1] is _STAR else inner
    body = "".join(".*" if part is _STAR else "." if part is _ANY else _escape(str(part)) for part in inner)
    start = "" if parts[0] is _STAR else r"\A"
    end = "" if parts[-1] is _STAR else r"\z"
    return f"(?s){start}{body}{end}"


def _escape(text: str) -> str:
    return "".join(c if c.isalnum() or c == "_" or not c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _regex(text: str, flags: frozenset[str], at: Location) -> Pattern:
    # Always with s: a line break in an argument must not hide what stands behind it.
    if len(text) > MAX_REGEX:
        raise RuleError(f"a regular expression of more than {MAX_REGEX} characters", at)
    letters = "".join(sorted({"s", *flags}))
    folds = "i" in flags or "(?" in text
    return _expression(
        "re", f"(?{letters}){text}", f"re {text!r}", at, literal=required(text, folds=folds).lower()
    )


_CLASS = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_FLAG_GROUP = re.compile(r"\(\?[A-Za-z-]*\)")
_REPEAT = re.compile(r"\{\d+(?:,\d*)?\}|[*+?]")


def required(expression: str, *, folds: bool) -> str:
    r"""
    Return the longest text that certainly stands in whatever a regular expression matches; empty if none is certain.

    What it doesn't understand it gives up on. Letters that have no one lower case are left out, and question marks, which
    to a regular expression also are bytes that are no text.

    Parameters
    ----------
    folds
        Whether it may compare without regard to case.

    Examples
    --------
    >>> required(r"^(curl|wget) +http://[^/]+/x\.sh", folds=False)
    'http://'
    """
    flags = _FLAG_GROUP.match(expression)
    position = 0 if flags is None else flags.end()
    runs, run, depth = [""], "", 0

    def end() -> None:
        nonlocal run
        runs.append(run)
        run = ""

    while position < len(expression):
        char = expression[position]
        position += 1
        text = ""
        if char == "|" and not depth:
            return ""
        if char == "[":
            found = _CLASS.match(expression, position - 1)
            if found is None:
                return ""
            position = found.end()
        elif char == "(":
            if _FLAG_GROUP.match(expression, position - 1):
                return ""  # what follows may repeat what stands before it
            depth += 1
        elif char == ")":
            depth -= 1
        elif char == "\\":
            escaped = expression[position : position + 1]
            position += 1
            if escaped in "QEpPxC" or escaped.isdigit():
                return ""
            text = escaped if escaped in _PLAIN_ESCAPES else ""
        elif char not in "^$.":
            text = char
        repeat = _REPEAT.match(expression, position)
        if repeat is not None:
            position = repeat.end()
            if expression[position : position + 1] == "?":
                position += 1
        if depth or char == ")" or not _certain(text, folds=folds):
            end()
        elif repeat is None:
            run += text
        elif repeat.group() == "+":
            run += text
            end()
        else:
            end()
    end()
    return max(runs, key=len)


_PLAIN_ESCAPES = frozenset("./\\-+*()[]{}|^$ \"'=<>&;:,@#%!~`")


def _certain(char: str, *, folds: bool) -> bool:
    # Without regard to case, s is also U+017F and k U+212A.
    return len(char) == 1 and char.isascii() and char != "?" and not (folds and char in "sSkK")


def _expression(
    kind: Kind, expression: str, shown: str, at: Location, *, cased: bool = True, literal: str = ""
) -> Pattern:
    if len(expression) > MAX_REGEX:
        raise RuleError(f"a regular expression of more than {MAX_REGEX} characters", at)
    try:
        return Pattern.make(kind, expression, shown, cased=cased, literal=literal)
    except ValueError as error:
        raise RuleError(f"RE2 refuses this regular expression: {error}", at) from error


def _finder(kind: Kind, needle: str) -> Callable[[str], Span | None]:
    """Return what finds a pattern in a value."""
    match kind:
        case "is":
            return lambda value: (0, len(value)) if value == needle else None
        case "startswith":
            return lambda value: (0, len(needle)) if value.startswith(needle) else None
        case "endswith":
            return lambda value: (len(value) - len(needle), len(value)) if value.endswith(needle) else None
        case "contains":
            return _containing(needle)
        case "like" | "re":
            return _searcher(needle)
        case "cidr":
            network = ip_network(needle)
            return lambda value: (0, len(value)) if _within(value, network) else None
        case "compare":
            return _comparing(*needle.split(" "))
        case "null":
            return lambda _: None
        case "exists":
            return lambda _: (0, 0)


def _containing(needle: str) -> Callable[[str], Span | None]:
    def find(value: str) -> Span | None:
        start = value.find(needle)
        return None if start < 0 else (start, start + len(needle))

    return find


def _searcher(expression: str) -> Callable[[str], Span | None]:
    # Not before a rule needs it.
    import re2

    options = re2.Options()
    options.log_errors = False
    # Only where it matched is asked for: with groups RE2 would leave its automaton for a search that takes as long as the
    # expression is, for every character.
    options.never_capture = True
    try:
        compiled = re2.compile(expression, options)
    except re2.error as error:
        why = error.args[0].decode("utf-8", "replace") if error.args else "unknown"
        raise ValueError(why) from error

    def find(value: str) -> Span | None:
        # Bytes that were no text (surrogates) are one character to RE2 as well, so that spans stay right.
        clean = value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
        found = compiled.search(clean)
        return None if found is None else found.span()

    return find


def _cidr(text: str, at: Location) -> Pattern:
    try:
        return Pattern.make("cidr", text, f"cidr {text!r}")
    except ValueError as error:
        raise RuleError(f"not a network: {error}", at) from error


@lru_cache(maxsize=4096)
def _within(value: str, network: IPv4Network | IPv6Network) -> bool:
    try:
        return ip_address(unmapped(value)) in network
    except ValueError:
        return False


def _comparison(shape: str, text: str, at: Location) -> Pattern:
    bound = _number(text)
    if bound is None:
        raise RuleError(f"{shape} takes a whole number, not {text[:50]!r}", at)
    return Pattern.make("compare", f"{shape} {bound}", f"{shape} {bound}")


def _comparing(shape: str, text: str) -> Callable[[str], Span | None]:
    compare, bound = _COMPARE[shape], int(text)

    def find(value: str) -> Span | None:
        number = _number(value)
        return None if number is None or not compare(number, bound) else (0, len(value))

    return find


def _number(value: str) -> int | None:
    digits = value.removeprefix("-")
    # int() takes quadratic time for long digit strings (and refuses those over 4300).
    return int(value) if len(digits) < 30 and digits.isascii() and digits.isdigit() else None


def _hit(field: Field, wanted: Pattern, view: View) -> tuple[str | None, Span | None] | None:
    """Return the value that a pattern matched and where; None if there is none."""
    values = view.values(field)
    if wanted.kind == "null":
        return None if values else (None, None)
    compared = values if wanted.cased else view.lowered(field)
    for value, text in zip(values, compared, strict=True):
        span = wanted.find(text)
        if span is not None:
            # Lowering may change the length of a text (U+0130): then no span is right.
            known = span != (0, 0) and len(value) == len(text)
            return value, span if known else None
    return None


def _several(texts: list[str]) -> str:
    if len(texts) <= _SHOWN:
        return " or ".join(texts)
    return f"{' or '.join(texts[:_SHOWN])} or {len(texts) - _SHOWN} more"


def _test(field: Field, patterns: tuple[Pattern, ...]) -> Test:
    """Return one function for patterns of which any may match: those of a kind are tried together."""
    tests: list[Test] = []
    null = any(p.kind == "null" for p in patterns)
    exists = any(p.kind == "exists" for p in patterns)
    if null and exists:
        return lambda _: True
    if null:
        tests.append(lambda view: not view.values(field))
    if exists:
        tests.append(lambda view: bool(view.values(field)))
    for cased in (False, True):
        group = [p for p in patterns if p.cased is cased]
        fetch = View.values if cased else View.lowered
        literal = frozenset(p.needle for p in group if p.kind == "is")
        prefixes = tuple(p.needle for p in group if p.kind == "startswith")
        suffixes = tuple(p.needle for p in group if p.kind == "endswith")
        inside = tuple(p.needle for p in group if p.kind == "contains")
        finders = tuple(p.find for p in group if p.kind in {"like", "re", "cidr", "compare"})
        if literal:
            tests.append(_literal(field, fetch, literal))
        if prefixes:
            tests.append(_prefix(field, fetch, prefixes))
        if suffixes:
            tests.append(_suffix(field, fetch, suffixes))
        if inside:
            tests.append(_inside(field, fetch, inside))
        if finders:
            tests.append(_found(field, fetch, finders))
    if len(tests) == 1:
        return tests[0]
    return lambda view: any(test(view) for test in tests)


_Fetch = Callable[[View, Field], tuple[str, ...]]


def _literal(field: Field, fetch: _Fetch, needles: frozenset[str]) -> Test:
    return lambda view: not needles.isdisjoint(fetch(view, field))


def _prefix(field: Field, fetch: _Fetch, needles: tuple[str, ...]) -> Test:
    def test(view: View) -> bool:
        for value in fetch(view, field):  # noqa: SIM110 - a generator takes twice as long
            if value.startswith(needles):
                return True
        return False

    return test


def _suffix(field: Field, fetch: _Fetch, needles: tuple[str, ...]) -> Test:
    def test(view: View) -> bool:
        for value in fetch(view, field):  # noqa: SIM110 - a generator takes twice as long
            if value.endswith(needles):
                return True
        return False

    return test


def _inside(field: Field, fetch: _Fetch, needles: tuple[str, ...]) -> Test:
    def test(view: View) -> bool:
        for value in fetch(view, field):
            for needle in needles:
                if needle in value:
                    return True
        return False

    return test


def _found(field: Field, fetch: _Fetch, finders: tuple[Callable[[str], Span | None], ...]) -> Test:
    def test(view: View) -> bool:
        for value in fetch(view, field):
            for find in finders:
                if find(value) is not None:
                    return True
        return False

    return test
