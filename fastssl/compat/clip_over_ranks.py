"""``open_clip.loss.ClipLoss`` over several ranks, in the three meanings its two switches have.

Where features are gathered with gradient, those of a rank get the gradient of the SUM of all ranks'
losses, W times the mean's, which DDP's average divides by W. Where they are not, they get that of
this rank's loss alone: for the whole loss 1 / W of the exact gradient after DDP.
"""

# shapes: N pairs of this rank, D features, W ranks
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.compat.rows import row_dots
from fastssl.losses.distributed import (
    denominators_over_ranks,
    mean_over_ranks,
    num_ranks,
    sum_over_ranks,
)

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def own_rows_loss(image_ND: Tensor, text_ND: Tensor, scale: float | Tensor, group: Group) -> Tensor:
    """local_loss without gradient through the gather: all keys are constants, the own ones too."""
    loss_N = torch.zeros((), dtype=image_ND.dtype, device=image_ND.device)
    for query_ND, key_ND in ((image_ND, text_ND.detach()), (text_ND, image_ND.detach())):
        rows_N = denominators_over_ranks(query_ND, key_ND, scale, group=group).rows
        loss_N = loss_N + (rows_N - row_dots(query_ND, key_ND) * scale) / 2
    return mean_over_ranks(loss_N, group=group)


def own_pairs_loss(
    image_ND: Tensor, text_ND: Tensor, scale: float | Tensor, group: Group
) -> Tensor:
    """local_loss with gather_with_grad: the mean over local pairs; scale gets a rank's share."""
    found = denominators_over_ranks(image_ND, text_ND, scale, group=group, columns=True)
    own_N = row_dots(image_ND, text_ND) * scale
    return mean_over_ranks((found.rows + found.cols) / 2 - own_N, group=group)


def whole_loss(image_ND: Tensor, text_ND: Tensor, scale: float | Tensor, group: Group) -> Tensor:
    """gather_with_grad alone: the loss of all ranks' pairs on every rank, computed once."""
    if isinstance(scale, Tensor):
        scale = _AveragedGradient.apply(scale, group)
    loss = own_pairs_loss(image_ND, text_ND, scale, group)
    return sum_over_ranks(loss, group=group) / num_ranks(group)


def whole_loss_of_own(
    image_ND: Tensor, text_ND: Tensor, scale: float | Tensor, group: Group
) -> Tensor:
    """Neither: the same value; of W equal gradients of a feature only this rank's arrives."""
    share = num_ranks(group)
    own_ND, other_ND = (_ShareOfGradient.apply(side_ND, share) for side_ND in (image_ND, text_ND))
    return whole_loss(own_ND, other_ND, scale, group)


class _AveragedGradient(torch.autograd.Function):
    """The scale of the whole loss has one gradient, of which each rank computes a part."""

    @staticmethod
    def forward(ctx, scale, group):
        ctx.group = group
        return scale.view_as(scale)

    @staticmethod
    def backward(ctx, grad):
        return sum_over_ranks(grad, group=ctx.group) / num_ranks(ctx.group), None


class _ShareOfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, parts):
        ctx.parts = parts
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / ctx.parts, None
