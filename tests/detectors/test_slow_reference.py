# SPDX-License-Identifier: Apache-2.0
"""The slow reference, against numbers worked out by hand.

With `seed0` equal to the newest token (or program), `seed1` 0 and nothing but zeros before it, all that is left of the hash of
the n-gram of length k is `(k << 60) * 0xc4ceb9fe1a85ec53`, whose top digit is 3k modulo 16: see `entry`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import pytest

from tests.detectors.slow_reference import (
    ProcessScore,
    Reference,
    Thread,
    exec_entry,
    pack,
    program_hash,
    read_row,
    script_hash,
    token_entry,
)

CALL = 0x3B
TOP = 2**32 - 1


def entry(k: int) -> int:
    """Where the n-gram of length `k` is: see above."""
    return (3 * k % 16) << 12


def row(
    found: Mapping[int, int] | None = None,
    *,
    seed0: int = CALL,
    seed1: int = 0,
    mask: int = 0xFFFF,
    drift: int = 0,
    limits: tuple[int, int, int] = (TOP, TOP, TOP),
    carry: tuple[int, int] = (256, 256),
    order: int = 3,
    decay: int = 1,
    never: int = 200,
    outside: int = 0,
    penalty: bytes = bytes(8),
) -> bytes:
    """A row that has seen only the entries of `found`."""
    surprise = bytearray(b"\xff" * 65536)
    for where, v in (found or {}).items():
        surprise[where] = v
    head = (seed0, seed1, 7, mask, drift, *limits, *carry, order, decay, never, outside, penalty, 0)
    return struct.pack("=QQ6I2H4B8sQ", *head) + bytes(surprise)


NO_LINEAGES = row(order=0)


def thread(raw: bytes, **begin: int) -> Thread:
    """A thread of row 0, where that is all there is to say."""
    return Reference([raw, NO_LINEAGES]).thread(0, **begin)


def steady(s: int, **numbers: object) -> bytes:
    """A row in which every token has surprise `s`."""
    return row({0: s}, mask=0, order=1, **numbers)


def test_a_row_has_its_numbers_at_their_offsets() -> None:
    raw = row(limits=(1, 2, 3), carry=(4, 5), order=6, decay=7, never=8, outside=9, drift=10)
    parsed = read_row(raw)
    assert len(raw) == 65600
    assert (parsed.mean_limit, parsed.cusum_limit, parsed.process_limit) == (1, 2, 3)
    assert (parsed.carry_fork, parsed.carry_exec) == (4, 5)
    assert (parsed.order, parsed.decay, parsed.never, parsed.outside) == (6, 7, 8, 9)
    assert (parsed.seed0, parsed.seed1, parsed.mask, parsed.drift) == (CALL, 0, 0xFFFF, 10)
    with pytest.raises(ValueError, match="65600"):
        read_row(raw[:-1])


def test_the_newest_token_is_in_the_lowest_bits() -> None:
    assert pack([0xABC, 0x123]) == 0xABC123


@pytest.mark.parametrize("k", range(1, 9))
def test_entries(k: int) -> None:
    assert token_entry(read_row(row()), [0] * 9 + [CALL], k) == entry(k)


def test_entries_of_tokens_in_the_high_word() -> None:
    raw = read_row(row())
    # 1 plus 6 << 60, times 0xc4ceb9fe1a85ec53
    assert token_entry(raw, [1, 0, 0, 0, 0, CALL], 6) == 0xC4CE + 0x2000
    # 1 << 12 plus 7 << 60, times 0xc4ceb9fe1a85ec53
    assert token_entry(raw, [1, 0, 0, 0, 0, 0, CALL], 7) == (0xEB9F + 0x5000) % 2**16
    # the seventh newest token is not of the n-gram of length 6
    assert token_entry(raw, [1, 0, 0, 0, 0, 0, CALL], 6) == entry(6)


def test_entry_with_both_seeds() -> None:
    # 1 * 0xff51afd7ed558ccd, its upper half over its lower, 1 << 60 added: 0x0f51afd71204231a
    raw = read_row(row(seed0=CALL ^ 1, seed1=0x0F51AFD71204231A ^ 1))
    assert token_entry(raw, [CALL], 1) == 0xC4CE
    narrow = read_row(row(seed0=CALL ^ 1, seed1=0x0F51AFD71204231A ^ 1, mask=0xFF))
    assert token_entry(narrow, [CALL], 1) == 0xCE


def test_never() -> None:
    assert thread(row()).token(CALL) == 200


def test_found_with_the_longest_context_there_is() -> None:
    a = thread(row({entry(1): 50, entry(2): 20}, seed0=0, order=2, penalty=bytes([0, 5] + [0] * 6)))
    assert a.token(0) == 50
    assert a.token(0) == 20
    assert a.token(0) == 20


def test_penalty_for_context_given_up() -> None:
    penalty = bytes([1, 10, 20, 30, 40, 50, 60, 70])
    host = row({entry(1): 50}, seed0=0, order=8, penalty=penalty)
    a = thread(host)
    assert [a.token(0) for _ in range(9)] == [51] + 8 * [60]
    # a profile that finds nothing: row 0 has no level to begin at
    b = Reference([host, NO_LINEAGES, row(outside=3)]).thread(2)
    assert [b.token(0) for _ in range(9)] == [54, 63, 73, 83, 93, 103, 113, 123, 123]


def test_the_level_rises_by_one_and_falls_to_what_was_found() -> None:
    penalty = bytes([0, 6, 7] + [0] * 5)
    a = thread(row({entry(1): 50, entry(2): 20, entry(3): 10}, seed0=0, penalty=penalty))
    # after the 1, which is not known, length 1 and then length 2 are the longest, with no penalty
    assert [a.token(token) for token in (0, 0, 0, 0, 1, 0, 0, 0)] == [50, 20, 10, 10, 200, 50, 20, 10]
    b = thread(row({entry(1): 50, entry(2): 20}, seed0=0, order=5, penalty=penalty))
    # found at 2, looked for at 3
    assert [b.token(0) for _ in range(5)] == [50, 20, 26, 26, 26]


def test_what_is_longer_than_the_level_allows_is_not_looked_at() -> None:
    a = thread(row({entry(2): 20, entry(3): 10}, seed0=0))
    assert [a.token(0) for _ in range(4)] == [200] * 4
    b = thread(row({entry(1): 50, entry(3): 10}, seed0=0))
    assert [b.token(0) for _ in range(4)] == [50] * 4


def test_the_level_is_of_the_own_row_alone() -> None:
    host = row({entry(1): 50, entry(2): 20, entry(3): 10}, seed0=0)
    a = Reference([host, NO_LINEAGES, row({entry(2): 9}, seed0=0, outside=30)]).thread(2)
    # row 0 from all the context there is, the profile never from more than 1
    assert [a.token(0) for _ in range(4)] == [80, 50, 40, 40]


@pytest.mark.parametrize(
    ("lineages", "surprise"),
    [(NO_LINEAGES, None), (row({entry(1): 30}, seed0=9), 30), (row(seed0=9), 200)],
    ids=["not scored", "found", "never"],
)
def test_the_level_is_1_after_an_exec(lineages: bytes, surprise: int | None) -> None:
    # 0xe00 and a 0, with the seed that undoes both
    a = Reference([row({entry(2): 20}, seed0=0xE00000), lineages]).thread(0)
    assert a.token(0) == 200
    assert a.exec(0, [9])[1] == surprise
    assert a.level == 1
    assert a.token(0) == 20
    assert a.level == 2


def test_a_new_model_and_a_new_window_leave_the_level() -> None:
    a = thread(row({entry(1): 50, entry(2): 20}, seed0=0))
    assert [a.token(0), a.token(0)] == [50, 20]
    a.close()
    a.rows = [read_row(row({entry(3): 10}, seed0=0)), read_row(NO_LINEAGES)]
    assert a.token(0) == 10


def test_penalty_saturates() -> None:
    assert thread(row({entry(1): 254}, penalty=b"\x01" * 8)).token(CALL) == 254
    assert thread(row({entry(1): 250}, penalty=b"\x03" * 8)).token(CALL) == 253


def test_outside() -> None:
    profile = row(outside=30, order=1)
    assert Reference([row({entry(1): 40}), NO_LINEAGES, profile]).thread(2).token(CALL) == 70
    assert Reference([row(), NO_LINEAGES, profile]).thread(2).token(CALL) == 230
    assert Reference([row(never=240), NO_LINEAGES, profile]).thread(2).token(CALL) == 254


def test_a_profile_that_finds_asks_nobody() -> None:
    profile = row({entry(1): 9}, outside=30)
    assert Reference([row({entry(1): 40}), NO_LINEAGES, profile]).thread(2).token(CALL) == 9


def test_row_0_adds_no_outside() -> None:
    assert thread(row(outside=30)).token(CALL) == 200


def test_mean_rounds_down() -> None:
    a = thread(steady(0, decay=2), mean=5)
    a.token(CALL)
    assert a.mean == 3  # -5 / 4 is -2, not -1
    a.token(CALL)
    a.token(CALL)
    a.token(CALL)
    assert a.mean == 0
    b = thread(steady(1, decay=2), mean=65531)
    b.token(CALL)
    assert b.mean == 65532  # 5 / 4 is 1


def test_cusum_stays_within_its_bounds() -> None:
    a = thread(steady(10, drift=3))
    a.token(CALL)
    assert a.cusum == 7
    b = thread(steady(10, drift=TOP), cusum=2**24)
    b.token(CALL)
    assert b.cusum == 0
    c = thread(steady(10, drift=3), cusum=2**24 - 3)
    c.token(CALL)
    assert c.cusum == 2**24


def test_peaks_are_of_the_window() -> None:
    a = thread(row({entry(1): 0}, order=1, decay=0, drift=150))
    a.token(1)
    a.token(CALL)
    first = a.close()
    assert (first.peak_mean, first.mean) == (200 << 16, 0)
    assert (first.peak_cusum, first.cusum) == (50, 0)
    assert (first.sum, first.scored, first.process) == (200, 2, 0)
    a.token(CALL)
    second = a.close()
    assert (second.peak_mean, second.peak_cusum, second.sum, second.scored) == (0, 0, 0, 1)


def test_process_score() -> None:
    process = ProcessScore(100)
    reference = Reference([steady(10, drift=13), NO_LINEAGES, steady(10, drift=4)])
    a = reference.thread(0, process=process)
    b = reference.thread(2, process=process)
    for _ in range(5):
        a.token(CALL)
        b.token(CALL)
    assert a.close().process == 85
    assert b.close().process == 115
    process.score = 2**24 - 1
    b.token(CALL)
    assert b.close().process == 2**24
    process.score = 2
    a.token(CALL)
    assert a.close().process == 0


@pytest.mark.parametrize(
    ("limits", "flagged"),
    [
        ((5 << 16, 7, 7), False),
        (((5 << 16) - 1, 7, 7), True),
        ((5 << 16, 6, 7), True),
        ((5 << 16, 7, 6), True),
    ],
)
def test_flagged_above_a_limit(limits: tuple[int, int, int], flagged: bool) -> None:
    a = thread(steady(10, drift=3, decay=1, limits=limits))
    a.token(CALL)
    assert a.close().flagged is flagged


def test_a_window_without_scored_tokens_changes_nothing() -> None:
    a = Reference([row(limits=(0, 0, 0)), NO_LINEAGES]).thread(0, mean=7, cusum=9, process=ProcessScore(11))
    assert a.exec(0, [1]) == (None, None)
    closed = a.close()
    assert (closed.scored, closed.flagged, closed.process) == (0, False, 11)
    assert (a.mean, a.cusum, a.process.score) == (7, 9, 11)


def test_windows_do_not_interrupt_a_history() -> None:
    a = thread(row({entry(1): 50, entry(2): 20}, seed0=0, order=2))
    assert a.token(0) == 50
    a.close()
    assert a.token(0) == 20


def test_a_new_thread_has_all_and_shares_its_process() -> None:
    a = thread(row({entry(1): 50, entry(2): 20}, seed0=0, order=2, carry=(128, 128)), mean=7, cusum=9)
    a.token(0)
    b = a.clone()
    assert (b.row, b.mean, b.cusum) == (a.row, a.mean, a.cusum)
    assert b.process is a.process
    assert b.level == 0
    assert b.token(0) == 50  # its history began empty
    assert a.token(0) == 20


def test_a_new_process_has_a_part() -> None:
    reference = Reference([row(), NO_LINEAGES, row(carry=(128, 1))])
    a = reference.thread(2, mean=7, cusum=9, process=ProcessScore(11))
    b = a.fork()
    assert (b.row, b.mean, b.cusum, b.process.score) == (2, 3, 4, 5)
    assert (a.mean, a.cusum, a.process.score) == (7, 9, 11)
    b.process.score = 0
    assert a.process.score == 11


def test_exec_keeps_a_part_by_the_old_row() -> None:
    old = steady(8, decay=0, drift=3, carry=(1, 64), limits=(TOP, TOP, 14))
    reference = Reference([row(), NO_LINEAGES, old, row(carry=(1, 1))])
    a = reference.thread(2, process=ProcessScore(10))
    a.token(CALL)
    closed, surprise = a.exec(3, [1])
    assert closed is not None
    assert (closed.mean, closed.cusum, closed.process, closed.flagged) == (8 << 16, 5, 15, True)
    assert surprise is None
    assert (a.row, a.mean, a.cusum, a.process.score) == (3, 2 << 16, 1, 3)
    assert (a.scored, a.history) == (0, [0xE00])


def test_exec_of_an_empty_window_closes_nothing() -> None:
    a = thread(row(carry=(256, 128)), mean=6)
    assert a.exec(0, [1]) == (None, None)
    assert a.mean == 3


def test_exec_is_scored_by_lineage_with_the_new_row() -> None:
    lineages = row({entry(2): 20, entry(1): 50}, seed0=9, penalty=bytes([0, 6, 7] + [0] * 5))
    reference = Reference([row(), lineages, row(decay=1), row(decay=2, drift=11)])
    a = reference.thread(2)
    assert a.exec(3, [9, 0]) == (None, 20)
    assert (a.mean, a.cusum, a.sum, a.scored) == (5 << 16, 9, 20, 1)
    assert reference.thread(2).exec(3, [9])[1] == 50
    assert reference.thread(2).exec(3, [9, 0, 0])[1] == 26
    assert reference.thread(2).exec(3, [9, 1, 1])[1] == 57
    assert reference.thread(2).exec(3, [8, 0, 0])[1] == 200


def test_entry_of_a_lineage() -> None:
    # 0, then 1 * 0xff51afd7ed558ccd, its upper half over its lower, 2 << 60 added: 0x1f51afd71204231a
    raw = read_row(row(seed0=9, seed1=0x1F51AFD71204231A ^ 1))
    assert exec_entry(raw, [9, 1, 5], 2) == 0xC4CE


def test_the_exec_token_is_history() -> None:
    # 0xe00 and a 0, with the seed that undoes both
    a = thread(row({entry(2): 20}, seed0=0xE00000, order=2))
    assert a.token(0) == 200
    a.exec(0, [1])
    assert a.token(0) == 20


def test_program_hash() -> None:
    # the name's hash is 0: c ^ byte is
    p = 0x61 * 0xC4CEB9FE1A85EC53 % 2**64
    p = p ^ (p >> 29)
    assert program_hash(b"/a", 0x61) == p
    q = p * 0xC4CEB9FE1A85EC53 % 2**64
    assert program_hash(b"/a/a", 0x61) == q ^ (q >> 29)
    assert program_hash(b"/a/b", 0x61) != program_hash(b"/b/a", 0x61)
    # from the leaf up: a name of hash 0 there leaves p to the one above
    c = (0x61 ^ 0x62) * 0x100000001B3
    c = c ^ (c >> 33)
    c = c * 0xFF51AFD7ED558CCD % 2**64
    c = c ^ (c >> 33)
    r = (p ^ c) * 0xC4CEB9FE1A85EC53 % 2**64
    assert program_hash(b"/b/a", 0x61) == r ^ (r >> 29)


def test_program_hash_of_nothing_and_never_0_of_something() -> None:
    assert program_hash(b"/", 5) == 0
    assert program_hash(b"/\x00", 0) == 1


def test_script_hash() -> None:
    assert script_hash(b"/", 0x2F ^ 1) == 1
    # 0 after the slash, then 1
    c = 0x100000001B3
    c = c ^ (c >> 33)
    c = c * 0xFF51AFD7ED558CCD % 2**64
    assert script_hash(b"/\x01", 0x2F ^ 1) == c ^ (c >> 33)
