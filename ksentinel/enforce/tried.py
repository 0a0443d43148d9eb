# SPDX-License-Identifier: Apache-2.0
"""
What was tried before: events of the past as the operations that guards would have been asked about.

An event knows less than a hook: it has names where the hook has files. So files are told here by their names, as these lead to today, and
what only the file itself could have said then (who owned it, who could write to it) speaks against nobody.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

from ksentinel.bpf.guard_abi import Hook, Trait
from ksentinel.enforce.compiled import Compiled
from ksentinel.enforce.operation import Operation
from ksentinel.enforce.places import Place, Resolve
from ksentinel.errors import HostError
from ksentinel.event import Event, ExecEvent, HookEvent, Outcome, SyscallEvent
from ksentinel.rules.hooks import EXEC, Seen, seen

_O_TRUNC, _O_ACCMODE = 0o1000, 3
_READS, _WRITES = (0, 2), (1, 2, 3)
_FAMILIES = {"inet": Trait.IPV4, "inet6": Trait.IPV6, "unix": Trait.UNIX}
_LOADS = {"init_module": Trait.MODULE, "finit_module": Trait.MODULE, "kexec_load": Trait.KEXEC}
_FILES = ("path", "executed", "asked")
_NOWHERE = Place(0, 0)
"""Stands for a file that is none of those the policy names."""


def operations(event: Event, compiled: Compiled, find: Resolve | None = None) -> Iterator[Operation]:
    """
    Yield what guards would have been asked about an event, as if every score had been over its threshold.

    Parameters
    ----------
    find
        Finds files; None: by the names that the policy gives them alone.
    """
    if isinstance(event, HookEvent):
        # What was done is told by an event of its own, and here it would count twice. An execution that was refused is not.
        operation = event.operation
        if event.outcome is not Outcome.DENIED or not isinstance(operation, ExecEvent):
            return
        event = operation
    places = compiled.where.get if find is None else _careful(find)
    doer = event.process.was if isinstance(event, ExecEvent) else event.process.exe
    for at in seen(event, anomalous=True):
        asked = replace(
            Operation.of(at),
            traits=_traits(event, at),
            files=tuple(_files(at, places)),
            who=places(doer) or _NOWHERE if doer else None,
        )
        yield asked
        if at.hook == EXEC.name:
            yield asked.at(Hook.BPRM_CHECK_SECURITY)
        elif at.hook == "socket_connect" and asked.traits & Trait.UNIX and isinstance(event, SyscallEvent):
            # A path is told by the hook of unix sockets alone.
            path = "" if event.address is None else event.address.path
            yield replace(asked.at(Hook.UNIX_STREAM_CONNECT), names={**at.names, "path": (path or None,)})


def _careful(find: Resolve) -> Resolve:
    """Return what finds files, and takes those that can't be looked at for none: whoever is watched chose these names."""

    def found(path: str) -> Place | None:
        try:
            return find(path)
        except HostError:
            return None

    return found


def _files(at: Seen, places: Resolve) -> Iterator[tuple[Place, ...]]:
    """Yield for each file that is named its place, and those of the directories above it that are known."""
    for subject in _FILES:
        for path in at.names.get(subject, ()):
            if path is not None:
                above = (places(str(step)) for step in PurePosixPath(path).parents)
                yield (places(path) or _NOWHERE, *(place for place in above if place is not None))


def _traits(event: Event, at: Seen) -> Trait:
    if isinstance(event, ExecEvent):
        exe = event.process.exe
        found = Trait.MEMFD | Trait.DELETED if exe.startswith("/memfd:") else Trait(0)
        found |= Trait.DELETED if exe.endswith(" (deleted)") else Trait(0)
        return found | (Trait.SCRIPT if event.process.script else Trait(0))
    if not isinstance(event, SyscallEvent):
        return Trait(0)
    traits = Trait(0) if event.address is None else _FAMILIES.get(event.address.family, Trait(0))
    match at.hook:
        case "file_open":
            flags = at.numbers.get("flags") or 0
            traits |= Trait.READ if flags & _O_ACCMODE in _READS else Trait(0)
            traits |= Trait.WRITE if flags & _O_ACCMODE in _WRITES or flags & _O_TRUNC else Trait(0)
        case "path_truncate":
            traits |= Trait.WRITE
        case "ptrace_access_check":
            traits |= Trait.ATTACH
        case "kernel_load_data" | "kernel_read_file":
            traits |= _LOADS.get(event.syscall, Trait(0))
        case "task_fix_setuid":
            traits |= Trait.TO_ROOT if at.numbers.get("uid") == 0 else Trait(0)
    return traits
