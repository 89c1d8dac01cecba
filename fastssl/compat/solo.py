"""solo-learn's ``simclr_loss_func`` and ``mocov2plus_loss_func`` (``solo.losses``)."""

# shapes: N rows, K queue entries, D features
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.compat.rows import (
    all_ranks,
    as_ids,
    as_ids_over,
    as_peers_return_it,
    check_rows,
    excess,
    row_dots,
    unit_rows,
    widened,
)
from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import contrast, contrast_mean
from fastssl.losses.arguments import DTYPES, bad
from fastssl.losses.distributed import (
    mean_over_ranks,
    num_ranks,
    sum_over_ranks,
    symmetric_over_ranks,
)

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """Mean over rows of -log(sum of exp over positives / sum of exp over all other rows).

    The sum over positives stands inside the logarithm (L_in of Khosla et al., arXiv:2004.11362).

    Args:
        z: (N, D) raw projections of all crops; normalised inside.
        indexes: (N,) sample ids, or class targets: rows with equal ids are positives.
        temperature: non-zero.

    Returns:
        (); +inf where a row has no positive, as in the original, whose gradients are NaN there
        (here: those of the finite terms). Differs: no overflow at temperatures under 1/88.
        Over several processes: the loss of all their rows, on each, and for a rank's rows W times
        its gradient, as the original's gather gives; DDP's average makes that the gradient itself.
    """
    _check_temperature("simclr_loss_func", temperature)
    check_rows("simclr_loss_func", z=z)
    shape = tuple(indexes.shape) if isinstance(indexes, Tensor) else type(indexes).__name__
    if shape != (len(z),):
        expected = f"a tensor of shape ({len(z)},), one id per row of z"
        raise bad("simclr_loss_func", "indexes", expected, shape)
    unit_ND, scale, group = unit_rows(z), 1 / temperature, all_ranks()
    if group is not None:
        ids = as_ids_over(group, indexes.to(z.device))
        return as_peers_return_it(_simclr_over_ranks(unit_ND, ids, scale, group), z)
    ids = as_ids(indexes).to(z.device)
    rows = torch.arange(z.shape[0], device=z.device)
    same = Pairs(keep="same", labels=(ids, ids), rows=(rows, rows))
    different = Pairs(keep="different", labels=(ids, ids))
    positive_N = contrast(unit_ND, unit_ND, scale, pairs=same, bound=1.0).rows
    negative_N = contrast(unit_ND, unit_ND, scale, pairs=different, bound=1.0).rows
    return as_peers_return_it(excess(negative_N, positive_N).mean(), z)


def _simclr_over_ranks(unit_ND: Tensor, ids_N: Tensor, scale: float, group: Group) -> Tensor:
    """The mean over the rows of all ranks, each rank computing its own."""
    positive_N, negative_N = (
        symmetric_over_ranks(unit_ND, scale, group=group, keep=keep, labels=ids_N, bound=1.0).rows
        for keep in ("same", "different")
    )
    local = mean_over_ranks(excess(negative_N, positive_N), group=group)
    return sum_over_ranks(local, group=group) / num_ranks(group)


def mocov2plus_loss_func(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1
) -> Tensor:
    """MoCo's loss (He et al., arXiv:1911.05722, eq. 1) over inputs taken as they are.

    Args:
        query: (N, D), not normalised here; gets a gradient.
        key: (N, D), not normalised here; gets a gradient unless detached.
        queue: (D, K) negatives; of K = 0 the loss is 0. Without a gradient nothing of it is saved
            or copied, so it may be overwritten before the backward.
        temperature: non-zero.

    Returns:
        (), the mean over the queries.
    """
    _check_temperature("mocov2plus_loss_func", temperature)
    check_rows("mocov2plus_loss_func", query=query, key=key)
    shape = tuple(queue.shape) if isinstance(queue, Tensor) else type(queue).__name__
    if not isinstance(queue, Tensor) or queue.dim() != 2 or queue.shape[0] != query.shape[1]:
        expected = f"of shape (D, K) with D = {query.shape[1]}"
        raise bad("mocov2plus_loss_func", "queue", expected, shape)
    if queue.dtype not in DTYPES:
        expected = "float16, bfloat16, float32 or float64"
        raise bad("mocov2plus_loss_func", "queue", expected, queue.dtype)
    scale, keys_KD = 1 / temperature, queue.T
    positive_N = row_dots(query, key) * scale
    if queue.shape[1]:
        denominators = contrast if queue.requires_grad else contrast_mean
        negative_N = denominators(widened(query), keys_KD, scale).rows
    else:
        negative_N = torch.full_like(positive_N, -torch.inf)
    return as_peers_return_it(excess(negative_N, positive_N).mean(), query)


def _check_temperature(name: str, temperature: float) -> None:
    if temperature == 0:
        raise ValueError(f"{name}: temperature must be non-zero; received {temperature}")
