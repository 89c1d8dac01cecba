"""SimCLR's loss as a module (Chen et al. 2020, arXiv:2002.05709, eq. 1)."""

# shapes: N samples, D embedding, V views, M = V * N rows
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.ntxent.op import REDUCTIONS, ntxent
from fastssl.losses.distributed import gathered_symmetric, mean_over_ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_EPS = 1e-12  # of torch.nn.functional.normalize
_LEAST_TEMPERATURE = 1e-8


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy over all views of a batch.

    Each row's positives are the other views of its sample; its negatives are every other row.
    Embeddings are given raw: the L2 normalisation is part of the kernel, and no M x M matrix of
    logits is handed to autograd.

    Args:
        temperature: finite and non-zero. A float, or a one-element ``nn.Parameter`` to learn it.
        reduction: "mean" (over V * N rows), "sum" or "none".
        group: ranks whose batches are one batch: the rows of all of them are negatives. None: the
            local rows alone. See ``gathered_ntxent`` for the loss and gradient that a rank gets.

    Example:
        >>> import torch
        >>> from fastssl.losses import NTXentLoss
        >>> z0, z1 = torch.randn(2, 256, 128, requires_grad=True)
        >>> loss = NTXentLoss(temperature=0.1)(z0, z1)
        >>> loss.backward()
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_reduction(reduction)
        self.temperature = temperature
        self.reduction = reduction
        self.group = group

    def forward(self, *views_ND: Tensor) -> Tensor:
        """Loss of two or more (N, D) views: () or, with reduction "none", (V * N,)."""
        if self.group is None:
            return ntxent(views_ND, self.temperature, reduction=self.reduction)
        return gathered_ntxent(
            views_ND, self.temperature, reduction=self.reduction, group=self.group
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


def gathered_ntxent(
    views: Sequence[Tensor],
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    group: ProcessGroup,
) -> Tensor:
    """NT-Xent whose negatives are the rows of all ranks of ``group``, exact after DDP's averaging.

    Args:
        views: V >= 2 tensors (N, D) of raw embeddings, this rank's share of the global batch. N may
            differ from rank to rank (drop nothing), V and D may not.
        temperature: as ``ntxent``; the same on all ranks.
        reduction: "mean" over the LOCAL rows (ragged: weighted, so that the ranks' average is the
            global mean), "sum" of them or "none".
        group: every rank of it takes part, in forward and backward.

    Returns:
        () or (M,). The gradient is that of the SUM of all ranks' losses with respect to what this
        rank holds: averaged over ranks, as DDP does with the gradients of parameters (a learnt
        temperature among them), it is the gradient of the global mean.

    Raises:
        ValueError: an argument or the group does not fit; the message names it.
    """
    _check_reduction(reduction)
    _check_views(views)
    z_MD = torch.cat([_unit_rows(view) for view in views])
    scale = _scale(temperature, z_MD)
    z_VND = z_MD.unflatten(0, (len(views), -1))
    other_views_VND = z_VND.sum(dim=0) - z_VND
    positive_M = (z_VND * other_views_VND).sum(dim=2).flatten() / (len(views) - 1)
    loss_M = gathered_symmetric(z_MD, scale, group=group, bound=1.0).rows - scale * positive_M
    if reduction == "mean":
        return mean_over_ranks(loss_M, group=group)
    return loss_M.sum() if reduction == "sum" else loss_M


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"NTXentLoss: reduction must be one of {REDUCTIONS}; received {reduction!r}"
        )


def _check_views(views: Sequence[Tensor]) -> None:
    if isinstance(views, Tensor) or len(views) < 2:
        received = "one tensor" if isinstance(views, Tensor) else f"{len(views)}"
        raise ValueError(
            f"NTXentLoss: views must be at least two (N, D) tensors; received {received}"
        )
    for position, view in enumerate(views):
        if view.dim() != 2 or view.shape != views[0].shape or view.dtype != views[0].dtype:
            raise ValueError(
                f"NTXentLoss: views[{position}] must be (N, D), of the shape and dtype of views[0] "
                f"({tuple(views[0].shape)} {views[0].dtype}); received {tuple(view.shape)} "
                f"{view.dtype}"
            )


def _unit_rows(h_ND: Tensor) -> Tensor:
    """Rows over max(norm, eps), float32 at least; the norms in float64, so 1e30 is no overflow."""
    dtype = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
    norm_N1 = torch.linalg.vector_norm(h_ND, dim=1, keepdim=True, dtype=torch.float64)
    return h_ND.to(dtype) / norm_N1.clamp_min(_EPS).to(dtype)


def _scale(temperature: float | Tensor, z_MD: Tensor) -> Tensor:
    """The reciprocal temperature as a 0-d tensor beside the rows."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.dtype.is_floating_point:
            received = f"{temperature.dtype} {tuple(temperature.shape)}"
            raise ValueError(f"NTXentLoss: temperature must be one float; received {received}")
        return temperature.to(z_MD.dtype).reshape(()).reciprocal()
    if not math.isfinite(temperature) or abs(temperature) < _LEAST_TEMPERATURE:
        raise ValueError(
            f"NTXentLoss: temperature must be finite and at least {_LEAST_TEMPERATURE} in "
            f"magnitude; received {temperature}"
        )
    return z_MD.new_tensor(1.0 / temperature)
