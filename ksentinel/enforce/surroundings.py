# SPDX-License-Identifier: Apache-2.0
"""What enforcement stands among: the guards, who proves them, and the host. Tests have others in their places."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from ksentinel.bpf import guard_abi
from ksentinel.bpf.guard_abi import Hook, SentenceKind
from ksentinel.enforce import Mode
from ksentinel.enforce.breaker import Change
from ksentinel.enforce.canary import Proof
from ksentinel.enforce.compiled import Compiled
from ksentinel.enforce.never import Spared
from ksentinel.enforce.rollout import Login, Release
from ksentinel.enforce.settings import Settings
from ksentinel.event import Process, ProcessKey


class Guarding(Protocol):
    """What `guards.Guards` does, as far as it is needed here."""

    mode: Mode
    most: Mode | None
    missing: dict[Hook, str]
    epoch: int
    following: int

    @property
    def attached(self) -> tuple[Hook, ...]:
        """Where guards stand."""

    @property
    def released(self) -> bool:
        """Whether nothing is denied."""

    def use(self, compiled: Compiled, processes: Iterable[Process]) -> int:
        """Have a policy decide."""

    def spare(self, never: Iterable[Spared]) -> None:
        """Deny those nothing."""

    def cgroup_modes(self, modes: Mapping[int, Mode]) -> None:
        """Let control groups have modes."""

    def release(self, *, on: bool) -> None:
        """Let everything go."""

    def beat(self) -> None:
        """Tell that somebody still watches."""

    def sentence(
        self, key: ProcessKey, kind: SentenceKind, until_ns: int, number: int, mode: Mode | None = None
    ) -> None:
        """Carry out a verdict."""

    def lift(self, key: ProcessKey) -> None:
        """End one."""

    def sentences(self) -> dict[ProcessKey, guard_abi.Sentence]:
        """Return who is under one."""

    def counters(self) -> dict[str, int]:
        """Return what they have done."""


class Proving(Protocol):
    """`canary.Canary`."""

    def prove(self, hooks: Iterable[Hook], mode: Mode) -> Proof:
        """Prove that guards do what a mode says."""

    def stop(self) -> None:
        """Have a proof that goes on end soon."""


class World(Protocol):
    """What enforcement asks the host."""

    def boot_ns(self) -> int:
        """Nanoseconds since boot."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""

    def processes(self) -> Sequence[Process]:
        """Who runs."""

    def own(self) -> Process:
        """Return ksentinel's own process."""

    def login(self, pid: int) -> Login | None:
        """Return the login that a process belongs to; None if it has ended."""

    def compile(self, rules: Any, settings: Settings) -> Compiled:
        """Return the policy of rules and settings; raises RuleError."""

    def never(self, settings: Settings) -> Sequence[Spared]:
        """Return who is never denied anything."""

    def cgroups(self, path: str) -> tuple[int, ...]:
        """Return the id of a control group; empty if there is none."""

    def releases(self) -> Sequence[Release]:
        """Return who wants out: by the flag file, by the kernel's command line."""

    def changes(self) -> dict[str, Change]:
        """Return since when rules have been what they are."""

    def keep_changes(self, changes: Mapping[str, Change]) -> None:
        """Keep that."""

    def forgive(self) -> None:
        """Write down that the boots weren't the guards' doing; raises InputError."""
