# SPDX-License-Identifier: Apache-2.0
"""The ring buffer's reader, on a file laid out as the kernel lays its memory out."""

import mmap
import os
import struct
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksentinel.bpf.ring import Ring

PAGE = mmap.PAGESIZE
SIZE = 4096
BUSY, DISCARD = 1 << 31, 1 << 30


class Pollable:
    """Stands for epoll, which takes no plain files."""

    ready: tuple[tuple[int, int], ...] = ()

    def register(self, fd, events):
        """Take a descriptor."""

    def poll(self, seconds):
        """Return what is ready."""
        return self.ready if seconds >= 0 else ()

    def close(self):
        """Do nothing."""


@dataclass
class Kernel:
    """Writes records as ``bpf_ringbuf_reserve`` and ``bpf_ringbuf_submit`` do."""

    fd: int
    produced: int = 0
    headers: list[int] = field(default_factory=list)

    @property
    def consumed(self) -> int:
        """Return how far the reader says it has come."""
        return struct.unpack("=Q", os.pread(self.fd, 8, 0))[0]

    def reserve(self, payload: bytes, bits: int = 0) -> bool:
        """Write a record; False if there is no room."""
        room = 8 + len(payload) + 7 & ~7
        if self.produced + room - self.consumed > SIZE - 1:
            return False
        self.headers.append(self.produced)
        record = struct.pack("=II", len(payload) | bits, 0) + payload
        for offset, byte in enumerate(record, self.produced):
            for copy in (0, SIZE):  # the same memory, mapped twice in a row
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + copy + offset % SIZE)
        self.produced += room
        os.pwrite(self.fd, struct.pack("=Q", self.produced), PAGE)
        return True

    def submit(self, number: int, size: int, bits: int = 0) -> None:
        """Say that a record is complete."""
        for copy in (0, SIZE):
            os.pwrite(self.fd, struct.pack("=I", size | bits), 2 * PAGE + copy + self.headers[number] % SIZE)


@pytest.fixture(autouse=True)
def _pollable(monkeypatch):
    monkeypatch.setattr("ksentinel.bpf.ring.select.epoll", Pollable)


@pytest.fixture
def kernel():
    fd = os.memfd_create("ring")
    os.ftruncate(fd, 2 * PAGE + 2 * SIZE)
    yield Kernel(fd)
    os.close(fd)


def reader(kernel):
    return Ring(SimpleNamespace(fd=kernel.fd, max_entries=SIZE))


def test_records(kernel):
    """Records come out as they were written, in order, and their room is given back."""
    for payload in (b"one", b"", b"three and some more"):
        kernel.reserve(payload)
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read()] == [b"one", b"", b"three and some more"]
        assert kernel.produced == kernel.consumed
        assert list(ring.read()) == []


def test_busy(kernel):
    """Reading stops at a record that is still being written, and goes on when it is finished."""
    kernel.reserve(b"first")
    kernel.reserve(b"second", BUSY)
    kernel.reserve(b"third")
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read()] == [b"first"]
        assert list(ring.read()) == []
        kernel.submit(1, len(b"second"))
        assert [bytes(record) for record in ring.read()] == [b"second", b"third"]


def test_discarded(kernel):
    """A discarded record takes room and is not delivered."""
    kernel.reserve(b"kept")
    kernel.reserve(b"dropped", DISCARD)
    kernel.reserve(b"kept too")
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read()] == [b"kept", b"kept too"]
        assert kernel.produced == kernel.consumed


def test_record_outlives_its_room(kernel):
    """What has been read stays as it was when the kernel writes over it."""
    kernel.reserve(b"a" * 2000)
    with reader(kernel) as ring:
        (record,) = ring.read()
        for _ in range(3):
            kernel.reserve(b"b" * 1000)
            list(ring.read())

        assert bytes(record) == b"a" * 2000


def test_room_before_the_first_record(kernel):
    """The room is free as soon as the records are copied, also if the caller stops half-way."""
    kernel.reserve(b"one")
    kernel.reserve(b"two")
    with reader(kernel) as ring:
        assert bytes(next(ring.read())) == b"one"
        assert kernel.produced == kernel.consumed


def test_limit(kernel):
    """No more than the limit is taken at once, in whole records."""
    for n in range(4):
        kernel.reserve(bytes([n]) * 24)
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read(limit=80)] == [b"\0" * 24, b"\1" * 24]
        assert [bytes(record) for record in ring.read(limit=80)] == [b"\2" * 24, b"\3" * 24]


def test_fill(kernel):
    """The share of the buffer that waits to be read."""
    with reader(kernel) as ring:
        assert ring.fill == 0
        kernel.reserve(b"x" * (SIZE // 2 - 8))
        assert ring.fill == 0.5
        list(ring.read())
        assert ring.fill == 0


def test_resumes_where_another_stopped(kernel):
    """A second reader starts at the consumer's position, not at the beginning."""
    kernel.reserve(b"one")
    with reader(kernel) as ring:
        list(ring.read())
    kernel.reserve(b"two")
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read()] == [b"two"]


def test_wait(kernel):
    """Waiting tells whether there is something."""
    with reader(kernel) as ring:
        assert not ring.wait(0)
        ring._poll.ready = ((kernel.fd, 1),)
        assert ring.wait(0)


def test_finished_while_copied(kernel, monkeypatch):
    """A record that is finished after its header was looked at waits for the next time: its copy may be torn."""
    kernel.reserve(b"whole")
    kernel.reserve(b"torn", BUSY)

    class Overtaken(mmap.mmap):
        def __getitem__(self, place):
            kernel.submit(1, len(b"torn"))
            return super().__getitem__(place)

    monkeypatch.setattr("ksentinel.bpf.ring.mmap.mmap", Overtaken)
    with reader(kernel) as ring:
        assert [bytes(record) for record in ring.read()] == [b"whole"]
        assert [bytes(record) for record in ring.read()] == [b"torn"]


@given(
    st.lists(
        st.tuples(st.integers(0, 700), st.sampled_from([0, 0, 0, DISCARD]), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_any_sequence(steps):
    """Whatever is written, across the end of the buffer too, comes out once, whole and in order."""
    fd = os.memfd_create("ring")
    try:
        os.ftruncate(fd, 2 * PAGE + 2 * SIZE)
        kernel, written, got = Kernel(fd), [], []
        with reader(kernel) as ring:
            for number, (size, bits, reads) in enumerate(steps):
                payload = bytes([number]) * size
                while not kernel.reserve(payload, bits):
                    got += [bytes(record) for record in ring.read()]
                if not bits:
                    written.append(payload)
                if reads:
                    got += [bytes(record) for record in ring.read()]
            got += [bytes(record) for record in ring.read()]
    finally:
        os.close(fd)

    assert written == got
