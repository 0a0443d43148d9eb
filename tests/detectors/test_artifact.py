# SPDX-License-Identifier: Apache-2.0
"""Saving, loading, and refusing."""

import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from small_host import ATTACK, make_windows

from ksentinel.detectors import artifact
from ksentinel.detectors.artifact import load, load_kernel, read_manifest, save
from ksentinel.detectors.facts import Recording
from ksentinel.errors import ModelError
from ksentinel.event import Origin
from ksentinel.training import train

WINDOWS = make_windows(100)
ME = os.getuid()


@pytest.fixture(scope="module")
def trained():
    return train(WINDOWS)


@pytest.fixture
def saved(trained, tmp_path):
    save(trained.model, tmp_path / "host", trained.facts)
    return tmp_path / "host"


def change_manifest(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_arrays(folder, data):
    """Put another npz there, with the right hash."""
    (folder / "model.npz").write_bytes(data)
    change_manifest(folder, sha256=hashlib.sha256(data).hexdigest())


def packed(allow_pickle=False, **arrays):
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=allow_pickle, **arrays)
    return buffer.getvalue()


def test_round_trip(trained, saved):
    """A loaded model says the very same."""
    model = load(saved, arch="x86_64", uid=ME)
    asked = [*WINDOWS, ATTACK]

    assert trained.model.assess(asked) == model.assess(asked)
    assert (trained.model.thresholds, trained.model.origin) == (model.thresholds, model.origin)


def test_manifest(trained, saved):
    """The facts can be read without the numbers."""
    manifest = read_manifest(saved, uid=ME)

    assert trained.facts == manifest.facts
    assert (manifest.arch, manifest.origin, manifest.window_length) == ("x86_64", "bpf", 64)


def test_same_bytes(trained, tmp_path):
    """The same model is the same file."""
    for name in "ab":
        save(trained.model, tmp_path / name, trained.facts)

    for name in ("model.npz", "manifest.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_modes(saved):
    """Everyone may read but what is secret, nobody else may write; nothing else is left behind."""
    modes = {file.name: file.stat().st_mode & 0o7777 for file in [saved, *saved.iterdir()]}

    assert modes == {
        "host": 0o755,
        "model.npz": 0o644,
        "kernel.npz": 0o600,
        "manifest.json": 0o644,
        "README.md": 0o644,
    }
    assert [saved] == list(saved.parent.iterdir())


def test_replace(trained, saved):
    """An older model gives way; anything else does not."""
    save(trained.model, saved, trained.facts)
    assert load(saved, arch="x86_64", uid=ME).assess([ATTACK])

    (saved / "manifest.json").unlink()
    with pytest.raises(ModelError, match="no model"):
        save(trained.model, saved, trained.facts)


def test_card(trained, saved):
    """The card states data, split, promise and weak sides."""
    text = (saved / "README.md").read_text()

    for heading in ("## Data", "## Split", "## What it can promise", "## Where it is weak"):
        assert heading in text
    assert f"{trained.facts.fit} windows to fit" in text
    assert "False alarms at low" in text


def missing(folder):
    (folder / "model.npz").unlink()


def no_folder(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def a_file(folder):
    no_folder(folder)
    folder.write_text("")


def symlink(folder):
    (folder / "model.npz").rename(folder.parent / "elsewhere")
    (folder / "model.npz").symlink_to(folder.parent / "elsewhere")


def fifo(folder):
    (folder / "model.npz").unlink()
    os.mkfifo(folder / "model.npz", 0o600)


def flipped(folder):
    data = bytearray((folder / "model.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.npz").write_bytes(data)


def objects(folder):
    change_arrays(folder, packed(allow_pickle=True, evil=np.array([{}], dtype=object)))


def bomb(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 3_000_000)
    change_arrays(folder, buffer.getvalue())


def liar(folder):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", header.getvalue())
    change_arrays(folder, buffer.getvalue())


def drifted(folder):
    with np.load(folder / "model.npz") as arrays:
        changed = dict(arrays)
    changed["probe.oneclass.scores"] = changed["probe.oneclass.scores"] + 1
    change_arrays(folder, packed(**changed))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_folder, "host: there is no such model (train one: ksentinel train)"),
        (a_file, "host: is a file; a model is a folder"),
        (missing, "model.npz: there is no such file"),
        (symlink, "model.npz: can't be read"),
        (fifo, "model.npz: is no regular file"),
        (flipped, "model.npz: is not the file that manifest.json was written for"),
        (lambda f: f.chmod(0o775), "host: can be changed by others (chmod go-w it"),
        (lambda f: (f / "model.npz").chmod(0o666), "model.npz: can be changed by others"),
        (lambda f: (f / "manifest.json").chmod(0o664), "manifest.json: can be changed by others"),
        (lambda f: change_manifest(f, format=1), "manifest.json: is of format 1, this ksentinel reads 2"),
        (lambda f: change_manifest(f, arch="aarch64"), "host: was trained on aarch64, this is x86_64"),
        (lambda f: change_manifest(f, window_length=32), "host: was trained on windows of 32"),
        (lambda f: change_manifest(f, members=["lstm"]), "doesn't know: lstm"),
        (lambda f: change_manifest(f, members=["ngram", "ngram"]), "a name of its own"),
        (lambda f: change_manifest(f, origin="ebpf"), "manifest is wrong"),
        (lambda f: change_manifest(f, thresholds={"terrible": 0.1}), "manifest is wrong"),
        (lambda f: change_manifest(f, facts=None), "manifest.json: is no manifest"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff["), "manifest.json: is no manifest"),
        (lambda f: change_arrays(f, b"PK\x05\x06"), "model.npz: is no intact npz file"),
        (lambda f: change_arrays(f, packed()), "model.npz: the model has no array"),
        (objects, "model.npz: array evil.npy holds Python objects"),
        (bomb, "model.npz: would unpack to more than"),
        (liar, "model.npz: array a.npy is not as large as it says"),
        (drifted, "model.npz: member oneclass scores otherwise than when it was saved"),
    ],
)
def test_refuses(saved, monkeypatch, damage, message):
    """Each with one line that names the file and what to do."""
    monkeypatch.setattr(artifact, "MAX_BYTES", 2_500_000)
    damage(saved)

    with pytest.raises(ModelError) as refused:
        load(saved, arch="x86_64", uid=ME)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(ME != 0, reason="giving files away needs root: run as root")
@pytest.mark.parametrize("name", [".", "model.npz", "manifest.json"])
def test_other_owner(saved, name):
    """What belongs to somebody else is refused, unless that is who asks."""
    os.chown(saved / name, 12345, -1)

    assert load(saved, arch="x86_64", uid=12345)
    with pytest.raises(ModelError, match="belongs to user 12345"):
        load(saved, arch="x86_64", uid=0)


def test_facts_are_data(trained, tmp_path):
    """Recordings and host, as the caller adds them, come back."""
    facts = replace(trained.facts, recordings=(Recording("monday.db", "ab" * 32),), host="web1", kernel="6.1")
    save(trained.model, tmp_path / "m", facts)

    assert facts == read_manifest(tmp_path / "m", uid=ME).facts
    assert "monday.db" in (tmp_path / "m" / "README.md").read_text()


def test_card_tells_of_the_gate(trained, saved):
    """What the part in the kernel does stands in the card; without one, nothing is said of it."""
    gate = trained.facts.gate
    said = f"{gate.profiles} profiles of their own, {gate.evicted} share the host-wide one"

    assert said in (saved / "README.md").read_text()
    assert read_manifest(saved, uid=ME).facts.gate == gate


def test_model_without_a_kernel(tmp_path):
    """A model of another collector's windows is saved without that part; an older one's isn't left there."""
    trained = train([replace(w, origin=Origin.AUDIT) for w in WINDOWS])
    save(trained.model, tmp_path / "m", trained.facts)

    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == [
        "README.md",
        "manifest.json",
        "model.npz",
    ]
    assert "In the kernel" not in (tmp_path / "m" / "README.md").read_text()
    assert load(tmp_path / "m", arch="x86_64", uid=ME).origin is Origin.AUDIT
    with pytest.raises(
        ModelError, match=r"has no part for the kernel: .*train one on what `ksentinel record`"
    ):
        load_kernel(tmp_path / "m", arch="x86_64", uid=ME)


def test_secret_part_is_not_needed(saved):
    """Who may not read the kernel's part can still use the model on recordings."""
    (saved / "kernel.npz").unlink()

    assert load(saved, arch="x86_64", uid=ME).assess([ATTACK])


def test_kernel(trained, saved):
    """The part for the kernel comes back as it was, without the rest being read."""
    (saved / "model.npz").unlink()
    table = load_kernel(saved, arch="x86_64", uid=ME)

    assert table.images(3, 5) == trained.model.kernel.images(3, 5)
    assert list(table.keys(5)) == list(trained.model.kernel.keys(5))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "kernel.npz").unlink(), "kernel.npz: there is no such file"),
        (lambda f: (f / "kernel.npz").chmod(0o620), "kernel.npz: can be changed by others"),
        (
            lambda f: (f / "kernel.npz").write_bytes(b""),
            "kernel.npz: is not the file that manifest.json was written for",
        ),
        (lambda f: change_manifest(f, kernel_sha256=""), "host: has no part for the kernel"),
        (lambda f: change_manifest(f, arch="aarch64"), "host: was trained on aarch64, this is x86_64"),
        (lambda f: change_kernel(f, packed()), "kernel.npz: the model has no array headers"),
        (
            lambda f: change_kernel(f, packed(headers=np.zeros((2, 64), np.uint8))),
            "the model has no array surprise",
        ),
        (
            lambda f: change_kernel(f, kernel_arrays(surprise=np.zeros((2, 9), np.uint8))),
            "rows of another size",
        ),
        (lambda f: change_kernel(f, kernel_arrays()), "row 0 of the kernel table has impossible numbers"),
        (lambda f: change_kernel(f, kernel_arrays(text=np.frombuffer(b"[[", np.uint8))), "can't be read"),
        (
            lambda f: change_kernel(
                f, kernel_arrays(text=np.frombuffer(b'{"names": [["a", "", 7]], "lineages": []}', np.uint8))
            ),
            "don't fit its rows",
        ),
    ],
)
def test_kernel_refused(saved, damage, message):
    """What is no kernel table is refused, and the file named."""
    damage(saved)

    with pytest.raises(ModelError, match=re.escape(message)):
        load_kernel(saved, arch="x86_64", uid=ME)


def change_kernel(folder, data):
    """Put another table there, with the right hash."""
    (folder / "kernel.npz").write_bytes(data)
    change_manifest(folder, kernel_sha256=hashlib.sha256(data).hexdigest())


def kernel_arrays(**changes):
    """Return a table of two rows of zeros, which is none: a row has an order."""
    arrays = {
        "headers": np.zeros((2, 64), np.uint8),
        "surprise": np.zeros((2, 65536), np.uint8),
        "text": np.frombuffer(b'{"names": [], "lineages": []}', np.uint8),
        "evicted": np.zeros(1, np.uint32),
    }
    return packed(**arrays | changes)
