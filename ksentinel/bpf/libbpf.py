# SPDX-License-Identifier: Apache-2.0
"""
A thin typed binding on ``libbpf.so.1``: objects, programs, maps, links. Nothing more than ksentinel uses.

Everything opened is closed by leaving the ``with`` block. Nothing is pinned, so the kernel removes programs, maps
and links by itself when the process ends, however it ends.
"""

import ctypes
import ctypes.util
import errno
import os
import platform
import time
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ksentinel.errors import HostError

SONAME = "libbpf.so.1"
_WARN = 0
_MAX_LOG = 200
_MAX_PRINT = 17 << 20
"""The verifier's whole log comes in one piece, of up to 16 MiB, and its verdict stands at the end."""

# bpf(2): commands used without libbpf's help.
_BPF_OBJ_GET_INFO_BY_FD = 15
_BPF_TRACE_FENTRY = 24
_BPF_LSM_MAC = 27
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_SYS_MEMBARRIER = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1

Structure = TypeVar("Structure", bound=ctypes.Structure)

PrintFn = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)


class Library:
    """libbpf with its signatures; what it prints is kept for error messages instead of going to the terminal."""

    def __init__(self) -> None:
        try:
            self.lib = ctypes.CDLL(SONAME, use_errno=True)
        except OSError as error:
            raise HostError(f"{SONAME} can't be loaded: {error}", remedy="apt install libbpf1") from None
        self.log: list[str] = []
        self._libc = ctypes.CDLL(None)
        self._printer = PrintFn(self._print)
        pointer, number, text = c_void_p, c_int, c_char_p
        signatures: dict[str, tuple[Any, Sequence[Any]]] = {
            "libbpf_set_print": (pointer, [PrintFn]),
            "bpf_object__open_file": (pointer, [text, pointer]),
            "bpf_object__load": (number, [pointer]),
            "bpf_object__close": (None, [pointer]),
            "bpf_object__find_program_by_name": (pointer, [pointer, text]),
            "bpf_object__find_map_by_name": (pointer, [pointer, text]),
            "bpf_object__next_map": (pointer, [pointer, pointer]),
            "bpf_map__name": (text, [pointer]),
            "bpf_program__attach": (pointer, [pointer]),
            "bpf_program__attach_iter": (pointer, [pointer, pointer]),
            "bpf_program__fd": (number, [pointer]),
            "bpf_program__set_autoload": (number, [pointer, ctypes.c_bool]),
            "bpf_link__destroy": (number, [pointer]),
            "bpf_link__fd": (number, [pointer]),
            "bpf_iter_create": (number, [number]),
            "bpf_link__pin": (number, [pointer, text]),
            "bpf_map__fd": (number, [pointer]),
            "bpf_map__reuse_fd": (number, [pointer, number]),
            "bpf_obj_get": (number, [text]),
            "bpf_obj_pin": (number, [number, text]),
            "bpf_map__max_entries": (c_uint32, [pointer]),
            "bpf_map__set_max_entries": (number, [pointer, c_uint32]),
            "bpf_map_lookup_elem": (number, [number, pointer, pointer]),
            "bpf_map_update_elem": (number, [number, pointer, pointer, c_uint64]),
            "bpf_map_delete_elem": (number, [number, pointer]),
            "bpf_map_get_next_key": (number, [number, pointer, pointer]),
            "bpf_prog_test_run_opts": (number, [number, pointer]),
            "bpf_prog_load": (number, [number, text, text, pointer, c_size_t, pointer]),
            "bpf_map_create": (number, [number, text, c_uint32, c_uint32, c_uint32, pointer]),
            "libbpf_find_vmlinux_btf_id": (number, [text, number]),
            "libbpf_num_possible_cpus": (number, []),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, list(arguments)
        self.lib.libbpf_set_print(self._printer)

    def _print(self, level: int, form: bytes, arguments: int) -> int:
        if level > _WARN:
            return 0
        buffer = ctypes.create_string_buffer(_MAX_PRINT)
        length: int = self._libc.vsnprintf(buffer, c_size_t(len(buffer)), form, c_void_p(arguments))
        self.log.extend(buffer.value.decode(errors="replace").splitlines())
        del self.log[:-_MAX_LOG]
        return length

    def failure(self, doing: str, code: int | None = None) -> HostError:
        """Return what to raise when libbpf has failed at *doing*; *code* is an errno (default: the current one)."""
        number = ctypes.get_errno() if code is None else abs(code)
        said = [line for line in self.log if line.startswith("libbpf:") and "BEGIN PROG LOAD LOG" not in line]
        # The verifier's verdict is the line before its statistics: "processed 123 insns ..."
        said += [one for one, two in pairwise(self.log) if two.startswith("processed ")]
        detail = f"; {said[-1].removeprefix('libbpf: ')}" if said else ""
        self.log.clear()
        remedies = {
            errno.EPERM: "root is needed, or CAP_BPF and CAP_PERFMON; with root, this kernel refuses that kind of program",
            errno.EACCES: "the verifier of this kernel refuses the program: please report it",
            errno.ENOENT: "a kernel feature is missing: see `ksentinel doctor`",
        }
        reason = f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
        return HostError(f"{doing}: {reason}{detail}", remedy=remedies.get(number, "see `ksentinel doctor`"))


@cache
def library() -> Library:
    """
    Return libbpf, loaded once.

    Raises
    ------
    HostError
        If this host has none.
    """
    return Library()


Key = int | ctypes.Structure | c_uint64

ANY, NOEXIST = 0, 1
"""What `Map.update` does about a key that is there already: replace its value; leave it."""


class Map:
    """A BPF map; keys are 32-bit numbers or ctypes structures, values ctypes structures."""

    def __init__(self, fd: int, max_entries: int = 1) -> None:
        self.fd = fd
        self.max_entries = max_entries

    def update(self, key: Key, value: Any, flags: int = ANY) -> bool:
        """
        Write *value*; return False if *flags* is `NOEXIST` and there is one.

        Of a task storage the key is a process' pidfd.

        Raises
        ------
        HostError
            If the kernel refuses: the map is full, the process has ended.
        """
        code = library().lib.bpf_map_update_elem(self.fd, _reference(key), ctypes.byref(value), flags)
        if code == -errno.EEXIST and flags == NOEXIST:
            return False
        if code:
            raise library().failure("writing a BPF map", code)
        return True

    def delete(self, key: Key) -> None:
        """Remove what stands under *key*; nothing happens if nothing does. Raises HostError."""
        code = library().lib.bpf_map_delete_elem(self.fd, _reference(key))
        if code and code != -errno.ENOENT:
            raise library().failure("removing from a BPF map", code)

    def lookup(self, key: Key, kind: type[Structure]) -> Structure | None:
        """Return the value under *key*, None if there is none; raises HostError."""
        value = kind()
        code = library().lib.bpf_map_lookup_elem(self.fd, _reference(key), ctypes.byref(value))
        if code == -errno.ENOENT:
            return None
        if code:
            raise library().failure("reading a BPF map", code)
        return value

    def keys(self, kind: type[Structure]) -> list[Structure]:
        """Return all keys; raises HostError."""
        found: list[Structure] = []
        while len(found) <= self.max_entries:
            following = kind()
            last = ctypes.byref(found[-1]) if found else None
            code = library().lib.bpf_map_get_next_key(self.fd, last, ctypes.byref(following))
            if code == -errno.ENOENT:
                break
            if code:
                raise library().failure("reading a BPF map", code)
            found.append(following)
        return found

    def lookup_percpu(self, key: int, kind: type[Structure]) -> list[Structure]:
        """Return the values of all CPUs; raises HostError."""
        values = (kind * library().lib.libbpf_num_possible_cpus())()
        code = library().lib.bpf_map_lookup_elem(self.fd, ctypes.byref(c_uint32(key)), ctypes.byref(values))
        if code:
            raise library().failure("reading a BPF map", code)
        return list(values)


def _reference(key: Key) -> Any:
    return ctypes.byref(c_uint32(key) if isinstance(key, int) else key)


class _TestRun(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.0 and later."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class Object:
    """
    A compiled BPF object, loaded.

    Parameters
    ----------
    path
        The ``.bpf.o`` file.

    Raises
    ------
    HostError
        On entering: libbpf or the kernel refuses; says what and what to do.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._object: int | None = None
        self._links: dict[str, int] = {}
        self._maps: dict[str, Map] = {}

    def __enter__(self) -> Self:
        found = library()
        if not self.path.is_file():
            raise HostError("there is no compiled BPF object", at=self.path, remedy="make bpf")
        self._object = found.lib.bpf_object__open_file(os.fsencode(self.path), None)
        if not self._object:
            raise found.failure(f"opening {self.path}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
        if self._object:
            library().lib.bpf_object__close(self._object)
            self._object = None

    def resize(self, name: str, entries: int) -> None:
        """Set a map's size before `load`."""
        pointer = self._find("map", name)
        code = library().lib.bpf_map__set_max_entries(pointer, entries)
        if code:
            raise library().failure(f"resizing the map {name}", code)

    def leave_out(self, program: str) -> None:
        """Don't load *program*."""
        library().lib.bpf_program__set_autoload(self._find("program", program), False)

    def load(self) -> None:
        """Hand the object to the kernel; raises HostError with the verifier's last words."""
        code = library().lib.bpf_object__load(self._object)
        if code:
            raise library().failure(f"loading {self.path.name}", code)

    def attach(self, program: str) -> None:
        """Attach a program to the hook its section names; raises HostError."""
        link = library().lib.bpf_program__attach(self._find("program", program))
        if not link:
            raise library().failure(f"attaching {program}")
        self._links[program] = link

    def iterator(self, program: str) -> int:
        """Attach an iterator program and return its link's descriptor, for `run_iterator`."""
        link = library().lib.bpf_program__attach_iter(self._find("program", program), None)
        if not link:
            raise library().failure(f"attaching the iterator {program}")
        self._links[program] = link
        fd: int = library().lib.bpf_link__fd(link)
        return fd

    def detach(self) -> None:
        """Detach everything."""
        for program in list(self._links):
            self.detach_program(program)

    def detach_program(self, program: str) -> None:
        """Detach one program; nothing happens if it isn't attached."""
        link = self._links.pop(program, None)
        if link is not None:
            library().lib.bpf_link__destroy(link)

    def map(self, name: str) -> Map:
        """Return a map by name."""
        if name not in self._maps:
            pointer = self._find("map", name)
            lib = library().lib
            self._maps[name] = Map(lib.bpf_map__fd(pointer), lib.bpf_map__max_entries(pointer))
        return self._maps[name]

    def map_names(self) -> set[str]:
        """Return the names of its maps, without those that hold its variables."""
        lib, names = library().lib, set()
        pointer = lib.bpf_object__next_map(self._object, None)
        while pointer:
            names.add(lib.bpf_map__name(pointer).decode())
            pointer = lib.bpf_object__next_map(self._object, pointer)
        return {name for name in names if "." not in name}

    def share(self, other: "Object") -> None:
        """Use the maps of *other*, which is loaded, in place of one's own of the same names; before `load`. Raises HostError."""
        for name in sorted(self.map_names() & other.map_names()):
            self.reuse(name, other.map(name).fd)

    def reuse(self, name: str, fd: int) -> None:
        """Use a map that is there already in place of one's own; before `load`. Raises HostError if it is of another kind."""
        code = library().lib.bpf_map__reuse_fd(self._find("map", name), fd)
        if code:
            raise library().failure(f"sharing the map {name}", code)

    def pin(self, program: str, path: Path) -> None:
        """Keep a program attached after this process has ended, by a name in a BPF file system; raises HostError."""
        code = library().lib.bpf_link__pin(self._links[program], os.fsencode(path))
        if code:
            raise library().failure(f"pinning {program}", code)

    def run(self, program: str, *arguments: int) -> None:
        """Run a raw tracepoint's program once, here and now, with these arguments; raises HostError."""
        context = (c_uint64 * len(arguments))(*arguments)
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun),
            ctx_in=ctypes.addressof(context),
            ctx_size_in=ctypes.sizeof(context),
        )
        fd = library().lib.bpf_program__fd(self._find("program", program))
        code = library().lib.bpf_prog_test_run_opts(fd, ctypes.byref(options))
        if code:
            raise library().failure(f"running {program}", code)

    def missed(self, program: str) -> int:
        """Return how many runs of *program* the kernel itself has skipped (it was already running on that CPU)."""
        fd = library().lib.bpf_program__fd(self._find("program", program))
        return int(program_info(fd).recursion_misses)

    def _find(self, kind: str, name: str) -> int:
        pointer: int | None = getattr(library().lib, f"bpf_object__find_{kind}_by_name")(
            self._object, name.encode()
        )
        if not pointer:
            raise HostError(f"has no {kind} {name}", at=self.path, remedy="make bpf")
        return pointer


def pin(fd: int, path: Path) -> None:
    """Keep a map by a name in a BPF file system; raises HostError."""
    code = library().lib.bpf_obj_pin(fd, os.fsencode(path))
    if code:
        raise library().failure(f"pinning {path}", code)


def pinned(path: Path) -> int | None:
    """Return the descriptor of what is pinned there, None if nothing is; raises HostError."""
    fd: int = library().lib.bpf_obj_get(os.fsencode(path))
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise library().failure(f"opening {path}", fd)
    return fd


def kernel_has_hook(hook: str) -> bool:
    """Tell whether this kernel asks BPF programs at that LSM hook."""
    found: int = library().lib.libbpf_find_vmlinux_btf_id(hook.encode(), _BPF_LSM_MAC)
    return found > 0


def kernel_has(function: str) -> bool:
    """Tell whether this kernel's BTF knows a function of that name."""
    found: int = library().lib.libbpf_find_vmlinux_btf_id(function.encode(), _BPF_TRACE_FENTRY)
    return found > 0


def run_iterator(link_fd: int) -> None:
    """Let an iterator program see every task once."""
    fd = library().lib.bpf_iter_create(link_fd)
    if fd < 0:
        raise library().failure("running an iterator", fd)
    try:
        while os.read(fd, 4096):
            pass
    finally:
        os.close(fd)


def wait_for_programs(sleep: Callable[[float], None] = time.sleep) -> None:
    """
    Return when every run of a program that had begun has ended: detaching alone doesn't wait for them.

    ``membarrier(2)`` with MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and programs run inside of one. A
    kernel with ``nohz_full`` refuses it: there, time has to do.
    """
    if ctypes.CDLL(None).syscall(_SYS_MEMBARRIER[platform.machine()], _MEMBARRIER_GLOBAL, 0, 0):
        sleep(0.1)


class ProgramInfo(ctypes.Structure):
    """The start of struct bpf_prog_info (linux/bpf.h), up to what is read of it."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 208),
        ("recursion_misses", c_uint64),
        ("verified_insns", c_uint32),
        ("attach_btf_obj_id", c_uint32),
    )


def program_info(fd: int) -> ProgramInfo:
    """Return what the kernel says of a program; raises HostError."""
    info = ProgramInfo()

    class Attr(ctypes.Structure):
        _fields_ = (
            ("fd", c_uint32),
            ("length", c_uint32),
            ("info", c_uint64),
            ("room", ctypes.c_uint8 * 112),
        )

    attr = Attr(fd=fd, length=ctypes.sizeof(info), info=ctypes.addressof(info))
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_BPF[platform.machine()]
    if libc.syscall(number, _BPF_OBJ_GET_INFO_BY_FD, ctypes.byref(attr), ctypes.sizeof(attr)):
        raise library().failure("asking for a program's statistics")
    return info
