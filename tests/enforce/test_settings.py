# SPDX-License-Identifier: Apache-2.0
"""The operator's file: what it may say, and what is refused with its place."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksentinel.bpf.guard_abi import Action
from ksentinel.enforce import Mode, Posture
from ksentinel.enforce.settings import (
    MOST_ENTRIES,
    MOST_ITEMS,
    Does,
    Entry,
    Family,
    FileKind,
    Settings,
    load,
    parse_settings,
)
from ksentinel.errors import KsentinelError, Location, RuleError
from ksentinel.rules.document import MAX_BYTES

WHOLE = """\
posture: closed
modes: {ld_so_preload: enforce, kexec_load: off}
cgroups: {/system.slice/nginx.service: permissive}
pinned: [cgroup_release_agent]
never: {add: [/usr/sbin/mydaemon], remove: [/usr/bin/containerd]}
entries:
  - id: no-memfd
    title: No memory is executed
    deny: [exec]
    file: {kind: [memfd, not-roots], under: [/tmp], is: [/usr/bin/nc]}
    by: [/usr/sbin/nginx]
    unless_by: [/usr/bin/dpkg]
    when: anomalous
    action: kill
    mode: permissive
  - {id: net, deny: connect, network: {to: [10.0.0.0/8, '::1', 192.0.2.1], port: [22, 8000-8999], family: [inet, inet6]}}
  - {id: sock, deny: connect, network: {unix: /run/docker.sock, family: unix}}
  - {id: root, deny: setuid, to_root: true}
"""


def test_whole():
    """Every key there is."""
    found = parse_settings(WHOLE, "e.yml")
    memfd, net, sock, root = found.entries

    assert (found.posture, dict(found.modes), dict(found.cgroups)) == (
        Posture.CLOSED,
        {"ld_so_preload": Mode.ENFORCE, "kexec_load": Mode.OFF},
        {"/system.slice/nginx.service": Mode.PERMISSIVE},
    )
    assert (found.pinned, found.spare, found.unspare) == (
        ("cgroup_release_agent",),
        ("/usr/sbin/mydaemon",),
        ("/usr/bin/containerd",),
    )
    assert found.at["modes", "kexec_load"] == Location("e.yml", 2, 33)
    assert memfd == Entry(
        id="no-memfd",
        does=(Does.EXEC,),
        at=Location("e.yml", 7, 5),
        title="No memory is executed",
        action=Action.KILL,
        mode=Mode.PERMISSIVE,
        kinds=(FileKind.MEMFD, FileKind.NOT_ROOTS),
        under=("/tmp",),
        same=("/usr/bin/nc",),
        by=("/usr/sbin/nginx",),
        unless_by=("/usr/bin/dpkg",),
        anomalous=True,
    )
    assert (net.networks, net.ports, net.families) == (
        ("10.0.0.0/8", "::1/128", "192.0.2.1/32"),
        ((22, 22), (8000, 8999)),
        (Family.INET, Family.INET6),
    )
    assert (sock.sockets, sock.families, sock.action) == (("/run/docker.sock",), (Family.UNIX,), Action.DENY)
    assert (root.to_root, root.mode) == (True, None)


@pytest.mark.parametrize("text", ["{}", "entries: []", "modes: {}"])
def test_nothing(text):
    """Nothing said is everything by default."""
    assert parse_settings(text, "e.yml") == Settings(file="e.yml")


def entry(text):
    """Return a file with one entry, its id there already."""
    return f"entries:\n  - {{id: x, {text}}}"


WRONG = {
    "": "e.yml: an empty file",
    "[]": "e.yml:1:1: it must be a mapping",
    "postur: open": "e.yml:1:1: it has no 'postur' (did you mean posture?)",
    "posture: closd": "e.yml:1:10: posture 'closd' is none of open, closed (did you mean closed?)",
    "posture: [open]": "e.yml:1:10: posture that is none of open, closed",
    "modes: {x: strict}": "e.yml:1:12: mode of x 'strict' is none of off, permissive, enforce",
    "modes: [x]": "e.yml:1:8: modes must be a mapping",
    "modes: {x: off, x: off}": "stands here a second time",
    "cgroups: {system.slice: off}": "e.yml:1:11: cgroup 'system.slice' is no whole path",
    "cgroups: {/a/../b: off}": "cgroup '/a/../b' is no whole path",
    "pinned: {}": "pinned must be text",
    "pinned: []": "pinned is empty",
    "never: {add: [sshd]}": "e.yml:1:15: never add 'sshd' is no whole path",
    "never: {remove: [/usr/bin/dockr]}": "'/usr/bin/dockr' isn't spared by default",
    "never: {ad: [/a]}": "never has no 'ad' (did you mean add?)",
    "a: &x [1]\nb: *x": "anchors and aliases are not supported",
    "entries: {id: x}": "entries must be a list",
    "entries: [x]": "e.yml:1:11: an entry must be a mapping",
    "entries: [{deny: exec}]": "e.yml:1:11: an entry without id",
    "entries: [{id: x}]": "e.yml:1:11: an entry without deny",
    "entries: [{id: 'a b', deny: exec}]": "id 'a b' has other characters",
    "entries:\n- {id: x, deny: kexec}\n- {id: x, deny: kexec}": "e.yml:3:3: id 'x' is taken by e.yml:2:3",
    entry("deny: []"): "deny is empty",
    entry("deny: [run]"): "e.yml:2:20: deny 'run' is none of exec, read",
    entry("deny: exec, fil: {}"): "an entry has no 'fil' (did you mean file?)",
    entry("deny: exec, file: {}"): "x: file is empty",
    entry("deny: exec, file: /tmp"): "e.yml:2:31: file must be a mapping",
    entry("deny: exec, file: {kind: evil}"): "kind 'evil' is none of memfd",
    entry("deny: exec, file: {under: tmp}"): "under 'tmp' is no whole path",
    entry("deny: exec, file: {under: /tmp/}"): "under '/tmp/' is no whole path",
    entry("deny: exec, file: {under: //tmp}"): "under '//tmp' is no whole path",
    entry('deny: exec, file: {under: "/tmp\\n/x"}'): r"under '/tmp\x0a/x' has a character that can't be shown",
    entry('deny: exec, file: {under: "/tmp\\0"}'): r"under '/tmp\x00' has a character that can't be shown",
    entry('deny: exec, by: "/\\e[2J"'): r"by '/\x1b[2J' has a character that can't be shown",
    entry(f"deny: exec, by: /{'a' * 4095}"): "by is longer than 4095 bytes",
    entry("deny: exec, by: [[/a]]"): "by must be a path",
    entry("deny: exec, by: [~]"): "by must be a path",
    entry("deny: exec, by: /a, unless_by: /a"): "x: by and unless_by both name /a",
    entry("deny: exec, when: sometimes"): "when can only be anomalous",
    entry("deny: exec, action: allow"): "action 'allow' is none of log, deny, kill",
    entry("deny: exec, mode: on"): "mode 'on' is none of off, permissive, enforce",
    entry("deny: exec, to_root: true"): "x: to_root has no meaning with deny exec",
    entry("deny: setuid, to_root: 1"): "to_root must be true or false",
    entry("deny: [exec, unlink], file: {kind: memfd}"): "x: file kind has no meaning with deny unlink",
    entry("deny: [read, kill], file: {is: /a}"): "x: file has no meaning with deny kill (make it two entries)",
    entry("deny: exec, network: {port: 1}"): "x: network has no meaning with deny exec",
    entry("deny: listen, network: {port: 1}"): "x: network has no meaning with deny listen",
    entry("deny: bind, network: {unix: /a}"): "x: unix has no meaning with deny bind",
    entry("deny: connect, network: {to: 10.0.0.1/8}"): "to '10.0.0.1/8' is no network: 10.0.0.1/8 has host bits set",
    entry("deny: connect, network: {to: example.org}"): "to 'example.org' is no network",
    entry("deny: connect, network: {to: '::ffff:10.0.0.0/104'}"): "is IPv4 in IPv6",
    entry("deny: connect, network: {to: 'fe80::1%eth0'}"): "names an interface",
    entry("deny: connect, network: {port: 9-1}"): "ports '9-1' run backwards (say 1-9)",
    entry("deny: connect, network: {port: 65536}"): "port '65536' is over 65535",
    entry("deny: connect, network: {port: -1}"): "port '-1' is no port",
    entry("deny: connect, network: {port: ssh}"): "port 'ssh' is no port",
    entry("deny: connect, network: {port: 1, unix: /a}"): "x: no address has a network or a port, and a path",
    entry("deny: connect, network: {to: 10.0.0.0/8, family: [inet, unix]}"): "and a path",
    entry("deny: connect, network: {unix: /a, family: inet}"): "x: only family unix has paths",
    entry(f"deny: exec, by: [{', '.join(f'/{n}' for n in range(MOST_ITEMS + 1))}]"): "by has 257 items, more than 256",
    "entries: [" + ", ".join(f"{{id: x{n}, deny: kexec}}" for n in range(MOST_ENTRIES + 1)) + "]": "257 entries, more than 256",
    "modes: {" + ", ".join(f"x{n}: off" for n in range(MOST_ITEMS + 1)) + "}": "modes has 257 lines, more than 256",
    "a" * (1 << 17): "it must be a mapping",
    "[" * 100: "nested more than 32 levels deep",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[-40:])
def test_wrong(text):
    """What can't be meant is refused, with its place."""
    with pytest.raises(RuleError) as caught:
        parse_settings(text, "e.yml")

    assert WRONG[text] in str(caught.value)
    assert str(caught.value).isprintable()


def test_every_operation_may_stand_alone():
    """No operation needs more than a name."""
    found = parse_settings("entries: [" + ", ".join(f"{{id: {d}, deny: {d}}}" for d in Does) + "]", "e.yml")

    assert [entry.does for entry in found.entries] == [(does,) for does in Does]


@pytest.mark.parametrize(
    ("mode", "owner", "says"),
    [
        (0o600, None, None),
        (0o620, None, "writable by others"),
        (0o602, None, "writable by others"),
        (0o600, 12345, "who may not write"),
    ],
)
def test_trust(tmp_path, mode, owner, says):
    """What others could have written isn't read."""
    path = tmp_path / "enforce.yml"
    path.write_text(WHOLE)
    path.chmod(mode)
    trusted = {os.getuid()} if owner is None else {owner}
    if says is None:
        assert load(path, trusted_uids=trusted).file == str(path)
        return
    with pytest.raises(RuleError, match=says):
        load(path, trusted_uids=trusted)


def test_huge(tmp_path):
    """A file of more than a megabyte isn't read."""
    path = tmp_path / "enforce.yml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RuleError, match="larger than"):
        load(path, trusted_uids=None)


WORDS = [
    "posture", "open", "modes", "cgroups", "pinned", "never", "add", "remove", "entries", "id", "x", "deny", "exec", "connect",
    "file", "kind", "memfd", "under", "is", "/tmp", "network", "to", "10.0.0.0/8", "port", "22", "9-1", "unix", "by",
    "unless_by", "when", "anomalous", "action", "kill", "mode", "off", "to_root", "true", "~", "", "/", "\udcff", "\0", "::1%1",
]  # fmt: skip
TREES = st.recursive(
    st.sampled_from(WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=20,
)
ENTRY = st.fixed_dictionaries(
    {"id": st.just("x"), "deny": st.lists(st.sampled_from([str(does) for does in Does]), min_size=1, max_size=2)},
    optional={
        "file": st.dictionaries(st.sampled_from(["kind", "under", "is"]), TREES, max_size=2),
        "network": st.dictionaries(st.sampled_from(["to", "port", "family", "unix"]), TREES, max_size=2),
        "by": TREES,
        "when": TREES,
        "action": TREES,
    },
)  # fmt: skip


def flow(tree):
    """Return a tree as YAML on one line."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(flow, tree)) + "]"
    return "'" + tree + "'" if tree not in {"~", ""} else "~"


@given(
    st.one_of(
        st.text(max_size=200),
        TREES.map(flow),
        st.dictionaries(
            st.sampled_from(["posture", "modes", "cgroups", "pinned", "never", "entries"]), TREES
        ).map(flow),
        st.lists(ENTRY, min_size=1, max_size=2).map(lambda ones: "entries: " + flow(ones)),
        st.binary(max_size=100).map(lambda raw: raw.decode(errors="surrogateescape")),
    )
)
@settings(max_examples=400, deadline=None)
def test_anything(text):
    """Whatever is in a file: it is read, or refused with its place."""
    told = ""
    try:
        parse_settings(text, "e.yml")
    except KsentinelError as error:
        told = str(error)

    assert told == "" or told.startswith("e.yml")
