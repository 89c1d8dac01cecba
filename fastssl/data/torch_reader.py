"""The views of a batch without DALI: PIL decodes and crops, torch does the rest.

The same table, the same order and the same filters as data/dali_graph.py: what differs is the
rounding of the resize and, for JPEG, of the inverse DCT.
"""

# shapes: N samples, S side, K blur window
from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.augment.linear_policy import Policy, ViewParams, blur_windows, colour_maps
from fastssl.data.decode import decode, read
from fastssl.data.headers import BadFile, Header

Failures = dict[int, str]  # slot -> reason


class TorchReader:
    """Decodes and augments in ``workers`` threads."""

    def __init__(self, policy: Policy, *, side: int, workers: int) -> None:
        self.policy, self.side = policy, side
        self._pool = ThreadPoolExecutor(max_workers=max(1, workers))

    def views(
        self, paths: list[str], headers: list[Header], tables: list[ViewParams]
    ) -> tuple[Tensor, ...] | Failures:
        """V tensors (N, 3, S, S), or the slots whose files failed, with the reasons."""
        crops = attempt(
            self._pool.map,
            lambda slot: self._crops(paths[slot], headers[slot], slot, tables),
            range(len(paths)),
        )
        if isinstance(crops, dict):
            return crops
        return tuple(
            finish(torch.from_numpy(np.stack([crop[view] for crop in crops])), table, self.policy)
            for view, table in enumerate(tables)
        )

    def _crops(
        self, path: str, header: Header, slot: int, tables: list[ViewParams]
    ) -> list[np.ndarray]:
        image = decode(read(path), header)
        return [resized(image, table.box_N4[slot], self.side) for table in tables]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def attempt(run_all: Callable, one: Callable[[int], Any], slots: Iterable[int]) -> Any:
    """``one(slot)`` of every slot as a list; or {slot: reason} where any raised BadFile."""

    def caught(slot: int) -> Any:
        try:
            return one(slot)
        except BadFile as bad:
            return bad

    results = list(run_all(caught, slots))
    failures = {slot: str(r) for slot, r in enumerate(results) if isinstance(r, BadFile)}
    return failures or results


def resized(image: Image.Image, box_4: np.ndarray, side: int) -> np.ndarray:
    """(S, S, 3) uint8: left, top, width, height of ``image``, bilinear with antialias."""
    left, top, width, height = (float(value) for value in box_4)
    box = (left, top, left + width, top + height)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def finish(pixel_NSS3: Tensor, params: ViewParams, policy: Policy) -> Tensor:
    """(N, 3, S, S) float32: colour, blur, flip and normalisation of uint8 crops."""
    x_N3SS = pixel_NSS3.permute(0, 3, 1, 2).float()
    pixel_map_N33, mean_map_N33 = (torch.from_numpy(a) for a in colour_maps(params))
    shift_N3 = torch.einsum("nij,nj->ni", mean_map_N33, x_N3SS.mean(dim=(2, 3)))
    x_N3SS = torch.einsum("nij,njhw->nihw", pixel_map_N33, x_N3SS) + shift_N3[:, :, None, None]
    x_N3SS = _blur(x_N3SS.clamp(0.0, 255.0), params)
    flip_N = torch.from_numpy(params.flip_N)[:, None, None, None]
    return normalise(torch.where(flip_N, x_N3SS.flip(3), x_N3SS), policy)


def normalise(x_N3SS: Tensor, policy: Policy) -> Tensor:
    """Pixels 0..255 to zero mean and unit deviation under the policy's statistics."""
    mean_3 = 255.0 * torch.tensor(policy.mean)
    std_3 = 255.0 * torch.tensor(policy.std)
    return ((x_N3SS - mean_3[:, None, None]) / std_3[:, None, None]).contiguous()


def _blur(x_N3SS: Tensor, params: ViewParams) -> Tensor:
    """Separable Gaussian of each sample's own sigma and window; edges mirrored."""
    blurred_N = np.flatnonzero(params.sigma_N > 0)
    if len(blurred_N) == 0:
        return x_N3SS
    sigma_N1 = torch.from_numpy(params.sigma_N[blurred_N])[:, None]
    reach_N1 = torch.from_numpy(blur_windows(params)[blurred_N] // 2)[:, None]
    reach = min(int(reach_N1.max()), x_N3SS.shape[-1] - 1)  # mirrored edges end with the image
    offset_K = torch.arange(-reach, reach + 1)
    weight_NK = torch.exp(-(offset_K**2) / (2 * sigma_N1**2)) * (offset_K.abs() <= reach_N1)
    weight_NK = (weight_NK / weight_NK.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    out = x_N3SS.clone()
    rows = x_N3SS[blurred_N].flatten(0, 1)[None]  # (1, 3N, S, S): a group for every plane
    groups = rows.shape[1]
    rows = F.pad(rows, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(rows, weight_NK[:, None, None, :], groups=groups)
    rows = F.conv2d(rows, weight_NK[:, None, :, None], groups=groups)
    out[blurred_N] = rows[0].unflatten(0, (-1, 3))
    return out
