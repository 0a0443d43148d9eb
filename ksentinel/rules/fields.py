# SPDX-License-Identifier: Apache-2.0
"""
Fields: what a rule can ask of an event, one table: log source -> field -> how to get it.

What isn't in the table can't be asked for: a rule about it is refused when it is loaded, instead of never firing. Names
are Sigma's (Sysmon's) where Sigma has one, audit's own for ``service: auditd``, ours in the categories ``syscall`` and
``lineage``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import IPv6Address, ip_address
from pathlib import PurePosixPath

from ksentinel.event import Address, Event, ExecEvent, Origin, Process, Record, SyscallEvent
from ksentinel.syscalls import names

Value = str | int | None | tuple[str | int, ...]
Getter = Callable[[Event], Value]
Users = Mapping[int, str]

BOTH = (Origin.AUDIT, Origin.BPF)
AUDIT = (Origin.AUDIT,)

ROOT: Users = {0: "root"}
"""Names of users, where the caller hands in no others: only the kernel's own is certain."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """
    A field of a log source.

    Attributes
    ----------
    get
        Its value in an event; several if it has several (a test then holds if it holds for one); None if the event
        has no such thing.
    what
        What it is, for the documentation.
    choices
        The only values that it can have, in lower case; None if others are possible.
    number
        True if it is a whole number.
    origins
        Whose events have it: those of either collector, or of one alone.
    """

    name: str
    get: Getter
    what: str
    choices: frozenset[str] | None = None
    number: bool = False
    origins: tuple[Origin, ...] = BOTH


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """
    A log source: which events it speaks of and what can be asked of them.

    Attributes
    ----------
    applies
        Whether an event is of this source.
    index
        The field by whose value rules are found; empty if there is none.
    calls
        The only system calls that it speaks of; None if of any, or of none.
    keywords
        What a keyword (a value without a field) is looked for in.
    """

    name: str
    what: str
    applies: Callable[[Event], bool]
    fields: Mapping[str, Field]
    index: str = ""
    calls: frozenset[str] | None = None
    keywords: Field = field(default_factory=lambda: Field("keywords", lambda _: None, ""))

    @property
    def logsource(self) -> str:
        """How a rule names it: ``category lineage``."""
        return f"{'service' if self.name == 'auditd' else 'category'} {self.name}"


class View:
    """An event as one source's rules see it: every field's values are got once, as text."""

    __slots__ = ("_lowered", "_values", "event", "record")

    def __init__(self, event: Event, record: Record | None = None) -> None:
        self.event = event
        self.record = record
        self._values: dict[Field, tuple[str, ...]] = {}
        self._lowered: dict[Field, tuple[str, ...]] = {}

    def values(self, field: Field) -> tuple[str, ...]:
        """Return the values of *field*; empty if the event has none."""
        known = self._values.get(field)
        if known is None:
            if isinstance(field, RecordField):
                known = _texts(field.within(self.event, self.record))
            else:
                known = _texts(field.get(self.event))
            self._values[field] = known
        return known

    def lowered(self, field: Field) -> tuple[str, ...]:
        """Return the same in lower case."""
        known = self._lowered.get(field)
        if known is None:
            known = self._lowered[field] = tuple([value.lower() for value in self.values(field)])
        return known


def _texts(value: Value) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, tuple):
        # A value is named once; an empty one is none.
        return tuple(dict.fromkeys(str(part) for part in value if part != ""))
    return (str(value),)


class RecordField(Field):
    """
    A field of audit's records.

    A rule is tried against each record of an event, as Sigma's rules for audit are written for single lines; a
    field that the record hasn't is looked for in the event's other records.
    """

    __slots__ = ()

    def within(self, event: Event, record: Record | None) -> Value:
        """Return the value in *record*; in all records together if that one has none."""
        if record is not None:
            own = _in_record(self.name, event, record)
            if own:
                return own
        return self.get(event)


# --- who did it -------------------------------------------------------------------------------------------------


def _process(get: Callable[[Process], Value]) -> Getter:
    return lambda event: get(event.process)


def _parent(get: Callable[[Process], Value]) -> Getter:
    def got(event: Event) -> Value:
        parent = event.process.parent
        return None if parent is None else get(parent)

    return got


def _user(users: Users) -> Callable[[Process], Value]:
    def got(process: Process) -> Value:
        uid = process.uid if process.euid is None else process.euid
        return None if uid is None else (users.get(uid, ""), uid)

    return got


def _ancestors(event: Event) -> Value:
    return tuple(ancestor.exe for ancestor in event.process.ancestors())


def _image(event: Event) -> Value:
    exe = event.process.exe
    # /bin/sh is dash, /sbin/insmod is kmod: rules speak of either, so both are the image of an exec.
    return (exe, event.path) if isinstance(event, ExecEvent) and event.path.startswith("/") else exe


def _exe(event: Event) -> Value:
    return event.process.exe


def _asked(event: Event) -> Value:
    return event.path if isinstance(event, ExecEvent) else None


def _pid(event: Event) -> Value:
    return event.process.key.pid


# --- what was done ----------------------------------------------------------------------------------------------


def _call(get: Callable[[SyscallEvent], Value]) -> Getter:
    return lambda event: get(event) if isinstance(event, SyscallEvent) else None


def _value(*known_as: str, words: Mapping[int, str] | None = None) -> Getter:
    """Get one of the call's named numbers, and its word; sources may know it by different names."""

    def got(call: SyscallEvent) -> Value:
        number = next((value for key, value in call.values if key in known_as), None)
        if number is None:
            return None
        word = "" if words is None else words.get(number, "")
        return (number, word) if word else number

    return _call(got)


_OPENS = frozenset("open openat openat2 open_by_handle_at creat".split())
_CLONES = frozenset("clone clone3 unshare setns".split())

# From the kernel's uapi headers; those that x86 and arm64 share.
_OPEN_FLAGS = {
    0o100: "O_CREAT",
    0o200: "O_EXCL",
    0o400: "O_NOCTTY",
    0o1000: "O_TRUNC",
    0o2000: "O_APPEND",
    0o4000: "O_NONBLOCK",
    0o2000000: "O_CLOEXEC",
    0o10000000: "O_PATH",
}
_ACCESS = {0: "O_RDONLY", 1: "O_WRONLY", 2: "O_RDWR", 3: "O_ACCMODE"}
_CLONE_FLAGS = {
    0x100: "CLONE_VM",
    0x10000: "CLONE_THREAD",
    0x20000: "CLONE_NEWNS",
    0x2000000: "CLONE_NEWCGROUP",
    0x4000000: "CLONE_NEWUTS",
    0x8000000: "CLONE_NEWIPC",
    0x10000000: "CLONE_NEWUSER",
    0x20000000: "CLONE_NEWPID",
    0x40000000: "CLONE_NEWNET",
    0x80: "CLONE_NEWTIME",
}
_MOUNT_FLAGS = {
    0x1: "MS_RDONLY",
    0x2: "MS_NOSUID",
    0x20: "MS_REMOUNT",
    0x1000: "MS_BIND",
    0x2000: "MS_MOVE",
    0x4000: "MS_REC",
    0x20000: "MS_UNBINDABLE",
    0x40000: "MS_PRIVATE",
    0x80000: "MS_SLAVE",
    0x100000: "MS_SHARED",
}
_MEMFD_FLAGS = {0x1: "MFD_CLOEXEC", 0x2: "MFD_ALLOW_SEALING", 0x4: "MFD_HUGETLB", 0x10: "MFD_EXEC"}
_AT_FLAGS = {
    0x100: "AT_SYMLINK_NOFOLLOW",
    0x200: "AT_REMOVEDIR",
    0x400: "AT_SYMLINK_FOLLOW",
    0x1000: "AT_EMPTY_PATH",
}
_MODES = {0o4000: "S_ISUID", 0o2000: "S_ISGID", 0o1000: "S_ISVTX", 0o100: "S_IXUSR", 0o2: "S_IWOTH"}
_FLAGS = {
    **dict.fromkeys(_OPENS, _OPEN_FLAGS),
    **dict.fromkeys(_CLONES, _CLONE_FLAGS),
    "mount": _MOUNT_FLAGS,
    "memfd_create": _MEMFD_FLAGS,
    "unlinkat": _AT_FLAGS,
    "linkat": _AT_FLAGS,
}
_PTRACE = {
    0: "PTRACE_TRACEME",
    1: "PTRACE_PEEKTEXT",
    2: "PTRACE_PEEKDATA",
    4: "PTRACE_POKETEXT",
    5: "PTRACE_POKEDATA",
    6: "PTRACE_POKEUSR",
    7: "PTRACE_CONT",
    12: "PTRACE_GETREGS",
    13: "PTRACE_SETREGS",
    16: "PTRACE_ATTACH",
    17: "PTRACE_DETACH",
    0x4204: "PTRACE_GETREGSET",
    0x4205: "PTRACE_SETREGSET",
    0x4206: "PTRACE_SEIZE",
}
_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    6: "SIGABRT",
    9: "SIGKILL",
    10: "SIGUSR1",
    12: "SIGUSR2",
    15: "SIGTERM",
    18: "SIGCONT",
    19: "SIGSTOP",
}
_BPF_COMMANDS = {
    0: "BPF_MAP_CREATE",
    5: "BPF_PROG_LOAD",
    6: "BPF_OBJ_PIN",
    8: "BPF_PROG_ATTACH",
    28: "BPF_LINK_CREATE",
}

FLAGS: Mapping[str, Mapping[int, str]] = _FLAGS
"""Names of a call's flags, bit by bit; those of an open's access stand in `OPEN_ACCESS`, by its two lowest bits."""
OPEN_ACCESS: Mapping[int, str] = _ACCESS
WORDS: Mapping[str, Mapping[int, str]] = {
    "mode": _MODES,
    "request": _PTRACE,
    "signal": _SIGNALS,
    "cmd": _BPF_COMMANDS,
}
"""Names of other numbers, by the field that has them; of ``mode``, bit by bit."""


def _flags(call: SyscallEvent) -> Value:
    if call.syscall == "creat":
        return ("O_CREAT", "O_WRONLY", "O_TRUNC")
    flags = call.flags
    if flags is None:
        # setns calls its flags a type.
        flags = next((value for key, value in call.values if key == "nstype"), None)
    return None if flags is None else (flags, *flag_names(call.syscall, flags))


def flag_names(syscall: str, flags: int) -> tuple[str, ...]:
    """
    Return the names of a call's flags, as far as they are known.

    Examples
    --------
    >>> flag_names("openat", 0o101), flag_names("mount", 0x1001), flag_names("read", 1)
    (('O_CREAT', 'O_WRONLY'), ('MS_RDONLY', 'MS_BIND'), ())
    """
    known = [name for bit, name in _FLAGS.get(syscall, {}).items() if flags & bit]
    if syscall in _OPENS:
        known.append(_ACCESS[flags & 3])
    return tuple(known)


def value_name(syscall: str, name: str, value: int) -> str:
    """
    Return how one of a call's named numbers is called; empty if it has no name.

    Examples
    --------
    >>> value_name("kill", "signal", 9), value_name("ptrace", "request", 16), value_name("setuid", "uid", 0)
    ('SIGKILL', 'PTRACE_ATTACH', '')
    """
    words: Mapping[int, str] = {}
    if name == "signal":
        words = _SIGNALS
    elif syscall == "ptrace" and name == "request":
        words = _PTRACE
    elif syscall == "bpf" and name in {"cmd", "command"}:
        words = _BPF_COMMANDS
    return words.get(value, "")


def _mode(call: SyscallEvent) -> Value:
    if call.mode is None:
        return None
    return (f"{call.mode & 0o7777:04o}", *(name for bit, name in _MODES.items() if call.mode & bit))


_RENAMES = frozenset("rename renameat renameat2 link linkat symlink symlinkat".split())
_CHANGES = frozenset(
    "creat truncate mkdir mkdirat mknod mknodat chmod fchmodat fchmodat2 chown lchown fchownat".split()
)
_FILE_CALLS = _OPENS | _RENAMES | _CHANGES
_NETWORK_CALLS = frozenset("connect sendto sendmsg sendmmsg".split())


def writes(event: Event) -> bool:
    """
    Tell whether an event creates, writes or changes a file: what ``file_event`` speaks of.

    Whether it succeeded is not looked at: BPF sees the attempt.
    """
    if not isinstance(event, SyscallEvent) or not event.paths:
        return False
    if event.syscall in _RENAMES or event.syscall in _CHANGES:
        return True
    # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
    return event.syscall in _OPENS and event.flags is not None and bool(event.flags & 0o1103)


def _connects(event: Event) -> bool:
    return (
        isinstance(event, SyscallEvent)
        and event.syscall in _NETWORK_CALLS
        and event.address is not None
        and bool(event.address.host)
    )


def _target_filename(event: Event) -> Value:
    if not isinstance(event, SyscallEvent):
        return None
    return event.paths[-1:] if event.syscall in _RENAMES else event.paths[:1]


def unmapped(host: str) -> str:
    """
    Return an address as it is meant: IPv4 in IPv6 clothes is IPv4.

    Examples
    --------
    >>> unmapped("::ffff:192.0.2.1"), unmapped("2001:DB8:0::1"), unmapped("nonsense")
    ('192.0.2.1', '2001:db8::1', 'nonsense')
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _address(get: Callable[[Address], Value]) -> Getter:
    return _call(lambda call: None if call.address is None else get(call.address))


def _reach(address: Address) -> Value:
    host = unmapped(address.host)
    try:
        return Address("inet", host).reach
    except ValueError:
        return None


def _target_is(call: SyscallEvent) -> Value:
    if call.target is None:
        return None
    if call.target <= 0:
        return "group"
    if call.target in {call.process.key.pid, call.tid}:
        return "self"
    parent = call.process.parent
    return "parent" if parent is not None and parent.key.pid == call.target else "other"


def _success(call: SyscallEvent) -> Value:
    return None if call.result is None else "no" if call.result < 0 else "yes"


# --- audit's records --------------------------------------------------------------------------------------------

# Audit's field dictionary: those that records of events carry (linux-audit's documentation names them all).
_RECORD_FIELDS = """
    a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 acct addr arch argc apparmor auid audit_backlog_limit audit_enabled audit_failure
    bool bus capability cap_fe cap_fi cap_fp cap_fver cap_pe cap_pi cap_pp cgroup cipher cmd code comm cwd data dev
    device dir direction egid enforcing entries errno euid exe exit fam family fd file filetype flags format fp fsgid
    fsuid gid grp hook hostname icmp_type id igid img-ctx info ino inode inode_gid inode_uid invalid_context ioctlcmd
    ip ipid item items kernel key kind ksize laddr lport list mac mode model name nametype nargs net new-disk new-level
    new_gid new_lock new_pe nlnk-fam nlnk-grp nlnk-pid oauid obj obj_gid obj_uid ocomm oflag ogid old old-auid
    old-level old-ses old_enforcing old_val op opid oses ouid outif parent path per perm perm_mask permissive pfs pid
    ppid printer prog-id proctitle profile prom proto qbytes range rdev reason removed res resrc result role rport
    saddr saddr_fam sauid scontext selected-context ses seperm seperms seqno seresult seuser sgid sig sigev_signo smac
    spid sport src srcip success suid syscall table target tcontext tclass terminal tty type uid unit uri user uuid val
    ver virt vm vm-ctx vm-pid watch
    ARCH AUID EGID EUID FSGID FSUID GID OAUID OGID OUID SADDR SGID SUID SYSCALL UID
""".split()
_SYSCALL_NAMES = frozenset({"SYSCALL", "syscall"})
_ARGUMENTS = frozenset(f"a{n}" for n in range(256))


def _call_name(event: Event) -> str:
    if isinstance(event, SyscallEvent):
        return event.syscall
    return "execve" if isinstance(event, ExecEvent) else ""


def _in_record(name: str, event: Event, record: Record) -> tuple[str, ...]:
    if name == "type":
        return (record.type,)
    values = [value for key, value in record.fields if key == name and value not in {"(null)", "(none)", ""}]
    if name in _SYSCALL_NAMES and record.type == "SYSCALL":
        values.append(_call_name(event))
    elif name == "a0" and record.type == "EXECVE" and values:
        # Rules name a program by its path or by its last part; so, at their choice, do callers.
        values.append(PurePosixPath(values[0]).name)
        if isinstance(event, ExecEvent):
            values.append(event.path)
    elif name == "key":
        # Several keys of one event stand in one field, with a control character between them.
        values = [key for value in values for key in value.split("\x01")]
    elif name == "proctitle":
        values = [value.replace("\0", " ") for value in values]
    return tuple(values)


def _record_field(name: str, what: str) -> RecordField:
    def got(event: Event) -> Value:
        return tuple(value for record in event.records for value in _in_record(name, event, record))

    return RecordField(name, got, what, origins=AUDIT)


class _RecordKeywords(RecordField):
    __slots__ = ()

    def within(self, event: Event, record: Record | None) -> Value:
        records = event.records if record is None else (record,)
        texts: list[str] = []
        for one in records:
            texts += [one.type, *(value for _, value in one.fields)]
            if one.type == "EXECVE":
                texts.append(" ".join(value for key, value in one.fields if key in _ARGUMENTS))
        return tuple(texts)


# --- the table --------------------------------------------------------------------------------------------------


@cache
def _syscall_names() -> frozenset[str]:
    return frozenset(name for arch in ("x86_64", "i386", "aarch64") for name in names(arch).values())


def _words(*tables: Mapping[int, str]) -> frozenset[str]:
    return frozenset(word.lower() for table in tables for word in table.values())


class _Words(frozenset[str]):
    """Words, or any number."""

    def __contains__(self, text: object) -> bool:
        return super().__contains__(text) or (isinstance(text, str) and text.lstrip("-").isdigit())


def _table(*fields: Field) -> dict[str, Field]:
    return {each.name: each for each in fields}


def sources(users: Users = ROOT) -> dict[str, Source]:
    """
    Return the table.

    Parameters
    ----------
    users
        Names of users by uid, for ``User``: the caller's, because no rule reads ``/etc/passwd``.

    Returns
    -------
    By Sigma category; ``auditd`` is a service.
    """
    image = Field("Image", _exe, "executable of the process")
    who = (
        Field("CommandLine", _process(lambda p: p.command_line), "its arguments, joined by blanks"),
        Field("ParentImage", _parent(lambda p: p.exe), "executable of its parent, as it was at fork"),
        Field("ParentCommandLine", _parent(lambda p: p.command_line), "arguments of its parent"),
        Field("User", _process(_user(users)), "effective user: the name if known, and the number"),
        Field("ParentUser", _parent(_user(users)), "effective user of its parent, as it was at fork"),
        Field("CurrentDirectory", _process(lambda p: p.cwd), "its working directory"),
        Field("ProcessId", _pid, "its PID", number=True),
        Field("ParentProcessId", _parent(lambda p: p.key.pid), "PID of its parent", number=True),
        Field("LogonId", _process(lambda p: p.auid), "who logged in: audit's login uid", number=True),
    )
    line = (
        Field("ServiceImage", _process(lambda p: p.service_exe), "executable of the service it belongs to"),
        Field("Ancestors", _ancestors, "executables of parent, grandparent and so on; any of them"),
        Field("was", _process(lambda p: p.was), "its executable before the last exec"),
    )
    executed = Field("Image", _image, "the file executed, and the absolute path that was asked for")
    exe = Field("Exe", _exe, "the file executed alone, as the kernel names it: for exceptions")
    names_of_calls = _syscall_names()
    reach = Field(
        "reach",
        _address(_reach),
        "how far the address is: loopback, private, public, or local (no network)",
        frozenset({"loopback", "private", "public", "local"}),
    )
    network = (
        Field("DestinationIp", _address(lambda a: unmapped(a.host)), "address; IPv4 in IPv6 is IPv4"),
        Field("DestinationPort", _address(lambda a: a.port), "its port", number=True),
    )
    calls = (
        Field("syscall", _call(lambda c: c.syscall), "name of the system call", names_of_calls),
        Field(
            "abi",
            _call(lambda c: c.abi),
            "native, i386, x32 or compat",
            frozenset({"native", "i386", "x32", "compat"}),
        ),
        Field("path", _call(lambda c: c.paths), "paths among its arguments; any of them"),
        Field(
            "flags",
            _call(_flags),
            "its flags: the number, and names such as O_WRONLY, CLONE_NEWNS, MS_BIND",
            _Words(_words(*_FLAGS.values(), _ACCESS)),
        ),
        Field(
            "mode",
            _call(_mode),
            "file mode: four octal digits, and names such as S_ISUID",
            _Words(_words(_MODES)),
        ),
        *network,
        reach,
        Field("family", _address(lambda a: a.family), "address family: inet, inet6, unix, netlink, af_N"),
        Field("socket", _address(lambda a: a.path), "path of a unix socket"),
        Field("target", _call(lambda c: c.target), "PID that it is about", number=True),
        Field(
            "target_is",
            _call(_target_is),
            "whose PID that is: self, parent, group (zero or below) or other",
            frozenset({"self", "parent", "group", "other"}),
        ),
        Field(
            "request",
            _value("request", words=_PTRACE),
            "ptrace: the number, and names such as PTRACE_ATTACH",
            _Words(_words(_PTRACE)),
        ),
        Field(
            "signal",
            _value("signal", words=_SIGNALS),
            "kill: the number, and names such as SIGKILL",
            _Words(_words(_SIGNALS)),
        ),
        Field(
            "cmd",
            _value("cmd", "command", words=_BPF_COMMANDS),
            "bpf: the number, and names such as BPF_PROG_LOAD",
            _Words(_words(_BPF_COMMANDS)),
        ),
        Field("uid", _value("uid", "owner"), "setuid, chown and their like: the user asked for", number=True),
        Field(
            "gid", _value("gid", "group"), "setgid, chown and their like: the group asked for", number=True
        ),
        Field(
            "result",
            _call(lambda c: c.result),
            "return value; unknown from BPF",
            number=True,
            origins=AUDIT,
        ),
        Field(
            "success",
            _call(_success),
            "yes or no; unknown from BPF",
            frozenset({"yes", "no"}),
            origins=AUDIT,
        ),
    )
    asked = Field("path", _asked, "the file as it was asked for: of a script the script, not its interpreter")
    exec_fields = _table(executed, exe, asked, *who)
    records = {name: _record_field(name, "") for name in _RECORD_FIELDS}
    return {
        source.name: source
        for source in (
            _with_keywords(
                Source(
                    "process_creation",
                    "A process became another program.",
                    lambda event: isinstance(event, ExecEvent),
                    exec_fields,
                )
            ),
            _with_keywords(
                Source(
                    "lineage",
                    "The same, with who started whom: only here.",
                    lambda event: isinstance(event, ExecEvent),
                    exec_fields | _table(*line),
                )
            ),
            _with_keywords(
                Source(
                    "file_event",
                    "A file is created, opened for writing, renamed or linked into place, or changes its mode or owner.",
                    writes,
                    _table(
                        Field(
                            "TargetFilename", _target_filename, "the file; of a rename or link the new name"
                        ),
                        image,
                        *who,
                        *line,
                    ),
                    calls=_FILE_CALLS,
                )
            ),
            _with_keywords(
                Source(
                    "network_connection",
                    "connect, sendto and their like, to an Internet address.",
                    _connects,
                    _table(
                        *network,
                        Field(
                            "Initiated", lambda _: "true", "always true: seen from here", frozenset({"true"})
                        ),
                        reach,
                        image,
                        *who,
                        *line,
                    ),
                    calls=_NETWORK_CALLS,
                )
            ),
            _with_keywords(
                Source(
                    "syscall",
                    "A system call whose arguments are looked at.",
                    lambda event: isinstance(event, SyscallEvent),
                    _table(*calls, image, *who, *line),
                    index="syscall",
                )
            ),
            Source(
                "auditd",
                "Any event that audit's records came with; one record at a time.",
                lambda event: bool(event.records),
                _Records(records),
                index="type",
                keywords=_RecordKeywords("keywords", lambda _: None, ""),
            ),
        )
    }


def _with_keywords(source: Source) -> Source:
    getters = tuple(each.get for each in source.fields.values())

    def everything(event: Event) -> Value:
        parts: list[str] = []
        for get in getters:
            parts += _texts(get(event))
        return tuple(parts)

    return replace(source, keywords=Field("keywords", everything, "every field"))


class _Records(dict[str, Field]):
    """Audit's fields; of arguments (``a0``, ``a1``, ...) there is no last one to list."""

    def get(self, name: str, default: Field | None = None) -> Field | None:  # type: ignore[override]
        if name not in self and name in _ARGUMENTS:
            self[name] = _record_field(name, "an argument")
        return super().get(name, default)


_WINDOWS = "only Windows has it"
_NOT_READ = "that is a service's log, and none is read: ask for what the service does"
_VERSION_INFO = "ELF files carry no such text: ask for Image"

NO_SOURCE = {
    "Company": _VERSION_INFO,
    "CreationUtcTime": "rules don't ask for the time, so that replays agree",
    "Description": _VERSION_INFO,
    "DestinationHostname": "the kernel sees addresses, not names: ask for DestinationIp",
    "DestinationIsIpv6": "ask for DestinationIp, by cidr",
    "DestinationPortName": "ask for DestinationPort",
    "FileVersion": _VERSION_INFO,
    "GrandParentImage": "ask for Ancestors, in category lineage",
    "Hashes": "files are not hashed",
    "IntegrityLevel": "only Windows has it: ask for User",
    "LogonGuid": "only Windows has it: ask for LogonId",
    "OriginalFileName": _VERSION_INFO,
    "ParentProcessGuid": _WINDOWS,
    "ProcessGuid": _WINDOWS,
    "Product": _VERSION_INFO,
    "Protocol": "connect doesn't say it: ask for DestinationPort",
    "QueryName": "queries for names are not looked into: ask for DestinationPort 53",
    "RuleName": "that is the sensor's own configuration",
    "SourceHostname": "the kernel sees addresses, not names",
    "SourceIp": "connect has no source address yet",
    "SourcePort": "connect has no source port yet",
    "TargetObject": "only Windows has a registry",
    "TerminalSessionId": _WINDOWS,
    "UtcTime": "rules don't ask for the time, so that replays agree",
    "imphash": "files are not hashed",
    "md5": "files are not hashed",
    "sha1": "files are not hashed",
    "sha256": "files are not hashed",
}
"""Why some fields that other sensors have are not to be had here."""

NO_LOGSOURCE = {
    "category antivirus": "that is a scanner's log, and none is read",
    "category create_remote_thread": "only Windows has it: ask for ptrace and process_vm_writev, in category syscall",
    "category dns": "queries for names are not looked into: ask for DestinationPort 53, in category network_connection",
    "category dns_query": "queries for names are not looked into: ask for DestinationPort 53, in category network_connection",
    "category driver_load": "ask for init_module and finit_module, in category syscall",
    "category file_access": "ask for open, openat and openat2 with path, in category syscall",
    "category file_change": "ask for TargetFilename, in category file_event",
    "category file_delete": "ask for unlink and unlinkat with path, in category syscall",
    "category file_rename": "ask for TargetFilename, in category file_event: the new name",
    "category firewall": "packets are not seen: ask for category network_connection",
    "category image_load": "which libraries a process maps is not seen",
    "category process_access": "ask for ptrace and process_vm_readv, in category syscall",
    "category process_tampering": "only Windows has it",
    "category process_termination": "rules are not asked about exits",
    "category proxy": "that is a proxy's log, and none is read",
    "category raw_access_thread": "ask for openat with path /dev/..., in category syscall",
    "category webserver": "that is a web server's log, and none is read: ask for what it starts, in category lineage",
    **{
        f"service {name}": _NOT_READ
        for name in "apache auth clamav clamd cron guacamole kernel modsecurity nginx sshd sudo syslog systemd vsftpd".split()
    },
    "": "without either, words are looked for in whatever logs there are, and no log but audit's is read: name a category",
}
"""Why some log sources are not to be had here; under "" those that name neither category nor service."""
