# SPDX-License-Identifier: Apache-2.0
"""Record this host."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.options import (
    CgroupNames,
    ConfigFile,
    Duration,
    Exes,
    Json,
    Pids,
    Uids,
    parse_duration,
    read_config,
)
from ksentinel.commands.output import print_json, tell
from ksentinel.errors import InputError


def record(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", readable=False, help="The recording to write; must not exist."),
    ],
    duration: Duration = None,
    exe: Exes = None,
    pid: Pids = None,
    uid: Uids = None,
    cgroup: CgroupNames = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Record every system call of this host. To train on, to replay, to try rules on; needs root and BPF."""
    from ksentinel.recording import Writer
    from ksentinel.report import account_table

    settings = read_config(config)
    seconds = parse_duration(duration)
    if out.exists():  # said before the kernel is asked for anything
        raise InputError("exists already", at=out, remedy="name another file, or remove it")
    wanted, keep = host.watching(exe or [], pid or [], uid or [], cgroup or [])
    facts = host.facts() | {"exe": exe or [], "pid": pid or [], "uid": uid or [], "cgroup": cgroup or []}
    programs: set[str] = set()

    def attend(item: Any) -> None:
        if item is not None:
            programs.add(item.process.program)

    with ExitStack() as stack:
        stop = stack.enter_context(host.stopping(seconds))
        stream = stack.enter_context(
            host.live(settings, stop, wanted=wanted, keep=keep, attend=attend, tell=tell)
        )
        writer = stack.enter_context(Writer(out, facts))
        tell(f"recording to {out}" + ("" if seconds is None else f" for {seconds:g} s") + "; Ctrl-C stops")
        for batch in stream:
            writer.write(batch)
        account = stream.account()
        writer.account(account)
        writer.note({"ended_ns": time.time_ns(), "contents": host.hashes(programs)})
    print_json({"recording": str(out), "account": account}) if json else account_table(account)
