"""``sample``: all parameters of a batch from (seed, epoch, step, index), in one vectorised pass.

Every draw is a column of a counter-based stream (counter.py): batch splits, worker counts, devices
and restarts change nothing. The columns never move, so two policies that share a stage draw the
same numbers for it.
"""

# shapes: V views, N samples, P values, C codes, O operators, S stages, L limits, K draws
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import counter, keyed
from fastssl.augment.crop import ATTEMPTS, centre_boxes, log_ratio, random_boxes
from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import Corner, Policy, Ranges
from fastssl.kernels.augment.table import (
    IDENTITY,
    JITTER_ORDERS,
    STAGE_BIT,
    STAGES,
    VALUES,
    Table,
)

_JITTER = ("brightness", "contrast", "saturation", "hue")
# columns of a view's stream: a coin per stage, the factors, their order, sigma, the crop's tries
_COINS, _FACTORS, _ORDER, _SIGMA = slice(0, 10), slice(10, 14), 14, 15
_CROP, _COUNT = slice(16, 16 + 4 * ATTEMPTS), 16 + 4 * ATTEMPTS
_AT = {name: VALUES.index(name) for name in VALUES}
_FIRST_FACTOR = _AT["brightness"]


def sample(
    policy: Policy,
    *,
    seed: int,
    epoch: int,
    step: int,
    index_N: Any,
    sizes_N2: Any,
    device: torch.device | str | None = None,
) -> Drawn:
    """The table of all views of the samples ``index_N``, on ``device`` (default: the CPU).

    index_N: (N,) integers that name the samples; sizes_N2: (N, 2) integers, (height, width) of each
    image in pixels (numpy or torch). ``step`` chooses the corner, the same one on every rank.
    ValueError for sizes that are not N pairs.
    """
    index_N, height_N, width_N = _on_device(index_N, sizes_N2, torch.device(device or "cpu"))
    position = corner_at(len(policy.corners), seed=seed, step=step)
    corner = policy.corners[position]
    limits = _limits(corner.views, index_N.device)
    streams = [f"augment/view{view}" for view in range(policy.num_views)]
    count = _COUNT if limits.any_random else _CROP.start
    unit_VNK = counter.uniform(count, seed=seed, epoch=epoch, index_N=index_N, streams=streams)
    runs_VNS = unit_VNK[..., _COINS] < limits.chance_VS[:, None]
    values_VNP = _values(limits, unit_VNK, runs_VNS, height_N, width_N)
    codes_VNC = _codes(limits, unit_VNK, runs_VNS)
    cropped_VN1 = limits.random_V[:, None, None].expand(*runs_VNS.shape[:2], 1)
    return Drawn(
        labels_VNO=torch.cat([cropped_VN1, runs_VNS], dim=2).to(torch.int8),
        bits_K=torch.tensor(corner.bits, dtype=torch.float32, device=index_N.device),
        corner=torch.tensor(position, device=index_N.device),
        tables=_per_group(policy, values_VNP, codes_VNC),
    )


def corner_at(num_corners: int, *, seed: int, step: int) -> int:
    """The corner of a step, uniform over them, the same for the whole batch and on every rank."""
    if num_corners == 1:
        return 0
    word = keyed.bits(1, seed=seed, epoch=0, index_N=np.array([step]), stream="augment/corner")
    return int(word[0, 0]) % num_corners


@dataclass(frozen=True)
class _Limits:
    """A corner's ranges as tensors over the views."""

    any_random: bool
    any_centre: bool
    random_V: Tensor
    kept_V: Tensor
    scale_2V: Tensor
    log_ratio_2V: Tensor
    chance_VS: Tensor
    factor_2V4: Tensor
    sigma_2V: Tensor
    threshold_V: Tensor
    shuffled_V: Tensor


@lru_cache(maxsize=256)
def _limits(views: tuple[Ranges, ...], device: torch.device) -> _Limits:
    def column(read: Any) -> Tensor:
        return torch.tensor([read(v) for v in views], dtype=torch.float64, device=device)

    chances = column(lambda v: [getattr(v, stage, 0.0) for stage in STAGES])
    is_random = [view.crop == "random" for view in views]
    return _Limits(
        any_random=any(is_random),
        any_centre=not all(is_random),
        random_V=torch.tensor(is_random, device=device),
        kept_V=column(lambda v: v.kept),
        scale_2V=column(lambda v: v.scale).T,
        log_ratio_2V=column(lambda v: log_ratio(v.ratio)).T,
        chance_VS=chances,
        factor_2V4=column(lambda v: [getattr(v, name) for name in _JITTER]).permute(2, 0, 1),
        sigma_2V=column(lambda v: v.sigma).T,
        threshold_V=column(lambda v: v.threshold),
        shuffled_V=torch.tensor([v.jitter_order == "random" for v in views], device=device),
    )


def _values(
    limits: _Limits, unit_VNK: Tensor, runs_VNS: Tensor, height_N: Tensor, width_N: Tensor
) -> Tensor:
    """(V, N, P) float32; what a stage that does not run would read changes nothing."""
    identity_P = torch.tensor([IDENTITY.get(name, 0.0) for name in VALUES], device=unit_VNK.device)
    values_VNP = identity_P.repeat(*unit_VNK.shape[:2], 1)
    values_VNP[..., :4] = _boxes(limits, unit_VNK, height_N, width_N)
    low_V14, high_V14 = limits.factor_2V4[:, :, None]
    factor_VN4 = low_V14 + (high_V14 - low_V14) * unit_VNK[..., _FACTORS]
    factors = slice(_FIRST_FACTOR, _FIRST_FACTOR + 4)
    jittered_VN1 = _column(runs_VNS, "jitter")[..., None]
    values_VNP[..., factors] = torch.where(jittered_VN1, factor_VN4.float(), identity_P[factors])
    low_V1, high_V1 = limits.sigma_2V[:, :, None]
    sigma_VN = low_V1 + (high_V1 - low_V1) * unit_VNK[..., _SIGMA]
    values_VNP[..., _AT["sigma"]] = sigma_VN * _column(runs_VNS, "blur")
    threshold_V1 = limits.threshold_V[:, None]
    values_VNP[..., _AT["solarize"]] = threshold_V1 * _column(runs_VNS, "solarize")
    return values_VNP


def _boxes(limits: _Limits, unit_VNK: Tensor, height_N: Tensor, width_N: Tensor) -> Tensor:
    sides = {"height_N": height_N, "width_N": width_N}
    if not limits.any_random:
        return centre_boxes(limits.kept_V, **sides)
    unit_VNA4 = unit_VNK[..., _CROP].unflatten(2, (ATTEMPTS, 4))
    ranges = {"scale_2V": limits.scale_2V, "log_ratio_2V": limits.log_ratio_2V}
    random_VN4 = random_boxes(unit_VNA4, **ranges, **sides)
    if not limits.any_centre:
        return random_VN4
    centre_VN4 = centre_boxes(limits.kept_V, **sides)
    return torch.where(limits.random_V[:, None, None], random_VN4, centre_VN4)


def _codes(limits: _Limits, unit_VNK: Tensor, runs_VNS: Tensor) -> Tensor:
    """(V, N, C) int32."""
    bit_S = torch.tensor([STAGE_BIT[stage] for stage in STAGES], device=unit_VNK.device)
    stages_VN = (runs_VNS * bit_S).sum(dim=2)
    order_VN = (unit_VNK[..., _ORDER] * len(JITTER_ORDERS)).to(torch.int64)
    order_VN = order_VN * limits.shuffled_V[:, None]
    return torch.stack([stages_VN, order_VN, torch.full_like(order_VN, 8)], dim=2).to(torch.int32)


def _column(runs_VNS: Tensor, stage: str) -> Tensor:
    return runs_VNS[..., STAGES.index(stage)]


def _per_group(policy: Policy, values_VNP: Tensor, codes_VNC: Tensor) -> tuple[Table, ...]:
    counts = [group.num_views for group in policy.groups]
    return tuple(map(Table, values_VNP.split(counts), codes_VNC.split(counts)))


def _on_device(index: Any, sizes: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    index_N = torch.as_tensor(index, dtype=torch.int64)
    sizes_N2 = torch.as_tensor(sizes)
    too_small = sizes_N2.device.type == "cpu" and bool((sizes_N2 < 1).any())
    if index_N.ndim != 1 or sizes_N2.shape != (len(index_N), 2) or too_small:
        raise ValueError(
            f"sample: expected index_N (N,) and sizes_N2 (N, 2) of positive heights and widths, "
            f"received shapes {tuple(index_N.shape)} and {tuple(sizes_N2.shape)}"
        )
    height_N, width_N = sizes_N2.to(device, torch.float64).unbind(1)
    return index_N.to(device), height_N, width_N
