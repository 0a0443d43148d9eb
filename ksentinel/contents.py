# SPDX-License-Identifier: Apache-2.0
"""Programs by content, while they run: an upgraded one keeps its profile and is marked, a copied one is recognised."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ksentinel.event import Event, ExecEvent, Process
from ksentinel.executables import Hasher, Identity, Kind, Recognition, Recognizer, Unidentified
from ksentinel.window import Window

REMEMBERED = 8192


@dataclass(frozen=True, slots=True)
class Asked:
    """A program that is being looked at, as *pid* executes it; 0: as it lies at its path."""

    program: str
    pid: int


class Contents:
    """
    Has each program that is executed looked at, once, and says what it is recognised as.

    Parameters
    ----------
    hasher
        Looks at files, beside the walk; entered already.
    recognizer
        What the model knows.
    tell
        Is told of each program that is not simply the same.
    executes
        Path, device and inode of what a process executes now; None if it has ended.

    Attributes
    ----------
    recognise
        Lets the kernel's side know of a copy, and of what; nobody, at first.
    dropped
        Programs that nobody had the time to look at; they are tried again at their next execution.
    """

    def __init__(
        self,
        hasher: Hasher[Asked],
        recognizer: Recognizer,
        tell: Callable[[Recognition], None],
        executes: Callable[[int], tuple[str, int, int] | None],
    ) -> None:
        self.hasher = hasher
        self.recognizer = recognizer
        self.tell = tell
        self.executes = executes
        self.recognise: Callable[[str, str], None] = lambda _program, _known: None
        self.dropped = 0
        self._asked: OrderedDict[str, None] = OrderedDict()

    def attend(self, item: Event | Window | None) -> None:
        """Look at *item*; None: a batch has ended, fetch what was found."""
        if item is None:
            for asked, found in self.hasher.ready():
                self._found(asked, found)
        elif isinstance(item, ExecEvent):
            self._executed(item.process)

    def account(self) -> dict[str, int]:
        """Return how many programs were recognised as what, and how many nobody looked at."""
        counts = {f"programs_{kind}": self.recognizer.counts[kind] for kind in Kind}
        return {**counts, "programs_dropped": self.dropped}

    def _found(self, asked: Asked, found: Identity | Unidentified) -> None:
        if asked.pid and not self._still_executes(asked, found):
            # What lies at its path by now is most likely what it was.
            again = self.hasher.submit(asked.program.removeprefix("#!"), Asked(asked.program, 0), follow=True)
            self.dropped += not again
            return
        recognition = self.recognizer.judge(asked.program, found.sha256)
        if recognition.kind not in {Kind.SAME, Kind.UNKNOWN}:
            self.tell(recognition)

    def _still_executes(self, asked: Asked, found: Identity | Unidentified) -> bool:
        """Tell whether it is *found* that the process executes: it may have ended, or become another program meanwhile."""
        if isinstance(found, Unidentified) or not found.sha256:
            return False
        now = self.executes(asked.pid)
        if asked.program.startswith("#!"):
            return now is not None
        return now == (asked.program, found.device, found.inode)

    def _executed(self, process: Process) -> None:
        program = process.program
        if not program or program in self._asked:
            return
        place, asked = f"/proc/{process.key.pid}", Asked(program, process.key.pid)
        submitted = (
            self.hasher.submit(f"{place}/root{process.script}", asked, follow=True)
            if process.script
            else self.hasher.submit(f"{place}/exe", asked)
        )
        if not submitted:
            self.dropped += 1
            return
        self._asked[program] = None
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
