# SPDX-License-Identifier: Apache-2.0
"""What a guard gives back to the kernel is a literal: other values some kernels take for a warning, or refuse to load."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "lsm_bpf"
GUARDS = [path for path in sorted(SOURCES.glob("*.bpf.c")) if 'SEC("lsm/' in path.read_text()]
GO_ON = {"on_task_prctl": -38}
"""Of this hook -ENOSYS means that the call goes on."""
_GIVES = re.compile(r"^[rw]0 = (-?(?:0x)?[0-9a-f]+)$")
_GOES = re.compile(r"goto ([+-](?:0x)?[0-9a-f]+)$")


def programs(built):
    """Return the instructions of each LSM program, in words, by their numbers."""
    listing = subprocess.run(
        ["llvm-objdump", "-d", "--no-show-raw-insn", built], capture_output=True, text=True, check=True
    ).stdout
    found, section, name = {}, "", ""
    for line in listing.splitlines():
        if heading := re.match(r"Disassembly of section (\S+):", line):
            section = heading[1]
        elif not section.startswith("lsm/"):
            continue
        elif label := re.match(r"[0-9a-f]+ <(\w+)>:", line):
            name = name if label[1].startswith("LBB") else label[1]
            found.setdefault(name, {})
        elif text := re.match(r"\s*(\d+):\s+(.+?)\s*(?:<.*)?$", line):
            found[name][int(text[1])] = text[2]
    return found


def given(instructions):
    """Return what a program may give back: the literal set right before each exit, None where that is none."""
    values, before = set(), ""
    for number, instruction in instructions.items():
        if instruction == "exit":
            value = _GIVES.match(before)
            values.add(int(value[1], 0) if value else None)
        # Who jumps to an exit has set the value elsewhere.
        if (jump := _GOES.search(instruction)) and instructions[number + 1 + int(jump[1], 0)] == "exit":
            values.add(None)
        before = instruction
    return values


@pytest.mark.parametrize("path", GUARDS, ids=lambda path: path.name)
def test_literals(path):
    """A guard gives 0 or -EPERM, and nothing that it has reckoned."""
    built = path.with_suffix(".o")
    if not built.is_file() or not shutil.which("llvm-objdump"):
        pytest.skip("no compiled BPF object: make bpf")
    found = programs(built)
    assert found
    for name, instructions in found.items():
        assert given(instructions) == {-1, GO_ON.get(name, 0)}, name


@pytest.mark.parametrize(
    "instructions",
    [["r0 = r6", "exit"], ["r0 = -r0", "exit"], ["if r1 == 0x0 goto +0x1", "r0 = 0x0", "exit"]],
)
def test_reckoned_values_are_seen(instructions):
    """The test above can fail."""
    assert None in given(dict(enumerate(instructions)))
