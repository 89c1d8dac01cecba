"""What the user reads: lines on the terminal, copied with the time of day into train.log.

A full disk or a closed pipe never ends a training; the text is lost, the run goes on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


class Console:
    """Prints whole lines. A live bar, while there is one, takes over printing (``above``)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.log_file: Path | None = None
        self._early: list[str] = []  # said before there was a log file
        # Set by a live bar, which must print the lines above itself.
        self.above: Callable[[str], None] | None = None

    @property
    def interactive(self) -> bool:
        """Whether the stream is a terminal that can show a live bar."""
        return self.stream.isatty()

    def attach(self, log_file: Path) -> None:
        """Copy everything printed, so far and from now on, to ``log_file``."""
        self.log_file = log_file
        for text in self._early:
            self._append(text)
        self._early.clear()

    def line(self, text: str) -> None:
        """Print one line."""
        self.log(text)
        with contextlib.suppress(OSError, ValueError):
            if self.above is not None:
                self.above(text)
            else:
                print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a line that must not be missed."""
        self.line(f"warning: {text}")

    def log(self, text: str) -> None:
        """Write to the log file only."""
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        self._early.append(stamped) if self.log_file is None else self._append(stamped)

    @contextlib.contextmanager
    def hearing(self, name: str) -> Iterator[None]:
        """Inside, what the package's logger ``name`` warns of is printed and copied here."""
        handler = _Forward(self)
        logging.getLogger(name).addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger(name).removeHandler(handler)

    def _append(self, stamped: str) -> None:
        assert self.log_file is not None
        with contextlib.suppress(OSError), open(self.log_file, "a", encoding="utf-8") as file:
            file.write(stamped)


class _Forward(logging.Handler):
    """Passes log records on to a console; from any thread."""

    def __init__(self, console: Console) -> None:
        super().__init__(level=logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(record.getMessage())
