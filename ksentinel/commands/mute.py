# SPDX-License-Identifier: Apache-2.0
"""What a running monitor shall not show for a while."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel import host
from ksentinel.commands.options import ControlFile, Json, parse_duration
from ksentinel.commands.output import print_json
from ksentinel.errors import InputError, UsageError


def mute(
    exe: Annotated[str, typer.Option(metavar="PATH", help="Of this executable.")] = "",
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="Of this rule: its id or title; model: of no rule at all.")
    ] = "",
    parent: Annotated[str, typer.Option(metavar="PATH", help="Of children of this executable.")] = "",
    duration: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="For how long: 90s, 10m, 2h.")
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = "",
    level: Annotated[str, typer.Option(metavar="LEVEL", help="Up to this level, at most high.")] = "medium",
    listed: Annotated[
        bool, typer.Option("--list", help="List the mutes in force, and nothing else.")
    ] = False,
    control: ControlFile = None,
    json: Json = False,
) -> None:
    """
    Have a running monitor not show some alerts for a while. They are stored all the same, and marked. Needs root.

    An alert is muted if all of its evidence fits; critical ones never are.
    """
    if listed:
        if exe or rule or parent or duration or reason:
            raise UsageError("--list stands alone", remedy="leave the other options out")
        _show(_ask("mutes", control), json=json)
        return
    seconds = parse_duration(duration)
    if not (exe or rule or parent):
        raise UsageError("a mute of everything is none", remedy="say --exe, --rule or --parent, or --list")
    if seconds is None:
        raise UsageError("a mute ends", remedy="say for how long, e.g. --for 2h")
    asked = {
        "exe": exe,
        "rule": rule,
        "parent": parent,
        "level": level,
        "reason": reason,
        "for_seconds": seconds,
    }
    _show([_ask("mute", control, **asked)], json=json)


def unmute(
    mute_id: Annotated[str, typer.Argument(metavar="ID", help="A mute's id, or how it begins.")],
    control: ControlFile = None,
    json: Json = False,
) -> None:
    """End a mute before its time. Needs root."""
    _show([_ask("unmute", control, id=mute_id)], json=json)


def _ask(request: str, control: Path | None, **arguments: Any) -> Any:
    from ksentinel.protocol import ask

    return ask(control or host.socket_to_ask(), request, trusted={0, host.user()}, **arguments)


def _show(plain: Any, *, json: bool) -> None:
    import msgspec

    from ksentinel.mutes import Mute, in_words
    from ksentinel.report import lines

    try:
        mutes = msgspec.convert(plain, list[Mute])
    except msgspec.ValidationError as error:
        raise InputError(
            f"answers something else than mutes: {error}", remedy="is it another version's?"
        ) from None
    if json:
        for one in plain:
            print_json(one)
    else:
        lines([in_words(one) for one in mutes] or ["no mutes"])
