"""Batch normalisation over parts of a batch: what shuffled BN does over devices, on one of them.

With statistics of the whole batch a key can tell a query which batch it came from (He et al. 2020,
arXiv:1911.05722, section 3.3). Normalising S parts apart takes that away without a shuffle over
devices; running statistics follow the means over the parts.
"""

# shapes: N batch, C channels, S parts
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of S equal parts of the batch.

    In evaluation, and with one part, it is the ordinary one; its other settings mean the same.
    """

    def __init__(
        self,
        num_features: int,
        num_splits: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.num_splits = num_splits

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Raises ValueError in training when the parts would be unequal."""
        if not self.training or self.num_splits == 1:
            return super().forward(x_NCHW)
        n, c, h, w = x_NCHW.shape
        if n % self.num_splits:
            raise ValueError(
                f"bn_splits: a batch of {n} does not fall into {self.num_splits} equal parts"
            )
        mean, var = (
            None if t is None else torch.zeros_like(t).repeat(self.num_splits)
            for t in (self.running_mean, self.running_var)
        )
        weight, bias = (
            None if t is None else t.repeat(self.num_splits) for t in (self.weight, self.bias)
        )
        parts = x_NCHW.contiguous().view(n // self.num_splits, c * self.num_splits, h, w)
        # momentum 1: the statistics of this batch alone
        out = F.batch_norm(parts, mean, var, weight, bias, True, 1.0, self.eps).view(n, c, h, w)
        if mean is not None and var is not None:
            self._follow(*(t.view(self.num_splits, c).mean(0) for t in (mean, var)))
        if x_NCHW.is_contiguous():
            return out
        return out.contiguous(memory_format=_format_of(x_NCHW))

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, var_C: Tensor) -> None:
        """Running statistics as torch's BatchNorm keeps them."""
        running = (self.running_mean, self.running_var, self.num_batches_tracked)
        mean, var, count = running
        assert mean is not None and var is not None and count is not None
        count.add_(1)
        for kept, now in ((mean, mean_C), (var, var_C)):
            by = 1 / count.to(kept.dtype) if self.momentum is None else self.momentum
            kept.add_((now - kept) * by)


def split_batch_norm(module: nn.Module, num_splits: int) -> nn.Module:
    """Replaces every BatchNorm2d inside by one of ``num_splits`` parts, in place; same state keys.

    Returns the module; where it is a BatchNorm2d itself, the one that replaces it. Raises
    ValueError for fewer than one part.
    """
    if num_splits < 1:
        raise ValueError(f"bn_splits: expected at least 1, received {num_splits}")
    if type(module) is nn.BatchNorm2d:
        return _split(module, num_splits)
    for name, child in module.named_children():
        setattr(module, name, split_batch_norm(child, num_splits))
    return module


def _split(norm: nn.BatchNorm2d, num_splits: int) -> SplitBatchNorm2d:
    split = SplitBatchNorm2d(
        norm.num_features,
        num_splits,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    split.weight, split.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(split, name, buffer)
    return split.train(norm.training)


def _format_of(x_NCHW: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if x_NCHW.is_contiguous(memory_format=last) else torch.contiguous_format
