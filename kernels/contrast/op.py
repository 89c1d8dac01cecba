"""``fastssl::contrast`` and ``fastssl::contrast_mean``: schema, checks, fake, autograd, functions.

Every softmax contrastive loss is log-denominators minus positives. The positives are O(N D) and
plain torch; the denominators are O(N K D) and fused here. ``contrast`` gives gradients to both
sides, ``contrast_mean`` to the queries alone, in the forward pass itself.
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.kernels.contrast import tiles
from fastssl.kernels.contrast.backends import BACKENDS, FAKES, implementations
from fastssl.kernels.contrast.checks import Pairs, bad, check, scale_tensor
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.eager import is_transformed
from fastssl.kernels.precision import own_precision

_IDS = "Tensor? q_label, Tensor? k_label, Tensor? q_row, Tensor? k_row, str keep"
_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(
    f"contrast(Tensor q, Tensor k, Tensor scale, {_IDS}, bool columns, float bound, bool save)"
    " -> (Tensor rows, Tensor cols, Tensor top, Tensor kept)"
)
_library.define(
    f"contrast_backward(Tensor g_rows, Tensor g_cols, Tensor q, Tensor k, Tensor scale, {_IDS},"
    " Tensor rows, Tensor cols, Tensor kept, float bound, bool want_q, bool want_k)"
    " -> (Tensor dq, Tensor dk, Tensor dscale)"
)
_library.define(
    f"contrast_mean(Tensor q, Tensor k, Tensor scale, {_IDS}, float bound)"
    " -> (Tensor rows, Tensor top, Tensor mean)"
)


class Denominators(NamedTuple):
    """``rows`` (N,) per query, ``cols`` (K,) per key (empty unless asked), ``top`` (N,) maximum."""

    rows: Tensor
    cols: Tensor
    top: Tensor


ALL_PAIRS = Pairs()


def contrast(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    *,
    pairs: Pairs = ALL_PAIRS,
    columns: bool = False,
    bound: float = math.inf,
) -> Denominators:
    """Log-denominators of x_ij = scale * q_i . k_j over the pairs that count, without N x K memory.

    Args:
        queries: (N, D), any float dtype, taken as they are (normalise before if the loss does).
        keys: (K, D) on the same device; the dtype may differ (a bfloat16 queue).
        scale: the reciprocal temperature, a float or a one-element tensor to learn it.
        pairs: which pairs count.
        columns: also the log-denominator of every key over the queries.
        bound: no |q_i . k_j| is larger, vouched for by the caller: 1 for unit rows. With
            2 |scale| bound <= 80 one shift serves every row and no running maximum is needed.

    Returns:
        Denominators in float32 (float64 if an operand is); -inf where no pair counts. ``top`` has
        no gradient. torch.func transforms, second derivatives and forward-mode AD
        derivatives are answered by the formula in tiles; they may take N x K memory.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check(queries, keys, pairs, bound)
    scale = scale_tensor(scale, queries)
    if is_transformed():
        return _formula(queries, keys, scale, pairs, columns)
    save = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, keys, scale))
    rows, cols, top, _ = torch.ops.fastssl.contrast(
        queries, keys, scale, *_flat(pairs), columns, bound, save
    )
    return Denominators(rows, cols, top)


def contrast_mean(
    queries: Tensor,
    keys: Tensor,
    scale: float | Tensor,
    *,
    pairs: Pairs = ALL_PAIRS,
    bound: float = math.inf,
) -> Denominators:
    """``contrast`` for keys that get no gradient: one pass, nothing of the keys is saved.

    The forward accumulates sum_j p_ij k_j beside the denominators, which is all that the gradient
    of the queries needs (4 N K D flops in all, He et al. 2020's queue read once). The keys may be
    overwritten before the backward. Arguments as ``contrast``; ValueError for keys that require
    a gradient.
    """
    check(queries, keys, pairs, bound)
    if keys.requires_grad:
        raise bad("keys", "without a gradient (use contrast)", "keys.requires_grad = True")
    scale = scale_tensor(scale, queries)
    if is_transformed():
        return _formula(queries, keys, scale, pairs, False)
    flat = _flat(pairs)
    if torch.is_grad_enabled() and (queries.requires_grad or scale.requires_grad):
        rows, top, _ = torch.ops.fastssl.contrast_mean(queries, keys, scale, *flat, bound)
    else:
        rows, _, top, _ = torch.ops.fastssl.contrast(
            queries, keys, scale, *flat, False, bound, False
        )
    return Denominators(rows, rows.new_empty(0), top)


def _formula(queries, keys, scale, pairs: Pairs, columns: bool) -> Denominators:
    """What transforms see: plain torch, which vmap and every mode of differentiation know."""
    return Denominators(*tiles.denominators(queries, keys, scale, Ids(*_flat(pairs)), columns))


def _flat(pairs: Pairs) -> tuple:
    labels = pairs.labels if pairs.keep != "all" and pairs.labels is not None else (None, None)
    return (*labels, *(pairs.rows or (None, None)), pairs.keep)


def _setup(ctx, inputs, output) -> None:
    q, k, scale, ql, kl, qr, kr, keep, columns, bound, save = inputs
    rows, cols, top, kept = output
    if not save and any(x.requires_grad for x in (q, k, scale)):
        raise bad("save", "True where an input requires a gradient", save)
    ctx.save_for_backward(q, k, scale, ql, kl, qr, kr, rows, cols, kept)
    ctx.settings = (keep, columns, bound)
    ctx.mark_non_differentiable(top, kept)
    ctx.set_materialize_grads(False)


def _backward(ctx, g_rows, g_cols, _top, _kept):
    q, k, scale, ql, kl, qr, kr, rows, cols, kept = ctx.saved_tensors
    keep, columns, bound = ctx.settings
    nothing = [None] * 8
    if g_rows is None and g_cols is None:
        return None, None, None, *nothing
    g_rows = torch.zeros_like(rows) if g_rows is None else g_rows
    g_cols = torch.zeros_like(cols) if g_cols is None else g_cols
    if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for

        def formula(q, k, scale):
            return tiles.denominators(q, k, scale, Ids(ql, kl, qr, kr, keep), columns)[:2]

        return *_differentiable(formula, (g_rows, g_cols), (q, k, scale)), *nothing
    want_q, want_k, want_scale = ctx.needs_input_grad[:3]
    dq, dk, dscale = torch.ops.fastssl.contrast_backward(
        g_rows, g_cols, q, k, scale, ql, kl, qr, kr, keep, rows, cols, kept, bound,
        want_q, want_k,
    )  # fmt: skip
    return (
        dq if want_q else None,
        dk if want_k else None,
        dscale.to(scale.dtype) if want_scale else None,
        *nothing,
    )


def _setup_mean(ctx, inputs, output) -> None:
    q, k, scale, ql, kl, qr, kr, keep, _bound = inputs
    _rows, top, mean = output
    ctx.save_for_backward(q, scale, mean)
    # Only for a second derivative; not saved, so that the queue may be written to in between.
    ctx.keys = (k, ql, kl, qr, kr, keep, k._version)
    ctx.mark_non_differentiable(top, mean)
    ctx.set_materialize_grads(False)


def _backward_mean(ctx, g_rows, _top, _mean):
    nothing = [None] * 7
    if g_rows is None:
        return None, None, *nothing
    q, scale, mean_ND = ctx.saved_tensors
    if torch.is_grad_enabled():
        k, ql, kl, qr, kr, keep, version = ctx.keys
        if k._version != version:
            raise RuntimeError(
                "contrast_mean: a second derivative needs the keys of the forward pass, but they "
                "have been written to since (a queue?); use contrast or take it before enqueueing"
            )

        def formula(q, scale):
            return tiles.denominators(q, k, scale, Ids(ql, kl, qr, kr, keep), False)[:1]

        dq, dscale = _differentiable(formula, (g_rows,), (q, scale))
        return dq, None, dscale, *nothing[1:]
    weighted_ND = g_rows[:, None] * mean_ND
    want_q, _, want_scale = ctx.needs_input_grad[:3]
    dscale = (weighted_ND * q).sum().to(scale.dtype) if want_scale else None
    dq = (weighted_ND * scale.to(mean_ND.dtype)).to(q.dtype) if want_q else None
    return dq, None, dscale, *nothing[1:]


def _differentiable(formula, grads, inputs) -> list[Tensor | None]:
    """The formula's own gradients, kept differentiable.

    They are taken with respect to aliases: an input may be a function of another one, and that
    path belongs to the caller's graph.
    """
    aliases = [x.view_as(x) for x in inputs]
    pairs = [(o, g) for o, g in zip(formula(*aliases), grads, strict=True) if o.requires_grad]
    outputs, cotangents = zip(*pairs, strict=True)
    asked = [x for x in aliases if x.requires_grad]
    with own_precision(inputs[0]):  # the products of the gradient, too
        found = iter(
            torch.autograd.grad(outputs, asked, cotangents, create_graph=True, allow_unused=True)
        )
    return [next(found) if x.requires_grad else None for x in aliases]


def _register() -> None:
    for key, backend in BACKENDS.items():
        for name, function in implementations(backend).items():
            _library.impl(name, function, key)
    for name, fake in FAKES.items():
        torch.library.register_fake(f"fastssl::{name}", fake, lib=_library)
    torch.library.register_autograd(
        "fastssl::contrast", _backward, setup_context=_setup, lib=_library
    )
    torch.library.register_autograd(
        "fastssl::contrast_mean", _backward_mean, setup_context=_setup_mean, lib=_library
    )


_register()
