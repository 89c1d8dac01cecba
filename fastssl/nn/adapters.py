"""One encoder for two tasks or more: what is shared, and what each task has of its own.

MT-SLVR (Heggan et al. 2023, arXiv:2305.17191; Rebuffi et al. 2018 for the adapters). A unit takes
the place of a 3x3 convolution C and its batch normalisation; A_t is a 1x1 convolution, no bias:
  bn        y = BN_t(C x)
  series    u = BN_t(C x),  y = BN'_t(C x + A_t u)
  parallel  y = BN_t(C x + A_t x), A_t with the stride of C
Stem and first stage are shared by all tasks; then every task has its own, and a BN at the end.
"""

# shapes: N batch, C channels, H height, W width, F features, D outputs per task
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from fastssl.nn.convnet import ConvNet

Adapter = Literal["bn", "series", "parallel"]


class Unit(nn.Module):
    """A shared convolution with adapters and normalisations per task."""

    def __init__(self, conv: nn.Conv2d, adapter: Adapter, num_tasks: int) -> None:
        super().__init__()
        inside, out = conv.in_channels, conv.out_channels
        self.conv, self.adapter = conv, adapter
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in range(num_tasks))
        self.adapters, self.outer = nn.ModuleList(), nn.ModuleList()
        if adapter == "series":
            self.adapters.extend(_pointwise(out, out, 1) for _ in range(num_tasks))
            self.outer.extend(nn.BatchNorm2d(out) for _ in range(num_tasks))
        if adapter == "parallel":
            stride = conv.stride[0]
            self.adapters.extend(_pointwise(inside, out, stride) for _ in range(num_tasks))

    def forward(self, x_NCHW: Tensor, task: int) -> Tensor:
        """(N, C', H', W')."""
        u_NCHW = self.conv(x_NCHW)
        if self.adapter == "bn":
            return self.norms[task](u_NCHW)
        if self.adapter == "parallel":
            return self.norms[task](u_NCHW + self.adapters[task](x_NCHW))
        return self.outer[task](u_NCHW + self.adapters[task](self.norms[task](u_NCHW)))


class Block(nn.Module):
    """Units with ReLUs between, and a shortcut around two of them that pads with zeros."""

    def __init__(self, convs: Sequence[nn.Conv2d], adapter: Adapter, num_tasks: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(Unit(conv, adapter, num_tasks) for conv in convs)

    def forward(self, x_NCHW: Tensor, task: int) -> Tensor:
        """(N, C', H', W'), non-negative."""
        y_NCHW = x_NCHW
        for place, unit in enumerate(self.units):
            y_NCHW = unit(torch.relu(y_NCHW) if place else y_NCHW, task)
        if len(self.units) > 1:
            short_NCHW = nnf.adaptive_avg_pool2d(x_NCHW, y_NCHW.shape[2:])
            wider = y_NCHW.shape[1] - x_NCHW.shape[1]
            y_NCHW = y_NCHW + nnf.pad(short_NCHW, (0, 0, 0, 0, 0, wider))
        return torch.relu(y_NCHW)


class AdapterNet(nn.Module):
    """(N, C, H, W) -> (N, tasks * D): the tasks' outputs, concatenated.

    backbone: a torchvision ResNet of basic blocks, or the convnet; its convolutions are taken.
    """

    def __init__(
        self, backbone: nn.Module, adapter: Adapter, *, dim: int, num_tasks: int = 2
    ) -> None:
        super().__init__()
        self.stem, stages = _stages(backbone)
        self.shared = nn.ModuleList(Block(convs, adapter, 1) for convs in stages[0])
        own = [convs for stage in stages[1:] for convs in stage]
        self.blocks = nn.ModuleList(Block(convs, adapter, num_tasks) for convs in own)
        width = own[-1][-1].out_channels
        self.ends = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(num_tasks))
        self.outputs = nn.ModuleList(nn.Linear(width, dim) for _ in range(num_tasks))
        self.num_features = num_tasks * dim

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, tasks * D)."""
        return torch.cat(self.tasks(x_NCHW), dim=1)

    def tasks(self, x_NCHW: Tensor) -> list[Tensor]:
        """(N, D) of each task; what is shared runs once."""
        x_NCHW = self.stem(x_NCHW)
        for block in self.shared:
            x_NCHW = block(x_NCHW, 0)
        found = []
        for task, (end, output) in enumerate(zip(self.ends, self.outputs, strict=True)):
            y_NCHW = x_NCHW
            for block in self.blocks:
                y_NCHW = block(y_NCHW, task)
            found.append(output(torch.relu(end(y_NCHW)).mean(dim=(2, 3))))
        return found


class SplitNet(nn.Module):
    """The backbone as it is, then one linear output for all tasks, or one for each.

    widths: (D,) shared by both tasks, or one D per task.
    """

    def __init__(self, backbone: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.net = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.outputs = nn.ModuleList(nn.Linear(width, dim) for dim in widths)
        self.num_features = sum(widths)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, sum of the widths)."""
        h_NF = self.net(x_NCHW)
        return torch.cat([output(h_NF) for output in self.outputs], dim=1)

    def tasks(self, x_NCHW: Tensor) -> list[Tensor]:
        """Two tensors (N, D): one pass serves both tasks."""
        h_NF = self.net(x_NCHW)
        found = [output(h_NF) for output in self.outputs]
        return found if len(found) > 1 else found * 2


def _pointwise(inside: int, out: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(inside, out, 1, stride=stride, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _stages(backbone: nn.Module) -> tuple[nn.Module, list[list[list[nn.Conv2d]]]]:
    """The stem, and the convolutions of each block of each stage."""
    if isinstance(backbone, ConvNet):
        layers = list(backbone.layers)
        convs = [m for m in layers if isinstance(m, nn.Conv2d)]
        return nn.Sequential(*layers[:3]), [[[conv]] for conv in convs[1:]]
    found = [getattr(backbone, f"layer{k}", None) for k in (1, 2, 3, 4)]
    if None in found or hasattr(backbone.layer1[0], "conv3"):  # type: ignore[index]
        raise ValueError(
            "mtslvr: adapter: expected a torchvision ResNet of basic blocks (resnet18, resnet34) "
            f"or the convnet as backbone, received {type(backbone).__name__}"
        )
    stem = [getattr(backbone, name) for name in ("conv1", "bn1", "relu", "maxpool")]
    stages = [[[block.conv1, block.conv2] for block in stage] for stage in found]  # type: ignore[union-attr]
    return nn.Sequential(*stem), stages
