# SPDX-License-Identifier: Apache-2.0
"""Rules, entries, files and operations, made up so that they meet often, for tests of enforcement."""

from hypothesis import strategies as st

from ksentinel.bpf.guard_abi import Action, Hook, Number, Trait, Word
from ksentinel.enforce import Mode
from ksentinel.enforce.operation import Operation
from ksentinel.enforce.places import Place
from ksentinel.enforce.settings import Does, Entry, Family, FileKind
from ksentinel.errors import Location
from ksentinel.level import Level
from ksentinel.rules import Response, Rule
from ksentinel.rules.derivation import Derived
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
)
from ksentinel.rules.hooks import HOOKS

PATHS = (
    "/", "/usr/bin/sh", "/usr/bin/SH", "/tmp/sh", "/etc/ld.so.preload", "/srv/etc/ld.so.preload", "/usr/bin/\N{KELVIN SIGN}mod", "/tmp/\udcff",
    "/a/b/c/d/e/f", "/" + "x" * 70, "/usr/bin/shell",
)  # fmt: skip
TREE = ("/", "/etc", "/etc/secret", "/tmp", "/tmp/x", "/usr", "/usr/bin", "/usr/bin/sh", "/usr/sbin/nginx")
FILES = {path: Place(7 << 20 | 1, 100 + index) for index, path in enumerate(TREE)}
CALLS = ("openat", "execve", "connect", "rename", "bpf", "umount", "nonsense", "")
ADDRESSES = (
    "127.0.0.1",
    "10.1.2.3",
    "8.8.8.8",
    "::1",
    "fe80::1",
    "2600::1",
    "::ffff:10.1.2.3",
    "2001:db8::5",
)


def resolve(path):
    """Return the place of a file of the made-up tree."""
    return FILES.get(path)


def chain(path):
    """Return its place and those above."""
    names = path.rstrip("/").split("/")
    above = ["/".join(names[:count]) or "/" for count in range(len(names), 0, -1)]
    return tuple(FILES[one] for one in above if one in FILES)


def some(values, least=0, most=3):
    """Return a strategy of tuples of distinct values."""
    return st.lists(st.sampled_from(values), min_size=least, max_size=most, unique=True).map(tuple)


def derived(guards, *, identity="r", **response):
    """Return a rule with these guards, and what it asks for."""
    asks = Response(**{"action": "deny", "inline": True} | response)
    rule = Rule(
        identity,
        f"Rule {identity}",
        Level.HIGH,
        file=f"rules/{identity}.yml",
        source="syscall",
        response=asks,
    )
    return Derived(rule, tuple(guards), ())


names_tests = st.builds(
    Names,
    st.sampled_from([word.name.lower() for word in Word if Word.PROGRAM <= word <= Word.PATH]),
    some(("/usr/bin/sh", "/etc/ld.so.preload", "sh", "/", "/usr/bin/SH")),
    some(("/usr/", "/usr/bin/sh", "", "/t", "/" + "x" * 63, "/a\0", "/us")),
    some(("/sh", "/bin/sh", "/etc/ld.so.preload", "/c/d/e/f", "/SH", "/usr/bin/sh")),
    st.booleans(),
)
number_tests = st.one_of(
    st.just(WRITING),
    st.builds(
        Bits,
        st.sampled_from(["flags", "mode"]),
        st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=20).map(tuple),
    ),
    st.builds(Numbers, st.just("another"), some(((0, 0), (1, 1)))),
    st.builds(
        Numbers,
        st.sampled_from([number.name.lower() for number in Number if number is not Number.ANOTHER]),
        st.lists(
            st.sampled_from([(0, 0), (-1, -1), (1, 5), (-5, 3), (1000, 0xFFFFFFFF), (-0xFFFFFFFF, 4), (9, 2), (7, 7)]),
            max_size=20,
        ).map(tuple),
    ),
)  # fmt: skip
address_tests = st.one_of(
    st.just(INTERNET),
    st.builds(Networks, some(("10.0.0.0/8", "10.1.0.0/16", "fe80::/10", "::/0", "::/64", "::ffff:0:0/96", "0.0.0.0/0"), least=1)),
    st.builds(Reach, some(("loopback", "private", "public"), least=1)),
)  # fmt: skip
literals = st.builds(
    Literal,
    st.one_of(
        names_tests,
        st.builds(Known, st.sampled_from(["target", "path", "asked", "image", "ancestors"])),
        number_tests,
        address_tests,
    ),
    st.booleans(),
)


def guard_that_speaks(hook, calls, ways):
    """Return a guard, one of whose ways can hold."""
    never = [way for way in ways if any(one.negated and isinstance(one.test, Known) for one in way)]
    return Guard(hook, calls, (*ways, ()) if len(never) == len(ways) else ways)


guards = st.sampled_from(HOOKS).flatmap(
    lambda hook: st.builds(
        guard_that_speaks,
        st.just(hook.name),
        some(hook.calls, least=1, most=5),
        st.lists(st.lists(literals, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple),
    )
)


@st.composite
def rules(draw):
    """Return up to three rules."""
    count = draw(st.integers(0, 3))
    return [
        derived(
            [
                Guard(one.hook, one.calls, one.ways, anomalous)
                for one in draw(st.lists(guards, min_size=1, max_size=3))
            ],
            identity=f"r{number}",
            anomalous=anomalous,
            action=draw(st.sampled_from(["deny", "kill", "quarantine"])),
        )
        for number in range(count)
        for anomalous in [draw(st.booleans())]
    ]


ABOUT_FILES = [
    Does.EXEC, Does.READ, Does.WRITE, Does.MODULE, Does.FIRMWARE, Does.KEXEC,
]  # fmt: skip


@st.composite
def entries(draw):
    """Return up to three entries."""
    found = []
    for number in range(draw(st.integers(0, 3))):
        shape = draw(st.sampled_from(["plain", "file", "place", "network", "unix", "setuid"]))
        fields = {"does": draw(some(tuple(Does), least=1))}
        if shape == "file":
            fields = {
                "does": draw(some(ABOUT_FILES, least=1)),
                "kinds": draw(some(tuple(FileKind))),
                "under": draw(some((*TREE, "/gone"))),
                "same": draw(some((*TREE, "/gone"))),
            }
        elif shape == "place":
            fields = {
                "does": draw(some([Does.CREATE, Does.UNLINK, Does.RENAME, Does.LINK, Does.MOUNT], least=1)),
                "under": draw(some(TREE, least=1)),
            }
        elif shape == "network":
            fields = {
                "does": draw(some([Does.CONNECT, Does.BIND], least=1)),
                "networks": draw(some(("10.0.0.0/8", "fe80::/10", "::/0", "127.0.0.1/32"))),
                "ports": draw(some(((22, 22), (8000, 8999), (0, 65535)))),
                "families": draw(some((Family.INET, Family.INET6))),
            }
        elif shape == "unix":
            fields = {
                "does": (Does.CONNECT,),
                "sockets": draw(some(("/usr/bin/sh", "/tmp/sh"))),
                "families": draw(some((Family.UNIX,))),
            }
        elif shape == "setuid":
            fields = {"does": (Does.SETUID,), "to_root": draw(st.booleans())}
        found.append(
            Entry(
                id=f"e{number}",
                at=Location("enforce.yml", number + 1, 1),
                action=draw(st.sampled_from(list(Action))),
                mode=draw(st.sampled_from([None, *Mode])),
                by=draw(some(("/usr/bin/sh", "/usr/sbin/nginx", "/gone"))),
                unless_by=draw(some(("/usr/bin/sh", "/gone"))),
                anomalous=draw(st.booleans()),
                **fields,
            )
        )
    return tuple(found)


numbers = st.one_of(
    st.none(), st.sampled_from([0, 1, 2, 5, 7, 22, 0o1101, 1000, 8080, -1, 0xFFFFFFFF, 1 << 31])
)
paths = st.sampled_from([None, *PATHS])


@st.composite
def operations(draw, hooks=tuple(Hook)[1:]):
    """Return an operation at one of the hooks."""
    names = {
        word: draw(st.lists(paths, min_size=1, max_size=2).map(tuple))
        for word in ("program", "parent", "service", "executed", "asked", "target", "path")
        if draw(st.booleans())
    }
    if draw(st.booleans()):
        names["ancestors"] = draw(st.lists(paths, max_size=3).map(tuple))
    hook = draw(st.sampled_from(hooks))
    calls = [call for one in HOOKS if one.name == hook.name.lower() for call in one.calls]
    return Operation(
        hook,
        draw(st.sampled_from([*calls, *CALLS])),
        io_uring=draw(st.integers(0, 4)) == 0,
        ring=draw(st.booleans()),
        names=names,
        numbers={one.name.lower(): draw(numbers) for one in Number if draw(st.booleans())},
        address=draw(st.one_of(st.none(), st.sampled_from(ADDRESSES))),
        traits=Trait(draw(st.integers(0, 0x1FFFFF)) & ~Trait.CANARY & ~Trait.IO_URING),
        files=tuple(chain(path) for path in draw(some(TREE, most=2))),
        who=draw(st.sampled_from([None, FILES["/usr/bin/sh"], FILES["/usr/sbin/nginx"], Place(1, 1)])),
        untold=frozenset(draw(some((Word.PATH, Word.TARGET, Word.EXECUTED, Word.IMAGE, Word.PLACES)))),
        anomalous=draw(st.booleans()),
        cgroup=draw(st.sampled_from([None, None, *Mode])),
        canary=draw(st.integers(0, 9)) == 0,
    )
