# SPDX-License-Identifier: Apache-2.0
"""JSON lines: one alert, one line, at once."""

import io
import json
from pathlib import Path

import pytest
from made_up import HTTPD, START, anomaly, child, judge, match

from ksentinel.alert import Alert, Evidence
from ksentinel.sinks.jsonlines import JsonLines
from ksentinel.store import to_json


def alert(process, revision=1):
    """Return an alert with both kinds of evidence."""
    m, a = match(process), anomaly(process)
    evidence = (Evidence(1, START, START, match=m), Evidence(1, START, START, anomaly=a))
    return Alert("0a1b", revision, START, START, process, judge([m], [a]), evidence)


class Told(io.BytesIO):
    """Remembers what was there at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        """Note what is there."""
        self.flushed.append(self.getvalue().count(b"\n"))


def test_lines():
    """A line for each alert and revision, out before the next one comes; the store has the same."""
    file = Told()
    sink = JsonLines(file)
    alerts = [alert(child(HTTPD, 50, "/bin/sh\n\x1b[2J\udcff")), alert(HTTPD, revision=2)]
    for one in alerts:
        sink.send(one)
    lines = file.getvalue().splitlines()

    assert [to_json(one.to_plain()) for one in alerts] == lines
    assert file.flushed == [1, 2]
    assert [json.loads(line)["revision"] for line in lines] == [1, 2]
    assert json.loads(lines[0])["process"]["exe"] == "/bin/sh\n\x1b[2J\\xff"


def test_full_disk():
    """What a file refuses is for the command line to tell."""
    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        JsonLines(file).send(alert(HTTPD))
