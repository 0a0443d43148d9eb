# SPDX-License-Identifier: Apache-2.0
"""What docs/kernel-scoring.md says, word for word: slow, and written from that page alone.

Share no code with the other implementations, and change nothing here that the page doesn't say.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

ROW_BYTES = 65600
NOTHING = 255
MOST = 254
CEILING = 2**24
EXEC = 0xE00
DEEPEST = 10


def wrap(number: int) -> int:
    """Keep the lowest 64 bits."""
    return number % 2**64


@dataclass(frozen=True)
class Row:
    """One `struct ks_profile`."""

    seed0: int
    seed1: int
    mask: int
    drift: int
    mean_limit: int
    cusum_limit: int
    process_limit: int
    carry_fork: int
    carry_exec: int
    order: int
    decay: int
    never: int
    outside: int
    penalty: bytes
    surprise: bytes


def read_row(raw: bytes) -> Row:
    """Take a row's bytes apart."""
    if len(raw) != ROW_BYTES:
        raise ValueError(f"a row has {ROW_BYTES} bytes, not {len(raw)}")

    def number(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], sys.byteorder)

    return Row(
        seed0=number(0, 8),
        seed1=number(8, 8),
        mask=number(20, 4),
        drift=number(24, 4),
        mean_limit=number(28, 4),
        cusum_limit=number(32, 4),
        process_limit=number(36, 4),
        carry_fork=number(40, 2),
        carry_exec=number(42, 2),
        order=number(44, 1),
        decay=number(45, 1),
        never=number(46, 1),
        outside=number(47, 1),
        penalty=raw[48:56],
        surprise=raw[64:65600],
    )


def pack(tokens: Sequence[int]) -> int:
    """Put up to five tokens, oldest first, into a word, the newest in the lowest bits."""
    word = 0
    for token in tokens:
        word = word * 2**12 + token
    return word


def token_entry(row: Row, history: Sequence[int], k: int) -> int:
    """Return the entry of the n-gram of length `k` that ends with the newest token of `history`."""
    low = pack(history[-5:])
    high = pack(history[-10:-5])
    l_ = low & (2 ** (12 * min(k, 5)) - 1)
    h = high & (2 ** (12 * max(k - 5, 0)) - 1)
    x = wrap((l_ ^ row.seed0) * 0xFF51AFD7ED558CCD)
    x = x ^ (x >> 32)
    x = wrap(x + h + (k << 60))
    x = wrap((x ^ row.seed1) * 0xC4CEB9FE1A85EC53)
    return (x >> 48) & row.mask


def token_found(row: Row, history: Sequence[int], k: int) -> tuple[int, int] | None:
    """Search a row from length `k` down: the surprise of the newest token of `history` and the length found, or None."""
    for j in range(k, 0, -1):
        v = row.surprise[token_entry(row, history, j)]
        if v != NOTHING:
            return min(v + row.penalty[k - j], MOST), j
    return None


def exec_entry(row: Row, programs: Sequence[int], j: int) -> int:
    """Return the entry of the n-gram of the first `j` programs."""
    y = row.seed0
    for p in programs[:j]:
        y = wrap((y ^ p) * 0xFF51AFD7ED558CCD)
        y = y ^ (y >> 32)
    x = wrap((wrap(y + (j << 60)) ^ row.seed1) * 0xC4CEB9FE1A85EC53)
    return (x >> 48) & row.mask


def exec_surprise(row: Row, programs: Sequence[int]) -> int:
    """Return the surprise of an exec in row 1."""
    known_before = len(programs) - 1
    n = min(row.order, 1 + known_before)
    for j in range(n, 0, -1):
        v = row.surprise[exec_entry(row, programs, j)]
        if v != NOTHING:
            return min(v + row.penalty[n - j], MOST)
    return row.never


def carried(score: int, carry: int) -> int:
    """Return what is kept of a score, `carry` in 256ths."""
    return (score * carry) >> 8


@dataclass
class ProcessScore:
    """The one number that the threads of a process share."""

    score: int = 0


@dataclass(frozen=True)
class Closed:
    """A window that has ended, and its thread's scores at that moment."""

    peak_mean: int
    peak_cusum: int
    sum: int
    scored: int
    process: int
    flagged: bool
    mean: int
    cusum: int


class Reference:
    """A model: row 0 the host's, row 1 of lineages, the rest profiles.

    Parameters
    ----------
    rows : sequence of bytes
        Each a `struct ks_profile` in the machine's byte order. Without a row 1 no lineages are known.

    """

    def __init__(self, rows: Sequence[bytes]) -> None:
        self.rows = [read_row(raw) for raw in rows]

    def thread(
        self, row: int, *, mean: int = 0, cusum: int = 0, process: ProcessScore | None = None
    ) -> Thread:
        """Begin a thread, of a process of its own unless told which."""
        return Thread(self.rows, row, mean, cusum, ProcessScore() if process is None else process)


class Thread:
    """A thread: its row, its history, its scores and its open window."""

    def __init__(self, rows: Sequence[Row], row: int, mean: int, cusum: int, process: ProcessScore) -> None:
        self.rows = rows
        self.row = row
        self.mean = mean
        self.cusum = cusum
        self.process = process
        self.history: list[int] = []
        self.level = 0
        self._open()

    def _open(self) -> None:
        """Begin a window."""
        self.tokens = 0
        self.scored = 0
        self.sum = 0
        self.peak_mean = 0
        self.peak_cusum = 0

    def _append(self, token: int) -> None:
        """Add a token to the history and to the window."""
        if not 0 <= token <= 0xFFF:
            raise ValueError(f"a token has 12 bits: {token:#x}")
        self.history.append(token)
        self.tokens = self.tokens + 1

    def _surprise(self) -> int:
        """Return the surprise of the newest token, which is of the history already, and note the level."""
        own = self.rows[self.row]
        host = self.rows[0]
        depth = min(len(self.history), DEEPEST)
        found = token_found(own, self.history, min(own.order, depth, self.level + 1))
        if found is not None:
            s, self.level = found
            return s
        self.level = 0
        if self.row == 0:
            return own.never
        # what row 0 finds for another row's thread is no level of it
        found = token_found(host, self.history, min(host.order, depth))
        s = host.never if found is None else found[0]
        return min(s + own.outside, MOST)

    def _accumulate(self, s: int) -> None:
        """Move the scores by a surprise, with the numbers of the thread's row."""
        row = self.rows[self.row]
        # Python's // rounds down, also below zero
        self.mean = self.mean + ((s << 16) - self.mean) // 2**row.decay
        self.cusum = min(max(self.cusum + s - row.drift, 0), CEILING)
        self.sum = self.sum + s
        self.scored = self.scored + 1
        self.peak_mean = max(self.peak_mean, self.mean)
        self.peak_cusum = max(self.peak_cusum, self.cusum)

    def token(self, token: int) -> int:
        """Append a token, move the scores by its surprise, and return that."""
        self._append(token)
        s = self._surprise()
        self._accumulate(s)
        return s

    def close(self) -> Closed:
        """End the window: its process' score changes if a token was scored, and a new window begins."""
        row = self.rows[self.row]
        if self.scored > 0:
            score = self.process.score + self.sum - self.scored * row.drift
            self.process.score = min(max(score, 0), CEILING)
        closed = Closed(
            peak_mean=self.peak_mean,
            peak_cusum=self.peak_cusum,
            sum=self.sum,
            scored=self.scored,
            process=self.process.score,
            flagged=self.scored > 0
            and (
                self.peak_mean > row.mean_limit
                or self.peak_cusum > row.cusum_limit
                or self.process.score > row.process_limit
            ),
            mean=self.mean,
            cusum=self.cusum,
        )
        self._open()
        return closed

    def exec(self, row: int, programs: Sequence[int]) -> tuple[Closed | None, int | None]:
        """Become another program.

        Parameters
        ----------
        row : int
            The new program's.
        programs : sequence of int
            Path hashes of the new program, the one before it and so on, as far as they are known.

        Returns
        -------
        closed : Closed or None
            The window that the exec ended; None if it had no token.
        surprise : int or None
            Of the exec token; None if no lineages are known.

        """
        if not programs:
            raise ValueError("an exec has a new program, if only one of hash 0")
        closed = self.close() if self.tokens > 0 else None
        carry = self.rows[self.row].carry_exec
        self.mean = carried(self.mean, carry)
        self.cusum = carried(self.cusum, carry)
        self.process.score = carried(self.process.score, carry)
        self.row = row
        self.history = []
        self._append(EXEC)
        self.level = 1
        if len(self.rows) < 2 or self.rows[1].order == 0:
            return closed, None
        s = exec_surprise(self.rows[1], programs)
        self._accumulate(s)
        return closed, s

    def clone(self) -> Thread:
        """Make a thread of the same process."""
        return Thread(self.rows, self.row, self.mean, self.cusum, self.process)

    def fork(self) -> Thread:
        """Make the first thread of a new process."""
        carry = self.rows[self.row].carry_fork
        return Thread(
            self.rows,
            self.row,
            carried(self.mean, carry),
            carried(self.cusum, carry),
            ProcessScore(carried(self.process.score, carry)),
        )


def bytes_hash(text: bytes, seed: int) -> int:
    """Return the page's `c`."""
    c = seed
    for byte in text:
        c = wrap((c ^ byte) * 0x100000001B3)
    c = c ^ (c >> 33)
    c = wrap(c * 0xFF51AFD7ED558CCD)
    return c ^ (c >> 33)


def program_hash(path: bytes, pseed: int) -> int:
    """Return the hash of a program's absolute path, 0 if there is no name in it."""
    names = [name for name in path.split(b"/") if name]
    if not names:
        return 0
    p = pseed
    for name in reversed(names):
        c = bytes_hash(name, pseed)
        p = wrap((p ^ c) * 0xC4CEB9FE1A85EC53)
        p = p ^ (p >> 29)
    return p if p != 0 else 1


def script_hash(path: bytes, pseed: int) -> int:
    """Return the hash of a script's absolute path, as it was executed."""
    c = bytes_hash(path, pseed ^ 1)
    return c if c != 0 else 1
