"""``fastssl::prototype_cross_entropy``: the logits z W^T / tau are never whole in memory.

Rows of z are taken in chunks whose logits fit a cache: product, softmax and (p - t) in their place,
then their shares of dz and dW. A mean or a sum has one outer gradient, so that the forward gives dz
and dW at 6 N C D flops in all; with reduction "none" the backward takes the logits again.
"""

# shapes: N rows, C outputs (prototypes), D features, R rows of a chunk
from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastssl.kernels.eager import is_transformed
from fastssl.kernels.precision import own_precision
from fastssl.kernels.soft_targets import reference
from fastssl.kernels.soft_targets.checks import (
    bad,
    check_device,
    check_matrix,
    check_reduction,
    check_targets,
    reciprocal,
)
from fastssl.kernels.soft_targets.op import BACKENDS, differentiable

CHUNK_BYTES = 16 << 20
PRODUCT_COLUMNS = 2048  # of one call: MKL packs the whole right side of a product
FEWEST_ROWS = 32  # of a chunk: dW is read and written once per chunk

_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(
    "prototype_cross_entropy(Tensor z, Tensor w, Tensor targets, float scale, str reduction,"
    " bool keep_z, bool keep_w) -> (Tensor loss, Tensor dz, Tensor dw)"
)
_library.define(
    "prototype_cross_entropy_backward(Tensor g_loss, Tensor z, Tensor w, Tensor targets,"
    " float scale, bool want_z, bool want_w) -> (Tensor dz, Tensor dw)"
)


def prototype_cross_entropy(
    z: Tensor, w: Tensor, targets: Tensor, *, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """Cross entropy of softmax(z w^T / temperature) against given targets.

    Args:
        z: (N, D) features, any float dtype; w: (C, D) prototypes. Both as they are: normalise
            before if the method does.
        targets: (N, C) without gradient (SwAV's codes).
        temperature: positive.
        reduction: "mean" or "sum" over the rows, or "none" for (N,).

    Returns:
        float32 (float64 if an operand is).

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: SwAV (arXiv:2006.09882) eq. 2.
    """
    for name, value, shape in (("z", z, "(N, D)"), ("w", w, "(C, D)")):
        check_matrix(name, value, shape)
    check_matrix("targets", targets, "(N, C)")
    if z.shape[1] != w.shape[1]:
        raise bad("w", f"of width {z.shape[1]} like z", tuple(w.shape))
    if targets.shape != (z.shape[0], w.shape[0]):
        raise bad("targets", f"of shape {(z.shape[0], w.shape[0])}", tuple(targets.shape))
    check_device(("z", "w"), z, w)
    check_device(("z", "targets"), z, targets)
    check_targets(targets)
    check_reduction(reduction)
    scale = reciprocal("temperature", temperature)
    if is_transformed():
        return _formula(z, w, targets, scale, reduction)
    grad = torch.is_grad_enabled()
    keep = (grad and z.requires_grad, grad and w.requires_grad)
    return torch.ops.fastssl.prototype_cross_entropy(z, w, targets, scale, reduction, *keep)[0]


def _formula(z, w, targets, scale: float, reduction: str) -> Tensor:
    """Plain torch, for transforms and second derivatives; N x C logits, as many as targets."""
    dtype = _dtype(z, w, targets)
    with own_precision(z):
        loss_N = reference.given(z.to(dtype) @ w.to(dtype).T, targets, scale)
    return loss_N if reduction == "none" else getattr(loss_N, reduction)()


def _chunked(backend, operands, scale: float, weight_N: Tensor, wants: tuple[bool, bool]):
    """loss (N,), and of sum_i weight_i loss_i the gradients of z and w (empty unless wanted)."""
    z, w, targets_NC = operands
    dtype = _dtype(*operands)
    z_ND, w_CD = z.to(dtype), w.to(dtype)
    dz_ND = _like(backend, z_ND) if wants[0] else z_ND.new_empty(0)
    dw_CD = _like(backend, w_CD) if wants[1] else w_CD.new_empty(0)
    loss_N = z_ND.new_empty(len(z_ND))
    rows = _rows_of_chunk(len(z_ND), len(w_CD) * dtype.itemsize)
    x_RC = backend.allocate((rows, len(w_CD)), dtype, z.device)
    for begin in range(0, len(z_ND), rows):
        here = slice(begin, min(begin + rows, len(z_ND)))
        chunk_RD, x = z_ND[here], x_RC[: here.stop - here.start]
        for c in range(0, len(w_CD), PRODUCT_COLUMNS):
            block = slice(c, c + PRODUCT_COLUMNS)
            torch.mm(chunk_RD, w_CD[block].T, out=x[:, block])
        if not any(wants):
            loss_N[here] = backend.given_forward(x, targets_NC[here], scale)[0]
            continue
        loss_N[here] = backend.given_in_place(x, targets_NC[here], scale, weight_N[here])
        if wants[0]:
            torch.mm(x, w_CD, out=dz_ND[here])
        if wants[1] and begin == 0:
            torch.mm(x.T, chunk_RD, out=dw_CD)
        elif wants[1]:
            dw_CD.addmm_(x.T, chunk_RD)
    return loss_N, dz_ND, dw_CD


def _rows_of_chunk(num_rows: int, row_bytes: int) -> int:
    """Chunks as equal as they can be, each within CHUNK_BYTES or of FEWEST_ROWS."""
    most = max(FEWEST_ROWS, CHUNK_BYTES // row_bytes)
    return -(-num_rows // -(-num_rows // most))


def _like(backend, values: Tensor) -> Tensor:
    return backend.allocate(tuple(values.shape), values.dtype, values.device)


def _dtype(z: Tensor, w: Tensor, targets: Tensor) -> torch.dtype:
    return reference.accumulate_dtype(z.dtype, w.dtype, targets.dtype)


def _implementations(backend) -> dict:
    """The two operators over a backend module that is looked up at the first call."""

    def forward(z, w, targets, scale, reduction, keep_z, keep_w):
        share = 1.0 / len(z) if reduction == "mean" else 1.0
        weight_N = z.new_full((len(z),), share, dtype=_dtype(z, w, targets))
        wants = (False, False) if reduction == "none" else (keep_z, keep_w)
        loss_N, dz, dw = _chunked(backend(), (z, w, targets), scale, weight_N, wants)
        return loss_N if reduction == "none" else loss_N.sum() * share, dz, dw

    def backward(g_loss, z, w, targets, scale, want_z, want_w):
        g_N = g_loss.to(_dtype(z, w, targets))
        _, dz, dw = _chunked(backend(), (z, w, targets), scale, g_N, (want_z, want_w))
        return dz.to(z.dtype), dw.to(w.dtype)

    return {"prototype_cross_entropy": forward, "prototype_cross_entropy_backward": backward}


def _fake_forward(z, w, targets, scale, reduction, keep_z, keep_w):
    dtype, whole = _dtype(z, w, targets), reduction != "none"
    loss = z.new_empty(() if whole else z.shape[0], dtype=dtype)
    dz = z.new_empty(z.shape if keep_z and whole else 0, dtype=dtype)
    return loss, dz, z.new_empty(w.shape if keep_w and whole else 0, dtype=dtype)


def _fake_backward(g_loss, z, w, targets, scale, want_z, want_w):
    return z.new_empty(z.shape if want_z else 0), w.new_empty(w.shape if want_w else 0)


def _setup(ctx, inputs, output) -> None:
    z, w, targets, scale, reduction, keep_z, keep_w = inputs
    _loss, dz, dw = output
    for name, value, kept in (("keep_z", z, keep_z), ("keep_w", w, keep_w)):
        if value.requires_grad and not kept:
            raise bad(name, "True where the input requires a gradient", kept)
    check_targets(targets)
    found = () if reduction == "none" else (dz, dw)
    traced = _get_current_dispatch_mode() is not None
    ctx.save_for_backward(z, w, targets, *(found if traced else ()))
    ctx.ready = () if traced else found
    ctx.settings = (scale, reduction)
    ctx.mark_non_differentiable(dz, dw)
    ctx.set_materialize_grads(False)


def _backward(ctx, g_loss, _dz, _dw):
    z, w, targets, *traced = ctx.saved_tensors
    scale, reduction = ctx.settings
    nothing = (None,) * 5
    if g_loss is None:
        return None, None, *nothing
    want_z, want_w = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for
        loss = _formula(z, w, targets, scale, reduction)
        return *differentiable((loss,), (g_loss,), (z, w)), *nothing
    if traced or ctx.ready:
        # eager: handed out once, without a copy; a second backward takes them anew
        dz, dw = [x * g_loss for x in traced] or _scaled(ctx.ready, g_loss)
        ctx.ready = ()
        return dz.to(z.dtype) if want_z else None, dw.to(w.dtype) if want_w else None, *nothing
    share = 1.0 / z.shape[0] if reduction == "mean" else 1.0
    g_N = (g_loss * share).expand(z.shape[0])
    arguments = (g_N, z, w, targets, scale, want_z, want_w)
    dz, dw = torch.ops.fastssl.prototype_cross_entropy_backward(*arguments)
    return dz if want_z else None, dw if want_w else None, *nothing


def _scaled(gradients: tuple[Tensor, ...], g_loss: Tensor) -> list[Tensor]:
    """In place; an outer gradient of one, which loss.backward() has, is not worth a pass."""
    if g_loss.device.type == "cpu" and g_loss == 1:  # elsewhere reading it would wait
        return list(gradients)
    return [x.mul_(g_loss) for x in gradients]


def _register() -> None:
    for key, backend in BACKENDS.items():
        for name, function in _implementations(backend).items():
            _library.impl(name, function, key)
    torch.library.register_fake("fastssl::prototype_cross_entropy", _fake_forward, lib=_library)
    torch.library.register_fake(
        "fastssl::prototype_cross_entropy_backward", _fake_backward, lib=_library
    )
    torch.library.register_autograd(
        "fastssl::prototype_cross_entropy", _backward, setup_context=_setup, lib=_library
    )


_register()
