"""Spirograph: procedural 32 px RGB images with known factors (Foster et al., ICLR 2021).

Hypotrochoid at 40 times t_j in [0, 2 pi], both ends included:
  x_j = (m-h) cos t_j + h cos(t_j (m-h)/b),  y_j = (m-h) sin t_j - h sin(t_j (m-h)/b)
  V(p,q) = 1/40 sum_j exp(-[(u_p-x_j)^2 + (u_q-y_j)^2] / sigma), over its maximum + 1e-8
  RGB_c = V f_c + (1-V) b_c,   u = linspace(-6, 6, 32), rows are x.
An object is (m, b, sigma, f_r); a view draws (h, b_r, f_g, b_g, f_b, b_b) afresh.
"""

# shapes: N samples, S side, J curve points, C channels, T targets, A nuisances
from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.data.batch import Batch, Labelled, check_batch_size, part
from fastssl.data.prefetch import Prefetcher

TARGETS = ("m", "b", "sigma", "f_r")
TARGET_LOW = np.array([2.0, 0.1, 0.25, 0.4])
TARGET_HIGH = np.array([5.0, 1.1, 1.0, 1.0])
NUISANCES = ("h", "b_r", "f_g", "b_g", "f_b", "b_b")
NUISANCE_LOW = np.array([0.5, 0.0, 0.4, 0.0, 0.4, 0.0])
NUISANCE_HIGH = np.array([2.5, 0.6, 1.0, 0.6, 1.0, 0.6])
NUM_TRAIN, NUM_TEST = 100_000, 20_000
NUM_POINTS = 40
# One chunk's largest operand stays in the L2 cache and under the size from which torch starts a
# second thread: rendering in the prefetch thread leaves the other cores to the training step.
_CHUNK = 24
# exp(-43) = 2e-19 is nothing beside the maximum, but smaller factors multiply to denormals, on
# which the matrix product runs at half speed.
_FLOOR = -43.0


def render(target_NT: Tensor, nuisance_NA: Tensor, *, side: int = 32) -> Tensor:
    """Images (N, 3, side, side) in [0, 1]; differentiable in both arguments.

    ``target_NT`` (N, 4) in the order TARGETS, ``nuisance_NA`` (N, 6) in the order NUISANCES, of
    one dtype and device.
    """
    m, b, sigma, f_r = (column[:, None] for column in target_NT.unbind(1))
    h, b_r, f_g, b_g, f_b, b_b = (column[:, None] for column in nuisance_NA.unbind(1))
    t_J, u_S = _grids(side, target_NT.dtype, target_NT.device)
    arm, turn_NJ = m - h, t_J * ((m - h) / b)
    x_NJ = arm * t_J.cos() + h * turn_NJ.cos()
    y_NJ = arm * t_J.sin() - h * turn_NJ.sin()
    front_NC = torch.cat([f_r, f_g, f_b], dim=1)
    back_NC = torch.cat([b_r, b_g, b_b], dim=1)
    parts = (x_NJ, y_NJ, -1.0 / sigma, front_NC - back_NC, back_NC)
    if len(target_NT) <= _CHUNK or torch.is_grad_enabled():
        return _paint(*parts, u_S)
    image_NCSS = target_NT.new_empty(len(target_NT), 3, side, side)
    for begin in range(0, len(target_NT), _CHUNK):
        chunk = slice(begin, begin + _CHUNK)
        x, y, rate, contrast, back = (part[chunk] for part in parts)
        image_NCSS[chunk] = _paint(x, y, rate, contrast, back, u_S)
    return image_NCSS


def _paint(
    x_NJ: Tensor, y_NJ: Tensor, rate_N1: Tensor, contrast_NC: Tensor, back_NC: Tensor, u_S: Tensor
) -> Tensor:
    # exp(-(dx^2 + dy^2)/sigma) is separable, so the sum over points is a matrix product
    rate_N11, u_S1 = rate_N1[:, :, None], u_S[:, None]
    row_NSJ = ((u_S1 - x_NJ[:, None, :]).square() * rate_N11).clamp(min=_FLOOR).exp()
    column_NSJ = ((u_S1 - y_NJ[:, None, :]).square() * rate_N11).clamp(min=_FLOOR).exp()
    value_NSS = torch.bmm(row_NSJ, column_NSJ.transpose(1, 2)) / NUM_POINTS
    value_NSS = value_NSS / (value_NSS.amax(dim=(1, 2), keepdim=True) + 1e-8)
    return back_NC[:, :, None, None] + value_NSS[:, None] * contrast_NC[:, :, None, None]


def draw_targets(index_N: np.ndarray, *, seed: int, split: str) -> np.ndarray:
    """(N, 4) float64 object parameters of ``split`` ("train" or "test")."""
    return keyed.uniform(
        len(TARGETS),
        seed=seed,
        index_N=index_N,
        stream=f"spirograph/object/{split}",
        low=TARGET_LOW,
        high=TARGET_HIGH,
    )


def draw_nuisances(index_N: np.ndarray, *, seed: int, epoch: int, stream: str) -> np.ndarray:
    """(N, 6) float64 nuisance parameters; ``stream`` names the view or the use."""
    return keyed.uniform(
        len(NUISANCES),
        seed=seed,
        epoch=epoch,
        index_N=index_N,
        stream=f"spirograph/nuisance/{stream}",
        low=NUISANCE_LOW,
        high=NUISANCE_HIGH,
    )


class SpirographSource:
    """Endless Spirograph batches. ``seed`` keys the objects; ``batches(seed=)`` order and views.

    The 20,000 test objects come from a stream of their own and are never trained on.
    """

    name = kind = "spirograph"
    task = "regression"

    def __init__(self, *, seed: int = 0, image_size: int = 32, num_views: int = 2) -> None:
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8 for spirograph, got {image_size}")
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {num_views}")
        self.num_samples = NUM_TRAIN
        self.num_views = num_views
        self.image_shape = (3, image_size, image_size)
        self._seed = seed

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is dropped."""
        check_batch_size(batch_size, self.num_samples, self.name)
        return self.num_samples // batch_size

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> Prefetcher[Batch]:
        """Endless iterator; batch t depends on (seed, t) alone. ``shard``: (rank, ranks)."""
        per_epoch = self.steps_per_epoch(batch_size)
        order = lru_cache(maxsize=2)(
            lambda epoch: keyed.permutation(self.num_samples, seed=seed, epoch=epoch)
        )

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            index_N = order(epoch)[position * batch_size : (position + 1) * batch_size]
            return self.batch(part(index_N, shard), seed=seed, epoch=epoch).to(device)

        return Prefetcher(make, start=start_step)

    def batch(self, index_N: np.ndarray, *, seed: int, epoch: int) -> Batch:
        """All views of the training objects ``index_N``; ``params`` are (N, 6) per view."""
        target_NT = _tensor(draw_targets(index_N, seed=self._seed, split="train"))
        nuisances = tuple(
            _tensor(draw_nuisances(index_N, seed=seed, epoch=epoch, stream=f"view{view}"))
            for view in range(self.num_views)
        )
        views = tuple(self._render(target_NT, nuisance_NA) for nuisance_NA in nuisances)
        return Batch(views, torch.from_numpy(np.ascontiguousarray(index_N)), nuisances)

    def report(self) -> dict:
        """Nothing can be skipped here."""
        return {"skipped": []}

    def labelled(self, split: str, limit: int | None = None) -> Labelled:
        """The first ``limit`` objects of "train" or "test", one fresh keyed view of each."""
        sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
        if split not in sizes:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        index_n = np.arange(min(limit or sizes[split], sizes[split]))
        target_nT = _tensor(draw_targets(index_n, seed=self._seed, split=split))
        nuisance_nA = _tensor(
            draw_nuisances(index_n, seed=self._seed, epoch=0, stream=f"readout/{split}")
        )

        def images(position_N: np.ndarray) -> Tensor:
            return self._render(target_nT[position_N], nuisance_nA[position_N])

        return Labelled(target=target_nT, task="regression", names=TARGETS, render=images)

    @torch.no_grad()
    def _render(self, target_NT: Tensor, nuisance_NA: Tensor) -> Tensor:
        return render(target_NT, nuisance_NA, side=self.image_shape[-1])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _grids(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    t_J = torch.linspace(0.0, 2.0 * math.pi, NUM_POINTS, dtype=dtype, device=device)
    return t_J, torch.linspace(-6.0, 6.0, side, dtype=dtype, device=device)
