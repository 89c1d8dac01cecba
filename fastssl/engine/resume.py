"""Which checkpoint a run goes on from, and what may not have changed since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fastssl.engine import checkpoint
from fastssl.engine.checkpoint import CheckpointError
from fastssl.engine.console import Console
from fastssl.engine.environment import arithmetic


def newest_usable(folder: Path, load: Callable[[int, Path], None], console: Console) -> int | None:
    """``load`` the newest checkpoint that is intact and fits, naming each that does not.

    Returns:
        its step, or None where there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints and none could be used.
    """
    checkpoint.clean(folder)
    refused = 0
    for step, path in checkpoint.newest_first(folder):
        try:
            load(step, path)
            return step
        except CheckpointError as error:
            refused += 1
            console.warn(f"checkpoint refused: {error}; trying the one before it")
            checkpoint.set_aside(path)
    if refused:
        raise CheckpointError(
            f"resume: none of the {refused} checkpoints in {folder} could be used (kept there "
            "as refused-*); start anew with --overwrite"
        )
    return None


def refuse_other_world(state: dict, size: int) -> None:
    """ValueError where the checkpoint was made by another number of ranks than run now.

    Each rank draws its own random numbers and adds its own part of every sum: at another number
    the run would go on, but not as it would have.
    """
    made_by = len(state.get("ranks", [0]))
    if made_by != size:
        raise ValueError(
            f"resume: made by {made_by} ranks, now {size}; an exact continuation needs the same "
            f"number (torchrun --nproc-per-node {made_by}), since every rank has its own random "
            "state and its own part of each batch. Nothing was touched"
        )


def tell_other_arithmetic(before: dict, device: torch.device, console: Console) -> None:
    """Warn of what byte-exact repetition depends on and what has changed."""
    now = arithmetic(device)
    for name in now:
        if before.get(name) != now[name]:
            console.warn(
                f"resume: {name} was {before.get(name)}, is {now[name]}: the run continues, "
                "but not bit for bit as it would have"
            )
