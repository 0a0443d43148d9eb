# SPDX-License-Identifier: Apache-2.0
"""Rules that the kernel decides, by names, flags, ports and scores; and modes, of the host, of rules, of control groups."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from vm.guest.calls import in_child, mount, syscall, umount
from vm.guest.workload import ended, make_anomalous

from ksentinel.enforce import Mode
from ksentinel.rules.derivation import derive
from ksentinel.rules.fields import sources
from ksentinel.rules.sigma import compile_rule
from ksentinel.shipped import shipped

TAKES = 40
TOGETHER = "most guards"

ABSURD = 0x7FFFFFFF
CGROUPS = Path("/sys/fs/cgroup")
RULE = """
title: A rule for a test
id: 11111111-2222-3333-4444-555555555555
description: For a test.
logsource: {category: %s, product: linux}
detection:
  selection: {%s}
  filter: {%s}
  condition: selection and not filter
level: high
ksentinel: {action: deny, inline: true}
"""


def rule(category, selection, unless="Image: /nowhere"):
    """Return a rule, and what the kernel can decide of it."""
    return derive(compile_rule(RULE % (category, selection, unless), "test.yml", sources()))


def ships(name):
    """Return a rule that ships."""
    path = shipped(f"rules/{name}.yml")
    return derive(compile_rule(path.read_text(), str(path), sources()))


def write(path):
    with path.open("a") as file:
        file.write("x")


def kexec():
    syscall("kexec_load", 0, ABSURD, None, ABSURD)


# --- rules that ship ----------------------------------------------------------------------------------------------


def test_program(guards):
    """Another kernel is loaded by a program that isn't made for it."""
    kexec_rule = ships("defense_evasion/kexec_load")
    guards.use(rules=[kexec_rule])
    error = ended(kexec)
    (said,) = guards.mine()

    assert error == 1
    assert (said.hook, said.call, said.rule) == ("kernel_load_data", "kexec_load", kexec_rule.rule.id)


def test_file_name(guards, tmp_path):
    """A release agent is written; reading it, and writing beside it, goes on."""
    guards.use(rules=[ships("privilege_escalation/cgroup_release_agent")])
    agent = tmp_path / "release_agent"
    found = [
        ended(lambda: write(agent)),
        ended(lambda: write(tmp_path / "release_agents")),
        ended(lambda: agent.open().close()),
    ]
    guards.guards.mode = Mode.OFF

    assert found == [1, 0, 2]
    assert [one.hook for one in guards.mine()] == ["path_mknod"]


@pytest.mark.parametrize("name", ["persistence/ld_so_preload", "credential_access/kernel_memory_read"])
def test_two_keys(guards, tmp_path, name):
    """What is refused only to a process whose score is over its threshold."""
    guards.use(rules=[ships(name)])
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/ld.so.preload" if "preload" in name else Path("/dev/mem")
    flags = os.O_CREAT | os.O_WRONLY if "preload" in name else os.O_RDONLY
    found = []
    try:
        for over in (False, True):
            make_anomalous(guards, over=over)
            found.append(ended(lambda: os.close(os.open(path, flags))))
    finally:
        make_anomalous(guards, over=False)
    (said,) = guards.mine()

    assert found == [0, 1]
    assert (said.hook, said.anomalous) == ("file_open", True)


def test_service(guards):
    """A web server's child makes a user namespace; under another service it may."""
    guards.use(rules=[ships("privilege_escalation/service_user_namespace")])
    mount("none", "/usr/local/sbin", "tmpfs")  # a launcher counts where programs are installed
    try:
        for name in ("cron", "nginx", "other"):
            shutil.copy(os.path.realpath("/bin/sh"), f"/usr/local/sbin/{name}")
        found = {}
        for name in ("nginx", "other"):
            inner = f"/usr/local/sbin/{name} -c 'unshare -U true && echo made || echo refused; :'; :"
            done = subprocess.run(
                ["/usr/local/sbin/cron", "-c", inner], capture_output=True, text=True, check=True
            )
            found[name] = done.stdout.strip()
    finally:
        umount("/usr/local/sbin", 2)
    (said,) = guards.mine()

    assert found == {"nginx": "refused", "other": "made"}
    assert (said.hook, said.process.service_exe) == ("userns_create", "/usr/local/sbin/nginx")


# --- names --------------------------------------------------------------------------------------------------------

WRITES = "{ echo x >>%(file)s; } 2>/dev/null && echo wrote || echo refused"
LOOP = "while read -r what; do case $what in self) %s;; child) sh -c '%s';; esac; done"


class Boss:
    """A program, and below it a shell that writes a file when it is told to, or has a child write it."""

    def __init__(self, program, script, file):
        writes = WRITES % {"file": file}
        script.write_text(LOOP % (writes, f"{writes}; :"))
        self.process = subprocess.Popen(
            [program, "-c", f"sh {script}; :"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def ask(self, who="self"):
        """Have the shell write, or a child of it; returns what came of it."""
        self.process.stdin.write(f"{who}\n")
        return self.process.stdout.readline().strip()

    def close(self):
        """End both."""
        with self.process:
            self.process.stdin.close()


@pytest.fixture
def boss(tmp_path):
    """What makes one: it, and its shell, are up when it returns."""
    made = []
    program = shutil.copy(os.path.realpath("/bin/sh"), tmp_path / "boss")
    (tmp_path / "secret").mkdir()

    def make():
        made.append(Boss(program, tmp_path / "script", tmp_path / "secret" / "file"))
        assert made[-1].ask() == "wrote"
        return made[-1]

    yield make
    for one in made:
        one.close()


FILE = "TargetFilename|endswith: /secret/file"


@pytest.mark.parametrize(
    ("selection", "unless", "shell", "child"),
    [
        (", Image|endswith: [/sh, /dash]", "Image: /nowhere", "refused", "refused"),
        (", ParentImage|endswith: /boss", "Image: /nowhere", "refused", "wrote"),
        # User space forgets the middle of long lines: only that an ancestor isn't there can be asked for.
        ("", "Ancestors|endswith: /boss", "wrote", "wrote"),
        ("", "Ancestors|endswith: /nobody", "refused", "refused"),
    ],
    ids=["program", "parent", "ancestors", "nobody"],
)
def test_names(guards, boss, selection, unless, shell, child):
    """Who it is, whose child and whose descendant: of processes that ran before the policy came, and of later ones."""
    guards.guards.mode = Mode.OFF
    before = boss()
    guards.use(rules=[rule("file_event", FILE + selection, unless)])
    after = boss()
    guards.guards.mode = Mode.ENFORCE
    found = {
        name: (one.ask("self"), one.ask("child")) for name, one in (("before", before), ("after", after))
    }
    guards.guards.mode = Mode.OFF
    said = guards.denials()

    assert found == {"before": (shell, child), "after": (shell, child)}
    assert len(said) == 2 * [shell, child].count("refused")


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "error"), [(os.O_APPEND, 1), (0, 0)])
def test_flags(guards, tmp_path, flags, error):
    """Opened to be written at its end, or else."""
    file = tmp_path / "secret" / "file"
    guards.guards.mode = Mode.OFF  # the policy of the test before is about such a file, too
    file.parent.mkdir()
    file.touch()
    guards.use(rules=[rule("syscall", "syscall: openat, path|endswith: /secret/file, flags: O_APPEND")])
    guards.guards.mode = Mode.ENFORCE
    found = ended(lambda: os.close(os.open(file, os.O_WRONLY | flags)))
    guards.guards.mode = Mode.OFF

    assert found == error
    assert len(guards.mine()) == error


def test_port(guards):
    """One port, and no other."""
    guards.use(rules=[rule("network_connection", "DestinationPort: 7777, DestinationIp|cidr: 127.0.0.0/8")])
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for port in (7777, 7778):
            found[port] = ended(lambda port=port: one.connect(("127.0.0.1", port)))
            found[-port] = ended(lambda port=port: one.sendto(b"", ("127.0.0.1", port)))
    said = [(one.hook, str(one.address)) for one in guards.mine()]

    assert found == {7777: 1, -7777: 1, 7778: 0, -7778: 0}
    assert said == [("socket_connect", "127.0.0.1:7777"), ("socket_sendmsg", "127.0.0.1:7777")]


@pytest.mark.parametrize(("group", "error"), [(0, 1), (1000, 0)])
def test_group(guards, group, error):
    """A change to root's group, and to another."""
    guards.use(rules=[rule("syscall", "syscall: setresgid, gid: 0")])

    def change():
        os.setresgid(-1, 1, -1)  # who is there already changes nothing
        os.setresgid(group, group, group)

    found = ended(lambda: in_child(change))

    assert found == error
    assert [one.hook for one in guards.mine()] == ["task_fix_setgid"] * error


# --- modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "of_rule", "expected"),
    [
        (Mode.PERMISSIVE, "enforce", "denied"),
        (Mode.OFF, "enforce", "denied"),
        (Mode.ENFORCE, "permissive", "would_deny"),
        (Mode.ENFORCE, "off", None),
        (Mode.PERMISSIVE, None, "would_deny"),
    ],
)
def test_mode_of_a_rule(guards, host, of_rule, expected):
    """A rule's own mode counts, and not the host's."""
    settings = {} if of_rule is None else {"modes": f"{{kexec_load: {of_rule}}}"}
    guards.use(rules=[ships("defense_evasion/kexec_load")], **settings)
    guards.guards.mode = host
    error = ended(kexec)
    guards.guards.mode = Mode.OFF

    assert (error == 1) is (expected == "denied")
    assert [str(one.outcome) for one in guards.mine()] == ([] if expected is None else [expected])


@pytest.fixture
def group():
    """A control group, and one in it."""
    paths = [CGROUPS / "ksentinel-test", CGROUPS / "ksentinel-test" / "below"]
    for path in paths:
        path.mkdir()
    yield paths
    for path in reversed(paths):
        for pid in (path / "cgroup.procs").read_text().split():
            (CGROUPS / "cgroup.procs").write_text(pid)
        path.rmdir()


OFF, PERMISSIVE, ENFORCE = Mode.OFF, Mode.PERMISSIVE, Mode.ENFORCE


@pytest.mark.parametrize(
    ("host", "of_entry", "of_group", "of_below", "expected"),
    [
        # Outside, in the group, in the one below it.
        (PERMISSIVE, None, ENFORCE, None, ("would_deny", "denied", "denied")),
        (ENFORCE, None, PERMISSIVE, None, ("denied", "would_deny", "would_deny")),
        (PERMISSIVE, None, ENFORCE, OFF, ("would_deny", "denied", "denied")),
        (OFF, None, OFF, ENFORCE, (None, None, "denied")),
        (ENFORCE, OFF, PERMISSIVE, None, (None, "would_deny", "would_deny")),
        (ENFORCE, PERMISSIVE, None, ENFORCE, ("would_deny", "would_deny", "denied")),
    ],
)
def test_mode_of_a_group(guards, boss, group, tmp_path, host, of_entry, of_group, of_below, expected):
    """The strictest mode that is named counts, of the entry, of the group and of those above it; none named, the host's."""
    guards.guards.mode = Mode.OFF
    one = boss()
    mode = f", mode: {of_entry}" if of_entry else ""
    guards.use(f"entries: [{{id: secret, deny: [write], file: {{under: [{tmp_path / 'secret'}]}}{mode}}}]")
    modes = {
        path.stat().st_ino: named for path, named in zip(group, (of_group, of_below), strict=True) if named
    }
    guards.guards.cgroup_modes(modes)
    children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
    found = []
    for place in (CGROUPS, *group):
        for pid in (str(one.process.pid), *children):
            (place / "cgroup.procs").write_text(pid)
        guards.guards.mode = host
        wrote = one.ask()
        guards.guards.mode = Mode.OFF
        found.append((wrote, [str(event.outcome) for event in guards.denials()]))

    assert found == [
        ("refused" if outcome == "denied" else "wrote", [] if outcome is None else [outcome])
        for outcome in expected
    ]
