# SPDX-License-Identifier: Apache-2.0
"""The control socket: who may ask what, and that no client can do any harm by how they ask."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ksentinel.control import Control, Limits
from ksentinel.errors import HostError, InputError, KsentinelError
from ksentinel.protocol import VERSION, Group, Peer, Request, ask
from ksentinel.status import ModelStatus, Status, Usage
from ksentinel.trail import Trail

OWN = os.getuid()
GROUP = Group("ksentinel", os.getgid())  # the one that this user can give files to
DOCS = Path(__file__).parent.parent / "docs" / "control.md"
SHORT = Limits(patience=0.3, idle=0.6)


@dataclass(frozen=True)
class Dial:
    """The arguments of a request that changes something."""

    number: int
    why: str = ""
    more: dict[str, list[int]] = field(default_factory=dict)


def thread():
    """Return the current one's name and number."""
    one = threading.current_thread()
    return [one.name, one.native_id]


class Daemon:
    """A daemon with a request of each kind, and what was done to it."""

    def __init__(self):
        self.dialled = []

    def dial(self, arguments):
        """Change something."""
        self.dialled.append(arguments)
        return {"was": len(self.dialled)}

    def requests(self):
        """Return what it can be asked for."""
        return {
            "status": Request(lambda _: {"fine": True}, changes=False),
            "dial": Request(self.dial, changes=True, arguments=Dial),
            "no": Request(lambda _: self.refuse(), changes=False),
            "refuse": Request(lambda _: self.refuse(), changes=True),
            "break": Request(lambda _: {}["nothing"], changes=False),
            "alien": Request(lambda _: {"set": {1}}, changes=False),
            "large": Request(lambda _: "x" * (1 << 20), changes=False),
            "big": Request(lambda _: "x" * 900_000, changes=False),
            "hostile": Request(lambda _: "\x1b[2J\u202e\udcff", changes=False),
            "thread": Request(lambda _: thread(), changes=False),
        }

    def refuse(self):
        """Say no, as rooms do."""
        raise InputError("is missing", at="/etc/x", remedy="write one")


@pytest.fixture
def daemon():
    """Return a daemon."""
    return Daemon()


@pytest.fixture
def path(tmp_path):
    """Return where its socket is."""
    return tmp_path / "run" / "control.sock"


@pytest.fixture
def trail(tmp_path):
    """Return where its trail is."""
    return tmp_path / "changes.jsonl"


@pytest.fixture
def serve(daemon, path, trail):
    """Return a function that serves the daemon until the test ends; whatever happens, its account adds up."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def serve(**options):
            options = {"owner": OWN, "trail": Trail(trail, OWN)} | options
            control = Control(path, options.pop("group", GROUP), daemon.requests(), **options)
            stack.callback(lambda: check(control, before))
            return stack.enter_context(control)

        yield serve


def check(control, threads):
    """Every connection and every request is somewhere, and the thread has ended."""
    account = control.account()
    ends = "left idle timed_out slow cut_off faults rejected strangers".split()
    assert account["connections"] == account["open"] + sum(account[end] for end in ends)
    assert account["requests"] == sum(account[n] for n in "answered malformed refused failed".split())
    assert account["open"] == 0
    assert account["faults"] == 0
    assert {one for one in threading.enumerate() if one.name == "control"} <= threads


class Client(contextlib.AbstractContextManager):
    """Somebody at the other end, who does what they like."""

    def __init__(self, path, seconds=10):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))  # blocking: with a time-out it wouldn't wait to be accepted
        self.socket.settimeout(seconds)
        self.file = self.socket.makefile("rb")

    def __exit__(self, *_error):
        """Leave."""
        self.file.close()
        self.socket.close()

    def send(self, data):
        """Send bytes, or a request."""
        if isinstance(data, dict):
            data = json.dumps(data).encode() + b"\n"
        self.socket.sendall(data)

    def answer(self):
        """Return the next answer; None if there is none."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, request="status", **more):
        """Return what a request is answered."""
        self.send({"version": 1, "request": request} | more)
        return self.answer()


GOOD = {"version": 1, "ok": True, "answer": {"fine": True}}


def seen(control, **expected):
    """Wait until the counters are so."""
    end = time.monotonic() + 10
    while any(control.account()[name] != number for name, number in expected.items()):
        assert time.monotonic() < end, control.account()
        time.sleep(0.01)


def entries(trail):
    return [json.loads(line) for line in trail.read_bytes().splitlines()]


# Who may do what


def somebody(uid, *groups):
    """Return what says that everybody is *uid*."""
    return lambda _socket: Peer(7, uid, frozenset(groups))


def test_stranger(serve, path, daemon):
    """Who may not even read is told why at once, and the connection is closed."""
    control = serve(peer=somebody(9, 65533))
    with Client(path) as client:
        answer = client.answer()
        assert client.answer() is None

    assert answer["ok"] is False
    assert "uid 9" in answer["error"]
    assert "usermod" in answer["remedy"]
    seen(control, connections=1, strangers=1, requests=0)


def test_member(serve, path, daemon, trail):
    """A member of the group reads; what they try to change stays, and the trail has the attempt, once a minute."""
    now = [100.0]
    control = serve(
        peer=somebody(9, GROUP.gid), clock=lambda: now[0], time_ns=lambda: 1_700_000_000_000_000_000
    )
    with Client(path) as client:
        read = client.ask()
        refused = [client.ask("dial", number=1) for _ in range(5)]
        now[0] += 59.9
        client.ask("dial", number=1)
        now[0] += 0.2
        client.ask("refuse")
        assert client.ask() == GOOD

    assert read == GOOD
    assert {answer["ok"] for answer in refused} == {False}
    assert re.fullmatch("only root.* may change anything, and this is uid 9", refused[0]["error"])
    assert daemon.dialled == []
    first, second = entries(trail)
    assert first == {
        "time": "2023-11-14T22:13:20.000000+00:00", "uid": 9, "pid": 7, "request": "dial", "outcome": "refused",
        "more_since_last": 0,
    }  # fmt: skip
    assert (second["request"], second["more_since_last"]) == ("refuse", 5)
    assert control.account()["refused"] == 7
    assert control.account()["changes"] == 0


@pytest.mark.root
def test_by_the_kernel(serve, path):
    """Nothing is made up: another user's process is a stranger, in the group it reads, and never changes."""
    serve(group=Group("ksentinel", 54321))
    for folder in [path.parent, *path.parent.parents][:4]:
        if folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o001)
    told = []
    for groups in ([], [54321]):
        if groups:
            path.parent.chmod(0o750)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            os.setgroups(groups)
            os.setgid(12345)
            os.setuid(12345)
            answers = []
            for request, more in (("status", {}), ("dial", {"number": 1})):
                try:
                    answers.append(ask(path, request, trusted={0}, **more))
                except KsentinelError as error:
                    answers.append(error.what)
            theirs.send(json.dumps(answers).encode())
            os._exit(0)
        theirs.close()
        told.append(json.loads(ours.recv(1 << 16)))
        ours.close()
        os.waitpid(child, 0)

    may_not = "may not be opened: root may, and members of its group"
    assert told[0] == [may_not, may_not]
    assert told[1] == [{"fine": True}, "only root may change anything, and this is uid 12345"]


# Requests and answers


def test_requests(serve, path, daemon):
    """A line is answered by a line, in order, also if they come together, or in pieces."""
    control = serve()
    one = b'{"version": 1, "request": "status"}\r\n'
    with Client(path) as client:
        client.send(one * 30)
        assert [client.answer() for _ in range(30)] == [GOOD] * 30
        for i in range(len(one)):
            client.send(one[i : i + 1])
        assert client.answer() == GOOD
        assert client.ask("dial", number=5, why="so") == {"version": 1, "ok": True, "answer": {"was": 1}}

    seen(control, answered=32, left=1)
    assert daemon.dialled == [Dial(5, "so")]


def test_end_of_input(serve, path):
    """Who says that nothing more will come gets all answers still."""
    serve()
    with Client(path) as client:
        client.send(b'{"version": 1, "request": "status"}\n' * 3)
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.answer() for _ in range(4)] == [GOOD, GOOD, GOOD, None]


@pytest.mark.parametrize(
    ("request_", "error", "remedy"),
    [
        ("no", "/etc/x: is missing", "write one"),
        ("break", "break failed: KeyError: 'nothing'", "please report this"),
        ("alien", "an answer failed: TypeError: .*", "please report this"),
        ("large", r"an answer failed: ValueError: an answer of 104\d+ bytes", "please report this"),
    ],
)
def test_failures(serve, path, request_, error, remedy):
    """What goes wrong in a handler is an answer, and counted; the first time the operator is told."""
    told = []
    control = serve(tell=told.append)
    with Client(path) as client:
        answers = [client.ask(request_), client.ask(request_)]
        assert client.ask() == GOOD

    assert answers[0] == answers[1]
    assert answers[0]["ok"] is False
    assert re.fullmatch(error, answers[0]["error"])
    assert answers[0]["remedy"] == remedy
    assert control.account()["failed"] == 2
    expected = [] if request_ == "no" else [r"control socket: .* failed: .* \(.*\.py:\d+\)"]
    assert len(told) == len(expected)
    assert all(re.fullmatch(e, t) for e, t in zip(expected, told, strict=True))


def test_hostile_answer(serve, path):
    """Whatever a handler says, the answer is JSON that a terminal can show."""
    serve()
    with Client(path) as client:
        client.send({"version": 1, "request": "hostile"})
        line = client.file.readline()

    assert json.loads(line)["answer"] == "\x1b[2J\u202e\\xff"
    assert line.isascii()
    assert b"\x1b" not in line


def test_own_thread(serve, path):
    """Handlers are called in the server's thread, and signals don't go there."""
    serve()
    arrived = []
    before = signal.signal(signal.SIGUSR1, lambda *_: arrived.append(threading.current_thread().name))
    try:
        with Client(path) as client:
            name, tid = client.ask("thread")["answer"]
        status = Path(f"/proc/self/task/{tid}/status").read_text()
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    blocked = int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        assert blocked >> (number - 1) & 1
    assert name == "control"
    assert arrived == ["MainThread"]


def test_tick(serve, path, monkeypatch):
    """It is called now and then, and may fail."""
    monkeypatch.setattr("ksentinel.control._TICK", 0.05)
    ticks, told = [], []

    def tick():
        ticks.append(threading.current_thread().name)
        raise ValueError("tock")

    serve(tick=tick, tell=told.append)
    end = time.monotonic() + 10
    while len(ticks) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    with Client(path) as client:
        assert client.ask() == GOOD

    assert set(ticks) == {"control"}
    assert len(told) == 1
    assert "its regular task failed: ValueError: tock" in told[0]


def test_stops(daemon, path):
    """Leaving the block ends the thread at once, whoever is connected, and removes the socket."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(contextlib.ExitStack())
        control = running.enter_context(Control(path, GROUP, daemon.requests(), owner=OWN))
        clients = [stack.enter_context(Client(path)) for _ in range(5)]
        clients[0].send(b"half a requ")
        seen(control, open=5)
        began = time.monotonic()
        running.close()
        took = time.monotonic() - began
        assert [client.answer() for client in clients] == [None] * 5

    assert took < 1
    assert not path.parent.exists()
    assert control.account()["left"] == 5


def test_place_that_is_taken(serve, path, daemon):
    """A second daemon doesn't start, and has no thread."""
    serve()
    before = set(threading.enumerate())
    with (
        pytest.raises(InputError, match="is in use by process"),
        Control(path, GROUP, daemon.requests(), owner=OWN),
    ):
        pass

    assert set(threading.enumerate()) == before


# Limits


def test_large_request(serve, path):
    """10 MB are refused while they are sent, and never kept."""
    control = serve()
    sent = 0
    with Client(path) as client:
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # noqa: PT012 -- whichever send it is
            for _ in range(160):
                client.socket.sendall(b"x" * (1 << 16))
                sent += 1 << 16
        refused = client.answer()
        with pytest.raises(ConnectionResetError):
            client.answer()
    with Client(path) as client:
        assert client.ask() == GOOD

    assert sent < 1 << 20
    assert refused["error"] == "a request may have 65536 bytes, this has more"
    seen(control, cut_off=1, malformed=1, requests=2, open=0)


@pytest.mark.parametrize(("size", "ok"), [(1 << 16, True), ((1 << 16) + 1, False)])
def test_largest_request(serve, path, size, ok):
    """The limit is exact."""
    serve()
    line = b'{"version": 1, "request": "status"}'.ljust(size) + b"\n"
    with Client(path) as client:
        client.send(line)
        assert client.answer()["ok"] is ok


def test_memory_of_a_connection(serve, path):
    """Whatever is sent, no more than one request is kept."""
    control = serve()
    with Client(path) as client:
        client.socket.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                client.socket.send(b'{"version": 1, "request": "status"}\n' * 1000)
        largest = 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for one in list(control._connections):
                largest = max(largest, len(one.inbox))
            time.sleep(0.001)

    assert 30_000 < largest <= (1 << 16) + 1


def test_half_a_request(serve, path):
    """One that doesn't go on is cut off, also if it drips, and others don't notice."""
    control = serve(limits=SHORT)
    with Client(path) as half, Client(path) as drip, Client(path) as other:
        began = time.monotonic()
        half.send(b'{"version": 1, ')
        drip.send(b"{")
        while control.account()["timed_out"] < 2:
            with contextlib.suppress(OSError):
                drip.send(b" ")
            assert other.ask() == GOOD
            assert time.monotonic() - began < 10
        took = time.monotonic() - began
        assert half.answer() is None

    assert 0.3 <= took < 5


def test_idle(serve, path):
    """A connection that asks nothing is closed after a while; one that asks now and then isn't."""
    control = serve(limits=SHORT)
    with Client(path) as idle, Client(path) as busy:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            assert busy.ask() == GOOD
            time.sleep(0.1)
        assert idle.answer() is None

    seen(control, idle=1, left=1)


def test_slow_reader(serve, path):
    """One that takes no answers gets no more of them, and is closed; others don't wait."""
    control = serve(limits=SHORT)
    with Client(path) as slow, Client(path) as other:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.send(b'{"version": 1, "request": "big"}\n' * 10)
        began = time.monotonic()
        while not control.account()["slow"]:
            assert other.ask() == GOOD
            assert time.monotonic() - began < 10

    assert control.account()["slow"] == 1
    assert control.account()["requests"] - control.account()["answered"] == 0


def test_large_answer(serve, path):
    """One that is taken in pieces arrives whole."""
    serve()

    assert len(ask(path, "big", trusted={OWN})) == 900_000


@pytest.fixture
def descriptors():
    """Let this process have enough of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_thousand_connections(serve, path):
    """64 are served, the others are told why not and closed at once, all of them counted."""
    control = serve()
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(Client(path)) for _ in range(64)]
        assert [client.ask() for client in served] == [GOOD] * 64
        surplus = [stack.enter_context(Client(path)) for _ in range(936)]
        said = [client.answer() for client in surplus]
        ends = [client.answer() for client in surplus]
        assert [client.ask() for client in served] == [GOOD] * 64

        account = control.account()
        assert (account["connections"], account["open"], account["rejected"]) == (1000, 64, 936)
        assert {one["error"] for one in said} == {"64 connections are open already"}
        assert ends == [None] * 936
    seen(control, open=0)
    with Client(path) as client:
        assert client.ask() == GOOD


def test_room_for_root(serve, path):
    """Members of the group can't take root's last places."""
    people = iter([Peer(1, 9, frozenset({GROUP.gid}))] * 4 + [Peer(1, 0, frozenset())] * 3)
    serve(peer=lambda _: next(people), limits=Limits(connections=5, reserved=2))
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(Client(path)).ask() for _ in range(7)]

    assert [answer == GOOD for answer in answers] == [True, True, True, False, True, True, False]


def test_no_descriptors(serve, path):
    """When the process has none left it waits for some, and doesn't spin."""
    control = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    last = os.dup(0)
    os.close(last)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last, hard))
        client.connect(str(path))
        used = time.process_time()
        time.sleep(0.5)
        used = time.process_time() - used
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with client, client.makefile("rb") as file:
        client.sendall(b'{"version": 1, "request": "status"}\n')
        assert json.loads(file.readline()) == GOOD

    assert used < 0.25
    assert 1 <= control.account()["accept_failures"] <= 3


def test_share_of_time(daemon, path):
    """However much is asked, most of the time is left to others."""
    requests = daemon.requests() | {"work": Request(lambda _: time.sleep(0.005), changes=False)}
    with Control(path, GROUP, requests, owner=OWN) as control, contextlib.ExitStack() as stack:
        for client in [stack.enter_context(Client(path)) for _ in range(20)]:
            client.send(b'{"version": 1, "request": "work"}\n' * 500)
        seen(control, open=20)
        before = control.account()["answered"]
        time.sleep(2)
        answered = control.account()["answered"] - before

    # A tenth of two seconds is 40 of them; work that has begun may be on either side.
    assert 5 <= answered <= 65


def test_rounds_are_fair(daemon, path):
    """Work that takes a whole turn lets nobody starve."""
    requests = daemon.requests() | {"work": Request(lambda _: time.sleep(0.03), changes=False)}
    with Control(path, GROUP, requests, owner=OWN) as control, contextlib.ExitStack() as stack:
        for client in [stack.enter_context(Client(path)) for _ in range(10)]:
            client.send(b'{"version": 1, "request": "work"}\n' * 500)
        seen(control, open=10)
        with Client(path, seconds=20) as other:
            assert other.ask() == GOOD


# Arbitrary bytes


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return the socket of a daemon that a whole module's tests ask."""
    path = tmp_path_factory.mktemp("running") / "control.sock"
    requests = Daemon().requests()
    requests = {name: requests[name] for name in ("status", "no", "dial")}
    limits = replace(SHORT, patience=0.02)
    before = set(threading.enumerate())
    with Control(path, GROUP, requests, owner=OWN, limits=limits) as control:
        yield path
    check(control, before)


pieces = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.just(b"\n"),
        st.sampled_from([b"\0" * 70_000, b"[" * 3000 + b"\n", b'{"version": 1, "request": "status"}\n']),
        st.text(max_size=20).map(
            lambda text: json.dumps({"version": 1, "request": "no", text: text}).encode() + b"\n"
        ),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces, st.booleans(), st.booleans())
def test_any_bytes(running, sent, reads, resets):
    """Whatever one client sends, and however it leaves, the next one is served."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(running))
        if resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in sent:
                client.sendall(piece)
            if reads:
                client.shutdown(socket.SHUT_WR)
                answers = b""
                while data := client.recv(1 << 16):
                    answers += data
                for line in answers.splitlines():
                    assert json.loads(line)["version"] == VERSION
                assert answers == b"" or answers.endswith(b"\n")

    assert ask(running, "status", trusted={OWN}) == {"fine": True}


# What the documentation says


def test_documented_examples(serve, path, trail):
    """The requests on the page are understood, and answers look like those there."""
    serve()
    lines = re.findall(r"^    (\{.*\})$", DOCS.read_text(), re.MULTILINE)
    asked, done, wrong, changed = (json.loads(line) for line in lines)
    with Client(path) as client:
        client.send(asked)
        assert client.answer().keys() == done.keys()
        refused = client.ask("stats")
        client.ask("dial", number=1)

    assert refused.keys() == wrong.keys()
    assert refused["error"] == wrong["error"]
    assert entries(trail)[0].keys() == changed.keys()


def test_documented_names(daemon, path):
    """Every field of a status and every counter is explained, and the limits are those on the page."""
    text = DOCS.read_text()
    of_status = [one.name for kind in (Status, ModelStatus, Usage) for one in fields(kind)]
    counters = Control(path, GROUP, daemon.requests(), owner=OWN).account()
    known = {word.lower() for word in re.findall(r"\w+", text)}
    known |= {words.replace(" ", "_").lower() for words in re.findall(r"\*([A-Za-z ]+)\*", text)}
    limits = Limits()

    assert [name for name in (*of_status, *counters) if name not in known] == []
    for said in (
        f"{limits.request_bytes >> 10} KiB a request",
        f"{limits.patience:g} seconds from the first byte",
        f"{limits.patience:g} seconds to take an answer",
        f"{limits.idle:g} seconds without a request",
        f"{limits.connections} connections, the last {limits.reserved} of them for root",
    ):
        assert said in text


# The audit trail


def test_trail(serve, path, trail):
    """A change is written down before it is done, and what came of it after."""
    times = iter(range(0, 10**12, 10**9))
    control = serve(time_ns=lambda: next(times))
    with Client(path) as client:
        client.ask("status")
        assert client.ask("dial", number=5, why="\u202e")["ok"] is True
        assert client.ask("refuse")["ok"] is False
        assert client.ask("dial", number="x")["ok"] is False

    who = {"uid": OWN, "pid": os.getpid()}
    moment = "1970-01-01T00:00:0{}.000000+00:00".format
    dialled = {"number": 5, "why": "\u202e"}
    wrong = "dial: Expected `int`, got `str` - at `$.number`"
    assert entries(trail) == [
        {"time": moment(0), **who, "request": "dial", "outcome": "begun", "arguments": dialled},
        {"time": moment(1), **who, "request": "dial", "outcome": "done", "arguments": dialled},
        {"time": moment(2), **who, "request": "refuse", "outcome": "begun", "arguments": {}},
        {"time": moment(3), **who, "request": "refuse", "outcome": "/etc/x: is missing", "arguments": {}},
        {"time": moment(4), **who, "request": "dial", "outcome": "begun", "arguments": {"number": "x"}},
        {"time": moment(5), **who, "request": "dial", "outcome": wrong, "arguments": {"number": "x"}},
    ]
    assert control.account()["changes"] == 3


@pytest.mark.parametrize("why", ["a directory", "writable", "none"])
def test_no_trail(serve, path, trail, daemon, why):
    """What can't be written down isn't done; reading goes on."""
    if why == "a directory":
        trail.mkdir()
    else:
        trail.touch()
        trail.chmod(0o666)
    control = serve(**({"trail": None} if why == "none" else {}))
    with Client(path) as client:
        answer = client.ask("dial", number=5)
        assert client.ask() == GOOD

    assert answer["ok"] is False
    assert answer["error"].startswith("dial was not done, the audit trail can't have it: ")
    assert answer["remedy"]
    assert daemon.dialled == []
    assert (control.account()["refused"], control.account()["changes"]) == (1, 0)


def test_trail_that_ends_in_between(daemon, path, trail):
    """What was done is done: the answer says so, with a warning, and it is counted."""

    def dial(_arguments):
        trail.unlink()
        trail.mkdir()
        return "dialled"

    requests = {"dial": Request(dial, changes=True)}
    with (
        Control(path, GROUP, requests, owner=OWN, trail=Trail(trail, OWN)) as control,
        Client(path) as client,
    ):
        answer = client.ask("dial")

    assert (answer["ok"], answer["answer"]) == (True, "dialled")
    assert "not its outcome" in answer["warning"]
    assert control.account()["untrailed"] == 1


def test_attempt_that_cannot_be_written(serve, path, trail):
    """It is refused all the same, and counted."""
    trail.mkdir()
    control = serve(peer=somebody(9, GROUP.gid))
    with Client(path) as client:
        assert client.ask("dial", number=1)["ok"] is False

    assert (control.account()["untrailed"], control.account()["refused"]) == (1, 1)


# Asking


def test_ask(serve, path, daemon):
    """The answer, or the daemon's own reason and remedy."""
    serve()

    assert ask(path, "dial", trusted={OWN}, number=5) == {"was": 1}
    with pytest.raises(HostError, match="there is no request 'tea'") as wrong:
        ask(path, "tea", trusted={OWN})
    assert (wrong.value.at, wrong.value.remedy.partition(":")[0]) == (path, "there are")
    with pytest.raises(HostError, match="may have 65536 bytes"):
        ask(path, "dial", trusted={OWN}, number=1, why="x" * 10_000_000)


def test_ask_somebody_else(serve, path):
    """Whoever isn't trusted is asked nothing."""
    control = serve()
    with pytest.raises(InputError, match=f"is served by uid {OWN}"):
        ask(path, "status", trusted={OWN + 1})

    seen(control, connections=1, left=1, requests=0)


def test_by(serve, path, daemon):
    """A request that depends on who asks is told, by the kernel's word; arguments can't say another."""
    asked = []
    kinds = daemon.requests() | {
        "whose": Request(lambda arguments, peer: asked.append((arguments, peer)), changes=True, by=True)
    }
    daemon.requests = lambda: kinds
    serve()
    with Client(path) as client:
        good, named = client.ask("whose"), client.ask("whose", pid=1)

    assert (good["ok"], named["ok"]) == (True, False)
    assert [(one.pid, one.uid) for _, one in asked] == [(os.getpid(), OWN)]
