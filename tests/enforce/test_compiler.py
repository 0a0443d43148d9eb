# SPDX-License-Identifier: Apache-2.0
"""The compiler: what a policy is made of, and what doesn't fit into one."""

import ctypes
from dataclasses import replace
from ipaddress import ip_network

import pytest
from enforce.made_up_policies import FILES, derived, resolve

from ksentinel.bpf import guard_abi
from ksentinel.bpf.abi import Told
from ksentinel.bpf.guard_abi import Action, Hook, NameKind, Trait, Word
from ksentinel.bpf.pathhash import backwards_hash
from ksentinel.enforce import Mode
from ksentinel.enforce.compiled import CANARY_RULE, EVERY_CALL, IO_URING, NUMBERED_CALLS, WIDE, tokens_of
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.settings import parse_settings
from ksentinel.errors import RuleError
from ksentinel.normalize.bpf import _WIDE
from ksentinel.rules.guard import Bits, Guard, Known, Literal, Names, Networks, Numbers, Reach, reaches
from ksentinel.syscalls import token_of


def compiled(rules=(), text="{}"):
    """Return a policy."""
    return compile_policy(list(rules), parse_settings(text, "e.yml"), resolve=resolve, arch="x86_64")


def guard(*tests, hook="kernel_load_data", calls=("kexec_load",), negated=False):
    """Return a guard with one way."""
    return Guard(hook, calls, (tuple(Literal(test, negated) for test in tests),))


def name(n, **kinds):
    """Return a test of a program's name that differs for each number."""
    return Names("program", **({"exact": (f"/{n}",)} | kinds))


# --- what becomes of rules --------------------------------------------------------------------------------------


def test_only_those_that_ask():
    """A rule that doesn't ask for inline stays in user space."""
    policy = compiled([derived([guard(name(1))], inline=False), derived([guard(name(2))], identity="s")])

    assert [rule.id for rule in policy.rules] == ["s"]


@pytest.mark.parametrize(
    ("action", "does"), [("deny", Action.DENY), ("kill", Action.KILL), ("quarantine", Action.DENY)]
)
def test_actions(action, does):
    """At a hook there is denying and killing; quarantine is what user space does next."""
    policy = compiled([derived([guard(name(1))], action=action)])

    assert policy.rules[0].action is policy.ways[1].action is does


@pytest.mark.parametrize("called", ["r", "called", "in-a-file"])
def test_modes(called):
    """A rule is named by its id, its name or its file."""
    one = derived([guard(name(1))])
    one = replace(one, rule=replace(one.rule, name="called", file="rules/x/in-a-file.yml"))
    policy = compiled([one], f"modes: {{{called}: permissive}}\npinned: [{called}]")

    assert (policy.rules[0].mode, policy.rules[0].pinned) == (Mode.PERMISSIVE, True)
    assert policy.ways[1].mode is Mode.PERMISSIVE


def test_strictest_mode():
    """Named twice, the stricter one counts."""
    one = derived([guard(name(1))])
    policy = compiled([replace(one, rule=replace(one.rule, name="a"))], "modes: {r: permissive, a: enforce}")

    assert policy.rules[0].mode is Mode.ENFORCE


KEXEC = "entries: [{id: k, deny: kexec, mode: permissive}]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modes: {rr: off}", "e.yml:1:9: modes: no rule 'rr' is loaded (say an id, a name or a file"),
        ("modes: {kexec_loaf: off}", "no rule 'kexec_loaf' is loaded (did you mean kexec_load?)"),
        ("modes: {quiet: off}", "modes: rule 'quiet' isn't decided in the kernel"),
        ("pinned: [quiet]", "e.yml:1:10: pinned: rule 'quiet' isn't decided in the kernel"),
        ("pinned: [x]", "pinned: no rule 'x' is loaded"),
        (f"modes: {{k: off}}\n{KEXEC}", "e.yml:1:9: 'k' is an entry (say mode in the entry itself)"),
        ("entries: [{id: kexec_load, deny: kexec}]", "e.yml:1:11: id 'kexec_load' is taken by rules/kexec_load.yml"),
    ],
)  # fmt: skip
def test_unknown_names(text, says):
    """What settings name must be there, and be decided in the kernel."""
    rules = [
        derived([guard(name(1))], identity="kexec_load"),
        derived([guard(name(1))], identity="quiet", inline=False),
    ]
    with pytest.raises(RuleError) as caught:
        compiled(rules, text)

    assert says in str(caught.value)


def test_entries_may_be_pinned():
    """An entry, too, may stay."""
    policy = compiled([], f"pinned: [k]\n{KEXEC}")

    assert (policy.rules[0].pinned, policy.rules[0].mode) == (True, Mode.PERMISSIVE)


@pytest.mark.parametrize("one", [derived([]), derived([guard(Known("target"), negated=True)])])
def test_in_vain(one):
    """A rule that asks for inline and can't have it is refused, not left out."""
    with pytest.raises(RuleError, match=r"rules/r\.yml: Rule r: asks for inline, and "):
        compiled([one])


def test_missing():
    """What an entry names and isn't there is told; it holds for what is."""
    policy = compiled(
        [], "entries: [{id: x, deny: exec, file: {is: [/gone, /tmp/x]}, by: [/gone, /usr/bin/sh]}]"
    )

    assert [(one.path, one.rule, str(one.at)) for one in policy.places_missing] == [
        ("/gone", "x", "e.yml:1:11")
    ]
    assert policy.places_of == {FILES["/tmp/x"]: (1, 0, 0), FILES["/usr/bin/sh"]: (0, 0, 1)}


def test_words():
    """Each way says what it asks."""
    policy = compiled(
        [derived([guard(name(1), negated=True)])],
        "entries: [{id: x, deny: read, file: {kind: [memfd, setuid], under: /tmp}, unless_by: /usr/bin/sh}]",
    )

    assert [rule.words for rule in policy.rules] == [
        ("kernel_load_data in kexec_load: not (program is /1)",),
        (
            "file_open: read and memfd and not forced and file is below /tmp and not by /usr/bin/sh",
            "file_open: read and setuid and not forced and file is below /tmp and not by /usr/bin/sh",
        ),
    ]


# --- images -----------------------------------------------------------------------------------------------------


def test_ways():
    """Ways stand by hook, each hook's canary first; the image says where, and which words they ask for."""
    policy = compiled(
        [
            derived(
                [
                    guard(Numbers("cmd", ((5, 9),)), name(1), hook="task_prctl", calls=("prctl",)),
                    guard(name(1), negated=True),
                ],
                anomalous=True,
            )
        ],
        KEXEC,
    )
    image = policy.policy(7)
    first, other = image.hooks[Hook.KERNEL_LOAD_DATA], image.hooks[Hook.TASK_PRCTL]

    assert policy.hooks == (Hook.KERNEL_LOAD_DATA, Hook.KERNEL_READ_FILE, Hook.TASK_PRCTL)
    assert (first.first, first.count, first.tests) == (0, 3, 0)
    assert (first.words, other.words) == (
        1 << Word.TRAITS | 1 << Word.PROGRAM,
        1 << Word.TRAITS | 1 << Word.PROGRAM | 1 << Word.NUMBERS,
    )
    assert (other.first, other.count, other.first_test, other.tests) == (5, 2, 0, 1)
    assert [way.rule for way in image.ways[:7]] == [CANARY_RULE, 0, 1, CANARY_RULE, 1, CANARY_RULE, 0]
    canary, one, entry = image.ways[:3]
    assert (canary.need[Word.TRAITS], canary.mode, canary.action, canary.calls) == (
        Trait.CANARY, guard_abi.Mode.UNNAMED, Action.DENY, EVERY_CALL,
    )  # fmt: skip
    call = 1 << NUMBERED_CALLS.index("kexec_load")
    flags = guard_abi.WayFlag.ANOMALOUS | guard_abi.WayFlag.OF_PROCESS
    assert (one.forbid[Word.PROGRAM], one.calls, one.flags, one.mode) == (
        1,
        call,
        flags,
        guard_abi.Mode.UNNAMED,
    )
    assert (entry.need[Word.TRAITS], entry.calls, entry.mode) == (
        Trait.KEXEC,
        EVERY_CALL,
        guard_abi.Mode.PERMISSIVE,
    )
    assert (image.epoch, image.closed, image.tested, image.networked, image.cased, image.folded) == (
        7,
        0,
        1,
        0,
        0,
        1,
    )
    assert image.kinds == 1 << NameKind.EXACT


def test_names():
    """A path's key is its hash from the last byte; ends have the number of their names, beginnings those of shorter ones."""
    tests = (
        name(1, exact=("/a",), suffixes=("/b", "/c/d"), prefixes=("/u", "/usr/")),
        name(1, exact=("/A",), prefixes=("/us",), cased=True),
        Known("target"),
    )
    policy = compiled([derived([guard(*tests)])])
    keys = {(key.hash, key.kind): (bits, key.epoch) for key, bits in policy.names(3, 99)}
    begins = [
        (bytes(key.path)[: key.bits // 8 - 5], key.cased, bits, key.epoch)
        for key, bits in policy.beginnings(3)
    ]

    assert keys == {
        (backwards_hash(b"/a", 99), NameKind.EXACT): (1, 3),
        (backwards_hash(b"/b", 99), NameKind.SUFFIX1): (1, 3),
        (backwards_hash(b"/c/d", 99), NameKind.SUFFIX1 + 1): (1, 3),
        (backwards_hash(b"/A", 99), NameKind.EXACT | NameKind.CASED): (2, 3),
    }
    assert begins == [(b"/u", 0, 1, 3), (b"/usr/", 0, 1, 3), (b"", 1, 4, 3), (b"/us", 1, 6, 3)]
    assert policy.policy(3).kinds == sum(
        1 << kind
        for kind in (0, 1, NameKind.EXACT, NameKind.PREFIX, NameKind.EXACT | NameKind.CASED, NameKind.PREFIX | NameKind.CASED)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "bits", "told"),
    [
        ("/usr/sh", 0b101, Told.PATH | Told.ASCII),
        ("/USR/SH", 0b001, Told.PATH | Told.ASCII),
        ("/usr/\N{KELVIN SIGN}/sh", 0b100, Told.PATH),
        ("/x", 0, Told.PATH | Told.ASCII),
    ],
)
def test_holds(path, bits, told):
    """Which sets a path is in, for processes that run already."""
    tests = (
        name(1, exact=(), suffixes=("/sh",)),
        name(2),
        name(3, exact=(), prefixes=("/usr/",), cased=True),
    )

    assert compiled([derived([guard(*tests)])]).holds(path) == (bits, told)


def test_numbers():
    """More than eight ranges are several comparisons of one bit; what can't be is one that never holds."""
    many = Numbers("cmd", tuple((n * 2, n * 2) for n in range(1, 18)))
    tests = (many, Numbers("port", ((-9, -1),)), Bits("flags", ((1 << 40, 1 << 40),)))
    policy = compiled([derived([guard(*tests)])])
    found = policy.number_tests(Hook.KERNEL_LOAD_DATA)

    assert [(one.bit, one.count, one.bits, one.number) for one in found] == [
        (0, 8, 0, guard_abi.Number.CMD),
        (0, 8, 0, guard_abi.Number.CMD),
        (0, 1, 0, guard_abi.Number.CMD),
        (1, 1, 1, guard_abi.Number.PORT),
        (2, 1, 1, guard_abi.Number.FLAGS),
    ]
    assert [(one.first[0], one.second[0]) for one in found[3:]] == [(0, 1), (0, 1)]
    assert policy.policy(1).hooks[Hook.KERNEL_LOAD_DATA].tests == 5


def test_networks():
    """Every network that makes a difference is there, IPv4 mapped, with the bits of all around it."""
    tests = (Networks(("10.0.0.0/8", "::/64")), Networks(("10.1.0.0/16",)), Reach(("loopback",)))
    policy = compiled([derived([guard(*tests)])])
    found = {(key.bits - 32, bytes(key.address)): (bits, key.epoch) for key, bits in policy.networks(5)}

    def at(text):
        network = ip_network(text)
        if network.version == 6:
            return network.prefixlen, network.network_address.packed
        return network.prefixlen + 96, b"\0" * 10 + b"\xff\xff" + network.network_address.packed

    assert found[at("0.0.0.0/0")] == (0, 5)
    assert found[at("10.0.0.0/8")] == (1, 5)
    assert found[at("10.1.0.0/16")] == (3, 5)
    assert found[at("127.0.0.0/8")] == (4, 5)
    assert found[at("::1/128")] == (5, 5)
    assert found[at("::/64")] == (1, 5)
    assert len(found) == len({at(str(network)) for network, _ in reaches()}) + 2
    assert policy.policy(5).networked == 0b111


def test_no_networks():
    """Where nobody asks for an address, there is no table."""
    assert list(compiled([derived([guard(name(1))])]).networks(1)) == []


def test_calls():
    """A call has a bit, whatever ABI it comes by; io_uring one of its own."""
    one = guard(name(1), hook="file_open", calls=("openat", "creat"))
    policy = compiled([derived([one])])
    calls = policy.calls()

    both = {calls[token_of("openat")], calls[token_of("creat")]}
    assert len(both) == 2
    assert policy.ways[1].calls == sum(both) | IO_URING
    assert {calls[token] for token in tokens_of("openat", "x86_64")} == {calls[token_of("openat")]}
    assert calls[token_of("io_uring_enter")] == IO_URING
    assert calls == compiled([derived([guard(name(2))])]).calls()  # the kernel keeps them over policies


def test_calls_fit():
    """There is a bit for each call that is decided somewhere, besides the two that have another meaning."""
    assert len(NUMBERED_CALLS) <= 62


@pytest.mark.parametrize(
    ("call", "arch", "tokens"),
    [
        ("chown", "x86_64", (92, 0x800 + 92, 0x400 + 182, 0x400 + 212)),
        ("umount", "x86_64", (0x400 + 22,)),
        ("openat", "aarch64", (56,)),
        ("open", "aarch64", ()),
        ("nonsense", "x86_64", ()),
    ],
)
def test_tokens(call, arch, tokens):
    """Calls by the names that events have."""
    assert sorted(tokens_of(call, arch)) == sorted(tokens)


def test_wide_calls():
    """Those that events show by their plain name are the ones that the normalizer renames."""
    assert set(_WIDE) == WIDE


# --- what doesn't fit -------------------------------------------------------------------------------------------


def many(count, make, **options):
    """Return a rule with so many ways, each with its own test."""
    return derived(
        [Guard("kernel_load_data", ("kexec_load",), tuple((Literal(make(n)),) for n in range(count)))],
        **options,
    )


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (many(64, name), None),
        (many(65, name), "more than 64 sets of names"),
        (many(64, lambda n: Numbers("cmd", ((n, n),))), None),
        (many(65, lambda n: Numbers("cmd", ((n, n),))), "more than 64 tests of numbers and addresses"),
        (many(64, lambda n: Numbers("cmd", tuple((n, n + k) for k in range(65)))), "576 comparisons of numbers in all, more than 512"),
        (derived([Guard("bpf", NUMBERED_CALLS, ((Literal(name(1)),),))]), None),
        (derived([Guard("bpf", ("getppid",), ((Literal(name(1)),),))]), "no guard tells getppid from other system calls"),
        (derived([guard(name(1, exact=(), prefixes=("/" + "x" * 64,)))]), "is a beginning of over 64 bytes"),
        (derived([guard(name(1, exact=(), suffixes=("/a/b/c/d/e",)))]), "is no end of one to 4 whole names"),
        (derived([guard(name(1, exact=(), suffixes=("sh",)))]), "is no end of one to 4 whole names"),
    ],
)  # fmt: skip
def test_limits(rule, says):
    """What the kernel's side has no room for is refused, with the rule that is too much."""
    if says is None:
        assert len(compiled([rule]).rules) == 1
        return
    with pytest.raises(RuleError, match=says):
        compiled([rule])


def ways(count):
    """Return a rule with so many ways."""
    tests = [name(n) for n in range(46)]
    pairs = [(Literal(a), Literal(b)) for i, a in enumerate(tests) for b in tests[:i]]
    return derived([Guard("kernel_load_data", ("kexec_load",), tuple(pairs[:count]))])


@pytest.mark.parametrize(("count", "fits"), [(1023, True), (1024, False), (1025, False)])
def test_too_many_ways(count, fits):
    """With its canary each hook has one way more."""
    if fits:
        assert compiled([ways(count)]).policy(1).hooks[Hook.KERNEL_LOAD_DATA].count == 1024
        return
    with pytest.raises(RuleError, match="more than 1024"):
        compiled([ways(count)])


@pytest.mark.parametrize(
    ("key", "what"), [("by: /{n}", "sets of executables"), ("file: {{is: /{n}}}", "sets of files")]
)
def test_too_many_places(key, what):
    """So many sets of files and of executables."""
    lines = [f"{{id: x{n}, deny: exec, {key.format(n=n)}}}" for n in range(65)]
    assert len(compiled([], f"entries: [{', '.join(lines[:64])}]").rules) == 64
    with pytest.raises(RuleError, match=f"e.yml:1:.*: x64: with it there are more than 64 {what}"):
        compiled([], f"entries: [{', '.join(lines)}]")


def test_image_has_its_size():
    """The image is the whole struct, unused ways and tests zero."""
    image = compiled([derived([guard(name(1))])]).policy(1)

    assert len(bytes(image)) == ctypes.sizeof(guard_abi.Policy)
    assert not any(bytes(image.ways[2]))
