# SPDX-License-Identifier: Apache-2.0
"""What is installed works without the clone."""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from small_host import make_windows

import ksentinel
from ksentinel.detectors.artifact import load
from ksentinel.recording import Writer

ROOT = Path(__file__).parent.parent
WEBSHELL = Path(__file__).parent / "data" / "audit" / "webshell.log"

pytestmark = pytest.mark.slow


def pip(*arguments):
    ran = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel; hatchling is among what the tests need, so no index is asked."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel, and nothing else, into an environment of its own that borrows this one's dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    venv = [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", folder]
    subprocess.run(venv, check=True)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Run what was installed, far from the clone."""

    def run(name, *arguments):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        command = [str(installed / name), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=120
        )

    return run


def files(folder, pattern):
    return {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_modules(names):
    """Every module of the package, its marker for type checkers, and no tests."""
    assert {name for name in names if name.endswith(".py")} == {
        f"ksentinel/{file}" for file in files("ksentinel", "*.py")
    }
    assert "ksentinel/py.typed" in names
    assert [name for name in names if name.startswith("tests") or "/tests/" in name or "test_" in name] == []


def test_data(names):
    """BPF objects, rules with what stands beside them, tables of system calls and licences."""
    expected = {f"ksentinel/data/rules/{file}" for file in files("rules", "*.*")}
    expected |= {f"ksentinel/data/syscalls/{file}" for file in files("ksentinel/data/syscalls", "*.tsv")}
    sources = files("lsm_bpf", "*.bpf.c")
    expected |= {f"ksentinel/data/lsm_bpf/{file.removesuffix('.c')}.o" for file in sources}
    licences = {
        f"ksentinel-{ksentinel.__version__}.dist-info/licenses/LICENSES/{n}" for n in files("LICENSES", "*")
    }

    assert len(expected) > 20
    assert {
        name for name in names if name.startswith("ksentinel/data/") and not name.endswith(".md")
    } == expected
    assert {name for name in names if "/licenses/" in name} == licences
    assert {name.rpartition("/")[2] for name in licences} == {
        "Apache-2.0.txt",
        "BSD-2-Clause.txt",
        "GPL-2.0-only.txt",
    }


def test_metadata(wheel):
    """Licences of both parts as SPDX has them, and the platform, because BPF objects are of one architecture."""
    info = f"ksentinel-{ksentinel.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        about = Parser().parsestr(archive.read(f"{info}/WHEEL").decode())

    assert metadata["License-Expression"] == "Apache-2.0 AND (BSD-2-Clause OR GPL-2.0-only)"
    assert (metadata["Version"], metadata["Requires-Python"]) == (ksentinel.__version__, ">=3.11")
    assert (about["Tag"], about["Root-Is-Purelib"]) == (f"py3-none-linux_{platform.machine()}", "false")


def test_bpf_object_is_this_source(wheel):
    """What is shipped is an ELF object for BPF, the one that was compiled here."""
    with zipfile.ZipFile(wheel) as archive:
        shipped = archive.read("ksentinel/data/lsm_bpf/trace.bpf.o")

    assert (shipped[:4], int.from_bytes(shipped[18:20], "little")) == (b"\x7fELF", 247)
    assert shipped == (ROOT / "lsm_bpf" / "trace.bpf.o").read_bytes()


def test_rules_pass(run):
    """The rules that are installed pass on the events installed beside them."""
    ran = run("ksentinel", "rules", "test", "--json")

    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == len(files("rules", "*/*.yml"))


def test_runs_from_the_wheel(run, installed):
    """The modules and what ships with them are those of the wheel."""
    code = (
        "import ksentinel, ksentinel.shipped as s; print(ksentinel.__file__, s.shipped('rules'), sep='\\n')"
    )
    ran = run("python", "-c", code)

    package = (
        installed.parent
        / "lib"
        / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        / "site-packages/ksentinel"
    )
    assert ran.stdout.splitlines() == [str(package / "__init__.py"), str(package / "data" / "rules")]
    version = run("ksentinel", "--version")
    assert (version.returncode, version.stdout) == (0, f"ksentinel {ksentinel.__version__}\n")


def test_doctor(run):
    """It finds what ships with it."""
    ran = run("ksentinel", "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(ran.stdout)["checks"]}

    assert ran.returncode in {0, 1, 3}
    assert ran.stderr == ""
    assert "this installation has no" not in checks["collector"]["reason"]
    assert checks["auparse"]["ok"]


def test_replay(run):
    """The shipped rules fire."""
    ran = run("ksentinel", "replay", WEBSHELL, "--json")
    *alerts, _ = map(json.loads, ran.stdout.splitlines())

    assert (ran.returncode, ran.stderr) == (0, "")
    assert alerts[0]["title"] == "Shell started by a network service"
    assert alerts[0]["evidence"][0]["match"]["rule"]["file"].endswith(
        "ksentinel/data/rules/execution/shell_from_service.yml"
    )


def test_train(run, tmp_path):
    """A model can be trained."""
    with Writer(tmp_path / "normal.db", {"arch": platform.machine()}) as writer:
        writer.write(make_windows(60, processes=40))
    ran = run("ksentinel", "train", "normal.db", "--out", "model")

    assert (ran.returncode, ran.stderr) == (0, "")
    assert load(tmp_path / "model", arch=platform.machine(), uid=os.getuid()).arch == platform.machine()
