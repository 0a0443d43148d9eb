# SPDX-License-Identifier: Apache-2.0
"""Forbidden destinations, ports and sockets, by every call that leads there: refused, or told; beside them nothing happens."""

# ruff: noqa: S104 -- to bind there is refused
import ctypes
import errno
import os
import socket
import struct
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from vm.guest.calls import MS_BIND, NUMBERS, checked, in_child, libc, mount, own_mounts
from vm.guest.workload import Op, ended, forbidden, untouched, walk

from ksentinel.enforce import Mode
from ksentinel.event import Outcome

TAKES = 20
TOGETHER = "most guards"

ENTRIES = """
entries:
  - {id: to, deny: [connect], network: {to: [127.0.0.0/8, "::1/128"], port: [7777]}}
  - {id: at, deny: [bind], network: {port: [7779]}}
  - {id: hear, deny: [listen], network: {family: [inet6]}}
  - {id: path, deny: [connect], network: {unix: [%(stream)s, %(packet)s, %(datagram)s]}}
"""
INET, INET6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
STREAM, DATAGRAM, PACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
ME = os.path.realpath("/proc/self/exe")
HERE = {INET: "127.0.0.1", INET6: "::1"}
TCP_FASTOPEN_CONNECT = 30
CONNECT, SEND, BIND, LISTEN = ("socket_connect",), ("socket_sendmsg",), ("socket_bind",), ("socket_listen",)
TO_STREAM, TO_DATAGRAM = ("unix_stream_connect",), ("unix_may_send",)


class Spot:
    """
    Where things lead to.

    Attributes
    ----------
    port, own
        To connect to, and to bind.
    family
        To listen in.
    folder
        Of the unix sockets.
    """

    def __init__(self, folder, port, own, family):
        self.folder, self.port, self.own, self.family = folder, port, own, family
        self.stream, self.packet, self.datagram = (
            str(folder / name) for name in ("stream", "packet", "datagram")
        )


def v4(port, host="127.0.0.1", family=INET):
    """Return an address as the kernel takes it."""
    return struct.pack("=H", family) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def connect(family, kind, host=None, **options):
    def act(spot):
        with socket.socket(family, kind) as one:
            for option, value in options.get("options", ()):
                one.setsockopt(socket.IPPROTO_TCP, option, value)
            one.connect((host or HERE[family], spot.port))

    return act


def without_waiting(spot):
    with socket.socket(INET, STREAM) as one:
        one.setblocking(False)
        error = one.connect_ex(("127.0.0.1", spot.port))
        if error not in {0, errno.EINPROGRESS}:
            raise OSError(error, os.strerror(error))


def again(spot):
    """Connect a socket elsewhere first, then to no address, then there."""
    with socket.socket(INET, DATAGRAM) as one:
        one.connect(("127.0.0.1", 9))
        nowhere = v4(0, "0.0.0.0", socket.AF_UNSPEC)
        checked(libc.connect(one.fileno(), nowhere, len(nowhere)))
        one.connect(("127.0.0.1", spot.port))


def by_a_thread(spot):
    met = []
    thread = threading.Thread(target=lambda: met.append(ended(lambda: connect(INET, STREAM)(spot))))
    thread.start()
    thread.join()
    if met[0]:
        raise OSError(met[0], os.strerror(met[0]))


def sendto(family, host=None, flags=0, kind=DATAGRAM):
    def act(spot):
        with socket.socket(family, kind) as one:
            one.sendto(b"x", flags, (host or HERE[family], spot.port))

    return act


def sendmsg(spot):
    with socket.socket(INET, DATAGRAM) as one:
        one.sendmsg([b"x"], [], 0, ("127.0.0.1", spot.port))


def though_connected(spot):
    with socket.socket(INET, DATAGRAM) as one:
        one.connect(("127.0.0.1", 9))
        one.sendto(b"x", ("127.0.0.1", spot.port))


def without_family(spot):
    """Send to an address that doesn't say of which family it is: the kernel takes it for IPv4."""
    address = v4(spot.port, family=socket.AF_UNSPEC)
    with socket.socket(INET, DATAGRAM) as one:
        checked(libc.sendto(one.fileno(), b"x", 1, 0, address, len(address)))


class Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_char_p), ("name_len", ctypes.c_uint32), ("vector", ctypes.c_void_p), ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_len", ctypes.c_size_t), ("flags", ctypes.c_int), ("unused", ctypes.c_int), ("sent", ctypes.c_uint32),
    )  # fmt: skip


def several(ports):
    """Send one message to each port, by one call; returns how many have gone."""
    addresses = [v4(port) for port in ports]
    messages = (Message * len(ports))(*(Message(address, 16) for address in addresses))
    with socket.socket(INET, DATAGRAM) as one:
        return checked(
            libc.syscall(ctypes.c_long(NUMBERS["sendmmsg"]), one.fileno(), messages, len(ports), 0)
        )


def bind(family, kind, host=None):
    def act(spot):
        with socket.socket(family, kind) as one:
            one.bind((HERE[family] if host is None else host, spot.own))

    return act


def bind_without_family(spot):
    address = v4(spot.own, "0.0.0.0", socket.AF_UNSPEC)
    with socket.socket(INET, DATAGRAM) as one:
        checked(libc.bind(one.fileno(), address, len(address)))


def listen(spot):
    with socket.socket(spot.family, STREAM) as one:
        one.bind((HERE[spot.family], 0))
        one.listen()


def listen_unbound(spot):
    """The kernel finds a port by itself."""
    with socket.socket(spot.family, STREAM) as one:
        one.listen()


def to_unix(kind, name):
    def act(spot):
        with socket.socket(UNIX, kind) as one:
            one.connect(getattr(spot, name))

    return act


def relative(spot):
    os.chdir(spot.folder)
    with socket.socket(UNIX) as one:
        one.connect("./stream")


def linked(spot):
    link = Path(f"{spot.stream}-link")
    link.unlink(missing_ok=True)
    link.symlink_to(spot.stream)
    with socket.socket(UNIX) as one:
        one.connect(str(link))


def hard(spot):
    link = Path(f"{spot.stream}-hard")
    link.unlink(missing_ok=True)
    link.hardlink_to(spot.stream)
    with socket.socket(UNIX) as one:
        one.connect(str(link))


def bound(spot):
    own_mounts()
    mount(spot.folder, "/mnt", flags=MS_BIND)
    with socket.socket(UNIX) as one:
        one.connect("/mnt/stream")


def send_unix(spot):
    with socket.socket(UNIX, DATAGRAM) as one:
        one.sendto(b"x", spot.datagram)


def sendmsg_unix(spot):
    with socket.socket(UNIX, DATAGRAM) as one:
        one.sendmsg([b"x"], [], 0, spot.datagram)


OPS = (
    Op("TCP", connect(INET, STREAM), CONNECT),
    Op("UDP", connect(INET, DATAGRAM), CONNECT),
    Op("TCP over IPv6", connect(INET6, STREAM), CONNECT),
    Op("UDP over IPv6", connect(INET6, DATAGRAM), CONNECT),
    Op("IPv4 in IPv6", connect(INET6, STREAM, "::ffff:127.0.0.1"), CONNECT),
    Op("without waiting", without_waiting, CONNECT),
    Op("connected before", again, CONNECT),
    Op("by another thread", by_a_thread, CONNECT),
    Op("opened fast, later", connect(INET, STREAM, options=[(TCP_FASTOPEN_CONNECT, 1)]), CONNECT),
    Op("opened fast", sendto(INET, flags=socket.MSG_FASTOPEN, kind=STREAM), SEND),
    Op("sendto", sendto(INET), SEND),
    Op("sendto over IPv6", sendto(INET6), SEND),
    Op("sendto IPv4 in IPv6", sendto(INET6, "::ffff:127.0.0.1"), SEND),
    Op("sendto elsewhere than connected", though_connected, SEND),
    Op("sendto without a family", without_family, SEND),
    Op("sendmsg", sendmsg, SEND),
    Op("sendmmsg", lambda s: several([s.port]), SEND),
    Op("bind TCP", bind(INET, STREAM), BIND),
    Op("bind UDP", bind(INET, DATAGRAM), BIND),
    Op("bind TCP over IPv6", bind(INET6, STREAM), BIND),
    Op("bind UDP over IPv6", bind(INET6, DATAGRAM), BIND),
    Op("bind to all", bind(INET, STREAM, ""), BIND),
    Op("bind without a family", bind_without_family, BIND),
    Op("listen", listen, LISTEN),
    Op("listen, not bound", listen_unbound, LISTEN),
    Op("unix stream", to_unix(STREAM, "stream"), TO_STREAM),
    Op("unix packets", to_unix(PACKET, "packet"), TO_STREAM),
    Op("unix datagrams", to_unix(DATAGRAM, "datagram"), TO_DATAGRAM),
    Op("unix, relative", lambda s: in_child(lambda: relative(s)), TO_STREAM),
    Op("unix, by a symbolic link", linked, TO_STREAM),
    Op("unix, by a hard link", hard, TO_STREAM),
    Op("unix, through a bind mount", lambda s: in_child(lambda: bound(s)), TO_STREAM),
    Op("unix sendto", send_unix, TO_DATAGRAM),
    Op("unix sendmsg", sendmsg_unix, TO_DATAGRAM),
)


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    """Somebody who listens where it is forbidden to go, and where it isn't."""
    with ExitStack() as stack:

        def hear(family, kind, address):
            one = stack.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind is not DATAGRAM:
                one.listen(1000)

        found = {}
        for name, port, own, family in (("forbidden", 7777, 7779, INET6), ("free", 7778, 7780, INET)):
            spot = found[name] = Spot(tmp_path_factory.mktemp(name), port, own, family)
            for inet in (INET, INET6):
                hear(inet, STREAM, (HERE[inet], port))
                hear(inet, DATAGRAM, (HERE[inet], port))
            hear(UNIX, STREAM, spot.stream)
            hear(UNIX, PACKET, spot.packet)
            hear(UNIX, DATAGRAM, spot.datagram)
        yield found


@pytest.fixture
def policy(guards, spots):
    to = spots["forbidden"]
    return guards.use(ENTRIES % {"stream": to.stream, "packet": to.packet, "datagram": to.datagram})


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
def test_forbidden(guards, spots, mode):
    """Each is refused and told once; permissive, each goes on and is told once."""
    assert walk(guards, OPS, lambda _: spots["forbidden"], mode) == forbidden(OPS, mode)


@pytest.mark.usefixtures("policy")
def test_beside(guards, spots):
    """Another port, another family, another socket: nothing is refused, nothing is told."""
    assert walk(guards, OPS, lambda _: spots["free"], Mode.ENFORCE) == untouched(OPS)


@pytest.mark.usefixtures("policy")
def test_second_message(guards):
    """Of several messages those before the forbidden one go."""
    gone = several([7778, 7777, 7778])

    assert gone == 1
    assert [(one.hook, str(one.address)) for one in guards.mine()] == [("socket_sendmsg", "127.0.0.1:7777")]


def test_no_destination(guards):
    """To take a connection back is to go nowhere: no network holds it."""
    everywhere = f'{{to: ["0.0.0.0/0", "::/0"], port: [1-65535]}}, by: [{ME}]'
    guards.use(f"entries: [{{id: all, deny: [connect], network: {everywhere}}}]")
    nowhere = v4(7777, "127.0.0.1", socket.AF_UNSPEC)
    with socket.socket(INET, DATAGRAM) as one:
        error = ended(lambda: checked(libc.connect(one.fileno(), nowhere, len(nowhere))))

    assert error == 0
    assert guards.mine() == []


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_abstract(guards, kind):
    """Abstract sockets have no path: their family is all that can be asked for."""
    with socket.socket(UNIX, kind) as server, socket.socket(UNIX, kind) as client:
        server.bind("\0ksentinel-test")
        if kind is STREAM:
            server.listen()
        guards.use(f"entries: [{{id: unix, deny: [connect], network: {{family: unix}}, by: [{ME}]}}]")
        error = ended(lambda: client.connect("\0ksentinel-test"))
    guards.guards.mode = Mode.OFF

    assert error == errno.EPERM
    assert [(one.hook, one.outcome) for one in guards.mine()] == [
        ("unix_stream_connect" if kind is STREAM else "unix_may_send", Outcome.DENIED)
    ]


def pair(spot):
    for one in socket.socketpair():
        one.close()


def raw(spot):
    """Write the packet oneself: its port is no part of the address."""
    packet = struct.pack("!HHHH", 9, spot.port, 9, 0) + b"x"
    with socket.socket(INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as one:
        one.sendto(packet, ("127.0.0.1", 0))


@pytest.mark.usefixtures("policy")
def test_not_refused(guards, spots):
    """What names no address, or not this one."""
    ops = (Op("a pair", pair, ()), Op("a packet of one's own", raw, ()))

    assert walk(guards, ops, lambda _: spots["forbidden"], Mode.ENFORCE) == untouched(ops)
