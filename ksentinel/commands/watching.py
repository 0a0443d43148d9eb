# SPDX-License-Identifier: Apache-2.0
"""What `monitor` and `enforce` do alike: watch this host live, and lead what is seen past rules and model."""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ksentinel import host
from ksentinel.commands.options import parse_duration
from ksentinel.commands.output import tell
from ksentinel.commands.walk import build_pipeline, finish, load_in_force, outlet_of
from ksentinel.config import Config

Enforce = Callable[[Any, Any, Path], AbstractContextManager[Any]]
"""Begins to enforce: is given the stream, the rules in force, and the store's path; gives a `ksentinel.enforce.enforcement.Enforcement`."""


def watch(
    settings: Config,
    *,
    duration: str | None,
    model: Path | None,
    rules: list[Path] | None,
    store: Path | None,
    scores: Path | None,
    watched: tuple[Any, Callable[[Any], bool] | None],
    socket: Path | None,
    quiet: bool,
    json: bool,
    enforce: Enforce | None = None,
) -> None:
    """
    Watch until a signal comes or the time is over, and print the account.

    Parameters
    ----------
    watched
        Of `host.watching`: who is watched.
    socket
        Where to listen for requests; None: nowhere.
    quiet
        Say nothing about that there is no socket: nobody wanted one.
    enforce
        None: nothing is enforced.

    Raises
    ------
    KsentinelError
        What is wrong with any of these; or why enforcement had to end.
    """
    from ksentinel.mutes import in_words

    seconds = parse_duration(duration)
    wanted, keep = watched
    table = None
    if model is not None:
        from ksentinel.detectors import artifact

        table = artifact.load_kernel(model, arch=platform.machine(), uid=host.user())
        manifest = artifact.read_manifest(model, uid=host.user())
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
        signalled = stack.enter_context(host.stopping(seconds, reloader.signal))

        def stop() -> bool:
            enforcing = pipeline.enforcing
            return signalled() or (enforcing is not None and enforcing.failure is not None)

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
        if enforce is not None:
            # Rules that are loaded meanwhile would count for the walk alone.
            with reloader.paused():
                pipeline.enforcing = stack.enter_context(
                    enforce(stream, replace(pipeline.in_force, policy=pipeline.incidents.policy), kept)
                )
                reloader.apply = pipeline.enforcing.reload
            stack.callback(_end_reloads, reloader)
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
        elif not quiet:
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
    if pipeline.enforcing is not None and pipeline.enforcing.failure is not None:
        raise pipeline.enforcing.failure


def _end_reloads(reloader: Any) -> None:
    """Have guards that end no longer be given rules: afterwards there is nobody to take them."""
    with reloader.paused():
        reloader.apply = lambda _: None
