# SPDX-License-Identifier: Apache-2.0
"""Build hook: compiles lsm_bpf/*.bpf.c by clang and puts the objects into the wheel."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, to compile alone
    BuildHookInterface = object

ARCHES = {"x86_64": "x86", "aarch64": "arm64"}


def compile_bpf(root: Path, machine: str) -> list[Path]:
    """Compile every ``lsm_bpf/*.bpf.c`` that is older than its object; returns the objects."""
    clang = shutil.which("clang")
    if clang is None:
        message = "clang is needed to compile the BPF programs: apt install clang libbpf-dev"
        raise SystemExit(message)
    if machine not in ARCHES:
        message = f"no BPF build for {machine}: ksentinel knows {', '.join(ARCHES)}"
        raise SystemExit(message)
    headers = list((root / "lsm_bpf").glob("*.h"))
    objects = []
    for source in sorted((root / "lsm_bpf").glob("*.bpf.c")):
        target = source.with_suffix(".o")
        objects.append(target)
        newest = max(path.stat().st_mtime for path in [source, *headers, Path(__file__)])
        if target.exists() and target.stat().st_mtime >= newest:
            continue
        command = [
            clang, "-g", "-O2", "-mcpu=v3", "-target", "bpf", f"-D__TARGET_ARCH_{ARCHES[machine]}",
            "-Wall", "-Wextra", "-Werror", f"-I/usr/include/{machine}-linux-gnu",
            f"-ffile-prefix-map={root}=.", "-fdebug-compilation-dir=.",
            "-c", str(source.relative_to(root)), "-o", str(target),
        ]  # fmt: skip
        if subprocess.run(command, check=False, cwd=root).returncode:
            target.unlink(missing_ok=True)  # an older one must not pass for this source's
            message = f"clang refused {source.relative_to(root)}: see above (the headers are in libbpf-dev)"
            raise SystemExit(message)
        if strip := shutil.which("llvm-strip"):
            subprocess.run([strip, "-g", str(target)], check=True)  # DWARF goes, BTF stays
    return objects


class CustomBuildHook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """Compile, and name the platform: the objects are of this architecture."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the objects to the build."""
        if self.target_name != "wheel":
            return
        root, machine = Path(self.root), platform.machine()
        objects = compile_bpf(root, machine)
        if version == "editable":
            return  # found beside the package
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"
        for path in objects:
            build_data["force_include"][str(path)] = f"ksentinel/data/lsm_bpf/{path.name}"


if __name__ == "__main__":
    here = Path(__file__).parent
    for compiled in compile_bpf(here, platform.machine()):
        sys.stdout.write(f"{compiled.relative_to(here)}\n")
