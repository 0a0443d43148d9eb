# SPDX-License-Identifier: Apache-2.0
"""Enforcement keeps apart what was asked for, what is in force and what is proven; it changes all or nothing, and waits for nobody."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
from enforce.made_up_policies import derived, resolve
from made_up import CAT, CROND, HTTPD, ID, INIT, JOB, SECOND, SHELL, child, denial

from ksentinel.bpf.guard_abi import Hook, SentenceKind
from ksentinel.enforce import Mode, OnExit
from ksentinel.enforce.breaker import LEAST, WITHIN_NS, Breaker
from ksentinel.enforce.canary import Finding, Mailbox, Proof, Result
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.enforcement import (
    AGAIN_NS,
    PATIENCE,
    PROVE_EVERY_NS,
    STALE_NS,
    Enforcement,
    Wanted,
)
from ksentinel.enforce.never import Spared
from ksentinel.enforce.notice import UNVERIFIED
from ksentinel.enforce.rollout import Confirmation, Login, Release
from ksentinel.enforce.sentencing import CATCH_UP_NS
from ksentinel.enforce.settings import parse_settings
from ksentinel.errors import HostError, InputError, RuleError, UsageError
from ksentinel.event import Outcome, Process, ProcessKey
from ksentinel.level import Level
from ksentinel.rules import Rule
from ksentinel.rules.guard import Guard, Literal, Names
from ksentinel.status import EnforcementStatus

OPEN = Hook.FILE_OPEN
ONE = "entries: [{id: secret, deny: [read], file: {under: [/etc/secret]}}]"
TWO = "entries: [{id: secret, deny: [read], file: {under: [/etc/secret]}}, {id: kexec, deny: [kexec]}]"
FULL = HostError("writing a BPF map: E2BIG", remedy="")
RULE = Rule("web", "Web shell", Level.HIGH)


class _Guards:
    """Guards that only note what they are told; *fails* says which calls the kernel refuses, and how often."""

    def __init__(self):
        self.mode, self.most, self.released = Mode.OFF, None, False
        self.epoch, self.following, self.attached = 0, 1, ()
        self.missing, self.fails = {}, Counter()
        self.lacks = set()
        self.used, self.spared, self.cgroups = [], [], []
        self.under, self.beats = {}, 0
        self.seen = []

    def _may(self, what):
        if self.fails[what] > 0:
            self.fails[what] -= 1
            raise FULL

    def use(self, compiled, _processes):
        epoch, self.following = self.following, self.following + 1
        self.seen.append((self.mode, self.most))
        self._may("use")
        self.missing = {hook: "lacking" for hook in compiled.hooks if hook in self.lacks}
        self.attached = tuple(hook for hook in compiled.hooks if hook not in self.lacks)
        self.epoch = epoch
        self.used.append(compiled)
        self._may("name")
        return epoch

    def spare(self, never):
        self._may("spare")
        self.spared.append([one.who for one in never])

    def cgroup_modes(self, modes):
        self._may("cgroups")
        self.cgroups.append(dict(modes))

    def release(self, *, on):
        self.released = on

    def beat(self):
        self.beats += 1

    def sentence(self, key, kind, until_ns, number):
        self._may("sentence")
        self._may(key)
        self.under[key] = (kind, until_ns, number)

    def lift(self, key):
        del self.under[key]

    def sentences(self):
        return dict(self.under)

    def counters(self):
        return {"denied": 0}


class _Canary:
    """A canary that finds what it is told to; *meanwhile* happens during the next proof."""

    def __init__(self):
        self.finding, self.asked, self.stopped = Finding.VERIFIED, [], 0
        self.meanwhile = lambda: None
        self.only = None

    def prove(self, hooks, mode):
        self.asked.append((tuple(hooks), mode))
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        found = {
            hook: Result(self.finding if self.only in {None, mode} else Finding.VERIFIED, "so")
            for hook in (() if mode is Mode.OFF else hooks)
        }
        return Proof(1.0, mode, found)

    def stop(self):
        self.stopped += 1


class _World:
    """A host whose clocks stand until somebody sets them."""

    def __init__(self):
        self.boot, self.out, self.groups = 1000 * SECOND, [], {}
        self.running = [INIT, HTTPD, SHELL, CAT, CROND, JOB]
        self.kept, self.known, self.forgiven = [], {}, 0
        self.unforgiving = False
        self.compiling = lambda: None

    def boot_ns(self):
        return self.boot

    def now_ns(self):
        return 1_700_000_000 * SECOND + self.boot

    def processes(self):
        return list(self.running)

    def own(self):
        return Process(ProcessKey(99, 99), exe="/usr/bin/ksentinel")

    def compile(self, rules, settings):
        self.compiling()
        return compile_policy(rules, settings, resolve=resolve, arch="x86_64")

    def never(self, settings):
        return [Spared(path, "never add", resolve(path)) for path in settings.spare]

    def cgroups(self, path):
        return self.groups.get(path, ())

    def releases(self):
        return self.out

    def changes(self):
        return self.known

    def keep_changes(self, changes):
        self.kept.append(dict(changes))

    def forgive(self):
        if self.unforgiving:
            raise InputError("can't be written")
        self.forgiven += 1


class _Scene:
    """Enforcement, with all that it is made of."""

    def __init__(self, text=ONE, rules=(), world=None, trusted=lambda _: True, **wanted):
        self.guards, self.canary, self.world = _Guards(), _Canary(), world or _World()
        self.mailbox, self.said = Mailbox(), []
        self.wanted = Wanted(**({"mode": Mode.ENFORCE} | wanted))
        self.rules = list(rules)
        self.text = text
        self.trusted = trusted

    def made(self):
        self.it = Enforcement(
            self.guards,
            self.canary,
            self.mailbox,
            Breaker(self.trusted),
            self.world,
            self.wanted,
            self.rules,
            settings(self.text),
            self.said.append,
        )
        return self.it

    def started(self, *, proven=True):
        it = self.made()
        it.start()
        if proven:
            it.prove()
        return it

    def has_said(self, words):
        return any(words in said for said in self.said)


def settings(text):
    return parse_settings(text, "enforce.yml")


def rule(identity="r", name="", file="", **response):
    """Return a rule that is decided at file_open; with a name, and a file."""
    odd = Literal(Names("program", ("/opt/odd",), (), (), cased=True), negated=False)
    one = derived([Guard("file_open", ("openat",), ((odd,),))], identity=identity, **response)
    return replace(one, rule=replace(one.rule, name=name, file=file or one.rule.file))


# What is in force, and what is proven


def test_start():
    """Nothing is verified until the canary has seen it; then it is, and a tick proves nothing anew for a minute."""
    scene = _Scene()
    it = scene.started(proven=False)
    before = (it.requested, it.mode, it.verified, it.told()["proving"], it.is_due())
    it.prove()
    it.tick()

    assert before == (Mode.ENFORCE, Mode.ENFORCE, "no", True, True)
    assert (it.verified, it.posture(), it.told()["proving"], it.is_due()) == (
        "enforce",
        ("enforce", "enforce"),
        False,
        False,
    )
    assert scene.canary.asked == [(scene.guards.attached, Mode.ENFORCE)]
    assert scene.guards.beats == 1
    assert scene.said == ["verified: enforce at 1 hook"]
    scene.world.boot += PROVE_EVERY_NS
    assert it.is_due()
    assert it.verified == "enforce"
    scene.world.boot += STALE_NS
    assert it.verified == "no"


def test_limits_before_policy():
    """A rule may have a mode of its own: what none may be more than is said before the policy decides, and the host's mode after."""
    scene = _Scene()
    scene.world.out = [Release(Mode.PERMISSIVE, "ksentinel=permissive on the kernel's command line")]
    it = scene.started(proven=False)

    assert scene.guards.seen == [(Mode.OFF, Mode.PERMISSIVE)]
    assert (it.requested, it.mode, scene.guards.mode) == (Mode.ENFORCE, Mode.PERMISSIVE, Mode.PERMISSIVE)


@pytest.mark.parametrize(
    ("limits", "most", "mode"),
    [
        ([], None, Mode.ENFORCE),
        ([Mode.PERMISSIVE], Mode.PERMISSIVE, Mode.PERMISSIVE),
        ([Mode.PERMISSIVE, Mode.OFF], Mode.OFF, Mode.OFF),
        ([None], None, Mode.ENFORCE),
    ],
)
def test_releases(limits, most, mode):
    """The flag file and the kernel's command line count from the next second on, and no longer than they are there; told once."""
    scene = _Scene()
    it = scene.started()
    scene.world.out = [Release(limit, f"word {limit}") for limit in limits]
    it.tick()
    it.tick()

    assert (scene.guards.most, scene.guards.mode, it.mode) == (most, mode, mode)
    assert (it.verified, it.is_due()) == (("enforce", False) if most is None else ("no", True))
    assert [said for said in scene.said if "word" in said] == [
        f"no more than {limit}: word {limit}" if limit else "word None" for limit in sorted(limits, key=str)
    ]
    scene.world.out = []
    it.tick()
    assert (scene.guards.most, scene.guards.mode) == (None, Mode.ENFORCE)
    assert scene.has_said("enforce again") == (most is not None)


@pytest.mark.parametrize(
    "happens",
    [
        lambda scene: scene.it.set_mode(Mode.PERMISSIVE),
        lambda scene: scene.it.release(),
        lambda scene: setattr(scene.guards, "released", True),
        lambda scene: scene.it.change([], settings(TWO)),
        lambda scene: scene.it.set_rule_mode("secret", Mode.PERMISSIVE),
        lambda scene: setattr(scene.guards, "attached", (*scene.guards.attached, Hook.BPF)),
    ],
)
def test_verified_is_of_what_is_in_force(happens):
    """Modes, a release, another policy, other guards: a proof of what was before says nothing of it."""
    scene = _Scene()
    it = scene.started()
    happens(scene)

    assert it.verified == "no"


def test_switched_meanwhile():
    """A proof during which the mode was switched is none: another one is made."""
    scene = _Scene()
    it = scene.started(proven=False)
    scene.canary.meanwhile = lambda: it.set_mode(Mode.PERMISSIVE)
    it.prove()

    assert [mode for _, mode in scene.canary.asked] == [Mode.ENFORCE, Mode.PERMISSIVE]
    assert it.verified == "permissive"


def test_released_meanwhile():
    """A release during a proof fails it, and that is nobody's failure; nothing is said to be verified."""
    scene = _Scene()
    it = scene.started(proven=False)
    scene.canary.finding = Finding.NOT_AS_ASKED
    scene.canary.meanwhile = it.release
    it.prove()

    assert (it.failure, it.verified, it.is_due(), it.told()["proving"]) == (None, "no", False, False)
    assert it.notices() == []
    assert not scene.has_said("erified")
    scene.canary.finding = Finding.VERIFIED
    it.set_mode(Mode.ENFORCE)
    it.prove()
    assert it.verified == "enforce"


def test_changed_meanwhile():
    """Policies are exchanged while nobody proves: guards stand then that no policy has anything for."""
    scene = _Scene()
    it = scene.started()
    proofs = []

    def compiling():
        proving = threading.Thread(target=lambda: (it.prove(), proofs.append(len(scene.guards.used))))
        proving.start()
        proving.join(0.05)
        assert proofs == []
        scene.proving = proving

    scene.world.compiling = compiling
    it.change([], settings(TWO))
    scene.proving.join(10)

    assert proofs == [2]
    assert Hook.KERNEL_LOAD_DATA in scene.canary.asked[-1][0]
    assert it.verified == "enforce"


def test_walk_waits_for_nothing():
    """While a policy is compiled, and while a proof waits for records, the walk goes on."""
    scene = _Scene()
    it = scene.started()
    done = []

    def walk():
        it.denied([denial()])
        it.carry_out(RULE, "quarantine", SHELL)
        done.append((it.notices(), it.posture()[0]))
        it.tick()

    def meanwhile():
        walking = threading.Thread(target=walk)
        walking.start()
        walking.join(10)
        done.append(not walking.is_alive())

    scene.world.compiling = meanwhile
    it.change([], settings(TWO))
    scene.canary.meanwhile = meanwhile
    it.prove()

    assert done == [([], "enforce"), True] * 2


# A proof that fails


def test_fails_at_start():
    """What can't be proven at the start ends it: nothing is enforced from then on, by no rule, and that is an alert."""
    scene = _Scene()
    scene.canary.finding = Finding.SILENT
    it = scene.started()
    (notice,) = it.notices()

    assert str(it.failure).startswith("enforcement can't be verified: ")
    assert "never fired (so)" in it.failure.what
    assert (scene.guards.mode, scene.guards.most, it.verified) == (Mode.OFF, Mode.OFF, "no")
    it.tick()
    assert (scene.guards.mode, scene.guards.most, it.is_due()) == (Mode.OFF, Mode.OFF, False)
    assert (notice.rule, notice.event.process.exe) == (UNVERIFIED, "/usr/bin/ksentinel")
    assert {clause.field for clause in notice.clauses} == {
        hook.name.lower() for hook in scene.guards.attached
    }
    assert it.notices() == []


def test_patience():
    """Once proven, it may fail for a moment, told once; then it ends. Each failure is tried again later than the one before."""
    scene = _Scene()
    it = scene.started()
    scene.canary.finding = Finding.LATE
    waits = []
    for _ in range(PATIENCE):
        it.prove()
        began = scene.world.boot
        while not it.is_due() and it.failure is None:
            scene.world.boot += SECOND
        waits.append(scene.world.boot - began)

    assert waits == [AGAIN_NS, 2 * AGAIN_NS, 0]
    assert it.failure is not None
    assert len(it.notices()) == 1
    assert sum(said.startswith("NOT VERIFIED") for said in scene.said) == 1


def test_recovers():
    """Proven again in time, nothing has happened, and that is told."""
    scene = _Scene()
    it = scene.started()
    scene.canary.finding = Finding.LATE
    it.prove()
    unverified = it.verified
    scene.canary.finding = Finding.VERIFIED
    it.prove()

    assert (unverified, it.verified, it.failure) == ("no", "enforce", None)
    assert [said.partition(":")[0] for said in scene.said] == ["verified", "NOT VERIFIED", "verified"]


def test_impossible():
    """What nobody can attempt keeps nothing else from being verified; that it isn't is said."""
    scene = _Scene(TWO)
    prove = scene.canary.prove

    def some(hooks, mode):
        proof = prove(hooks, mode)
        return replace(
            proof, results={**proof.results, Hook.KERNEL_LOAD_DATA: Result(Finding.IMPOSSIBLE, "no modules")}
        )

    scene.canary.prove = some
    it = scene.started()

    assert (it.verified, it.failure) == ("enforce", None)
    assert scene.said == ["verified: enforce at 2 hooks; nobody can prove it here at kernel_load_data"]
    assert it.told()["unproven"] == {"kernel_load_data": "can't be attempted here: no modules"}


def test_degrade():
    """With leave to, it goes on permissive, which is proven; another mode that is asked for is tried anew."""
    scene = _Scene(degrade=True)
    scene.canary.finding, scene.canary.only = Finding.NOT_REFUSED, Mode.ENFORCE
    it = scene.started()

    assert (it.failure, it.requested, scene.guards.mode, it.verified) == (
        None,
        Mode.ENFORCE,
        Mode.PERMISSIVE,
        "permissive",
    )
    assert scene.guards.most is Mode.PERMISSIVE
    assert scene.has_said("DEGRADED to permissive: enforcement can't be verified: ")
    assert len(it.notices()) == 1
    scene.canary.finding = Finding.VERIFIED
    it.set_mode(Mode.ENFORCE)
    it.prove()
    assert (it.verified, it.told()["why"]) == ("enforce", [])


def test_permissive_fails():
    """Where nothing is enforced, a failing proof ends nothing; it is told once, and alerted about."""
    scene = _Scene(mode=Mode.PERMISSIVE)
    scene.canary.finding = Finding.SILENT
    it = scene.started()
    for _ in range(5):
        it.prove()

    assert (it.failure, it.verified) == (None, "no")
    assert sum(said.startswith("NOT VERIFIED") for said in scene.said) == 1
    assert len(it.notices()) == 1


@pytest.mark.parametrize(
    "text", [ONE.replace("deny", "mode: enforce, deny"), f"cgroups: {{/a: enforce}}\n{ONE}"]
)
def test_enforced_by_one(text):
    """An entry or a control group that enforces by itself, on a permissive host, has to be proven like any other."""
    scene = _Scene(text, mode=Mode.PERMISSIVE)
    scene.canary.finding = Finding.SILENT
    it = scene.started()

    assert it.failure is not None
    assert scene.guards.most is Mode.OFF


def test_off_proves_nothing():
    """That nothing had to be proven is no proof that guards work: the first one that fails counts at once."""
    scene = _Scene(mode=Mode.OFF)
    it = scene.started()
    off = it.verified
    scene.canary.finding = Finding.SILENT
    it.set_mode(Mode.ENFORCE)
    it.prove()

    assert off == "off"
    assert it.failure is not None


def test_no_guard():
    """Without any guard nothing is verified, and that ends it."""
    it = _Scene("entries: []").started()

    assert "no guard is attached" in it.failure.what


def test_broken():
    """Whoever keeps it may have it fail; after it was told to stop that is nobody's business."""
    scene = _Scene()
    it = scene.started()
    it.fail(HostError("first"))
    it.fail(HostError("second"))
    stopped = _Scene().started()
    stopped.stop()
    stopped.fail(HostError("late"))

    assert (it.failure.what, scene.guards.mode, it.told()["why"]) == ("first", Mode.OFF, ["first"])
    assert stopped.failure is None


def test_stop():
    """A proof that goes on when it is to end is none, neither good nor bad, and nobody waits for records any more."""
    scene = _Scene()
    it = scene.started(proven=False)
    scene.canary.finding = Finding.LATE
    scene.canary.meanwhile = it.stop
    it.prove()

    assert (it.failure, it.notices(), scene.canary.stopped, it.is_due()) == (None, [], 1, False)
    assert scene.mailbox.take(1, 3600.0) is None
    assert scene.said == ["NOT VERIFIED: it has ended before anything was proven"]
    it.prove()
    assert len(scene.canary.asked) == 1


def test_refused_host():
    """Where no guard can stand, and that was accepted: an alert, nothing in force, nothing verified, whatever is asked for."""
    scene = _Scene(degrade=True, refused="nothing can be enforced here: BPF LSM: no")
    scene.guards.use = lambda *_: 0
    it = scene.started()
    it.prove()
    (notice,) = it.notices()
    it.set_mode(Mode.PERMISSIVE)
    it.prove()
    told = it.told()

    assert scene.canary.asked == []
    assert (told["requested"], told["mode"], told["verified"], told["proving"]) == (
        "permissive",
        "off",
        "no",
        False,
    )
    assert told["why"] == ["nothing can be enforced here: BPF LSM: no"]
    assert notice.rule is UNVERIFIED
    assert ("why", "nothing can be enforced here: BPF LSM: no") in notice.event.records[0].fields
    it.carry_out(RULE, "quarantine", SHELL)
    assert scene.guards.under == {}
    assert it.failure is None


# Confirmed, and booted


def login(pid=7, start=2000):
    return Login(ProcessKey(pid, start * SECOND))


def test_confirmation():
    """Unconfirmed it is permissive after its time, also for who asks for more then; confirmed it stays."""
    confirm = Confirmation(1000 * SECOND, 60 * SECOND, login(1, 5))
    scene, other = _Scene(confirm=confirm), _Scene(confirm=confirm)
    it, late = scene.started(), other.started()
    scene.world.boot += 59 * SECOND
    it.confirm(Login(ProcessKey(7, 1010 * SECOND)))
    for world in (scene.world, other.world):
        world.boot = 1060 * SECOND
    it.tick()
    late.tick()

    assert (scene.guards.mode, it.told()["confirm"]) == (Mode.ENFORCE, "confirmed")
    assert (other.guards.mode, other.guards.most) == (Mode.PERMISSIVE, Mode.PERMISSIVE)
    late.set_mode(Mode.ENFORCE)
    late.prove()
    assert (late.requested, late.verified) == (Mode.ENFORCE, "permissive")
    with pytest.raises(UsageError, match="nobody confirmed it in time"):
        late.confirm(login())


def test_boots():
    """What the boots before forbid, a confirmation allows, and it is written down; without one nothing waits for it."""
    scene = _Scene(most=Mode.PERMISSIVE, why="booted twice")
    it = scene.started()
    before = (it.verified, it.told()["why"])
    it.confirm(login())
    it.prove()

    assert before == ("permissive", ["booted twice"])
    assert (it.verified, it.told()["why"], scene.world.forgiven) == ("enforce", [], 1)
    with pytest.raises(UsageError, match="nothing waits to be confirmed"):
        it.confirm(login())


def test_boots_unwritable():
    """That it can't be written down is told, and counts no less now."""
    scene = _Scene(most=Mode.PERMISSIVE, why="booted twice")
    scene.world.unforgiving = True
    it = scene.started()
    it.confirm(login())

    assert scene.guards.mode is Mode.ENFORCE
    assert scene.has_said("can't be written: the next start will be permissive once more")


# Modes of rules, entries and control groups


@pytest.mark.parametrize("name", ["secret", "entry:secret"])
def test_entry_mode(name):
    """An entry's mode, by its id as the file or as `status` has it."""
    scene = _Scene()
    it = scene.started()
    it.set_rule_mode(name, Mode.PERMISSIVE)

    assert it.told()["modes"] == {"entry:secret": "permissive"}
    assert scene.guards.used[-1].rules[0].mode is Mode.PERMISSIVE
    assert it.is_due()


@pytest.mark.parametrize("name", ["r", "shadow", "f"])
@pytest.mark.parametrize("named", ["r", "shadow", "f"])
def test_rule_mode(named, name):
    """A rule's, by id, name or file; what the operator's file says by another of its names doesn't outdo it."""
    text = f"modes: {{{named}: enforce}}"
    scene = _Scene(text, [rule("r", "shadow", "rules/f.yml"), rule("other", "", "rules/f.yml")])
    it = scene.started()
    it.set_rule_mode(name, Mode.PERMISSIVE)
    modes = {one.id: one.mode for one in scene.guards.used[-1].rules}

    assert modes["r"] is Mode.PERMISSIVE
    assert modes["other"] is (Mode.PERMISSIVE if name == "f" else Mode.ENFORCE if named == "f" else None)


def test_rule_mode_of_nobody():
    """There must be such a rule; nothing has changed then."""
    scene = _Scene(rules=[rule()])
    it = scene.started()
    with pytest.raises(RuleError, match="no rule 'nosuch' is loaded"):
        it.set_rule_mode("nosuch", Mode.ENFORCE)

    assert (it.verified, len(scene.guards.used), it.told()["modes"]) == ("enforce", 1, {})


def test_cgroup_mode():
    """A control group's must be there; one that comes again with another number has its mode within a second."""
    scene = _Scene()
    scene.world.groups = {"/a": (5,)}
    it = scene.started()
    it.set_cgroup_mode("/a", Mode.PERMISSIVE)
    with pytest.raises(UsageError, match="no control group '/b'"):
        it.set_cgroup_mode("/b", Mode.ENFORCE)
    it.tick()
    scene.world.groups = {"/a": (6,)}
    it.tick()
    scene.world.groups = {}
    it.tick()
    it.tick()

    assert scene.guards.cgroups == [{}, {5: Mode.PERMISSIVE}, {6: Mode.PERMISSIVE}, {}]
    assert it.told()["modes"] == {"/a": "permissive"}
    assert sum("there is no control group /a" in said for said in scene.said) == 1


# All or nothing

OTHER = """
cgroups: {/a: enforce}
never: {add: [/usr/bin/sh]}
entries: [{id: other, deny: [kexec]}]
"""


@pytest.mark.parametrize("fails", ["use", "spare", "cgroups", "compile"])
def test_change_fails(fails):
    """Whatever the kernel refuses: policy, never-list, control groups and the operator's file stay as they were."""
    scene = _Scene(f"cgroups: {{/b: permissive}}\nnever: {{add: [/usr/sbin/nginx]}}\n{ONE}")
    scene.world.groups = {"/a": (5,), "/b": (6,)}
    it = scene.started()
    before, policies = it.told(), it.policies.rule_of(1, 0)
    if fails == "compile":
        scene.world.compiling = lambda: (_ for _ in ()).throw(RuleError("wrong"))
    for _ in range(9):  # however often: what was refused doesn't push out what is in force
        scene.guards.fails = Counter([fails])
        with pytest.raises((HostError, RuleError)):
            it.change([], settings(OTHER))

    assert it.told() == before
    assert scene.guards.spared[-1] == ["/usr/sbin/nginx"]
    assert scene.guards.cgroups[-1] == {6: Mode.PERMISSIVE}
    assert it.settings.entries[0].id == "secret"
    assert it.policies.rule_of(1, 0) == policies == ("entry:secret", "secret")
    assert it.verified == "enforce"


def test_change():
    """Policy, never-list, control groups, the file: those of now. Meanwhile nobody is denied who is spared by either."""
    scene = _Scene(f"cgroups: {{/b: permissive}}\nnever: {{add: [/usr/sbin/nginx]}}\n{ONE}")
    scene.world.groups = {"/a": (5,), "/b": (6,)}
    it = scene.started()
    it.set_cgroup_mode("/b", Mode.ENFORCE)
    it.change([], settings(OTHER))

    assert scene.guards.spared == [["/usr/sbin/nginx"], ["/usr/bin/sh", "/usr/sbin/nginx"], ["/usr/bin/sh"]]
    assert scene.guards.cgroups[-1] == {5: Mode.ENFORCE}
    assert [one.id for one in scene.guards.used[-1].rules] == ["other"]
    assert it.told()["modes"] == {"/a": "enforce"}
    assert it.policies.rule_of(scene.guards.epoch, 0)[0] == "entry:other"
    assert (it.verified, it.is_due(), it.due.is_set()) == ("no", True, True)


def test_decides_and_isnt_whole():
    """A policy that the kernel has, and that knows nobody who runs, is none to go on with."""
    scene = _Scene()
    it = scene.started()
    scene.guards.fails = Counter(["name"])
    it.change([], settings(TWO))

    assert "a policy is in force, and not whole" in it.failure.what
    assert scene.guards.mode is Mode.OFF
    assert len(it.told()["policy"]) == 6
    assert it.told()["policy"]["entries"] == 2


def test_missing_is_told_once():
    """Files, executables and hooks that aren't there, when they are first spoken of."""
    text = "never: {add: [/no/where]}\nentries: [{id: gone, deny: [read], file: {is: [/nothing]}}]"
    scene = _Scene(text)
    scene.guards.lacks = {OPEN}
    it = scene.started(proven=False)
    for _ in range(2):
        it.change([], settings(text))

    assert sorted(said.partition(": ")[2] or said for said in scene.said) == [
        "/no/where isn't there",
        "/nothing isn't there: entry gone speaks of it once the policy is loaded anew",
        "lacking",
    ]
    assert it.told()["missing"] == {"file_open": "lacking"}


# The breaker


def services(count=LEAST):
    """Return established services that have nothing to do with each other."""
    return [
        Process(ProcessKey(100 + n, 100 + n), exe=f"/usr/sbin/d{n}", parent=INIT, uid=1000 + n)
        for n in range(count)
    ]


def tripped(scene, it, identity="entry:secret", **fields):
    """Have a rule deny unrelated services, ten seconds after now."""
    at = scene.world.now_ns() + 10 * SECOND
    it.denied([replace(denial(one, rule=identity, **fields), time_ns=at) for one in scene.world.running])


def tripping(text=ONE, **options):
    scene = _Scene(text, **options)
    scene.world.running = services()
    return scene


def test_breaker():
    """A rule that hits too many is permissive with the next tick, which is written down; denials go on to be counted."""
    scene = tripping()
    it = scene.started()
    kept = []
    it.keep = kept.extend
    tripped(scene, it)
    before = len(scene.guards.used)
    it.tick()

    assert (before, len(scene.guards.used), len(kept)) == (1, 2, LEAST)
    assert [one.taken_back for one in scene.guards.used[-1].rules] == [True]
    assert it.told()["taken_back"] == ["entry:secret"]
    assert scene.has_said("BREAKER: rule ")
    assert scene.world.kept[-1]["entry:secret"].taken_back
    it.tick()
    assert len(scene.guards.used) == 2


def test_breaker_during_a_change():
    """What is taken back while another policy is compiled is in that one, too; neither walk nor heartbeat wait for it."""
    scene = tripping()
    it = scene.started()
    beats = []

    def meanwhile():
        walking = threading.Thread(target=lambda: (tripped(scene, it), it.tick()))
        walking.start()
        walking.join(10)
        beats.append((walking.is_alive(), scene.guards.beats, len(scene.guards.used)))

    scene.world.compiling = meanwhile
    it.change([], settings(TWO))

    assert beats == [(False, 1, 1)]
    assert {one.id: one.taken_back for one in scene.guards.used[-1].rules} == {"secret": True, "kexec": False}
    it.tick()
    assert scene.has_said("BREAKER")


def test_taken_back_over_restart_and_modes():
    """It stays so over a restart, and whatever mode the host has; until the rule changes, or somebody says otherwise."""
    scene = tripping()
    it = scene.started()
    tripped(scene, it)
    it.tick()
    it.set_mode(Mode.PERMISSIVE)
    it.set_mode(Mode.ENFORCE)
    it.change([], settings(TWO))
    same = it.told()["taken_back"]
    again = _Scene()
    again.world.known = scene.world.kept[-1]
    later = again.started()
    restarted = [one.taken_back for one in again.guards.used[-1].rules]
    it.change([], settings(ONE.replace("read", "write")))
    later.set_rule_mode("secret", Mode.ENFORCE)

    assert same == ["entry:secret"]
    assert restarted == [True]
    assert it.told()["taken_back"] == []
    assert [one.taken_back for one in scene.guards.used[-1].rules] == [False]
    assert later.told()["taken_back"] == []
    assert [one.taken_back for one in again.guards.used[-1].rules] == [False]


def test_another_chance():
    """The same mode once more, said for the rule, is another chance."""
    scene = tripping(ONE.replace("deny", "mode: enforce, deny"))
    it = scene.started()
    tripped(scene, it)
    it.tick()
    back = it.told()["taken_back"]
    scene.world.boot += SECOND
    it.set_rule_mode("secret", Mode.ENFORCE)
    chance = it.told()["taken_back"]
    first, *others = scene.world.running
    scene.world.running = [first]
    tripped(scene, it)
    one = it.told()["taken_back"]
    scene.world.running = others
    tripped(scene, it)

    assert (back, chance, one) == (["entry:secret"], [], [])
    assert [one.taken_back for one in scene.guards.used[-1].rules] == [False]
    assert it.told()["taken_back"] == ["entry:secret"]


@pytest.mark.parametrize(
    "enforced",
    [
        lambda it: it.set_mode(Mode.ENFORCE),
        lambda it: it.set_rule_mode("secret", Mode.ENFORCE),
        lambda it: it.set_cgroup_mode("/a", Mode.ENFORCE),
    ],
)
def test_breaker_counts_from_enforcement(enforced):
    """A rule that was permissive for long is watched from when it is enforced: by the host's mode, its own, a control group's."""
    scene = tripping(mode=Mode.PERMISSIVE)
    scene.world.groups = {"/a": (5,)}
    it = scene.started()
    scene.world.boot += 2 * WITHIN_NS
    it.tick()
    tripped(scene, it)
    late = it.told()["taken_back"]
    enforced(it)
    tripped(scene, it)
    it.tick()

    assert late == []
    assert it.told()["taken_back"] == ["entry:secret"]


def test_breaker_after_restart():
    """A restart is no change, and the time since the last one goes on to run."""
    scene = tripping()
    it = scene.started()
    it.tick()
    again = tripping()
    again.world.known = scene.world.kept[-1]
    again.world.boot += 60 * SECOND
    soon = again.started()
    tripped(again, soon)
    later = tripping()
    later.world.known = scene.world.kept[-1]
    later.world.boot += 2 * WITHIN_NS
    late = later.started()
    tripped(later, late)

    assert soon.told()["taken_back"] == ["entry:secret"]
    assert late.told()["taken_back"] == []
    late.tick()
    assert later.world.kept == []


@pytest.mark.parametrize("name", ["r", "shadow", "f"])
def test_pinned(name):
    """A pinned rule is never taken back, by whatever name it is pinned; a list that was loaded anew counts."""
    rules = [rule("r", "shadow", "rules/f.yml")]
    scene = tripping("entries: []", rules=rules)
    it = scene.started()
    it.change(rules, settings(f"pinned: [{name}]"))
    tripped(scene, it, "r")
    pinned = it.told()["taken_back"]
    it.change(rules, settings("entries: []"))
    tripped(scene, it, "r")

    assert pinned == []
    assert it.told()["taken_back"] == ["r"]


def test_unkept():
    """A store that can't be written ends nothing: told once, and counted; the breaker has them all the same."""
    scene = tripping()
    it = scene.started()

    def full(_):
        raise InputError("denials can't be stored: disk is full")

    it.keep = full
    tripped(scene, it)
    it.denied([denial()])
    it.denied([])

    assert it.told()["counters"]["denials_unkept"] == LEAST + 1
    assert sum("denials can't be counted" in said for said in scene.said) == 1
    assert it.told()["taken_back"] == ["entry:secret"]


# Verdicts on processes


def test_sentence():
    """A lineage is under it: who is there, and who is born at that moment, of whom we hear a little later; nobody else."""
    scene = _Scene()
    it = scene.started()
    it.carry_out(RULE, "quarantine", SHELL)
    now = set(scene.guards.under)
    late, other = child(CAT, 77, "/bin/late"), child(HTTPD, 78, "/bin/other")
    scene.world.running += [late, other]
    it.tick()
    soon = set(scene.guards.under)
    scene.world.boot += CATCH_UP_NS
    scene.world.running.append(ID)
    it.tick()

    assert now == {SHELL.key, CAT.key}
    assert soon == set(scene.guards.under) == {SHELL.key, CAT.key, late.key}
    assert scene.guards.under[late.key] == (SentenceKind.QUARANTINE, 1600 * SECOND, 1)
    assert it.policies.rule_of(None, 1) == ("web", "Web shell")
    assert scene.has_said(
        "quarantine for 600 s, enforce: process 11 (/bin/sh) and 1 below it, by rule 'Web shell'"
    )


def test_sentence_once():
    """A rule that matches again doesn't say it again, nor of who was born below; another kind does, and so does a later one."""
    scene = _Scene()
    it = scene.started()
    for action in ("alert", "deny", "quarantine", "quarantine", "kill"):
        it.carry_out(RULE, action, SHELL)
    it.carry_out(RULE, "kill", child(CAT, 77, "/bin/late"))
    often = it.counts["sentences"]
    scene.world.boot += 301 * SECOND
    it.carry_out(RULE, "quarantine", SHELL)

    assert (often, it.counts["sentences"]) == (2, 3)


def test_sentence_without_room():
    """That there is no room is told, and tried again by the next revision."""
    scene = _Scene()
    it = scene.started()
    scene.guards.fails = Counter(sentence=2)
    it.carry_out(RULE, "kill", SHELL)
    none = dict(scene.guards.under)
    scene.guards.fails = Counter([CAT.key])
    it.carry_out(RULE, "kill", SHELL)

    assert none == {}
    assert set(scene.guards.under) == {SHELL.key}
    assert it.told()["counters"]["sentences_failed"] == 3
    assert [said for said in scene.said if "can't be carried out" in said] == [
        "kill can't be carried out on 2 of 2 processes: no room in the kernel",
        "kill can't be carried out on 1 of 2 processes: no room in the kernel",
    ]


def test_pid_reused():
    """A verdict is on a process, not on its number: whoever has that since isn't below it."""
    scene = _Scene()
    it = scene.started()
    other = Process(ProcessKey(SHELL.key.pid, 999), exe="/bin/new", parent=INIT)
    scene.world.running = [other, child(other, 80, "/bin/its")]
    it.carry_out(RULE, "kill", SHELL)

    assert set(scene.guards.under) == {SHELL.key}


def test_lift():
    """A process and all below it are free again; the others stay."""
    scene = _Scene()
    it = scene.started()
    it.carry_out(RULE, "quarantine", SHELL)
    it.carry_out(RULE, "quarantine", JOB)
    lifted = it.lift(SHELL.key.pid)

    assert lifted == 2
    assert set(scene.guards.under) == {JOB.key}
    assert it.lift(4711) == 0


def test_release():
    """Nothing is denied, nobody is under a verdict; a mode that is asked for again is proven, and verdicts come anew."""
    scene = _Scene()
    it = scene.started()
    it.carry_out(RULE, "quarantine", SHELL)
    it.release()
    released = (scene.guards.released, dict(scene.guards.under), it.verified, it.told()["mode"])
    it.set_mode(Mode.ENFORCE)
    it.carry_out(RULE, "quarantine", SHELL)
    it.prove()

    assert released == (True, {}, "no", "enforce")
    assert (scene.guards.released, it.verified) == (False, "enforce")
    assert set(scene.guards.under) == {SHELL.key, CAT.key}


def test_spares_helper():
    """The canary's helper is spared while a policy is exchanged or not; that it can't be is said."""
    scene = _Scene("never: {add: [/usr/sbin/nginx]}\n" + ONE)
    it = scene.started()
    it.spare_helper()
    scene.guards.fails = Counter(["spare"])

    assert scene.guards.spared == [["/usr/sbin/nginx"]] * 2
    with pytest.raises(HostError):
        it.spare_helper()


def test_match_of_verdict():
    """A denial by a verdict is its rule's, also after another policy; one of an earlier run says so."""
    scene = _Scene()
    it = scene.started()
    it.carry_out(RULE, "quarantine", SHELL)
    it.change([], settings(TWO))
    said = [
        it.match(denial(rule=identity, title=title, sentence="quarantine", outcome=Outcome.DENIED))
        for identity, title in (it.policies.rule_of(None, 1), it.policies.rule_of(None, 0))
    ]

    assert said[0].rule is RULE
    assert said[1].rule.title == "A verdict of an earlier run of ksentinel"


def test_told():
    """What `status` says fits what it can read."""
    scene = _Scene(on_exit=OnExit.HOLD)
    told = scene.started().told()

    assert set(told) == set(EnforcementStatus.__dataclass_fields__)
    assert (told["on_exit"], told["proven_ns"], told["attached"]) == ("hold", 10**9, ["file_open"])
