# SPDX-License-Identifier: Apache-2.0
"""Learn what is normal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ksentinel.commands.options import Json
from ksentinel.commands.output import print_json
from ksentinel.commands.walk import arch_of, once, one_arch
from ksentinel.errors import InputError, ModelError


def train(
    recordings: Annotated[
        list[Path],
        typer.Argument(metavar="RECORDING...", readable=False, help="What `ksentinel record` wrote."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", readable=False, help="The model's folder, e.g. models/web."),
    ],
    order: Annotated[
        int, typer.Option(metavar="N", help="Length of the longest n-grams, 2 to 8.", min=2, max=8)
    ] = 5,
    json: Json = False,
) -> None:
    """Learn from recordings what is normal. Calibrates it, and says which false-alarm rate that can promise."""
    import hashlib
    from dataclasses import replace

    import msgspec

    from ksentinel.detectors import artifact, facts
    from ksentinel.recording import Reader
    from ksentinel.report import Progress, lines
    from ksentinel.training import train as fit
    from ksentinel.window import Window

    # Said before minutes are spent on training.
    if out.exists() and not (out / "manifest.json").is_file():
        raise InputError("is there already and is no model", at=out, remedy="name another folder")
    once(recordings)
    windows: list[Window] = []
    named: list[facts.Recording] = []
    about: dict[str, Any] = {}
    contents: dict[str, str] = {}
    arches = set()
    for path in recordings:
        with Reader(path) as recording:
            about = recording.facts
            arches.add(arch_of(recording))
            windows.extend(recording.windows())
            told = recording.facts.get("contents")
            contents |= told if isinstance(told, dict) else {}
        with path.open("rb") as file:
            named.append(facts.Recording(path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    arch = one_arch(arches)
    try:
        with Progress(quiet=json) as progress:
            trained = fit(windows, order=order, arch=arch, progress=progress.step)
    except ModelError as error:
        where = error.at or ", ".join(str(path) for path in recordings)
        raise ModelError(error.what, at=where, remedy=error.remedy) from None
    known = replace(
        trained.facts,
        recordings=tuple(named),
        host=str(about.get("host", "")),
        kernel=str(about.get("kernel", "")),
        contents={str(program): str(sha256) for program, sha256 in sorted(contents.items())},
    )
    artifact.save(trained.model, out, known)
    if json:
        print_json({"model": str(out), "facts": msgspec.to_builtins(known)})
        return
    lines([*trained.report, f"model written to {out}"])
