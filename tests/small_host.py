# SPDX-License-Identifier: Apache-2.0
"""Windows of a small made-up host, for tests of models: programs that loop, with some variation."""

import numpy as np

from ksentinel.event import Process, ProcessKey
from ksentinel.window import LENGTH, Window

NGINX = ("/usr/sbin/nginx", "/usr/sbin/nginx")
CRON_SHELL = ("/bin/sh", "/usr/sbin/cron")
NGINX_SHELL = ("/bin/sh", "/usr/sbin/nginx")
PYTHON = ("/usr/bin/python3", "/usr/bin/python3")

LOOPS = {
    NGINX: [232, 43, 45, 257, 5, 40, 1, 3],
    CRON_SHELL: [257, 0, 3, 61, 56, 13],
    NGINX_SHELL: [257, 0, 3, 61, 56, 14],
    PYTHON: [257, 5, 8, 0, 9, 3, 202],
}
SECOND = 1_000_000_000


def make_window(
    tokens: list[int], profile: tuple[str, str] = NGINX, *, pid: int = 10, tid: int = 0, at: int = 0
) -> Window:
    """Return a window of half a second, of a process of that executable, below that service."""
    exe, service = profile
    above = Process(ProcessKey(2, 1), exe=service) if service != exe else None
    process = Process(ProcessKey(pid, 1), exe=exe, service=above, parent=above)
    return Window(process, tid or pid, at, at + SECOND // 2, tuple(tokens))


def make_windows(each: int, *, seed: int = 0, processes: int = 10) -> list[Window]:
    """Return *each* windows of every program, a second apart, their loops disturbed a little."""
    rng = np.random.default_rng(seed)
    windows = []
    for number, (profile, loop) in enumerate(LOOPS.items()):
        for i in range(each):
            begin = int(rng.integers(len(loop)))
            tokens = [loop[(begin + j) % len(loop)] for j in range(LENGTH)]
            for place in rng.integers(0, LENGTH, int(rng.integers(8))):
                tokens[place] = int(rng.choice([4, 5, 6, 21, 39, 102]))
            windows.append(
                make_window(tokens, profile, pid=100 * (number + 1) + i % processes, at=i * SECOND)
            )
    return windows


NORMAL = make_windows(100)
ATTACK = make_window([59, 105, 101, 310, 165, 272, 175, 41] * 8)
