# SPDX-License-Identifier: Apache-2.0
"""Audit logs: every line is accounted for, whatever the file looks like."""

import gzip
import io
import sys
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksentinel.errors import HostError, InputError
from ksentinel.event import Record
from ksentinel.sources.auditlog import Account, Assembler, AuditLog, RecordParser, arguments

pytest.importorskip("auparse", reason="apt install python3-audit, and run Debian's interpreter")

DATA = Path(__file__).parent.parent / "data" / "audit"
LOGS = sorted(DATA.glob("*.log"))
SYSCALL = 'type=SYSCALL msg=audit({}:{}): arch=c000003e syscall=59 success=yes exit=0 ppid=1 pid=7 comm="x"'
CWD = 'type=CWD msg=audit({}:{}): cwd="/srv"'


def read(text, name="-"):
    """Return the log after reading, and its groups."""
    data = text if isinstance(text, bytes) else text.encode()
    log = AuditLog("-", io.BytesIO(data))
    return log, list(log)


def record(log):
    """Return the one record of a one-line log."""
    [group] = read(log + "\n")[1]
    [found] = group.records
    return found


def adds_up(account):
    return account.lines == account.in_events + account.malformed + account.pending


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.stem)
def test_recorded(log):
    """A recorded log has nothing malformed or pending, and as many events as serials."""
    lines = log.read_bytes().splitlines()
    serials = {line.split(b"msg=audit(")[1].split(b")")[0] for line in lines}
    audit = AuditLog(log)

    assert len(serials) == len(list(audit))
    assert Account(str(log), len(lines), len(lines), 0, 0, len(serials)) == audit.account


def test_interleaved():
    """Records of two serials that alternate become two groups, in order of their first lines."""
    lines = [
        SYSCALL.format("1.000", 2),
        SYSCALL.format("1.000", 1),
        CWD.format("1.000", 1),
        CWD.format("1.000", 2),
    ]
    groups = read("\n".join(lines) + "\n")[1]

    assert [(g.serial, [r.type for r in g.records]) for g in groups] == [
        (2, ["SYSCALL", "CWD"]),
        (1, ["SYSCALL", "CWD"]),
    ]


def test_records_after_eoe():
    """A record that follows its EOE or PROCTITLE belongs to the same group (auparse would make two events)."""
    lines = [
        SYSCALL.format("1.000", 1),
        'type=PROCTITLE msg=audit(1.000:1): proctitle="x"',
        "type=EOE msg=audit(1.000:1): ",
        CWD.format("1.000", 1),
    ]
    [group] = read("\n".join(lines) + "\n")[1]

    assert [r.type for r in group.records] == ["SYSCALL", "PROCTITLE", "EOE", "CWD"]


def test_window():
    """A record more than two seconds of event time late becomes a group of its own."""
    lines = [SYSCALL.format("1.000", 1), SYSCALL.format("3.001", 2), CWD.format("1.000", 1)]
    log, groups = read("\n".join(lines) + "\n")

    assert [g.serial for g in groups] == [1, 2, 1]
    assert Account("<stdin>", 3, 3, 0, 0, 3) == log.account


def test_held_lines_are_bounded():
    """With the clock standing still, no more lines are held than allowed."""
    assembler = Assembler(held=10)
    groups = [
        group for n in range(100) for group in assembler.add(("", 0, n), Record("CWD", (("cwd", str(n)),)))
    ]

    assert list(range(90)) == [g.serial for g in groups]
    assert assembler.held == 10


def test_clock_set_back():
    """When the clock is set back by an hour, later events are still put together."""
    lines = [SYSCALL.format("9999.000", 1), SYSCALL.format("5.000", 2), CWD.format("5.000", 2)]
    groups = read("\n".join(lines) + "\n")[1]

    assert [(g.serial, len(g.records)) for g in groups] == [(1, 1), (2, 2)]


def test_nodes():
    """The same serial and time of two nodes are two events; the prefix stays in the records."""
    lines = [f"node={node} {CWD.format('1.000', 1)}" for node in ("a", "b")]
    groups = read("\n".join(lines) + "\n")[1]

    assert [g.node for g in groups] == ["a", "b"]
    assert groups[0].records[0].fields == (("node", "a"), ("cwd", "/srv"))


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('type=CWD msg=audit(1.000:1): cwd="/srv"', {"cwd": "/srv"}),
        ("type=CWD msg=audit(1.000:1): cwd=2F73207276", {"cwd": "/s rv"}),
        ("type=CWD msg=audit(1.000:1): cwd=2FFF", {"cwd": "/\udcff"}),
        (
            "type=PATH msg=audit(1.000:1): item=0 name=(null) inode=4142",
            {"item": "0", "name": "(null)", "inode": "4142"},
        ),
        ("type=SYSCALL msg=audit(1.000:1): a0=4142 key=6B31016B32", {"a0": "4142", "key": "k1 k2"}),
        ("type=PROCTITLE msg=audit(1.000:1): proctitle=6C73002D6C", {"proctitle": "ls\0-l"}),
        (
            "type=USER_CMD msg=audit(1.000:1): pid=1 msg='cwd=\"/\" cmd=6964202D75 res=success'",
            {"pid": "1", "cwd": "/", "cmd": "id -u", "res": "success"},
        ),
        ('type=CONFIG_CHANGE msg=audit(1.000:1): op="add rule" res=1', {"op": "add rule", "res": "1"}),
        (
            'type=SYSCALL msg=audit(1.000:1): uid=0\x1dUID="root" SADDR={ saddr_fam=inet lport=1 } X=y',
            {"uid": "0", "UID": "root", "SADDR": "{ saddr_fam=inet lport=1 }", "X": "y"},
        ),
        (
            "type=AVC msg=audit(1.000:1): avc:  denied  { read write } for  pid=3",
            {"seresult": "denied", "seperms": "read,write", "pid": "3"},
        ),
    ],
)
def test_fields(line, fields):
    """Values are decoded as the field's kind asks for, numbers that look like hex stay."""
    pairs = record(line).fields
    names = list(dict.fromkeys(name for name, _ in pairs))

    assert fields == {n: " ".join(v for name, v in pairs if name == n) for n in names}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("1300", "SYSCALL"), ("FOO", "FOO"), ("UNKNOWN[1999]", "UNKNOWN[1999]"), ("99999", "99999")],
)
def test_types(kind, name):
    """A type that auparse doesn't know is kept as it stands; a number gets its name."""
    assert name == record(f"type={kind} msg=audit(1.000:1): a=b").type


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank line"),
        (b"----", "a separator of ausearch: '----'"),
        (b"type=CWD msg=audit(x:1): a=b", "not an audit record: 'type=CWD msg=audit(x:1): a=b'"),
        (b"type=CWD msg=audit(06/17/2022 11:30:04.001:10) : cwd=/", "interpreted (ausearch -i); only raw"),
        (b"\x7fELF\xff\0", "not an audit record: '\\x7fELF\\\\xff\\x00'"),
        (b"type=CWD msg=audit(1.000:9999999999): a=b" + b"x" * (1 << 20), "longer than 1048576 bytes"),
    ],
)
def test_malformed(line, reason):
    """What is no record is counted and located, and the walk goes on."""
    log, groups = read(
        CWD.format("1.000", 1).encode() + b"\n" + line + b"\n" + CWD.format("1.000", 2).encode() + b"\n"
    )

    assert [g.serial for g in groups] == [1, 2]
    assert Account("<stdin>", 3, 2, 1, 0, 2) == log.account
    assert str(log.malformed[0].at) == "<stdin>:2"
    assert log.malformed[0].reason.startswith(reason)


def test_malformed_are_kept_to_twenty():
    """Only the first twenty malformed lines are kept; all are counted."""
    log, _ = read("junk\n" * 50 + CWD.format("1.000", 1) + "\n")

    assert (len(log.malformed), log.account.malformed) == (20, 50)


@pytest.mark.parametrize("value", ["x" * 70_000, "a\0b", "\x01\x02\x1e", "\udcff\udcfe"])
def test_odd_bytes(value):
    """A long value, NUL, control characters and bytes that are no UTF-8 don't stop the walk."""
    line = CWD.format("1.000", 1).encode() + b' x="' + value.encode("utf-8", "surrogateescape") + b'"\n'
    log, [group] = read(line + CWD.format("1.000", 1).encode() + b"\n")

    assert Account("<stdin>", 2, 2, 0, 0, 1) == log.account
    expected = (
        value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    )
    assert expected == group.records[0].get("x")


def test_windows_line_ends():
    """A carriage return at the end of a line is no part of it."""
    assert record(CWD.format("1.000", 1) + "\r").get("cwd") == "/srv"


def test_cut_line():
    """A last line without a newline is pending; the event it belongs to is not held back by it."""
    log, groups = read(SYSCALL.format("1.000", 1) + "\n" + CWD.format("1.000", 1))

    assert [[r.type for r in g.records] for g in groups] == [["SYSCALL"]]
    assert Account("<stdin>", 2, 1, 0, 1, 1) == log.account


EXECVE = [
    'type=EXECVE msg=audit(1.000:1): argc=3 a0="sh" a1_len=12 a1[0]=616220',
    'type=EXECVE msg=audit(1.000:1): a1[1]=636420 a2="x"',
]


@pytest.mark.parametrize(("parts", "argv", "complete"), [
    (EXECVE, ("sh", "ab cd ", "x"), True),
    (EXECVE[::-1], ("sh", "ab cd ", "x"), True),
    (EXECVE[:1], ("sh", "ab "), False),
    (EXECVE[1:], ("cd ", "x"), False),
    (['type=EXECVE msg=audit(1.000:1): argc=x a0="sh"'], ("sh",), False),
    (['type=EXECVE msg=audit(1.000:1): argc=99999999999999999999 a0="sh"'], ("sh",), False),
    (["type=CWD msg=audit(1.000:1): a0=1"], (), True),
])  # fmt: skip
def test_arguments(parts, argv, complete):
    """Arguments are joined from their parts, whatever order the records came in, and gaps are told."""
    [group] = read("\n".join([*parts, SYSCALL.format("9.000", 2)]) + "\n")[1][:1]

    assert (argv, complete) == arguments(group.records)


def test_incomplete_at_the_end():
    """An event whose arguments are cut off by the end of the file is pending, all of it."""
    log, groups = read("\n".join([SYSCALL.format("1.000", 1), EXECVE[0]]) + "\n")

    assert groups == []
    assert Account("<stdin>", 2, 0, 0, 2, 0) == log.account


def test_incomplete_in_the_middle():
    """In the middle of a log it stays an event: a lost record must not hide a program start."""
    log, groups = read("\n".join([SYSCALL.format("1.000", 1), EXECVE[0], CWD.format("9.000", 2)]) + "\n")

    assert [g.serial for g in groups] == [1, 2]
    assert adds_up(log.account)


def test_gzip(tmp_path):
    """Compression by gzip is told by its content, several members included."""
    log = LOGS[0].read_bytes()
    half = log.index(b"\n", len(log) // 2) + 1
    (tmp_path / "audit.log.1").write_bytes(gzip.compress(log[:half]) + gzip.compress(log[half:]))

    assert list(AuditLog(LOGS[0])) == list(AuditLog(tmp_path / "audit.log.1"))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_cut_gzip(tmp_path, keep):
    """Of a cut gzip file the events before the cut come out; then it is an error, and the account adds up."""
    lines = "\n".join(f'{SYSCALL.format(f"{n}.000", n)} x="{pow(3, n, 2**61 - 1)}"' for n in range(5000))
    packed = gzip.compress(lines.encode() + b"\n")
    path = tmp_path / "audit.log.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    log, groups = AuditLog(path), []

    with pytest.raises(InputError, match="compressed data end early or are damaged"):
        groups.extend(log)
    assert 5000 * keep * 0.8 < len(groups) < 5000
    assert adds_up(log.account)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b""), "the file is empty"),
        (b"\n\n", "not one of its 2 lines is an audit record; line 1: blank line"),
        (b"\x7fELF" + bytes(range(256)) * 300, "not one of its .* lines is an audit record"),
        (b"\x7fELF", "not one of its 1 lines is an audit record"),
        (b"BZh9xxxxxx", r"not by gzip.*bzcat"),
        (b"(\xb5/\xfd----", r"not by gzip.*zstdcat"),
        (b"\x1f\x8b\x08garbage", "compressed data end early or are damaged"),
    ],
)
def test_no_log(tmp_path, data, what):
    """A file that is no audit log is an error that names it, the place and what to do."""
    path = tmp_path / "file"
    path.write_bytes(data)
    log = AuditLog(path)

    with pytest.raises(InputError, match=f"(?s){path}.*{what}") as error:
        list(log)
    assert error.value.remedy
    assert adds_up(log.account)


def test_no_file(tmp_path):
    """A directory, a missing file and a missing standard input are errors with their reason."""
    with pytest.raises(InputError, match=r"is a directory.*audit.log"):
        list(AuditLog(tmp_path))
    with pytest.raises(InputError, match="No such file"):
        list(AuditLog(tmp_path / "none"))
    with pytest.raises(InputError, match="standard input"):
        list(AuditLog("-"))


def test_stdin_stays_open():
    """Standard input is not ours to close."""
    stdin = io.BytesIO(CWD.format("1.000", 1).encode() + b"\n")
    list(AuditLog("-", stdin))

    assert not stdin.closed


def test_twice():
    """Reading a file again starts its account anew."""
    log = AuditLog(LOGS[0])

    assert (list(log), log.account) == (list(log), log.account)


def test_without_auparse(monkeypatch):
    """Without auparse the error says what to install, and which interpreter it needs."""
    monkeypatch.setitem(sys.modules, "auparse", None)

    with pytest.raises(HostError, match=r"apt install python3-audit.*/usr/bin/python3"):
        RecordParser()


@given(st.binary(max_size=300))
def test_any_bytes(data):
    """Random bytes never crash; the account adds up."""
    log = AuditLog("-", io.BytesIO(data))
    with suppress(InputError):
        list(log)
    assert adds_up(log.account)


LINE = st.builds(
    lambda head, kind, time, serial, rest: f"{head}type={kind} msg=audit({time}:{serial}): {rest}",
    st.sampled_from(["", "node=n ", " "]),
    st.sampled_from(["SYSCALL", "EXECVE", "PATH", "AVC", "USER_CMD", "PROCTITLE", "FOO", "1300", "EOE", "CONFIG_CHANGE"]),
    st.sampled_from(["0.0", "1.000", "2.5", "9.999", "123456789012.1"]),
    st.integers(0, 5),
    st.text(st.sampled_from('abA019=" \'\x1d{}[]_\\:(),?\x01é'), max_size=40)
    | st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=20),
)  # fmt: skip


@given(st.lists(LINE, min_size=1, max_size=12), st.integers(0, 400))
def test_any_records(lines, cut):
    """Records with any fields never crash; each line is in one group, malformed or pending, wherever the file is cut."""
    data = ("\n".join(lines) + "\n").encode()
    log = AuditLog("-", io.BytesIO(data[: len(data) - cut] or b"\n"))
    groups = []
    with suppress(InputError):
        groups.extend(log)
    assert adds_up(log.account)
    assert log.account.in_events == sum(len(g.records) for g in groups)
    assert log.account.events == len(groups)


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_any_order(rng):
    """However the lines within the window are shuffled, each serial is one group with the same records."""

    def sets(groups):
        return {(g.time_ns, g.serial): sorted(map(astuple, g.records)) for g in groups}

    lines = (DATA / "sockets-raw.log").read_bytes().splitlines()
    rng.shuffle(lines)
    shuffled = AuditLog("-", io.BytesIO(b"\n".join(lines) + b"\n"))

    assert sets(AuditLog(DATA / "sockets-raw.log")) == sets(shuffled)
    assert shuffled.account.events == 11
