# SPDX-License-Identifier: Apache-2.0
"""Overload is told when it begins and when it is over."""

from ksentinel.overload import Overload

QUIET = dict.fromkeys(
    ("windows_shed", "windows_dropped", "calls_limited", "calls_dropped", "lifecycle_dropped"), 0
)


def test_an_episode_each():
    """Two floods with five quiet seconds between them are two episodes; with less they are one."""
    overload, told = Overload(), []
    for second, dropped in ((0, 0), (1, 3), (2, 3), (5, 7), (6, 7), (10, 7), (11, 7), (20, 9), (25, 9)):
        notice = overload.update(QUIET | {"calls_dropped": dropped}, float(second), 0.9)
        told.append(None if notice is None else (notice.begun, notice.seconds, dict(notice.lost)))

    assert [one for one in told if one] == [
        (True, 0.0, {"calls_lost": 3}),
        (False, 4.0, {"calls_lost": 7}),
        (True, 0.0, {"calls_lost": 2}),
        (False, 0.0, {"calls_lost": 2}),
    ]
    assert (overload.episodes, overload.seconds, overload.now) == (2, 4.0, False)


def test_one_process_alone():
    """Where only one process is beyond its share, that is said, and nothing of the ring buffer."""
    limited = QUIET | {"calls_limited": 5, "calls_dropped": 5}
    notice = Overload().update(limited, 1.0, 0.0)

    assert str(notice) == "a process floods: 5 argument events beyond what one process may send"
