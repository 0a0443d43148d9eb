# SPDX-License-Identifier: Apache-2.0
"""The command line as a user, an operator and an attacker would try it."""

import contextlib
import fcntl
import grp
import gzip
import hashlib
import io
import json
import os
import platform
import pty
import re
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from small_host import ATTACK, NGINX, SECOND, make_window, make_windows
from watch import bpf_ids, exists, sums

import ksentinel
from ksentinel import host, pipeline, support, training
from ksentinel.cli import main
from ksentinel.commands import monitor
from ksentinel.commands.options import parse_duration
from ksentinel.commands.walk import build_pipeline, load_rules, outlet_of
from ksentinel.config import Config
from ksentinel.control import Control
from ksentinel.detectors import artifact
from ksentinel.detectors.kerneltable import ENTRIES, NEVER
from ksentinel.errors import UsageError
from ksentinel.event import ExecEvent, ForkEvent, Origin, Process, ProcessKey, SyscallEvent
from ksentinel.host import (
    cpu_seconds,
    default_socket,
    default_store,
    group_id,
    memory_bytes,
    socket_to_ask,
    stopping,
    watching,
)
from ksentinel.mutes import Mute, Mutes, read, write
from ksentinel.protocol import Group, Request
from ksentinel.recording import Reader, Writer
from ksentinel.rules.ruleset import EXAMPLE
from ksentinel.store import Store

HERE = Path(__file__).parent
BAD = HERE / "data" / "bad"
WEBSHELL = HERE / "data" / "audit" / "webshell.log"
USER = 12345
"""Nobody's number."""
KSENTINEL = [sys.executable, "-c", "from ksentinel.cli import main; main()"]
FACTS = {"arch": "x86_64", "host": "small", "kernel": "6.12"}
COUNTERS = {
    "seen": 100,
    "scored": 80,
    "unscored": 10,
    "own": 10,
    "excluded": 0,
    "no_storage": 0,
    "contended": 0,
}

# What an attacker may put into arguments, paths and titles, and what must not reach the terminal as it is.
HOSTILE = (
    "\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\x7f", "\r", "\n", "\u202e", "\u2066", "\u200b", "\u2028", "\U000e0041",
    "\udcff", "[red]x[/red]", "[link=file:///etc/shadow]y[/link]", ":skull:",
)  # fmt: skip
RAW = [text.encode(errors="ignore") for text in HOSTILE[:11] if text != "\n"]


@dataclass(frozen=True)
class Ran:
    """How a run ended."""

    status: int
    out: bytes
    err: str

    @property
    def text(self):
        """Standard output as text."""
        return self.out.decode()

    @property
    def objects(self):
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsysbinary):
    """Run the command line in this process."""

    def run(*arguments):
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Ran(ended.value.code or 0, out, err.decode(errors="surrogateescape"))

    return run


def shell(*arguments, **options):
    """Run the command line in a process of its own."""
    ran = subprocess.run(
        [*KSENTINEL, *map(str, arguments)], capture_output=True, check=False, timeout=60, **options
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr.decode(errors="surrogateescape"))


def terminal(*arguments, columns=80, env=None):
    """Run the command line on a terminal of its own; returns what it showed there."""
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal to be had: {error}")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "COLUMNS", "FORCE_COLOR"}}
    process = subprocess.Popen(
        [*KSENTINEL, *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"} | (env or {}),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last one has closed the terminal
        while some := os.read(ours, 65536):
            shown += some
    os.close(ours)
    process.wait(timeout=60)
    return shown.decode()


def make_recording(path, items, facts=FACTS, account=COUNTERS):
    with Writer(path, facts) as writer:
        writer.write(items)
        if account:
            writer.account(account)
    return path


def attack(at=2000 * SECOND):
    """Return a window of nginx as never before, and the shell that nginx starts."""
    nginx = Process(ProcessKey(700, 1), exe=NGINX[0], argv=(NGINX[0], "-g", "daemon off;"))
    shell = Process(
        ProcessKey(701, 2), exe="/bin/sh", argv=("sh", "-c", "id"), parent=nginx, service=nginx, was=NGINX[0]
    )
    window = make_window(ATTACK.tokens, NGINX, pid=700, at=at)
    event = ExecEvent(time_ns=at + SECOND, process=shell, tid=701, origin=Origin.BPF, path="/bin/sh")
    return [window, event]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with a recording, a model of it, a store, and with all that is wrong in its own way."""
    folder = tmp_path_factory.mktemp("made")
    windows = make_windows(60, processes=40)
    make_recording(folder / "normal.db", windows)
    make_recording(folder / "attacked.db", [*windows[:50], *attack()])
    call("train", folder / "normal.db", "--out", folder / "model")
    call("replay", folder / "attacked.db", "--model", folder / "model", "--store", folder / "store.db")

    (folder / "binary").write_bytes(bytes(range(256)) * 40)
    packed = gzip.compress(WEBSHELL.read_bytes(), mtime=0)
    (folder / "cut.gz").write_bytes(packed[: len(packed) // 2])
    make_recording(folder / "few.db", windows[:20])
    make_recording(folder / "vax.db", windows[:20], {"arch": "vax"})
    make_recording(folder / "arm.db", windows, FACTS | {"arch": "aarch64"})
    changed(folder / "normal.db", folder / "schema.db", "PRAGMA user_version = 9")
    changed(folder / "store.db", folder / "store-schema.db", "PRAGMA user_version = 9")
    changed(folder / "store.db", folder / "store-damaged.db", "UPDATE alert SET body = x'7b'")
    changed(folder / "store.db", folder / "events-damaged.db", "UPDATE event SET body = x'5b5d'")
    changed(folder / "normal.db", folder / "alien.db", "UPDATE item SET kind = 'teapot', body = x'7b7d'")
    changed(folder / "normal.db", folder / "torn.db", "UPDATE item SET body = x'00'")
    changed(folder / "normal.db", folder / "orphan.db", "DELETE FROM process")
    with contextlib.closing(sqlite3.connect(folder / "random.db")) as db:
        db.execute("CREATE TABLE fruit (name TEXT)")
    pages = bytearray((folder / "normal.db").read_bytes())
    pages[2000:20000] = bytes(18000)
    (folder / "corrupt.db").write_bytes(pages)
    (folder / "header.db").write_bytes(b"SQLite format 3\0" + bytes(50))

    spoilt = {name: shutil.copytree(folder / "model", folder / name) for name in MODELS}
    (spoilt["no-manifest"] / "manifest.json").unlink()
    (spoilt["no-numbers"] / "model.npz").unlink()
    with (spoilt["bad-hash"] / "model.npz").open("ab") as numbers:
        numbers.write(b"x")
    (spoilt["writable"] / "model.npz").chmod(0o666)
    (spoilt["no-kernel"] / "kernel.npz").unlink()
    with (spoilt["bad-kernel"] / "kernel.npz").open("ab") as numbers:
        numbers.write(b"x")
    for name, old, new in (
        ("of-arm", '"x86_64"', '"aarch64"'),
        ("of-longer-windows", '"window_length": 64', '"window_length": 128'),
        ("of-another-format", '"format": 2', '"format": 7'),
    ):
        manifest = spoilt[name] / "manifest.json"
        text = manifest.read_text()
        assert old in text
        manifest.write_text(text.replace(old, new, 1))
    return folder


MODELS = "no-manifest no-numbers bad-hash writable no-kernel bad-kernel of-arm of-longer-windows of-another-format".split()


def call(*arguments):
    """Run the command line in this process, its output thrown away."""
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())), pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code


def changed(before, after, statement):
    shutil.copy(before, after)
    with contextlib.closing(sqlite3.connect(after, isolation_level=None)) as db:
        db.execute(statement)


# Arguments, exit status, and a regular expression on what stands after "ksentinel: ": place, what is wrong, remedy.
WRONG = [
    # audit logs
    ("replay {bad}/empty.log", 1, r"{bad}/empty.log: the file is empty \(name an audit log"),
    ("replay {bad}", 1, r"{bad}: is a directory \(name the files"),
    ("replay {made}/binary", 1, r"{made}/binary: not one of its \d+ lines is an audit record; line 1: .* \(name a raw"),
    ("replay {made}/cut.gz", 1, r"{made}/cut.gz:\d+: compressed data end early .* \(copy the file again"),
    ("replay {made}/nothing", 1, r"{made}/nothing: there is no such file \(name an audit log"),
    ("replay - -", 2, r"-: is named twice \(name it once"),
    ("replay {bad}/cut.log {bad}/../bad/cut.log", 2, r"{bad}/../bad/cut.log: is named twice \("),
    # recordings
    ("replay {made}/schema.db", 1, r"{made}/schema.db: is a recording of schema 9; this ksentinel reads 1 \(record"),
    ("replay {made}/random.db", 1, r"{made}/random.db: is an SQLite file, but no recording \(make one"),
    ("replay {made}/corrupt.db", 1, r"{made}/corrupt.db: is damaged: .* \(record again"),
    ("replay {made}/header.db", 1, r"{made}/header.db: is damaged: .* \(record again"),
    ("replay {made}/alien.db", 1, r"{made}/alien.db: is damaged: event 'teapot' is none of .* \(record again"),
    ("replay {made}/torn.db", 1, r"{made}/torn.db: is damaged: .* \(record again"),
    ("replay {made}/orphan.db", 1, r"{made}/orphan.db: is damaged: .* \(record again"),
    ("replay {made}/vax.db", 1, r"{made}/vax.db: was recorded on architecture 'vax'; this .* \(record again"),
    ("replay {made}/few.db {made}/arm.db", 2, r"recordings of aarch64 and x86_64 can't go together \(numbers"),
    ("train {made}/nothing --out {out}", 1, r"{made}/nothing: there is no such file \(name a recording"),
    ("train {bad} --out {out}", 1, r"{bad}: is no recording \(make one"),
    ("train {bad}/cut.log --out {out}", 1, r"{bad}/cut.log: is no recording \(make one"),
    ("train {made}/corrupt.db --out {out}", 1, r"{made}/corrupt.db: is damaged: .* \(record again"),
    ("train {made}/few.db --out {out}", 1, r"{made}/few.db: 20 windows are too few to train on, .* \(record longer"),
    ("train {made}/few.db {made}/few.db --out {out}", 2, r"{made}/few.db: is named twice \("),
    ("train {made}/few.db --out {bad}", 1, r"{bad}: is there already and is no model \(name another"),
    ("train {made}/few.db --out {bad}/cut.log", 1, r"{bad}/cut.log: is there already and is no model \(name"),
    ("record --out {bad}/cut.log", 1, r"{bad}/cut.log: exists already \(name another"),
    # models
    ("replay {bad}/cut.log --model {out}", 1, r"{out}: there is no such model \(train one"),
    ("replay {bad}/cut.log --model {bad}/cut.log", 1, r"{bad}/cut.log: is a file; a model is a folder \(name"),
    ("replay {bad}/cut.log --model {made}/of-arm", 1, r"{made}/of-arm: was trained on aarch64, this is x86_64 \("),
    ("replay {bad}/cut.log --model {made}/of-longer-windows", 1, r"{made}/of-longer-windows: was trained on windows of 128 .* \("),
    ("replay {bad}/cut.log --model {made}/of-another-format", 1, r"{made}/of-another-format/manifest.json: is of format 7, .* \("),
    ("replay {bad}/cut.log --model {made}/bad-hash", 1, r"{made}/bad-hash/model.npz: is not the file that manifest.json .* \(copy"),
    ("replay {bad}/cut.log --model {made}/writable", 1, r"{made}/writable/model.npz: can be changed by others \(chmod"),
    ("replay {bad}/cut.log --model {made}/no-manifest", 1, r"{made}/no-manifest/manifest.json: there is no such file \(copy"),
    ("replay {bad}/cut.log --model {made}/no-numbers", 1, r"{made}/no-numbers/model.npz: there is no such file \(copy"),
    ("monitor --model {out}", 1, r"{out}: there is no such model \(train one"),
    ("monitor --model {made}/no-kernel", 1, r"{made}/no-kernel/kernel.npz: there is no such file \(copy"),
    ("monitor --model {made}/bad-kernel", 1, r"{made}/bad-kernel/kernel.npz: is not the file that manifest.json .* \(copy"),
    ("monitor --model {made}/of-another-format", 1, r"{made}/of-another-format/manifest.json: is of format 7, .* \("),
    # rules
    ("replay {bad}/cut.log --rules {bad}/misspelt-key.yml", 1, r"{bad}/misspelt-key.yml:9:1: a rule has no 'levle' \(did you mean level"),
    ("replay {bad}/cut.log --rules {bad}/no-yaml.yml", 1, r"{bad}/no-yaml.yml:3:1: not YAML: .* \("),
    ("replay {bad}/cut.log --rules {made}/nothing", 1, r"{made}/nothing: can't be read: No such file or directory \("),
    # configuration
    ("replay {bad}/cut.log --config {bad}/config-misspelt-key.yml", 2, r"{bad}/config-misspelt-key.yml:4:3: \[incident\] has no quiet_second \(it has agree_seconds"),
    ("replay {bad}/cut.log --config {bad}/config-misspelt-section.yml", 2, r"{bad}/config-misspelt-section.yml:3:1: has no section incidents \(it has collector"),
    ("replay {bad}/cut.log --config {bad}/config-no-yaml.yml", 2, r"{bad}/config-no-yaml.yml:2:1: is no YAML: .* \(see docs"),
    ("replay {bad}/cut.log --config {bad}/config-wrong-type.yml", 2, r"{bad}/config-wrong-type.yml:3:3: \[incident\] agree_seconds: .* \(see docs"),
    ("replay {bad}/cut.log --config {bad}/config-twice.yml", 2, r"{bad}/config-twice.yml:4:1: rules stands here a second time, first in line 2 \(remove one"),
    ("replay {bad}/cut.log --config {bad}/config-nan.yml", 2, r"{bad}/config-nan.yml:3:3: \[incident\] quiet_seconds is nan \(say"),
    ("replay {bad}/cut.log --config {bad}/config-ring.yml", 2, r"{bad}/config-ring.yml:3:3: \[collector\] ring_megabytes is 24, no power of two .* \(say"),
    ("replay {bad}/cut.log --config {made}/binary", 2, r"{made}/binary: is no YAML: .* \(see docs"),
    ("replay {bad}/cut.log --config {bad}", 2, r"{bad}: can't be read: Is a directory \("),
    ("monitor --config {made}/nothing", 2, r"{made}/nothing: can't be read: No such file or directory \("),
    # the store, and other output
    ("alerts --store {made}/nothing", 1, r"{made}/nothing: there is no store \(name one by --store"),
    ("alerts --store {bad}", 1, r"{bad}: is no regular file \(name another"),
    ("alerts --store {bad}/cut.log", 1, r"{bad}/cut.log: is no store, or damaged: .* \(name another"),
    ("alerts --store {made}/normal.db", 1, r"{made}/normal.db: is an SQLite file, but no store of alerts \(name"),
    ("alerts --store {made}/store-schema.db", 1, r"{made}/store-schema.db: is a store of schema 9; .* \(name"),
    ("alerts --store {made}/store-damaged.db", 1, r"{made}/store-damaged.db: is damaged: .* \(name"),
    ("explain 0 --store {made}/random.db", 1, r"{made}/random.db: is an SQLite file, but no store of alerts \(name"),
    ("explain zzz --store {made}/store.db", 1, r"{made}/store.db: no alert starts with 'zzz' \(`ksentinel alerts`"),
    ("events --store {made}/nothing", 1, r"{made}/nothing: there is no store \(name one by --store"),
    ("events --store {made}/events-damaged.db", 1, r"{made}/events-damaged.db: is damaged: what should be a JSON object is none \(name"),
    ("events zzz --store {made}/store.db", 1, r"{made}/store.db: no alert starts with 'zzz' \(`ksentinel alerts`"),
    ("events --recording {bad}/cut.log", 1, r"{bad}/cut.log: is no recording \(make one"),
    ("events --recording {made}/corrupt.db", 1, r"{made}/corrupt.db: is damaged: .* \(record again"),
    ("events --recording {made}/vax.db", 1, r"{made}/vax.db: was recorded on architecture 'vax'; this .* \(record again"),
    ("replay {bad}/cut.log --store {made}/binary", 1, r"{made}/binary: is no store, or damaged: .* \(name another"),
    ("replay {bad}/cut.log --store {made}/random.db", 1, r"{made}/random.db: is an SQLite file, but no store .* \(name"),
    ("replay {bad}/cut.log --store {bad}/cut.log/x", 1, r"{bad}/cut.log/x: can't be opened: .* \(name another"),
    ("replay {bad}/cut.log --scores {bad}/cut.log", 1, r"{bad}/cut.log: exists already \(name another"),
    ("replay {bad}/cut.log --scores {made}/nothing/x", 1, r"{made}/nothing/x: can't be written: .* \(name another"),
    # the control socket
    ("status --control {made}/nothing", 1, r"{made}/nothing: no ksentinel is running here \(start one by `ksentinel monitor`"),
    ("status --control {bad}/cut.log", 1, r"{bad}/cut.log: is no socket \(start one"),
    ("monitor --control {made}/x --no-control", 2, r"--control and --no-control exclude each other \(say one"),
    # usage
    ("alerts --level terrible --store {made}/store.db", 2, r"--level 'terrible' is none of informational, .*"),
    ("events 0 --recording {made}/normal.db", 2, r"--recording and ALERT_ID can't go together \(a recording holds no alerts"),
    ("events --store {made}/store.db --recording {made}/normal.db", 2, r"--recording and --store can't go together \("),
    ("events --since soon", 2, r"--since 'soon' is no time \(say 10m, '2h ago'"),
    ("events --until 25:00", 2, r"--until '25:00' is no time \(say 10m, '2h ago'"),
    ("events --since 5m --until 10m", 2, r"--since '5m' is after --until '10m' \(turn them round"),
    ("events --exe [a", 2, r"--exe '\[a' has a \[ without its \] \(a \[ itself is written \[\[\]"),
    ("events --path=", 2, r"--path is empty \(say a path, or a pattern"),
    ("events --address example.org", 2, r"--address 'example.org' is neither an IP address nor a network \(say 10.0.0.1.* not looked up"),
    ("events --syscall opnat", 2, r"--syscall 'opnat' is no system call \(did you mean openat\?"),
    ("events --kind teapot", 2, r"--kind 'teapot' is none of fork, exec, exit, syscall, audit, hook, window"),
    ("events --pid x", 2, r"Invalid value for '--pid': .* \(`ksentinel events --help`"),
    ("events --limit 0", 2, r"Invalid value for '--limit': .* \(`ksentinel events --help`"),
    ("alerts --limit 0", 2, r"Invalid value for '--limit': .* \(`ksentinel alerts --help`"),
    ("alerts --limit many", 2, r"Invalid value for '--limit': .* \(`ksentinel alerts --help`"),
    ("train x --out {out} --order 99", 2, r"Invalid value for '--order': .* \(`ksentinel train --help`"),
    ("monitor --for soon", 2, r"--for 'soon' is no duration \(say 90s"),
    ("record --for 0 --out {out}", 2, r"--for '0' is no duration \(say 90s"),
    ("record --out {out} --pid 0", 2, r"Invalid value for '--pid': .* \(`ksentinel record --help`"),
    ("record --out {out} --pid 4194305", 2, r"--pid 4194305: there is no such process \(`ps"),
    ("record --out {out} --exe nginx", 2, r"--exe 'nginx' is no file \(name its path"),
    ("record --out {out} --uid nobody-such", 2, r"--uid 'nobody-such': there is no such user \(say a name or a number"),
    ("record --out {out} --uid -1", 2, r"--uid '-1': there is no such user \(say a name or a number"),
    ("monitor --exe nginx", 2, r"--exe 'nginx' is no file \(name its path"),
    ("monitor --pid 4194305", 2, r"--pid 4194305: there is no such process \(`ps"),
    ("monitor --uid nobody-such", 2, r"--uid 'nobody-such': there is no such user \(say a name or a number"),
    ("record", 2, r"Missing option '--out' \(`ksentinel record --help`"),
    ("explain", 2, r"Missing argument 'ID' \(`ksentinel explain --help`"),
    ("explain 1 2", 2, r"Got unexpected extra argument(\(s\))? \(2\) \(`ksentinel explain --help`"),
    ("replay --colour x", 2, r"No such option: --colour.* \(`ksentinel replay --help`"),
    ("replya x", 2, r"No such command 'replya'.* \(`ksentinel --help`"),
    ("doctor --for tea", 2, r"--for 'tea' is none of monitor, .*"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "said"), WRONG, ids=[wrong[0] for wrong in WRONG])
def test_wrong(run, made, tmp_path, arguments, status, said):
    """One line on standard error names the place, what is wrong and the remedy; nothing is written or changed."""
    names = {"bad": BAD, "made": made, "out": tmp_path / "out"}
    before = {path: path.read_bytes() for path in BAD.iterdir()}

    ran = run(*arguments.format(**names).split())

    expected = said.format(**{name: re.escape(str(path)) for name, path in names.items()})
    assert re.fullmatch(rf"ksentinel: {expected}.*\n", ran.err), ran.err
    assert ran.status == status
    assert not (tmp_path / "out").exists()
    assert before == {path: path.read_bytes() for path in BAD.iterdir()}


def test_no_arguments(run):
    """Without a command there is the help, and the status of wrong usage."""
    ran = run()

    assert ran.status == 2
    assert "Commands:" in ran.text + ran.err


def test_log_cut_inside_a_record(run):
    """A log that is still being written ends anywhere: its last line is pending, and that is no failure."""
    ran = run("replay", BAD / "cut.log", "--json")

    assert (ran.status, ran.err) == (0, "")
    told = ran.objects[-1]
    assert (told["lines"], told["lines_in_events"], told["malformed"], told["pending"]) == (2, 1, 0, 1)


def test_one_bad_log_among_good_ones(run, made):
    """The others are walked and accounted for; the status says that not all was well."""
    ran = run("replay", made / "cut.gz", WEBSHELL, BAD / "empty.log", "--json")

    *alerts, told = ran.objects
    failed = {Path(file["file"]).name: "failed" in file for file in told["files"]}
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 2
    assert failed == {"cut.gz": True, "webshell.log": False, "empty.log": True}
    assert told["lines"] == told["lines_in_events"] + told["malformed"] + told["pending"] > 239
    assert alerts


@pytest.mark.root
@pytest.mark.parametrize("what", ["alerts", "replay", "explain 0", "events"])
def test_store_of_somebody_else(run, made, tmp_path, what):
    """Whoever owns the store could have written its alerts."""
    shutil.copy(made / "store.db", tmp_path / "store.db")
    os.chown(tmp_path / "store.db", 12345, 12345)
    log = [BAD / "cut.log"] if what == "replay" else []

    ran = run(*what.split(), *log, "--store", tmp_path / "store.db")

    assert ran.status == 1
    assert re.fullmatch(rf"ksentinel: {tmp_path}/store.db: belongs to uid 12345 \(name .*\)\n", ran.err)


@pytest.mark.root
def test_unreadable_for_a_user(made, tmp_path):
    """Every kind of file that a user may not read is said in one line."""
    shutil.copy(WEBSHELL, tmp_path / "audit.log")
    shutil.copy(made / "normal.db", tmp_path / "normal.db")
    (tmp_path / "locked").mkdir()
    tmp_path.chmod(0o755)
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    commands = [
        "replay audit.log",
        "replay normal.db",
        "replay locked/audit.log",
        "train normal.db --out /proc/model",
        "alerts --store locked/alerts.db",
        "alerts --store normal.db",
        "replay audit.log --rules locked",
        "replay audit.log --config audit.log",
    ]
    ran = as_nobody(*commands, cwd=tmp_path)

    assert ran.out == b"1 1 1 1 1 1 1 2\n"
    for command, line in zip(commands, ran.err.splitlines(), strict=True):
        assert re.fullmatch(r"ksentinel: .*(Permission denied|may not be read).*", line), (command, line)


def as_nobody(*commands, cwd):
    """
    Run command lines as somebody without rights; the output is how each ended.

    Everything is imported first: the clone may be root's alone.
    """
    for place in (Path(ksentinel.__file__), Path(sys.executable)):
        if not all(parent.stat().st_mode & 0o001 for parent in place.parents):
            pytest.skip("others may not enter this clone")
    code = (
        "import os, sys, importlib\n"
        "for name in sys.argv[1].split(): importlib.import_module(name)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.environ.clear()\n"
        "def run(command):\n"
        "    try: sys.modules['ksentinel.cli'].main(command.split())\n"
        "    except SystemExit as ended: return ended.code\n"
        "print(*[run(command) for command in sys.argv[2:]])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, " ".join(MODULES), *commands],
        capture_output=True, check=False, timeout=60, cwd=cwd,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr.decode())


MODULES = [
    "ksentinel.cli",
    *(
        f"ksentinel.{name}"
        for name in "report flight search store recording streams pipeline training support detectors.artifact detectors.facts "
        "explain.explanation rules.ruleset normalize.bpf normalize.redact sources.procfs sources.ringbuf".split()
    ),
]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(["replay", str(WEBSHELL)], (pipeline.Pipeline, "walk")), (["train", "normal.db"], (training, "train"))],
    ids=["replay", "train"],
)
def test_interrupted(run, made, tmp_path, monkeypatch, arguments, where):
    """Ctrl-C ends a run without a traceback, with the status that shells give it."""

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(*where, interrupt)
    monkeypatch.chdir(made)
    ran = run(*arguments, *(["--out", tmp_path / "model"] if "train" in arguments else []))

    assert (ran.status, ran.err) == (130, "ksentinel: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_by_a_signal(tmp_path):
    """The real thing: SIGINT while standard input is awaited; what is in the store stays readable."""
    store = tmp_path / "alerts.db"
    process = subprocess.Popen(
        [*KSENTINEL, "replay", "-", "--store", str(store)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(store.exists)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (130, b"ksentinel: interrupted\n")
    with Store(store, os.getuid()) as kept:
        assert list(kept.alerts()) == []


def test_reader_has_gone(made):
    """`ksentinel ... | head -1` is quiet."""
    for arguments in (["replay", made / "attacked.db", "--json"], ["doctor"]):
        process = subprocess.Popen(
            [*KSENTINEL, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()

        assert (process.wait(timeout=60), err) == (1, b"")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_full_standard_output(made, form):
    """A full disk behind standard output is said, and is a failure."""
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [*KSENTINEL, "alerts", "--store", made / "store.db", *form],
            stdout=full, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip

    assert (ran.returncode, ran.stderr) == (1, b"ksentinel: standard output: No space left on device\n")


def test_closed_standard_streams(made, tmp_path):
    """Without standard streams nothing is printed, and no file takes their place."""
    store = tmp_path / "alerts.db"
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *KSENTINEL, "replay", made / "attacked.db", "--store", store],
        check=False, timeout=60,
    )  # fmt: skip

    assert ran.returncode == 0
    with Store(store, os.getuid()) as kept:
        assert len(list(kept.alerts())) == 1


def test_full_disk_under_the_store(tmp_path):
    """An alert that can't be stored is shown all the same; the run fails in one line, and the store still opens."""
    store = tmp_path / "alerts.db"
    servers = [Process(ProcessKey(i, 1), exe=f"/srv/{i}/nginx") for i in range(1000, 2000)]
    shells = [Process(ProcessKey(2 * s.key.pid, 2), exe="/bin/sh", parent=s, service=s) for s in servers]
    events = [ExecEvent(time_ns=i, process=s, tid=s.key.pid, origin=Origin.BPF) for i, s in enumerate(shells)]
    make_recording(tmp_path / "many.db", events)
    ran = subprocess.run(
        ["bash", "-c", 'ulimit -f 128; exec "$@"', "bash", *KSENTINEL,
         "replay", tmp_path / "many.db", "--store", store, "--json"],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip

    assert ran.returncode == 1
    assert re.fullmatch(
        rf"ksentinel: {store}: an alert can't be stored: .* \(is the disk full\?\)\n", ran.stderr.decode()
    )
    shown = [json.loads(line)["id"] for line in ran.stdout.splitlines()]
    with Store(store, os.getuid()) as kept:
        stored = [alert["id"] for alert in kept.alerts(limit=len(events))]
    assert set(shown) - set(stored) == {shown[-1]}


def test_other_locale(made):
    """What a terminal of another encoding can't show is escaped."""
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ran = shell("explain", alert_id(made), "--store", made / "store.db", env=env)

    assert (ran.status, ran.err) == (0, "")
    assert "\\u2192" in ran.out.decode("ascii")


# What it does


def test_version(run):
    """The version is that of the package."""
    ran = run("--version")

    assert (ran.status, ran.out) == (0, f"ksentinel {ksentinel.__version__}\n".encode())


def alert_id(made):
    with Store(made / "store.db", os.getuid()) as kept:
        return next(kept.alerts())["id"]


def test_replay_of_a_log(run):
    """Alerts a line each, at last the account: every line is in an event, malformed or pending, per file, too."""
    ran = run("replay", WEBSHELL, "--json")

    *alerts, told = ran.objects
    lines = WEBSHELL.read_bytes().count(b"\n")
    (file,) = told["files"]
    assert (ran.status, ran.err) == (0, "")
    assert {alert["title"] for alert in alerts} == {"Shell started by a network service"}
    for account in (told, told["account"], file):
        assert (
            account["lines"]
            == account["lines_in_events"] + account["malformed"] + account["pending"]
            == lines
        )
        assert account["events"] > 0
    assert told["walk"]["items"] == told["walk"]["events"] + told["walk"]["windows"]
    assert (file["file"], file["malformed_at"]) == (str(WEBSHELL), [])


def test_replay_is_repeatable(run, made):
    """The same input gives the same output, byte for byte, in both forms."""
    for arguments in (
        ["replay", WEBSHELL],
        ["replay", made / "attacked.db", "--model", made / "model"],
        ["replay", made / "attacked.db", WEBSHELL, "--json"],
    ):
        first, again = run(*arguments), run(*arguments)

        assert first == again
        assert first.out


def test_every_way_in_gives_the_same_alerts(run, tmp_path, monkeypatch):
    """Plain, gzip, rotated into three (named in the order of a shell's *), a pipe, standard input."""
    whole = WEBSHELL.read_bytes()
    lines = whole.splitlines(keepends=True)
    serials = [serial(line) for line in lines]
    starts = [i for i in range(1, len(lines)) if not set(serials[:i]) & set(serials[i:])]
    first, second = starts[len(starts) // 3], starts[2 * len(starts) // 3]
    (tmp_path / "audit.log").write_bytes(b"".join(lines[second:]))
    (tmp_path / "audit.log.1").write_bytes(b"".join(lines[first:second]))
    (tmp_path / "audit.log.2.gz").write_bytes(gzip.compress(b"".join(lines[:first]), mtime=0))
    (tmp_path / "whole.gz").write_bytes(gzip.compress(whole, mtime=0))
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)

    *expected, _ = run("replay", WEBSHELL, "--json").objects
    *packed, _ = run("replay", tmp_path / "whole.gz", "--json").objects
    *rotated, told = run("replay", *sorted(tmp_path.glob("audit.log*")), "--json").objects
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(whole)))
    *piped, _ = run("replay", "-", "--json").objects
    with subprocess.Popen(["sh", "-c", 'cat "$0" > "$1"', WEBSHELL, fifo]):
        *named_pipe, _ = run("replay", fifo, "--json").objects

    assert expected == packed == piped == named_pipe == rotated
    assert expected
    assert [Path(file["file"]).name for file in told["files"]] == [
        "audit.log.2.gz",
        "audit.log.1",
        "audit.log",
    ]
    assert told["lines"] == len(lines)


def serial(line):
    return line.partition(b"msg=audit(")[2].partition(b")")[0]


def test_from_recording_to_explanation(run, made, tmp_path):
    """Train, replay, list, explain: rule and model agree, in JSON and in words."""
    store, scores = tmp_path / "alerts.db", tmp_path / "scores.jsonl"
    trained = run("train", made / "normal.db", "--out", tmp_path / "model", "--json")
    replayed = run(
        "replay",
        made / "attacked.db",
        "--model",
        tmp_path / "model",
        "--store",
        store,
        "--scores",
        scores,
        "--json",
    )
    listed = run("alerts", "--store", store, "--json")
    (alert,) = listed.objects
    explained = run("explain", alert["id"][:4], "--store", store, "--json")
    in_words = run("explain", alert["id"], "--store", store)

    (report,) = trained.objects
    *alerts, told = replayed.objects
    p_values = [json.loads(line)["p_value"] for line in scores.read_bytes().splitlines()]
    assert report["facts"]["recordings"][0]["name"] == "normal.db"
    assert report["facts"]["host"] == "small"
    assert alerts[-1] == alert == explained.objects[0]
    assert (alert["level"], alert["agreed"], alert["process"]["exe"]) == ("critical", True, "/bin/sh")
    assert told["walk"]["windows_scored"] == len(p_values) == 51
    assert min(p_values) == p_values[-1] < 1e-5
    assert told["account"] == COUNTERS
    for part in (
        "CRITICAL",
        "Shell started by a network service",
        "Rule and model",
        "LIME",
        "Who started whom",
        "sh -c id",
    ):
        assert part in in_words.text


def test_train_in_words(run, made, tmp_path):
    """The report names data, split and what can be promised; nothing goes to standard error of no terminal."""
    ran = run("train", made / "normal.db", "--out", tmp_path / "model")

    assert (ran.status, ran.err) == (0, "")
    assert ran.text.startswith("160 processes, ")
    assert "False alarms at low or above: " in ran.text
    assert ran.text.endswith(f"model written to {tmp_path / 'model'}\n")


def test_training_keeps_the_architecture(run, made, tmp_path):
    """A recording of another machine gives a model for that kind of machine."""
    run("train", made / "arm.db", "--out", tmp_path / "model")

    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["arch"] == "aarch64"
    assert run("replay", made / "arm.db", "--model", tmp_path / "model").status == 0
    assert run("replay", made / "normal.db", "--model", tmp_path / "model").status == 1


def test_model_without_a_say(run, made):
    """Windows of another collector are not scored, and that is said."""
    ran = run("replay", WEBSHELL, "--model", made / "model", "--json")

    walk = ran.objects[-1]["walk"]
    assert (ran.status, walk["windows_scored"]) == (0, 0)
    assert f"had no say in any of {walk['windows_unscored']} windows" in ran.err


def test_recording_cut_short(run, made, tmp_path):
    """A recording without its account replays; that it was cut short is said in both forms."""
    make_recording(tmp_path / "cut.db", attack(), account=None)

    assert run("replay", tmp_path / "cut.db", "--json").objects[-1]["files"][0]["complete"] is False
    assert "cut short" in run("replay", tmp_path / "cut.db").text
    assert "cut short" not in run("replay", made / "attacked.db").text


def test_alerts(run, made, tmp_path):
    """Level and limit choose; an empty store is said to be one."""
    with Store(tmp_path / "empty.db", os.getuid(), write=True):
        pass

    assert len(run("alerts", "--store", made / "store.db", "--level", "CRITICAL", "--json").objects) == 1
    assert run("alerts", "--store", tmp_path / "empty.db").out == b"no alerts\n"
    assert run("alerts", "--store", tmp_path / "empty.db", "--json").out == b""
    assert "more than these 1" in run("alerts", "--store", made / "store.db", "--limit", "1").text


def test_events(run, made):
    """What an alert keeps: before and after, in the order of time; and everything that any alert keeps."""
    store = ["--store", made / "store.db"]
    identity = alert_id(made)
    told = run("events", identity[:5], *store)
    everything = run("events", *store, "--json").objects
    explained = run("explain", identity, *store)

    assert (told.status, told.err) == (0, "")
    assert [line[11:75] for line in told.text.splitlines()[:3]] == [
        "00:33:20.500  before -0.000 s  700  nginx  64 calls in 0.5 s: ex",
        "00:33:20.500  ── Shell started by a network service ──",
        "00:33:21.000   after +0.500 s  701  sh  exec /bin/sh: sh -c id (",
    ]
    phases = [(one["event"], one["alerts"]) for one in everything]
    assert phases == [
        ("window", [{"id": identity, "phase": "before"}]),
        ("exec", [{"id": identity, "phase": "after"}]),
    ]
    assert everything == run("events", identity, *store, "--json").objects
    said = f"Events  1 from before and 1 from after it are kept: ksentinel events {identity} --store {made}/store.db"
    assert explained.text.splitlines()[-1] == said


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ("--kind exec", {"exec"}),
        ("--exe sh", {"exec"}),
        ("--exe /usr/sbin/*", {"window"}),
        ("--pid 701", {"exec"}),
        ("--path /bin/sh", {"exec"}),
        ("--syscall execve", {"exec", "window"}),
        ("--syscall socketcall", set()),
        ("--address 10.0.0.0/8:443", set()),
        ("--since 1970-01-01T00:33:21Z", {"exec"}),
        ("--until 1970-01-01T00:33:20Z --kind exec", set()),
        ("--since 10m", set()),
    ],
)
def test_search_of_events(run, made, asked, kinds):
    """The same is found in the store and in the recording it was made from."""
    identity = alert_id(made)
    stored = run("events", identity, *asked.split(), "--store", made / "store.db", "--json")
    recorded = run(
        "events", *asked.split(), "--recording", made / "attacked.db", "--json", "--limit", "100000"
    )

    assert (stored.status, recorded.status) == (0, 0)
    assert {one["event"] for one in stored.objects} == kinds
    without = [{name: value for name, value in one.items() if name != "alerts"} for one in stored.objects]
    assert [one for one in without if one not in recorded.objects] == []


def test_no_events(run, made, tmp_path):
    """Nothing kept matches: that is said, in UTC, and is no failure; in JSON there is nothing."""
    store = ["--store", made / "store.db", "--since", "2030-01-01T01:00+01:00"]

    assert run("events", *store) == Ran(0, b"nothing kept matches (from 2030-01-01 00:00:00 UTC)\n", "")
    assert run("events", *store, "--json") == Ran(0, b"", "")
    assert run("events", "--recording", made / "normal.db", "--kind", "exec").out == b"nothing kept matches\n"
    with Store(tmp_path / "empty.db", os.getuid(), write=True):
        pass
    assert run("events", "--store", tmp_path / "empty.db").out == b"nothing kept matches\n"


def test_last_events(run, made):
    """A limit shows the last ones, and says how many there are."""
    ran = run("events", "--recording", made / "normal.db", "--limit", "2")

    assert len(ran.text.splitlines()) == 4
    assert "the last 2 of 240 events" in ran.text


def test_events_of_a_log(run, tmp_path):
    """Audit logs fill the store likewise; a second replay changes nothing."""
    store = ["--store", tmp_path / "a.db"]
    run("replay", WEBSHELL, *store)
    first = run("events", *store, "--json")
    run("replay", WEBSHELL, *store)

    assert first.out == run("events", *store, "--json").out
    assert {"exec", "syscall", "window"} <= {one["event"] for one in first.objects}
    assert all(one["alerts"] for one in first.objects)


@pytest.mark.parametrize(("command", "threads"), [("status", "1"), ("train", "None")])
def test_one_thread(command, threads):
    """Numpy hears before it is imported that it has one thread: whoever watches must not spin on others' cores. Training may."""
    code = (
        "import os, sys, ksentinel.cli as cli\n"
        "assert 'numpy' not in sys.modules\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit: print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run(
        [sys.executable, "-c", code, command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )

    assert ran.stdout.splitlines()[-1] == threads


def test_bounded_store(run, made, tmp_path):
    """The configuration says how much is kept; what had to make room is said."""
    config = tmp_path / "k.yml"
    config.write_text("store: {max_events: 3}")
    store = ["--store", tmp_path / "a.db"]
    run("replay", WEBSHELL, made / "attacked.db", *store, "--config", config)

    assert sum(len(event["alerts"]) for event in run("events", *store, "--json").objects) == 3
    assert "older ones had to make room (max_events)" in run("events", *store).text

    config.write_text("store: {max_alerts: 1}")
    store = ["--store", tmp_path / "b.db"]
    run("replay", WEBSHELL, made / "attacked.db", *store, "--config", config)

    assert len(run("alerts", *store, "--json").objects) == 1
    assert re.search(r"\d older ones? had to make room \(max_alerts\)", run("alerts", *store).text)


def test_doctor(run, monkeypatch):
    """Both forms agree, and --for answers for one purpose alone."""
    found = list(support.examine())  # once: it tries to load the collector
    monkeypatch.setattr(support, "examine", lambda: iter(found))
    told = run("doctor", "--json")
    (report,) = told.objects
    works = report["works"]

    assert told.status == (1 if not works["monitor"] else 0 if works["enforce"] else 3)
    for what, good in works.items():
        ran = run("doctor", "--for", what)
        assert ran.status == (0 if good else 1)
        assert re.search(rf"^{what} +would {'' if good else 'not '}work$", ran.text, re.MULTILINE)
    for check in report["checks"]:
        assert check["ok"] or check["remedy"], check


# What reaches the terminal


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return a recording whose every word is hostile, a rule with such a title, and the store that came of it."""
    folder = tmp_path_factory.mktemp("hostile")
    words = "".join(HOSTILE)
    server = Process(ProcessKey(700, 1), exe=f"/srv/{words}/nginx", argv=("nginx", words), comm=words[:15])
    shell = Process(
        ProcessKey(701, 2),
        exe="/bin/sh",
        argv=("sh", "-c", words),
        parent=server,
        service=server,
        cwd=f"/{words}",
    )
    event = ExecEvent(time_ns=SECOND, process=shell, tid=701, origin=Origin.BPF, path=f"/{words}/sh")
    opened = SyscallEvent(
        time_ns=2 * SECOND,
        process=shell,
        tid=701,
        origin=Origin.BPF,
        syscall="openat",
        paths=(f"/{words}/shadow",),
    )
    make_recording(
        folder / "hostile.db", [event, opened], FACTS | {"host": words.encode(errors="ignore").decode()}
    )
    rules = folder / "rules"
    rules.mkdir(mode=0o755)
    title = "[bold]t[/bold] \u202e [link=x]"
    detections = {"process_creation": "Image|endswith: /sh", "syscall": "path|contains: shadow"}
    for number, (category, selection) in enumerate(detections.items()):
        file = rules / f"{number}.yml"
        file.write_text(
            f'title: "{title}"\nid: 0e9b5c8a-9d5f-4a4e-8f9b-0c2f6a1f7d1{number}\nlevel: high\n'
            f"logsource: {{category: {category}, product: linux}}\n"
            f"detection: {{s: {{{selection}}}, condition: s}}\n"
        )
        file.chmod(0o644)
    return folder


CORRELATED = """\
title: Program run
id: 8b3a4c52-1f0d-4a35-9c1e-2d6b7e8f9a02
name: run
logsource: {category: lineage}
detection: {s: {Image|startswith: /}, condition: s}
level: low
---
title: Several programs of one service
id: 5d0f6c1e-93b8-4d55-8b0e-6a2f1c7d9e11
level: high
correlation:
  type: value_count
  rules: run
  group-by: ServiceImage
  timespan: 1h
  condition: {field: Image, gte: 3}
"""


def test_correlation(run, tmp_path):
    """Rules that only feed a correlation are listed as such; what it is made of is stored and explained."""
    rules, store = tmp_path / "rules.yml", tmp_path / "alerts.db"
    rules.write_text(CORRELATED)
    rules.chmod(0o644)
    listed = run("rules", "list", "--rules", rules)
    plain = run("rules", "list", "--rules", rules, "--json").objects
    replayed = run("replay", WEBSHELL, "--rules", rules, "--store", store)
    alerts = run("alerts", "--store", store, "--json").objects
    explained = run("explain", alerts[0]["id"], "--store", store).out

    assert b"2 rules, 1 of them told only as parts of correlations" in listed.out
    assert [rule["silenced"] for rule in plain] == [True, False]
    assert b"correlation groups" in replayed.out
    assert {alert["title"] for alert in alerts} == {"Several programs of one service"}
    assert len(alerts[0]["evidence"][0]["match"]["parts"]) == 3
    assert explained.count(b"  Program run: ") == 3


def test_hostile_words(run, hostile, tmp_path, capsysbinary):
    """Nothing that moves the cursor, reorders text or looks like markup gets through; the words can still be read."""
    store = tmp_path / "alerts.db"
    rules = ["--rules", hostile / "rules"]
    replayed = run("replay", hostile / "hostile.db", *rules, "--store", store)
    assert replayed.status == 0, replayed.err
    (alert,) = run("alerts", "--store", store, "--json").objects
    shown = [
        replayed,
        run("replay", hostile / "hostile.db", *rules, "--json"),
        run("alerts", "--store", store),
        run("alerts", "--store", store, "--json"),
        run("explain", alert["id"], "--store", store),
        run("explain", alert["id"], "--store", store, "--json"),
    ]
    searched = [
        run("events", alert["id"], "--store", store),
        run("events", alert["id"], "--store", store, "--json"),
        run("events", "--store", store, "--path", "*/shadow"),
        run("events", "--recording", hostile / "hostile.db"),
        run("events", "--recording", hostile / "hostile.db", "--json"),
    ]

    for ran in searched:
        assert ran.status == 0
        assert b"[red]x[/red]" in ran.out
        for raw in RAW:
            assert raw not in ran.out, (raw, ran.out)
    for ran in shown:
        assert ran.status == 0
        for raw in RAW:
            assert raw not in ran.out, (raw, ran.out)
        assert b"[bold]t[/bold]" in ran.out
    explained = shown[4].text
    for escaped in (
        r"\x1b[2J",
        r"\u202e",
        r"\xff",
        "[red]x[/red]",
        "[link=file:///etc/shadow]y[/link]",
        ":skull:",
    ):
        assert escaped in explained
    # JSON is the same for a machine, whatever it looks like.
    assert "\u202e" in shown[3].objects[0]["title"]


def test_hostile_arguments(run, tmp_path):
    """An error message repeats what it was given, harmlessly, in one line."""
    words = "".join(HOSTILE).replace("\x00", "")
    for arguments in (
        ["replay", tmp_path / words.replace("/", "")],
        ["explain", words],
        [words],
        ["alerts", words],
    ):
        ran = run(
            *arguments, *(["--store", tmp_path / words.replace("/", "")] if arguments[0] == "explain" else [])
        )

        assert ran.status in {1, 2}
        assert len(ran.err.splitlines()) == 1
        assert not [raw for raw in RAW if raw in ran.err.encode(errors="surrogateescape")]


def test_pipes_get_whole_lines_without_escape_codes(run, made):
    """What goes into a pipe can be searched: no colours, and no line is broken."""
    for arguments in (
        ["replay", made / "attacked.db", "--model", made / "model"],
        ["alerts", "--store", made / "store.db"],
        ["explain", alert_id(made), "--store", made / "store.db"],
        ["events", alert_id(made), "--store", made / "store.db"],
        ["doctor"],
    ):
        assert b"\x1b" not in run(*arguments).out
    paragraph = run("explain", alert_id(made), "--store", made / "store.db", "--json").objects[0][
        "explanation"
    ]
    assert paragraph["paragraph"] in run("explain", alert_id(made), "--store", made / "store.db").text


@pytest.mark.parametrize("what", ["replay", "alerts", "explain", "events", "doctor", "train"])
def test_on_a_terminal(made, tmp_path, what):
    """In 80 columns nothing is broken by the terminal itself; there are colours, unless NO_COLOR says otherwise."""
    arguments = {
        "replay": ["replay", made / "attacked.db"],
        "alerts": ["alerts", "--store", made / "store.db"],
        "explain": ["explain", alert_id(made), "--store", made / "store.db"],
        "events": ["events", alert_id(made), "--store", made / "store.db"],
        "doctor": ["doctor"],
        "train": ["train", made / "normal.db", "--out", tmp_path / "model"],
    }[what]
    coloured = terminal(*arguments)

    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", coloured).replace("\r\n", "\n").split("\n")
    if what == "train":  # its bar moves the cursor, on standard error
        lines = [line.rpartition("\r")[2] for line in lines]
    else:
        assert "\x1b[" in coloured
    if what == "explain":
        assert "\x1b" not in terminal(*arguments, env={"NO_COLOR": "1"})
    assert [line for line in lines if cell_len(line) > 80] == []
    assert "Traceback" not in coloured
    assert len(lines) > 3


# Small parts


@pytest.mark.parametrize("text", ["", "s", "-1", "0", "nan", "inf", "1e99", "1w", "ten", "1 2", "99999d"])
def test_no_duration(text):
    """What is no duration is refused."""
    with pytest.raises(UsageError, match="is no duration"):
        parse_duration(text)


def test_kept_executable():
    """Of --exe: the lifecycle of what runs it, the event of becoming something else, and none of what came of it."""
    wanted, keep = watching(["/opt/a"], [], [], [])
    one = Process(ProcessKey(1, 1), exe="/opt/a")
    other = Process(ProcessKey(1, 1), exe="/opt/b", was="/opt/a", before=("/opt/a",))
    script = Process(ProcessKey(1, 1), exe="/bin/sh", script="/opt/a")
    became = ExecEvent(time_ns=1, process=other, tid=1, origin=Origin.BPF)
    born = ForkEvent(time_ns=1, process=one, tid=1, origin=Origin.BPF)
    events = (born, replace(born, process=script), became, replace(born, process=other))

    assert [keep(item) for item in events] == [True, True, True, False]
    assert set(wanted.programs) == {"/opt/a", "#!/opt/a"}


def test_kept_is_what_the_kernel_sends():
    """Windows and calls come only of whom the kernel's side watches, and it knows first who runs as whom."""
    _, keep = watching([], [], ["1000"], [])
    was_root = Process(ProcessKey(1, 1), exe="/opt/b", uid=0)
    opened = SyscallEvent(time_ns=2, process=was_root, tid=1, origin=Origin.BPF, syscall="openat")

    assert keep(opened)
    assert keep(make_window([1], ("/opt/b", "/opt/b")))
    assert not keep(ForkEvent(time_ns=2, process=was_root, tid=1, origin=Origin.BPF))


def test_watched_link(tmp_path, monkeypatch):
    """A link to a program is that program; a script is also what it is called by."""
    (tmp_path / "a").write_text("#!/bin/sh\n")
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    for name in ("link", tmp_path / "link"):
        wanted, _ = watching([str(name)], [], [], [])
        assert set(wanted.programs) == {f"{tmp_path}/a", f"#!{tmp_path}/a", f"#!{tmp_path}/link"}


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (([], [2], [], []), {2, 3}),
        (([], [], ["1000"], []), {3}),
        (([], [], ["root"], []), {2}),
        (([], [], [], []), None),
    ],
)
def test_watching(monkeypatch, arguments, kept):
    """By family, by user, by number or name; nothing asked for is everything."""
    monkeypatch.setattr(Path, "exists", lambda _: True)
    _, keep = watching(*arguments)
    parent = Process(ProcessKey(2, 1), exe="/a", uid=0)
    child = Process(ProcessKey(3, 1), exe="/b", parent=parent, uid=1000)
    events = [ForkEvent(time_ns=1, process=p, tid=p.key.pid, origin=Origin.BPF) for p in (parent, child)]

    assert (None if keep is None else {e.process.key.pid for e in events if keep(e)}) == kept


def test_watching_nobody():
    """A user that isn't there is a mistake."""
    with pytest.raises(UsageError, match="--uid 'no one': there is no such user"):
        watching([], [], ["no one"], [])


def test_default_store(monkeypatch):
    """Root's is the system's; a user's is in the state folder, and a relative XDG_STATE_HOME doesn't count."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_store() == Path("/var/lib/ksentinel/alerts.db")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert default_store() == Path("/home/u/.local/state/ksentinel/alerts.db")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert default_store() == Path("/s/ksentinel/alerts.db")


def test_rules_cache(monkeypatch, tmp_path, capsys):
    """Compiled rules are kept by the system for root, in the user's cache otherwise; what is odd there is said, and is no obstacle."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert host.rules_cache() == Path("/var/cache/ksentinel")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert host.rules_cache() is None
    monkeypatch.setenv("HOME", str(tmp_path))
    assert host.rules_cache() == tmp_path / ".cache" / "ksentinel"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert host.rules_cache() == tmp_path / "ksentinel"
    (tmp_path / "ksentinel").write_text("")

    assert len(load_rules(None)) > 20
    assert capsys.readouterr().err == (
        f"ksentinel: {tmp_path}/ksentinel/rules.json: Not a directory: rules are compiled anew (this folder can be deleted at any time)\n"
    )


def test_default_socket(monkeypatch, tmp_path):
    """Root's is the system's; a user's is in XDG_RUNTIME_DIR; asked is the user's own if there is one."""
    system = Path("/run/ksentinel/control.sock")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert (default_socket(), socket_to_ask()) == (system, system)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert (default_socket(), socket_to_ask()) == (None, system)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    assert (default_socket(), socket_to_ask()) == (None, system)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own = tmp_path / "ksentinel" / "control.sock"
    assert (default_socket(), socket_to_ask()) == (own, system)
    own.parent.mkdir()
    own.touch()
    assert socket_to_ask() == own


def test_socket_of_a_monitor(monkeypatch):
    """The command line has the first word, then the configuration, then the default."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    configured = Config.from_dict({"control": {"socket": "/run/k.sock"}})

    assert [
        monitor.control_socket(Config(), None, off=False),
        monitor.control_socket(configured, None, off=False),
        monitor.control_socket(configured, Path("/run/n.sock"), off=False),
        monitor.control_socket(configured, None, off=True),
    ] == [Path("/run/ksentinel/control.sock"), Path("/run/k.sock"), Path("/run/n.sock"), None]


def test_group_id(monkeypatch):
    """A group there is; none; and one that this user can't give files to."""
    group = grp.getgrgid(os.getgid())
    stranger = next(one for one in grp.getgrall() if one.gr_gid not in {os.getgid(), *os.getgroups()})

    assert group_id(group.gr_name) == group.gr_gid
    assert group_id("no such group") is None
    assert group_id("") is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert group_id(stranger.gr_name) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert group_id(stranger.gr_name) == stranger.gr_gid


def test_own_cost():
    """What this process has used, in seconds and bytes."""
    before = cpu_seconds()
    ballast = b"x" * 50_000_000
    resident, peak = memory_bytes()

    assert 0 < before <= cpu_seconds()
    assert len(ballast) < resident <= peak < 1 << 40


@pytest.fixture
def fake(tmp_path):
    """Return a function that lets a made-up daemon answer status."""
    with contextlib.ExitStack() as stack:

        def fake(answer):
            path = tmp_path / "fake.sock"
            requests = {"status": Request(lambda _: answer, changes=False)}
            stack.enter_context(Control(path, Group("k", None), requests, owner=os.getuid()))
            return path

        yield fake


STATUS = {
    "version": "9", "pid": 7, "mode": "monitor", "since_ns": 1, "seconds": 90, "model": None, "rules": 22,
    "store": HOSTILE[0], "lost": 0, "account": COUNTERS, "walk": {}, "control": {}, "mood": "good",
    "usage": {"cpu_seconds": 1, "cpu_share": 0.5, "cpu_share_lately": 1, "lately_seconds": 60,
              "memory_bytes": 1000000, "memory_peak_bytes": 2000000},
}  # fmt: skip


def test_status(run, fake):
    """A table, or what the daemon said; untrusted text is harmless in both."""
    path = fake(STATUS)
    table, told = run("status", "--control", path), run("status", "--control", path, "--json")

    assert (table.status, table.err, told.status, told.err) == (0, "", 0, "")
    for line in (
        "process  7",
        "rules    22",
        "store    \\x1b[2J",
        "100  system calls seen = 80 scored + 10 unscored + 10 own",
    ):
        assert line in table.text
    assert told.objects == [STATUS]
    assert b"\x1b" not in table.out + told.out


def test_status_of_another_kind(run, fake):
    """What is no status is an error of one line."""
    ran = run("status", "--control", fake({"pid": "\x1b[2J"}))

    assert ran.status == 1
    assert re.fullmatch(r"ksentinel: .*fake.sock: answers something else than a status: .*\n", ran.err)


# Live: BPF in this kernel


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it didn't happen"
        time.sleep(0.05)


def start(tmp_path, *arguments):
    """Start the command line and wait until it says that it is at work; a monitor's control socket is in *tmp_path*."""
    if arguments[0] == "monitor" and not {"--control", "--no-control"} & set(arguments):
        arguments = (*arguments, "--control", tmp_path / "control.sock")  # the host's own may be in use
    log = tmp_path / "err"
    with log.open("wb") as err, (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen([*KSENTINEL, *map(str, arguments)], stdout=out, stderr=err)
    wait_for(lambda: b"Ctrl-C stops" in log.read_bytes() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    return process


def objects(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]


def check_account(account):
    """Whatever was seen is somewhere."""
    assert account["seen"] > 0
    assert [one for one in sums(account) if one[1] != one[2]] == []


@contextlib.contextmanager
def busy(*command, **options):
    """Let a child do *command*, or read a file again and again, meanwhile."""
    code = "import time\nwhile True: open('/etc/hostname', 'rb').read(); time.sleep(0.001)"
    with subprocess.Popen(command or [sys.executable, "-S", "-c", code], **options) as child:
        try:
            yield child
        finally:
            child.terminate()


@pytest.mark.bpf
def test_record(tmp_path, run):
    """A recording is private, opens, holds what happened, and its account adds up."""
    out = tmp_path / "x.db"
    with busy() as child:
        ran = shell("record", "--for", "2s", "--out", out, "--json")

    (told,) = ran.objects
    assert (ran.status, told["recording"]) == (0, str(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]
    check_account(told["account"])
    with Reader(out) as recording:
        pids = {item.process.key.pid for batch in recording for item in batch}
        assert recording.account() == told["account"]
        assert recording.facts["ended_ns"] - recording.facts["started_ns"] > 1.9e9
    assert child.pid in pids
    assert run("replay", out, "--json").objects[-1]["account"]["seen"] == told["account"]["seen"]


@pytest.mark.bpf
def test_record_some(tmp_path):
    """--pid keeps a process and its children, --exe an executable, --uid a user; the others are counted."""
    accounts = {}
    # One shell is there to be excluded: nothing else may be running on this machine.
    loop = ["/bin/sh", "-c", "while sleep 0.01; do :; done"]
    with busy() as child, busy() as other, busy(*loop), busy(*loop, user=USER) as somebody:
        exe = Path(f"/proc/{child.pid}/exe").resolve()
        running = {}
        for name, wanted in (("pid", child.pid), ("exe", exe), ("uid", USER)):
            (tmp_path / name).mkdir()
            arguments = ["--out", tmp_path / f"{name}.db", f"--{name}", wanted]
            running[name] = start(tmp_path / name, "record", "--for", "2", "--json", *arguments)
        for name, process in running.items():
            assert process.wait(timeout=120) == 0
            accounts[name] = objects(tmp_path / name)[0]["account"]

    found, facts = {}, {"pid": child.pid, "exe": str(exe), "uid": str(USER)}
    for name, account in accounts.items():
        check_account(account)
        assert account["excluded"] > 0
        assert account["items_excluded"] > 0
        with Reader(tmp_path / f"{name}.db") as recording:
            found[name] = [item for batch in recording for item in batch]
            assert recording.facts[name] == [facts[name]]
    assert {item.process.key.pid for item in found["pid"]} == {child.pid}
    assert {item.process.uid for item in found["uid"]} == {USER}
    assert somebody.pid in {item.process.parent.key.pid for item in found["uid"] if item.process.parent}
    assert {child.pid, other.pid} <= {item.process.key.pid for item in found["exe"]}
    # Other tests' Pythons may become something else meanwhile: that event is kept, and nothing after it.
    others = [item for item in found["exe"] if item.process.exe != str(exe)]
    assert [item for item in others if not isinstance(item, ExecEvent) or item.process.was != str(exe)] == []


@pytest.mark.bpf
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_record_stopped(tmp_path, number):
    """A signal ends a recording in good order."""
    out = tmp_path / "x.db"
    process = start(tmp_path, "record", "--out", out, "--json")
    with busy():
        time.sleep(0.3)
    process.send_signal(number)

    assert process.wait(timeout=30) == 0
    check_account(objects(tmp_path)[0]["account"])
    with Reader(out) as recording:
        assert recording.count() > 0
        assert recording.account()


@pytest.mark.bpf
def test_record_on_a_full_disk(tmp_path):
    """It ends at once, in one line; what was written stays readable."""
    out = tmp_path / "x.db"
    with busy():
        ran = subprocess.run(
            ["bash", "-c", 'ulimit -f 2048; exec "$@"', "bash", *KSENTINEL, "record", "--for", "20s", "--out", out],
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip

    *_, last = ran.stderr.decode().splitlines()
    assert ran.returncode == 1
    assert re.fullmatch(rf"ksentinel: {out}: can't be written any further: .* \(is the disk full.*\)", last)
    assert b"Traceback" not in ran.stderr
    with Reader(out) as recording:
        assert recording.count() > 0


@pytest.mark.bpf
def test_monitor(tmp_path):
    """An event planted while it watches becomes an alert, in the output and in the store."""
    secret = tmp_path / "home" / ".aws" / "credentials"
    secret.parent.mkdir(parents=True)
    secret.write_text("decoy\n")
    store = tmp_path / "alerts.db"
    process = start(tmp_path, "monitor", "--for", "3s", "--store", store, "--json")
    subprocess.run(["/bin/cat", secret], check=True, capture_output=True)

    assert process.wait(timeout=30) == 0
    *alerts, told = objects(tmp_path)
    check_account(told["account"])
    ours = [alert for alert in alerts if str(secret) in json.dumps(alert["evidence"])]
    assert [alert["title"] for alert in ours][:1] == ["Credentials opened by an unusual program"]
    with Store(store, os.getuid()) as kept:
        assert kept.get(ours[0]["id"])["id"] == ours[0]["id"]


def limited(made, folder, limit):
    """Return a model of this architecture that finds everything surprising, and nothing unless it is above *limit*."""
    shutil.copytree(made / "model", folder)
    table = artifact.load_kernel(folder, arch="x86_64", uid=os.getuid())
    nothing = np.full(ENTRIES, NEVER, np.uint8)
    table = table.with_rows(
        lambda _, row: replace(
            row, surprise=nothing, never=200, mean_limit=limit, cusum_limit=limit, process_limit=limit
        )
    )
    packed = artifact._packed(table.to_arrays())
    (folder / "kernel.npz").write_bytes(packed)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"arch": platform.machine(), "kernel_sha256": hashlib.sha256(packed).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.bpf
@pytest.mark.parametrize(("limit", "stays"), [(0, False), (0xFFFFFFFF, True)])
def test_monitor_with_a_model(made, tmp_path, limit, stays):
    """The kernel scores every call, and windows below its limits stay there; what the rules need comes all the same."""
    secret = tmp_path / "home" / ".aws" / "credentials"
    secret.parent.mkdir(parents=True)
    secret.write_text("decoy\n")
    config, scores = tmp_path / "k.yml", tmp_path / "scores.jsonl"
    config.write_text("collector: {sample: 0}\n")
    model = limited(made, tmp_path / "model", limit)
    with busy():
        process = start(
            tmp_path, "monitor", "--for", "2s", "--model", model, "--config", config, "--scores", scores,
            "--store", tmp_path / "alerts.db", "--json",
        )  # fmt: skip
        subprocess.run(["/bin/cat", secret], check=True, capture_output=True)
        assert process.wait(timeout=120) == 0

    *alerts, told = objects(tmp_path)
    account, walk = told["account"], told["walk"]
    check_account(account)
    assert account["scored"] > 0
    assert account["unscored"] == account["windows_sampled"] == 0
    assert (account["windows_gated"] > 0, account["windows_flagged"] > 0) == (stays, not stays)
    assert walk["windows"] == walk["windows_scored"] == account["windows_sent"]
    assert len(scores.read_bytes().splitlines()) == walk["windows_scored"]
    told_of = [alert["title"] for alert in alerts if str(secret) in json.dumps(alert["evidence"])]
    assert "Credentials opened by an unusual program" in told_of


@pytest.mark.bpf
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_monitor_stopped(tmp_path, number):
    """A signal ends it in good order: the account is printed, the store opens."""
    store = tmp_path / "alerts.db"
    process = start(tmp_path, "monitor", "--store", store)
    time.sleep(0.3)
    process.send_signal(number)

    assert process.wait(timeout=30) == 0
    assert "system calls seen =" in (tmp_path / "out").read_text()
    assert "≠" not in (tmp_path / "out").read_text()
    with Store(store, os.getuid()) as kept:
        list(kept.alerts())


@pytest.mark.bpf
def test_reload(tmp_path, run):
    """SIGHUP and `reload` load the rules anew; a bad one keeps the old, and is told everywhere; it goes on watching."""
    rules, store, control = tmp_path / "rules", tmp_path / "alerts.db", tmp_path / "control.sock"
    rules.mkdir(mode=0o755)
    (rules / "cat.yml").write_text(EXAMPLE)
    process = start(tmp_path, "monitor", "--store", store, "--rules", rules)

    def told():
        return run("status", "--control", control, "--json").objects[0]

    before = told()
    (rules / "bad.yml").write_text(EXAMPLE.replace("level: low", "level: odd"))
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: told()["last_reload"] is not None)
    bad, table = told(), run("status", "--control", control).text
    refused = run("reload", "--control", control)
    (rules / "bad.yml").write_text(EXAMPLE.replace("11\n", "12\n").replace("/cat", "/dog"))
    good = run("reload", "--control", control, "--json")
    after = told()
    process.terminate()
    assert process.wait(timeout=30) == 0

    place = f"{rules}/bad.yml:8:8: level 'odd'"
    assert (before["rules"], before["last_reload"]) == (1, None)
    assert (bad["rules"], bad["last_reload"]["ok"]) == (1, False)
    assert bad["rules_loaded_ns"] == before["rules_loaded_ns"]
    assert bad["last_reload"]["error"].startswith(place)
    assert f"failed: {place}" in table
    assert (refused.status, place in refused.err) == (1, True)
    assert (good.status, good.objects) == (0, [after["last_reload"]])
    assert (after["rules"], after["last_reload"]["ok"]) == (2, True)
    assert after["rules_loaded_ns"] == after["last_reload"]["time_ns"] > before["rules_loaded_ns"]
    said = (tmp_path / "err").read_text()
    assert said.count(f"rules not reloaded, the 1 in use stay: {place}") == 2
    assert "rules reloaded: 2, before 1" in said
    trail = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert [line["request"] for line in trail] == ["reload"] * 6
    assert [line["outcome"] for line in trail][::2] == ["begun"] * 3
    assert trail[-1]["outcome"] == "done"
    assert trail[1]["outcome"].startswith(place)


@pytest.mark.parametrize("heard", [True, False])
def test_hang_up(heard):
    """SIGHUP stops who has nothing better to do with it; the others hear of it and go on."""
    names = []
    with stopping(None, names.append if heard else None) as stop:
        os.kill(os.getpid(), signal.SIGHUP)

        assert stop() is not heard
        assert names == ["SIGHUP"] * heard


@pytest.mark.bpf
def test_status_of_a_monitor(made, tmp_path, run):
    """A running monitor tells what it has seen, and what that costs; when it has ended there is nobody, and no trace."""
    store, socket = tmp_path / "alerts.db", tmp_path / "run" / "control.sock"
    model = ["--model", made / "model"] if platform.machine() == "x86_64" else []
    process = start(tmp_path, "monitor", "--store", store, "--control", socket, *model)
    with busy():
        time.sleep(1)
        first, second = (run("status", "--control", socket, "--json") for _ in range(2))
        table = run("status", "--control", socket)
        again = run("monitor", "--store", tmp_path / "other.db", "--control", socket)
    process.terminate()
    assert process.wait(timeout=30) == 0
    nobody = run("status", "--control", socket)

    (before,), (after,) = first.objects, second.objects
    assert (after["pid"], after["version"], after["mode"]) == (process.pid, ksentinel.__version__, "monitor")
    assert (after["store"], after["rules"]) == (
        str(store),
        len(run("rules", "list", "--json").objects),
    )
    if model:
        about = {name: after["model"][name] for name in ("path", "host", "kernel", "recordings")}
        assert about == {
            "path": str(model[1]),
            "host": "small",
            "kernel": "6.12",
            "recordings": ["normal.db"],
        }
    assert abs(after["since_ns"] / 1e9 - time.time()) < 60
    assert 0 < before["seconds"] < after["seconds"] < 60
    assert 0 < before["account"]["seen"] < after["account"]["seen"]
    walk = after["walk"]
    assert walk["items"] == walk["events"] + walk["windows"] > 0
    assert walk["windows"] == walk["windows_scored"] + walk["windows_unscored"]
    assert (after["control"]["connections"], after["control"]["answered"]) == (2, 1)
    usage = after["usage"]
    assert 0 < usage["cpu_seconds"] < 60
    assert 0 <= usage["cpu_share"] < 2
    assert 20e6 < usage["memory_bytes"] <= usage["memory_peak_bytes"] < 2e9
    assert f"process  {process.pid}" in table.text
    assert "≠" not in table.text
    assert again.status == 1
    assert re.search(rf"control.sock: is in use by process {process.pid} \(stop what runs there", again.err)
    assert (nobody.status, nobody.out) == (1, b"")
    assert "no ksentinel is running here (start one by `ksentinel monitor`" in nobody.err
    assert not socket.parent.exists()
    assert not (tmp_path / "changes.jsonl").exists()


@pytest.mark.bpf
def test_monitor_under_a_flood_of_requests(tmp_path):
    """However many ask, and how, what is watched is watched, and all of it adds up."""
    store, socket = tmp_path / "alerts.db", tmp_path / "control.sock"
    process = start(tmp_path, "monitor", "--for", "4s", "--store", store, "--json")
    code = (
        "import socket, sys, time\n"
        "end = time.monotonic() + 2.5\n"
        "while time.monotonic() < end:\n"
        "    with socket.socket(socket.AF_UNIX) as one:\n"
        "        try:\n"
        "            one.connect(sys.argv[1])\n"
        '            one.sendall(b\'{"version": 1, "request": "status"}\\n\' * 20 + b"x" * 100_000)\n'
        "            one.recv(10)\n"
        "        except OSError: pass\n"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(subprocess.Popen([sys.executable, "-S", "-c", code, socket]))
        time.sleep(1)
        secret = tmp_path / "home" / ".aws" / "credentials"
        secret.parent.mkdir(parents=True)
        secret.write_text("decoy\n")
        subprocess.run(["/bin/cat", secret], check=True, capture_output=True)

    assert process.wait(timeout=30) == 0
    *alerts, told = objects(tmp_path)
    check_account(told["account"])
    assert [alert["title"] for alert in alerts if str(secret) in json.dumps(alert["evidence"])]
    said = (tmp_path / "err").read_text().splitlines()
    assert len([line for line in said if not line.startswith("ksentinel: overload ")]) == 1
    assert not socket.exists()


@pytest.mark.bpf
def test_killed(tmp_path):
    """SIGKILL leaves nothing in the kernel, and a recording and a store that open."""
    (tmp_path / "r").mkdir()
    (tmp_path / "m").mkdir()
    recorder = start(tmp_path / "r", "record", "--out", tmp_path / "x.db")
    monitor = start(tmp_path / "m", "monitor", "--store", tmp_path / "alerts.db")
    held = {
        (kind, number)
        for process in (recorder, monitor)
        for kind, numbers in bpf_ids(process.pid).items()
        for number in numbers
    }
    with busy():
        time.sleep(0.5)
    time.sleep(0.5)
    for process in (recorder, monitor):
        process.kill()
        process.wait(timeout=30)
    wait_for(lambda: not any(exists(*one) for one in held))

    assert {kind for kind, _ in held} == {"prog_id", "link_id", "map_id"}
    assert len(held) >= 2 * (5 + 5 + 10)
    with Reader(tmp_path / "x.db") as recording:
        assert sum(len(batch) for batch in recording) == recording.count() > 0
        assert recording.account() == {}
    with Store(tmp_path / "alerts.db", os.getuid()) as kept:
        list(kept.alerts())


@pytest.mark.root
def test_without_root(tmp_path):
    """Without rights it says so in one line with a remedy, and leaves nothing behind."""
    tmp_path.chmod(0o777)
    commands = ["record --out x.db", "monitor --store alerts.db"]
    ran = as_nobody(*commands, cwd=tmp_path)

    assert ran.out == b"1 1\n"
    for line in ran.err.splitlines():
        assert re.fullmatch(r"ksentinel: .*EPERM.*\(root is needed.*\)", line)
    assert len(ran.err.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


def test_guards(run):
    """What of the shipped rules the kernel could decide is listed, for people and for programs, and the same for both."""
    listed = run("rules", "list", "--guard")
    plain = [json.loads(line) for line in run("rules", "list", "--guard", "--json").out.splitlines()]
    texts = listed.out.decode().splitlines()

    assert listed.status == 0
    assert sum(line.startswith("  user space: ") for line in texts) == sum(
        len(rule["left"]) for rule in plain
    )
    assert f"{len(plain)} rules: {sum(bool(rule['guards']) for rule in plain)} with guards" in texts[-2]
    assert {
        test["test"] for rule in plain for guard in rule["guards"] for way in guard["ways"] for test in way
    } >= {
        "names",
        "bits",
    }
    assert {rule["error"] for rule in plain} == {None}


def test_policy(run, tmp_path):
    """The policy in force and the exceptions, as a table and as JSON."""
    exceptions = tmp_path / "exceptions.yml"
    exceptions.write_text(
        "exceptions:\n"
        "  - {id: 'old\\e[2J', rules: '*', where: {Image: /x}, owner: ops, reason: was so, expires: 2020-01-01}\n".replace(
            "\\e", "\\x1b"
        ).replace("'", '"')
        + "  - {id: new, rules: setuid_bit, where: {Image: /x}, owner: ops, reason: is so, expires: 2199-01-01}\n"
    )
    config = tmp_path / "config.yml"
    config.write_text(f"rules: {{exceptions: {exceptions}}}")
    exceptions.chmod(0o600)
    shown = run("rules", "policy", "--config", config)
    (told,) = run("rules", "policy", "--config", config, "--json").objects

    assert shown.status == 0
    assert "critical quarantine" in shown.text
    assert "1 exceptions in force, 1 ended" in shown.text
    assert "2020-01-02 00:00 UTC (ended)" in shown.text
    assert b"\x1b[2J" not in shown.out
    assert [(e["id"], e["active"]) for e in told["exceptions"]] == [("old\x1b[2J", False), ("new", True)]
    assert told["policy"]["tables"]["lossy"]["critical"]["low"] == {"level": "critical", "permits": "deny"}


def test_policy_of_one_s_own(run, tmp_path):
    """A policy that lets a model act alone ends a run before it begins, with the place; another one is followed."""
    policy, config = tmp_path / "policy.yml", tmp_path / "config.yml"
    text = (HERE.parent / "rules" / "policy.yml").read_text()
    config.write_text(f"rules: {{policy: {policy}}}")
    policy.write_text(re.sub(r"( none: .* informational, *)low,", r"\1low kill,", text, count=1))
    policy.chmod(0o600)
    refused = run("replay", WEBSHELL, "--config", config)
    policy.write_text(text.replace("[high deny, ", "[low deny, ").replace("[critical kill, ", "[low, "))
    mild = run("replay", WEBSHELL, "--config", config, "--json")
    loud = run("replay", WEBSHELL, "--json")

    assert refused.status == 1
    assert re.search(
        r"policy\.yml:\d+:\d+: known, rule none, model low: a model alone never acts", refused.err
    )
    assert "high" not in {alert["level"] for alert in mild.objects if "level" in alert}
    assert {"high"} <= {alert["level"] for alert in loud.objects if "level" in alert}
    assert all(alert["policy"]["model"] == "none" for alert in loud.objects if "level" in alert)


def test_excepted_replay(run, tmp_path):
    """Excepted matches are told as informational, and counted."""
    exceptions, config = tmp_path / "exceptions.yml", tmp_path / "config.yml"
    exceptions.write_text(
        "exceptions:\n  - {id: all, rules: '*', where: {Image|exists: true}, owner: o, reason: r, expires: 2199-01-01}\n"
    )
    exceptions.chmod(0o600)
    config.write_text(f"rules: {{exceptions: {exceptions}}}")
    *alerts, account = run("replay", WEBSHELL, "--config", config, "--json").objects

    assert {"informational"} == {alert["level"] for alert in alerts}
    assert account["walk"]["matches_excepted"] == account["walk"]["matches"] > 0
    assert account["walk"]["exceptions_active"] == 1


# Noise

OPT = """
title: Something of /opt is run
id: 3f1f2f0e-52f4-4b1e-9a4d-0b3a3b6f0c11
logsource: {category: process_creation, product: linux}
detection:
  selection: {Exe|startswith: /opt/}
  condition: selection
level: medium
"""


def noisy(folder, programs, minutes=1):
    """Return a recording in which a shell of nginx runs each of *programs*, and the arguments that replay it."""
    nginx = Process(ProcessKey(700, 1), exe=NGINX[0], argv=(NGINX[0],))
    items = []
    for number, exe in enumerate(programs):
        process = Process(ProcessKey(800 + number, 5), exe=exe, argv=(exe,), parent=nginx, service=nginx)
        time_ns = 7200 * SECOND + number * 60 * minutes * SECOND
        items.append(
            ExecEvent(time_ns=time_ns, process=process, tid=800 + number, origin=Origin.BPF, path=exe)
        )
    (folder / "opt.yml").write_text(OPT)
    (folder / "opt.yml").chmod(0o600)
    recording = make_recording(folder / "noisy.db", items)
    return ["replay", recording, "--rules", folder / "opt.yml"]


def test_cap(run, tmp_path):
    """Of many alerts of one rule an hour's share is told, the others are counted: everywhere, and in every replay."""
    (tmp_path / "k.yml").write_text("noise: {alerts_an_hour: 5}\n")
    command = [*noisy(tmp_path, [f"/opt/{n}" for n in range(30)]), "--config", tmp_path / "k.yml"]
    first = run(*command, "--json", "--store", tmp_path / "a.db")
    second = run(*command, "--json", "--store", tmp_path / "b.db")
    shown = run(*command)
    *alerts, told = first.objects
    walk = told["walk"]
    (noise,) = run("rules", "noise", "--store", tmp_path / "a.db", "--json").objects
    later = run("rules", "noise", "--store", tmp_path / "a.db", "--since", "1971-01-01", "--json")
    stored = run("alerts", "--store", tmp_path / "a.db")

    assert (first.out, first.err) == (second.out, second.err)
    assert (len(alerts), walk["alerts"], walk["alerts_shown"], walk["alerts_capped"]) == (5, 30, 5, 25)
    assert told["suppressed"] == [
        {"rule": "3f1f2f0e-52f4-4b1e-9a4d-0b3a3b6f0c11", "title": "Something of /opt is run", "alerts": 25}
    ]
    begun, ended = first.err.splitlines()
    assert begun.startswith(
        "ksentinel: rule 'Something of /opt is run' has told 5 new alerts in the hour from 1970-01-01 02:00"
    )
    assert ended.endswith("is over, 25 alerts were suppressed in it")
    assert "30  alerts = 5 shown + 0 muted + 25 capped + 0 quietened" in shown.text
    assert "25  Something of /opt is run (3f1f2f0e-" in shown.text
    assert (noise["alerts"], noise["suppressed"], noise["share"], noise["others"]) == (5, 25, 1.0, 25)
    assert noise["sources"][0]["remedies"]["where"] == f'{{"Exe": "/opt/0", "ParentImage": "{NGINX[0]}"}}'
    assert (later.status, later.out) == (0, b"")
    assert "25 suppressed alerts are counted alone: `ksentinel rules noise`" in stored.text


def test_budget(run, tmp_path):
    """A day's budget that one program spends quietens that one alone, and never for longer than the day."""
    (tmp_path / "k.yml").write_text(
        "noise: {alerts_a_day: 6}\nincident: {fold_seconds: 1, quiet_seconds: 1}\n"
    )
    programs = ["/opt/loud"] * 10 + ["/opt/new"] + ["/opt/loud"] * 20
    command = [*noisy(tmp_path, programs, minutes=60), "--config", tmp_path / "k.yml"]
    ran = run(*command, "--json", "--store", tmp_path / "a.db")
    *alerts, told = ran.objects
    first_day = [
        a["process"]["exe"] for a in alerts if a["revision"] == 1 and a["opened_ns"] < 86400 * SECOND
    ]

    assert first_day == ["/opt/loud"] * 6 + ["/opt/new"]
    assert [a["process"]["exe"] for a in alerts if a["opened_ns"] >= 86400 * SECOND] == ["/opt/loud"] * 6
    assert told["walk"]["alerts"] == 31 == 13 + told["walk"]["alerts_quietened"]
    said = ran.err.splitlines()
    assert ["is spent, most of it by /opt/loud" in line for line in said] == [True, False, True, False]
    assert said[1].startswith("ksentinel: the day of 1970-01-01 is over")


def test_hostile_noise(run, tmp_path):
    """Whoever names their program to move a cursor, or to be a command, gets neither."""
    hostile = [f"/opt/{text}" for text in HOSTILE]
    run(*noisy(tmp_path, hostile), "--store", tmp_path / "a.db")
    told = run("rules", "noise", "--store", tmp_path / "a.db")
    listed = run("alerts", "--store", tmp_path / "a.db")

    assert (told.status, listed.status) == (0, 0)
    for raw in RAW:
        assert raw not in told.out + listed.out


def test_noise_of_nothing(run, tmp_path):
    """An empty store makes none, and no time is no time."""
    with Store(tmp_path / "empty.db", os.getuid(), write=True):
        pass
    empty = run("rules", "noise", "--store", tmp_path / "empty.db")
    wrong = run("rules", "noise", "--store", tmp_path / "empty.db", "--since", "soon")

    assert (empty.status, empty.text) == (0, "no alerts\n")
    assert (wrong.status, "--since 'soon'" in wrong.err) == (2, True)


@pytest.mark.parametrize("json_", [False, True])
def test_muted(run, tmp_path, capsysbinary, json_):
    """What is muted is not shown on a terminal; it is stored, and JSON has it, and both say that it is."""
    noisy(tmp_path, ["/opt/1", "/opt/2"])
    config, rules, store = Config(), [tmp_path / "opt.yml"], tmp_path / "a.db"
    mutes = Mutes()
    one = mutes.add(Mute("", 1, 10**13, "so", exe="/opt/1"))
    pipeline = build_pipeline(config, rules, None, arch="x86_64", mutes=mutes)
    with Reader(tmp_path / "noisy.db") as items, outlet_of(store, config, pipeline, json=json_) as outlet:
        for alert in pipeline.walk(items):
            outlet(alert)
    out = capsysbinary.readouterr().out.decode()
    listed = run("alerts", "--store", store)
    first = next(line.split()[0] for line in listed.text.splitlines() if "muted by" in line)
    why = run("explain", first, "--store", store)

    if json_:
        told = [json.loads(line) for line in out.splitlines()]
        assert [(a["process"]["exe"], a.get("muted")) for a in told] == [("/opt/1", one.id), ("/opt/2", None)]
    else:
        assert ("/opt/1" in out, "/opt/2" in out) == (False, True)
    assert listed.text.count(f"muted by {one.id}") == 1
    assert f"• muted by {one.id}: stored, not shown when it happened" in why.text


def test_mutes_of_a_monitor(run, tmp_path, monkeypatch):
    """It names those in force when it starts and those that are over, mutes, and writes down how often."""
    noisy(tmp_path, ["/opt/1", "/opt/2"])
    now, hour = time.time_ns(), 3600 * SECOND
    with Reader(tmp_path / "noisy.db") as recording:
        items = [replace(item, time_ns=now) for batch in recording for item in batch]

    @contextlib.contextmanager
    def live(*_arguments, **_options):
        class Stream(list):
            def lost(self):
                return 0

            def account(self):
                return {}

        yield Stream([items])

    monkeypatch.setattr(host, "live", live)
    kept = tmp_path / "a.db.mutes.json"
    over = Mute("5f", 1, now - 1, "then", exe="/opt/2")
    there = Mute("6f", now - hour, now + hour, "now", exe="/opt/1", alerts=5)
    write(kept, [over, there])
    rules, store = tmp_path / "opt.yml", tmp_path / "a.db"
    ran = run("monitor", "--rules", rules, "--store", store, "--no-control", "--json")
    kept.chmod(0o666)
    refused = run("monitor", "--rules", rules, "--store", store, "--no-control", "--json")

    *alerts, told = ran.objects
    assert [(a["process"]["exe"], a.get("muted")) for a in alerts] == [("/opt/1", "6f"), ("/opt/2", None)]
    assert (told["walk"]["alerts_shown"], told["walk"]["alerts_muted"]) == (1, 1)
    said = ran.err.splitlines()
    assert [line.split(": /opt")[0] for line in said[1:]] == [
        "ksentinel: mute is over: 5f",
        "ksentinel: still muted: 6f",
    ]
    assert (refused.status, refused.out) == (1, b"")
    assert "a.db.mutes.json: is writable by others" in refused.err
    kept.chmod(0o600)
    assert read(kept, os.getuid()) == (replace(there, alerts=6),)


def test_mutes_below_alerts(run, tmp_path):
    """Alerts are listed with the mutes in force of the monitor that wrote them; one that is over is none."""
    run(*noisy(tmp_path, ["/opt/1"]), "--store", tmp_path / "a.db")
    now = time.time_ns()
    mutes = [Mute("5f", 1, now + 10**12, "so", exe="/x"), Mute("6f", 1, now - 1, "so", exe="/y")]
    write(tmp_path / "a.db.mutes.json", mutes)

    told = run("alerts", "--store", tmp_path / "a.db")
    assert told.text.splitlines()[-1].startswith("muted: 5f: /x up to level medium, until ")
    assert "/y" not in told.text
