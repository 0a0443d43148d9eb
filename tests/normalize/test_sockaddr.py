# SPDX-License-Identifier: Apache-2.0
"""Socket addresses of every family, whole and cut short."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.event import Address
from ksentinel.normalize.sockaddr import socket_address

INET6 = bytes.fromhex("0a00 01bb 00000000 20010db8000000000000000000000001 00000000")
MAPPED = bytes.fromhex("0a00 01bb 00000000 00000000000000000000ffff7f000001 00000000")


@pytest.mark.parametrize(
    ("raw", "address", "text"),
    [
        (b"\0\0", Address("unspec"), "unspec"),
        (bytes.fromhex("02000050 08080808 0000000000000000"), Address("inet", "8.8.8.8", 80), "8.8.8.8:80"),
        (INET6, Address("inet6", "2001:db8::1", 443), "[2001:db8::1]:443"),
        (INET6[:24], Address("inet6", "2001:db8::1", 443), "[2001:db8::1]:443"),
        (MAPPED, Address("inet6", "::ffff:127.0.0.1", 443), "[::ffff:127.0.0.1]:443"),
        (b"\1\0/run/x.sock\0rest", Address("unix", path="/run/x.sock"), "/run/x.sock"),
        (b"\1\0/run/x.sock", Address("unix", path="/run/x.sock"), "/run/x.sock"),
        (b"\1\0\0abstract\0\0", Address("unix", path="@abstract"), "@abstract"),
        (b"\1\0\0a\0b\0", Address("unix", path="@a@b"), "@a@b"),
        (b"\1\0", Address("unix"), "unix"),
        (b"\1\0\xff", Address("unix", path="\udcff"), "\udcff"),
        (b"\x10\0" + bytes(10), Address("netlink"), "netlink"),
        (b"\x11\0" + bytes(18), Address("packet"), "packet"),
        (b"\x26\0hash", Address("alg"), "alg"),
        (b"\x28\0" + bytes(14), Address("vsock"), "vsock"),
        (b"\x63\0", Address("af_99"), "af_99"),
    ],
)
def test_whole(raw, address, text):
    """Addresses of every family."""
    assert socket_address(raw) == address
    assert str(address) == text


def test_big_endian():
    """The family is in the machine's byte order, the port never is."""
    assert socket_address(bytes.fromhex("000201BBC0000201"), "big") == Address("inet", "192.0.2.1", 443)


@pytest.mark.parametrize("raw", [b"", b"\2", b"\2\0", bytes.fromhex("02000050080808"), INET6[:23], INET6[:4]])
def test_cut(raw):
    """What is cut is no address."""
    assert socket_address(raw) is None


def test_mapped_address_is_looked_through():
    """An IPv4 address in IPv6's clothes reaches what the IPv4 address does."""
    assert socket_address(MAPPED).reach == "loopback"


@given(st.binary(max_size=130))
def test_any_bytes(raw):
    """No bytes crash; what can be reached has a reach."""
    address = socket_address(raw)
    assert address is None or address.reach in {"local", "loopback", "private", "public"}
