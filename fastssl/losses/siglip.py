"""SigLIP's sigmoid loss over all pairs (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

    x_ij = scale * u_i . v_j + bias,    y_ij = 1 on the diagonal, -1 elsewhere
    loss = -1/N sum_ij log sigmoid(y_ij x_ij)

The pairs are the work of ``fastssl.kernels.sigmoid_pairs``: no N x N matrix is kept.
"""

# shapes: N pairs, D embedding
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.scalars import is_finite
from fastssl.kernels.sigmoid_pairs.op import sigmoid_pairs, sigmoid_pairs_sum
from fastssl.losses.arguments import (
    bad,
    check_reduction,
    check_same_shape,
    check_setting,
    checked_number,
    is_readable,
)
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import mean_over_ranks
from fastssl.losses.metrics import ContrastiveMetrics
from fastssl.losses.sigmoid_ranks import sigmoid_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "siglip_loss"


class SigLIPLoss(nn.Module):
    """``siglip_loss`` with scale and bias as parameters.

    Args:
        scale: initial scale; the parameter ``log_scale`` holds its logarithm, as in the paper.
        bias: initial value of the parameter ``bias``.
        reduction, group: as of ``siglip_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import SigLIPLoss
        >>> image, text = torch.randn(2, 256, 128, requires_grad=True)
        >>> SigLIPLoss()(image, text).backward()
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("SigLIPLoss", reduction)
        check_setting("SigLIPLoss", "scale", scale, above=0)
        check_setting("SigLIPLoss", "bias", bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.reduction = reduction
        self.group = group

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Loss of (N, D) raw embeddings, () or (N,); row i of one belongs to row i of the other."""
        scale, bias = self.log_scale.exp(), self.bias
        return siglip_loss(image, text, scale, bias, reduction=self.reduction, group=self.group)

    def with_metrics(self, image: Tensor, text: Tensor) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what O(N D) more tells of the local rows; top-1 is NaN."""
        return self(image, text), _metrics(image, text)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    *,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """Sigmoid loss of raw embeddings: the L2 normalisation happens inside.

    Args:
        image: (N, D), any float dtype.
        text: (N, D) of the same dtype; row i is the partner of image i.
        scale: finite and not zero; a float, or a one-element tensor to get its gradient.
        bias: finite; likewise.
        reduction: "mean", "sum" or "none" (the loss of each image over all texts).
        group: ranks whose batches are one batch; None: this process alone. The loss is over local
            images and the texts of all ranks; averaged by DDP its gradient is exact (convention:
            fastssl/losses/distributed.py). One derivative.

    Returns:
        () or (N,) in float32 (float64 for float64 input). Without a group a second derivative
        materialises N x N.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    check_same_shape(NAME, image=image, text=text)
    scale, bias = _finite("scale", scale, image), _finite("bias", bias, image)
    if _value(scale) == 0.0:
        raise bad(NAME, "scale", "finite and not zero", 0.0)
    return pairwise_sigmoid(
        unit_rows(image), unit_rows(text), scale, bias, reduction=reduction, group=group
    )


def pairwise_sigmoid(
    image_ND: Tensor,
    text_ND: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    *,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """``siglip_loss`` of embeddings that are taken as they are (normalise before)."""
    with torch.autocast(image_ND.device.type, enabled=False):
        if group is not None:
            loss_N = sigmoid_over_ranks(image_ND, text_ND, scale, bias, group=group)
            if reduction == "mean":
                return mean_over_ranks(loss_N, group=group)
            return loss_N.sum() if reduction == "sum" else loss_N
        if reduction == "none":
            return sigmoid_pairs(image_ND, text_ND, scale, bias)
        total = sigmoid_pairs_sum(image_ND, text_ND, scale, bias)
        return total / image_ND.shape[0] if reduction == "mean" else total


def _value(number: float | Tensor) -> float | None:
    """The number where looking at it costs no waiting."""
    if isinstance(number, Tensor):
        return float(number.detach()) if is_readable(number) else None
    return number


def _finite(name: str, given: float | Tensor, like: Tensor) -> float | Tensor:
    number = checked_number(NAME, name, given, like)
    value = _value(number)
    if value is not None and not is_finite(value):
        raise bad(NAME, name, "finite", value)
    return number


@torch.no_grad()
def _metrics(image: Tensor, text: Tensor) -> ContrastiveMetrics:
    """Mean similarity of partners, and of the others from the sums of the rows."""
    image_ND, text_ND = unit_rows(image), unit_rows(text)
    num_pairs = image_ND.shape[0]
    own = (image_ND * text_ND).sum()
    others = (image_ND.sum(0) * text_ND.sum(0)).sum() - own
    nan = torch.full_like(own, torch.nan)
    negative = others / (num_pairs * (num_pairs - 1)) if num_pairs > 1 else nan
    return ContrastiveMetrics(nan, own / num_pairs, negative)
