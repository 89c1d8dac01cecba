"""The sigmoid loss of all pairs in plain torch: the equation, any float dtype, any device.

    x_ij   = scale * q_i . k_j + bias,    y_ij = 1 where j = i + diagonal, else -1
    rows_i = sum_j log(1 + exp(-y_ij x_ij))
    W_ij   = d rows_i / d x_ij = -y_ij / (1 + exp(y_ij x_ij))

``rows`` is the formula, differentiable; everything else takes blocks of queries, so that no more
than BLOCK_LOGITS logits exist at a time.
"""

# shapes: N queries, K keys, D features, B queries of a block
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels.precision import own_precision

BLOCK_LOGITS = 1 << 20
"""4 MB in float32, about what stays in the cache between the passes over a block."""


class Problem(NamedTuple):
    """queries (N, D), keys (K, D), scale and bias (), and where the pairs' diagonal lies."""

    q_ND: Tensor
    k_KD: Tensor
    scale: Tensor
    bias: Tensor
    diagonal: int | None

    @property
    def dtype(self) -> torch.dtype:
        """Of every sum: float64 as soon as one operand is, else float32."""
        wide = torch.float64 in (self.q_ND.dtype, self.k_KD.dtype)
        return torch.float64 if wide else torch.float32


class Parts(NamedTuple):
    """Per query: its loss (N,), its derivatives by scale (N,), bias (N,) and q (N, D) or empty."""

    rows: Tensor
    by_scale: Tensor
    by_bias: Tensor
    dq: Tensor

    def summed(self) -> Parts:
        """Numbers instead of vectors; dq stays."""
        return Parts(self.rows.sum(), self.by_scale.sum(), self.by_bias.sum(), self.dq)


def rows(problem: Problem) -> Tensor:
    """Loss of every query, (N,), differentiable to any order; materialises (N, K)."""
    q_ND, k_KD = (x.to(problem.dtype) for x in problem[:2])
    with own_precision(q_ND):
        x_NK = q_ND @ k_KD.T * problem.scale.to(q_ND.dtype) + problem.bias.to(q_ND.dtype)
    return -F.logsigmoid(torch.where(_partners(problem, 0, len(q_ND)), x_NK, -x_NK)).sum(1)


def forward(problem: Problem, save: bool, want_q: bool) -> Parts:
    """Losses; with ``save`` also their derivatives, that of q where ``want_q`` asks for it."""
    found = _collected(problem, [])
    none = found.rows.new_empty(0)
    if not save:
        return Parts(found.rows, none, none, none)
    return found if want_q else found._replace(dq=none)


def pull_keys(problem: Problem, g_N: Tensor) -> Tensor:
    """Gradient of the keys, (K, D) in their dtype, for the cotangents g of the queries' losses."""
    dk_KD: list[Tensor] = []
    _collected(problem, dk_KD, g_N.to(problem.dtype))
    return dk_KD[0].to(problem.k_KD.dtype)


def total(problem: Problem, wants: tuple[bool, bool]) -> tuple[Parts, Tensor]:
    """The sum of ``forward``'s parts over queries, dq (N, D) and dk (K, D) where wanted."""
    dk_KD: list[Tensor] = []
    found = _collected(problem, dk_KD)
    none = found.rows.new_empty(0)
    found = found if wants[0] else found._replace(dq=none)
    return found.summed(), dk_KD[0] if wants[1] else none


def _collected(problem: Problem, dk_KD: list[Tensor], g_N: Tensor | None = None) -> Parts:
    """All parts, block by block; ``dk_KD`` receives the gradient of the keys."""
    dtype = problem.dtype
    q_ND, k_KD, scale, bias = (x.detach().to(dtype) for x in problem[:4])
    pulled_KD = torch.zeros_like(k_KD)
    blocks = []
    with own_precision(q_ND):
        for begin, end in _blocks(len(q_ND), len(k_KD)):
            partner_BK = _partners(problem, begin, end)
            s_BK = q_ND[begin:end] @ k_KD.T
            z_BK = s_BK * scale + bias
            z_BK = torch.where(partner_BK, -z_BK, z_BK)
            w_BK = z_BK.sigmoid()
            w_BK = torch.where(partner_BK, -w_BK, w_BK)
            of_rows = (-F.logsigmoid(-z_BK).sum(1), (w_BK * s_BK).sum(1), w_BK.sum(1))
            blocks.append((*of_rows, w_BK @ k_KD * scale))
            weighted_BK = w_BK if g_N is None else w_BK * g_N[begin:end, None]
            pulled_KD.addmm_(weighted_BK.T, q_ND[begin:end])
    dk_KD.append(pulled_KD * scale)
    return Parts(*(torch.cat(part) for part in zip(*blocks, strict=True)))


def _blocks(num_queries: int, num_keys: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_LOGITS // num_keys)
    for begin in range(0, num_queries, step):
        yield begin, min(begin + step, num_queries)


def _partners(problem: Problem, begin: int, end: int) -> Tensor:
    """bool (B, K): which key is the partner of queries [begin, end)."""
    num_keys, device = problem.k_KD.shape[0], problem.k_KD.device
    if problem.diagonal is None:
        return torch.zeros(end - begin, num_keys, dtype=torch.bool, device=device)
    wanted_B = torch.arange(begin, end, device=device) + problem.diagonal
    return wanted_B[:, None] == torch.arange(num_keys, device=device)[None, :]
