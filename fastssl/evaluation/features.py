"""Features of a data set, once, for every read-out that follows.

The encoder runs in eval mode (running BatchNorm statistics) and without gradients, so that a
feature does not depend on which images share its batch.
"""

# shapes: N images, n batch, C channels, S side, F features
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

HOLD_OUT_EVERY = 5
PROTOCOL = {"batch_norm": "eval (running statistics)", "features": "encoder output, not projected"}


@torch.no_grad()
def extract(encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """(N, F) float32 features on the CPU of batches of (n, C, S, S) images, in their order.

    encode: usually ``encoder(backbone, device)``. Raises ValueError when there is no image.
    """
    parts = [encode(x_nCSS).float().cpu() for x_nCSS in batches]
    if not parts:
        raise ValueError("extract: expected at least one batch of images, received none")
    return torch.cat(parts)


def encoder(backbone: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """``backbone`` put on ``device`` and into eval mode, as a function of CPU images."""
    backbone = backbone.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def encode(x_nCSS: Tensor) -> Tensor:
        return backbone(x_nCSS.to(device, memory_format=torch.channels_last))

    return encode


def standardise(train_NF: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """float64 copies with the mean and deviation of the train part's columns: (0, 1).

    A column that is constant on the train part becomes zero there.
    """
    train_NF = train_NF.double()
    mean_F = train_NF.mean(0)
    scale_F = train_NF.std(0, unbiased=False)
    floor = 1e-12 * max(1.0, float(mean_F.abs().max()))
    scale_F = torch.where(scale_F > floor, scale_F, torch.inf)
    return tuple((part.double() - mean_F) / scale_F for part in (train_NF, *others))


def hold_out(count: int) -> tuple[Tensor, Tensor]:
    """Positions (n,), (m,) of the train images to fit on and to choose a setting on.

    Every fifth image is held out, which is fair to every class in a list sorted by class.
    """
    position_N = torch.arange(count)
    held_N = position_N % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    return position_N[~held_N], position_N[held_N]
