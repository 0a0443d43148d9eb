# SPDX-License-Identifier: Apache-2.0
"""
The kernel's audit, borrowed and given back as it was.

Two things make it a trap for measurements. Its rules outlive whoever set them: so a small process of our own waits
for our end, however that comes, and restores everything. And once audit has been enabled, every process born from
then on carries an audit context until the next boot, which slows each of its system calls even with audit disabled
and no rule loaded: so while audit isn't what is measured, the rule ``task,never`` keeps new processes free of it.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from children import AbsentError, BenchError, Child, run, threads_named
from tools import Tools

EVERYTHING = "always,exit -S all"
_NEVER = "task,never"
# What Debian's own rules set.
_SETTINGS = {"backlog_limit": "8192", "failure": "1", "backlog_wait_time": "60000"}
_OPTIONS = {"backlog_limit": "-b", "failure": "-f", "backlog_wait_time": "--backlog_wait_time"}

_RESTORE = """\
read -r _
"$0" -d $1 >/dev/null 2>&1
"$0" -d $2 >/dev/null 2>&1
shift 2
"$0" "$@" >/dev/null
"""


class Auditing:
    """
    Audit, for as long as the ``with`` block lasts: off and out of the way, except inside of `watching`.

    Attributes
    ----------
    absent
        Why it isn't touched, as when somebody uses it; None if it is.
    """

    def __init__(self, tools: Tools, work: Path) -> None:
        self.tools, self.work = tools, work
        self.absent: str | None = None
        self.before: dict[str, str] = {}
        self.pids: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._control = self.tools.find("auditctl", "auditd")
            self._daemon = self.tools.find("auditd", "auditd")
            self.before = self.status()
            self.absent = in_use(self.before, self.rules())
        except AbsentError as error:
            self.absent = f"auditd: {error}"
        except BenchError as error:
            self.absent = f"the kernel's audit doesn't answer: {error}"
        if self.absent is None:
            self._restorer = self._start_restorer()
            self._set("-a", *_NEVER.split())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.absent is not None:
            return
        self._restorer.communicate()  # closing its input is the sign
        rules, now = self.rules(), self.status()
        changed = {name: now[name] for name in ("enabled", *_SETTINGS) if now[name] != self.before[name]}
        if rules or changed:
            raise BenchError(
                f"audit is not as it was: rules {rules}, settings {changed}; see auditctl -l, -s"
            )

    @contextmanager
    def watching(self, rule: str | None) -> Iterator[None]:
        """Run auditd, by its configuration as Debian ships it, and audit by *rule* (None: by none)."""
        if self.absent is not None:
            raise AbsentError(self.absent)
        folder = self.work / "auditd"
        (folder / "plugins.d").mkdir(parents=True, exist_ok=True)
        folder.chmod(0o750)
        for old in folder.glob("audit.log*"):
            old.unlink()
        self.log = folder / "audit.log"
        config = folder / "auditd.conf"
        shipped = self.tools.share("auditd") / "etc/audit/auditd.conf"
        config.write_text(moved(shipped.read_text(), folder))
        config.chmod(0o640)
        command = [self._daemon.path, "-n", "-s", "nochange", "-c", folder]
        with Child(command, self.work / "auditd-said", self._daemon.environment()) as child:
            child.wait_until(lambda: self.status()["pid"] == str(child.pid))
            try:
                for name, wanted in _SETTINGS.items():
                    self._set(_OPTIONS[name], wanted)
                self._set("-d", *_NEVER.split())
                self._set("-e", "1")
                if rule is not None:
                    self._set("-a", *rule.split())
                if self.rules() != ([] if rule is None else [f"-a {rule}"]):
                    raise BenchError(f"audit has other rules than ours: {self.rules()}")
                child.wait_until(lambda: self.log.exists() and self._serial() > 0)
                self.first = self._serial()
                self.lost_before = int(self.status()["lost"])
                self.pids = [child.pid, *threads_named("kauditd")]
                yield
            finally:
                self.pids = []
                if rule is not None:
                    self._set("-d", *rule.split())
                self._set("-e", "0")
                self._set("-a", *_NEVER.split())

    def told(self) -> dict[str, int]:
        """Return how many events audit has made since it watches, and how many of its records were lost."""
        return {
            "seen": self._serial() - self.first,
            "lost": int(self.status()["lost"]) - self.lost_before,
        }

    def backlog(self) -> int:
        """Return how many records wait for auditd."""
        return int(self.status()["backlog"])

    def status(self) -> dict[str, str]:
        """Return what the kernel says of its audit."""
        return parse_status(self._set("-s"))

    def rules(self) -> list[str]:
        """Return the rules that are loaded."""
        return [line for line in self._set("-l").splitlines() if line.startswith("-")]

    def _set(self, *arguments: str) -> str:
        return run([self._control.path, *arguments], self._control.environment(), seconds=20)

    def _start_restorer(self) -> subprocess.Popen[bytes]:
        before, tool = self.before, self._control
        back = [word for name in _SETTINGS for word in (_OPTIONS[name], before[name])]
        return subprocess.Popen(
            [
                *("sh", "-c", _RESTORE, tool.path, EVERYTHING, _NEVER),
                *(*back, "-e", before["enabled"]),
            ],
            stdin=subprocess.PIPE,
            env=tool.environment(),
            start_new_session=True,
        )

    def _serial(self) -> int:
        """Return the number of the newest event in the log."""
        end = time.monotonic() + 5
        while time.monotonic() < end:
            found = re.findall(rb"audit\(\d+\.\d+:(\d+)\)", self.log.read_bytes()[-65536:])
            if found:
                return int(found[-1])
            time.sleep(0.05)  # just rotated
        return 0


def in_use(status: dict[str, str], rules: list[str]) -> str | None:
    """
    Return why audit must be left alone; None if nobody uses it.

    Examples
    --------
    >>> in_use({"enabled": "0", "pid": "0"}, [])
    >>> in_use({"enabled": "1", "pid": "612"}, [])
    'an auditd runs here already (process 612): its log and rules are left alone'
    """
    if status["pid"] != "0":
        return f"an auditd runs here already (process {status['pid']}): its log and rules are left alone"
    if rules:
        return f"{len(rules)} audit rules are loaded here: they are left alone"
    if status["enabled"] == "2":
        return "audit is locked until the next boot (auditctl -e 2)"
    return None


def parse_status(text: str) -> dict[str, str]:
    r"""
    Return what ``auditctl -s`` says.

    Examples
    --------
    >>> parse_status("enabled 0\nbacklog_limit 64\nloginuid_immutable 0 unlocked\n")
    {'enabled': '0', 'backlog_limit': '64', 'loginuid_immutable': '0'}
    """
    return {words[0]: words[1] for line in text.splitlines() if len(words := line.split()) > 1}


def moved(config: str, folder: Path) -> str:
    r"""
    Return auditd's configuration with its log and its plugins in *folder*.

    Examples
    --------
    >>> moved("log_file = /var/log/audit/audit.log\nfreq = 50\n", Path("/x"))
    'log_file = /x/audit.log\nfreq = 50\n'
    """
    places = {"log_file": folder / "audit.log", "plugin_dir": folder / "plugins.d"}
    for name, path in places.items():
        config = re.sub(rf"^{name} = .*$", f"{name} = {path}", config, flags=re.MULTILINE)
    return config
