# SPDX-License-Identifier: Apache-2.0
"""
The detectors on ADFA-LD: how fast, how well, how honest the p-values, how faithful the surrogates.

    python bench/models.py DATA [--json]

DATA holds ``train_normal.jsonl.gz``, ``validation_normal.jsonl.gz`` and ``attack.jsonl.gz``, one trace a line with
``abi`` and ``syscalls``. Fitted on training normals alone, calibrated on every other validation normal, tested on the
remaining ones against the attacks. Traces are cut into windows of 64; a last piece of fewer than 16 is left out. A
trace's score is the mean, or the maximum, over its windows: of the raw score for one detector, of -log10 p for the
combination. A trace is one process of an unknown executable, so everything is compared host-wide: what profiles are
worth can't be seen here.
"""

import argparse
import gzip
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ksentinel.detectors import Detector, Floats
from ksentinel.detectors.calibration import Calibration
from ksentinel.detectors.kerneltable import KernelTable, calibrated, follow
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import SHORTEST, NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.profiles import HOST, Ints, Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.event import Process, ProcessKey
from ksentinel.explain.surrogate import surrogate
from ksentinel.syscalls import Abi, token
from ksentinel.window import LENGTH, Window

FALSE_POSITIVES = (0.01, 0.05, 0.10)
P_VALUES = (1e-1, 1e-2, 1e-3, 1e-5)
ABIS = {"i386": Abi.COMPAT, "x86_64": Abi.NATIVE}


@dataclass(frozen=True, slots=True)
class Traces:
    """Windows, and which trace each was cut from."""

    windows: list[Window]
    trace: Ints


def read(file: Path, first_pid: int) -> list[Traces]:
    """Return one entry a trace."""
    traces = []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            abi = ABIS[record["abi"]]
            tokens = tuple(token(syscall, abi) for syscall in record["syscalls"])
            process = Process(ProcessKey(first_pid + number, 0))
            windows = [
                Window(process, process.key.pid, at, at + LENGTH, tokens[at : at + LENGTH])
                for at in range(0, len(tokens), LENGTH)
                if at == 0 or len(tokens) - at >= LENGTH // 4
            ]
            traces.append(Traces(windows, np.full(len(windows), number)))
    return traces


def together(traces: Sequence[Traces]) -> Traces:
    """Join traces, numbered from 0."""
    windows = [window for trace in traces for window in trace.windows]
    return Traces(windows, np.repeat(np.arange(len(traces)), [len(trace.windows) for trace in traces]))


def by_trace(scores: Floats, traces: Traces, how: str) -> Floats:
    """Return the mean or the maximum of each trace's window scores."""
    if how == "mean":
        mean: Floats = np.bincount(traces.trace, scores) / np.bincount(traces.trace)
        return mean
    highest = np.full(int(traces.trace.max()) + 1, -np.inf)
    np.maximum.at(highest, traces.trace, scores)
    return highest


def quality(normal: Floats, attack: Floats) -> dict[str, float]:
    """Return AUC, and the share of attacks above thresholds that let a given share of normals through."""
    from sklearn.metrics import roc_auc_score, roc_curve

    labels = np.repeat([0, 1], [len(normal), len(attack)])
    scores = np.concatenate([normal, attack])
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    result = {"auc": float(roc_auc_score(labels, scores))}
    for limit in FALSE_POSITIVES:
        result[f"tpr_at_fpr_{limit:g}"] = float(tpr[fpr <= limit].max())
    return result


def timed(member: Detector, train: Traces, test: Sequence[Window]) -> dict[str, float]:
    """Fit *member*, and return tokens a second of CPU time for that and for scoring batches."""
    begin = time.process_time()
    member.fit(train.windows)
    fitted = time.process_time()
    for at in range(0, len(test), 4096):
        member.score(test[at : at + 4096])
    scored = time.process_time()
    return {
        "fit_tokens_per_s": sum(len(w.tokens) for w in train.windows) / (fitted - begin),
        "score_tokens_per_s": sum(len(w.tokens) for w in test) / (scored - fitted),
    }


def kernel_scores(table: KernelTable, windows: Sequence[Window]) -> Floats:
    """Return the mean surprise of each window in bits a token, by the table that the kernel has."""
    scored = follow(table, windows)
    return np.array([one.sum / max(one.scored, SHORTEST) / 8 for one in scored])


def faithful(member: Detector, windows: Sequence[Window]) -> dict[str, float]:
    """Return R² of the surrogate, and how alike the five heaviest features of three seeds are (Jaccard, mean)."""
    r2: list[float] = []
    alike: list[float] = []
    took: list[float] = []
    for window in windows:
        begin = time.perf_counter()
        found = [surrogate(member, window, seed=seed) for seed in range(3)]
        took.append((time.perf_counter() - begin) / len(found))
        r2.extend(s.r2 for s in found)
        tops = [{weight.tokens for weight in s.weights[:5]} for s in found]
        alike.extend(len(a & b) / len(a | b) for i, a in enumerate(tops) for b in tops[:i])
    return {
        "r2_median": float(np.median(r2)),
        "r2_lowest": float(np.min(r2)),
        "top5_jaccard": float(np.mean(alike)),
        "ms": 1e3 * float(np.median(took)),
    }


def measure(data: Path) -> dict[str, Any]:
    """Run everything."""
    train = together(read(data / "train_normal.jsonl.gz", 1))
    validation = read(data / "validation_normal.jsonl.gz", 100_000)
    calibrate, test = together(validation[::2]), together(validation[1::2])
    attack = together(read(data / "attack.jsonl.gz", 200_000))
    parts = {"train": train, "calibrate": calibrate, "test": test, "attack": attack}

    ngram = NGramModel()
    members: list[Detector] = [ngram, Stide(), OneClass()]
    everything = [w for part in parts.values() for w in part.windows]
    members[-1].fit(train.windows[:100])  # so that importing scikit-learn isn't timed
    speed = {member.name: timed(member, train, everything) for member in members}
    names = [HOST] * len(calibrate.windows)
    model = Model(
        members,
        {member.name: Calibration().fit(member.score(calibrate.windows), names) for member in members},
        Profiles({}),
    )
    normal, hostile = model.assess(test.windows), model.assess(attack.windows)
    scores = {
        member.name: tuple(
            np.array([next(m.score for m in a.members if m.name == member.name) for a in found])
            for found in (normal, hostile)
        )
        for member in members
    }
    scores["combined"] = tuple(-np.log10([a.p_value for a in found]) for found in (normal, hostile))
    kernel = calibrated(KernelTable.fit(ngram, train.windows, os.urandom), ngram, calibrate.windows)
    scores["kernel"] = tuple(kernel_scores(kernel, part.windows) for part in (test, attack))
    p_values = {
        member.name: tuple(
            np.array([next(m.p_value for m in a.members if m.name == member.name) for a in found])
            for found in (normal, hostile)
        )
        for member in members
    }
    p_values["combined"] = tuple(np.array([a.p_value for a in found]) for found in (normal, hostile))
    picked = [attack.windows[i] for i in np.linspace(0, len(attack.windows) - 1, 10).astype(int)]
    picked += [test.windows[i] for i in np.linspace(0, len(test.windows) - 1, 10).astype(int)]
    return {
        "traces": {name: int(part.trace.max()) + 1 for name, part in parts.items()},
        "windows": {name: len(part.windows) for name, part in parts.items()},
        "speed": speed,
        "quality": {
            how: {
                name: quality(by_trace(a, test, how), by_trace(b, attack, how))
                for name, (a, b) in scores.items()
            }
            for how in ("mean", "max")
        },
        "share_of_windows_at_p": {
            name: {
                f"{p:g}": {"normal": float((a <= p).mean()), "attack": float((b <= p).mean())}
                for p in P_VALUES
            }
            for name, (a, b) in p_values.items()
        },
        "surrogate": {member.name: faithful(member, picked) for member in members},
    }


def table(result: dict[str, Any]) -> str:
    """Return *result* for people."""
    lines = [
        " ".join(
            f"{name} {n} traces, {result['windows'][name]} windows;" for name, n in result["traces"].items()
        ),
        "",
        f"{'detector':10} {'fit M/s':>8} {'score M/s':>9}",
    ]
    lines += [
        f"{name:10} {s['fit_tokens_per_s'] / 1e6:8.2f} {s['score_tokens_per_s'] / 1e6:9.2f}"
        for name, s in result["speed"].items()
    ]
    for how, qualities in result["quality"].items():
        lines += [
            "",
            f"{'trace ' + how:10} {'AUC':>6} " + " ".join(f"TPR@{f:<4.0%}" for f in FALSE_POSITIVES),
        ]
        lines += [
            f"{name:10} {q['auc']:6.3f} "
            + " ".join(f"{q[f'tpr_at_fpr_{f:g}']:8.3f}" for f in FALSE_POSITIVES)
            for name, q in qualities.items()
        ]
    lines += ["", "windows, normal / attack, " + " ".join(f"{f'at p <= {p:g}':>17}" for p in P_VALUES)]
    for name, shares in result["share_of_windows_at_p"].items():
        cells = " ".join(f"{s['normal']:8.5f}/{s['attack']:8.5f}" for s in shares.values())
        lines.append(f"{name:25} {cells}")
    lines += ["", f"{'surrogate':10} {'R2 med':>7} {'R2 min':>7} {'top-5 alike':>11} {'ms':>6}"]
    lines += [
        f"{name:10} {s['r2_median']:7.4f} {s['r2_lowest']:7.4f} {s['top5_jaccard']:11.3f} {s['ms']:6.1f}"
        for name, s in result["surrogate"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure the detectors on ADFA-LD.")
    parser.add_argument("data", type=Path, help="folder with the three .jsonl.gz files")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    result = measure(arguments.data)
    sys.stdout.write((json.dumps(result, indent=2) if arguments.json else table(result)) + "\n")


if __name__ == "__main__":
    main()
