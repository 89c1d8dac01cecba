"""Looking at the representation while it trains, without touching the training.

Readouts see ``features_fn`` only. Random state, train/eval modes and weights are the same after as
before, so a run with readouts ends in the same bytes as one without.
"""

# shapes: N images, C channels, S side, F features
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fastssl.engine.config import Precision
from fastssl.engine.device import autocast
from fastssl.engine.protocols import FeaturesFn, Readout
from fastssl.nn.hearing import as_image


@contextlib.contextmanager
def observing(method: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode inside; random state and every module's own mode restored afterwards."""
    modes = [(module, module.training) for module in method.modules()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        method.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def features_fn(method: nn.Module, *, device: torch.device, precision: Precision) -> FeaturesFn:
    """x (N, C, S, S) or (N, T) anywhere -> float32 features (N, F) on the CPU, no gradients."""

    def features(x_NCSS: Tensor) -> Tensor:
        with torch.no_grad(), autocast(precision, device):
            x_NCSS = as_image(method, x_NCSS.to(device, non_blocking=True))
            if x_NCSS.ndim == 4:
                x_NCSS = x_NCSS.contiguous(memory_format=torch.channels_last)
            return method.features(x_NCSS).float().cpu()  # type: ignore[operator]

    return features


def run_readouts(
    method: nn.Module,
    readouts: Sequence[Readout],
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> dict[str, float]:
    """Every readout's (name, value) pairs on the method as it is now."""
    with observing(method, device):
        look = features_fn(method, device=device, precision=precision)
        return {name: float(value) for readout in readouts for name, value in readout(look)}
