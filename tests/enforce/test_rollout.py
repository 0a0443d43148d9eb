# SPDX-License-Identifier: Apache-2.0
"""Rolling out and getting out: confirmed by another login, two boots, a word, a file."""

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.enforce import Mode
from ksentinel.enforce.breaker import Change
from ksentinel.enforce.rollout import (
    SECOND,
    SOON_NS,
    Boots,
    Confirmation,
    Login,
    Release,
    Stage,
    Start,
    flag,
    least,
    read_changes,
    release_words,
    write_changes,
)
from ksentinel.errors import InputError, UsageError
from ksentinel.event import ProcessKey

ME = os.getuid()
BEGUN = 100 * SECOND


def login(pid=1, start=10, session=1, auid=1000):
    """Return a session, begun *start* seconds after boot."""
    return Login(ProcessKey(pid, start * SECOND), session, auid)


def begun(by=None):
    """Return enforcement that is to be confirmed within a minute."""
    return Confirmation(BEGUN, 60 * SECOND, by)


def test_confirmed():
    """From a login that began afterwards; it stays so."""
    done = begun(login()).confirm(login(2, 110, 2), BEGUN + 20 * SECOND)

    assert begun(login()).words(BEGUN + 20 * SECOND) == "ends in 40 s unless it is confirmed from a new login"
    assert done.stage(BEGUN + 1000 * SECOND) is Stage.CONFIRMED
    assert done.words(BEGUN + 1000 * SECOND) == "confirmed"
    assert done.confirm(login(), BEGUN + 1000 * SECOND) == done


@pytest.mark.parametrize(
    ("by", "from_", "says"),
    [
        (login(), login(), "this is the login that started it"),
        (login(), login(2, 110, 1), "this is the login that started it"),
        (login(), login(2, 50, 2), "this login began before enforcement did"),
        (login(), login(2, 100, 2), "this login began before enforcement did"),
        (login(), login(2, 110, None), "this is no login"),
        (login(), login(2, 110, 0xFFFFFFFF), "this is no login"),
        (login(session=None), login(2, 50, None), "this login began before enforcement did"),
        (None, login(2, 50, 2), "this login began before enforcement did"),
    ],
)
def test_not_confirmed(by, from_, says):
    """A login that proves nothing is told why; setsid makes no other login."""
    with pytest.raises(UsageError, match=f"{says}.*log in anew"):
        begun(by).confirm(from_, BEGUN + SECOND)


@pytest.mark.parametrize("by", [None, login(session=None), login()])
def test_confirmed_whoever_began(by):
    """A new login does, also on a kernel that doesn't number them, and for what was started at boot."""
    session = None if by is not None and by.session is None else 2

    assert begun(by).confirm(login(2, 110, session), BEGUN + SECOND).confirmed_ns == BEGUN + SECOND


def test_too_late():
    """Nobody has confirmed it: it has ended, and can't be confirmed any more."""
    late = BEGUN + 65 * SECOND

    assert begun().stage(BEGUN + 60 * SECOND - 1) is Stage.WAITING
    assert begun().stage(BEGUN + 60 * SECOND) is Stage.EXPIRED
    assert begun().words(late) == "nobody confirmed it within 60 s: permissive again"
    with pytest.raises(UsageError, match="it has ended 5 s ago"):
        begun().confirm(login(2, 110, 2), late)


NOW = 1_700_000_000 * SECOND


@pytest.fixture
def boots(tmp_path):
    """Return where boots are written down."""
    return Boots(tmp_path / "var" / "boots.json", ME)


def test_first_boot(boots):
    """Nothing is odd about one boot, nor about a daemon that is started again in it."""
    assert [boots.begin("a", NOW), boots.begin("a", NOW)] == [Start(Mode.ENFORCE)] * 2
    assert oct(boots.path.stat().st_mode & 0o777) == "0o600"
    assert [path.name for path in boots.path.parent.iterdir()] == ["boots.json"]


@pytest.mark.parametrize(
    ("apart", "most"),
    [(1, Mode.PERMISSIVE), (600, Mode.PERMISSIVE), (601, Mode.ENFORCE), (-30, Mode.PERMISSIVE)],
)
def test_second_boot(boots, apart, most):
    """One that comes soon is permissive, and stays it; a clock that was set back changes nothing."""
    boots.begin("a", NOW)
    found = [boots.begin("b", NOW + apart * SECOND) for _ in range(2)]

    assert [one.most for one in found] == [most, most]
    assert all(bool(one.why) == (most is Mode.PERMISSIVE) for one in found)


def test_forgiven(boots):
    """Somebody says that it wasn't the guards: the same boot enforces, the next one is counted from now on."""
    boots.begin("a", NOW)
    assert "has booted twice within 60 s" in boots.begin("b", NOW + 60 * SECOND).why
    boots.forgive()

    assert boots.begin("b", NOW + 60 * SECOND) == Start(Mode.ENFORCE)
    assert boots.begin("c", NOW + 90 * SECOND) == Start(Mode.ENFORCE)
    assert boots.begin("d", NOW + 95 * SECOND).most is Mode.PERMISSIVE


def test_far_apart(boots):
    """Old boots are let go of."""
    for number in range(40):
        assert boots.begin(str(number), NOW + number * 2 * SOON_NS).most is Mode.ENFORCE

    assert boots.path.stat().st_size < 2500


SPOILT = {
    "noise": lambda path: path.write_bytes(b"\xff\x00"),
    "cut": lambda path: path.write_text('[{"id": "a"'),
    "other words": lambda path: path.write_text('[{"id": 1, "booted_ns": "x"}]'),
    "writable by others": lambda path: path.chmod(0o622),
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
    "huge": lambda path: path.write_bytes(b" " * (2 << 20)),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_damaged(boots, spoil):
    """If nobody knows how often the host has booted, it starts permissive and says why, in this boot for good."""
    boots.begin("a", NOW)
    spoil(boots.path)
    found = [boots.begin("b", NOW + 100 * SOON_NS) for _ in range(2)]

    assert [one.most for one in found] == [Mode.PERMISSIVE, Mode.PERMISSIVE]
    assert "it is not known how often this host has booted lately" in found[0].why
    assert found[0] == found[1]
    boots.forgive()
    assert boots.begin("b", NOW + 100 * SOON_NS) == Start(Mode.ENFORCE)


@pytest.mark.root
@pytest.mark.skipif(ME != 0, reason="gives a file to somebody else: root")
def test_somebody_elses(boots):
    """A file that somebody else could have written says nothing."""
    boots.begin("a", NOW)
    os.chown(boots.path, 12345, 12345)

    assert "belongs to uid 12345" in boots.begin("b", NOW + 100 * SOON_NS).why


def test_nowhere(tmp_path):
    """What can't be written down is an error: nobody would notice the next boot."""
    (tmp_path / "var").write_text("")
    with pytest.raises(InputError, match=r"can't be (written|read)"):
        Boots(tmp_path / "var" / "boots.json", ME).begin("a", NOW)


def test_changes_kept(tmp_path):
    """Since when rules are what they are is kept over a restart."""
    path = tmp_path / "changes.json"
    told = {"r": Change("1", 5)}

    assert read_changes(path, ME) == {}
    write_changes(told, path)
    assert read_changes(path, ME) == told
    path.write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        read_changes(path, ME)


@pytest.mark.parametrize(
    ("cmdline", "most"),
    [
        ("ro quiet", "none"),
        ("ro ksentinel=off quiet\n", Mode.OFF),
        ("ksentinel=permissive", Mode.PERMISSIVE),
        ("ksentinel=permissive ksentinel=off", Mode.OFF),
        ("ksentinel=off ksentinel=permissive", Mode.OFF),
        ("ksentinel=enforce", None),
        ("ksentinel=", None),
        ("ksentinel=bad ksentinel=permissive", Mode.PERMISSIVE),
        ('"ksentinel=off"', Mode.OFF),
        ('ksentinel="off"', Mode.OFF),
        ("xksentinel=off", "none"),
        ("root=ksentinel=off", "none"),
        ("ro -- ksentinel=off", "none"),
    ],
)
def test_release_words(cmdline, most):
    """A word for us on the kernel's command line; what is none is said to be none."""
    found = release_words(cmdline)

    assert ("none" if found is None else found.most) == most
    assert found is None or "on the kernel's command line" in found.words


@given(st.text())
def test_any_cmdline(cmdline):
    """Whatever stands there, it only ever releases, and its words are harmless."""
    found = release_words(cmdline + " ksentinel=\x1b[2J" + cmdline)

    assert found.most in {None, Mode.OFF, Mode.PERMISSIVE}
    assert "\x1b" not in found.words


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("", Mode.PERMISSIVE),
        ("off\n", Mode.OFF),
        ("permissive", Mode.PERMISSIVE),
        ("enforce", Mode.PERMISSIVE),
        ("\x1b[2J", Mode.PERMISSIVE),
    ],
)
def test_flag(tmp_path, text, most):
    """A file of root's releases, whatever stands in it; what stands in it can only say how far."""
    path = tmp_path / "release"
    assert flag(path, ME) is None
    assert flag(tmp_path / "none" / "release", ME) is None
    path.write_text(text)
    path.chmod(0o644)

    assert flag(path, ME) == Release(most, f"{path}: {most}")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.chmod(0o666), "is writable by others"),
        (lambda path: path.parent.chmod(0o777), "its directory is writable by others"),
        (
            lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
            "(is writable by others|is no regular file)",
        ),
        (lambda path: (path.unlink(), path.mkdir(mode=0o755)), "is no regular file"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), "is no regular file"),
    ],
)
def test_no_flag(tmp_path, spoil, says):
    """One that somebody else could have put there releases nothing, and that is said."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    path = folder / "release"
    path.write_text("off")
    path.chmod(0o644)
    spoil(path)
    found = flag(path, ME)

    assert found.most is None
    assert re.search(says, found.words)


def test_least():
    """Nothing makes enforcement more than it was asked for."""
    assert least(Mode.PERMISSIVE, Mode.ENFORCE, None) is Mode.PERMISSIVE
    assert least(Mode.ENFORCE, Mode.PERMISSIVE, Mode.OFF) is Mode.OFF
    assert least(Mode.ENFORCE) is Mode.ENFORCE
