"""SIGTERM and SIGINT ask the run to stop at its next chance; a second one ends it at once.

In the loop the chance is the end of the step, which is saved; around it, each ``check``.

Exit codes follow the shell: 128 + signal number (143 and 130).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

EXIT_CODES = {"end": 0, "SIGTERM": 143, "SIGINT": 130}


class Stopped(Exception):
    """A signal arrived where nothing needs to be saved; the text is its name."""


class StopSignals:
    """Context in which ``requested`` turns from None to the name of the signal that arrived."""

    def __init__(self, *, launched: bool = False) -> None:
        # A launcher repeats to its ranks what the terminal has told them already, and ends them by
        # SIGKILL if they take too long: there a second signal means nothing.
        self._launched = launched
        self.requested: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        # Python lets only the main thread install handlers; elsewhere the caller keeps its own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def check(self) -> None:
        """Raise Stopped once a signal has arrived. Handlers themselves never raise."""
        if self.requested is not None:
            raise Stopped(self.requested)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(number).name
        if self._launched:
            return
        # The kernel's own action, so that the second one works even inside a long C++ call.
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
