# SPDX-License-Identifier: Apache-2.0
"""Socket addresses, from the bytes of a ``struct sockaddr``: the same for audit's ``saddr=`` and BPF's argument events."""

from ipaddress import IPv4Address, IPv6Address

from ksentinel.event import Address

# linux/socket.h
_FAMILIES = {
    0: "unspec",
    1: "unix",
    2: "inet",
    10: "inet6",
    16: "netlink",
    17: "packet",
    38: "alg",
    40: "vsock",
}


def socket_address(raw: bytes, order: str = "little") -> Address | None:
    """
    Return the address in a ``struct sockaddr``; None if it is cut.

    Parameters
    ----------
    order
        Byte order of the machine, ``little`` or ``big``: the family is in it, ports never are.

    Examples
    --------
    >>> str(socket_address(bytes.fromhex("020001BBC00002010000000000000000")))
    '192.0.2.1:443'
    >>> socket_address(bytes.fromhex("0100002F746D70")).path
    '@/tmp'
    """
    if len(raw) < 2:
        return None
    number = int.from_bytes(raw[:2], "big" if order == "big" else "little")
    family = _FAMILIES.get(number, f"af_{number}")
    match family:
        case "inet":
            if len(raw) < 8:
                return None
            return Address(family, str(IPv4Address(raw[4:8])), int.from_bytes(raw[2:4], "big"))
        case "inet6":
            if len(raw) < 24:
                return None
            address = IPv6Address(raw[8:24])
            # Written alike by every Python.
            host = str(address) if address.ipv4_mapped is None else f"::ffff:{address.ipv4_mapped}"
            return Address(family, host, int.from_bytes(raw[2:4], "big"))
        case "unix":
            return Address(family, path=_unix_path(raw[2:]))
    return Address(family)


def _unix_path(raw: bytes) -> str:
    if raw[:1] == b"\0" and raw.strip(b"\0"):
        # Abstract: any bytes, NUL among them; written with @ as ss(8) does.
        raw = raw.rstrip(b"\0").replace(b"\0", b"@")
    return raw.split(b"\0", 1)[0].decode(errors="surrogateescape")
