# SPDX-License-Identifier: Apache-2.0
"""One event or window in a few words: ``openat /etc/shadow (O_RDONLY)``, ``64 calls in 0.8 s: read*3 write ...``."""

import errno
import shlex
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

from ksentinel.event import Address, Outcome
from ksentinel.rules.fields import flag_names, value_name

_NAMES = 24
"""How many of a window's calls are named; several of one kind in a row are one."""
# What is worth telling of an audit record that is no system call, in this order.
_NAMED = "op acct id unit cmd exe hostname addr terminal res".split()
# Where a value is called by no name of its own: these say more without their label.
_SPEAKING = frozenset({"signal", "request", "command", "cmd"})
_HIDDEN = frozenset({"fd"})
# Numbers of a hook that are told with flags, mode and address, or are the process's own.
_ELSEWHERE = frozenset({"flags", "mode", "port", "euid", "another"})
_OUTCOMES = {
    "denied": "denied",
    "would_deny": "would have been denied",
    "logged": "noted",
    "spared": "let through, because who did it is never denied anything,",
    "released": "let through, because guards are released,",
}

Body = Mapping[str, Any]


def in_words(body: Body) -> str:
    """
    Return what happened. Words that come from outside are quoted where they could be taken for ours; not escaped.

    Parameters
    ----------
    body
        As `flight.to_plain` gives it. What is missing or of an unexpected type is left out.

    Examples
    --------
    >>> in_words(
    ...     {"event": "syscall", "syscall": "openat", "paths": ["/etc/shadow"], "flags": 0, "result": -13}
    ... )
    'openat /etc/shadow (O_RDONLY): EACCES'
    >>> in_words(
    ...     {"event": "exec", "process": {"argv": ["sh", "-c", "id; w"], "exe": "/bin/sh"}, "path": "/bin/sh"}
    ... )
    "exec /bin/sh: sh -c 'id; w'"
    >>> in_words(
    ...     {"event": "window", "syscalls": ["read", "read", "close"], "first_ns": 0, "time_ns": 800_000_000}
    ... )
    '3 calls in 0.8 s: read*2 close'
    """
    kind = body.get("event")
    told = _TOLD.get(kind) if isinstance(kind, str) else None
    return told(body) if told is not None else str(kind)


def _exec(body: Body) -> str:
    process = _mapping(body.get("process"))
    exe, path = _text(process.get("exe")), _text(body.get("path"))
    words = [_text(word) for word in _list(process.get("argv"))]
    # The interpreter of a script, or where a link leads.
    through = f" → {_quoted(exe)}" if path and exe and path != exe else ""
    arguments = f": {' '.join(map(_quoted, words))}" if words else ""
    was = _text(process.get("was"))
    before = f" (was {_quoted(was)})" if was and was != exe else ""
    cut = " (cut)" if body.get("truncated") else ""
    return f"exec {_quoted(path or exe or 'an unknown program')}{through}{arguments}{cut}{before}"


def _fork(body: Body) -> str:
    parent = _mapping(_mapping(body.get("process")).get("parent"))
    if not parent:
        return "fork"
    exe = _text(parent.get("exe"))
    return f"forked by {parent.get('pid')}" + (f" {_quoted(exe)}" if exe else "")


def _exit(_: Body) -> str:
    return "exit"


def _syscall(body: Body) -> str:
    name, abi = _text(body.get("syscall")), _text(body.get("abi"))
    parts = [f"{abi}:{name}" if abi not in {"", "native"} else name]
    paths = [_quoted(_text(path)) for path in _list(body.get("paths"))]
    parts += [" → ".join(paths)] if paths else []
    address = _mapping(body.get("address"))
    if address:
        parts.append(_address(address))
    if body.get("target") is not None:
        parts.append(f"process {body['target']}")
    details = [*_flags(name, body.get("flags")), *_mode(body.get("mode")), *_values(name, body.get("values"))]
    if details:
        parts.append(f"({', '.join(details)})")
    parts += ["(cut)"] if body.get("truncated") else []
    parts += ["(arguments not readable)"] if body.get("unreadable") else []
    return " ".join(parts) + _failure(body.get("result"))


def _hook(body: Body) -> str:
    call, abi = _text(body.get("call")), _text(body.get("abi"))
    parts = [f"{abi}:{call}" if abi not in {"", "native"} else call]
    paths = [_quoted(_text(path)) for path in _list(body.get("paths"))]
    parts += [" → ".join(paths)] if paths else []
    address = _mapping(body.get("address"))
    if address and not address.get("path"):
        parts.append(_address(address))
    numbers = dict(_pairs(body.get("numbers")))
    details = [*_flags(call, numbers.get("flags")), *_mode(numbers.get("mode"))]
    details += _values(call, [[name, value] for name, value in numbers.items() if name not in _ELSEWHERE])
    details += [_text(trait).replace("_", " ") for trait in _list(body.get("traits"))]
    if details:
        parts.append(f"({', '.join(details)})")
    return f"{' '.join(part for part in parts if part)}: {enforced(body)}"


def enforced(body: Body) -> str:
    """
    Return what a guard made of an operation.

    Examples
    --------
    >>> enforced({"outcome": "would_deny", "hook": "file_open", "title": "Shadow read", "mode": "permissive"})
    'would have been denied in the kernel at file_open by "Shadow read" (permissive)'
    """
    outcome = _text(body.get("outcome"))
    told = f"{_OUTCOMES.get(outcome, outcome)} in the kernel at {_text(body.get('hook'))}"
    title = _text(body.get("title")) or _text(body.get("rule"))
    if title:
        told += ' by "' + title.replace("\\", "\\\\").replace('"', '\\"') + '"'
    why = [
        _text(body.get("mode")) if outcome != Outcome.DENIED else "",
        f"sentence: {_text(body.get('sentence'))}" if body.get("sentence") else "",
        "the score was over its threshold" if body.get("anomalous") else "",
        "not all of it could be told" if body.get("untold") else "",
        "the process was ended" if body.get("killed") else "",
        "a proof that the guard works" if body.get("nonce") is not None else "",
    ]
    why = [part for part in why if part]
    return told + (f" ({', '.join(why)})" if why else "")


def _window(body: Body) -> str:
    calls = [_text(call) for call in _list(body.get("syscalls"))]
    first, last = body.get("first_ns"), body.get("time_ns")
    took = ""
    if isinstance(first, int) and isinstance(last, int) and last > first:
        took = f" in {(last - first) / 1e9:.3g} s"
    runs = [(call, sum(1 for _ in same)) for call, same in groupby(calls)]
    named = " ".join(call if count == 1 else f"{call}*{count}" for call, count in runs[:_NAMES])
    more = " …" if len(runs) > _NAMES else ""
    lossy = "; records were lost meanwhile" if body.get("lossy") else ""
    return f"{len(calls)} call{'' if len(calls) == 1 else 's'}{took}: {named}{more}{lossy}"


def _audit(body: Body) -> str:
    kind = _text(body.get("type"))
    for record, fields in _pairs(body.get("records")):
        if record == kind:
            values = {name: _text(value) for name, value in reversed(_pairs(fields))}
            told = [f"{name}={_quoted(values[name])}" for name in _NAMED if values.get(name)]
            return " ".join([kind, *told])
    return kind


_TOLD: dict[str, Callable[[Body], str]] = {
    "exec": _exec,
    "fork": _fork,
    "exit": _exit,
    "syscall": _syscall,
    "window": _window,
    "audit": _audit,
    "hook": _hook,
}


def _address(plain: Body) -> str:
    port = plain.get("port")
    address = Address(
        _text(plain.get("family")),
        _text(plain.get("host")),
        port if isinstance(port, int) else None,
        _text(plain.get("path")),
    )
    return _quoted(str(address)) if address.path else str(address)


def _flags(name: str, flags: Any) -> list[str]:
    if not isinstance(flags, int):
        return []
    # How it was opened comes first.
    known = sorted(flag_names(name, flags), key=lambda flag: not flag.startswith(("O_RD", "O_WR")))
    return ["|".join(known)] if known else [f"flags {flags:#x}"] if flags else []


def _mode(mode: Any) -> list[str]:
    return [f"mode {mode & 0o7777:04o}"] if isinstance(mode, int) else []


def _values(name: str, values: Any) -> list[str]:
    told = []
    for label, value in _pairs(values):
        word = value_name(name, label, value) if isinstance(value, int) else ""
        if word and label in _SPEAKING:
            told.append(word)
        elif label not in _HIDDEN:
            told.append(f"{label} {word or value}")
    return told


def _failure(result: Any) -> str:
    if not isinstance(result, int) or result >= 0:
        return ""
    return f": {errno.errorcode.get(-result, f'error {-result}')}"


def _quoted(text: str) -> str:
    """Return *text* as one word: as a shell would want it, if that can be read by people."""
    if "'" not in text:
        return shlex.quote(text)
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _mapping(value: Any) -> Body:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _pairs(value: Any) -> list[tuple[str, Any]]:
    return [(_text(pair[0]), pair[1]) for pair in _list(value) if len(_list(pair)) == 2]
