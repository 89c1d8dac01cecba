"""Spirograph: the renderer, and the policy of its nuisance parameters (Foster et al., ICLR 2021).

Hypotrochoid at 40 times t_j in [0, 2 pi], both ends included:
  x_j = (m-h) cos t_j + h cos(t_j (m-h)/b),  y_j = (m-h) sin t_j - h sin(t_j (m-h)/b)
  V(p,q) = 1/40 sum_j exp(-[(u_p-x_j)^2 + (u_q-y_j)^2] / sigma), over its maximum + 1e-8
  RGB_c = V f_c + (1-V) b_c,   u = linspace(-6, 6, 32), rows are x.
An object is (m, b, sigma, f_r); a view draws (h, b_r, f_g, b_g, f_b, b_b). No image operator runs.
"""

# shapes: N samples, S side, J curve points, C channels, T targets, A nuisances, V views, K bits
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment.drawn import Drawn
from fastssl.augment.presets import check_name
from fastssl.augment.sampling import corner_at

TARGETS = ("m", "b", "sigma", "f_r")
TARGET_LOW = np.array([2.0, 0.1, 0.25, 0.4])
TARGET_HIGH = np.array([5.0, 1.1, 1.0, 1.0])
NUISANCES = ("h", "b_r", "f_g", "b_g", "f_b", "b_b")
NUISANCE_LOW = np.array([0.5, 0.0, 0.4, 0.0, 0.4, 0.0])
NUISANCE_HIGH = np.array([2.5, 0.6, 1.0, 0.6, 1.0, 0.6])
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


def render_along(
    target_NT: Tensor, nuisance_NA: Tensor, step_NA: Tensor, *, side: int = 32
) -> tuple[Tensor, Tensor]:
    """``render`` and its derivative along ``step_NA`` in the nuisances, without a graph.

    By the chain rule, for a third of what two vector-Jacobian products cost.
    """
    nuisance_NA, step_NA = nuisance_NA.detach(), step_NA.detach()
    m, b, sigma, f_r = (column[:, None] for column in target_NT.unbind(1))
    h, b_r, f_g, b_g, f_b, b_b = (column[:, None] for column in nuisance_NA.unbind(1))
    dh, db_r, df_g, db_g, df_b, db_b = (column[:, None] for column in step_NA.unbind(1))
    t_J, u_S = _grids(side, target_NT.dtype, target_NT.device)
    turn_NJ, dturn_NJ = t_J * ((m - h) / b), -t_J * (dh / b)
    cos_NJ, sin_NJ = turn_NJ.cos(), turn_NJ.sin()
    x_NJ, y_NJ = (m - h) * t_J.cos() + h * cos_NJ, (m - h) * t_J.sin() - h * sin_NJ
    dx_NJ = dh * (cos_NJ - t_J.cos()) - h * sin_NJ * dturn_NJ
    dy_NJ = -dh * (sin_NJ + t_J.sin()) - h * cos_NJ * dturn_NJ
    rate_N11 = (-1.0 / sigma)[:, :, None]
    row_NSJ, drow_NSJ = _bumps_along(u_S[:, None] - x_NJ[:, None, :], dx_NJ, rate_N11)
    column_NSJ, dcolumn_NSJ = _bumps_along(u_S[:, None] - y_NJ[:, None, :], dy_NJ, rate_N11)
    value_NSS = torch.bmm(row_NSJ, column_NSJ.mT)
    along_NSS = torch.bmm(drow_NSJ, column_NSJ.mT).baddbmm(row_NSJ, dcolumn_NSJ.mT)
    peak_N1, place_N1 = value_NSS.flatten(1).max(dim=1, keepdim=True)
    scale_N11 = 1.0 / (peak_N1 + 1e-8 * NUM_POINTS)[:, :, None]
    value_NSS = value_NSS * scale_N11
    moved_N11 = along_NSS.flatten(1).gather(1, place_N1)[:, :, None]
    along_NSS = (along_NSS - value_NSS * moved_N11) * scale_N11
    back_NC, dback_NC = torch.cat([b_r, b_g, b_b], dim=1), torch.cat([db_r, db_g, db_b], dim=1)
    over_NC = torch.cat([f_r, f_g, f_b], dim=1) - back_NC
    dover_NC = torch.cat([0 * db_r, df_g, df_b], dim=1) - dback_NC
    back, dback, over, dover = (
        part[:, :, None, None] for part in (back_NC, dback_NC, over_NC, dover_NC)
    )
    value, along = value_NSS[:, None], along_NSS[:, None]
    return torch.addcmul(back, value, over), torch.addcmul(dback, along, over).addcmul(value, dover)


def _bumps_along(apart_NSJ: Tensor, d_NJ: Tensor, rate_N11: Tensor) -> tuple[Tensor, Tensor]:
    """exp(apart^2 rate) and its derivative where the centres move by d."""
    bump_NSJ = (apart_NSJ.square() * rate_N11).clamp(min=_FLOOR).exp()
    return bump_NSJ, bump_NSJ * apart_NSJ * (-2.0 * rate_N11 * d_NJ[:, None, :])


@dataclass(frozen=True, kw_only=True)
class SpirographPolicy:
    """Which nuisances differ between the views of an object.

    Without groups all do. With groups each step draws one of ``corners`` for the whole batch; the
    nuisances of a group whose bit is 0 are the first view's in every view.
    """

    name: str
    groups: tuple[tuple[str, ...], ...] = ()  # names of nuisances, one tuple per bit
    corners: tuple[tuple[int, ...], ...] = ((),)


_GROUPS = (("h",), ("b_r", "f_g", "b_g", "f_b", "b_b"))
PRESETS = {
    "spirograph": SpirographPolicy(name="spirograph"),
    "spirograph-2": SpirographPolicy(
        name="spirograph-2", groups=_GROUPS, corners=((0, 1), (1, 0), (1, 1))
    ),
    "spirograph-geometry": SpirographPolicy(
        name="spirograph-geometry", groups=_GROUPS, corners=((1, 0),)
    ),
    "spirograph-colour": SpirographPolicy(
        name="spirograph-colour", groups=_GROUPS, corners=((0, 1),)
    ),
}
"""``spirograph``: all nuisances afresh in each view, as InvCLR has them; ``spirograph-2``: bits
(geometry, colour), the two groups of amortised invariance learning (docs of ``amortised_2``);
``spirograph-geometry``, ``spirograph-colour``: that group alone is drawn afresh, in every step."""


def preset(name: str) -> SpirographPolicy:
    """The Spirograph policy ``name``; ValueError names the known ones."""
    check_name(name, tuple(PRESETS), what="spirograph")
    return PRESETS[name]


def sample(
    policy: SpirographPolicy,
    *,
    seed: int,
    epoch: int,
    step: int,
    index_N: np.ndarray,
    object_NT: Tensor,
    num_views: int = 2,
) -> Drawn:
    """The table of ``num_views`` views of the objects ``index_N``, float32 on the CPU."""
    drawn = [
        draw_nuisances(index_N, seed=seed, epoch=epoch, stream=f"view{view}")
        for view in range(num_views)
    ]
    position = corner_at(len(policy.corners), seed=seed, step=step)
    bits = policy.corners[position]
    held = [name for bit, group in zip(bits, policy.groups, strict=True) if not bit
            for name in group]  # fmt: skip
    columns = [NUISANCES.index(name) for name in held]
    nuisance_VNA = torch.from_numpy(np.stack(drawn).astype(np.float32))
    nuisance_VNA[1:, :, columns] = nuisance_VNA[:1, :, columns]
    labels_VNO = torch.ones_like(nuisance_VNA, dtype=torch.int8)
    labels_VNO[1:, :, columns] = 0
    return Drawn(
        labels_VNO=labels_VNO,
        bits_K=torch.tensor(bits, dtype=torch.float32),
        corner=torch.tensor(position),
        object_NT=object_NT,
        nuisance_VNA=nuisance_VNA,
    )


SHIFTED = {"h": ("h",), "background": ("b_r", "b_g", "b_b"), "foreground": ("f_g", "f_b")}
SHIFTS = (*SHIFTED, *(f"{name}-wide" for name in SHIFTED))


def shifted_bounds(name: str, amount: float) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), (6,) each: the nuisances ``name`` of SHIFTS moved up by ``amount``, or widened
    by it at both ends ("-wide").

    Colours stay within 0..1 and h above 0.05. ValueError where nothing is left between the ends.
    """
    low, high = NUISANCE_LOW.copy(), NUISANCE_HIGH.copy()
    columns = [NUISANCES.index(each) for each in SHIFTED[name.removesuffix("-wide")]]
    low[columns] += -amount if name.endswith("-wide") else amount
    high[columns] += amount
    floor = np.where(np.array(NUISANCES) == "h", 0.05, 0.0)
    ceiling = np.where(np.array(NUISANCES) == "h", np.inf, 1.0)
    low, high = np.clip(low, floor, ceiling), np.clip(high, floor, ceiling)
    if not (low < high).all():
        raise ValueError(f"--amounts: {amount:g} leaves nothing for {name} to vary in")
    return low, high


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


def draw_nuisances(
    index_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    stream: str,
    bounds: tuple[np.ndarray, np.ndarray] = (NUISANCE_LOW, NUISANCE_HIGH),
) -> np.ndarray:
    """(N, 6) float64 nuisance parameters; ``stream`` names the view or the use."""
    return keyed.uniform(
        len(NUISANCES),
        seed=seed,
        epoch=epoch,
        index_N=index_N,
        stream=f"spirograph/nuisance/{stream}",
        low=bounds[0],
        high=bounds[1],
    )


def _grids(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    t_J = torch.linspace(0.0, 2.0 * math.pi, NUM_POINTS, dtype=dtype, device=device)
    return t_J, torch.linspace(-6.0, 6.0, side, dtype=dtype, device=device)
