# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001, S314 -- signs as on the page; the XML is our own
"""The page says what the figures say, the bad ones too, and nothing else."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from figures import Run, raw, summary
from page import duration, markdown, stored, svg, tables, write

DOCS = Path(__file__).parents[2] / "docs"
EACH = {
    "nothing": (100, 1000),
    "empty-probe": (150, 1010),
    "monitor": (200, 3000),
    "bpftrace-count": (180, 1100),
    "strace": (20_000, 9_000),
}


def made_up(**changes):
    """Return what a run of two workloads might have found."""
    runs = [
        Run(side, workload, number, 1000, each * 1000 * (1 + number / 100), cpu)
        for side, times in EACH.items()
        for workload, each in zip(("getppid", "redis"), times, strict=True)
        for number in (1, 2, 3)
        for cpu in [4e-4 if side == "monitor" else None]
    ]
    sides = [
        {
            "name": side,
            "what": f"{side} | watching",
            "scope": "host",
            "absent": None,
            "attach_seconds": None,
            "told": [],
        }
        for side in EACH
    ]
    sides[0]["scope"] = "-"
    sides[2]["told"] = [
        {"round": 0, "seen": 10, "lost": None, "dropped_share": {"windows": 0.9}, "exact": True},
        {"round": 1, "seen": 10, "lost": None, "dropped_share": {"windows": 0.25}, "exact": True},
    ]
    sides.append(
        {
            "name": "auditd",
            "what": "auditd",
            "scope": "host",
            "absent": "it is in use",
            "attach_seconds": None,
            "told": [],
        }
    )
    result = {
        "environment": {
            "kernel": "6.1", "machine": "x86_64", "cpus": 2, "cpu": "A <CPU> & more", "virtual": True, "memory_gib": 4.0,
            "bpf_jit": "1", "load_before": 0.0, "load_after": 1.0, "audit": "off", "ksentinel": "9.8.7", "commit": "abc1234",
            "python": "3.11.2", "tools": {"strace": "6.1"}, "measured": "2030-01-02",
        },
        "settings": {"runs": 4, "seconds": 0.4},
        "sides": sides,
        "workloads": [
            {"name": name, "what": f"{name} <loop>", "unit": "call", "absent": None} for name in ("getppid", "redis", "web")
        ],
        "results": summary(runs, list(EACH), ["getppid", "redis", "web"], ["redis"]),
        "observer": None,
        "flood": {},
        "left_out": [],
        "failures": [],
        "others": [],
        "background": [0.0, 0.01],
        "runs": raw(runs),
    }  # fmt: skip
    return result | changes


FLOOD = {
    "record": {
        "made": 5_000_000,
        "made_per_second": 1e6,
        "seconds": 5.0,
        "threads": 2,
        "seen": 5_000_100,
        "missed_runs": 0,
        "equations": [
            {"equation": "seen = a + b", "whole": 3, "parts": [1, 2], "exact": True},
            {
                "equation": "closed = c + d",
                "whole": 8,
                "parts": [4, 2],
                "exact": False,
            },
        ],
        "exact": False,
        "dropped_share": {"windows": 0.25},
    }
}


def test_shipped_page():
    """The page and the picture in docs/ are what is made of the figures beside them: run `--from docs/overhead.json --docs docs`."""
    result = json.loads((DOCS / "overhead.json").read_text())

    assert (DOCS / "overhead.md").read_text() == markdown(result)
    assert (DOCS / "overhead.svg").read_text() == svg(result)
    assert (DOCS / "overhead.json").read_text() == stored(result)


def test_write(tmp_path):
    """Three files, of which the JSON is the whole result."""
    write(made_up(), tmp_path / "new")

    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "overhead.json",
        "overhead.md",
        "overhead.svg",
    ]
    assert json.loads((tmp_path / "new" / "overhead.json").read_text()) == made_up()


def test_a_call():
    """Times of the cheapest call, and what is added to it."""
    page = markdown(made_up())

    assert "takes **102 ns**; with an empty probe attached **51.0 ns** more." in page
    assert "`ksentinel monitor` adds **102 ns**, 2.00 × what the empty probe adds." in page
    assert "| **ksentinel monitor** | 204 ns (203 ns–205 ns) | 102 ns | 2.00 | 1.33 |" in page


@pytest.mark.parametrize(
    "sentence",
    [
        "bpftrace-count is cheaper than `ksentinel monitor` in: getppid, redis.",
        "take, times what they take with nobody watching: redis 3.00.",
        "Absent: auditd: it is in use",
        "`ksentinel monitor` **can't keep up** where",
        "Dropped under `ksentinel monitor` in its worst round: windows 25.000%",
    ],
)
def test_weak_figures(sentence):
    """What speaks against ksentinel is told like the rest; the dropped round isn't."""
    assert sentence in markdown(made_up())


def test_can_not_keep_up():
    """Told where the watcher needs more than a second for each second, and where it doesn't, not."""
    page = markdown(made_up())

    assert "workload: getppid (2.0 s)." in page


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"left_out": ["workload web"]}, "Left out of this run: workload web."),
        (
            {"failures": [{"what": "strace", "round": 2, "reason": "it died"}]},
            "Failed: strace, round 2: it died",
        ),
        (
            {"others": ["round 1: process 77"]},
            "Somebody else watched system calls, too: round 1: process 77.",
        ),
        (
            {"background": [0.0, 0.25, 0.5]},
            "not quiet: between turns others used 25% of its CPUs (mean of 3 looks)",
        ),
    ],
)
def test_reservations(change, sentence):
    """What speaks against a run stands on its page, and in the terminal."""
    quiet = made_up()

    assert sentence not in markdown(quiet)
    assert sentence in markdown(quiet | change)
    assert sentence in tables(quiet | change)


@pytest.mark.parametrize(
    ("change", "told"),
    [({}, False), ({"background": [0.5]}, True), ({"others": ["round 1: process 77"]}, True)],
    ids=["quiet", "busy", "watched"],
)
def test_disturbed(change, told):
    """Figures that can't be relied on are called so, before they are told."""
    page = markdown(made_up(**change))

    assert ("**This run was disturbed" in page.partition("\n- ")[0]) is told


def test_added_nothing():
    """What is within the noise isn't told as a number."""
    result = made_up()
    for entry in result["results"]:
        if (entry["workload"], entry["side"]) == ("getppid", "monitor"):
            entry["added_ns"] = {"median": -3.0, "q1": -9.0, "q3": 2.0}

    assert "`ksentinel monitor` adds **nothing measurable**" in markdown(result)


def test_no_round_in_common():
    """Two sides that were never measured in the same round have no ratio, and a page all the same."""
    runs = [
        Run(side, "getppid", number, 1000, 1e5)
        for number, side in enumerate(("nothing", "empty-probe", "monitor", "strace"))
    ]
    page = markdown(made_up(results=summary(runs, list(EACH), ["getppid"])))

    assert "| strace | 100 ns (100 ns–100 ns) | – | – | – |" in page
    assert "| strace | – |" in page


def test_unsettled():
    """A side that hadn't caught up is told."""
    result = made_up()
    result["results"][0]["unsettled"] = 2

    assert "After 2 runs a side hadn't caught up" in markdown(result)


def test_within_the_noise():
    """A ratio around one is marked."""
    result = made_up()
    for entry in result["results"]:
        if (entry["workload"], entry["side"]) == ("redis", "empty-probe"):
            entry["ratio_to_nothing"] = {"median": 1.01, "q1": 0.99, "q3": 1.02}

    assert "| empty-probe | 1.50 (1.50–1.50) | *1.01 (0.99–1.02)* |" in markdown(result)


def test_servers():
    """Requests a second and their share; other workloads aren't in that table."""
    page = markdown(made_up())

    assert "| **ksentinel monitor** | 326,797 (33.3%) |" in page


def test_flood():
    """A sum that isn't exact is said not to be."""
    page = markdown(made_up(flood=FLOOD))

    assert "**not exact**; dropped: windows 25.000%." in page
    assert "| closed = c + d | 8 = 4 + 2 | **not exact** |" in page
    assert "| seen = a + b | 3 = 1 + 2 | exact |" in page


def test_observer():
    """What the monitor itself uses."""
    page = markdown(
        made_up(
            observer={
                "host_calls_per_second": 1870.0,
                "cpu_share_of_a_core": 0.1234,
                "peak_rss_mebibytes": 203.0,
                "seconds_until_watching": 1.86,
            }
        )
    )

    assert "1,870 system calls a second" in page
    assert "**12.3% of a core** and at most 203 MiB; it watches 1.9 s after its start" in page


def test_observer_with_an_alert():
    """An alert that came meanwhile is no part of being idle: told apart."""
    observer = {
        "host_calls_per_second": 1870.0,
        "cpu_share_of_a_core": 0.1234,
        "peak_rss_mebibytes": 203.0,
        "peak_rss_before_explaining_mebibytes": 101.0,
        "explained": True,
        "seconds_until_watching": 1.86,
    }

    assert "at most 203 MiB (101 MiB before it had its first alert to explain" in markdown(
        made_up(observer=observer)
    )


def test_nothing_measured():
    """A run in which everything failed has a page all the same."""
    empty = made_up(results=[], runs=[])

    assert "Not measured in this run." in markdown(empty)
    assert ET.fromstring(svg(empty)).tag.endswith("svg")


def test_tables_are_whole():
    """Every row of a table has as many cells as its head; bars inside of cells don't count."""
    rows = re.findall(r"(?:^\|.*\n)+", markdown(made_up(flood=FLOOD)), re.MULTILINE)

    for block in rows:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block


def test_picture():
    """Well-formed, a panel for each workload measured, its text as it is."""
    picture = ET.fromstring(svg(made_up()))
    text = ["".join(node.itertext()) for node in picture.iter("{http://www.w3.org/2000/svg}text")]

    assert "getppid · getppid <loop>" in text
    assert "redis · redis <loop>" in text
    assert not any(line.startswith("web") for line in text)
    assert "2.00" in text


def test_picture_of_a_side_that_failed():
    """Its row stays, and says so."""
    result = made_up()
    result["results"] = [e for e in result["results"] if (e["workload"], e["side"]) != ("redis", "strace")]

    assert svg(result).count("not measured") == 1


@pytest.mark.parametrize(
    ("ns", "expected"),
    [(0.5, "0.500 ns"), (-12.3, "-12.3 ns"), (999.9, "1,000 ns"), (1.5e9, "1.50 s")],
)
def test_duration(ns, expected):
    """In the unit that fits; a difference may be negative."""
    assert duration(ns) == expected
