"""The parameter table of ``augment``: what is done to each sample of each view, as two tensors.

``values_VNP`` holds every continuous parameter (differentiable), ``codes_VNC`` which stages run,
in which order the jitter's four steps follow each other, and how many bits posterize leaves.
Stages always run in the order of ``STAGES``; a stage whose bit is not set costs nothing.
"""

# shapes: V views, N samples, P values, C codes
from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

VALUES = (
    # crop box in pixels of the source, any real numbers: the box is resized to S x S
    *("left", "top", "width", "height"),
    # torchvision's affine about the centre of the S x S view: degrees, pixels, factor, degrees
    *("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y"),
    # factors, 1 = unchanged; hue in turns, 0 = unchanged
    *("brightness", "contrast", "saturation", "hue"),
    "sigma",  # Gaussian blur, pixels of the view
    "solarize",  # threshold in [0, 1]: values from it on are inverted
    # rectangle in pixels of the view, and its colour in [0, 1] before normalisation
    *("erase_left", "erase_top", "erase_width", "erase_height"),
    *("erase_red", "erase_green", "erase_blue"),
)
CODES = ("stages", "jitter_order", "posterize_bits")
STAGES = (
    *("hflip", "vflip", "affine", "jitter", "gray", "blur"),
    *("solarize", "posterize", "equalize", "erase"),
)
"""Order of the stages after the crop; bit k of ``stages`` runs STAGES[k]."""
STAGE_BIT = {stage: 1 << position for position, stage in enumerate(STAGES)}
JITTER_ORDERS = tuple(permutations(range(4)))
"""``jitter_order`` indexes these orders of brightness 0, contrast 1, saturation 2, hue 3."""
IDENTITY = {"scale": 1.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
"""Values that change nothing, where that is not 0 (the crop box has no such default)."""


@dataclass(frozen=True)
class Table:
    """Parameters of V views of N samples."""

    values_VNP: Tensor  # float32 or float64, columns VALUES
    codes_VNC: Tensor  # int32, columns CODES

    def value(self, name: str) -> Tensor:
        """(V, N): one column of the values, a view of the table."""
        return self.values_VNP[..., VALUES.index(name)]

    def code(self, name: str) -> Tensor:
        """(V, N) int32: one column of the codes, a view of the table."""
        return self.codes_VNC[..., CODES.index(name)]

    def runs(self, stage: str) -> Tensor:
        """(V, N) booleans: whether the stage runs."""
        return (self.code("stages") & STAGE_BIT[stage]) != 0

    def to(self, device: torch.device) -> Table:
        """The same table on ``device``."""
        return Table(
            self.values_VNP.to(device, non_blocking=True),
            self.codes_VNC.to(device, non_blocking=True),
        )
