"""The same figures for public Triton kernels, where their packages are installed.

Nothing of them is imported before it is asked for and nothing is copied: their own launchers run on
fake CUDA tensors, and what they would have launched is compiled as ours is.

Both gradients of CLIP: ours columns, weights and two GEMMs, 8 N^2 D; memeff denominators and one
FlashAttention-shaped kernel per tower, 10 N^2 D; inf-cl three kernels per direction, 20 N^2 D.
InfoNCE, one direction: ours rows, weights and two GEMMs, 8; inf-cl 10. Keys without a gradient:
ours a single pass, 4; memeff denominators and one tower, 6. These are counts from the sources.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.runtime.jit import JITFunction

from fastssl.kernels.aot import Binary, compile_call
from fastssl.kernels.cuda import Config

N, D = 8192, 128


@dataclass(frozen=True)
class Kernel:
    """One public kernel: how to make its package launch it, and its work per logit."""

    package: str
    name: str
    launch: Callable[[], object]
    products: float  # flops per logit over D
    exponentials: float
    dtype: str = "bf16"


@dataclass(frozen=True)
class Loss:
    """Work of one loss and its gradients per logit: (flops / D, exponentials)."""

    name: str
    ours: tuple[float, float]
    peers: dict[str, tuple[float, float]]


LOSSES = (
    Loss("CLIP", (8.0, 2.0), {"memeff": (10.0, 3.0), "inf_cl": (20.0, 6.0)}),
    # unbounded: one exponential per pass, and some per row and column of a 128 x 64 tile
    Loss("CLIP at 100", (8.0, 2.07), {"memeff": (10.0, 3.0), "inf_cl": (20.0, 6.0)}),
    Loss("InfoNCE", (8.0, 2.0), {"inf_cl": (10.0, 3.0)}),
    Loss("locked keys", (4.0, 1.02), {"memeff": (6.0, 2.0)}),
)


def _rows(dtype: torch.dtype, *more: int) -> torch.Tensor:
    return torch.empty((N, *more), dtype=dtype, device="cuda")


def _memeff_denominators() -> None:
    room = importlib.import_module("memeff.distributed_clip_loss")
    x_ND, sums_N = _rows(torch.bfloat16, D), _rows(torch.float32)
    room._launch_denom(x_ND, x_ND, sums_N, sums_N, 10.5)


def _memeff_locked_denominators() -> None:
    room = importlib.import_module("memeff.distributed_lit_loss")
    x_ND, sums_N = _rows(torch.bfloat16, D), _rows(torch.float32)
    room._launch_denom(x_ND, x_ND, sums_N, 10.5)


def _memeff_gradient() -> None:
    room = importlib.import_module("memeff.clip_loss")
    x_ND, sums_N = _rows(torch.bfloat16, D), _rows(torch.float32)
    room.fa_backward_one(x_ND, x_ND, sums_N, sums_N, 10.5, 2.5, bidir=True)


def _inf_cl_forward() -> None:
    room = importlib.import_module("inf_cl.flash")
    x_N1D = _rows(torch.float32, 1, D)
    room._flash_prob_forward(x_N1D, x_N1D)


def _inf_cl_backward() -> None:
    room = importlib.import_module("inf_cl.flash")
    x_N1D, lse_N = _rows(torch.float32, 1, D), _rows(torch.float32)
    room._flash_prob_backward(x_N1D, x_N1D, lse_N, lse_N)


KERNELS = (
    Kernel("memeff", "clip_denom_kernel", _memeff_denominators, 2.0, 1.0),
    Kernel("memeff", "lit_denom_kernel", _memeff_locked_denominators, 2.0, 1.0),
    Kernel("memeff", "clip_fa_grad_kernel", _memeff_gradient, 4.0, 1.0),
    Kernel("inf_cl", "_prob_fwd_kernel", _inf_cl_forward, 2.0, 1.0, "tf32"),
    Kernel("inf_cl", "_dq_prob_bwd_kernel", _inf_cl_backward, 4.0, 1.0, "tf32"),
    Kernel("inf_cl", "_dk_prob_bwd_kernel", _inf_cl_backward, 4.0, 1.0, "tf32"),
)


def installed() -> dict[str, str]:
    """Why each package can not be shown; the empty string where it can."""
    reasons = {}
    for package in dict.fromkeys(kernel.package for kernel in KERNELS):
        try:
            importlib.import_module(package)
            reasons[package] = ""
        except ImportError as error:
            reasons[package] = f"not installed ({error})"
    return reasons


def compiled(kernel: Kernel, arch: int) -> Binary:
    """The binary that the package would run on this architecture, N = 8192, D = 128."""
    with FakeTensorMode(), _launches(arch) as seen:
        kernel.launch()
    function, arguments, options = seen[kernel.name]
    constants = {k: v for k, v in options.items() if k not in ("num_warps", "num_stages")}
    config = Config(
        kernel.name, kernel.dtype, D, options.get("num_warps", 4), options.get("num_stages", 3),
        constants, (arch,), kernel.package,
    )  # fmt: skip
    return compile_call(config, arch, function, arguments)


@contextmanager
def _launches(arch: int) -> Iterator[dict[str, tuple]]:
    """Launches are noted instead of run, on a machine that seems to have this architecture."""
    seen: dict[str, tuple] = {}

    def note(self, *arguments, grid, warmup, **options) -> None:
        seen[self.__name__] = self, tuple(_real(x) for x in arguments), options

    capability = divmod(arch, 10)
    with (
        patch.object(JITFunction, "run", note),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: capability),
    ):
        yield seen


def _real(argument: object) -> object:
    """An aligned tensor of the same dtype, which is all that a compilation asks of a pointer."""
    if not isinstance(argument, FakeTensor):
        return argument
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.empty(16, dtype=argument.dtype)


def comparison(packages: set[str]) -> tuple[list[str], bool]:
    """One line per loss that a package shares with us, and whether ours is ahead everywhere."""
    lines, ahead = [], True
    for loss in LOSSES:
        for package in sorted(packages & loss.peers.keys()):
            (ours, our_exps), (theirs, their_exps) = loss.ours, loss.peers[package]
            wins = ours < theirs and our_exps < their_exps
            ahead = ahead and wins
            lines.append(
                f"{loss.name:12} flops per logit {ours * D:5.0f} against {package}'s "
                f"{theirs * D:5.0f}, exps {our_exps:.3g} against {their_exps:.0f}: "
                f"{'ahead' if wins else 'BEHIND'}"
            )
    return lines, ahead
