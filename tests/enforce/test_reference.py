# SPDX-License-Identifier: Apache-2.0
"""What guards decide: the reference, the twin that reads the kernel's images, and rules' own guards agree."""

import json
from pathlib import Path

import pytest
from enforce.made_up_policies import FILES, chain, derived, entries, operations, resolve, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from ksentinel.bpf.guard_abi import Action, Hook, Outcome, Trait, Word
from ksentinel.codec import event_from_plain
from ksentinel.enforce import Mode, Posture
from ksentinel.enforce.compiled import CANARY_RULE
from ksentinel.enforce.compiler import _Builder, _named, compile_policy
from ksentinel.enforce.operation import Operation
from ksentinel.enforce.reference import Spoken, decide, speaks, strictest
from ksentinel.enforce.settings import Settings, parse_settings
from ksentinel.enforce.twin import Twin
from ksentinel.rules.derivation import derive
from ksentinel.rules.guard import Guard, Literal, Names
from ksentinel.rules.hooks import seen
from ksentinel.rules.ruleset import RuleSet

RULES = Path(__file__).parents[2] / "rules"
SHIPPED = RuleSet.load([RULES], trusted_uids=None).compiled


def compiled(rules, entries=(), posture=Posture.OPEN):
    """Return a policy, whatever it would do to a host."""
    builder = _Builder(Settings(posture=posture, entries=tuple(entries)), resolve, "x86_64", _named(rules))
    for one in rules:
        builder.add_rule(one)
    for one in entries:
        builder.add_entry(one)
    return builder.finish()


@given(
    rules(),
    entries(),
    st.sampled_from(Posture),
    st.data(),
    st.sampled_from(list(Mode)),
    st.booleans(),
    st.booleans(),
    st.integers(0, (1 << 64) - 1),
)
@settings(max_examples=200, deadline=None)
def test_twin(rules, entries, posture, data, host, spared, released, seed):
    """Whatever a policy says and whatever is done: what the images say is what was asked for."""
    policy = compiled(rules, entries, posture)
    twin = Twin(policy, seed=seed)
    world = {"host": host, "spared": spared, "released": released}
    for operation in data.draw(
        st.lists(operations(policy.hooks or (Hook.BPF,)), min_size=12, max_size=12), label="operations"
    ):
        speaking = {index for index, rule in enumerate(policy.rules) if speaks(policy, rule, operation)}

        assert {one.rule for one in twin.spoken(operation)} - {CANARY_RULE} == speaking
        assert twin.decide(operation, **world) == decide(policy, operation, **world)


def happened(rule):
    """Return the events that ship with a rule, in plain form."""
    lines = Path(rule.rule.file).with_suffix(".events.jsonl").read_text(encoding="utf-8").splitlines()
    for plain in map(json.loads, lines):
        for event in plain.get("events", [plain]):
            yield {name: value for name, value in event.items() if name not in {"match", "why"}}


@pytest.mark.parametrize("rule", SHIPPED, ids=lambda one: Path(one.rule.file).stem)
def test_shipped(rule):
    """As if it asked for inline: each guard of each rule that ships says of its events what the policy's reference and images say."""
    guards = derive(rule).guards
    if not guards:
        return
    for anomalous in (False, True):
        policy = compiled([derived(guards, anomalous=guards[0].anomalous)])
        twin = Twin(policy)
        for event in map(event_from_plain, happened(rule)):
            for at in seen(event, anomalous=anomalous):
                operation = Operation.of(at)
                expected = any(guard.speaks(at) for guard in guards)

                assert speaks(policy, policy.rules[0], operation) is expected
                assert (twin.decide(operation) is not None) is expected


def test_shipped_speak():
    """Among those that ask for inline some speak of their events: the comparison above isn't about silence."""
    told = set()
    for rule in SHIPPED:
        if rule.rule.response is None or not rule.rule.response.inline:
            continue
        policy = compiled([derive(rule)])
        for event in map(event_from_plain, happened(rule)):
            told |= {
                (Path(rule.rule.file).stem, Twin(policy).decide(Operation.of(at)) is not None)
                for at in seen(event, anomalous=True)
            }

    assert told >= {
        (stem, answer)
        for stem in ("kexec_load", "ld_so_preload", "cgroup_release_agent", "service_user_namespace")
        for answer in (True, False)
    }


ENFORCE, PERMISSIVE, OFF = Mode.ENFORCE, Mode.PERMISSIVE, Mode.OFF
DENY, KILL, LOG = Action.DENY, Action.KILL, Action.LOG


@pytest.mark.parametrize(
    ("spoken", "cgroup", "host", "outcome", "rule"),
    [
        ([], None, ENFORCE, None, None),
        ([(DENY, None)], None, ENFORCE, Outcome.DENIED, 0),
        ([(DENY, None)], None, PERMISSIVE, Outcome.WOULD_DENY, 0),
        ([(DENY, None)], None, OFF, None, None),
        ([(DENY, PERMISSIVE)], None, ENFORCE, Outcome.WOULD_DENY, 0),
        ([(DENY, OFF)], None, ENFORCE, None, None),
        ([(DENY, ENFORCE)], None, OFF, Outcome.DENIED, 0),
        ([(DENY, None)], PERMISSIVE, ENFORCE, Outcome.WOULD_DENY, 0),
        ([(DENY, None)], ENFORCE, OFF, Outcome.DENIED, 0),
        ([(DENY, OFF)], ENFORCE, OFF, Outcome.DENIED, 0),
        ([(DENY, ENFORCE)], OFF, OFF, Outcome.DENIED, 0),
        ([(DENY, OFF)], OFF, ENFORCE, None, None),
        ([(LOG, None)], None, ENFORCE, Outcome.LOGGED, 0),
        ([(LOG, None)], None, PERMISSIVE, Outcome.LOGGED, 0),
        ([(LOG, None), (DENY, None)], None, ENFORCE, Outcome.DENIED, 1),
        ([(LOG, ENFORCE), (KILL, PERMISSIVE)], None, OFF, Outcome.WOULD_DENY, 1),
        ([(LOG, PERMISSIVE), (KILL, OFF)], None, OFF, Outcome.LOGGED, 0),
        ([(DENY, None), (KILL, None)], None, ENFORCE, Outcome.DENIED, 1),
        ([(KILL, None), (KILL, None)], None, ENFORCE, Outcome.DENIED, 0),
        ([(DENY, OFF), (DENY, None)], None, PERMISSIVE, Outcome.WOULD_DENY, 1),
    ],
)
def test_strictest(spoken, cgroup, host, outcome, rule):
    """Mode goes before action, and action before order; what only notes comes last; a mode that is named goes before the host's."""
    ones = [Spoken(index, action, mode) for index, (action, mode) in enumerate(spoken)]
    found = strictest(ones, cgroup, host=host, spared=False, released=False)

    assert (found and found.outcome, found and found.rule) == (outcome, rule)


@pytest.mark.parametrize(
    ("action", "mode", "spared", "released", "outcome"),
    [
        (DENY, ENFORCE, True, False, Outcome.SPARED),
        (DENY, PERMISSIVE, True, False, Outcome.SPARED),
        (DENY, ENFORCE, True, True, Outcome.SPARED),
        (DENY, ENFORCE, False, True, Outcome.RELEASED),
        (DENY, PERMISSIVE, False, True, Outcome.WOULD_DENY),
        (LOG, ENFORCE, True, True, Outcome.LOGGED),
    ],
)
def test_let_through(action, mode, spared, released, outcome):
    """Who is never denied anything, and what a release lets through, is told as such."""
    found = strictest([Spoken(0, action, mode)], None, host=OFF, spared=spared, released=released)

    assert found.outcome is outcome
    assert not found.denies


SH = derived([Guard("bpf", ("bpf",), ((Literal(Names("program", ("/usr/bin/sh",))),),))])


@pytest.mark.parametrize(("hook", "rule"), [(Hook.BPF, CANARY_RULE), (Hook.FILE_OPEN, None)])
def test_canary(hook, rule):
    """The canary is denied at every hook that a guard stands at, as the host's mode says, and although ksentinel is spared."""
    policy = compiled([SH])
    operation = Operation(hook, "bpf", canary=True, cgroup=OFF)

    for host, outcome in ((ENFORCE, Outcome.DENIED), (PERMISSIVE, Outcome.WOULD_DENY), (OFF, None)):
        found = [
            Twin(policy).decide(operation, host=host, spared=True),
            decide(policy, operation, host=host, spared=True),
        ]
        told = (rule, outcome) if rule and outcome else None
        assert [one and (one.rule, one.outcome) for one in found] == [told] * 2


ENTRIES = """\
entries:
  - {id: no-memfd, deny: [exec], file: {kind: [memfd, deleted], under: /tmp}}
  - {id: passwd, deny: [read, write], file: {is: [/etc/secret]}, unless_by: /usr/bin/sh}
  - {id: web, deny: [exec], by: [/usr/sbin/nginx]}
  - {id: net, deny: [connect], network: {to: [10.0.0.0/8], port: [22, 8000-8999]}}
  - {id: sock, deny: [connect], network: {unix: [/run/docker.sock]}}
  - {id: root, deny: [setuid], to_root: true, when: anomalous}
  - {id: mod, deny: [module], file: {under: [/tmp]}}
"""
NGINX, SHELL = FILES["/usr/sbin/nginx"], FILES["/usr/bin/sh"]
TMP = (chain("/tmp/x"),)
EXEC = {"hook": Hook.BPRM_CHECK_SECURITY, "call": "execve"}


@pytest.mark.parametrize(
    ("operation", "who"),
    [
        (EXEC | {"traits": Trait.MEMFD, "files": TMP}, "no-memfd"),
        (EXEC | {"traits": Trait.DELETED, "files": TMP}, "no-memfd"),
        (EXEC | {"traits": Trait.SETUID, "files": TMP}, None),
        (EXEC | {"traits": Trait.MEMFD, "files": (chain("/etc/secret"),)}, None),
        (EXEC | {"traits": Trait.MEMFD}, None),
        ({"hook": Hook.MMAP_FILE, "traits": Trait.MEMFD | Trait.MAPPED, "files": TMP}, "no-memfd"),
        ({"hook": Hook.MMAP_FILE, "traits": Trait.MEMFD, "files": TMP}, None),
        (EXEC | {"who": NGINX}, "web"),
        (EXEC | {"who": SHELL}, None),
        ({"hook": Hook.MMAP_FILE, "traits": Trait.MAPPED, "who": NGINX}, None),
        (
            {
                "hook": Hook.FILE_OPEN,
                "traits": Trait.READ,
                "files": (chain("/etc/secret"),),
                "who": NGINX,
            },
            "passwd",
        ),
        (
            {
                "hook": Hook.FILE_OPEN,
                "traits": Trait.READ | Trait.FORCED,
                "files": (chain("/etc/secret"),),
                "who": NGINX,
            },
            None,
        ),
        ({"hook": Hook.PATH_TRUNCATE, "files": (chain("/etc/secret"),), "who": NGINX}, "passwd"),
        ({"hook": Hook.PATH_TRUNCATE, "files": (chain("/etc/secret"),), "who": SHELL}, None),
        ({"hook": Hook.PATH_TRUNCATE, "files": (chain("/etc/secret"),), "who": None}, None),
        ({"hook": Hook.PATH_TRUNCATE, "files": (chain("/etc"),), "who": NGINX}, None),
        ({"hook": Hook.SOCKET_CONNECT, "address": "10.1.1.1", "numbers": {"port": 22}}, "net"),
        ({"hook": Hook.SOCKET_CONNECT, "address": "::ffff:10.1.1.1", "numbers": {"port": 8500}}, "net"),
        ({"hook": Hook.SOCKET_CONNECT, "address": "10.1.1.1", "numbers": {"port": 23}}, None),
        ({"hook": Hook.SOCKET_CONNECT, "address": "11.1.1.1", "numbers": {"port": 22}}, None),
        ({"hook": Hook.SOCKET_BIND, "address": "10.1.1.1", "numbers": {"port": 22}}, None),
        ({"hook": Hook.UNIX_STREAM_CONNECT, "names": {"path": ("/run/docker.sock",)}}, "sock"),
        ({"hook": Hook.UNIX_STREAM_CONNECT, "names": {"path": ("/run/Docker.sock",)}}, None),
        ({"hook": Hook.UNIX_STREAM_CONNECT}, None),
        ({"hook": Hook.TASK_FIX_SETUID, "traits": Trait.TO_ROOT, "anomalous": True}, "root"),
        ({"hook": Hook.TASK_FIX_SETUID, "traits": Trait.TO_ROOT}, None),
        ({"hook": Hook.TASK_FIX_SETUID, "anomalous": True}, None),
        ({"hook": Hook.KERNEL_READ_FILE, "traits": Trait.MODULE, "files": TMP}, "mod"),
        ({"hook": Hook.KERNEL_READ_FILE, "traits": Trait.FIRMWARE, "files": TMP}, None),
        ({"hook": Hook.KERNEL_LOAD_DATA, "traits": Trait.MODULE}, None),
    ],
)
def test_entries(operation, who):
    """An entry speaks if all that it gives holds."""
    policy = compile_policy([], parse_settings(ENTRIES, "e.yml"), resolve=resolve, arch="x86_64")
    at = Operation(**operation)
    found = [decide(policy, at), Twin(policy).decide(at)]

    assert [one and policy.rules[one.rule].id for one in found] == [who, who]


@pytest.mark.parametrize(("posture", "answer"), [(Posture.OPEN, None), (Posture.CLOSED, Outcome.DENIED)])
@pytest.mark.parametrize(
    "operation",
    [
        Operation(Hook.BPRM_CHECK_SECURITY, traits=Trait.MEMFD, untold=frozenset({Word.PLACES})),
        Operation(Hook.UNIX_STREAM_CONNECT, untold=frozenset({Word.PATH})),
    ],
    ids=["place", "path"],
)
def test_posture(posture, answer, operation):
    """What can't be told for want of depth or room speaks against the operation if the policy is closed."""
    policy = compile_policy(
        [], parse_settings(f"posture: {posture}\n{ENTRIES}", "e.yml"), resolve=resolve, arch="x86_64"
    )
    found = [decide(policy, operation), Twin(policy).decide(operation)]

    assert [one and one.outcome for one in found] == [answer, answer]


def test_io_uring():
    """What io_uring does is done in no call: a guard speaks if one of its calls can be done there."""
    speaking = [Literal(Names("program", ("/usr/bin/sh",)))]
    for calls, answer in ((("openat",), True), (("open", "creat"), False)):
        policy = compiled([derived([Guard("file_open", calls, (tuple(speaking),))])])
        at = Operation(Hook.FILE_OPEN, "io_uring_enter", io_uring=True, names={"program": ("/usr/bin/sh",)})

        assert [decide(policy, at) is not None, Twin(policy).decide(at) is not None] == [answer, answer]


@pytest.mark.parametrize(
    ("calls", "call", "ring", "answer"),
    [
        (("openat",), "nanosleep", False, False),
        (("openat",), "nanosleep", True, True),
        (("openat",), "openat", True, True),
        (("creat",), "nanosleep", True, False),
        (("creat",), "creat", True, True),
    ],
)
def test_ring(calls, call, ring, answer):
    """Who has a ring may be at its work in any call: both count."""
    policy = compiled(
        [derived([Guard("file_open", calls, ((Literal(Names("program", ("/usr/bin/sh",))),),))])]
    )
    at = Operation(Hook.FILE_OPEN, call, ring=ring, names={"program": ("/usr/bin/sh",)})

    assert [decide(policy, at) is not None, Twin(policy).decide(at) is not None] == [answer, answer]
