"""Batch normalisation over parts of a batch: what shuffled BN does over devices, on one of them.

With statistics of the whole batch a key can tell a query which batch it came from (He et al. 2020,
arXiv:1911.05722, section 3.3). Normalising S parts apart takes that away without a shuffle over
devices; running statistics are means over the parts.
"""

# shapes: N batch, C channels, S parts
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SplitBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose training statistics are those of S equal parts of the batch."""

    def __init__(self, num_features: int, num_splits: int, *, eps: float, momentum: float) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
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
        repeated = [
            None if t is None else t.repeat(self.num_splits)
            for t in (self.running_mean, self.running_var, self.weight, self.bias)
        ]
        mean, var, weight, bias = repeated
        parts = x_NCHW.contiguous().view(n // self.num_splits, c * self.num_splits, h, w)
        out = F.batch_norm(parts, mean, var, weight, bias, True, self.momentum or 0.1, self.eps)
        for running, moved in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None and moved is not None:
                running.copy_(moved.view(self.num_splits, c).mean(0))
        return out.view(n, c, h, w)


def split_batch_norm(module: nn.Module, num_splits: int) -> nn.Module:
    """Replaces every BatchNorm2d inside by one of ``num_splits`` parts, in place; same state keys.

    Raises ValueError for fewer than one part.
    """
    if num_splits < 1:
        raise ValueError(f"bn_splits: expected at least 1, received {num_splits}")
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            split = SplitBatchNorm2d(
                child.num_features, num_splits, eps=child.eps, momentum=child.momentum or 0.1
            )
            split.load_state_dict(child.state_dict())
            split.train(child.training)
            for p, q in zip(split.parameters(), child.parameters(), strict=True):
                p.requires_grad_(q.requires_grad)
            setattr(module, name, split)
        else:
            split_batch_norm(child, num_splits)
    return module
