"""What a policy is made of: the ranges that each view's parameters are drawn from, as data.

A policy has groups of views (one size and one set of filters each; multi-crop has two groups) and
one corner or more. A corner says which ranges the views take; where there are several, each step
draws one for the whole batch, as amortised invariance learning does with its invariance vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import STAGES

OPERATORS = ("crop", *STAGES)
"""What an operator label tells: columns of ``Drawn.labels_VNO``."""
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CIFAR10: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
UNIT = (1.0, 1.0)
CROPS, ORDERS = ("random", "centre"), ("random", "fixed")

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """One view: probabilities of the stages, and intervals that their values are uniform on.

    As it stands it crops and flips; every other probability is 0. ValueError for a probability
    outside 0..1, an interval that is empty or out of bounds, or an unknown word.
    """

    crop: Literal["random", "centre"] = "random"
    scale: Interval = (0.08, 1.0)  # random: crop area over image area
    ratio: Interval = (3 / 4, 4 / 3)  # random: crop width over height, log-uniform
    kept: float = 1.0  # centre: share of each side
    hflip: float = 0.5
    jitter: float = 0.0
    brightness: Interval = UNIT
    contrast: Interval = UNIT
    saturation: Interval = UNIT
    hue: Interval = (0.0, 0.0)  # turns
    jitter_order: Literal["random", "fixed"] = "random"  # fixed: brightness first, hue last
    gray: float = 0.0
    blur: float = 0.0
    sigma: Interval = (0.1, 2.0)  # pixels of the view
    solarize: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, words in (("crop", CROPS), ("jitter_order", ORDERS)):
            if getattr(self, name) not in words:
                expected = " or ".join(map(repr, words))
                received = repr(getattr(self, name))
                raise ValueError(f"Ranges: {name} must be {expected}, received {received}")
        for name in ("hflip", "jitter", "gray", "blur", "solarize", "threshold"):
            self._check(name, (getattr(self, name),), 0.0, 1.0)
        for name in ("brightness", "contrast", "saturation", "ratio", "sigma"):
            self._check(name, getattr(self, name), 0.0, math.inf)
        self._check("scale", self.scale, 0.0, 1.0)
        self._check("hue", self.hue, -0.5, 0.5)
        self._check("kept", (self.kept,), 0.0, 1.0)

    def _check(self, name: str, values: tuple[float, ...], least: float, most: float) -> None:
        ordered = all(a <= b for a, b in pairwise(values)) and all(map(math.isfinite, values))
        positive = name not in ("scale", "ratio", "sigma", "kept") or values[0] > 0
        if not (ordered and positive and all(least <= v <= most for v in values)):
            raise ValueError(
                f"Ranges: {name} must lie in {least:g}..{most:g}, finite, lowest first "
                f"(scale, ratio, sigma and kept above 0), "
                f"received {', '.join(f'{v:g}' for v in values)}"
            )


def reach(brightness: float, contrast: float, saturation: float, hue: float) -> dict[str, Any]:
    """Intervals of torchvision's ``ColorJitter(brightness, contrast, saturation, hue)``."""
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    intervals = {name: (max(0.0, 1.0 - by), 1.0 + by) for name, by in factors.items()}
    return {**intervals, "hue": (-hue, hue)}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Views of one size, rendered by one call of the operator."""

    size: int  # S: the views are S x S
    num_views: int
    settings: Settings = field(default_factory=lambda: Settings(**IMAGENET))

    def __post_init__(self) -> None:
        if self.size < 1 or self.num_views < 1:
            raise ValueError(
                f"Group: expected size and num_views of at least 1, received {self.size} and "
                f"{self.num_views}"
            )


@dataclass(frozen=True, kw_only=True)
class Corner:
    """One choice of the groups of augmentations that are applied; ``bits[k]`` = group k is."""

    views: tuple[Ranges, ...]  # one per view, the policy's groups one after the other
    bits: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Where the parameters of all views of a batch come from. Hashable; holds no tensor.

    alpha: the table's values that a method may differentiate by, () for none. Where there are
        any, ``Drawn.base`` keeps the views from before the first stage that they enter.
    """

    name: str
    groups: tuple[Group, ...]
    corners: tuple[Corner, ...]
    bit_names: tuple[str, ...] = ()
    alpha: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for corner in self.corners:
            if len(corner.views) != self.num_views or len(corner.bits) != len(self.bit_names):
                raise ValueError(
                    f"Policy {self.name}: expected {self.num_views} views and "
                    f"{len(self.bit_names)} bits in each corner, received {len(corner.views)} and "
                    f"{len(corner.bits)}"
                )
        if not self.corners or not self.groups:
            raise ValueError(f"Policy {self.name}: expected at least one group and one corner")

    @property
    def num_views(self) -> int:
        """Views of all groups together."""
        return sum(group.num_views for group in self.groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The side of each view."""
        return tuple(group.size for group in self.groups for _ in range(group.num_views))

    def without_normalisation(self) -> Policy:
        """The same with views in [0, 1], to look at."""
        plain = (
            replace(group, settings=replace(group.settings, mean=None, std=None))
            for group in self.groups
        )
        return replace(self, groups=tuple(plain))


def alike(name: str, ranges: Ranges, group: Group, *, alpha: tuple[str, ...] = ()) -> Policy:
    """A policy of one group whose views are all drawn from the same ranges."""
    corner = Corner(views=(ranges,) * group.num_views)
    return Policy(name=name, groups=(group,), corners=(corner,), alpha=alpha)
