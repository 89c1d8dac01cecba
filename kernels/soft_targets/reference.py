"""Soft-target cross entropy in plain torch: the equation, any float dtype, any device.

    p_i = softmax(a_i / tau_s)      q_i = softmax((b_i - centre) / tau_t)
    loss_i = -sum_c q_ic log p_ic                      marginal_c = mean_i q_ic
    given targets t:  loss_i = -sum_c t_ic log p_ic    (t need not sum to one)

Scales are reciprocal temperatures. ``stats`` keeps, for each softmax of a row, its largest logit
and the log of its sum of exp(scale (x - largest)): all that a backward needs beside the logits.
"""

# shapes: N rows, C outputs
from __future__ import annotations

import torch
from torch import Tensor


def accumulate_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 as soon as one operand is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def soft_targets(
    student_NC: Tensor,
    teacher_NC: Tensor,
    centre_C: Tensor | None,
    student_scale: float,
    teacher_scale: float,
    marginal: bool,
) -> tuple[Tensor, Tensor]:
    """loss (N,) and marginal (C,) (empty unless asked), differentiable to any order."""
    a_NC, b_NC = _widened(student_NC, teacher_NC, centre_C)
    q_NC = (b_NC * teacher_scale).softmax(1)
    loss_N = -(q_NC * (a_NC * student_scale).log_softmax(1)).sum(1)
    return loss_N, q_NC.mean(0) if marginal else loss_N.new_empty(0)


def given(student_NC: Tensor, targets_NC: Tensor, scale: float) -> Tensor:
    """loss (N,) for given targets, differentiable to any order."""
    a_NC, t_NC = _widened(student_NC, targets_NC, None)
    return -(t_NC * (a_NC * scale).log_softmax(1)).sum(1)


def forward(
    student_NC: Tensor,
    teacher_NC: Tensor,
    centre_C: Tensor | None,
    student_scale: float,
    teacher_scale: float,
    marginal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (N,), marginal (C,) or empty, and stats (4, N)."""
    a_NC, b_NC = _widened(student_NC, teacher_NC, centre_C)
    top_a_N, sum_a_N, log_p_NC = _log_softmax(a_NC, student_scale)
    top_b_N, sum_b_N, log_q_NC = _log_softmax(b_NC, teacher_scale)
    q_NC = log_q_NC.exp()
    loss_N = -(q_NC * log_p_NC).sum(1)
    marginal_C = q_NC.mean(0) if marginal else loss_N.new_empty(0)
    return loss_N, marginal_C, torch.stack([top_a_N, sum_a_N, top_b_N, sum_b_N])


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
    """Gradients of the student's and (else empty) the teacher's logits, (N, C) in their dtypes.

    With u = h / N - g log p, where g and h are the gradients of loss and marginal:
    da = g (p - q) / tau_s,  db = q (u - sum_c q_c u_c) / tau_t.
    """
    a_NC, b_NC = _widened(student_NC, teacher_NC, centre_C)
    log_p_NC = (a_NC - stats_4N[0][:, None]) * student_scale - stats_4N[1][:, None]
    q_NC = ((b_NC - stats_4N[2][:, None]) * teacher_scale - stats_4N[3][:, None]).exp()
    g_N1 = g_loss_N.to(a_NC.dtype)[:, None]
    da_NC = g_N1 * student_scale * (log_p_NC.exp() - q_NC)
    if not want_teacher:
        return da_NC.to(student_NC.dtype), teacher_NC.new_empty(0)
    u_NC = -g_N1 * log_p_NC
    if g_marginal_C.numel():
        u_NC = u_NC + g_marginal_C.to(a_NC.dtype) / len(a_NC)
    db_NC = teacher_scale * q_NC * (u_NC - (q_NC * u_NC).sum(1, keepdim=True))
    return da_NC.to(student_NC.dtype), db_NC.to(teacher_NC.dtype)


def given_forward(student_NC: Tensor, targets_NC: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """loss (N,) and stats (3, N): largest logit, log of the sum, sum of the targets."""
    a_NC, t_NC = _widened(student_NC, targets_NC, None)
    top_N, sum_N, log_p_NC = _log_softmax(a_NC, scale)
    return -(t_NC * log_p_NC).sum(1), torch.stack([top_N, sum_N, t_NC.sum(1)])


def given_backward(
    g_loss_N: Tensor, student_NC: Tensor, targets_NC: Tensor, scale: float, stats_3N: Tensor
) -> Tensor:
    """Gradient of the student's logits: g (p sum_c t_c - t) / tau, (N, C) in their dtype."""
    a_NC, t_NC = _widened(student_NC, targets_NC, None)
    p_NC = ((a_NC - stats_3N[0][:, None]) * scale - stats_3N[1][:, None]).exp()
    pull_NC = p_NC * stats_3N[2][:, None] - t_NC
    return (g_loss_N.to(a_NC.dtype)[:, None] * scale * pull_NC).to(student_NC.dtype)


def given_in_place(x_NC: Tensor, targets_NC: Tensor, scale: float, weight_N: Tensor) -> Tensor:
    """loss (N,) of logits x, which the gradient of sum_i weight_i loss_i takes the place of."""
    loss_N, stats_3N = given_forward(x_NC, targets_NC, scale)
    x_NC.copy_(given_backward(weight_N, x_NC, targets_NC, scale, stats_3N))
    return loss_N


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of unspecified content."""
    return torch.empty(shape, dtype=dtype, device=device)


def _widened(a_NC: Tensor, b_NC: Tensor, centre_C: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(a_NC.dtype, b_NC.dtype)
    a_NC, b_NC = a_NC.to(dtype), b_NC.to(dtype)
    return a_NC, b_NC if centre_C is None else b_NC - centre_C.to(dtype)


def _log_softmax(x_NC: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit and log of the sum of exp(scale (x - largest)), (N,), and log p (N, C)."""
    top_N = x_NC.amax(1)
    shifted_NC = (x_NC - top_N[:, None]) * scale
    sum_N = shifted_NC.exp().sum(1).log()
    return top_N, sum_N, shifted_NC - sum_N[:, None]
