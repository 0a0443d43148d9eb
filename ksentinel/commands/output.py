# SPDX-License-Identifier: Apache-2.0
"""Output: data go to standard output, everything said about the run to standard error."""

import sys
from contextlib import suppress
from typing import Any

from ksentinel.errors import KsentinelError
from ksentinel.printable import printable


def complain(error: KsentinelError) -> None:
    """Print an error as one line."""
    tell(str(error))


def print_json(plain: Any) -> None:
    """Print one object as one line, now."""
    from ksentinel.store import to_json

    sys.stdout.buffer.write(to_json(plain) + b"\n")
    sys.stdout.buffer.flush()


def tell(text: str) -> None:
    """Say something about the run, on standard error."""
    # Nobody may be there to read it: no reason to stop watching.
    with suppress(OSError):
        sys.stderr.write(f"ksentinel: {printable(text)}\n")
        sys.stderr.flush()
