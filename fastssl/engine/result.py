"""What a training came to."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastssl.engine.signals import EXIT_CODES


def saved_text(saved_at: int) -> str:
    """What is on disk, in a message: the newest checkpoint is of step ``saved_at``, 0: none."""
    return f"saved at step {saved_at}" if saved_at else "no checkpoint could be saved"


@dataclass(frozen=True)
class FitResult:
    """What a training came to. ``data_wait`` is a share, 0 to 1; throughput excludes step one."""

    steps: int
    total_steps: int
    seconds: float
    views_per_second: float
    data_wait: float
    skipped_steps: int
    stopped_by: str
    saved_at: int  # step of the newest checkpoint; 0: there is none
    metrics: dict[str, float] = field(default_factory=dict)
    readouts: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all planned steps were done."""
        return self.steps == self.total_steps

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal that stopped the run."""
        return EXIT_CODES[self.stopped_by]
