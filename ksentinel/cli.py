# SPDX-License-Identifier: Apache-2.0
"""The command line: one function a subcommand: parse, call, print. Clock, user and signals come from `host`."""

import errno
import os
import platform
import pwd
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import ksentinel
from ksentinel import host
from ksentinel.config import Config
from ksentinel.errors import InputError, KsentinelError, ModelError, UsageError
from ksentinel.level import Level
from ksentinel.printable import printable

INTERRUPTED = 130

# Typer has carried a click of its own since 0.21 and exports only a part of it: the errors of parsing by their base.
_PARSE_ERROR: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="ksentinel",
    help="Explainable syscall security monitor for Linux.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Exit status: 0, 1 for a run that failed, 2 for wrong usage, 130 after Ctrl-C; ``doctor`` has one more.
    """
    _open_standard_streams()
    try:
        status = app(args=arguments, prog_name="ksentinel", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows itself here, not in the interpreter's last moments
    except KsentinelError as error:
        complain(error)
        status = error.exit_status
    except _PARSE_ERROR as error:
        status = _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        status = 1
    except OSError as error:
        full = "standard output" if error.errno == errno.ENOSPC else None
        complain(InputError(error.strerror or str(error), at=error.filename or full))
        status = 1
    if status == INTERRUPTED:
        _status("interrupted")
    try:
        sys.stdout.flush()
    except OSError:  # said above; the interpreter must not find out again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or 1
    sys.exit(status)


def complain(error: KsentinelError) -> None:
    """Print an error as one line."""
    _status(str(error))


def _wrong_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return UsageError.exit_status
    command = error.ctx.command_path if error.ctx is not None else "ksentinel"
    said = " ".join(error.format_message().split()).rstrip(".")
    complain(UsageError(said, remedy=f"`{command} --help` lists what there is"))
    return UsageError.exit_status


def _open_standard_streams() -> None:
    # Closed ones (`>&-`) would give their numbers to the next files opened, the store among them.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- for the whole run
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale: what it can't show is escaped.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ksentinel {ksentinel.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
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
        _print_json(
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


@app.command()
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

    settings = _config(config)
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
            host.live(settings, stop, wanted=wanted, keep=keep, attend=attend, tell=_status)
        )
        writer = stack.enter_context(Writer(out, facts))
        _status(f"recording to {out}" + ("" if seconds is None else f" for {seconds:g} s") + "; Ctrl-C stops")
        for batch in stream:
            writer.write(batch)
        account = stream.account()
        writer.account(account)
        writer.note({"ended_ns": time.time_ns(), "contents": host.hashes(programs)})
    _print_json({"recording": str(out), "account": account}) if json else account_table(account)


@app.command()
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
    _once(recordings)
    windows: list[Window] = []
    named: list[facts.Recording] = []
    about: dict[str, Any] = {}
    contents: dict[str, str] = {}
    arches = set()
    for path in recordings:
        with Reader(path) as recording:
            about = recording.facts
            arches.add(_arch_of(recording))
            windows.extend(recording.windows())
            told = recording.facts.get("contents")
            contents |= told if isinstance(told, dict) else {}
        with path.open("rb") as file:
            named.append(facts.Recording(path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    arch = _one_arch(arches)
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
        _print_json({"model": str(out), "facts": msgspec.to_builtins(known)})
        return
    lines([*trained.report, f"model written to {out}"])


@app.command()
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

    settings = _config(config)
    _once(files)
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
        arch = _one_arch({_arch_of(source) for source in sources} or {platform.machine()})
        redact = host.redactor(settings)
        audit = AuditLogs(logs, redact, None if sys.stdin is None else sys.stdin.buffer)
        if logs:
            sources.append(audit)
        pipeline = _pipeline(settings, rules, model, arch=arch)
        outlet = stack.enter_context(_outlet(store, settings, pipeline, json=json))
        if scores is not None:
            from ksentinel.sinks.scores import Scores

            pipeline.watch = stack.enter_context(Scores(scores))
        for source in sources:
            for alert in pipeline.walk(source):
                outlet(alert)
        accounts = [source.account() for source in sources]
        files_told = [told for source in sources for told in _per_file(source)]
    if recorded or any(log.account.events for log in audit.logs) or not audit.failures:
        _finish(accounts, pipeline.account(), files_told, json=json)
        _mute_model(model, pipeline.account())
    for failure in audit.failures:
        complain(failure)
    if audit.failures:
        raise typer.Exit(InputError.exit_status)


@app.command()
def monitor(
    duration: Duration = None,
    model: ModelFolder = None,
    rules: RulePaths = None,
    store: StoreFile = None,
    scores: ScoresFile = None,
    exe: Exes = None,
    pid: Pids = None,
    uid: Uids = None,
    cgroup: CgroupNames = None,
    control: ControlFile = None,
    no_control: Annotated[bool, typer.Option("--no-control", help="Have no control socket.")] = False,
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """
    Watch this host live. Needs root and BPF.

    The kernel scores every system call; what is unusual, and a sample of the rest, meets the model, and every argument
    event the rules.
    """
    settings = _config(config)
    seconds = parse_duration(duration)
    wanted, keep = host.watching(exe or [], pid or [], uid or [], cgroup or [])
    table = None
    if model is not None:
        from ksentinel.detectors import artifact

        table = artifact.load_kernel(model, arch=platform.machine(), uid=host.user())
        manifest = artifact.read_manifest(model, uid=host.user())
    socket = _socket(settings, control, off=no_control)
    pipeline = _pipeline(settings, rules, model, arch=platform.machine())
    with ExitStack() as stack:
        contents = None
        if model is not None:
            contents = stack.enter_context(host.contents(manifest, pipeline.model, _status))
        stop = stack.enter_context(host.stopping(seconds))
        stream = stack.enter_context(
            host.live(
                settings,
                stop,
                wanted=wanted,
                keep=keep,
                table=table,
                gate=table is not None,
                contents=contents,
                tell=_status,
            )
        )
        kept = store or host.default_store()
        outlet = stack.enter_context(_outlet(kept, settings, pipeline, json=json))
        if scores is not None:
            from ksentinel.sinks.scores import Scores

            pipeline.watch = stack.enter_context(Scores(scores))
        alone = " by rules alone (no --model)" if model is None else ""
        if socket is not None:
            stack.enter_context(
                host.control(settings, socket, stream, pipeline, model=model, store=kept, tell=_status)
            )
        elif not no_control:
            _status("no control socket: XDG_RUNTIME_DIR is not set (name one by --control)")
        _status(
            f"watching{alone}"
            + ("" if seconds is None else f" for {seconds:g} s")
            + f", alerts to {kept}; Ctrl-C stops"
        )
        for alert in pipeline.walk(stream):
            outlet(alert)
        account = stream.account()
    _finish([account], pipeline.account(), [], json=json)


@app.command()
def status(control: ControlFile = None, json: Json = False) -> None:
    """Ask a running monitor how it is: what it watches with, what it has seen and lost, what it costs."""
    from ksentinel.protocol import ask
    from ksentinel.report import status_table
    from ksentinel.status import Status

    path = control or host.socket_to_ask()
    plain = ask(path, "status", trusted={0, host.user()})
    told = Status.from_plain(plain, path)
    _print_json(plain) if json else status_table(told)


@app.command()
def alerts(
    store: StoreFile = None,
    least: Annotated[
        str, typer.Option("--level", metavar="LEVEL", help="This level and above.")
    ] = "informational",
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.", min=1)] = 100,
    json: Json = False,
) -> None:
    """List stored alerts, the newest first."""
    from ksentinel.report import alerts_table
    from ksentinel.store import Store

    try:
        level = Level.parse(least)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    with Store(store or host.store_to_read(), host.user()) as kept:
        found = list(kept.alerts(least=level, limit=limit))
        removed = kept.removed()["alerts_removed"]
    if json:
        for alert in found:
            _print_json(alert)
    else:
        alerts_table(found, limit=limit, removed=removed)


@app.command()
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
        _print_json(alert)
        return
    there = "" if store is None else f" --store {shlex.quote(str(store))}"
    explanation(alert, flown, f"ksentinel events {alert['id']}{there}")


@app.command()
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
            results = search.among(reader, wanted, limit, _arch_of(reader))
    else:
        with Store(store or host.store_to_read(), host.user()) as kept:
            alert = None if alert_id is None else kept.get(alert_id)
            results = kept.events(wanted, limit, "" if alert is None else str(alert["id"]))
            removed = kept.removed()["events_removed"]
    if json:
        for found in results.found:
            _print_json(found.to_plain())
    else:
        events_table(results, alert=alert, removed=removed, asked=wanted.times())


def parse_duration(text: str | None) -> float | None:
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
        raise UsageError(f"--for {text!r} is no duration", remedy="say 90s, 10m or 2h")
    return seconds


def _socket(settings: Config, named: Path | None, *, off: bool) -> Path | None:
    """Return where the control socket is to be; None if there is to be none."""
    if named is not None and off:
        raise UsageError("--control and --no-control exclude each other", remedy="say one of them")
    if off:
        return None
    return named or (Path(settings.control.socket) if settings.control.socket else host.default_socket())


def _config(path: Path | None) -> Config:
    return Config() if path is None else Config.load(path)


def _pipeline(settings: Config, rules: list[Path] | None, folder: Path | None, *, arch: str) -> Any:
    from ksentinel.explain.explanation import Explainer
    from ksentinel.incident import SECOND, Incidents
    from ksentinel.pipeline import Pipeline
    from ksentinel.rules.ruleset import RuleSet
    from ksentinel.shipped import shipped

    paths = rules or [Path(path) for path in settings.rules.paths] or [shipped("rules")]
    users = {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}
    ruleset = RuleSet.load(paths, trusted_uids={0, host.user()}, users=users)
    model = None
    if folder is not None:
        from ksentinel.detectors import artifact

        model = artifact.load(folder, arch=arch, uid=host.user())
    times = settings.incident
    incidents = Incidents(
        within_ns=int(times.agree_seconds * SECOND),
        quiet_ns=int(times.quiet_seconds * SECOND),
        fold_ns=int(times.fold_seconds * SECOND),
        arch=arch,
    )
    return Pipeline(ruleset, model, incidents, explain=Explainer(model))


def _arch_of(recording: Any) -> str:
    """Return whose system call numbers a recording has."""
    arch = recording.facts.get("arch")
    if arch not in ARCHES:
        raise InputError(
            f"was recorded on architecture {arch!r}; this ksentinel knows {', '.join(ARCHES)}",
            at=recording.path,
            remedy="record again",
        )
    return str(arch)


def _one_arch(arches: set[str]) -> str:
    if len(arches) > 1:
        raise UsageError(
            f"recordings of {' and '.join(sorted(arches))} can't go together",
            remedy="numbers of system calls differ: one architecture at a time",
        )
    (arch,) = arches
    return arch


def _once(paths: Sequence[Path]) -> None:
    """Refuse a file that is named twice: what is in it would count twice."""
    seen: set[Path] = set()
    for path in paths:
        real = path if path == Path("-") else path.resolve()
        if real in seen:
            raise UsageError("is named twice", at=path, remedy="name it once")
        seen.add(real)


def _mute_model(model: Path | None, walked: dict[str, int]) -> None:
    """Say so if the model was asked about windows and had no say in any."""
    if model is not None and walked["windows_unscored"] and not walked["windows_scored"]:
        _status(
            f"{model}: had no say in any of {walked['windows_unscored']} windows: it was trained on another "
            "collector's (train one on recordings of the same kind)"
        )


@contextmanager
def _outlet(
    store: Path | None, settings: Config, pipeline: Any, *, json: bool
) -> Iterator[Callable[[Any], None]]:
    """
    Give a function that takes each alert to the store, and to the terminal or as JSON to standard output.

    With a store *pipeline* gets a flight recorder, which keeps events there.
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
        sink = JsonLines(sys.stdout.buffer) if json else None

        def take(alert: Any) -> None:
            try:
                if kept is not None:
                    kept.put(alert)
            finally:  # one that can't be stored is shown all the same
                if sink is not None:
                    sink.send(alert)
                else:
                    alert_line(alert)

        yield take


def _per_file(source: Any) -> Iterator[dict[str, Any]]:
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


def _finish(
    accounts: list[dict[str, Any]], walked: dict[str, int], files: list[dict[str, Any]], *, json: bool
) -> None:
    from ksentinel.report import account_table, files_table

    total: dict[str, Any] = {}
    for account in accounts:
        for name, number in account.items():
            total[name] = total.get(name, 0) + (int(number) if float(number).is_integer() else number)
    if json:
        # The walk counts events of its own; what an audit log calls events stands with its file.
        _print_json({"account": total, "walk": walked, "files": files} | _sums(files))
        return
    files_table(files)
    account_table(total)
    account_table(walked, title="The walk")


def _sums(files: list[dict[str, Any]]) -> dict[str, int]:
    names = ("lines", "lines_in_events", "malformed", "pending", "events")
    return {name: sum(told.get(name, 0) for told in files) for name in names}


def _print_json(plain: Any) -> None:
    from ksentinel.store import to_json

    sys.stdout.buffer.write(to_json(plain) + b"\n")
    sys.stdout.buffer.flush()


def _status(text: str) -> None:
    # Nobody may be there to read it: no reason to stop watching.
    with suppress(OSError):
        sys.stderr.write(f"ksentinel: {printable(text)}\n")
        sys.stderr.flush()
