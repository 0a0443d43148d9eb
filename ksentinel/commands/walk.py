# SPDX-License-Identifier: Apache-2.0
"""What `replay` and `monitor` share: the pipeline, where its alerts go, and the account at the end."""

import os
import pwd
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ksentinel import host
from ksentinel.commands.options import ARCHES
from ksentinel.commands.output import print_json, tell
from ksentinel.config import Config
from ksentinel.errors import InputError, UsageError


def load_rules(paths: list[Path] | None) -> Any:
    """Return the rules in *paths*, by default those that ship; raises RuleError for the first thing wrong."""
    from ksentinel.rules.cache import Cache
    from ksentinel.rules.ruleset import RuleSet
    from ksentinel.shipped import shipped

    folder = host.rules_cache()
    cache = None if folder is None else Cache(folder, os.geteuid())
    try:
        return RuleSet.load(
            paths or [shipped("rules")], trusted_uids={0, host.user()}, users=user_names(), cache=cache
        )
    finally:
        if cache is not None and cache.odd:
            tell(f"{cache.odd} (this folder can be deleted at any time)")


def rule_paths(settings: Config, named: list[Path] | None) -> list[Path]:
    """Return where the rules are: those that were *named*, else the configuration's; empty: the shipped ones."""
    return named or [Path(path) for path in settings.rules.paths]


def user_names() -> dict[int, str]:
    """Return the names of this host's users, as rules may ask for them."""
    return {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}


def load_policy(settings: Config) -> Any:
    """Return the policy of the configuration, by default the one that ships; raises RuleError."""
    from ksentinel import policy
    from ksentinel.shipped import shipped

    named = settings.rules.policy
    return policy.load(Path(named) if named else shipped("rules/policy.yml"), trusted_uids={0, host.user()})


def load_exceptions(settings: Config, ruleset: Any) -> Any:
    """Return the exceptions of the configuration, by default none; raises RuleError."""
    from ksentinel import exceptions

    named = settings.rules.exceptions
    if not named:
        return exceptions.Exceptions()
    trusted = {0, host.user()}
    return exceptions.load(Path(named), ruleset.rules, trusted_uids=trusted, users=user_names())


def load_in_force(settings: Config, rules: list[Path] | None) -> Any:
    """Return the rules, the policy and the exceptions as their files are now; raises RuleError."""
    from ksentinel.pipeline import InForce

    ruleset = load_rules(rule_paths(settings, rules))
    return InForce(ruleset, load_exceptions(settings, ruleset), load_policy(settings))


def build_pipeline(
    settings: Config,
    rules: list[Path] | None,
    folder: Path | None,
    *,
    arch: str,
    mutes: Any = None,
    clock: Callable[[], int] | None = None,
) -> Any:
    """
    Return the walk, with its rules, its model and its explanations; raises what is wrong with any of them.

    Parameters
    ----------
    mutes
        A `ksentinel.mutes.Mutes`, of a live walk.
    clock
        Of a live walk; a replay's time is that of its events.
    """
    from ksentinel.explain.explanation import Explainer
    from ksentinel.incident import SECOND, Incidents
    from ksentinel.noise import Noise
    from ksentinel.pipeline import Pipeline

    in_force = load_in_force(settings, rules)
    model = None
    if folder is not None:
        from ksentinel.detectors import artifact

        model = artifact.load(folder, arch=arch, uid=host.user())
    times = settings.incident
    incidents = Incidents(
        in_force.policy,
        within_ns=int(times.agree_seconds * SECOND),
        quiet_ns=int(times.quiet_seconds * SECOND),
        fold_ns=int(times.fold_seconds * SECOND),
        arch=arch,
    )
    return Pipeline(
        in_force.rules,
        model,
        incidents,
        explain=Explainer(model),
        noise=Noise(settings.noise, mutes, tell=tell),
        exceptions=in_force.exceptions,
        tell=tell,
        clock=clock,
    )


def arch_of(recording: Any) -> str:
    """Return whose system call numbers a recording has."""
    arch = recording.facts.get("arch")
    if arch not in ARCHES:
        raise InputError(
            f"was recorded on architecture {arch!r}; this ksentinel knows {', '.join(ARCHES)}",
            at=recording.path,
            remedy="record again",
        )
    return str(arch)


def one_arch(arches: set[str]) -> str:
    """Return the one architecture that all recordings have; raises UsageError."""
    if len(arches) > 1:
        raise UsageError(
            f"recordings of {' and '.join(sorted(arches))} can't go together",
            remedy="numbers of system calls differ: one architecture at a time",
        )
    (arch,) = arches
    return arch


def once(paths: Sequence[Path]) -> None:
    """Refuse a file that is named twice: what is in it would count twice."""
    seen: set[Path] = set()
    for path in paths:
        real = path if path == Path("-") else path.resolve()
        if real in seen:
            raise UsageError("is named twice", at=path, remedy="name it once")
        seen.add(real)


def mute_model(model: Path | None, walked: dict[str, int]) -> None:
    """Say so if the model was asked about windows and had no say in any."""
    if model is not None and walked["windows_unscored"] and not walked["windows_scored"]:
        tell(
            f"{model}: had no say in any of {walked['windows_unscored']} windows: it was trained on another "
            "collector's (train one on recordings of the same kind)"
        )


@contextmanager
def outlet_of(
    store: Path | None, settings: Config, pipeline: Any, *, json: bool
) -> Iterator[Callable[[Any], None]]:
    """
    Give a function that takes each alert to the store, and to the terminal or as JSON to standard output.

    With a store *pipeline* gets a flight recorder, which keeps events there, and what is suppressed is counted there. A
    muted alert is stored, and JSON has it, marked; a terminal doesn't show it.
    """
    from ksentinel.flight import Flight
    from ksentinel.report import alert_line
    from ksentinel.sinks.jsonlines import JsonLines
    from ksentinel.store import Store

    with ExitStack() as stack:
        kept = None
        if store is not None:
            kept = stack.enter_context(Store(store, host.user(), write=True, bounds=settings.store))
            pipeline.flight = Flight(kept.keep, arch=pipeline.incidents.arch)
            pipeline.noise.keep = kept.suppress
            if pipeline.enforcing is not None:
                pipeline.enforcing.keep = kept.denied
        sink = JsonLines(sys.stdout.buffer) if json else None

        def take(alert: Any) -> None:
            try:
                if kept is not None:
                    kept.put(alert)
            finally:  # one that can't be stored is shown all the same
                if sink is not None:
                    sink.send(alert)
                elif not alert.muted:
                    alert_line(alert)

        yield take


def per_file(source: Any) -> Iterator[dict[str, Any]]:
    """Yield what there is to tell of each file that a source has read."""
    if hasattr(source, "logs"):
        for log in source.logs:
            account = log.account
            yield {
                "file": str(account.file),
                "lines": account.lines,
                "lines_in_events": account.in_events,
                "malformed": account.malformed,
                "pending": account.pending,
                "events": account.events,
                "malformed_at": [{"at": str(bad.at), "reason": bad.reason} for bad in log.malformed],
            } | ({"failed": str(source.failed[log])} if log in source.failed else {})
    else:
        # The account is written last: without one, recording was cut short.
        yield {"file": str(source.path), "items": source.count(), "complete": bool(source.account())}


def finish(
    accounts: list[dict[str, Any]],
    walked: dict[str, int],
    files: list[dict[str, Any]],
    suppressed: list[dict[str, Any]],
    *,
    json: bool,
) -> None:
    """Print the account; *suppressed* says how many alerts of which rule were."""
    from ksentinel.report import account_table, files_table
    from ksentinel.report.noise import suppressed_table

    total: dict[str, Any] = {}
    for account in accounts:
        for name, number in account.items():
            total[name] = total.get(name, 0) + (int(number) if float(number).is_integer() else number)
    if json:
        # The walk counts events of its own; what an audit log calls events stands with its file.
        plain = {"account": total, "walk": walked, "suppressed": suppressed, "files": files}
        print_json(plain | _sums(files))
        return
    files_table(files)
    account_table(total)
    account_table(walked, title="The walk")
    suppressed_table(suppressed)


def _sums(files: list[dict[str, Any]]) -> dict[str, int]:
    names = ("lines", "lines_in_events", "malformed", "pending", "events")
    return {name: sum(told.get(name, 0) for told in files) for name in names}
