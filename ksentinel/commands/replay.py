# SPDX-License-Identifier: Apache-2.0
"""Lead what was written down through the walk."""

import platform
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ksentinel import host
from ksentinel.commands.options import (
    ConfigFile,
    Json,
    ModelFolder,
    RulePaths,
    ScoresFile,
    StoreFile,
    read_config,
)
from ksentinel.commands.output import complain
from ksentinel.commands.walk import (
    arch_of,
    build_pipeline,
    finish,
    mute_model,
    once,
    one_arch,
    outlet_of,
    per_file,
)
from ksentinel.errors import InputError


def replay(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            readable=False,
            help="Audit logs (plain, gzip, - for standard input) or recordings.",
        ),
    ],
    model: ModelFolder = None,
    rules: RulePaths = None,
    store: StoreFile = None,
    scores: ScoresFile = None,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Lead audit logs or recordings through the whole walk. Needs no root; the same input gives the same alerts."""
    from ksentinel.recording import Reader, is_recording
    from ksentinel.streams import AuditLogs

    settings = read_config(config)
    once(files)
    stdin = Path("-")
    for path in files:
        if path != stdin and not path.exists():
            raise InputError("there is no such file", at=path, remedy="name an audit log or a recording")
        if path.is_dir():
            raise InputError("is a directory", at=path, remedy="name the files in it")
    recorded = [path for path in files if path != stdin and is_recording(path)]
    logs: list[Path | Literal["-"]] = [
        "-" if path == stdin else path for path in files if path not in recorded
    ]

    with ExitStack() as stack:
        sources: list[Any] = [stack.enter_context(Reader(path)) for path in recorded]
        arch = one_arch({arch_of(source) for source in sources} or {platform.machine()})
        redact = host.redactor(settings)
        audit = AuditLogs(logs, redact, None if sys.stdin is None else sys.stdin.buffer)
        if logs:
            sources.append(audit)
        pipeline = build_pipeline(settings, rules, model, arch=arch)
        outlet = stack.enter_context(outlet_of(store, settings, pipeline, json=json))
        if scores is not None:
            from ksentinel.sinks.scores import Scores

            pipeline.watch = stack.enter_context(Scores(scores))
        for source in sources:
            for alert in pipeline.walk(source):
                outlet(alert)
        accounts = [source.account() for source in sources]
        files_told = [told for source in sources for told in per_file(source)]
    if recorded or any(log.account.events for log in audit.logs) or not audit.failures:
        finish(accounts, pipeline.account(), files_told, pipeline.noise.told()["suppressed"], json=json)
        mute_model(model, pipeline.account())
    for failure in audit.failures:
        complain(failure)
    if audit.failures:
        raise typer.Exit(InputError.exit_status)
