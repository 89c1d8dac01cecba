"""A step whose loss or gradient is not finite leaves no trace: weights, optimiser, buffers, EMA.

The decision is a tensor. The fused optimisers skip on ``found_inf``; buffers and frozen parameters
(running statistics, queues, momentum encoders) are copied before the step and selected back after
it. On CUDA nothing waits for the device; the counters are read when the loop logs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrainingDiverged(RuntimeError):
    """Too many steps in a row were not finite."""


class Guard:
    """Judges steps, undoes what the bad ones did, and counts them (counters are checkpointed)."""

    def __init__(self, method: nn.Module, device: torch.device) -> None:
        frozen = [p for p in method.parameters() if not p.requires_grad]
        self._live = [t.detach() for t in (*method.buffers(), *frozen)]
        self._before: list[Tensor] = []
        self._waits = device.type == "cpu"
        counter = torch.zeros((), dtype=torch.int64, device=device)
        self._counters = {k: counter.clone() for k in ("skipped", "in_a_row", "longest")}

    def remember(self) -> None:
        """Copy what a step changes besides the trained weights. Call before the forward pass."""
        if not self._before:
            self._before = [torch.empty_like(t) for t in self._live]
        if self._live:
            torch._foreach_copy_(self._before, self._live)

    def judge(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 for a bad step, else 0.0 (0-d float32 on the device), and count it."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        count = self._counters
        count["skipped"] += bad
        count["in_a_row"] += 1
        count["in_a_row"] *= bad
        torch.maximum(count["longest"], count["in_a_row"], out=count["longest"])
        return bad.float()

    def undo(self, bad: Tensor) -> None:
        """Where ``bad`` is 1, put back what ``remember`` saw. Call after the whole step."""
        if self._waits and not bad:
            return
        flag = bad.bool()
        for live, before in zip(self._live, self._before, strict=True):
            live.copy_(torch.where(flag, before, live))

    def counters(self) -> dict[str, int]:
        """skipped steps in all, in a row now, longest row so far. Waits for the device."""
        return {name: int(value) for name, value in self._counters.items()}

    def set_counters(self, values: dict[str, int]) -> None:
        """Inverse of ``counters``."""
        for name, counter in self._counters.items():
            counter.fill_(int(values[name]))

    def stop_if_diverged(self, most: int) -> None:
        """Raise TrainingDiverged when ``most`` steps in a row were bad."""
        counters = self.counters()
        if counters["longest"] < most:
            return
        raise TrainingDiverged(
            f"{counters['longest']} steps in a row had a loss or gradient that is not finite "
            f"(max_bad_steps {most}). The weights were not touched by them and the last checkpoint "
            "is intact. Try a lower --lr, more --warmup-steps or --precision fp32."
        )
