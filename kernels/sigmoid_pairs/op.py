"""``fastssl::sigmoid_pairs`` and ``fastssl::sigmoid_pairs_sum``: schema, autograd, functions.

The loss of every query over all keys, or the sum of them. The sum makes each logit once: loss and
all gradients come out of one pass (6 N K D flops). Losses per query know only at the backward what
each weighs, so that the keys' gradient makes the logits again (8 N K D in all).
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.eager import is_transformed
from fastssl.kernels.precision import own_precision
from fastssl.kernels.sigmoid_pairs import reference
from fastssl.kernels.sigmoid_pairs.backends import BACKENDS, FAKES, implementations
from fastssl.kernels.sigmoid_pairs.checks import bad, check, number
from fastssl.kernels.sigmoid_pairs.reference import Problem

_PROBLEM = "Tensor q, Tensor k, Tensor scale, Tensor bias, int? diagonal"
_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(
    f"sigmoid_pairs({_PROBLEM}, bool save, bool want_q)"
    " -> (Tensor rows, Tensor by_scale, Tensor by_bias, Tensor dq)"
)
_library.define(f"sigmoid_pairs_keys(Tensor g, {_PROBLEM}) -> Tensor")
_library.define(
    f"sigmoid_pairs_sum({_PROBLEM}, bool want_q, bool want_k)"
    " -> (Tensor total, Tensor by_scale, Tensor by_bias, Tensor dq, Tensor dk)"
)


def sigmoid_pairs(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    *,
    diagonal: int | None = 0,
) -> Tensor:
    """Sigmoid loss of each query over all keys (Zhai et al. 2023, arXiv:2303.15343, algorithm 1).

        loss_i = -sum_j log sigmoid(y_ij (scale * q_i . k_j + bias))

    Args:
        queries: (N, D), any float dtype, taken as they are (normalise before if the loss does).
        keys: (K, D) on the same device; the dtype may differ.
        scale, bias: floats, or one-element tensors to get their gradients.
        diagonal: y_ij is 1 where j = i + diagonal and -1 elsewhere; None: no pair is positive.

    Returns:
        (N,) in float32 (float64 if an operand is). Nothing of size N x K is kept. A second
        derivative and torch.func transforms are answered by the formula (N x K memory).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    problem = _checked(queries, keys, scale, bias, diagonal)
    if is_transformed():
        return reference.rows(problem)
    save = _learns(problem)
    want_q = save and queries.requires_grad
    return torch.ops.fastssl.sigmoid_pairs(*problem, save, want_q)[0]


def sigmoid_pairs_sum(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    bias: float | Tensor,
    *,
    diagonal: int | None = 0,
) -> Tensor:
    """The sum of ``sigmoid_pairs`` over queries, (); loss and every gradient in one pass.

    Arguments, memory and errors as ``sigmoid_pairs``.
    """
    problem = _checked(queries, keys, scale, bias, diagonal)
    if is_transformed():
        return reference.rows(problem).sum()
    if not _learns(problem):
        return torch.ops.fastssl.sigmoid_pairs(*problem, False, False)[0].sum()
    wants = queries.requires_grad, keys.requires_grad
    return torch.ops.fastssl.sigmoid_pairs_sum(*problem, *wants)[0]


def _checked(queries, keys, scale, bias, diagonal) -> Problem:
    check(queries, keys, diagonal)
    scale, bias = number("scale", scale, queries), number("bias", bias, queries)
    return Problem(queries, keys, scale, bias, diagonal)


def _learns(problem: Problem) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in problem[:4])


def _setup(ctx, inputs, output) -> None:
    q, k, scale, bias, diagonal, save, want_q = inputs
    if q.requires_grad > want_q or any(x.requires_grad for x in (q, k, scale, bias)) > save:
        raise bad("save and want_q", "True where an input requires a gradient", (save, want_q))
    ctx.save_for_backward(q, k, scale, bias, *output[1:])
    ctx.diagonal = diagonal
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, g_N, *_others):
    nothing = [None] * 3
    if g_N is None:
        return *[None] * 4, *nothing
    q, k, scale, bias, by_scale_N, by_bias_N, dq_ND = ctx.saved_tensors
    problem = Problem(q, k, scale, bias, ctx.diagonal)
    if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for
        return *_differentiable(problem, g_N), *nothing
    want_q, want_k, want_scale, want_bias = ctx.needs_input_grad[:4]
    return (
        (g_N[:, None] * dq_ND).to(q.dtype) if want_q else None,
        torch.ops.fastssl.sigmoid_pairs_keys(g_N, *problem) if want_k else None,
        (g_N * by_scale_N).sum().to(scale.dtype) if want_scale else None,
        (g_N * by_bias_N).sum().to(bias.dtype) if want_bias else None,
        *nothing,
    )


def _setup_sum(ctx, inputs, output) -> None:
    q, k, scale, bias, diagonal, want_q, want_k = inputs
    if q.requires_grad > want_q or k.requires_grad > want_k:
        raise bad("wants", "True where an input requires a gradient", (want_q, want_k))
    ctx.save_for_backward(q, k, scale, bias, *output[1:])
    ctx.diagonal = diagonal
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward_sum(ctx, g, *_others):
    nothing = [None] * 3
    if g is None:
        return *[None] * 4, *nothing
    q, k, scale, bias, by_scale, by_bias, dq_ND, dk_KD = ctx.saved_tensors
    if torch.is_grad_enabled():
        problem = Problem(q, k, scale, bias, ctx.diagonal)
        return *_differentiable(problem, g.expand(q.shape[0])), *nothing
    grads = dq_ND, dk_KD, by_scale, by_bias
    wanted = zip((q, k, scale, bias), grads, ctx.needs_input_grad, strict=False)
    return *[(g * grad).to(x.dtype) if want else None for x, grad, want in wanted], *nothing


def _differentiable(problem: Problem, g_N: Tensor) -> list[Tensor | None]:
    """The formula's own gradients, kept differentiable (materialises N x K).

    They are taken with respect to aliases: an input may be a function of another one, and that
    path belongs to the caller's graph.
    """
    aliases = [x.view_as(x) for x in problem[:4]]
    q, k, scale, bias = aliases
    rows_N = reference.rows(Problem(q, k, scale, bias, problem.diagonal))
    asked = [x for x in aliases if x.requires_grad]
    with own_precision(problem.q_ND):  # the products of the gradient, too
        found = iter(torch.autograd.grad(rows_N, asked, g_N, create_graph=True))
    return [next(found) if x.requires_grad else None for x in aliases]


def _register() -> None:
    for key, backend in BACKENDS.items():
        for name, function in implementations(backend).items():
            _library.impl(name, function, key)
    for name, fake in FAKES.items():
        torch.library.register_fake(f"fastssl::{name}", fake, lib=_library)
    for name, backward, setup in (
        ("sigmoid_pairs", _backward, _setup),
        ("sigmoid_pairs_sum", _backward_sum, _setup_sum),
    ):
        torch.library.register_autograd(
            f"fastssl::{name}", backward, setup_context=setup, lib=_library
        )


_register()
