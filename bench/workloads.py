# SPDX-License-Identifier: Apache-2.0
"""
What is done while somebody watches: three loops, a build, and two servers under load on the loopback.

Each workload takes a number of operations and tells how long they took, measured inside: neither its own start nor a
watcher's is in it.
"""

import csv
import io
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from children import PATH, AbsentError, BenchError, Child, run
from watchers import Bench, Watcher

LONGEST = 30.0
"""Seconds after which a run is ended; a usual one takes less than one."""
SOURCES = 40
_CLIENTS = 20
_CONNECTIONS = 8
_PAGE = 10_240
_WEB = """\
server.document-root = "{site}"
server.bind = "127.0.0.1"
server.port = {port}
server.errorlog = "{work}/lighttpd-errors.log"
index-file.names = ("index.html")
mimetype.assign = (".html" => "text/html")
"""
_SOURCE = r"""\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct item_{n} {{ char name[{size}]; int count; struct item_{n} *next; }};

static int compare_{n}(const void *a, const void *b)
{{
        return strcmp(((const struct item_{n} *)a)->name, ((const struct item_{n} *)b)->name);
}}

void print_{n}(struct item_{n} *items, size_t number)
{{
        qsort(items, number, sizeof(*items), compare_{n});
        for (size_t i = 0; i < number; i++)
                printf("%s %d\n", items[i].name, items[i].count + {n});
}}
"""


class Workload:
    """
    A workload.

    Attributes
    ----------
    first
        How many operations to begin with.
    floor, cap
        The fewest and the most that make sense in one run.
    program
        Who makes the system calls of an operation, if they can be told from outside; None if not.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    unit: ClassVar[str]
    first: ClassVar[int]
    floor: ClassVar[int]
    cap: ClassVar[int]
    server: ClassVar[bool] = False

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def prepare(self) -> None:
        """Fetch and build what is needed; raises AbsentError."""
        self.load = self.bench.tools.compiled("load.c", "-pthread")

    @contextmanager
    def open(self, watcher: Watcher) -> Iterator[None]:  # noqa: ARG002
        """Make ready, in front of *watcher*: processes born before it aren't always seen by it."""
        yield

    def run(self, operations: int, watcher: Watcher) -> float:
        """Do so many operations; returns how many nanoseconds they took."""
        raise NotImplementedError

    def calls(self, operations: int) -> int:  # noqa: ARG002
        """Return how many system calls a watcher must have seen of that, at the very least."""
        return 0

    def _timed(self, watcher: Watcher, *arguments: str | Path, folder: Path | None = None) -> float:
        return float(run(watcher.around([self.load, *arguments]), folder=folder, seconds=LONGEST))


class Calls(Workload):
    """The cheapest system call there is, so that what is added shows."""

    name = "getppid"
    what = "getppid() in a loop"
    unit = "call"
    first, floor, cap = 20_000, 500, 20_000_000

    def run(self, operations: int, watcher: Watcher) -> float:
        """Call."""
        return self._timed(watcher, "calls", str(operations))

    def calls(self, operations: int) -> int:
        """One each."""
        return operations


class Spawn(Workload):
    """Short lives."""

    name = "exec"
    what = "fork, exec of a tiny static program, wait"
    unit = "program"
    first, floor, cap = 50, 20, 20_000

    def prepare(self) -> None:
        """Compile the program, too."""
        super().prepare()
        self.tiny = self.bench.tools.compiled("tiny.c", "-static")

    def run(self, operations: int, watcher: Watcher) -> float:
        """Start programs."""
        return self._timed(watcher, "spawn", str(operations), self.tiny)


class Files(Workload):
    """Calls whose paths are read."""

    name = "files"
    what = "create a file, write 1 KiB, close, unlink"
    unit = "file"
    first, floor, cap = 500, 50, 500_000

    def run(self, operations: int, watcher: Watcher) -> float:
        """Make files."""
        folder = self.bench.work / "files"
        folder.mkdir(exist_ok=True)
        (folder / "file").unlink(missing_ok=True)
        return self._timed(watcher, "files", str(operations), folder)


class Build(Workload):
    """Real work with system calls in it."""

    name = "build"
    what = f"make -j2 of {SOURCES} small C files (fewer for the slowest sides)"
    unit = "file compiled"
    first, floor, cap = 10, 10, SOURCES

    def prepare(self) -> None:
        """Write the sources."""
        super().prepare()
        make = shutil.which("make", path=PATH)
        if make is None:
            raise AbsentError("no make here: apt install make")
        self.make = Path(make)
        self.folder = self.bench.work / "sources"
        self.folder.mkdir(exist_ok=True)
        for n in range(SOURCES):
            (self.folder / f"f{n}.c").write_text(_SOURCE.format(n=n, size=16 + n))
        compiler = self.bench.tools.compiler()
        (self.folder / "Makefile").write_text(f"%.o: %.c\n\t@{compiler} -O1 -Wall -c $< -o $@\n")

    def run(self, operations: int, watcher: Watcher) -> float:
        """Build."""
        for old in self.folder.glob("*.o"):
            old.unlink()
        targets = [f"f{n}.o" for n in range(operations)]
        return self._timed(watcher, "spawn", "1", self.make, "-j2", *targets, folder=self.folder)


class Redis(Workload):
    """A server that answers from memory."""

    name = "redis"
    what = f"redis-benchmark, {_CLIENTS} clients, SET and GET in turn, no pipelining"
    unit = "request"
    first, floor, cap = 2_000, 200, 200_000
    server = True

    def prepare(self) -> None:
        """Find server and client."""
        self.redis = self.bench.tools.find("redis-server", "redis-server")
        self.client = self.bench.tools.find("redis-benchmark", "redis-server")

    @contextmanager
    def open(self, watcher: Watcher) -> Iterator[None]:
        """Start the server."""
        self.port = free_port()
        command = [
            *(self.redis.path, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.bench.work),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        ]
        with Child(command, self.bench.work / "redis-server", self.redis.environment()) as child:
            child.wait_until(lambda: answers(self.port, b"PING\r\n", b"+PONG"))
            with watcher.joined(child.pid):
                yield

    def run(self, operations: int, watcher: Watcher) -> float:
        """Ask."""
        each = operations // 2
        command = [
            *(self.client.path, "-h", "127.0.0.1", "-p", str(self.port), "-c", str(_CLIENTS)),
            *("-n", str(each), "-t", "set,get", "--csv"),
        ]
        text = run(watcher.around(command), self.client.environment(), seconds=LONGEST)
        return 1e9 * each * sum(1 / rate for rate in redis_rates(text))


class Web(Workload):
    """A server that sends a file."""

    name = "web"
    what = f"lighttpd, a static page of {_PAGE // 1024} KiB, ab with {_CONNECTIONS} keep-alive connections"
    unit = "request"
    first, floor, cap = 1_000, 100, 200_000
    server = True

    def prepare(self) -> None:
        """Find server and client."""
        self.lighttpd = self.bench.tools.find("lighttpd", "lighttpd")
        self.client = self.bench.tools.find("ab", "apache2-utils")
        self.site = self.bench.work / "site"
        self.site.mkdir(exist_ok=True)
        (self.site / "index.html").write_text("<p>ksentinel</p>\n".ljust(_PAGE))

    @contextmanager
    def open(self, watcher: Watcher) -> Iterator[None]:
        """Start the server."""
        self.port = free_port()
        config = self.bench.work / "lighttpd.conf"
        config.write_text(_WEB.format(site=self.site, port=self.port, work=self.bench.work))
        path = self.lighttpd.path
        command = [path, "-D", "-f", config, "-m", path.parents[1] / "lib/lighttpd"]
        with Child(command, self.bench.work / "lighttpd", self.lighttpd.environment()) as child:
            child.wait_until(lambda: answers(self.port, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"))
            with watcher.joined(child.pid):
                yield

    def run(self, operations: int, watcher: Watcher) -> float:
        """Visit."""
        command = [
            *(self.client.path, "-q", "-k", "-c", str(_CONNECTIONS), "-n", str(operations)),
            f"http://127.0.0.1:{self.port}/index.html",
        ]
        text = run(watcher.around(command), self.client.environment(), seconds=LONGEST)
        return 1e9 * operations / web_rate(text)


ALL: tuple[type[Workload], ...] = (Calls, Spawn, Files, Build, Redis, Web)


def redis_rates(text: str) -> list[float]:
    r"""
    Return requests a second of each test that ``redis-benchmark --csv`` has printed.

    Examples
    --------
    >>> redis_rates('"test","rps","avg_latency_ms"\n"SET","50000.00","0.3"\n"GET","62500.00","0.2"\n')
    [50000.0, 62500.0]
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    if [row["test"] for row in rows] != ["SET", "GET"]:
        raise BenchError(f"redis-benchmark printed something else: {text[:100]!r}")
    return [float(row["rps"]) for row in rows]


def web_rate(text: str) -> float:
    r"""
    Return requests a second of what ``ab`` has printed; raises BenchError if any failed.

    Examples
    --------
    >>> web_rate("Failed requests:        0\nRequests per second:    25000.50 [#/sec] (mean)\n")
    25000.5
    """
    rate = re.search(r"^Requests per second: +([\d.]+)", text, re.MULTILINE)
    failed = re.search(r"^(?:Failed requests|Non-2xx responses): +([1-9]\d*)", text, re.MULTILINE)
    if rate is None or failed is not None:
        raise BenchError(f"ab: {failed[0] if failed else text[-100:]!r}")
    return float(rate[1])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def answers(port: int, question: bytes, answer: bytes) -> bool:
    """Tell whether a server of this host answers as it should."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(question)
            return connection.recv(100).startswith(answer)
    except OSError:
        return False
