"""The queue write on CUDA: the grid for the kernel of kernel.py. Nothing waits for the device."""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.cuda import on_device
from fastssl.kernels.enqueue import kernel, reference

KERNELS = {"enqueue": kernel.enqueue_kernel}
BLOCK = 256


def enqueue(rows_KD: Tensor, pointer: Tensor, keys_ND: Tensor) -> None:
    """Writes the keys and moves the pointer on, both in place."""
    if torch.float64 in (rows_KD.dtype, keys_ND.dtype):
        return reference.enqueue(rows_KD, pointer, keys_ND)
    capacity, width = rows_KD.shape
    count = keys_ND.shape[0]
    first = max(count - capacity, 0)
    with on_device(rows_KD):
        launch(
            "enqueue", (count - first,), keys_ND, rows_KD, pointer, first, capacity, width,
            *keys_ND.stride(), BLOCK=BLOCK,
        )  # fmt: skip
    pointer.add_(count).remainder_(capacity)
    if not rows_KD.is_inference():  # torch did not see the write: a backward that saved them must
        torch.autograd.graph.increment_version(rows_KD)


def launch(name: str, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[name][grid](*arguments, **constants, num_warps=2)
