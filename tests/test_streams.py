# SPDX-License-Identifier: Apache-2.0
"""Sources and normalizers joined."""

import gzip
import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from ksentinel.event import ExecEvent, Origin, Process, ProcessKey
from ksentinel.normalize.redact import Redactor
from ksentinel.streams import AuditLogs, Live
from ksentinel.window import Window

pytest.importorskip("auparse", reason="apt install python3-audit, and run Debian's interpreter")

WEBSHELL = Path(__file__).parent / "data" / "audit" / "webshell.log"


def items(stream):
    return [item for batch in stream for item in batch]


def head(line):
    return line.partition(b"msg=audit(")[2].partition(b")")[0]


@pytest.fixture
def rotated(tmp_path):
    """Return a log in three parts, the newest first, as a shell's * would name them."""
    lines = WEBSHELL.read_bytes().splitlines(keepends=True)
    heads = [head(line) for line in lines]
    # Between events: their records are interleaved here and there.
    cuts = [i for i in range(1, len(lines)) if not set(heads[:i]) & set(heads[i:])]
    first, second = cuts[len(cuts) // 3], cuts[2 * len(cuts) // 3]
    parts = {"audit.log": lines[second:], "audit.log.1": lines[first:second], "audit.log.2.gz": lines[:first]}
    for name, part in parts.items():
        content = b"".join(part)
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return [tmp_path / name for name in parts]


def test_oldest_first(rotated):
    """Rotated logs give what one log would have given, whatever order they are named in."""
    whole, parts = AuditLogs([WEBSHELL], Redactor()), AuditLogs(rotated, Redactor())

    assert items(whole) == items(parts)
    assert [log.path for log in parts.logs] == rotated[::-1]
    assert whole.account() | {"files": 3} == parts.account()
    assert parts.lost() == 0


def test_order_given_stays_with_a_pipe(rotated):
    """What can't be looked at twice isn't."""
    stream = AuditLogs([rotated[0], "-"], None, io.BytesIO(WEBSHELL.read_bytes()))
    items(stream)

    assert [log.path for log in stream.logs] == [rotated[0], "-"]
    assert stream.account()["lines"] > WEBSHELL.read_bytes().count(b"\n")


def test_account_adds_up(rotated, tmp_path):
    """A bad log is kept account of, and keeps no other from being read."""
    garbage, empty, cut = tmp_path / "garbage", tmp_path / "empty", tmp_path / "cut.gz"
    garbage.write_bytes(b"no record\n" * 30)
    empty.write_bytes(b"")
    cut.write_bytes(gzip.compress(WEBSHELL.read_bytes())[:-2000])
    stream = AuditLogs([garbage, empty, rotated[0], cut], None)
    found = items(stream)

    account = stream.account()
    assert account["lines"] == account["lines_in_events"] + account["malformed"] + account["pending"]
    assert (account["files"], account["malformed"], stream.lost()) == (4, 30, 30)
    assert {log.path for log in stream.failed} == {garbage, empty, cut}
    assert [str(error).partition(":")[0] for error in stream.failures] == [
        str(log.path) for log in stream.logs if log in stream.failed
    ]
    assert any(isinstance(item, Window) for item in found)


def test_events_before_a_cut_count(tmp_path):
    """What could be read before compressed data end is in the stream, and in no other order."""
    packed = gzip.compress(WEBSHELL.read_bytes())
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) * 2 // 3])
    whole, cut = items(AuditLogs([WEBSHELL], None)), items(AuditLogs([tmp_path / "cut.gz"], None))
    events, fewer = ([item for item in some if not isinstance(item, Window)] for some in (whole, cut))

    assert 1 < len(fewer) < len(events)
    assert fewer[:-1] == events[: len(fewer) - 1]  # of the last one, records are behind the cut


class Collector:
    """A collector whose records are its items."""

    def __init__(self, batches, last):
        self.batches, self.last, self.dropped = list(batches), list(last), 0

    def poll(self):
        """Return the next batch."""
        return self.batches.pop(0)

    def finish(self):
        """Yield what is left."""
        yield from self.last

    def counters(self):
        """Return what the test says was dropped."""
        names = ("windows_shed", "windows_dropped", "calls_limited", "calls_dropped", "lifecycle_dropped")
        return dict.fromkeys(names, 0) | {"windows_dropped": self.dropped}

    def fill(self):
        """Return a number."""
        return 0.5

    def account(self):
        """Return one counter."""
        return {"seen": 5}

    def lost(self):
        """Return what the test says."""
        return self.dropped


class Normalizer:
    """Takes items for records; None is malformed."""

    def __init__(self):
        self.malformed, self.table = 0, SimpleNamespace(forgotten=1)

    def item(self, record):
        """Return the record itself."""
        self.malformed += record is None
        return record


def event(pid):
    return ExecEvent(time_ns=pid, process=Process(ProcessKey(pid, 1)), tid=pid, origin=Origin.BPF)


def test_live():
    """Until it is told to stop, then what is left; what isn't wanted or makes no sense is counted."""
    one, two, three, four = (event(pid) for pid in (1, 2, 3, 4))
    collector = Collector([[one, None], [two]], [[three], [four]])
    attended, told = [], []
    stream = Live(
        collector, Normalizer(), lambda: not collector.batches, lambda item: item.process.key.pid != 2,
        attend=attended.append, tell=told.append,
    )  # fmt: skip

    assert list(stream) == [[one], [], [three], [four]]
    assert attended == [one, None, two, None, three, None, four, None]
    assert told == []
    assert stream.account() == {
        "seen": 5, "records_malformed": 1, "items_excluded": 1, "overloads": 0, "processes_forgotten": 1,
    }  # fmt: skip
    collector.dropped = 10
    assert stream.lost() == 11


def test_live_overloaded():
    """An overload is told when it begins, and once when it has been over for a while."""
    collector, told, time = Collector([[]] * 9, []), [], iter(range(100))
    drops = iter([0, 4, 9, 9, 9, 9, 9, 9, 9])
    poll = collector.poll

    def polled():
        collector.dropped = next(drops)
        return poll()

    collector.poll = polled
    stream = Live(
        collector, Normalizer(), lambda: not collector.batches, tell=told.append, clock=lambda: next(time)
    )
    list(stream)

    assert [line.partition(":")[0] for line in told] == [
        "overload begins, the ring buffer is 50% full",
        "overload is over after 1.0 s",
    ]
    assert "9 windows that found no room" in told[1]
    assert stream.account()["overloads"] == 1


class _Records:
    """A collector whose records are there at once, some of them at the end."""

    def __init__(self, *batches):
        self.batches = [[memoryview(one) for one in batch] for batch in batches]

    def poll(self):
        return self.batches.pop(0)

    def finish(self):
        return [self.batches.pop(0)]

    def counters(self):
        return dict.fromkeys(("seen", "windows_dropped", "calls_dropped", "lifecycle_dropped"), 0)

    def fill(self):
        return 0.0

    def lost(self):
        return 0

    def account(self):
        return {}


def test_divert():
    """A proof that a guard works reaches whoever waits for it, and neither the normalizer nor the walk; also at the end."""
    seen, diverted = [], []

    def item(record):
        seen.append(bytes(record))
        return exec_of(bytes(record).decode())

    def divert(record):
        if not bytes(record).startswith(b"proof"):
            return False
        diverted.append(bytes(record))
        return True

    normalizer = SimpleNamespace(item=item, malformed=0, table=SimpleNamespace(forgotten=0))
    stops = iter([False, True])
    live = Live(_Records([b"/a", b"proof 1"], [b"proof 2", b"/b"]), normalizer, lambda: next(stops))
    live.divert = divert
    live.overload = SimpleNamespace(update=lambda *_: None, episodes=0)
    batches = [[one.process.exe for one in batch] for batch in live]

    assert diverted == [b"proof 1", b"proof 2"]
    assert seen == [b"/a", b"/b"]
    assert batches == [["/a"], ["/b"]]
    assert live.account()["items_excluded"] == 0


def exec_of(exe):
    """Return an execution."""
    return ExecEvent(time_ns=0, process=Process(ProcessKey(5, 5), exe=exe), tid=5, origin=Origin.BPF)
