# SPDX-License-Identifier: Apache-2.0
"""
Hooks: which system call the kernel asks its security modules about where, and what of the operation is known there.

One table, with reasons, and `Seen`: an event as such a hook would see it. ``docs/guards.md`` says how that view differs from the
system call's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from posixpath import normpath

from ksentinel.event import Address, Event, ExecEvent, SyscallEvent
from ksentinel.rules.fields import unmapped

_O_CREAT, _O_TRUNC, _O_PATH = 0o100, 0o1000, 0o10000000
_CLONE_NEWUSER = 0x10000000
_AT_REMOVEDIR = 0x200
_TAKES_HOLD = (16, 0x4206)  # PTRACE_ATTACH, PTRACE_SEIZE


@dataclass(frozen=True, slots=True, eq=False)
class Hook:
    """
    An LSM hook, and the system calls that are decided there.

    Attributes
    ----------
    sees
        What of the operation is known there, besides the process: names of `Seen`'s parts.
    why
        What it is asked about, and what has to be known of that.
    passes
        Whether such a call comes by.
    """

    name: str
    calls: tuple[str, ...]
    sees: frozenset[str]
    why: str
    passes: Callable[[SyscallEvent], bool] = lambda _: True


def _opens(call: SyscallEvent) -> bool:
    return bool(call.paths) and not (call.flags or 0) & _O_PATH


def _creates(call: SyscallEvent) -> bool:
    return call.syscall in {"mknod", "mknodat", "creat"} or bool((call.flags or 0) & _O_CREAT)


def _removes_directory(call: SyscallEvent) -> bool:
    return call.syscall == "rmdir" or bool((call.flags or 0) & _AT_REMOVEDIR)


def _addressed(call: SyscallEvent) -> bool:
    return call.address is not None


_FILE = frozenset({"target", "path"})
_TO = frozenset({"destination", "port"})

EXEC = Hook(
    "bprm_creds_from_file",
    ("execve", "execveat"),
    frozenset({"image", "executed", "asked"}),
    "an execution, once: its interpreter has been found, and there still is a way back",
)
HOOKS = (
    EXEC,
    Hook(
        "file_open",
        ("open", "openat", "openat2", "creat"),
        _FILE | {"flags"},
        "the file that an open leads to, after links; not asked for O_PATH, and after a new file's name is there",
        _opens,
    ),
    Hook(
        "path_mknod",
        ("open", "openat", "openat2", "creat", "mknod", "mknodat"),
        _FILE | {"flags"},
        "a new file, before its name is there",
        _creates,
    ),
    Hook("path_mkdir", ("mkdir", "mkdirat"), _FILE, "a new directory"),
    Hook("path_rename", ("rename", "renameat", "renameat2"), _FILE, "a file's old name and its new one"),
    Hook("path_link", ("link", "linkat"), _FILE | {"flags"}, "a link's new name; the old one has no path"),
    Hook("path_symlink", ("symlink", "symlinkat"), _FILE, "a symbolic link's own name"),
    Hook("path_truncate", ("truncate",), _FILE, "a file that is cut"),
    Hook("path_chmod", ("chmod", "fchmodat", "fchmodat2"), _FILE | {"mode"}, "a file's new mode"),
    Hook(
        "path_chmod",
        ("fchmod",),
        frozenset({"mode"}),
        "the same by a descriptor: the rule has no path, so the guard has none",
    ),
    Hook(
        "path_chown", ("chown", "lchown", "fchownat"), _FILE | {"uid", "gid"}, "a file's new owner or group"
    ),
    Hook(
        "path_unlink",
        ("unlink", "unlinkat"),
        _FILE | {"flags"},
        "a name that goes, of anything but a directory",
        lambda call: not _removes_directory(call),
    ),
    Hook("path_rmdir", ("rmdir", "unlinkat"), _FILE | {"flags"}, "a directory that goes", _removes_directory),
    Hook("socket_connect", ("connect",), _TO, "the address, as the kernel has copied it", _addressed),
    Hook(
        "socket_sendmsg",
        ("sendto", "sendmsg"),
        _TO,
        "the address of a message that has one, as the kernel has copied it",
        _addressed,
    ),
    Hook("socket_bind", ("bind",), _TO, "the socket's own address, as the kernel has copied it", _addressed),
    Hook("bpf", ("bpf",), frozenset({"cmd"}), "any command of bpf"),
    Hook(
        "ptrace_access_check",
        ("ptrace",),
        frozenset({"request", "another"}),
        "one process taking hold of another: PTRACE_ATTACH and PTRACE_SEIZE alone",
        lambda call: _value(call, "request") in _TAKES_HOLD,
    ),
    Hook(
        "ptrace_access_check",
        ("process_vm_readv", "process_vm_writev"),
        frozenset({"another"}),
        "one process reaching into another's memory",
    ),
    Hook("kernel_load_data", ("init_module", "kexec_load"), frozenset(), "code for the kernel out of memory"),
    Hook("kernel_read_file", ("finit_module",), frozenset(), "code for the kernel out of a file"),
    Hook("sb_mount", ("mount",), _FILE | {"flags"}, "where it is mounted, after links; not what"),
    Hook("sb_umount", ("umount", "umount2"), _FILE, "where it was mounted"),
    Hook(
        "userns_create",
        ("unshare",),
        frozenset({"flags"}),
        "a new user namespace: of unshare CLONE_NEWUSER alone",
        lambda call: bool((call.flags or 0) & _CLONE_NEWUSER),
    ),
    Hook("task_kill", ("kill",), frozenset({"signal"}), "each process that a signal goes to"),
    Hook("task_fix_setuid", ("setuid", "setreuid", "setresuid"), frozenset({"uid"}), "a change of user"),
    Hook("task_fix_setgid", ("setgid", "setregid", "setresgid"), frozenset({"gid"}), "a change of group"),
    Hook("capset", ("capset",), frozenset(), "a change of capabilities"),
    Hook("task_prctl", ("prctl",), frozenset(), "any option of prctl"),
)
"""Which system call is decided where."""

NO_HOOK = {
    "execve": "an execution is decided in process_creation and lineage",
    "execveat": "an execution is decided in process_creation and lineage",
    "open_by_handle_at": "names no path",
    "sendmmsg": "several messages in one call",
    "setns": "no hook is asked",
    "delete_module": "no hook is asked about the module",
    "memfd_create": "no hook is asked",
    "clone": "its flags are not followed",
    "clone3": "its flags are not followed",
}
"""Calls that can't be decided inline, and why; of others no hook is known to us."""


@dataclass(frozen=True, slots=True)
class Seen:
    """
    An operation as a hook sees it. What it doesn't see is None, or not there.

    Attributes
    ----------
    names
        Paths: ``image`` (the file executed, and what was asked for), ``executed``, ``asked``, ``target``, ``path`` (any among the arguments), ``program``,
        ``parent``, ``service``, ``ancestors``.
    numbers
        ``euid``, ``flags``, ``mode``, ``port``, ``request``, ``signal``, ``cmd``, ``uid``, ``gid``, and ``another``: whether it is about another process.
    destination
        The Internet address.
    anomalous
        Whether the lineage's score is over its calibrated threshold.
    """

    hook: str
    call: str
    names: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    numbers: Mapping[str, int | None] = field(default_factory=dict)
    destination: str | None = None
    anomalous: bool | None = None


def seen(event: Event, *, anomalous: bool | None = None) -> tuple[Seen, ...]:
    """
    Return what hooks would see of an event, in the order of `HOOKS`; empty if it comes by none.

    A path counts as seen if it is absolute, whole and without detours: then the event and the hook name the same file, as long
    as no link leads elsewhere, which an event can't show.

    Examples
    --------
    >>> from ksentinel.codec import event_from_plain
    >>> plain = {"event": "syscall", "syscall": "creat", "paths": ["/etc/x"], "process": {"exe": "/bin/sh"}}
    >>> [(at.hook, at.names["target"]) for at in seen(event_from_plain(plain))]
    [('file_open', ('/etc/x',)), ('path_mknod', ('/etc/x',))]
    """
    process = event.process
    who: dict[str, tuple[str | None, ...]] = {
        "parent": (None if process.parent is None else seen_path(process.parent.exe),),
        "service": (seen_path(process.service_exe),),
        "ancestors": tuple(seen_path(ancestor.exe) for ancestor in process.ancestors()),
    }
    euid = process.uid if process.euid is None else process.euid
    if isinstance(event, ExecEvent):
        executed, asked = seen_path(process.exe), seen_path(event.path)
        names = {"image": (executed, asked), "executed": (executed,), "asked": (asked,)}
        names |= who | {"program": (seen_path(process.was),)}
        return (Seen(EXEC.name, "execve", names, {"euid": euid}, None, anomalous),)
    if not isinstance(event, SyscallEvent):
        return ()
    numbers = _seen_numbers(event) | {"euid": euid}
    destination = None if event.address is None else _seen_address(event.address)
    return tuple(
        Seen(
            hook.name,
            event.syscall,
            {"program": (seen_path(process.exe),)} | who | _seen_files(hook, event),
            # openat2's flags stand in memory: only the opened file has them.
            numbers | ({"flags": None} if (hook.name, event.syscall) == ("path_mknod", "openat2") else {}),
            destination,
            anomalous,
        )
        for hook in HOOKS
        if hook is not EXEC and event.syscall in hook.calls and hook.passes(event)
    )


def seen_path(text: str) -> str | None:
    """Return a path that is absolute, whole and without detours; None for any other."""
    normal = text.startswith("/") and not text.startswith("//") and normpath(text) == text
    return text if normal and not text.endswith(" (deleted)") and not text.startswith("/memfd:") else None


def _seen_files(hook: Hook, call: SyscallEvent) -> dict[str, tuple[str | None, ...]]:
    if "target" not in hook.sees:
        return {}
    whole = not (call.truncated or call.unreadable)
    paths = [seen_path(path) if whole else None for path in call.paths] or [None]
    if hook.name in {"path_link", "path_symlink", "sb_mount"}:
        paths = [*([None] * (len(paths) - 1)), paths[-1]]
    return {"target": (paths[-1],), "path": tuple(paths)}


def _seen_numbers(call: SyscallEvent) -> dict[str, int | None]:
    creat = call.syscall == "creat"
    target = call.target
    return {
        "flags": _O_CREAT | _O_TRUNC | 1 if creat else call.flags,
        "mode": call.mode,
        "port": None if call.address is None else call.address.port,
        "request": _value(call, "request"),
        "signal": _value(call, "signal"),
        "cmd": _value(call, "cmd", "command"),
        "uid": _value(call, "uid", "owner"),
        "gid": _value(call, "gid", "group"),
        "another": None
        if target is None or target <= 0
        else int(target not in {call.process.key.pid, call.tid}),
    }


def _value(call: SyscallEvent, *known_as: str) -> int | None:
    return next((value for key, value in call.values if key in known_as), None)


def _seen_address(address: Address) -> str | None:
    host = unmapped(address.host)
    try:
        ip_address(host)
    except ValueError:
        return None
    return host
