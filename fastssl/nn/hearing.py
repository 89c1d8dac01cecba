"""A method on sounds: the front end is part of its call, on its device, in its compiled graph."""

# shapes: N clips, T samples, C channels, M mel bands, F frames
from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.nn.logmel import LogMel, MelMagnitudePhase

FRONTS: dict[str, type[LogMel]] = {"logmel": LogMel, "mel-magnitude-phase": MelMagnitudePhase}
"""Front ends by name; ``channels`` of each is what the encoder is given."""


def hear(method: nn.Module, front: nn.Module) -> None:
    """From now on views (N, T) of a call of ``method`` become images (N, C, M, F) inside it.

    The front end is ``method.front``: it has no keys in the state, and moves with the method.
    """
    method.front = front
    # no hook: the compiler would make a graph of its own of it
    method.forward = MethodType(_forward, method)  # type: ignore[method-assign]


def as_image(method: nn.Module, x_NT: Tensor) -> Tensor:
    """(N, C, M, F), channels last, of waveforms (N, T); anything else as it is.

    In fp32 also under autocast: powers of quiet bands are below what 16 bits resolve.
    """
    front = getattr(method, "front", None)
    if front is None or x_NT.ndim != 2:
        return x_NT
    with torch.autocast(x_NT.device.type, enabled=False):
        image_NCMF = front(x_NT)
    return image_NCMF.contiguous(memory_format=torch.channels_last)


def _forward(method: nn.Module, views: tuple[Tensor, ...], *rest: Any) -> Any:
    return type(method).forward(method, tuple(as_image(method, view) for view in views), *rest)
