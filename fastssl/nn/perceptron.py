"""The encoder for digits of 8 px: all pixels through two hidden layers of 256.

(N, C, S, S) -> 256 -> 256, BN + ReLU after each -> (N, F), linear
"""

# shapes: N batch, C channels, S side, F features
from __future__ import annotations

from torch import Tensor, nn

from fastssl.nn.heads import mlp

HIDDEN = (256, 256)


class Perceptron(nn.Module):
    """Maps (N, C, S, S) floats with C S S = ``num_inputs`` to (N, F) features of either sign."""

    num_features: int = 128

    def __init__(self, num_inputs: int, num_features: int = num_features) -> None:
        super().__init__()
        self.num_features = num_features
        self.layers = mlp(num_inputs, (*HIDDEN, num_features))

    def forward(self, x_NCSS: Tensor) -> Tensor:
        return self.layers(x_NCSS.flatten(1))
