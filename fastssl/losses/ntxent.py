"""SimCLR's loss as a module (Chen et al. 2020, arXiv:2002.05709, eq. 1)."""

# shapes: N samples, D embedding, V views
from __future__ import annotations

from torch import Tensor, nn

from fastssl.kernels.ntxent.op import REDUCTIONS, ntxent


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy over all views of a batch.

    Each row's positives are the other views of its sample; its negatives are every other row.
    Embeddings are given raw: the L2 normalisation is part of the kernel, and no M x M matrix of
    logits is handed to autograd.

    Args:
        temperature: finite and non-zero. A float, or a one-element ``nn.Parameter`` to learn it.
        reduction: "mean" (over V * N rows), "sum" or "none".

    In a child forked after its parent computed with several threads it hangs, as torch does: use
    "spawn", or call ``torch.set_num_threads(1)`` first in the child.

    Example:
        >>> import torch
        >>> from fastssl.losses import NTXentLoss
        >>> z0, z1 = torch.randn(2, 256, 128, requires_grad=True)
        >>> loss = NTXentLoss(temperature=0.1)(z0, z1)
        >>> loss.backward()
    """

    def __init__(self, temperature: float | Tensor = 0.1, *, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"NTXentLoss: reduction must be one of {REDUCTIONS}; received {reduction!r}"
            )
        self.temperature = temperature
        self.reduction = reduction

    def forward(self, *views_ND: Tensor) -> Tensor:
        """Loss of two or more (N, D) views: () or, with reduction "none", (V * N,)."""
        return ntxent(views_ND, self.temperature, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
