# SPDX-License-Identifier: Apache-2.0
"""The process table: ancestry by fork, and which service a process belongs to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.event import Process, ProcessKey
from ksentinel.normalize.processes import LAUNCHERS, TERMINALS, ProcessTable, is_launcher, is_terminal

SYSTEMD = Process(ProcessKey(1, 0), exe="/usr/lib/systemd/systemd")


def chain(*exes, sessions=None):
    """Return a table and the processes of *exes*, each the child of the one before, below init."""
    table = ProcessTable()
    process = table.add(SYSTEMD)
    found = []
    for n, exe in enumerate(exes):
        key = ProcessKey(100 + n, n)
        table.fork(process.key, key)
        process = table.exec(key, exe=exe, session=(sessions or {}).get(n))
        found.append(process)
    return table, found


@pytest.mark.parametrize(
    ("exes", "services"),
    [
        (["/usr/sbin/nginx"], [0]),
        (["/usr/sbin/nginx", "/bin/sh", "/usr/bin/id"], [0, 0, 0]),
        (["/usr/sbin/sshd", "/bin/bash", "/usr/bin/vim"], [0, 1, 1]),
        (["/usr/sbin/cron", "/bin/sh", "/usr/bin/backup"], [0, 1, 1]),
        (["/usr/bin/containerd-shim-runc-v2", "/app/server", "/bin/sh"], [0, 1, 1]),
        (["/tmp/sshd", "/bin/sh"], [0, 0]),
        (["/usr/sbin/nginx", "/usr/bin/sudo", "/bin/bash"], [0, 0, 0]),
    ],
)
def test_service(exes, services):
    """A launcher's child starts a service, by name and place; everything else belongs to the topmost ancestor."""
    _, found = chain(*exes)

    assert [exes[n] for n in services] == [process.service_exe for process in found]


def test_setsid_leaves_a_terminal():
    """A daemon started by hand is a service of its own."""
    _, found = chain("/bin/bash", "/srv/daemon", sessions={1: 101})

    assert found[1].service_exe == "/srv/daemon"


def test_setsid_leaves_no_daemon():
    """A web shell that calls setsid still belongs to the web server."""
    _, found = chain("/usr/sbin/nginx", "/bin/sh", sessions={1: 101})

    assert found[1].service_exe == "/usr/sbin/nginx"


def test_double_fork():
    """When the process between has gone, ancestry stays as it was at fork."""
    table, (nginx, shell) = chain("/usr/sbin/nginx", "/bin/sh")
    child = table.fork(shell.key, ProcessKey(200, 9))
    table.exit(shell.key)
    late = table.exec(child.key, exe="/usr/bin/nc")

    assert [a.exe for a in late.ancestors()] == ["/bin/sh", "/usr/sbin/nginx", "/usr/lib/systemd/systemd"]
    assert late.service_key == nginx.key


def test_fork_and_exec():
    """A child is its parent's program until it becomes another; what exec doesn't say stays."""
    table = ProcessTable()
    table.add(Process(ProcessKey(10, 1), exe="/bin/a", argv=("a",), uid=5, cwd="/srv", session=10))
    child = table.fork(ProcessKey(10, 1), ProcessKey(11, 2))
    after = table.exec(child.key, exe="/usr/bin/a-very-long-program-name", euid=0)

    assert (child.exe, child.argv, child.uid, child.parent.key) == ("/bin/a", ("a",), 5, ProcessKey(10, 1))
    assert (after.was, after.argv, after.uid, after.euid, after.cwd, after.session) == (
        "/bin/a",
        (),
        5,
        0,
        "/srv",
        10,
    )
    assert after.comm == "a-very-long-pro"
    assert table.get(11) == after


def test_before():
    """What a process was goes from exec to exec, and to its children, the newest first, no further back than two."""
    table, found = chain("/bin/a", "/bin/b", "/bin/c")
    child = table.fork(found[2].key, ProcessKey(200, 9))
    script = table.exec(child.key, exe="/bin/sh", script="/srv/run")
    after = table.exec(child.key, exe="/bin/d")

    assert [process.before for process in (*found, child, script, after)] == [
        ("/usr/lib/systemd/systemd",),
        ("/bin/a", "/usr/lib/systemd/systemd"),
        ("/bin/b", "/bin/a"),
        ("/bin/b", "/bin/a"),
        ("/bin/c", "/bin/b"),
        ("#!/srv/run", "/bin/c"),
    ]


def test_before_what_is_unknown():
    """A program that isn't known is a step only between known ones."""
    table, key = ProcessTable(), ProcessKey(10, 1)
    exes = ("", "", "/bin/a", "", "/bin/b", "/bin/c")

    assert [table.exec(key, exe=exe).before for exe in exes] == [
        (),
        (),
        (),
        ("/bin/a",),
        ("", "/bin/a"),
        ("/bin/b", ""),
    ]


def test_script():
    """A script is a program, and not its interpreter; the next exec ends it."""
    table, key = ProcessTable(), ProcessKey(10, 1)
    shell = table.exec(key, exe="/bin/sh")
    script = table.exec(key, exe="/bin/sh", script="/srv/run")
    cat = table.exec(key, exe="/bin/cat")

    assert [process.program for process in (shell, script, cat)] == ["/bin/sh", "#!/srv/run", "/bin/cat"]


def test_service_of_a_script():
    """A script in a shell is no shell: setsid doesn't leave it."""
    table = ProcessTable()
    table.add(SYSTEMD)
    table.fork(SYSTEMD.key, ProcessKey(100, 1))
    server = table.exec(ProcessKey(100, 1), exe="/usr/bin/bash", script="/srv/server")
    table.fork(server.key, ProcessKey(101, 2))
    child = table.exec(ProcessKey(101, 2), exe="/bin/cat", session=101)

    assert (child.service_program, child.service_key) == ("#!/srv/server", server.key)


@pytest.mark.parametrize(
    ("exe", "script", "launcher", "terminal"),
    [
        ("/usr/sbin/sshd", "", True, False),
        ("/bin/bash", "", False, True),
        ("/tmp/sshd", "", False, False),
        ("/tmp/bash", "", False, False),
        ("/usr/bin/bash", "/usr/bin/ldd", False, False),
        ("/usr/bin/tini", "/usr/bin/x", False, False),
        ("", "", False, False),
    ],
)
def test_kinds(exe, script, launcher, terminal):
    """Launchers and terminals are told by their names, where a package manager puts programs."""
    process = Process(ProcessKey(1, 1), exe=exe, script=script)

    assert (is_launcher(process), is_terminal(process)) == (launcher, terminal)


def test_cgroup():
    """A child has its parent's until its own is told; so has a program."""
    table, key = ProcessTable(), ProcessKey(10, 1)
    table.exec(key, exe="/bin/a", cgroup=7)
    inherited = table.fork(key, ProcessKey(11, 2))
    told = table.fork(key, ProcessKey(12, 2), cgroup=8)

    assert [process.cgroup for process in (inherited, told)] == [7, 8]
    assert [table.exec(told.key, exe="/bin/b").cgroup, table.exec(key, exe="/bin/b", cgroup=9).cgroup] == [
        8,
        9,
    ]


def test_all_of_them():
    """The table gives all there are, and may be changed meanwhile."""
    table = ProcessTable()
    for pid in (10, 11, 12):
        table.find(ProcessKey(pid, 1))
    for process in table:
        table.exit(process.key)

    assert len(table) == 0


def test_reused_pid():
    """The same PID with another start is another process, and replaces it."""
    table = ProcessTable()
    table.add(Process(ProcessKey(10, 1), exe="/bin/a"))
    other = table.find(ProcessKey(10, 2))

    assert (other.exe, table.get(10), len(table)) == ("", other, 1)


def test_exit_of_an_old_key():
    """An exit that is told late, of a process whose PID has been taken over, leaves the new one alone."""
    table = ProcessTable()
    table.add(Process(ProcessKey(10, 2), exe="/bin/new"))
    gone = table.exit(ProcessKey(10, 1))

    assert (gone.key, gone.exe) == (ProcessKey(10, 1), "")
    assert table.get(10).exe == "/bin/new"


def test_late_word_of_an_old_key():
    """Nor does a fork or an exec told late replace the process that has the PID now."""
    table = ProcessTable()
    table.add(Process(ProcessKey(10, 2), exe="/bin/new"))
    table.fork(ProcessKey(10, 1), ProcessKey(11, 3))

    assert table.get(10).exe == "/bin/new"


def test_limit():
    """Beyond its limit the table forgets the one heard of least recently, and counts it."""
    table = ProcessTable(limit=2)
    for pid in (10, 11):
        table.add(Process(ProcessKey(pid, 0), exe="/bin/x"))
    table.update(Process(ProcessKey(10, 0), exe="/bin/y"))
    table.add(Process(ProcessKey(12, 0)))

    assert (table.get(10).exe, table.get(11), table.forgotten, len(table)) == ("/bin/y", None, 1, 2)


def test_long_chain():
    """A chain of forks, each parent gone, stays bounded, and belongs to its service still."""
    table, (nginx,) = chain("/usr/sbin/nginx")
    process = nginx
    for n in range(500):
        child = table.fork(process.key, ProcessKey(1000 + n, n))
        table.exit(process.key)
        process = child

    assert len(list(process.ancestors())) < 64
    assert (process.service_exe, process.service_key) == ("/usr/sbin/nginx", nginx.key)
    assert list(process.lineage())[-1].key == nginx.key


@pytest.mark.parametrize("programs", [LAUNCHERS, TERMINALS])
def test_names(programs):
    """Programs are told by their file's name; no launcher is a terminal."""
    assert all(name and "/" not in name for name in programs)
    assert not LAUNCHERS & TERMINALS


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "exec", "exit", "find"]),
        st.integers(1, 6),
        st.integers(0, 2),
        st.integers(2, 6),
    ),
    max_size=40,
)


@given(STEPS)
def test_any_order(steps):
    """Events in any order, with PIDs used again, never crash; each process has an end of ancestry and a service."""
    table = ProcessTable(limit=4)
    for serial, (what, pid, start, child) in enumerate(steps):
        key = ProcessKey(pid, start)
        match what:
            case "fork":
                process = table.fork(key, ProcessKey(child, 10 + serial))
            case "exec":
                process = table.exec(key, exe=f"/usr/bin/{('sshd', 'sh', 'x')[start]}", session=pid)
            case "exit":
                process = table.exit(key)
            case _:
                process = table.find(key)
        assert len(table) <= 4
        assert len(list(process.ancestors())) < 64
        assert list(process.lineage())[-1].key == process.service_key
