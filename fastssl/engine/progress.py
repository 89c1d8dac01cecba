"""Where the run stands: a rich bar on a terminal, one plain line every few seconds elsewhere.

Data-wait is the share of training time that the loop spent blocked in ``next(batches)``; readouts,
checkpoints and the first step (which compiles) are outside both throughput and data-wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from fastssl.engine.console import Console

_SECONDS_BETWEEN_LINES = 5.0


class Stopwatch:
    """Seconds spent waiting for data and training, and the views trained on."""

    def __init__(self) -> None:
        self.waited = 0.0
        self.trained = 0.0
        self.views = 0
        self.steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the fetching of data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Time one whole step, its data included."""
        start = time.perf_counter()
        yield
        self.trained += time.perf_counter() - start
        self.steps += 1
        if self.steps == 1:
            self.waited = self.trained = 0.0
            self.views = 0

    @property
    def views_per_second(self) -> float:
        """Views over training time, since the first step; 0 before."""
        return self.views / self.trained if self.trained > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Share of training time blocked on data, 0 to 1."""
        return self.waited / self.trained if self.trained > 0 else 0.0

    def seconds_left(self, steps: int) -> float | None:
        """Time that ``steps`` more steps will take; None before the second step."""
        if self.steps < 2:
            return None
        return steps * self.trained / (self.steps - 1)


class Progress:
    """Context showing steps ``done`` of ``total``."""

    def __init__(self, console: Console, *, total: int, watch: Stopwatch) -> None:
        self._console = console
        self._total = total
        self._watch = watch
        self._bar: Any = None
        self._task: Any = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self._console.interactive:
            self._bar = _rich_bar(self._console)
            self._task = self._bar.add_task("train", total=self._total, text="")
            self._bar.start()
            self._console.above = lambda text: self._bar.console.print(
                text, markup=False, highlight=False, soft_wrap=True
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._console.above = None
            self._bar.stop()

    def show(self, done: int, loss: float | None, *, of_step: int) -> None:
        """Refresh the bar; print or log a plain line when the last one is old enough.

        ``of_step``: the step whose ``loss`` it is; named where it is not the last one done.
        """
        text = self._text(done, loss, of_step)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, text=text)
        if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES or done == self._total:
            self._last_line = time.monotonic()
            say = self._console.log if self._bar is not None else self._console.line
            say(f"step {done}/{self._total}  {text}")

    def _text(self, done: int, loss: float | None, of_step: int) -> str:
        older = "" if of_step == done else f" (step {of_step})"
        parts = [] if loss is None else [f"loss {loss:.4f}{older}"]
        if self._watch.steps > 1:
            parts.append(f"{self._watch.views_per_second:,.0f} views/s")
            parts.append(f"data-wait {100 * self._watch.data_wait:.0f}%")
        left = self._watch.seconds_left(self._total - done)
        if left is not None:
            parts.append(f"ETA {_clock(left)}")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rich_bar(console: Console) -> Any:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        console=RichConsole(file=console.stream),
        refresh_per_second=4,
    )
