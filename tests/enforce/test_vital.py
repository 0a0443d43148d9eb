# SPDX-License-Identifier: Apache-2.0
"""What no policy may deny is refused before anything is enforced."""

from pathlib import Path
from zlib import crc32

import pytest
from enforce.made_up_policies import derived

from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import parse_settings
from ksentinel.enforce.vital import INIT, Own
from ksentinel.errors import HostError, RuleError
from ksentinel.rules.derivation import derive
from ksentinel.rules.guard import WRITING, Guard, Literal, Names, Numbers
from ksentinel.rules.ruleset import RuleSet

RULES = Path(__file__).parents[2] / "rules"
OWN = Own("/opt/python", "/var/lib/ksentinel/alerts.db", "/run/ksentinel/control.sock")


def tree(path):
    """Return a place for every path: a host on which everything is there."""
    path = INIT[0] if path in INIT else path
    return Place(1, 1 + crc32(path.encode()))


def compiled(text="{}", rules=(), find=tree):
    """Return a policy of this host."""
    return compile_policy(list(rules), parse_settings(text, "e.yml"), resolve=find, arch="x86_64", own=OWN)


def entry(text):
    """Return a file with one entry."""
    return f"entries: [{{id: x, {text}}}]"


LIFE = "would deny what this host lives on"
ALL = "would deny everything"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deny: exec", ALL),
        ("deny: exec, when: anomalous", ALL),
        ("deny: exec, unless_by: /usr/bin/nc", ALL),
        ("deny: exec, mode: off", ALL),
        ("deny: [kexec, exec]", ALL),
        ("deny: exec, action: kill", ALL),
        ("deny: exec, file: {under: /}", ALL),
        ("deny: exec, file: {under: /usr}, when: anomalous", ALL),
        (f"deny: read, unless_by: [{INIT[0]}, /opt/python]", f"{ALL} at file_open"),
        (f"deny: write, unless_by: [{INIT[0]}, /opt/python]", f"{ALL} at file_open"),
        ("deny: write, when: anomalous", ALL),
        ("deny: connect", ALL),
        ("deny: connect, network: {family: unix}", ALL),
        ("deny: connect, network: {to: ['0.0.0.0/0', '::/0']}", ALL),
        ("deny: create", ALL),
        ("deny: unlink", ALL),
        ("deny: rename", ALL),
        ("deny: attributes", ALL),
        ("deny: setuid", ALL),
        ("deny: prctl", ALL),
        ("deny: capset", ALL),
        ("deny: kill", ALL),
        ("deny: bind", ALL),
        (f"deny: exec, by: {INIT[0]}", f"{LIFE}: PID 1 ({INIT[0]}) executes /bin/sh"),
        (f"deny: exec, by: {INIT[0]}, when: anomalous", LIFE),
        ("deny: read, file: {is: /etc/passwd}", LIFE),
        ("deny: read, file: {under: /usr/lib}", LIFE),
        ("deny: write, file: {is: /dev/null}", LIFE),
        ("deny: write, file: {under: /var/lib}", f"{LIFE}: ksentinel opens /var/lib/ksentinel/alerts.db"),
        ("deny: bind, network: {family: unix}", f"{LIFE}: ksentinel opens its control socket"),
        ("deny: listen", f"{LIFE}: ksentinel listens"),
        ("deny: bpf", f"{LIFE}: ksentinel changes its guards"),
        ("deny: mount", f"{LIFE}: PID 1 ({INIT[0]}) mounts"),
        (f"deny: kill, by: {INIT[0]}", f"{LIFE}: PID 1 ({INIT[0]}) ends a service"),
        ("deny: exec, file: {is: /opt/python}", f"{LIFE}: ksentinel executes /opt/python"),
        ("deny: create, file: {is: /run/systemd/units}", LIFE),
    ],
)
def test_refused(text, says):
    """An entry that would take the host down, whatever its mode is."""
    with pytest.raises(RuleError) as caught:
        compiled(entry(text))

    assert f"e.yml:1:11: x {says}" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "deny: exec, action: log",
        "deny: [read, write, connect, bpf], action: log",
        "deny: exec, by: /usr/sbin/nginx",
        "deny: exec, by: /usr/sbin/nginx, when: anomalous",
        "deny: exec, file: {kind: memfd}",
        "deny: exec, file: {kind: [deleted, writable-by-others], under: /}",
        "deny: exec, file: {is: /usr/bin/nc}",
        "deny: read, file: {is: /etc/shadow}",
        "deny: write, file: {under: /etc}",
        "deny: connect, when: anomalous",
        "deny: bind, when: anomalous",
        "deny: connect, network: {to: 10.0.0.0/8}",
        "deny: connect, by: /usr/sbin/nginx",
        "deny: kexec",
        "deny: [module, firmware]",
        "deny: userns",
        "deny: ptrace",
        "deny: link",
        "deny: umount",
        "deny: setuid, to_root: true",
        "deny: bpf, unless_by: /opt/python",
        f"deny: mount, unless_by: {INIT[0]}",
        "deny: create, file: {under: /etc}",
    ],
)
def test_allowed(text):
    """An entry that means something."""
    assert compiled(entry(text)).rules[0].id == "x"


def way(*tests):
    """Return a way of plain tests."""
    return tuple(Literal(test) for test in tests)


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        (Guard("bprm_creds_from_file", ("execve",), ((),)), ALL),
        (Guard("bprm_creds_from_file", ("execve",), (way(Names("image", prefixes=("/",))),)), ALL),
        (Guard("bprm_creds_from_file", ("execve",), (way(Names("program", exact=(INIT[0],))),)), LIFE),
        (Guard("file_open", ("openat",), (way(WRITING),)), ALL),
        (Guard("file_open", ("openat",), (way(Names("target", prefixes=("/var/lib/",)), WRITING),)), LIFE),
        (Guard("bpf", ("bpf",), (way(Numbers("cmd", ((5, 5),))),)), LIFE),
        (Guard("bprm_creds_from_file", ("execve",), (way(Names("image", suffixes=("/nc",))),)), None),
        (Guard("kernel_load_data", ("kexec_load",), ((),)), None),
    ],
)
def test_rules(guard, says):
    """A rule is tried like an entry."""
    if says is None:
        assert compiled(rules=[derived([guard])]).rules[0].id == "r"
        return
    with pytest.raises(RuleError) as caught:
        compiled(rules=[derived([guard])])

    assert f"rules/r.yml: Rule r (r) {says}" in str(caught.value)


def test_shipped():
    """The rules that ship are no danger."""
    ruleset = RuleSet.load([RULES], trusted_uids=None)
    policy = compiled(rules=[derive(one) for one in ruleset.compiled])

    assert len(policy.rules) >= 5


def test_what_is_not_there():
    """Where nothing is there, or nothing may be looked at, it is still refused."""

    def unseen(path):
        raise HostError("can't be looked at", at=path)

    for find in ({}.get, unseen):
        with pytest.raises(RuleError, match=ALL):
            compiled(entry("deny: exec"), find=find)
    with pytest.raises(HostError, match="can't be looked at"):
        compiled(entry("deny: exec, by: /usr/bin/x"), find=unseen)


def test_one_init():
    """PID 1 under several names is one: an entry leaves it out by any of them."""
    assert compiled(entry("deny: mount, unless_by: /sbin/init")).rules[0].id == "x"
