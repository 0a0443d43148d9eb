# SPDX-License-Identifier: Apache-2.0
"""
The reference: what guards decide, said as simply as it can be.

It asks the rules' own literals and the entries' own fields, and knows nothing of bits. The kernel and its twin
(`ksentinel.enforce.twin`) must come to the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ksentinel.bpf.guard_abi import Action, Hook, Outcome, Trait, Word
from ksentinel.enforce import Mode, Posture
from ksentinel.enforce.compiled import CANARY_RULE, OF_IO_URING, Compiled, GuardRule
from ksentinel.enforce.operation import NAMED, Operation
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import Does, Entry, Family
from ksentinel.enforce.way import FAMILIES, KINDS
from ksentinel.rules.guard import Guard, Known, Literal, Networks, Numbers
from ksentinel.rules.hooks import Seen

_SUBJECTS = {word.name.lower(): word for word in NAMED}


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What becomes of an operation that some way speaks against.

    Attributes
    ----------
    rule
        Place in the policy's rules, or `CANARY_RULE`.
    mode
        That was decisive.
    """

    outcome: Outcome
    rule: int
    action: Action
    mode: Mode

    @property
    def denies(self) -> bool:
        """Whether the operation fails by it."""
        return self.outcome is Outcome.DENIED


@dataclass(frozen=True, slots=True)
class Spoken:
    """A rule that speaks: what it asks for, and the mode that is named for it."""

    rule: int
    action: Action
    mode: Mode | None
    taken_back: bool = False


def decide(
    compiled: Compiled,
    operation: Operation,
    *,
    host: Mode = Mode.ENFORCE,
    spared: bool = False,
    released: bool = False,
    most: Mode | None = None,
) -> Decision | None:
    """
    Return what becomes of an operation; None if nothing is said of it.

    Parameters
    ----------
    host
        The mode where neither rule nor control group have one.
    spared
        The process is on the never-list.
    released
        Nothing is denied at all, or the heartbeat is too old.
    most
        What no mode is more than, whoever names it.
    """
    spoken = [
        Spoken(index, rule.action, rule.mode, rule.taken_back)
        for index, rule in enumerate(compiled.rules)
        if speaks(compiled, rule, operation)
    ]
    if operation.canary and operation.hook in compiled.hooks:
        spoken.insert(0, Spoken(CANARY_RULE, Action.DENY, None))
    cgroup = None if operation.canary else operation.cgroup
    return strictest(spoken, cgroup, host=host, spared=spared, released=released, most=most)


def strictest(
    spoken: Iterable[Spoken],
    cgroup: Mode | None,
    *,
    host: Mode,
    spared: bool,
    released: bool,
    most: Mode | None = None,
) -> Decision | None:
    """
    Return what all that speak come to: by mode, then by action, then the first; None if all modes are off.

    What only notes comes last, whatever its mode is: it must not hide what would be denied.
    """
    loudest, found = 0, None
    for one in spoken:
        named = [mode for mode in (one.mode, cgroup) if mode is not None]
        mode = max(named, key=lambda mode: mode.rank, default=host)
        for limit in (most, Mode.PERMISSIVE if one.taken_back else None):
            mode = mode if limit is None else min(mode, limit, key=lambda mode: mode.rank)
        rank = 0 if mode is Mode.OFF else 1 if one.action is Action.LOG else mode.rank << 2 | one.action
        if rank > loudest:
            loudest, found = rank, (mode, one)
    if found is None:
        return None
    mode, one = found
    if one.action is Action.LOG:
        outcome = Outcome.LOGGED
    elif spared and one.rule != CANARY_RULE:
        outcome = Outcome.SPARED
    elif mode is Mode.PERMISSIVE:
        outcome = Outcome.WOULD_DENY
    else:
        outcome = Outcome.RELEASED if released else Outcome.DENIED
    return Decision(outcome, one.rule, one.action, mode)


def speaks(compiled: Compiled, rule: GuardRule, operation: Operation) -> bool:
    """Tell whether a rule or an entry speaks against an operation, whatever its mode is."""
    if rule.anomalous and not operation.anomalous:
        return False
    closed = compiled.posture is Posture.CLOSED
    if isinstance(rule.source, Entry):
        return _entry_speaks(compiled, rule.source, operation, closed=closed)
    return any(_guard_speaks(guard, operation, closed=closed) for guard in rule.source.guards)


def _guard_speaks(guard: Guard, operation: Operation, *, closed: bool) -> bool:
    by_call = operation.call in guard.calls and not operation.io_uring
    by_ring = (operation.io_uring or operation.ring) and not OF_IO_URING.isdisjoint(guard.calls)
    if guard.hook != operation.hook.name.lower() or not (by_call or by_ring):
        return False
    seen = operation.seen
    return any(all(_holds(literal, operation, seen, closed=closed) for literal in way) for way in guard.ways)


def _holds(literal: Literal, operation: Operation, seen: Seen, *, closed: bool) -> bool:
    word = _SUBJECTS.get(literal.test.subject)
    if literal.negated and isinstance(literal.test, Known):
        return False  # that there is no path can't be seen
    if closed and word in operation.untold:
        return True
    return literal.holds(seen) is True


def _entry_speaks(compiled: Compiled, entry: Entry, operation: Operation, *, closed: bool) -> bool:
    where = [does for does in entry.does if _is(does, operation, entry)]
    return bool(where) and all(
        (
            not entry.kinds or any(KINDS[kind] & operation.traits for kind in entry.kinds),
            _lies(compiled, entry, operation, closed=closed),
            _addressed(entry, operation, closed=closed),
            not entry.by or (operation.who is not None and operation.who in _found(compiled, entry.by)),
            not entry.unless_by
            or (operation.who is not None and operation.who not in _found(compiled, entry.unless_by)),
            not entry.to_root or Trait.TO_ROOT in operation.traits,
        )
    )


def _is(does: Does, operation: Operation, entry: Entry) -> bool:
    """Tell whether an operation is of that kind, as far as *entry* means it."""
    traits, hook = operation.traits, operation.hook
    has_file = bool(entry.kinds or entry.under or entry.same)
    match does:
        case Does.EXEC:
            # Who may execute nothing may still load its libraries: mappings are refused by their file alone.
            mapped = hook is Hook.MMAP_FILE and Trait.MAPPED in traits and has_file
            return hook is Hook.BPRM_CHECK_SECURITY or mapped
        case Does.READ:
            return hook is Hook.FILE_OPEN and Trait.READ in traits and Trait.FORCED not in traits
        case Does.WRITE:
            return hook is Hook.PATH_TRUNCATE or (hook is Hook.FILE_OPEN and Trait.WRITE in traits)
        case Does.CREATE:
            return hook in {Hook.PATH_MKNOD, Hook.PATH_MKDIR, Hook.PATH_SYMLINK, Hook.PATH_LINK}
        case Does.UNLINK:
            return hook in {Hook.PATH_UNLINK, Hook.PATH_RMDIR}
        case Does.RENAME:
            return hook is Hook.PATH_RENAME
        case Does.LINK:
            return hook is Hook.PATH_LINK
        case Does.ATTRIBUTES:
            return hook in {Hook.PATH_CHMOD, Hook.PATH_CHOWN}
        case Does.CONNECT:
            return _connects(hook, entry)
        case Does.BIND:
            return hook is Hook.SOCKET_BIND
        case Does.LISTEN:
            return hook is Hook.SOCKET_LISTEN
        case Does.PTRACE:
            return hook is Hook.PTRACE_ACCESS_CHECK and Trait.ATTACH in traits
        case Does.MODULE | Does.FIRMWARE | Does.KEXEC:
            if hook is Hook.KERNEL_LOAD_DATA and has_file:
                return False
            loads = hook in {Hook.KERNEL_LOAD_DATA, Hook.KERNEL_READ_FILE}
            return loads and Trait[does.name] in traits
        case Does.BPF:
            return hook is Hook.BPF
        case Does.MOUNT:
            return hook in {Hook.SB_MOUNT, Hook.MOVE_MOUNT}
        case Does.UMOUNT:
            return hook is Hook.SB_UMOUNT
        case Does.USERNS:
            return hook is Hook.USERNS_CREATE
        case Does.SETUID:
            return hook is Hook.TASK_FIX_SETUID
        case Does.KILL:
            return hook is Hook.TASK_KILL
        case Does.CAPSET:
            return hook is Hook.CAPSET
        case Does.PRCTL:
            return hook is Hook.TASK_PRCTL


def _connects(hook: Hook, entry: Entry) -> bool:
    if hook in {Hook.UNIX_STREAM_CONNECT, Hook.UNIX_MAY_SEND}:
        return not (entry.networks or entry.ports)
    return hook in {Hook.SOCKET_CONNECT, Hook.SOCKET_SENDMSG} and not entry.sockets


def _lies(compiled: Compiled, entry: Entry, operation: Operation, *, closed: bool) -> bool:
    if closed and Word.PLACES in operation.untold:
        return True
    files = [chain for chain in operation.files if chain]
    same, under = _found(compiled, entry.same), _found(compiled, entry.under)
    return (not entry.same or any(chain[0] in same for chain in files)) and (
        not entry.under or any(not under.isdisjoint(chain) for chain in files)
    )


def _addressed(entry: Entry, operation: Operation, *, closed: bool) -> bool:
    families = entry.families
    if operation.hook in {Hook.SOCKET_CONNECT, Hook.SOCKET_SENDMSG}:
        # Connections to paths are refused where their path is at hand.
        families = tuple(family for family in families if family is not Family.UNIX)
        if entry.families and not families:
            return False
    if families and not any(FAMILIES[family] in operation.traits for family in families):
        return False
    if entry.networks and Networks(entry.networks).holds(operation.seen) is not True:
        return False
    if entry.ports and Numbers("port", entry.ports).holds(operation.seen) is not True:
        return False
    if closed and Word.PATH in operation.untold:
        return True
    return not entry.sockets or not set(entry.sockets).isdisjoint(operation.paths(Word.PATH))


def _found(compiled: Compiled, paths: Iterable[str]) -> set[Place]:
    return {place for path in paths if (place := compiled.where[path]) is not None}
