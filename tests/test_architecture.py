# SPDX-License-Identifier: Apache-2.0
"""The house keeps its plan: who may import whom, what no file does, and where tests stand."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ksentinel"
TESTS = ROOT / "tests"

# In the order of the walk: a room imports only rooms before it. Two steps look backwards on purpose, and so stand where
# they do: `normalize` reads the records of `sources`, and explanations are of alerts, so `explain` comes after `alert`.
ROOMS = (
    "errors printable level event syscalls codec shipped config window mounts executables contents bpf support sources overload normalize "
    "detectors rules policy verdict exceptions alert incident mutes noise offenders enforce flight search recording streams explain store sinks endpoint trail protocol "
    "control status pipeline reload actor selftest training report host commands cli"
).split()

# Clock, environment and chance: the command line hands them in, so that a replay is the same each time.
OUTSIDE = {
    "time": {
        "time", "time_ns", "monotonic", "monotonic_ns", "clock_gettime", "clock_gettime_ns", "perf_counter", "localtime",
        "gmtime", "ctime", "sleep",
    },
    "os": {"environ", "environb", "getenv", "getenvb", "urandom"},
    "datetime": {"now", "today", "utcnow"},
    "date": {"today"},
    "Path": {"home", "cwd"},
    "random": {"random", "randint", "choice", "sample", "shuffle"},
    "uuid": {"uuid1", "uuid4"},
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}

VICTIM = ROOT / "demo" / "site" / "shop.py"
"""The demonstration's web shop, with holes on purpose; it runs in a throw-away directory and is no part of the package."""

SOURCES = sorted(PACKAGE.rglob("*.py"))
CODE = [
    path
    for folder in ("ksentinel", "tests", "bench", "demo")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
CODE += sorted(ROOT.glob("*.py"))
KERNEL = sorted([*(ROOT / "lsm_bpf").glob("*.c"), *(ROOT / "lsm_bpf").glob("*.h")])


@cache
def tree(path):
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path):
    """Return how a file is called in the name of a test."""
    return str(path.relative_to(ROOT))


def room_of(path):
    """Return which room a file belongs to; None for the package's own ``__init__``."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imports(path):
    """Yield (module, line) for every module of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{named(path)}:{node.lineno} imports by dots"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def test_every_room_stands_in_the_walk():
    """No room is missing, none has gone."""
    assert sorted(ROOMS) == sorted({room for path in SOURCES if (room := room_of(path))})


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports(path):
    """A room imports only rooms before it, and itself."""
    room = room_of(path)
    allowed = {*ROOMS[: ROOMS.index(room) + 1], "__version__"} if room else set()
    used = {(m.split(".")[1], line) for m, line in imports(path) if m.startswith("ksentinel.")}

    assert sorted(f"{used_room} in line {line}" for used_room, line in used if used_room not in allowed) == []


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if room_of(p) not in {"host", "commands", "cli"}], ids=named
)
def test_nobody_looks_outside(path):
    """No room but the command line (`commands` and `host`) reads the clock or the environment, unless as a default that a test replaces."""
    looked = [
        f"{node.value.id}.{node.attr} in line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in OUTSIDE.get(node.value.id, ())
        and not is_default(path, node)
    ]
    taken = [
        f"from {node.module} import {alias.name} in line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in OUTSIDE.get(node.module or "", ())
    ]

    assert looked + taken == []


@cache
def defaults(path):
    """Return the parts of a file that are defaults of parameters: the world as an argument that tests replace."""
    return {
        part
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if default is not None
        for part in ast.walk(default)
    }


def is_default(path, node):
    """Tell whether *node* is the default of a parameter."""
    return node in defaults(path)


@pytest.mark.parametrize("path", [p for p in CODE if p != VICTIM], ids=named)
def test_nothing_runs_data(path):
    """Nothing unpickles, evaluates, starts a shell, or loads YAML that makes objects."""
    wrong = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = {(module or alias.name).split(".")[0] for alias in node.names}
            wrong += [f"{name} in line {node.lineno}" for name in names & FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in FORBIDDEN_CALLS | {
            "os.system",
            "os.popen",
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
        }:
            wrong.append(f"{called} in line {node.lineno}")
        for keyword in node.keywords:
            text = ast.unparse(keyword.value)
            # A test may make an evil model, nobody may read one.
            if (keyword.arg, text) == ("shell", "True") or (
                (keyword.arg, text) == ("allow_pickle", "True") and path in SOURCES
            ):
                wrong.append(f"{keyword.arg}={text} in line {node.lineno}")

    assert wrong == []


@pytest.mark.parametrize("path", CODE, ids=named)
def test_license_python(path):
    """Every Python file says its license first."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines()[:2] if not line.startswith("#!")]

    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"


@pytest.mark.parametrize("path", KERNEL, ids=named)
def test_license_kernel(path):
    """So does what runs in the kernel, under the license that the kernel asks for."""
    first = path.read_text(encoding="utf-8").split("\n")[0]

    assert first.strip("/* ") == "SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("test_*.py")), ids=named)
def test_mirror(path):
    """Tests stand where their module stands."""
    there = path.relative_to(TESTS)
    house = ROOT if there.parts[0] == "bench" else PACKAGE
    module = house / there.parent / there.name.removeprefix("test_")
    others = {
        "test_architecture.py",
        "test_docs.py",  # what the documentation says
        "test_wheel.py",  # what is installed
        "bpf/test_returns.py",  # what guards give back to the kernel
        "bpf/test_scoring.py",  # what the kernel, its twin and the reference agree on
        "detectors/test_contract.py",  # what all detectors keep
        "detectors/test_slow_reference.py",  # the reference itself
        "rules/test_recorded.py",  # what fires on what was really done
        "rules/test_shipped.py",  # the rules themselves
        "sources/test_gate.py",  # what the collector does with a model
        "sources/test_seen.py",  # what it sees of a workload
        "sources/test_wanted.py",  # whom it watches
    }

    assert (
        str(there) in others or there.parts[0] == "vm" or module.is_file() or module.with_suffix("").is_dir()
    )


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_empty_opening(path):
    """A module opens with the sentence a colleague would say about it."""
    assert ast.get_docstring(tree(path)) or path.name == "__init__.py"
