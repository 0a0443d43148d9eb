# SPDX-License-Identifier: Apache-2.0
"""Executables by content: real files, odd files, files that change; and which profile that makes."""

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ksentinel.executables import (
    BY_DESCRIPTOR,
    Executables,
    Hasher,
    Identity,
    Kind,
    Known,
    Recognition,
    Recognizer,
    Unidentified,
    open_file,
    script_of,
)

LATER = time.time_ns() + 3600 * 10**9
"""A time by which every file of these tests has settled."""


def program(path, content=b"\x7fELF one"):
    """Write an executable file."""
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def looks():
    """Return what looks, late enough to keep what it finds, and the paths it opened for reading."""
    read = []

    def opener(path, flags):
        if not flags & os.O_PATH:
            read.append(path)
        return open_file(path, flags)

    made = Executables(opener=opener, clock_ns=lambda: LATER)
    made.read = read
    look = made.look
    made.look = lambda path, **options: look(str(path), **options)
    return made


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_look(tmp_path, looks):
    """A file, which one it is, and the digest of what is in it."""
    path = program(tmp_path / "one")
    status = path.stat()

    assert looks.look(path) == Identity(
        status.st_dev,
        status.st_ino,
        8,
        status.st_mtime_ns,
        status.st_ctime_ns,
        sha256(b"\x7fELF one"),
    )


def test_read_once(tmp_path, looks):
    """The same state of a file is read once, under whatever name."""
    path = program(tmp_path / "one")
    os.link(path, tmp_path / "two")  # counts as a change of the file, though not of its content
    first = looks.look(path)

    assert looks.look(path) == looks.look(tmp_path / "two") == first
    assert (len(looks.read), looks.hashed, looks.hits, looks.hashed_bytes) == (1, 1, 2, 8)


@pytest.mark.parametrize("change", ["write", "replace", "touch", "same size and time"])
def test_changed(tmp_path, looks, change):
    """Whatever may have changed the content has it read again."""
    path = program(tmp_path / "one")
    before = looks.look(path)
    times = path.stat()
    if change == "write":
        program(tmp_path / "one", b"another")
    elif change == "replace":
        program(tmp_path / "new", b"another!").rename(path)
    elif change == "touch":
        os.utime(path, ns=(1, 1))
    else:
        time.sleep(0.02)  # a tick of the file system's clock
        program(tmp_path / "one", b"\x7fELF two")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # but the kernel notes that
    after = looks.look(path)

    assert looks.hashed == 2
    assert (after.sha256 == before.sha256) is (change == "touch")


def test_just_changed(tmp_path):
    """A digest isn't kept while the next change may leave no trace."""
    path = program(tmp_path / "one")
    changed = path.stat().st_ctime_ns
    now = [changed + 1_999_999_999]
    executables = Executables(clock_ns=lambda: now[0])
    for _ in range(2):
        executables.look(str(path))
    now[0] += 1
    for _ in range(2):
        executables.look(str(path))

    assert (executables.hashed, executables.hits) == (3, 1)


def test_large(tmp_path):
    """A file over the limit is identified, not read, and it is said."""
    path = program(tmp_path / "one", b"12345678")
    executables = Executables(hash_limit_bytes=7)
    found = executables.look(str(path))

    assert (found.size, found.sha256, found.reason) == (8, "", "larger than 7 bytes: not hashed")
    assert (executables.unhashed, executables.hashed_bytes, executables.failed) == (1, 0, 0)
    assert Executables(hash_limit_bytes=8).look(str(path)).sha256 == sha256(b"12345678")


def test_empty(tmp_path, looks):
    """Nothing is no content to recognise."""
    found = looks.look(program(tmp_path / "one", b""))

    assert (found.sha256, found.reason) == ("", "empty: nothing to tell it by")


def test_cache_is_bounded(tmp_path):
    """The digest used least recently goes."""
    paths = [program(tmp_path / str(n), b"%d" % n) for n in range(3)]
    executables = Executables(cache=2, clock_ns=lambda: LATER)
    for n in (0, 1, 0, 2, 0, 1):
        executables.look(str(paths[n]))

    assert (executables.hashed, executables.hits, len(executables._digests)) == (4, 2, 2)


def odd_files(path):
    """Make what is no executable, by the reason that is given."""
    os.mkfifo(path / "fifo", 0o777)
    (path / "folder").mkdir()
    program(path / "file")
    (path / "link").symlink_to("file")
    (path / "loop").symlink_to("loop")
    (path / "plain").write_bytes(b"x")
    (path / "plain").chmod(0o644)
    return {
        "fifo": "a FIFO, no regular file",
        "folder": "a directory, no regular file",
        "link": "a symbolic link, no regular file",
        "loop": "a symbolic link, no regular file",
        "plain": "nobody may execute it",
        "none": "No such file or directory",
        "file/none": "Not a directory",
        "x" * 300: "File name too long",
        "a\0b": "embedded null byte",
        "\ud800": "'utf-8' codec can't encode character '\\ud800' in position {}: surrogates not allowed",
    }


def test_odd_files(tmp_path, looks):
    """What is no executable is a value with its reason: nothing raises, blocks, or is opened for reading."""
    before = descriptors()
    reasons = odd_files(tmp_path)
    found = {name: looks.look(f"{tmp_path}/{name}") for name in reasons}

    assert found == {
        name: Unidentified(reason.format(len(str(tmp_path)) + 1)) for name, reason in reasons.items()
    }
    assert {one.sha256 for one in found.values()} == {""}
    assert (looks.failed, looks.read, descriptors()) == (len(reasons), [], before)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/null", "a character device, no regular file"),
        ("/proc/self/status", "nobody may execute it"),
        ("bin/sh", "no absolute path"),
        ("...etc/sh", "no absolute path"),
        ("", "no absolute path"),
    ],
)
def test_odd_places(looks, path, reason):
    """Devices and the kernel's files are not opened for reading; half a path is none."""
    assert looks.look(path) == Unidentified(reason)
    assert looks.read == []


def test_socket(tmp_path, looks):
    """A socket is none either."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))

        assert looks.look(tmp_path / "socket") == Unidentified("a socket, no regular file")


def test_link_followed(tmp_path, looks):
    """A script may be reached by a link; then the file behind it is looked at, and a FIFO behind it still isn't opened."""
    odd_files(tmp_path)
    (tmp_path / "trap").symlink_to("fifo")

    assert looks.look(tmp_path / "link", follow=True) == looks.look(tmp_path / "file")
    assert looks.look(tmp_path / "trap", follow=True) == Unidentified("a FIFO, no regular file")
    assert looks.look(tmp_path / "loop", follow=True).reason.startswith("Too many levels")


def test_leased(tmp_path, looks):
    """A file under somebody's lease would have us wait: it is said instead."""
    path = program(tmp_path / "one")
    holder = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(holder, fcntl.F_SETOWN, 0)  # nobody gets the signal, which would end this process

        assert looks.look(path) == Unidentified("Resource temporarily unavailable")
    finally:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(holder)


@pytest.mark.parametrize("content", [b"grows and grows", b"less", b"\x7fELF two"])
def test_changing_while_read(tmp_path, content):
    """A digest of two halves is no digest."""
    path = program(tmp_path / "one")

    def opener(asked, flags):
        if not flags & os.O_PATH:
            time.sleep(0.02)  # a tick of the file system's clock
            program(path, content)
        return open_file(asked, flags)

    executables = Executables(opener=opener)

    assert executables.look(str(path)) == Unidentified("changed while it was read")
    assert (executables.failed, executables.hashed) == (1, 0)


def test_failing_read(tmp_path, monkeypatch):
    """A disk that fails is a reason, and no descriptor stays open."""
    path = program(tmp_path / "one")
    before = descriptors()

    def read(_place, _size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ksentinel.executables.os.read", read)

    assert Executables().look(str(path)) == Unidentified("Input/output error")
    assert descriptors() == before


def test_accounting(tmp_path, looks):
    """Every look came to one thing."""
    looks.hash_limit_bytes = 10
    paths = [program(tmp_path / "a"), program(tmp_path / "b", bytes(11)), tmp_path / "none"]
    for path in paths * 3:
        looks.look(path)

    assert (looks.hits, looks.hashed, looks.unhashed, looks.failed) == (2, 1, 3, 3)


@pytest.fixture
def sleeper(tmp_path):
    """Start a copy of a program that does nothing for a while."""
    path = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep"), path)
    with subprocess.Popen([path, "60"]) as process:
        yield path, process.pid
        process.kill()


def test_exe_of_a_process(sleeper, looks):
    """What a process executes can be looked at by its number, also when its file has gone."""
    path, pid = sleeper
    before = looks.look(path)
    path.unlink()

    assert looks.look(path) == Unidentified("No such file or directory")
    assert looks.look(f"/proc/{pid}/exe").sha256 == before.sha256


def test_upgraded_under_a_process(sleeper, looks):
    """The process still executes the old file, the path has the new one."""
    path, pid = sleeper
    old = looks.look(path)
    program(path.with_name("new"), b"another").rename(path)

    assert looks.look(f"/proc/{pid}/exe").sha256 == old.sha256
    assert looks.look(path).sha256 == sha256(b"another")


@pytest.mark.root
def test_another_root(tmp_path, looks):
    """In another root its links mean what they mean there: none leads out into ours."""
    inside = tmp_path / "root"
    (inside / "bin").mkdir(parents=True)
    program(inside / "bin" / "tool", b"theirs")
    program(tmp_path / "tool", b"ours")
    (inside / "opt").symlink_to("/bin")
    (inside / "out").symlink_to("../../..")
    (inside / "ours").symlink_to(tmp_path)
    ready = "import os,sys; os.chroot(sys.argv[1]); os.chdir('/'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", ready, inside], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        root = f"/proc/{process.pid}/root"
        found = {name: looks.look(root + name) for name in ("/bin/tool", "/opt/tool", "/ours/tool")}
        up = looks.look(f"{root}/out{tmp_path}/tool"), looks.look(f"{root}/../..{tmp_path}/tool")
        process.stdin.close()

    assert found["/bin/tool"].sha256 == found["/opt/tool"].sha256 == sha256(b"theirs")
    assert {*up, found["/ours/tool"]} == {Unidentified("No such file or directory")}


def wait_for(hasher, count):
    """Return that many results."""
    found, end = [], time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < end
        found += hasher.ready()
        time.sleep(0.001)
    return found


def test_hasher(tmp_path):
    """What is asked comes back with its token, in order."""
    one = str(program(tmp_path / "one"))
    with Hasher(Executables()) as hasher:
        assert hasher.ready() == []
        assert hasher.submit(one, "a")
        assert hasher.submit(str(tmp_path / "none"), "b")
        (tmp_path / "link").symlink_to(one)
        hasher.submit(str(tmp_path / "link"), "c", follow=True)
        found = wait_for(hasher, 3)

    assert [(token, what.sha256) for token, what in found] == [
        ("a", sha256(b"\x7fELF one")),
        ("b", ""),
        ("c", sha256(b"\x7fELF one")),
    ]
    assert (hasher.submitted, hasher.dropped, hasher.fetched, hasher.waiting) == (3, 0, 3, 0)


class Slow:
    """Looks at nothing until it is told to."""

    def __init__(self):
        self.go = threading.Event()

    def look(self, path, **_):
        """Wait, then find nothing."""
        self.go.wait(20)
        if path == "bug":
            raise RuntimeError("a bug")
        return Unidentified(path)


def test_hasher_is_bounded():
    """Where nothing moves, what comes is dropped and counted; asking never waits."""
    slow = Slow()
    with Hasher(slow, limit=4) as hasher:
        taken = [hasher.submit("x", n) for n in range(10)]
        slow.go.set()
        # What nobody fetches takes room as well.
        while len(hasher._found) < 4:
            time.sleep(0.001)
        taken.append(hasher.submit("x", 10))
        found = hasher.ready()

    assert taken == [True] * 4 + [False] * 7
    assert [token for token, _ in found] == [0, 1, 2, 3]
    assert (hasher.submitted, hasher.dropped, hasher.fetched, hasher.waiting) == (11, 7, 4, 0)


def test_hasher_ends():
    """Its end doesn't wait for what hasn't been begun."""
    slow = Slow()
    with Hasher(slow) as hasher:
        for n in range(100):
            hasher.submit("x", n)
        threading.Timer(0.05, slow.go.set).start()

    assert not hasher._thread.is_alive()
    assert len(hasher._found) < 100


def test_hasher_hands_on_what_ended_it():
    """An error of ours in the thread comes out where its results are fetched."""
    slow = Slow()
    slow.go.set()
    with Hasher(slow) as hasher:
        hasher.submit("bug", 1)
        hasher._thread.join(20)

        with pytest.raises(RuntimeError, match="a bug"):
            hasher.ready()


KNOWN = [
    Known("/usr/bin/bash", "aa"),
    Known("/usr/sbin/nginx", "bb"),
    Known("/usr/bin/vim.basic", "cc"),
    Known("/opt/bin/vi", "cc"),
    Known("/opt/bin/ed", "cc"),
    Known("/app/tool", "dd"),  # two contents under one path: upgraded while training
    Known("/app/tool", "ee"),
    Known("/srv/huge", ""),
    Known("/z/vi", "cc"),
]


@pytest.mark.parametrize(
    ("path", "content", "kind", "profile", "content_of"),
    [
        ("/usr/bin/bash", "aa", Kind.SAME, "/usr/bin/bash", "/usr/bin/bash"),
        ("/app/tool", "dd", Kind.SAME, "/app/tool", "/app/tool"),
        ("/app/tool", "ee", Kind.SAME, "/app/tool", "/app/tool"),
        ("/opt/bin/vi", "cc", Kind.SAME, "/opt/bin/vi", "/opt/bin/vi"),
        ("/z/vi", "cc", Kind.SAME, "/z/vi", "/z/vi"),
        # Upgraded; or a shell in a server's place.
        ("/usr/sbin/nginx", "ff", Kind.CHANGED, "/usr/sbin/nginx", ""),
        ("/usr/sbin/nginx", "aa", Kind.CHANGED, "/usr/sbin/nginx", "/usr/bin/bash"),
        ("/app/tool", "ff", Kind.CHANGED, "/app/tool", ""),
        # Copied, renamed, linked.
        ("/tmp/x", "aa", Kind.COPY, "/usr/bin/bash", "/usr/bin/bash"),
        ("/tmp/nginx", "aa", Kind.COPY, "/usr/bin/bash", "/usr/bin/bash"),
        ("/tmp/vi", "cc", Kind.COPY, "/opt/bin/vi", "/opt/bin/vi"),
        ("/tmp/vim.basic", "cc", Kind.COPY, "/usr/bin/vim.basic", "/usr/bin/vim.basic"),
        ("/tmp/vim", "cc", Kind.COPY, "/opt/bin/ed", "/opt/bin/ed"),
        ("", "aa", Kind.COPY, "/usr/bin/bash", "/usr/bin/bash"),
        # Not hashed, now or then.
        ("/usr/bin/bash", "", Kind.UNCHECKED, "/usr/bin/bash", ""),
        ("/srv/huge", "", Kind.UNCHECKED, "/srv/huge", ""),
        ("/srv/huge", "ff", Kind.UNCHECKED, "/srv/huge", ""),
        ("/srv/huge", "aa", Kind.UNCHECKED, "/srv/huge", "/usr/bin/bash"),
        ("/tmp/x", "", Kind.UNKNOWN, "", ""),
        ("/tmp/bash", "ff", Kind.UNKNOWN, "", ""),
        ("", "", Kind.UNKNOWN, "", ""),
    ],
)
@pytest.mark.parametrize("known", [KNOWN, KNOWN[::-1]], ids=["in order", "reversed"])
def test_judge(known, path, content, kind, profile, content_of):
    """Path and content, known and not: the whole table."""
    assert Recognizer(known).judge(path, content) == Recognition(kind, path, profile, content_of)


def test_counts():
    """Each judgement is counted by its kind."""
    recognizer = Recognizer(KNOWN)
    for path, content in (("/usr/bin/bash", "aa"), ("/tmp/x", "aa"), ("/tmp/y", "aa"), ("/tmp/z", "")):
        recognizer.judge(path, content)

    assert recognizer.counts == {Kind.SAME: 1, Kind.COPY: 2, Kind.UNKNOWN: 1}


def test_nothing_known():
    """A model without executables knows none."""
    assert Recognizer([]).judge("/usr/bin/bash", "aa").kind is Kind.UNKNOWN


@pytest.fixture
def trained(tmp_path, looks):
    """A tool and a script that were there in training; returns how to judge a file now."""
    folder = tmp_path / "usr"
    folder.mkdir()
    tool = program(folder / "tool", b"\x7fELF tool")
    script = program(folder / "backup.sh", b"#!/bin/sh\necho backup\n")
    recognizer = Recognizer([Known(str(path), looks.look(path).sha256) for path in (tool, script)])

    def judge(path, *, follow=False):
        found = recognizer.judge(str(path), looks.look(path, follow=follow).sha256)
        return found.kind, Path(found.profile).name

    judge.folder = folder
    return judge


def test_real_same(trained):
    """Nothing has happened."""
    assert trained(trained.folder / "tool") == (Kind.SAME, "tool")


def test_real_upgrade(trained):
    """A package manager puts a new file in the old one's place; putting the old one back is no change."""
    tool = trained.folder / "tool"
    os.link(tool, trained.folder / "old")
    program(trained.folder / "tool.dpkg-new", b"\x7fELF tool 2").rename(tool)
    assert trained(tool) == (Kind.CHANGED, "tool")

    (trained.folder / "old").rename(tool)
    assert trained(tool) == (Kind.SAME, "tool")


def test_real_hard_link(trained, tmp_path):
    """Another name of the same file."""
    os.link(trained.folder / "tool", tmp_path / "x")

    assert trained(tmp_path / "x") == (Kind.COPY, "tool")


def test_real_copy(trained, tmp_path):
    """Another file with the same content, and one that was changed by a byte."""
    shutil.copy(trained.folder / "tool", tmp_path / "x")
    assert trained(tmp_path / "x") == (Kind.COPY, "tool")

    with (tmp_path / "x").open("ab") as file:
        file.write(b"\0")
    assert trained(tmp_path / "x") == (Kind.UNKNOWN, "")


def test_real_symbolic_link(trained, tmp_path):
    """The kernel names the file behind a link; where it is the asked path that counts (a script), the link is followed."""
    (tmp_path / "x").symlink_to(trained.folder / "backup.sh")

    assert trained(tmp_path / "x", follow=True) == (Kind.COPY, "backup.sh")
    assert trained(tmp_path / "x") == (Kind.UNKNOWN, "")


def test_real_script(trained, tmp_path):
    """A script is known by its own content, not by its interpreter's."""
    script = trained.folder / "backup.sh"
    name = script_of(str(script), "/usr/bin/dash", is_script=True)
    assert trained(name) == (Kind.SAME, "backup.sh")

    program(script, b"#!/bin/sh\nrm -r /\n")
    assert trained(name) == (Kind.CHANGED, "backup.sh")


@pytest.mark.parametrize(
    ("asked", "is_script", "name"),
    [
        ("/usr/local/bin/backup", True, "/usr/local/bin/backup"),
        ("/usr/local/bin/backup", False, "EXE"),
        ("/bin/sh", False, "EXE"),
        ("backup", False, "EXE"),
        ("/dev/fd/3", False, "EXE"),
        ("//usr/./bin//ldd", True, "/usr/bin/ldd"),
        # ".." could lead anywhere by way of a link: it must not come out as another script's name.
        ("/tmp/a/../../usr/bin/ldd", True, "/tmp/a/../../usr/bin/ldd"),
        # fexecve, and execveat with a directory's descriptor.
        ("/dev/fd/3", True, "EXE" + BY_DESCRIPTOR),
        ("/dev//fd/./3", True, "EXE" + BY_DESCRIPTOR),
        ("/dev/fd/3/backup", True, "EXE" + BY_DESCRIPTOR),
        ("/dev/fd/3/back\nup", True, "EXE" + BY_DESCRIPTOR),
        ("/dev/stdin", True, "EXE" + BY_DESCRIPTOR),
        ("/proc/self/fd/3", True, "EXE" + BY_DESCRIPTOR),
        ("/proc/thread-self/fd/3", True, "EXE" + BY_DESCRIPTOR),
        ("/proc/77/fd/3", True, "EXE" + BY_DESCRIPTOR),
        ("/proc/self/task/78/fd/3", True, "EXE" + BY_DESCRIPTOR),
        ("/dev/fdx", True, "/dev/fdx"),
        ("/home/dev/fd/3", True, "/home/dev/fd/3"),
        ("/proc/self/fdinfo", True, "/proc/self/fdinfo"),
        # Nobody knows where that starts.
        ("backup", True, "EXE" + BY_DESCRIPTOR),
        ("...srv/backup", True, "EXE" + BY_DESCRIPTOR),
        ("", True, "EXE" + BY_DESCRIPTOR),
        ("/", True, "EXE" + BY_DESCRIPTOR),
    ],
)
def test_script_of(asked, is_script, name):
    """What was executed, by the kernel's word."""
    exe = "/usr/bin/python3.11"

    assert script_of(asked, exe, is_script) == name.replace("EXE", exe)
