"""Log-denominators on the CPU through the compiled library (csrc/contrast.cpp).

The backward reads E where the forward could keep it within KEEP_BYTES and recomputes the rest.
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from fastssl.kernels import native
from fastssl.kernels.contrast.reference import Ids, accumulate_dtype

KEEP_BYTES = 258 << 20  # all of a float32 E at N = K = 8,192
PANEL = 32  # the widest register block
HEADER = 16  # kKeptHeader in csrc/schedule.h
BOUNDED_RANGE = 80.0  # kBoundedRange in csrc/ntxent_tile.h

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
KEEPS = {"all": 0, "same": 1, "different": 2}

# ContrastForward and ContrastBackward of csrc/contrast.h: the problem, then the arrays.
_PROBLEM = "@" + "Pqq" * 2 + "qqq" + "iiii" + "ii" + "dd" + "PPPP"
_FORWARD = struct.Struct(_PROBLEM + "PPPPqP")
_BACKWARD = struct.Struct(_PROBLEM + "PPPPPqPPP")


def _problem(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, bound: float
) -> tuple[list[Tensor], tuple]:
    """Tensors to keep alive during the call, and the fields of ContrastProblem."""
    labels = _int32(ids.q_label_N, ids.k_label_K) if ids.keep != "all" else None
    rows = _int32(ids.q_row_N, ids.k_row_K)
    alive = [*(labels or ()), *(rows or ())]
    fields = (
        *(q_ND.data_ptr(), *q_ND.stride()),
        *(k_KD.data_ptr(), *k_KD.stride()),
        *(q_ND.shape[0], *k_KD.shape),
        *(DTYPES[q_ND.dtype], DTYPES[k_KD.dtype], KEEPS[ids.keep], torch.get_num_threads()),
        *(accumulate_dtype(q_ND.dtype, k_KD.dtype) == torch.float64, 0),
        *(scale.item(), bound),
        *(_pointers(labels) + _pointers(rows)),
    )
    return alive, fields


def _pointers(pair: tuple[Tensor, Tensor] | None) -> tuple[int, int]:
    return (pair[0].data_ptr(), pair[1].data_ptr()) if pair else (0, 0)


def _int32(q_N: Tensor | None, k_K: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The ids as int32, numbered anew where they do not fit: only equality counts."""
    if q_N is None or k_K is None:
        return None
    both = torch.cat([q_N, k_K])
    low, high = both.aminmax()
    if low < -(2**31) or high >= 2**31:
        both = both.unique(return_inverse=True)[1]
    q, k = both.to(torch.int32).split([len(q_N), len(k_K)])
    return q.contiguous(), k.contiguous()


def kept_numel(num_queries: int, num_keys: int, embedding: int, dtype: torch.dtype) -> int:
    """Elements of `kept`: E in whole panels, or as many as KEEP_BYTES hold; may be symbolic."""
    whole = (num_queries + PANEL) * num_keys + HEADER
    budget = HEADER + KEEP_BYTES // dtype.itemsize
    if isinstance(num_queries, torch.SymInt) or isinstance(num_keys, torch.SymInt):
        return torch.sym_min(whole, budget)
    return min(whole, budget)


def forward(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool, bound: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows (N,), cols (K,) or empty, top (N,), and what the backward needs (1-D)."""
    dtype = accumulate_dtype(q_ND.dtype, k_KD.dtype)
    (num_queries, embedding), num_keys = q_ND.shape, k_KD.shape[0]
    numel = kept_numel(num_queries, num_keys, embedding, dtype) if save else 0
    kept = native.pooled_empty(_library(), numel, dtype)
    cols_K = _empty(num_keys if columns else 0, dtype=dtype)
    rows_N, top_N = _forward(q_ND, k_KD, scale, ids, bound, cols_K, kept, None)
    if not save and not _is_sound(rows_N, top_N, scale.item(), bound, num_keys):
        return forward(q_ND, k_KD, scale, ids, columns, math.inf, save)
    return rows_N, cols_K, top_N, kept


def _is_sound(rows_N: Tensor, top_N: Tensor, scale: float, bound: float, num_keys: int) -> bool:
    """Whether no logit was beyond what the caller vouched for, as far as the results show it.

    Rows of a queue may be longer than its owner thinks, and a fixed shift would give NaN silently.
    """
    limit = abs(scale) * bound
    if not 2 * limit <= BOUNDED_RANGE:
        return True  # the pass kept a running maximum
    slack = 0.01 * limit + 0.01
    fits_N = (top_N <= limit + slack) & (rows_N >= top_N - slack)
    return bool((fits_N & (rows_N <= top_N + (math.log(num_keys) + slack))).all())


def forward_mean(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), top (N,) and the softmax-weighted mean of the keys, (N, D).

    One pass where one shift serves all rows. Otherwise the mean is taken in a second one: rows is
    the first, and its gradient with respect to scale * q is the mean.
    """
    dtype = accumulate_dtype(q_ND.dtype, k_KD.dtype)
    nothing = _empty(0, dtype=dtype)
    if 2 * abs(scale.item()) * bound <= BOUNDED_RANGE:
        mean_ND = _empty(*q_ND.shape, dtype=dtype)
        rows_N, top_N = _forward(q_ND, k_KD, scale, ids, bound, nothing, nothing, mean_ND)
        if _is_sound(rows_N, top_N, scale.item(), bound, k_KD.shape[0]):
            return rows_N, top_N, mean_ND
        bound = math.inf
    rows_N, top_N = _forward(q_ND, k_KD, scale, ids, bound, nothing, nothing, None)
    whole_ND = q_ND.to(dtype)  # its gradient is returned in this type
    ones_N = torch.ones_like(rows_N)
    one, unit = (ones_N, nothing), (whole_ND, k_KD)
    dq_ND, _, _ = backward(*one, *unit, scale, ids, rows_N, nothing, nothing, bound, (True, False))
    return rows_N, top_N, dq_ND / scale.to(dtype)


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
    """Gradients of q (N, D) and k (K, D), empty where ``wants`` does not ask, and of scale."""
    dtype = rows_N.dtype
    saved = [x.to(dtype).contiguous() for x in (g_rows_N, g_cols_K, rows_N, cols_K)]
    g_rows_N, g_cols_K, rows_N, cols_K = saved
    alive, fields = _problem(q_ND, k_KD, scale, ids, bound)
    dq_ND = _empty(*q_ND.shape, dtype=q_ND.dtype) if wants[0] else _empty(0, dtype=q_ND.dtype)
    dk_KD = _empty(*k_KD.shape, dtype=k_KD.dtype) if wants[1] else _empty(0, dtype=k_KD.dtype)
    dscale = _empty(dtype=dtype)
    call = _BACKWARD.pack(
        *fields,
        g_rows_N.data_ptr(),
        g_cols_K.data_ptr() if cols_K.numel() else 0,
        rows_N.data_ptr(),
        cols_K.data_ptr() if cols_K.numel() else 0,
        kept.data_ptr() if kept.numel() else 0,
        kept.numel(),
        dq_ND.data_ptr() if wants[0] else 0,
        dk_KD.data_ptr() if wants[1] else 0,
        dscale.data_ptr(),
    )
    _refuse(_library().fastssl_contrast_backward(call), q_ND, k_KD)
    del alive, saved
    return dq_ND, dk_KD, dscale


def _forward(q_ND, k_KD, scale, ids, bound, cols_K, kept, mean_ND) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(q_ND.dtype, k_KD.dtype)
    alive, fields = _problem(q_ND, k_KD, scale, ids, bound)
    rows_N, top_N = _empty(q_ND.shape[0], dtype=dtype), _empty(q_ND.shape[0], dtype=dtype)
    call = _FORWARD.pack(
        *fields,
        rows_N.data_ptr(),
        cols_K.data_ptr() if cols_K.numel() else 0,
        top_N.data_ptr(),
        kept.data_ptr() if kept.numel() else 0,
        kept.numel(),
        mean_ND.data_ptr() if mean_ND is not None else 0,
    )
    _refuse(_library().fastssl_contrast_forward(call), q_ND, k_KD)
    del alive
    return rows_N, top_N


def _library():
    library = native.library()
    assert library is not None
    return library


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu")


def _refuse(status: int, q_ND: Tensor, k_KD: Tensor) -> None:
    if status == 1:
        raise MemoryError(f"contrast: no memory for {q_ND.shape[0]:,} x {k_KD.shape[0]:,} pairs")
    if status:
        raise ValueError("contrast: kept is not what the forward of this call returned")
