"""Memory with guard bands: NaN round inputs, a sentinel round outputs, NaN inside outputs.

A read out of bounds poisons the result, a write out of bounds changes a band, and what a kernel
forgets to write stays NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BAND = 512
SENTINEL = 12345.0


class Guard:
    """Allocates guarded tensors and tells which bands were touched."""

    def __init__(self, *, short_by: int = 0) -> None:
        self._outputs: list[Tensor] = []
        self._short_by = short_by  # elements that an off-by-one would take too few

    def output(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Stands in for ``launch.allocate``."""
        numel = max(0, math.prod(shape) - self._short_by)
        whole = torch.full((numel + 2 * BAND + self._short_by,), SENTINEL, dtype=dtype)
        whole[BAND : BAND + numel] = torch.nan
        self._outputs.append(whole[: numel + 2 * BAND])
        return whole[BAND : BAND + math.prod(shape)].view(shape)

    @staticmethod
    def input(values: Tensor) -> Tensor:
        """The same values between NaN bands, rows further apart than they are long."""
        rows, columns = values.shape
        whole = torch.full((rows + 2, columns + 3), torch.nan, dtype=values.dtype)
        whole[1:-1, 1:-2] = values
        return whole[1:-1, 1:-2]

    @staticmethod
    def dense_input(values: Tensor) -> Tensor:
        """The same values without gaps, so that a kernel reads them in place, between NaN bands."""
        whole = torch.full((values.numel() + 2 * BAND,), torch.nan, dtype=values.dtype)
        inner = whole[BAND : BAND + values.numel()].view(values.shape)
        return inner.copy_(values)

    def violations(self) -> int:
        """Elements of the bands that are no longer the sentinel."""
        bands = [torch.cat([whole[:BAND], whole[-BAND:]]) for whole in self._outputs]
        return sum(int((band != torch.tensor(SENTINEL, dtype=band.dtype)).sum()) for band in bands)
