# SPDX-License-Identifier: Apache-2.0
"""
Enforcement, while it runs: what was asked for, what is left of that and why, and what has been proven.

Three modes are kept apart. *requested* is what the operator said. What is *in force* may be less: a release, a confirmation that
didn't come, a proof that failed, each with its reason. *verified* is what the canary has seen the guards do; nothing else ends up there.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ksentinel.alert import Alert
from ksentinel.bpf import guard_abi
from ksentinel.bpf.guard_abi import Hook, SentenceKind
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import Breaker, Change, Trip, changes
from ksentinel.enforce.canary import Finding, Mailbox, Proof
from ksentinel.enforce.compiled import Compiled, GuardRule
from ksentinel.enforce.denial import Policies, identity
from ksentinel.enforce.never import Spared
from ksentinel.enforce.never import missing as missing_spared
from ksentinel.enforce.rollout import Confirmation, Login, Release, Stage, least
from ksentinel.enforce.settings import Settings
from ksentinel.errors import HostError, KsentinelError, UsageError
from ksentinel.event import AuditEvent, HookEvent, Origin, Process, ProcessKey, Record
from ksentinel.level import Level
from ksentinel.printable import printable
from ksentinel.rules import Clause, Match, Rule

SECOND = 1_000_000_000
PROVE_EVERY_NS = 60 * SECOND
AGAIN_NS = 2 * SECOND
"""After a proof that failed."""
SWEEP_EVERY = 30
"""Ticks."""
PATIENCE = 3
"""So many proofs in a row may fail once one has succeeded: what is busy for a moment isn't broken."""

UNVERIFIED = Rule(
    "ksentinel:unverified",
    "Enforcement is not verified",
    Level.CRITICAL,
    file="",
    tags=("attack.defense_evasion", "attack.t1562.001"),
    source="ksentinel",
)
"""What alerts about enforcement that is asked for, and isn't proven, are of."""


class Guarding(Protocol):
    """What `guards.Guards` does, as far as it is needed here."""

    mode: Mode
    most: Mode | None
    missing: dict[Hook, str]
    epoch: int

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

    def is_canary(self, pid: int) -> bool:
        """Tell whether a process is the one that tries."""


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    What the operator asked for.

    Attributes
    ----------
    degrade
        Where it can't be verified, go on permissive instead of ending.
    confirm
        It ends unless it is confirmed.
    start
        The most that the boots before allow, and why.
    sentence_ns
        How long a verdict on a process lasts.
    """

    mode: Mode
    degrade: bool = False
    on_exit: OnExit = OnExit.OPEN
    confirm: Confirmation | None = None
    most: Mode = Mode.ENFORCE
    why: str = ""
    sentence_ns: int = 600 * SECOND


@dataclass(slots=True)
class _State:
    """What changes."""

    settings: Settings
    rules: Any
    compiled: Compiled
    requested: Mode
    confirm: Confirmation | None
    proof: Proof | None = None
    failures: int = 0
    proven_once: bool = False
    next_proof_ns: int = 0
    boots: bool = True
    degraded: str = ""
    trips: dict[str, Trip] = field(default_factory=dict)
    cgroups: dict[str, Mode] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


class Enforcement:
    """
    Keeps guards as they were asked for, proves it, and takes back what has to be.

    Every method may be called by any thread.

    Parameters
    ----------
    guards
        Entered.
    canary
        Proves; its records are waited for in *mailbox*.
    breaker
        Says which rule hits too many.
    tell
        Is told, in words, whatever changes.

    Attributes
    ----------
    failure
        Why enforcement has to end; None as long as it hasn't.
    policies
        Names the rules of denials.
    keep
        Is handed all denials, to count them.
    reload
        Takes rules that have just been loaded, and what goes with them; raises KsentinelError.
    """

    def __init__(
        self,
        guards: Guarding,
        canary: Proving,
        mailbox: Mailbox,
        breaker: Breaker,
        world: World,
        wanted: Wanted,
        rules: Any,
        settings: Settings,
        tell: Callable[[str], None],
    ) -> None:
        self.guards = guards
        self.canary = canary
        self.mailbox = mailbox
        self.breaker = breaker
        self.world = world
        self.wanted = wanted
        self.tell = tell
        self.policies = Policies()
        self.failure: KsentinelError | None = None
        self.counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._proving = threading.Lock()
        self._notices: list[Match] = []
        self._sentencing: dict[str, int] = {}
        self._until: dict[tuple[str, ProcessKey, SentenceKind], int] = {}
        self.keep: Callable[[Sequence[HookEvent]], None] = lambda _: None
        self.reload: Callable[[Any], None] = lambda _: None
        compiled = world.compile(rules, settings)
        self._state = _State(
            settings, rules, compiled, wanted.mode, wanted.confirm, cgroups=dict(settings.cgroups)
        )

    # Begin

    def start(self) -> None:
        """Have the policy decide, in the mode that was asked for; nothing is proven yet. Raises KsentinelError."""
        with self._lock:
            state = self._state
            self._spare()
            self._modes_of_cgroups()
            self._use(state.compiled)
            self._settle()
            for one in state.compiled.places_missing:
                self.tell(
                    f"{one.at}: {one.path} isn't there: entry {one.rule} speaks of it once the policy is loaded anew"
                )
            for hook, why in self.guards.missing.items():
                self.tell(f"no guard at {hook.name.lower()}: {why}")

    # What is in force

    @property
    def limits(self) -> tuple[tuple[Mode, str], ...]:
        """What keeps the mode below what was asked for, and why."""
        with self._lock:
            state = self._state
            found: list[tuple[Mode, str]] = []
            if state.boots and self.wanted.most is not Mode.ENFORCE:
                found.append((self.wanted.most, self.wanted.why))
            found += [(one.most, one.words) for one in self.world.releases() if one.most is not None]
            now = self.world.boot_ns()
            if state.confirm is not None and state.confirm.stage(now) is Stage.EXPIRED:
                found.append((Mode.PERMISSIVE, state.confirm.words(now)))
            if state.degraded:
                found.append((Mode.PERMISSIVE, state.degraded))
            return tuple(found)

    @property
    def requested(self) -> Mode:
        """What the operator asked for."""
        return self._state.requested

    @property
    def mode(self) -> Mode:
        """What is in force, where neither a rule nor a control group says otherwise."""
        return least(self.requested, *(most for most, _ in self.limits))

    @property
    def verified(self) -> str:
        """The mode that the canary has seen in force; ``no`` if it hasn't."""
        with self._lock:
            proof = self._state.proof
            if (
                proof is None
                or not proof.verified
                or proof.mode is not self.guards.mode
                or self.guards.released
            ):
                return "no"
            return str(proof.mode)

    @property
    def settings(self) -> Settings:
        """The operator's file, as it is in force."""
        return self._state.settings

    def posture(self) -> tuple[str, str]:
        """Return what was asked for and what is verified, for each alert."""
        return str(self.requested), self.verified

    def set_mode(self, mode: Mode) -> None:
        """Ask for another mode, and have it proven; ends a release that was asked for."""
        with self._lock:
            self._state.requested = mode
            self._state.degraded = ""
            self.guards.release(on=False)
            self._settle()
        self.prove()

    def set_rule_mode(self, name: str, mode: Mode) -> None:
        """
        Let a rule have a mode of its own, until ksentinel ends or the operator's file is loaded again.

        Raises
        ------
        RuleError
            If there is no such rule that is decided in the kernel.
        """
        with self._lock:
            settings = self._state.settings
            entries = tuple(
                replace(entry, mode=mode) if entry.id == name else entry for entry in settings.entries
            )
            if entries == settings.entries and not any(entry.id == name for entry in entries):
                settings = replace(settings, modes={**settings.modes, name: mode})
            self._change(self._state.rules, replace(settings, entries=entries))

    def set_cgroup_mode(self, path: str, mode: Mode) -> None:
        """Let a control group, and those below it, have a mode of their own; raises UsageError if there is none."""
        with self._lock:
            if not self.world.cgroups(path):
                raise UsageError(
                    f"there is no control group {path!r}", remedy="say a path below /sys/fs/cgroup"
                )
            self._state.cgroups[path] = mode
            self._modes_of_cgroups()

    def change(self, rules: Any, settings: Settings) -> None:
        """Have other rules and another operator's file decide; raises RuleError, and then nothing has changed."""
        with self._lock:
            self._change(rules, settings)
            self._state.cgroups = dict(settings.cgroups)
            self._spare()
            self._modes_of_cgroups()

    def release(self) -> None:
        """Deny nothing any more, whatever else says so, and let everybody go who is under a verdict."""
        with self._lock:
            self.guards.release(on=True)
            for key in self.guards.sentences():
                self.guards.lift(key)
            self.tell("released: nothing is denied until a mode is asked for again")

    def confirm(self, login: Login) -> None:
        """Say that one can still log in, and that the boots weren't the guards' doing; raises UsageError."""
        with self._lock:
            state, now = self._state, self.world.boot_ns()
            if state.confirm is not None:
                state.confirm = state.confirm.confirm(login, now)
            elif not (state.boots and self.wanted.most is not Mode.ENFORCE):
                raise UsageError(
                    "nothing waits to be confirmed", remedy="start it by `ksentinel enforce --confirm 5m`"
                )
            state.boots = False
            self._settle()
        self.prove()

    # Proof

    def prove(self) -> Proof:
        """
        Prove now that the guards do what is in force, and draw the conclusions.

        Meanwhile nothing else waits: the records that the proof needs come by whoever reads the ring buffer.
        """
        with self._proving:
            while True:
                with self._lock:
                    mode, hooks = self.guards.mode, self.guards.attached
                proof = self.canary.prove(hooks, mode)
                with self._lock:
                    if self.guards.mode is mode and not self._conclude(proof):
                        return proof

    def _conclude(self, proof: Proof) -> bool:
        """Take a proof in; whether another one is needed, because it has changed the mode."""
        state, now = self._state, self.world.boot_ns()
        state.proof = proof
        if proof.verified or self.guards.released:
            state.next_proof_ns = now + PROVE_EVERY_NS
            if state.failures or not state.proven_once:
                self._tell_verified(proof)
            state.failures, state.proven_once = 0, True
            return False
        state.failures += 1
        state.next_proof_ns = now + AGAIN_NS
        why = f"enforcement can't be verified: {_unproven(proof)}"
        self.tell(f"NOT VERIFIED: {why}")
        if state.failures == 1:
            self._notices.append(self._notice(proof))
        # At the start at once; later on a machine that is busy for a moment must not end it.
        if proof.mode is not Mode.ENFORCE or (state.proven_once and state.failures < PATIENCE):
            return False
        if self.wanted.degrade:
            state.degraded = why
            self.tell(f"DEGRADED to permissive: {why}")
            self._settle()
            return True
        self.guards.mode = Mode.OFF
        self.failure = HostError(why, remedy="see docs/enforcement.md; --degrade goes on permissive instead")
        return False

    def _tell_verified(self, proof: Proof) -> None:
        hooks = len(proof.results)
        if proof.mode is Mode.OFF:
            self.tell("enforcement is off")
        else:
            self.tell(f"verified: {proof.mode} at {hooks} hook{'' if hooks == 1 else 's'}")

    # Meanwhile

    def tick(self) -> None:
        """To be called every second: the heartbeat, what has come to its end, and each minute the proof."""
        with self._lock:
            self.guards.beat()
            before = self.guards.mode
            self._settle()
            if not self.counts["ticks"] % SWEEP_EVERY:
                self.guards.sentences()  # takes away those that have ended
            self.counts["ticks"] += 1
            due = self.guards.mode is not before or self.world.boot_ns() >= self._state.next_proof_ns
        if due and self.failure is None:
            self.prove()

    def _settle(self) -> None:
        """Put in force what may be."""
        limits = self.limits
        most = least(Mode.ENFORCE, *(most for most, _ in limits))
        self.guards.most = None if most is Mode.ENFORCE else most
        mode = least(self.requested, most)
        if self.guards.mode is not mode:
            self.guards.mode = mode
        told = {words for _, words in limits}
        for words in sorted(told - self._state.told):
            self.tell(f"no more than permissive or off: {words}")
        if self._state.told - told:
            self.tell(f"{mode} again")
        self._state.told = told
        for words in {one.words for one in self.world.releases() if one.most is None} - self._state.told:
            if words not in self.counts:
                self.counts[words] = 1
                self.tell(words)

    # What the walk tells

    def match(self, event: HookEvent) -> Match | None:
        """Return a denial as a match of its rule."""
        return self.policies.match(event)

    def notices(self) -> list[Match]:
        """Return what there is to alert about enforcement itself."""
        with self._lock:
            found, self._notices = self._notices, []
            return found

    def denied(self, events: Sequence[HookEvent]) -> None:
        """Take denials in: they are counted, and a rule that hits too many is taken back."""
        if not events:
            return
        self.keep(events)
        for event in events:
            self.counts["denials"] += event.nonce is None
            trip = self.breaker.denied(event)
            if trip is None:
                continue
            with self._lock:
                self._state.trips[trip.rule] = trip
                self._use(self._state.compiled)
            self.tell(f"BREAKER: {printable(trip.words(), 2000)}")

    def act(self, alert: Alert) -> None:
        """Carry out what an alert has come to, if that is more than an alert."""
        for answer in alert.verdict.answers:
            for match in alert.matches:
                if match.rule.id == answer.rule:
                    self.carry_out(match.rule, str(answer.action), match.event.process)

    def carry_out(self, rule: Rule, action: str, process: Process) -> None:
        """
        Put a lineage under the verdict that an alert has come to: the process, and all that descends from it.

        What there is already of it is looked up, what is born later is born under it.
        """
        kind = {"quarantine": SentenceKind.QUARANTINE, "kill": SentenceKind.KILL}.get(action)
        if kind is None:
            return
        with self._lock:
            now = self.world.boot_ns()
            until = now + self.wanted.sentence_ns
            known = (rule.id, process.key, kind)
            if self._until.get(known, 0) - now > self.wanted.sentence_ns // 2:
                return  # told by an earlier revision of the same alert
            self._until[known] = until
            self._until = {one: end for one, end in self._until.items() if end > now}
            number = self._sentencing.setdefault(rule.id, len(self._sentencing) + 1)
            self.policies.sentence(number, rule)
            below = [
                one.key
                for one in self.world.processes()
                if one.key != process.key and any(above.key == process.key for above in one.ancestors())
            ]
            for key in (process.key, *below):
                try:
                    self.guards.sentence(key, kind, until, number)
                except HostError as error:
                    self.counts["sentences_failed"] += 1
                    self.tell(f"the verdict on process {key.pid} can't be carried out: {error}")
                    return
            self.counts["sentences"] += 1
            self.tell(
                f"{action} for {self.wanted.sentence_ns // SECOND} s, {self.guards.mode}: process {process.key.pid} "
                f"({printable(process.exe, 200)}) and {len(below)} below it, by rule {rule.title!r}"
            )

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

    def told(self) -> dict[str, Any]:
        """Return all of that, for `status`."""
        with self._lock:
            state, now = self._state, self.world.boot_ns()
            proof = state.proof
            return {
                "requested": str(self.requested),
                "mode": str(self.guards.mode),
                "verified": self.verified,
                "why": [words for _, words in self.limits],
                "released": self.guards.released,
                "on_exit": str(self.wanted.on_exit),
                "proven_ns": 0 if proof is None else int(proof.time * 1e9),
                "attached": [hook.name.lower() for hook in self.guards.attached],
                "missing": {hook.name.lower(): why for hook, why in self.guards.missing.items()},
                "unproven": {}
                if proof is None
                else {
                    hook.name.lower(): f"{result.finding}: {result.what}"
                    for hook, result in proof.unproven.items()
                },
                "confirm": "" if state.confirm is None else state.confirm.words(now),
                "policy": {
                    "epoch": self.guards.epoch,
                    "rules": sum(not _is_entry(one) for one in state.compiled.rules),
                    "entries": sum(_is_entry(one) for one in state.compiled.rules),
                    "ways": len(state.compiled.ways),
                    "posture": str(state.compiled.posture),
                    "places_missing": [one.path for one in state.compiled.places_missing],
                },
                "modes": {
                    **{identity(one): str(one.mode) for one in state.compiled.rules if one.mode is not None},
                    **{path: str(mode) for path, mode in state.cgroups.items()},
                },
                "taken_back": sorted(state.trips),
                "sentences": len(self.guards.sentences()),
                "counters": self.guards.counters(),
            }

    # Inside

    def _change(self, rules: Any, settings: Settings) -> None:
        compiled = self.world.compile(rules, settings)
        self._use(compiled)
        self._state.rules, self._state.settings, self._state.compiled = rules, settings, compiled

    def _use(self, compiled: Compiled) -> None:
        """Have a policy decide, without what the breaker has taken back."""
        known = {identity(rule) for rule in compiled.rules}
        digests = {identity(rule): repr((rule.words, rule.mode, rule.action)) for rule in compiled.rules}
        before = self.world.changes()
        after = changes(before, digests, self.world.now_ns())
        changed = {rule: one.since_ns for rule, one in after.items() if before.get(rule) != one}
        for rule in changed:
            self._state.trips.pop(rule, None)
        self.policies.add(self.guards.epoch + 1, compiled)
        self.guards.use(compiled.without(self._state.trips, identity), self.world.processes())
        self.breaker.forget(known)
        if changed:
            self.breaker.changed(changed, self.world.processes())
            self.world.keep_changes(after)

    def _spare(self) -> None:
        never = self.world.never(self._state.settings)
        self.guards.spare(never)
        for one in missing_spared(never):
            self.tell(f"{one.why}: {one.who} isn't there")

    def _modes_of_cgroups(self) -> None:
        found: dict[int, Mode] = {}
        for path, mode in self._state.cgroups.items():
            numbers = self.world.cgroups(path)
            if not numbers:
                self.tell(
                    f"there is no control group {path}: its mode counts once it is there, and the policy is loaded anew"
                )
            found |= dict.fromkeys(numbers, mode)
        self.guards.cgroup_modes(found)

    def _notice(self, proof: Proof) -> Match:
        process = self.world.own()
        clauses = tuple(
            Clause("canary", hook.name.lower(), f"is not what {proof.mode} asks for", str(result.finding))
            for hook, result in proof.unproven.items()
        )
        told = (
            ("requested", str(self.requested)),
            ("verified", "no"),
            *(
                (hook.name.lower(), f"{result.finding}: {result.what}")
                for hook, result in proof.unproven.items()
            ),
        )
        event = AuditEvent(
            time_ns=self.world.now_ns(),
            process=process,
            tid=process.key.pid,
            origin=Origin.BPF,
            type="KSENTINEL_UNVERIFIED",
            records=(Record("KSENTINEL_UNVERIFIED", told),),
        )
        none = Clause("canary", "hooks", "is 0", "0")
        return Match(UNVERIFIED, event, clauses or (none,))


def _is_entry(rule: GuardRule) -> bool:
    return identity(rule) != rule.id


def _unproven(proof: Proof) -> str:
    if not proof.results:
        return "no guard is attached: no rule asks for one on this kernel"
    told: dict[tuple[Finding, str], list[str]] = {}
    for hook, result in proof.unproven.items():
        told.setdefault((result.finding, result.what), []).append(hook.name.lower())
    return "; ".join(
        f"{', '.join(hooks[:4])}{f' and {len(hooks) - 4} more' if len(hooks) > 4 else ''}: {finding}"
        + (f" ({what})" if what else "")
        for (finding, what), hooks in told.items()
    )
