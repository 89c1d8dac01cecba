"""One call of ``contrast`` on CUDA as the kernels read it; every launch and every allocation."""

# shapes: N queries, K keys, D features; R rows of either side
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastssl.kernels.contrast import kernel, kernel_backward
from fastssl.kernels.contrast.configs import serving
from fastssl.kernels.contrast.reference import KEEPS, Ids
from fastssl.kernels.cuda import Config, architecture, dtype_name, multiprocessors, padded_depth

ROW_MULTIPLE = 128  # every row block of every config divides it
KERNELS = {
    "rows": kernel.contrast_forward_kernel,
    "columns": kernel.contrast_forward_kernel,
    "merge": kernel.contrast_merge_kernel,
    "mean": kernel.contrast_mean_kernel,
    "average": kernel.contrast_average_kernel,
    "state": kernel_backward.contrast_state_kernel,
    "pull": kernel_backward.contrast_pull_kernel,
    "weights": kernel_backward.contrast_weights_kernel,
    "finish": kernel_backward.contrast_finish_kernel,
}


@dataclass(frozen=True)
class Side:
    """Queries or keys as the kernels read them: whole rows of the padded depth, and their ids."""

    x_RD: Tensor
    label_R: Tensor
    row_R: Tensor

    @property
    def count(self) -> int:
        return self.x_RD.shape[0]

    @property
    def padded(self) -> int:
        return -(-self.count // ROW_MULTIPLE) * ROW_MULTIPLE


@dataclass(frozen=True)
class Call:
    """The two sides in the roles that a kernel gives them, and the rules of their pairs."""

    own: Side
    other: Side
    scale: Tensor
    keep: int
    apart: int
    bound: float
    dtype: str  # as in Config

    @property
    def depth(self) -> int:
        return self.own.x_RD.shape[1]

    @property
    def device(self) -> torch.device:
        return self.own.x_RD.device

    def launch(self, config: Config, grid: tuple[int, ...], *arguments: object) -> None:
        launch(config, grid, *arguments)

    def launch_tiles(self, config: Config, grid: tuple[int, ...], *arguments: object) -> None:
        """A kernel over tiles, whose first arguments are the operands and their ids."""
        own, other = self.own, self.other
        ids = (own.label_R, other.label_R, own.row_R, other.row_R)
        launch(config, grid, own.x_RD, other.x_RD, self.scale, *ids, *arguments)

    def config(self, kernel_name: str) -> Config:
        config = self.find(kernel_name)
        assert config is not None, f"no {kernel_name} for {self.dtype} at depth {self.depth}"
        return config

    def find(self, kernel_name: str) -> Config | None:
        return serving(kernel_name, self.dtype, self.depth, architecture(self.device))

    def scratch(self, *shape: int) -> Tensor:
        return allocate(shape, torch.float32, self.device)

    def chunk(self, *shape: int) -> Tensor:
        """Scratch in the wider dtype of the operands."""
        dtype = torch.promote_types(self.own.x_RD.dtype, self.other.x_RD.dtype)
        return allocate(shape, dtype, self.device)

    def like(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised, dense, of the shape of ``x``."""
        return allocate(tuple(x.shape), dtype or x.dtype, self.device)

    def strips(self, num_blocks: int, num_j: int) -> tuple[int, int]:
        """Key blocks per strip and number of strips: two programs for every multiprocessor."""
        wanted = max(1, 2 * multiprocessors(self.device) // num_blocks)
        strip = -(-num_j // min(wanted, num_j))
        return strip, -(-num_j // strip)

    def swapped(self) -> Call:
        return replace(self, own=self.other, other=self.own)


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every scratch and output tensor of this module, so that tests can guard them all."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(config: Config, grid: tuple[int, ...], *arguments: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[config.kernel][grid](*arguments, **config.options())


def as_call(q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, bound: float) -> Call:
    """Queries take the wider dtype; 16-bit keys beside float32 ones stay as they are stored."""
    dtype = torch.promote_types(q_ND.dtype, k_KD.dtype)
    stored = k_KD.dtype if q_ND.dtype == torch.float32 else dtype
    name = dtype_name(dtype) if stored == dtype else f"fp32 {dtype_name(stored)}"
    depth = padded_depth(q_ND.shape[1], name)
    nobody = torch.empty(1, dtype=torch.int64, device=q_ND.device)  # never read
    own, other = (
        Side(
            _operand(x_RD, kept, depth),
            nobody if label is None else label.contiguous(),
            nobody if row is None else row.contiguous(),
        )
        for x_RD, kept, label, row in (
            (q_ND, dtype, ids.q_label_N, ids.q_row_N),
            (k_KD, stored, ids.k_label_K, ids.k_row_K),
        )
    )
    apart = int(ids.q_row_N is not None and ids.k_row_K is not None)
    keep = KEEPS.index(ids.keep)
    return Call(own, other, scale.to(torch.float32), keep, apart, bound, name)


def _operand(x_RD: Tensor, dtype: torch.dtype, depth: int) -> Tensor:
    """The rows themselves (a queue is not copied) unless dtype, width or alignment do not fit."""
    rows, width = x_RD.shape
    fits = x_RD.dtype == dtype and width == depth and x_RD.is_contiguous()
    if fits and x_RD.data_ptr() % 16 == 0:
        return x_RD
    padded_RD = allocate((rows, depth), dtype, x_RD.device)
    padded_RD[:, :width].copy_(x_RD)
    padded_RD[:, width:].zero_()
    return padded_RD
