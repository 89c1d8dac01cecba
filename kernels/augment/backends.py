"""Who answers ``augment`` on which device, and what the answers look like without computing."""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.augment import native, reference
from fastssl.kernels.augment.checks import check_grad, check_numbers, recheck
from fastssl.kernels.augment.settings import unflat


def _cpu_forward(images, sizes, values, codes, size, *flat) -> Tensor:
    settings = unflat(*flat)
    recheck(images, sizes, values, codes, size, settings)
    check_numbers(images, sizes, values, codes, size, settings.blur_window)
    fast = compiled.library() is not None and native.supports(images, settings)
    return (native if fast else reference).forward(images, sizes, values, codes, size, settings)


def _cpu_backward(grad, images, sizes, values, codes, size, *rest) -> tuple[list[Tensor], Tensor]:
    *flat, want_images = rest
    settings = unflat(*flat)
    recheck(images, sizes, values, codes, size, settings)
    check_grad(grad, images, values, size, settings)
    fast = compiled.library() is not None and native.supports_backward(images, codes, settings)
    backend = native if fast else reference
    return backend.backward(grad, images, sizes, values, codes, size, settings, want_images)


@cache
def _cuda_backend():
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.augment import launch
    except ImportError as error:
        message = f"augment: no Triton ({error}); plain torch answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def _cuda_forward(images, sizes, values, codes, size, *flat) -> Tensor:
    backend = _cuda_backend() if images[0].dtype != torch.float64 else reference
    return backend.forward(images, sizes, values, codes, size, unflat(*flat))


def _cuda_backward(grad, images, sizes, values, codes, size, *rest) -> tuple[list[Tensor], Tensor]:
    *flat, want_images = rest
    backend = _cuda_backend() if images[0].dtype != torch.float64 else reference
    settings = unflat(*flat)
    return backend.backward(grad, images, sizes, values, codes, size, settings, want_images)


def _reference_forward(images, sizes, values, codes, size, *flat) -> Tensor:
    return reference.forward(images, sizes, values, codes, size, unflat(*flat))


def _reference_backward(grad, images, sizes, values, codes, size, *rest):
    *flat, want_images = rest
    settings = unflat(*flat)
    return reference.backward(grad, images, sizes, values, codes, size, settings, want_images)


def _fake_forward(images, sizes, values, codes, size, *flat) -> Tensor:
    settings = unflat(*flat)
    views, samples = values.shape[:2]
    dtype = settings.view_dtype(images[0].dtype)
    if settings.memory_format == torch.channels_last:
        return values.new_empty((views, samples, size, size, 3), dtype=dtype).movedim(-1, 2)
    return values.new_empty((views, samples, 3, size, size), dtype=dtype)


def _fake_backward(grad, images, sizes, values, codes, size, *rest) -> tuple[list[Tensor], Tensor]:
    want_images = rest[-1]
    grads = [image.new_empty(image.shape) for image in images] if want_images else []
    return grads, values.new_empty(values.shape)


BACKENDS = {
    "CPU": {"augment": _cpu_forward, "augment_backward": _cpu_backward},
    "CUDA": {"augment": _cuda_forward, "augment_backward": _cuda_backward},
    "CompositeExplicitAutograd": {
        "augment": _reference_forward,
        "augment_backward": _reference_backward,
    },
}
FAKES = {"augment": _fake_forward, "augment_backward": _fake_backward}
