"""``fastssl::augment``: schema, checks, fake, autograd and the public function.

The views are rendered from images and a table of parameters; nothing is drawn here. The backward
renders again instead of keeping what lies between, so that a call keeps its inputs alone.
"""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.kernels.augment import reference
from fastssl.kernels.augment.backends import BACKENDS, FAKES
from fastssl.kernels.augment.checks import as_list, check, check_settings
from fastssl.kernels.augment.settings import FLAT, Settings, unflat
from fastssl.kernels.augment.table import Table
from fastssl.kernels.eager import is_transformed

_INPUTS = "Tensor[] images, Tensor? sizes, Tensor values, Tensor codes, SymInt size"
_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define(f"augment({_INPUTS}, {FLAT}) -> Tensor")
_library.define(
    f"augment_backward(Tensor grad, {_INPUTS}, {FLAT}, bool want_images)"
    " -> (Tensor[] grad_images, Tensor grad_values)"
)
DEFAULT = Settings()


def augment(
    images: Tensor | Sequence[Tensor],
    table: Table,
    *,
    size: int,
    sizes_N2: Tensor | None = None,
    settings: Settings = DEFAULT,
) -> Tensor:
    """Every view of a batch, rendered from its table of parameters.

    Each stage is torchvision.transforms.v2.functional's with the same parameters, on values in
    [0, 1] that are not rounded between stages; the order is crop and resize, then ``STAGES``,
    then normalise. Differentiable in float images and in the table's values.

    Args:
        images: (N, 3, H, W), any strides; or a sequence of N tensors (3, H_n, W_n), any strides.
            uint8 (0 to 255), float32 or float64 (0 to 1).
        table: parameters of V views of the N samples, on the device of the images.
        size: S, side of the square views in pixels.
        sizes_N2: int64 (height, width) of each image within a padded batch (N, 3, H, W).
        settings: what all samples share.

    Returns:
        (V, N, 3, S, S) in ``settings.dtype`` (float64 for float64 images), each view in
        ``settings.memory_format``. A box is clipped to its image. Under torch.func transforms
        and forward-mode AD the plain-torch formula answers.

    Raises:
        ValueError: an argument does not fit; the message names it. The numbers in table and
            sizes are read, and refused, on the CPU alone.
    """
    listed = as_list(images)
    check_settings(settings)
    check(listed, sizes_N2, table, size)
    arguments = (listed, sizes_N2, table.values_VNP, table.codes_VNC, size)
    if is_transformed():
        return reference.render(*arguments, settings)
    return torch.ops.fastssl.augment(*arguments, *settings.flat())


def _setup(ctx, inputs, output) -> None:
    images, sizes, values, codes, size, *flat = inputs
    ctx.save_for_backward(sizes, values, codes, *images)
    ctx.size, ctx.flat = size, flat


def _backward(ctx, grad):
    sizes, values, codes, *images = ctx.saved_tensors
    settings = unflat(*ctx.flat)
    want_images = any(ctx.needs_input_grad[0])
    nothing = [None] * (2 + len(ctx.flat))
    if torch.is_grad_enabled():  # create_graph: a second derivative may be asked for
        grads = _differentiable(grad, images, sizes, values, codes, ctx.size, settings)
        return grads[:-1], None, grads[-1], *nothing
    grad_images, grad_values = torch.ops.fastssl.augment_backward(
        grad, images, sizes, values, codes, ctx.size, *ctx.flat, want_images
    )
    return grad_images if want_images else [None] * len(images), None, grad_values, *nothing


def _differentiable(grad, images, sizes, values, codes, size, settings) -> list[Tensor | None]:
    """The formula's own gradients, kept differentiable.

    They are taken with respect to aliases: an input may be a function of another one, and that
    path belongs to the caller's graph.
    """
    *images, values = [x.view_as(x) for x in (*images, values)]
    views = reference.render(images, sizes, values, codes, size, settings)
    inputs = (*images, values)
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(
        torch.autograd.grad(views, wanted, grad, create_graph=True, materialize_grads=True)
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _register() -> None:
    for key, functions in BACKENDS.items():
        for name, function in functions.items():
            _library.impl(name, function, key)
    for name, fake in FAKES.items():
        torch.library.register_fake(f"fastssl::{name}", fake, lib=_library)
    torch.library.register_autograd(
        "fastssl::augment", _backward, setup_context=_setup, lib=_library
    )


_register()
