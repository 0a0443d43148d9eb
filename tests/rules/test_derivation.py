# SPDX-License-Identifier: Apache-2.0
"""What is derived from conditions: it never says more than the rule, and says all of it where it can."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksentinel.bpf import abi
from ksentinel.codec import event_from_plain
from ksentinel.rules.derivation import MAX_NAMES, MAX_PREFIX, MAX_TESTS, MAX_WAYS, NOT_SEEN, derive, unmet
from ksentinel.rules.fields import View, sources
from ksentinel.rules.hooks import HOOKS, NO_HOOK, seen
from ksentinel.rules.ruleset import RuleSet
from ksentinel.rules.sigma import compile_rule

RULES = Path(__file__).parents[2] / "rules"
SHIPPED = RuleSet.load([RULES], trusted_uids=None).compiled
USERS = {0: "root", 33: "www-data", 1000: "Ann"}


def words(derived):
    """Return the ways of each guard as texts, by hook."""
    return {
        guard.hook: [" and ".join(literal.words() for literal in way) for way in guard.ways]
        for guard in derived.guards
    }


# --- what is derived, and what is left --------------------------------------------------------------------------

DECIDED = {
    ("process_creation", "s: {Image: /bin/sh}"): ["image is /bin/sh"],
    ("process_creation", "s: {Exe|startswith: /tmp/}"): ["executed begins with /tmp/"],
    ("process_creation", "s: {path|endswith|cased: /X/sh}"): ["asked ends with /X/sh (cased)"],
    ("process_creation", "s: {path: null}"): ["not (asked is known)"],
    ("process_creation", "s: {User: [root, 33, ann]}"): ["euid is 0 or 33 or 1000"],
    ("lineage", "s: {was|endswith: /nginx, ServiceImage: /usr/sbin/nginx}"): [
        "program ends with /nginx and service is /usr/sbin/nginx"
    ],
    ("process_creation", "s: {Image|startswith: [/a/, /b/], ParentImage: [/c, d]}"): [
        "image begins with /a/ or /b/ and parent is /c or d"
    ],
    ("process_creation", "s: {Image|endswith|all: [/a, /b]}"): ["image ends with /a and image ends with /b"],
    ("syscall", "s: {syscall: bpf, cmd: [BPF_PROG_LOAD, 6]}"): ["cmd is 5 or 6"],
    ("syscall", "s: {syscall: openat, flags: [O_WRONLY, O_TRUNC]}"): [
        "flags & 0o3 is 0o1 or flags & 0o1000 is 0o1000"
    ],
    ("syscall", "s: {syscall: chmod, mode: [S_ISUID, '0777']}"): [
        "mode & 0o4000 is 0o4000 or mode & 0o7777 is 0o777"
    ],
    ("syscall", "s: {syscall: setuid, uid|gte: 1000}"): ["uid is 1000 to 4294967295"],
    ("syscall", "s: {syscall: process_vm_writev, target_is: [other, parent]}"): ["about another process"],
    ("syscall", "s: {syscall: connect, reach: [private, public]}"): ["destination is private or public"],
    ("syscall", "s: {syscall: connect, DestinationIp|cidr: 10.0.0.0/8}"): ["destination is in 10.0.0.0/8"],
    ("syscall", "s: {syscall: connect, DestinationIp|startswith: '192.168.'}"): [
        "destination is in 192.168.0.0/16"
    ],
    ("syscall", "s: {syscall: connect, DestinationIp: [192.0.2.1, '2001:db8::1']}"): [
        "destination is in 192.0.2.1/32 or 2001:db8::1/128"
    ],
    ("network_connection", "s: {DestinationPort: [53, '123'], Initiated: true}"): [
        "destination is an Internet address and port is 53 or 123"
    ],
    ("file_event", "s: {TargetFilename: /etc/crontab, Image|startswith: /tmp/}"): [
        "target is known and opened for writing and target is /etc/crontab and program begins with /tmp/"
    ],
}


@pytest.mark.parametrize(("source", "selection"), DECIDED)
def test_decided(compiled, source, selection):
    """What the kernel can decide is decided there whole."""
    derived = derive(compiled(f"{selection}\ncondition: s", f"category: {source}"), USERS)

    assert (
        words(derived)[derived.guards[0].hook if source != "file_event" else "file_open"]
        == DECIDED[source, selection]
    )
    assert [line for line in derived.left if not line.startswith("system call")] == []
    assert all(guard.whole for guard in derived.guards)


UNDECIDED = {
    ("process_creation", "s: {CommandLine|contains: x}"): "CommandLine contains 'x' in selection s: arguments aren't compared in the kernel",
    ("process_creation", "s: [x]"): "keywords contains 'x' in selection s: nothing is searched for in the kernel",
    ("process_creation", "s: {Image|contains: x}"): "Image contains 'x' in selection s: nothing is searched for in the kernel",
    ("process_creation", "s: {Image|re: x}"): "Image re 'x' in selection s: nothing is searched for in the kernel",
    ("process_creation", "s: {Image: /a*b}"): "Image like '/a*b' in selection s: nothing is searched for in the kernel",
    ("process_creation", "s: {Image|endswith: sh}"): "Image endswith 'sh' in selection s: only whole names are compared in the kernel, not ends of them",
    ("process_creation", "s: {Image|endswith: /}"): "Image endswith '/' in selection s: only whole names are compared in the kernel",
    ("process_creation", "s: {Image|endswith: /ä}"): "Image endswith '/ä' in selection s: letters outside ASCII are compared in the kernel only if cased",
    ("process_creation", f"s: {{Image|endswith: {'/a' * (MAX_NAMES + 1)}}}"): f"Image endswith '{'/a' * (MAX_NAMES + 1)}' in selection s: more than {MAX_NAMES} names at the end aren't compared in the kernel",
    ("process_creation", f"s: {{Image|startswith: /{'a' * MAX_PREFIX}}}"): f"Image startswith '/{'a' * MAX_PREFIX}' in selection s: beginnings of over {MAX_PREFIX} bytes aren't compared in the kernel",
    ("process_creation", "s: {User|startswith: r}"): "User startswith 'r' in selection s: only whole names and numbers are compared in the kernel",
    ("process_creation", "s: {User: null}"): "User is null in selection s: whether there is one isn't asked in the kernel",
    ("lineage", "s: {Ancestors: /a}"): "Ancestors is '/a' in selection s: user space forgets the middle of long lines, so only that there is none is sure",
    ("syscall", "s: {syscall: chmod, was: /a}"): "was is '/a' in selection s: a process's earlier program is known only while it executes the next one",
    ("syscall", "s: {syscall: chmod, flags: 1}"): "flags is '1' in selection s: path_chmod doesn't see it",
    ("syscall", "s: {syscall: openat, flags: 1}"): "flags is '1' in selection s: flags are compared by their names, bit by bit",
    ("syscall", "s: {syscall: openat, flags|contains: O_}"): "flags contains 'O_' in selection s: only whole names of bits are compared in the kernel",
    ("syscall", "s: {syscall: kill, target_is: self}"): "target_is is 'self' in selection s: task_kill doesn't see it",
    ("syscall", "s: {syscall: ptrace, target_is: parent}"): "target_is is 'parent' in selection s: which other process is the parent isn't compared in the kernel",
    ("syscall", "s: {syscall: ptrace, target_is: group}"): "target_is is 'group' in selection s: only self, and parent together with other, are compared in the kernel",
    ("syscall", "s: {syscall: connect, DestinationIp|contains: '1.'}"): "DestinationIp contains '1.' in selection s: addresses are compared in the kernel by networks alone",
    ("syscall", "s: {syscall: connect, DestinationIp|startswith: '1'}"): "DestinationIp startswith '1' in selection s: addresses are compared in the kernel by networks alone",
    ("syscall", "s: {syscall: connect, reach: local}"): "reach is 'local' in selection s: only Internet addresses are compared in the kernel",
    ("syscall", "s: {syscall: openat2, flags: O_CLOEXEC}"): "flags is 'O_CLOEXEC' in selection s: the file that openat2 opens doesn't show it",
    ("syscall", "s: {syscall: setns}"): "system call setns: no hook is asked",
    ("syscall", "s: {syscall: read}"): "system call read: no hook for it",
}  # fmt: skip


@pytest.mark.parametrize(("source", "selection"), UNDECIDED)
def test_undecided(compiled, source, selection):
    """What the kernel can't decide has no guard, and the reason names the clause."""
    derived = derive(compiled(f"{selection}\ncondition: s", f"category: {source}"), USERS)

    assert derived.guards == ()
    assert derived.left[0] == UNDECIDED[source, selection]


def test_audit(compiled):
    """Audit's records come too late."""
    derived = derive(compiled("s: {type: SYSCALL}\ncondition: s", "service: auditd"))

    assert (derived.guards, derived.left) == ((), ("service auditd: audit's records are written afterwards",))


LEFT = "CommandLine contains 'x' in selection c: arguments aren't compared in the kernel"


@pytest.mark.parametrize(
    ("condition", "ways", "left"),
    [
        ("a and b", ["image is /a and parent is /b"], []),
        ("a or b", ["image is /a", "parent is /b"], []),
        ("not (a or b)", ["not (image is /a) and not (parent is /b)"], []),
        ("not (a and b)", ["not (image is /a)", "not (parent is /b)"], []),
        ("a or c", ["image is /a"], [LEFT]),
        ("a and (b or c)", ["image is /a and parent is /b"], [LEFT]),
        ("a and not c", None, [LEFT]),
        ("a and c", None, [LEFT]),
        ("a and not (b and c)", ["image is /a and not (parent is /b)"], [LEFT]),
        ("a and not a", None, []),
        ("a or (a and b)", ["image is /a"], []),
        ("(a or b) and (a or c)", ["image is /a"], [LEFT]),
    ],
)
def test_conditions(compiled, condition, ways, left):
    """A part of an ``or`` may stay away; a part of an ``and`` may not."""
    detection = "a: {Image: /a}\nb: {ParentImage: /b}\nc: {CommandLine|contains: x}\ncondition: " + condition
    derived = derive(compiled(detection))

    assert words(derived) == ({"bprm_creds_from_file": ways} if ways else {})
    assert list(derived.left) == left
    assert all(guard.whole is not bool(left) for guard in derived.guards)


ENDS = "Image endswith 'b' in selection d: only whole names are compared in the kernel, not ends of them"
LOCAL = "reach is 'local' in selection l: only Internet addresses are compared in the kernel"


@pytest.mark.parametrize(
    ("detection", "ways", "left"),
    [
        ("d: {syscall: bpf, Image|endswith: [/a, b]}\ncondition: d", ["program ends with /a"], [ENDS]),
        ("s: {syscall: bpf}\nd: {Image|endswith: [/a, b]}\ncondition: s and not d", None, [ENDS]),
        ("d: {syscall: bpf, Image|endswith|all: [/a, b]}\ncondition: d", None, [ENDS]),
        (
            "s: {syscall: bpf}\nd: {Image|endswith|all: [/a, b]}\ncondition: s and not d",
            ["not (program ends with /a)"],
            [ENDS],
        ),
        ("s: {syscall: connect}\nl: {reach: [local, public]}\ncondition: s and not l", None, [LOCAL]),
        ("s: {syscall: kill}\nl: {Image: null}\ncondition: s and not l", ["program is known"], []),
        ("s: {syscall: umount2, path|exists: true}\ncondition: s", ["path is known"], []),
        ("s: {syscall: chmod, mode: '888'}\ncondition: s", None, []),
        ("s: {syscall: mount, flags: O_CREAT}\ncondition: s", None, []),
        ("s: {syscall: mount}\nf: {flags: O_CREAT}\ncondition: s and not f", [""], []),
        ("s: {syscall: bpf}\nf: {syscall: bpf, cmd: 5}\ncondition: s or f", [""], []),
        ("s: {syscall: bpf}\nf: {syscall|re: 'x'}\ncondition: s and not f", [""], []),
        ("s: {syscall: bpf}\nf: {syscall: null}\ncondition: s and f", None, []),
    ],
)
def test_parts(compiled, detection, ways, left):
    """Parts that are known beforehand are gone; parts that can't be decided are missed on the safe side."""
    derived = derive(compiled(detection, "category: syscall"))

    assert [told for _, told in words(derived).items()] == ([ways] if ways else [])
    assert list(derived.left) == left


def test_calls_are_decided_beforehand(compiled):
    """Which system call it is needs no test: each has its own guard, and clauses about others are gone."""
    derived = derive(
        compiled(
            "w: {syscall: [open, openat], flags: O_TRUNC}\nr: {syscall|startswith: unlink}\nc: {syscall: rename}\n"
            "x: {path|re: x}\np: {path: /p}\ncondition: (w or r or (c and x)) and p",
            "category: syscall",
        )
    )
    told = {(guard.hook, guard.calls): guard.ways for guard in derived.guards}

    assert set(told) >= {("file_open", ("open", "openat")), ("path_unlink", ("unlink", "unlinkat"))}
    assert [literal.words() for literal in told["path_unlink", ("unlink", "unlinkat")][0]] == ["path is /p"]
    assert not any(guard.hook == "path_rename" for guard in derived.guards)
    assert "path re 'x' in selection x: nothing is searched for in the kernel" in derived.left


@pytest.mark.parametrize(
    ("count", "fits"), [(MAX_WAYS, True), (MAX_WAYS + 1, False)], ids=["as many as fit", "one more"]
)
def test_too_many_ways(compiled, count, fits):
    """A guard has so many ways at most."""
    selections = "\n".join(f"s{n}: {{Image: /{n}, ParentImage: /p{n}}}" for n in range(count))
    derived = derive(compiled(f"{selections}\ncondition: 1 of s*"))

    assert bool(derived.guards) is fits
    assert derived.left == (
        () if fits else (f"condition at bprm_creds_from_file: more than {MAX_WAYS} ways for it to hold",)
    )


@pytest.mark.parametrize(
    ("count", "fits"), [(MAX_TESTS, True), (MAX_TESTS + 1, False)], ids=["as many as fit", "one more"]
)
def test_too_many_tests(compiled, count, fits):
    """A way has so many tests at most."""
    names = ", ".join(f"/{n}" for n in range(count))
    derived = derive(compiled(f"s: {{Image|endswith|all: [{names}]}}\ncondition: s"))

    assert bool(derived.guards) is fits
    assert derived.left == (
        () if fits else (f"condition at bprm_creds_from_file: more than {MAX_TESTS} tests in one way",)
    )


def test_exponential(compiled):
    """A condition that has two to the thirtieth ways is refused at once."""
    selections = "\n".join(f"a{n}: {{Image: /{n}}}\nb{n}: {{ParentImage: /{n}}}" for n in range(30))
    condition = " and ".join(f"(a{n} or b{n})" for n in range(30))

    assert derive(compiled(f"{selections}\ncondition: {condition}")).guards == ()


# --- what a rule asks for ---------------------------------------------------------------------------------------

ASKS = """\
title: A rule
id: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11
level: high
logsource: {category: process_creation}
detection:
  s: {%s}
  condition: s
ksentinel: {%s}
"""


def asking(selection, response):
    """Return a rule that asks for something."""
    return compile_rule(ASKS % (selection, response), "x.yml", sources())


def test_unmet():
    """A rule that asks for inline and can't have it is wrong, at the place where it asks."""
    error = unmet(asking("CommandLine: x", "action: deny, inline: true"))

    assert str(error) == (
        "x.yml:8:12: asks for inline, and the kernel can't decide it: CommandLine is 'x' in selection s: arguments aren't "
        "compared in the kernel (leave inline out, or ask in the condition for what docs/guards.md lists)"
    )


@pytest.mark.parametrize(
    ("selection", "response"),
    [("Image: /x", "action: deny, inline: true"), ("CommandLine: x", "action: deny, inline: false")],
)
def test_met(selection, response):
    """One that can have it, or doesn't ask for it, is right."""
    assert unmet(asking(selection, response)) is None


def test_anomalous():
    """With two keys the score is the second one."""
    (guard,) = derive(asking("Image: /x", "action: deny, inline: true, when: anomalous")).guards
    event = event_from_plain({"event": "exec", "process": {"exe": "/x"}})

    assert [guard.speaks(seen(event, anomalous=score)[0]) for score in (True, False, None)] == [
        True,
        False,
        False,
    ]
    assert "only with a score over its threshold" in guard.narrower


# --- the guard and the rule say the same ------------------------------------------------------------------------

KELVIN = "/usr/bin/\N{KELVIN SIGN}mod"
PLAIN = [
    "/bin/sh",
    "/usr/sbin/nginx",
    "/usr/bin/NGINX",
    "/tmp/sh",
    "/tmp/X/sh",
    "/etc/crontab",
    "/usr/bin/kmod",
]
ODD = [
    KELVIN,
    "/tmp/../bin/sh",
    "/bin//sh",
    "//bin/sh",
    "sh",
    "",
    "/tmp/sh (deleted)",
    ".../bin/sh",
    "/memfd:sh",
    "/\udcff/sh",
]
HOSTS = [
    "127.0.0.1",
    "10.1.2.3",
    "8.8.8.8",
    "100.64.0.1",
    "0.0.0.0",  # noqa: S104 - nobody binds to it
    "::1",
    "fe80::1",
    "2600::1",
    "::ffff:10.1.2.3",
]
VALUES = {
    "is": [*PLAIN, KELVIN, "sh", "/tmp/../bin/sh"],
    "startswith": ["/tmp/", "/usr/", "/usr/bin/K", "/t", "tmp"],
    "endswith": ["/sh", "/SH", "/nginx", "/bin/sh", "/kmod"],
}
HARD = VALUES | {
    "endswith": [*VALUES["endswith"], "mod", "h"],
    "contains": ["mod", "/"],
    "re": ["sh$"],
}
"""With what the kernel can't decide, in one list with what it can."""
CALLS = [
    "connect",
    "open",
    "openat",
    "creat",
    "rename",
    "linkat",
    "unlinkat",
    "chmod",
    "bpf",
    "ptrace",
    "process_vm_writev",
]
OF_NAMES = {
    "process_creation": ["Image", "Exe", "path", "ParentImage"],
    "lineage": ["Image", "Exe", "path", "ParentImage", "ServiceImage", "Ancestors", "was"],
    "file_event": ["Image", "TargetFilename", "ParentImage", "ServiceImage", "Ancestors", "was"],
    "network_connection": ["Image", "ServiceImage"],
    "syscall": ["Image", "path", "ServiceImage"],
}
OTHERS = {
    "network_connection": {
        "DestinationPort": [53, 443],
        "DestinationPort|lt": [1024],
        "DestinationIp": ["8.8.8.8", "10.1.2.3", "010.1.2.3"],
        "DestinationIp|cidr": ["10.0.0.0/8", "fe80::/10"],
        "DestinationIp|startswith": ["10.", "127.0."],
        "reach": ["loopback", "private", "public", "local"],
    },
    "syscall": {
        "syscall": CALLS,
        "syscall|startswith": ["open"],
        "flags": ["O_WRONLY", "O_RDONLY", "O_CREAT", "O_TRUNC"],
        "mode": ["S_ISUID", "0755"],
        "request": ["PTRACE_ATTACH", 1],
        "target_is": ["self", "other", "parent"],
        "cmd": ["BPF_PROG_LOAD", 0],
        "User": ["root", "ann", 33],
    },
}
OTHERS |= {source: {"User": ["root", "ann", 33]} for source in ("process_creation", "lineage", "file_event")}


@st.composite
def selections(draw, source, kinds):
    """Return a selection of one or two items."""
    items = {}
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            field = draw(st.sampled_from(OF_NAMES[source]))
            kind = draw(st.sampled_from(list(kinds)))
            key = field if kind == "is" else f"{field}|{kind}"
            key += draw(st.sampled_from(["", "", "|cased"])) if kind != "re" else ""
            values = kinds[kind]
        else:
            key = draw(st.sampled_from(list(OTHERS[source])))
            values = OTHERS[source][key]
        chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True))
        items[key + ("|all" if len(chosen) > 1 and draw(st.integers(0, 4)) == 0 else "")] = chosen
    return items


@st.composite
def events(draw, source, paths, calls):
    """Return an event that a rule of that log source may speak of, as a person would write it."""
    path = st.sampled_from(paths)
    process = {"exe": draw(path), "was": draw(path), "pid": 7}
    process |= draw(st.sampled_from([{"euid": 0}, {"euid": 33}, {"uid": 1000}, {"uid": 0, "euid": 7}]))
    process["parent"] = {"exe": draw(path), "pid": 6}
    if draw(st.booleans()):
        process["parent"]["parent"] = {"exe": draw(path), "pid": 5}
        process["service"] = draw(st.sampled_from([{"pid": 5}, {"pid": 6}]))
    if source in {"process_creation", "lineage"}:
        return {"event": "exec", "process": process, "path": draw(path)}
    call = "connect" if source == "network_connection" else draw(st.sampled_from(calls))
    plain = {"event": "syscall", "process": process, "syscall": call}
    if call == "connect":
        host, port = draw(st.sampled_from(HOSTS)), draw(st.sampled_from([53, 443, 1023, 1024]))
        plain["address"] = {"family": "inet", "host": host, "port": port}
        if paths is not PLAIN and draw(st.integers(0, 5)) == 0:
            plain["address"] = {"family": "unix", "path": "/run/socket"}
    elif call == "bpf":
        plain["values"] = [["cmd", draw(st.sampled_from([0, 5, 9]))]]
    elif call in {"ptrace", "process_vm_writev"}:
        plain["target"] = draw(st.sampled_from([5, 6, 7, 99]))
        plain["values"] = [["request", draw(st.sampled_from([16, 1, 0x4206]))]] if call == "ptrace" else []
    else:
        plain["paths"] = [draw(path) for _ in range(2 if call in {"rename", "linkat"} else 1)]
        if call in {"open", "openat", "openat2", "unlinkat"}:
            plain["flags"] = draw(st.sampled_from([0, 1, 2, 3, 0o100, 0o1101, 0o200000, 0o200]))
        if call == "chmod":
            plain["mode"] = draw(st.sampled_from([0o755, 0o104755, 0o4755]))
    return plain


@st.composite
def rules_and_events(draw, kinds, paths, calls):
    """Return a log source, a detection, and some events."""
    source = draw(st.sampled_from(list(OF_NAMES)))
    parts = draw(st.lists(selections(source, kinds), min_size=3, max_size=3))
    condition = draw(
        st.recursive(
            st.sampled_from(["s0", "s1", "s2", "not s0", "s0 and not 1 of s1*", "1 of them", "all of them"]),
            lambda inner: st.one_of(
                inner.map(lambda text: f"not ({text})"),
                st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(
                    lambda three: f"({' '.join(three)})"
                ),
            ),
            max_leaves=4,
        )
    )
    lines = [f"s{number}: {json.dumps(part)}" for number, part in enumerate(parts)]
    happened = draw(st.lists(events(source, paths, calls), min_size=5, max_size=5))
    return f"category: {source}", "\n".join([*lines, f"condition: {condition}"]), happened


def answers(rule, plains):
    """Return what each guard answers of each event, checked against what the rule says of it, and whether it's all of the rule."""
    guards = derive(rule, USERS).guards
    given = []
    for event in map(event_from_plain, plains):
        fires = rule.source.applies(event) and rule.test(View(event))
        for at in seen(event, anomalous=True):
            for guard in guards:
                if guard.hook == at.hook and at.call in guard.calls:
                    answer = guard.holds(at)
                    assert answer in {None, fires}, f"{guard} of {at}"
                    given.append((guard.whole, answer))
    return given


@given(rules_and_events(HARD, [*PLAIN, *ODD], [*CALLS, "openat2"]))
@settings(max_examples=200, deadline=None)
def test_never_more_than_the_rule(compiled_for, case):
    """Whatever a rule asks and whatever happens: where a guard decides, it decides as the rule does."""
    source, detection, happened = case

    answers(compiled_for(source, detection), happened)


@given(rules_and_events(VALUES, PLAIN, ["open", "creat", "chmod", "bpf", "process_vm_writev"]))
@settings(max_examples=200, deadline=None)
def test_all_of_the_rule(compiled_for, case):
    """Of what the kernel can decide it decides all, where it sees all: a guard for the whole of a rule then has an answer."""
    source, detection, happened = case

    assert (True, None) not in answers(compiled_for(source, detection), happened)


@pytest.mark.parametrize(
    ("selection", "exe", "decided"),
    [
        ("{Exe: /usr/bin/kmod}", KELVIN, None),
        ("{Exe|cased: /usr/bin/kmod}", KELVIN, False),
        (f"{{Exe|cased: {KELVIN}}}", KELVIN, True),
        ("{Exe: /usr/bin/kmod}", "/usr/bin/KMOD", True),
        ("{Exe|cased: /usr/bin/kmod}", "/usr/bin/KMOD", False),
        ("{Exe|endswith: /bin/KMOD}", "/usr/bin/kmod", True),
        ("{Exe|endswith: /kmod}", "/usr/bin/xkmod", False),
        ("{Exe|startswith: /usr}", "/usr", True),
        ("{Exe|startswith: /tmp/}", "/tmp/x (deleted)", None),
        ("{Exe: /tmp/../bin/sh}", "/tmp/../bin/sh", None),
        ("{Exe: sh}", "sh", None),
        ("{Exe: sh}", "/bin/sh", False),
    ],
)
def test_spelling(compiled_for, selection, exe, decided):
    """Letters are compared as Sigma does, as far as bytes can tell; and a negated clause holds no more than a plain one."""
    event = {"event": "exec", "process": {"exe": exe}}
    for condition, answer in (("s", decided), ("not s", None if decided is None else not decided)):
        rule = compiled_for("category: process_creation", f"s: {selection}\ncondition: {condition}")

        assert answers(rule, [event]) == [(True, answer)]


@pytest.fixture(scope="module")
def compiled_for():
    """Return a function that compiles a detection of a log source, with names of users."""
    table = sources(USERS)

    def compile_detection(logsource, detection):
        text = (
            "title: A rule\nid: 2b3c1a52-6b4e-4c27-9a3a-6d3a5f0b7c11\nlevel: high\n"
            f"logsource: {{{logsource}}}\ndetection:\n  " + detection.replace("\n", "\n  ") + "\n"
        )
        return compile_rule(text, "x.yml", table)

    return compile_detection


# --- the rules that ship ----------------------------------------------------------------------------------------


def happened(rule):
    """Return a shipped rule's events."""
    lines = Path(rule.rule.file).with_suffix(".events.jsonl").read_text(encoding="utf-8").splitlines()
    plains = [json.loads(line) for line in lines]
    return [
        {name: value for name, value in event.items() if name not in {"match", "why"}}
        for plain in plains
        for event in plain.get("events", [plain])
    ]


@pytest.mark.parametrize("rule", SHIPPED, ids=lambda one: Path(one.rule.file).stem)
def test_shipped(rule):
    """Each of a shipped rule's guards decides its events as the rule does; what isn't decided has a reason."""
    answers(rule, happened(rule))
    derived = derive(rule)

    assert derived.guards or derived.left
    assert unmet(rule) is None


def test_shipped_are_decided():
    """Among those that ship there are some whose events a guard decides, both ways."""
    decided = {
        (Path(rule.rule.file).stem, answer) for rule in SHIPPED for _, answer in answers(rule, happened(rule))
    }

    assert decided >= {(stem, answer) for stem in ("ld_so_preload", "setuid_bit") for answer in (True, False)}


def test_many_clauses(compiled):
    """Of many values that can't be decided for one reason some are named."""
    (left,) = derive(compiled("s: {Image|contains: [a, b, c, d, e]}\ncondition: s")).left

    assert left == (
        "Image contains 'a' or contains 'b' or contains 'c' or 2 more in selection s: nothing is searched for in the kernel"
    )


# --- the tables -------------------------------------------------------------------------------------------------


def test_documented():
    """Every hook with its calls, every call without one, and every field that isn't compared stands in docs/guards.md."""
    page = (RULES.parent / "docs" / "guards.md").read_text(encoding="utf-8")
    rows = [f"| `{hook.name}` | {', '.join(hook.calls)} | {hook.why} |" for hook in HOOKS]
    rows += [f"| `{call}` | {why} |" for call, why in NO_HOOK.items()]
    rows += [f"| `{name}` | {why} |" for name, why in NOT_SEEN.items()]

    assert [row for row in rows if row not in page] == []
    assert MAX_PREFIX == abi.PREFIX
    assert {name for name, why in NOT_SEEN.items() if not why} == set()
