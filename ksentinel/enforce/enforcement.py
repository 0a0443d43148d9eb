# SPDX-License-Identifier: Apache-2.0
"""
Enforcement, while it runs: what was asked for, what is left of that and why, and what has been proven.

Three modes are kept apart. *requested* is what the operator said. What is *in force* may be less: a release, a confirmation that
didn't come, a proof that failed, each with its reason. *verified* is what the canary has seen the guards do, of the policy and the
switches that are in force, lately; nothing else ends up there.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ksentinel.bpf.guard_abi import Hook
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import WITHIN_NS, Breaker, Change, Trip, changes
from ksentinel.enforce.canary import Mailbox, Proof
from ksentinel.enforce.compiled import Compiled, GuardRule
from ksentinel.enforce.compiler import called, renamed
from ksentinel.enforce.denial import ENTRY, Policies, identity
from ksentinel.enforce.never import missing as missing_spared
from ksentinel.enforce.notice import unproven, unverified
from ksentinel.enforce.rollout import Confirmation, Login, Release, Stage, least
from ksentinel.enforce.sentencing import Sentencing
from ksentinel.enforce.settings import Entry, Settings
from ksentinel.enforce.surroundings import Guarding, Proving, World
from ksentinel.errors import HostError, KsentinelError, UsageError
from ksentinel.event import HookEvent, Process
from ksentinel.printable import printable
from ksentinel.rules import Match, Rule

SECOND = 1_000_000_000
PROVE_EVERY_NS = 60 * SECOND
AGAIN_NS = 2 * SECOND
"""After a proof that failed; twice as long after each further one, and no longer than between proofs."""
STALE_NS = 3 * PROVE_EVERY_NS
"""After which a proof says nothing any more of what is in force."""
SWEEP_EVERY = 30
"""Ticks."""
PATIENCE = 3
"""So many proofs in a row may fail once one has succeeded: what is busy for a moment isn't broken."""


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
    most, why
        The most that the boots before allow, and why.
    sentence_ns
        How long a verdict on a process lasts.
    refused
        Why no guard can stand on this host, where that was accepted; empty if they can.
    """

    mode: Mode
    degrade: bool = False
    on_exit: OnExit = OnExit.OPEN
    confirm: Confirmation | None = None
    most: Mode = Mode.ENFORCE
    why: str = ""
    sentence_ns: int = 600 * SECOND
    refused: str = ""


@dataclass(frozen=True, slots=True)
class _InForce:
    """All that a proof is of: with any of it changed, it is of the past."""

    mode: Mode
    most: Mode | None
    released: bool
    epoch: int
    hooks: tuple[Hook, ...]


@dataclass(slots=True)
class _State:
    """
    What changes.

    Attributes
    ----------
    proof, proven, proven_ns
        The last one, of what, and when it began.
    """

    settings: Settings
    rules: Any
    compiled: Compiled
    requested: Mode
    confirm: Confirmation | None
    cgroups: dict[str, Mode]
    proof: Proof | None = None
    proven: _InForce | None = None
    proven_ns: int = 0
    failures: int = 0
    why: str = ""
    proven_once: bool = False
    next_proof_ns: int = 0
    boots: bool = True
    degraded: str = ""
    changes: dict[str, Change] = field(default_factory=dict)
    armed: set[str] = field(default_factory=set)
    numbers: dict[int, Mode] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)


class Enforcement:
    """
    Keeps guards as they were asked for, proves it, and takes back what has to be.

    Every method may be called by any thread. The walk's own never waits for a proof, a compiler or the kernel's taking of a policy:
    records that a proof waits for, and heartbeats, come meanwhile.

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
    due
        Is set whenever a proof may be.
    policies
        Names the rules of denials.
    keep
        Is handed all denials, to count them; may raise KsentinelError.
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
        self.reading = threading.Event()
        self.due = threading.Event()
        self.counts: Counter[str] = Counter()
        # In this order, by who needs more than one: a proof; an exchange of policies; the never-list; what changes, for moments.
        self._proving = threading.Lock()
        self._exchanging = threading.RLock()
        self._sparing = threading.Lock()
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._notices: list[Match] = []
        self._tripped: list[Trip] = []
        self._changed = False
        self.sentencing = Sentencing(
            guards, world, self.policies, self._lock, self.counts, tell, lasts_ns=wanted.sentence_ns
        )
        self.keep: Callable[[Sequence[HookEvent]], None] = lambda _: None
        self.reload: Callable[[Any], None] = lambda _: None
        compiled = world.compile(rules, settings)
        self._state = _State(
            settings, rules, compiled, wanted.mode, wanted.confirm, cgroups=dict(settings.cgroups)
        )

    # Begin, and end

    def start(self) -> None:
        """Have the policy decide, in the mode that was asked for; nothing is proven yet. Raises KsentinelError."""
        with self._exchanging:
            state = self._state
            state.changes = dict(self.world.changes())
            state.told |= {self.wanted.refused} - {""}  # by whoever accepted it
            self._spare(state.settings)
            state.numbers = self._numbers(state.cgroups)
            self.guards.cgroup_modes(state.numbers)
            # What no mode may be more than comes before what has modes of its own.
            self.guards.most = self._most()
            self._use(state.compiled)
        self._settle()
        self.due.set()

    def stop(self) -> None:
        """End a proof that another thread is at: nobody reads the records that it waits for any more."""
        self._stopping.set()
        if self._state.proof is None and self.failure is None and self.requested is not Mode.OFF:
            self.tell("NOT VERIFIED: it has ended before anything was proven")
        self.mailbox.close()
        self.canary.stop()
        self.reading.set()
        self.due.set()

    def fail(self, error: KsentinelError) -> None:
        """Have it end, for that reason; until it has, nothing is enforced."""
        if self._stopping.is_set():
            return
        with self._lock:
            self.failure = self.failure or error
            self._state.told.add(self.failure.what)  # by whoever ends for it
        with suppress(Exception):  # it may be what has failed
            self._settle()

    # What is in force

    @property
    def limits(self) -> tuple[tuple[Mode, str], ...]:
        """What keeps the mode below what was asked for, and why."""
        return self._limits(self.world.releases())

    def _limits(self, releases: Sequence[Release]) -> tuple[tuple[Mode, str], ...]:
        with self._lock:
            state = self._state
            found: list[tuple[Mode, str]] = []
            if self.wanted.refused:
                found.append((Mode.OFF, self.wanted.refused))
            if self.failure is not None:
                found.append((Mode.OFF, self.failure.what))
            if state.boots and self.wanted.most is not Mode.ENFORCE:
                found.append((self.wanted.most, self.wanted.why))
            found += [(one.most, one.words) for one in releases if one.most is not None]
            now = self.world.boot_ns()
            if state.confirm is not None and state.confirm.stage(now) is Stage.EXPIRED:
                found.append((Mode.PERMISSIVE, state.confirm.words(now)))
            if state.degraded:
                found.append((Mode.PERMISSIVE, state.degraded))
            return tuple(found)

    def _most(self) -> Mode | None:
        most = least(Mode.ENFORCE, *(most for most, _ in self.limits))
        return None if most is Mode.ENFORCE else most

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
        """The mode that the canary has seen in force; ``no`` if it hasn't, or not of what is in force now, or too long ago."""
        with self._lock:
            state = self._state
            proof, now = state.proof, self._in_force()
            if (
                proof is None
                or not proof.verified
                or state.proven != now
                or now.released
                or self.failure is not None
                or self.wanted.refused
                or self.world.boot_ns() - state.proven_ns > STALE_NS
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
        """Ask for another mode, which is proven soon; ends a release that was asked for."""
        with self._lock:
            self._state.requested = mode
            self._state.degraded = ""
        self._settle()
        # Last: nothing is denied by the mode of before.
        with self._lock:
            self.guards.release(on=False)
            self._note()
        self.due.set()

    def set_rule_mode(self, name: str, mode: Mode) -> None:
        """
        Let a rule have a mode of its own, until ksentinel ends or the operator's file is loaded again.

        What the breaker has taken back is given another chance by that.

        Raises
        ------
        RuleError
            If there is no such rule that is decided in the kernel.
        """
        name = name.removeprefix(ENTRY)
        with self._exchanging:
            state = self._state
            settings = state.settings
            entries = tuple(
                replace(entry, mode=mode) if entry.id == name else entry for entry in settings.entries
            )
            if any(entry.id == name for entry in entries):
                settings = replace(settings, entries=entries)
            else:
                settings = replace(settings, modes=renamed(settings.modes, name, mode, state.rules))
            self._change(state.rules, settings, state.cgroups, anew=name)

    def set_cgroup_mode(self, path: str, mode: Mode) -> None:
        """Let a control group, and those below it, have a mode of their own; raises UsageError if there is none."""
        with self._exchanging:
            if not self.world.cgroups(path):
                raise UsageError(
                    f"there is no control group {path!r}", remedy="say a path below /sys/fs/cgroup"
                )
            self._put_cgroups(self._state.cgroups | {path: mode})
        self.due.set()

    def change(self, rules: Any, settings: Settings) -> None:
        """Have other rules and another operator's file decide; raises KsentinelError, and then nothing has changed."""
        with self._exchanging:
            self._change(rules, settings, dict(settings.cgroups))

    def release(self) -> None:
        """Deny nothing any more, whatever else says so, and let everybody go who is under a verdict."""
        with self._lock:
            self.guards.release(on=True)
            self.sentencing.lift_all()
            self._note()
        self.tell("released: nothing is denied until a mode is asked for again")

    def confirm(self, login: Login) -> None:
        """Say that one can still log in, and that the boots weren't the guards' doing; raises UsageError."""
        with self._lock:
            state, now = self._state, self.world.boot_ns()
            booted = state.boots and self.wanted.most is not Mode.ENFORCE
            if state.confirm is not None:
                state.confirm = state.confirm.confirm(login, now)
            elif not booted:
                raise UsageError(
                    "nothing waits to be confirmed", remedy="start it by `ksentinel enforce --confirm 5m`"
                )
            state.boots = False
        if booted:
            try:
                self.world.forgive()
            except KsentinelError as error:
                self.tell(f"{error}: the next start will be permissive once more")
        self._settle()
        self.due.set()

    # Proof

    def is_due(self) -> bool:
        """Tell whether a proof is: what is in force hasn't been tried, or not for a minute."""
        with self._lock:
            if self.failure is not None or self._stopping.is_set():
                return False
            return self._untried() or (
                not self.guards.released and self.world.boot_ns() >= self._state.next_proof_ns
            )

    def _untried(self) -> bool:
        return not self.guards.released and self._state.proven != self._in_force()

    def prove(self) -> None:
        """
        Prove now that the guards do what is in force, and draw the conclusions.

        Meanwhile nothing else waits: the records that the proof needs come by whoever reads the ring buffer.
        """
        with self._proving:
            while not self._stopping.is_set() and self.failure is None:
                # While policies are exchanged guards stand that no policy has anything for.
                with self._exchanging, self._lock:
                    asked, began = self._in_force(), self.world.boot_ns()
                if asked.released:
                    return
                if self.wanted.refused:
                    proof = Proof(self.world.now_ns() / 1e9, asked.mode, {})
                else:
                    proof = self.canary.prove(asked.hooks, asked.mode)
                if self._stopping.is_set():
                    return
                with self._lock:
                    again = asked != self._in_force() or self._conclude(proof, asked, began)
                self._settle()
                if not again:
                    return

    def _conclude(self, proof: Proof, asked: _InForce, began_ns: int) -> bool:
        """Take a proof in; whether another one is needed, because it has changed the mode."""
        state, now = self._state, self.world.boot_ns()
        before = state.proof
        state.proof, state.proven, state.proven_ns = proof, asked, began_ns
        if self.wanted.refused:
            if before is None and self.requested is not Mode.OFF:
                self._notices.append(self._unverified(proof))
            state.next_proof_ns = now + PROVE_EVERY_NS
            return False
        if proof.verified:
            state.next_proof_ns = now + PROVE_EVERY_NS
            if state.failures or before is None or before.mode is not proof.mode:
                self._tell_verified(proof)
            state.failures, state.why = 0, ""
            state.proven_once |= bool(proof.results)
            return False
        state.failures += 1
        state.next_proof_ns = now + min(AGAIN_NS << min(state.failures - 1, 8), PROVE_EVERY_NS)
        why = f"enforcement can't be verified: {unproven(proof)}"
        if why != state.why:
            self.tell(f"NOT VERIFIED: {why}")
        state.why = why
        if state.failures == 1:
            self._notices.append(self._unverified(proof))
        # At the start at once; later on a machine that is busy for a moment must not end it.
        if self._strictest() is not Mode.ENFORCE or (state.proven_once and state.failures < PATIENCE):
            return False
        if self.wanted.degrade:
            state.degraded = why
            state.told.add(why)
            self.tell(f"DEGRADED to permissive: {why}")
            return True
        self.fail(HostError(why, remedy="see docs/enforcement.md; --degrade goes on permissive instead"))
        return False

    def _unverified(self, proof: Proof) -> Match:
        world = self.world
        return unverified(proof, str(self.requested), world.own(), world.now_ns(), self.wanted.refused)

    def _strictest(self) -> Mode:
        """Return the strictest mode that anything is enforced by."""
        state = self._state
        named = [one.mode for one in state.compiled.rules if one.mode is not None and not one.taken_back]
        modes = (self.guards.mode, *named, *state.cgroups.values())
        return least(max(modes, key=lambda mode: mode.rank), self.guards.most)

    def _tell_verified(self, proof: Proof) -> None:
        if proof.mode is Mode.OFF:
            self.tell("enforcement is off")
            return
        hooks = len(proof.results) - len(proof.unproven)
        rest = f"; nobody can prove it here at {', '.join(hook.name.lower() for hook in proof.unproven)}"
        self.tell(
            f"verified: {proof.mode} at {hooks} hook{'' if hooks == 1 else 's'}{rest if proof.unproven else ''}"
        )

    # Meanwhile

    def tick(self) -> None:
        """To be called every second: the heartbeat, what has come to its end, and what somebody else mustn't wait for."""
        self.guards.beat()
        self._settle()
        self._take_back()
        self._follow_cgroups()
        with self._lock:
            if not self.counts["ticks"] % SWEEP_EVERY:
                self.guards.sentences()  # takes away those that have ended
            self.counts["ticks"] += 1
            self.sentencing.catch_up()
        self.keep_changes()
        if self.is_due():
            self.due.set()

    def _settle(self) -> None:
        """Put in force what may be."""
        releases = self.world.releases()
        with self._lock:
            limits = self._limits(releases)
            state = self._state
            most = least(Mode.ENFORCE, *(most for most, _ in limits))
            mode = least(self.requested, most)
            self.guards.most = None if most is Mode.ENFORCE else most
            if self.guards.mode is not mode:
                self.guards.mode = mode
            self._note()
            told = {words for _, words in limits}
            said = [f"no more than {_least(words, limits)}: {words}" for words in sorted(told - state.told)]
            if state.told - told:
                said.append(f"{mode} again")
            state.told = told
            for words in sorted({one.words for one in releases if one.most is None} - state.said):
                state.said.add(words)
                said.append(words)
        for words in said:
            self.tell(words)

    def _take_back(self) -> None:
        """Have rules that the breaker has taken back no more than permissive."""
        # A heartbeat waits for no policy that is being compiled: the next one will do.
        if not self._tripped or not self._exchanging.acquire(blocking=False):
            return
        try:
            with self._lock:
                trips, self._tripped = self._tripped, []
            self._use(self._state.compiled)
        finally:
            self._exchanging.release()
        self.due.set()
        for trip in trips:
            self.tell(f"BREAKER: {printable(trip.words(), 2000)}")

    def _follow_cgroups(self) -> None:
        """Control groups come, go, and come again with another number: a service that is started anew."""
        if not self._state.cgroups or not self._exchanging.acquire(blocking=False):
            return
        try:
            self._put_cgroups(self._state.cgroups)
        finally:
            self._exchanging.release()

    def keep_changes(self) -> None:
        """Have written what has changed of the rules since it was last."""
        with self._lock:
            changed, self._changed = self._changed, False
            kept = dict(self._state.changes)
        if changed:
            self.world.keep_changes(kept)

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
        """Take denials in: a rule that hits too many is taken back with the next tick, and they are counted."""
        self.reading.set()
        if not events:
            return
        with self._lock:
            for event in events:
                self.counts["denials"] += event.nonce is None
                trip = self.breaker.denied(event)
                if trip is not None:
                    self._tripped.append(trip)
                    change = self._state.changes.get(trip.rule) or Change("", trip.changed_ns)
                    self._state.changes[trip.rule] = replace(change, taken_back=trip.words())
                    self._changed = True
        try:
            self.keep(events)
        except KsentinelError as error:
            # A full disk mustn't end enforcement; that they are missing is told, and counted.
            if not self.counts["denials_unkept"]:
                self.tell(f"denials can't be counted: {error}")
            self.counts["denials_unkept"] += len(events)

    def carry_out(self, rule: Rule, action: str, process: Process) -> None:
        """Put a lineage under the verdict that a match has come to, if it is one on processes."""
        if not self.wanted.refused:
            self.sentencing.carry_out(rule, action, process)

    def lift(self, pid: int) -> int:
        """End the verdicts on a process and on all below it; return how many that were."""
        return self.sentencing.lift(pid)

    def told(self) -> dict[str, Any]:
        """Return all of that, for `status`."""
        limits = self.limits
        with self._lock:
            state, now = self._state, self.world.boot_ns()
            proof = state.proof
            return {
                "requested": str(self.requested),
                "mode": str(self.guards.mode),
                "verified": self.verified,
                "proving": self.failure is None and self._untried(),
                "why": [words for _, words in limits],
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
                "taken_back": self._taken_back(),
                "sentences": len(self.guards.sentences()),
                "counters": self.guards.counters()
                | {name: self.counts[name] for name in ("denials_unkept", "sentences_failed")},
            }

    # Inside

    def _in_force(self) -> _InForce:
        guards = self.guards
        return _InForce(guards.mode, guards.most, guards.released, guards.epoch, guards.attached)

    def _taken_back(self) -> list[str]:
        return sorted(rule for rule, one in self._state.changes.items() if one.taken_back)

    def _change(self, rules: Any, settings: Settings, cgroups: dict[str, Mode], *, anew: str = "") -> None:
        """Exchange all of it, or nothing; *anew* names what is given another chance."""
        compiled = self.world.compile(rules, settings)
        state = self._state
        with ExitStack() as undo:
            # Nobody is denied anything for a moment who is spared by either.
            undo.callback(self._spare, state.settings)
            self._spare(settings, state.settings)
            undo.callback(self._put_cgroups, state.cgroups)
            self._put_cgroups(cgroups)
            self._use(compiled, anew)
            undo.pop_all()
        with self._lock:
            state.rules, state.settings = rules, settings
        self._spare(settings)
        self.due.set()

    def _use(self, compiled: Compiled, anew: str = "") -> None:
        """Have a policy decide, without what the breaker has taken back."""
        state, epoch = self._state, self.guards.following
        fresh = {identity(one) for one in compiled.rules if one.id == anew or anew in _names(one)}
        digests = _digests(compiled)
        back = {
            rule
            for rule, one in state.changes.items()
            if one.taken_back and one.digest in {"", digests.get(rule)} and rule not in fresh
        }
        compiled = compiled.without(back, identity)
        self.policies.add(epoch, compiled)
        try:
            self.guards.use(compiled, self.world.processes())
        except KsentinelError as error:
            if self.guards.epoch != epoch:
                self.policies.forget(epoch)
                raise
            # It decides, and who runs has no names by it.
            self.fail(
                HostError(f"a policy is in force, and not whole: {error}", remedy="start ksentinel anew")
            )
        with self._lock:
            state.compiled = compiled
            for rule in fresh & state.changes.keys():
                state.changes[rule] = replace(
                    state.changes[rule], taken_back="", since_ns=self.world.now_ns()
                )
                state.armed.discard(rule)
                self._changed = True
            self._note()
        self._tell_missing(compiled)

    def _note(self) -> None:
        """Note which rules have changed, or are enforced from now on: for a while the breaker counts whom they deny."""
        state, now = self._state, self.world.now_ns()
        digests = _digests(state.compiled)
        by_group = " ".join(f"{path}={mode}" for path, mode in sorted(state.cgroups.items()))
        modes = {
            identity(one): "released"
            if self.guards.released
            else f"{least(one.mode or state.requested, self.guards.most)} {by_group}".rstrip()
            for one in state.compiled.rules
        }
        after = changes(state.changes, digests, now, modes)
        arm = {
            rule: one.since_ns
            for rule, one in after.items()
            if state.changes.get(rule) != one or (rule not in state.armed and now - one.since_ns <= WITHIN_NS)
        }
        self._changed |= after != state.changes
        state.changes = after
        state.armed = set(after)
        self.breaker.forget(after.keys())
        self.breaker.pinned = frozenset(identity(one) for one in state.compiled.rules if one.pinned)
        if arm:
            self.breaker.changed(arm, self.world.processes())

    def _tell_missing(self, compiled: Compiled) -> None:
        """Say what a policy speaks of that isn't there; each once."""
        said = [
            f"{one.at}: {one.path} isn't there: entry {one.rule} speaks of it once the policy is loaded anew"
            for one in compiled.places_missing
        ]
        if not self.wanted.refused:
            said += [f"no guard at {hook.name.lower()}: {why}" for hook, why in self.guards.missing.items()]
        for words in said:
            if words not in self._state.said:
                self._state.said.add(words)
                self.tell(words)

    def spare_helper(self) -> None:
        """Spare whoever is to be by now: the canary's helper has been started. Raises HostError."""
        self._spare(self._state.settings)

    def _spare(self, *settings: Settings) -> None:
        with self._sparing:
            never = [one for some in settings for one in self.world.never(some)]
            self.guards.spare(never)
        for one in missing_spared(never):
            if one.who not in self._state.said:
                self._state.said.add(one.who)
                self.tell(f"{one.why}: {one.who} isn't there")

    def _put_cgroups(self, cgroups: dict[str, Mode]) -> None:
        """Let these control groups have modes of their own; raises HostError, and then it is as it was."""
        state, numbers = self._state, self._numbers(cgroups)
        if numbers != state.numbers:
            self.guards.cgroup_modes(numbers)
        with self._lock:
            state.cgroups, state.numbers = cgroups, numbers
            self._note()

    def _numbers(self, cgroups: Mapping[str, Mode]) -> dict[int, Mode]:
        found: dict[int, Mode] = {}
        for path, mode in cgroups.items():
            numbers = self.world.cgroups(path)
            words = f"there is no control group {path}: its mode counts once it is there"
            if numbers:
                self._state.said.discard(words)
            elif words not in self._state.said:
                self._state.said.add(words)
                self.tell(words)
            found |= dict.fromkeys(numbers, mode)
        return found


def _is_entry(rule: GuardRule) -> bool:
    return identity(rule) != rule.id


def _names(rule: GuardRule) -> set[str]:
    return set() if isinstance(rule.source, Entry) else called(rule.source.rule)


def _digests(compiled: Compiled) -> dict[str, str]:
    """Return all that each rule says, in short."""
    return {
        identity(one): hashlib.sha256(
            repr((one.words, one.mode, one.action, one.anomalous)).encode()
        ).hexdigest()
        for one in compiled.rules
    }


def _least(words: str, limits: Sequence[tuple[Mode, str]]) -> Mode:
    return least(Mode.ENFORCE, *(most for most, others in limits if others == words))
