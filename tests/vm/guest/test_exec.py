# SPDX-License-Identifier: Apache-2.0
"""Forbidden programs, by every way of executing one: refused, or told; what isn't forbidden runs."""

# ruff: noqa: S606 -- that is what is tried
import ctypes
import errno
import mmap
import os
import platform
import shutil
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from vm.guest.calls import AT_EMPTY_PATH, MS_BIND, checked, in_child, libc, mount, own_mounts, syscall
from vm.guest.workload import Op, forbidden, named, untouched, walk

from ksentinel.actor import nothing
from ksentinel.enforce import Mode

TAKES = 45
TOGETHER = "most guards"

ENTRIES = """
entries:
  - {id: under, deny: [exec], file: {under: [%(under)s]}}
  - {id: is, deny: [exec], file: {is: [%(marked)s]}}
  - {id: kinds, deny: [exec], file: {kind: [memfd, deleted, writable-by-others, setuid, not-roots]}}
"""
NOTHING = nothing(platform.machine())
LOADER = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
READ_IMPLIES_EXEC = 0x0400000
PROT_EXEC_PAGES = mmap.PROT_READ | mmap.PROT_EXEC
RUN = ("bprm_check_security", "mmap_file")
MAPPED = ("mmap_file",)
SCRIPT = ("bprm_check_security",)


class Spot:
    """What an operation finds: *here* a program, a larger one and a library; *outside* the same program, a script, and a hard link."""

    def __init__(self, here, outside, marked, after, *, hot):
        self.here, self.outside, self.hot = here, outside, hot
        for folder in (here, outside):
            folder.mkdir(parents=True)
            self.make(folder / "program")
        self.program, self.free = here / "program", outside / "program"
        self.hard = outside / "hard"
        self.hard.hardlink_to(marked)
        self.large = Path(shutil.copy("/bin/true", here / "large"))
        (library,) = Path("/lib").glob("*-linux-gnu/libdl.so.2")
        self.library = Path(shutil.copy(os.path.realpath(library), here / "library.so"))
        self.script = here / "script"
        self.script.write_text(f"#!{self.free}\n")
        self.interpreted = outside / "interpreted"
        self.interpreted.write_text(f"#!{self.program}\n")
        self.script.chmod(0o755)
        self.interpreted.chmod(0o755)
        self.fd = os.open(self.program, os.O_RDONLY)
        after.callback(os.close, self.fd)

    @staticmethod
    def make(path):
        """Make a program that does nothing."""
        path.write_bytes(NOTHING)
        path.chmod(0o755)

    def in_memory(self):
        """Return a file in memory with the program in it; a named one where nothing is forbidden."""
        if not self.hot:
            return os.open(self.free, os.O_RDONLY)
        writing = os.memfd_create("program")
        os.write(writing, NOTHING)
        reading = os.open(f"/proc/self/fd/{writing}", os.O_RDONLY)
        os.close(writing)
        return reading

    def changed(self, change):
        """Return a program outside; if it is to be forbidden, it has been changed."""
        if self.hot:
            change(self.free)
        return self.free


def execute(path, **how):
    in_child(lambda: os.execve(path, [str(path)], {}, **how))


def relative(spot):
    os.chdir(spot.here)
    os.execv("./program", ["program"])


def linked(spot):
    (spot.outside / "link").symlink_to(spot.program)
    execute(spot.outside / "link")


def in_directory(spot):
    words = (ctypes.c_char_p * 2)(b"program", None)
    tree = os.open(spot.here, os.O_RDONLY | os.O_DIRECTORY)
    in_child(lambda: syscall("execveat", tree, b"program", words, None, 0))
    os.close(tree)


def empty_path(descriptor):
    words = (ctypes.c_char_p * 2)(b"program", None)
    syscall("execveat", descriptor, b"", words, None, AT_EMPTY_PATH)


def spawned(spot):
    pid = os.posix_spawn(spot.program, ["program"], {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def by_a_thread(spot):
    # If it is refused, the thread can't raise where somebody looks.
    met = []

    def act():
        try:
            os.execv(spot.program, ["program"])
        except OSError as error:
            met.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    raise met[0]


def deleted(spot):
    descriptor = os.open(spot.changed(lambda _: None), os.O_RDONLY)
    if spot.hot:
        spot.free.unlink()
    in_child(lambda: empty_path(descriptor))
    os.close(descriptor)


def told(text):
    """Raise what a loader has only words for."""
    if "failed to map segment" in text:
        raise PermissionError(errno.EPERM, text)


def by_the_loader(spot):
    done = subprocess.run([LOADER, spot.large], capture_output=True, text=True, check=False)
    told(done.stderr)
    assert done.returncode == 0, done.stderr


def loaded(spot):
    try:
        ctypes.CDLL(str(spot.library))
    except OSError as error:
        told(str(error))
        raise


def mapped(spot, protection=PROT_EXEC_PAGES):
    mmap.mmap(spot.fd, 0, mmap.MAP_PRIVATE, protection).close()


def implied(spot):
    syscall("personality", READ_IMPLIES_EXEC)
    mapped(spot, mmap.PROT_READ)


def bound(spot):
    own_mounts()
    (spot.outside / "at").mkdir()
    mount(spot.here, spot.outside / "at", flags=MS_BIND)
    os.execv(spot.outside / "at" / "program", ["program"])


def hidden(spot):
    # Where the directory was there is another one; the program is reached by what was opened before.
    own_mounts()
    mount("none", spot.here.parent, "tmpfs")
    empty_path(spot.fd)


def in_chroot(spot):
    os.chroot(spot.here)
    os.execv("/program", ["program"])


def by_a_grandchild(spot):
    in_child(lambda: in_child(lambda: os.execv(spot.program, ["program"])))


OPS = (
    Op("by path", lambda s: execute(s.program), RUN),
    Op("relative", lambda s: in_child(lambda: relative(s)), RUN),
    Op("by a symbolic link", linked, RUN),
    Op("by a hard link", lambda s: execute(s.hard), RUN),
    Op("by proc", lambda s: execute(f"/proc/self/fd/{s.fd}"), RUN),
    Op("by a descriptor", lambda s: in_child(lambda: empty_path(s.fd)), RUN),
    Op("in a directory", in_directory, RUN),
    Op("after vfork", lambda s: subprocess.run([s.program], check=True), RUN),
    Op("posix_spawn", spawned, RUN),
    Op("by another thread", lambda s: in_child(lambda: by_a_thread(s)), RUN),
    Op("by a grandchild", by_a_grandchild, RUN),
    Op("out of memory", lambda s: in_child(lambda: empty_path(s.in_memory())), RUN),
    Op("out of memory by proc", lambda s: in_child(lambda: os.execv(f"/proc/self/fd/{s.in_memory()}", ["program"])), RUN),
    Op("deleted", deleted, RUN),
    Op("writable by others", lambda s: execute(s.changed(lambda p: p.chmod(0o757))), RUN),
    Op("setuid", lambda s: execute(s.changed(lambda p: p.chmod(0o4755))), RUN),
    Op("setgid", lambda s: execute(s.changed(lambda p: p.chmod(0o2755))), RUN),
    Op("not root's", lambda s: execute(s.changed(lambda p: os.chown(p, 1000, -1))), RUN),
    Op("a script", lambda s: execute(s.script), SCRIPT),
    Op("a script's interpreter", lambda s: execute(s.interpreted), RUN),
    Op("by the loader", by_the_loader, MAPPED),
    Op("a library", lambda s: in_child(lambda: loaded(s)), MAPPED),
    Op("mapped", mapped, MAPPED),
    Op("mapped, executable unasked", lambda s: in_child(lambda: implied(s)), MAPPED),
    Op("through a bind mount", lambda s: in_child(lambda: bound(s)), RUN),
    Op("in another mount namespace", lambda s: in_child(lambda: hidden(s)), RUN),
    Op("in a chroot", lambda s: in_child(lambda: in_chroot(s)), RUN),
)  # fmt: skip


@pytest.fixture
def trees(tmp_path):
    """A directory of forbidden programs and one of others, and what is made in one of them for each operation."""
    for name in ("forbidden", "free"):
        (tmp_path / name).mkdir()
        Spot.make(tmp_path / name / "marked")
    with ExitStack() as after:
        yield lambda which: lambda op: Spot(
            tmp_path / which / named(op), tmp_path / "outside" / which / named(op), tmp_path / which / "marked",
            after, hot=which == "forbidden",
        )  # fmt: skip


@pytest.fixture
def policy(guards, tmp_path, trees):
    return guards.use(ENTRIES % {"under": tmp_path / "forbidden", "marked": tmp_path / "forbidden/marked"})


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_forbidden(guards, trees, mode):
    """Each is refused and told once; permissive, each runs, and its mapping is told, too."""
    assert walk(guards, OPS, trees("forbidden"), mode) == forbidden(OPS, mode)


@pytest.mark.usefixtures("policy")
def test_beside(guards, trees):
    """The same with programs that aren't forbidden: all run, nothing is told."""
    assert walk(guards, OPS, trees("free"), Mode.ENFORCE) == untouched(OPS)


def made_executable(spot):
    with mmap.mmap(spot.fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        checked(libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), PROT_EXEC_PAGES))
        del at


def read_into(spot):
    """Copy a program to where it is no file, and make that executable."""
    with mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory.write(os.pread(spot.fd, mmap.PAGESIZE, 0))
        at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        checked(libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), PROT_EXEC_PAGES))
        del at


@pytest.mark.usefixtures("policy")
def test_not_refused(guards, trees):
    """What no guard for executions is asked about: memory that becomes executable later, and files that are read as programs."""
    ops = (
        Op("made executable", lambda s: in_child(lambda: made_executable(s)), ()),
        Op("read into memory", lambda s: in_child(lambda: read_into(s)), ()),
        Op("handed to a shell", lambda s: subprocess.run(["/bin/sh", s.script], check=True), ()),
    )

    assert walk(guards, ops, trees("forbidden"), Mode.ENFORCE) == untouched(ops)


@pytest.mark.usefixtures("policy")
def test_record(guards, trees):
    """What is told of an execution: who asked, in which call, for which file, and what that file is."""
    spot = trees("forbidden")(Op("one", None, RUN))
    with pytest.raises(PermissionError):
        execute(spot.program)
    (said,) = guards.mine()

    assert said.paths == (str(spot.program),)
    assert (said.call, said.rule, said.action, said.mode) == ("execve", "entry:under", "deny", "enforce")
    assert said.process.exe == os.path.realpath("/proc/self/exe")
    assert said.process.parent.key.pid == os.getpid()
