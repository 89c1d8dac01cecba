"""Optimisers by name, their parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastssl.engine.config import TrainConfig, scaled_lr
from fastssl.engine.lars import LARS

_MOMENTUM = 0.9


def learning_rate(step: int, *, peak: float, total: int, warmup: int) -> float:
    """Rate of step ``step`` in 0 .. total-1: linear warm-up to ``peak``, then a cosine to zero.

    Warm-up step k uses ``peak * (k + 1) / warmup``; the cosine (Loshchilov and Hutter 2017) is
    ``peak * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def oscillating_rate(step: int, *, peak: float, warmup: int, half_period: int) -> float:
    """The same warm-up, then ``peak * (1 + cos(pi * (step - warmup) / half_period)) / 2`` for ever.

    torch's CosineAnnealingLR with T_max = half_period, stepped past it: the rate swings back up.
    Heggan et al. 2023 step theirs every batch, with a T_max that was meant in epochs.
    """
    if step < warmup:
        return learning_rate(step, peak=peak, total=warmup, warmup=warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / half_period))


def scheduled_rate(config: TrainConfig, step: int, *, total: int, warmup: int) -> float:
    """The rate of a step by ``config.schedule``."""
    peak = scaled_lr(config)
    if config.schedule == "oscillating":
        return oscillating_rate(step, peak=peak, warmup=warmup, half_period=config.half_period)
    return learning_rate(step, peak=peak, total=total, warmup=warmup)


def parameter_groups(method: nn.Module, *, weight_decay: float) -> list[dict]:
    """Matrices and kernels decay and adapt; biases and normalisation (ndim <= 1) do neither."""
    trained = [p for p in method.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("optimizer: the method has no parameter with requires_grad=True")
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(method: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The configured optimiser over the method's trainable parameters, its state already allocated.

    All three honour ``optimizer.found_inf`` (a 0-d float tensor; 1 skips the step on the device).
    """
    groups = parameter_groups(method, weight_decay=config.weight_decay)
    lr = scaled_lr(config)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    elif config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=_MOMENTUM, fused=True)
    elif config.optimizer == "lars":
        for group in groups:
            group["adapt"] = group["params"][0].ndim > 1
        optimizer = LARS(groups, lr=lr, momentum=_MOMENTUM)
    else:
        raise ValueError(f"optimizer: expected adamw, sgd or lars, received {config.optimizer!r}")
    _allocate_state(optimizer)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def named_state(optimizer: torch.optim.Optimizer, method: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors, keyed ``kind:parameter name`` (``exp_avg:head.0.weight``)."""
    names = {p: name for name, p in method.named_parameters()}
    return {
        f"{kind}:{names[p]}": tensor
        for group in optimizer.param_groups
        for p in group["params"]
        for kind, tensor in optimizer.state[p].items()
    }


def _allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Zero state for every parameter now instead of at the first step.

    A checkpoint can then be checked against it before anything is changed, and a first step skipped
    by ``found_inf`` cannot leave torch's fused SGD with an uninitialised momentum buffer.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if isinstance(optimizer, torch.optim.AdamW):
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                first, second = torch.zeros_like(p), torch.zeros_like(p)
                optimizer.state[p] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
            else:
                optimizer.state[p] = {"momentum_buffer": torch.zeros_like(p)}
