"""Decoded images to views: what is between a decoder or an array and a training batch.

Rendering happens in the thread that calls it, which is the prefetching one; the operator's loops
leave Python's lock to others. On CUDA it runs on a stream of its own, and a batch is handed out
when it is finished there.
"""

# shapes: N samples, V views, S side, P values, C codes
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import Corner, Policy, Ranges, reach
from fastssl.augment.rendering import render, with_base
from fastssl.augment.sampling import sample
from fastssl.data.batch import Batch, Shown
from fastssl.data.pil_decoder import Failures
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import CODES, IDENTITY, STAGE_BIT, STAGES, VALUES, Table

Made = TypeVar("Made", Batch, Batch | Failures)
_KEPT = 224 / 256  # of the shorter side of a large image to evaluate on
_READOUT_SEED = 0x5EED  # of the views that are only looked at
VARIED = ("crop", *STAGES)
SHIFTS = ("jitter",)


def varied(policy: Policy) -> tuple[str, ...]:
    """Those of VARIED that ``redrawn`` of this policy ever runs."""
    ranges = _fullest(policy).views[0]
    crop = ranges.crop == "random"
    return tuple(
        name for name in VARIED if (crop if name == "crop" else getattr(ranges, name, 0) > 0)
    )


def _fullest(policy: Policy) -> Corner:
    """The corner with most groups on."""
    return max(policy.corners, key=lambda corner: sum(corner.bits))


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

    def run(self, make: Callable[[], Made]) -> Made:
        """``make()``, its tensors finished and safe to be read by the training thread."""
        if self._stream is None:
            return make()
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = make()
            self._stream.synchronize()
        if isinstance(batch, Batch):
            for view in batch.views:
                view.record_stream(self._reader)
        return batch


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What the parameters of a batch are drawn from, besides the policy."""

    seed: int
    epoch: int
    step: int
    index_N: np.ndarray  # int64 keys of the samples
    sizes_N2: np.ndarray  # height, width of each image in pixels


def drawn(policy: Policy, draw: Draw, device: torch.device) -> Drawn:
    """The table of a batch."""
    with one_thread():
        return sample(policy, **vars(draw), device=device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small tensor operations stay in this thread: beside a training step that holds the cores,
    each would wait for a second thread longer than it takes (1 ms becomes 100 ms)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batch_of(
    policy: Policy, images: Tensor | Sequence[Tensor], index_N: np.ndarray, draw: Draw
) -> Batch:
    """The views of whole images; ``index_N`` says which ones they are."""
    table = drawn(policy, draw, images[0].device)
    table = with_base(policy, images, table)
    views = render(policy, images, table)
    return Batch(views, torch.from_numpy(index_N).to(views[0].device), table)


def batch_of_regions(
    policy: Policy,
    decode: Callable[[np.ndarray], Sequence[Sequence[Tensor]] | Failures],
    index_N: np.ndarray,
    draw: Draw,
    device: torch.device,
) -> Batch | Failures:
    """The same of the regions that the boxes touch: ``decode`` gets them as (V, N, 4) int64
    (left, top, width, height) and returns them, V times N tensors, or what failed."""
    table = drawn(policy, draw, device)
    region_VN4 = _touched(table, draw.sizes_N2)
    images_VN = decode(region_VN4)
    if isinstance(images_VN, dict):
        return images_VN
    views: list[Tensor] = []
    for group, part in zip(policy.groups, table.tables, strict=True):
        for values_NP, codes_NC in zip(part.values_VNP, part.codes_VNC, strict=True):
            moved_NP = values_NP.clone()
            moved_NP[:, :2] -= torch.from_numpy(region_VN4[len(views), :, :2]).to(moved_NP)
            one = Table(moved_NP[None], codes_NC[None])
            images = images_VN[len(views)]
            views += augment(images, one, size=group.size, settings=group.settings).unbind(0)
    return Batch(tuple(views), torch.from_numpy(index_N).to(device), table)


def _touched(table: Drawn, sizes_N2: np.ndarray) -> np.ndarray:
    """(V, N, 4) int64: the whole pixels (left, top, width, height) that each view's box touches."""
    box_VN4 = torch.cat([part.values_VNP[..., :4] for part in table.tables]).double().cpu().numpy()
    width_height_N2 = sizes_N2[:, ::-1]
    low = np.clip(np.floor(box_VN4[..., :2]), 0, width_height_N2 - 1)
    high = np.clip(np.ceil(box_VN4[..., :2] + box_VN4[..., 2:]), low + 1, width_height_N2)
    return np.concatenate([low, high - low], axis=2).astype(np.int64)


def rehearsal(policy: Policy, image_shape: tuple[int, ...], num_samples: int) -> Batch:
    """A batch of noise with the shapes and the table of a training batch."""
    images = torch.rand(num_samples, *image_shape)
    index_N = np.arange(num_samples)
    sizes_N2 = np.full((num_samples, 2), image_shape[1])
    return batch_of(
        policy, images, index_N, Draw(seed=0, epoch=0, step=0, index_N=index_N, sizes_N2=sizes_N2)
    )


def shown(
    policy: Policy,
    images: Sequence[Tensor],
    index_N: np.ndarray,
    names: Sequence[str],
    *,
    seed: int,
) -> Shown:
    """Images and their views in step 0, in [0, 1], to look at."""
    sizes_N2 = np.array([image.shape[1:] for image in images])
    draw = Draw(seed=seed, epoch=0, step=0, index_N=index_N, sizes_N2=sizes_N2)
    batch = batch_of(policy.without_normalisation(), images, index_N, draw)
    return Shown(tuple(image.float() / 255 for image in images), batch.views, tuple(names))


def redrawn(
    policy: Policy,
    images: Tensor | Sequence[Tensor],
    index_N: np.ndarray,
    *,
    draw: int,
    only: str | None = None,
) -> Tensor:
    """(N, 3, S, S): the first view of each image, of the corner with most groups on.

    draw: keys the parameters, apart from those of training. only: "crop" or one of STAGES; the
    others do not run, and without the crop the image is cut as ``clean`` cuts it.
    """
    if only is not None and only not in VARIED:
        raise ValueError(f"redrawn: only must be one of {', '.join(VARIED)}, received {only!r}")
    full = _fullest(policy)
    sizes_N2 = np.array([image.shape[-2:] for image in images])
    key = Draw(seed=_READOUT_SEED, epoch=draw, step=0, index_N=index_N, sizes_N2=sizes_N2)
    table = drawn(replace(policy, corners=(full,)), key, images[0].device).tables[0]
    values_NP, codes_NC = table.values_VNP[0].clone(), table.codes_VNC[0].clone()
    group = policy.groups[0]
    if only is not None:
        codes_NC[:, CODES.index("stages")] &= STAGE_BIT.get(only, 0)
        if only != "crop":
            values_NP[:, :4] = _central(images, group.size).to(values_NP)
    one = Table(values_NP[None], codes_NC[None])
    return augment(images, one, size=group.size, settings=group.settings)[0].float()


def jittered(
    policy: Policy, images: Tensor | Sequence[Tensor], index_N: np.ndarray, *, strength: float
) -> Tensor:
    """(N, 3, S, S): the central square of each image under colour jitter alone, always applied.

    strength: s of +-(.8, .8, .8, .2) s, in the order and the colour space of the policy.
    """
    full = _fullest(policy)
    jitter = reach(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    view = Ranges(jitter=1.0, jitter_order=full.views[0].jitter_order, **jitter)
    corner = Corner(bits=full.bits, views=(view,) * policy.num_views)
    return redrawn(replace(policy, corners=(corner,)), images, index_N, draw=1, only="jitter")


def _central(images: Tensor | Sequence[Tensor], size: int) -> Tensor:
    """(N, 4) left, top, width, height of the central squares."""
    kept = 1.0 if size < 96 else _KEPT
    rows = []
    for image in images:
        height, width = image.shape[-2:]
        edge = kept * min(height, width)
        rows.append([(width - edge) / 2, (height - edge) / 2, edge, edge])
    return torch.tensor(rows)


def clean(images: Sequence[Tensor], *, size: int, settings: Settings) -> Tensor:
    """(N, 3, S, S): the central square of each image, to evaluate on; all of it below 96 px."""
    values_NP = torch.tensor([IDENTITY.get(name, 0.0) for name in VALUES]).repeat(len(images), 1)
    values_NP[:, :4] = _central(images, size)
    codes_NC = torch.zeros(len(images), len(CODES), dtype=torch.int32)
    table = Table(values_NP[None], codes_NC[None]).to(images[0].device)
    return augment(images, table, size=size, settings=settings)[0]
