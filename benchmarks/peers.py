"""The other ways to compute NT-Xent, each as loss(z0_ND, z1_ND) -> scalar."""

# shapes: N samples, M = 2N rows, D embedding
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def lightly_ntxent(temperature: float) -> Loss:
    """lightly's NTXentLoss, as its users call it."""
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature=temperature)


def naive_ntxent(temperature: float) -> Loss:
    """The few lines most code bases have: normalise, z z^T, mask the diagonal, cross-entropy."""

    def loss(z0_ND: Tensor, z1_ND: Tensor) -> Tensor:
        z_MD = F.normalize(torch.cat([z0_ND, z1_ND]), dim=1)
        logits_MM = z_MD @ z_MD.T / temperature
        logits_MM.fill_diagonal_(-torch.inf)
        num_samples = z0_ND.shape[0]
        rows_M = torch.arange(2 * num_samples, device=z_MD.device)
        return F.cross_entropy(logits_MM, (rows_M + num_samples) % (2 * num_samples))

    return loss


def ntxent_peers(temperature: float) -> dict[str, Loss]:
    """Every eager peer by name."""
    return {"lightly": lightly_ntxent(temperature), "naive": naive_ntxent(temperature)}


def compiled(losses: dict[str, Loss]) -> dict[str, Loss]:
    """The same under torch.compile with static shapes, which is where it is fastest."""
    return {f"{name}+compile": torch.compile(loss, dynamic=False) for name, loss in losses.items()}
