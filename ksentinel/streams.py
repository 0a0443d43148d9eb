# SPDX-License-Identifier: Apache-2.0
"""
Streams: sources and normalizers joined, ready for the walk.

Each is a `ksentinel.sources.Stream`; a `recording.Reader` is one by itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from ksentinel.contents import Contents
from ksentinel.errors import InputError
from ksentinel.normalize.audit import AuditNormalizer
from ksentinel.normalize.bpf import BpfNormalizer
from ksentinel.normalize.processes import ProcessTable
from ksentinel.normalize.redact import Redactor
from ksentinel.overload import Overload
from ksentinel.sources import Account, Item
from ksentinel.sources.auditlog import AuditLog
from ksentinel.sources.ringbuf import Collector
from ksentinel.window import Assembler, Window

_BATCH = 512


class Live:
    """
    This host's system calls, as they happen, until *stop* says so.

    Parameters
    ----------
    collector
        Entered already.
    keep
        Which items to let through; the others are counted as ``items_excluded``.
    attend
        Is shown each item, also those that aren't let through, and called with None after each batch.
    contents
        What recognises programs by content, for its part of the account.
    divert
        Takes records that aren't for the walk, proofs that guards work; tells whether it has.
    tell
        Is told when an overload begins and when it is over.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        collector: Collector,
        normalizer: BpfNormalizer,
        stop: Callable[[], bool],
        keep: Callable[[Item], bool] | None = None,
        *,
        attend: Callable[[Item | None], None] | None = None,
        contents: Contents | None = None,
        divert: Callable[[memoryview], bool] | None = None,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.collector = collector
        self.normalizer = normalizer
        self.stop = stop
        self.keep = keep
        self.attend = attend
        self.contents = contents
        self.divert = divert
        self.tell = tell
        self.clock = clock
        self.excluded = 0
        self.overload = Overload()

    def __iter__(self) -> Iterator[list[Item]]:
        while not self.stop():
            yield self._items(self.collector.poll())
            notice = self.overload.update(self.collector.counters(), self.clock(), self.collector.fill())
            if notice is not None and self.tell is not None:
                self.tell(str(notice))
        for records in self.collector.finish():
            yield self._items(records)

    def account(self) -> Account:
        """Return what the kernel counted and what became of it here."""
        return {
            **self.collector.account(),
            "records_malformed": self.normalizer.malformed,
            "items_excluded": self.excluded,
            "overloads": self.overload.episodes,
            **({} if self.contents is None else self.contents.account()),
            "processes_forgotten": self.normalizer.table.forgotten,
        }

    def lost(self) -> int:
        """Return how many records found no room in the ring buffer, or made no sense."""
        return self.collector.lost() + self.normalizer.malformed

    def _items(self, records: Sequence[memoryview]) -> list[Item]:
        if self.divert is not None:
            records = [record for record in records if not self.divert(record)]
        items = [item for record in records if (item := self.normalizer.item(record)) is not None]
        if self.attend is not None:
            for item in items:
                self.attend(item)
            self.attend(None)
        if self.keep is None:
            return items
        kept = [item for item in items if self.keep(item)]
        self.excluded += len(items) - len(kept)
        return kept


class AuditLogs:
    """
    Audit logs, one after the other, the oldest first, whatever order they were given in.

    ``audit.log*`` names the newest first, and processes must not exit before they are born. Standard input and pipes
    can't be looked at twice: with one of them among the paths, the order given is kept.

    Parameters
    ----------
    paths
        Files, or ``-`` for *stdin*.

    Attributes
    ----------
    failed
        Logs that couldn't be used, or only up to a cut, and why: the others are read all the same.
    """

    def __init__(
        self, paths: Sequence[Path | Literal["-"]], redact: Redactor | None, stdin: BinaryIO | None = None
    ) -> None:
        self.logs = [AuditLog(path, stdin) for path in paths]
        self.failed: dict[AuditLog, InputError] = {}
        self._normalizer = AuditNormalizer(ProcessTable(), redact)
        self._assembler = Assembler()

    @property
    def failures(self) -> list[InputError]:
        """What is wrong with the logs that failed."""
        return list(self.failed.values())

    def __iter__(self) -> Iterator[list[Item]]:
        self.logs = _oldest_first(self.logs)
        batch: list[Item] = []
        for log in self.logs:
            try:
                for group in log:
                    for event in self._normalizer.events(group):
                        batch.extend(self._assembler.add(event))
                        batch.append(event)
                    if len(batch) >= _BATCH:
                        yield batch
                        batch = []
            except InputError as error:  # what came before a cut counts, and so do the other logs
                self.failed[log] = error
        tail: list[Window] = list(self._assembler.finish())
        yield [*batch, *tail]

    def account(self) -> Account:
        """Return the sums over all files: lines = lines_in_events + malformed + pending."""
        accounts = [log.account for log in self.logs]
        return {
            "files": len(accounts),
            "lines": sum(a.lines for a in accounts),
            "lines_in_events": sum(a.in_events for a in accounts),
            "malformed": sum(a.malformed for a in accounts),
            "pending": sum(a.pending for a in accounts),
            "events": sum(a.events for a in accounts),
        }

    def lost(self) -> int:
        """Return how many lines made no sense."""
        return sum(log.account.malformed for log in self.logs)


def _oldest_first(logs: list[AuditLog]) -> list[AuditLog]:
    begins: dict[AuditLog, int] = {}
    for log in logs:
        if len(logs) == 1 or log.path == "-" or not Path(log.path).is_file():
            return logs
        try:
            first = next(iter(log), None)
        except InputError:  # said when its turn comes; at the end, because of it nothing can be out of order
            first = None
        if first is not None:
            begins[log] = first.time_ns
    return sorted(logs, key=lambda log: (log not in begins, begins.get(log, 0)))
