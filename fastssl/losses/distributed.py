"""The layer under ``group=``: log-denominators over the rows of all ranks, gradients kept at home.

Convention of every loss with ``group=``. The loss is the mean over the LOCAL rows; the gradient of
local embeddings is that of the SUM of all ranks' losses, W times the global mean's. DDP averages
parameter gradients over the W ranks, which gives the exact gradient of the global mean. A scale's
gradient is a rank's share of that sum and comes right by the same average. Every rank must take
part in forward and backward, in one order; only rows, and in the backward M numbers, ever travel.
"""

# shapes: N queries, K keys, M rows of one tower (all here), D features, W ranks
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.kernels.contrast.checks import Pairs, check, scale_tensor
from fastssl.kernels.contrast.op import ALL_PAIRS, Denominators
from fastssl.losses.exchange import (
    AllGather,
    Exchange,
    Group,
    Rows,
    exchange_over,
    process_group,
    row_counts,
)


def denominators_over_ranks(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    *,
    group: Group,
    pairs: Pairs = ALL_PAIRS,
    columns: bool = False,
    bound: float = math.inf,
) -> Denominators:
    """``contrast`` of the local queries (N, D) with the keys of all ranks, keys (K, D) held here.

    Args:
        queries, keys, scale, bound: as ``fastssl.kernels.contrast.op.contrast``, local rows. N and
            K may differ from rank to rank, D may not.
        group: the ranks; each calls this with the same settings. With ``Ring`` keys go round and
            the log-denominators are merged as they pass; the backward sends keys (and queries, for
            the gradient of keys) round once more with 2 numbers per row.
        pairs: labels and row ids of the LOCAL rows; row ids must be unique over all ranks.
        columns: also of the local keys over the queries of all ranks.

    Returns:
        rows (N,), cols (K,) or empty, top (N,). One derivative; a second is refused.

    Raises:
        ValueError: an argument does not fit, or the ranks' shapes do not (all ranks raise).
    """
    check(queries, keys, pairs, bound)
    query_counts, key_counts = row_counts(group, queries, keys)
    plan = _Plan(
        queries=exchange_over(group, query_counts),
        keys=exchange_over(group, key_counts),
        keep=pairs.keep,
        columns=columns,
        bound=bound,
        learns_keys=torch.is_grad_enabled() and keys.requires_grad,
    )
    labels = pairs.labels if pairs.keep != "all" and pairs.labels is not None else (None, None)
    ids = (*labels, *(pairs.rows or (None, None)))
    return Denominators(*_TwoTowers.apply(queries, keys, scale_tensor(scale, queries), *ids, plan))


def symmetric_over_ranks(
    z_MD: Tensor,
    scale: float | Tensor,
    *,
    group: Group,
    keep: str = "all",
    labels: Tensor | None = None,
    bound: float = math.inf,
) -> Denominators:
    """Log-denominators of the local rows (M, D) over the rows of all ranks, without themselves.

    What NT-Xent and SupCon need. A row is a query here and a key everywhere; both parts of its
    gradient are computed here from the log-denominators and cotangents of all ranks.

    Args:
        labels: int64 (M,) of the local rows, for ``keep`` "same" or "different".
        scale, group, keep, bound: as ``denominators_over_ranks``.

    Returns:
        rows (M,), no cols, top (M,).
    """
    check(z_MD, z_MD, Pairs(keep, None if labels is None else (labels, labels)), bound)
    (counts,) = row_counts(group, z_MD)
    exchange = exchange_over(group, counts)
    plan = _Plan(exchange, exchange, keep, False, bound)
    ids = (labels if keep != "all" else None, _positions(z_MD, counts, group))
    rows_M, top_M = _OneTower.apply(z_MD, scale_tensor(scale, z_MD), *ids, plan)
    return Denominators(rows_M, rows_M.new_empty(0), top_M)


def gather_rows(rows: Tensor, *, group: Group) -> Tensor:
    """The rows (n, ...) of every rank in rank order, detached: keys for a queue, labels, ids."""
    gathered = AllGather(process_group(group), *row_counts(group, rows)).collect([rows])[0]
    assert gathered is not None
    return gathered


def global_rows(rows: Tensor, *, group: Group) -> Tensor:
    """int64 (n,): the positions of the local rows among those of all ranks in rank order."""
    (counts,) = row_counts(group, rows)
    return _positions(rows, counts, group)


def sum_over_ranks(x: Tensor, *, group: Group) -> Tensor:
    """Sum of ``x`` over the ranks, on every rank; meant for small tensors of one shape.

    The sum enters the loss of every rank, so its gradient is the sum of all ranks' cotangents
    (class sums of SupCon, batch marginals of DISSL). Linear, so it has derivatives of any order.
    """
    return _SumOverRanks.apply(x, process_group(group))


def num_ranks(group: Group) -> int:
    """W."""
    return dist.get_world_size(process_group(group))


def rank_in(group: Group) -> int:
    """The number of this process among the W ranks."""
    return dist.get_rank(process_group(group))


def mean_over_ranks(loss_M: Tensor, *, group: Group) -> Tensor:
    """Mean of the local losses (M,), weighted so that the ranks' average is the global mean.

    With equally many rows everywhere this is the local mean; else W * sum / (rows of all ranks).
    """
    (counts,) = row_counts(group, loss_M)
    return loss_M.sum() * (len(counts) / sum(counts))


def count_over_ranks(rows: Tensor, *, group: Group | None) -> int:
    """How many rows all ranks hold together; those held here without a group."""
    return rows.shape[0] if group is None else sum(row_counts(group, rows)[0])


def ids_over_ranks(rows: Tensor, *, group: Group | None) -> Tensor:
    """int64 (n,): an id per local row that no other row of any rank has."""
    if group is not None:
        return global_rows(rows, group=group)
    return torch.arange(rows.shape[0], device=rows.device)


@dataclass(frozen=True)
class _Plan:
    """What does not change between forward and backward."""

    queries: Exchange
    keys: Exchange
    keep: str
    columns: bool
    bound: float
    learns_keys: bool = False


def _positions(rows: Tensor, counts: tuple[int, ...], group: Group) -> Tensor:
    first = sum(counts[: dist.get_rank(process_group(group))])
    return torch.arange(first, first + rows.shape[0], device=rows.device)


class _TwoTowers(torch.autograd.Function):
    """Local queries against all keys and, with columns, local keys against all queries."""

    @staticmethod
    def forward(ctx, q_ND, k_KD, scale, q_label, k_label, q_row, k_row, plan: _Plan):
        query_side: Rows = [q_ND, q_label, q_row]
        key_side: Rows = [k_KD, k_label, k_row]
        all_keys = plan.keys.collect(key_side)
        rows_N, top_N = _merge(query_side, plan.keys.blocks(all_keys), scale, plan)
        all_queries: Rows = [None, None, None]
        if plan.columns or plan.learns_keys:
            all_queries = plan.queries.collect(query_side)
        cols_K = rows_N.new_empty(0)
        if plan.columns:
            cols_K, _ = _merge(key_side, plan.queries.blocks(all_queries), scale, plan)
        saved = (*query_side, *key_side, *all_queries, *all_keys)
        ctx.save_for_backward(scale, rows_N, cols_K, *saved)
        ctx.plan = plan
        ctx.mark_non_differentiable(top_N)
        return rows_N, cols_K, top_N

    @staticmethod
    @once_differentiable
    def backward(ctx, g_N, h_K, _top):
        scale, rows_N, cols_K, *saved = ctx.saved_tensors
        query_side, key_side, all_queries, all_keys = (saved[i : i + 3] for i in (0, 3, 6, 9))
        plan, (want_q, want_k, want_scale) = ctx.plan, ctx.needs_input_grad[:3]
        of_rows, of_cols = [g_N.to(rows_N.dtype), rows_N], [h_K.to(rows_N.dtype), cols_K]
        dq_ND = dk_KD = dscale = None
        if want_q or want_scale:
            travelling = plan.keys.blocks(all_keys, of_cols if plan.columns else ())
            dq_ND, dscale = _pull(query_side, of_rows, travelling, scale, plan, want=want_q)
        if want_k:
            travelling = plan.queries.blocks(all_queries, of_rows)
            if plan.columns:
                dk_KD, _ = _pull(key_side, of_cols, travelling, scale, plan, want=True)
            else:
                dk_KD = _pushed(key_side, travelling, scale, plan)
        if dscale is not None:
            dscale = dscale.to(scale.dtype) if want_scale else None
        return dq_ND if want_q else None, dk_KD, dscale, *[None] * 5


class _OneTower(torch.autograd.Function):
    """Local rows against all rows, themselves left out."""

    @staticmethod
    def forward(ctx, z_MD, scale, label, row, plan: _Plan):
        side: Rows = [z_MD, label, row]
        everyone = plan.keys.collect(side)
        rows_M, top_M = _merge(side, plan.keys.blocks(everyone), scale, plan)
        ctx.save_for_backward(scale, rows_M, *side, *everyone)
        ctx.plan = plan
        ctx.mark_non_differentiable(top_M)
        return rows_M, top_M

    @staticmethod
    @once_differentiable
    def backward(ctx, g_M, _top):
        scale, rows_M, *saved = ctx.saved_tensors
        own = [g_M.to(rows_M.dtype), rows_M]
        travelling = ctx.plan.keys.blocks(saved[3:], own)
        want_z, want_scale = ctx.needs_input_grad[:2]
        dz_MD, dscale = _pull(saved[:3], own, travelling, scale, ctx.plan, want=want_z)
        # Every logit was met twice over the ranks, from its row and from its column.
        dscale = (dscale / 2).to(scale.dtype) if want_scale else None
        return dz_MD if want_z else None, dscale, None, None, None


class _SumOverRanks(torch.autograd.Function):
    """All-reduce in both directions."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _reduced(x, group)

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.apply(grad, ctx.group), None


def _reduced(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _merge(side: Rows, blocks: Iterable[Rows], scale: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
    """Log-denominators and largest logits of the rows of ``side`` over all blocks."""
    x, label, row = side
    merged: tuple[Tensor, Tensor] | None = None
    for other, other_label, other_row in blocks:
        ids = (label, other_label, row, other_row, plan.keep)
        rows, _, top, _ = torch.ops.fastssl.contrast(
            x, other, scale, *ids, False, plan.bound, False
        )
        if merged is not None:
            rows, top = torch.logaddexp(merged[0], rows), torch.maximum(merged[1], top)
        merged = (rows, top)
    assert merged is not None
    return merged


def _pull(
    side: Rows, own: Rows, blocks: Iterable[Rows], scale: Tensor, plan: _Plan, *, want: bool
) -> tuple[Tensor, Tensor]:
    """Gradient of the rows of ``side`` and of scale.

    ``own`` is (cotangents, log-denominators) of these rows; a block that carries the same two of
    its rows adds what these rows do in the denominators of others.
    """
    x, label, row = side
    assert x is not None and own[1] is not None
    nothing = own[1].new_empty(0)
    total: tuple[Tensor, Tensor] | None = None
    for other, other_label, other_row, *theirs in blocks:
        g_other, lse_other = theirs or (nothing, nothing)
        ids = (label, other_label, row, other_row, plan.keep)
        dx, _, dscale = torch.ops.fastssl.contrast_backward(
            own[0], g_other, x, other, scale, *ids, own[1], lse_other, nothing, plan.bound,
            want, False,
        )  # fmt: skip
        total = (dx, dscale) if total is None else (total[0] + dx, total[1] + dscale)
    assert total is not None
    return total


def _pushed(side: Rows, blocks: Iterable[Rows], scale: Tensor, plan: _Plan) -> Tensor:
    """Gradient of keys that have no denominators of their own, from those of all queries."""
    x, label, row = side
    total: Tensor | None = None
    for other, other_label, other_row, g_other, lse_other in blocks:
        assert lse_other is not None
        nothing = lse_other.new_empty(0)
        ids = (other_label, label, other_row, row, plan.keep)
        _, dx, _ = torch.ops.fastssl.contrast_backward(
            g_other, nothing, other, x, scale, *ids, lse_other, nothing, nothing, plan.bound,
            False, True,
        )  # fmt: skip
        total = dx if total is None else total + dx
    assert total is not None
    return total
