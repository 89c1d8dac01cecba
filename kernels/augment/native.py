"""``augment`` on the CPU through the compiled library."""

# shapes: V views, N samples, S side of a view; P values, C codes
from __future__ import annotations

from torch import Tensor

from fastssl.kernels.augment.settings import Settings


def supports(images: list[Tensor], settings: Settings) -> bool:
    """Whether ``forward`` makes these views."""
    return False


def supports_backward(images: list[Tensor], codes_VNC: Tensor, settings: Settings) -> bool:
    """Whether ``backward`` differentiates these views; the reference answers otherwise."""
    return False


def forward(
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
) -> Tensor:
    """(V, N, 3, S, S) in ``settings.dtype``; arguments have passed every check."""
    raise AssertionError("native.supports said no")


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
    raise AssertionError("native.supports_backward said no")
