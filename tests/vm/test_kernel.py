# SPDX-License-Identifier: Apache-2.0
"""A kernel is found, fetched and unpacked, or it is said why not, and what to do."""

import hashlib
import lzma

import pytest
from vm import kernel

from ksentinel.errors import HostError, UsageError

BUNDLES = {
    "linux-image-6.12-cloud-amd64": "linux-image-6.12.117+deb12-cloud-amd64",
    "linux-image-cloud-amd64": "linux-image-6.1.0-56-cloud-amd64",
}


class Apt:
    """apt and dpkg, as far as they are asked; a download leaves a package with this content."""

    def __init__(self, content=b"package", index=None):
        self.content = content
        self.index = index or f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        self.asked = []

    def __call__(self, *command, **options):
        """Answer a command."""
        self.asked.append(command[0])
        match command:
            case ("apt-cache", "depends", name) if name in BUNDLES:
                return f"{name}\n  Depends: {BUNDLES[name]}\n"
            case ("apt-cache", "depends", name):
                raise HostError(f"apt-cache ends with 100: no packages found for {name}")
            case ("apt-get", "download", _, name):
                (options["cwd"] / f"{name}_1_amd64.deb").write_bytes(self.content)
            case ("apt-cache", "show", *_):
                return self.index
            case ("dpkg-deb", "-W", *_):
                return "linux-image-6.1.0-56-cloud-amd64 6.1.192-2"
            case ("dpkg", "-x", _, tree):
                self.unpack(kernel.Path(tree))
            case ("depmod", *_):
                pass
            case _:
                raise AssertionError(command)
        return ""

    def unpack(self, tree):
        """Leave what a kernel's package has."""
        (tree / "boot").mkdir(parents=True)
        (tree / "boot" / "vmlinuz-6.1.0-56-cloud-amd64").touch()
        (tree / "lib" / "modules" / "6.1.0-56-cloud-amd64").mkdir(parents=True)


@pytest.mark.parametrize(
    ("series", "package"),
    [("6.1", BUNDLES["linux-image-cloud-amd64"]), ("6.12", BUNDLES["linux-image-6.12-cloud-amd64"])],
)
def test_offered(series, package, tmp_path):
    """A series is behind a package of its own, or behind that of the system; 6.1 isn't taken for 6.12."""
    assert kernel.offered(series, tmp_path, Apt()) == package


def test_not_offered(tmp_path):
    """The error says where a package of one's own would be looked for."""
    with pytest.raises(HostError, match=r"no kernel 5\.15 .*put Debian's linux-image-5\.15.* into"):
        kernel.offered("5.15", tmp_path, Apt())


@pytest.mark.parametrize("series", ["6", "6.1.2", "../6.1", "6.1*", "", "06.1"])
def test_no_series(series, tmp_path):
    """What can't be one isn't looked for."""
    with pytest.raises(UsageError, match="no kernel series"):
        kernel.prepare(series, tmp_path, Apt())


def test_prepared_once(tmp_path):
    """The second time nothing is asked of apt, nor unpacked."""
    apt = Apt()
    first = kernel.prepare("6.1", tmp_path, apt)
    asked = len(apt.asked)

    assert kernel.prepare("6.1", tmp_path, apt) == first
    assert apt.asked[asked:] == ["dpkg-deb"]
    assert (first.release, first.version) == ("6.1.0-56-cloud-amd64", "6.1.192")
    assert first.image.is_file()


def test_wrong_package(tmp_path):
    """One that isn't what the index says is removed."""
    with pytest.raises(HostError, match="not what apt's index says"):
        kernel.prepare("6.1", tmp_path, Apt(index=f"SHA256: {'0' * 64}\n"))

    assert list(tmp_path.glob("*.deb")) == []


def test_not_in_the_index(tmp_path):
    """What can't be verified isn't used."""
    with pytest.raises(HostError, match="apt-get update"):
        kernel.prepare("6.1", tmp_path, Apt(index="Package: another\n"))


def test_no_kernel_in_it(tmp_path, monkeypatch):
    """A package without one leaves nothing behind that would be taken for one."""
    monkeypatch.setattr(Apt, "unpack", lambda _, tree: tree.mkdir())
    with pytest.raises(HostError, match="has no kernel in it"):
        kernel.prepare("6.1", tmp_path, Apt())

    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_modules(tmp_path):
    """In the order they are loaded in, each once; what is built in has no file."""
    told = {
        "virtio_pci": "insmod /m/virtio.ko \ninsmod /m/virtio_pci.ko.xz \n",
        "virtiofs": "builtin fuse\ninsmod /m/virtio.ko \ninsmod /m/virtiofs.ko \n",
    }
    files = kernel.wanted(
        kernel.Kernel("6.1.0", "6.1", tmp_path), list(told), lambda *command: told[command[-1]]
    )

    assert [str(file) for file in files] == ["/m/virtio.ko", "/m/virtio_pci.ko.xz", "/m/virtiofs.ko"]


def test_compressed_module(tmp_path):
    """A module comes out as it was before it was compressed."""
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"\x7fELF"))
    (tmp_path / "b.ko").write_bytes(b"\x7fELF")

    assert kernel.plain(tmp_path / "a.ko.xz") == kernel.plain(tmp_path / "b.ko") == b"\x7fELF"


def test_run_says_why():
    """A command that fails is named with what it complains of, one that isn't there with the remedy."""
    with pytest.raises(HostError, match=r"cat /nowhere/at/all ends with 1: .*No such file"):
        kernel.run("cat", "/nowhere/at/all")
    with pytest.raises(HostError, match=r"no such-a-command here \(make debs-vm"):
        kernel.run("such-a-command")
