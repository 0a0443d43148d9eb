# SPDX-License-Identifier: Apache-2.0
"""Events as plain dicts: there and back, and what people and strangers write."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import HTTPD, SHELL, child, events, family, processes

from ksentinel.codec import KINDS, event_from_plain, event_to_plain, process_from_plain, process_to_plain
from ksentinel.errors import InputError
from ksentinel.event import Address, ExecEvent, Origin, Process, ProcessKey, SyscallEvent


@given(processes())
def test_process(process):
    """A process comes back through JSON with its ancestors and its service, also one that is none of them."""
    plain = json.loads(json.dumps(process_to_plain(process)))

    assert family(process) == family(process_from_plain(plain))


@given(events)
def test_event(event):
    """So does an event, whatever is in it."""
    back = event_from_plain(json.loads(json.dumps(event_to_plain(event))))

    assert event == back
    assert family(event.process) == family(back.process)


def test_script():
    """A script, what a process was before and its cgroup are written; a service that is a script stays one, in sight or not."""
    service = Process(ProcessKey(10, 10), exe="/bin/sh", script="/srv/run")
    process = replace(
        child(service, 11, "/bin/cat"),
        script="/srv/\udcff",
        before=("#!/srv/run", "/bin/bash"),
        cgroup=1 << 63,
    )
    plain = json.loads(json.dumps(process_to_plain(process)))
    alone = process_to_plain(process, ancestors=0)

    assert (plain["script"], plain["before"], plain["cgroup"]) == (
        "/srv/\udcff",
        ["#!/srv/run", "/bin/bash"],
        1 << 63,
    )
    assert plain["service"] == {"pid": 10, "start_ns": 10}
    assert alone["service"] == {"pid": 10, "start_ns": 10, "exe": "/bin/sh", "script": "/srv/run"}
    for back in (process_from_plain(plain), process_from_plain(alone)):
        assert back == process
        assert back.service_program == "#!/srv/run"


def test_cut_ancestors():
    """What is left of a long line still says which service it was."""
    process = HTTPD
    for pid in range(100, 110):
        process = child(process, pid, "/bin/sh")
    back = process_from_plain(process_to_plain(process, ancestors=3))

    assert ("/usr/sbin/httpd", HTTPD.key) == (back.service_exe, back.service_key)
    assert len(list(back.ancestors())) == 3


def test_deepest():
    """As many ancestors as are written can be read."""
    process = HTTPD
    for pid in range(100, 300):
        process = child(process, pid, "/bin/sh")
    back = process_from_plain(process_to_plain(process))

    assert len(list(back.ancestors())) == 64
    assert back.service_exe == "/usr/sbin/httpd"


def test_by_hand():
    """What a person leaves out has a default; the service is found by its executable."""
    event = event_from_plain(
        {
            "event": "exec",
            "process": {
                "exe": "/bin/sh",
                "argv": ["sh"],
                "parent": {"exe": "/usr/sbin/nginx"},
                "service": {"exe": "/usr/sbin/nginx"},
            },
        }
    )

    assert isinstance(event, ExecEvent)
    assert (event.time_ns, event.tid, event.origin) == (0, 1000, Origin.BPF)
    assert (event.process.exe, event.process.service_exe) == ("/bin/sh", "/usr/sbin/nginx")
    assert event.process.service is event.process.parent


def test_defaults_left_out():
    """Only what differs is written."""
    event = SyscallEvent(
        time_ns=5, process=SHELL, tid=11, origin=Origin.AUDIT, syscall="connect",
        address=Address("inet", "10.0.0.1", 80),
    )  # fmt: skip
    plain = event_to_plain(event, process=lambda _: "somebody")

    assert plain == {
        "event": "syscall",
        "time_ns": 5,
        "tid": 11,
        "origin": "audit",
        "process": "somebody",
        "syscall": "connect",
        "address": {"family": "inet", "host": "10.0.0.1", "port": 80},
    }


PROCESS = {"exe": "/bin/sh"}
CALL = {"event": "syscall", "syscall": "open", "process": PROCESS}


@pytest.mark.parametrize(
    ("plain", "says"),
    [
        ([], "event is no mapping"),
        ({"event": "reboot"}, "event 'reboot' is none of fork, exec, exit, syscall, audit"),
        ({"event": ["exec"]}, "is none of"),
        ({}, "event None is none of"),
        ({"event": "syscall", "process": PROCESS}, "SyscallEvent: .*'syscall'"),
        ({**CALL, "paths": "/x"}, "SyscallEvent.paths: Expected `array`, got `str`"),
        ({**CALL, "path": "/x"}, "SyscallEvent has no path"),
        ({**CALL, "result": "5"}, "SyscallEvent.result: Expected `int"),
        ({**CALL, "result": "\udcff"}, "SyscallEvent.result: "),
        ({**CALL, "origin": "ebpf"}, "SyscallEvent.origin: Invalid enum value 'ebpf'"),
        ({**CALL, "address": "10.0.0.1"}, "address is no mapping"),
        ({**CALL, "address": {"family": "inet", "host": "example.org"}}, "address: 'example.org' does not"),
        ({**CALL, "records": [["PATH"]]}, "records: "),
        ({**CALL, "records": {"PATH": 1}}, "records: "),
        ({**CALL, "process": {"exe": 5}}, "Process.exe: Expected `str`, got `int`"),
        ({**CALL, "process": {"pid": "x"}}, "pid: Expected `int`"),
        ({**CALL, "process": {"key": {"pid": 1, "start_ns": 1}}}, "Process has no key"),
        ({**CALL, "process": {"depth": -1}}, "Process has no depth"),
        ({**CALL, "process": {"before": "/bin/sh"}}, "Process.before: Expected `array`, got `str`"),
        ({**CALL, "process": {"script": 5}}, "Process.script: Expected `str`, got `int`"),
        ({**CALL, "process": {"cgroup": "/"}}, "Process.cgroup: Expected `int"),
        ({**CALL, "process": {"service": {"script": []}}}, "Process.script: "),
        ({**CALL, "process": {"parent": []}}, "process is no mapping"),
        ({**CALL, "process": {"service": "nginx"}}, "service is no mapping"),
        ({**CALL, "process": {"service": {"exe": []}}}, "Process.exe: "),
        ({**CALL, 5: 6}, "event is no mapping of names"),
    ],
)
def test_wrong(plain, says):
    """What can't be an event says why."""
    with pytest.raises(InputError, match=says):
        event_from_plain(plain)


def test_too_deep():
    """Nesting ends somewhere, long before Python's patience does."""
    plain = {}
    for _ in range(5000):
        plain = {"parent": plain}
    with pytest.raises(InputError, match="more than 64 ancestors"):
        process_from_plain(plain)


_NAMES = sorted(
    {
        "event",
        "process",
        "parent",
        "service",
        "pid",
        "start_ns",
        "exe",
        "records",
        "address",
        "host",
        "family",
    }
    | {name for kind in KINDS.values() for name in kind.__dataclass_fields__}
)
_hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\udcff"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(_NAMES), _hostile, max_size=6),
    st.sampled_from([*KINDS, None]),
    st.sampled_from(list(KINDS)),
)
def test_hostile(plain, kind, other):
    """Anything at all is an event, or an InputError; what is one can be written again."""
    if kind is not None:
        plain |= {"event": kind, "type": other, "syscall": other}
    try:
        event = event_from_plain(plain)
    except InputError:
        return
    assert event == event_from_plain(event_to_plain(event))


def test_key_by_hand():
    """PIDs that nobody wrote differ along the line."""
    process = process_from_plain({"parent": {"parent": {}}})

    assert [ProcessKey(1000, 0), ProcessKey(999, 0), ProcessKey(998, 0)] == [
        process.key,
        *(a.key for a in process.ancestors()),
    ]
