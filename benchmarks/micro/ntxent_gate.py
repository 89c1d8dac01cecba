"""Is it right? NT-Xent and its gradients against float64, before anything is timed.

The float64 truth goes through the M x M matrix in blocks of rows, so that it exists at every size:
loss and temperature gradient in full, dL/dh for a sample of rows. A test compares it with
``fastssl.kernels.ntxent.reference``.
"""

# shapes: N samples, M = 2N rows, D embedding, B rows of a block
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.peers import Loss
from fastssl.kernels.ntxent.spec import Sample

TEMPERATURE = 0.1
# Largest error allowed, as a fraction of the largest entry: two roundings of the format in which a
# low-precision gradient is returned, sixteen in fp32; the loss is a mean of fp32 values always.
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
LOSS_TOLERANCE = 2e-6
PEER_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Truth:
    """float64 values for two views with V * N = M rows; the gradient of `rows` alone."""

    loss: Tensor
    dtemperature: Tensor
    rows: Tensor
    dh: Tensor


def truth(h_MD: Tensor, temperature: float, *, num_rows: int = 128, block: int = 0) -> Truth:
    """The equation of kernels/ntxent/reference.py in float64, `block` rows at a time.

    |s| <= 1, so exp((s - 1) / temperature) neither overflows nor vanishes at the one temperature
    that is measured. Unless given, a block is as many rows as stay in a 16 MB cache.
    """
    h_MD = h_MD.double()
    norm_M1 = h_MD.norm(dim=1, keepdim=True).clamp_min(1e-12)
    z_MD = h_MD / norm_M1
    total = z_MD.shape[0]
    positive_M = (z_MD * z_MD.roll(total // 2, dims=0)).sum(dim=1)
    lse_M, expected_M = torch.empty(total).double(), torch.empty(total).double()
    for ids_B in torch.arange(total).split(block or max(1, 2**20 // total)):
        sim_BM = z_MD[ids_B] @ z_MD.T
        e_BM = sim_BM.sub(1).div_(temperature).exp_()
        e_BM[torch.arange(len(ids_B)), ids_B] = 0
        sum_B = e_BM.sum(dim=1)
        lse_M[ids_B] = sum_B.log() + 1 / temperature
        expected_M[ids_B] = e_BM.mul_(sim_BM).sum(dim=1) / sum_B
    rows = torch.linspace(0, total - 1, min(num_rows, total)).long()
    logits = z_MD[rows] @ z_MD.T / temperature
    logits[torch.arange(len(rows)), rows] = -torch.inf
    weight = (logits - lse_M[rows, None]).exp() + (logits - lse_M).exp()
    dz = (weight @ z_MD - 2 * z_MD.roll(total // 2, dims=0)[rows]) / (total * temperature)
    dh = (dz - z_MD[rows] * (z_MD[rows] * dz).sum(dim=1, keepdim=True)) / norm_M1[rows]
    loss = (lse_M - positive_M / temperature).mean()
    return Truth(loss, (positive_M - expected_M).mean() / temperature**2, rows, dh)


def inputs(
    num_rows: int, embedding: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Two views of M / 2 samples, both asking for a gradient."""
    sample = Sample("bench", num_rows // 2, embedding, temperature=TEMPERATURE)
    z0_ND, z1_ND = sample.views(dtype, device)
    return z0_ND.detach().requires_grad_(), z1_ND.detach().requires_grad_()


def gate(
    ours: Callable[[Tensor, Tensor, Tensor], Tensor],
    peers: dict[str, Loss],
    shape: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[str]:
    """What is wrong with ours(z0_ND, z1_ND, temperature) at one shape (M, D); empty when right."""
    z0_ND, z1_ND = inputs(*shape, dtype=dtype, device=device)
    tau = torch.tensor(TEMPERATURE, device=device, requires_grad=True)
    loss = ours(z0_ND, z1_ND, tau)
    dz0_ND, dz1_ND, dtau = torch.autograd.grad(loss, (z0_ND, z1_ND, tau))
    exact = truth(torch.cat([z0_ND, z1_ND]).detach().cpu(), TEMPERATURE)
    dh = torch.cat([dz0_ND, dz1_ND]).cpu()[exact.rows]
    compared = {
        "loss": (loss.cpu(), exact.loss, LOSS_TOLERANCE),
        "gradient": (dh, exact.dh, GRADIENT_TOLERANCE[dtype]),
        "temperature gradient": (dtau.cpu(), exact.dtemperature, GRADIENT_TOLERANCE[torch.float32]),
    }
    with torch.no_grad():
        for name, peer in peers.items():
            compared[f"value of {name}"] = (peer(z0_ND, z1_ND).cpu(), loss.cpu(), PEER_TOLERANCE)
    return [
        f"{what}: error {_error(found, wanted):.1e} of the largest entry, allowed {allowed:.0e}"
        for what, (found, wanted, allowed) in compared.items()
        if not _error(found.detach(), wanted) <= allowed
    ]


def _error(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute error over the largest entry; NaN where either is not finite."""
    difference = (found.double() - wanted.double()).abs().max()
    return (difference / wanted.double().abs().max().clamp_min(1e-300)).item()
