"""NT-Xent on the CPU through the compiled library (csrc/ntxent.cpp).

loss_i = log sum_{j != i} exp(s_ij / tau) - mean_p s_ip / tau over M = V N unit rows; the backward
reads half of E where the forward could keep it within KEEP_BYTES and recomputes the rest.
"""

# shapes: N batch, D embedding, M = V * N rows

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fastssl.kernels import native
from fastssl.kernels.ntxent.checks import bad

KEEP_BYTES = 144 << 20  # half of a float32 E up to M = 8,192
TILE = 192  # kTile in csrc/schedule.h
PANEL = 32  # the widest register block
HEADER = 16  # kKeptHeader in csrc/schedule.h
FOREIGN = 2  # kForeignKept in csrc/ntxent.h

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}


# NtxentForward and NtxentBackward of csrc/ntxent.h: the problem, then the arrays. A packed call and
# its views are a tenth of the price of ctypes structures.
_PROBLEM = "@Pqqqidii"
_FORWARD = struct.Struct(_PROBLEM + "PPPPq")
_BACKWARD = struct.Struct(_PROBLEM + "PPPqPP")


def _accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def _views_struct(count: int) -> struct.Struct:
    return struct.Struct(f"@{3 * count}q")


def _problem(views: Sequence[Tensor], temperature: Tensor, reduction: str) -> tuple:
    """Memory of the views as the library reads it, and the fields of NtxentProblem."""
    first = views[0]
    samples, width = first.shape
    flat: list[int] = []
    for view in views:
        flat += (view.data_ptr(), *view.stride())
    count = len(views)
    return _views_struct(count).pack(*flat), (
        0,  # the library fills in where the views lie
        count,
        samples,
        width,
        DTYPES[first.dtype],
        temperature.item(),
        REDUCTIONS[reduction],
        torch.get_num_threads(),
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
    memory, fields = _problem(views, temperature, reduction)
    rows = fields[1] * fields[2]
    loss = torch.empty((rows,) if reduction == "none" else (), dtype=dtype, device="cpu")
    lse_M = torch.empty(rows, dtype=dtype, device="cpu")
    rnorm_M = torch.empty(rows, dtype=dtype, device="cpu")
    numel = kept_numel(rows, fields[3], dtype) if keep else 0
    kept = native.pooled_empty(library, numel, dtype)
    call = _FORWARD.pack(
        *fields,
        loss.data_ptr(),
        lse_M.data_ptr(),
        rnorm_M.data_ptr(),
        kept.data_ptr() if numel else 0,
        numel,
    )
    if library.fastssl_ntxent_forward(call, memory):
        raise MemoryError(f"ntxent: no memory for the workspace of {rows:,} rows")
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
    if grad.dtype != lse_M.dtype:
        grad = grad.to(lse_M.dtype)
    grad = grad.contiguous()
    memory, fields = _problem(views, temperature, reduction)
    dz_MD = torch.empty((fields[1] * fields[2], fields[3]), dtype=first.dtype, device="cpu")
    dtemperature = torch.empty((), dtype=lse_M.dtype, device="cpu")
    numel = kept.numel()
    call = _BACKWARD.pack(
        *fields,
        grad.data_ptr(),
        lse_M.data_ptr(),
        kept.data_ptr() if numel else 0,
        numel,
        dz_MD.data_ptr(),
        dtemperature.data_ptr(),
    )
    status = library.fastssl_ntxent_backward(call, memory)
    if status == FOREIGN:
        expected = "what the forward pass of these views returned"
        raise bad("kept", expected, f"{numel} elements of another call")
    if status:
        raise MemoryError(f"ntxent: no memory for the workspace of {dz_MD.shape[0]:,} rows")
    return dz_MD, dtemperature
