# SPDX-License-Identifier: Apache-2.0
"""What the collector sees of a workload, live: every call, in order, what it is about, and who did it. One collector for all."""

import os
import subprocess
import sys
import textwrap
import time
from itertools import pairwise

import pytest
from watch import ARCH, Watch, in_full, is_call, token

from ksentinel import syscalls
from ksentinel.event import ExecEvent, ExitEvent, ForkEvent, SyscallEvent
from ksentinel.window import LENGTH, Cause, Window

pytestmark = pytest.mark.bpf

SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def attached():
    """Attach it once; what came of all tests together must add up."""
    with Watch() as watch:
        yield watch


@pytest.fixture
def watch(attached):
    """Begin anew for each test."""
    attached.forget()
    return attached


def test_threads_counted_exactly(watch):
    """Every call of 23 threads arrives, in order, under the thread that made it."""
    names = ("getuid", "getgid", "geteuid", "getegid")
    pid, output = watch.python("""
        import os, threading
        calls = [os.getuid, os.getgid, os.geteuid, os.getegid]
        def work(seed):
            print(seed, threading.get_native_id(), flush=True)
            for n in range(641):
                os.getppid()
                seed = (seed * 1103515245 + 12345) % 2**31
                calls[seed >> 16 & 3]()
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(23)]
        for t in threads: t.start()
        for t in threads: t.join()
    """)
    got = watch.tokens(pid)
    alphabet = {token(name) for name in (*names, "getppid")}

    for line in output.splitlines():
        seed, tid = map(int, line.split())
        expected = []
        for _ in range(641):
            seed = (seed * 1103515245 + 12345) % 2**31
            expected += [token("getppid"), token(names[seed >> 16 & 3])]
        assert expected == [t for t in got[tid] if t in alphabet]
    assert len(output.splitlines()) == 23
    assert {len(w.tokens) for w in watch.of(Window, pid) if w.cause is Cause.FULL} == {LENGTH}


def test_exec_token(watch):
    """A program's first window begins with a token that says so; no other window has one."""
    pid, _ = watch.run("/bin/sh", "-c", "/bin/cat /dev/null; exec /usr/bin/env -i /bin/true")
    family, begins = watch.family(ExecEvent), {}
    for item in watch.items:
        key = (item.process.key, item.tid)
        if isinstance(item, ExecEvent) and item in family:
            begins[key] = True
        elif isinstance(item, Window):
            assert (item.tokens[0] == syscalls.EXEC) == begins.pop(key, False)
            assert syscalls.EXEC not in item.tokens[1:]

    assert begins == {}
    assert watch.counted("exec_tokens") == len(family) >= 4
    assert [e.process.program for e in watch.of(ExecEvent, pid)] == [
        in_full("/bin/sh"),
        in_full("/usr/bin/env"),
        in_full("/bin/true"),
    ]


ABOUT = {
    "/etc/shadow": "secret",
    "/etc/shadow-": "secret",
    "/etc/ssh/ssh_host_rsa_key": "secret",
    "/etc/ssh/sshd_config": "system",
    "/home/nobody/x": "home",
    "/tmp": None,
    "/tmp/none": "tmp",
    "/var/tmp/none": "tmp",
    "/dev/shm/none": "tmp",
    "/dev/none": "device",
    "/dev/null": None,
    "/proc/1/none": "proc",
    "/proc/self/none": None,
    "/etc/none": "system",
    "/etc/passwd": None,
    "/usr/none": None,
    "etc/shadow": None,  # as it is written
    "//etc/shadow": None,
    "127.0.0.1": "loopback",
    "127.255.0.9": "loopback",
    "0.0.0.0": "loopback",  # noqa: S104 -- a way to this host, too
    "10.0.0.1": "private",
    "172.15.0.1": "public",
    "172.16.0.1": "private",
    "172.31.0.1": "private",
    "172.32.0.1": "public",
    "192.168.0.1": "private",
    "192.169.0.1": "public",
    "169.254.1.1": "private",
    "100.63.0.1": "public",
    "100.64.0.1": "private",
    "192.0.2.1": "public",
    "::1": "loopback",
    "::": "loopback",
    "::2": "public",
    "fc00::1": "private",
    "fdff::1": "private",
    "fe80::1": "private",
    "fec0::1": "public",
    "2001:db8::1": "public",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:10.0.0.1": "private",
    "::ffff:192.0.2.1": "public",
    "unix": None,
}


def test_classes(watch):
    """What a call is about is a token right behind it."""
    pid, _ = watch.python(
        """
        import ctypes, os, socket, sys
        from contextlib import suppress
        os.chdir("/")
        four, six, unix = (
            socket.socket(family, socket.SOCK_DGRAM)
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        )
        for what in sys.argv[1:]:
            os.getppid()
            with suppress(OSError):
                if "/" in what: os.open(what, os.O_RDONLY)
                elif what == "unix": unix.connect("/tmp/none")
                else: (six if ":" in what else four).connect((what, 9))
        os.getppid()
        """,
        *ABOUT,
    )
    tokens = [t for window in watch.of(Window, pid) for t in window.tokens]
    begins = [n for n, t in enumerate(tokens) if t == token("getppid")]
    parts = [tokens[begin + 1 : end] for begin, end in pairwise(begins)]
    names = ["openat" if "/" in what else "connect" for what in ABOUT]
    classes = [
        None if about is None else syscalls.CLASS + syscalls.CLASSES.index(about) for about in ABOUT.values()
    ]
    expected = [
        [token(name)] if number is None else [token(name), number]
        for name, number in zip(names, classes, strict=True)
    ]

    # An opened descriptor may be followed by what Python does with it, or by its end.
    found = [part[: len(want)] for part, want in zip(parts, expected, strict=True)]
    assert dict(zip(ABOUT, found, strict=True)) == dict(zip(ABOUT, expected, strict=True))
    rest = [t for part, want in zip(parts, expected, strict=True) for t in part[len(want) :]]
    assert [t for t in rest if not is_call(t)] == []
    for name in syscalls.CLASSES:
        assert watch.counted(f"tokens_{name}") >= list(ABOUT.values()).count(name)


def test_late_class(watch, tmp_path):
    """A path that wasn't in memory is classified when it is read: behind the call itself, before the next one."""
    (tmp_path / "page").write_bytes(b"/etc/shadow/none".ljust(4096, b"\0"))
    pid, _ = watch.python(
        """
        import ctypes, mmap, os, sys
        truncate, getppid = ctypes.CDLL(None).truncate, ctypes.CDLL(None).getppid
        page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096, mmap.MAP_PRIVATE)
        at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        truncate(at, 0)
        getppid()
        """,
        str(tmp_path / "page"),
    )
    tokens = [t for window in watch.of(Window, pid) for t in window.tokens]
    at = tokens.index(token("truncate"))

    assert tokens[at : at + 3] == [token("truncate"), syscalls.CLASS, token("getppid")]
    assert watch.counted("calls_late") >= 1


def test_times(watch):
    """Windows lie where their calls were made, one after the other in each thread."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + watch.epoch_ns
    pid, _ = watch.python("import os\nfor _ in range(2000): os.getppid()")
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + watch.epoch_ns
    windows = watch.of(Window, pid)

    assert len(windows) >= 2000 // LENGTH
    assert before <= windows[0].first_ns
    assert windows[-1].last_ns <= after
    assert all(window.first_ns <= window.last_ns for window in windows)
    assert all(one.last_ns <= two.first_ns for one, two in pairwise(windows))


@pytest.mark.skipif(ARCH != "x86_64", reason="these ABIs are x86's")
def test_abis(watch):
    """A 32-bit call from a 64-bit program, an x32 number and one out of range are tokens of their own."""
    pid, output = watch.python(r"""
        import ctypes, mmap, os
        code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, 7)
        # push rbx; mov eax, edi; mov ebx, esi; xor ecx, ecx; xor edx, edx; int 0x80; pop rbx; ret
        code.write(bytes.fromhex("5389f889f331c931d2cd805bc3"))
        code[100:112] = b"/a32bitpath\0"
        at = ctypes.addressof(ctypes.c_char.from_buffer(code))
        call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint)(at)
        libc = ctypes.CDLL(None)
        libc.syscall.argtypes = [ctypes.c_long]
        libc.syscall(0x40000027)
        libc.syscall(9999)
        libc.syscall(-1)
        print("so far", flush=True)
        call(64, 0)
        call(5, at + 100)
        call(213, 0)
        print("done", flush=True)
    """)
    (tokens,) = watch.tokens(pid).values()
    named = [syscalls.token_name(t) for t in tokens]

    assert "x32:getpid" in named
    assert named.count("invalid") == 2
    if "done" not in output:
        pytest.skip("this kernel runs no 32-bit programs (CONFIG_IA32_EMULATION)")
    assert "i386:getppid" in named
    (opened,) = watch.calls(pid, "open")
    assert (opened.abi, opened.paths, opened.mode) == ("i386", ("/a32bitpath",), None)
    (user,) = watch.calls(pid, "setuid")
    assert (user.abi, user.values) == ("i386", (("uid", 0),))


def test_exit_and_exec_flush(watch):
    """What a thread has done is sent before it becomes another program, and before it ends."""
    pid, _ = watch.python("import os; os.execv('/bin/true', ['true'])")
    *_, last_before, last = watch.of(Window, pid)

    assert (last_before.cause, last_before.tokens[-1]) == (Cause.EXEC, token("execve"))
    assert (last.cause, last.tokens[-1]) == (Cause.EXIT, token("exit_group"))
    assert last_before.process.exe == in_full(sys.executable)
    assert last.process.exe == in_full("/bin/true")
    assert watch.table.get(pid) is None


def test_long_argv(watch):
    """Arguments are cut at 4 KiB, and the event says so; shorter ones are whole, empty ones included."""
    cut, _ = watch.run("/bin/true", "x" * 5000)
    whole, _ = watch.run("/bin/true", "", "é", "")
    (first,) = watch.of(ExecEvent, cut)
    (second,) = watch.of(ExecEvent, whole)

    assert first.truncated
    assert first.process.argv == ("/bin/true", "x" * (4096 - len("/bin/true") - 1))
    assert not second.truncated
    assert second.process.argv == ("/bin/true", "", "é", "")


def test_not_in_memory(watch, tmp_path):
    """A path on a page that was never touched is read at the next call; one at no address never."""
    (tmp_path / "page").write_bytes(b"/untouched/page".ljust(4096, b"\0"))
    pid, _ = watch.python(
        """
        import ctypes, mmap, os, sys
        libc = ctypes.CDLL(None)
        page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096, mmap.MAP_PRIVATE)
        libc.creat(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page))), 0o600)
        libc.truncate(ctypes.c_void_p(8), 0)
        """,
        str(tmp_path / "page"),
    )
    (late,) = [c for c in watch.calls(pid, "creat", "openat") if c.mode == 0o600]
    (never,) = watch.calls(pid, "truncate")

    assert (late.paths, late.unreadable) == (("/untouched/page",), False)
    assert (never.paths, never.unreadable) == (("",), True)
    assert watch.counted("calls_late") >= 2
    assert watch.counted("calls_unreadable") >= 1


def test_killed_before_it_could_be_read(watch, tmp_path):
    """A call whose path never comes into memory is told all the same when its thread is killed in it."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "page").write_bytes(os.fsencode(tmp_path / "fifo").ljust(4096, b"\0"))
    code = """
        import ctypes, mmap, os, sys
        page = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096, mmap.MAP_PRIVATE)
        at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        opening = ctypes.CDLL(None).open
        print("blocks", flush=True)
        opening(at, 0)
    """
    command = [sys.executable, "-ISc", textwrap.dedent(code), str(tmp_path / "page")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"blocks\n"
        watch.poll(0.3)
        time.sleep(0.2)
        child.kill()
    watch.drain()
    last = watch.calls(child.pid, "open", "openat")[-1]

    assert (last.paths, last.unreadable) == ((), True)


def test_relative_paths(watch, tmp_path):
    """Paths are absolute: from the working directory (the root too), from a descriptor, or a descriptor's own."""
    (tmp_path / "a/b").mkdir(parents=True)
    pid, _ = watch.python(
        """
        import ctypes, os, sys
        from contextlib import suppress
        fd = os.open(sys.argv[1], os.O_RDONLY)
        os.chdir(sys.argv[1] + "/a")
        def create(path, **options):
            with suppress(OSError):
                os.open(path, os.O_CREAT | os.O_EXCL, 0o600, **options)
        create("b/here")
        create("a/b/there", dir_fd=fd)
        create("../up")
        create("nowhere", dir_fd=999)
        ctypes.CDLL(None).fchownat(fd, b"", -1, -1, 0x1000)
        with suppress(OSError):
            os.rename("b/here", "b/gone", src_dir_fd=None, dst_dir_fd=fd)
        os.chdir("/")
        create("proc/none")
        """,
        str(tmp_path),
    )
    created = [c for c in watch.calls(pid, "open", "openat") if c.mode == 0o600]

    assert [c.paths[0] for c in created] == [
        f"{tmp_path}/a/b/here",
        f"{tmp_path}/a/b/there",
        f"{tmp_path}/up",
        "nowhere",
        "/proc/none",
    ]
    assert [c.paths for c in watch.calls(pid, "fchownat")] == [(str(tmp_path),)]
    assert [c.paths for c in watch.calls(pid, "rename", "renameat", "renameat2")] == [
        (f"{tmp_path}/a/b/here", f"{tmp_path}/b/gone")
    ]


def test_symlink(watch, tmp_path):
    """What a link says is relative to the link's directory, not to the caller's."""
    pid, _ = watch.python("import os, sys; os.symlink('../x', sys.argv[1] + '/link')", str(tmp_path))
    (call,) = watch.calls(pid, "symlink", "symlinkat")

    assert call.paths == (str(tmp_path.parent / "x"), f"{tmp_path}/link")


def test_mounts(watch, tmp_path):
    """Paths go on across mount points; what has been unmounted under a process has no root, and says so."""
    for name in ("tmpfs", "from/sub", "to", "gone"):
        (tmp_path / name).mkdir(parents=True)
    script = """
        set -e
        mount -t tmpfs none tmpfs; mkdir -p tmpfs/x/y
        mount --bind from to
        mount -t tmpfs none gone; mkdir gone/etc
        (cd tmpfs/x/y; : > one)
        (cd to/sub; : > two)
        cd gone/etc; umount -l ../; : > passwd
    """
    _, output = watch.run(
        "unshare",
        "-m",
        "sh",
        "-c",
        f"({script}) 2>&1 || echo failed",
        cwd=tmp_path,
        env={**os.environ, "PWD": "/"},
    )
    paths = [
        c.paths[0]
        for c in watch.of(SyscallEvent)
        if c.syscall.startswith("open") and (c.flags or 0) & os.O_CREAT
    ]

    if "failed" in output:
        pytest.skip(f"no mount namespace to be had: {output}")
    assert f"{tmp_path}/tmpfs/x/y/one" in paths
    assert f"{tmp_path}/to/sub/two" in paths
    assert ".../etc/passwd" in paths


def test_chroot(watch, tmp_path):
    """Who has changed its root is seen from outside, however it names a file."""
    (tmp_path / "jail/etc").mkdir(parents=True)
    pid, _ = watch.python(
        """
        import os, sys
        from contextlib import suppress
        os.chroot(sys.argv[1]); os.chdir("/etc")
        for path in ("/etc/shadow", "passwd", "/../../etc/group"):
            with suppress(OSError):
                os.open(path, os.O_CREAT | os.O_EXCL, 0o600)
        """,
        str(tmp_path / "jail"),
    )

    assert [c.paths[0] for c in watch.calls(pid, "open", "openat") if c.mode == 0o600] == [
        f"{tmp_path}/jail/etc/shadow",
        f"{tmp_path}/jail/etc/passwd",
        f"{tmp_path}/jail/etc/group",
    ]


DEEP = """
    import os, sys
    from contextlib import suppress
    os.chdir(sys.argv[1])
    for _ in range(int(sys.argv[3])):
        os.mkdir(sys.argv[2]); os.chdir(sys.argv[2])
    long = "./" * 2047
    with suppress(OSError):
        os.rename(long + "a", long + "b")
"""


def test_deep_directory(watch, tmp_path):
    """Four parts of nearly the greatest length fit into one record: a path is named in full up to its limit."""
    name = "d" * 200
    depth = (3700 - len(str(tmp_path))) // 201
    pid, _ = watch.python(DEEP, str(tmp_path), name, str(depth))
    (call,) = watch.calls(pid, "rename", "renameat2")
    above = f"{tmp_path}/" + f"{name}/" * depth

    assert call.paths == (f"{above}a", f"{above}b")
    assert not call.truncated


@pytest.mark.parametrize(("name", "depth"), [("e", 300), ("f" * 250, 30)])
def test_too_deep_directory(watch, tmp_path, name, depth):
    """A path that is not told from the root can't be taken for one that is."""
    pid, _ = watch.python(DEEP, str(tmp_path), name, str(depth))
    (call,) = watch.calls(pid, "rename", "renameat2")

    assert call.truncated
    assert [path.startswith(f".../{name}/{name}/") for path in call.paths] == [True, True]
    assert [path[-len(name) - 3 :] for path in call.paths] == [f"/{name}/a", f"/{name}/b"]


def test_path_of_greatest_length(watch):
    """A path of 4095 bytes is whole; of one that is longer the kernel would take nothing, and we say it is cut."""
    pid, _ = watch.python("""
        import os
        from contextlib import suppress
        for length in (4095, 4096):
            with suppress(OSError):
                os.unlink("/" + "x" * (length - 1))
    """)
    whole, cut = watch.calls(pid, "unlink", "unlinkat")

    assert (len(whole.paths[0]), whole.truncated) == (4095, False)
    assert (len(cut.paths[0]), cut.truncated) == (4095, True)


def test_lineage(watch):
    """Who started whom, and who became what."""
    sh, cat = in_full("/bin/sh"), in_full("/bin/cat")
    pid, _ = watch.run("/bin/sh", "-c", "/bin/sh -c '/bin/cat /dev/null; :'; :")
    (leaf,) = [
        e.process
        for e in watch.of(ExecEvent)
        if e.process.exe == cat and pid in {a.key.pid for a in e.process.ancestors()}
    ]
    inner, outer, tester = list(leaf.ancestors())[:3]

    assert (leaf.was, leaf.argv) == (sh, ("/bin/cat", "/dev/null"))
    assert (inner.exe, inner.was, inner.argv[0]) == (sh, sh, "/bin/sh")
    assert (outer.key.pid, outer.exe, outer.was) == (pid, sh, tester.exe)
    assert tester.key.pid == os.getpid()
    assert tester.exe == in_full(f"/proc/{os.getpid()}/exe")


def test_short_processes(watch):
    """Of 300 processes none is missed, and none stays in the table."""
    true = in_full("/bin/true")
    pid, _ = watch.run("/bin/sh", "-c", "i=0; while [ $i -lt 300 ]; do /bin/true $i; i=$((i+1)); done")

    born = [e.process.key for e in watch.of(ForkEvent) if e.process.parent.key.pid == pid]
    became = [e for e in watch.of(ExecEvent) if e.process.exe == true and e.process.parent.key.pid == pid]
    ended = [e.process.key for e in watch.of(ExitEvent) if e.process.key in set(born)]
    assert [e.process.argv[1] for e in became] == [str(n) for n in range(300)]
    assert born == [e.process.key for e in became]
    assert born == ended
    assert [
        key for key in [*born, *watch.of(ForkEvent, pid)] if watch.table.get(getattr(key, "pid", pid))
    ] == []


def test_exit_is_told_once(watch):
    """Threads that all end at the same moment make one exit; their last windows keep the name of their program."""
    pid, _ = watch.python("""
        import os, threading, time
        for _ in range(60):
            if not os.fork():
                for _ in range(16):
                    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                os._exit(0)
            os.wait()
    """)
    children = [e.process.key for e in watch.of(ForkEvent) if e.process.parent.key.pid == pid]
    ended = [e.process.key for e in watch.of(ExitEvent) if e.process.key in set(children)]
    exes = {w.process.exe for w in watch.of(Window) if w.process.key in set(children)}

    assert len(children) == 60
    assert sorted(children) == sorted(ended)
    assert exes == {in_full(sys.executable)}
    assert [key for key in children if watch.table.get(key.pid)] == []


def test_exec_outside_the_leader(watch):
    """A thread that executes a program takes its leader's id over; its last window is still its own."""
    pid, output = watch.python("""
        import os, threading
        def become():
            for _ in range(200): os.getppid()
            print(threading.get_native_id(), flush=True)
            os.execv("/bin/true", ["true"])
        other = threading.Thread(target=become)
        other.start(); other.join()
    """)
    (event,) = [e for e in watch.of(ExecEvent, pid) if e.process.argv == ("true",)]
    last = [w for w in watch.of(Window, pid) if w.cause is Cause.EXEC][-1]
    after = [w for w in watch.of(Window, pid) if w.process.exe == in_full("/bin/true")]

    assert int(output) != pid
    assert (event.tid, event.process.key.pid) == (pid, pid)
    assert (last.tid, last.tokens[-1], last.process.exe) == (
        int(output),
        token("execve"),
        in_full(sys.executable),
    )
    assert {w.tid for w in after} == {pid}
    assert len(watch.of(ExitEvent, pid)) == 1


def test_users(watch):
    """A process that changes its user is seen as the new one."""
    pid, _ = watch.python("import os; os.setresuid(1, 2, 3); os.kill(os.getpid(), 0)")
    (change,) = watch.calls(pid, "setresuid")
    (kill,) = watch.calls(pid, "kill")

    assert (change.process.uid, change.values) == (0, (("uid", 1), ("euid", 2), ("suid", 3)))
    assert (kill.process.uid, kill.process.euid, kill.target, kill.values) == (1, 2, pid, (("signal", 0),))


def test_memfd(watch):
    """A program in memory has no name left, and says so."""
    pid, _ = watch.python("""
        import os
        fd = os.memfd_create("hidden")
        os.write(fd, open("/bin/true", "rb").read())
        os.execve(fd, ["x"], {})
    """)
    (made,) = watch.calls(pid, "memfd_create")

    assert made.paths == ("hidden",)
    assert watch.of(ExecEvent, pid)[-1].process.exe == "/memfd:hidden (deleted)"
