# SPDX-License-Identifier: Apache-2.0
"""
The two-key entry: what a strange lineage is refused, in the very call, a calm one may do.

The model is a real one: of what a worker does here, made by the same code that makes a host's.
"""

import errno
import subprocess
from pathlib import Path

import pytest

from ksentinel.detectors.kerneltable import KernelTable, calibrated
from ksentinel.detectors.ngram import NGramModel
from ksentinel.enforce import Mode
from ksentinel.event import Outcome
from ksentinel.window import Window

TAKES = 40

ENTRIES = """
entries:
  - {{id: secret, deny: [read], file: {{under: [{0}]}}, when: anomalous}}
  - {{id: out, deny: [connect], network: {{port: [7777]}}, when: anomalous}}
"""
CALM, STRANGE = 0, 400


@pytest.fixture(scope="module")
def worker(tmp_path_factory, standing):
    """Return what runs the worker, once the kernel scores by a model of it."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "secret").mkdir()
    (folder / "secret" / "key").write_text("x")
    program = folder / "worker"
    source = Path(__file__).with_name("worker.c")
    subprocess.run(["cc", "-O1", "-pthread", "-o", program, source], check=True)

    def run(rounds, odd, how):
        return subprocess.run(
            [program, str(rounds), str(odd), how, folder / "secret/key", "7777"],
            check=False,
            capture_output=True,
        ).returncode

    run.folder = folder
    standing.denials()
    windows = []
    for _ in range(12):
        for how in ("read", "connect", "fork", "exec", "thread"):
            run(80, CALM, how)
        items = standing.live._items(standing.live.collector.poll(0.5))
        windows += [item for item in items if isinstance(item, Window)]
    fitted = windows[: len(windows) * 2 // 3]
    model = NGramModel().fit(fitted)
    table = KernelTable.fit(model, fitted, lambda count: bytes(range(1, count + 1)))
    standing.live.collector.use(calibrated(table, model, windows[len(fitted) :]))
    return run


HOWS = ("read", "connect", "fork", "exec", "thread")


@pytest.mark.parametrize("how", HOWS)
def test_calm(guards, worker, how):
    """Who does what it always does may do it, and nothing is told."""
    guards.use(ENTRIES.format(worker.folder / "secret"))

    assert worker(80, CALM, how) == 0
    assert guards.mine() == []


@pytest.mark.parametrize("how", HOWS)
def test_strange(guards, worker, how):
    """Who was strange just before is refused: by itself, by a child, as another program, by another thread."""
    guards.use(ENTRIES.format(worker.folder / "secret"))

    failed = worker(80, STRANGE, how)
    said = guards.mine()
    assert failed == (errno.EPERM if how != "exec" else 1)  # cat says 1
    assert [(one.outcome, one.anomalous) for one in said] == [(Outcome.DENIED, True)]
    assert said[0].score.cusum or said[0].score.mean or said[0].score.process


def test_permissive(guards, worker):
    """Permissive, it goes on, and the record says that a score was over its threshold."""
    guards.use(ENTRIES.format(worker.folder / "secret"))
    guards.guards.mode = Mode.PERMISSIVE

    assert worker(80, STRANGE, "exec") == 0
    assert [(one.outcome, one.anomalous) for one in guards.mine()] == [(Outcome.WOULD_DENY, True)]


def test_scores_that_nobody_keeps(guards, worker):
    """Once nobody has watched for so long that scores say nothing, the second key turns no more."""
    guards.use(ENTRIES.format(worker.folder / "secret"))
    guards.guards.beat()
    guards.guards.hold(two_key_ns=1, all_ns=0)
    let = worker(80, STRANGE, "read")
    guards.guards.hold(two_key_ns=0, all_ns=0)

    assert let == 0
    assert worker(80, STRANGE, "read") == errno.EPERM
