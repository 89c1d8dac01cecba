"""One head per corner of the invariance cube, chosen by a tensor so that one graph serves all."""

# shapes: N batch, C corners, F features, D embedding
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CornerHeads(nn.Module):
    """C separate MLPs (N, F) -> (N, D), ReLU between, optionally batch norm without a memory.

    Args:
        num_corners: C. num_features: F. dims: widths; the last one is the embedding.
        norm: "none", or "batch": hidden layers, with a scale and a shift per corner, and the
            output, without, are normalised over the batch, in evaluation too (these heads are used
            in training alone); layers have no bias then.
    """

    def __init__(
        self, num_corners: int, num_features: int, dims: Sequence[int], *, norm: str = "none"
    ) -> None:
        super().__init__()
        if num_corners < 1 or not dims or min(dims) < 1:
            raise ValueError(
                f"CornerHeads: expected corners and positive widths, received {num_corners} "
                f"corners, dims {tuple(dims)}"
            )
        widths = (num_features, *dims)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.gains = nn.ParameterList()
        self.norms = nn.ModuleList()
        for before, after in pairwise(widths):
            bound = 1 / math.sqrt(before)
            self.weights.append(torch.empty(num_corners, after, before).uniform_(-bound, bound))
            if norm == "none":
                self.biases.append(torch.empty(num_corners, after).uniform_(-bound, bound))
                continue
            # modules without parameters, so that statistics over ranks can take their place
            self.norms.append(nn.BatchNorm1d(after, affine=False, track_running_stats=False))
            if len(self.norms) < len(dims):
                self.gains.append(torch.ones(num_corners, after))
                self.biases.append(torch.zeros(num_corners, after))

    def forward(self, h_NF: Tensor, corner: Tensor) -> Tensor:
        """(N, D) by the head of ``corner``, a 0-d integer tensor."""
        last = len(self.weights) - 1
        for position, weight in enumerate(self.weights):
            h_NF = F.linear(h_NF, _of(weight, corner, h_NF))
            if len(self.norms):
                h_NF = self.norms[position](h_NF)
            if position < len(self.gains):
                h_NF = h_NF * _of(self.gains[position], corner, h_NF)
            if position < len(self.biases):
                h_NF = h_NF + _of(self.biases[position], corner, h_NF)
            if position < last:
                h_NF = torch.relu(h_NF)
        return h_NF


def _of(stacked: Tensor, corner: Tensor, like: Tensor) -> Tensor:
    return stacked.index_select(0, corner.view(1))[0].to(like.dtype)
