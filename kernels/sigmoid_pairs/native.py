"""The sigmoid loss of all pairs on the CPU through the compiled library (csrc/sigmoid_pairs.cpp).

Each logit is made once; W is multiplied with both sides while its tile is in the cache.
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastssl.kernels import native
from fastssl.kernels.sigmoid_pairs.reference import Parts, Problem

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# SigmoidPairs of csrc/sigmoid_pairs.h.
_CALL = struct.Struct("@" + "Pqq" * 2 + "qqqq" + "iiii" + "ii" + "dd" + "P" * 6)


def forward(problem: Problem, save: bool, want_q: bool) -> Parts:
    """Losses (N,); with ``save`` also their derivatives, that of q where ``want_q`` asks for it."""
    N, dtype = problem.q_ND.shape[0], problem.dtype
    by_scale_N, by_bias_N = (_empty(N if save else 0, dtype=dtype) for _ in range(2))
    dq_ND = _empty(*(problem.q_ND.shape if save and want_q else (0,)), dtype=dtype)
    found = Parts(_empty(N, dtype=dtype), by_scale_N, by_bias_N, dq_ND)
    _run(problem, found, None, None)
    return found


def pull_keys(problem: Problem, g_N: Tensor) -> Tensor:
    """Gradient of the keys, (K, D) in their dtype, for the cotangents g of the queries' losses."""
    dk_KD = _empty(*problem.k_KD.shape, dtype=problem.k_KD.dtype)
    nothing = _empty(0, dtype=problem.dtype)
    _run(
        problem,
        Parts(nothing, nothing, nothing, nothing),
        g_N.to(problem.dtype).contiguous(),
        dk_KD,
    )
    return dk_KD


def total(problem: Problem, wants: tuple[bool, bool]) -> tuple[Parts, Tensor]:
    """The sum of ``forward``'s parts over queries, dq (N, D) and dk (K, D) where wanted."""
    rows_N, by_scale_N, by_bias_N = (
        _empty(problem.q_ND.shape[0], dtype=problem.dtype) for _ in range(3)
    )
    dq_ND, dk_KD = (
        _empty(*(x.shape if want else (0,)), dtype=problem.dtype)
        for x, want in zip((problem.q_ND, problem.k_KD), wants, strict=True)
    )
    found = Parts(rows_N, by_scale_N, by_bias_N, dq_ND)
    _run(problem, found, None, dk_KD)
    return found.summed(), dk_KD


def _run(problem: Problem, outputs: Parts, g_N: Tensor | None, dk_KD: Tensor | None) -> None:
    """Fills what is not empty."""
    q_ND, k_KD, scale, bias, diagonal = problem
    dk_dtype = problem.dtype if dk_KD is None else dk_KD.dtype
    call = _CALL.pack(
        *(q_ND.data_ptr(), *q_ND.stride()),
        *(k_KD.data_ptr(), *k_KD.stride()),
        *(q_ND.shape[0], *k_KD.shape),
        k_KD.shape[0] if diagonal is None else diagonal,  # beyond the last key: no partner
        *(DTYPES[q_ND.dtype], DTYPES[k_KD.dtype], DTYPES[outputs.dq.dtype], DTYPES[dk_dtype]),
        *(torch.get_num_threads(), problem.dtype == torch.float64),
        *(scale.item(), bias.item()),
        0 if g_N is None else g_N.data_ptr(),
        *(x.data_ptr() if x.numel() else 0 for x in outputs),
        dk_KD.data_ptr() if dk_KD is not None and dk_KD.numel() else 0,
    )
    library = native.library()
    assert library is not None
    if library.fastssl_sigmoid_pairs(call):
        pairs = f"{q_ND.shape[0]:,} x {k_KD.shape[0]:,}"
        raise MemoryError(f"sigmoid_pairs: no memory for the partial sums of {pairs} pairs")


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")
