"""``augment`` on the CPU through the compiled library (csrc/augment.cpp)."""

# shapes: V views, N samples, S side of a view, H x W an image; P values, C codes
from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

from fastssl.kernels import native
from fastssl.kernels.augment.settings import DTYPES, Settings

IMAGE_DTYPES = {torch.uint8: 4, torch.float32: 1}
VIEW_DTYPES = {torch.float32: 1, torch.bfloat16: 2}

# AugmentCall of csrc/augment.h: images, values, codes, V, N, S, dtypes and choices, mean, std,
# views, their gradient, gradients of values and images.
_CALL = struct.Struct("@PPPqqqiiiiiiii3f3fPPPP")
assert set(VIEW_DTYPES) == set(DTYPES)


def supports(images: list[Tensor], settings: Settings) -> bool:
    """Whether ``forward`` makes these views."""
    return images[0].dtype in IMAGE_DTYPES


def supports_backward(images: list[Tensor], codes_VNC: Tensor, settings: Settings) -> bool:
    """Whether ``backward`` differentiates these views; the reference answers otherwise."""
    return images[0].dtype in IMAGE_DTYPES


def forward(
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
) -> Tensor:
    """(V, N, 3, S, S) in ``settings.dtype``; arguments have passed every check."""
    out = _allocate(values_VNP, size, settings)
    inputs = (images, sizes_N2, values_VNP, codes_VNC)
    _run("fastssl_augment_forward", inputs, size, settings, out.data_ptr(), 0, 0, 0)
    return out.movedim(-1, 2) if settings.memory_format == torch.channels_last else out


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
    """Gradients like ``images`` (contiguous; an empty list unless wanted), and (V, N, P)."""
    last = settings.memory_format == torch.channels_last
    grad = grad_VN3SS.movedim(2, -1).contiguous() if last else grad_VN3SS.contiguous()
    by_values_VNP = torch.empty(values_VNP.shape, dtype=torch.float64)
    by_images = [torch.zeros(image.shape) for image in images] if want_images else []
    targets_N6 = _image_table(by_images, None) if want_images else None
    targets = 0 if targets_N6 is None else targets_N6.data_ptr()
    pointers = (0, grad.data_ptr(), by_values_VNP.data_ptr(), targets)
    inputs = (images, sizes_N2, values_VNP, codes_VNC)
    _run("fastssl_augment_backward", inputs, size, settings, *pointers)
    return by_images, by_values_VNP.to(values_VNP.dtype)


def _allocate(values_VNP: Tensor, size: int, settings: Settings) -> Tensor:
    last = settings.memory_format == torch.channels_last
    shape = (size, size, 3) if last else (3, size, size)
    shape = (*values_VNP.shape[:2], *shape)
    library = native.library()
    assert library is not None
    # from the pool: fresh memory costs a page fault per 4 KiB, more than what fills it
    return native.pooled_empty(library, math.prod(shape), settings.dtype).view(shape)


def _image_table(images: list[Tensor], sizes_N2: Tensor | None) -> Tensor:
    """(N, 6) int64, the AugmentImages: address, steps of channel, row and column, height, width."""
    if images[0].dim() == 3:
        return torch.tensor([(x.data_ptr(), *x.stride(), *x.shape[1:]) for x in images])
    (batch,) = images
    table_N6 = torch.tensor([(batch.data_ptr(), *batch.stride()[1:], *batch.shape[2:])])
    table_N6 = table_N6.repeat(len(batch), 1)
    table_N6[:, 0] += torch.arange(len(batch)) * (batch.stride(0) * batch.itemsize)
    if sizes_N2 is not None:
        table_N6[:, 4:] = sizes_N2
    return table_N6


def _run(
    name: str,
    inputs: tuple[list[Tensor], Tensor | None, Tensor, Tensor],
    size: int,
    settings: Settings,
    *pointers: int,
) -> None:
    """``pointers``: views, their gradient, gradients of the values and table of the images'."""
    library = native.library()
    assert library is not None
    images, sizes_N2, values_VNP, codes_VNC = inputs
    table_N6 = _image_table(images, sizes_N2)
    values_VNP = values_VNP.detach().to(torch.float64).contiguous()
    codes_VNC = codes_VNC.contiguous()
    call = _CALL.pack(
        table_N6.data_ptr(),
        values_VNP.data_ptr(),
        codes_VNC.data_ptr(),
        *codes_VNC.shape[:2],
        size,
        IMAGE_DTYPES[images[0].dtype],
        settings.interpolation == "bicubic",
        settings.hue == "yiq",
        settings.blur_window,
        settings.affine_interpolation == "nearest",
        VIEW_DTYPES[settings.dtype],
        settings.memory_format == torch.channels_last,
        torch.get_num_threads(),
        *(settings.mean or (0.0, 0.0, 0.0)),
        *(settings.std or (1.0, 1.0, 1.0)),
        *pointers,
    )
    if getattr(library, name)(call):
        raise MemoryError(f"augment: no memory for views of {size} pixels")
