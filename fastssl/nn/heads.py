"""Projection heads: the small MLPs between an encoder and its loss.

SimCLR's is ``z = W2 relu(BN(W1 h))`` (Chen et al. 2020, arXiv:2002.05709, section 2.1).
"""

# shapes: N batch, F features, D embedding, C prototypes

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hidden = Literal["bn", "relu", "gelu"]
Last = Literal["linear", "no_bias", "bn", "bn_fixed"]


def projector(num_features: int, dims: Sequence[int]) -> nn.Sequential:
    """MLP (N, num_features) -> (N, dims[-1]): Linear-BN-ReLU for each hidden width, then Linear.

    No layer has a bias: a hidden one would be cancelled by its batch normalisation, and the last
    one would only move every embedding by the same vector before they are compared by cosine.
    Raises ValueError for empty dims or a width below one.
    """
    if not dims or min(dims) < 1:
        raise ValueError(
            f"projector: dims must be one or more positive widths, received {tuple(dims)}; "
            "e.g. (128, 64) for one hidden layer of 128 and embeddings of 64"
        )
    layers: list[nn.Module] = []
    width = num_features
    for hidden in dims[:-1]:
        layers += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden)]
        layers += [nn.ReLU(inplace=True)]
        width = hidden
    layers.append(nn.Linear(width, dims[-1], bias=False))
    return nn.Sequential(*layers)


def mlp(
    num_features: int, dims: Sequence[int], *, hidden: Hidden = "bn", last: Last = "linear"
) -> nn.Sequential:
    """MLP (N, num_features) -> (N, dims[-1]), for heads other than SimCLR's.

    Args:
        num_features: width of the input.
        dims: widths of the layers; the last one is the output.
        hidden: after each layer but the last: "bn" (no bias, batch norm, ReLU), "relu" or "gelu".
        last: "linear" with a bias, "no_bias", "bn" (no bias, batch norm) or "bn_fixed" (batch norm
            without scale and shift).

    Raises ValueError for empty dims or a width below one.
    """
    if not dims or min(dims) < 1:
        raise ValueError(f"mlp: dims must be one or more positive widths, received {tuple(dims)}")
    layers: list[nn.Module] = []
    width = num_features
    for size in dims[:-1]:
        layers.append(nn.Linear(width, size, bias=hidden != "bn"))
        layers += [nn.BatchNorm1d(size)] if hidden == "bn" else []
        layers.append(nn.GELU() if hidden == "gelu" else nn.ReLU(inplace=True))
        width = size
    layers.append(nn.Linear(width, dims[-1], bias=last == "linear"))
    if last in ("bn", "bn_fixed"):
        layers.append(nn.BatchNorm1d(dims[-1], affine=last == "bn"))
    return nn.Sequential(*layers)


class CosinePrototypes(nn.Module):
    """Cosines of (N, D) rows with C learned directions: (N, C), each in [-1, 1].

    SwAV's prototypes (arXiv:2006.09882) and DINO's last layer with unit weights (2104.14294).
    """

    def __init__(self, width: int, num_prototypes: int) -> None:
        super().__init__()
        if min(width, num_prototypes) < 1:
            raise ValueError(
                f"CosinePrototypes: width and num_prototypes must be positive, received {width}, "
                f"{num_prototypes}"
            )
        self.weight = nn.Parameter(F.normalize(torch.randn(num_prototypes, width), dim=1))

    def forward(self, z_ND: Tensor, trained: Tensor | float = 1.0) -> Tensor:
        """``trained`` 0 holds the directions still (their gradient is zero), 1 lets them learn."""
        unit_CD = F.normalize(self.weight, dim=1)
        unit_CD = unit_CD.detach() + (unit_CD - unit_CD.detach()) * trained
        return F.linear(F.normalize(z_ND, dim=1), unit_CD.to(z_ND.dtype))
