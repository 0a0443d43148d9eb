# SPDX-License-Identifier: Apache-2.0
"""One paragraph in plain words, from templates: same alert, same text. Untrusted parts are made harmless."""

from collections.abc import Mapping
from math import floor, log10
from pathlib import PurePosixPath
from typing import Any

from ksentinel.alert import Alert
from ksentinel.detectors import Anomaly
from ksentinel.event import ExecEvent, HookEvent, Outcome, Process, SyscallEvent
from ksentinel.policy import Context
from ksentinel.printable import printable
from ksentinel.rules import Clause, Match
from ksentinel.verdict import CREDIBLE, moment, p_text


def paragraph(alert: Alert, window: Mapping[str, Any]) -> str:
    """
    Return who did what, which rule says so and why, what the model adds, and how sure that is.

    Parameters
    ----------
    window
        The explained window, as in the alert's explanation; empty if no model spoke.
    """
    sentences = []
    matches = alert.matches
    if matches:
        sentences.append(_matched(matches[0], more=len(matches) - 1))
    if alert.anomalies:
        sentences.append(_unusual(alert.anomalies[0], window, matches[0] if matches else None))
    sentences.append(_conclusion(alert))
    if alert.enforced != "none":
        sentences.append(_enforced(alert))
    if alert.repeats:
        sentences.append(
            f"{alert.repeats} more like it {'was' if alert.repeats == 1 else 'were'} counted here."
        )
    return " ".join(sentences)


def _enforced(alert: Alert) -> str:
    """Return what guards made of it: the gravest."""
    told = [e for e in alert.evidence if e.enforcement is not None]
    worst = max(told, key=lambda e: e.enforcement.outcome.rank if e.enforcement else 0)
    event = worst.enforcement
    assert event is not None  # noqa: S101  # of those alone
    where = f"in the kernel at {printable(event.hook, 40)}"
    # A score may be over its threshold without having been asked.
    response = worst.match.rule.response if worst.match is not None else None
    asked = response is not None and response.anomalous
    key = ", because its score was over the threshold as well" if event.anomalous and asked else ""
    if event.outcome is Outcome.DENIED:
        ended = " and the process ended" if event.killed else ""
        by = " by a verdict on the process" if event.sentence else ""
        return f"It was denied {where}{by}{ended}{key}."
    return f"It would have been denied {where}{key}, but the guard is permissive."


def name(process: Process) -> str:
    """Return how a process is called in a sentence: ``sh (pid 7, started by lighttpd)``."""
    called = printable(PurePosixPath(process.exe).name or process.comm or "an unknown program", 40)
    details = [f"pid {process.key.pid}"]
    if process.parent is not None and process.parent.exe not in {"", process.exe}:
        details.append(f"started by {printable(PurePosixPath(process.parent.exe).name, 40)}")
    if process.service_exe not in {"", process.exe} and (
        process.parent is None or process.service_exe != process.parent.exe
    ):
        details.append(f"under {printable(PurePosixPath(process.service_exe).name, 40)}")
    return f"{called} ({', '.join(details)})"


def clause(clause: Clause) -> str:
    """Return a clause as a person would say it."""
    field = printable(clause.field, 40)
    value = "nothing" if clause.value is None else _quoted(clause.value, 100)
    if clause.negated:
        return f"{field} is {value}, which the exception ({printable(clause.test, 60)}) doesn't cover"
    return f"{field} is {value} ({printable(clause.test, 80)})"


def did(match: Match) -> str:
    """Return what an event was, as a verb."""
    event = match.event
    if isinstance(event, HookEvent):
        return _tried(event)
    if isinstance(event, ExecEvent):
        return f"ran {_quoted(event.process.command_line or event.process.exe, 120)}"
    if isinstance(event, SyscallEvent):
        about = [_quoted(path, 100) for path in event.paths]
        if event.address is not None:
            address = event.address
            about.append(_quoted(address.path, 100) if address.path else printable(str(address), 100))
        if event.target is not None:
            about.append(f"process {event.target}")
        tried = "called" if event.result is None or event.result >= 0 else "tried"
        return f"{tried} {printable(event.syscall, 40)}({', '.join(about)})"
    return "was seen by audit"


def _tried(event: HookEvent) -> str:
    about = [_quoted(path, 100) for path in event.paths]
    if event.address is not None and not event.address.path:
        about.append(printable(str(event.address), 100))
    return f"tried {printable(event.call or event.hook, 40)}({', '.join(about)})"


def _quoted(text: str, limit: int) -> str:
    """Return *text* in quotation marks that it can't end by itself, to go on in our words."""
    return '"' + printable(text, limit).replace('"', '\\"') + '"'


def _matched(match: Match, more: int) -> str:
    told = [clause(c) for c in match.clauses if not c.negated][:2] or [clause(c) for c in match.clauses[:1]]
    why = " and ".join(told)
    others = f", and {more} other rule{'s' if more > 1 else ''} matched too" if more > 0 else ""
    return (
        f"{name(match.event.process)} {did(match)}. The rule “{printable(match.rule.title, 120)}” "
        f"({match.rule.level}) matched, "
        f"because {why}{others}."
    )


def _unusual(anomaly: Anomaly, window: Mapping[str, Any], match: Match | None) -> str:
    there = match is not None and match.event.process.key == anomaly.window.process.key
    who = "The model" if there else f"In {name(anomaly.window.process)} the model"
    compared = _compared(anomaly)
    said = (
        f"{who} finds {len(anomaly.window.tokens)} system calls{' there' if there else ''} unusual for {compared}: "
        f"{_how_often(anomaly)}."
    )
    if anomaly.note:
        said += f" Of that program: {printable(anomaly.note, 200)}."
    ngrams = window.get("ngrams") or []
    if ngrams:
        top = ngrams[0]
        seen = top["seen_in_training"]
        times = "once" if seen == 1 else f"{seen:,} times"
        history = f"which training showed {times}" if seen else "which training never showed"
        said += f" What speaks most is {' → '.join(top['ngram'])}, {history}"
        if top["usual_next"]:
            usual, share = top["usual_next"][0]
            said += f" (there it usually went on with {usual}, {share:.0%})"
        said += "."
    return said


def _compared(anomaly: Anomaly) -> str:
    exe, service = anomaly.profile
    if not exe:
        return (
            "this host as a whole, because training never saw this executable"
            if anomaly.unseen
            else "this host"
        )
    called = printable(PurePosixPath(exe).name, 40)
    if service and service != exe:
        return f"{called} under {printable(PurePosixPath(service).name, 40)}"
    return called


def _how_often(anomaly: Anomaly) -> str:
    p_value, life = anomaly.p_value, anomaly.calibrated_on
    by = f"decided by {anomaly.decided_by}"
    if p_value < CREDIBLE or (life and p_value * (life + 1) < 1):
        of = f"the {life:,} normal windows" if life else "any normal window"
        return f"more so than {of} it was compared with ({p_text(p_value)}, extrapolated, {by})"
    if p_value > 0.5:
        return f"most normal windows look like this ({p_text(p_value)}, {by})"
    every = 1 / p_value
    # Two digits: it is an estimate.
    about = f"{round(every, min(1 - floor(log10(every)), 0)):,.0f}"
    return f"about one in {about} normal windows looks like this ({p_text(p_value)}, {by})"


def _excepted(alert: Alert) -> str:
    by = alert.matches[0].exception
    assert by is not None  # noqa: S101  # _conclusion asked
    told = (
        f"{printable(by.owner, 60)} expects that until {moment(by.expires_ns)}: {printable(by.reason, 200)}"
    )
    but = "; what the model says stands" if alert.anomalies else ""
    return f"{told} (exception {printable(by.id, 60)}){but}; so this is {alert.level}."


def _conclusion(alert: Alert) -> str:
    if alert.verdict.agreed:
        return f"Rule and model are independent and agree, so this is {alert.level}."
    if alert.matches and all(match.exception for match in alert.matches):
        return _excepted(alert)
    if alert.matches and alert.anomalies:
        if any(anomaly.unseen for anomaly in alert.anomalies):
            return f"That a program is new is no second witness, so this is {alert.level}."
        if Context.LEARNING in alert.verdict.place.contexts:
            return f"What the model is still learning is no second witness, so this is {alert.level}."
        return (
            f"Rule and model speak of different processes or times and don't agree, so this is {alert.level}."
        )
    if alert.matches:
        return f"No model adds to that, so the level is the rule's: {alert.level}."
    return f"No rule matched, so this is {alert.level} at most: unusual is not yet harmful."
