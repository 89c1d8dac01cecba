"""The backward launches of ``contrast``: one gradient by recomputation, two by chunks of W.

One gradient: FlashAttention-shaped, W never leaves the registers (4 NKD flops). Two: W is written
once, in chunks that stay in L2, and two GEMMs read it (6 NKD flops and one exponential instead of
8 and two). That is also the path of fp32 and of D > 256, where the sum does not fit in registers.
"""

# shapes: N queries, K keys, D features, P and Q = N and K padded to blocks, C rows of a chunk
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.contrast.call import Call, Side

CHUNK_BYTES = 24 << 20  # a chunk of W rows that an L2 keeps (A100 40 MB, H100 50 MB)
OWN, OTHER, BOTH = 1, 2, 3  # whose log-denominators a weight is made of
Sums = tuple[Tensor, Tensor]  # log-denominators of a side and the gradient of them


def accumulate(
    call: Call, rows: Sums, cols: Sums | None, outs: tuple[Tensor | None, Tensor | None]
) -> Tensor:
    """Fills dq (N, D) and dk (K, D) where given; returns dscale, 0-d."""
    g_max = rows[1].abs().amax()
    if cols is not None:
        g_max = torch.maximum(g_max, cols[1].abs().amax())
    g_max = g_max.to(torch.float32)
    states = _state(call, call.own, rows, g_max), _state(call, call.other, cols, g_max)
    sides = OWN if cols is None else BOTH
    dq_ND, dk_KD = outs
    if call.find("pull") is None or (dq_ND is not None and dk_KD is not None):
        accs = _by_gemm(call, states, sides, outs)
    elif dq_ND is not None:
        accs = _pulled(call, states, sides), None
    else:
        accs = None, _pulled(call.swapped(), states[::-1], OTHER if cols is None else BOTH)
    dscales = [
        _finish(call, side, acc, (call.scale, g_max), out)
        for side, acc, out in zip((call.own, call.other), accs, outs, strict=True)
        if acc is not None and out is not None
    ]
    return dscales[0]  # sum_i q_i . (W k)_i and sum_j k_j . (W^T q)_j are the same number


def mean(call: Call, rows_N: Tensor, mean_ND: Tensor) -> None:
    """Fills sum_j exp(x_ij - rows_i) k_j: dq of a unit gradient before it is scaled."""
    one = torch.ones_like(call.scale)
    states = (
        _state(call, call.own, (rows_N, torch.ones_like(rows_N)), one),
        _state(call, call.other, None, one),
    )
    acc_PD, _ = _by_gemm(call, states, OWN, (mean_ND, None))
    assert acc_PD is not None
    _finish(call, call.own, acc_PD, (one, one), mean_ND)


def _state(call: Call, side: Side, sums: Sums | None, g_max: Tensor) -> Tensor:
    """(3, P) of a side; without sums, that of rows for which no pair counts."""
    config, padded = call.config("state"), side.padded
    lse, g = (x.to(torch.float32).contiguous() for x in sums) if sums else (g_max, g_max)
    state_3P = call.scratch(3, padded)
    call.launch(
        config, (-(-padded // config.constants["ROWS"]),), call.scale, lse, g, g_max, state_3P,
        call.bound, side.count if sums else 0, padded,
    )  # fmt: skip
    return state_3P


def _pulled(call: Call, states: tuple[Tensor, ...], sides: int) -> Tensor:
    """2^13 sum_j W_ij k_j (splits, P, D); enough splits of j to occupy every multiprocessor."""
    config = call.config("pull")
    N, K, P = call.own.count, call.other.count, call.own.padded
    num_i, num_j = -(-N // config.constants["BI"]), -(-K // config.constants["BJ"])
    per_split, splits = call.strips(num_i, num_j)
    acc_SPD = call.scratch(splits, P, call.depth)
    call.launch_tiles(
        config, (num_i, splits), *states, acc_SPD, call.bound, N, K, P, call.other.padded,
        call.keep, call.apart, sides, per_split,
    )  # fmt: skip
    return acc_SPD


def _by_gemm(
    call: Call, states: tuple[Tensor, ...], sides: int, outs: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """2^13 W k (1, N, D) and 2^13 W^T q (1, K, D), each where the output is wanted."""
    sizes = [side.x_RD.element_size() for side in (call.own, call.other)]
    # a chunk is as wide as the shorter side, unless the other is stored narrower: then it is the
    # one to be chunked, since a GEMM wants a copy in the dtype of W
    if sizes[0] > sizes[1] or (sizes[0] == sizes[1] and call.own.count < call.other.count):
        flipped = {OWN: OTHER, OTHER: OWN, BOTH: BOTH}[sides]
        return _by_gemm(call.swapped(), states[::-1], flipped, outs[::-1])[::-1]
    q_ND, k_KD = call.own.x_RD, call.other.x_RD
    N, K, Q = call.own.count, call.other.count, call.other.padded
    config = call.config("weights")
    block, num_k = config.constants["BI"], call.depth // config.constants["BK"]
    num_i, num_j = -(-N // block), Q // config.constants["BJ"]
    widest = max(Q, call.depth if sizes[0] < sizes[1] else 0)
    per_chunk = min(num_i, max(1, CHUNK_BYTES // (widest * max(sizes) * block)))
    w_CQ = call.chunk(per_chunk * block, Q)
    acc_ND, acc_KD = (
        None if out is None else call.scratch(1, side.count, call.depth)
        for side, out in zip((call.own, call.other), outs, strict=True)
    )
    for begin in range(0, num_i, per_chunk):
        count = min(per_chunk, num_i - begin)
        call.launch_tiles(
            config, (num_j, count), *states, w_CQ, call.bound, N, K, call.own.padded, Q, num_k,
            call.keep, call.apart, sides, begin,
        )  # fmt: skip
        rows = slice(begin * block, min((begin + count) * block, N))
        w_CK = w_CQ[: rows.stop - rows.start, :K]
        if acc_ND is not None:
            _gemm(w_CK, k_KD, acc_ND[0, rows], False)
        if acc_KD is not None:
            _gemm(w_CK.T, q_ND[rows].to(w_CQ.dtype), acc_KD[0], begin > 0)
    return acc_ND, acc_KD


def _gemm(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """out = a @ b, or out += a @ b, in float32."""
    beta = int(add)
    if a.dtype == torch.float32:
        torch.addmm(out, a, b, beta=beta, out=out)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, beta=beta, out=out)
    else:  # the interpreter: no CPU GEMM takes 16 bits in and gives 32 bits out
        torch.addmm(out, a.float(), b.float(), beta=beta, out=out)


def _finish(
    call: Call, side: Side, acc: Tensor, units: tuple[Tensor, Tensor], out: Tensor
) -> Tensor:
    """units: the scale and the gradient that one unit of ``acc`` stands for. Returns dscale."""
    config = call.config("finish")
    programs = -(-side.count // config.constants["ROWS"])
    parts = call.scratch(programs)
    call.launch(
        config, (programs,), side.x_RD, acc, *units, out, parts, side.count, out.shape[1],
        acc.shape[1], call.depth // config.constants["BK"], acc.shape[0],
    )  # fmt: skip
    return parts.sum()
