# SPDX-License-Identifier: Apache-2.0
"""The host: what the control socket of a running monitor does about mutes."""

import json
import os
import time
from contextlib import contextmanager

import pytest
from made_up import SHELL, Incidents, judge, match

from ksentinel import host
from ksentinel.alert import Alert, Evidence
from ksentinel.cli import main
from ksentinel.config import Config, NoiseConfig
from ksentinel.errors import HostError, InputError, UsageError
from ksentinel.level import Level
from ksentinel.mutes import MODEL
from ksentinel.noise import Noise
from ksentinel.pipeline import Pipeline
from ksentinel.protocol import ask
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
