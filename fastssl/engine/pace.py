"""Is a run on the CPU too slow to be of use? What to say, from the views it trains per second."""

from __future__ import annotations

from fastssl.engine.config import TrainConfig
from fastssl.engine.progress import Stopwatch

SLOW = 300.0
"""Views per second: an epoch over 50,000 images with two views takes over five minutes below it."""
_STEPS_TO_MEASURE = 5


def slow_folder_hint(
    kind: str, device_type: str, watch: Stopwatch, config: TrainConfig
) -> str | None:
    """A line for a run over a folder on the CPU that was measured to be slow; else None."""
    if kind != "folder" or device_type != "cpu" or watch.steps < _STEPS_TO_MEASURE:
        return None
    if not watch.views_per_second < SLOW:
        return None
    faster = [] if config.backbone == "convnet" else ["--backbone convnet"]
    faster += ["a smaller --image-size"] if config.image_size > 32 else []
    advice = f"{' or '.join(faster)} is faster" if faster else "fewer --epochs end sooner"
    return (
        f"this CPU trains {watch.views_per_second:.0f} views/s at --image-size {config.image_size} "
        f"with --backbone {config.backbone}; {advice}"
    )
