"""Sums over the rows of a class in O(K D), and largest logits of a class, without a K x K mask."""

# shapes: N queries, K keys, M rows of one tower, C classes, S rows of a class, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.precision import own_precision
from fastssl.losses.denominators import denominators
from fastssl.losses.distributed import gather_rows, sum_over_ranks
from fastssl.losses.exchange import Ring, RoundTrip, exchange_over, process_group, row_counts

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


LOGITS_AT_ONCE = 1 << 20


def _table(values: Tensor, query_ids_N: Tensor, key_ids_K: Tensor, group: Group | None) -> Tensor:
    """(N, ...): the sum of the values (K, ...) of the keys with each query's id."""
    if group is None:
        slots = key_ids_K.sort().values  # one per key: the first of a class is used
    else:
        slots = gather_rows(key_ids_K, group=group).unique()
    slot_K = torch.searchsorted(slots, key_ids_K)
    slot_N = torch.searchsorted(slots, query_ids_N).clamp_max(slots.shape[0] - 1)
    sums = values.new_zeros(slots.shape[0], *values.shape[1:]).index_add(0, slot_K, values)
    if group is not None:
        sums = sum_over_ranks(sums, group=group)
    known_N = slots[slot_N] == query_ids_N
    return sums[slot_N] * known_N.reshape(-1, *[1] * (values.dim() - 1))


def class_counts(query_ids_N: Tensor, key_ids_K: Tensor, group: Group | None = None) -> Tensor:
    """(N,) int64: how many keys (of all ranks of a group) have the id of the query."""
    return _table(torch.ones_like(key_ids_K), query_ids_N, key_ids_K, group)


def class_sums(
    keys_KD: Tensor, query_ids_N: Tensor, key_ids_K: Tensor, group: Group | None = None
) -> Tensor:
    """(N, D): the sum of the keys (of all ranks of a group) that have the id of the query."""
    if isinstance(group, Ring):
        return _ClassSumsOfVisitors.apply(keys_KD, query_ids_N, key_ids_K, group)
    return _table(keys_KD, query_ids_N, key_ids_K, group)


class _ClassSumsOfVisitors(torch.autograd.Function):
    """Without a table of all ranks' classes, which is all ranks' rows where ids are of samples."""

    @staticmethod
    def forward(ctx, keys_KD, query_ids_N, key_ids_K, group: Ring):
        ctx.save_for_backward(query_ids_N, key_ids_K)
        ctx.group = group
        return _met(query_ids_N, keys_KD, key_ids_K, group)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        query_ids_N, key_ids_K = ctx.saved_tensors
        return _met(key_ids_K, grad_ND, query_ids_N, ctx.group), None, None, None


def _met(query_ids_N: Tensor, values: Tensor, ids: Tensor, group: Ring) -> Tensor:
    """The sum over all ranks of the values with each query's id, block by block."""
    (counts,) = row_counts(group, values)
    blocks = exchange_over(group, counts).blocks([values, ids])
    return sum(_table(visiting, query_ids_N, theirs, None) for visiting, theirs in blocks)


@torch.no_grad()
def class_tops(
    z_MD: Tensor, ids_M: Tensor, scale: float | Tensor, group: Group | None = None
) -> Tensor:
    """(M,) the largest scale * z_i . z_j over the other rows j (of all ranks) with the id of i.

    Minus infinity without any. O(M P D) for P rows of a class, in plain torch: classes of one size
    are one batch of products.
    """
    if group is None:
        return _tops(z_MD, ids_M, scale)
    (counts,) = row_counts(group, z_MD)
    top_M = None
    for theirs_MD, their_ids_M in RoundTrip(process_group(group), counts).blocks([z_MD, ids_M]):
        if top_M is None:  # the first block is this rank's own
            top_M = _tops(z_MD, ids_M, scale)
            continue
        both, ids = torch.cat([z_MD, theirs_MD]), torch.cat([ids_M, their_ids_M])
        top_M = torch.maximum(top_M, _tops(both, ids, scale)[: len(z_MD)])
    return top_M


def _tops(z_MD: Tensor, ids_M: Tensor, scale: float | Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the sizes of classes are values, which no graph can read
        row_M = torch.arange(len(z_MD), device=z_MD.device)
        pairs = Pairs(keep="same", labels=(ids_M, ids_M), rows=(row_M, row_M))
        return denominators(z_MD, z_MD, scale, pairs=pairs).top
    with own_precision(z_MD):
        return _tops_of_classes(z_MD, ids_M, scale)


def _tops_of_classes(z_MD: Tensor, ids_M: Tensor, scale: float | Tensor) -> Tensor:
    top_M = z_MD.new_full((len(z_MD),), -torch.inf)
    order_M = ids_M.argsort()
    counts_C = ids_M[order_M].unique_consecutive(return_counts=True)[1]
    size_M = counts_C.repeat_interleave(counts_C)
    for size in counts_C.unique().tolist():
        rows_CS = order_M[size_M == size].view(-1, size)
        for part_CS in rows_CS.split(max(1, LOGITS_AT_ONCE // size**2)) if size > 1 else ():
            z_CSD = z_MD[part_CS]
            for start in range(0, size, max(1, LOGITS_AT_ONCE // size)):
                some_CSD = z_CSD[:, start : start + max(1, LOGITS_AT_ONCE // size)]
                x_CSS = (some_CSD * scale) @ z_CSD.mT
                x_CSS.diagonal(start, 1, 2).fill_(-torch.inf)
                top_M[part_CS[:, start : start + some_CSD.shape[1]]] = x_CSS.amax(2)
    return top_M
