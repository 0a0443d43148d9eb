# SPDX-License-Identifier: Apache-2.0
"""The binding on libbpf: what it opens it closes, what fails says why."""

import ctypes
import errno
import os
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ksentinel.bpf import abi, libbpf, probe
from ksentinel.bpf.libbpf import (
    NOEXIST,
    Library,
    Map,
    Object,
    kernel_has,
    library,
    program_info,
    run_iterator,
)
from ksentinel.errors import HostError

OBJECT = Path(__file__).parents[2] / "lsm_bpf" / "trace.bpf.o"
PROGRAMS = ("on_sys_enter", "on_sys_enter_old", "on_fork", "on_exec", "on_exit", "sweep")
NOWHERE = 8
"""Registers that nobody has: the thread is found by its task."""


@pytest.fixture
def found():
    """Return libbpf, with nothing said yet."""
    problem = probe.why_no_libbpf()
    if problem:
        pytest.skip(str(problem))
    library().log.clear()
    yield library()
    library().log.clear()


@pytest.fixture
def opened(found):
    if not OBJECT.is_file():
        pytest.skip("no compiled BPF object: make bpf")
    with Object(OBJECT) as one:
        yield one


@pytest.fixture(scope="module")
def loaded():
    """Return the object, loaded once for all: that takes a while."""
    with Object(OBJECT) as one:
        for program in set(PROGRAMS) - set(fitting()):
            one.leave_out(program)
        one.resize("ring", 4096)
        one.load()
        yield one


def fitting():
    """Return the programs that this kernel can load."""
    return PROGRAMS if kernel_has("bpf_rdonly_cast") else PROGRAMS[1:]


def test_no_libbpf(monkeypatch):
    """Without the library, the error names the package."""
    monkeypatch.setattr(libbpf, "SONAME", "libbpf.so.none")
    with pytest.raises(HostError) as error:
        Library()

    assert "libbpf.so.none" in error.value.what
    assert error.value.remedy == "apt install libbpf1"


@pytest.mark.parametrize(
    ("code", "what", "remedy"),
    [
        (errno.EPERM, "doing: EPERM (Operation not permitted)", "root is needed"),
        (-errno.EPERM, "doing: EPERM (Operation not permitted)", "root is needed"),
        (errno.EACCES, "doing: EACCES (Permission denied)", "verifier"),
        (errno.ENOENT, "doing: ENOENT (No such file or directory)", "doctor"),
        (errno.EINVAL, "doing: EINVAL (Invalid argument)", "doctor"),
        (524, "doing: 524 (Unknown error 524)", "doctor"),
    ],
)
def test_failure(found, code, what, remedy):
    """An error number becomes a sentence and what to do."""
    error = found.failure("doing", code)

    assert error.what == what
    assert remedy in error.remedy


def test_failure_has_the_last_word_of_libbpf(found):
    """What libbpf printed last goes into the message, and only into this one."""
    found.log += ["libbpf: first", "libbpf: -- BEGIN PROG LOAD LOG --", "0: (b7) r0 = 0", "libbpf: last"]
    ctypes.set_errno(errno.EINVAL)

    assert found.failure("doing").what == "doing: EINVAL (Invalid argument); last"
    assert found.failure("doing").what == "doing: EINVAL (Invalid argument)"


def test_libbpf_prints_nothing(found, capfd, tmp_path):
    """What libbpf would print to the terminal is kept instead."""
    (tmp_path / "no.bpf.o").write_bytes(b"no ELF")
    with pytest.raises(HostError) as error, Object(tmp_path / "no.bpf.o"):
        pass

    assert capfd.readouterr() == ("", "")
    assert "no.bpf.o" in error.value.what
    assert "ELF" in error.value.what


def test_long_messages(found):
    """A message of many lines, as the verifier's log is, is kept to its end; what is no warning isn't kept."""
    nothing = ctypes.create_string_buffer(64)  # a va_list
    text = ctypes.create_string_buffer(b"\n".join(b"line %d" % n for n in range(9000)))
    found._print(1, text, ctypes.addressof(nothing))
    assert found.log == []

    found._print(0, text, ctypes.addressof(nothing))
    assert (len(found.log), found.log[-1]) == (libbpf._MAX_LOG, "line 8999")


def test_not_compiled(tmp_path):
    """Without the object, the error says where it is missed and how to get it."""
    with pytest.raises(HostError) as error, Object(tmp_path / "none.bpf.o"):
        pass

    assert (error.value.at, error.value.remedy) == (tmp_path / "none.bpf.o", "make bpf")


@pytest.mark.parametrize("kind", ["map", "program"])
def test_no_such_name(opened, kind):
    """A name that the object lacks is an error that says so: the object is of another version."""
    with pytest.raises(HostError, match=f"no {kind} nothing"):
        opened._find(kind, "nothing")


@pytest.mark.parametrize(("asked", "given"), [(8192, 8192), (5000, 8192)])
def test_resize(opened, asked, given):
    """A map's size can be set before loading; libbpf rounds a ring buffer's up, and that is the size we read with."""
    opened.resize("ring", asked)

    assert opened.map("ring").max_entries == given


@pytest.mark.bpf
def test_verifier_has_room(loaded):
    """
    Programs stay well below the verifier's limit of a million instructions: kernels count differently.

    That `program_info` reads the right fields, the program's name tells.
    """
    found = {name: program_info(loaded_fd(loaded, name)) for name in fitting()}

    assert [bytes(info.before[64:80]).rstrip(b"\0").decode() for info in found.values()] == [
        name[:15] for name in fitting()
    ]
    assert {name: 0 < info.verified_insns < 250_000 for name, info in found.items()} == dict.fromkeys(
        found, True
    )
    assert {loaded.missed(name) for name in found} == {0}


def loaded_fd(loaded, name):
    return library().lib.bpf_program__fd(loaded._find("program", name))


@pytest.mark.bpf
def test_leave_out(opened):
    """What is left out isn't loaded."""
    for name in PROGRAMS:
        if name != "on_exit":
            opened.leave_out(name)
    opened.resize("ring", 4096)
    opened.load()

    assert [name for name in PROGRAMS if loaded_fd(opened, name) >= 0] == ["on_exit"]
    with pytest.raises(HostError, match="no program nothing"):
        opened.leave_out("nothing")


@pytest.mark.bpf
def test_kernel_has(found):
    """Functions of this kernel are known by name."""
    assert kernel_has("do_exit")
    assert not kernel_has("no_such_function")


@pytest.mark.bpf
def test_maps(loaded):
    """Values go in and come back, one for each CPU."""
    loaded.map("config").update(0, abi.Config(own_tgid=7))

    values = loaded.map("counters").lookup_percpu(4, abi.Counters)
    assert len(values) == library().lib.libbpf_num_possible_cpus()
    assert {value.seen for value in values} == {0}
    assert loaded.map("config") is loaded.map("config")


def wanted(value):
    return abi.Filter(value=value, kind=abi.FilterKind.UID)


@pytest.mark.bpf
def test_map_by_struct(loaded):
    """Keys may be structs: values are written, kept if so asked, read, listed and removed."""
    filters = loaded.map("filters")
    assert filters.keys(abi.Filter) == []

    assert filters.update(wanted(1), ctypes.c_uint32(10))
    assert filters.update(wanted(2), ctypes.c_uint32(20))
    assert filters.update(wanted(1), ctypes.c_uint32(11))
    assert not filters.update(wanted(1), ctypes.c_uint32(12), NOEXIST)
    assert filters.update(wanted(3), ctypes.c_uint32(30), NOEXIST)
    assert [filters.lookup(wanted(n), ctypes.c_uint32).value for n in (1, 2, 3)] == [11, 20, 30]
    assert filters.lookup(wanted(4), ctypes.c_uint32) is None
    assert sorted(key.value for key in filters.keys(abi.Filter)) == [1, 2, 3]

    for number in (1, 1, 2, 3, 9):
        filters.delete(wanted(number))
    assert filters.keys(abi.Filter) == []


@pytest.mark.bpf
def test_full_map(loaded):
    """What doesn't fit is an error, and all that is there is listed."""
    names, one = loaded.map("names"), ctypes.c_uint32(1)
    for number in range(names.max_entries):
        names.update(ctypes.c_uint64(number), one)
    with pytest.raises(HostError, match="writing a BPF map: E2BIG"):
        names.update(ctypes.c_uint64(1 << 40), one)

    keys = names.keys(ctypes.c_uint64)
    assert sorted(key.value for key in keys) == list(range(names.max_entries))
    for key in keys:
        names.delete(key)


@pytest.mark.bpf
def test_map_by_process(loaded):
    """A task storage is asked by a process' pidfd; one that has ended can't be told anything."""
    processes, told = loaded.map("processes"), abi.Process(program=7, flags=3)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        descriptor = os.pidfd_open(child.pid)
        try:
            assert processes.lookup(descriptor, abi.Process) is None
            assert processes.update(descriptor, told, NOEXIST)
            assert not processes.update(descriptor, abi.Process(), NOEXIST)
            assert bytes(processes.lookup(descriptor, abi.Process)) == bytes(told)
            child.stdin.close()
            child.wait()
            with pytest.raises(HostError, match=r"writing a BPF map: (ESRCH|ENOENT)"):
                processes.update(descriptor, told)
        finally:
            os.close(descriptor)


@pytest.mark.bpf
@pytest.mark.parametrize("doing", ["lookup", "delete", "keys", "update"])
def test_no_map(doing):
    """A descriptor that is no map is an error, whatever is asked of it."""
    broken = Map.__new__(Map)
    broken.fd, broken.max_entries = -1, 1
    asked = {
        "lookup": lambda: broken.lookup(0, abi.Config),
        "delete": lambda: broken.delete(0),
        "keys": lambda: broken.keys(abi.Filter),
        "update": lambda: broken.update(0, abi.Config()),
    }[doing]
    with pytest.raises(HostError, match="BPF map: EBADF"):
        asked()


@pytest.mark.bpf
def test_run(loaded):
    """A raw tracepoint's program runs as often as it is told to, here and now, with what it is given."""
    entry = fitting()[0]
    loaded.map("config").update(0, abi.Config(abi_version=abi.VERSION, epoch=1))
    before = seen(loaded)
    for number in (39, 110, 9999, (1 << 64) - 1):
        loaded.run(entry, NOWHERE, number)

    assert seen(loaded) - before == 4


def seen(loaded):
    return sum(one.seen for one in loaded.map("counters").lookup_percpu(0, abi.Counters))


@pytest.mark.bpf
@pytest.mark.parametrize(
    ("name", "says"), [("nothing", "no program nothing"), ("on_fork", "running on_fork: ")]
)
def test_run_what_does_not_run(loaded, name, says):
    """What isn't there, or is no raw tracepoint's, can't be run."""
    with pytest.raises(HostError, match=says):
        loaded.run(name, 0, 0)


@pytest.mark.bpf
def test_map_errors(loaded):
    """A key that doesn't exist is an error."""
    with pytest.raises(HostError, match="writing a BPF map: E2BIG"):
        loaded.map("config").update(1, abi.Config())
    with pytest.raises(HostError, match="reading a BPF map: ENOENT"):
        loaded.map("counters").lookup_percpu(6, abi.Counters)


@pytest.mark.bpf
def test_detach(loaded):
    """What isn't attached can be detached; what is, only once."""
    loaded.attach("on_exit")
    loaded.detach_program("on_exit")
    loaded.detach_program("on_exit")
    loaded.detach()

    assert loaded._links == {}


@pytest.mark.bpf
def test_iterator(loaded):
    """An iterator runs as often as asked for."""
    link = loaded.iterator("sweep")
    run_iterator(link)
    run_iterator(link)

    assert list(loaded._links) == ["sweep"]
    loaded.detach()


def test_iterator_of_nothing(found):
    """A descriptor that is no link is an error."""
    with pytest.raises(HostError, match="running an iterator"):
        run_iterator(-1)


@pytest.mark.bpf
def test_info_of_nothing(found):
    """A descriptor that is no program is an error."""
    with pytest.raises(HostError, match="EBADF"):
        program_info(-1)


@pytest.mark.bpf
def test_everything_is_closed(found):
    """Leaving the block closes every descriptor, whatever was open."""
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with Object(OBJECT) as one:
        for program in PROGRAMS:
            if program not in {"on_exit", "sweep"}:
                one.leave_out(program)
        one.resize("ring", 4096)
        one.load()
        one.attach("on_exit")
        one.iterator("sweep")
        with pytest.raises(HostError):
            one.attach("nothing")

    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(("answer", "slept"), [(0, []), (-1, [0.1])])
def test_wait_for_programs(monkeypatch, answer, slept):
    """A grace period is waited for; where the kernel refuses that, some time."""
    asked, sleeps = [], []

    def syscall(*words):
        asked.append(words)
        return answer

    monkeypatch.setattr(libbpf, "ctypes", SimpleNamespace(CDLL=lambda _: SimpleNamespace(syscall=syscall)))
    libbpf.wait_for_programs(sleeps.append)

    assert asked == [(libbpf._SYS_MEMBARRIER[platform.machine()], 1, 0, 0)]
    assert sleeps == slept


def test_the_verifiers_verdict(found):
    """A program that is refused says what the verifier said last, and not what libbpf makes of it."""
    found.log += ["libbpf: prog 'p': -- BEGIN PROG LOAD LOG --", "1: (95) exit", "R0 !read_ok"]
    found.log += [
        "processed 2 insns (limit 1000000)",
        "-- END PROG LOAD LOG --",
        "libbpf: failed to load object",
    ]

    assert found.failure("loading", errno.EACCES).what == "loading: EACCES (Permission denied); R0 !read_ok"
