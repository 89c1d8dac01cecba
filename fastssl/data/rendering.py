"""Decoded images to views: what is between a decoder or an array and a training batch.

Rendering happens in the thread that calls it, which is the prefetching one; the operator's loops
leave Python's lock to others. On CUDA it runs on a stream of its own, and a batch is handed out
when it is finished there.
"""

# shapes: N samples, V views, S side, P values, C codes
from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import Policy
from fastssl.augment.render import render
from fastssl.data.batch import Batch
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import CODES, IDENTITY, VALUES, Table

_KEPT = 224 / 256  # of the shorter side of a large image to evaluate on


def for_training(policy: Policy) -> Policy:
    """The policy with views laid out channels_last: what the step would make of them."""
    groups = tuple(
        replace(group, settings=replace(group.settings, memory_format=torch.channels_last))
        for group in policy.groups
    )
    return replace(policy, groups=groups)


class Stage:
    """Where batches for ``device`` are made. Create it in the thread that will train."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = self._reader = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._reader = torch.cuda.current_stream(device)

    def run(self, make: Callable[[], Batch]) -> Batch:
        """``make()``, its tensors finished and safe to be read by the training thread."""
        if self._stream is None:
            return make()
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = make()
            self._stream.synchronize()
        for view in batch.views:
            view.record_stream(self._reader)
        return batch


def batch_of(
    policy: Policy, images: Tensor | Sequence[Tensor], drawn: Drawn, index_N: np.ndarray
) -> Batch:
    """The views that ``drawn`` describes of whole images."""
    views, drawn = render(policy, images, drawn)
    return Batch(views, torch.from_numpy(index_N).to(views[0].device), drawn)


def regions(drawn: Drawn, sizes_N2: np.ndarray) -> np.ndarray:
    """(V, N, 4) int64: the whole pixels (left, top, width, height) that each view's box touches."""
    box_VN4 = _boxes(drawn).double().cpu().numpy()
    width_height_N2 = sizes_N2[:, ::-1]
    low = np.clip(np.floor(box_VN4[..., :2]), 0, width_height_N2 - 1)
    high = np.clip(np.ceil(box_VN4[..., :2] + box_VN4[..., 2:]), low + 1, width_height_N2)
    return np.concatenate([low, high - low], axis=2).astype(np.int64)


def batch_of_regions(
    policy: Policy,
    region_VN: Sequence[Sequence[Tensor]],
    drawn: Drawn,
    origin_VN2: np.ndarray,
    index_N: np.ndarray,
) -> Batch:
    """The same of the regions that the boxes touch, which begin at ``origin_VN2`` (left, top)."""
    views: list[Tensor] = []
    for group, table in zip(policy.groups, drawn.tables, strict=True):
        for position in range(group.num_views):
            values_NP = table.values_VNP[position].clone()
            origin_N2 = torch.from_numpy(origin_VN2[len(views)]).to(values_NP)
            values_NP[:, :2] -= origin_N2
            moved = Table(values_NP[None], table.codes_VNC[position, None])
            images = region_VN[len(views)]
            views += augment(images, moved, size=group.size, settings=group.settings).unbind(0)
    return Batch(tuple(views), torch.from_numpy(index_N).to(views[0].device), drawn)


def clean(images: Sequence[Tensor], *, size: int, settings: Settings) -> Tensor:
    """(N, 3, S, S): the central square of each image, to evaluate on; all of it below 96 px."""
    kept = 1.0 if size < 96 else _KEPT
    values_NP = torch.tensor([IDENTITY.get(name, 0.0) for name in VALUES]).repeat(len(images), 1)
    for row, image in zip(values_NP, images, strict=True):
        height, width = image.shape[-2:]
        edge = kept * min(height, width)
        row[:4] = torch.tensor([(width - edge) / 2, (height - edge) / 2, edge, edge])
    codes_NC = torch.zeros(len(images), len(CODES), dtype=torch.int32)
    table = Table(values_NP[None], codes_NC[None]).to(images[0].device)
    return augment(images, table, size=size, settings=settings)[0]


def _boxes(drawn: Drawn) -> Tensor:
    return torch.cat([table.values_VNP[..., :4] for table in drawn.tables])
