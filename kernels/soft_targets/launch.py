"""Soft-target cross entropy on CUDA: grids and outputs for the kernels of kernel.py.

float64 runs as the plain-torch reference. No launch waits for the device.
"""

# shapes: N rows, C outputs
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.cuda import on_device
from fastssl.kernels.soft_targets import kernel, reference

KERNELS = {
    "forward": kernel.soft_forward_kernel,
    "marginal": kernel.soft_marginal_kernel,
    "backward": kernel.soft_backward_kernel,
    "given_forward": kernel.given_forward_kernel,
    "given_backward": kernel.given_backward_kernel,
}
BLOCK = 2048  # outputs a row program takes at a time
COLUMNS, ROWS = 128, 16  # of a block of the marginal
ROWS_PER_SPLIT = 128
WARPS = {"marginal": 4}
MOST_WARPS = 8


def forward(
    student_NC: Tensor,
    teacher_NC: Tensor,
    centre_C: Tensor | None,
    student_scale: float,
    teacher_scale: float,
    marginal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (N,), marginal (C,) or empty, and stats (4, N)."""
    if torch.float64 in (student_NC.dtype, teacher_NC.dtype):
        call = (student_NC, teacher_NC, centre_C, student_scale, teacher_scale, marginal)
        return reference.forward(*call)
    (N, C), device = student_NC.shape, student_NC.device
    loss_N = allocate((N,), torch.float32, device)
    stats_4N = allocate((4, N), torch.float32, device)
    marginal_C = loss_N.new_empty(0)
    centre, centred = _centre(centre_C, teacher_NC)
    with on_device(student_NC):
        launch(
            "forward", (N,), student_NC, teacher_NC, centre, loss_N, stats_4N, N, C,
            *student_NC.stride(), *teacher_NC.stride(), student_scale, teacher_scale,
            CENTRED=centred, BLOCK=BLOCK,
        )  # fmt: skip
        if marginal:
            splits = -(-N // ROWS_PER_SPLIT)
            parts = allocate((splits, C), torch.float32, device)
            launch(
                "marginal", (-(-C // COLUMNS), splits), teacher_NC, centre, stats_4N, parts, N, C,
                *teacher_NC.stride(), ROWS_PER_SPLIT, teacher_scale, CENTRED=centred, ROWS=ROWS,
                BLOCK=COLUMNS,
            )  # fmt: skip
            marginal_C = parts.sum(0) / N
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
    if torch.float64 in (student_NC.dtype, teacher_NC.dtype):
        call = (student_NC, teacher_NC, centre_C, student_scale, teacher_scale, loss_N, stats_4N)
        return reference.backward(g_loss_N, g_marginal_C, *call, want_teacher)
    (N, C), device = student_NC.shape, student_NC.device
    da_NC = allocate((N, C), student_NC.dtype, device)
    shape = (N, C) if want_teacher else (0,)
    db_NC = allocate(shape, teacher_NC.dtype, device)
    marginal = want_teacher and g_marginal_C.numel() > 0
    g_N = g_loss_N.to(torch.float32).contiguous()
    h_C = (g_marginal_C.to(torch.float32) / N).contiguous() if marginal else g_N
    centre, centred = _centre(centre_C, teacher_NC)
    with on_device(student_NC):
        launch(
            "backward", (N,), student_NC, teacher_NC, centre, g_N, h_C, loss_N.contiguous(),
            stats_4N.contiguous(), da_NC, db_NC, N, C, *student_NC.stride(), *teacher_NC.stride(),
            student_scale, teacher_scale, CENTRED=centred, MARGINAL=marginal, TEACHER=want_teacher,
            BLOCK=BLOCK,
        )  # fmt: skip
    return da_NC, db_NC


def given_forward(student_NC: Tensor, targets_NC: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss (N,) and stats (3, N): largest logit, log of the sum, sum of the targets."""
    if torch.float64 in (student_NC.dtype, targets_NC.dtype):
        return reference.given_forward(student_NC, targets_NC, scale)
    (N, C), device = student_NC.shape, student_NC.device
    loss_N = allocate((N,), torch.float32, device)
    stats_3N = allocate((3, N), torch.float32, device)
    with on_device(student_NC):
        launch(
            "given_forward", (N,), student_NC, targets_NC, loss_N, stats_3N, N, C,
            *student_NC.stride(), *targets_NC.stride(), scale, BLOCK=BLOCK,
        )  # fmt: skip
    return loss_N, stats_3N


def given_backward(
    g_loss_N: Tensor, student_NC: Tensor, targets_NC: Tensor, scale: float, stats_3N: Tensor
) -> Tensor:
    """Gradient of the student's logits, (N, C) in their dtype."""
    if torch.float64 in (student_NC.dtype, targets_NC.dtype):
        return reference.given_backward(g_loss_N, student_NC, targets_NC, scale, stats_3N)
    da_NC = allocate(tuple(student_NC.shape), student_NC.dtype, student_NC.device)
    _given_backward(g_loss_N, student_NC, targets_NC, scale, stats_3N, da_NC)
    return da_NC


def given_in_place(x_NC: Tensor, targets_NC: Tensor, scale: float, weight_N: Tensor) -> Tensor:
    """loss (N,) of logits x, which the gradient of sum_i weight_i loss_i takes the place of."""
    if torch.float64 in (x_NC.dtype, targets_NC.dtype):
        return reference.given_in_place(x_NC, targets_NC, scale, weight_N)
    assert x_NC.is_contiguous()
    loss_N, stats_3N = given_forward(x_NC, targets_NC, scale)
    _given_backward(weight_N, x_NC, targets_NC, scale, stats_3N, x_NC)
    return loss_N


def _given_backward(
    g_N: Tensor, student_NC: Tensor, targets_NC: Tensor, scale: float, stats_3N: Tensor, out: Tensor
) -> None:
    g_N = g_N.to(torch.float32).contiguous()
    with on_device(student_NC):
        launch(
            "given_backward", student_NC.shape[:1], student_NC, targets_NC, g_N,
            stats_3N.contiguous(), out, *student_NC.shape, *student_NC.stride(),
            *targets_NC.stride(), scale, BLOCK=BLOCK,
        )  # fmt: skip


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every output of this module's kernels, so that tests can guard them all."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(name: str, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[name][grid](*arguments, **constants, num_warps=WARPS.get(name, MOST_WARPS))


def _centre(centre_C: Tensor | None, teacher_NC: Tensor) -> tuple[Tensor, bool]:
    """A pointer that is never read stands in for no centre."""
    if centre_C is None:
        return teacher_NC, False
    return centre_C.to(torch.float32).contiguous(), True
