# SPDX-License-Identifier: Apache-2.0
"""The file of p-values."""

import json

import pytest
from small_host import make_window

from ksentinel.detectors import Anomaly, MemberScore
from ksentinel.errors import InputError
from ksentinel.level import Level
from ksentinel.sinks.scores import Scores


def test_a_line_a_window(tmp_path):
    """Each window is a line with its process, its p-value and what each member said."""
    window = make_window([1, 2, 3])
    with Scores(tmp_path / "scores.jsonl") as scores:
        scores(
            Anomaly(
                window,
                0.25,
                Level.NONE,
                (MemberScore("ngram", 1.5, 0.25),),
                "ngram",
                window.profile,
                unseen=True,
            )
        )
    (line,) = (tmp_path / "scores.jsonl").read_text().splitlines()

    assert json.loads(line) == {
        "time_ns": window.last_ns,
        "pid": window.process.key.pid,
        "exe": window.process.exe,
        "service": window.process.service_exe,
        "tokens": 3,
        "p_value": 0.25,
        "level": "none",
        "unseen": True,
        "members": {"ngram": [1.5, 0.25]},
    }


def test_never_over_a_file(tmp_path):
    """A file that exists is left as it is."""
    (tmp_path / "audit.log").write_text("evidence")
    with pytest.raises(InputError, match="exists already"), Scores(tmp_path / "audit.log"):
        pass

    assert (tmp_path / "audit.log").read_text() == "evidence"


def test_no_folder(tmp_path):
    """What can't be written is said with its remedy."""
    with (
        pytest.raises(InputError, match=r"can't be written.*--scores"),
        Scores(tmp_path / "none" / "scores.jsonl"),
    ):
        pass
