# SPDX-License-Identifier: Apache-2.0
"""The audit trail: every line whole, on disk, and nobody else's."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ksentinel.errors import InputError
from ksentinel.trail import Trail


@pytest.fixture
def path(tmp_path):
    """Return where a trail can be."""
    return tmp_path / "kept" / "changes.jsonl"


@pytest.fixture
def trail(path):
    """Return a trail of this user."""
    return Trail(path, os.getuid())


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_lines(trail, path):
    """What is written is there, in order; nobody else may read it."""
    trail.write({"request": "a", "path": "\udcff\x1b[2J"})
    trail.write({"request": "b"})

    assert lines(path) == [{"request": "a", "path": "\\xff\x1b[2J"}, {"request": "b"}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"\x1b" not in path.read_bytes()


def test_on_disk(trail, path, monkeypatch):
    """A line is synchronised before anything else happens, the first one's name in the directory, too."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink()), real(fd))
    )
    trail.write({})
    trail.write({})

    assert synced == [path, path.parent, path]


def test_rotated(trail, path):
    """It may be moved away at any time."""
    trail.write({"n": 1})
    path.rename(path.with_suffix(".1"))
    trail.write({"n": 2})

    assert (lines(path.with_suffix(".1")), lines(path)) == ([{"n": 1}], [{"n": 2}])


def test_torn(trail, path):
    """What a crash has cut stays, and spoils no line after it."""
    trail.write({"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2')
    trail.write({"n": 3})

    assert path.read_bytes().split(b"\n") == [b'{"n":1}', b'{"n": 2', b'{"n":3}', b""]


def make_directory(path):
    path.mkdir()


def make_link(path):
    path.symlink_to(path.with_name("elsewhere"))


def make_fifo(path):
    os.mkfifo(path, 0o600)


def make_shared(path):
    path.touch()
    path.chmod(0o620)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_directory, "can't be written: Is a directory"),
        (make_link, "can't be written: Too many levels of symbolic links"),
        (make_fifo, "is no regular file"),
        (make_shared, "is writable by others"),
    ],
)
def test_something_else(trail, path, make, said):
    """What others could have written, or what keeps nothing, is no trail; nothing is written there."""
    path.parent.mkdir()
    make(path)
    with pytest.raises(InputError, match=said) as wrong:
        trail.write({})

    assert wrong.value.at == path
    assert wrong.value.remedy
    assert not path.with_name("elsewhere").exists()


@pytest.mark.root
def test_somebody_elses(trail, path):
    """Whoever owns it could change it."""
    path.parent.mkdir()
    path.touch(0o600)
    os.chown(path, 12345, 12345)

    with pytest.raises(InputError, match="belongs to uid 12345"):
        trail.write({})


def test_no_room(path):
    """A line that doesn't fit is an error, and the next one begins anew."""
    path.parent.mkdir()
    path.write_bytes(b"x" * 1000 + b"\n")
    code = (
        "import os, resource, signal, sys; from pathlib import Path\n"
        "from ksentinel.errors import InputError; from ksentinel.trail import Trail\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))\n"
        "trail = Trail(Path(sys.argv[1]), os.getuid())\n"
        "for text in ('y' * 100, 'z'):\n"
        "    try: trail.write({'text': text})\n"
        "    except InputError as error: print(error.what)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "trail.write({'text': 'at last'})\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=60
    )

    first, second = ran.stdout.splitlines()
    assert first == "only 23 of 112 bytes could be written"
    assert second == "can't be written: File too large"
    assert path.read_bytes().splitlines()[-1] == b'{"text":"at last"}'
