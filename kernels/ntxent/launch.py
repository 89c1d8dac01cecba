"""NT-Xent on CUDA: configs, grids and scratch memory for the kernels of kernel.py.

Forward: symmetric tiles. Backward: FlashAttention-shaped for 16-bit input with D <= 256, where the
dz accumulator fits in registers; otherwise W in row chunks that stay in L2, and W y as a GEMM.
float64 runs as plain-torch tiles. No launch waits for the device, so CUDA graphs can capture it.
"""

# shapes: V views, N samples, M = V * N rows, P = M padded to blocks, D features, K = D padded
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.cuda import (
    Config,
    architecture,
    dtype_name,
    multiprocessors,
    on_device,
    padded_depth,
    serves,
)
from fastssl.kernels.ntxent import float64, kernel, kernel_backward, reference
from fastssl.kernels.ntxent.configs import serving

STRIPS = 16  # column strips of the forward pass
BAND = 128  # row blocks per forward launch: bounds the column-sum slots to (BAND + 17) x P
CHUNK_BYTES = 24 << 20  # a chunk of W rows that an L2 keeps (A100 40 MB, H100 50 MB)
ROW_MULTIPLE = 128  # every row block of every config divides it
KERNELS = {
    "prepare": kernel.ntxent_prepare_kernel,
    "forward": kernel.ntxent_forward_kernel,
    "merge": kernel.ntxent_merge_kernel,
    "backward": kernel_backward.ntxent_backward_kernel,
    "state": kernel_backward.ntxent_state_kernel,
    "weights": kernel_backward.ntxent_weights_kernel,
    "project": kernel_backward.ntxent_project_kernel,
}


@dataclass(frozen=True)
class Rows:
    """The embeddings as the kernels read them."""

    y_PK: Tensor
    scale_P: Tensor
    rnorm_M: Tensor
    num_samples: int
    depth: int  # D
    dtype: str  # as in Config

    @property
    def count(self) -> int:
        return self.rnorm_M.shape[0]


def kept_numel(M: int, D: int, dtype: torch.dtype) -> int:
    """Nothing of the forward pass is kept: on CUDA recomputing a tile beats reading it."""
    return 0


def forward(
    views: Sequence[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss () or (M,), lse (M,), rnorm (M,), all float32 (float64 for float64), and nothing kept.

    views: V tensors (N, D) of any strides. temperature: one element, on the device of the views.
    """
    if not serves(views[0].device, "ntxent"):
        return reference.forward(list(views), temperature, reduction, keep)
    if views[0].dtype == torch.float64:
        loss_M, lse_M, rnorm_M = float64.forward(views, temperature, chunk_bytes=CHUNK_BYTES)
    else:
        with on_device(views[0]):
            rows = _prepare(views)
            loss_M, lse_M = _loss(rows, temperature.to(torch.float32))
            rnorm_M = rows.rnorm_M
    if reduction != "none":
        loss_M = loss_M.mean() if reduction == "mean" else loss_M.sum()
    return loss_M, lse_M, rnorm_M, lse_M.new_empty(0)


def backward(
    grad: Tensor,
    views: Sequence[Tensor],
    temperature: Tensor,
    reduction: str,
    lse_M: Tensor,
    rnorm_M: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient of the stacked views (M, D) in their dtype, and of the temperature, 0-d."""
    if not serves(views[0].device, "ntxent"):
        return reference.backward(grad, list(views), temperature, reduction, lse_M, rnorm_M, kept)
    share = 1.0 / lse_M.shape[0] if reduction == "mean" else 1.0
    if views[0].dtype == torch.float64:
        weight_M = (grad * share).expand_as(lse_M)
        return float64.backward(
            weight_M, views, temperature, lse_M, rnorm_M, chunk_bytes=CHUNK_BYTES
        )
    with on_device(views[0]):
        rows, tau = _prepare(views), temperature.to(torch.float32)
        grad = grad.to(torch.float32)
        g_max = grad if grad.dim() == 0 else grad.abs().amax()
        state_3P = _state(rows, tau, lse_M, grad, g_max)
        fused = serving("backward", rows.dtype, rows.y_PK.shape[1], architecture(lse_M.device))
        accumulate = _accumulate_by_gemm if fused is None else _accumulate_fused
        acc_SPK = accumulate(rows, tau, state_3P)
        return _project(rows, tau, state_3P, g_max, acc_SPK, share)


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every scratch and output tensor of this module, so that tests can guard them all."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(config: Config, grid: tuple[int, ...], *arguments: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[config.kernel][grid](*arguments, **config.options())


def _config(kernel_name: str, dtype: str, depth: int, device: torch.device) -> Config:
    config = serving(kernel_name, dtype, depth, architecture(device))
    assert config is not None, f"no {kernel_name} for {dtype} at depth {depth}"
    return config


def _prepare(views: Sequence[Tensor]) -> Rows:
    N, D = views[0].shape
    M, device, dtype = len(views) * N, views[0].device, dtype_name(views[0].dtype)
    P, K = -(-M // ROW_MULTIPLE) * ROW_MULTIPLE, padded_depth(D, dtype)
    y_PK = allocate((P, K), views[0].dtype, device)
    scale_P = allocate((P,), torch.float32, device)
    rnorm_M = allocate((M,), torch.float32, device)
    config = _config("prepare", dtype, K, device)
    for v in range(0, len(views), 2):
        pair = views[v : v + 2]
        padding = P - M if v + 2 >= len(views) else 0
        grid = (-(-(N + padding) // config.constants["ROWS"]), len(pair))
        launch(
            config, grid, pair[0], pair[-1], y_PK, scale_P, rnorm_M, N, D, padding,
            K // config.constants["BK"], v, *pair[0].stride(), *pair[-1].stride(),
        )  # fmt: skip
    return Rows(y_PK, scale_P, rnorm_M, N, D, dtype)


def _loss(rows: Rows, tau: Tensor) -> tuple[Tensor, Tensor]:
    M, N, K, device = rows.count, rows.num_samples, rows.y_PK.shape[1], rows.y_PK.device
    tiles = _config("forward", rows.dtype, K, device)
    merge = _config("merge", rows.dtype, K, device)
    block = tiles.constants["BI"]
    num_blocks = -(-M // block)
    strip = -(-num_blocks // STRIPS)
    strips = -(-num_blocks // strip)
    slots = (1 + strips + min(BAND, num_blocks), num_blocks * block)
    sums, maxes = (allocate(slots, torch.float32, device) for _ in range(2))
    loss_M, lse_M = (allocate((M,), torch.float32, device) for _ in range(2))
    num_k = K // tiles.constants["BK"]
    for begin in range(0, num_blocks, BAND):
        end = min(begin + BAND, num_blocks)
        launch(
            tiles, (end - begin, strips), rows.y_PK, rows.scale_P, tau, sums, maxes, M, num_k,
            num_blocks, begin, strip,
        )  # fmt: skip
        launch(
            merge, (num_blocks * block // merge.constants["ROWS"],), rows.y_PK, rows.scale_P, tau,
            sums, maxes, loss_M, lse_M, M, N, K // merge.constants["BK"], num_blocks, begin, end,
            strip, strips,
        )  # fmt: skip
    return loss_M, lse_M


def _state(rows: Rows, tau: Tensor, lse_M: Tensor, grad: Tensor, g_max: Tensor) -> Tensor:
    config = _config("state", rows.dtype, rows.y_PK.shape[1], lse_M.device)
    P = rows.scale_P.shape[0]
    state_3P = allocate((3, P), torch.float32, lse_M.device)
    stride = grad.stride(0) if grad.dim() else 0
    launch(
        config, (-(-P // config.constants["ROWS"]),), rows.scale_P, tau, lse_M, grad, g_max,
        state_3P, rows.count, P, stride,
    )  # fmt: skip
    return state_3P


def _accumulate_fused(rows: Rows, tau: Tensor, state_3P: Tensor) -> Tensor:
    """sum_j W_ij y_j (splits, P, K); enough splits of j to give every multiprocessor two blocks."""
    M, K, device = rows.count, rows.y_PK.shape[1], rows.y_PK.device
    config = _config("backward", rows.dtype, K, device)
    num_i, num_j = -(-M // config.constants["BI"]), -(-M // config.constants["BJ"])
    wanted = max(1, 2 * multiprocessors(device) // num_i)
    per_split = -(-num_j // min(wanted, num_j))
    splits = -(-num_j // per_split)
    acc_SPK = allocate((splits, num_i * config.constants["BI"], K), torch.float32, device)
    launch(
        config, (num_i, splits), rows.y_PK, rows.scale_P, tau, state_3P, acc_SPK, M,
        rows.num_samples, rows.scale_P.shape[0], num_i, num_j, per_split,
    )  # fmt: skip
    return acc_SPK


def _accumulate_by_gemm(rows: Rows, tau: Tensor, state_3P: Tensor) -> Tensor:
    """sum_j W_ij y_j (1, P, K) by chunks of W rows that stay in the L2 cache."""
    K, device, P = rows.y_PK.shape[1], rows.y_PK.device, rows.scale_P.shape[0]
    config = _config("weights", rows.dtype, K, device)
    block = config.constants["BI"]
    num_i, num_j = P // block, P // config.constants["BJ"]
    per_chunk = min(num_i, max(1, CHUNK_BYTES // (P * rows.y_PK.element_size() * block)))
    w_CP = allocate((per_chunk * block, P), rows.y_PK.dtype, device)
    acc_SPK = allocate((1, P, K), torch.float32, device)
    for begin in range(0, num_i, per_chunk):
        count = min(per_chunk, num_i - begin)
        launch(
            config, (count, num_j), rows.y_PK, rows.scale_P, tau, state_3P, w_CP, rows.count,
            rows.num_samples, P, K // config.constants["BK"], begin, num_j,
        )  # fmt: skip
        out = acc_SPK[0, begin * block : (begin + count) * block]
        _gemm(w_CP[: count * block], rows.y_PK, out)
    return acc_SPK


def _gemm(w_CP: Tensor, y_PK: Tensor, out_CK: Tensor) -> None:
    if w_CP.dtype == torch.float32:
        torch.mm(w_CP, y_PK, out=out_CK)
    elif w_CP.is_cuda:
        torch.mm(w_CP, y_PK, out_dtype=torch.float32, out=out_CK)
    else:  # the interpreter: no CPU GEMM takes 16 bits in and gives 32 bits out
        torch.mm(w_CP.float(), y_PK.float(), out=out_CK)


def _project(
    rows: Rows, tau: Tensor, state_3P: Tensor, g_max: Tensor, acc_SPK: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    M, K, device = rows.count, rows.y_PK.shape[1], rows.y_PK.device
    config = _config("project", rows.dtype, K, device)
    programs = -(-M // config.constants["ROWS"])
    dh_MD = allocate((M, rows.depth), rows.y_PK.dtype, device)
    dtau_parts = allocate((programs,), torch.float32, device)
    launch(
        config, (programs,), rows.y_PK, rows.scale_P, rows.rnorm_M, tau, state_3P, g_max, acc_SPK,
        dh_MD, dtau_parts, M, rows.num_samples, rows.depth, rows.scale_P.shape[0],
        K // config.constants["BK"], acc_SPK.shape[1], acc_SPK.shape[0], share,
    )  # fmt: skip
    return dh_MD, dtau_parts.sum()
