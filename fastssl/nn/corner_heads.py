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
        norm: "none", or "batch": hidden layers and output are normalised over the batch, in
            evaluation too (these heads are used in training alone).
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
        self.norm = norm
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for before, after in pairwise(widths):
            bound = 1 / math.sqrt(before)
            self.weights.append(torch.empty(num_corners, after, before).uniform_(-bound, bound))
            self.biases.append(torch.empty(num_corners, after).uniform_(-bound, bound))

    def forward(self, h_NF: Tensor, corner: Tensor) -> Tensor:
        """(N, D) by the head of ``corner``, a 0-d integer tensor."""
        last = len(self.weights) - 1
        for position, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            chosen = (t.index_select(0, corner.view(1))[0] for t in (weight, bias))
            h_NF = F.linear(h_NF, *(t.to(h_NF.dtype) for t in chosen))
            if self.norm == "batch":
                h_NF = F.batch_norm(h_NF, None, None, training=True)
            if position < last:
                h_NF = torch.relu(h_NF)
        return h_NF
