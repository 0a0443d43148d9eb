# SPDX-License-Identifier: Apache-2.0
"""Enforce on this host, see what that would do, and get out of it again."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.monitor import control_socket
from ksentinel.commands.options import (
    ConfigFile,
    ControlFile,
    Duration,
    Json,
    ModelFolder,
    RulePaths,
    ScoresFile,
    StoreFile,
    parse_duration,
    read_config,
)
from ksentinel.commands.output import print_json, tell
from ksentinel.config import Config
from ksentinel.errors import HostError, InputError, KsentinelError, UsageError

_ANSWER_SECONDS = 30.0
_PROOF_SECONDS = 120.0
_ASK_EVERY = 0.2

ModeName = Annotated[
    str | None,
    typer.Option(
        "--mode", metavar="MODE", help="off, permissive or enforce; default: the configuration's, permissive."
    ),
]


def enforce(
    context: typer.Context,
    mode: ModeName = None,
    degrade: Annotated[
        bool,
        typer.Option(
            "--degrade",
            help="Where nothing can be enforced, or it can't be verified, go on as `monitor` does, or permissive, and alert, instead of ending.",
        ),
    ] = False,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="TIME",
            help="Permissive again after, e.g., 5m, unless confirmed from a new login.",
        ),
    ] = None,
    on_exit: Annotated[
        str | None,
        typer.Option(
            "--on-exit",
            metavar="WHAT",
            help="When it is killed or crashes: open (guards end) or hold (they stay for a while); default: the configuration's, open.",
        ),
    ] = None,
    duration: Duration = None,
    model: ModelFolder = None,
    rules: RulePaths = None,
    store: StoreFile = None,
    scores: ScoresFile = None,
    control: ControlFile = None,
    no_control: Annotated[bool, typer.Option("--no-control", help="Have no control socket.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """
    Watch this host live as `monitor` does, with guards in the kernel that refuse what rules forbid. Needs root and BPF LSM.

    Guards are proven at the start and every minute. What can't be proven is an alert and, if it is to enforce, the end: exit status 1.
    """
    if context.invoked_subcommand is not None:
        given = [
            name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
        ]
        if given:
            raise UsageError(
                f"--{given[0].replace('_', '-')} stands before {context.invoked_subcommand}",
                remedy="options of a subcommand stand behind its name",
            )
        return
    from ksentinel.commands import enforcing

    settings = read_config(config)
    wanted_mode = _mode(mode or settings.enforce.mode)
    wanted_exit = on_exit or settings.enforce.on_exit
    if wanted_exit not in {"open", "hold"}:
        raise UsageError(f"--on-exit {wanted_exit!r} is none of open, hold")
    within = parse_duration(confirm, "--confirm")
    socket = control_socket(settings, control, off=no_control)
    if within is not None and socket is None:
        raise UsageError("--confirm needs the control socket", remedy="leave out --no-control")
    refused = enforcing.preflight()
    if refused is not None:
        if not degrade:
            raise refused
        tell(f"DEGRADED: {refused}: rules and model are asked as by `monitor`, and nothing is denied")
    from ksentinel.commands.watching import watch
    from ksentinel.enforce import OnExit
    from ksentinel.enforce.enforcement import Wanted
    from ksentinel.enforce.rollout import Boots, Confirmation

    entries = enforcing.load_settings(settings)
    kept = store or host.default_store()
    most, why = enforcing.start_of(
        Boots(enforcing.boots_file(kept.parent), os.geteuid()),
        # What is never enforced keeps no host from coming up.
        refused is None and enforcing.enforces(wanted_mode, entries),
    )
    began = enforcing.boot_ns()
    wanted = Wanted(
        wanted_mode,
        degrade=degrade,
        on_exit=OnExit(wanted_exit),
        confirm=None
        if within is None
        else Confirmation(began, int(within * 1e9), enforcing.login_of(os.getpid())),
        most=most,
        why=why,
        sentence_ns=int(settings.enforce.sentence_seconds * 1e9),
        refused="" if refused is None else refused.what,
    )

    def begin(stream: Any, in_force: Any, at: Path) -> AbstractContextManager[Any]:
        return enforcing.enforcing(
            settings,
            stream,
            enforcing.derived(in_force.rules, in_force.policy),
            entries,
            wanted,
            store=at,
            socket=socket,
            state=at.parent,
            refused=refused,
        )

    watch(
        settings,
        duration=duration,
        model=model,
        rules=rules,
        store=kept,
        scores=scores,
        watched=(None, None),
        socket=socket,
        quiet=no_control,
        json=json,
        enforce=begin,
    )


def switch_mode(
    mode: Annotated[str, typer.Argument(metavar="MODE", help="off, permissive or enforce.")],
    rule: Annotated[str, typer.Option("--rule", metavar="NAME", help="Of this rule or entry alone.")] = "",
    cgroup: Annotated[
        str,
        typer.Option(
            "--cgroup",
            metavar="PATH",
            help="Of this control group, and those below it, alone: /system.slice/nginx.service.",
        ),
    ] = "",
    control: ControlFile = None,
    json: Json = False,
) -> None:
    """
    Switch the mode of a running `ksentinel enforce`: the host's, or until the next reload a rule's or a control group's.

    A mode of the host ends a release. Exit status 1 if it isn't verified.
    """
    from ksentinel.report.enforce import posture_lines

    told = _proven(control, _ask(control, "mode", mode=str(_mode(mode)), rule=rule, cgroup=cgroup))
    print_json(told) if json else posture_lines(told)
    if not rule and not cgroup and told["verified"] != told["requested"]:
        raise typer.Exit(1)


def confirm(control: ControlFile = None, json: Json = False) -> None:
    """Confirm, from a new login, that one can still log in, or that two boots weren't the guards' doing: enforcement goes on."""
    from ksentinel.report.enforce import posture_lines

    told = _proven(control, _ask(control, "confirm"))
    print_json(told) if json else posture_lines(told)


def release(
    pid: Annotated[
        int | None,
        typer.Option(
            "--pid", metavar="N", min=1, help="End the verdict on this process and those below it alone."
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also if no ksentinel answers, and what one that has ended has left."),
    ] = False,
    control: ControlFile = None,
    json: Json = False,
) -> None:
    """Have nothing denied any more, at once, until a mode is asked for again."""
    from ksentinel.commands.enforcing import key_of
    from ksentinel.enforce.left import PINS, left

    if pid is not None and everything:
        raise UsageError("--pid and --all exclude each other", remedy="say one of them")
    told: dict[str, Any] = {"released": False, "lifted": 0, "left": []}
    failed: list[KsentinelError] = []
    if everything:
        # First what needs nobody's answer.
        for one in left(PINS, os.geteuid()):
            found: dict[str, Any] = {"pid": one.pid, "released": False, "guards": list(one.holds)}
            told["left"].append(found)
            # What can't be done with one is no reason to leave the others.
            try:
                found["released"] = one.release()
                if not one.runs(key_of):
                    one.remove()
            except HostError as error:
                failed.append(error)
            told["released"] |= found["released"]
    try:
        told |= _ask(control, "release", pid=pid or 0)
    except KsentinelError as error:
        if not everything:
            raise
        told["answer"] = str(error)
    if json:
        print_json(told | ({"failed": [str(error) for error in failed]} if failed else {}))
    else:
        _tell_released(told, pid)
    if failed:
        raise failed[0]


def _tell_released(told: Mapping[str, Any], pid: int | None) -> None:
    for one in told["left"]:
        guards = f", {len(one['guards'])} programs that were pinned" if one["guards"] else ""
        tell(
            f"the ksentinel of PID {one['pid']}: {'released' if one['released'] else 'had no switch'}{guards}"
        )
    if pid is not None:
        tell(f"{told['lifted']} processes are no longer under a verdict")
    elif told["released"]:
        tell("nothing is denied any more; `ksentinel enforce mode` asks for a mode again")
    else:
        tell("nothing was enforced")


def plan(
    since: Annotated[str, typer.Option(metavar="TIME", help="From then on: 7d, '2h ago', 14:30.")] = "7d",
    recording: Annotated[
        Path | None,
        typer.Option(
            "--recording", metavar="FILE", readable=False, help="Ask this recording, not the store."
        ),
    ] = None,
    rules: RulePaths = None,
    store: StoreFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Say what guards would have met among the events that are kept. Compiles the policy, and enforces nothing."""
    from ksentinel.enforce.places import resolve
    from ksentinel.enforce.readiness import plan as planned
    from ksentinel.report.enforce import plan_table

    settings = read_config(config)
    kept = store or host.default_store()
    compiled, never = _policy(settings, rules, kept)
    executables = {one.place for one in never if one.place is not None}
    found = planned(
        _recorded(recording) if recording is not None else _kept(store or host.store_to_read(), since),
        compiled,
        find=resolve,
        spared=lambda process: process.exe.startswith("/") and resolve(process.exe) in executables,
    )
    print_json(found.to_plain()) if json else plan_table(found)


def ready(
    days: Annotated[
        float, typer.Option("--days", metavar="N", help="How many days they must have been unchanged.")
    ] = 7.0,
    rules: RulePaths = None,
    store: StoreFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Say whether permissive guards may be enforced: how long they are unchanged, which would-be denials have no answer. Exit 1: no."""
    from ksentinel.commands.enforcing import changes_file
    from ksentinel.commands.walk import load_exceptions, load_rules, rule_paths
    from ksentinel.enforce.denial import identity, rule_behind
    from ksentinel.enforce.places import resolve
    from ksentinel.enforce.readiness import ready as judged
    from ksentinel.enforce.readiness import still_speaks
    from ksentinel.enforce.rollout import read_changes
    from ksentinel.report.enforce import ready_table
    from ksentinel.store import Store

    settings = read_config(config)
    now_ns = host.now_ns()
    place = store or host.store_to_read()
    compiled, _ = _policy(settings, rules, place)
    known = read_changes(changes_file(place.parent), host.user())
    names = {identity(one) for one in compiled.rules}
    since_ns = max((known[name].since_ns if name in known else now_ns for name in names), default=now_ns)
    exceptions = load_exceptions(settings, load_rules(rule_paths(settings, rules)))
    with Store(place, host.user()) as kept:
        found = judged(
            list(kept.denials()),
            exceptions,
            list(host.mutes_in_force(settings, place).all()),
            since_ns,
            now_ns=now_ns,
            rules={identity(one): rule_behind(one) for one in compiled.rules},
            wanted=days,
            removed=kept.removed()["denials_removed"],
            still=still_speaks(compiled, resolve),
        )
    print_json(found.to_plain()) if json else ready_table(found)
    raise typer.Exit(0 if found.ready else 1)


def denials(
    since: Annotated[str, typer.Option(metavar="TIME", help="From then on: 7d, '2h ago', 14:30.")] = "7d",
    store: StoreFile = None,
    json: Json = False,
) -> None:
    """List what guards denied, or would have: by rule, hook and program, with how often."""
    from ksentinel.report.enforce import denials_table
    from ksentinel.store import Store

    with Store(store or host.store_to_read(), host.user()) as kept:
        found = list(kept.denials(_since(since)))
        removed = kept.removed()["denials_removed"]
    if json:
        for one in found:
            print_json(one.to_plain())
    else:
        denials_table(found, removed=removed)


def note(
    rule: Annotated[
        str, typer.Argument(metavar="RULE", help="Its id, as `ksentinel enforce ready` shows it.")
    ],
    exe: Annotated[str, typer.Argument(metavar="EXE", help="The executable that was denied.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT", help="attack: it is to be denied. Other words are kept, and are no answer."
        ),
    ] = "attack",
    service: Annotated[
        str | None, typer.Option("--service", metavar="EXE", help="Of this service alone.")
    ] = None,
    store: StoreFile = None,
) -> None:
    """Answer a would-be denial, or write down what somebody has found out about it."""
    from ksentinel.store import Store

    place = store or host.store_to_read()
    if not place.exists():
        raise InputError("there is no store", at=place, remedy="name one by --store")
    with Store(place, host.user(), write=True) as kept:
        services = (
            {service}
            if service is not None
            else {one.service for one in kept.denials() if (one.rule, one.exe) == (rule, exe)}
        )
        noted = sum(kept.note(rule, exe, one, what) for one in services)
    if not noted:
        raise UsageError(
            f"nothing of {exe} was denied by {rule}", remedy="`ksentinel enforce denials --json` lists them"
        )
    tell(f"noted for {noted} of the denials' counts")


def never(config: ConfigFile = None, json: Json = False) -> None:
    """Show who is never denied anything, and why; in ksentinel's place stands this command."""
    from ksentinel.commands.enforcing import load_settings, spared_here
    from ksentinel.report.enforce import never_table

    found = spared_here(load_settings(read_config(config)))
    if json:
        for one in found:
            print_json(
                {"who": one.who, "why": one.why, "there": one.key() is not None, "children": one.children}
                | ({} if one.process is None else {"pid": one.process.pid})
            )
    else:
        never_table(found)


def _mode(name: str) -> Any:
    from ksentinel.enforce import Mode

    if name not in set(Mode):
        raise UsageError(f"mode {name!r} is none of {', '.join(Mode)}")
    return Mode(name)


def _ask(control: Path | None, request: str, **arguments: Any) -> Any:
    from ksentinel.protocol import ask

    path = control or host.socket_to_ask()
    return ask(path, request, trusted={0, host.user()}, seconds=_ANSWER_SECONDS, **arguments)


def _proven(control: Path | None, told: Any) -> Any:
    """Return what `status` says of enforcement once what is in force has been tried, or that takes too long."""
    end = time.monotonic() + _PROOF_SECONDS
    while told["proving"] and time.monotonic() < end:
        time.sleep(_ASK_EVERY)
        told = _ask(control, "status")["enforcement"]
    return told


def _since(text: str) -> int:
    from ksentinel.search import parse_time

    return parse_time(text, "--since", host.now(), host.local)


def _policy(settings: Config, rules: list[Path] | None, store: Path) -> tuple[Any, Any]:
    """Return the policy that would be enforced, and who is spared; raises RuleError."""
    from ksentinel.commands.enforcing import compile_here, derived, load_settings, spared_here
    from ksentinel.commands.walk import load_policy, load_rules, rule_paths

    entries = load_settings(settings)
    ruleset = load_rules(rule_paths(settings, rules))
    compiled = compile_here(derived(ruleset, load_policy(settings)), entries, store=store, socket=None)
    for one in compiled.places_missing:
        tell(f"{one.at}: {one.path} isn't there")
    return compiled, spared_here(entries)


def _kept(store: Path, since: str) -> Iterator[Any]:
    """Yield the events that are kept around alerts."""
    from ksentinel.codec import event_from_plain
    from ksentinel.search import Search
    from ksentinel.store import Store

    with Store(store, host.user()) as kept:
        found = kept.events(Search(since_ns=_since(since)), kept.bounds.max_events)
    yield from (event_from_plain(one.body) for one in found.found if one.facts.kind != "window")


def _recorded(recording: Path) -> Iterator[Any]:
    """Yield the events of a recording."""
    from ksentinel.recording import Reader
    from ksentinel.window import Window

    with Reader(recording) as reader:
        for batch in reader:
            yield from (item for item in batch if not isinstance(item, Window))
