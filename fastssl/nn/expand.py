"""Wider representations from the same ResNet: a bottleneck before the pooling.

Dubois et al. 2022 (arXiv:2209.06235), "+dim": 1x1 to a hidden width, 3x3, 1x1 to d channels, each
with batch normalisation; the input, repeated along the channels, is added where d is a multiple.
"""

# shapes: N batch, C channels in, D channels out
from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.nn.convnet import ConvNet


class BottleneckExpand(nn.Module):
    """Maps (N, C, H, W) to (N, D, H, W), non-negative."""

    def __init__(self, channels: int, dim: int, *, hidden: int = 512) -> None:
        super().__init__()
        if min(channels, dim, hidden) < 1:
            raise ValueError(
                f"BottleneckExpand: expected positive widths, received {channels}, {dim}, {hidden}"
            )
        self.layers = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
        )
        self._start()
        self.repeats = dim // channels if dim % channels == 0 else 0

    @torch.no_grad()
    def _start(self) -> None:
        """The authors' start: normal of deviation out^-1/2, then truncated ones of fan_in^-1/2."""
        reduce, *others = (layer for layer in self.layers if isinstance(layer, nn.Conv2d))
        nn.init.normal_(reduce.weight, std=reduce.out_channels**-0.5)
        for conv in others:
            # a normal variable cut at two deviations has 0.8796 of its deviation left
            std = conv.weight[0].numel() ** -0.5 / 0.8796
            nn.init.trunc_normal_(conv.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, D, H, W)."""
        out = self.layers(x_NCHW)
        if self.repeats:
            out = out + x_NCHW.repeat(1, self.repeats, 1, 1)
        return torch.relu(out)


def expand(backbone: nn.Module, dim: int, *, hidden: int = 512) -> nn.Module:
    """Puts a ``BottleneckExpand`` before the pooling of a ResNet or the convnet, in place.

    Any torchvision backbone will do whose features are what its ``avgpool`` gives: EfficientNet and
    RegNet too. Raises ValueError for one without such a place, or with layers after it.
    """
    width = int(backbone.num_features)  # type: ignore[arg-type]
    _check_end(backbone)
    wider = BottleneckExpand(width, dim, hidden=hidden)
    if isinstance(backbone, ConvNet):
        backbone.layers.append(wider)
    else:
        backbone.avgpool = nn.Sequential(wider, backbone.avgpool)  # type: ignore[arg-type]
    backbone.num_features = dim  # type: ignore[assignment]
    return backbone


def _check_end(backbone: nn.Module) -> None:
    """ValueError unless the pooled channels are the features, with no weights in between."""
    if isinstance(backbone, ConvNet):
        return
    names = [name for name, _ in backbone.named_children()]
    after = names[names.index("avgpool") + 1 :] if "avgpool" in names else []
    learnt = [n for n in after if any(True for _ in backbone.get_submodule(n).parameters())]
    if "avgpool" not in names or learnt:
        why = f", whose {' and '.join(learnt)} follows its pooling" if learnt else ""
        raise ValueError(
            "dim: expected the convnet as backbone, or a torchvision one that ends in its pooling "
            f"(resnet*, efficientnet*, regnet*), received {type(backbone).__name__}{why}; choose "
            "another --backbone, or leave out --dim"
        )
