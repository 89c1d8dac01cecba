"""What every Triton launcher asks of a CUDA device, and the form of a shipped config."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

ARCHS = (80, 90, 100)  # A100, H100, B200; in between, the nearest one below serves
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
DEPTH_MULTIPLE = 64


@dataclass(frozen=True)
class Config:
    """One shipped binary per architecture: which input it serves and how it is compiled."""

    kernel: str
    dtype: str  # "fp16", "bf16", "fp32" (IEEE products), "tf32"; "fp32 bf16": queries and keys
    depth: int  # serves padded D up to this; 0 serves any
    num_warps: int
    num_stages: int
    constants: dict[str, Any] = field(default_factory=dict, hash=False)
    archs: tuple[int, ...] = ARCHS
    op: str = "ntxent"

    def options(self) -> dict[str, Any]:
        return dict(self.constants, num_warps=self.num_warps, num_stages=self.num_stages)


def best(
    configs: Sequence[Config], kernel: str, dtype: str, depth: int, arch: int
) -> Config | None:
    """The shipped config for a padded depth, the one made for it first; None where none serves."""
    fitting = [c for c in configs if (c.kernel, c.dtype) == (kernel, dtype) and arch in c.archs]
    exact = [c for c in fitting if c.depth == depth]
    return next(iter(exact + [c for c in fitting if c.depth == 0]), None)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Launches inside go to the device of ``tensor``."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@cache
def serves(device: torch.device, op: str) -> bool:
    """Below sm_80 (T4, V100) the tiles exceed the shared memory: slower, never broken."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0):
        return True
    name = torch.cuda.get_device_name(device)
    message = f"{op}: running the plain-torch reference, Triton needs sm_80 or newer ({name})"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
    return False


@cache
def architecture(device: torch.device) -> int:
    """The newest compiled-for architecture that is not newer than the device."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return max([arch for arch in ARCHS if arch <= 10 * major + minor] or [ARCHS[0]])


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; 2 where a test interprets."""
    if device.type != "cuda":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def dtype_name(dtype: torch.dtype) -> str:
    """As in Config; float32 products are IEEE unless the user has allowed TF32."""
    if dtype == torch.float32:
        return "fp32" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return NAMES[dtype]


def padded_depth(D: int, dtype: str) -> int:
    """Features after padding: one of three whole depths for 16-bit keys, else a multiple of 64."""
    if dtype not in ("fp32", "tf32") and D <= 256:
        return 64 if D <= 64 else 128 if D <= 128 else 256
    return -(-D // DEPTH_MULTIPLE) * DEPTH_MULTIPLE
