# SPDX-License-Identifier: Apache-2.0
"""A virtual machine under one of Debian's kernels, without KVM, whose root is this host's: it lives as long as a with block."""

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from vm.kernel import Kernel, initramfs

from ksentinel.errors import HostError
from ksentinel.printable import printable

ROOT = Path(__file__).parents[2]
SERVERS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
SERVE = Path(__file__).with_name("serve.py")
LSM = "landlock,lockdown,yama,integrity,apparmor,bpf"
RESULTS = "/dev/ttyS1"
CPU = "max,-avx2"
"""With AVX2 numpy sorts by instructions at which programs die under QEMU 7.2; without, it is faster, too."""


@dataclass(frozen=True, slots=True)
class Setup:
    """
    What a guest is like.

    Parameters
    ----------
    kernel
        What it runs.
    lsm
        The security modules it starts with, as the kernel's command line takes them.
    cpus, memory
        How many processors, how many MiB.
    more
        What else stands on the kernel's command line.
    counted
        Its clock counts instructions, of one processor: the same work takes the same time, whatever else the host does.
    """

    kernel: Kernel
    lsm: str = LSM
    cpus: int = 2
    memory: int = 2048
    more: str = ""
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What a guest does: variables for its first process, and files that it finds in ``/run/vm``."""

    variables: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)

    def script(self) -> str:
        """Return the variables as a piece of shell."""
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return "\n".join([*lines, ""])


def environment(setup: Setup, host: Mapping[str, str], columns: int, root: Path = ROOT) -> dict[str, str]:
    """Return the variables that every job has; of the *host's* own only what its Python needs."""
    prefixes = sorted({str(Path(p).resolve()) for p in (root, sys.prefix, sys.base_prefix)})
    kept = [p for p in prefixes if not any(p.startswith(f"{other}/") for other in prefixes)]
    return {
        "HOME": "/root",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "TERM": host.get("TERM", "dumb"),
        "TMPDIR": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": host.get("PYTHONPATH", ""),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # or all of hypothesis is rewritten for its plugin, 6 s long
        "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis",
        "HOSTNAME": "guest",
        "COLUMNS": str(columns),
        "KSENTINEL_KERNEL": setup.kernel.version,
        "KSENTINEL_LSM": setup.lsm,
        "KSENTINEL_FULL": host.get("KSENTINEL_FULL", ""),
        "REPOSITORY": str(root),
        "PYTHON": sys.executable,
        "RESULTS": RESULTS,
        "KEPT": "\n".join(p for p in kept if Path(p).parts[1] in {"root", "tmp", "run", "var"}),
    }


class Machine:
    """
    A running guest.

    Parameters
    ----------
    setup
        What it is like.
    job
        What it does.
    console
        Where its console goes; None: to this terminal, for a person to type at.
    programs
        Where QEMU and the file server are looked for; None: where they are installed.
    """

    def __init__(
        self, setup: Setup, job: Job, console: Path | None, programs: Sequence[str] | None = None
    ) -> None:
        self.setup = setup
        self.job = job
        self.console = console
        self._programs = programs
        self._ends = contextlib.ExitStack()
        self._qemu: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            self._start(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ends.close()

    def _start(self, ends: contextlib.ExitStack) -> None:
        if os.geteuid():
            raise HostError(
                "a virtual machine's file server needs root", remedy="run this with sudo, or make test-vm"
            )
        qemu, server = self._programs or (found_qemu(), found_server())
        # Not below the repository: a socket's path has at most 107 bytes.
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="ksentinel-vm-")))
        initramfs(self.setup.kernel, {"job": self.job.script(), **self.job.files}, folder / "initramfs")
        files = folder / "files.sock"
        log = ends.enter_context((folder / "server.log").open("w+b"))
        view = folder / "root"
        view.mkdir()
        serve = ends.enter_context(
            process(
                [sys.executable, str(SERVE), str(view), *served(server, view, files, live=not self.console)],
                log,
            )
        )
        wait_for(files, serve, log)
        results = ends.enter_context(socket.socket(socket.AF_UNIX))
        results.bind(str(folder / "results.sock"))
        results.listen(1)
        command = self._command(qemu, folder, files)
        said = ends.enter_context((folder / "qemu.log").open("w+b"))
        self._qemu = ends.enter_context(process(command, said, own_terminal=self.console is not None))
        if self.console is None:
            return
        results.settimeout(30)
        try:
            self._channel = ends.enter_context(results.accept()[0])
        except TimeoutError:
            raise HostError(f"QEMU doesn't start: {tail(said)}") from None

    def _command(self, qemu: str, folder: Path, files: Path) -> list[str]:
        setup = self.setup
        console = f"file,path={self.console}" if self.console else "stdio,signal=off"
        accel = ["-accel", "tcg,thread=multi"]
        if setup.counted:
            accel = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]
        return [
            qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *accel, "-cpu", CPU, "-smp", str(setup.cpus), "-m", str(setup.memory),
            "-object", f"memory-backend-memfd,id=memory,size={setup.memory}M,share=on",
            "-machine", "q35,memory-backend=memory",
            "-chardev", f"socket,id=files,path={files}", "-device", "vhost-user-fs-pci,chardev=files,tag=root",
            "-chardev", f"{console},id=console", "-serial", "chardev:console",
            "-chardev", f"socket,id=results,path={folder}/results.sock", "-serial", "chardev:results",
            "-kernel", str(setup.kernel.image), "-initrd", str(folder / "initramfs"),
            "-append", f"console=ttyS0 panic=-1 loglevel=4 log_buf_len=4M lsm={setup.lsm} {setup.more}".strip(),
        ]  # fmt: skip

    def lines(self, deadline: float, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
        """
        Yield what comes through the channel for results, line by line, until the guest closes it.

        Raises
        ------
        TimeoutError
            If it isn't closed before the *deadline*.
        """
        assert self._channel is not None, "a guest with a person at its console sends no results"
        rest = b""
        while True:
            left = deadline - clock()
            if left <= 0:
                raise TimeoutError
            self._channel.settimeout(left)
            more = self._channel.recv(1 << 16)
            if not more:
                break
            *whole, rest = (rest + more).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def wait(self) -> int:
        """Wait until the guest has been switched off, and return how QEMU ended."""
        assert self._qemu is not None
        return self._qemu.wait()

    def last_words(self, count: int = 60) -> str:
        """Return the last lines of the console, fit to be shown."""
        try:
            text = self.console.read_text(errors="surrogateescape") if self.console else ""
        except FileNotFoundError:
            text = ""
        lines = [printable(line) for line in text.replace("\r", "").splitlines() if line.strip()]
        return "\n".join(lines[-count:]) or "(the console is empty)"


def need_root(user: int | None = None) -> None:
    """Refuse whoever isn't root: only root may serve all files, and see them read-only."""
    if os.geteuid() if user is None else user:
        raise HostError(
            "a virtual machine's file server needs root", remedy="run this with sudo, or make test-vm"
        )


def found_qemu() -> str:
    """Return where QEMU is."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise HostError("no qemu-system-x86_64 here", remedy="make debs-vm installs it")
    return qemu


def found_server(places: Sequence[str] = SERVERS) -> str:
    """Return where the server of files is: with QEMU up to 7.2, a package of its own since."""
    for place in places:
        if os.access(place, os.X_OK):
            return place
    raise HostError(f"no virtiofsd here: none of {', '.join(places)}", remedy="make debs-vm installs it")


def served(server: str, view: Path, files: Path, *, live: bool) -> list[str]:
    """Return how the file server is called; a *live* one looks at the host's files again and again."""
    cache = "auto" if live else "always"
    if server == SERVERS[0]:
        options = ["-o", f"source={view}", "-o", f"cache={cache}", "-o", "sandbox=chroot", "-f"]
    else:
        options = ["--shared-dir", str(view), "--cache", cache, "--sandbox", "chroot"]
    return [server, f"--socket-path={files}", *options]


@contextlib.contextmanager
def process(
    command: Sequence[str], log: IO[bytes], *, own_terminal: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program as long as the block; it dies with us, however we die."""
    options: dict[str, Any] = {} if not own_terminal else {
        "stdin": subprocess.DEVNULL, "stdout": log, "start_new_session": True,
    }  # fmt: skip
    running = subprocess.Popen(("setpriv", "--pdeathsig", "KILL", *command), stderr=log, **options)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def wait_for(path: Path, running: subprocess.Popen[bytes], log: IO[bytes], seconds: float = 10) -> None:
    """Wait until a program has made its socket."""
    end = time.monotonic() + seconds
    while not path.is_socket():
        if running.poll() is not None:
            raise HostError(f"the file server ends with {running.returncode}: {tail(log)}")
        if time.monotonic() > end:
            raise HostError(f"the file server made no socket in {seconds:g} s: {tail(log)}")
        time.sleep(0.02)


def tail(log: IO[bytes]) -> str:
    """Return the last line of a log."""
    log.seek(0)
    lines = log.read().decode(errors="surrogateescape").strip().splitlines()
    return printable(lines[-1]) if lines else "it says nothing"
