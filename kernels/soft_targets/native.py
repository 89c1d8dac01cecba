"""Soft-target cross entropy on the CPU through the compiled library (csrc/soft_targets.cpp)."""

# shapes: N rows, C outputs
from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from fastssl.kernels import native
from fastssl.kernels.soft_targets.reference import accumulate_dtype

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# SoftTargets of csrc/soft_targets.h: two views, centre, sizes, dtypes, threads, scales, arrays.
_CALL = struct.Struct("@PqqPqqPqqiii4xddPPPPPPP")
LOGITS_FORWARD, LOGITS_BACKWARD, GIVEN_FORWARD, GIVEN_BACKWARD, GIVEN_IN_PLACE = range(5)


def forward(
    student_NC: Tensor,
    teacher_NC: Tensor,
    centre_C: Tensor | None,
    student_scale: float,
    teacher_scale: float,
    marginal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (N,), marginal (C,) or empty, and stats (4, N)."""
    dtype = accumulate_dtype(student_NC.dtype, teacher_NC.dtype)
    loss_N = torch.empty(len(student_NC), dtype=dtype)
    stats_4N = torch.empty(4, len(student_NC), dtype=dtype)
    marginal_C = torch.empty(student_NC.shape[1] if marginal else 0, dtype=dtype)
    operands = (student_NC, teacher_NC, _ready(centre_C, dtype))
    outputs = (loss_N, stats_4N, marginal_C if marginal else None, None, None, None, None)
    _run(LOGITS_FORWARD, operands, (student_scale, teacher_scale), outputs)
    return loss_N, marginal_C, stats_4N


def backward(
    g_loss_N: Tensor,
    g_marginal_C: Tensor,
    student_NC: Tensor,
    teacher_NC: Tensor,
    centre_C: Tensor | None,
    student_scale: float,
    teacher_scale: float,
    loss_N: Tensor,
    stats_4N: Tensor,
    want_teacher: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the student's and (else empty) the teacher's logits, (N, C) in their dtypes."""
    dtype = loss_N.dtype
    da_NC = torch.empty(student_NC.shape, dtype=student_NC.dtype)
    db_NC = torch.empty(teacher_NC.shape if want_teacher else 0, dtype=teacher_NC.dtype)
    h_C = None
    if g_marginal_C.numel() and want_teacher:
        h_C = _ready(g_marginal_C.to(dtype) / len(student_NC), dtype)
    operands = (student_NC, teacher_NC, _ready(centre_C, dtype))
    g_N, teacher = _ready(g_loss_N, dtype), db_NC if want_teacher else None
    arrays = (loss_N.contiguous(), stats_4N.contiguous(), None, g_N, h_C, da_NC, teacher)
    _run(LOGITS_BACKWARD, operands, (student_scale, teacher_scale), arrays)
    return da_NC, db_NC


def given_forward(student_NC: Tensor, targets_NC: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss (N,) and stats (3, N): largest logit, log of the sum, sum of the targets."""
    dtype = accumulate_dtype(student_NC.dtype, targets_NC.dtype)
    loss_N = torch.empty(len(student_NC), dtype=dtype)
    stats_3N = torch.empty(3, len(student_NC), dtype=dtype)
    arrays = (loss_N, stats_3N, None, None, None, None, None)
    _run(GIVEN_FORWARD, (student_NC, targets_NC, None), (scale, 1.0), arrays)
    return loss_N, stats_3N


def given_backward(
    g_loss_N: Tensor, student_NC: Tensor, targets_NC: Tensor, scale: float, stats_3N: Tensor
) -> Tensor:
    """Gradient of the student's logits, (N, C) in their dtype."""
    da_NC = torch.empty(student_NC.shape, dtype=student_NC.dtype)
    g_N = _ready(g_loss_N, stats_3N.dtype)
    arrays = (None, stats_3N.contiguous(), None, g_N, None, da_NC, None)
    _run(GIVEN_BACKWARD, (student_NC, targets_NC, None), (scale, 1.0), arrays)
    return da_NC


def given_in_place(x_NC: Tensor, targets_NC: Tensor, scale: float, weight_N: Tensor) -> Tensor:
    """loss (N,) of logits x, which the gradient of sum_i weight_i loss_i takes the place of."""
    assert x_NC.stride(1) == 1 and x_NC.dtype == accumulate_dtype(x_NC.dtype, targets_NC.dtype)
    loss_N = torch.empty(len(x_NC), dtype=x_NC.dtype)
    g_N = _ready(weight_N, x_NC.dtype)
    arrays = (loss_N, None, None, g_N, None, x_NC, None)
    _run(GIVEN_IN_PLACE, (x_NC, targets_NC, None), (scale, 1.0), arrays)
    return loss_N


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of unspecified content, from the pool: a page fault costs more than what fills it."""
    library = native.library()
    assert library is not None
    return native.pooled_empty(library, math.prod(shape), dtype).view(shape)


def _ready(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if values is None else values.to(dtype).contiguous()


def _run(
    which: int,
    operands: tuple[Tensor, Tensor, Tensor | None],
    scales: tuple[float, float],
    arrays: tuple[Tensor | None, ...],
) -> None:
    """``arrays``: loss, stats, marginal, its gradients' inputs and outputs; None is null."""
    library = native.library()
    assert library is not None
    student_NC, teacher_NC, centre_C = operands
    call = _CALL.pack(
        student_NC.data_ptr(),
        *student_NC.stride(),
        teacher_NC.data_ptr(),
        *teacher_NC.stride(),
        0 if centre_C is None else centre_C.data_ptr(),
        *student_NC.shape,
        DTYPES[student_NC.dtype],
        DTYPES[teacher_NC.dtype],
        torch.get_num_threads(),
        *scales,
        *(0 if array is None else array.data_ptr() for array in arrays),
    )
    if library.fastssl_soft_targets(which, call):
        raise MemoryError(f"soft_targets: no memory for rows of {student_NC.shape[1]:,} outputs")
