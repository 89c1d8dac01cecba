"""Batch normalisation with the statistics of all ranks, on any device.

torch's SyncBatchNorm refuses the CPU. This one sums with the differentiable sum of the losses: mean
first, then centred squares, so that nothing cancels. Ioffe and Szegedy 2015, algorithm 1, over the
rows of all ranks.
"""

# shapes: N batch, C channels, ... any further dimensions
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastssl.losses.distributed import sum_over_ranks
from fastssl.nn.split_norm import SplitBatchNorm2d


class RankBatchNorm(_BatchNorm):
    """A BatchNorm over the rows of ``group``; evaluation is the ordinary one's."""

    group: Any = None

    def forward(self, x_NC: Tensor) -> Tensor:
        """(N, C, ...) to the same shape and dtype."""
        if not (self.training or self.running_mean is None):
            statistics = (self.running_mean, self.running_var)
            return F.batch_norm(x_NC, *statistics, self.weight, self.bias, eps=self.eps)
        x = x_NC if x_NC.dtype == torch.float64 else x_NC.float()
        dims = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        total_C1 = torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])])
        *_, count = total_C1 = sum_over_ranks(total_C1, group=self.group)
        mean_C = total_C1[:-1] / count
        centred = x - mean_C.view(shape)
        var_C = sum_over_ranks(centred.square().sum(dims), group=self.group) / count
        self._follow(mean_C.detach(), var_C.detach() * (count / (count - 1)).detach())
        factor_C = (var_C + self.eps).rsqrt()
        factor_C = factor_C if self.weight is None else factor_C * self.weight
        out = centred * factor_C.view(shape)
        return (out if self.bias is None else out + self.bias.view(shape)).to(x_NC.dtype)

    def _follow(self, mean_C: Tensor, unbiased_C: Tensor) -> None:
        """Running statistics as torch's BatchNorm keeps them."""
        if self.running_mean is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        by = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), by)
        assert self.running_var is not None
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), by)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""


def over_ranks(module: nn.Module, group: Any) -> None:
    """Turn every BatchNorm inside ``module`` into one over ``group``; the tensors stay the same.

    One that normalises parts of a batch apart keeps them: over all ranks it would be undone.
    """
    for name, child in module.named_children():
        if isinstance(child, SplitBatchNorm2d) and child.num_splits > 1:
            continue
        if isinstance(child, _BatchNorm) and not isinstance(child, RankBatchNorm):
            setattr(module, name, _over(child, group))
        else:
            over_ranks(child, group)


def _over(norm: _BatchNorm, group: Any) -> RankBatchNorm:
    new = RankBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    new.weight, new.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(new, name, buffer)
    new.train(norm.training)
    new.group = group
    return new
