"""Multi-crop NT-Xent: any number of crops per sample, of any subset of samples per crop.

    loss_i = log sum_{j != i} exp(z_i . z_j / tau) - mean_{p != i, same id} z_i . z_p / tau

Each positive has its own term outside the logarithm, as in ``ntxent``, to which equal crops
without ids are handed.
"""

# shapes: N samples, M rows of all crops, D embedding
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses.arguments import (
    bad,
    check_embeddings,
    check_reduction,
    checked_ids,
    hold_temperature,
    scale_of,
)
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import ids_over_ranks
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.supcon import rows_out_losses, rows_out_terms

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "multi_crop_ntxent"


def multi_crop_ntxent(
    crops: Sequence[Tensor],
    temperature: float | Tensor = 0.1,
    *,
    ids: Sequence[Tensor] | None = None,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """NT-Xent over crops; rows with the same sample id are each other's positives.

    Args:
        crops: raw embeddings, (N_c, D) for crop c, of one dtype.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        ids: per crop an integer (N_c,) of sample ids; None: row n of every crop is sample n, and
            all crops are of one shape.
        reduction: "mean" over the rows that have a positive, "sum", or "none" (0 for the others).
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            Ids mean the same on all ranks; None: no sample is on two ranks.

    Returns:
        () or (M,), the rows of crop 0 first, in float32 (float64 for float64 input).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    crops = _checked_crops(crops)
    scale = scale_of(NAME, temperature, crops[0])
    if group is None and ids is None and len(crops) > 1:
        _check_sizes(crops)
        return ntxent(crops, temperature, reduction=reduction)
    return rows_out_losses(*_unit_rows(crops, ids, group), scale, group).reduced(reduction)


def multi_crop_terms(
    crops: Sequence[Tensor],
    temperature: float | Tensor,
    ids: Sequence[Tensor] | None,
    group: Group | None = None,
) -> Terms:
    """Losses per row and what the metrics are read from."""
    crops = _checked_crops(crops)
    scale = scale_of(NAME, temperature, crops[0])
    return rows_out_terms(*_unit_rows(crops, ids, group), scale, group)


def _checked_crops(crops: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(crops, Tensor) or not isinstance(crops, Sequence) or len(crops) < 1:
        raise bad(NAME, "crops", "a list of (N_c, D) tensors", type(crops).__name__)
    check_embeddings(NAME, **{f"crops[{c}]": crop for c, crop in enumerate(crops)})
    return list(crops)


def _check_sizes(crops: list[Tensor]) -> None:
    sizes = [crop.shape[0] for crop in crops]
    if len(set(sizes)) > 1:
        raise bad(NAME, "ids", f"given for crops of different sizes {sizes}", None)


def _unit_rows(
    crops: list[Tensor], ids: Sequence[Tensor] | None, group: Group | None
) -> tuple[Tensor, Tensor]:
    """Unit rows (M, D) of all crops and their sample ids (M,)."""
    ids_M = _stacked_ids(crops, ids, group)
    return unit_rows(torch.cat(crops)), ids_M


def _stacked_ids(crops: list[Tensor], ids: Sequence[Tensor] | None, group: Group | None) -> Tensor:
    if ids is None:
        _check_sizes(crops)
        return ids_over_ranks(crops[0], group=group).repeat(len(crops))
    if isinstance(ids, Tensor) or len(ids) != len(crops):
        raise bad(NAME, "ids", f"a list of {len(crops)} tensors, one per crop", type(ids).__name__)
    checked = [
        checked_ids(NAME, f"ids[{c}]", id_N, crop.shape[0], crop)
        for c, (id_N, crop) in enumerate(zip(ids, crops, strict=True))
    ]
    return torch.cat(checked)


class MultiCropNTXentLoss(nn.Module):
    """``multi_crop_ntxent`` as a module.

    Args:
        temperature, reduction, group: as of ``multi_crop_ntxent``.

    Example:
        >>> import torch
        >>> from fastssl.losses import MultiCropNTXentLoss
        >>> large, small = torch.randn(2, 32, 128), torch.randn(6, 32, 128)
        >>> loss = MultiCropNTXentLoss(0.1)(*large, *small)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("MultiCropNTXentLoss", reduction)
        hold_temperature(self, temperature)
        self.reduction = reduction
        self.group = group

    def forward(self, *crops: Tensor, ids: Sequence[Tensor] | None = None) -> Tensor:
        """Loss of (N_c, D) crops: () or, with reduction "none", (M,)."""
        return multi_crop_ntxent(
            crops, self.temperature, ids=ids, reduction=self.reduction, group=self.group
        )

    def with_metrics(
        self, *crops: Tensor, ids: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and its metrics; a top-1 hit: the nearest other row is of its sample."""
        terms = multi_crop_terms(crops, self.temperature, ids, self.group)
        return terms.reduced(self.reduction), terms.metrics()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
