# SPDX-License-Identifier: Apache-2.0
"""Fields: every one can be had from some event, and means what the table says."""

import ctypes
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ksentinel.bpf import abi
from ksentinel.cli import app
from ksentinel.codec import event_from_plain
from ksentinel.event import Origin, Process, ProcessKey, Record
from ksentinel.normalize.audit import AuditNormalizer
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import ProcessTable
from ksentinel.rules.fields import NO_LOGSOURCE, NO_SOURCE, View, sources
from ksentinel.sources.auditlog import AuditGroup

TABLE = sources({0: "root", 33: "www-data"})
DOC = Path(__file__).parents[2] / "docs" / "rules.md"

PROCESS = {
    "pid": 42, "exe": "/usr/bin/dash", "argv": ["sh", "-c", "id"], "was": "/usr/sbin/nginx", "uid": 0, "euid": 33,
    "auid": 1000, "cwd": "/srv", "service": {"exe": "/usr/sbin/nginx"},
    "parent": {
        "pid": 41, "exe": "/usr/sbin/nginx", "argv": ["nginx", "-g"], "uid": 33,
        "parent": {"pid": 1, "exe": "/usr/lib/systemd/systemd"},
    },
}  # fmt: skip


def call(name, **rest):
    """Return a system call in plain form."""
    return {"event": "syscall", "process": PROCESS, "syscall": name, **rest}


EXEC = {"event": "exec", "process": PROCESS, "path": "/bin/sh"}
OPEN = call("openat", paths=["/etc/x"], flags=0o101, mode=0o4755, result=-13)
CONNECT = call("connect", address={"family": "inet6", "host": "::ffff:9.9.9.9", "port": 443})
UNIX = call("connect", address={"family": "unix", "path": "/run/x.sock"})

VALUES = [
    ("process_creation", "Image", EXEC, ("/usr/bin/dash", "/bin/sh")),
    ("process_creation", "Exe", EXEC, ("/usr/bin/dash",)),
    ("process_creation", "path", EXEC, ("/bin/sh",)),
    ("process_creation", "CommandLine", EXEC, ("sh -c id",)),
    ("process_creation", "ParentImage", EXEC, ("/usr/sbin/nginx",)),
    ("process_creation", "ParentCommandLine", EXEC, ("nginx -g",)),
    ("process_creation", "User", EXEC, ("www-data", "33")),
    ("process_creation", "ParentUser", EXEC, ("www-data", "33")),
    ("process_creation", "CurrentDirectory", EXEC, ("/srv",)),
    ("process_creation", "ProcessId", EXEC, ("42",)),
    ("process_creation", "ParentProcessId", EXEC, ("41",)),
    ("process_creation", "LogonId", EXEC, ("1000",)),
    ("lineage", "ServiceImage", EXEC, ("/usr/sbin/nginx",)),
    ("lineage", "Ancestors", EXEC, ("/usr/sbin/nginx", "/usr/lib/systemd/systemd")),
    ("lineage", "was", EXEC, ("/usr/sbin/nginx",)),
    ("file_event", "TargetFilename", OPEN, ("/etc/x",)),
    ("file_event", "TargetFilename", call("rename", paths=["/a", "/b"]), ("/b",)),
    ("file_event", "Image", OPEN, ("/usr/bin/dash",)),
    ("network_connection", "DestinationIp", CONNECT, ("9.9.9.9",)),
    ("network_connection", "DestinationPort", CONNECT, ("443",)),
    ("network_connection", "Initiated", CONNECT, ("true",)),
    ("network_connection", "reach", CONNECT, ("public",)),
    ("syscall", "syscall", OPEN, ("openat",)),
    ("syscall", "abi", OPEN, ("native",)),
    ("syscall", "path", call("rename", paths=["/a", "/b"]), ("/a", "/b")),
    ("syscall", "flags", OPEN, ("65", "O_CREAT", "O_WRONLY")),
    ("syscall", "flags", call("creat", paths=["/x"]), ("O_CREAT", "O_WRONLY", "O_TRUNC")),
    ("syscall", "flags", call("setns", values=[["nstype", 0x20000]]), ("131072", "CLONE_NEWNS")),
    ("syscall", "mode", OPEN, ("4755", "S_ISUID", "S_IXUSR")),
    ("syscall", "DestinationPort", CONNECT, ("443",)),
    ("syscall", "reach", UNIX, ("local",)),
    ("syscall", "family", UNIX, ("unix",)),
    ("syscall", "socket", UNIX, ("/run/x.sock",)),
    ("syscall", "target", call("kill", target=7), ("7",)),
    ("syscall", "target_is", call("kill", target=7), ("other",)),
    ("syscall", "target_is", call("kill", target=-7), ("group",)),
    ("syscall", "target_is", call("kill", target=42), ("self",)),
    ("syscall", "target_is", call("kill", target=41), ("parent",)),
    ("syscall", "request", call("ptrace", values=[["request", 16]]), ("16", "PTRACE_ATTACH")),
    ("syscall", "signal", call("kill", values=[["signal", 9]]), ("9", "SIGKILL")),
    ("syscall", "cmd", call("bpf", values=[["command", 5]]), ("5", "BPF_PROG_LOAD")),
    ("syscall", "cmd", call("bpf", values=[["cmd", 5]]), ("5", "BPF_PROG_LOAD")),
    ("syscall", "uid", call("setuid", values=[["uid", 0]]), ("0",)),
    ("syscall", "gid", call("chown", values=[["group", 0]]), ("0",)),
    ("syscall", "result", OPEN, ("-13",)),
    ("syscall", "success", OPEN, ("no",)),
    ("syscall", "success", call("openat", result=3), ("yes",)),
    ("syscall", "success", call("openat"), ()),
    ("syscall", "ServiceImage", OPEN, ("/usr/sbin/nginx",)),
]


@pytest.mark.parametrize(("source", "field", "plain", "expected"), VALUES)
def test_value(source, field, plain, expected):
    """A field's values, as text."""
    event = event_from_plain(plain)

    assert TABLE[source].applies(event)
    assert expected == View(event).values(TABLE[source].fields[field])


def test_every_field_has_an_event():
    """No field of the table is without an event above that has it, in some source; audit's are raw."""
    seen = {field for _, field, _, values in VALUES if values}

    assert set() == {f for name, s in TABLE.items() if name != "auditd" for f in s.fields} - seen


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (OPEN, True),
        (call("openat", paths=["/x"], flags=0), False),
        (call("openat", paths=["/x"], flags=0o2000000), False),
        (call("openat", paths=["/x"], flags=2), True),
        (call("openat", paths=["/x"]), False),
        (call("openat", flags=1), False),
        (call("rename", paths=["/a", "/b"]), True),
        (call("chmod", paths=["/a"], mode=0o755), True),
        (call("unlink", paths=["/a"]), False),
        (EXEC, False),
    ],
)
def test_what_a_file_event_is(plain, expected):
    """Opening to write, creating, renaming and changing modes are; reading and deleting aren't."""
    assert expected == TABLE["file_event"].applies(event_from_plain(plain))


@pytest.mark.parametrize("plain", [UNIX, OPEN, call("bind", address={"family": "inet", "host": "1.1.1.1"})])
def test_no_network_connection(plain):
    """Only what goes out to an Internet address is a network connection."""
    assert not TABLE["network_connection"].applies(event_from_plain(plain))


EXECVE = {
    "event": "exec",
    "process": {"exe": "/usr/bin/chattr"},
    "path": "/usr/bin/chattr",
    "origin": "audit",
    "records": [
        ["SYSCALL", [["syscall", "59"], ["a0", "55dd12"], ["comm", "chattr"], ["key", "one\x01two"]]],
        ["EXECVE", [["argc", "3"], ["a0", "chattr"], ["a1", "-i"], ["a2", "/etc/x"]]],
        ["PATH", [["item", "0"], ["name", "/usr/bin/chattr"]]],
    ],
}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("{type: EXECVE, a0: chattr, a1: -i}", True),
        ("{type: execve, a0: CHATTR}", True),
        ("{type: EXECVE, a0: /usr/bin/chattr}", True),
        ("{type: EXECVE, a0: /bin/chattr}", False),
        ("{type: EXECVE, a0|contains: dd}", False),
        ("{type: SYSCALL, a0|contains: dd}", True),
        ("{type: PATH, name: /usr/bin/chattr, key: two}", True),
        ("{type: PATH, key: one, comm: chattr}", True),
        ("{type: SYSCALL, SYSCALL: execve}", True),
        ("{type: EXECVE, a7: x}", False),
        ("[chattr -i]", True),
        ("['-x']", False),
    ],
)
def test_records(fires_on_records, selection, expected):
    """A rule for audit is tried against one record at a time; what it lacks is taken from the event's others."""
    assert expected == fires_on_records(selection, EXECVE)


def test_arguments_by_full_name(fires_on_records):
    """A rule that names the program alone finds it where it was called by its path."""
    event = {
        "event": "exec",
        "process": {},
        "records": [["EXECVE", [["a0", "/opt/bin/wget"], ["a1", "--post-file=x"]]]],
    }

    assert fires_on_records("{type: EXECVE, a0: wget, a1|startswith: --post-file}", event)


def documented(source):
    """Return the fields that docs/rules.md gives a source: (name, origin or "", what) of its table, and the names beside it."""
    text = (
        DOC.read_text(encoding="utf-8")
        .partition(f"### `{source.logsource.replace(' ', ': ')}`\n")[2]
        .partition("\n##")[0]
    )
    return re.findall(r"^\| `(\S+)`(?: \((\w+)\))? \| (.*) \|$", text, re.MULTILINE), set(
        re.findall(r"`([^` ]+)`", text)
    )


@pytest.mark.parametrize("source", TABLE.values(), ids=TABLE)
def test_documented(source):
    """docs/rules.md gives each source its fields, with what they are and whose events have them, and no others."""
    rows, names = documented(source)
    if "process_creation" in names:  # lineage: "all fields of", and its own
        names |= {name for name, _, _ in documented(TABLE["process_creation"])[0]}

    assert set(source.fields) <= names
    for name, origin, what in rows:
        field = source.fields[name]
        assert (field.what, ", ".join(field.origins)) == (what, origin or "audit, bpf")


def test_audits_fields_come_from_audit():
    """Nothing that only records have is promised of BPF."""
    assert {field.origins for field in TABLE["auditd"].fields.values()} == {(Origin.AUDIT,)}
    assert sources()["auditd"].fields.get("a77").origins == (Origin.AUDIT,)


def test_no_source_is_true():
    """What is said not to be had isn't had anywhere, and a reason names only what there is."""
    names = {name for source in TABLE.values() for name in source.fields}
    told = " ".join([*NO_SOURCE.values(), *NO_LOGSOURCE.values()])

    assert not names & set(NO_SOURCE)
    assert not {source.logsource for source in TABLE.values()} & set(NO_LOGSOURCE)
    assert set(re.findall(r"category (\w+)", told)) <= set(TABLE)
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", told)) <= names


def test_command():
    """`rules fields` lists every field of every source, and what is not to be had."""
    shown = CliRunner().invoke(app, ["rules", "fields"]).output
    lines = [
        json.loads(line)
        for line in CliRunner().invoke(app, ["rules", "fields", "--json"]).output.splitlines()
    ]
    fields = [(line["logsource"], line["field"]) for line in lines if "what" in line]

    assert fields == [(source.logsource, name) for source in TABLE.values() for name in source.fields]
    assert {line["field"] for line in lines if "no_source" in line} == {*NO_SOURCE, None}
    assert all(
        name in shown for name in ("ParentUser", "DestinationHostname", "service sshd", "category lineage")
    )


ARGUMENT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\n", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=12,
)
NAME = st.text("abcXYZ09._-", min_size=1, max_size=8).filter(lambda name: name.strip("."))


def seen_by_bpf(exe, argv, cwd, asked, uid, euid, auid):
    """Return an exec as the collector's record of it is understood."""
    parts = b""
    for kind, value in (
        (abi.PartKind.EXE, b"".join(n.encode() + b"\0" for n in reversed(exe.split("/")) if n)),
        (abi.PartKind.CWD, b"".join(n.encode() + b"\0" for n in reversed(cwd.split("/")) if n)),
        (abi.PartKind.NAME, asked.encode() + b"\0"),
        (abi.PartKind.ARGV, b"".join(word.encode() + b"\0" for word in argv)),
    ):
        parts += bytes(abi.Part(kind=kind, len=len(value))) + value
    made = abi.Exec(uid=uid, euid=euid, auid=auid, session=1, cgroup=1, program=1, before=(0, 0))
    header = ctypes.sizeof(abi.Header)
    body = bytes(made)[header:].ljust(abi.PARTS - header, b"\0") + parts
    head = abi.Header(
        kind=abi.Kind.EXEC,
        flags=0,
        size=header + len(body),
        time_ns=7,
        start_ns=5,
        tgid=10,
        tid=10,
        sequence=1,
        cpu=0,
        program=1,
    )
    table = ProcessTable()
    table.add(Process(ProcessKey(10, 0), exe="/bin/sh", argv=("sh",), parent=PARENT, uid=uid, euid=euid))
    return BpfNormalizer(table, 0, "x86_64", None).item(memoryview(bytes(head) + body))


def seen_by_audit(exe, argv, cwd, asked, uid, euid, auid):
    """Return the same as audit's records of it are understood."""
    call = {
        "arch": "c000003e", "syscall": "59", "success": "yes", "exit": "0", "ppid": "9", "pid": "10", "uid": str(uid),
        "euid": str(euid), "auid": str(auid), "comm": "x", "exe": exe,
    }  # fmt: skip
    words = {"argc": str(len(argv))} | {f"a{n}": word for n, word in enumerate(argv)}
    records = [
        Record("SYSCALL", tuple(call.items())),
        Record("EXECVE", tuple(words.items())),
        Record("CWD", (("cwd", cwd),)),
        Record("PATH", (("item", "0"), ("name", asked), ("nametype", "NORMAL"))),
    ]
    table = ProcessTable()
    table.add(PARENT)
    table.add(Process(ProcessKey(10, 0), exe="/bin/sh", argv=("sh",), parent=PARENT, uid=uid, euid=euid))
    (event,) = AuditNormalizer(table, None).events(AuditGroup(1, 7, "", tuple(records)))
    return event


PARENT = Process(ProcessKey(9, 0), exe="/usr/sbin/nginx", argv=("nginx", "-g"), uid=33, euid=33)


@given(
    folder=st.lists(NAME, min_size=1, max_size=3),
    argv=st.lists(ARGUMENT, min_size=1, max_size=4),
    asked=NAME,
    full=st.booleans(),
    uids=st.tuples(*[st.integers(0, 70000)] * 3),
)
def test_whoever_saw_it(folder, argv, asked, full, uids):
    """An exec has the same fields, whether the collector's record or audit's records tell of it: so the same rules match."""
    exe = "/" + "/".join(folder)
    facts = (exe, argv, "/srv/app", f"/usr/bin/{asked}" if full else f"./{asked}", *uids)
    bpf, audit = View(seen_by_bpf(*facts)), View(seen_by_audit(*facts))
    lineage = TABLE["lineage"]

    assert (bpf.event.origin, audit.event.origin) == (Origin.BPF, Origin.AUDIT)
    for name, field in lineage.fields.items():
        assert (name, bpf.values(field)) == (name, audit.values(field))
    assert bpf.values(lineage.fields["CommandLine"]) == (" ".join(argv),)
    assert bpf.values(lineage.fields["ParentImage"]) == ("/usr/sbin/nginx",)
