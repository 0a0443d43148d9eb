# SPDX-License-Identifier: Apache-2.0
"""
Training: recorded windows -> a model, and what it may promise.

Windows of one process are alike, so a split by window would test a model on what it has seen. The split is by
process: about 60 % of the windows to fit, 20 % to calibrate, 20 % to test, within each executable, by a hash. An
executable seen in one short process falls on one side as a whole, so that the test part has about as many executables
never seen as tomorrow. Where one long process makes up most of an executable, its time line is cut into three blocks
instead, with gaps.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ksentinel.detectors import Anomaly, Detector, Floats
from ksentinel.detectors.artifact import alarm_lines, gate_lines
from ksentinel.detectors.calibration import LEAST, Calibration
from ksentinel.detectors.facts import Alarms, ExecutableFacts, Facts, Gate
from ksentinel.detectors.kerneltable import ROW_FIRST, KernelTable, calibrated, follow
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.profiles import Ints, Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.errors import ModelError
from ksentinel.event import Origin, ProcessKey
from ksentinel.level import Level
from ksentinel.window import Window

LEAST_WINDOWS = 200
"""Fewer than this is a few seconds of a quiet host."""

FIT, CALIBRATE, TEST, GAP = range(4)
_ENDS = (0.6, 0.8, 1.0)
_LEAST_TO_CUT = 30
_FOLDS = 5
_BATCH = 4096
_HOUR_NS = 3_600_000_000_000

Progress = Callable[[str, float], None]
"""Told what is being done, and which share of everything is done."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model, and the facts of its training."""

    model: Model
    facts: Facts

    @property
    def report(self) -> tuple[str, ...]:
        """What a person should know of it, line by line."""
        facts = self.facts
        shown = sorted(facts.executables, key=lambda e: -(e.fit + e.calibrate + e.test + e.gap))[:20]
        hidden = len(facts.executables) - len(shown)
        return (
            (
                f"{facts.processes} processes, {facts.threads} threads, {facts.tokens} system calls in "
                f"{facts.fit + facts.calibrate + facts.test + facts.gap} windows over {facts.duration_s:.0f} s"
            ),
            (
                f"windows to fit {facts.fit}, to calibrate {facts.calibrate}, to test {facts.test}, "
                f"left out between blocks {facts.gap}"
            ),
            f"{facts.ngrams} distinct n-grams up to length {facts.order}, all profiles",
            f"{'fit':>8} {'calibrate':>9} {'test':>8} {'processes':>9}  executable",
            *(
                f"{e.fit:8} {e.calibrate:9} {e.test:8} {e.processes:9}  {e.exe or '(unknown)'}"
                f"{' (one long process, cut in time)' if e.cut_in_time else ''}"
                for e in shown
            ),
            *([f"and {hidden} more executables"] if hidden else []),
            f"{facts.unseen} of {facts.test} test windows are of executables that the model never saw",
            *(f"{level}: p-value of {p:g} or less" for level, p in self.model.thresholds.items()),
            *alarm_lines(facts),
            *gate_lines(facts),
            *self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        """Say where the test part contradicts the thresholds: more alarms than chance explains (99 %, Poisson)."""
        from scipy.special import gammainc

        warnings = []
        for level, threshold in self.model.thresholds.items():
            found = next((a.windows for a in self.facts.alarms if a.level == str(level)), 0)
            expected = threshold * self.facts.test
            if found and gammainc(found, expected) < 0.01:
                warnings.append(
                    f"NOT CALIBRATED: {found} of {self.facts.test} normal test windows reached {level}, where {expected:.2g} "
                    "would be expected. Record longer, and more of what is usual, before you rely on this model's levels."
                )
        return tuple(warnings)


def train(
    windows: Iterable[Window],
    *,
    order: int = 5,
    seed: int = 0,
    arch: str = "x86_64",
    progress: Progress | None = None,
    gate_share: float = 0.01,
    secret: Callable[[int], bytes] = os.urandom,
) -> Trained:
    """
    Fit, calibrate and test a model on *windows*; the same windows, *seed* and *secret* give the same model.

    Parameters
    ----------
    gate_share
        How many of normal windows the kernel may let through to user space, about.
    secret
        Gives so many random bytes, for the seeds of the part in the kernel.

    Raises
    ------
    ModelError
        If there are fewer than 200 windows, or too few processes to put some aside; or windows of several
        collectors.
    """
    tell = progress or (lambda _doing, _share: None)
    everything = [w for w in windows if w.tokens]
    if len(everything) < LEAST_WINDOWS:
        raise ModelError(
            f"{len(everything)} windows are too few to train on, {LEAST_WINDOWS} are needed",
            remedy="record longer",
        )
    origins = {w.origin for w in everything}
    if len(origins) > 1:
        raise ModelError(
            f"windows of several collectors: {', '.join(sorted(origins))}", remedy="train one model for each"
        )
    tell("splitting by process", 0.0)
    part, executables = split(everything, seed)
    fit, calibrate, test = (
        [everything[i] for i in np.flatnonzero(part == which)] for which in (FIT, CALIBRATE, TEST)
    )
    if not fit or len(calibrate) < LEAST or not test:
        raise ModelError(
            f"{len(executables)} executables fall into {len(fit)} windows to fit, {len(calibrate)} to calibrate and "
            f"{len(test)} to test: too few",
            remedy="record longer",
        )

    ngram, *others = _members(order, seed)
    members: list[Detector] = [ngram, *others]
    for i, member in enumerate(members):
        tell(f"fitting {member.name}", 0.1 + 0.1 * i)
        member.fit(fit)
    strangers = _strangers(fit, calibrate, order, seed, tell)
    tell("calibrating", 0.8)
    profiles = Profiles.among(w.profile for w in fit)
    names = [profiles.find(w.profile)[0] for w in calibrate]
    calibrations = {
        member.name: Calibration().fit(member.score(calibrate), names, strangers[member.name])
        for member in members
    }
    tell("compressing for the kernel", 0.85)
    kernel = None
    if everything[0].origin is Origin.BPF:
        kernel = calibrated(KernelTable.fit(ngram, fit, secret), ngram, calibrate, share=gate_share)
    model = Model(members, calibrations, profiles, arch=arch, origin=everything[0].origin, kernel=kernel)

    tell("testing", 0.9)
    anomalies = [a for at in range(0, len(test), _BATCH) for a in model.assess(test[at : at + _BATCH])]
    test_life, all_life = _life_ns(test), _life_ns(everything)
    duration = max(w.last_ns for w in everything) - min(w.first_ns for w in everything)
    share = test_life / all_life if all_life else len(test) / len(everything)
    thread_hours, host_hours = test_life / _HOUR_NS, duration * share / _HOUR_NS
    facts = Facts(
        duration_s=duration / 1e9,
        fit=len(fit),
        calibrate=len(calibrate),
        test=len(test),
        gap=int((part == GAP).sum()),
        unseen=sum(a.unseen for a in anomalies),
        strangers=len(next(iter(strangers.values()))),
        processes=len({w.process.key for w in everything}),
        threads=len({(w.process.key, w.tid) for w in everything}),
        tokens=sum(len(w.tokens) for w in everything),
        ngrams=ngram.trie_.size,
        thread_hours=thread_hours,
        host_hours=host_hours,
        seed=seed,
        order=order,
        executables=executables,
        alarms=tuple(
            _alarms(level, sum(a.level >= level for a in anomalies), thread_hours, host_hours)
            for level in model.thresholds
        ),
        gate=None if kernel is None else _gate(kernel, test, anomalies),
    )
    tell("done", 1.0)
    return Trained(model, facts)


def _gate(kernel: KernelTable, test: Sequence[Window], anomalies: Sequence[Anomaly]) -> Gate:
    flagged = [bool(one.over(kernel.rows[one.row])) for one in follow(kernel, test)]
    unusual = [anomaly.level is not Level.NONE for anomaly in anomalies]
    return Gate(
        profiles=len(kernel.rows) - ROW_FIRST,
        evicted=kernel.evicted,
        flagged=sum(flagged),
        alarms=sum(unusual),
        missed=sum(u and not f for u, f in zip(unusual, flagged, strict=True)),
    )


def split(windows: Sequence[Window], seed: int) -> tuple[Ints, tuple[ExecutableFacts, ...]]:
    """
    Say of each window which part it belongs to.

    Returns
    -------
    ``FIT``, ``CALIBRATE``, ``TEST`` or ``GAP``, shape (len(windows),), and the executables, sorted.
    """
    of_process: defaultdict[ProcessKey, list[int]] = defaultdict(list)
    for i, window in enumerate(windows):
        of_process[window.process.key].append(i)
    # A process that executed several programs stays together, under the one it mostly was.
    of_exe: defaultdict[str, list[ProcessKey]] = defaultdict(list)
    for key, places in of_process.items():
        exes = Counter(windows[i].process.program for i in places)
        of_exe[min(exes, key=lambda exe: (-exes[exe], exe))].append(key)

    part = np.full(len(windows), GAP, np.int64)
    facts = []
    for exe in sorted(of_exe):
        keys = sorted(of_exe[exe], key=lambda key: (_hash(seed, exe, key), key))
        mine = [i for key in keys for i in of_process[key]]
        longest = max(keys, key=lambda key: (len(of_process[key]), key))
        size = len(of_process[longest])
        cut = 2 * size > len(mine) and size >= _LEAST_TO_CUT
        if cut:
            keys.remove(longest)
            _cut_in_time(windows, of_process[longest], part)
        # Systematic sampling: processes laid end to end on a circle, begun at a place that the hash chooses.
        total = sum(len(of_process[key]) for key in keys)
        at = _hash(seed, exe) * total
        for key in keys:
            middle = (at + len(of_process[key]) / 2) / total % 1.0
            part[of_process[key]] = int(np.searchsorted(_ENDS, middle, side="right"))
            at += len(of_process[key])
        fit, calibrate, test, gap = (int(n) for n in np.bincount(part[mine], minlength=4))
        facts.append(
            ExecutableFacts(
                # A name may be no UTF-8: shown with backslashes.
                exe.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
                len(of_exe[exe]),
                fit,
                calibrate,
                test,
                gap,
                cut,
            )
        )
    return part, tuple(facts)


def poisson_interval(events: int, exposure: float) -> tuple[float, float] | None:
    """
    Return the exact 95 % interval of a rate: *events* seen in *exposure* (Garwood, 1936); None if that is 0.

    Examples
    --------
    >>> low, high = poisson_interval(0, 1.0)
    >>> low, round(high, 3)
    (0.0, 3.689)
    """
    if exposure <= 0:
        return None
    from scipy.special import gammaincinv

    low = float(gammaincinv(events, 0.025)) if events else 0.0
    return low / exposure, float(gammaincinv(events + 1, 0.975)) / exposure


def _members(order: int, seed: int) -> tuple[NGramModel, Detector, Detector]:
    return NGramModel(order), Stide(), OneClass(seed=seed)


def _strangers(
    fit: Sequence[Window], calibrate: Sequence[Window], order: int, seed: int, tell: Progress
) -> dict[str, Floats]:
    """Return what detectors say of calibration windows if they were fitted without their executables."""
    fold = {
        exe: int(_hash(seed, exe, "fold") * _FOLDS) for exe in {w.process.program for w in (*fit, *calibrate)}
    }
    found: dict[str, list[Floats]] = {member.name: [np.zeros(0)] for member in _members(order, seed)}
    for out in range(_FOLDS):
        tell("calibrating executables never seen", 0.4 + 0.4 * out / _FOLDS)
        left = [w for w in fit if fold[w.process.program] != out]
        asked = [w for w in calibrate if fold[w.process.program] == out and w.process.program]
        if len(left) < LEAST_WINDOWS or not asked:
            continue
        for member in _members(order, seed):
            fitted: Detector = member.fit(left)
            found[member.name].append(fitted.score(asked))
    return {name: np.concatenate(scores) for name, scores in found.items()}


def _cut_in_time(windows: Sequence[Window], places: Sequence[int], part: Ints) -> None:
    """Put blocks of one process' time line into the parts, so that no window overlaps the next block."""
    ordered = sorted(places, key=lambda i: (windows[i].first_ns, windows[i].last_ns, windows[i].tid, i))
    gap = max(1, len(ordered) // 50)
    borders = [0, *(round(end * len(ordered)) for end in _ENDS)]
    for which, (begin, end) in enumerate(pairwise(borders)):
        # What a thread was still at when the next block began belongs to neither.
        until = windows[ordered[end]].first_ns if end < len(ordered) else None
        for i in ordered[begin + (gap if begin else 0) : end]:
            if until is None or windows[i].last_ns < until:
                part[i] = which


def _life_ns(windows: Sequence[Window]) -> int:
    """Return the sum over threads of the time from first to last system call."""
    lives: dict[tuple[ProcessKey, int], tuple[int, int]] = {}
    for w in windows:
        thread = (w.process.key, w.tid)
        first, last = lives.get(thread, (w.first_ns, w.last_ns))
        lives[thread] = (min(first, w.first_ns), max(last, w.last_ns))
    return sum(last - first for first, last in lives.values())


def _alarms(level: Level, windows: int, thread_hours: float, host_hours: float) -> Alarms:
    return Alarms(
        str(level),
        windows,
        poisson_interval(windows, thread_hours),
        poisson_interval(windows, host_hours),
    )


def _hash(*parts: object) -> float:
    """Return a number in [0, 1) that depends on *parts* alone, on every machine."""
    text = "\0".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big") / 2**48
