# SPDX-License-Identifier: Apache-2.0
"""Which normal a window is compared with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_host import CRON_SHELL, NGINX, NGINX_SHELL, make_window

from ksentinel.detectors.profiles import HOST, Profiles
from ksentinel.errors import ModelError

PATHS = st.sampled_from(["", "/a", "/b", "/c", "/\udcff\n", "/ü"])


@pytest.mark.parametrize(
    ("profile", "expected", "unseen"),
    [
        (NGINX, NGINX, False),
        (CRON_SHELL, CRON_SHELL, False),
        (("/bin/sh", "/usr/sbin/atd"), ("/bin/sh", ""), False),
        (("/bin/nc", "/usr/sbin/nginx"), HOST, True),
        (("", "/usr/sbin/nginx"), HOST, False),
    ],
)
def test_find(profile, expected, unseen):
    """Pair, then executable, then host; an executable nobody knows is not unseen."""
    profiles = Profiles.among([NGINX, CRON_SHELL, NGINX_SHELL])

    assert (expected, unseen) == profiles.find(profile)


def test_shared_root():
    """The only pair of an executable has the executable's root; several have their own."""
    profiles = Profiles.among([NGINX, CRON_SHELL, NGINX_SHELL])

    assert profiles.root(NGINX) == profiles.root((NGINX[0], ""))
    assert len({profiles.root(p) for p in (CRON_SHELL, NGINX_SHELL, ("/bin/sh", ""))}) == 3
    assert profiles.count == len(set(profiles.roots.values())) == 5


def test_least():
    """A pair with too few windows is served by its executable, and that by the host."""
    profiles = Profiles.among([*[CRON_SHELL] * 3, NGINX_SHELL, NGINX], least=3)

    assert profiles.find(CRON_SHELL) == (CRON_SHELL, False)
    assert profiles.find(NGINX_SHELL) == (("/bin/sh", ""), False)
    assert profiles.find(NGINX)[0] == HOST


def test_counted_under():
    """A window is evidence for its pair, its executable and the host, once each."""
    profiles = Profiles.among([NGINX, CRON_SHELL, NGINX_SHELL])
    windows = [make_window([1], profile) for profile in (NGINX, CRON_SHELL, ("", ""))]
    under = profiles.counted_under(windows)
    expected = [
        [-1, profiles.root(NGINX), 0],
        [profiles.root(CRON_SHELL), profiles.root(("/bin/sh", "")), 0],
        [-1, -1, 0],
    ]

    assert expected == under.T.tolist()
    assert profiles.root_of(windows).tolist() == [profiles.root(NGINX), profiles.root(CRON_SHELL), 0]


@given(st.lists(st.tuples(PATHS, PATHS)))
def test_round_trip(names):
    """Any name survives, one that is no UTF-8 too."""
    profiles = Profiles.among(names)

    assert profiles.roots == Profiles.from_arrays(profiles.to_arrays()).roots


@pytest.mark.parametrize("roots", [[0, 2], [1, 0], [0]])
def test_damaged(roots):
    """Names without roots, gaps, or no host are refused."""
    names = np.frombuffer(b"\0\0/a\0\0", np.uint8)

    with pytest.raises(ModelError):
        Profiles.from_arrays({"names": names, "roots": np.array(roots, np.uint32)})
