"""One optimisation step: forward, backward over micro-batches, guard, update, ``after_step``.

With accumulation each micro-batch is its own contrastive batch: gradients are averaged, negatives
are not shared.
"""

# shapes: N batch, C channels, S side
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastssl.engine.config import Precision
from fastssl.engine.device import autocast
from fastssl.engine.guard import Guard
from fastssl.engine.optim import set_learning_rate
from fastssl.engine.protocols import Batch
from fastssl.engine.ranks import ALONE, Ranks, averaged


class Placed(NamedTuple):
    """What a method's forward takes, on the device."""

    views: tuple[Tensor, ...]  # V tensors (N, C, S, S), or (N, T) of sounds
    table: Any  # the parameters that made them


@dataclass(frozen=True)
class StepResult:
    """0-d tensors on the device; reading one waits for it."""

    loss: Tensor
    grad_norm: Tensor
    metrics: dict[str, Tensor]


class TrainStep:
    """Callable that trains on the micro-batches of one step."""

    def __init__(
        self,
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        guard: Guard,
        *,
        device: torch.device,
        precision: Precision,
        total: int,
        ranks: Ranks = ALONE,
    ) -> None:
        self._method = method
        self._ranks = ranks
        self._forward = averaged(method, ranks)
        self._optimizer = optimizer
        self._guard = guard
        self._device = device
        self._precision = precision
        self._total = total
        self._leaves = getattr(method, "leaves", lambda table: table)
        self._trained = [p for p in method.parameters() if p.requires_grad]

    def __call__(self, batches: Sequence[Placed], *, step: int, lr: float) -> StepResult:
        """Train on ``batches``, one per micro-batch."""
        self._guard.remember()
        self._optimizer.zero_grad(set_to_none=True)
        share = 1.0 / len(batches)
        total = torch.zeros((), device=self._device)
        sums: dict[str, Tensor] = {}
        for position, batch in enumerate(batches):
            with self._averaging(position == len(batches) - 1):
                table = self._leaves(batch.table)
                with autocast(self._precision, self._device):
                    loss, metrics = self._forward(batch.views, table)
                (loss * share).backward()
            total = total + loss.detach() * share
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * share
        total, sums = self._of_all_ranks(total, sums)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        bad = self._guard.judge(total, norm)
        self._update(bad, lr)
        after_step = getattr(self._method, "after_step", None)
        if after_step is not None:
            after_step(step, self._total)
        self._guard.undo(bad)
        return StepResult(loss=total, grad_norm=norm, metrics=sums)

    def _averaging(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients travel once per step, with the last micro-batch."""
        quiet = getattr(self._forward, "no_sync", None)
        return contextlib.nullcontext() if last or quiet is None else quiet()

    def _of_all_ranks(self, loss: Tensor, metrics: dict) -> tuple[Tensor, dict[str, Tensor]]:
        """Means over the ranks, on which all of them judge the step alike."""
        if self._ranks.size == 1:
            return loss, metrics
        means = self._ranks.mean({"": loss, **metrics})
        return means.pop("").to(loss.dtype), means

    def _update(self, bad: Tensor, lr: float) -> None:
        set_learning_rate(self._optimizer, lr)
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.found_inf = bad  # type: ignore[attr-defined]
        self._optimizer.step()


def place(method: nn.Module, device: torch.device) -> None:
    """Move to the device; convolution kernels become channels_last, in place, keys unchanged."""
    method.to(device)
    for p in method.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)


def place_batch(batch: Batch, device: torch.device) -> Placed:
    """Views and table on the device, images channels_last."""
    moved = (v.to(device, non_blocking=True) for v in batch.views)
    views = tuple(
        v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in moved
    )
    return Placed(views, None if batch.table is None else batch.table.to(device))
