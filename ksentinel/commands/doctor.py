# SPDX-License-Identifier: Apache-2.0
"""What this host can do."""

from typing import Annotated

import typer

from ksentinel.commands.options import Json
from ksentinel.commands.output import print_json
from ksentinel.errors import UsageError


def doctor(
    json: Json = False,
    need: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="WHAT",
            help="Exit 0 exactly if this would work: monitor, enforce, audit, replay, build.",
        ),
    ] = None,
) -> None:
    """
    Say what this host can do, with a remedy for each no.

    Exit status: 0 monitor and enforce would work, 3 only monitor would, 1 neither.
    """
    from ksentinel import support
    from ksentinel.report import doctor_table

    purposes = (support.MONITOR, support.ENFORCE, support.AUDIT, support.REPLAY, support.BUILD)
    if need is not None and need not in purposes:
        raise UsageError(f"--for {need!r} is none of {', '.join(purposes)}")
    checks = list(support.examine())
    works = {what: support.would_work(checks, what) for what in purposes}
    if json:
        print_json(
            {
                "checks": [
                    {
                        "name": c.name,
                        "ok": c.ok,
                        "reason": c.reason,
                        "remedy": c.remedy,
                        "needed_for": list(c.needed_for),
                    }
                    for c in checks
                ],
                "works": works,
            }
        )
    else:
        doctor_table(checks, works)
    if need is not None:
        raise typer.Exit(0 if works[need] else 1)
    raise typer.Exit(1 if not works[support.MONITOR] else 0 if works[support.ENFORCE] else 3)
