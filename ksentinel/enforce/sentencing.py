# SPDX-License-Identifier: Apache-2.0
"""Sentencing: verdicts on lineages, handed to the guards; they carry them out in the kernel, until they end."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ksentinel.bpf.guard_abi import SentenceKind
from ksentinel.enforce.denial import Policies
from ksentinel.enforce.surroundings import Guarding, World
from ksentinel.errors import HostError
from ksentinel.event import Process, ProcessKey
from ksentinel.printable import printable
from ksentinel.rules import Rule

SECOND = 1_000_000_000
CATCH_UP_NS = 5 * SECOND
"""For how long children of who is under a verdict are looked for, of whose birth we hear late."""
_KINDS = {"quarantine": SentenceKind.QUARANTINE, "kill": SentenceKind.KILL}


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A verdict on a process that is carried out."""

    rule: str
    key: ProcessKey
    kind: SentenceKind


class Sentencing:
    """
    Puts lineages under verdicts, and ends them before their time.

    Parameters
    ----------
    policies
        Names the rules of what the verdicts deny.
    lock
        Held while anything changes.
    counts
        Where it counts ``sentences`` and ``sentences_failed``.
    tell
        Is told what is carried out.
    lasts_ns
        How long a verdict lasts.
    """

    def __init__(
        self,
        guards: Guarding,
        world: World,
        policies: Policies,
        lock: AbstractContextManager[object],
        counts: Counter[str],
        tell: Callable[[str], None],
        *,
        lasts_ns: int,
    ) -> None:
        self.guards = guards
        self.world = world
        self.policies = policies
        self.lasts_ns = lasts_ns
        self.tell = tell
        self._lock = lock
        self._counts = counts
        self._numbers: dict[str, int] = {}
        self._until: dict[_Verdict, int] = {}

    def carry_out(self, rule: Rule, action: str, process: Process) -> None:
        """
        Put a lineage under a verdict: the process, and all that descends from it.

        What there is already of it is looked up, what is born later is born under it. Anything but a verdict on processes is nothing to
        be done here.
        """
        kind = _KINDS.get(action)
        if kind is None:
            return
        with self._lock:
            now = self.world.boot_ns()
            half = now + self.lasts_ns // 2
            above = (process, *process.ancestors())
            if any(self._until.get(_Verdict(rule.id, one.key, kind), 0) > half for one in above):
                return  # it is under it already, or was born under it
            self._until = {one: end for one, end in self._until.items() if end > now}
            verdict = _Verdict(rule.id, process.key, kind)
            number = self._numbers.setdefault(rule.id, len(self._numbers) + 1)
            self.policies.sentence(number, rule)
            until = now + self.lasts_ns
            below = self._below(process.key)
            failed = [key for key in (process.key, *below) if not self._sentence(key, kind, until, number)]
            if process.key not in failed:
                self._until[verdict] = until
                self._counts["sentences"] += 1
        if failed:
            self.tell(
                f"{action} can't be carried out on {len(failed)} of {len(below) + 1} processes: no room in the kernel"
            )
        if process.key not in failed:
            self.tell(
                f"{action} for {self.lasts_ns // SECOND} s, {self.guards.mode}: process {process.key.pid} "
                f"({printable(process.exe, 200)}) and {len(below)} below it, by rule {rule.title!r}"
            )

    def catch_up(self) -> None:
        """Sentence those who were born just before a verdict, and whose birth was still on its way then; the lock is held."""
        fresh = self.world.boot_ns() + self.lasts_ns - CATCH_UP_NS
        late = [(verdict, until) for verdict, until in self._until.items() if until > fresh]
        if not late:
            return
        under = self.guards.sentences()
        for verdict, until in late:
            for key in self._below(verdict.key):
                if key not in under:
                    self._sentence(key, verdict.kind, until, self._numbers[verdict.rule])

    def lift(self, pid: int) -> int:
        """End the verdicts on a process and on all below it; return how many that were."""
        with self._lock:
            below = {
                one.key
                for one in self.world.processes()
                if one.key.pid == pid or any(above.key.pid == pid for above in one.ancestors())
            }
            found = [key for key in self.guards.sentences() if key.pid == pid or key in below]
            for key in found:
                self.guards.lift(key)
            return len(found)

    def lift_all(self) -> None:
        """End all of them; the lock is held."""
        self._until.clear()
        for key in self.guards.sentences():
            self.guards.lift(key)

    def _below(self, key: ProcessKey) -> list[ProcessKey]:
        return [
            one.key
            for one in self.world.processes()
            if one.key != key and any(above.key == key for above in one.ancestors())
        ]

    def _sentence(self, key: ProcessKey, kind: SentenceKind, until_ns: int, number: int) -> bool:
        try:
            self.guards.sentence(key, kind, until_ns, number)
        except HostError:
            self._counts["sentences_failed"] += 1
            return False
        return True
