"""Projection heads: the small MLPs between an encoder and its loss.

SimCLR's is ``z = W2 relu(BN(W1 h))`` (Chen et al. 2020, arXiv:2002.05709, section 2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


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
