# SPDX-License-Identifier: Apache-2.0
"""Readiness: what would have been denied, and who has an answer to that."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import CAT, CROND, HTTPD, SECOND, SHELL, START, denial

from ksentinel.codec import event_from_plain
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.denial import Denied, identity, rule_behind
from ksentinel.enforce.places import Place
from ksentinel.enforce.readiness import DAY, plan, ready, still_speaks
from ksentinel.enforce.settings import parse_settings
from ksentinel.event import Address, ExecEvent, Origin, Outcome, SyscallEvent
from ksentinel.exceptions import Exceptions, parse_exceptions
from ksentinel.mutes import Mute
from ksentinel.rules.derivation import derive
from ksentinel.rules.ruleset import RuleSet

RULES = [
    derive(one) for one in RuleSet.load([Path(__file__).parents[2] / "rules"], trusted_uids=None).compiled
]
PRELOAD = "e7d47e3a-5947-4441-b39a-dc9bd5f4e52f"


def place(path):
    """Return where a path is said to be: each somewhere else, but for links."""
    return Place(1, abs(hash(path)) or 1)


def policy(entries="[]", rules=()):
    """Return a policy of entries."""
    return compile_policy(
        rules, parse_settings(f"entries: {entries}", "enforce.yml"), resolve=place, arch="x86_64"
    )


def call(syscall, *paths, process=SHELL, at=0, **fields):
    """Return an event of a system call."""
    return SyscallEvent(
        time_ns=START + at * SECOND,
        process=process,
        tid=1,
        origin=Origin.BPF,
        syscall=syscall,
        paths=paths,
        **fields,
    )


def execution(exe, was="/bin/bash", **fields):
    """Return an execution."""
    process = replace(CAT, exe=exe, was=was)
    return ExecEvent(time_ns=START, process=process, tid=1, origin=Origin.BPF, path=exe, **fields)


def met(compiled, *events, **options):
    """Return by rule and hook how many events it would have met."""
    return {(one.rule, one.hook): one.count for one in plan(events, compiled, **options).planned if one.count}


UNIX = Address("unix", path="/run/docker.sock")

ENTRIES = [
    ("deny: [exec], file: {is: [/usr/bin/nc]}", execution("/usr/bin/nc"), execution("/usr/bin/cat"), "bprm_check_security"),
    ("deny: [exec], file: {kind: [memfd]}", execution("/memfd:x (deleted)"), execution("/usr/bin/cat"), "bprm_check_security"),
    (
        "deny: [exec], file: {under: [/tmp]}, unless_by: [/usr/bin/dpkg]",
        execution("/tmp/a/b"),
        execution("/tmp/a/b", was="/usr/bin/dpkg"),
        "bprm_check_security",
    ),
    ("deny: [read], file: {is: [/etc/shadow]}", call("openat", "/etc/shadow", flags=0), call("openat", "/etc/shadow", flags=1), "file_open"),
    ("deny: [write], file: {under: [/etc]}", call("openat", "/etc/x/y", flags=1), call("openat", "/etc/x/y", flags=0), "file_open"),
    ("deny: [unlink], by: [/bin/sh]", call("unlink", "/x"), call("unlink", "/x", process=CROND), "path_unlink"),
    (
        "deny: [connect], network: {to: [10.0.0.0/8], port: [22]}",
        call("connect", address=Address("inet", "10.0.0.1", 22)),
        call("connect", address=Address("inet", "10.0.0.1", 23)),
        "socket_connect",
    ),
    (
        "deny: [connect], network: {unix: [/run/docker.sock]}",
        call("connect", address=UNIX),
        call("connect", address=replace(UNIX, path="/run/x")),
        "unix_stream_connect",
    ),
    ("deny: [module], by: [/bin/sh]", call("init_module"), call("kexec_load"), "kernel_load_data"),
    ("deny: [ptrace], by: [/bin/sh]", call("ptrace", values=(("request", 16),), target=9), call("ptrace", values=(("request", 1),), target=9), "ptrace_access_check"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "yes", "no", "hook"), ENTRIES, ids=[entry[0] for entry in ENTRIES])
def test_entries(entry, yes, no, hook):
    """An operator's entry would have met what it says, and nothing else."""
    compiled = policy(f"[{{id: e, {entry}}}]")

    assert met(compiled, yes, find=place) == {("entry:e", hook): 1}
    assert met(compiled, no, find=place) == {}


def test_by_names_alone():
    """Without looking at files it is the policy's own names that count."""
    compiled = policy("[{id: e, deny: [write], file: {under: [/etc]}, unless_by: [/usr/bin/vi]}]")

    assert met(compiled, call("openat", "/etc/x", flags=1)) == {("entry:e", "file_open"): 1}
    assert met(compiled, call("openat", "/srv/etc/x", flags=1)) == {}


def test_shipped_rules():
    """Each rule that is decided in the kernel would have met what fires it, at the hook it stands at."""
    compiled = policy(rules=RULES)
    found = plan([call("openat", "/etc/ld.so.preload", flags=1)], compiled)
    asking = {one.rule.id for one in RULES if one.rule.response and one.rule.response.inline}

    assert {one.rule for one in found.planned} == asking
    (one,) = [one for one in found.planned if one.count]
    assert (one.rule, one.hook, one.anomalous) == (PRELOAD, "file_open", True)
    assert one.verdict == "would have been denied, with a score over its threshold"


def test_who_and_what():
    """How often, by whom, an example, who is spared, and the whole as JSON."""
    compiled = policy(
        "[{id: e, title: Etc, deny: [write], file: {under: [/etc]}, unless_by: [/usr/bin/vi], mode: permissive}]"
    )
    events = [call("openat", f"/etc/{n}", flags=1, at=n) for n in range(3)]
    events += [call("openat", "/etc/x", process=CROND, flags=1, at=9), call("openat", "/x", flags=1)]
    found = plan(events, compiled, spared=lambda process: process is CROND)
    one = next(one for one in found.planned if one.hook == "file_open")

    assert (found.events, found.first_ns, found.last_ns) == (5, START, START + 9 * SECOND)
    assert (one.count, one.spared, one.mode) == (4, 1, "permissive")
    assert one.who == (("/bin/sh", "/usr/sbin/httpd", 3), ("/usr/sbin/cron", "/usr/sbin/cron", 1))
    assert event_from_plain(one.example) == events[0]
    told = found.to_plain()
    assert told["guards"][0]["verdict"] == "would have been denied"
    assert told["guards"][1]["verdict"] == "nothing met it"


def test_refused_before():
    """An execution that was refused left no other event; of an open there is one, and it isn't counted twice."""
    compiled = policy("[{id: e, deny: [exec], file: {is: [/x]}}, {id: f, deny: [write], file: {is: [/x]}}]")
    refused = denial(hook="bprm_check_security", call="execve", paths=("/x",))

    assert met(compiled, refused, find=place) == {("entry:e", "bprm_check_security"): 1}
    assert met(compiled, replace(refused, outcome=Outcome.WOULD_DENY), find=place) == {}
    assert met(compiled, denial(paths=("/x",), numbers=(("flags", 1),)), find=place) == {}


# Whether it may be enforced

NOW = START + 8 * DAY
ENTRY = policy("[{id: e, title: Etc, deny: [write], file: {under: [/etc]}, unless_by: [/usr/bin/vi]}]")
KNOWN = {identity(one): rule_behind(one) for one in (*ENTRY.rules, *policy(rules=RULES).rules)}


def would(process=SHELL, rule="entry:e", count=1, note="", **fields):
    """Return what is counted of a guard that would have denied."""
    fields = {
        "outcome": Outcome.WOULD_DENY,
        "numbers": (("flags", 1),),
        "paths": ("/etc/x",),
        "title": "Etc",
    } | fields
    return replace(Denied.of(denial(process, rule=rule, **fields)), count=count, note=note)


def asked(*denials, exceptions=None, mutes=(), **options):
    """Return whether a policy may be enforced after a week."""
    options = {"now_ns": NOW, "rules": KNOWN} | options
    return ready(denials, exceptions or Exceptions(), mutes, START - SECOND, **options)


def test_nothing_met():
    """A week without anything that would have been denied."""
    found = asked()

    assert found.ready
    assert (found.verdict, found.to_plain()["days"]) == ("ready", 8.0)


def test_too_early():
    """Less than a week says little, whatever was met in it."""
    found = asked(now_ns=START + 3 * DAY)

    assert found.verdict == "not yet: watched for 3.0 of 7 days"
    assert asked(now_ns=START - 9 * DAY).days == 0


def test_unresolved():
    """Each rule, executable and service wants an answer; the loudest are told first."""
    found = asked(
        would(count=2),
        would(hook="path_truncate", count=3),
        would(CROND, count=9),
        would(HTTPD, note="attack"),
    )

    assert not found.ready
    assert found.verdict == "not yet: 2 of 3 that would have been denied have no answer"
    assert [(one.exe, one.service, one.hooks, one.count, one.resolved) for one in found.findings] == [
        ("/usr/sbin/cron", "/usr/sbin/cron", ("file_open",), 9, False),
        ("/bin/sh", "/usr/sbin/httpd", ("file_open", "path_truncate"), 5, False),
        ("/usr/sbin/httpd", "/usr/sbin/httpd", ("file_open",), 1, True),
    ]


@pytest.mark.parametrize(
    "fields",
    [{"outcome": Outcome.LOGGED}, {"outcome": Outcome.SPARED}, {"at": -2}],
    ids=["only noted", "never denied anything", "before"],
)
def test_what_needs_no_answer(fields):
    """What wouldn't have been denied, or was before all that."""
    assert asked(would(**fields)).findings == ()


@pytest.mark.parametrize(
    ("one", "options", "answer"),
    [
        (would(note="attack"), {}, "noted as an attack"),
        (would(rule="entry:gone"), {}, "its rule is no longer loaded"),
        (would(), {"still": lambda _: False}, "the policy of today would let it through"),
    ],
)
def test_answers(one, options, answer):
    """What answers one."""
    found = asked(one, **options)

    assert (found.ready, found.findings[0].answer) == (True, answer)


def test_part_of_an_answer():
    """What only some of its hooks let through isn't answered."""
    found = asked(would(), would(hook="path_truncate"), still=lambda event: event.hook == "path_truncate")

    assert not found.ready


EXCEPTION = """
exceptions:
  - id: tracer
    rules: ld_so_preload
    where: {Image: /bin/sh}
    owner: ops
    reason: the tracer
    expires: 2027-01-01
"""


def test_exceptions_are_no_answer():
    """A guard knows no exceptions: what one expects would be denied all the same, and that is said."""
    exceptions = parse_exceptions(EXCEPTION, "x.yml", [one.rule for one in RULES])
    found = asked(would(rule=PRELOAD, paths=("/etc/ld.so.preload",)), exceptions=exceptions)

    assert not found.ready
    assert found.findings[0].why.startswith(
        "exception tracer of ops expects it, but guards know no exceptions"
    )
    assert "exception" not in asked(would(CROND, rule=PRELOAD), exceptions=exceptions).findings[0].why


def test_mutes_are_no_answer():
    """Nor is it one that nobody wants to hear of it."""
    mute = Mute("5f", START, NOW + 1, "too loud", rule="entry:e")
    found = asked(would(), mutes=[mute])

    assert found.findings[0].why.startswith("muted by 5f (too loud), which isn't an answer")
    assert "muted" not in asked(would(), mutes=[replace(mute, until_ns=NOW)]).findings[0].why
    assert "muted" not in asked(would(), mutes=[replace(mute, exe="/bin/cat")]).findings[0].why


def test_removed():
    """What had to make room, nobody knows."""
    assert asked(removed=3).verdict == (
        "not yet: 3 counts of denials had to make room for newer ones (max_denials)"
    )


def test_damaged_example():
    """One whose example can't be read any more is unresolved, whatever the policy of today says."""
    one = replace(would(), example={"event": "hook"})

    assert not asked(one, still=lambda _: False).ready


@pytest.mark.parametrize(
    ("entries", "speaks"),
    [
        ("[{id: e, deny: [write], file: {under: [/etc]}, unless_by: [/usr/bin/vi]}]", True),
        ("[{id: e, deny: [write], file: {under: [/etc]}, unless_by: [/bin/sh]}]", False),
        ("[{id: e, deny: [write], file: {under: [/srv]}}]", False),
        ("[{id: other, deny: [write], file: {under: [/etc]}}]", False),
        ("[{id: e, deny: [write], file: {under: [/etc], kind: [not-roots]}}]", True),
        ("[{id: e, deny: [write], file: {under: [/etc], kind: [setuid]}}]", False),
    ],
)
def test_still_speaks(entries, speaks):
    """Whether the policy of today would say it: by the same rule, about what the hook saw."""
    event = denial(rule="entry:e", numbers=(("flags", 1),), paths=("/etc/x",), traits=("write", "not_roots"))

    assert still_speaks(policy(entries), place)(event) == speaks


def test_what_no_event_shows():
    """An operation that can't be asked about again is taken to be denied."""
    event = denial(rule="entry:e", hook="socket_listen", call="listen", paths=())

    assert still_speaks(policy("[{id: e, deny: [listen], by: [/bin/cat]}]"))(event)
