"""What all samples of an ``augment`` call share: filters, colour space, normalisation, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

INTERPOLATIONS = ("bilinear", "bicubic")
HUES = ("hsv", "yiq")
AFFINE_INTERPOLATIONS = ("nearest", "bilinear")
DTYPES = (torch.float32, torch.bfloat16)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
GREY = {"hsv": (0.2989, 0.587, 0.114), "yiq": (0.299, 0.587, 0.114)}
"""Weights of R, G, B in a grey value: torchvision's, and InvCLR's, which sum to 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value for the whole batch.

    interpolation: of the crop's resize, both with antialias (bicubic with a = -1/2, as torch).
    hue: "hsv" turns the hue as torchvision does; "yiq" rotates chroma by 2 pi hue as InvCLR does
        (Foster et al. 2021) and takes InvCLR's grey weights in jitter and grayscale.
    blur_window: odd side of the Gaussian window in pixels of the view; its half must be smaller
        than the view (reflect padding).
    affine_interpolation: of the affine stage; outside the view is 0 (black).
    mean, std: per channel, in [0, 1]; both None leaves the views in [0, 1].
    dtype: of the views, float32 or bfloat16. float64 images give float64 views.
    memory_format: of each view (N, 3, S, S), contiguous or channels_last.
    """

    interpolation: str = "bilinear"
    hue: str = "hsv"
    blur_window: int = 3
    affine_interpolation: str = "nearest"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def flat(self) -> tuple[Any, ...]:
        """The arguments of ``fastssl::augment`` after the size."""
        return (
            self.interpolation,
            self.hue,
            self.blur_window,
            self.affine_interpolation,
            self.mean,
            self.std,
            self.dtype,
            self.memory_format == torch.channels_last,
        )

    def view_dtype(self, images_dtype: torch.dtype) -> torch.dtype:
        """dtype of the views: float64 for float64 images, else as set."""
        return torch.float64 if images_dtype == torch.float64 else self.dtype


FLAT = (
    "str interpolation, str hue, int blur_window, str affine_interpolation, float[]? mean,"
    " float[]? std, ScalarType dtype, bool channels_last"
)
"""Schema of ``Settings.flat``."""


def unflat(interpolation, hue, blur_window, affine, mean, std, dtype, channels_last) -> Settings:
    """The settings of ``Settings.flat``'s values."""
    return Settings(
        interpolation=interpolation,
        hue=hue,
        blur_window=blur_window,
        affine_interpolation=affine,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        dtype=dtype,
        memory_format=MEMORY_FORMATS[channels_last],
    )
