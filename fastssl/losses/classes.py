"""Sums over the rows of a class in O(K D), without a K x K mask; static shapes in one process."""

# shapes: N queries, K keys, C classes of all ranks, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.losses.distributed import gather_rows, sum_over_ranks
from fastssl.losses.exchange import Ring, exchange_over, row_counts

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


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
