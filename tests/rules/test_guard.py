# SPDX-License-Identifier: Apache-2.0
"""Guards: tests answer with yes, no, or that they can't tell; a guard speaks only if it is sure."""

from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ksentinel.event import Address
from ksentinel.rules.fields import unmapped
from ksentinel.rules.guard import (
    INTERNET,
    WRITING,
    Bits,
    Guard,
    Known,
    Literal,
    Names,
    Networks,
    Numbers,
    Reach,
    reaches,
)
from ksentinel.rules.hooks import Seen

CLASSES = ("loopback", "private", "public")
SH = Names("program", suffixes=("/sh",))


def program(*texts):
    """Return what a hook sees of a process."""
    return Seen("bpf", "bpf", {"program": texts})


@pytest.mark.parametrize(
    ("test", "texts", "answer"),
    [
        (SH, ["/bin/sh"], True),
        (SH, ["/bin/SH"], True),
        (SH, ["/bin/bash"], False),
        (SH, [None], None),
        (SH, [None, "/bin/sh"], True),
        (SH, [None, "/bin/bash"], None),
        (SH, ["/bin/é/sh"], None),
        (SH, [], False),
        (Names("program", suffixes=("/sh",), cased=True), ["/bin/é/sh"], True),
        (Names("program", suffixes=("/sh",), cased=True), ["/bin/SH"], False),
        (Names("program", exact=("/a",), prefixes=("/b/",)), ["/a"], True),
        (Names("program", exact=("/a",), prefixes=("/b/",)), ["/b/c"], True),
        (Names("program", exact=("/a",), prefixes=("/b/",)), ["/b"], False),
        (Known("program"), ["/a"], True),
        (Known("program"), [None], None),
        (Names("parent", exact=("/a",)), ["/a"], None),
    ],
)
def test_names(test, texts, answer):
    """Paths are compared whole, from the beginning, or by the names at the end."""
    assert test.holds(program(*texts)) is answer


@pytest.mark.parametrize(
    ("test", "number", "answer"),
    [
        (Bits("flags", ((4, 4),)), 5, True),
        (Bits("flags", ((4, 4),)), 3, False),
        (Bits("flags", ((3, 1), (8, 8))), 8, True),
        (Bits("flags", ((3, 1),)), 3, False),
        (Bits("flags", ((3, 1),)), None, None),
        (Numbers("flags", ((1, 2), (5, 5))), 2, True),
        (Numbers("flags", ((1, 2), (5, 5))), 3, False),
        (Numbers("flags", ((1, 2), (5, 5))), None, None),
        (WRITING, 0o0, False),
        (WRITING, 0o2, True),
        (WRITING, 0o100, True),
    ],
)
def test_numbers(test, number, answer):
    """Bits under a mask, numbers in a range."""
    assert test.holds(Seen("file_open", "open", {}, {"flags": number})) is answer


@pytest.mark.parametrize(
    ("test", "address", "answer"),
    [
        (Networks(("10.0.0.0/8", "fe80::/10")), "10.1.1.1", True),
        (Networks(("10.0.0.0/8", "fe80::/10")), "fe80::1", True),
        (Networks(("10.0.0.0/8", "fe80::/10")), "11.1.1.1", False),
        (Networks(("::/0",)), "10.1.1.1", False),
        (INTERNET, "10.1.1.1", True),
        (INTERNET, None, None),
        (Reach(("private",)), "10.1.1.1", True),
        (Reach(("private",)), "127.0.0.1", False),
        (Reach(("private",)), None, None),
    ],
)
def test_addresses(test, address, answer):
    """Addresses are compared by networks."""
    assert test.holds(Seen("socket_connect", "connect", destination=address)) is answer


def edges():
    """Return the addresses at both sides of each network's both ends."""
    for network, _ in reaches():
        first, last = int(network[0]), int(network[-1])
        for number in (first - 1, first, last, last + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                yield str(type(network[0])(number))


@pytest.mark.parametrize("address", sorted(set(edges())))
def test_edges_of_reach(address):
    """At the edges of all special networks a prefix table says what rules are told."""
    kind = Address("inet", unmapped(address)).reach
    at = Seen("socket_connect", "connect", destination=unmapped(address))

    assert [one for one in CLASSES if Reach((one,)).holds(at)] == [kind]


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
@example(ip_address("::ffff:10.0.0.1"))
@example(ip_address("64:ff9b::1"))
@example(ip_address("2001:db8::"))
def test_reach(address):
    """And so it does everywhere else."""
    at = Seen("socket_connect", "connect", destination=unmapped(str(address)))

    assert Reach((Address("inet", unmapped(str(address))).reach,)).holds(at) is True


@pytest.mark.parametrize(
    ("seen", "plain", "negated"), [("/bin/sh", True, False), ("/x", False, True), (None, None, None)]
)
def test_literal(seen, plain, negated):
    """What can't be told makes neither hold."""
    at = program(seen)

    assert (Literal(SH).holds(at), Literal(SH, negated=True).holds(at)) == (plain, negated)


A, B = Literal(Numbers("cmd", ((1, 1),))), Literal(Numbers("port", ((1, 1),)))


@pytest.mark.parametrize(
    ("ways", "cmd", "port", "answer"),
    [
        (((A, B),), 1, 1, True),
        (((A, B),), 1, None, None),
        (((A, B),), 0, None, False),
        (((A,), (B,)), 1, None, True),
        (((A,), (B,)), 0, None, None),
        (((A,), (B,)), 0, 0, False),
        (((),), None, None, True),
    ],
)
def test_ways(ways, cmd, port, answer):
    """One way is enough, one failing test ends a way; a guard for a part of a rule never says no."""
    at = Seen("bpf", "bpf", {}, {"cmd": cmd, "port": port})

    assert Guard("bpf", ("bpf",), ways).holds(at) is answer
    assert Guard("bpf", ("bpf",), ways, whole=False).holds(at) is (answer or None)
    assert Guard("bpf", ("bpf",), ways).speaks(at) is (answer is True)


@pytest.mark.parametrize(("hook", "call"), [("file_open", "bpf"), ("bpf", "open")])
def test_elsewhere(hook, call):
    """At another hook or in another call a guard says nothing."""
    guard = Guard("bpf", ("bpf",), ((),))

    assert (guard.holds(Seen(hook, call)), guard.speaks(Seen(hook, call))) == (None, False)


@pytest.mark.parametrize(("anomalous", "speaks"), [(True, True), (False, False), (None, False)])
def test_second_key(anomalous, speaks):
    """Where the score is a second key, nothing happens without it."""
    guard = Guard("bpf", ("bpf",), ((),), anomalous=True)

    assert guard.speaks(Seen("bpf", "bpf", anomalous=anomalous)) is speaks


@pytest.mark.parametrize(
    ("guard", "told"),
    [
        (Guard("bpf", ("bpf",), ((A,),)), ()),
        (Guard("bpf", ("bpf",), ((Literal(SH),),)), ("paths with bytes outside ASCII stay in user space",)),
        (Guard("bpf", ("bpf",), ((Literal(Names("program", ("/é",), cased=True)),),)), ()),
        (
            Guard("bprm_creds_from_file", ("execve",), ((Literal(Names("image", ("/A",), cased=True)),),)),
            ("what is asked for counts as asked if absolute, without '.', '..' and double slashes",),
        ),
        (
            Guard("path_link", ("link",), ((Literal(Names("path", ("/A",), cased=True)),),)),
            ("of two paths only the second is seen",),
        ),
        (
            Guard("path_mknod", ("openat2",), ((Literal(WRITING),),)),
            ("not in openat2, whose flags are only known when the file is there",),
        ),
        (Guard("bpf", ("bpf",), ((A,),), anomalous=True), ("only with a score over its threshold",)),
    ],
)
def test_narrower(guard, told):
    """It says when it keeps silent although the rule may speak."""
    assert guard.narrower == told


@pytest.mark.parametrize(
    ("literal", "words"),
    [
        (
            Literal(Names("image", ("/a",), ("/b/",), ("/c",))),
            "image is /a, or begins with /b/, or ends with /c",
        ),
        (Literal(Names("image", ("/a",), cased=True), negated=True), "not (image is /a (cased))"),
        (Literal(Known("target")), "target is known"),
        (Literal(WRITING), "opened for writing"),
        (Literal(Bits("mode", ((4, 4),))), "mode & 0o4 is 0o4"),
        (Literal(Numbers("port", ((1, 5), (7, 7)))), "port is 1 to 5 or 7"),
        (Literal(Numbers("another", ((1, 1),))), "about another process"),
        (Literal(Numbers("another", ((0, 0),))), "about its own process"),
        (Literal(INTERNET), "destination is an Internet address"),
        (Literal(Networks(("10.0.0.0/8",))), "destination is in 10.0.0.0/8"),
        (Literal(Reach(("private", "public"))), "destination is private or public"),
    ],
)
def test_words(literal, words):
    """A test in words."""
    assert literal.words() == words
