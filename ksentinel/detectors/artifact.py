# SPDX-License-Identifier: Apache-2.0
"""
Artefacts: a model as a folder that can be looked at, checked and moved.

::

    NAME/
        model.npz        every number, plain arrays
        kernel.npz       the n-gram model compressed for the kernel; its seeds are secret, so only its owner may read it
        manifest.json    what it is, of which data, and the hash of model.npz
        README.md        the model card, for people

Loading one never runs code from it, and refuses what someone else could have changed.
"""

import contextlib
import hashlib
import io
import math
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

import ksentinel
from ksentinel.detectors import Arrays, Detector, array
from ksentinel.detectors.calibration import Calibration
from ksentinel.detectors.facts import Facts
from ksentinel.detectors.kerneltable import KernelTable
from ksentinel.detectors.model import Model
from ksentinel.detectors.ngram import NGramModel
from ksentinel.detectors.oneclass import OneClass
from ksentinel.detectors.profiles import Profiles
from ksentinel.detectors.stide import Stide
from ksentinel.errors import ModelError
from ksentinel.event import Origin, Process, ProcessKey
from ksentinel.level import Level
from ksentinel.window import LENGTH, Window

FORMAT = 2
"""Of the folder; one more whenever an older ksentinel would misread it."""

MEMBERS: dict[str, type[NGramModel] | type[Stide] | type[OneClass]] = {
    kind.name: kind for kind in (NGramModel, Stide, OneClass)
}

MAX_BYTES = 1 << 30
"""A model larger than this, packed or unpacked, is none: one host's n-grams are some ten megabytes."""

MAX_MANIFEST = 8 << 20
_MAX_ARRAYS = 1000
_KERNEL = "kernel.npz"
_RETRAIN = "train it again"

# What each member must say of these on loading, as it did on saving: scikit-learn's insides may change.
_PROBES = tuple(
    Window(Process(ProcessKey(1, 1)), 1, 0, 1, tuple((step * i + i * i // 7) % 450 for i in range(LENGTH)))
    for step in (0, 1, 3, 59)
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """
    What stands in ``manifest.json``.

    Attributes
    ----------
    format
        `FORMAT` of the ksentinel that wrote it.
    ksentinel, numpy, scikit_learn
        Their versions.
    sha256
        Of ``model.npz``.
    kernel_sha256
        Of ``kernel.npz``; empty if there is none: the model is of events that the kernel doesn't score.
    """

    format: int
    ksentinel: str
    numpy: str
    scikit_learn: str
    sha256: str
    kernel_sha256: str
    arch: str
    origin: str
    window_length: int
    members: tuple[str, ...]
    thresholds: dict[str, float]
    facts: Facts


def save(model: Model, directory: Path, facts: Facts) -> Manifest:
    """
    Write *model* as *directory*, in one move: a reader finds the old model, or the new one.

    Files are 0644 (what is secret: 0600), the folder is 0755. An older model of that name is replaced (for a moment there is none).

    Raises
    ------
    ModelError
        If something stands there that is no model, or can't be written.
    """
    if directory.exists() and not (directory / "manifest.json").is_file():
        raise ModelError("is there already and is no model", directory, "give another name")
    data = _packed(_arrays(model))
    kernel = b"" if model.kernel is None else _packed(model.kernel.to_arrays())
    manifest = Manifest(
        format=FORMAT,
        ksentinel=ksentinel.__version__,
        numpy=np.__version__,
        scikit_learn=metadata.version("scikit-learn"),
        sha256=hashlib.sha256(data).hexdigest(),
        kernel_sha256=hashlib.sha256(kernel).hexdigest() if kernel else "",
        arch=model.arch,
        origin=str(model.origin),
        window_length=LENGTH,
        members=tuple(model.members),
        thresholds={str(level): p for level, p in model.thresholds.items()},
        facts=facts,
    )
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    files = {"model.npz": data, "manifest.json": text, "README.md": card(manifest).encode()}
    if kernel:
        files[_KERNEL] = kernel
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            for name, content in files.items():
                _write(new / name, content)
            new.chmod(0o755)
            if directory.exists():
                directory.rename(old)
            try:
                new.rename(directory)
            except OSError:
                if old.exists():
                    old.rename(directory)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"can't be written: {error.strerror}", directory) from error
    return manifest


def read_manifest(directory: Path, *, uid: int = 0) -> Manifest:
    """
    Return the manifest of the model in *directory*, without loading its numbers.

    Raises
    ------
    ModelError
        If there is none, if others than root and *uid* could have changed it, or it is of another format.
    """
    with contextlib.ExitStack() as stack:
        folder = _open_folder(directory, uid, stack)
        return _manifest(directory, _read(folder, directory / "manifest.json", uid, MAX_MANIFEST))


def load(directory: Path, *, arch: str, uid: int = 0) -> Model:
    """
    Return the model in *directory*.

    Parameters
    ----------
    arch
        Whose system calls it will be asked about (``x86_64``).
    uid
        Who may own it besides root: the caller.

    Raises
    ------
    ModelError
        If there is none, if others than root and *uid* could have changed it, if it is damaged, or made for another
        version, architecture or window length. The message names the file and what to do.
    """
    with contextlib.ExitStack() as stack:
        folder = _open_folder(directory, uid, stack)
        manifest = _manifest(directory, _read(folder, directory / "manifest.json", uid, MAX_MANIFEST))
        _check_made_for(manifest, directory, arch)
        data = _read(folder, directory / "model.npz", uid, MAX_BYTES)
    file = directory / "model.npz"
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise ModelError("is not the file that manifest.json was written for", file, "copy the model again")
    arrays = _unpacked(data, file)
    try:
        return _model(manifest, arrays)
    except ModelError as error:
        raise ModelError(error.what, file, error.remedy or _RETRAIN) from error


def load_kernel(directory: Path, *, arch: str, uid: int = 0) -> KernelTable:
    """
    Return the part of the model in *directory* that the kernel scores with; nothing else is read.

    Raises
    ------
    ModelError
        As `load`; and if there is no such part.
    """
    file = directory / _KERNEL
    with contextlib.ExitStack() as stack:
        folder = _open_folder(directory, uid, stack)
        manifest = _manifest(directory, _read(folder, directory / "manifest.json", uid, MAX_MANIFEST))
        _check_made_for(manifest, directory, arch)
        if not manifest.kernel_sha256:
            raise ModelError(
                "has no part for the kernel: it was trained on another source's events",
                directory,
                "train one on what `ksentinel record` wrote",
            )
        data = _read(folder, file, uid, MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != manifest.kernel_sha256:
        raise ModelError("is not the file that manifest.json was written for", file, "copy the model again")
    try:
        return KernelTable.from_arrays(_unpacked(data, file))
    except ModelError as error:
        raise ModelError(error.what, file, error.remedy or _RETRAIN) from error


def card(manifest: Manifest) -> str:
    """Return the model card, Markdown: its data, its split, what it can promise, where it is weak."""
    facts = manifest.facts
    recordings = [f"- `{r.name}` (sha256 `{r.sha256}`)" for r in facts.recordings] or ["- not stated"]
    thresholds = [f"- {level}: p ≤ {p:g}" for level, p in manifest.thresholds.items()]
    cut = sum(e.cut_in_time for e in facts.executables)
    return "\n".join(
        [
            f"# Model card: {', '.join(manifest.members)} ({manifest.arch}, {manifest.origin})",
            "",
            "## Data",
            "",
            *recordings,
            "",
            (
                f"Host {facts.host or 'not stated'}, kernel {facts.kernel or 'not stated'}, "
                f"{facts.duration_s / 3600:.2f} hours, {facts.processes} processes, {facts.threads} threads, "
                f"{facts.tokens} system calls, {len(facts.executables)} executables. "
                "Whatever happened while it was recorded is normal to this model, an attack included."
            ),
            "",
            "## Split",
            "",
            (
                f"By process: {facts.fit} windows to fit, {facts.calibrate} to calibrate, {facts.test} to test; no "
                f"process in two parts, but for {cut} executables that are mostly one long process: its time line was cut "
                f"into blocks, with gaps ({facts.gap} windows left out). {facts.strangers} windows calibrate executables never seen."
            ),
            "",
            "## What it can promise",
            "",
            *thresholds,
            "",
            *alarm_lines(facts),
            *gate_lines(facts),
            "",
            (
                "On that recording and windows like it. A p-value counts how often a normal window is at least as "
                "unusual; below one in the number of calibration windows it is extrapolated (generalised Pareto tail)."
            ),
            "",
            "## Where it is weak",
            "",
            "- Unusual is not harmful: updates, new programs and rare administration look unusual, too.",
            "- It sees which system calls, not their arguments: reading another file is the same to it.",
            "- An attacker who does what the program does anyway, or pads with it, stays below the threshold.",
            "- Windows of one process resemble each other: the intervals above are somewhat too narrow.",
            "- It ages with the software it was trained on.",
            "",
            (
                f"Written by ksentinel {manifest.ksentinel} with numpy {manifest.numpy} and "
                f"scikit-learn {manifest.scikit_learn}."
            ),
            "",
        ]
    )


def alarm_lines(facts: Facts) -> list[str]:
    """Return one sentence for each level: false alarms on the test part, and the interval of their rate."""
    return [
        f"False alarms at {alarms.level} or above: {alarms.windows} of {facts.test} test windows in "
        f"{facts.thread_hours:.3g} thread-hours; {_rate(alarms.per_thread_hour)} a thread-hour, "
        f"{_rate(alarms.per_host_hour)} an hour of this host (95 % interval)."
        for alarms in facts.alarms
    ]


def gate_lines(facts: Facts) -> list[str]:
    """Return what the gate in the kernel did with the test part; nothing if the model has no part for the kernel."""
    gate = facts.gate
    if gate is None:
        return []
    said = (
        f"In the kernel: {gate.profiles} profiles of their own, {gate.evicted} share the host-wide one; the gate lets "
        f"{gate.flagged} of {facts.test} normal test windows through, and keeps {gate.missed} of the {gate.alarms} that "
        "the whole model would have raised a false alarm for."
    )
    return [said]


def _rate(interval: tuple[float, float] | None) -> str:
    return "unknown" if interval is None else f"{_short(interval[0])} to {_short(interval[1])}"


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _arrays(model: Model) -> dict[str, npt.NDArray[Any]]:
    parts: dict[str, Mapping[str, npt.NDArray[Any]]] = {"profiles": model.profiles.to_arrays()}
    for name, member in model.members.items():
        parts[f"member.{name}"] = member.to_arrays()
        parts[f"calibration.{name}"] = model.calibrations[name].to_arrays()
        parts[f"probe.{name}"] = {"scores": member.score(_PROBES)}
    return {f"{part}.{name}": found for part, arrays in parts.items() for name, found in arrays.items()}


def _model(manifest: Manifest, arrays: Arrays) -> Model:
    unknown = [name for name in manifest.members if name not in MEMBERS]
    if unknown:
        raise ModelError(f"has a member this ksentinel doesn't know: {', '.join(unknown)}")
    members: list[Detector] = []
    calibrations = {}
    for name in manifest.members:
        member = MEMBERS[name].from_arrays(_below(arrays, f"member.{name}."))
        expected = array(arrays, f"probe.{name}.scores", kind="f")
        if expected.shape != (len(_PROBES),) or not np.allclose(member.score(_PROBES), expected, 1e-6, 1e-8):
            raise ModelError(
                f"member {name} scores otherwise than when it was saved (scikit-learn {manifest.scikit_learn}, "
                f"numpy {manifest.numpy})"
            )
        members.append(member)
        calibrations[name] = Calibration.from_arrays(_below(arrays, f"calibration.{name}."))
    try:
        thresholds = {Level.parse(name): p for name, p in manifest.thresholds.items()}
        origin = Origin(manifest.origin)
    except ValueError as error:
        raise ModelError(f"its manifest is wrong: {error}") from error
    profiles = Profiles.from_arrays(_below(arrays, "profiles."))
    return Model(members, calibrations, profiles, thresholds=thresholds, arch=manifest.arch, origin=origin)


def _check_made_for(manifest: Manifest, directory: Path, arch: str) -> None:
    if manifest.arch != arch:
        raise ModelError(f"was trained on {manifest.arch}, this is {arch}", directory, "train one here")
    if manifest.window_length != LENGTH:
        raise ModelError(
            f"was trained on windows of {manifest.window_length} system calls, they have {LENGTH}",
            directory,
            _RETRAIN,
        )


def _below(arrays: Arrays, prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): found for name, found in arrays.items() if name.startswith(prefix)}


def _packed(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpacked(data: bytes, file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz file whose every size was checked before anything of that size was allocated."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > _MAX_ARRAYS or sum(m.file_size for m in members) > MAX_BYTES:
                raise ModelError(f"would unpack to more than {MAX_BYTES >> 20} MiB", file, _RETRAIN)
            for member in members:
                with archive.open(member) as stream:
                    _check_header(stream, member, file)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"is no intact npz file: {error}", file, "copy the model again") from error


def _check_header(stream: Any, member: zipfile.ZipInfo, file: Path) -> None:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ModelError(f"array {member.filename} is of npy version {version}", file, _RETRAIN)
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ModelError(
            f"array {member.filename} holds Python objects", file, "don't use it: no model needs any"
        )
    if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
        raise ModelError(f"array {member.filename} is not as large as it says", file, "copy the model again")


def _manifest(directory: Path, text: bytes) -> Manifest:
    file = directory / "manifest.json"
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if version != FORMAT:
            raise ModelError(
                f"is of format {version!r}, this ksentinel reads {FORMAT}",
                file,
                "train it again, or update ksentinel",
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"is no manifest: {error}", file, "copy the model again") from error


def _open_folder(directory: Path, uid: int, stack: contextlib.ExitStack) -> int:
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ModelError("there is no such model", directory, "train one: ksentinel train") from None
    except NotADirectoryError:
        raise ModelError("is a file; a model is a folder", directory, "name the folder it lies in") from None
    except OSError as error:
        raise ModelError(f"can't be read: {error.strerror}", directory) from error
    stack.callback(os.close, folder)
    _check_owner(os.fstat(folder), directory, uid)
    return folder


def _read(folder: int, file: Path, uid: int, limit: int) -> bytes:
    # Opened once, checked and read through that: nobody can put another file there in between.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(file.name, flags, dir_fd=folder), "rb") as stream:  # noqa: PTH123
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ModelError("is no regular file", file, "copy the model again")
            _check_owner(status, file, uid)
            data = stream.read(limit + 1)
    except FileNotFoundError:
        raise ModelError("there is no such file", file, "copy the model again") from None
    except OSError as error:
        raise ModelError(
            f"can't be read: {error.strerror}", file, "a model holds no symbolic links"
        ) from error
    if len(data) > limit:
        raise ModelError(f"is larger than {limit >> 20} MiB", file, _RETRAIN)
    return data


def _check_owner(status: os.stat_result, path: Path, uid: int) -> None:
    if status.st_uid not in {0, uid}:
        raise ModelError(
            f"belongs to user {status.st_uid}, neither to root nor to you", path, "chown it, if you trust it"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelError("can be changed by others", path, "chmod go-w it, if you trust it")


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        os.fchmod(stream.fileno(), 0o600 if path.name == _KERNEL else 0o644)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
