# SPDX-License-Identifier: Apache-2.0
"""
Ways, as entries need them: what an operator's entry asks at which hook, as conjunctions of tests.

A rule's guards come with theirs. An entry's lists say *one of these*, so one entry has a way for each choice that a single test
can't make.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from ksentinel.bpf.guard_abi import Hook, Trait
from ksentinel.enforce.settings import Does, Entry, Family, FileKind
from ksentinel.rules.guard import Literal, Names, Networks, Numbers

NO_TRAIT = Trait(0)

HOOKS: dict[Does, tuple[tuple[Hook, Trait, Trait], ...]] = {
    Does.EXEC: (
        (Hook.BPRM_CHECK_SECURITY, NO_TRAIT, NO_TRAIT),
        (Hook.MMAP_FILE, Trait.MAPPED, NO_TRAIT),
    ),
    Does.READ: ((Hook.FILE_OPEN, Trait.READ, Trait.FORCED),),
    Does.WRITE: ((Hook.FILE_OPEN, Trait.WRITE, NO_TRAIT), (Hook.PATH_TRUNCATE, NO_TRAIT, NO_TRAIT)),
    Does.CREATE: tuple(
        (hook, NO_TRAIT, NO_TRAIT)
        for hook in (Hook.PATH_MKNOD, Hook.PATH_MKDIR, Hook.PATH_SYMLINK, Hook.PATH_LINK)
    ),
    Does.UNLINK: ((Hook.PATH_UNLINK, NO_TRAIT, NO_TRAIT), (Hook.PATH_RMDIR, NO_TRAIT, NO_TRAIT)),
    Does.RENAME: ((Hook.PATH_RENAME, NO_TRAIT, NO_TRAIT),),
    Does.LINK: ((Hook.PATH_LINK, NO_TRAIT, NO_TRAIT),),
    Does.ATTRIBUTES: ((Hook.PATH_CHMOD, NO_TRAIT, NO_TRAIT), (Hook.PATH_CHOWN, NO_TRAIT, NO_TRAIT)),
    Does.CONNECT: tuple(
        (hook, NO_TRAIT, NO_TRAIT)
        for hook in (
            Hook.SOCKET_CONNECT,
            Hook.SOCKET_SENDMSG,
            Hook.UNIX_STREAM_CONNECT,
            Hook.UNIX_MAY_SEND,
        )
    ),
    Does.BIND: ((Hook.SOCKET_BIND, NO_TRAIT, NO_TRAIT),),
    Does.LISTEN: ((Hook.SOCKET_LISTEN, NO_TRAIT, NO_TRAIT),),
    Does.PTRACE: ((Hook.PTRACE_ACCESS_CHECK, Trait.ATTACH, NO_TRAIT),),
    Does.MODULE: (
        (Hook.KERNEL_LOAD_DATA, Trait.MODULE, NO_TRAIT),
        (Hook.KERNEL_READ_FILE, Trait.MODULE, NO_TRAIT),
    ),
    Does.FIRMWARE: (
        (Hook.KERNEL_LOAD_DATA, Trait.FIRMWARE, NO_TRAIT),
        (Hook.KERNEL_READ_FILE, Trait.FIRMWARE, NO_TRAIT),
    ),
    Does.KEXEC: (
        (Hook.KERNEL_LOAD_DATA, Trait.KEXEC, NO_TRAIT),
        (Hook.KERNEL_READ_FILE, Trait.KEXEC, NO_TRAIT),
    ),
    Does.BPF: ((Hook.BPF, NO_TRAIT, NO_TRAIT),),
    Does.MOUNT: ((Hook.SB_MOUNT, NO_TRAIT, NO_TRAIT), (Hook.MOVE_MOUNT, NO_TRAIT, NO_TRAIT)),
    Does.UMOUNT: ((Hook.SB_UMOUNT, NO_TRAIT, NO_TRAIT),),
    Does.USERNS: ((Hook.USERNS_CREATE, NO_TRAIT, NO_TRAIT),),
    Does.SETUID: ((Hook.TASK_FIX_SETUID, NO_TRAIT, NO_TRAIT),),
    Does.KILL: ((Hook.TASK_KILL, NO_TRAIT, NO_TRAIT),),
    Does.CAPSET: ((Hook.CAPSET, NO_TRAIT, NO_TRAIT),),
    Does.PRCTL: ((Hook.TASK_PRCTL, NO_TRAIT, NO_TRAIT),),
}
"""Where each operation is asked about: the hook, traits that it must have, and traits that it must not have."""

KINDS = {
    FileKind.MEMFD: Trait.MEMFD,
    FileKind.DELETED: Trait.DELETED,
    FileKind.WRITABLE_BY_OTHERS: Trait.OTHERS_WRITE,
    FileKind.SETUID: Trait.SETUID,
    FileKind.NOT_ROOTS: Trait.NOT_ROOTS,
}
FAMILIES = {Family.INET: Trait.IPV4, Family.INET6: Trait.IPV6, Family.UNIX: Trait.UNIX}

# Where an operation has no file that could be asked for, no Internet address, or no address but a socket's path.
_FILELESS = {Hook.KERNEL_LOAD_DATA}
_UNIX_ALONE = {Hook.UNIX_STREAM_CONNECT, Hook.UNIX_MAY_SEND}
_BY_ANY_FAMILY = {Hook.SOCKET_CONNECT, Hook.SOCKET_SENDMSG}


@dataclass(frozen=True, slots=True)
class Draft:
    """
    One way of an entry; its paths are still paths.

    Attributes
    ----------
    under, same, by, unless_by
        Paths: of a directory that one of the operation's files is below, of one of them itself, of the executable.
    """

    hook: Hook
    need: Trait
    forbid: Trait
    literals: tuple[Literal, ...] = ()
    under: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    unless_by: tuple[str, ...] = ()


def stands(entry: Entry, hook: Hook) -> bool:
    """Tell whether what an entry asks for can be seen at one of its operations' hooks."""
    if hook is Hook.MMAP_FILE or hook in _FILELESS:
        # Who may execute nothing may still load its libraries: mappings are refused by their file alone.
        return entry.about_file if hook is Hook.MMAP_FILE else not entry.about_file
    if hook in _UNIX_ALONE:
        return not entry.about_network and (not entry.families or Family.UNIX in entry.families)
    if hook in _BY_ANY_FAMILY:
        # Of a socket's path these hooks know nothing; the other two are asked about the same connection.
        return not entry.sockets and entry.families != (Family.UNIX,)
    return True


def drafts(entry: Entry) -> Iterator[Draft]:
    """Yield the ways in which an entry can hold."""
    places = [
        (hook, need, forbid)
        for does in entry.does
        for hook, need, forbid in HOOKS[does]
        if stands(entry, hook)
    ]
    kinds = [KINDS[kind] for kind in entry.kinds] or [NO_TRAIT]
    families = [FAMILIES[family] for family in entry.families] or [NO_TRAIT]
    literals: list[Literal] = []
    if entry.networks:
        literals.append(Literal(Networks(entry.networks)))
    if entry.ports:
        literals.append(Literal(Numbers("port", entry.ports)))
    if entry.sockets:
        literals.append(Literal(Names("path", exact=entry.sockets, cased=True)))
    root = Trait.TO_ROOT if entry.to_root else NO_TRAIT
    for (hook, need, forbid), kind, family in product(dict.fromkeys(places), kinds, families):
        if hook in _UNIX_ALONE and family not in {NO_TRAIT, Trait.UNIX}:
            continue
        if hook in _BY_ANY_FAMILY and family is Trait.UNIX:
            continue
        yield Draft(
            hook,
            need | kind | family | root,
            forbid,
            tuple(literals),
            entry.under,
            entry.same,
            entry.by,
            entry.unless_by,
        )
