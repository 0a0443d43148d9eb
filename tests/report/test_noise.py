# SPDX-License-Identifier: Apache-2.0
"""Who makes the noise, as people are shown it: in order, with what helps, and nothing untrusted unescaped."""

import pytest

from ksentinel.level import Level
from ksentinel.mutes import Mute
from ksentinel.offenders import Offender, Tally
from ksentinel.report.noise import noise_lines, offenders_table, suppressed_table
from ksentinel.status import NoiseStatus, QuietenedTriple, SuppressedRule


@pytest.fixture
def shown(capsys):
    """Return a function that returns the lines that something prints."""

    def shown(function, *arguments, **options):
        function(*arguments, **options)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return shown


def offender(**fields):
    """Return a rule with one source."""
    tally = Tally(alerts=3, repeats=4, suppressed=1, muted=2, level=Level.HIGH)
    one = Offender("4b1c", "A rule\x1b[2J", "exec", tally)
    one.sources = {("/bin/sh", "/sbin/init"): tally} | fields.get("sources", {})
    return one


def test_offenders(shown):
    """Shares and counts, and below each rule who causes it and what can be done."""
    told = shown(offenders_table, [offender()], removed=7)

    assert [line.split("  ")[0] for line in told[:2]] == ["Share", "100%"]
    assert told[1].split() == ["100%", "3", "(2", "muted)", "4", "1", "high", "A", "rule\\x1b[2J", "(4b1c)"]
    assert told[3:] == [
        "A rule\\x1b[2J",
        "  100%  /bin/sh below /sbin/init: 8",
        '        expected? an exception of rule 4b1c where: {"Exe": "/bin/sh", "ParentImage": "/sbin/init"}',
        "        for a while: ksentinel mute --exe /bin/sh --parent /sbin/init --rule 4b1c --for 2h --level high --reason '...'",
        "",
        "7 alerts and counts had to make room for newer ones, and aren't counted here",
    ]


def test_others(shown):
    """Of many sources the rest is counted; a hostile name is escaped and in no command."""
    sources = {(f"/tmp/{n}\u202e[red]x", ""): Tally(alerts=1) for n in range(7)}
    told = shown(offenders_table, [offender(sources=sources)])

    assert "  and 3 others" in told
    assert "   12%  /tmp/0\\u202e[red]x below an unknown program: 1" in told
    assert len([line for line in told if "ksentinel mute" in line]) == 1


def test_nothing(shown):
    """Where there is nothing, that is said, or nothing is."""
    assert shown(offenders_table, []) == ["no alerts"]
    assert shown(suppressed_table, []) == []
    assert shown(noise_lines, NoiseStatus()) == []


def test_status(shown):
    """Rules with their counts, who is quietened, and each mute."""
    noise = NoiseStatus(
        (SuppressedRule("r", "A \x1brule", 1234), SuppressedRule("s", "Another", 5)),
        (QuietenedTriple("r", "/bin/\x07", "", 9),),
        (Mute("5f", 0, 10**9, "so", exe="/x", alerts=1),),
    )

    assert shown(noise_lines, noise) == [
        "Suppressed alerts, by rule",
        "  1,234  A \\x1brule (r)",
        "      5  Another (s)",
        "",
        "quietened until the day (UTC) is over: /bin/\\x07 below an unknown program, rule r: 9 alerts",
        'muted: 5f: /x up to level medium, until 1970-01-01 00:00:01 UTC ("so"): 1 alert muted',
        "",
    ]
