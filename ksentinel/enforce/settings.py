# SPDX-License-Identifier: Apache-2.0
"""
Settings: the operator's file about enforcement, read into frozen values that know where they stand.

Whatever it says that can't be meant is refused with its place: a misspelt key, a path that isn't whole, a network with host
bits, two entries of one id. Which rules there are is asked later, by the compiler.
"""

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from ksentinel.bpf.guard_abi import Action
from ksentinel.enforce import Mode, Posture
from ksentinel.enforce.never import DEFAULTS
from ksentinel.errors import Location, RuleError
from ksentinel.printable import printable
from ksentinel.rules.document import List, Map, Node, Scalar, parse, read, suggest
from ksentinel.rules.hooks import seen_path

MOST_ENTRIES = 256
MOST_ITEMS = 256
"""Of one list."""

_LONGEST_PATH = 4095
_LONGEST_ID = 64
_LONGEST_TEXT = 200
_MOST_PORT = 65535
_REMEDY = "see docs/enforcement-policy.md"
_SHOWN = 100

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)


class Does(StrEnum):
    """What an entry may be about."""

    EXEC = "exec"
    READ = "read"
    WRITE = "write"
    CREATE = "create"
    UNLINK = "unlink"
    RENAME = "rename"
    LINK = "link"
    ATTRIBUTES = "attributes"
    CONNECT = "connect"
    BIND = "bind"
    LISTEN = "listen"
    PTRACE = "ptrace"
    MODULE = "module"
    FIRMWARE = "firmware"
    KEXEC = "kexec"
    BPF = "bpf"
    MOUNT = "mount"
    UMOUNT = "umount"
    USERNS = "userns"
    SETUID = "setuid"
    KILL = "kill"
    CAPSET = "capset"
    PRCTL = "prctl"


class FileKind(StrEnum):
    """What a file may be."""

    MEMFD = "memfd"
    DELETED = "deleted"
    WRITABLE_BY_OTHERS = "writable-by-others"
    SETUID = "setuid"
    NOT_ROOTS = "not-roots"


class Family(StrEnum):
    """What kind of address."""

    INET = "inet"
    INET6 = "inet6"
    UNIX = "unix"


_OF_KIND = frozenset({Does.EXEC, Does.READ, Does.WRITE, Does.MODULE, Does.FIRMWARE, Does.KEXEC})
_OF_FILE = _OF_KIND | {
    Does.CREATE, Does.UNLINK, Does.RENAME, Does.LINK, Does.ATTRIBUTES, Does.MOUNT, Does.UMOUNT,
}  # fmt: skip
_OF_ADDRESS = frozenset({Does.CONNECT, Does.BIND})
_OF_NETWORK = _OF_ADDRESS | {Does.LISTEN}


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What an operator has refused, without a rule: all that is given must hold, of each list one.

    Attributes
    ----------
    kinds, under, same
        Of the file: what it is, a directory that it lies in, the file itself. Empty: whatever it is.
    networks, ports, families, sockets
        Of the address: pairs of ports are the first and the last, sockets are paths.
    by, unless_by
        Executables of the process.
    to_root
        Of a change of user: only to root.
    anomalous
        Only if the lineage's score is over its threshold, too.
    """

    id: str
    does: tuple[Does, ...]
    at: Location
    title: str = ""
    action: Action = Action.DENY
    mode: Mode | None = None
    kinds: tuple[FileKind, ...] = ()
    under: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    families: tuple[Family, ...] = ()
    sockets: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    unless_by: tuple[str, ...] = ()
    to_root: bool = False
    anomalous: bool = False

    @property
    def about_file(self) -> bool:
        """Whether it asks for the file."""
        return bool(self.kinds or self.under or self.same)

    @property
    def about_network(self) -> bool:
        """Whether it asks for an Internet address."""
        return bool(self.networks or self.ports)


@dataclass(frozen=True, slots=True)
class Settings:
    """
    The operator's file.

    Attributes
    ----------
    modes
        By a rule's id, name or file.
    cgroups
        By a control group's path: for all below it, too.
    spare, unspare
        Executables that are never denied anything, too, and those of the defaults that may be.
    pinned
        Rules and entries whose guards stay where ksentinel ends.
    at
        Where each key of *modes* and each word of *pinned* and *spare* stands.
    """

    file: str = ""
    posture: Posture = Posture.OPEN
    modes: Mapping[str, Mode] = field(default_factory=lambda: MappingProxyType({}))
    cgroups: Mapping[str, Mode] = field(default_factory=lambda: MappingProxyType({}))
    pinned: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    unspare: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    at: Mapping[tuple[str, str], Location] = field(default_factory=lambda: MappingProxyType({}))


def load(path: Path, *, trusted_uids: Collection[int] | None) -> Settings:
    """
    Read an operator's file.

    Parameters
    ----------
    trusted_uids
        Who may own it, as for rules.

    Raises
    ------
    RuleError
        For the first thing wrong with it.
    """
    return parse_settings(read(path, trusted_uids=trusted_uids), path)


def parse_settings(text: str, file: str | Path) -> Settings:
    """
    Return the settings that *text* is; raises RuleError as `load` does.

    Examples
    --------
    >>> settings = parse_settings("entries: [{id: no-kexec, deny: [kexec]}]", "enforce.yml")
    >>> [(entry.id, entry.does[0].value) for entry in settings.entries]
    [('no-kexec', 'kexec')]
    """
    parts = _parts(parse(text, file), ("posture", "modes", "cgroups", "pinned", "never", "entries"), "it")
    never = _parts(parts["never"], ("add", "remove"), "never") if "never" in parts else {}
    at: dict[tuple[str, str], Location] = {}
    return Settings(
        file=str(file),
        posture=_word(parts["posture"], Posture, "posture") if "posture" in parts else Posture.OPEN,
        modes=_modes(parts.get("modes"), "modes", lambda key: _text(key, "rule", _LONGEST_TEXT), at),
        cgroups=_modes(parts.get("cgroups"), "cgroups", lambda key: _path(key, "cgroup"), at),
        pinned=_listed(parts.get("pinned"), "pinned", lambda one: _text(one, "pinned", _LONGEST_TEXT), at),
        spare=_listed(never.get("add"), "never add", lambda one: _path(one, "never add"), at),
        unspare=_listed(never.get("remove"), "never remove", _unspared, at),
        entries=_entries(parts.get("entries")),
        at=MappingProxyType(at),
    )


def _parts(node: Node, known: Iterable[str], what: str) -> dict[str, Node]:
    """Return what stands under each key, all of which are *known*."""
    names = list(known)
    if not isinstance(node, Map):
        raise RuleError(f"{what} must be a mapping: {', '.join(names)}", node.at, _REMEDY)
    for key, _ in node.items:
        if key.text not in names:
            remedy = suggest(str(key.text), names) or f"it has {', '.join(names)}"
            raise RuleError(f"{what} has no {_shown(key.text)}", key.at, remedy)
    return {str(key.text): value for key, value in node.items}


def _shown(text: str | None) -> str:
    return "that" if text is None else f"'{printable(text, _SHOWN)}'"


def _text(node: Node, name: str, longest: int) -> str:
    text = node.text if isinstance(node, Scalar) else None
    if text is None or not text.strip():
        raise RuleError(f"{name} must be text", node.at, _REMEDY)
    if len(text) > longest:
        raise RuleError(f"{name} is longer than {longest} characters", node.at)
    if not text.isprintable():
        raise RuleError(f"{name} {_shown(text)} has a character that can't be shown", node.at)
    return text.strip()


def _path(node: Node, name: str) -> str:
    text = node.text if isinstance(node, Scalar) else None
    if text is None or not text:
        raise RuleError(f"{name} must be a path", node.at, _REMEDY)
    if not text.isprintable():
        raise RuleError(f"{name} {_shown(text)} has a character that can't be shown", node.at)
    if len(text.encode("utf-8", "surrogateescape")) > _LONGEST_PATH:
        raise RuleError(f"{name} is longer than {_LONGEST_PATH} bytes", node.at)
    if seen_path(text) is None:
        raise RuleError(
            f"{name} {_shown(text)} is no whole path",
            node.at,
            "begin with /, without '.', '..', double slashes and one at the end",
        )
    return text


def _items(node: Node | None, name: str) -> tuple[Node, ...]:
    """Return the items of a list; a single word is a list of one."""
    if node is None:
        return ()
    items = node.items if isinstance(node, List) else (node,)
    if not items:
        raise RuleError(f"{name} is empty", node.at, "leave it out")
    if len(items) > MOST_ITEMS:
        raise RuleError(f"{name} has {len(items)} items, more than {MOST_ITEMS}", node.at)
    return items


def _list(node: Node | None, name: str, read_one: Callable[[Node], T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(read_one(item) for item in _items(node, name)))


def _listed(
    node: Node | None, name: str, read_one: Callable[[Node], str], at: dict[tuple[str, str], Location]
) -> tuple[str, ...]:
    for item in _items(node, name):
        at[name, read_one(item)] = item.at
    return _list(node, name, read_one)


def _word(node: Node, choices: type[Choice], name: str) -> Choice:
    text = node.text if isinstance(node, Scalar) else None
    by_name = {str(choice): choice for choice in choices}
    if text not in by_name:
        told = ", ".join(by_name)
        raise RuleError(
            f"{name} {_shown(text)} is none of {told}", node.at, suggest(text or "", by_name) or _REMEDY
        )
    return by_name[str(text)]


def _modes(
    node: Node | None, name: str, read_key: Callable[[Node], str], at: dict[tuple[str, str], Location]
) -> Mapping[str, Mode]:
    if node is None:
        return MappingProxyType({})
    if not isinstance(node, Map):
        raise RuleError(f"{name} must be a mapping to {', '.join(Mode)}", node.at, _REMEDY)
    if len(node.items) > MOST_ITEMS:
        raise RuleError(f"{name} has {len(node.items)} lines, more than {MOST_ITEMS}", node.at)
    found: dict[str, Mode] = {}
    for key, value in node.items:
        text = read_key(key)
        if text in found:
            raise RuleError(f"{name} has {_shown(text)} twice", key.at)
        at[name, text] = key.at
        found[text] = _word(value, Mode, f"mode of {printable(text, _SHOWN)}")
    return MappingProxyType(found)


def _unspared(node: Node) -> str:
    text = _path(node, "never remove")
    if text not in DEFAULTS:
        raise RuleError(
            f"{_shown(text)} isn't spared by default",
            node.at,
            suggest(text, DEFAULTS) or "docs/enforcement-policy.md lists who is",
        )
    return text


_KEYS = (
    "id", "title", "deny", "file", "network", "by", "unless_by", "to_root", "when", "action", "mode",
)  # fmt: skip


def _entries(node: Node | None) -> tuple[Entry, ...]:
    if node is None:
        return ()
    if not isinstance(node, List):
        raise RuleError("entries must be a list", node.at, _REMEDY)
    if len(node.items) > MOST_ENTRIES:
        raise RuleError(f"{len(node.items)} entries, more than {MOST_ENTRIES}", node.at)
    found: dict[str, Entry] = {}
    for item in node.items:
        entry = _entry(item)
        if entry.id in found:
            raise RuleError(f"id {_shown(entry.id)} is taken by {found[entry.id].at}", entry.at)
        found[entry.id] = entry
    return tuple(found.values())


def _entry(node: Node) -> Entry:
    told = _parts(node, _KEYS, "an entry")
    for name in ("id", "deny"):
        if name not in told:
            raise RuleError(f"an entry without {name}", node.at, _REMEDY)
    identity = _text(told["id"], "id", _LONGEST_ID)
    if not identity.isascii() or not all(c.isalnum() or c in "-_." for c in identity):
        raise RuleError(
            f"id {_shown(identity)} has other characters than letters, digits, '-', '_', '.'", told["id"].at
        )
    does = _list(told["deny"], "deny", lambda one: _word(one, Does, "deny"))
    if not does:
        raise RuleError("deny is empty: an entry about nothing", told["deny"].at, _REMEDY)
    file = _parts(told["file"], ("kind", "under", "is"), "file") if "file" in told else {}
    network = (
        _parts(told["network"], ("to", "port", "family", "unix"), "network") if "network" in told else {}
    )
    if "when" in told and _text(told["when"], "when", _LONGEST_TEXT) != "anomalous":
        raise RuleError("when can only be anomalous", told["when"].at, _REMEDY)
    entry = Entry(
        id=identity,
        does=does,
        at=node.at,
        title=_text(told["title"], "title", _LONGEST_TEXT) if "title" in told else "",
        action=_action(told["action"]) if "action" in told else Action.DENY,
        mode=_word(told["mode"], Mode, "mode") if "mode" in told else None,
        kinds=_list(file.get("kind"), "kind", lambda one: _word(one, FileKind, "kind")),
        under=_list(file.get("under"), "under", lambda one: _path(one, "under")),
        same=_list(file.get("is"), "is", lambda one: _path(one, "is")),
        networks=_list(network.get("to"), "to", _network),
        ports=_list(network.get("port"), "port", _ports),
        families=_list(network.get("family"), "family", lambda one: _word(one, Family, "family")),
        sockets=_list(network.get("unix"), "unix", lambda one: _path(one, "unix")),
        by=_list(told.get("by"), "by", lambda one: _path(one, "by")),
        unless_by=_list(told.get("unless_by"), "unless_by", lambda one: _path(one, "unless_by")),
        to_root="to_root" in told and _true(told["to_root"]),
        anomalous="when" in told,
    )
    _check(entry, told | {f"file {key}": at for key, at in file.items()} | network)
    return entry


def _check(entry: Entry, told: Mapping[str, Node]) -> None:
    """Refuse what can't be asked together."""
    for asked, allowed, key in (
        (entry.kinds, _OF_KIND, "file kind"),
        (entry.under or entry.same, _OF_FILE, "file"),
        (entry.about_network, _OF_ADDRESS, "network"),
        (entry.families, _OF_NETWORK, "family"),
        (entry.sockets, {Does.CONNECT}, "unix"),
        (entry.to_root, {Does.SETUID}, "to_root"),
    ):
        wrong = [one for one in entry.does if one not in allowed]
        if asked and wrong:
            raise RuleError(
                f"{entry.id}: {key} has no meaning with deny {wrong[0]}", told[key].at, "make it two entries"
            )
    for key in ("file", "network"):
        node = told.get(key)
        if isinstance(node, Map) and not node.items:
            raise RuleError(f"{entry.id}: {key} is empty", node.at, "leave it out")
    if entry.about_network and (entry.sockets or Family.UNIX in entry.families):
        raise RuleError(
            f"{entry.id}: no address has a network or a port, and a path",
            told["network"].at,
            "make it two entries",
        )
    if entry.sockets and set(entry.families) - {Family.UNIX}:
        raise RuleError(f"{entry.id}: only family unix has paths", told["unix"].at, "leave family out")
    both = set(entry.by) & set(entry.unless_by)
    if both:
        raise RuleError(f"{entry.id}: by and unless_by both name {min(both)}", entry.at)


def _action(node: Node) -> Action:
    text = node.text if isinstance(node, Scalar) else None
    by_name = {action.name.lower(): action for action in Action}
    if text not in by_name:
        raise RuleError(f"action {_shown(text)} is none of {', '.join(by_name)}", node.at, _REMEDY)
    return by_name[str(text)]


def _true(node: Node) -> bool:
    text = node.text if isinstance(node, Scalar) else None
    if text not in {"true", "false"}:
        raise RuleError("to_root must be true or false", node.at)
    return text == "true"


def _network(node: Node) -> str:
    text = _text(node, "to", _LONGEST_TEXT)
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise RuleError(
            f"to {_shown(text)} is no network: {printable(str(error), _SHOWN)}", node.at, "say 10.0.0.0/8"
        ) from None
    if "%" in text:
        raise RuleError(f"to {_shown(text)} names an interface", node.at, "leave it out")
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise RuleError(f"to {_shown(text)} is IPv4 in IPv6", node.at, "write it as IPv4: it means both")
    return str(network)


def _ports(node: Node) -> tuple[int, int]:
    text = _text(node, "port", _LONGEST_TEXT)
    first, hyphen, last = text.partition("-")
    numbers = []
    for part in (first, last) if hyphen else (first, first):
        if not (part.isascii() and part.isdigit() and len(part) <= len(str(_MOST_PORT))):
            raise RuleError(f"port {_shown(text)} is no port", node.at, "say 22, or 8000-8999")
        numbers.append(int(part))
    if numbers[1] > _MOST_PORT:
        raise RuleError(f"port {_shown(text)} is over {_MOST_PORT}", node.at)
    if numbers[0] > numbers[1]:
        raise RuleError(f"ports {_shown(text)} run backwards", node.at, f"say {numbers[1]}-{numbers[0]}")
    return numbers[0], numbers[1]
