"""``fastssl::ntxent``: schema, input checks, backends, fake, autograd and the public function.

The dispatcher picks the backend: C++ for CPU tensors, Triton for CUDA tensors, the plain-torch
reference for every other device and wherever the compiled one is missing (which is said once).
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.eager import is_plain, is_transformed
from fastssl.kernels.ntxent import native, reference, tiles
from fastssl.kernels.ntxent.checks import bad, check, check_saved, check_temperature_value
from fastssl.kernels.precision import own_precision
from fastssl.kernels.scalars import is_real

CPU = torch.device("cpu")

_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(
    "ntxent(Tensor[] views, Tensor temperature, str reduction, bool keep)"
    " -> (Tensor loss, Tensor lse, Tensor rnorm, Tensor kept)"
)
_library.define(
    "ntxent_backward(Tensor grad, Tensor[] views, Tensor temperature, str reduction,"
    " Tensor lse, Tensor rnorm, Tensor kept) -> (Tensor dz, Tensor dtemperature)"
)


def ntxent(
    views: Sequence[Tensor], temperature: float | Tensor = 0.1, *, reduction: str = "mean"
) -> Tensor:
    """NT-Xent (SimCLR's contrastive loss) of raw, un-normalised embeddings.

    Args:
        views: V >= 2 tensors of shape (N, D), one per view, of one dtype (float16, bfloat16,
            float32 or float64) and on one device. Any strides. Rows are L2-normalised inside.
        temperature: finite and non-zero; a float, or a one-element tensor to learn it. On CUDA the
            value of a tensor is not checked, since that would wait for the device.
        reduction: "mean" or "sum" over the M = V * N rows, or "none" for a loss per row.

    Returns:
        () or (M,) in float32 (float64 for float64 input); row v * N + n is sample n in view v.
        With V > 2 the positives of a row are averaged outside the logarithm. ``torch.func``
        transforms, ``vmap`` and forward-mode AD are answered by the formula in plain torch.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Chen et al. 2020, arXiv:2002.05709, eq. 1.
    """
    if isinstance(views, Tensor):
        raise bad("views", "a list or tuple of at least two (N, D) tensors", "one tensor")
    views = list(views)
    for position, view in enumerate(views):
        if not isinstance(view, Tensor):
            raise bad(f"views[{position}]", "a tensor of shape (N, D)", type(view).__name__)
    plain = is_plain([*views, temperature] if isinstance(temperature, Tensor) else views)
    temperature = _as_tensor(temperature, views, reuse=plain)
    if not plain and is_transformed():
        check(views, temperature, reduction)
        return tiles.ntxent(views, temperature, reduction)
    keep = torch.is_grad_enabled() and (
        temperature.requires_grad or any(view.requires_grad for view in views)
    )
    if not plain:
        return torch.ops.fastssl.ntxent.default(views, temperature, reduction, keep)[0]
    if keep:
        return _EagerNTXent.apply(temperature, reduction, *views)
    return _backend(FORWARDS, views)(views, temperature, reduction, keep)[0]


def _as_tensor(temperature: float | Tensor, views: list[Tensor], *, reuse: bool) -> Tensor:
    if isinstance(temperature, Tensor):
        return temperature
    if not is_real(temperature):
        raise bad("temperature", "a float or a one-element tensor", type(temperature).__name__)
    device = views[0].device if views else CPU
    if reuse and device == CPU:
        return _constant(float(temperature))
    check_temperature_value(temperature)
    return torch.full((), float(temperature), dtype=torch.float64, device=device)


@lru_cache(maxsize=64)
def _constant(temperature: float) -> Tensor:
    """One tensor for all calls with this temperature; nobody writes to it."""
    check_temperature_value(temperature)
    with torch.inference_mode(False):  # what is made inside inference mode cannot be saved later
        return torch.full((), temperature, dtype=torch.float64, device=CPU)


def _cpu_backend():
    """C++ where the library was built; its loader has said so where it was not."""
    return native if compiled.library() is not None else reference


def _cpu_forward(
    views: list[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(views, temperature, reduction)
    check_temperature_value(temperature.item())
    return _cpu_backend().forward(views, temperature, reduction, keep)


def _cpu_backward(*arguments) -> tuple[Tensor, Tensor]:
    return _cpu_backend().backward(*arguments)


@cache
def _cuda_backend():
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.ntxent import launch
    except ImportError as error:
        message = f"ntxent: no Triton ({error}); the plain-torch reference answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def _cuda_forward(
    views: list[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(views, temperature, reduction)
    return _cuda_backend().forward(views, temperature, reduction, keep)


def _cuda_backward(*arguments) -> tuple[Tensor, Tensor]:
    return _cuda_backend().backward(*arguments)


def _composite_forward(
    views: list[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(views, temperature, reduction)
    return reference.forward(views, temperature, reduction, keep)


def _checked(backward: Callable) -> Callable:
    """For whoever calls the raw operator: autograd's own calls need no check."""

    def checked(
        grad: Tensor, views: list[Tensor], temperature: Tensor, reduction: str, *saved: Tensor
    ) -> tuple[Tensor, Tensor]:
        check(views, temperature, reduction)
        check_saved(grad, views, reduction, saved)
        return backward(grad, views, temperature, reduction, *(x.contiguous() for x in saved))

    return checked


def _fake_forward(
    views: list[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(views, temperature, reduction)
    first = views[0]
    num_rows, embedding = len(views) * first.shape[0], first.shape[1]
    dtype = reference.accumulate_dtype(first.dtype)
    lse_M = first.new_empty(num_rows, dtype=dtype)
    loss = torch.empty_like(lse_M) if reduction == "none" else first.new_empty((), dtype=dtype)
    num_kept = 0
    if keep and first.device.type in ("cpu", "cuda"):
        backend = _cpu_backend() if first.device.type == "cpu" else _cuda_backend()
        num_kept = backend.kept_numel(num_rows, embedding, first.dtype)
    kept = first.new_empty(num_kept, dtype=dtype)
    return loss, lse_M, torch.empty_like(lse_M), kept


def _fake_backward(
    grad: Tensor, views: list[Tensor], temperature: Tensor, reduction: str, *saved: Tensor
) -> tuple[Tensor, Tensor]:
    check(views, temperature, reduction)
    check_saved(grad, views, reduction, saved)
    first = views[0]
    dz_MD = first.new_empty(len(views) * first.shape[0], first.shape[1])
    return dz_MD, first.new_empty((), dtype=reference.accumulate_dtype(first.dtype))


class _EagerNTXent(torch.autograd.Function):
    """The eager entrance: the backends and the gradients of the registered operator."""

    @staticmethod
    def forward(ctx, temperature: Tensor, reduction: str, *views: Tensor) -> Tensor:
        forward = _backend(FORWARDS, views)
        loss, lse_M, rnorm_M, kept = forward(views, temperature, reduction, True)
        ctx.save_for_backward(*views, temperature, lse_M, rnorm_M, kept)
        ctx.reduction = reduction
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor):
        operator = torch.ops.fastssl.ntxent_backward.default
        backward = _backend(BACKWARDS, (grad,)) if is_plain((grad,)) else operator
        dviews, dtemperature = _gradients(ctx, grad, backward)
        return dtemperature, None, *dviews


def _setup_context(ctx, inputs, output) -> None:
    views, temperature, reduction, keep = inputs
    if not keep and (temperature.requires_grad or any(view.requires_grad for view in views)):
        raise bad("keep", "True where an input requires a gradient", keep)
    _, lse_M, rnorm_M, kept = output
    ctx.save_for_backward(*views, temperature, lse_M, rnorm_M, kept)
    ctx.reduction = reduction
    ctx.mark_non_differentiable(lse_M, rnorm_M, kept)
    ctx.set_materialize_grads(False)


def _registered_backward(ctx, grad: Tensor | None, *_non_differentiable):
    if grad is None:
        return [None] * (len(ctx.saved_tensors) - 4), None, None, None
    operator = torch.ops.fastssl.ntxent_backward.default
    dviews, dtemperature = _gradients(ctx, grad, operator)
    return list(dviews), dtemperature, None, None


def _gradients(
    ctx, grad: Tensor, backward: Callable
) -> tuple[Sequence[Tensor | None], Tensor | None]:
    *views, temperature, lse_M, rnorm_M, kept = ctx.saved_tensors
    if torch.is_grad_enabled() or is_transformed() or not torch._C._has_storage(grad):
        # create_graph, or a batch of gradients at once (which has no memory)
        return _formula_gradients(views, temperature, ctx.reduction, grad)
    saved = (lse_M, rnorm_M, kept)
    dz_MD, dtau = backward(grad, views, temperature, ctx.reduction, *saved)
    learnt = temperature.requires_grad
    dtemperature = dtau.to(temperature.dtype).reshape(temperature.shape) if learnt else None
    return dz_MD.chunk(len(views)), dtemperature


def _formula_gradients(
    views: list[Tensor], temperature: Tensor, reduction: str, grad: Tensor
) -> tuple[list[Tensor | None], Tensor | None]:
    """The formula's own gradients, differentiable if asked, tile by tile.

    They are taken at aliases: one tensor may be several inputs, or be computed from another.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad(), own_precision(views[0]):
        aliases = [tensor.view_as(tensor) for tensor in (*views, temperature)]
        asked = [alias for alias in aliases if alias.requires_grad]
        loss = tiles.ntxent(aliases[:-1], aliases[-1], reduction)
        found = iter(torch.autograd.grad(loss, asked, grad, create_graph=again))
    *dviews, dtemperature = [next(found) if x.requires_grad else None for x in aliases]
    return dviews, dtemperature


FORWARDS: dict[str, Callable] = {
    "CPU": _cpu_forward,
    "CUDA": _cuda_forward,
    "CompositeExplicitAutograd": _composite_forward,
}
BACKWARDS: dict[str, Callable] = {
    "CPU": _cpu_backward,
    "CUDA": _cuda_backward,
    "CompositeExplicitAutograd": reference.backward,
}


def _backend(table: dict[str, Callable], views: Sequence[Tensor]) -> Callable:
    """What the dispatcher would pick, from the table that is registered with it."""
    key = views[0].device.type.upper() if views else "CPU"
    return table.get(key, table["CompositeExplicitAutograd"])


def _register() -> None:
    for key, function in FORWARDS.items():
        _library.impl("ntxent", function, key)
    for key, function in BACKWARDS.items():
        _library.impl("ntxent_backward", _checked(function), key)
    torch.library.register_fake("fastssl::ntxent", _fake_forward, lib=_library)
    torch.library.register_fake("fastssl::ntxent_backward", _fake_backward, lib=_library)
    torch.library.register_autograd(
        "fastssl::ntxent", _registered_backward, setup_context=_setup_context, lib=_library
    )


_register()
