"""``fastssl::soft_targets``: schema, backends, fake, autograd and the public functions.

A student's softmax against a teacher's softmax or against given targets, rows of up to 65,536
outputs and more. Nothing of size N x C is kept for the backward but the logits, which exist anyway.
"""

# shapes: N rows, C outputs
from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.eager import is_transformed
from fastssl.kernels.soft_targets import native, reference
from fastssl.kernels.soft_targets.checks import (
    bad,
    check_centre,
    check_pair,
    check_targets,
    reciprocal,
)

_SCALES = "float student_scale, float teacher_scale"
_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(
    f"soft_targets(Tensor student, Tensor teacher, Tensor? centre, {_SCALES}, bool marginal)"
    " -> (Tensor loss, Tensor mean, Tensor stats)"
)
_library.define(
    "soft_targets_backward(Tensor g_loss, Tensor g_mean, Tensor student, Tensor teacher,"
    f" Tensor? centre, {_SCALES}, Tensor loss, Tensor stats, bool want_teacher)"
    " -> (Tensor dstudent, Tensor dteacher)"
)
_library.define(
    "soft_targets_given(Tensor student, Tensor targets, float scale) -> (Tensor loss, Tensor stats)"
)
_library.define(
    "soft_targets_given_backward(Tensor g_loss, Tensor student, Tensor targets, float scale,"
    " Tensor stats) -> Tensor"
)


class SoftTargets(NamedTuple):
    """``loss`` (N,) per row; ``marginal`` (C,), the mean target of the batch, or empty."""

    loss: Tensor
    marginal: Tensor


def soft_targets(
    student: Tensor,
    teacher: Tensor,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    centre: Tensor | None = None,
    marginal: bool = False,
) -> SoftTargets:
    """Cross entropy of softmax(student / tau_s) against softmax((teacher - centre) / tau_t).

    Args:
        student: (N, C) logits, any float dtype, any strides.
        teacher: (N, C) logits on the same device; they get a gradient too (detach them to have
            none). The dtype may differ.
        student_temperature, teacher_temperature: positive.
        centre: (C,) subtracted from the teacher's logits (DINO), without gradient.
        marginal: also the mean over the batch of the teacher's probabilities, with gradient.

    Returns:
        SoftTargets in float32 (float64 if an operand is).

    Raises:
        ValueError: an argument does not fit; the message names it.

    torch.func transforms and forward-mode AD are answered by the formula in plain torch.

    Source: DINO (arXiv:2104.14294) eq. 1; DISSL (arXiv:2209.06235) for the marginal.
    """
    check_pair(("student", "teacher"), student, teacher)
    check_centre(centre, teacher)
    scales = (
        reciprocal("student_temperature", student_temperature),
        reciprocal("teacher_temperature", teacher_temperature),
    )
    if is_transformed():
        return SoftTargets(*reference.soft_targets(student, teacher, centre, *scales, marginal))
    loss, mean, _ = torch.ops.fastssl.soft_targets(student, teacher, centre, *scales, marginal)
    return SoftTargets(loss, mean)


def given_targets(student: Tensor, targets: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross entropy (N,) of softmax(student / temperature) against given targets (N, C).

    The targets (SwAV's codes) get no gradient and need not sum to one. Dtypes, devices and errors
    as ``soft_targets``.
    """
    check_pair(("student", "targets"), student, targets)
    check_targets(targets)
    scale = reciprocal("temperature", temperature)
    if is_transformed():
        return reference.given(student, targets, scale)
    return torch.ops.fastssl.soft_targets_given(student, targets, scale)[0]


def cpu_backend():
    """C++ where the library was built; its loader has said so where it was not."""
    return native if compiled.library() is not None else reference


@cache
def cuda_backend():
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.soft_targets import launch
    except ImportError as error:
        message = f"soft_targets: no Triton ({error}); plain torch answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def reference_backend():
    """For every other device."""
    return reference


BACKENDS = {
    "CPU": cpu_backend,
    "CUDA": cuda_backend,
    "CompositeExplicitAutograd": reference_backend,
}


def _implementations(backend) -> dict:
    """The four operators over a backend module that is looked up at the first call."""
    return {
        "soft_targets": lambda *call: backend().forward(*call),
        "soft_targets_backward": lambda *call: backend().backward(*call),
        "soft_targets_given": lambda *call: backend().given_forward(*call),
        "soft_targets_given_backward": lambda *call: backend().given_backward(*call),
    }


def _fake_forward(student, teacher, centre, student_scale, teacher_scale, marginal):
    num_rows, num_outputs = student.shape
    dtype = reference.accumulate_dtype(student.dtype, teacher.dtype)
    loss_N = student.new_empty(num_rows, dtype=dtype)
    mean_C = student.new_empty(num_outputs if marginal else 0, dtype=dtype)
    return loss_N, mean_C, student.new_empty(4, num_rows, dtype=dtype)


def _fake_backward(g_loss, g_mean, student, teacher, centre, ks, kt, loss, stats, want_teacher):
    dteacher = teacher.new_empty(teacher.shape if want_teacher else 0)
    return student.new_empty(student.shape), dteacher


def _fake_given(student, targets, scale):
    dtype = reference.accumulate_dtype(student.dtype, targets.dtype)
    loss_N = student.new_empty(student.shape[0], dtype=dtype)
    return loss_N, student.new_empty(3, student.shape[0], dtype=dtype)


def _fake_given_backward(g_loss, student, targets, scale, stats):
    return student.new_empty(student.shape)


def _setup(ctx, inputs, output) -> None:
    student, teacher, centre, *settings = inputs
    loss, _mean, stats = output
    ctx.save_for_backward(student, teacher, centre, loss, stats)
    ctx.settings = settings
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _backward(ctx, g_loss, g_mean, _stats):
    student, teacher, centre, loss, stats = ctx.saved_tensors
    student_scale, teacher_scale, marginal = ctx.settings
    nothing = (None,) * 4
    if g_loss is None and g_mean is None:
        return None, None, *nothing
    g_loss = torch.zeros_like(loss) if g_loss is None else g_loss
    if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for
        formula = reference.soft_targets(
            student, teacher, centre, student_scale, teacher_scale, marginal
        )
        return *differentiable(formula, (g_loss, g_mean), (student, teacher)), *nothing
    want_student, want_teacher = ctx.needs_input_grad[:2]
    g_mean = loss.new_empty(0) if g_mean is None else g_mean
    dstudent, dteacher = torch.ops.fastssl.soft_targets_backward(
        g_loss, g_mean, student, teacher, centre, student_scale, teacher_scale, loss, stats,
        want_teacher,
    )  # fmt: skip
    return dstudent if want_student else None, dteacher if want_teacher else None, *nothing


def _setup_given(ctx, inputs, output) -> None:
    student, targets, ctx.scale = inputs
    _loss, stats = output
    if targets.requires_grad:
        raise bad("targets", "without a gradient", "targets.requires_grad = True")
    ctx.save_for_backward(student, targets, stats)
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)


def _backward_given(ctx, g_loss, _stats):
    student, targets, stats = ctx.saved_tensors
    if g_loss is None:
        return None, None, None
    if torch.is_grad_enabled():
        loss = reference.given(student, targets, ctx.scale)
        return *differentiable((loss,), (g_loss,), (student,)), None, None
    arguments = (g_loss, student, targets, ctx.scale, stats)
    return torch.ops.fastssl.soft_targets_given_backward(*arguments), None, None


def differentiable(outputs, grads, inputs) -> list[Tensor | None]:
    """The formula's own gradients, kept differentiable (materialises N x C)."""
    pairs = zip(outputs, grads, strict=True)
    given = [(out, grad) for out, grad in pairs if grad is not None and out.requires_grad]
    asked = [x for x in inputs if x.requires_grad]
    outs, with_respect = [out for out, _ in given], [grad for _, grad in given]
    found = iter(
        torch.autograd.grad(outs, asked, with_respect, create_graph=True, allow_unused=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _register() -> None:
    for key, backend in BACKENDS.items():
        for name, function in _implementations(backend).items():
            _library.impl(name, function, key)
    fakes = {
        "soft_targets": _fake_forward,
        "soft_targets_backward": _fake_backward,
        "soft_targets_given": _fake_given,
        "soft_targets_given_backward": _fake_given_backward,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"fastssl::{name}", fake, lib=_library)
    for name, backward, setup in (
        ("soft_targets", _backward, _setup),
        ("soft_targets_given", _backward_given, _setup_given),
    ):
        torch.library.register_autograd(
            f"fastssl::{name}", backward, setup_context=setup, lib=_library
        )


_register()
