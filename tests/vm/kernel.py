# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, as packages: found by apt, unpacked beside the repository, and made ready to be booted."""

import hashlib
import lzma
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksentinel.errors import HostError, UsageError

BUILD = Path(__file__).parents[2] / "build" / "vm"
INIT = Path(__file__).with_name("init.sh")
AFTER = Path(__file__).with_name("after.sh")
MODULES = ("virtio_pci", "virtiofs")
"""What stands between this kernel and its root directory; where it is built in nothing has to be loaded."""

Run = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    An unpacked kernel.

    Parameters
    ----------
    release
        As ``uname -r`` says it: the folder of its modules.
    version
        Of the package, without Debian's revision: it names the results.
    tree
        Where the package is unpacked.
    """

    release: str
    version: str
    tree: Path

    @property
    def image(self) -> Path:
        """What QEMU boots."""
        return self.tree / "boot" / f"vmlinuz-{self.release}"


def run(*command: str, **options: object) -> str:
    """Run a command and return what it prints; if it fails, what it complains of is in the error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise HostError(f"no {command[0]} here", remedy="make debs-vm installs it") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise HostError(f"{' '.join(command)} ends with {done.returncode}: {said[-1]}")
    return str(done.stdout)


def prepare(series: str, build: Path = BUILD, run: Run = run) -> Kernel:
    """
    Return the kernel of a *series* (``6.1``), fetched by apt if it isn't there yet.

    A package that lies in *build* already is used as it is: ``make clean`` lets go of it.
    """
    if not re.fullmatch(r"[1-9]\d*\.\d+", series):
        raise UsageError(f"{series!r} is no kernel series such as 6.1 or 6.12")
    build.mkdir(parents=True, exist_ok=True)
    there = sorted(build.glob(f"linux-image-{series}[.+-]*.deb"), key=lambda p: p.stat().st_mtime)
    return unpack(there[-1] if there else fetch(series, build, run), build, run)


def fetch(series: str, build: Path, run: Run = run) -> Path:
    """Download the newest kernel package of a series that apt offers here."""
    package = offered(series, build, run)
    before = set(build.glob("*.deb"))
    run("apt-get", "download", "-qq", package, cwd=build)
    new = [path for path in build.glob(f"{package}_*.deb") if path not in before]
    if len(new) != 1:
        raise HostError(f"apt-get download {package} left {len(new)} packages", build)
    checked(new[0], run("apt-cache", "show", "--no-all-versions", package))
    return new[0]


def offered(series: str, build: Path, run: Run = run) -> str:
    """Return the name of the package of a series' kernel: what one of the packages without a number depends on."""
    for bundle in (f"linux-image-{series}-cloud-amd64", "linux-image-cloud-amd64"):
        try:
            depends = run("apt-cache", "depends", bundle)
        except HostError:
            continue
        found = re.search(rf"^  Depends: (linux-image-{re.escape(series)}[.+-]\S+)$", depends, re.MULTILINE)
        if found:
            return found[1]
    raise HostError(
        f"apt offers no kernel {series} for virtual machines here",
        remedy=f"put Debian's linux-image-{series}...-cloud-amd64_..._amd64.deb into {build}",
    )


def checked(package: Path, index: str) -> None:
    """Compare a package with apt's (signed) index; a wrong one is removed."""
    wanted = re.search(r"^SHA256: ([0-9a-f]{64})$", index, re.MULTILINE)
    if wanted is None:
        raise HostError("apt's index has no SHA-256 of it", package, "apt-get update")
    if hashlib.sha256(package.read_bytes()).hexdigest() != wanted[1]:
        package.unlink()
        raise HostError("is not what apt's index says; it has been removed", package, "try again")


def unpack(package: Path, build: Path, run: Run = run) -> Kernel:
    """Unpack a kernel's package, once, and say what is in it."""
    name, version = run("dpkg-deb", "-W", "--showformat=${Package} ${Version}", str(package)).split()
    tree = build / f"{name}_{version.replace(':', '_')}"
    if not tree.is_dir():
        part = tree.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        run("dpkg", "-x", str(package), str(part))
        releases = [path.name for path in part.glob("lib/modules/*")]
        if len(releases) != 1 or not (part / "boot" / f"vmlinuz-{releases[0]}").is_file():
            shutil.rmtree(part, ignore_errors=True)
            raise HostError("has no kernel in it", package, "remove it")
        run("depmod", "-b", str(part), releases[0])
        part.rename(tree)
    (modules,) = tree.glob("lib/modules/*")
    return Kernel(modules.name, version.split("-")[0].split("+")[0], tree)


def initramfs(kernel: Kernel, files: Mapping[str, str], out: Path, run: Run = run) -> None:
    """
    Write the little root that the kernel starts from: busybox, the modules, `init.sh`, and the job's *files*.

    They go this way because a kernel's command line is short and knows no quotes.
    """
    folder = out.with_suffix(".d")
    for name in ("bin", "proc", "sys", "dev", "host", "keep", "mods", "job"):
        (folder / name).mkdir(parents=True)
    shutil.copy(busybox(), folder / "bin" / "busybox")
    for index, module in enumerate(wanted(kernel, MODULES, run)):
        (folder / "mods" / f"{index:02}.ko").write_bytes(plain(module))
    shutil.copy(INIT, folder / "init")
    (folder / "init").chmod(0o755)
    shutil.copy(AFTER, folder / "job" / "after")
    for name, text in files.items():
        (folder / "job" / name).write_text(text)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    run("cpio", "-o", "-H", "newc", "--quiet", "-F", str(out), cwd=folder, input="\n".join(names))
    shutil.rmtree(folder)


def busybox() -> str:
    """Return where busybox is; Debian's package busybox-static has one that needs no libraries."""
    found = shutil.which("busybox")
    if found is None:
        raise HostError("no busybox here", remedy="make debs-vm installs it")
    with Path(found).open("rb") as file:
        if b"ld-linux" in file.read(4096):
            raise HostError("needs libraries", found, "install busybox-static in its place")
    return found


def wanted(kernel: Kernel, modules: Sequence[str], run: Run = run) -> list[Path]:
    """Return the files of these modules and of all they need, in the order they have to be loaded in."""
    files: dict[Path, None] = {}
    for module in modules:
        told = run("modprobe", "-d", str(kernel.tree), "-S", kernel.release, "--show-depends", module)
        for line in told.splitlines():
            kind, _, file = line.strip().partition(" ")
            if kind == "insmod":
                files[Path(file)] = None
    return list(files)


def plain(module: Path) -> bytes:
    """Return a module as the kernel takes it: not compressed."""
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        done = subprocess.run(("zstd", "-qdc", str(module)), capture_output=True, check=False)
        if done.returncode:
            raise HostError("can't be decompressed by zstd", module)
        return done.stdout
    return module.read_bytes()
