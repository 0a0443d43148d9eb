# SPDX-License-Identifier: Apache-2.0
"""Ways round a guard that were there once: other ways to the same file, the same address, the same power."""

import ctypes
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ksentinel import syscalls
from ksentinel.bpf.abi import Config
from ksentinel.bpf.guard_abi import (
    ASKED,
    Action,
    GuardCounters,
    Hook,
    Mode,
    NameKey,
    NameKind,
    Number,
    NumberTest,
    Outcome,
    Place,
    Places,
    Policy,
    Sentence,
    Sentenced,
    SentenceKind,
    Spared,
    SparedKind,
    Switch,
    Trait,
    Word,
)
from ksentinel.bpf.libbpf import Object, kernel_has
from ksentinel.bpf.pathhash import backwards_hash
from ksentinel.enforce.compiled import EVERY_CALL, IO_URING
from ksentinel.enforce.guards import THEMES, program_at
from ksentinel.enforce.places import resolve
from ksentinel.shipped import shipped

TAKES = 30

HOOKS = (
    Hook.FILE_OPEN,
    Hook.SOCKET_CONNECT,
    Hook.SOCKET_BIND,
    Hook.SOCKET_SENDMSG,
    Hook.TASK_FIX_SETUID,
)
EPOCH = 7
ALL_DESKS = 4
DESK_BYTES = 1 << 15
libc = ctypes.CDLL(None, use_errno=True)


class Kernel:
    """The guards, and one policy after the other."""

    def __init__(self, objects):
        self.trace = objects["trace"]
        self.file = objects["file"]
        self.turn = 0

    def use(
        self,
        hook,
        *,
        mode=Mode.ENFORCE,
        calls=EVERY_CALL,
        action=Action.DENY,
        need=None,
        forbid=None,
        test=None,
        kinds=0,
    ):
        """Put one way in force."""
        policy = Policy(epoch=EPOCH, cased=1, kinds=kinds)
        policy.hooks[hook].count = 2
        canary, made = policy.ways[0], policy.ways[1]
        canary.calls, canary.action, canary.rule = EVERY_CALL, Action.DENY, 0xFFFF
        canary.need[Word.TRAITS] = Trait.CANARY
        made.calls, made.action, made.mode = calls, action, mode
        for word, bits in (need or {}).items():
            made.need[word] = bits
        for word, bits in (forbid or {}).items():
            made.forbid[word] = bits
        asked = {*(need or {}), *(forbid or {})}
        policy.hooks[hook].words = sum(1 << word for word in asked)
        for flag, words in ASKED.items():
            made.flags |= flag if not asked.isdisjoint(words) else 0
        ctypes.memset(policy.sieve, 0xFF, ctypes.sizeof(policy.sieve))  # any place may be there
        if test is not None:
            number, first, second = test
            policy.hooks[hook].tests = 1
            policy.tests[0] = NumberTest(number=number, bit=0, count=1)
            policy.tests[0].first[0], policy.tests[0].second[0] = first, second
            policy.tested = 1
        self.turn ^= 1
        name = "second_policy" if self.turn else "first_policy"
        self.trace.map(name).update(0, policy)
        self.trace.map("policies").update(0, ctypes.c_uint32(self.trace.map(name).fd))

    def switch(self, **fields):
        """Set what can change at any time."""
        self.trace.map("switches").update(0, Switch(mode=Mode.PERMISSIVE, **fields))

    def outcomes(self):
        """Return how often each outcome was counted."""
        every = self.trace.map("guard_counters").lookup_percpu(0, GuardCounters)
        return {outcome: sum(one.outcomes[outcome] for one in every) for outcome in Outcome}

    def protect(self, path, **bits):
        """Enter a place."""
        place = resolve(str(path))
        value = Places(**{name: bit for name, bit in bits.items() if name != "same"})
        setattr(value, "is", bits.get("same", 0))
        self.trace.map("places").update(Place(inode=place.inode, device=place.device, epoch=EPOCH), value)


@pytest.fixture(scope="module")
def loaded():
    with ExitStack() as stack:
        collector = stack.enter_context(Object(shipped("lsm_bpf/trace.bpf.o")))
        collector.resize("ring", 1 << 20)
        collector.leave_out("on_sys_enter_old" if kernel_has("bpf_rdonly_cast") else "on_sys_enter")
        collector.load()
        found = {"trace": collector}
        for theme in ("file", "net", "privilege"):
            guard = stack.enter_context(Object(shipped(f"lsm_bpf/{theme}.bpf.o")))
            for hook in set(THEMES[theme]) - set(HOOKS):
                guard.leave_out(program_at(hook))
            for earlier in found.values():
                guard.share(earlier)
            guard.load()
            found[theme] = guard
            for hook in set(THEMES[theme]) & set(HOOKS):
                guard.attach(program_at(hook))
        yield Kernel(found)


@pytest.fixture
def guards(loaded):
    yield loaded
    loaded.use(Hook.NONE)
    loaded.switch()


def refused(do, *arguments):
    """Tell whether the kernel refuses it."""
    try:
        do(*arguments)
    except PermissionError:
        return True
    return False


def in_child(code):
    """Run Python in a process of its own; return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert not ran.returncode, ran.stderr
    return ran.stdout.strip()


@pytest.fixture
def mounts(tmp_path):
    """A file system with kept/inner/file, bound elsewhere by its parts."""
    root, bound, file = tmp_path / "root", tmp_path / "bound", tmp_path / "file"
    for path in (root, bound):
        path.mkdir()
    file.touch()
    subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
    inner = root / "kept" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_text("x")
    (root / "other").write_text("x")
    subprocess.run(["mount", "--bind", inner, bound], check=True)
    subprocess.run(["mount", "--bind", inner / "file", file], check=True)
    yield root
    for path in (file, bound, root):
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("root/kept/inner/file", True), ("bound/file", True), ("file", True), ("root/other", False)],
)
def test_part_mounted_elsewhere(guards, mounts, name, expected):
    """What is below a directory is below it where only a part of it is mounted, too."""
    guards.protect(mounts / "kept", under=1)
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1})

    assert refused(lambda: (mounts.parent / name).open().close()) is expected


def open_in_tree(path):
    """Open a file by a mount that stands nowhere: nobody's path leads there."""
    open_tree, clone = 428, 1
    tree = libc.syscall(open_tree, -100, os.fsencode(path.parent), clone)
    assert tree >= 0, os.strerror(ctypes.get_errno())
    try:
        os.close(os.open(path.name, os.O_RDONLY, dir_fd=tree))
    finally:
        os.close(tree)


def test_mount_without_a_path(guards, mounts):
    """What is mounted nowhere has no path, and lies where it lies."""
    file = mounts / "kept" / "inner" / "file"
    seed = guards.trace.map("config").lookup(0, Config).path_seed
    key = NameKey(hash=backwards_hash(b"/file", seed), epoch=EPOCH, kind=NameKind.EXACT | NameKind.CASED)
    guards.trace.map("name_sets").update(key, ctypes.c_uint64(1))
    guards.use(Hook.FILE_OPEN, need={Word.PATH: 1}, kinds=1 << key.kind)
    by_name = refused(open_in_tree, file)
    guards.protect(mounts / "kept", under=1)
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1})
    by_place = refused(open_in_tree, file)

    assert (by_name, by_place) == (False, True)


class Submission(ctypes.Structure):
    """struct io_uring_sqe, as far as it is needed."""

    _fields_ = (
        ("opcode", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("ioprio", ctypes.c_uint16),
        ("fd", ctypes.c_int32),
        ("off", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
        ("len", ctypes.c_uint32),
        ("op_flags", ctypes.c_uint32),
        ("user_data", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 3),
    )


def open_by_ring(path, seconds=0.2):
    """Have a ring open a file when a timeout has passed, while the thread sleeps; return the result."""
    setup, enter, timeout, openat, linked = 425, 426, 11, 18, 8
    params = (ctypes.c_uint32 * 30)()
    ring = libc.syscall(setup, 4, ctypes.byref(params))
    assert ring >= 0, os.strerror(ctypes.get_errno())
    sq, cq = params[10:20], params[20:30]
    rings = mmap.mmap(ring, max(sq[6] + 4 * 4, cq[5] + 8 * 16), offset=0)
    entries = mmap.mmap(ring, 4 * 64, offset=0x10000000)
    after = (ctypes.c_int64 * 2)(0, int(seconds * 1e9))
    name = ctypes.create_string_buffer(os.fsencode(path))
    ctypes.memmove(
        (ctypes.c_char * 128).from_buffer(entries),
        bytes(Submission(opcode=timeout, flags=linked, fd=-1, addr=ctypes.addressof(after), len=1))
        + bytes(Submission(opcode=openat, fd=-100, addr=ctypes.addressof(name), user_data=5)),
        128,
    )
    words = (ctypes.c_uint32 * (len(rings) // 4)).from_buffer(rings)
    array = sq[6] // 4
    words[array], words[array + 1] = 0, 1
    words[sq[1] // 4] = 2
    assert libc.syscall(enter, ring, 2, 0, 0, None, 0) == 2
    end = time.monotonic() + 5
    while words[cq[1] // 4] < 2 and time.monotonic() < end:
        time.sleep(0.05)
    found = {}
    for index in range(words[cq[1] // 4]):
        at = (cq[5] + 16 * index) // 4
        found[words[at]] = ctypes.c_int32(words[at + 2]).value
    os.close(ring)
    return found.get(5)


def test_left_over_by_a_ring(guards, tmp_path):
    """What a ring does on the way back from another call is judged as the ring's."""
    token = syscalls.token(syscalls.numbers("x86_64")["openat"])
    guards.file.map("calls").update(token, ctypes.c_uint64(1))
    ring = syscalls.token(syscalls.numbers("x86_64")["io_uring_enter"])
    guards.file.map("calls").update(ring, ctypes.c_uint64(IO_URING))
    path = tmp_path / "file"
    path.touch()
    guards.protect(path, same=1)
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1}, calls=1 | IO_URING)
    by_call, by_ring = refused(lambda: path.open().close()), open_by_ring(path)
    guards.file.map("calls").update(token, ctypes.c_uint64(0))

    assert by_call
    assert by_ring == -1


def raw_address(family, port, host):
    """Return a sockaddr_in of any family."""
    return family.to_bytes(2, sys.byteorder) + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def send_to(family):
    """Send a datagram to an address that says it is of that family; return the errno."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        raw = raw_address(family, 9, "127.0.0.1")
        done = libc.sendto(one.fileno(), b"x", 1, 0, raw, len(raw))
        return ctypes.get_errno() if done < 0 else 0


def bind_to(family):
    """Bind to a port by an address that says it is of that family; return the errno."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        raw = raw_address(family, 9, "0.0.0.0")  # noqa: S104
        return ctypes.get_errno() if libc.bind(one.fileno(), raw, len(raw)) < 0 else 0


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNSPEC])
@pytest.mark.parametrize(("hook", "do"), [(Hook.SOCKET_SENDMSG, send_to), (Hook.SOCKET_BIND, bind_to)])
def test_no_family(guards, hook, do, family):
    """An IPv4 socket takes an address without a family for its own: so do guards."""
    guards.use(hook, need={Word.NUMBERS: 1}, test=(Number.PORT, 9, 9))

    assert do(family) == 1


def test_ends_a_connection(guards):
    """Of connect, an address without a family names nobody."""
    guards.use(Hook.SOCKET_CONNECT, need={Word.NUMBERS: 1}, test=(Number.PORT, 9, 9))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        raw = raw_address(socket.AF_UNSPEC, 9, "127.0.0.1")

        assert libc.connect(one.fileno(), raw, len(raw)) == 0


@pytest.mark.parametrize(
    ("host", "family"),
    [("::ffff:127.0.0.1", Trait.IPV4), ("::1", Trait.IPV6), ("::ffff:0:7f00:1", Trait.IPV6)],
)
def test_ipv4_in_ipv6(guards, host, family):
    """IPv4 in IPv6 is IPv4, and nothing else is."""
    found = set()
    for trait in (Trait.IPV4, Trait.IPV6):
        guards.use(Hook.SOCKET_CONNECT, need={Word.TRAITS: trait})
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
            try:
                one.connect((host, 9))
            except PermissionError:
                found.add(trait)
            except OSError:
                pass

    assert found == {family}


def test_sentence_tried_out(guards, tmp_path):
    """A sentence that is only tried out doesn't stand before a way that is in earnest."""
    path = tmp_path / "file"
    path.touch()
    guards.protect(path, same=1)
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1})
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) * 10_000_000
    key = Sentenced(start_ns=began, tgid=os.getpid())
    forever = 1 << 62
    guards.switch(sentences=1)
    before = guards.outcomes()
    guards.trace.map("sentences").update(
        key, Sentence(until_ns=forever, kind=SentenceKind.QUARANTINE, mode=Mode.PERMISSIVE)
    )
    by_way = refused(lambda: path.open("w").close())
    other = refused(lambda: (tmp_path / "another").open("w").close())
    after = guards.outcomes()
    guards.trace.map("sentences").update(
        key, Sentence(until_ns=forever, kind=SentenceKind.QUARANTINE, mode=Mode.ENFORCE)
    )
    by_sentence = refused(lambda: (tmp_path / "another").open("w").close())
    guards.trace.map("sentences").delete(key)

    assert (by_way, other, by_sentence) == (True, False, True)
    assert after[Outcome.WOULD_DENY] > before[Outcome.WOULD_DENY]


@pytest.mark.parametrize("where", ["pass", "import ctypes; assert not ctypes.CDLL(None).unshare(0x10000000)"])
def test_spared_by_its_executable(guards, tmp_path, where):
    """Whose executable is on the never-list is spared, but not in a user namespace: there it can be chosen."""
    path = tmp_path / "file"
    path.touch()
    path.chmod(0o666)
    guards.protect(path, same=1)
    mine = resolve("/proc/self/exe")
    key = Spared(a=mine.device, b=mine.inode, kind=SparedKind.EXECUTABLE)
    code = f"{where}\ntry:\n open({str(path)!r}).close(); print('goes on')\nexcept PermissionError: print('refused')"
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1})
    guards.file.map("spared").update(key, ctypes.c_uint32(0))
    found = in_child(code)
    guards.file.map("spared").delete(key)
    plain = in_child(code)

    assert plain == "refused"
    assert found == ("goes on" if where == "pass" else "refused")


def test_user_of_files(guards):
    """Only the user that files are asked about becomes root: that is a change to root."""
    guards.use(Hook.TASK_FIX_SETUID, need={Word.TRAITS: Trait.TO_ROOT})
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nos.setresuid(0, 1000, 0)\n"
        "libc.setfsuid(0)\nprint(libc.setfsuid(-1))"
    )

    assert in_child(code) == "1000"


def test_no_desk_is_free(guards, tmp_path):
    """Guards that were interrupted leave no room on this processor: the next one brings its own."""
    path = tmp_path / "file"
    path.touch()
    guards.protect(path, same=1)
    guards.use(Hook.FILE_OPEN, need={Word.PLACES: 1})
    desks = guards.trace.map("desks")
    taken = (ctypes.c_uint8 * (DESK_BYTES * os.cpu_count()))()
    size = desk_size(desks)
    for cpu in range(os.cpu_count()):
        taken[cpu * size] = 1
    for index in range(ALL_DESKS):
        desks.update(index, taken)
    found = []
    worker = threading.Thread(target=lambda: found.append(refused(lambda: path.open().close())))
    worker.start()
    worker.join()
    for index in range(ALL_DESKS):
        desks.update(index, (ctypes.c_uint8 * (DESK_BYTES * os.cpu_count()))())

    assert found == [True]


def desk_size(desks):
    """Return how many bytes one desk has, rounded as per-CPU values are."""

    class Info(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_uint32),
            ("id", ctypes.c_uint32),
            ("key", ctypes.c_uint32),
            ("value", ctypes.c_uint32),
            ("rest", ctypes.c_uint8 * 200),
        )

    class Attr(ctypes.Structure):
        _fields_ = (("fd", ctypes.c_uint32), ("len", ctypes.c_uint32), ("info", ctypes.c_uint64))

    info = Info()
    attr = Attr(fd=desks.fd, len=ctypes.sizeof(info), info=ctypes.addressof(info))
    assert not libc.syscall(321, 15, ctypes.byref(attr), ctypes.sizeof(attr))
    return (info.value + 7) // 8 * 8
