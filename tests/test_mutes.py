# SPDX-License-Identifier: Apache-2.0
"""Mutes: they hide what they are about and nothing else, end, and survive."""

import os
import re
import threading
from dataclasses import replace

import pytest
from made_up import CAT, ID, SECOND, SHELL, START, anomaly, judge, match

from ksentinel.alert import Alert, Evidence
from ksentinel.errors import InputError, UsageError
from ksentinel.level import Level
from ksentinel.mutes import MODEL, MOST, Mute, Mutes, in_words, read

ME = os.getuid()
HOUR = 3600 * SECOND


def alert(*said, revision=1, at=0.0):
    """Return an alert of matches and anomalies."""
    matches = [one for one in said if hasattr(one, "rule")]
    anomalies = [one for one in said if one not in matches]
    evidence = [Evidence(1, START, START, match=one) for one in matches]
    evidence += [Evidence(1, START, START, anomaly=one) for one in anomalies]
    process = matches[0].event.process if matches else anomalies[0].window.process
    verdict = judge(matches, anomalies)
    updated_ns = START + round(at * SECOND)
    return Alert("a", revision, START, updated_ns, process, verdict, tuple(evidence))


def mute(**fields):
    """Return an hour's mute of the shell, unless *fields* say else."""
    about = {} if {"exe", "rule", "parent"} & set(fields) else {"exe": "/bin/sh"}
    return Mute(**{"id": "m", "begun_ns": START, "until_ns": START + HOUR, "reason": "so"} | about | fields)


@pytest.mark.parametrize(
    ("one", "about", "covered"),
    [
        (mute(exe="/bin/sh"), [match(SHELL)], True),
        (mute(exe="/bin/cat"), [match(SHELL)], False),
        (mute(exe="/bin/s"), [match(SHELL)], False),
        (mute(parent="/usr/sbin/httpd"), [match(SHELL)], True),
        (mute(parent="/bin/sh"), [match(SHELL)], False),
        (mute(parent="/bin/sh"), [match(CAT), match(ID, rule="id")], True),
        (mute(rule="web shell"), [match(SHELL)], True),
        (mute(rule="other"), [match(SHELL)], False),
        (mute(exe="/bin/sh", rule="other"), [match(SHELL)], False),
        (mute(exe="/bin/sh", rule="web shell", parent="/usr/sbin/httpd"), [match(SHELL)], True),
        (mute(rule="web shell"), [match(SHELL), match(SHELL, rule="other")], False),
        (mute(exe="/bin/sh"), [match(SHELL), match(CAT, rule="other")], False),
        (mute(rule="web shell"), [match(SHELL, level=Level.LOW), anomaly(SHELL, unseen=True)], False),
        (mute(exe="/bin/sh"), [match(SHELL, level=Level.LOW), anomaly(SHELL, unseen=True)], True),
        (mute(rule=MODEL), [anomaly(SHELL)], True),
        (mute(rule=MODEL), [match(SHELL)], False),
        (mute(), [match(SHELL, level=Level.HIGH)], False),
        (mute(level="high"), [match(SHELL, level=Level.HIGH)], True),
        (mute(level="high"), [match(SHELL, level=Level.CRITICAL)], False),
        (mute(level="high"), [match(SHELL, level=Level.HIGH), anomaly(SHELL)], False),
        (mute(level="low"), [match(SHELL)], False),
    ],
)
def test_covers(one, about, covered):
    """Only if all of the evidence fits, up to its level; a critical alert never."""
    assert one.covers(alert(*about)) == covered


def test_correlation():
    """Of a correlation all parts have to fit: a mute of the last one's program doesn't hide the others'."""
    parts = (match(SHELL, rule="first"), match(CAT, rule="last"))
    both = replace(match(CAT, rule="both"), parts=parts)

    assert [mute(exe=exe).covers(alert(both)) for exe in ("/bin/cat", "/bin/sh")] == [False, False]
    assert mute(rule="both").covers(alert(both))
    assert mute(exe="/bin/cat").covers(alert(replace(both, parts=parts[1:])))


@pytest.mark.parametrize(("at", "covered"), [(-0.001, False), (0, True), (3599.999, True), (3600, False)])
def test_time(at, covered):
    """From its beginning to its end, by the time of the events."""
    assert mute().covers(alert(match(SHELL), at=at)) == covered


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exe": ""}, "a mute of everything is none"),
        ({"reason": "  "}, "a mute has a reason"),
        ({"reason": "x" * 1001}, "--reason is longer than 1,000"),
        ({"exe": "/bin/\udcff"}, "--exe is longer than 1,000 characters, or no UTF-8"),
        ({"exe": "sh"}, "--exe 'sh' is no absolute path"),
        ({"parent": "sh"}, "--parent 'sh' is no absolute path"),
        ({"level": "critical"}, "a mute reaches up to level high"),
        ({"level": "none"}, "a mute reaches up to level high"),
        ({"level": "loud"}, "--level 'loud' is none of"),
        ({"until_ns": START}, "a mute ends after it begins"),
        ({"until_ns": START + 25 * HOUR}, "a mute lasts 24 hours at most"),
    ],
)
def test_wrong(tmp_path, fields, said):
    """What can't be is refused, and nothing is kept."""
    mutes = Mutes(tmp_path / "mutes.json", ME)
    with pytest.raises(UsageError, match=re.escape(said)):
        mutes.add(mute(**fields))

    assert mutes.all() == ()
    assert not mutes.path.exists()


def test_survives(tmp_path):
    """What is in force stands in a private file, with its counts, and the next run has it."""
    path = tmp_path / "var" / "mutes.json"
    first = Mutes(path, ME)
    long, short = (
        first.add(mute(until_ns=START + 2 * HOUR)),
        first.add(mute(exe="/bin/cat", reason='\x1b "\u202e')),
    )
    assert long.id != short.id
    assert first.mute(alert(match(SHELL))) == long.id
    assert first.mute(alert(match(SHELL), revision=2)) == long.id
    assert first.mute(alert(match(ID))) == ""
    assert read(path, ME)[0].alerts == 0
    first.save()

    second = Mutes(path, ME)
    assert second.all() == first.all() == (short, replace(long, alerts=1, revisions=1))
    assert path.stat().st_mode & 0o777 == 0o600
    assert second.expire(START + HOUR - 1) == ()
    assert second.expire(START + HOUR) == (short,)
    assert second.remove(long.id[:4]).id == long.id
    assert Mutes(path, ME).all() == ()


def test_unmute_none(tmp_path):
    """What isn't there, or isn't one, can't be removed."""
    mutes = Mutes(tmp_path / "mutes.json", ME)
    for exe in ("/a", "/b"):
        mutes.add(mute(exe=exe))
    for prefix, said in (("zz", "no mute begins with 'zz'"), ("", "more than one mute begins with ''")):
        with pytest.raises(UsageError, match=said):
            mutes.remove(prefix)

    assert len(mutes.all()) == 2


def test_most(tmp_path):
    """There is an end to them."""
    mutes = Mutes(tmp_path / "mutes.json", ME)
    for number in range(MOST):
        mutes.add(mute(exe=f"/{number}"))
    with pytest.raises(UsageError, match="100 mutes are in force already"):
        mutes.add(mute(exe="/one/more"))

    assert len(Mutes(mutes.path, ME).all()) == MOST


def test_disk_full(tmp_path, monkeypatch):
    """One that can't be kept isn't in force; those there are stay."""
    mutes = Mutes(tmp_path / "mutes.json", ME)
    kept = mutes.add(mute())

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"mutes.json: can't be written: No space left on device"):
        mutes.add(mute(exe="/other"))
    with pytest.raises(InputError, match="can't be written"):
        mutes.remove(kept.id)

    assert mutes.all() == read(mutes.path, ME) == (kept,)


MINE = '{"id": "m", "begun_ns": 1, "until_ns": 2, "reason": "so", "exe": "/x"}'


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (f"[{MINE}]", 0o620, "is writable by others"),
        (f"[{MINE}]", 0o602, "is writable by others"),
        ("", 0o600, "is no list of mutes"),
        ("{}", 0o600, "is no list of mutes: Expected `array`"),
        ('[{"id": "m"}]', 0o600, "is no list of mutes: .* missing required field"),
        ('[{"id": 5}]', 0o600, "is no list of mutes: Expected `str`, got `int`"),
        (f"[{MINE}, {MINE}]", 0o600, "has too many mutes, or one twice"),
        (f"[{MINE.replace('/x', '')}]", 0o600, "is no list of mutes: a mute of everything is none"),
        (f'[{MINE[:-1]}, "level": "critical"}}]', 0o600, "a mute reaches up to level high"),
        ("\xff", 0o600, "is no list of mutes"),
    ],
)
def test_hostile_file(tmp_path, text, mode, said):
    """What others can write, or what makes no sense, mutes nothing: it is an error."""
    path = tmp_path / "mutes.json"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(mode)
    with pytest.raises(InputError, match=said):
        Mutes(path, ME)


def test_hostile_place(tmp_path):
    """A link, a FIFO or a directory is not read."""
    (tmp_path / "real").write_text("[]")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, said in (
        ("link", "can't be read"),
        ("fifo", "is no regular file"),
        ("folder", "is no regular file"),
    ):
        with pytest.raises(InputError, match=said):
            read(tmp_path / name, ME)

    assert read(tmp_path / "nothing", ME) == ()


@pytest.mark.root
def test_somebody_elses(tmp_path):
    """Whoever isn't root or the user mutes nothing."""
    path = tmp_path / "mutes.json"
    path.write_text("[]")
    os.chown(path, 12345, -1)
    with pytest.raises(InputError, match="belongs to uid 12345"):
        read(path, 0)


def test_two_threads():
    """The walk counts while the socket changes: no count is lost."""
    mutes = Mutes()
    one = mutes.add(mute())
    told = alert(match(SHELL))

    def change():
        for number in range(300):
            mutes.remove(mutes.add(mute(exe=f"/{number}")).id)

    changing = threading.Thread(target=change)
    changing.start()
    covered = sum(mutes.mute(told) == one.id for _ in range(3000))
    changing.join()

    assert mutes.all() == (replace(one, alerts=covered),) == (replace(one, alerts=3000),)


def test_nobody_waits_for_the_disk(tmp_path, monkeypatch):
    """While a change is on its way to the disk, the walk goes on."""
    mutes = Mutes(tmp_path / "mutes.json", ME)
    one = mutes.add(mute())
    told = []

    def slow(_fd):
        walking = threading.Thread(target=lambda: told.append(mutes.mute(alert(match(SHELL)))))
        walking.start()
        walking.join(timeout=10)

    monkeypatch.setattr(os, "fsync", slow)
    mutes.add(mute(exe="/other"))
    mutes.save()

    assert set(told) == {one.id}
    assert {found.exe: found.alerts for found in mutes.all()} == {"/bin/sh": len(told), "/other": 0}


def test_in_words():
    """All that it is about is said."""
    one = mute(exe="/bin/sh", rule="4b1c", parent="/usr/sbin/httpd", alerts=1234)

    assert in_words(one).startswith(
        "m: rule 4b1c of /bin/sh below /usr/sbin/httpd up to level medium, until 2023-11-14 23:13:20"
    )
    assert in_words(one).endswith('("so"): 1,234 alerts muted')
    assert mute(rule=MODEL).about == "the model alone"
