"""What a run will do, worked out before it starts (``--dry-run``)."""

# shapes: N batch, C channels, S side
from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fastssl.engine.config import TrainConfig, scaled_lr
from fastssl.engine.device import resolve_precision
from fastssl.engine.protocols import Batch, Source
from fastssl.engine.step import place_batch

_READOUTS_PER_RUN = 5
_STATE_COPIES = {"adamw": 2, "sgd": 1, "lars": 1}


def check(config: TrainConfig) -> None:
    """Raise ValueError, naming the setting, for values that no run can have."""
    at_least = {
        **{"batch_size": 2, "accumulate": 1, "save_every": 1, "log_every": 1, "image_size": 1},
        **{"keep_checkpoints": 2, "max_bad_steps": 1, "readout_every": 0, "warmup_steps": 0},
        **{"workers": 0, "seed": 0, "preview": 0, "half_period": 1},
    }
    for name, least in at_least.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name}: expected at least {least}, received {getattr(config, name)}")
    if config.seed >= 1 << 63:
        raise ValueError(f"seed: expected 0 to 2**63 - 1, received {config.seed}")
    if config.max_bad_files is not None and not 0 <= config.max_bad_files <= 1:
        raise ValueError(
            f"max_bad_files: expected a fraction, 0 to 1, received {config.max_bad_files:g}"
        )
    for name in ("epochs", "max_steps"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, received {value}")
    if not (math.isfinite(config.lr) and config.lr > 0):
        raise ValueError(f"lr: expected a positive number, received {config.lr}")
    if not (math.isfinite(config.weight_decay) and config.weight_decay >= 0):
        raise ValueError(f"weight_decay: expected zero or more, received {config.weight_decay}")


def total_steps(source: Source, config: TrainConfig, *, num_ranks: int = 1) -> int:
    """Optimiser steps of the whole run.

    Raises:
        ValueError: neither epochs nor max_steps is set, the data do not fill one batch, or a batch
            cannot be shared evenly by ``num_ranks``.
    """
    check(config)
    if config.batch_size % num_ranks:
        raise ValueError(
            f"batch_size: {config.batch_size} samples are not shared evenly by {num_ranks} ranks; "
            f"give --batch-size {-(-config.batch_size // num_ranks) * num_ranks}"
        )
    per_epoch = source.steps_per_epoch(config.batch_size)
    if per_epoch < 1:
        raise ValueError(
            f"batch_size: {config.batch_size} is more than the {source.num_samples} samples of "
            f"{source.name}; give a smaller --batch-size"
        )
    if config.max_steps is not None:
        return config.max_steps
    if config.epochs is None:
        raise ValueError("epochs, max_steps: set one of them")
    return max(1, config.epochs * per_epoch // config.accumulate)


def resolved(config: TrainConfig, *, source: Source, device: torch.device) -> dict:
    """What this start makes of the settings that leave something open; plain values."""
    steps = total_steps(source, config)
    samples = config.batch_size * config.accumulate
    seen = seen_of(source)
    return {
        **({} if seen is None else {"data": seen}),
        "device": str(device),
        "precision": resolve_precision(config.precision, device),
        "total_steps": steps,
        "epochs": round(steps * samples / source.num_samples, 4),
        "lr_after_scaling": scaled_lr(config),
        "warmup_steps": warmup_steps(config, steps),
        "readout_every": readout_interval(config, steps),
        "samples": source.num_samples,
        "views_per_step": samples * source.num_views,
    }


def seen_of(source: Source) -> dict | None:
    """The source's fingerprint: plain values that differ when its data do; None without one."""
    look = getattr(source, "fingerprint", None)
    return None if look is None else look()


def warmup_steps(config: TrainConfig, steps: int) -> int:
    """Steps of warm-up: as set, or a tenth of a run that would not outlast them."""
    return config.warmup_steps if config.warmup_steps < steps else steps // 10


def readout_interval(config: TrainConfig, steps: int) -> int:
    """Steps between live readouts."""
    return config.readout_every or max(1, steps // _READOUTS_PER_RUN)


def rehearse(method: nn.Module, source: Source, *, batch_size: int) -> None:
    """One training step of a copy on a few samples: what it would refuse, it refuses now.

    Raises ValueError (a setting of the method's) or RuntimeError (views too small for the encoder).
    """
    for parts in {int(getattr(module, "num_splits", 1)) for module in method.modules()}:
        if batch_size % parts:
            raise ValueError(
                f"bn_splits: expected a divisor of the batch, received {parts}; a batch of "
                f"{batch_size} does not fall into as many equal parts: give another --bn-splits or "
                "--batch-size"
            )
    batch, twin = source.rehearsal(_divisible(method)), copy.deepcopy(method).train()
    twin(batch.views, getattr(twin, "leaves", lambda table: table)(batch.table))
    getattr(twin, "after_step", lambda step, total: None)(0, 1)


def _divisible(method: nn.Module) -> int:
    """Samples enough to try the method on: four, or what its split batch norms can share."""
    splits = [int(getattr(module, "num_splits", 1)) for module in method.modules()]
    return math.lcm(4, *splits)


@dataclass(frozen=True)
class Memory:
    """Estimated bytes while training, framework and data loader not included."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(method: nn.Module, config: TrainConfig, *, source: Source) -> Memory:
    """Weights, gradients and optimiser counted; activations measured at N = 4 and 8, extrapolated.

    Runs two small forward passes: buffers and random state move, so call it before training only
    where that does not matter (``--dry-run``).
    """
    params = [p for p in method.parameters() if p.requires_grad]
    trained = sum(p.numel() * p.element_size() for p in params)
    held = sum(t.numel() * t.element_size() for t in (*method.parameters(), *method.buffers()))
    few = _divisible(method)
    small, large = (_saved_bytes(method, source.rehearsal(n)) for n in (few, 2 * few))
    per_sample = max(0, large - small) / few
    return Memory(
        weights=held,
        gradients=trained,
        optimizer=trained * _STATE_COPIES[config.optimizer],
        activations=int(small + per_sample * max(0, config.batch_size - few)),
    )


def plan_lines(
    config: TrainConfig,
    *,
    source: Source,
    method: nn.Module,
    device: torch.device,
    backends: Mapping[str, str],
) -> list[str]:
    """The resolved plan, one aligned line per fact. ``backends`` says which code each op uses."""
    steps = total_steps(source, config)
    samples = config.batch_size * config.accumulate
    memory = estimate_memory(method, config, source=source)
    least = "" if getattr(source, "all_listed", True) else "at least "
    precision = {"fp32": "fp32", "bf16": "bf16 autocast"}[
        resolve_precision(config.precision, device)
    ]
    facts = {
        "method": config.method,
        "data": f"{source.name}, {least}{source.num_samples:,} samples, "
        f"views of {source.image_shape}",
        "augmentation": f"{config.augment}, {source.num_views} views",
        "backbone": f"{config.backbone}, {_count(method.backbone):,} parameters "  # type: ignore[arg-type]
        f"({_count(method):,} with the method's heads)",
        "device": f"{device}, {precision}, {'torch.compile' if config.compile else 'eager'}",
        "steps": f"{'' if config.max_steps else least}{steps:,} "
        f"({steps * samples / source.num_samples:.2f} epochs)",
        "views per step": f"{samples * source.num_views:,} ({samples:,} samples x "
        f"{source.num_views} views)",
        "lr after scaling": f"{scaled_lr(config):.4g} ({config.lr:g} x {samples} / 256), "
        f"{config.optimizer}, {warmup_steps(config, steps)} warm-up steps, {_falling(config)}",
        "memory estimate": f"{memory.total / 2**20:,.0f} MiB (weights "
        f"{memory.weights / 2**20:.0f}, gradients {memory.gradients / 2**20:.0f}, optimiser "
        f"{memory.optimizer / 2**20:.0f}, activations {memory.activations / 2**20:,.0f})",
        **{f"op {name}": backend for name, backend in backends.items()},
    }
    if config.accumulate > 1:
        facts["negatives"] = accumulation_note(config)
    return [f"{name:<18}{value}" for name, value in facts.items()]


def _falling(config: TrainConfig) -> str:
    if config.schedule == "cosine":
        return "cosine to 0"
    return f"cosine to 0 in {config.half_period} steps and back up, again and again"


def accumulation_note(config: TrainConfig) -> str:
    """What accumulation does to the negatives."""
    return (
        f"from each micro-batch of {config.batch_size} samples alone; --accumulate "
        f"{config.accumulate} averages gradients and does not enlarge the contrastive batch"
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _saved_bytes(method: nn.Module, batch: Batch) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(method.parameters()).device
    views, table = place_batch(batch, device)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = method(views, getattr(method, "leaves", lambda table: table)(table))
    del loss
    return sum(kept.values())
