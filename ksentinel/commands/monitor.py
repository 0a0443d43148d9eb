# SPDX-License-Identifier: Apache-2.0
"""Watch this host, and ask a monitor how it is."""

import platform
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ksentinel import host
from ksentinel.commands.options import (
    CgroupNames,
    ConfigFile,
    ControlFile,
    Duration,
    Exes,
    Json,
    ModelFolder,
    Pids,
    RulePaths,
    ScoresFile,
    StoreFile,
    Uids,
    parse_duration,
    read_config,
)
from ksentinel.commands.output import print_json, tell
from ksentinel.commands.walk import build_pipeline, finish, load_in_force, outlet_of
from ksentinel.config import Config
from ksentinel.errors import UsageError

_RELOAD_SECONDS = 300.0  # thousands of rules take their time


def monitor(
    duration: Duration = None,
    model: ModelFolder = None,
    rules: RulePaths = None,
    store: StoreFile = None,
    scores: ScoresFile = None,
    exe: Exes = None,
    pid: Pids = None,
    uid: Uids = None,
    cgroup: CgroupNames = None,
    control: ControlFile = None,
    no_control: Annotated[bool, typer.Option("--no-control", help="Have no control socket.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """
    Watch this host live. Needs root and BPF.

    The kernel scores every system call; what is unusual, and a sample of the rest, meets the model, and every argument
    event the rules. SIGHUP, like `ksentinel reload`, has it load the rules anew.
    """
    from ksentinel.mutes import in_words

    settings = read_config(config)
    seconds = parse_duration(duration)
    wanted, keep = host.watching(exe or [], pid or [], uid or [], cgroup or [])
    table = None
    if model is not None:
        from ksentinel.detectors import artifact

        table = artifact.load_kernel(model, arch=platform.machine(), uid=host.user())
        manifest = artifact.read_manifest(model, uid=host.user())
    socket = _socket(settings, control, off=no_control)
    kept = store or host.default_store()
    mutes = host.mutes_in_force(settings, kept)
    pipeline = build_pipeline(settings, rules, model, arch=platform.machine(), mutes=mutes, clock=host.now_ns)
    with ExitStack() as stack:
        contents = None
        if model is not None:
            contents = stack.enter_context(host.contents(manifest, pipeline.model, tell))
        reloader = stack.enter_context(
            host.reloading(lambda: load_in_force(settings, rules), pipeline, kept, tell)
        )
        stop = stack.enter_context(host.stopping(seconds, reloader.signal))
        stream = stack.enter_context(
            host.live(
                settings,
                stop,
                wanted=wanted,
                keep=keep,
                table=table,
                gate=table is not None,
                contents=contents,
                tell=tell,
            )
        )
        outlet = stack.enter_context(outlet_of(kept, settings, pipeline, json=json))
        if scores is not None:
            from ksentinel.sinks.scores import Scores

            pipeline.watch = stack.enter_context(Scores(scores))
        alone = " by rules alone (no --model)" if model is None else ""
        if socket is not None:
            stack.enter_context(
                host.control(
                    settings, socket, stream, pipeline, model=model, store=kept, reloader=reloader, tell=tell
                )
            )
        elif not no_control:
            tell("no control socket: XDG_RUNTIME_DIR is not set (name one by --control)")
        tell(
            f"watching{alone}"
            + ("" if seconds is None else f" for {seconds:g} s")
            + f", alerts to {kept}; Ctrl-C stops"
        )
        pipeline.noise.expire(host.now_ns())  # what was over before this run
        for mute in mutes.all():
            tell(f"still muted: {in_words(mute)}")
        for alert in pipeline.walk(stream):
            outlet(alert)
        account = stream.account()
        mutes.save()
    finish([account], pipeline.account(), [], pipeline.noise.told()["suppressed"], json=json)


def status(control: ControlFile = None, json: Json = False) -> None:
    """Ask a running monitor how it is: what it watches with, what it has seen and lost, what it costs."""
    from ksentinel.protocol import ask
    from ksentinel.report import status_table
    from ksentinel.status import Status

    path = control or host.socket_to_ask()
    plain = ask(path, "status", trusted={0, host.user()})
    told = Status.from_plain(plain, path)
    print_json(plain) if json else status_table(told)


def reload(control: ControlFile = None, json: Json = False) -> None:
    """Have a running monitor load its rules anew: all of them, or it keeps those that it has."""
    from ksentinel.protocol import ask

    path = control or host.socket_to_ask()
    plain = ask(path, "reload", trusted={0, host.user()}, seconds=_RELOAD_SECONDS)
    if json:
        print_json(plain)
    else:
        tell(f"{plain['rules']} rules are in use now")


def _socket(settings: Config, named: Path | None, *, off: bool) -> Path | None:
    """Return where the control socket is to be; None if there is to be none."""
    if named is not None and off:
        raise UsageError("--control and --no-control exclude each other", remedy="say one of them")
    if off:
        return None
    return named or (Path(settings.control.socket) if settings.control.socket else host.default_socket())
