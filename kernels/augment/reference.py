"""``augment`` in plain torch: crop and resize, then the stages of the table in their order.

Differentiable to any order, backward and forward, in float images and in every continuous value.
Values between stages are not rounded. A stage touches the samples that run it and no others.
"""

# shapes: V views, N samples, M = V N, S side of a view; P values, C codes (see table)
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from fastssl.kernels.augment import reference_tone as tone
from fastssl.kernels.augment.reference_affine import affine
from fastssl.kernels.augment.reference_blur import blur
from fastssl.kernels.augment.reference_jitter import grey, jitter
from fastssl.kernels.augment.reference_resize import crop, stack
from fastssl.kernels.augment.rows import on_rows
from fastssl.kernels.augment.settings import GREY, Settings
from fastssl.kernels.augment.table import CODES, STAGE_BIT, VALUES
from fastssl.kernels.precision import own_precision


def work_dtype(images_dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 images, else float32."""
    return torch.float64 if images_dtype == torch.float64 else torch.float32


def render(
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
) -> Tensor:
    """(V, N, 3, S, S): one 4-D image tensor (with sizes if padded) or N 3-D ones, every view."""
    dtype = work_dtype(images[0].dtype)
    values_VNP = values_VNP.to(dtype)
    with own_precision(images[0]):
        x_N3HW, sizes_N2 = stack(images, sizes_N2, dtype)
        boxes_VN4 = columns(values_VNP, "left top width height")
        x_VN3SS = crop(x_N3HW, sizes_N2, boxes_VN4, size, settings.interpolation)
        if images[0].dtype == torch.uint8 and settings.interpolation == "bicubic":
            x_VN3SS = x_VN3SS.clamp(0, 1)
        x_M3SS, values_MP, codes_MC = (x.flatten(0, 1) for x in (x_VN3SS, values_VNP, codes_VNC))
        for stage, (run, operands) in stages(values_MP, codes_MC, settings).items():
            runs_M = (codes_MC[:, CODES.index("stages")] & STAGE_BIT[stage]) != 0
            x_M3SS = on_rows(runs_M, run, x_M3SS, *operands)
        if settings.mean is not None and settings.std is not None:
            x_M3SS = tone.normalise(x_M3SS, settings.mean, settings.std)
    x_VN3SS = x_M3SS.view_as(x_VN3SS).to(settings.view_dtype(images[0].dtype))
    if settings.memory_format == torch.channels_last:
        return x_VN3SS.movedim(2, -1).contiguous().movedim(-1, 2)
    return x_VN3SS.contiguous()


def columns(values: Tensor, names: str) -> Tensor:
    """(..., len(names)): the named columns of the values."""
    return values[..., [VALUES.index(name) for name in names.split()]]


def stages(
    values_MP: Tensor, codes_MC: Tensor, settings: Settings
) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """The stages after the crop, in order: function and per-sample operands."""

    def value(names: str) -> Tensor:
        return columns(values_MP, names)

    def code(name: str) -> Tensor:
        return codes_MC[:, CODES.index(name)]

    return {
        "hflip": (lambda x: x.flip(3), ()),
        "vflip": (lambda x: x.flip(2), ()),
        "affine": (
            lambda x, p: affine(x, p, settings.affine_interpolation),
            (value("angle translate_x translate_y scale shear_x shear_y"),),
        ),
        "jitter": (
            lambda x, order, factors: jitter(x, order, factors, settings.hue),
            (code("jitter_order"), value("brightness contrast saturation hue")),
        ),
        "gray": (lambda x: grey(x, GREY[settings.hue]).expand_as(x), ()),
        "blur": (
            lambda x, sigma: blur(x, sigma[:, 0], settings.blur_window),
            (value("sigma"),),
        ),
        "solarize": (lambda x, at: tone.solarize(x, at[:, 0]), (value("solarize"),)),
        "posterize": (tone.posterize, (code("posterize_bits"),)),
        "equalize": (tone.equalize, ()),
        "erase": (
            tone.erase,
            (
                value("erase_left erase_top erase_width erase_height"),
                value("erase_red erase_green erase_blue"),
            ),
        ),
    }


def forward(images, sizes_N2, values_VNP, codes_VNC, size, settings) -> Tensor:
    """Views, without a graph."""
    with torch.no_grad():
        return render(images, sizes_N2, values_VNP, codes_VNC, size, settings)


def backward(
    grad_VN3SS: Tensor,
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
    want_images: bool,
) -> tuple[list[Tensor], Tensor]:
    """Gradients of the images (none unless wanted) and of the values, recomputing the views."""
    with autograd_on():
        images = [image.detach().requires_grad_(want_images) for image in images]
        values_VNP = values_VNP.detach().requires_grad_()
        views_VN3SS = render(images, sizes_N2, values_VNP, codes_VNC, size, settings)
        leaves = [*images, values_VNP] if want_images else [values_VNP]
        grads = torch.autograd.grad(views_VN3SS, leaves, grad_VN3SS)
    return [grad.contiguous() for grad in grads[:-1]], grads[-1].contiguous()


@contextmanager
def autograd_on() -> Iterator[None]:
    """Autograd inside an operator's kernel, below which the dispatcher may have switched it off."""
    keys = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
    with ExitStack() as stack:
        for key in keys:
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        stack.enter_context(torch.enable_grad())
        yield
