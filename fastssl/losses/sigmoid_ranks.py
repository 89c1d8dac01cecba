"""The sigmoid loss of local rows against the rows of all ranks, gradients kept at home.

Convention as in ``fastssl.losses.distributed``: what comes out is the loss of the LOCAL queries,
and the gradient of local rows is that of the SUM over ranks. A query's own gradient is known after
the forward; the keys' gradient is made in the backward from the queries of all ranks and one number
per query, so that no gradient ever travels (8 N K D flops over both).
"""

# shapes: N queries and K keys here, D features
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastssl.kernels.sigmoid_pairs.checks import check, number
from fastssl.losses.exchange import (
    Exchange,
    Group,
    RoundTrip,
    exchange_over,
    process_group,
    row_counts,
)


def sigmoid_over_ranks(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    *,
    group: Group,
) -> Tensor:
    """``sigmoid_pairs`` of the local queries with the keys of all ranks; row i pairs with row i.

    Args:
        queries, keys: (N, D) here, as many of one as of the other; N may differ between ranks.
        scale, bias: as ``fastssl.kernels.sigmoid_pairs.op.sigmoid_pairs``.
        group: the ranks, each of which calls this; ``Ring(group)`` to pass keys (and for their
            gradient queries) round in the memory of two ranks' rows.

    Returns:
        (N,). One derivative; a second is refused.

    Raises:
        ValueError: an argument does not fit, or the ranks' shapes do not (all ranks raise).
    """
    check(queries, keys, 0)
    counts, of_keys = row_counts(group, queries, keys)
    if counts != of_keys:
        raise ValueError(f"group: every rank needs as many keys as queries; {counts}, {of_keys}")
    plan = _Plan(exchange_over(group, counts), counts, dist.get_rank(process_group(group)))
    numbers = number("scale", scale, queries), number("bias", bias, queries)
    return _SigmoidOverRanks.apply(queries, keys, *numbers, plan)


@dataclass(frozen=True)
class _Plan:
    """How rows travel, and where the blocks of other ranks lie."""

    exchange: Exchange
    counts: tuple[int, ...]
    rank: int

    @property
    def firsts(self) -> list[int]:
        """Global position of the first row of each block that comes by, in order."""
        if not isinstance(self.exchange, RoundTrip):
            return [0]
        size = len(self.counts)
        return [sum(self.counts[: (self.rank - hop) % size]) for hop in range(size)]

    @property
    def own(self) -> int:
        """Global position of the first local row."""
        return sum(self.counts[: self.rank])


class _SigmoidOverRanks(torch.autograd.Function):
    """Local queries against all keys; in the backward all queries against the local keys."""

    @staticmethod
    def forward(ctx, q_ND, k_KD, scale, bias, plan: _Plan):
        want_q, want_k, *want_numbers = ctx.needs_input_grad[:4]
        save = want_q or any(want_numbers)
        blocks = plan.exchange.blocks(plan.exchange.collect([k_KD]))
        parts = None
        for (other,), first in zip(blocks, plan.firsts, strict=True):
            found = torch.ops.fastssl.sigmoid_pairs(
                q_ND, other, scale, bias, plan.own - first, save, want_q
            )
            parts = found if parts is None else [a + b for a, b in zip(parts, found, strict=True)]
        assert parts is not None
        everyone = plan.exchange.collect([q_ND]) if want_k else [None]
        ctx.save_for_backward(q_ND, k_KD, scale, bias, *parts[1:], *everyone)
        ctx.plan = plan
        return parts[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, g_N):
        q_ND, k_KD, scale, bias, by_scale_N, by_bias_N, dq_ND, everyone = ctx.saved_tensors
        plan, (want_q, want_k, want_scale, want_bias) = ctx.plan, ctx.needs_input_grad[:4]
        dk_KD = None
        if want_k:
            blocks = plan.exchange.blocks([everyone], [g_N])
            for (other, g_other), first in zip(blocks, plan.firsts, strict=True):
                pulled_KD = torch.ops.fastssl.sigmoid_pairs_keys(
                    g_other, other, k_KD, scale, bias, first - plan.own
                )
                dk_KD = pulled_KD if dk_KD is None else dk_KD + pulled_KD
        return (
            (g_N[:, None] * dq_ND).to(q_ND.dtype) if want_q else None,
            dk_KD,
            (g_N * by_scale_N).sum().to(scale.dtype) if want_scale else None,
            (g_N * by_bias_N).sum().to(bias.dtype) if want_bias else None,
            None,
        )
