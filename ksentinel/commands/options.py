# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have, and what they take."""

from pathlib import Path
from typing import Annotated

import typer

from ksentinel.config import Config
from ksentinel.errors import UsageError

# readable=False: what is wrong with a file is said where it is opened, in our own words.
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ARCHES = ("x86_64", "aarch64")

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", readable=False, help="Configuration (YAML).")
]
ModelFolder = Annotated[
    Path | None,
    typer.Option(
        "--model", metavar="DIR", readable=False, help="A trained model; without one, rules run alone."
    ),
]
RulePaths = Annotated[
    list[Path] | None,
    typer.Option(
        "--rules",
        metavar="PATH",
        readable=False,
        help="Rule file or folder (repeatable); default: the shipped rules.",
    ),
]
StoreFile = Annotated[
    Path | None, typer.Option("--store", metavar="FILE", readable=False, help="The store of alerts.")
]
ScoresFile = Annotated[
    Path | None,
    typer.Option(
        "--scores", metavar="FILE", readable=False, help="Write each window's p-values there, as JSON lines."
    ),
]
Exes = Annotated[
    list[str] | None,
    typer.Option("--exe", metavar="PATH", help="Watch only this executable or script (repeatable)."),
]
Pids = Annotated[
    list[int] | None,
    typer.Option("--pid", metavar="N", min=1, help="Watch only this process and its children (repeatable)."),
]
Uids = Annotated[
    list[str] | None,
    typer.Option("--uid", metavar="USER", help="Watch only this user's processes (repeatable)."),
]
CgroupNames = Annotated[
    list[str] | None,
    typer.Option(
        "--cgroup",
        metavar="NAME",
        help="Watch only this control group and those below it: a path, a unit, a container or an id (repeatable).",
    ),
]
ControlFile = Annotated[
    Path | None,
    typer.Option("--control", metavar="FILE", readable=False, help="The daemon's control socket."),
]
Duration = Annotated[
    str | None, typer.Option("--for", metavar="TIME", help="Stop by itself after, e.g., 90s, 10m, 2h.")
]


def parse_duration(text: str | None, option: str = "--for") -> float | None:
    """
    Return seconds; ``s`` may be left out.

    Examples
    --------
    >>> parse_duration("90s"), parse_duration("1.5m"), parse_duration("2h"), parse_duration(None)
    (90.0, 90.0, 7200.0, None)
    """
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 10 * 365 * 86400:
        raise UsageError(f"{option} {text!r} is no duration", remedy="say 90s, 10m or 2h")
    return seconds


def read_config(path: Path | None) -> Config:
    """Return what the file says; the defaults without one."""
    return Config() if path is None else Config.load(path)
