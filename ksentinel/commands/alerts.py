# SPDX-License-Identifier: Apache-2.0
"""What was told, and why."""

import shlex
from typing import Annotated

import typer

from ksentinel import host
from ksentinel.commands.options import Json, StoreFile
from ksentinel.commands.output import print_json
from ksentinel.errors import UsageError
from ksentinel.level import Level


def alerts(
    store: StoreFile = None,
    least: Annotated[
        str, typer.Option("--level", metavar="LEVEL", help="This level and above.")
    ] = "informational",
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.", min=1)] = 100,
    json: Json = False,
) -> None:
    """List stored alerts, the newest first."""
    from ksentinel.mutes import in_words, read
    from ksentinel.report import alerts_table
    from ksentinel.store import Store

    try:
        level = Level.parse(least)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    path = store or host.store_to_read()
    with Store(path, host.user()) as kept:
        found = list(kept.alerts(least=level, limit=limit))
        removed = kept.removed()["alerts_removed"]
        suppressed = sum(one.alerts for one in kept.suppressed())
    if json:
        for alert in found:
            print_json(alert)
        return
    now_ns = host.now_ns()
    mutes = [in_words(one) for one in read(host.mutes_beside(path), host.user()) if one.until_ns > now_ns]
    alerts_table(found, limit=limit, removed=removed, suppressed=suppressed, mutes=mutes)


def explain(
    alert_id: Annotated[str, typer.Argument(metavar="ID", help="An alert's id, or how it begins.")],
    store: StoreFile = None,
    json: Json = False,
) -> None:
    """Say why an alert was raised. In words and numbers: rule clauses, n-grams, LIME weights."""
    from ksentinel.report import explanation
    from ksentinel.store import Store

    with Store(store or host.store_to_read(), host.user()) as kept:
        alert = kept.get(alert_id)
        flown = kept.flown(str(alert["id"]))
    if json:
        print_json(alert)
        return
    there = "" if store is None else f" --store {shlex.quote(str(store))}"
    explanation(alert, flown, f"ksentinel events {alert['id']}{there}")
