"""CLIP's loss (Radford et al. 2021, arXiv:2103.00020, fig. 3): N pairs, both directions.

    x_ij = scale * image_i . text_j
    loss = 1 / 2N sum_i [ lse_j x_ij - x_ii ] + 1 / 2N sum_j [ lse_i x_ij - x_jj ]

One pass over the pairs gives the denominators of both directions.
"""

# shapes: N pairs, D embedding
from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.contrast.op import ALL_PAIRS
from fastssl.kernels.scalars import is_finite
from fastssl.losses.arguments import (
    bad,
    check_reduction,
    check_same_shape,
    check_setting,
    checked_number,
    is_readable,
)
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import ids_over_ranks
from fastssl.losses.matching import Matching, matched
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.options import Options, check_options

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "clip_loss"


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor = 1 / 0.07,
    *,
    options: Options | None = None,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """Symmetric cross-entropy of N pairs of raw, un-normalised embeddings.

    Args:
        image: (N, D), any float dtype.
        text: (N, D) of the same dtype; row i is the partner of image i. A detached tower costs
            nothing for its gradient.
        logit_scale: the factor itself (not its logarithm), finite and non-zero; a float or a
            one-element tensor with gradient.
        options: margin, smoothing, tau_plus, beta.
        reduction: "mean", "sum" or "none" (a loss per pair: the mean of its two directions).
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).

    Returns:
        () or (N,) in float32 (float64 for float64 input).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    return clip_terms(image, text, logit_scale, options, group).reduced(reduction)


def clip_terms(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    options: Options | None = None,
    group: Group | None = None,
) -> Terms:
    """Losses per pair and what the metrics are read from; arguments of ``clip_loss``."""
    check_options(NAME, options)
    check_same_shape(NAME, image=image, text=text)
    scale = checked_number(NAME, "logit_scale", logit_scale, image)
    if isinstance(scale, float) or is_readable(scale):
        value = float(scale.detach() if isinstance(scale, Tensor) else scale)
        if not is_finite(value) or value == 0.0:
            raise bad(NAME, "logit_scale", "finite and not zero", value)
    image_ND, text_ND = unit_rows(image), unit_rows(text)
    ids_N = ids_over_ranks(image, group=group)
    positive_N = (image_ND * text_ND).sum(1)
    ids = (ids_N, ids_N)
    matching = Matching(image_ND, text_ND, positive_N, ids, whole=ALL_PAIRS, group=group)
    return matched(matching, scale, options, symmetric=True)


def _clamped(log_scale: Tensor, limit: float) -> Tensor:
    """The value at most ``limit``, the gradient of the whole ``log_scale``."""
    value = log_scale.detach()
    return value.clamp(max=limit) + (log_scale - value)


class CLIPLoss(nn.Module):
    """``clip_loss`` with the logit scale as a parameter ``log_scale``.

    Args:
        scale: initial factor, 1 / 0.07 as in the paper.
        max_scale: the factor is at most this (100 in the paper); None for no limit. What is used
            is clamped, with its gradient alive at the limit; the parameter is not written to. To
            hold the parameter there too, as CLIP does, call ``clamp_()`` after an optimiser's step.
        learnable: whether ``log_scale`` asks for a gradient.
        options, reduction, group: as of ``clip_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import CLIPLoss
        >>> image, text = torch.randn(2, 64, 128, requires_grad=True)
        >>> CLIPLoss()(image, text).backward()
    """

    def __init__(
        self,
        scale: float = 1 / 0.07,
        *,
        max_scale: float | None = 100.0,
        learnable: bool = True,
        options: Options | None = None,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("CLIPLoss", reduction)
        check_options("CLIPLoss", options)
        check_setting("CLIPLoss", "scale", scale, above=0)
        if max_scale is not None:
            check_setting("CLIPLoss", "max_scale", max_scale, above=0)
            if max_scale < scale:
                expected = f"at most max_scale = {max_scale} (100 unless given; None: no limit)"
                raise bad("CLIPLoss", "scale", expected, scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnable)
        self.max_scale = max_scale
        self.options = options
        self.reduction = reduction
        self.group = group

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Loss of (N, D) images and texts: () or, with reduction "none", (N,)."""
        return self._terms(image, text).reduced(self.reduction)

    def with_metrics(self, image: Tensor, text: Tensor) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it (top-1 of image to text)."""
        terms = self._terms(image, text)
        return terms.reduced(self.reduction), terms.metrics()

    def _terms(self, image: Tensor, text: Tensor) -> Terms:
        return clip_terms(image, text, self._scale(), self.options, self.group)

    def _scale(self) -> Tensor:
        if self.max_scale is not None:
            return _clamped(self.log_scale, math.log(self.max_scale)).exp()
        return self.log_scale.exp()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Brings ``log_scale`` back to the limit, so that it does not run on beyond it."""
        if self.max_scale is not None:
            self.log_scale.clamp_(max=math.log(self.max_scale))

    def extra_repr(self) -> str:
        return f"max_scale={self.max_scale}, options={self.options}, reduction={self.reduction!r}"
