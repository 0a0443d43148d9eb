# SPDX-License-Identifier: Apache-2.0
"""What happened around alerts."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.options import Json, StoreFile
from ksentinel.commands.output import print_json
from ksentinel.commands.walk import arch_of
from ksentinel.errors import UsageError


def events(
    alert_id: Annotated[
        str | None, typer.Argument(metavar="[ALERT_ID]", help="Only of this alert: its id, or how it begins.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="From then on: 10m, '2h ago', 14:30, 2024-05-01T14:30:00Z."),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Up to then.")] = None,
    pid: Annotated[int | None, typer.Option(metavar="N", min=0, help="This process or thread alone.")] = None,
    exe: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Executables like this: nginx, '/tmp/*'.")
    ] = None,
    path: Annotated[str | None, typer.Option(metavar="PATTERN", help="That name such a file.")] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="That name such an address: 10.0.0.0/8, 10.0.0.1:443, :53."),
    ] = None,
    syscall: Annotated[
        str | None, typer.Option(metavar="NAME", help="This system call; windows in which it occurs, too.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="exec, fork, exit, syscall, audit or window.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most: the last.", min=1)] = 1000,
    recording: Annotated[
        Path | None,
        typer.Option(
            "--recording", metavar="FILE", readable=False, help="Search this recording, not the store."
        ),
    ] = None,
    store: StoreFile = None,
    json: Json = False,
) -> None:
    """Search the events around alerts, or a recording. What a process and its family did before and after."""
    from ksentinel import search
    from ksentinel.recording import Reader
    from ksentinel.report import events_table
    from ksentinel.store import Store

    if recording is not None and (alert_id is not None or store is not None):
        raise UsageError(
            f"--recording and {'ALERT_ID' if alert_id is not None else '--store'} can't go together",
            remedy="a recording holds no alerts: `ksentinel replay` makes them",
        )
    now = host.now()

    def given(value: str | None, parse: Callable[..., Any], option: str, *more: Any) -> Any:
        return None if value is None else parse(value, option, *more)

    wanted = search.Search(
        since_ns=given(since, search.parse_time, "--since", now, host.local),
        until_ns=given(until, search.parse_time, "--until", now, host.local),
        pid=pid,
        exe=given(exe, search.parse_glob, "--exe"),
        path=given(path, search.parse_glob, "--path"),
        address=given(address, search.parse_endpoint, "--address"),
        syscall=given(syscall, search.parse_syscall, "--syscall"),
        kind=given(kind, search.parse_kind, "--kind"),
    )
    if wanted.since_ns is not None and wanted.until_ns is not None and wanted.since_ns > wanted.until_ns:
        raise UsageError(f"--since {since!r} is after --until {until!r}", remedy="turn them round")
    alert, removed = None, 0
    if recording is not None:
        with Reader(recording) as reader:
            results = search.among(reader, wanted, limit, arch_of(reader))
    else:
        with Store(store or host.store_to_read(), host.user()) as kept:
            alert = None if alert_id is None else kept.get(alert_id)
            results = kept.events(wanted, limit, "" if alert is None else str(alert["id"]))
            removed = kept.removed()["events_removed"]
    if json:
        for found in results.found:
            print_json(found.to_plain())
    else:
        events_table(results, alert=alert, removed=removed, asked=wanted.times())
