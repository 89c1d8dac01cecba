"""LARS: layer-wise adaptive rate scaling (You, Gitman and Ginsburg 2017, arXiv 1708.03888).

    ratio = trust |w| / (|g| + weight_decay |w| + eps)     (1 where |w| or |g| is zero)
    v <- momentum v + ratio (g + weight_decay w);  w <- w - lr v

Groups with ``adapt=False`` (biases, normalisation) use ratio 1, as every SSL recipe does. Same
update as ``timm.optim.Lars``. ``found_inf`` is honoured as in torch's fused optimisers: where it is
1 nothing changes, without a device synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """LARS with momentum, all parameters of a group updated by multi-tensor kernels."""

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[dict],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        settings = dict(
            lr=lr, momentum=momentum, weight_decay=weight_decay, trust=trust, eps=eps, adapt=True
        )
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. Closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocities = [self.state[p]["momentum_buffer"] for p in params]
            self._assign(velocities, _new_velocities(group, params, velocities))
            self._assign(params, torch._foreach_add(params, velocities, alpha=-group["lr"]))

    def _assign(self, targets: list[Tensor], values: list[Tensor]) -> None:
        if self.found_inf is not None:
            bad = self.found_inf.bool()
            values = [torch.where(bad, t, v) for t, v in zip(targets, values, strict=True)]
        torch._foreach_copy_(targets, values)


def _new_velocities(group: dict, params: list[Tensor], velocities: list[Tensor]) -> list[Tensor]:
    grads = [p.grad for p in params]
    decay = group["weight_decay"]
    if group["adapt"]:
        w_norms = torch._foreach_norm(params)
        g_norms = torch._foreach_norm(grads)
        ratios = [
            torch.where((w > 0) & (g > 0), group["trust"] * w / (g + decay * w + group["eps"]), 1.0)
            for w, g in zip(w_norms, g_norms, strict=True)
        ]
        steps = torch._foreach_add(grads, params, alpha=decay)
        torch._foreach_mul_(steps, ratios)
    else:
        steps = torch._foreach_add(grads, params, alpha=decay)
    moved = torch._foreach_mul(velocities, group["momentum"])
    torch._foreach_add_(moved, steps)
    return moved
