"""Views as differentiable functions of their parameters: the two families of InvCLR's penalty.

Foster et al. 2021 (arXiv:2010.09515): for Spirograph alpha are the six nuisances; for photographs
the factors of brightness, contrast, saturation and hue, applied in this order to ``Drawn.base``,
  b: clamp(b x);  c: clamp(c x + (1-c) mean grey);  s: clamp(s x + (1-s) grey);  hue: YIQ rotation
then grey and the normalisation. Plain torch: any derivative, and one graph under torch.compile.
"""

# shapes: N samples, V views, A parameters, C channels, S side
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastssl.augment import spirograph
from fastssl.augment.drawn import Drawn
from fastssl.augment.policy import CIFAR10
from fastssl.augment.presets import invclr
from fastssl.kernels.augment.reference_jitter import (
    brightness,
    contrast,
    grey,
    hue_yiq,
    saturation,
)
from fastssl.kernels.augment.settings import GREY
from fastssl.kernels.augment.table import STAGE_BIT, VALUES, Table

JITTER = ("brightness", "contrast", "saturation", "hue")
_COLUMNS = [VALUES.index(name) for name in JITTER]
# made once: a compiled step sees constants
_SPIROGRAPH = (spirograph.NUISANCE_LOW.tolist(), spirograph.NUISANCE_HIGH.tolist())
_RANGES = [getattr(invclr(32).corners[0].views[0], name) for name in JITTER]
_JITTER = ([low for low, _ in _RANGES], [high for _, high in _RANGES])
_GREY = GREY["yiq"]


def with_leaf(drawn: Drawn) -> Drawn:
    """The same table, with a gradient for the parameters that ``alpha_of`` reads.

    Raises ValueError for a table of neither family.
    """
    if drawn.nuisance_VNA is not None:
        return replace(drawn, nuisance_VNA=drawn.nuisance_VNA.detach().requires_grad_())
    if not drawn.base:
        raise ValueError(
            "invclr: expected data with differentiable parameters: spirograph, or images under "
            "--augment invclr"
        )
    table = drawn.tables[0]
    leaf = Table(table.values_VNP.detach().requires_grad_(), table.codes_VNC)
    return replace(drawn, tables=(leaf, *drawn.tables[1:]))


def alpha_of(drawn: Drawn, view: int) -> Tensor:
    """(N, A): the differentiable parameters of one view."""
    if drawn.nuisance_VNA is not None:
        return drawn.nuisance_VNA[view]
    return drawn.tables[0].values_VNP[view][:, _COLUMNS]


def limits_of(drawn: Drawn) -> tuple[Tensor, Tensor]:
    """(A,) lower and upper ends of the uniform distributions that alpha is drawn from."""
    if drawn.nuisance_VNA is not None:
        like = drawn.nuisance_VNA
        return like.new_tensor(_SPIROGRAPH[0]), like.new_tensor(_SPIROGRAPH[1])
    like = drawn.tables[0].values_VNP
    return like.new_tensor(_JITTER[0]), like.new_tensor(_JITTER[1])


def rerender(drawn: Drawn, view: int, alpha_NA: Tensor, *, side: int) -> Tensor:
    """(N, 3, S, S): the view under other parameters; under its own it is the view itself.

    Never in the precision of an autocast region, which is for networks.
    """
    with torch.autocast(alpha_NA.device.type, enabled=False):
        if drawn.nuisance_VNA is None:
            return _recoloured(drawn, view, alpha_NA)
        assert drawn.object_NT is not None
        return spirograph.render(drawn.object_NT, alpha_NA, side=side)


def _recoloured(drawn: Drawn, view: int, alpha_NA: Tensor) -> Tensor:
    stages_N = drawn.tables[0].code("stages")[view]
    base_NCSS = drawn.base[view].to(alpha_NA.dtype)
    runs_N = (stages_N & STAGE_BIT["jitter"]) != 0
    x_NCSS = torch.where(runs_N.view(-1, 1, 1, 1), jittered(base_NCSS, alpha_NA), base_NCSS)
    gray_N = (stages_N & STAGE_BIT["gray"]) != 0
    x_NCSS = torch.where(gray_N.view(-1, 1, 1, 1), grey(x_NCSS, _GREY).expand_as(x_NCSS), x_NCSS)
    mean, std = (x_NCSS.new_tensor(CIFAR10[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (x_NCSS - mean) / std


def moved(
    drawn: Drawn, view: int, alpha_NA: Tensor, step_NA: Tensor, *, side: int
) -> tuple[Tensor, Tensor]:
    """``rerender`` under ``alpha_NA`` and its derivative along ``step_NA``, without a graph.

    ``alpha_NA`` must require a gradient (``with_leaf``). The derivative is that of the
    vector-Jacobian product in its vector: forward mode proper is not traced by torch.compile.
    """
    if drawn.nuisance_VNA is not None:
        assert drawn.object_NT is not None
        with torch.autocast(alpha_NA.device.type, enabled=False):
            return spirograph.render_along(drawn.object_NT, alpha_NA, step_NA, side=side)
    x_NCSS = rerender(drawn, view, alpha_NA, side=side)
    vector_NCSS = 0 * x_NCSS  # any vector; torch.compile wants none made with requires_grad_
    (product_NA,) = torch.autograd.grad(x_NCSS, alpha_NA, vector_NCSS, create_graph=True)
    (along_NCSS,) = torch.autograd.grad(product_NA, vector_NCSS, step_NA)
    return x_NCSS.detach(), along_NCSS.detach()


def jittered(x_NCSS: Tensor, alpha_NA: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue, in this order: the operator's own steps."""
    b_N, c_N, s_N, hue_N = alpha_NA.unbind(1)
    x_NCSS = contrast(brightness(x_NCSS, b_N), c_N, _GREY)
    return hue_yiq(saturation(x_NCSS, s_N, _GREY), hue_N)
