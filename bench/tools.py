# SPDX-License-Identifier: Apache-2.0
"""
What the benchmarks are made of: tools found on PATH, or Debian's packages unpacked under ``build/`` and not installed.

Small programs of our own are compiled by clang.
"""

import os
import platform
import re
import shutil
from pathlib import Path

from children import PATH, AbsentError, BenchError, Tool, run

NATIVE = Path(__file__).parent / "native"
_FOLDERS = ("usr/bin", "usr/sbin", "sbin", "bin")
_VERSIONS = {"auditctl": "-v", "auditd": None, "lighttpd": "-v", "ab": "-V", "redis-benchmark": None}
_CPU = {"x86_64": "x86", "aarch64": "arm64"}


class Tools:
    """
    Finds programs by name.

    Parameters
    ----------
    build
        Packages are unpacked in it, once.
    """

    def __init__(self, build: Path) -> None:
        self.build = build
        self.used: dict[str, str] = {}

    def find(self, name: str, package: str) -> Tool:
        """Return a program; raises AbsentError with what would bring it."""
        if there := shutil.which(name, path=PATH):
            tool = Tool(Path(there))
        else:
            root = self._unpacked(package)
            inside = [root / folder / name for folder in _FOLDERS if (root / folder / name).is_file()]
            if not inside:
                raise AbsentError(f"Debian's package {package} has no {name}")
            libraries = tuple(path for path in root.glob("**/lib/*-linux-gnu") if path.is_dir())
            tool = Tool(inside[0], libraries)
        version = self._version(name, tool)
        if version:
            self.used[name] = version
        return Tool(tool.path, tool.libraries, version)

    def share(self, package: str) -> Path:
        """Return the root that a package's other files are under: the host's, if it is installed."""
        root = self.build / "packages" / package
        return root if root.is_dir() else Path("/")

    def compiled(self, source: str, *options: str, bpf: bool = False) -> Path:
        """Compile ``bench/native/SOURCE`` and return the program, or the BPF object."""
        clang = shutil.which("clang", path=PATH)
        if clang is None:
            raise AbsentError("clang is needed to compile the loads: apt install clang libbpf-dev")
        self.used.setdefault("clang", _number(run([clang, "--version"])))
        target = self.build / source.removesuffix(".c")
        target.parent.mkdir(parents=True, exist_ok=True)
        machine = platform.machine()
        for_bpf = ["-g", "-target", "bpf", f"-D__TARGET_ARCH_{_CPU.get(machine, machine)}"]
        include = [f"-I/usr/include/{machine}-linux-gnu"]
        run(
            [
                clang,
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                *([*for_bpf, *include, "-c"] if bpf else []),
                *options,
                NATIVE / source,
                "-o",
                target,
            ]
        )
        return target

    def compiler(self) -> Path:
        """Return the C compiler that the workload uses: the host's own, or clang."""
        found = shutil.which("gcc", path=PATH) or shutil.which("clang", path=PATH)
        if found is None:
            raise AbsentError("no C compiler here: apt install gcc (or clang)")
        self.used.setdefault(Path(found).name, _number(run([found, "--version"])))
        return Path(found)

    def _unpacked(self, package: str) -> Path:
        root = self.build / "packages" / package
        if root.is_dir():
            return root
        apt, dpkg = (shutil.which(name, path=PATH) for name in ("apt-get", "dpkg"))
        if apt is None or dpkg is None:
            raise AbsentError(f"not on PATH, and no apt-get here to fetch it: install {package}")
        debs, partial = self.build / "debs" / package, self.build / "packages" / f"{package}.partial"
        debs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # As root apt would drop its rights, and could not write here.
        options = ["-o", "APT::Sandbox::User="] if os.geteuid() == 0 else []
        try:
            wanted = to_install(run([apt, "-s", "--no-install-recommends", "install", package])) or [package]
            run([apt, *options, "-qq", "download", *wanted], seconds=600, folder=debs)
        except BenchError as error:
            raise AbsentError(
                f"could not be fetched ({error}): apt-get update, or apt install {package}"
            ) from None
        for deb in sorted(debs.glob("*.deb")):
            run([dpkg, "-x", deb, partial])
        partial.rename(root)
        return root

    def _version(self, name: str, tool: Tool) -> str:
        option = _VERSIONS.get(name, "--version")
        return "" if option is None else _number(run([tool.path, option], tool.environment()))


def to_install(plan: str) -> list[str]:
    r"""
    Return the packages that ``apt-get -s install`` would add; those it would only bring up to date are there already.

    Examples
    --------
    >>> to_install(
    ...     "Inst libwrap0 (7.6.q-32 Debian:12 [amd64])\nInst libc6 [2.36-1] (2.36-2 Debian:12 [amd64])\n"
    ... )
    ['libwrap0']
    """
    return re.findall(r"^Inst (\S+) \(", plan, re.MULTILINE)


def _number(text: str) -> str:
    found = re.search(r"\d+(?:\.\d+)+", text)
    return found[0] if found else text.strip().splitlines()[0][:40]
