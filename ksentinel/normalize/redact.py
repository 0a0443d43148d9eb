# SPDX-License-Identifier: Apache-2.0
"""
Secrets in arguments: masked before anything is stored.

Two kinds are looked for: what an option or a name says is secret (``--password x``, ``PGPASSWORD=x``, mysql's
``-px``), and what looks like nothing else (``AKIA...``, a JSON web token, a private key).

It masks narrowly, because rules read what it leaves: in shell code a value ends at the next blank or operator, so
that ``token=x; curl ... | sh`` can't hide what follows. Expressions run in google-re2, in linear time whatever the
argument.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from posixpath import basename
from typing import Any

import re2

MASK = "***"

_NAME = (
    r"(?:[A-Za-z0-9_.\-]*[_.\-])?"
    r"(?:pass(?:word|wd|phrase|code)?|(?:pg|ssh|my|db|user|root|admin)(?:password|passwd|pass)|secret|token|"
    r"api[_\-]?key|(?:access|secret)[_\-]?key|(?:private|auth|access)[_\-]?token|credentials?)"
)
_VALUE = r"[^\s\"'`;&|,<>(){}]+"

_OPTION = re2.compile(rf"(?i)--?{_NAME}")
_ASSIGNED = re2.compile(rf"(?is)(--?{_NAME}=)(.+)")
_VARIABLE = re2.compile(rf"(?is)((?:{_NAME}|[A-Za-z0-9_]+_PWD|REDISCLI_AUTH)=)(.+)")
_WHOLE_HEADER = re2.compile(
    rf"(?is)((?:(?:proxy-)?authorization|cookie|{_NAME})\s*:\s*)((?:bearer|basic|token|digest|negotiate)\s+)?(.+)"
)
# Options that speak of a password and have none.
_NO_SECRET = (
    "no",
    "ask",
    "prompt",
    "show",
    "generate",
    "use",
    "without",
    "disable",
    "enable",
    "force",
    "change",
)
# After these of env's options comes NAME=value; after others may come code (sh -c).
_ENV_OPTIONS = frozenset({"-", "--", "-i", "-0", "-E", "-H", "--ignore-environment", "--null"})
_DIRECTORIES = frozenset({"PWD", "OLDPWD", "OLD_PWD"})

# name=value, name: value, "name": "value" anywhere in a text.
_PAIR = re2.compile(
    rf"(?i)(^|[^A-Za-z0-9_.\-])(-{{0,2}}{_NAME}|[A-Za-z0-9_]*pwd|rediscli_auth)"
    rf"""(["']?\s*=\s*|["']\s*:\s*|:\s+)("[^"]*"|'[^']*'|{_VALUE})"""
)
_HEADER = re2.compile(
    rf"(?i)\b((?:proxy-)?authorization\s*[:=]\s*)((?:bearer|basic|token|digest|negotiate)\s+)?({_VALUE})"
)
# pass:x, as openssl has it; not secret:/run/secret, as containers mount it.
_COLON = re2.compile(rf"(?i)(^|[\s\"'])({_NAME}:)([^\s\"'`;&|,<>(){{}}/]{_VALUE[:-1]}*)")
_BEARER = re2.compile(r"(?i)\b(bearer\s+)([A-Za-z0-9._~+/=\-]{8,})")
_URL = re2.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://[^\s/:@\"'`]*:)([^\s/\"'`]+)@")
_SHAPES = re2.compile(
    r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,}|"
    r"gl(?:pat|ptt|rt|dt|cbt|ft)-[A-Za-z0-9_\-]{20,}|xox[abeprs]-[A-Za-z0-9\-]{10,}|[sr]k_live_[A-Za-z0-9]{16,}|"
    r"AIza[0-9A-Za-z_\-]{35}|npm_[A-Za-z0-9]{36}|"
    r"eyJ[A-Za-z0-9_\-]{5,}\.[A-Za-z0-9_\-]{5,}(?:\.[A-Za-z0-9_\-]*)+)"
)
_PRIVATE_KEY = re2.compile(r"(?s)(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)(.*?)(-----END |\z)")


@dataclass(frozen=True, slots=True)
class _Manner:
    """How a program takes a secret: ``-pX``, ``-p X``, or ``-u user:X``."""

    attached: tuple[str, ...] = ()
    separate: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    user_ends: str = ":"


_MYSQL = _Manner(attached=("-p",))
_MONGO = _Manner(separate=("-p",))
_LOGIN = _Manner(separate=("-p",), attached=("-p",))
_LDAP = _Manner(separate=("-w",), attached=("-w",))
_SMB = _Manner(users=("-U", "--user"), user_ends="%")

# From each program's manual page.
PROGRAMS: dict[str, _Manner] = {
    **dict.fromkeys(
        "mysql mysqldump mysqladmin mysqlimport mysqlcheck mysqlshow mysqlbinlog mysqlpump mysqlslap mysqlsh mariadb "
        "mariadb-dump mariadb-admin mariadb-import mariadb-check mariadb-show mariadb-binlog mycli".split(),
        _MYSQL,
    ),
    **dict.fromkeys("mongo mongosh mongodump mongorestore mongoexport mongoimport mongostat".split(), _MONGO),
    **dict.fromkeys("sshpass".split(), _LOGIN),
    **dict.fromkeys("useradd usermod evil-winrm crackmapexec netexec nxc hydra skopeo".split(), _MONGO),
    **dict.fromkeys("ldapsearch ldapadd ldapmodify ldapdelete ldappasswd ldapwhoami".split(), _LDAP),
    **dict.fromkeys("smbclient rpcclient smbget smbmap".split(), _SMB),
    "7z": _Manner(attached=("-p",)),
    "7za": _Manner(attached=("-p",)),
    "curl": _Manner(users=("-u", "--user", "-U", "--proxy-user")),
    "ipmitool": _Manner(separate=("-P",)),
    "openssl": _Manner(separate=("-k", "-K")),
    "redis-cli": _Manner(separate=("-a",)),
    "unzip": _Manner(separate=("-P",)),
    "zip": _Manner(separate=("-P",)),
}
# docker login -p x, but docker run -p 80:80.
_LOGINS = {("docker", "login"), ("podman", "login"), ("buildah", "login"), ("helm", "login"), ("az", "login")}
# Without one of these there is nothing to mask: most arguments are looked at just once.
_HINT = re2.compile(
    r"(?i)pass|pwd|secret|token|key|credential|auth|bearer|cookie|://|AKIA|ASIA|gh[pousr]_|gl[a-z]+-|xox|k_live_|"
    r"AIza|npm_|eyJ|login|" + "|".join(map(re2.escape, sorted(PROGRAMS)))
)
_OPERATORS = frozenset(";|&()\n")
_QUOTES = frozenset("\"'")
# Code in code (sh -c "ssh host 'mysql -px'"): as far as people write it by hand.
_DEPTH = 4


class Redactor:
    """
    Masks passwords and tokens; pure, and doing it twice changes nothing more.

    Examples
    --------
    >>> redactor = Redactor()
    >>> redactor.argv(("mysql", "-uroot", "-phunter2", "--port", "22"))
    ('mysql', '-uroot', '-p***', '--port', '22')
    >>> redactor.text("curl -u bob:hunter2 https://x.example; id")
    'curl -u bob:*** https://x.example; id'
    """

    def argv(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Return the arguments of a program, its secrets as ``***``."""
        if _HINT.search(_encodable("\0".join(argv))) is None:
            return argv
        return tuple(_words([_encodable(word) for word in argv], _DEPTH))

    def text(self, text: str) -> str:
        """Return shell code, a command line or any text, its secrets as ``***``."""
        text = _encodable(text)
        return text if _HINT.search(text) is None else _text(text, _DEPTH)


def _words(words: Sequence[str], depth: int) -> list[str]:
    masked: list[str] = []
    manners: list[_Manner] = []
    previous = ""
    assigning = True  # as long as only env, options and NAME=value have been seen
    for word in words:
        secret = _announces(previous, manners)
        if secret and word and not word.startswith("--") and not _OPTION.fullmatch(word):
            masked.append(MASK)
        else:
            masked.append(_word(word, previous, manners, depth, assigning=assigning))
        assigning = assigning and (not masked[1:] or word.startswith("-") or "=" in word)
        name = basename(word)
        manner = _LOGIN if (basename(previous), name) in _LOGINS else PROGRAMS.get(name)
        # The program need not come first: sudo -u bob mysql -px.
        if manner is not None:
            manners.append(manner)
        previous = word
    return masked


def _announces(option: str, manners: Sequence[_Manner]) -> bool:
    """Tell whether a secret follows *option* as a word of its own."""
    if not option.startswith("-"):
        return False
    if any(option in manner.separate for manner in manners):
        return True
    return bool(_OPTION.fullmatch(option)) and not option.lstrip("-").lower().startswith(_NO_SECRET)


def _word(word: str, previous: str, manners: Sequence[_Manner], depth: int, *, assigning: bool) -> str:
    for manner in manners:
        if previous in manner.users:
            return _user(word, manner.user_ends)
        for option in manner.users:
            glue = f"{option}=" if option.startswith("--") else option
            if word.startswith(glue) and word != glue:
                return glue + _user(word.removeprefix(glue), manner.user_ends)
        for option in manner.attached:
            if word.startswith(option) and word != option:
                return option + MASK
    if previous in ("-H", "--header"):
        header = _WHOLE_HEADER.fullmatch(word)
        if header is not None:
            return f"{header[1]}{header[2] or ''}{MASK}"
    assigned = _ASSIGNED.fullmatch(word)
    code = previous.startswith("-") and previous not in _ENV_OPTIONS
    if (
        assigned is None
        and assigning
        and not code
        and not word.startswith(tuple(f"{name}=" for name in _DIRECTORIES))
    ):
        assigned = _VARIABLE.fullmatch(word)
    if assigned is not None:
        return f"{assigned[1]}{MASK}"
    return _text(word, depth)


def _user(word: str, end: str) -> str:
    user, found, secret = word.partition(end)
    return f"{user}{end}{MASK}" if found and secret else word


def _text(text: str, depth: int) -> str:
    if depth and any(map(str.isspace, text)):
        text = _shell(text, depth - 1)
    if _HINT.search(text) is None:
        return text
    text = _PRIVATE_KEY.sub(rf"\1{MASK}\3", text)
    text = _URL.sub(rf"\1{MASK}@", text)
    text = _HEADER.sub(lambda m: f"{m[1]}{m[2] or ''}{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    text = _PAIR.sub(_pair, text)
    text = _COLON.sub(rf"\1\2{MASK}", text)
    return str(_SHAPES.sub(MASK, text))


def _pair(found: Any) -> str:
    if found[2] in _DIRECTORIES:
        return str(found[0])
    quote = found[4][0] if found[4][0] in _QUOTES else ""
    return f"{found[1]}{found[2]}{found[3]}{quote}{MASK}{quote}"


def _shell(code: str, depth: int) -> str:
    """Mask each command of *code* as if it had been run."""
    masked: list[str] = []
    command: list[tuple[int, int]] = []
    done = 0
    for start, end in (*_spans(code), (len(code), len(code))):
        if start < end and code[start] not in _OPERATORS:
            command.append((start, end))
            continue
        quotes = [_quote(code[begin:stop]) for begin, stop in command]
        cores = [code[b + len(q) : e - len(q)] for (b, e), q in zip(command, quotes, strict=True)]
        for (begin, stop), quote, word in zip(command, quotes, _words(cores, depth), strict=True):
            masked += code[done:begin], quote, word, quote
            done = stop
        command = []
    masked.append(code[done:])
    return "".join(masked)


def _quote(word: str) -> str:
    return word[0] if len(word) > 1 and word[0] in _QUOTES and word[0] == word[-1] else ""


def _spans(code: str) -> Iterator[tuple[int, int]]:
    """Yield where words and operators stand: a shell's, as far as masking needs it."""
    start, quote = -1, ""
    for at, char in enumerate(code):
        if quote:
            quote = "" if char == quote else quote
            continue
        if char in _OPERATORS or char.isspace():
            if start >= 0:
                yield start, at
            start = -1
            if char in _OPERATORS:
                yield at, at + 1
            continue
        if char in _QUOTES:
            quote = char
        start = at if start < 0 else start
    if start >= 0:
        yield start, len(code)


def _encodable(text: str) -> str:
    # re2 works on UTF-8, which has no lone surrogates.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
