# SPDX-License-Identifier: Apache-2.0
"""Guards take a policy whole or not at all, in an order in which nobody is denied anything by half of one."""

import ctypes
import mmap
import os
import platform
import tempfile

import pytest
from enforce.made_up_policies import resolve
from made_up import CAT, HTTPD, INIT, SHELL

from ksentinel import host
from ksentinel.bpf import guard_abi
from ksentinel.bpf.guard_abi import Hook, Outcome, Sentence, Sentenced, SentenceKind
from ksentinel.codec import event_from_plain
from ksentinel.config import Config
from ksentinel.enforce import Mode, guards
from ksentinel.enforce.compiler import compile_policy
from ksentinel.enforce.denial import EARLIER
from ksentinel.enforce.guards import FLAGS_AT, FLAGS_OF, THEMES, Guards, program_at
from ksentinel.enforce.never import Spared
from ksentinel.enforce.settings import parse_settings
from ksentinel.errors import HostError, RuleError
from ksentinel.event import ProcessKey
from ksentinel.rules.hooks import HOOKS, seen
from ksentinel.shipped import shipped

FULL = HostError("writing a BPF map: E2BIG")
RUNNING = [INIT, HTTPD, SHELL, CAT]
NOW = 1000


def policy(*entries):
    """Return a policy of entries, without asking what it would do to a host."""
    text = f"entries: [{', '.join(entries)}]"
    return compile_policy((), parse_settings(text, "enforce.yml"), resolve=resolve, arch="x86_64")


READ = policy("{id: read, deny: [read], file: {under: [/etc/secret]}}")
BOTH = policy("{id: read, deny: [read], file: {under: [/etc/secret]}}", "{id: kexec, deny: [kexec]}")
KEXEC = policy("{id: kexec, deny: [kexec]}")
AT_READ, AT_KEXEC = ["on_file_open"], ["on_kernel_load_data", "on_kernel_read_file"]


class _Map:
    """A map in a dictionary."""

    def __init__(self, name, kernel):
        self.name, self.kernel, self.fd, self.values = name, kernel, len(kernel.maps) + 100, {}

    def _key(self, key):
        return bytes(ctypes.c_uint32(key) if isinstance(key, int) else key)

    def update(self, key, value, _flags=0):
        self.kernel.did("write", self.name)
        self.values[self._key(key)] = type(value).from_buffer_copy(value)
        return True

    def delete(self, key):
        self.values.pop(self._key(key), None)

    def lookup(self, key, _kind):
        return self.values.get(self._key(key))

    def keys(self, kind):
        return [kind.from_buffer_copy(key) for key in self.values]

    def lookup_percpu(self, _key, kind):
        one = kind()
        one.outcomes[Outcome.DENIED], one.no_room = 3, 1
        return [one, one]


class _Kernel:
    """What guards are put into: maps, programs, pins; *fails* is what it refuses the next time, (what, which)."""

    def __init__(self):
        self.done, self.maps, self.fails = [], {}, []
        self.switches = tempfile.TemporaryFile()  # noqa: SIM115 -- for as long as the test
        self.switches.truncate(mmap.PAGESIZE)

    def did(self, what, which=""):
        if (what, which) in self.fails:
            self.fails.remove((what, which))
            raise FULL
        if not self.done or self.done[-1] != (what, which):
            self.done.append((what, which))

    def map(self, name):
        if name not in self.maps:
            self.maps[name] = _Map(name, self)
            if name == "switches":
                self.maps[name].fd = self.switches.fileno()
        return self.maps[name]

    def iterator(self, _program):
        return 5

    def epochs(self):
        """Return the epochs that anything in the maps is of."""
        kinds = {
            "name_sets": guard_abi.NameKey,
            "beginnings": guard_abi.Beginning,
            "networks": guard_abi.Network,
            "places": guard_abi.Place,
        }
        return {key.epoch for name, kind in kinds.items() for key in self.map(name).keys(kind)}

    def in_force(self):
        """Return the policy that decides."""
        (fd,) = self.map("policies").values.values()
        (image,) = next(one for one in self.maps.values() if one.fd == fd.value).values.values()
        return image


class _Object:
    """An object of guards."""

    attached: list[str]

    def __init__(self, kernel, path):
        self.kernel, self.name, self.left_out = kernel, path.name, []

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.kernel.done.append(("close", self.name))

    def leave_out(self, program):
        self.left_out.append(program)

    def share(self, other):
        assert other is self.kernel

    def load(self):
        self.kernel.did("load", self.name)

    def attach(self, program):
        assert program not in self.left_out
        assert program not in self.attached
        self.kernel.did("attach", program)
        self.attached.append(program)

    def detach_program(self, program):
        self.kernel.done.append(("detach", program))
        self.attached.remove(program)

    def pin(self, program, path):
        self.kernel.did("pin", program)
        path.touch(exist_ok=False)


@pytest.fixture
def kernel(monkeypatch):
    """Return the kernel's side."""
    kernel = _Kernel()
    _Object.attached = []
    monkeypatch.setattr(guards, "Object", lambda path: _Object(kernel, path))
    monkeypatch.setattr(guards, "run_iterator", lambda _fd: kernel.did("name"))
    monkeypatch.setattr(guards, "wait_for_programs", lambda: kernel.did("wait"))
    yield kernel
    kernel.switches.close()


@pytest.fixture
def made(kernel, tmp_path):
    """Return guards that stand nowhere yet."""
    with Guards(
        kernel, tmp_path, 7, "x86_64", 42, clock_ns=lambda: NOW, has_hook=lambda hook: hook != "path_truncate"
    ) as made:
        kernel.done.clear()
        yield made


def test_begins(kernel, made):
    """At first nothing is enforced, and the kernel knows calls, flags and us."""
    assert (made.mode, made.most, made.released, made.attached, made.epoch) == (Mode.OFF, None, False, (), 0)
    assert len(kernel.map("calls").values) > 60
    assert len(kernel.map("flag_arguments").values) >= len(FLAGS_AT)
    switch = guard_abi.Switch.from_buffer_copy(os.pread(kernel.switches.fileno(), 256, 0))
    assert (switch.own_tgid, switch.heartbeat_ns, switch.denials_a_second) == (42, NOW, 100)


def test_order(kernel, made):
    """Names and files first, then guards, then the policy, at once; then who runs is named, and only then old things go."""
    made.use(READ, RUNNING)
    kernel.done.clear()
    made.use(KEXEC, RUNNING)
    order = [one for one in kernel.done if one[1] not in {"name_sets", "beginnings", "networks", "places"}]

    assert order == [
        ("load", "privilege.bpf.o"),
        ("attach", AT_KEXEC[0]),
        ("attach", AT_KEXEC[1]),
        ("write", "introduced"),
        ("wait", ""),
        ("write", "first_policy"),
        ("write", "policies"),
        ("name", ""),
        ("wait", ""),
        ("detach", AT_READ[0]),
    ]
    assert (made.epoch, made.following, made.attached) == (
        2,
        3,
        (Hook.KERNEL_LOAD_DATA, Hook.KERNEL_READ_FILE),
    )
    assert kernel.in_force().epoch == 2
    assert kernel.epochs() <= {2}
    assert {one.epoch for one in kernel.map("introduced").values.values()} == {2}


def test_slots(kernel, made):
    """A policy is written where none is in force, also after one that was refused."""
    slots = []
    for refused in (False, True, False, True, True, False):
        kernel.done.clear()
        kernel.fails = [("write", "policies")] * refused
        if refused:
            with pytest.raises(HostError):
                made.use(READ, RUNNING)
        else:
            made.use(READ, RUNNING)
        slots.append(next(which for what, which in kernel.done if which.endswith("_policy")))

    assert slots == [f"{which}_policy" for which in "second first first second second second".split()]
    assert kernel.in_force().epoch == made.epoch == 6


REFUSALS = [
    (("write", "places"), RuleError),
    (("load", "privilege.bpf.o"), HostError),
    (("attach", AT_KEXEC[1]), HostError),
    (("pin", AT_KEXEC[0]), HostError),
    (("wait", ""), HostError),
    (("write", "first_policy"), HostError),
    (("write", "policies"), HostError),
]


@pytest.mark.parametrize(
    ("fails", "error"), REFUSALS, ids=lambda one: "-".join(one) if isinstance(one, tuple) else ""
)
def test_refused(kernel, made, tmp_path, fails, error):
    """Wherever the kernel refuses: what decided decides, guards stand where they stood, and nothing is left of the other."""
    made.use(READ, RUNNING)
    made._pins = tmp_path
    (tmp_path / AT_READ[0]).touch()
    kernel.fails = [fails]
    with pytest.raises(error):
        made.use(BOTH, RUNNING)
    stood = (made.epoch, made.attached, list(_Object.attached), kernel.in_force().epoch, kernel.epochs())
    pins = {one.name for one in tmp_path.iterdir()}
    made.use(BOTH, RUNNING)

    assert stood == (1, (Hook.FILE_OPEN,), AT_READ, 1, {1})
    assert pins == set(AT_READ)
    assert made.epoch == 3
    assert {program_at(hook) for hook in made.attached} == {*AT_READ, *AT_KEXEC}


def test_named_by_half(kernel, made):
    """Where naming fails the policy decides already, and its epoch says so."""
    made.use(READ, RUNNING)
    kernel.fails = [("name", "")]
    with pytest.raises(HostError):
        made.use(BOTH, RUNNING)

    assert made.epoch == kernel.in_force().epoch == 2


def test_missing(made):
    """Hooks that the kernel lacks, as far as the policy in force asks for them."""
    made.use(policy("{id: w, deny: [write], file: {under: [/etc/secret]}}"), RUNNING)
    lacking = (dict(made.missing), made.attached)
    made.use(KEXEC, RUNNING)

    assert lacking == ({Hook.PATH_TRUNCATE: "this kernel doesn't have it"}, (Hook.FILE_OPEN,))
    assert made.missing == {}


def test_pins(kernel, made, tmp_path):
    """A guard that goes takes its pin along; when it comes again it is attached once, and pinned."""
    kernel.pin = lambda _program, path: path.touch()
    pins = tmp_path / "pins"
    pins.mkdir()
    made.use(BOTH, RUNNING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "pin", lambda _fd, path: path.touch())
        made.pin(pins, links=True)
    always = {"switches", "sentences", "processes", "on_exit", "on_fork", "on_exec"}
    first = {one.name for one in pins.iterdir()} - always
    made.use(READ, RUNNING)
    second = {one.name for one in pins.iterdir()} - always
    made.use(BOTH, RUNNING)

    assert (first, second) == ({*AT_READ, *AT_KEXEC}, set(AT_READ))
    assert {one.name for one in pins.iterdir()} == {*always, *AT_READ, *AT_KEXEC}
    assert sorted(_Object.attached) == sorted([*AT_READ, *AT_KEXEC])


def test_switches(made):
    """Modes, the cap, release: what is stored is what is read."""
    for mode in Mode:
        made.mode = made.most = mode
        assert (made.mode, made.most) == (mode, mode)
    made.most = None
    made.release(on=True)

    assert (made.most, made.released) == (None, True)
    made.release(on=False)
    assert not made.released


def spared(pid):
    """Return somebody who is spared."""
    return Spared("somebody", "so", process=ProcessKey(pid, 10_000_000))


def test_spare(kernel, made):
    """Who is no longer named isn't spared; nor is, later, who was told before the map was full."""
    made.spare([spared(1), spared(2)])
    made.spare([spared(2), spared(3)])
    now = set(kernel.map("spared").values)
    kernel.map("spared").update = _refuse_after(kernel.map("spared").update, 1)
    with pytest.raises(HostError):
        made.spare([spared(4), spared(5)])
    del kernel.map("spared").update
    made.spare([spared(2)])

    assert now == {bytes(spared(pid).key()) for pid in (2, 3)}
    assert set(kernel.map("spared").values) == {bytes(spared(2).key())}


def _refuse_after(update, count):
    left = iter(range(count))

    def limited(*arguments):
        if next(left, None) is None:
            raise FULL
        return update(*arguments)

    return limited


def test_cgroup_modes(kernel, made):
    """All that are told, and no others; or, if there is no room, those before."""
    made.cgroup_modes({1: Mode.ENFORCE, 2: Mode.PERMISSIVE})
    table = kernel.map("cgroup_modes")
    before = {key: value.value for key, value in table.values.items()}
    allowed = iter([True, False, True, True, True])

    def update(*arguments, write=table.update):
        if not next(allowed):
            raise FULL
        return write(*arguments)

    table.update = update
    with pytest.raises(HostError):
        made.cgroup_modes({1: Mode.OFF, 3: Mode.OFF})
    refused = {key: value.value for key, value in table.values.items()}
    del table.update
    made.cgroup_modes({3: Mode.OFF})

    assert refused == before
    assert [value.value for value in table.values.values()] == [Mode.OFF.rank]


def test_sentences(kernel, made):
    """Who is under one, until it ends; the switch says whether anybody is."""

    def any_() -> bool:
        return bool(guard_abi.Switch.from_buffer_copy(os.pread(kernel.switches.fileno(), 256, 0)).sentences)

    one, other = ProcessKey(5, 20_000_000), ProcessKey(6, 30_000_000)
    none = any_()
    made.sentence(one, SentenceKind.KILL, NOW + 1, 3)
    made.sentence(other, SentenceKind.QUARANTINE, NOW, 4)
    some = any_(), {key: (value.rule, value.kind) for key, value in made.sentences().items()}
    made.lift(one)

    assert (none, some) == (False, (True, {one: (3, SentenceKind.KILL)}))
    assert (made.sentences(), any_()) == ({}, False)


def test_take_over(kernel, made):
    """Verdicts of guards before these stay; whose rules they are by this run can't know."""

    class Before:
        def sentences(self):
            return {ProcessKey(5, 20_000_000): Sentence(until_ns=NOW + 1, rule=3, kind=1)}

        def scores(self, _pids):
            return ()

    made.take_over(Before(), [])
    (kept,) = made.sentences().values()

    assert (kept.rule, kept.until_ns) == (EARLIER, NOW + 1)


def test_counters(made):
    """Of all CPUs, outcomes by their names."""
    told = made.counters()

    assert (told["denied"], told["no_room"], told["would_deny"]) == (6, 2, 0)
    assert "sequence" not in told


def test_themes():
    """Each hook's guard is in one object."""
    hooks = [hook for those in THEMES.values() for hook in those]

    assert sorted(hooks) == sorted(hook for hook in Hook if hook is not Hook.NONE)


@pytest.mark.root
@pytest.mark.bpf
def test_real_maps():
    """The kernel's own maps take policies, one after the other, names of who runs, modes and verdicts, also without any guard."""
    with (
        host.live(Config(), lambda: False) as live,
        Guards(
            live.collector.object,
            shipped("lsm_bpf"),
            live.collector.path_seed,
            platform.machine(),
            os.getpid(),
            has_hook=lambda _: False,
        ) as made,
    ):
        running = list(live.normalizer.table)
        for one in (READ, BOTH, READ):
            made.use(one, running)
        places = live.collector.object.map("places").keys(guard_abi.Place)
        me = next(one.key for one in running if one.key.pid == os.getpid())
        made.spare([Spared("me", "so", process=me)])
        made.cgroup_modes({1: Mode.ENFORCE})
        made.sentence(ProcessKey(1 << 22, 0), SentenceKind.QUARANTINE, 1 << 62, 1)
        under = made.sentences()
        made.lift(ProcessKey(1 << 22, 0))

        assert (made.epoch, made.attached, set(made.missing)) == (3, (), set(READ.hooks))
        assert {one.epoch for one in places} == {3}
        assert set(under) == {ProcessKey(1 << 22, 0)}
        assert made.sentences() == {}
        assert made.counters()["denied"] == 0
        assert live.collector.object.map("sentences").keys(Sentenced) == []


# --- what they are told at the start, held against what rules are told of the same calls ---

TOLD = {"file_open", "sb_mount"}
"""Hooks that are told the flags by the kernel."""
WITHOUT = {"openat2", "mknod", "mknodat", "link", "unlink", "rmdir"}
"""Calls that have none, or have them in memory that anybody can change."""


def test_flags():
    """At a hook that isn't told flags, each call that has some is known by where they stand, or by what they always are."""
    asked = {call for hook in HOOKS if "flags" in hook.sees and hook.name not in TOLD for call in hook.calls}

    assert asked - WITHOUT == {*FLAGS_AT, *FLAGS_OF} - {"umount2"}


def test_creat():
    """What creat always means is what its event says."""
    event = event_from_plain({"event": "syscall", "syscall": "creat", "paths": ["/etc/x"]})

    assert {at.numbers["flags"] for at in seen(event)} == {FLAGS_OF["creat"]}
