# SPDX-License-Identifier: Apache-2.0
"""Programs by content, while they run: an upgraded one keeps its profile and is marked, a copied one is recognised."""

from collections import OrderedDict
from collections.abc import Callable

from ksentinel.event import Event, ExecEvent, Process
from ksentinel.executables import Hasher, Kind, Recognition, Recognizer
from ksentinel.window import Window

REMEMBERED = 8192


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

    Attributes
    ----------
    recognise
        Lets the kernel's side know of a copy, and of what; nobody, at first.
    dropped
        Programs that nobody had the time to look at; they are tried again at their next execution.
    """

    def __init__(
        self, hasher: Hasher[str], recognizer: Recognizer, tell: Callable[[Recognition], None]
    ) -> None:
        self.hasher = hasher
        self.recognizer = recognizer
        self.tell = tell
        self.recognise: Callable[[str, str], None] = lambda _program, _known: None
        self.dropped = 0
        self._asked: OrderedDict[str, None] = OrderedDict()
        self._by_path: set[str] = set()

    def attend(self, item: Event | Window | None) -> None:
        """Look at *item*; None: a batch has ended, fetch what was found."""
        if item is None:
            for program, found in self.hasher.ready():
                if not found.sha256 and program not in self._by_path:
                    # It has ended already: what lies at its path by now is most likely what it was.
                    self._by_path.add(program)
                    self.dropped += not self.hasher.submit(program.removeprefix("#!"), program, follow=True)
                    continue
                self._by_path.discard(program)
                recognition = self.recognizer.judge(program, found.sha256)
                if recognition.kind not in {Kind.SAME, Kind.UNKNOWN}:
                    self.tell(recognition)
        elif isinstance(item, ExecEvent):
            self._executed(item.process)

    def account(self) -> dict[str, int]:
        """Return how many programs were recognised as what, and how many nobody looked at."""
        counts = {f"programs_{kind}": self.recognizer.counts[kind] for kind in Kind}
        return {**counts, "programs_dropped": self.dropped}

    def _executed(self, process: Process) -> None:
        program = process.program
        if not program or program in self._asked:
            return
        place = f"/proc/{process.key.pid}"
        asked = (
            self.hasher.submit(f"{place}/root{process.script}", program, follow=True)
            if process.script
            else self.hasher.submit(f"{place}/exe", program)
        )
        if not asked:
            self.dropped += 1
            return
        self._asked[program] = None
        if len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)
