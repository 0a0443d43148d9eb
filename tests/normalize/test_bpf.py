# SPDX-License-Identifier: Apache-2.0
"""BPF records become events and windows: records made by hand, of every kind, whole and broken."""

import ctypes
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel import syscalls
from ksentinel.bpf import abi, guard_abi
from ksentinel.bpf.pathhash import program_hash
from ksentinel.event import (
    Address,
    ExecEvent,
    ExitEvent,
    ForkEvent,
    HookEvent,
    Origin,
    Outcome,
    Process,
    ProcessKey,
    Score,
    SyscallEvent,
)
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import ProcessTable
from ksentinel.normalize.redact import Redactor
from ksentinel.sources.procfs import Running
from ksentinel.sources.ringbuf import CAPTURES
from ksentinel.window import Cause, KernelScore, Window

EPOCH = 1_700_000_000_000_000_000
HEADER = ctypes.sizeof(abi.Header)
START, KEY = 5_123_456_789, ProcessKey(10, 5_120_000_000)
Part = abi.PartKind


@pytest.fixture
def normalizer():
    return BpfNormalizer(ProcessTable(), EPOCH, "x86_64", None)


def record(kind, body=b"", *, flags=0, pid=10, tid=None, start=START, time=7, size=None):
    """Return a record as the collector lays it out: the header, then what else is in the struct and its parts."""
    head = abi.Header(
        kind=kind, flags=flags, size=HEADER + len(body) if size is None else size, time_ns=time, start_ns=start,
        tgid=pid, tid=tid or pid, sequence=3, cpu=1, program=2,
    )  # fmt: skip
    return memoryview(bytes(head) + body)


def body(structure):
    """Return what of a struct is behind its header."""
    return bytes(structure)[HEADER:]


def window(tokens=(1, 2, 3), *, count=None, cause=Cause.FULL, scores=None, **options):
    """Return a window; behind its tokens stands what was there before."""
    made = abi.Window(
        first_ns=100, last_ns=200, count=len(tokens) if count is None else count, cause=cause,
        tokens=(*tokens, *[9] * (abi.WINDOW - len(tokens))), **(scores or {}),
    )  # fmt: skip
    return record(abi.Kind.WINDOW, body(made), **options)


def fork(parent=9, parent_start=START, *, session=4, uid=5, euid=6, cgroup=8, **options):
    made = abi.Fork(
        parent_start_ns=parent_start, parent_tgid=parent, session=session, uid=uid, euid=euid, cgroup=cgroup,
        mean=1, cusum=2, process=3,
    )  # fmt: skip
    return record(abi.Kind.FORK, body(made), **options)


def parts(**named):
    """Return the parts of a record; directories as paths, everything else as bytes."""
    out = b""
    for name, value in named.items():
        kind, cut = Part[name.removesuffix("_CUT")], name.endswith("_CUT")
        if isinstance(value, str):
            value = b"".join(n.encode() + b"\0" for n in reversed(value.split("/")) if n)  # noqa: PLW2901
        out += bytes(abi.Part(kind=kind | (abi.PART_CUT if cut else 0), len=len(value))) + value
    return out


def exec_(*, uid=1, euid=2, auid=3, session=4, cgroup=8, options=None, **named):
    made = abi.Exec(
        uid=uid, euid=euid, auid=auid, session=session, cgroup=cgroup, program=1, before=(2, 3), service=4,
        epoch=5, row=6, mean=7, cusum=8, known=2, surprise=9, process=10,
    )  # fmt: skip
    return record(abi.Kind.EXEC, padded(made) + parts(**named), **(options or {}))


def call(name, *args, uid=0, euid=0, variant=syscalls.Abi.NATIVE, options=None, **named):
    arch = "i386" if variant is syscalls.Abi.COMPAT else "x86_64"
    number = name if isinstance(name, int) else syscalls.numbers(arch)[name]
    values = [a & 0xFFFFFFFFFFFFFFFF for a in (*args, *[0xAAAA_BBBB_CCCC_DDDD] * (6 - len(args)))]
    made = abi.Call(args=tuple(values), uid=uid, euid=euid, token=syscalls.token(number, variant))
    return record(abi.Kind.CALL, padded(made) + parts(**named), **(options or {}))


def padded(structure):
    """Return a struct up to where the parts start: it shares that room with a larger one, whose rest is anything."""
    return body(structure).ljust(abi.PARTS - HEADER, b"\xee")


def test_window(normalizer):
    """A window has its thread, its times since the epoch, its tokens and no others."""
    found = normalizer.item(window((1, 2, 3), tid=11, cause=Cause.IDLE))

    assert found == Window(
        process=Process(KEY),
        tid=11,
        first_ns=EPOCH + 100,
        last_ns=EPOCH + 200,
        tokens=(1, 2, 3),
        cause=Cause.IDLE,
        origin=Origin.BPF,
        lossy=False,
    )


def test_lossy_window(normalizer):
    """Something was lost before: the window says so."""
    assert normalizer.item(window(flags=abi.Flag.LOSSY)).lossy


SCORES = {
    "epoch": 2, "row": 3, "begin_mean": 4, "begin_cusum": 5, "mean": 6, "cusum": 7, "peak_mean": 8, "peak_cusum": 9,
    "process": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "over", "named"),
    [
        (abi.Choice.FLAGGED, abi.Over.MEAN | abi.Over.PROCESS, ("mean", "process")),
        (abi.Choice.FLAGGED, abi.Over.CUSUM, ("cusum",)),
        (abi.Choice.SAMPLED, 0, ()),
        (abi.Choice.UNGATED, 7, ("mean", "cusum", "process")),
    ],
)
def test_scored_window(normalizer, choice, over, named):
    """What the kernel made of a window comes with it."""
    made = window(scores={**SCORES, "scored": 3, "choice": choice, "over": over})

    assert normalizer.item(made).kernel == KernelScore(
        **SCORES, scored=3, choice=choice.name.lower(), over=named
    )


def test_window_that_was_not_scored(normalizer):
    """Without a model there are no scores, whatever stands in their place."""
    assert normalizer.item(window(scores={**SCORES, "choice": 9})).kernel is None


@pytest.mark.parametrize(
    "broken",
    [
        window(count=0),
        window(count=65),
        window(count=65535),
        window(cause=5),
        window(tokens=(abi.TOKENS,)),
        window()[:-2],
        record(abi.Kind.WINDOW),
        record(abi.Kind.FORK),
        record(abi.Kind.EXEC),
        record(abi.Kind.CALL),
        record(0),
        record(6),
        window(scores={"scored": 1, "choice": 4}),
        record(abi.Kind.EXIT, size=HEADER - 1),
        record(abi.Kind.EXIT, size=HEADER + 1),
        record(abi.Kind.EXIT)[:-1],
        memoryview(b""),
        memoryview(b"\1\0"),
        exec_(NAME=b"x")[:-1],
        record(abi.Kind.CALL, padded(abi.Call()) + bytes(abi.Part(kind=1, len=5)) + b"four"),
        record(abi.Kind.CALL, padded(abi.Call(token=abi.TOKENS))),
    ],
)
def test_malformed(normalizer, broken):
    """What can't be understood is counted, and changes nothing."""
    assert normalizer.item(broken) is None
    assert (normalizer.malformed, len(normalizer.table)) == (1, 0)


SHAPES = {
    abi.Kind.WINDOW: ctypes.sizeof(abi.Window),
    abi.Kind.FORK: ctypes.sizeof(abi.Fork),
    abi.Kind.EXEC: abi.PARTS,
    abi.Kind.CALL: abi.PARTS,
}


@pytest.mark.parametrize("kind", [*abi.Kind, 0])
@given(data=st.data())
def test_any_bytes(kind, data):
    """Nothing that stands in a record crashes; it is an item, or malformed."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", Redactor())
    shape = SHAPES.get(kind, HEADER) - HEADER
    chunks = st.tuples(st.sampled_from([*Part, 99, 3 | abi.PART_CUT]), st.binary(max_size=20))
    start = data.draw(st.binary(min_size=shape, max_size=shape))
    tail = b"".join(
        bytes(abi.Part(kind=k, len=len(v))) + v for k, v in data.draw(st.lists(chunks, max_size=5))
    ) + data.draw(st.binary(max_size=5))
    found = normalizer.item(record(kind, start + tail, flags=data.draw(st.integers(0, 0xFFFF))))

    assert (found is None) == (normalizer.malformed == 1)


@given(st.binary(max_size=300))
def test_any_noise(raw):
    """Nor do bytes that are no record at all."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", None)

    assert (normalizer.item(memoryview(raw)) is None) == (normalizer.malformed == 1)


def test_fork(normalizer):
    """A child has its parent's program, and what the record says of it."""
    parent = normalizer.table.add(Process(ProcessKey(9, KEY.start_ns), exe="/bin/sh", argv=("sh",)))
    event = normalizer.item(fork())

    assert event == ForkEvent(
        time_ns=EPOCH + 7,
        process=Process(KEY, exe="/bin/sh", argv=("sh",), uid=5, euid=6, session=4, cgroup=8),
        tid=10,
        origin=Origin.BPF,
    )
    assert event.process.parent == parent


def test_fork_of_a_process_that_proc_told_of(normalizer):
    """Who was born after the collector's start is told from its birth, though /proc knew it as it was later."""
    known = [running(9, exe="/bin/sh"), running(10, parent=1, exe="/bin/cat")]
    normalizer.known(known)
    child = normalizer.item(fork()).process
    after = normalizer.item(exec_(EXE="/bin/cat", CWD="/")).process

    assert (child.exe, child.parent.key.pid) == ("/bin/sh", 9)
    assert (after.exe, after.was, after.parent.key.pid) == ("/bin/cat", "/bin/sh", 9)


def test_fork_of_a_used_pid(normalizer):
    """A PID that is used again is another process."""
    normalizer.table.add(Process(ProcessKey(10, 0), exe="/bin/old"))
    normalizer.item(fork())

    assert (normalizer.table.get(10).key, normalizer.table.get(10).exe) == (KEY, "")


def running(pid, *, parent=0, exe="/bin/x", argv=("x",)):
    return Running(ProcessKey(pid, KEY.start_ns), parent, exe, argv, 0, 0, None, 1, "/", "x")


def test_known(normalizer):
    """What runs already is entered with its parents."""
    normalizer.known([running(1, exe="/sbin/init"), running(9, parent=1), running(10, parent=9)])

    assert [a.key.pid for a in normalizer.table.get(10).ancestors()] == [9, 1]
    assert normalizer.table.get(10).depth == 2


def test_known_is_masked():
    """Secrets in arguments of what runs already are masked too."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", Redactor())
    normalizer.known([running(10, argv=("mysql", "-phunter2"))])

    assert normalizer.table.get(10).argv == ("mysql", "-p***")


SEED = 0x5EED


def told(normalizer, *families):
    """Return what the kernel's side is told of each process, by pid."""
    return dict(normalizer.introductions(SEED, families))


def test_introductions(normalizer):
    """The kernel's side is told program and service by their hashes, and what starts services."""
    normalizer.known(
        [
            running(1, exe="/sbin/init"),
            running(9, parent=1, exe="/usr/sbin/sshd"),
            running(10, parent=9, exe="/usr/bin/bash"),
            running(11, parent=10, exe="/usr/bin/vi"),
            running(12, parent=1, exe="/usr/sbin/nginx"),
            running(13, parent=12, exe=""),
        ]
    )
    flag, found = abi.ProcessFlag, told(normalizer)

    assert {pid: process.flags for pid, process in found.items()} == {
        1: flag.LAUNCHER,
        9: flag.LAUNCHER,
        10: flag.TERMINAL,
        11: flag.SERVED | flag.BY_TERMINAL,
        12: 0,
        13: flag.SERVED,
    }
    assert {pid: process.program for pid, process in found.items()} == {
        pid: program_hash(normalizer.table.get(pid).exe, SEED) for pid in (1, 9, 10, 11, 12, 13)
    }
    assert found[13].program == 0
    assert [found[pid].service for pid in (9, 10, 11, 13)] == [
        0, 0, program_hash("/usr/bin/bash", SEED), program_hash("/usr/sbin/nginx", SEED),
    ]  # fmt: skip


def test_introductions_of_families(normalizer):
    """Whoever descends from a process that is wanted is marked, and nobody else."""
    normalizer.known([running(1), running(9, parent=1), running(10, parent=9), running(11, parent=1)])
    marked = [pid for pid, one in told(normalizer, 9).items() if one.flags & abi.ProcessFlag.FAMILY]

    assert marked == [9, 10]


def test_introduction_of_what_it_was(normalizer):
    """What a process was before goes along, as far as it is known."""
    for exe in ("/bin/a", "/bin/b", "/bin/c"):
        normalizer.item(exec_(EXE=exe))
        found = told(normalizer)[10]
        before = normalizer.table.get(10).before
        assert list(found.before)[: found.known] == [program_hash(name, SEED) for name in before]

    assert before == ("/bin/b", "/bin/a")


def test_exec(normalizer):
    """A process becomes another program; what was asked for keeps its name."""
    normalizer.table.add(Process(KEY, exe="/bin/sh"))
    event = normalizer.item(
        exec_(EXE="/usr/bin/python3.11", CWD="/srv/app", NAME=b"./run.py\0", ARGV=b"python3\0./run.py\0")
    )

    assert event == ExecEvent(
        time_ns=EPOCH + 7,
        process=Process(
            KEY,
            exe="/usr/bin/python3.11",
            argv=("python3", "./run.py"),
            was="/bin/sh",
            uid=1,
            euid=2,
            auid=3,
            session=4,
            cwd="/srv/app",
            comm="python3.11",
            before=("/bin/sh",),
            cgroup=8,
        ),
        tid=10,
        origin=Origin.BPF,
        path="/srv/app/run.py",
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (b"", ()),
        (b"\0", ("",)),
        (b"a\0", ("a",)),
        (b"a\0\0", ("a", "")),
        (b"a\0\0b\0", ("a", "", "b")),
        (b"a\0cut", ("a", "cut")),
        (b"\xff\xfe\0", ("\udcff\udcfe",)),
        ("é\n\t\0".encode(), ("é\n\t",)),
    ],
)
def test_argv(normalizer, argv, words):
    """Arguments keep empty words and any bytes."""
    assert normalizer.item(exec_(EXE="/bin/x", ARGV=argv)).process.argv == words


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/usr/bin/python3\0", "/usr/bin/python3"),
        (b"//usr/./bin//python3\0", "/usr/bin/python3"),
        (b"../bin/python3\0", "/srv/bin/python3"),
        (b"\0", "/srv/app"),
    ],
)
def test_exec_path(normalizer, name, path):
    """The working directory is where a relative path starts, and says nothing of an absolute one."""
    assert normalizer.item(exec_(EXE="/usr/bin/python3.11", CWD="/srv/app", NAME=name)).path == path


@pytest.mark.parametrize(
    ("name", "flags", "program"),
    [
        (b"/srv/run.py\0", abi.Flag.SCRIPT, "#!/srv/run.py"),
        (b"/srv/run.py\0", 0, "/usr/bin/python3.11"),
        (b"/srv//./run.py\0", abi.Flag.SCRIPT, "#!/srv//./run.py"),
        (b"./run.py\0", abi.Flag.SCRIPT, "/usr/bin/python3.11"),
        (b"/dev/fd/3\0", abi.Flag.SCRIPT, "/usr/bin/python3.11"),
        (b"/dev/fd/3/run.py\0", abi.Flag.SCRIPT, "/usr/bin/python3.11"),
        (b"", abi.Flag.SCRIPT, "/usr/bin/python3.11"),
    ],
)
def test_script(normalizer, name, flags, program):
    """A script is known by the path it was executed by, byte for byte, as the kernel's side knows it; without one, it is its interpreter."""
    found = normalizer.item(
        exec_(EXE="/usr/bin/python3.11", CWD="/srv", NAME=name, options={"flags": flags})
    ).process

    assert (found.program, found.exe) == (program, "/usr/bin/python3.11")


def test_what_it_was(normalizer):
    """The last two programs stay known, the newest first, and go to a child."""
    for exe in ("/bin/a", "/bin/b", "/bin/c"):
        normalizer.item(exec_(EXE=exe, NAME=exe.encode() + b"\0"))
    after = normalizer.item(
        exec_(EXE="/bin/sh", NAME=b"/srv/d\0", options={"flags": abi.Flag.SCRIPT})
    ).process
    child = normalizer.item(fork(parent=10, pid=11)).process

    assert (after.program, after.before) == ("#!/srv/d", ("/bin/c", "/bin/b"))
    assert (child.program, child.before, child.script) == (after.program, after.before, "/srv/d")


def test_exec_flags(normalizer):
    """A program without a name left says so, and so does what was cut; nobody logged in is nobody."""
    flags = abi.Flag.UNLINKED | abi.Flag.TRUNCATED
    event = normalizer.item(exec_(EXE="/memfd:x", auid=0xFFFFFFFF, options={"flags": flags}))

    assert (event.process.exe, event.process.auid, event.truncated) == ("/memfd:x (deleted)", None, True)


def test_exec_too_deep(normalizer):
    """A program whose directory was too deep can't pass for one below the root."""
    event = normalizer.item(exec_(EXE_CUT="usr/sbin/sshd", NAME=b"/usr/sbin/sshd\0"))

    assert event.process.exe == ".../usr/sbin/sshd"


def test_exec_masks():
    """Secrets in arguments are masked."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", Redactor())

    assert normalizer.item(exec_(EXE="/bin/mysql", ARGV=b"mysql\0-phunter2\0")).process.argv == (
        "mysql",
        "-p***",
    )


def test_exit(normalizer):
    """An exit has the process as it was, and takes it from the table."""
    process = normalizer.table.add(Process(KEY, exe="/bin/x"))

    assert normalizer.item(record(abi.Kind.EXIT)) == ExitEvent(
        time_ns=EPOCH + 7, process=process, tid=10, origin=Origin.BPF
    )
    assert len(normalizer.table) == 0


def test_exit_of_a_stranger(normalizer):
    """The end of a process nothing is known of is told all the same."""
    assert normalizer.item(record(abi.Kind.EXIT)).process == Process(KEY)
    assert len(normalizer.table) == 0


def test_late_records(normalizer):
    """What another CPU tells after the exit still belongs to that process, and doesn't bring it back."""
    normalizer.table.add(Process(KEY, exe="/bin/x", uid=0, euid=0))
    normalizer.item(record(abi.Kind.EXIT))
    late = [normalizer.item(window(tid=11)), normalizer.item(call("unlink", PATH1=b"/x\0", uid=5))]

    assert [item.process.exe for item in late] == ["/bin/x", "/bin/x"]
    assert len(normalizer.table) == 0


def test_late_records_are_bounded(normalizer):
    """Processes that have ended are not remembered for ever."""
    for pid in range(5000):
        normalizer.item(record(abi.Kind.EXIT, pid=pid))

    assert len(normalizer._ended) == 4096


def test_user_changes(normalizer):
    """A call shows as whom the process runs now."""
    normalizer.table.add(Process(KEY, exe="/bin/x", uid=0, euid=0))
    normalizer.item(call("ptrace", 16, 99, uid=7, euid=8))

    assert (normalizer.table.get(10).uid, normalizer.table.get(10).euid) == (7, 8)


FAR = os.O_CREAT | os.O_WRONLY


@pytest.mark.parametrize(
    ("made", "event"),
    [
        (call("openat", -100, 0, FAR, 0o644, PATH1=b"/a/b\0"), {"paths": ("/a/b",), "flags": FAR, "mode": 0o644}),
        (call("openat", -100, 0, 0, PATH1=b"a\0", BASE1="/srv"), {"paths": ("/srv/a",), "flags": 0}),
        (call("openat", -100, 0, 0, PATH1=b"../a\0", BASE1="/srv"), {"paths": ("/a",), "flags": 0}),
        (call("openat", -100, 0, 0, PATH1=b"a//b/./c\0", BASE1="/"), {"paths": ("/a/b/c",), "flags": 0}),
        (call("openat", -1, 0, 0, PATH1=b"a\0"), {"paths": ("a",), "flags": 0}),
        (call("openat", 3, 0, 0, PATH1=b"a\0", BASE1_CUT="x/y"), {"paths": (".../x/y/a",), "flags": 0}),
        (call("openat", 3, 0, 0, PATH1=b"//a\0"), {"paths": ("/a",), "flags": 0}),
        (call("openat", 3, 0, 0, PATH1=b"/../../a\0", BASE1="/jail"), {"paths": ("/jail/a",), "flags": 0}),
        (call("openat", 3, 0, 0, PATH1=b"/a\0", BASE1_CUT="x"), {"paths": (".../x/a",), "flags": 0}),
        (call("openat", 3, 0, 0, PATH1=b"\xff\0"), {"paths": ("\udcff",), "flags": 0}),
        (call("open", 0, os.O_RDONLY, 0o7777, PATH1=b"/a\0"), {"paths": ("/a",), "flags": 0}),
        (call("open", 0, 0o20200000, 0o600, PATH1=b"/a\0"), {"paths": ("/a",), "flags": 0o20200000, "mode": 0o600}),
        (call("creat", 0, 0o600, PATH1=b"/a\0"), {"paths": ("/a",), "mode": 0o600}),
        (call("openat2", 3, 0, 0, 24, PATH1=b"/a\0", WORDS=FAR.to_bytes(8, "little")), {"paths": ("/a",), "flags": FAR}),
        (call("openat2", 3, 0, 0, 24, PATH1=b"/a\0", WORDS=b""), {"paths": ("/a",)}),
        (call("fchownat", 3, 0, -1, 5, 0x1000, PATH1=b"\0", BASE1="/srv/x"), {"paths": ("/srv/x",), "flags": 0x1000, "values": (("uid", -1), ("gid", 5))}),
        (call("rename", PATH1=b"/a\0", PATH2=b"b\0", BASE2="/srv"), {"paths": ("/a", "/srv/b")}),
        (call("renameat2", 3, 0, 4, 0, 1, PATH1=b"a\0", BASE1="/x", PATH2=b"b\0", BASE2="/y"), {"paths": ("/x/a", "/y/b"), "flags": 1}),
        (call("symlink", PATH1=b"../t\0", BASE1="/cwd", PATH2=b"l\0", BASE2="/srv/d"), {"paths": ("/srv/t", "/srv/d/l")}),
        (call("symlinkat", PATH1=b"/t\0", PATH2=b"/l\0"), {"paths": ("/t", "/l")}),
        (call("symlinkat", PATH1=b"/dev/null\0", PATH2=b"/root/l\0"), {"paths": ("/dev/null", "/root/l")}),
        (call("symlink", PATH1=b"/t\0", BASE1="/jail", PATH2=b"/d/l\0", BASE2="/jail"), {"paths": ("/jail/t", "/jail/d/l")}),
        (call("symlink", PATH1=b"", PATH2=b"/l\0", options={"flags": 2}), {"paths": ("", "/l"), "unreadable": True}),
        (call("memfd_create", 0, 1, PATH1=b"name\0", BASE1="/cwd"), {"paths": ("name",), "flags": 1}),
        (call("delete_module", 0, 0x800, PATH1=b"mod\0", BASE1="/cwd"), {"paths": ("mod",), "flags": 0x800}),
        (call("mount", 0, 0, 0, 4096, PATH1=b"tmpfs\0", BASE1="/cwd", PATH2=b"m\0", BASE2="/cwd"), {"paths": ("tmpfs", "/cwd/m"), "flags": 4096}),
        (call("fchmodat2", 3, 0, 0o4755, 0x100, PATH1=b"/a\0"), {"paths": ("/a",), "mode": 0o4755, "flags": 0x100}),
        (call("chmod", 0, 0o100004755, PATH1=b"/a\0"), {"paths": ("/a",), "mode": 0o100004755}),
        (call("fchmod", 3, 0o600), {"mode": 0o600, "values": (("fd", 3),)}),
        (call("kill", -1, 9), {"target": -1, "values": (("signal", 9),)}),
        (call("kill", 0xFFFFFFFF, 9), {"target": -1, "values": (("signal", 9),)}),
        (call("ptrace", 0x4206, 1234), {"target": 1234, "values": (("request", 0x4206),)}),
        (call("process_vm_writev", 77), {"target": 77}),
        (call("setresuid", -1, 0, -1), {"values": (("uid", -1), ("euid", 0), ("suid", -1))}),
        (call("prctl", 38, 1), {"values": (("option", 38), ("arg2", 1))}),
        (call("bpf", 5), {"values": (("command", 5),)}),
        (call("setns", 3, 0x20000), {"flags": 0x20000}),
        (call("capset"), {}),
        (call("connect", 3, 0, 16, ADDRESS=bytes.fromhex("0200005008080808")), {"address": Address("inet", "8.8.8.8", 80), "values": (("fd", 3),)}),
        (call("connect", 3, 0, 16, ADDRESS=b"", options={"flags": 2}), {"values": (("fd", 3),), "unreadable": True}),
        (call("truncate", PATH1=b"", options={"flags": 2 | 16}), {"paths": ("",), "unreadable": True}),
        (call("truncate", PATH1=b"/a\0", options={"flags": 1}), {"paths": ("/a",), "truncated": True}),
        (call("truncate", PATH1=b"/a\0", options={"flags": 16}), {"paths": ("/a",)}),
    ],
)  # fmt: skip
def test_call(normalizer, made, event):
    """A call's arguments become what they mean; what stands in other registers is left out."""
    found = normalizer.item(made)
    name = found.syscall

    assert found == SyscallEvent(
        time_ns=EPOCH + 7,
        process=Process(KEY, uid=0, euid=0),
        tid=10,
        origin=Origin.BPF,
        syscall=name,
        **event,
    )


@pytest.mark.parametrize(
    ("made", "name", "abi_name"),
    [
        (call("open", PATH1=b"/a\0", variant=syscalls.Abi.COMPAT), "open", "i386"),
        (call("setuid32", 0, variant=syscalls.Abi.COMPAT), "setuid", "i386"),
        (call("setresgid32", 0, variant=syscalls.Abi.COMPAT), "setresgid", "i386"),
        (call("chown32", 0, 1, 2, PATH1=b"/a\0", variant=syscalls.Abi.COMPAT), "chown", "i386"),
        (call("truncate64", PATH1=b"/a\0", variant=syscalls.Abi.COMPAT), "truncate", "i386"),
        (call("openat", -100, 0, 0, PATH1=b"/a\0", variant=syscalls.Abi.X32), "openat", "x32"),
        (call("openat", -100, 0, 0, PATH1=b"/a\0"), "openat", "native"),
        (call(1000), "syscall_1000", "native"),
        (call(9999), "invalid", "native"),
    ],
)
def test_abi(normalizer, made, name, abi_name):
    """A call has the name it has in its own ABI; the wide and the narrow ones of i386 are one."""
    found = normalizer.item(made)

    assert (found.syscall, found.abi) == (name, abi_name)


def test_wide_ids(normalizer):
    """The user id of a 32-bit call is found too."""
    made = call("setuid32", 0, variant=syscalls.Abi.COMPAT)

    assert normalizer.item(made).values == (("uid", 0),)


def test_paths_are_masked():
    """A name of a file may hold a secret as well as an argument may."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", Redactor())
    (path,) = normalizer.item(call("openat", 3, 0, 0, PATH1=b"/srv/password=hunter2\0")).paths

    assert "hunter2" not in path


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize(
    ("arch", "variant"), [("x86_64", syscalls.Abi.NATIVE), ("i386", syscalls.Abi.COMPAT)]
)
def test_every_captured_call(normalizer, name, arch, variant):
    """Whatever is captured becomes an event, without a register that holds nonsense doing harm."""
    if name not in syscalls.numbers(arch):
        assert name in syscalls.numbers("i386") or name in syscalls.numbers("x86_64")
        return
    found = normalizer.item(
        call(name, *[0xFFFF_FFFF_FFFF_FFFF] * 6, variant=variant, PATH1=b"a\0", BASE1="/b", PATH2=b"c\0")
    )

    assert (found.paths[0] in {"/b/a", "a"}, normalizer.malformed) == (True, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fork", "exec", "exit", "call", "window"]), st.integers(1, 4), st.integers(0, 2)
        ),
        max_size=30,
    )
)
def test_any_order(steps):
    """Records out of order and PIDs used again: never a crash, never the name of another process."""
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", None)
    programs: dict[ProcessKey, set[str]] = {}
    for what, pid, start in steps:
        where = {"pid": pid, "start": start * 20_000_000}
        key, exe = ProcessKey(pid, start * 20_000_000), f"/bin/{pid}.{start}"
        match what:
            case "fork":
                found = normalizer.item(fork(parent=5, parent_start=0, **where))
            case "exec":
                found = normalizer.item(exec_(EXE=exe, options=where))
            case "exit":
                found = normalizer.item(record(abi.Kind.EXIT, **where))
            case "call":
                found = normalizer.item(call("capset", options=where))
            case _:
                found = normalizer.item(window(**where))
        programs.setdefault(key, {"", exe})
        assert found.process.key == key
        assert found.process.exe in programs[key]
    assert normalizer.malformed == 0


# Guards that have spoken

Flag, Hook, Number, Trait = guard_abi.DenialFlag, guard_abi.Hook, guard_abi.Number, guard_abi.Trait


def told_denial(*paths, size=None, **fields):
    """Return a record of an ``openat`` that a guard refused, as the kernel lays it out."""
    told = {
        "epoch": 3, "rule": 7, "way": 12, "hook": Hook.FILE_OPEN, "token": syscalls.token_of("openat"),
        "outcome": guard_abi.Outcome.DENIED, "action": guard_abi.Action.DENY, "mode": guard_abi.Mode.ENFORCE, "uid": 5,
        "euid": 6, "mean": 1, "cusum": 2, "process": 3, "cgroup": 8,
    } | fields  # fmt: skip
    raw = [path if isinstance(path, bytes) else path.encode() for path in paths]
    made = guard_abi.Denial(**told, lengths=tuple([len(one) for one in raw] + [0] * (2 - len(raw))))
    return record(abi.Kind.DENIAL, body(made) + b"".join(raw), size=size)


def denial_of(*paths, rule_of=lambda epoch, number: (f"{epoch}/{number}", "A rule"), **fields):
    """Return the event of such a record."""
    return BpfNormalizer(ProcessTable(), EPOCH, "x86_64", None, rule_of=rule_of).item(
        told_denial(*paths, **fields)
    )


def test_denial():
    """Who, at which hook in which call, whose rule, what was seen, what became of it."""
    numbers = [0] * guard_abi.NUMBERS
    numbers[Number.FLAGS], numbers[Number.EUID] = 0o101, 6
    found = denial_of(
        "/etc/shadow",
        known=1 << Number.FLAGS | 1 << Number.EUID,
        numbers=tuple(numbers),
        traits=Trait.WRITE | Trait.NOT_ROOTS,
        flags=Flag.ANOMALOUS | Flag.KILLED | Flag.UNTOLD,
    )

    assert found == HookEvent(
        time_ns=EPOCH + 7, process=Process(KEY, uid=5, euid=6), tid=10, origin=Origin.BPF, hook="file_open",
        outcome=Outcome.DENIED, call="openat", rule="3/7", title="A rule", epoch=3, way=12, action="deny", mode="enforce",
        anomalous=True, untold=True, killed=True, paths=("/etc/shadow",), numbers=(("flags", 0o101), ("euid", 6)),
        traits=("write", "not_roots"), score=Score(1, 2, 3), cgroup=8,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "fields", "seen"),
    [
        (("/a", "/b"), {"hook": Hook.PATH_RENAME}, {"hook": "path_rename", "paths": ("/a", "/b")}),
        (("/deep/x",), {"flags": Flag.CUT}, {"paths": (".../deep/x",)}),
        ((b"/\xff",), {}, {"paths": ("/\udcff",)}),
        ((), {"flags": Flag.CANARY, "nonce": 9}, {"nonce": 9, "rule": "", "title": ""}),
        ((), {"flags": Flag.IO_URING, "token": syscalls.token_of("io_uring_enter")}, {"call": "io_uring"}),
        ((), {"token": 0x405}, {"call": "open", "abi": "i386"}),
        ((), {"flags": Flag.SENTENCE, "kind": 2}, {"sentence": "kill", "rule": "None/7"}),
        ((), {"outcome": 2, "mode": 2}, {"outcome": Outcome.WOULD_DENY, "mode": "permissive"}),
        (
            (),
            {
                "addressed": 1,
                "address": (0,) * 10 + (255, 255, 10, 0, 0, 1),
                "known": 4,
                "numbers": (0, 0, 22),
            },
            {"address": Address("inet", "10.0.0.1", 22)},
        ),
        (
            (),
            {"addressed": 1, "address": (0,) * 10 + (255, 255, 10, 0, 0, 1), "traits": Trait.IPV6},
            {"address": Address("inet6", "::ffff:10.0.0.1")},
        ),
        ((b"\0x\0y",), {"traits": Trait.UNIX}, {"address": Address("unix", path="@x@y")}),
        (("/run/x.sock",), {"traits": Trait.UNIX}, {"address": Address("unix", path="/run/x.sock")}),
    ],
)
def test_denials(paths, fields, seen):
    """Each of what a record may say."""
    found = denial_of(*paths, **fields)

    assert {name: getattr(found, name) for name in seen} == seen


@pytest.mark.parametrize(
    "fields",
    [
        {"hook": 0},
        {"hook": 39},
        {"outcome": 0},
        {"outcome": 6},
        {"action": 0},
        {"mode": 4},
        {"kind": 3, "flags": Flag.SENTENCE},
        {"kind": 1},
        {"flags": Flag.SENTENCE},
        {"flags": 128},
        {"known": 1 << guard_abi.NUMBERS},
        {"addressed": 2},
        {"token": abi.TOKENS},
    ],
)
def test_impossible_denials(fields):
    """A number that stands for nothing makes it no event."""
    assert denial_of("/x", **fields) is None


def test_denial_of_another_size():
    """Nor is one that says another length than it has, or has a NUL where a path can have none."""
    whole = bytes(told_denial("/etc/shadow"))
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", None)
    longer = abi.Header.from_buffer_copy(whole)
    longer.size = len(whole) + 1
    cut = abi.Header.from_buffer_copy(whole)
    cut.size = len(whole) - 1
    broken = [
        bytes(longer) + whole[HEADER:] + b"x",
        bytes(cut) + whole[HEADER:-1],
        bytes(told_denial(b"/a\0b")),
    ]

    assert [normalizer.item(memoryview(raw)) for raw in broken] == [None, None, None]
    assert normalizer.malformed == 3


@given(
    start=st.binary(min_size=ctypes.sizeof(guard_abi.Denial) - HEADER, max_size=ctypes.sizeof(guard_abi.Denial) - HEADER),
    tail=st.binary(max_size=40),
    fields=st.fixed_dictionaries(
        {},
        optional={
            "hook": st.integers(0, 45), "token": st.integers(0, 5000), "flags": st.integers(0, 200), "outcome": st.integers(0, 7),
            "action": st.integers(0, 4), "mode": st.integers(0, 4), "kind": st.integers(0, 3), "known": st.integers(0, 2048),
            "addressed": st.integers(0, 2),
        },
    ),
    fit=st.booleans(),
)  # fmt: skip
def test_any_denial(start, tail, fields, fit):
    """Whatever stands in one, it is an event of ours or malformed, and never an exception."""
    told = guard_abi.Denial.from_buffer_copy(bytes(HEADER) + start)
    for name, value in fields.items():
        setattr(told, name, value)
    if fit:
        told.lengths = (len(tail), 0)
    normalizer = BpfNormalizer(ProcessTable(), EPOCH, "x86_64", Redactor())
    found = normalizer.item(record(abi.Kind.DENIAL, body(told) + tail))

    assert isinstance(found, HookEvent) == (normalizer.malformed == 0)
