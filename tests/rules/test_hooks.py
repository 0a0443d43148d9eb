# SPDX-License-Identifier: Apache-2.0
"""What hooks see of an event: what the event tells for sure, and nothing else."""

from pathlib import Path

import pytest

from ksentinel.codec import event_from_plain
from ksentinel.rules.hooks import EXEC, HOOKS, NO_HOOK, seen, seen_path
from ksentinel.syscalls import names

KNOWN = {name for arch in ("x86_64", "i386", "aarch64") for name in names(arch).values()}


def call(name, **parts):
    """Return a system call."""
    return event_from_plain(
        {"event": "syscall", "syscall": name, "process": {"exe": "/bin/sh", "pid": 7}} | parts
    )


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("/bin/sh", True),
        ("/", True),
        ("/a b/\udcff", True),
        ("", False),
        ("sh", False),
        ("//bin/sh", False),
        ("/bin//sh", False),
        ("/bin/./sh", False),
        ("/bin/../sh", False),
        ("/bin/", False),
        (".../sh", False),
        ("/tmp/x (deleted)", False),
        ("/memfd:x", False),
    ],
)
def test_path(text, known):
    """A path is seen if it is absolute, whole and without detours."""
    assert seen_path(text) == (text if known else None)


@pytest.mark.parametrize(
    ("event", "hooks"),
    [
        (call("openat", paths=["/x"], flags=0), ["file_open"]),
        (call("openat", paths=["/x"], flags=0o101), ["file_open", "path_mknod"]),
        (call("openat", paths=["/x"], flags=0o10000000), []),
        (call("openat", flags=0o101), ["path_mknod"]),
        (call("creat", paths=["/x"]), ["file_open", "path_mknod"]),
        (call("unlinkat", paths=["/x"], flags=0), ["path_unlink"]),
        (call("unlinkat", paths=["/x"], flags=0x200), ["path_rmdir"]),
        (call("rmdir", paths=["/x"]), ["path_rmdir"]),
        (call("sendto"), []),
        (call("sendto", address={"family": "inet", "host": "192.0.2.1", "port": 1}), ["socket_sendmsg"]),
        (call("ptrace", values=[["request", 16]]), ["ptrace_access_check"]),
        (call("ptrace", values=[["request", 4]]), []),
        (call("process_vm_writev"), ["ptrace_access_check"]),
        (call("unshare", flags=0x10000000), ["userns_create"]),
        (call("unshare", flags=0x20000), []),
        (call("setns"), []),
        (call("execve"), []),
        (event_from_plain({"event": "exec"}), ["bprm_creds_from_file"]),
        (event_from_plain({"event": "exit"}), []),
    ],
)
def test_passes(event, hooks):
    """An event comes by the hooks that its call is decided at, if its arguments lead there."""
    assert [at.hook for at in seen(event)] == hooks


def test_exec():
    """An execution: the file and what was asked for, by a process that still is what it was."""
    parent = {"exe": "/usr/sbin/nginx", "pid": 6, "parent": {"exe": "x", "pid": 5}}
    process = {
        "exe": "/usr/bin/dash",
        "was": "/usr/sbin/nginx",
        "uid": 1,
        "euid": 2,
        "parent": parent,
        "service": {"pid": 6},
    }
    (at,) = seen(event_from_plain({"event": "exec", "process": process, "path": "./sh"}))

    assert at.names == {
        "image": ("/usr/bin/dash", None),
        "executed": ("/usr/bin/dash",),
        "asked": (None,),
        "program": ("/usr/sbin/nginx",),
        "parent": ("/usr/sbin/nginx",),
        "service": ("/usr/sbin/nginx",),
        "ancestors": ("/usr/sbin/nginx", None),
    }
    assert at.numbers == {"euid": 2}


@pytest.mark.parametrize(
    ("event", "target", "paths"),
    [
        (call("rename", paths=["/a", "/b"]), "/b", ("/a", "/b")),
        (call("link", paths=["/a", "/b"]), "/b", (None, "/b")),
        (call("symlink", paths=["/a", "/b"]), "/b", (None, "/b")),
        (call("mount", paths=["proc", "/b"]), "/b", (None, "/b")),
        (call("chmod", paths=["/a"]), "/a", ("/a",)),
        (call("chmod", paths=["/a"], truncated=True), None, (None,)),
        (call("chmod", paths=["/a"], unreadable=True), None, (None,)),
        (call("chmod"), None, (None,)),
    ],
)
def test_files(event, target, paths):
    """Files: the second path of two is the target, and sometimes the only one with a path."""
    (at,) = seen(event)

    assert (at.names["target"], at.names["path"]) == ((target,), paths)


def test_flags_of_openat2():
    """They stand in the caller's memory: the opened file has them, the name before it not."""
    opened, made = seen(call("openat2", paths=["/a"], flags=0o101))

    assert (opened.numbers["flags"], made.numbers["flags"]) == (0o101, None)


def test_flags_of_creat():
    """It has none, and means these."""
    assert seen(call("creat", paths=["/a"]))[0].numbers["flags"] == 0o1101


@pytest.mark.parametrize(("target", "another"), [(7, 0), (9, 0), (8, 1), (0, None), (-1, None), (None, None)])
def test_another(target, another):
    """Another process is who is neither this one nor this thread; a group is nobody."""
    event = call("process_vm_writev", tid=9, **({} if target is None else {"target": target}))

    assert seen(event)[0].numbers["another"] == another


@pytest.mark.parametrize(
    ("address", "destination"),
    [
        ({"family": "inet6", "host": "::ffff:192.0.2.1", "port": 1}, "192.0.2.1"),
        ({"family": "inet6", "host": "2001:db8::1", "port": 1}, "2001:db8::1"),
        ({"family": "unix", "path": "/run/x"}, None),
    ],
)
def test_destination(address, destination):
    """An Internet address, IPv4 in IPv6 as IPv4."""
    (at,) = seen(call("connect", address=address))

    assert (at.destination, at.numbers["port"]) == (destination, address.get("port"))


def test_calls_are_known():
    """Every call of the tables is one, and none has a hook and a reason to have none."""
    hooked = {name for hook in HOOKS if hook is not EXEC for name in hook.calls}

    assert (hooked | set(EXEC.calls) | set(NO_HOOK)) - KNOWN == set()
    assert hooked & set(NO_HOOK) == set()


def test_kernel_has_them():
    """This kernel has a place for a BPF program at each hook; those for paths come with CONFIG_SECURITY_PATH."""
    types = Path("/sys/kernel/btf/vmlinux")
    known = types.read_bytes() if types.exists() else b""
    if b"bpf_lsm_" not in known:
        pytest.skip("BTF: no LSM hooks in it (boot a kernel with CONFIG_DEBUG_INFO_BTF and CONFIG_BPF_LSM)")
    paths = b"\0bpf_lsm_path_mkdir\0" in known

    assert [
        hook.name
        for hook in HOOKS
        if (paths or not hook.name.startswith("path_")) and f"\0bpf_lsm_{hook.name}\0".encode() not in known
    ] == []
