# SPDX-License-Identifier: Apache-2.0
"""Rules, as people are shown them."""

from collections.abc import Collection, Iterable, Sequence

from rich.table import Table

from ksentinel import report
from ksentinel.alert import when
from ksentinel.codec import event_to_plain
from ksentinel.event import Event
from ksentinel.explain.event import in_words
from ksentinel.rules import Clause, Match, Rule
from ksentinel.rules.cases import Outcome
from ksentinel.rules.checking import Checked
from ksentinel.rules.fields import NO_LOGSOURCE, NO_SOURCE, Source
from ksentinel.rules.trial import Trial, TrialTogether

_LONGEST = 400
_MOST_NAMES = 20


def rules_table(rules: Sequence[Rule], silenced: Collection[str] = ()) -> None:
    """Print one row a rule, in the order in which they are asked, and how many of them (their ids) are silenced."""
    out = report.console()
    table = Table("Level", "Rule", "Log source", "Techniques", "File", box=None, pad_edge=False)
    for rule in rules:
        table.add_row(
            report.plain(rule.level, style=report.STYLES.get(str(rule.level), "")),
            report.plain(rule.title),
            report.plain(rule.source),
            report.plain(", ".join(rule.techniques)),
            report.plain(rule.file),
        )
    out.print(table)
    quiet = f", {len(silenced)} of them told only as parts of correlations" if silenced else ""
    out.print(f"{len(rules)} rules{quiet}")


def checked_lines(checked: Checked) -> None:
    """Print what is wrong with a file, or unwise: nothing, if nothing is."""
    told = [str(problem) for problem in checked.problems]
    if checked.more and told:
        told[-1] += " [there may be more]"
    told += [
        f"{remark.at}: remark: {remark.what}" + (f" ({remark.remedy})" if remark.remedy else "")
        for remark in checked.remarks
    ]
    report.lines(told)


def outcome_lines(bad: Iterable[Outcome]) -> None:
    """Print what a rule did with its cases, and should not have done."""
    told: list[str] = []
    for outcome in bad:
        did = "doesn't fire" if outcome.case.match else "fires"
        told.append(
            f"{outcome.case.at}: {did}, and should{'' if outcome.case.match else ' not'}: {outcome.case.why}"
        )
        told += [f"    {outcome.said}"] if outcome.said else []
        told += [f"    {clause_words(clause)}" for clause in outcome.clauses]
    report.lines(told)


def match_lines(match: Match) -> None:
    """Print an event that a rule fires on, with the clauses that made it."""
    report.lines([_event_line(match.event), *(f"    {clause_words(clause)}" for clause in match.clauses)])


def trial_lines(trial: Trial | TrialTogether, limit: int) -> None:
    """Print what came of a trial: near misses, whose the matches are, and the sums."""
    told: list[str] = []
    if trial.matches > limit:
        told.append(f"... {trial.matches - limit} more matches")
    if trial.misses:
        told.append(f"Near misses: all but one part held, on {trial.near} events")
        for miss in trial.misses:
            told.append(f"  {_event_line(miss.event)}")
            told += [f"      {clause_words(clause)}" for clause in miss.clauses]
    for title, counter in (("executable", trial.executables), ("parent", trial.parents)):
        if counter:
            told.append(f"Matches by {title}")
            told += [
                f"  {number:8,} {name or 'unknown'}" for name, number in counter.most_common(_MOST_NAMES)
            ]
            told += [f"  and {len(counter) - _MOST_NAMES} more"] if len(counter) > _MOST_NAMES else []
    told.append(
        f"{trial.events:,} events, {trial.of_source:,} of {trial.source}: "
        f"{trial.matches:,} matches, {trial.near:,} near misses"
    )
    report.lines(told)


def clause_words(clause: Clause) -> str:
    """
    Return a clause in words; where a pattern matched is marked.

    Examples
    --------
    >>> clause_words(Clause("selection", "Image", "endswith '/cat'", "/bin/cat", (4, 8)))
    "selection: Image endswith '/cat': /bin[/cat]"
    """
    value = clause.value
    if value is None:
        shown = "there is none"
    elif clause.span is not None and not clause.negated:
        start, end = clause.span
        shown = f"{value[:start]}[{value[start:end]}]{value[end:]}"
    else:
        shown = value
    verb = "not " if clause.negated else ""
    return f"{clause.selection}: {clause.field} {verb}{clause.test}: {shown[:_LONGEST]}"


def _event_line(event: Event) -> str:
    process = event.process
    parent = "" if process.parent is None or not process.parent.exe else f", started by {process.parent.exe}"
    return f"{when(event.time_ns)} {process.exe or 'unknown'} ({process.key.pid}{parent}): {in_words(event_to_plain(event))}"[
        :_LONGEST
    ]


def fields_tables(sources: Iterable[Source]) -> None:
    """Print what each log source offers, whose events have it, and what is not to be had."""
    out = report.console()
    for source in sources:
        out.print(report.plain(source.logsource, style="bold"))
        out.print(report.plain(f"  {source.what}"))
        named = [field for field in source.fields.values() if field.what]
        if named:
            table = Table("Field", "From", "What it is", box=None, pad_edge=False)
            for field in named:
                table.add_row(
                    report.plain(field.name),
                    report.plain(", ".join(field.origins)),
                    report.plain(field.what),
                )
            out.print(table)
        # Audit's own: their names are all there is to say.
        rest = [field.name for field in source.fields.values() if not field.what]
        if rest:
            out.print(report.plain(", ".join(rest)))
        out.print()
    table = Table("Not to be had", "Why", box=None, pad_edge=False)
    for name, why in (*NO_SOURCE.items(), *NO_LOGSOURCE.items()):
        table.add_row(report.plain(name or "neither category nor service"), report.plain(why))
    out.print(table)
