"""Interleaved timing: all contestants run in every round, so that a slow minute hurts all."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    best: float
    q1: float
    q3: float
    calls: int

    def __str__(self) -> str:
        return (
            f"{milliseconds(self.median):>10} ms  (min {milliseconds(self.best)}, "
            f"IQR {milliseconds(self.q1)} to {milliseconds(self.q3)}, n {self.calls})"
        )


def milliseconds(seconds: float) -> str:
    """Three significant digits or better, in ms."""
    value = 1e3 * seconds
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def race(
    contestants: dict[str, Call],
    *,
    rounds: int = 9,
    slice_s: float = 0.05,
    warmup_s: float = 0.2,
    budget_s: float = 60.0,
    sync: Call = lambda: None,
) -> dict[str, Timing]:
    """Time every contestant in `rounds` rounds, alternating the order within the round.

    A contestant's turn lasts `slice_s` seconds or one call, whichever is longer. Each is called
    until `warmup_s` seconds have passed (at least twice) before the first round. Rounds stop early,
    but not before the third, once `budget_s` seconds are spent. `sync` waits for the device.
    """
    turns = {name: _turn(call, slice_s, warmup_s, sync) for name, call in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + budget_s
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            if number >= 3 and time.perf_counter() > end:
                break
            order = list(contestants) if number % 2 == 0 else list(reversed(contestants))
            for name in order:
                samples[name] += [timed(contestants[name], sync) for _ in range(turns[name])]
            gc.collect()
    finally:
        if was_enabled:
            gc.enable()
    return {name: summarise(values) for name, values in samples.items()}


def timed(call: Call, sync: Call = lambda: None) -> float:
    """Seconds of one call, the device waited for on both sides."""
    sync()
    start = time.perf_counter()
    call()
    sync()
    return time.perf_counter() - start


def _turn(call: Call, slice_s: float, warmup_s: float, sync: Call) -> int:
    """Calls per turn, from a warm-up of at least two calls."""
    end = time.perf_counter() + warmup_s
    durations: list[float] = []
    while len(durations) < 2 or time.perf_counter() < end:
        durations.append(timed(call, sync))
    return max(1, math.ceil(slice_s / statistics.median(durations[1:])))


def summarise(samples: list[float]) -> Timing:
    """Median, minimum and quartiles of seconds."""
    if len(samples) == 1:
        return Timing(samples[0], samples[0], samples[0], samples[0], 1)
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Timing(median, min(samples), q1, q3, len(samples))


def as_record(timing: Timing) -> dict[str, float]:
    """For the JSON record: seconds."""
    return dataclasses.asdict(timing)
