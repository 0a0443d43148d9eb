# SPDX-License-Identifier: Apache-2.0
"""What goes over the control socket: who may ask what, what is no request, and asking what is no daemon."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.errors import HostError, InputError, UsageError
from ksentinel.protocol import Group, Peer, arguments_of, ask, peer_of, permit, understand

OWN = os.getuid()


@dataclass(frozen=True)
class Dial:
    """The arguments of a request that changes something."""

    number: int
    why: str = ""
    more: dict[str, list[int]] = field(default_factory=dict)


# Who may do what


@pytest.mark.parametrize(
    ("uid", "groups", "owner", "gid", "reads", "changes"),
    [
        (0, set(), 0, 500, True, True),
        (0, set(), 0, None, True, True),
        (0, set(), 1000, 500, True, True),
        (1000, {1000}, 1000, 500, True, True),
        (1000, {1000, 500}, 0, 500, True, False),
        (1000, {500}, 0, 500, True, False),
        (1000, {1000, 500}, 0, None, False, False),
        (1000, {1000}, 0, 500, False, False),
        (1000, {0}, 0, 500, False, False),
        (1000, set(), 0, None, False, False),
        (1001, {1000}, 1000, 500, False, False),
        (65534, {65534}, 0, 500, False, False),
        (500, {1}, 0, 500, False, False),
        ((1 << 32) - 1, set(), 0, 500, False, False),
    ],
)
def test_permissions(uid, groups, owner, gid, reads, changes):
    """Root and the daemon's own user may do anything, members of the group may read, others nothing."""
    peer, group = Peer(7, uid, frozenset(groups)), Group("ksentinel", gid)
    permissions = [permit(peer, group, owner, changes=False), permit(peer, group, owner, changes=True)]

    assert [permission.allowed for permission in permissions] == [reads, changes]
    for permission in permissions:
        assert permission.allowed == (not permission.reason) == (not permission.remedy)


@pytest.mark.parametrize(
    ("groups", "gid", "changes", "reason", "remedy"),
    [
        ({1}, 5, False, "only root and members of group k may ask, and uid 9 is none", "use sudo; or usermod -aG k"),
        ({1}, None, False, "only root may ask, and this is uid 9", "there is no group k here .* use sudo"),
        ({5}, 5, True, "only root may change anything, and this is uid 9", "use sudo"),
    ],
)  # fmt: skip
def test_reasons(groups, gid, changes, reason, remedy):
    """A no says why, and what to do."""
    said = permit(Peer(7, 9, frozenset(groups)), Group("k", gid), 0, changes=changes)

    assert said.reason == reason
    assert re.match(remedy, said.remedy)


def test_peer():
    """The kernel says who is there: user, process, all groups."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)

    assert peer == Peer(os.getpid(), OWN, frozenset({os.getgid(), *os.getgroups()}))


@pytest.mark.root
def test_peer_of_many_groups():
    """Groups count as they were when they connected; of more than there is room for only the primary one."""
    found = []
    for groups in ([], [7, 8], list(range(1000, 1400))):
        ours, theirs = socket.socketpair()
        listener = socket.socket(socket.AF_UNIX)
        with ours, theirs, listener:
            listener.bind("")  # an abstract name of the kernel's choice
            listener.listen()
            child = os.fork()
            if not child:
                os.setgroups(groups)
                os.setgid(5)
                client = socket.socket(socket.AF_UNIX)
                client.connect(listener.getsockname())
                os.setgroups([9])
                theirs.send(b"x")
                theirs.recv(1)
                os._exit(0)
            connection, _ = listener.accept()
            ours.recv(1)
            found.append(peer_of(connection))
            connection.close()
            ours.send(b"x")
            os.waitpid(child, 0)
        assert found[-1].pid == child

    assert [peer.groups for peer in found] == [{5}, {5, 7, 8}, {5}]


# What is said


@pytest.mark.parametrize(
    ("line", "said", "remedy"),
    [
        (b"", "this is none: .*", "docs/control.md"),
        (b"tea", "this is none: .*", "docs/control.md"),
        (b"\xff", "this is none: .*", "docs/control.md"),
        (b'{"version": 1, "request": "status"} {}', "this is none: .*", "docs/control.md"),
        (b"[" * 60_000, "this is none: .*", "docs/control.md"),
        (b"NaN", "this is none: .*", "docs/control.md"),
        (b'["status"]', "a JSON object, this is another value", "docs/control.md"),
        (b'{"version":1,"request":"status","x":' + b"[" * 8 + b"]" * 8 + b"}", "no deeper than 8 levels", "docs"),
        (b"{}", "speaks version 1 of the protocol, not None", "that runs here"),
        (b'{"request": "status"}', "speaks version 1 of the protocol, not None", "that runs here"),
        (b'{"version": 2, "request": "status"}', "speaks version 1 of the protocol, not 2", "that runs here"),
        (b'{"version": true, "request": "status"}', "version 1 of the protocol, not True", "that runs here"),
        (b'{"version": 1.0, "request": "status"}', "version 1 of the protocol, not 1.0", "that runs here"),
        (b'{"version": "1", "request": "status"}', "version 1 of the protocol, not '1'", "that runs here"),
        (b'{"version": [1], "request": "status"}', "version 1 of the protocol, not a list", "that runs here"),
        (b'{"version": 1}', "there is no request None", "there are: dial, status"),
        (b'{"version": 1, "request": "stats"}', "there is no request 'stats'", "there are: dial, status"),
        (b'{"version": 1, "request": {}}', "there is no request an object", "there are: dial, status"),
        (b'{"version": 1, "request": "\\u001b[2J"}', r"no request '\\x1b\[2J'", "there are: dial, status"),
        (b'{"version": 1, "request": "' + b"x" * 9999 + b'"}', "no request 'x{58}… ", "there are: dial, status"),
    ],
)  # fmt: skip
def test_no_request(line, said, remedy):
    """What isn't one is refused with a reason and a remedy, nothing repeated that could do harm."""
    with pytest.raises(UsageError, match=said) as wrong:
        understand(line, ["status", "dial"])

    assert remedy in wrong.value.remedy


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "missing required field `number`"),
        ({"number": "1"}, "Expected `int`, got `str`"),
        ({"number": True}, "Expected `int`, got `bool`"),
        ({"number": 1.5}, "Expected `int`, got `float`"),
        ({"number": None}, "Expected `int`, got `null`"),
        ({"number": 1, "why": 2}, "Expected `str`, got `int`"),
        ({"number": 1, "colour": "red"}, "dial takes no 'colour'"),
        ({"number": 1, "more": {"a": ["b"]}}, "Expected `int`, got `str`"),
    ],
)
def test_no_arguments(given, said):
    """What is missing, too much, or of the wrong type; and what it takes."""
    with pytest.raises(UsageError, match=re.escape(said)) as wrong:
        arguments_of("dial", Dial, given)

    assert wrong.value.remedy == "it takes number, why, more"


def test_arguments():
    """They come as what was declared."""
    assert arguments_of("dial", Dial, {"number": 1, "more": {"a": [2]}}) == Dial(1, "", {"a": [2]})


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=12,
        ),
        max_size=4,
    )
)
def test_any_object(plain):
    """Any object is a request, or refused for a reason; nothing else happens."""
    for asked in (plain, {"version": 1, "request": "dial"} | plain):
        with contextlib.suppress(UsageError):
            name, given = understand(json.dumps(asked).encode(errors="surrogatepass"), ["status", "dial"])
            arguments_of(name, Dial, given)


# Asking


@contextlib.contextmanager
def listening(path: Path, answer: Callable[[socket.socket], None]):
    """Let *answer* serve one connection at *path*."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def says(data):
    """Return what reads a request and then says *data*."""

    def answer(connection):
        connection.recv(1 << 16)
        with contextlib.suppress(OSError):
            connection.sendall(data)

    return answer


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", HostError, "ended without an answer"),
        (b'{"version": 1', HostError, "ended without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", InputError, "not as ksentinel does"),
        (b"[]\n", InputError, "not as ksentinel does"),
        (b'{"ok": true}\n', InputError, "not as ksentinel does"),
        (b'{"version": true, "ok": true}\n', InputError, "not as ksentinel does"),
        (b'{"version": 2, "ok": true}\n', InputError, "speaks version 2 of the protocol, this is 1"),
        (b'{"version": 1, "ok": 1}\n', HostError, "/s: "),
        (b'{"version": 1, "ok": false, "error": "no", "remedy": "wait"}\n', HostError, r"no \(wait\)"),
        (b"x" * 3_000_000, HostError, "ended without an answer"),
    ],
)
def test_ask_what_is_no_daemon(tmp_path, data, kind, said):
    """Whatever answers, it ends in a reason, without more memory than an answer may have."""
    with listening(tmp_path / "s", says(data)), pytest.raises(kind, match=said):
        ask(tmp_path / "s", "status", trusted={OWN})


def test_ask_who_does_not_answer(tmp_path):
    """Nobody waits for ever, also if something comes now and then."""

    def drip(connection):
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b" ")
                time.sleep(0.05)

    began = time.monotonic()
    with (
        listening(tmp_path / "s", drip),
        pytest.raises(HostError, match=r"doesn't answer within 0.5 s \(it may be busy"),
    ):
        ask(tmp_path / "s", "status", trusted={OWN}, seconds=0.5)

    assert time.monotonic() - began < 5


def make_stale(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (lambda _: None, HostError, "no ksentinel is running here"),
        (make_stale, HostError, "the ksentinel that listened here has ended"),
        (Path.touch, InputError, "is no socket"),
        (Path.mkdir, InputError, "is no socket"),
    ],
)
def test_ask_nobody(tmp_path, make, kind, said):
    """Where there is no daemon, how to start one."""
    make(tmp_path / "s")
    with pytest.raises(kind, match=said) as wrong:
        ask(tmp_path / "s", "status", trusted={OWN})

    assert "ksentinel monitor" in wrong.value.remedy
    assert wrong.value.at == tmp_path / "s"


def test_ask_too_many(tmp_path):
    """One that accepts nobody is there, and busy."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(path))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(str(path))
        with pytest.raises(HostError, match="doesn't answer: too many are asking"):
            ask(path, "status", trusted={OWN}, seconds=0.2)


def test_path_that_is_too_long(tmp_path):
    """A socket's path has a limit of its own."""
    with pytest.raises(InputError, match="can't be asked: AF_UNIX path too long"):
        ask(tmp_path / ("x" * 200), "status", trusted={OWN})
