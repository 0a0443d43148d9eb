# SPDX-License-Identifier: Apache-2.0
"""Watch this host, and ask a monitor how it is."""

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
    read_config,
)
from ksentinel.commands.output import print_json, tell
from ksentinel.commands.watching import watch
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
    settings = read_config(config)
    watch(
        settings,
        duration=duration,
        model=model,
        rules=rules,
        store=store,
        scores=scores,
        watched=host.watching(exe or [], pid or [], uid or [], cgroup or []),
        socket=control_socket(settings, control, off=no_control),
        quiet=no_control,
        json=json,
    )


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


def control_socket(settings: Config, named: Path | None, *, off: bool) -> Path | None:
    """Return where the control socket is to be; None if there is to be none."""
    if named is not None and off:
        raise UsageError("--control and --no-control exclude each other", remedy="say one of them")
    if off:
        return None
    return named or (Path(settings.control.socket) if settings.control.socket else host.default_socket())
