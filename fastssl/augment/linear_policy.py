"""The SimCLR augmentation (Chen et al. 2020, appendix A) as a table of per-sample parameters.

A view is crop+resize, flip, colour, blur, normalise. Colour is one linear map of each pixel and
of the image's mean colour m, clamped once at the end: out = A x + B m with, in this order,
brightness b, contrast c (towards the mean grey), saturation s, hue (YIQ rotation), grey:
  A = G H S(s) b c,  B = G H S(s) b (1-c) 1 w^T,  S(s) = s I + (1-s) 1 w^T,  w = Rec. 601 luma.
(torchvision shuffles the order and clamps after every step; backends here share this map.)
"""

# shapes: N samples; 33 a 3x3 matrix over RGB
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fastssl.augment import keyed, policy
from fastssl.augment.drawn import Drawn
from fastssl.kernels.augment.table import CODES, IDENTITY, STAGE_BIT, STAGES, VALUES, Table

LUMA = np.array([0.299, 0.587, 0.114])
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ATTEMPTS = 10  # torchvision's number of tries for a crop that fits
_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Ranges that the parameters are drawn from. The defaults are SimCLR's."""

    scale: tuple[float, float] = (0.08, 1.0)  # crop area over image area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # crop width over height
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.8  # probability of colour jitter
    strength: float = 1.0  # jitter ranges: +-0.8 strength (b, c, s), +-0.2 strength (hue turns)
    gray: float = 0.2  # probability of greyscale
    blur: float = 0.5  # probability of a Gaussian blur
    sigma: tuple[float, float] = (0.1, 2.0)  # blur, in pixels of the output
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def simclr(image_size: int) -> Policy:
    """SimCLR's policy for a crop side: no blur and half strength under 64 px (its appendix B.9)."""
    if image_size < 64:
        return Policy(strength=0.5, blur=0.0)
    return Policy()


@dataclass(frozen=True)
class ViewParams:
    """What was done to each sample of one view."""

    box_N4: NDArray[np.float32]  # left, top, width, height of the crop, whole pixels
    flip_N: NDArray[np.bool_]
    brightness_N: NDArray[np.float32]  # factors, 1 = unchanged
    contrast_N: NDArray[np.float32]
    saturation_N: NDArray[np.float32]
    hue_N: NDArray[np.float32]  # turns, 0 = unchanged
    gray_N: NDArray[np.bool_]
    sigma_N: NDArray[np.float32]  # pixels, 0 = no blur


def draw(
    policy: Policy,
    *,
    seed: int,
    epoch: int,
    index_N: NDArray[np.integer],
    view: int,
    width_N: NDArray[np.integer],
    height_N: NDArray[np.integer],
) -> ViewParams:
    """Parameters of view ``view``; a pure function of (seed, epoch, index, view, image size)."""

    def unit(name: str, count: int = 1) -> NDArray[np.float64]:
        stream = f"simclr/{name}/view{view}"
        return keyed.uniform(count, seed=seed, epoch=epoch, index_N=index_N, stream=stream)

    box_N4 = _crop_boxes(policy, unit("crop", 4 * _ATTEMPTS), width_N, height_N)
    reach = policy.strength * np.array([0.8, 0.8, 0.8, 0.2])
    on_N1 = unit("jitter?") < policy.jitter
    low, high = np.maximum(0.0, 1.0 - reach), 1.0 + reach
    low[3], high[3] = -reach[3], reach[3]
    factor_N4 = low + (high - low) * unit("jitter", 4)
    drawn_N4 = np.where(on_N1, factor_N4, [1.0, 1.0, 1.0, 0.0]).astype(np.float32)
    sigma_N = policy.sigma[0] + (policy.sigma[1] - policy.sigma[0]) * unit("sigma")[:, 0]
    blurred_N = unit("blur?")[:, 0] < policy.blur
    return ViewParams(
        box_N4=box_N4,
        flip_N=unit("flip")[:, 0] < policy.flip,
        brightness_N=drawn_N4[:, 0],
        contrast_N=drawn_N4[:, 1],
        saturation_N=drawn_N4[:, 2],
        hue_N=drawn_N4[:, 3],
        gray_N=unit("gray")[:, 0] < policy.gray,
        sigma_N=np.where(blurred_N, sigma_N, 0.0).astype(np.float32),
    )


def from_policy(chosen: policy.Policy) -> Policy:
    """The policy of these backends that has the ranges of ``chosen``.

    ValueError where there is none: all views alike, jitter in SimCLR's proportions, no solarize.
    """
    first = chosen.corners[0].views[0]
    strength = first.hue[1] / 0.2
    alike = len(chosen.corners) == 1 and set(chosen.corners[0].views) == {first}
    expected = policy.reach(*(strength * np.array([0.8, 0.8, 0.8, 0.2])))
    same = all(np.allclose(getattr(first, name), interval) for name, interval in expected.items())
    usual = (len(chosen.groups), first.crop, first.jitter_order) == (1, "random", "random")
    if not (alike and same and usual and first.solarize == 0):
        raise ValueError(
            f"--augment {chosen.name}: the loader of image folders renders simclr and mocov2 alone"
        )
    kept = {name: getattr(first, name) for name in ("scale", "ratio", "jitter", "gray", "blur")}
    settings = chosen.groups[0].settings
    assert settings.mean is not None and settings.std is not None
    return Policy(
        flip=first.hflip,
        strength=strength,
        sigma=first.sigma,
        mean=settings.mean,
        std=settings.std,
        **kept,
    )


def as_drawn(views: list[ViewParams]) -> Drawn:
    """The operator's table of what these backends did, their order of the jitter included."""
    shape = (len(views), len(views[0].flip_N))
    values_VNP = torch.tensor([IDENTITY.get(name, 0.0) for name in VALUES]).repeat(*shape, 1)
    codes_VNC = torch.zeros(*shape, len(CODES), dtype=torch.int32)
    codes_VNC[..., CODES.index("posterize_bits")] = 8
    labels_VNO = torch.zeros(*shape, len(policy.OPERATORS), dtype=torch.int8)
    labels_VNO[..., 0] = 1
    for view, params in enumerate(views):
        values_VNP[view, :, :4] = torch.from_numpy(params.box_N4)
        for name in ("brightness", "contrast", "saturation", "hue", "sigma"):
            values_VNP[view, :, VALUES.index(name)] = torch.from_numpy(
                getattr(params, f"{name}_N")
            )
        runs = {
            "hflip": params.flip_N,
            "jitter": params.brightness_N != 1,
            "gray": params.gray_N,
            "blur": params.sigma_N > 0,
        }
        for stage, ran_N in runs.items():
            codes_VNC[view, :, 0] += torch.from_numpy(ran_N * STAGE_BIT[stage]).int()
            labels_VNO[view, :, 1 + STAGES.index(stage)] = torch.from_numpy(ran_N.astype(np.int8))
    return Drawn(
        labels_VNO=labels_VNO,
        bits_K=torch.zeros(0),
        corner=torch.tensor(0),
        tables=(Table(values_VNP, codes_VNC),),
    )


def colour_maps(params: ViewParams) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A_N33 and B_N33 of the module's equation: out = A x + B mean(x), columns are RGB in."""
    b, c, s = (
        value[:, None, None].astype(np.float64)
        for value in (params.brightness_N, params.contrast_N, params.saturation_N)
    )
    to_grey_33 = np.ones((3, 1)) * LUMA
    saturate_N33 = s * np.eye(3) + (1.0 - s) * to_grey_33
    after_N33 = _hue_rotation(params.hue_N) @ saturate_N33
    after_N33 = np.where(params.gray_N[:, None, None], to_grey_33 @ after_N33, after_N33)
    a_N33 = after_N33 * (b * c)
    b_N33 = after_N33 @ to_grey_33 * (b * (1.0 - c))
    return a_N33.astype(np.float32), b_N33.astype(np.float32)


def blur_windows(params: ViewParams) -> NDArray[np.int32]:
    """(N,) odd widths of the blur kernels, three sigma to each side; 1 = no blur."""
    return (2 * np.ceil(3.0 * params.sigma_N) + 1).astype(np.int32)


def _hue_rotation(turn_N: NDArray[np.float32]) -> NDArray[np.float64]:
    angle_N = 2.0 * math.pi * turn_N.astype(np.float64)
    rotation_N33 = np.tile(np.eye(3), (len(turn_N), 1, 1))
    rotation_N33[:, 1, 1] = rotation_N33[:, 2, 2] = np.cos(angle_N)
    rotation_N33[:, 1, 2] = -np.sin(angle_N)
    rotation_N33[:, 2, 1] = np.sin(angle_N)
    return np.linalg.inv(_YIQ) @ rotation_N33 @ _YIQ


def _crop_boxes(
    policy: Policy,
    unit_NK: NDArray[np.float64],
    width_N: NDArray[np.integer],
    height_N: NDArray[np.integer],
) -> NDArray[np.float32]:
    """torchvision's RandomResizedCrop, all tries of all samples at once: (N, 4)."""
    scale_NT, ratio_NT, left_NT, top_NT = np.split(unit_NK, 4, axis=1)
    width_N1, height_N1 = width_N[:, None].astype(np.float64), height_N[:, None].astype(np.float64)
    area_NT = (
        width_N1 * height_N1 * (policy.scale[0] + (policy.scale[1] - policy.scale[0]) * scale_NT)
    )
    low, high = math.log(policy.ratio[0]), math.log(policy.ratio[1])
    aspect_NT = np.exp(low + (high - low) * ratio_NT)
    w_NT, h_NT = np.rint(np.sqrt(area_NT * aspect_NT)), np.rint(np.sqrt(area_NT / aspect_NT))
    fits_NT = (w_NT >= 1) & (w_NT <= width_N1) & (h_NT >= 1) & (h_NT <= height_N1)
    first_N = fits_NT.argmax(axis=1)
    rows = np.arange(len(first_N))
    w_N, h_N = w_NT[rows, first_N], h_NT[rows, first_N]
    left_N = np.floor(left_NT[rows, first_N] * (width_N - w_N + 1))
    top_N = np.floor(top_NT[rows, first_N] * (height_N - h_N + 1))
    drawn_N4 = np.stack([left_N, top_N, w_N, h_N], axis=1)
    centre_N4 = _centre_boxes(policy, width_N1[:, 0], height_N1[:, 0])
    fits_N1 = np.any(fits_NT, axis=1, keepdims=True)
    return np.where(fits_N1, drawn_N4, centre_N4).astype(np.float32)


def _centre_boxes(
    policy: Policy, width_N: NDArray[np.float64], height_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest centred box whose ratio is within bounds: for images that no try fits."""
    w_N = np.maximum(1.0, np.minimum(width_N, np.rint(height_N * policy.ratio[1])))
    h_N = np.maximum(1.0, np.minimum(height_N, np.rint(width_N / policy.ratio[0])))
    left_N, top_N = (width_N - w_N) // 2, (height_N - h_N) // 2
    return np.stack([left_N, top_N, w_N, h_N], axis=1)
