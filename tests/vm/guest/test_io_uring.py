# SPDX-License-Identifier: Apache-2.0
"""The same through io_uring: in the call itself, by a worker, by the kernel's polling thread; the completion has the guard's answer."""

import ctypes
import os
import socket
import struct

import pytest
from vm.guest import ring
from vm.guest.calls import AT_FDCWD
from vm.guest.ring import Ring
from vm.guest.workload import NEW, Op, forbidden, make_anomalous, named, untouched, walk

from ksentinel.enforce import Mode
from ksentinel.rules.derivation import derive
from ksentinel.rules.fields import sources
from ksentinel.rules.sigma import compile_rule

TAKES = 35
TOGETHER = "most guards"

ENTRIES = """
entries:
  - {id: under, deny: [read, write, create, unlink, rename, link], file: {under: [%(under)s]} %(when)s}
  - {id: to, deny: [connect], network: {to: [127.0.0.0/8], port: [7777]} %(when)s}
  - {id: at, deny: [bind], network: {port: [7779]} %(when)s}
"""
HOW = ["inline", "worker", "polled"]
PORTS = {"protected": (7777, 7779), "open": (7778, 7780)}


class Spot:
    """What an operation finds: a file and an empty place; a socket and an address; its memory, which has to stay."""

    def __init__(self, folder, ports, how):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        self.how = how
        self.kept = []
        self.file, self.new = self.text(folder / "file"), self.text(folder / "new")
        self.address = self.keep(
            struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", ports[0], socket.inet_aton("127.0.0.1"))
        )
        self.own = self.keep(
            struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", ports[1], socket.inet_aton("127.0.0.1"))
        )
        self.byte = self.keep(b"x")
        self.descriptor = os.open(folder / "file", os.O_RDWR)

    def keep(self, content):
        """Return where this stands from now on."""
        self.kept.append(ctypes.create_string_buffer(content, len(content) + 1))
        return ctypes.addressof(self.kept[-1])

    def text(self, path):
        """Return where a path stands."""
        return self.keep(os.fsencode(path))

    def ask(self, opcode, *arguments, **more):
        """Have a request done, the way that is asked for."""
        with Ring(polled=self.how == "polled") as one:
            one.ask(opcode, *arguments, asynchronous=self.how == "worker", **more)


def sendmsg(spot, sender):
    vector = spot.keep(struct.pack("QQ", spot.byte, 1))
    message = spot.keep(struct.pack("QIxxxxQQQQI", spot.address, 16, vector, 1, 0, 0, 0))
    spot.ask(ring.SENDMSG, sender, message, 1)


def by_socket(kind, act):
    def whole(spot):
        with socket.socket(socket.AF_INET, kind) as one:
            act(spot, one.fileno())

    return whole


def openat2(spot):
    how = spot.keep(struct.pack("QQQ", os.O_RDONLY, 0, 0))
    spot.ask(ring.OPENAT2, AT_FDCWD, spot.file, 24, how)


STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
OPEN = ("file_open",)
OPS = (
    Op("open", lambda s: s.ask(ring.OPENAT, AT_FDCWD, s.file, 0, 0, os.O_RDONLY), OPEN),
    Op("open to write", lambda s: s.ask(ring.OPENAT, AT_FDCWD, s.file, 0, 0, os.O_WRONLY), OPEN),
    Op("openat2", openat2, OPEN),
    Op("create", lambda s: s.ask(ring.OPENAT, AT_FDCWD, s.new, 0o600, 0, os.O_CREAT | os.O_RDWR), ("path_mknod", "file_open")),
    Op("unlink", lambda s: s.ask(ring.UNLINKAT, AT_FDCWD, s.file), ("path_unlink",)),
    Op("rename", lambda s: s.ask(ring.RENAMEAT, AT_FDCWD, s.file, AT_FDCWD & 0xFFFFFFFF, s.new), ("path_rename",)),
    Op("mkdir", lambda s: s.ask(ring.MKDIRAT, AT_FDCWD, s.new, 0o700), ("path_mkdir",)),
    Op("symlink", lambda s: s.ask(ring.SYMLINKAT, AT_FDCWD, s.file, 0, s.new), ("path_symlink",)),
    Op("link", lambda s: s.ask(ring.LINKAT, AT_FDCWD, s.file, AT_FDCWD & 0xFFFFFFFF, s.new), ("path_link",)),
    Op("connect", by_socket(STREAM, lambda s, fd: s.ask(ring.CONNECT, fd, s.address, 0, 16)), ("socket_connect",) * 2),  # it is asked again when there is an answer
    Op("connect datagrams", by_socket(DATAGRAM, lambda s, fd: s.ask(ring.CONNECT, fd, s.address, 0, 16)), ("socket_connect",)),
    Op("send", by_socket(DATAGRAM, lambda s, fd: s.ask(ring.SEND, fd, s.byte, 1, s.address, address_length=16)), ("socket_sendmsg",)),
    Op("send without a copy", by_socket(DATAGRAM, lambda s, fd: s.ask(ring.SEND_ZC, fd, s.byte, 1, s.address, address_length=16)), ("socket_sendmsg",)),
    Op("sendmsg", by_socket(DATAGRAM, sendmsg), ("socket_sendmsg",)),
    *(
        [Op("bind", by_socket(DATAGRAM, lambda s, fd: s.ask(ring.BIND, fd, s.own, 0, 16)), ("socket_bind",))]
        if NEW  # of those that are tried
        else []
    ),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def servers():
    """Somebody who listens at both ports."""
    with socket.create_server(("127.0.0.1", 7777), backlog=100), socket.create_server(("127.0.0.1", 7778), backlog=100):  # fmt: skip
        yield


@pytest.fixture
def trees(tmp_path):
    made = []

    def where(which, how):
        def make(op):
            made.append(Spot(tmp_path / which / named(op), PORTS[which], how))
            return made[-1]

        return make

    (tmp_path / "protected").mkdir()
    yield where
    for one in made:
        os.close(one.descriptor)


@pytest.fixture
def policy(guards, tmp_path):
    return lambda when="": guards.use(ENTRIES % {"under": tmp_path / "protected", "when": when})


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.PERMISSIVE])
@pytest.mark.parametrize("how", HOW)
def test_forbidden(guards, policy, trees, mode, how):
    """Each is refused in its completion and told once; permissive, each goes on."""
    policy()

    assert walk(guards, OPS, trees("protected", how), mode) == forbidden(OPS, mode)


@pytest.mark.parametrize("how", HOW)
def test_beside(guards, policy, trees, how):
    """The same beside it: nothing is refused, nothing is told."""
    policy()

    assert walk(guards, OPS, trees("open", how), Mode.ENFORCE) == untouched(OPS)


@pytest.mark.parametrize("how", HOW)
def test_whose(guards, policy, trees, how):
    """Whoever does it in the kernel: the record names the process that asked."""
    policy()
    guards.guards.mode = Mode.OFF
    spot = trees("protected", how)(Op("one", None, OPEN))
    guards.denials(0)
    guards.guards.mode = Mode.ENFORCE
    with pytest.raises(PermissionError):
        spot.ask(ring.OPENAT, AT_FDCWD, spot.file, 0, 0, os.O_RDONLY)
    guards.guards.mode = Mode.OFF
    (said,) = guards.denials(0)

    assert said.process.key.pid == os.getpid()
    assert said.process.exe == os.path.realpath("/proc/self/exe")
    assert said.call in {"io_uring", "io_uring_enter"}
    assert (said.tid == os.getpid()) is (how == "inline")


@pytest.mark.parametrize("how", HOW)
def test_two_keys(guards, policy, trees, how):
    """What is refused to a process that is unusual only is refused to those who work for it."""
    policy(", when: anomalous")
    try:
        make_anomalous(guards, over=False)
        usual = walk(guards, OPS, trees("protected", how), Mode.ENFORCE)
        found = {}
        for op in OPS:
            make_anomalous(guards, over=True)  # it is forgotten after ten seconds
            found |= walk(
                guards, [op._replace(name=f"{op.name}, unusual")], trees("protected", how), Mode.ENFORCE
            )
    finally:
        make_anomalous(guards, over=False)

    assert usual == untouched(OPS)
    assert found == {f"{name}, unusual": told for name, told in forbidden(OPS, Mode.ENFORCE).items()}


RULE = """
title: A secret opened by a program
id: 11111111-2222-3333-4444-555555555555
description: For a test.
logsource: {category: syscall, product: linux}
detection:
  open: {syscall: [open, openat, openat2], path|endswith: /secret/file}
  program: {Image: %s}
  condition: open and program
level: high
ksentinel: {action: deny, inline: true}
"""


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("named", [True, False])
def test_rule(guards, trees, how, named):
    """A rule that asks for the program holds for the program's workers."""
    program = os.path.realpath("/proc/self/exe") if named else "/usr/bin/nobody"
    guards.use(rules=[derive(compile_rule(RULE % program, "secret.yml", sources()))])
    op = Op("secret", OPS[0].act, OPEN)
    expected = forbidden([op], Mode.ENFORCE) if named else untouched([op])

    assert walk(guards, [op], trees("protected", how), Mode.ENFORCE) == expected
