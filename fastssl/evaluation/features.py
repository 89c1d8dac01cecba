"""Features of a data set, once, for every read-out that follows.

The encoder runs in eval mode (running BatchNorm statistics) and without gradients, so that a
feature does not depend on which images share its batch.
"""

# shapes: N images, n batch, C channels, S side, F features
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from fastssl.augment import keyed

HOLD_OUT_EVERY = 5
HELD_OUT = "a keyed fifth of the train split, the same share of each class"
PROTOCOL = {"batch_norm": "eval (running statistics)", "features": "encoder output, not projected"}


@torch.no_grad()
def extract(
    encode: Callable[[Tensor], Tensor], batches: Iterable[Tensor], split: str = ""
) -> Tensor:
    """(N, F) float32 features on the CPU of batches of (n, C, S, S) images, in their order.

    encode: usually ``encoder(backbone, device)``; split: what the images are called in an error.
    Raises ValueError when there is no image, or for features that are NaN or infinite.
    """
    parts = [encode(x_nCSS).float().cpu() for x_nCSS in batches]
    if not parts:
        raise ValueError("extract: expected at least one batch of images, received none")
    features_NF = torch.cat(parts)
    check_finite("extract", **{split or "given": features_NF})
    return features_NF


def check_finite(op: str, **parts: Tensor) -> None:
    """ValueError where a row of the features (..., F) of a split is NaN or infinite.

    parts: the features by the names of their splits. A score of such rows would be a number of
    something else: every comparison with NaN is false.
    """
    for split, features in parts.items():
        finite = torch.isfinite(features).flatten(0, -2).all(1)
        bad = len(finite) - int(finite.sum())
        if bad:
            raise ValueError(
                f"{op}: {bad} of {len(finite)} rows of the {split} features are NaN or infinite; "
                "score an earlier checkpoint, or look for the encoder's weights that are not "
                "finite and for images beyond the range it was trained on"
            )


def encoder(backbone: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """``backbone`` put on ``device`` and into eval mode, as a function of CPU images."""
    backbone = backbone.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def encode(x_nCSS: Tensor) -> Tensor:
        return backbone(x_nCSS.to(device, memory_format=torch.channels_last))

    return encode


def standardise(train_NF: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """float64 copies with the mean and deviation of the train part's columns: (0, 1).

    A column that is constant on the train part becomes zero everywhere: one whose deviation is
    below 1e-12 of its own mean, or below what float32 holds. The scale of the others is no matter.
    """
    train_NF = train_NF.double()
    mean_F = train_NF.mean(0)
    scale_F = train_NF.std(0, unbiased=False)
    floor_F = (1e-12 * mean_F.abs()).clamp(min=torch.finfo(torch.float32).tiny)
    scale_F = torch.where(scale_F > floor_F, scale_F, torch.inf)
    return tuple((part.double() - mean_F) / scale_F for part in (train_NF, *others))


def hold_out(target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted positions (n,), (m,) of the train images to fit on and to choose a setting on.

    target_N: classes (N,), or continuous targets (N, T). A fifth is held out, whatever the order of
    the images: every fifth of a keyed permutation sorted by class, so that the shares of a class
    differ by less than an image. The only image of a class is fitted on, where others are left.
    The same on every machine.
    """
    order_N = torch.from_numpy(
        keyed.permutation(len(target_N), seed=0, epoch=0, stream="hold-out")
    ).long()
    if target_N.ndim == 1:
        label_N = target_N[order_N]
        _, class_N, count_C = label_N.unique(return_inverse=True, return_counts=True)
        order_N = order_N[class_N.argsort(stable=True)]
        several_N = count_C[class_N.sort().values] > 1
        if int(several_N.sum()) >= HOLD_OUT_EVERY:
            order_N = order_N[several_N]
    held_N = torch.zeros(len(target_N), dtype=torch.bool)
    held_N[order_N[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]] = True
    return (~held_N).nonzero()[:, 0], held_N.nonzero()[:, 0]
