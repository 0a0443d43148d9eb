# SPDX-License-Identifier: Apache-2.0
"""Enforcement on this host: whose login it is, who enforces already, what the threads do that keep it."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up import CAT, HTTPD, INIT, POLICY, SHELL, child

from ksentinel.bpf.abi import Kind
from ksentinel.bpf.guard_abi import Denial, DenialFlag, Hook
from ksentinel.commands import enforcing
from ksentinel.commands.enforcing import Here, Nowhere, ended, enforces, key_of, login_of, parent_of, start_of
from ksentinel.config import Config
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import Change
from ksentinel.enforce.enforcement import Wanted
from ksentinel.enforce.left import Left
from ksentinel.enforce.rollout import Boots, Login
from ksentinel.enforce.settings import Settings, parse_settings
from ksentinel.errors import HostError
from ksentinel.event import ExecEvent, Origin, Process, ProcessKey
from ksentinel.normalize.processes import ProcessTable
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule

TICK = 10_000_000
UNSET = 0xFFFFFFFF


class _Proc:
    """A made-up /proc."""

    def __init__(self, root):
        self.root = root

    def add(self, pid, parent, started, *, session=None, tty=0, login=None, state="S", name="x"):
        """Enter a process; *login* is audit's number."""
        place = self.root / str(pid)
        place.mkdir()
        fields = [state, parent, pid, pid if session is None else session, tty, *[0] * 14, started, 0]
        (place / "stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")
        if login is not None:
            (place / "sessionid").write_text(str(login))
            (place / "loginuid").write_text("1000")


@pytest.fixture
def proc(tmp_path):
    """Return a /proc with an SSH server."""
    made = _Proc(tmp_path / "proc")
    made.root.mkdir()
    made.add(1, 0, 0)
    made.add(50, 1, 100, login=UNSET)
    return made


def of(proc, pid):
    """Return when a process' login began, in ticks."""
    login = login_of(pid, proc.root)
    return login.leader.start_ns // TICK


def test_login_with_audit(proc):
    """It begins with the oldest process of its number: not with a session of one's own, nor with the server."""
    proc.add(60, 50, 200, login=3)  # of the server, for this login
    proc.add(61, 60, 201, session=61, tty=5, login=3)
    proc.add(62, 61, 900, session=62, tty=6, login=3)  # setsid, or sudo's terminal
    proc.add(63, 62, 901, session=62, tty=6, login=3)

    assert login_of(63, proc.root) == Login(ProcessKey(60, 200 * TICK), 3, 1000)
    assert [of(proc, pid) for pid in (61, 62, 63)] == [200, 200, 200]


@pytest.mark.parametrize("number", [None, UNSET])
def test_login_without_audit(proc, number):
    """It goes up as far as there is a terminal."""
    proc.add(60, 50, 200, login=number)
    proc.add(61, 60, 201, session=61, tty=5, login=number)
    proc.add(62, 61, 900, session=62, tty=6, login=number)
    proc.add(63, 62, 901, session=62, tty=6, login=number)

    assert [of(proc, pid) for pid in (61, 62, 63)] == [201, 201, 201]
    assert login_of(63, proc.root).number is None


def test_login_of_nobody(proc):
    """Who has ended has none; whose session's leader has gone has one of his own."""
    proc.add(60, 1, 300, session=59)
    proc.add(61, 1, 300, state="Z")

    assert login_of(4711, proc.root) is None
    assert login_of(61, proc.root) is None
    assert of(proc, 60) == 300


def test_keys(proc):
    """Names may hold anything; who has ended and wasn't asked how has ended."""
    proc.add(60, 50, 300, name="a) S 1 (b")
    proc.add(61, 50, 300, state="Z")
    (proc.root / "62").mkdir()
    (proc.root / "62/stat").write_text("")

    assert (key_of(60, proc.root), parent_of(60, proc.root)) == (ProcessKey(60, 300 * TICK), 50)
    assert [key_of(pid, proc.root) for pid in (61, 62, 63)] == [None] * 3
    assert parent_of(61, proc.root) == 0
    assert key_of(os.getpid()).pid == os.getpid()


# Two at once


def test_ended(tmp_path):
    """Runs that have ended are taken over; one that goes on keeps a second one from starting, whatever it holds."""
    mine, gone, other = (Left(tmp_path / name) for name in ("9-900", "5-500", "6-600"))
    goes_on = {6: ProcessKey(6, 599), 9: ProcessKey(9, 899)}
    reused = {6: ProcessKey(6, 601), 9: ProcessKey(9, 899)}

    assert ended([gone, other, mine], mine, reused.get) == [gone, other]
    with pytest.raises(HostError, match="a ksentinel enforces here already, of PID 6"):
        ended([gone, other, mine], mine, goes_on.get)


class _Guards:
    """Guards that pin files, and take over what is told."""

    def __init__(self, *, fails=False):
        self.fails, self.taken, self.held = fails, [], {}

    def take_over(self, before, _pids):
        self.taken.append(before.folder.name)

    def hold(self, **held):
        self.held = held

    def pin(self, folder, *, links):
        for name in ("switches", *(["on_file_open"] if links else [])):
            (folder / name).touch()
        if self.fails:
            raise HostError("pinning: EEXIST")


@pytest.fixture
def pins(tmp_path, monkeypatch):
    """Return where runs' folders are, with one of a run that has ended."""
    folder = tmp_path / "pins"
    monkeypatch.setattr(enforcing, "PINS", folder)
    (folder / f"{1 << 22}-5").mkdir(parents=True)
    (folder / f"{1 << 22}-5" / "on_file_open").touch()
    return folder


def pinning(stack, guards, on_exit, started=None):
    """Begin as `enforcing` does."""
    enforcement = SimpleNamespace(
        world=SimpleNamespace(processes=lambda: [SHELL]), start=lambda: started and started()
    )
    wanted = Wanted(Mode.ENFORCE, on_exit=on_exit)
    enforcing._pinning(stack, Config(), guards, enforcement, wanted)


@pytest.mark.parametrize("on_exit", OnExit)
def test_take_over(pins, on_exit):
    """What a run has left is taken over, and goes only when the new guards stand and are pinned; at the end nothing is left."""
    guards, then = _Guards(), []
    with ExitStack() as stack:
        pinning(stack, guards, on_exit, lambda: then.extend(one.name for one in pins.iterdir()))
        now = [(one.name.partition("-")[0], {pin.name for pin in one.iterdir()}) for one in pins.iterdir()]

    assert guards.taken == [f"{1 << 22}-5"]
    assert len(then) == 2
    assert now == [(str(os.getpid()), {"switches"} | ({"on_file_open"} if on_exit is OnExit.HOLD else set()))]
    assert list(pins.iterdir()) == []
    assert set(guards.held) == {"two_key_ns", "all_ns"}


@pytest.mark.parametrize(
    ("on_exit", "error", "stays"),
    [
        (OnExit.HOLD, ValueError("fault"), True),
        (OnExit.HOLD, KeyboardInterrupt(), False),
        (OnExit.OPEN, ValueError("fault"), False),
    ],
)
def test_fault(pins, on_exit, error, stays, capsys):
    """Guards that hold stay after what nobody asked for."""

    def fault():
        with ExitStack() as stack:
            pinning(stack, _Guards(), on_exit)
            raise error

    with pytest.raises(type(error)):
        fault()

    assert bool(list(pins.iterdir())) is stays
    assert ("guards stay, for 300 s" in capsys.readouterr().err) is stays


@pytest.mark.parametrize("on_exit", OnExit)
def test_start_fails(pins, on_exit):
    """A start that fails before anything stands leaves what was there, and nothing of its own."""

    def fails():
        raise HostError("no")

    with pytest.raises(HostError, match="no"), ExitStack() as stack:
        pinning(stack, _Guards(), on_exit, fails)

    assert [one.name for one in pins.iterdir()] == [f"{1 << 22}-5"]


def test_second(pins):
    """A second one is refused, and takes nothing from the first."""
    first = pins / f"{os.getppid()}-{1 << 62}"
    first.mkdir()
    (first / "on_file_open").touch()
    guards = _Guards()
    with pytest.raises(HostError, match="enforces here already"), ExitStack() as stack:
        pinning(stack, guards, OnExit.HOLD)

    assert guards.taken == []
    assert sorted(one.name for one in pins.iterdir()) == sorted([f"{1 << 22}-5", first.name])
    assert (first / "on_file_open").exists()


def test_no_file_system(tmp_path, monkeypatch, capsys):
    """Without a BPF file system guards end with us, which is said; to hold is refused."""
    monkeypatch.setattr(enforcing, "PINS", tmp_path / "no/pins")
    with ExitStack() as stack:
        pinning(stack, _Guards(), OnExit.OPEN)
    with pytest.raises(HostError, match="guards can't outlive ksentinel"), ExitStack() as stack:
        pinning(stack, _Guards(), OnExit.HOLD)

    assert "no BPF file system" in capsys.readouterr().err


# The threads


class _Kept:
    """Enforcement that is kept; *ticks* and *proofs* are what happens in them."""

    def __init__(self, tick=lambda: None, prove=lambda: None):
        self.did, self.due, self.reading = [], threading.Event(), threading.Event()
        self.ticked, self.proven, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self._tick, self._prove = tick, prove
        self.failure = None

    def tick(self):
        self.ticked.set()
        self._tick()

    def is_due(self):
        return not self.proven.is_set()

    def prove(self):
        self.proven.set()
        self._prove()

    def stop(self):
        self.stopped.set()
        self.due.set()
        self.reading.set()

    def fail(self, error):
        self.failure = self.failure or error

    def keep_changes(self):
        self.did.append("kept")


def test_kept(monkeypatch):
    """It is ticked also while a proof goes on, which begins once somebody reads; at the end a proof that hangs is told to stop."""
    monkeypatch.setattr(enforcing, "_TICK", 0.001)
    again = threading.Event()

    def prove():
        it.ticked.clear()
        assert it.ticked.wait(10)
        again.set()
        assert it.stopped.wait(10)

    it = _Kept(prove=prove)
    before = threading.active_count()
    with enforcing._kept(it):
        assert it.ticked.wait(10)
        unread = it.proven.is_set()
        it.reading.set()
        assert again.wait(10)

    assert (unread, it.stopped.is_set(), it.did, it.failure) == (False, True, ["kept"], None)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("error", "says"),
    [(HostError("map"), "map"), (KeyError("x"), "enforcement has failed: KeyError: 'x'")],
)
@pytest.mark.parametrize("where", ["tick", "prove"])
def test_kept_fails(monkeypatch, error, says, where):
    """Whatever fails there is why enforcement ends; the threads go on, and end when told to."""
    monkeypatch.setattr(enforcing, "_TICK", 0.001)
    failed = threading.Event()

    def fail():
        failed.set()
        raise error

    it = _Kept(**{where: fail})
    it.reading.set()
    with enforcing._kept(it):
        assert failed.wait(10)
        assert it.ticked.wait(10)

    assert it.failure.what == says


# This host


@pytest.fixture
def here(tmp_path):
    """Return this host, as far as it can be made up."""
    table = ProcessTable()
    for one in (INIT, HTTPD, SHELL, CAT):
        table.add(one)
    return Here(table, 1_700_000_000 * 10**9, store=tmp_path / "alerts.db", socket=None, state=tmp_path)


def test_here(here):
    """Clocks of events; who runs; ourselves, also if nobody knows us, which changes nothing."""
    before = len(here.table)

    assert here.now_ns() - here.boot_ns() <= 1_700_000_000 * 10**9
    assert [one.key.pid for one in here.processes()] == [1, 10, 11, 12]
    assert here.own().key.pid == os.getpid()
    assert len(here.table) == before


def test_table_that_changes(here):
    """The walk changes the table at any time: it is looked at anew."""
    looks = []

    class Table:
        def __iter__(self):
            looks.append(1)
            if len(looks) < 3:
                raise RuntimeError("OrderedDict mutated during iteration")
            return iter([SHELL])

    here.table = Table()

    assert here.processes() == [SHELL]


def test_changes(here, tmp_path, capsys):
    """Since when rules are what they are is kept; what can't be read is said, and all count as changed."""
    known = {"r": Change("x", 5, "enforce", "because")}
    here.keep_changes(known)
    again = Here(here.table, 0, store=here.store, socket=None, state=tmp_path)
    kept = again.changes()
    (tmp_path / "changes.json").write_text("{")
    broken = Here(here.table, 0, store=here.store, socket=None, state=tmp_path).changes()
    (tmp_path / "changes.json").unlink()
    (tmp_path / ".changes.json.new").mkdir()
    here.keep_changes({})

    assert (kept, broken) == (known, {})
    said = capsys.readouterr().err
    assert "all rules count as changed now" in said
    assert "the next start will count all rules as changed" in said
    assert here.changes() == {}


def test_forgive(here, tmp_path):
    """What is confirmed is written where boots are counted."""
    boots = Boots(tmp_path / "boots.json", os.getuid())
    boots.begin("one", 0)
    limited = boots.begin("two", 10**9)
    here.forgive()

    assert (limited.most, boots.begin("two", 10**9).most) == (Mode.PERMISSIVE, Mode.ENFORCE)


def test_helpers(here):
    """What the canary's helpers do is theirs, and their children's, also a while after; only the last one is spared."""
    helper = Process(ProcessKey(70, 700 * TICK), parent=HTTPD)
    here.helpers = (ProcessKey(60, 600 * TICK), helper.key)

    assert here.is_helper(helper)
    assert here.is_helper(child(child(helper, 71, "/x"), 72, "/y"))
    assert not here.is_helper(SHELL)
    assert not here.is_helper(Process(ProcessKey(70, 701 * TICK)))
    spared = [one for one in here.never(Settings()) if one.who == "the canary's helper"]
    assert [(one.process, one.children) for one in spared] == [(helper.key, True)]


def test_cgroups(here, tmp_path, monkeypatch):
    """A control group is a directory of the hierarchy, and nothing else."""
    (tmp_path / "cgroup/a.slice").mkdir(parents=True)
    (tmp_path / "cgroup/a.slice/cgroup.procs").touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(enforcing, "cgroup_mounts", lambda _: SimpleNamespace(v2=tmp_path / "cgroup"))

    assert here.cgroups("/a.slice") == ((tmp_path / "cgroup/a.slice").stat().st_ino,)
    for path in ("/b.slice", "/a.slice/cgroup.procs", "/../elsewhere", "/a\0b"):
        assert here.cgroups(path) == ()
    monkeypatch.setattr(enforcing, "cgroup_mounts", lambda _: SimpleNamespace(v2=None))
    assert here.cgroups("/a.slice") == ()


# What is asked for

ENTRY = "entries: [{{id: e, deny: [kexec]{0}}}]"


@pytest.mark.parametrize(
    ("mode", "text", "expected"),
    [
        (Mode.ENFORCE, "entries: []", True),
        (Mode.PERMISSIVE, "entries: []", False),
        (Mode.OFF, "modes: {r: enforce}", True),
        (Mode.OFF, "modes: {r: permissive}", False),
        (Mode.PERMISSIVE, "cgroups: {/a: enforce}", True),
        (Mode.PERMISSIVE, ENTRY.format(", mode: enforce"), True),
        (Mode.PERMISSIVE, ENTRY.format(""), False),
    ],
)
def test_enforces(mode, text, expected):
    """Whatever enforces, be it one rule, counts boots."""
    assert enforces(mode, parse_settings(text, "enforce.yml")) is expected


def test_start_of(tmp_path):
    """A boot is counted if anything is to be enforced; if it can't be, that is permissive."""
    boots = Boots(tmp_path / "boots.json", os.getuid())
    nothing = start_of(boots, enforced=False)
    written = (tmp_path / "boots.json").exists()
    first = start_of(boots, enforced=True)
    (tmp_path / "file").touch()
    most, why = start_of(Boots(tmp_path / "file/boots.json", os.getuid()), enforced=True)

    assert (nothing, written, first) == ((Mode.ENFORCE, ""), False, (Mode.ENFORCE, ""))
    assert (tmp_path / "boots.json").exists()
    assert (most, "boots can't be counted" in why) == (Mode.PERMISSIVE, True)


INLINE = EXAMPLE + "ksentinel: {action: ACTION, inline: true}\n"


@pytest.mark.parametrize(
    ("level", "action", "guarded"), [("low", "deny", False), ("high", "deny", True), ("high", "kill", False)]
)
def test_derived(level, action, guarded, capsys):
    """A rule has guards if the verdict's policy lets it act by itself; that it doesn't is said."""
    text = INLINE.replace("ACTION", action).replace("level: low", f"level: {level}")
    (one,) = enforcing.derived(RuleSet([compile_rule(text, "cat.yml", sources())]), POLICY)

    assert (one.rule.response.inline, bool(one.guards)) == (guarded, guarded)
    assert ("it has no guard" in capsys.readouterr().err) is not guarded


def test_confining():
    """Where verdicts are carried out guards stand, if any rule may come to one."""
    found = {}
    for action in ("deny", "kill", "quarantine"):
        rules = RuleSet([compile_rule(INLINE.replace("ACTION", action), "cat.yml", sources())])
        found[action] = bool(enforcing.confining(enforcing.derived(rules, POLICY)))

    assert found == {"deny": False, "kill": True, "quarantine": True}


# Without guards


def test_nowhere():
    """Nothing stands, and nothing fails for that but what would have to be carried out."""
    why = HostError("no LSM")
    one = Nowhere(why)
    one.mode, one.most = Mode.ENFORCE, Mode.OFF
    used = one.use(SimpleNamespace(hooks=(Hook.BPF,)), [])
    one.release(on=True)
    one.beat()
    one.spare([])
    one.cgroup_modes({})

    assert (used, one.epoch, one.attached, one.missing) == (0, 0, (), {})
    assert (one.sentences(), one.counters(), one.released) == ({}, {}, True)
    with pytest.raises(HostError, match="no LSM"):
        one.sentence(ProcessKey(1, 1), 1, 1, 1)


def test_stream(tmp_path):
    """A stream is led past enforcement: proofs to the canary, its helper's doings to nobody, all else as before."""
    table = ProcessTable()
    stream = SimpleNamespace(
        normalizer=SimpleNamespace(table=table, epoch_ns=0, rule_of=None),
        collector=SimpleNamespace(),
        divert=None,
        keep=lambda item: item.process.exe != "/bin/cat",
    )
    proof = Denial(flags=DenialFlag.CANARY, nonce=7)
    proof.header.kind = Kind.DENIAL
    with enforcing.enforcing(
        Config(),
        stream,
        (),
        Settings(),
        Wanted(Mode.ENFORCE, degrade=True, refused="no LSM"),
        store=tmp_path / "alerts.db",
        socket=None,
        state=tmp_path,
        refused=HostError("no LSM"),
    ) as it:
        it.world.helpers = (SHELL.key,)
        diverted = [stream.divert(memoryview(bytes(one))) for one in (proof, Denial())]
        kept = [stream.keep(happened(one)) for one in (HTTPD, CAT, SHELL, child(SHELL, 99, "/bin/x"))]
        taken = it.mailbox.take(7, 0)
        told = it.told()

    assert (diverted, kept, taken.nonce) == ([True, False], [True, False, False, False], 7)
    assert (told["requested"], told["mode"], told["verified"]) == ("enforce", "off", "no")
    assert stream.normalizer.rule_of(1, 0) == ("", "")
    assert {one.name for one in Path(tmp_path).iterdir()} <= {"changes.json"}


def happened(process):
    """Return an event of a process."""
    return ExecEvent(time_ns=0, process=process, tid=1, origin=Origin.BPF)
