# SPDX-License-Identifier: Apache-2.0
"""The host: what the control socket of a running monitor does about mutes and enforcement."""

import json
import os
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from made_up import SHELL, Incidents, judge, match

from ksentinel import control, host
from ksentinel.alert import Alert, Evidence
from ksentinel.cli import main
from ksentinel.commands.enforcing import key_of, login_of
from ksentinel.config import Config, NoiseConfig
from ksentinel.enforce import Mode
from ksentinel.errors import HostError, InputError, RuleError, UsageError
from ksentinel.level import Level
from ksentinel.mutes import MODEL
from ksentinel.noise import Noise
from ksentinel.pipeline import Pipeline
from ksentinel.protocol import Group, Peer, ask
from ksentinel.rules import Rule
from ksentinel.rules.fields import sources
from ksentinel.rules.ruleset import EXAMPLE, RuleSet
from ksentinel.rules.sigma import compile_rule

ME = os.geteuid()
HOUR = 3600.0


class Nothing:
    """A stream of a host on which nothing happens."""

    def lost(self):
        """Return what was lost."""
        return 0

    def account(self):
        """Return no counters."""
        return {}


class Enforcement:
    """Enforcement, as far as the control socket asks it: what was asked is noted."""

    failure = None
    world = SimpleNamespace(login=login_of)

    def __init__(self):
        self.asked = []

    def set_mode(self, mode):
        """Ask for another mode."""
        self.asked.append(mode)

    def set_rule_mode(self, name, mode):
        """Let a rule have one."""
        if name == "nosuch":
            raise RuleError("no rule 'nosuch' is loaded", remedy="say an id")
        self.asked.append((name, mode))

    def set_cgroup_mode(self, path, mode):
        """Let a control group have one."""
        self.asked.append((path, mode))

    def release(self):
        """Let everything go."""
        self.asked.append("release")

    def lift(self, pid):
        """Let a process go."""
        self.asked.append(pid)
        return 2

    def confirm(self, login):
        """Say that one can log in."""
        self.asked.append(login)

    def told(self):
        """Return what `status` says."""
        return {"requested": "enforce", "mode": "enforce", "verified": "no", "proving": True}


class Monitor:
    """A running monitor, as far as the control socket sees it."""

    def __init__(self, folder):
        self.store = folder / "var" / "alerts.db"
        self.socket = folder / "run" / "control.sock"
        self.said = []
        self.mutes = host.mutes_in_force(Config(), self.store)
        self.noise = Noise(mutes=self.mutes, tell=self.said.append)
        rules = RuleSet([compile_rule(EXAMPLE, "cat.yml", sources())])
        self.rule = rules.rules[0]
        self.pipeline = Pipeline(rules, None, Incidents(), noise=self.noise)

    @contextmanager
    def serve(self):
        """Serve its control socket."""
        with (
            host.reloading(
                lambda: self.pipeline.in_force, self.pipeline, self.store, self.said.append
            ) as reloader,
            host.control(
                Config(),
                self.socket,
                Nothing(),
                self.pipeline,
                model=None,
                store=self.store,
                reloader=reloader,
                tell=self.said.append,
            ),
        ):
            yield

    def ask(self, request, **arguments):
        """Return what it answers."""
        return ask(self.socket, request, trusted={ME}, **arguments)

    def trail(self):
        """Return who changed what."""
        lines = (self.store.parent / "changes.jsonl").read_text().splitlines()
        return [(one["request"], one["outcome"], one["arguments"]) for one in map(json.loads, lines)]


@pytest.fixture
def monitor(tmp_path):
    """Return a monitor that isn't served yet."""
    return Monitor(tmp_path)


def now():
    """Return an alert of now."""
    one = match(SHELL)
    time_ns = time.time_ns()
    return Alert(
        "a", 1, time_ns, time_ns, SHELL, judge([one], []), (Evidence(1, time_ns, time_ns, match=one),)
    )


def test_mute(monitor):
    """It is in force at once, told, in the trail, on disk and in the status; it is there after a restart; and it can be ended."""
    with monitor.serve():
        made = monitor.ask("mute", for_seconds=HOUR, reason="so", exe="/bin/sh")
        _, marked = monitor.noise.judge(now())
        status = monitor.ask("status")
        listed = monitor.ask("mutes")
    monitor.mutes.save()
    again = Monitor(monitor.store.parents[1])
    with again.serve():
        kept = again.ask("mutes")
        again.ask("unmute", id=made["id"][:3])
        rest = again.ask("mutes")

    assert marked.muted == made["id"]
    assert listed == status["noise"]["mutes"] == kept == [made | {"alerts": 1}]
    assert rest == []
    assert monitor.said[0].startswith(f"muted: {made['id']}: /bin/sh up to level medium, until ")
    assert again.said[0].startswith(f"unmuted: {made['id']}: /bin/sh")
    wanted = {"for_seconds": HOUR, "reason": "so", "exe": "/bin/sh"}
    assert monitor.trail() == [
        ("mute", "begun", wanted),
        ("mute", "done", wanted),
        ("unmute", "begun", {"id": made["id"][:3]}),
        ("unmute", "done", {"id": made["id"][:3]}),
    ]


def test_rule_by_title(monitor):
    """A rule is found by what people call it, and kept by its id."""
    with monitor.serve():
        made = monitor.ask("mute", for_seconds=HOUR, reason="so", rule=monitor.rule.title.upper())

    assert made["rule"] == monitor.rule.id


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"reason": "so"}, "a mute of everything is none"),
        ({"reason": "", "exe": "/x"}, "a mute has a reason"),
        ({"reason": "so", "rule": "no such"}, "no rule that is loaded has the id or title 'no such'"),
        ({"reason": "so", "exe": "/x", "for_seconds": 86401.0}, "a mute lasts 24 hours at most"),
        ({"reason": "so", "exe": "/x", "for_seconds": 0.0}, "a mute ends after it begins"),
        ({"reason": "so", "exe": "/x", "for_seconds": 1e300}, "a mute lasts 24 hours at most"),
        ({"reason": "so", "exe": "/x", "for_seconds": -1e300}, "a mute ends after it begins"),
        ({"reason": "so", "exe": "/x", "level": "critical"}, "a mute reaches up to level high"),
        ({"reason": "so", "exe": 5}, "mute: Expected `str`, got `int`"),
        ({"reason": "so", "exe": "/x", "for": "2h"}, "mute takes no 'for'"),
    ],
)
def test_wrong(monitor, arguments, said):
    """What can't be is refused, with the reason, which the trail has, too; nothing is muted."""
    with monitor.serve(), pytest.raises(HostError, match=said):
        monitor.ask("mute", **({"for_seconds": HOUR} | arguments))

    assert monitor.mutes.all() == ()
    assert said in monitor.trail()[-1][1]


def test_commands(monitor, capsysbinary):
    """The commands ask a running monitor, and say what it answers."""

    def run(*arguments):
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--control", str(monitor.socket)])
        out, err = capsysbinary.readouterr()
        return ended.value.code or 0, out.decode(), err.decode()

    with monitor.serve():
        none = run("mute", "--list")
        _, made, _ = run(
            "mute", "--exe", "/opt/\u202ex", "--for", "2h", "--reason", "\x1b[2J", "--level", "high", "--json"
        )
        (status, listed, _) = run("mute", "--list")
        told = run("status")[1]
        wrong = run("mute", "--exe", "x", "--for", "2h", "--reason", "so")
        endless = run("mute", "--exe", "/x", "--reason", "so")
        all_ = run("mute", "--for", "2h", "--reason", "so")
        both = run("mute", "--list", "--exe", "/x")
        gone = run("unmute", json.loads(made)["id"])
    nobody = run("mute", "--list")

    assert none == (0, "no mutes\n", "")
    assert "/opt/\\u202ex up to level high, until " in listed
    assert '("\\x1b[2J"): 0 alerts muted' in listed
    assert (status, gone[0], gone[1]) == (0, 0, listed)
    assert f"muted: {listed.strip()}" in told
    assert (wrong[0], "--exe 'x' is no absolute path (say all of it)" in wrong[2]) == (1, True)
    assert (endless[0], "a mute ends (say for how long" in endless[2]) == (2, True)
    assert (all_[0], "a mute of everything is none (say --exe" in all_[2]) == (2, True)
    assert (both[0], "--list stands alone" in both[2]) == (2, True)
    assert (nobody[0], "no ksentinel is running here" in nobody[2]) == (1, True)


@pytest.mark.root
def test_mutes_of_the_caller(tmp_path, monkeypatch):
    """Who may sudo mutes a monitor of root's over the socket, where the trail has it, and not by writing a file."""
    monkeypatch.setenv("SUDO_UID", "12345")
    path = host.mutes_beside(tmp_path / "alerts.db")
    path.write_text("[]")
    os.chown(path, 12345, -1)

    with pytest.raises(InputError, match="belongs to uid 12345"):
        host.mutes_in_force(Config(), tmp_path / "alerts.db")


def test_longest(tmp_path):
    """For how long something may be muted is configured."""
    config = Config(noise=NoiseConfig(longest_mute_seconds=60.0))

    assert host.mutes_in_force(config, tmp_path / "alerts.db").longest_ns == 60 * 10**9


def test_rule_id():
    """Id and name go before titles; what isn't exactly one is an error."""
    rules = [
        Rule("1", "One", Level.LOW, name="uno"),
        Rule("2", "Same", Level.LOW),
        Rule("3", "same", Level.LOW),
    ]

    assert [host.rule_id(name, rules) for name in ("", MODEL, "1", "uno", "ONE")] == [
        "",
        MODEL,
        "1",
        "1",
        "1",
    ]
    with pytest.raises(UsageError, match="more than one rule is called 'same'"):
        host.rule_id("same", rules)
    with pytest.raises(UsageError, match="no rule that is loaded has the id or title 'four'"):
        host.rule_id("four", rules)


# Enforcement


@pytest.fixture
def enforcing(monitor):
    """Return a monitor that enforces."""
    monitor.pipeline.enforcing = Enforcement()
    return monitor


@pytest.mark.parametrize(
    ("request_", "arguments", "asked"),
    [
        ("mode", {"mode": "enforce"}, Mode.ENFORCE),
        ("mode", {"mode": "permissive", "rule": "r"}, ("r", Mode.PERMISSIVE)),
        ("mode", {"mode": "off", "cgroup": "/a"}, ("/a", Mode.OFF)),
        ("release", {}, "release"),
        ("release", {"pid": 7}, 7),
    ],
)
def test_enforcement(enforcing, request_, arguments, asked):
    """A mode is asked for, of the host, a rule or a control group; everything is released, or one process; the trail has it."""
    with enforcing.serve():
        answer = enforcing.ask(request_, **arguments)

    assert enforcing.pipeline.enforcing.asked == [asked]
    assert enforcing.trail() == [(request_, "begun", arguments), (request_, "done", arguments)]
    expected = {
        "mode": {"requested": "enforce", "mode": "enforce", "verified": "no", "proving": True},
        "release": {"released": not arguments, "lifted": 2 if arguments else 0},
    }
    assert answer == expected[request_]


@pytest.mark.parametrize(
    ("request_", "arguments", "says"),
    [
        ("mode", {"mode": "on"}, "mode 'on' is none of off, permissive, enforce"),
        ("mode", {"mode": "off", "rule": "r", "cgroup": "/a"}, "a mode is of a rule or of a control group"),
        ("mode", {"mode": "off", "rule": "nosuch"}, "no rule 'nosuch' is loaded"),
        ("mode", {}, "mode"),
        ("release", {"pid": "x"}, "release: Expected `int`"),
        ("confirm", {"pid": 1}, "confirm takes no 'pid'"),
    ],
)
def test_enforcement_wrong(enforcing, request_, arguments, says):
    """What can't be meant is refused; nothing is asked of enforcement."""
    with enforcing.serve(), pytest.raises(HostError, match=says):
        enforcing.ask(request_, **arguments)

    assert enforcing.pipeline.enforcing.asked == []
    assert enforcing.trail()[-1][1] != "done"


def asked_by(monkeypatch, peer):
    """Let whoever asks be somebody else, of a group that may read."""

    class Others(control.Control):
        def __init__(self, path, group, requests, **options):
            super().__init__(path, group, requests, **options, peer=lambda _: peer)

        def _unwanted(self, peer):
            self.group = Group("g", 1)
            return super()._unwanted(peer)

    monkeypatch.setattr(control, "Control", Others)


def test_confirm(enforcing):
    """It is of the login of who asks, as the kernel has it."""
    with enforcing.serve():
        enforcing.ask("confirm")
        (login,) = enforcing.pipeline.enforcing.asked

    assert login == login_of(os.getpid())
    assert login.leader.start_ns <= key_of(os.getpid()).start_ns


def test_confirm_of_nobody(enforcing, monkeypatch):
    """Who asks out of another PID namespace can't be told, and confirms nothing."""
    asked_by(monkeypatch, Peer(0, ME, frozenset()))
    with enforcing.serve(), pytest.raises(HostError, match="nobody is seen who confirms it"):
        enforcing.ask("confirm")

    assert enforcing.pipeline.enforcing.asked == []


@pytest.mark.parametrize("request_", ["mode", "release", "confirm"])
def test_enforcement_is_roots(enforcing, monkeypatch, request_):
    """Members of the group may read that something is enforced, and not change it."""
    asked_by(monkeypatch, Peer(os.getpid(), 12345, frozenset({1})))
    with enforcing.serve():
        told = enforcing.ask("status")["enforcement"]["requested"]
        with pytest.raises(HostError, match="may change anything, and this is uid 12345"):
            enforcing.ask(request_)

    assert told == "enforce"
    assert enforcing.pipeline.enforcing.asked == []


def test_nothing_enforced(monitor):
    """A monitor that enforces nothing has no such requests, and says that it doesn't."""
    with monitor.serve():
        status = monitor.ask("status")
        for request_ in ("mode", "release", "confirm"):
            with pytest.raises(HostError, match=f"there is no request '{request_}'"):
                monitor.ask(request_)

    assert (status["mode"], status["enforcement"]) == ("monitor", None)
