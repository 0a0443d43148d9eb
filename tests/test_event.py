# SPDX-License-Identifier: Apache-2.0
"""The currency: lineage, services, addresses."""

from dataclasses import FrozenInstanceError

import pytest
from made_up import CAT, CROND, HTTPD, INIT, SHELL, denial

from ksentinel.event import Address, ExecEvent, Origin, Outcome, Process, ProcessKey, Record, SyscallEvent


def test_lineage():
    """From the process up to its service, that included, and no further."""
    assert list(CAT.lineage()) == [CAT, SHELL, HTTPD]
    assert list(HTTPD.lineage()) == [HTTPD]
    assert list(CAT.ancestors()) == [SHELL, HTTPD, INIT]


def test_service():
    """A process that has no other is its own service."""
    assert ("/usr/sbin/httpd", HTTPD.key) == (CAT.service_exe, CAT.service_key)
    assert ("/usr/sbin/cron", CROND.key) == (CROND.service_exe, CROND.service_key)


def test_program():
    """A script is a program of its own, whatever runs it; its service has one, too."""
    script = Process(ProcessKey(5, 5), exe="/bin/sh", script="/srv/run")
    tool = Process(ProcessKey(6, 6), exe="/bin/cat", parent=script, service=script)

    assert (script.program, script.service_program, script.service_exe) == (
        "#!/srv/run",
        "#!/srv/run",
        "/bin/sh",
    )
    assert (tool.program, tool.service_program, tool.service_exe) == ("/bin/cat", "#!/srv/run", "/bin/sh")


def test_nothing_known():
    """Of a process nothing is known of, nothing is said."""
    stranger = Process(ProcessKey(5, 5))

    assert (stranger.program, stranger.before, stranger.cgroup) == ("", (), None)


def test_service_out_of_sight():
    """Where the line breaks off before the service, the lineage is what is known."""
    lost = Process(ProcessKey(5, 5), exe="/bin/sh", service=HTTPD)

    assert [lost] == list(lost.lineage())
    assert lost.service_exe == "/usr/sbin/httpd"


def test_key():
    """A PID that came back is another process."""
    assert ProcessKey(7, 1) < ProcessKey(7, 2) != ProcessKey(7, 1)
    assert str(ProcessKey(7, 2)) == "7@2"


def test_command_line():
    """Arguments, joined."""
    assert Process(ProcessKey(1, 1), argv=("sh", "-c", "id")).command_line == "sh -c id"


def test_frozen():
    """Nothing changes under a reader."""
    event = SyscallEvent(time_ns=1, process=CAT, tid=12, origin=Origin.BPF, syscall="open")
    with pytest.raises(FrozenInstanceError):
        event.syscall = "close"


def test_record():
    """The first field of a name, or None."""
    record = Record("PATH", (("name", "/a"), ("name", "/b")))

    assert (record.get("name"), record.get("mode")) == ("/a", None)


@pytest.mark.parametrize(
    ("address", "text", "reach"),
    [
        (Address("unix", path="/run/x"), "/run/x", "local"),
        (Address("netlink"), "netlink", "local"),
        (Address("inet", "127.0.0.1", 80), "127.0.0.1:80", "loopback"),
        (Address("inet", "10.1.2.3"), "10.1.2.3", "private"),
        (Address("inet", "169.254.1.1", 0), "169.254.1.1:0", "private"),
        (Address("inet", "8.8.8.8", 53), "8.8.8.8:53", "public"),
        (Address("inet6", "::1", 80), "[::1]:80", "loopback"),
        (Address("inet6", "fe80::1", 80), "[fe80::1]:80", "private"),
        (Address("inet6", "2606:4700::1111", 443), "[2606:4700::1111]:443", "public"),
        (Address("inet6", "::ffff:8.8.8.8", 53), "[::ffff:8.8.8.8]:53", "public"),
        (Address("inet6", "::ffff:127.0.0.1", 53), "[::ffff:127.0.0.1]:53", "loopback"),
        (Address("inet6", "::ffff:10.0.0.1", 53), "[::ffff:10.0.0.1]:53", "private"),
    ],
)
def test_address(address, text, reach):
    """How it is written, and how far it reaches: IPv4 in IPv6's clothes is IPv4."""
    assert (text, reach) == (str(address), address.reach)


def test_what_was_tried():
    """A denial is, of a call, the event of that call."""
    event = denial(
        numbers=(("flags", 1), ("mode", 0o600), ("signal", 9), ("euid", 0), ("port", 22), ("another", 1))
    )
    tried = event.operation

    assert isinstance(tried, SyscallEvent)
    assert (tried.syscall, tried.paths, tried.flags, tried.mode) == ("openat", ("/etc/shadow",), 1, 0o600)
    assert (tried.values, tried.process, tried.time_ns) == ((("signal", 9),), SHELL, event.time_ns)


@pytest.mark.parametrize("hook", ["bprm_check_security", "bprm_creds_from_file"])
def test_what_was_not_executed(hook):
    """Of an execution that was refused, the process is what it would have become."""
    tried = denial(hook=hook, call="execve", paths=("/srv/x",)).operation

    assert isinstance(tried, ExecEvent)
    assert (tried.process.exe, tried.process.was, tried.process.argv, tried.path) == (
        "/srv/x",
        "/bin/sh",
        (),
        "/srv/x",
    )
    assert (tried.process.key, tried.process.parent, tried.process.service) == (SHELL.key, HTTPD, HTTPD)


def test_outcomes():
    """What was denied weighs most."""
    assert sorted(Outcome, key=lambda outcome: -outcome.rank) == list(Outcome)
    assert all(outcome.rank > 0 for outcome in Outcome)
