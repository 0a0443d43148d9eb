# SPDX-License-Identifier: Apache-2.0
"""``make vm-shell``: a shell, as root, in the machine that the tests run in."""

import argparse
import os
import shutil
import sys

from vm import kernel, machine

from ksentinel.errors import HostError, KsentinelError


def main(arguments: list[str] | None = None) -> int:
    """Start a machine for a person; it ends with its shell."""
    parser = argparse.ArgumentParser(prog="vm", description="A shell under one of Debian's kernels")
    parser.add_argument("--kernel", default="6.1", metavar="SERIES")
    parser.add_argument("--lsm", default=machine.LSM)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB")
    given = parser.parse_args(arguments)
    try:
        if not sys.stdin.isatty():
            raise HostError("standard input is no terminal", remedy="make test-vm runs the tests without one")
        machine.need_root()
        setup = machine.Setup(kernel.prepare(given.kernel), given.lsm, given.cpus, given.memory)
        columns, rows = shutil.get_terminal_size()
        job = {"JOB": "shell", "ROWS": str(rows), **machine.environment(setup, os.environ, columns)}
        with machine.Machine(setup, machine.Job(job), None) as guest:
            return guest.wait()
    except KsentinelError as error:
        print(f"vm: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
