"""NT-Xent on the CPU through the compiled library (csrc/ntxent.cpp).

loss_i = log sum_{j != i} exp(s_ij / tau) - mean_p s_ip / tau over M = V N unit rows; the backward
reads half of E where the forward could keep it within KEEP_BYTES and recomputes the rest.
"""

# shapes: N batch, D embedding, M = V * N rows

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.kernels import native

KEEP_BYTES = 144 << 20  # half of a float32 E up to M = 8,192
TILE = 192  # kTile in csrc/schedule.h
PANEL = 32  # the widest register block
HEADER = 16  # kKeptHeader in csrc/schedule.h

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}


class _Problem(ctypes.Structure):
    _fields_ = [
        ("view", ctypes.c_void_p),
        ("views", ctypes.c_int64),
        ("samples", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("temperature", ctypes.c_double),
        ("reduction", ctypes.c_int),
        ("threads", ctypes.c_int),
    ]


class _Forward(ctypes.Structure):
    _fields_ = [
        ("problem", _Problem),
        ("loss", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("rnorm", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("kept_numel", ctypes.c_int64),
    ]


class _Backward(ctypes.Structure):
    _fields_ = [
        ("problem", _Problem),
        ("grad", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("kept_numel", ctypes.c_int64),
        ("grad_rows", ctypes.c_void_p),
        ("grad_temperature", ctypes.c_void_p),
    ]


_VIEW_TYPES = {count: ctypes.c_int64 * (3 * count) for count in range(2, 33)}


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _problem(views: Sequence[Tensor], temperature: Tensor, reduction: str) -> tuple:
    """The fields of _Problem; the first one keeps the array it points to alive."""
    first = views[0]
    samples, width = first.shape
    flat: list[int] = []
    for view in views:
        flat += (view.data_ptr(), *view.stride())
    count = len(views)
    array = (_VIEW_TYPES.get(count) or ctypes.c_int64 * (3 * count))(*flat)
    return (
        array,
        (
            ctypes.addressof(array),
            count,
            samples,
            width,
            DTYPES[first.dtype],
            temperature.item(),
            REDUCTIONS[reduction],
            torch.get_num_threads(),
        ),
    )


def kept_numel(M: int, D: int, dtype: torch.dtype) -> int:
    """Elements of `kept`: the upper triangle in tiles, or as many as KEEP_BYTES hold.

    M may be symbolic. D is unused: what is kept does not depend on it.
    """
    rows = M + PANEL
    triangle = rows * (rows + TILE) // 2 + HEADER
    budget = HEADER + KEEP_BYTES // _accumulate_dtype(dtype).itemsize
    if isinstance(M, torch.SymInt):
        return torch.sym_min(triangle, budget)
    return min(triangle, budget)


def forward(
    views: Sequence[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, log-denominators (M,), inverse norms (M,) and what the backward needs (1-D)."""
    library = native.library()
    assert library is not None
    dtype = _accumulate_dtype(views[0].dtype)
    alive, fields = _problem(views, temperature, reduction)
    rows = fields[1] * fields[2]
    loss = torch.empty((rows,) if reduction == "none" else (), dtype=dtype)
    lse_M = torch.empty(rows, dtype=dtype)
    rnorm_M = torch.empty(rows, dtype=dtype)
    numel = kept_numel(rows, fields[3], dtype) if keep else 0
    kept = native.pooled_empty(library, numel, dtype)
    call = _Forward(
        fields,
        loss.data_ptr(),
        lse_M.data_ptr(),
        rnorm_M.data_ptr(),
        kept.data_ptr() if numel else None,
        numel,
    )
    if library.fastssl_ntxent_forward(ctypes.byref(call)):
        raise MemoryError(f"ntxent: no memory for the workspace of {rows:,} rows")
    del alive
    return loss, lse_M, rnorm_M, kept


def backward(
    grad: Tensor,
    views: Sequence[Tensor],
    temperature: Tensor,
    reduction: str,
    lse_M: Tensor,
    rnorm_M: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient of the raw rows, views stacked (M, D) in the input dtype, and of the temperature.

    rnorm_M is unused: norms are taken again in double while the rows are packed.
    """
    library = native.library()
    assert library is not None
    first = views[0]
    grad = grad.to(lse_M.dtype).contiguous()
    alive, fields = _problem(views, temperature, reduction)
    dz_MD = torch.empty((fields[1] * fields[2], fields[3]), dtype=first.dtype)
    dtemperature = torch.empty((), dtype=torch.float64)
    numel = kept.numel()
    call = _Backward(
        fields,
        grad.data_ptr(),
        lse_M.data_ptr(),
        kept.data_ptr() if numel else None,
        numel,
        dz_MD.data_ptr(),
        dtemperature.data_ptr(),
    )
    if library.fastssl_ntxent_backward(ctypes.byref(call)):
        raise MemoryError(f"ntxent: no memory for the workspace of {dz_MD.shape[0]:,} rows")
    del alive
    return dz_MD, dtemperature.to(lse_M.dtype)
