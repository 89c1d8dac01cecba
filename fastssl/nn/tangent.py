"""Values and derivatives of a network in one pass: ``tangent(f, x, dx)`` is f(x) and f'(x) dx.

The rows of a batch are the values x and, below them, their tangents dx. Linear operators treat
both alike; the others have a rule here. Batch normalisation over the values, as J is symmetric:
  y = g x^ + b,   dy = J dx = g s (dx - mean dx - x^ mean(x^ dx)),   x^ = (x - mean x) s
What has no rule is refused. Plain operators: any number of passes of reverse mode may follow, at
half the price of reverse over reverse, and torch.compile sees nothing out of the ordinary.
"""

# shapes: N batch, M = 2N rows, C channels
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LINEAR = {
    *(torch.flatten, torch.mean, torch.add, torch.sum, torch.reshape, torch.permute),
    *(Tensor.flatten, Tensor.mean, Tensor.add, Tensor.add_, Tensor.sum, Tensor.reshape),
    *(Tensor.__add__, Tensor.__iadd__, Tensor.__radd__, Tensor.view, Tensor.permute),
    *(F.avg_pool2d, F.adaptive_avg_pool2d, torch.cat, Tensor.contiguous),
}
_ASKS = {Tensor.dim, Tensor.size, Tensor.is_floating_point}
_AFFINE = {F.conv2d, torch.conv2d, F.linear}
_empty_like = torch.ops.aten.empty_like.default  # torch's own is not always traced under a mode
_RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


def tangent(f: Callable[[Tensor], Tensor], x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) and the derivative of f at x along dx, each (N, ...); x, dx: (N, ...).

    Where f normalises over the batch the derivative is that of all rows moving at once, those of
    other processes included where a norm of f has a ``group``. Raises ValueError for an operator
    of f that has no rule.
    """
    assert x.shape == dx.shape and len(x) > 0
    with _norms_over_ranks(f), _Stacked():
        y_MF = f(torch.cat([x, dx]))
    value, derivative = y_MF.chunk(2)
    return value, derivative


@contextlib.contextmanager
def _norms_over_ranks(f: Any) -> Iterator[None]:
    """Inside, batch norms of ``f`` over several processes take values on tangents.

    Their statistics come of collectives, which have no rule: the module itself runs on the values.
    """
    modules = f.modules() if isinstance(f, nn.Module) else ()
    norms = [(m, vars(m).get("forward")) for m in modules if getattr(m, "group", None) is not None]
    for norm, _ in norms:
        norm.forward = functools.partial(_by_reverse, norm.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, own in norms:
            del norm.forward
            if own is not None:
                norm.forward = own


def _by_reverse(f: Callable[[Tensor], Tensor], x_M: Tensor) -> Tensor:
    """f(x) and f'(x) dx of any differentiable f: u -> f'(x)^T u is linear, its transpose is f'."""
    with torch._C.DisableTorchFunction():
        x, dx = x_M.chunk(2)
        x = x if x.requires_grad else x.detach().requires_grad_()
        y = f(x)
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
        (dy,) = torch.autograd.grad(pulled, u, dx, create_graph=True)
        return torch.cat([y, dy])


class _Stacked(TorchFunctionMode):
    """Inside, every tensor with a batch is values on tangents."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in _RELUS:
            return _Relu.apply(args[0])
        if func in (F.max_pool2d, torch.max_pool2d):
            return _max_pool(*args, **kwargs)
        if func in _AFFINE:
            return _affine(func, *args, **kwargs)
        if func in _LINEAR or func in _ASKS or "__get__" in getattr(func, "__name__", ""):
            return func(*args, **kwargs)
        raise ValueError(
            f"tangent: expected operators of convolutional networks with ReLU and batch norm, "
            f"received {getattr(func, '__name__', func)}; --expectation closed takes any encoder"
        )


def _affine(func: Any, x_M: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Any:
    """The bias moves values alone."""
    y_M = func(x_M, weight, None, *rest)
    if bias is None:
        return y_M
    y, dy = y_M.chunk(2)
    return torch.cat([y + (bias if func is F.linear else bias.view(-1, 1, 1)), dy])


def _max_pool(x_M: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A tangent goes where its value went."""
    x, dx = x_M.chunk(2)
    y, place = F.max_pool2d_with_indices(x, *args, **{**kwargs, "return_indices": True})
    dy = dx.flatten(2).gather(2, place.flatten(2)).view_as(y)
    return torch.cat([y, dy])


def _batch_norm(
    x_M: Tensor,
    running_mean_C: Tensor | None,
    running_var_C: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    x, dx = x_M.chunk(2)
    if not training:
        assert running_var_C is not None
        y = F.batch_norm(x, running_mean_C, running_var_C, weight, bias, False, momentum, eps)
        scale_C = (running_var_C + eps).rsqrt() * (1.0 if weight is None else weight)
        return torch.cat([y, dx * scale_C.view(-1, *[1] * (x.ndim - 2))])
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    y, mean_C, scale_C = torch.ops.aten.native_batch_norm(
        *(x.detach(), weight.detach(), bias.detach(), running_mean_C, running_var_C),
        *(True, momentum, eps),
    )
    return _Norm.apply(x_M, weight, bias, y, mean_C, scale_C)  # type: ignore[no-any-return]


class _Relu(torch.autograd.Function):
    """Values and tangents pass where the values are positive, and so do gradients."""

    @staticmethod
    def forward(ctx: Any, x_M: Tensor) -> Tensor:  # type: ignore[override]
        n = len(x_M) // 2
        y_M = _empty_like(x_M)
        torch.ops.aten.clamp_min.out(x_M[:n], 0, out=y_M[:n])
        _pass_positive(x_M[n:], y_M[:n], out=y_M[n:])
        ctx.save_for_backward(y_M)
        return y_M

    @staticmethod
    def backward(ctx: Any, p_M: Tensor) -> Tensor:  # type: ignore[override]
        (y_M,) = ctx.saved_tensors
        n = len(y_M) // 2
        g_M = _empty_like(p_M)
        _pass_positive(p_M[:n], y_M[:n], out=g_M[:n])
        _pass_positive(p_M[n:], y_M[:n], out=g_M[n:])
        return g_M


def _pass_positive(p: Tensor, y: Tensor, *, out: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(p, y, 0, grad_input=out)


class _Norm(torch.autograd.Function):
    """Values y, made already, and the tangents of batch normalisation.

    Backward of <p, y> + <q, dy>: x gets J p - s (x^ <q, dy> / n + mean(x^ dx) J q + mean(x^ q) dy),
    dx gets J q. The torch operator ``native_batch_norm_backward`` is J.
    """

    @staticmethod
    def forward(ctx: Any, x_M, weight_C, bias_C, y, mean_C, scale_C):  # type: ignore[no-untyped-def]
        x, dx = x_M.chunk(2)
        dy, with_x_C, sum_C = _jacobian(dx, x, weight_C, mean_C, scale_C)
        ctx.save_for_backward(x_M, dy, weight_C, mean_C, scale_C, with_x_C, sum_C)
        return torch.cat([y, dy])

    @staticmethod
    def backward(ctx: Any, p_M):  # type: ignore[no-untyped-def]
        x_M, dy, weight_C, mean_C, scale_C, with_x_C, sum_C = ctx.saved_tensors
        (x, dx), (p, q) = x_M.chunk(2), p_M.chunk(2)
        count, across = x.numel() // x.shape[1], [0, *range(2, x.ndim)]
        g_x, p_with_x_C, p_sum_C = _jacobian(p, x, weight_C, mean_C, scale_C)
        g_dx, q_with_x_C, q_sum_C = _jacobian(q, x, weight_C, mean_C, scale_C)
        # <q, P dx>, P the projection in J
        inner_C = (q * dx).sum(across) - (q_sum_C * sum_C + q_with_x_C * with_x_C) / count
        on_x_C = -scale_C.pow(3) * weight_C * inner_C / count
        on_q_C, on_dy_C = -scale_C * with_x_C / count, -scale_C * q_with_x_C / count
        on_x, on_q, on_dy, start = (
            part_C.view(-1, *[1] * (x.ndim - 2))
            for part_C in (on_x_C, on_q_C, on_dy_C, -on_x_C * mean_C)
        )
        g_x = torch.addcmul(start, on_x, x).add_(g_x).addcmul_(on_q, g_dx).addcmul_(on_dy, dy)
        g_M = torch.cat([g_x, g_dx])
        return g_M, p_with_x_C + scale_C * inner_C, p_sum_C, None, None, None


def _jacobian(
    v: Tensor, x: Tensor, weight_C: Tensor, mean_C: Tensor, scale_C: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """J v, sum x^ v and sum v."""
    return torch.ops.aten.native_batch_norm_backward(
        v, x, weight_C, None, None, mean_C, scale_C, True, 0.0, [True, True, True]
    )
