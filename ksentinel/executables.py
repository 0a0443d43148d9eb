# SPDX-License-Identifier: Apache-2.0
"""
Executables by content: which file it is, what is in it, and which trained profile that makes it.

Three parts: `Executables` looks at files, `Hasher` does so beside the walk, `Recognizer` compares what was found with
what a model knows. `script_of` names what an execution runs.

What was hashed is what is there *now*. ``/proc/PID/exe`` is the very file that a living process executes; a path may
have got another file since.
"""

import ctypes
import hashlib
import os
import queue
import re
import stat
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

HASH_LIMIT_BYTES = 256 << 20
CACHED = 4096

BY_DESCRIPTOR = " (script by descriptor)"
"""Added to the interpreter's path where a script has no path of its own."""

_CHUNK = 1 << 20
_SETTLED_NS = 2_000_000_000
"""A file changed twice within a tick of its file system's clock (FAT: 2 s) may look the same after the second time."""

_PROCESS_EXE = re.compile(r"/proc/[0-9]+/exe")
_PROCESS_ROOT = re.compile(r"(/proc/[0-9]+/root)(/.*)", re.DOTALL)
_DESCRIPTOR = re.compile(
    r"/dev/(?:fd/.*|std(?:in|out|err))|/proc/(?:self|thread-self|[0-9]+)/(?:task/[0-9]+/)?fd/.*", re.DOTALL
)

# openat2(2); the same number on every architecture. Its flags, linux/openat2.h.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}

_Key = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Identity:
    """
    A regular file as it was when looked at.

    Attributes
    ----------
    sha256
        Of its content, in hexadecimal; empty if it was not hashed, and *reason* then says why.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str = ""
    reason: str = ""

    @property
    def key(self) -> _Key:
        """What changes when the content does."""
        return self.device, self.inode, self.size, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True, slots=True)
class Unidentified:
    """Why a path leads to no file that could be looked at."""

    reason: str
    sha256: ClassVar[str] = ""


def open_file(path: str, flags: int) -> int:
    """
    Open *path* as `os.open` does; one below ``/proc/PID/root`` never leaves that root.

    A link in a container that starts with a slash would lead into our own root: the kernel is told to take the
    container's.
    """
    below = _PROCESS_ROOT.fullmatch(path)
    if below is None:
        return os.open(path, flags)
    root = os.open(below[1], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _openat2(root, below[2], flags)
    finally:
        os.close(root)


def _openat2(root: int, path: str, flags: int) -> int:
    how = (ctypes.c_uint64 * 3)(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    found: int = libc.syscall(
        _SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))
    )
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return found


class Executables:
    """
    Looks at executables: which file, and the digest of its content, read once per state of the file.

    Nothing but regular files that may be executed is ever opened for reading: the place is first opened without touching
    what is there, so that FIFOs don't block, and neither devices nor the files of /proc and /sys do anything. An instance
    belongs to one thread.

    Parameters
    ----------
    hash_limit_bytes
        Larger files are not hashed, and the identity says so.
    cache
        How many digests to keep; the one used least recently goes.
    opener
        Opens a path with flags, as `os.open` does.
    clock_ns
        Nanoseconds since the epoch. The digest of a file that has changed in the last two seconds is not kept: its next
        change may not show.

    Attributes
    ----------
    hits, hashed, unhashed, failed
        What came of each look; their sum is how many there were.
    hashed_bytes
        How much was read.

    Examples
    --------
    >>> Executables().look("/proc/self/mem/none")
    Unidentified(reason='Not a directory')
    """

    def __init__(
        self,
        hash_limit_bytes: int = HASH_LIMIT_BYTES,
        cache: int = CACHED,
        opener: Callable[[str, int], int] = open_file,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.hash_limit_bytes = hash_limit_bytes
        self.cache = cache
        self.opener = opener
        self.clock_ns = clock_ns
        self.hits = self.hashed = self.unhashed = self.failed = self.hashed_bytes = 0
        self._digests: OrderedDict[_Key, str] = OrderedDict()

    def look(self, path: str, *, follow: bool = False) -> Identity | Unidentified:
        """
        Return which file *path* is; never raises for what is or isn't there.

        Parameters
        ----------
        path
            Absolute. ``/proc/PID/exe``, or ``/proc/PID/root`` and a path, for another mount namespace.
        follow
            Follow a symbolic link in the last place, too. What the kernel names as executed is never one (``/proc/PID/exe``
            itself is followed always); a script's path may be.
        """
        found = self._look(path, follow)
        self.failed += isinstance(found, Unidentified)
        return found

    def _look(self, path: str, follow: bool) -> Identity | Unidentified:
        if not path.startswith("/"):
            return Unidentified("no absolute path")
        link = 0 if follow or _PROCESS_EXE.fullmatch(path) else os.O_NOFOLLOW
        try:
            place = self.opener(path, os.O_PATH | os.O_CLOEXEC | link)
        except OSError as error:
            return Unidentified(error.strerror or str(error))
        except ValueError as error:  # a NUL, or a character no file name has
            return Unidentified(str(error))
        try:
            return self._identify(place)
        except OSError as error:
            return Unidentified(error.strerror or str(error))
        finally:
            os.close(place)

    def _identify(self, place: int) -> Identity | Unidentified:
        status = os.fstat(place)
        if not stat.S_ISREG(status.st_mode):
            return Unidentified(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'something')}, no regular file")
        if not status.st_mode & 0o111:
            return Unidentified("nobody may execute it")
        found = _identity(status)
        known = self._digests.get(found.key)
        if known is not None:
            self.hits += 1
            self._digests.move_to_end(found.key)
            return _identity(status, known)
        if not 0 < found.size <= self.hash_limit_bytes:
            self.unhashed += 1
            limit = f"larger than {self.hash_limit_bytes} bytes: not hashed"
            return _identity(status, reason=limit if found.size else "empty: nothing to tell it by")
        # The same file, now for reading. Not blocking, should it be under a lease.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        content = self.opener(f"/proc/self/fd/{place}", flags)
        try:
            return self._hash(content, status)
        finally:
            os.close(content)

    def _hash(self, content: int, before: os.stat_result) -> Identity | Unidentified:
        digest, size = hashlib.sha256(), 0
        while size <= before.st_size and (chunk := os.read(content, _CHUNK)):
            digest.update(chunk)
            size += len(chunk)
        self.hashed_bytes += size
        after = _identity(os.fstat(content), digest.hexdigest())
        if size != before.st_size or after.key != _identity(before).key:
            return Unidentified("changed while it was read")
        self.hashed += 1
        if self.clock_ns() - after.ctime_ns >= _SETTLED_NS:
            self._digests[after.key] = after.sha256
            if len(self._digests) > self.cache:
                self._digests.popitem(last=False)
        return after


def _identity(status: os.stat_result, sha256: str = "", reason: str = "") -> Identity:
    return Identity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256, reason
    )


Token = TypeVar("Token")


class Hasher(Generic[Token]):
    """
    Looks at executables beside the walk, in one thread; what was found is fetched.

    A thread, because hashing releases the interpreter: reading a large file must not let records be lost. Should a file
    system never answer (a network's, FUSE), that thread waits for ever, and everything after it is dropped and counted.

    Parameters
    ----------
    executables
        Who looks.
    limit
        How many may be under way or wait to be fetched; what comes then is dropped.

    Attributes
    ----------
    submitted, dropped
        ``submitted = dropped + fetched + waiting`` at any time.

    Examples
    --------
    >>> with Hasher[int](Executables()) as hasher:
    ...     hasher.submit("/proc/self/none", 7)
    True
    """

    def __init__(self, executables: Executables, limit: int = 1024) -> None:
        self.executables = executables
        self.limit = limit
        self.submitted = self.dropped = self.fetched = 0
        self._asked: queue.SimpleQueue[tuple[str, Token, bool] | None] = queue.SimpleQueue()
        self._found: deque[tuple[Token, Identity | Unidentified]] = deque()
        self._error: Exception | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hasher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread, after the file it is at; it is not waited for longer than two seconds."""
        self._closing.set()
        self._asked.put(None)
        self._thread.join(2.0)

    @property
    def waiting(self) -> int:
        """How many are under way or wait to be fetched."""
        return self.submitted - self.dropped - self.fetched

    def submit(self, path: str, token: Token, *, follow: bool = False) -> bool:
        """Have *path* looked at; *token* comes back with what was found. False (and counted) if it was dropped."""
        self.submitted += 1
        if self.waiting > self.limit:
            self.dropped += 1
            return False
        self._asked.put((path, token, follow))
        return True

    def ready(self) -> list[tuple[Token, Identity | Unidentified]]:
        """Return what was found since the last time, in the order of asking; raises what ended the thread."""
        if self._error is not None:
            raise self._error
        found = [self._found.popleft() for _ in range(len(self._found))]
        self.fetched += len(found)
        return found

    def _run(self) -> None:
        try:
            while (asked := self._asked.get()) is not None and not self._closing.is_set():
                path, token, follow = asked
                self._found.append((token, self.executables.look(path, follow=follow)))
        except Exception as error:  # noqa: BLE001 - whoever fetches gets it
            self._error = error


@dataclass(frozen=True, slots=True)
class Known:
    """An executable that a model was trained on; *sha256* is empty if it could not be hashed then."""

    path: str
    sha256: str


class Kind(StrEnum):
    """How an executable stands to those a model knows."""

    SAME = "same"
    CHANGED = "changed"
    COPY = "copy"
    UNCHECKED = "unchecked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Recognition:
    """
    What an executable was recognised as.

    Attributes
    ----------
    profile
        Path of the known executable whose profile it has; empty: none, so it is compared with the whole host.
    content_of
        A known executable with the same content; empty if there is none, or the content isn't known.
    """

    kind: Kind
    path: str
    profile: str = ""
    content_of: str = ""


class Recognizer:
    """
    Recognises executables that a model knows.

    =========  ==============  ==================  ==========================================
    kind       path            content             profile
    =========  ==============  ==================  ==========================================
    same       known           as it was           its own
    changed    known           another             its own: an upgrade (or something put there)
    unchecked  known           not known           its own
    copy       unknown         of a known one      that one's: copied, renamed or linked
    unknown    unknown         unknown             none: the whole host's
    =========  ==============  ==================  ==========================================

    Of several known executables with one content a copy is the one with its base name, else the first in order.

    Parameters
    ----------
    known
        What the model was trained on. A path may have had several contents.

    Attributes
    ----------
    counts
        Judgements, by kind.

    Examples
    --------
    >>> recognizer = Recognizer([Known("/usr/bin/id", "ab"), Known("/usr/bin/nc", "cd")])
    >>> recognizer.judge("/tmp/x", "cd")
    Recognition(kind=<Kind.COPY: 'copy'>, path='/tmp/x', profile='/usr/bin/nc', content_of='/usr/bin/nc')
    """

    def __init__(self, known: Iterable[Known]) -> None:
        self.counts: Counter[Kind] = Counter()
        self._contents: dict[str, set[str]] = {}
        self._paths: dict[str, list[str]] = {}
        for one in sorted(set(known), key=lambda one: (one.path, one.sha256)):
            contents = self._contents.setdefault(one.path, set())
            if one.sha256:
                contents.add(one.sha256)
                self._paths.setdefault(one.sha256, []).append(one.path)

    def judge(self, path: str, sha256: str) -> Recognition:
        """
        Return what the executable at *path* is recognised as; *sha256* is empty if it could not be hashed.

        A known path keeps its profile whatever is in it, also the content of another one: a shell put in a server's
        place must be compared with the server.
        """
        found = self._judge(path, sha256)
        self.counts[found.kind] += 1
        return found

    def _judge(self, path: str, sha256: str) -> Recognition:
        contents = self._contents.get(path)
        twin = self._twin(path, sha256)
        if contents is None:
            return Recognition(Kind.COPY if twin else Kind.UNKNOWN, path, twin, twin)
        if not sha256 or not contents:
            return Recognition(Kind.UNCHECKED, path, path, twin)
        return Recognition(Kind.SAME if sha256 in contents else Kind.CHANGED, path, path, twin)

    def _twin(self, path: str, sha256: str) -> str:
        paths = self._paths.get(sha256, [])
        name = PurePosixPath(path).name
        # Itself first; sorted as they are, so of one name the first in order.
        best = sorted(paths, key=lambda known: (known != path, PurePosixPath(known).name != name))
        return best[0] if best else ""


def script_of(asked_path: str, exe: str, is_script: bool) -> str:
    """
    Return what an execution runs, as profiles name it: the script if the kernel executed one, else the executable.

    The arguments have no say: a program writes those as it likes. A script that was executed by a descriptor (fexecve)
    has no path of its own; its interpreter is named instead, and marked. So it is where the asked path is not absolute.

    Parameters
    ----------
    asked_path
        The path that execve was asked for, absolute. ``..`` stays in it: what it leads to only the kernel knows, and it
        must not come out as the name of another script.
    exe
        The file that the kernel executed in the end.
    is_script
        The kernel's word that it went from one file to another (``#!``, or binfmt_misc).

    Examples
    --------
    >>> script_of("/usr/bin/../bin//ldd", "/usr/bin/bash", is_script=True)
    '/usr/bin/../bin/ldd'
    >>> script_of("/dev/fd/3", "/usr/bin/bash", is_script=True)
    '/usr/bin/bash (script by descriptor)'
    """
    if not is_script:
        return exe
    path = f"/{'/'.join(part for part in asked_path.split('/') if part not in {'', '.'})}"
    if not asked_path.startswith("/") or path == "/" or _DESCRIPTOR.fullmatch(path):
        return f"{exe}{BY_DESCRIPTOR}"
    return path
