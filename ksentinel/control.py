# SPDX-License-Identifier: Apache-2.0
"""
The daemon's control socket, served.

The server is one thread of its own. Whatever a client does, the daemon's other threads don't wait for it:
connections, their memory and their time are bounded, and this thread rests nine times as long as it worked.
"""

import selectors
import signal
import socket
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ksentinel.alert import when
from ksentinel.endpoint import Endpoint
from ksentinel.errors import HostError, KsentinelError, UsageError
from ksentinel.printable import printable
from ksentinel.protocol import (
    DOCUMENTED,
    LARGEST_ANSWER,
    VERSION,
    Group,
    Peer,
    Request,
    arguments_of,
    as_line,
    peer_of,
    permit,
    refusal,
    understand,
)
from ksentinel.trail import Trail

_TURN = 0.05  # seconds of work, then it rests
_REST = 9.0  # times as long as it worked
_LONGEST_REST = 1.0
_TICK = 5.0
_ACCEPTS = 128  # a turn
_REFUSED_EVERY = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What clients are held to.

    Attributes
    ----------
    connections
        At once; the surplus is closed with an answer that says so.
    reserved
        How many of those are kept for root: members of the group can't lock it out.
    request_bytes
        Of one line.
    patience
        Seconds for the rest of a request once it has begun, and for taking an answer.
    idle
        Seconds without a request after which a connection is closed.
    """

    connections: int = 64
    reserved: int = 8
    request_bytes: int = 64 << 10
    patience: float = 5.0
    idle: float = 60.0


class _Connection:
    """A client; what it is waited for to do is its *state*, named as the counter of those that didn't."""

    __slots__ = ("closing", "deadline", "inbox", "outbox", "peer", "socket", "state")

    def __init__(self, connection: socket.socket, peer: Peer) -> None:
        self.socket = connection
        self.peer = peer
        self.inbox = b""
        self.outbox = b""
        self.closing = False
        self.state = ""
        self.deadline = 0.0

    @property
    def has_line(self) -> bool:
        """Whether a whole request waits in the inbox."""
        return b"\n" in self.inbox


class Control:
    """
    The control socket, served by a thread of its own for as long as the ``with`` block lasts.

    What handlers read must outlive the block.

    Parameters
    ----------
    path
        The socket's.
    group
        Whose members may read.
    requests
        What can be asked for, by name.
    owner
        The uid that the daemon runs as.
    trail
        Where changes are written down; needed if a request changes anything.
    limits
        What clients are held to.
    tick
        Is called every few seconds, in the same thread as the handlers.
    tell
        Is told, in words, about the first failure of each kind of request.
    peer
        Says who connected.
    clock
        Seconds, monotonic.
    time_ns
        Since the epoch: for the trail.

    Attributes
    ----------
    open
        How many connections there are.

    Raises
    ------
    InputError
        On entering: the socket can't be there.
    """

    def __init__(
        self,
        path: Path,
        group: Group,
        requests: Mapping[str, Request],
        *,
        owner: int,
        trail: Trail | None = None,
        limits: Limits = Limits(),
        tick: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _said: None,
        peer: Callable[[socket.socket], Peer] = peer_of,
        clock: Callable[[], float] = time.monotonic,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.path = path
        self.group = group
        self.requests = requests
        self.owner = owner
        self.trail = trail
        self.limits = limits
        self.tick = tick
        self.tell = tell
        self.peer = peer
        self.clock = clock
        self.time_ns = time_ns
        self.open = 0
        self._counts: Counter[str] = Counter()
        self._stack = ExitStack()
        self._stopping = threading.Event()
        # Whose turn it was goes to the end.
        self._connections: dict[_Connection, None] = {}
        self._told: set[str] = set()
        # By uid: when a refusal to change something was last written down, and how many were not since.
        self._refusals: dict[int, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            endpoint = stack.enter_context(Endpoint(self.path, self.group.gid, self.owner))
            self._listener = endpoint.listener
            self._selector = stack.enter_context(selectors.DefaultSelector())
            waking, self._waker = (stack.enter_context(one) for one in socket.socketpair())
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._selector.register(waking, selectors.EVENT_READ)
            self._next_tick = self.clock() + _TICK
            self._accept_again = 0.0
            thread = threading.Thread(target=self._run, name="control")
            thread.start()
            stack.callback(thread.join)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._waker.send(b"x")
        self._stack.close()

    def account(self) -> dict[str, int]:
        """
        Return the counters.

        connections = open + left + idle + timed_out + slow + cut_off + faults + rejected + strangers;
        requests = answered + malformed + refused + failed
        """
        connections = "left idle timed_out slow cut_off faults rejected strangers".split()
        requests = "answered malformed refused failed".split()
        others = "changes untrailed accept_failures".split()
        return {
            "connections": self._counts["connections"],
            "open": self.open,
            **{name: self._counts[name] for name in connections},
            "requests": self._counts["requests"],
            **{name: self._counts[name] for name in (*requests, *others)},
        }

    # The thread

    def _run(self) -> None:
        # Signals are the main thread's: one that came here would not wake it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._stopping.is_set():
                began = self._turn()
                self._stopping.wait(min(_REST * (self.clock() - began), _LONGEST_REST))
        finally:  # nobody shall wait for an answer that doesn't come
            self._listener.close()
            for connection in list(self._connections):
                self._end(connection, "left")

    def _turn(self) -> float:
        """Wait for something to do and do it, one step for each connection; returns when that began."""
        ready = self._selector.select(self._timeout())
        now = self.clock()
        if now >= self._accept_again > 0:
            self._accept_again = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        if any(key.fileobj is self._listener for key, _ in ready):
            self._accept(now)
        # A line that came together with the one before it waits in the inbox, and nothing else will announce it.
        announced = {key.data for key, _ in ready}
        turn = deque(c for c in self._connections if c in announced or (c.has_line and not c.outbox))
        end = self.clock() + _TURN
        while turn and self.clock() < end:
            connection = turn.popleft()
            del self._connections[connection]
            self._connections[connection] = None
            self._step(connection, now)
        # Those whose turn didn't come this time have kept theirs.
        for connection in [c for c in self._connections if c.deadline <= now and c not in turn]:
            self._end(connection, connection.state)
        if now >= self._next_tick:
            self._next_tick = now + _TICK
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001 -- whoever asks is served all the same
                self._tell("its regular task", error)
        return now

    def _timeout(self) -> float:
        if any(one.has_line and not one.outbox for one in self._connections):
            return 0.0
        ends = [self._next_tick, *(one.deadline for one in self._connections)]
        if self._accept_again:
            ends.append(self._accept_again)
        return max(min(ends) - self.clock(), 0.0)

    def _accept(self, now: float) -> None:
        for _ in range(_ACCEPTS):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # no file descriptors left, or no memory: it would be announced again and again
                self._counts["accept_failures"] += 1
                self._selector.unregister(self._listener)
                self._accept_again = now + _LONGEST_REST
                return
            self._counts["connections"] += 1
            accepted.setblocking(False)
            try:
                connection = _Connection(accepted, self.peer(accepted))
            except OSError:  # nobody is served of whom the kernel doesn't say who they are
                self._counts["faults"] += 1
                accepted.close()
                continue
            unwanted = self._unwanted(connection.peer)
            if unwanted is not None:
                counter, error = unwanted
                self._counts[counter] += 1
                with suppress(OSError), accepted:  # whether they wait for the reason is theirs
                    accepted.send(as_line(refusal(error)))
                continue
            self._connections[connection] = None
            self.open += 1
            self._selector.register(accepted, selectors.EVENT_READ, connection)
            self._wait(connection, now)

    def _unwanted(self, peer: Peer) -> tuple[str, KsentinelError] | None:
        """Return why *peer* can't be served, and what counts that."""
        permission = permit(peer, self.group, self.owner, changes=False)
        if not permission.allowed:
            return "strangers", HostError(permission.reason, remedy=permission.remedy)
        room = self.limits.connections
        if peer.uid not in {0, self.owner}:
            room -= self.limits.reserved
        if self.open >= room:
            return "rejected", HostError(
                f"{self.open} connections are open already", remedy="try again in a minute"
            )
        return None

    def _end(self, connection: _Connection, why: str) -> None:
        self._counts[why] += 1
        del self._connections[connection]
        self.open -= 1
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def _step(self, connection: _Connection, now: float) -> None:
        """Go on with one connection as far as it goes without waiting, by one request at most."""
        answered = False
        try:
            if not connection.outbox and not connection.has_line and not self._receive(connection):
                self._end(connection, "left")
                return
            if not connection.outbox:
                answered = self._take(connection)
            if connection.outbox:
                connection.outbox = connection.outbox[connection.socket.send(connection.outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end(connection, "left")
            return
        except Exception as error:  # noqa: BLE001 -- one client's matter, whatever it is: the others go on
            self._tell("a connection", error)
            self._end(connection, "faults")
            return
        if connection.closing and not connection.outbox:
            self._end(connection, "cut_off")
        else:
            self._wait(connection, now, anew=answered)

    def _wait(self, connection: _Connection, now: float, *, anew: bool = True) -> None:
        """Say what is waited for, and until when; only what is new gets new time."""
        state = "slow" if connection.outbox else "timed_out" if connection.inbox else "idle"
        if anew or state != connection.state:
            connection.state = state
            connection.deadline = now + (self.limits.idle if state == "idle" else self.limits.patience)
            event = selectors.EVENT_WRITE if connection.outbox else selectors.EVENT_READ
            self._selector.modify(connection.socket, event, connection)

    def _receive(self, connection: _Connection) -> bool:
        """Read what fits; returns whether they are still there."""
        data = connection.socket.recv(self.limits.request_bytes + 1 - len(connection.inbox))
        connection.inbox += data
        return bool(data)

    def _take(self, connection: _Connection) -> bool:
        """Answer the first line in the inbox, if it is whole, or too long; returns whether it was."""
        line, end, rest = connection.inbox.partition(b"\n")
        if len(line) > self.limits.request_bytes:
            self._counts["requests"] += 1
            self._counts["malformed"] += 1
            error = UsageError(
                f"a request may have {self.limits.request_bytes} bytes, this has more", remedy=DOCUMENTED
            )
            connection.inbox, connection.outbox, connection.closing = b"", as_line(refusal(error)), True
            return True
        if not end:
            return False
        connection.inbox = rest
        connection.outbox = self._answer(line, connection.peer)
        return True

    def _answer(self, line: bytes, peer: Peer) -> bytes:
        """Return the answer to a request, as a line."""
        counter, plain = self._answer_plain(line, peer)
        try:
            told = as_line(plain)
            if len(told) > LARGEST_ANSWER:
                raise ValueError(f"an answer of {len(told)} bytes")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 -- whatever a handler made of it
            counter, told = "failed", as_line(refusal(self._fault("an answer", error)))
        self._counts["requests"] += 1
        self._counts[counter] += 1
        return told

    def _answer_plain(self, line: bytes, peer: Peer) -> tuple[str, dict[str, Any]]:
        """Return what counts a request, and its answer."""
        try:
            name, given = understand(line, self.requests)
        except UsageError as error:
            return "malformed", refusal(error)
        request = self.requests[name]
        permission = permit(peer, self.group, self.owner, changes=request.changes)
        if not permission.allowed:
            self._refused(name, peer)
            return "refused", refusal(HostError(permission.reason, remedy=permission.remedy))
        if request.changes:
            return self._change(name, request, given, peer)
        return self._call(name, request, given, peer)

    def _call(
        self, name: str, request: Request, given: dict[str, Any], peer: Peer
    ) -> tuple[str, dict[str, Any]]:
        try:
            arguments = arguments_of(name, request.arguments, given)
        except UsageError as error:
            return "malformed", refusal(error)
        try:
            answer = request.handler(arguments, peer) if request.by else request.handler(arguments)
        except KsentinelError as error:
            return "failed", refusal(error)
        except Exception as error:  # noqa: BLE001 -- the client is told, the operator, and the counter
            return "failed", refusal(self._fault(name, error))
        return "answered", {"version": VERSION, "ok": True, "answer": answer}

    def _change(
        self, name: str, request: Request, given: dict[str, Any], peer: Peer
    ) -> tuple[str, dict[str, Any]]:
        """Call what changes something, between two lines in the trail: without the first it isn't done."""
        try:
            self._write(name, peer, "begun", arguments=given)
        except KsentinelError as error:
            return "refused", refusal(
                HostError(f"{name} was not done, the audit trail can't have it: {error}", remedy=error.remedy)
            )
        self._counts["changes"] += 1
        counter, plain = self._call(name, request, given, peer)
        try:
            self._write(name, peer, "done" if plain["ok"] else plain["error"], arguments=given)
        except KsentinelError as error:
            self._counts["untrailed"] += 1
            plain["warning"] = f"the audit trail has the beginning of this, and not its outcome: {error}"
        return counter, plain

    def _refused(self, name: str, peer: Peer) -> None:
        """Write down who tried to change something and may not: once a minute each, or they could fill the disk."""
        now = self.clock()
        last, untold = self._refusals.get(peer.uid, (now - _REFUSED_EVERY, 0))
        if now - last < _REFUSED_EVERY:
            self._refusals[peer.uid] = (last, untold + 1)
            return
        self._refusals[peer.uid] = (now, 0)
        try:
            self._write(name, peer, "refused", more_since_last=untold)
        except KsentinelError:
            self._counts["untrailed"] += 1

    def _write(self, name: str, peer: Peer, outcome: str, **more: Any) -> None:
        if self.trail is None:
            raise HostError("this daemon keeps none", remedy="it is kept beside the store")
        time = when(self.time_ns())
        about = {"time": time, "uid": peer.uid, "pid": peer.pid, "request": name, "outcome": outcome}
        self.trail.write(about | more)

    def _fault(self, what: str, error: Exception) -> HostError:
        self._tell(what, error)
        return HostError(f"{what} failed: {_named(error)}", remedy="please report this")

    def _tell(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            where = traceback.extract_tb(error.__traceback__)[-1]
            self.tell(f"control socket: {what} failed: {_named(error)} ({where.filename}:{where.lineno})")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(str(error), 200)}"
