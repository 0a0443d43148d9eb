# SPDX-License-Identifier: Apache-2.0
"""
A BPF ring buffer, read through the memory it shares with the kernel.

Layout as in the kernel's ``kernel/bpf/ringbuf.c``: a page with the consumer's position, a page with the producer's,
then the data, mapped twice in a row so that no record is ever split. Each record has an 8-byte header: its length,
with one bit for *still being written* and one for *discarded*.
"""

import mmap
import select
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from ksentinel.bpf.libbpf import Map

_BUSY = 1 << 31
_DISCARD = 1 << 30
_POSITION = struct.Struct("=Q")
_LENGTH = struct.Struct("=I")


class Ring:
    """
    Reads what programs wrote to a ring buffer map.

    What is read is copied out in one piece before the room is given back, so a record never changes while it is
    looked at; and which records are complete is found out before that, because a copy that runs while the kernel
    writes may hold a finished header and unfinished data.
    """

    def __init__(self, ring: Map) -> None:
        self._size = ring.max_entries
        self._fd = ring.fd
        self._position = 0

    def __enter__(self) -> Self:
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(self._fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._data = mmap.mmap(self._fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._poll = select.epoll()
        self._poll.register(self._fd, select.EPOLLIN)
        (self._position,) = _POSITION.unpack_from(self._consumer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poll.close()
        self._data.close()
        self._consumer.close()

    def wait(self, seconds: float) -> bool:
        """Wait until there is something to read, at most *seconds*."""
        return bool(self._poll.poll(seconds))

    @property
    def fill(self) -> float:
        """How full the buffer is, from 0 to 1."""
        (produced,) = _POSITION.unpack_from(self._data)
        return float(produced - self._position) / self._size

    def read(self, limit: int = 4 << 20) -> Iterator[memoryview]:
        """Yield the records that are complete, up to *limit* bytes of them, and give their room back."""
        (produced,) = _POSITION.unpack_from(self._data)
        available = min(produced - self._position, limit)
        if not available:
            return
        start = mmap.PAGESIZE + self._position % self._size
        at = 0
        places = []
        while at + 8 <= available:
            (length,) = _LENGTH.unpack_from(self._data, start + at)
            if length & _BUSY:
                break
            size = length & ~_DISCARD
            following = at + (size + 8 + 7 & ~7)
            if following > available:
                break
            if not length & _DISCARD:
                places.append((at + 8, at + 8 + size))
            at = following
        chunk = memoryview(self._data[start : start + at])
        self._position += at
        _POSITION.pack_into(self._consumer, 0, self._position)
        for begin, end in places:
            yield chunk[begin:end]
