# SPDX-License-Identifier: Apache-2.0
"""
Profiles: which normal a window is compared with.

A window of an executable under a service is compared with windows of that very pair; if training never saw the pair,
with the same executable under any service, ``(exe, "")``; if it never saw the executable, with the whole host,
``("", "")``. Each profile has a small number, its *root*; a pair that is the only one of its executable shares its
root with ``(exe, "")``, for their windows are the same.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ksentinel.detectors import Arrays, array
from ksentinel.errors import ModelError
from ksentinel.window import Window

Profile = tuple[str, str]
Ints = npt.NDArray[np.int64]

HOST: Profile = ("", "")


class Profiles:
    """
    Profiles by name, each with its root.

    Parameters
    ----------
    roots
        Name to root; the host-wide profile is always there, as root 0.

    Attributes
    ----------
    aliases
        Programs that have the profile of another one: copies of it.

    Examples
    --------
    >>> profiles = Profiles.among([("/bin/sh", "/usr/sbin/nginx"), ("/bin/sh", "/usr/sbin/cron")])
    >>> profiles.find(("/bin/sh", "/usr/sbin/atd"))
    (('/bin/sh', ''), False)
    >>> profiles.find(("/bin/nc", "/usr/sbin/nginx"))
    (('', ''), True)
    """

    def __init__(self, roots: Mapping[Profile, int]) -> None:
        self.roots = {HOST: 0, **roots}
        self.count = 1 + max(self.roots.values())
        self.aliases: dict[str, str] = {}

    @classmethod
    def among(cls, profiles: Iterable[Profile], *, least: int = 1) -> Self:
        """
        Return the profiles that have at least *least* windows, given the profile of each window.

        Parameters
        ----------
        profiles
            `Window.profile` of every training window, repeats included.
        least
            Fewer windows than this make no profile of their own.
        """
        pairs = Counter(profile for profile in profiles if profile[0])
        services: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (exe, service), windows in pairs.items():
            services[exe][service] += windows
        roots: dict[Profile, int] = {}
        for exe in sorted(services):
            if services[exe].total() < least:
                continue
            root = roots[exe, ""] = 1 + len(set(roots.values()))
            for service in sorted(services[exe]):
                if service and services[exe][service] >= least:
                    alone = len(services[exe]) == 1
                    roots[exe, service] = root if alone else 1 + len(set(roots.values()))
        return cls(roots)

    def find(self, profile: Profile) -> tuple[Profile, bool]:
        """
        Return the narrowest profile that training has for this one, and whether the executable is unseen.

        A process whose executable isn't known (``""``) is compared with the whole host; nobody can say that
        training never saw it, so it isn't unseen.
        """
        exe = self.aliases.get(profile[0], profile[0])
        for name in ((exe, profile[1]), (exe, "")):
            if exe and name in self.roots:
                return name, False
        return HOST, bool(exe)

    def root(self, profile: Profile) -> int:
        """Return the root of the profile that *profile* is compared with."""
        return self.roots[self.find(profile)[0]]

    def root_of(self, windows: Sequence[Window]) -> Ints:
        """Return the root each window is compared with, shape (len(windows),)."""
        known: dict[Profile, int] = {}
        roots = np.zeros(len(windows), np.int64)
        for i, window in enumerate(windows):
            profile = window.profile
            root = known.get(profile)
            if root is None:
                root = known[profile] = self.root(profile)
            roots[i] = root
        return roots

    def counted_under(self, windows: Sequence[Window]) -> Ints:
        """
        Return the roots that each window is evidence for: pair, executable, host.

        Returns
        -------
        Shape (3, len(windows)); -1 where there is no such profile, or where it is the same as another.
        """
        known: dict[Profile, tuple[int, int, int]] = {}
        roots = np.zeros((3, len(windows)), np.int64)
        for i, window in enumerate(windows):
            profile = window.profile
            three = known.get(profile)
            if three is None:
                exe = self.roots.get((profile[0], ""), -1) if profile[0] else -1
                pair = self.roots.get(profile, -1) if profile[0] else -1
                three = known[profile] = (-1 if pair == exe else pair, exe, 0)
            roots[:, i] = three
        return roots

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return names (bytes, each ended by a zero byte, executable and service in turn) and roots."""
        names = sorted(self.roots)
        text = "".join(f"{part}\0" for name in names for part in name)
        return {
            "names": np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8),
            "roots": np.array([self.roots[name] for name in names], np.uint32),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild from `to_arrays`; raises ModelError."""
        text = array(arrays, "names", kind="u").astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")
        parts = text.split("\0")[:-1]
        roots = [int(root) for root in array(arrays, "roots", kind="u")]
        if len(parts) != 2 * len(roots) or set(roots) != set(range(len(set(roots)))):
            raise ModelError("the profiles of the model have no consistent names and roots")
        by_name = dict(zip(zip(parts[::2], parts[1::2], strict=True), roots, strict=True))
        if by_name.get(HOST) != 0:
            raise ModelError("the model has no host-wide profile")
        return cls(by_name)
