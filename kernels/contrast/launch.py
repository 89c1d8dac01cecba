"""``contrast`` on CUDA: configs, grids and scratch memory for the kernels of kernel.py.

Forward: each logit once, for rows and columns. ``forward_mean``: attention with V = K in one pass
where the (rows, D) sum fits in registers (D <= 256; 512 in 16 bits). Backward: one gradient is
taken FlashAttention-shaped, both share W, written once in chunks that stay in L2 (2 + 4 NKD flops
instead of 8). float64 runs as plain-torch tiles. No launch waits for the device: CUDA graphs
capture it.
"""

# shapes: N queries, K keys, D features, P = N padded to blocks
from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fastssl.kernels.contrast import float64, gradients, reference
from fastssl.kernels.contrast.call import Call, as_call
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.cuda import on_device, serves

SLOT_BYTES = 64 << 20  # column partials of one launch; more query blocks take more launches
F64_BYTES = 64 << 20  # of one chunk of float64 logits


def kept_numel(num_queries: int, num_keys: int, embedding: int, dtype: torch.dtype) -> int:
    """Nothing of the forward pass is kept: on CUDA recomputing a tile beats reading it."""
    return 0


def forward(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool, bound: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows (N,), cols (K,) or empty, top (N,), float32 (float64 if an operand is), nothing kept."""
    if not serves(q_ND.device, "contrast"):
        return reference.forward(q_ND, k_KD, scale, ids, columns, bound, save)
    if torch.float64 in (q_ND.dtype, k_KD.dtype):
        found = float64.forward(q_ND, k_KD, scale, ids, columns, chunk_bytes=F64_BYTES)
    else:
        with on_device(q_ND):
            found = _denominators(as_call(q_ND, k_KD, scale, ids, bound), columns)
    return *found, found[0].new_empty(0)


def forward_mean(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), top (N,) and the softmax-weighted mean of the keys (N, D), all float32."""
    if not serves(q_ND.device, "contrast"):
        return reference.forward_mean(q_ND, k_KD, scale, ids, bound)
    if torch.float64 in (q_ND.dtype, k_KD.dtype):
        return float64.forward_mean(q_ND, k_KD, scale, ids, chunk_bytes=F64_BYTES)
    with on_device(q_ND):
        call = as_call(q_ND, k_KD, scale, ids, bound)
        mean_ND = call.like(q_ND, torch.float32)
        if call.find("mean") is not None:
            return *_single_pass(call, mean_ND), mean_ND
        rows_N, _, top_N = _denominators(call, False)
        gradients.mean(call, rows_N, mean_ND)
        return rows_N, top_N, mean_ND


def backward(
    g_rows_N: Tensor,
    g_cols_K: Tensor,
    q_ND: Tensor,
    k_KD: Tensor,
    scale: Tensor,
    ids: Ids,
    rows_N: Tensor,
    cols_K: Tensor,
    kept: Tensor,
    bound: float,
    wants: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (N, D) and k (K, D) where ``wants`` asks (else empty) and of scale."""
    given = (g_rows_N, g_cols_K, q_ND, k_KD, scale, ids, rows_N, cols_K)
    if not serves(q_ND.device, "contrast"):
        return reference.backward(*given, kept, bound, wants)
    if rows_N.dtype == torch.float64:
        return float64.backward(*given, wants, chunk_bytes=F64_BYTES)
    with on_device(q_ND):
        call = as_call(q_ND, k_KD, scale, ids, bound)
        # dscale comes with either gradient: where neither is wanted, that of the queries is taken
        asked = wants if any(wants) else (True, False)
        outs = call.like(q_ND) if asked[0] else None, call.like(k_KD) if asked[1] else None
        sums = (rows_N, g_rows_N), (cols_K, g_cols_K) if cols_K.numel() else None
        dscale = gradients.accumulate(call, *sums, outs)
        dq_ND, dk_KD = (
            out if out is not None and want else x.new_empty(0)
            for out, want, x in zip(outs, wants, (q_ND, k_KD), strict=True)
        )
        return dq_ND, dk_KD, dscale


def _denominators(call: Call, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    N, K = call.own.count, call.other.count
    tiles = call.config("columns" if columns else "rows")
    BI, BJ, BK = (tiles.constants[name] for name in ("BI", "BJ", "BK"))
    num_blocks, num_j = -(-N // BI), -(-K // BJ)
    strip, strips = call.strips(num_blocks, num_j)
    width = num_j * BJ
    band = min(num_blocks, max(1, SLOT_BYTES // (8 * width))) if columns else num_blocks
    sums, maxes = (call.scratch(strips, num_blocks * BI) for _ in range(2))
    held = (1 + band, width) if columns else (1, 1)
    col_sums, col_maxes = (call.scratch(*held) for _ in range(2))
    cols_K = call.scratch(K if columns else 0)
    for begin in range(0, num_blocks, band):
        count = min(band, num_blocks - begin)
        call.launch_tiles(
            tiles, (count, strips), sums, maxes, col_sums, col_maxes, call.bound, N, K,
            call.depth // BK, call.keep, call.apart, begin, num_blocks, strip,
        )  # fmt: skip
        if columns:
            slots = (int(begin == 0), 1 + count, int(begin + count == num_blocks))
            _merge(call, (col_sums, col_maxes), slots, cols_K, None)
    rows_N, top_N = (call.scratch(N) for _ in range(2))
    _merge(call, (sums, maxes), (0, strips, 1), rows_N, top_N)
    return rows_N, cols_K, top_N


def _merge(
    call: Call,
    scratch: tuple[Tensor, Tensor],
    slots: tuple[int, int, int],
    out: Tensor,
    top: Tensor | None,
) -> None:
    """slots: first, one past the last, and whether the result is final."""
    config, width = call.config("merge"), scratch[0].shape[1]
    call.launch(
        config, (-(-width // config.constants["ROWS"]),), *scratch, call.scale, out,
        out if top is None else top, call.bound, out.shape[0], width, *slots, int(top is not None),
    )  # fmt: skip


def _single_pass(call: Call, mean_ND: Tensor) -> tuple[Tensor, Tensor]:
    (N, D), K = mean_ND.shape, call.other.count
    config = call.config("mean")
    num_blocks, num_j = -(-N // config.constants["BI"]), -(-K // config.constants["BJ"])
    strip, strips = call.strips(num_blocks, num_j)
    P = num_blocks * config.constants["BI"]
    sums, maxes = (call.scratch(strips, P) for _ in range(2))
    acc = call.scratch(strips, P, call.depth)
    call.launch_tiles(
        config, (num_blocks, strips), sums, maxes, acc, N, K, call.keep, call.apart, num_blocks,
        strip,
    )  # fmt: skip
    rows_N, top_N = (call.scratch(N) for _ in range(2))
    # the pass kept a running maximum, so its sums are merged as unbounded ones
    _merge(replace(call, bound=math.inf), (sums, maxes), (0, strips, 1), rows_N, top_N)
    average = call.config("average")
    num_k = call.depth // average.constants["BK"]
    grid = (-(-N // average.constants["ROWS"]), num_k)
    call.launch(average, grid, sums, maxes, acc, mean_ND, N, D, P, num_k, strips)
    return rows_N, top_N
