"""The small encoder for 32 px images: four 3x3 convolutions and a global average.

(N, C, S, S) -> 32 -> 64 -> 128 -> 128 channels, strides 2, 2, 2, 1, BN + ReLU -> (N, 128)
"""

# shapes: N batch, C channels, S side, F features
from __future__ import annotations

from torch import Tensor, nn

CHANNELS = (32, 64, 128, 128)
STRIDES = (2, 2, 2, 1)


class ConvNet(nn.Module):
    """Maps (N, channels, H, W) floats, H and W >= 8, to (N, 128) non-negative features."""

    num_features = CHANNELS[-1]

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for size, stride in zip(CHANNELS, STRIDES, strict=True):
            layers += [
                nn.Conv2d(width, size, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(size),
                nn.ReLU(inplace=True),
            ]
            width = size
        self.layers = nn.Sequential(*layers)

    def forward(self, x_NCSS: Tensor) -> Tensor:
        return self.layers(x_NCSS).mean(dim=(2, 3))
