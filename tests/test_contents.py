# SPDX-License-Identifier: Apache-2.0
"""Programs by content, while they run."""

import hashlib
from dataclasses import dataclass, field

import pytest

from ksentinel.contents import Asked, Contents
from ksentinel.event import ExecEvent, Origin, Process, ProcessKey
from ksentinel.executables import Identity, Kind, Known, Recognizer, Unidentified


@dataclass
class Files:
    """A hasher over files that the test makes up: path to inode and content, at the moment of asking."""

    files: dict
    room: int = 100
    _found: list = field(default_factory=list)

    def submit(self, path, token, *, follow=False):
        """Look at once; only what has a root of its own is followed there, or what lies at a path."""
        assert follow is not path.endswith("/exe")
        if not self.room:
            return False
        self.room -= 1
        if path in self.files:
            inode, content = self.files[path]
            sha256 = hashlib.sha256(content).hexdigest()
            self._found.append((token, Identity(1, inode, len(content), 0, 0, sha256)))
        else:
            self._found.append((token, Unidentified("gone")))
        return True

    def ready(self):
        """Return what was found."""
        found, self._found = self._found, []
        return found


def known(*pairs):
    return Recognizer([Known(path, hashlib.sha256(content).hexdigest()) for path, content in pairs])


def executed(exe, pid=7, script=""):
    return ExecEvent(
        time_ns=1, process=Process(ProcessKey(pid, 1), exe=exe, script=script), tid=pid, origin=Origin.BPF
    )


@pytest.mark.parametrize(
    ("files", "now", "kind"),
    [
        ({"/proc/7/exe": (5, b"ls")}, ("/opt/x", 1, 5), Kind.COPY),
        ({"/proc/7/exe": (5, b"other")}, ("/opt/x", 1, 5), Kind.UNKNOWN),
        # It has become ls by the time it was looked at: its own file says what it was.
        ({"/proc/7/exe": (9, b"ls"), "/opt/x": (5, b"other")}, ("/usr/bin/ls", 1, 9), Kind.UNKNOWN),
        # ... or was ls just then, and is itself again.
        ({"/proc/7/exe": (9, b"ls"), "/opt/x": (5, b"other")}, ("/opt/x", 1, 5), Kind.UNKNOWN),
        ({"/opt/x": (5, b"ls")}, None, Kind.COPY),
        ({}, None, Kind.UNKNOWN),
    ],
)
def test_unknown_path(files, now, kind):
    """A program of no known path is a copy only if what it executes has a known content."""
    told = []
    contents = Contents(Files(files), known(("/usr/bin/ls", b"ls")), told.append, lambda _pid: now)
    contents.attend(executed("/opt/x"))
    contents.attend(None)
    contents.attend(None)

    assert contents.account()[f"programs_{kind}"] == 1
    assert [one.profile for one in told] == (["/usr/bin/ls"] if kind is Kind.COPY else [])


def test_upgraded():
    """Another content at a known path is told once, however often it is executed."""
    told = []
    files = Files({"/proc/7/exe": (5, b"new")})
    contents = Contents(files, known(("/bin/a", b"old")), told.append, lambda _pid: ("/bin/a", 1, 5))
    for _ in range(3):
        contents.attend(executed("/bin/a"))
        contents.attend(None)

    assert [one.kind for one in told] == [Kind.CHANGED]


def test_script():
    """A script is looked at in its process' root, by its own path."""
    files = Files({"/proc/7/root/srv/run": (5, b"#!/bin/sh")})
    told = []
    contents = Contents(
        files, known(("#!/srv/run", b"before")), told.append, lambda _pid: ("/bin/dash", 1, 2)
    )
    contents.attend(executed("/bin/dash", script="/srv/run"))
    contents.attend(None)

    assert [(one.kind, one.path) for one in told] == [(Kind.CHANGED, "#!/srv/run")]


def test_no_room():
    """Who couldn't be looked at is counted, and tried again."""
    contents = Contents(Files({}, room=0), known(), lambda _: None, lambda _: None)
    contents.attend(executed("/bin/a"))

    assert contents.account()["programs_dropped"] == 1
    contents.hasher.room = 9
    contents.attend(executed("/bin/a"))
    assert contents.hasher.ready()[0][0] == Asked("/bin/a", 7)
