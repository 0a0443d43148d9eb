# SPDX-License-Identifier: Apache-2.0
"""The command line: every subcommand by its name, and how a run ends. Clock, user and signals come from `host`."""

import errno
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer

import ksentinel
from ksentinel import host
from ksentinel.commands import authoring, rules
from ksentinel.commands import enforce as enforcement
from ksentinel.commands.alerts import alerts, explain
from ksentinel.commands.doctor import doctor
from ksentinel.commands.events import events
from ksentinel.commands.monitor import monitor, reload, status
from ksentinel.commands.mute import mute, unmute
from ksentinel.commands.output import complain, tell
from ksentinel.commands.record import record
from ksentinel.commands.replay import replay
from ksentinel.commands.selftest import selftest
from ksentinel.commands.train import train
from ksentinel.errors import InputError, KsentinelError, UsageError

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
for _command in (
    doctor,
    record,
    train,
    replay,
    monitor,
    status,
    reload,
    mute,
    unmute,
    alerts,
    explain,
    events,
    selftest,
    enforcement.release,
):
    app.command()(_command)

_enforce = typer.Typer(
    name="enforce", invoke_without_command=True, add_completion=False, rich_markup_mode=None
)
_enforce.callback()(enforcement.enforce)
_enforce.command("mode")(enforcement.switch_mode)
for _part in (
    enforcement.confirm,
    enforcement.plan,
    enforcement.ready,
    enforcement.denials,
    enforcement.note,
    enforcement.never,
):
    _enforce.command()(_part)
app.add_typer(_enforce)

_rules = typer.Typer(
    name="rules",
    help="List, check, test and try detection rules.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
_rules.command("list")(rules.list_rules)
_rules.command("fields")(rules.list_fields)
_rules.command("policy")(rules.policy)
_rules.command("noise")(rules.noise)
_rules.command("check")(authoring.check_rules)
_rules.command("test")(authoring.run_cases)
_rules.command("try")(authoring.try_rule)
_rules.command("coverage")(authoring.show_coverage)
app.add_typer(_rules)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Exit status: 0, 1 for a run that failed, 2 for wrong usage, 130 after Ctrl-C; ``doctor`` has one more.
    """
    _open_standard_streams()
    try:
        ended = app(args=arguments, prog_name="ksentinel", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows itself here, not in the interpreter's last moments
    except KsentinelError as error:
        complain(error)
        ended = error.exit_status
    except _PARSE_ERROR as error:
        ended = _wrong_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        ended = INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        ended = 1
    except OSError as error:
        full = "standard output" if error.errno == errno.ENOSPC else None
        complain(InputError(error.strerror or str(error), at=error.filename or full))
        ended = 1
    if ended == INTERRUPTED:
        tell("interrupted")
    try:
        sys.stdout.flush()
    except OSError:  # said above; the interpreter must not find out again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        ended = ended or 1
    sys.exit(ended)


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
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 -- its callback has done it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand != "train":
        host.one_thread()  # before anything imports numpy
