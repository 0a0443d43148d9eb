# SPDX-License-Identifier: Apache-2.0
"""The commands about enforcement: refused with the reason, planned, noted, switched, and got out of."""

import errno
import json
import os
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from made_up import CAT, HTTPD, JOB, SHELL, START, denial

from ksentinel import host, support
from ksentinel.cli import main
from ksentinel.commands import enforce, enforcing
from ksentinel.config import Config
from ksentinel.enforce import Mode, left
from ksentinel.enforce.breaker import Change
from ksentinel.enforce.left import Left
from ksentinel.enforce.rollout import write_changes
from ksentinel.errors import HostError
from ksentinel.event import ExecEvent, Origin, Outcome
from ksentinel.recording import Writer
from ksentinel.rules.ruleset import EXAMPLE
from ksentinel.store import Store

DAY = 86400 * 10**9
FILE = """
never: {add: [/no/where]}
entries:
  - {id: cats, title: No cats, deny: [exec], file: {is: [/bin/cat, /nothing]}, by: [/bin/sh]}
"""

RULE = EXAMPLE.replace("/cat", "/nothing/is/called/so")


@pytest.fixture
def run(capsysbinary):
    """Run the command line in this process."""

    def run(*arguments):
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(
            status=ended.value.code or 0,
            text=out.decode(),
            err=err.decode(),
            objects=[json.loads(line) for line in out.splitlines()] if "--json" in arguments else [],
        )

    return run


@pytest.fixture
def folder(tmp_path):
    """Return a folder with an operator's file, a configuration, a rule, and a store with denials of it."""
    (tmp_path / "enforce.yml").write_text(FILE)
    (tmp_path / "config.yml").write_text(f"enforce: {{file: {tmp_path}/enforce.yml}}\n")
    (tmp_path / "rule.yml").write_text(RULE)
    with Store(tmp_path / "alerts.db", os.getuid(), write=True) as store:
        store.denied([denial(CAT, 1, "entry:cats", Outcome.WOULD_DENY, hook="bprm_check_security")] * 3)
        store.denied([denial(JOB, 2, "entry:cats", Outcome.WOULD_DENY, hook="bprm_check_security")])
    return tmp_path


def of(folder, *options):
    """Return the options that name all that."""
    named = {"--store": "alerts.db", "--config": "config.yml", "--rules": "rule.yml"}
    return [part for option in options for part in (option, folder / named[option])]


# A host that refuses

NO_ROOT = "Name: x\nCapEff: 0000000000000000\n"


def checks(*failing):
    """Return what a host can do, but for these."""
    return lambda **_: iter(
        [support.Support("kernel", True, "Linux", "", (support.MONITOR, support.ENFORCE)), *failing]
    )


@pytest.mark.parametrize(
    ("check", "reason", "remedy"),
    [
        (
            lambda _: support.lsm_program(errno.EPERM, ("lockdown", "bpf")),
            "bpf is an active LSM, but the kernel refused to load an LSM program: EPERM",
            "this host's administrator or hypervisor forbids it",
        ),
        (
            lambda _: support.bpf_lsm(("lockdown", "capability")),
            "bpf is not among the active LSMs: lockdown,capability",
            "boot with lsm=lockdown,capability,bpf",
        ),
        (lambda _: support.bpf_lsm(None), "the list of active LSMs is unknown", "mount -t securityfs"),
        (support.capabilities, "holds none of CAP_BPF", "run as root"),
    ],
    ids=["refused", "not in the list", "no list", "no root"],
)
def test_refused(run, tmp_path, monkeypatch, check, reason, remedy):
    """Exit status 1, with the reason and the remedy, before anything is written; and `doctor` agrees."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(NO_ROOT)
    failing = check(tmp_path)
    monkeypatch.setattr(support, "examine", checks(failing))
    ran = run("enforce", "--store", tmp_path / "store/alerts.db", "--no-control")
    told = run("doctor", "--for", "enforce", "--json")

    assert (ran.status, told.status) == (1, 1)
    assert ran.err.startswith(f"ksentinel: nothing can be enforced here: {failing.name}: {reason}")
    assert f"({remedy}" in ran.err
    assert not (tmp_path / "store").exists()
    assert told.objects[0]["works"]["enforce"] is False


def test_agrees_with_doctor():
    """On this host, whatever it is."""
    assert (enforcing.preflight() is None) == support.would_work(list(support.examine()), support.ENFORCE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--mode on", "mode 'on' is none of off, permissive, enforce"),
        ("--on-exit stay", "--on-exit 'stay' is none of open, hold"),
        ("--confirm soon", "--confirm 'soon' is no duration"),
        ("--confirm 5m --no-control", "--confirm needs the control socket"),
        ("--for 0s", "--for '0s' is no duration"),
        ("mode most", "mode 'most' is none of off, permissive, enforce"),
    ],
)
def test_wrong(run, monkeypatch, arguments, says):
    """Said before the host is asked for anything."""
    monkeypatch.setattr(enforcing, "preflight", lambda: None if "0s" in arguments else pytest.fail("asked"))
    monkeypatch.setattr(enforcing, "start_of", lambda *_: (Mode.ENFORCE, ""))
    ran = run("enforce", *arguments.split())

    assert ran.status == 2
    assert says in ran.err


@pytest.mark.root
@pytest.mark.bpf
def test_degrade(run, tmp_path, monkeypatch):
    """Where nothing can stand, and that is accepted: it watches, alerts that nothing is verified, and ends in order."""
    why = HostError("nothing can be enforced here: BPF LSM: no", remedy="boot with lsm=bpf")
    monkeypatch.setattr(enforcing, "preflight", lambda: why)
    (tmp_path / "rule.yml").write_text(RULE)
    store = tmp_path / "state/alerts.db"
    ran = run(
        "enforce", "--mode", "enforce", "--degrade", "--for", "1.5s", "--no-control", "--store", store,
        "--rules", tmp_path / "rule.yml", "--json",
    )  # fmt: skip
    with Store(store, os.getuid()) as kept:
        (alert,) = kept.alerts()

    assert ran.status == 0, ran.err
    assert "DEGRADED: nothing can be enforced here: BPF LSM: no (boot with lsm=bpf)" in ran.err
    assert (alert["title"], alert["level"]) == ("Enforcement is not verified", "critical")
    assert alert["enforcement"] == {"requested": "enforce", "verified": "no"}
    assert not (tmp_path / "state/boots.json").exists()


@pytest.mark.root
@pytest.mark.bpf
def test_ends_for_its_reason(run, tmp_path, monkeypatch):
    """Why enforcement had to end is what the command ends for, after the account."""
    monkeypatch.setattr(enforcing, "preflight", lambda: HostError("no"))

    def start(it):
        it.fail(HostError("enforcement can't be verified: file_open: never fired", remedy="see docs"))

    monkeypatch.setattr(enforcing.Enforcement, "start", start)
    (tmp_path / "rule.yml").write_text(RULE)
    ran = run(
        "enforce", "--degrade", "--for", "1h", "--no-control", "--store", tmp_path / "alerts.db",
        "--rules", tmp_path / "rule.yml",
    )  # fmt: skip

    assert ran.status == 1
    assert "enforcement can't be verified: file_open: never fired (see docs)" in ran.err
    assert "The walk" in ran.text


# What would be


def test_plan(run, folder):
    """Which guards a recording would have met, and what of the file isn't there."""
    with Writer(folder / "r.db", {"arch": "x86_64"}) as writer:
        event = ExecEvent(time_ns=START, process=CAT, tid=12, origin=Origin.BPF, path="/bin/cat")
        writer.write([event, event])
        writer.account({})
    ran = run("enforce", "plan", "--recording", folder / "r.db", *of(folder, "--config", "--rules"))
    (told,) = run(
        "enforce", "plan", "--recording", folder / "r.db", *of(folder, "--config", "--rules"), "--json"
    ).objects

    assert ran.status == 0, ran.err
    assert f"ksentinel: {folder}/enforce.yml:4:5: /nothing isn't there" in ran.err
    assert told["events"] == 2
    assert {one["rule"] for one in told["guards"]} == {"entry:cats"}
    assert "2 events" in ran.text


def test_plan_of_the_store(run, folder):
    """The events that are kept around alerts, and a store that isn't there is said."""
    ran = run("enforce", "plan", *of(folder, "--store", "--config", "--rules"))
    none = run("enforce", "plan", "--store", folder / "nothing", *of(folder, "--config", "--rules"))

    assert (ran.status, "0 events" in ran.text) == (0, True)
    assert (none.status, "there is no store" in none.err) == (1, True)


def test_plan_refused(run, folder):
    """A policy that couldn't be enforced can't be planned, and names its place."""
    (folder / "enforce.yml").write_text("entries: [{id: all, deny: [exec]}]")
    ran = run("enforce", "plan", *of(folder, "--store", "--config", "--rules"))

    assert ran.status == 1
    assert f"{folder}/enforce.yml:1:11: all would deny everything" in ran.err


@pytest.mark.parametrize(("days", "unresolved"), [(None, False), (1, True), (9, True)])
def test_ready(run, folder, days, unresolved):
    """Watched for long enough, and each would-deny has an answer: exit status 0. What isn't known to be watched is new."""
    tool = folder / "tool"
    tool.touch()
    (folder / "enforce.yml").write_text(f"entries: [{{id: tools, deny: [exec], file: {{is: [{tool}]}}}}]")
    asked = denial(
        SHELL, 0, "entry:tools", Outcome.WOULD_DENY, hook="bprm_check_security", call="execve", paths=(str(tool),)
    )  # fmt: skip
    with Store(folder / "alerts.db", os.getuid(), write=True) as store:
        store.denied([replace(asked, time_ns=time.time_ns() - DAY // 24)])
    if days is not None:
        since = time.time_ns() - days * DAY
        write_changes({"entry:tools": Change("x", since, "permissive")}, folder / "changes.json")
    before = run("enforce", "ready", *of(folder, "--store", "--config", "--rules"))
    run("enforce", "note", "entry:tools", "/bin/sh", *of(folder, "--store"))
    after = run("enforce", "ready", *of(folder, "--store", "--config", "--rules"), "--json")

    assert (before.status, "unresolved" in before.text) == (1, unresolved), before
    assert (after.status, after.objects[0]["ready"]) == ((0, True) if days == 9 else (1, False))


def test_denials(run, folder):
    """By rule, hook and program, with how often; from a time on."""
    ran = run("enforce", "denials", "--since", "2020-01-01", *of(folder, "--store"))
    told = run("enforce", "denials", "--since", "2020-01-01", *of(folder, "--store"), "--json").objects
    late = run("enforce", "denials", *of(folder, "--store"))

    assert [(one["rule"], one["exe"], one["count"], one["outcome"]) for one in told] == [
        ("entry:cats", "/bin/sh", 1, "would_deny"),
        ("entry:cats", "/bin/cat", 3, "would_deny"),
    ]
    assert "would deny" in ran.text
    assert late.text == "no denials\n"


def test_note(run, folder):
    """An answer is kept with all counts it is about; one about nothing is refused, and makes no store."""
    noted = run("enforce", "note", "entry:cats", "/bin/cat", "expected here", *of(folder, "--store"))
    nothing = run("enforce", "note", "entry:cats", "/bin/dog", *of(folder, "--store"))
    none = run("enforce", "note", "entry:cats", "/bin/cat", "--store", folder / "nothing.db")
    told = run("enforce", "denials", "--since", "2020-01-01", *of(folder, "--store"), "--json").objects

    assert (noted.status, noted.err) == (0, "ksentinel: noted for 1 of the denials' counts\n")
    assert (nothing.status, "nothing of /bin/dog was denied by entry:cats" in nothing.err) == (2, True)
    assert (none.status, (folder / "nothing.db").exists()) == (1, False)
    assert {one["exe"]: one["note"] for one in told} == {"/bin/cat": "expected here", "/bin/sh": ""}


def test_note_of_a_service(run, folder):
    """Of one service alone."""
    other = run("enforce", "note", "entry:cats", "/bin/cat", "--service", "/x", *of(folder, "--store"))
    same = run("enforce", "note", "entry:cats", "/bin/cat", "--service", HTTPD.exe, *of(folder, "--store"))

    assert (other.status, same.status) == (2, 0)


def test_never(run, folder):
    """Who is spared, and why; who was asked for and isn't there, too."""
    ran = run("enforce", "never", *of(folder, "--config"))
    told = run("enforce", "never", *of(folder, "--config"), "--json").objects
    by_who = {one["who"]: one for one in told}

    assert "/no/where" in ran.text
    assert (by_who["/no/where"]["there"], by_who["PID 1"]["pid"]) == (False, 1)
    assert by_who["ksentinel"]["pid"] == os.getpid()


# Out again


class _Runs:
    """What runs have left, as the commands find it."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.released, self.refuse = folder / "pins", [], ()
        monkeypatch.setattr(left, "PINS", self.folder)
        monkeypatch.setattr(Left, "release", self._release())

    def _release(self):
        def release(one):
            if one.pid in self.refuse:
                raise HostError("can't be switched", at=one.folder)
            self.released.append(one.pid)
            return one.pid != 3

        return release

    def add(self, pid, *names, began=0):
        """Leave a folder."""
        one = self.folder / f"{pid}-{began}"
        one.mkdir(parents=True)
        for name in names:
            (one / name).touch()

    def there(self):
        """Return whose are there."""
        return sorted(int(one.name.partition("-")[0]) for one in self.folder.iterdir())


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return what runs have left: nothing."""
    return _Runs(tmp_path, monkeypatch)


def test_release_nothing(run, runs, tmp_path):
    """Nobody answers, and nothing is left: with --all that is fine, and otherwise it is said."""
    socket = tmp_path / "no.sock"
    everything = run("release", "--all", "--control", socket)
    plain = run("release", "--control", socket)
    told = run("release", "--all", "--control", socket, "--json").objects[0]

    assert (everything.status, everything.err) == (0, "ksentinel: nothing was enforced\n")
    assert (plain.status, "no ksentinel is running here" in plain.err) == (1, True)
    assert (told["released"], told["left"]) == (False, [])
    assert "no ksentinel is running here" in told["answer"]


def test_release_all(run, runs, tmp_path):
    """What runs have left is released, and taken away if they have ended; who goes on is released and keeps what is theirs."""
    gone = 1 << 22
    runs.add(gone, "switches", "on_file_open")
    runs.add(3)  # without a switch
    runs.add(os.getpid(), "switches", "on_exit", began=1 << 62)
    ran = run("release", "--all", "--control", tmp_path / "no.sock")

    assert ran.status == 0
    assert sorted(runs.released) == sorted([gone, 3, os.getpid()])
    assert os.getpid() in runs.there()
    assert gone not in runs.there()
    assert f"the ksentinel of PID {gone}: released, 1 programs that were pinned" in ran.err
    assert "the ksentinel of PID 3: had no switch" in ran.err
    assert "nothing is denied any more" in ran.err


def test_release_all_although_one_fails(run, runs, tmp_path):
    """The others are let go all the same; that one wasn't is an error."""
    runs.refuse = {1 << 22}
    runs.add(1 << 22, "switches")
    runs.add((1 << 22) + 1, "switches", began=1)
    ran = run("release", "--all", "--control", tmp_path / "no.sock")

    assert ran.status == 1
    assert runs.released == [(1 << 22) + 1]
    assert runs.there() == [1 << 22]
    assert "can't be switched" in ran.err


def test_release_exclusive(run, runs):
    """One process, or everything."""
    ran = run("release", "--all", "--pid", "5")

    assert (ran.status, "--pid and --all exclude each other" in ran.err) == (2, True)


# A daemon


class _Answers:
    """What a daemon answers, one after the other."""

    def __init__(self, monkeypatch, *answers):
        self.asked, self.answers = [], list(answers)
        monkeypatch.setattr("ksentinel.protocol.ask", self.ask)
        monkeypatch.setattr(enforce, "_ASK_EVERY", 0.0)

    def ask(self, _path, request, *, trusted, seconds, **arguments):
        assert host.user() in trusted
        assert seconds > 0
        self.asked.append((request, arguments))
        told = self.answers.pop(0)
        return {"enforcement": told} if request == "status" else told


def told(requested="enforce", verified="no", *, proving=False, **more):
    """Return what `status` says of enforcement."""
    return {
        "requested": requested,
        "mode": requested,
        "verified": verified,
        "proving": proving,
        "why": [],
        "released": False,
        "attached": ["file_open"],
        "missing": {},
        "unproven": {},
        "confirm": "",
        "policy": {},
        "modes": {},
        "taken_back": [],
        "sentences": 0,
        "counters": {},
    } | more


@pytest.mark.parametrize(
    ("last", "status"),
    [(told(verified="enforce"), 0), (told(), 1), (told(verified="permissive", why=["flag"]), 1)],
)
def test_mode(run, monkeypatch, last, status):
    """The answer is waited for until what is in force has been tried; another than what was asked for is exit status 1."""
    answers = _Answers(monkeypatch, told(proving=True), told(proving=True), last)
    ran = run("enforce", "mode", "enforce")

    assert ran.status == status
    assert answers.asked == [
        ("mode", {"mode": "enforce", "rule": "", "cgroup": ""}),
        ("status", {}),
        ("status", {}),
    ]
    assert f"verified {last['verified']}" in ran.text


def test_mode_of_a_rule(run, monkeypatch):
    """Of a rule: the host's may be another."""
    answers = _Answers(monkeypatch, told("permissive", "no", modes={"r": "enforce"}))
    ran = run("enforce", "mode", "enforce", "--rule", "r")

    assert (ran.status, "mode of r: enforce" in ran.text) == (0, True)
    assert answers.asked[0][1] == {"mode": "enforce", "rule": "r", "cgroup": ""}


def test_mode_never_proven(run, monkeypatch):
    """It isn't waited for longer than proofs take."""
    answers = _Answers(monkeypatch, told(proving=True))
    monkeypatch.setattr(enforce, "_PROOF_SECONDS", 0.0)

    assert run("enforce", "mode", "enforce").status == 1
    assert len(answers.asked) == 1


def test_confirm(run, monkeypatch):
    """Who confirms the kernel says to the daemon: nothing of it is asked."""
    answers = _Answers(monkeypatch, told(verified="enforce", confirm="confirmed"))
    ran = run("enforce", "confirm", "--json")

    assert answers.asked == [("confirm", {})]
    assert ran.objects[0]["confirm"] == "confirmed"


def test_release(run, monkeypatch):
    """All of it, or one process' verdict."""
    answers = _Answers(monkeypatch, {"released": True, "lifted": 0}, {"released": False, "lifted": 3})
    everything, one = run("release"), run("release", "--pid", "7")

    assert answers.asked == [("release", {"pid": 0}), ("release", {"pid": 7})]
    assert "nothing is denied any more" in everything.err
    assert one.err == "ksentinel: 3 processes are no longer under a verdict\n"


def test_default_config():
    """What isn't said otherwise is permissive."""
    assert Config().enforce.mode == "permissive"
