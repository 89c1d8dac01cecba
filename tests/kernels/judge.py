"""The yardstick for values and gradients: twice torch's own error at the same dtype, plus rounding.

A yardstick can be too coarse to see anything, so it also says which gradients it could not tell
from ones that are a quarter off.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.ntxent.spec import ERROR_RATIO


def weights(loss: Tensor) -> Tensor:
    """An upstream gradient that differs from row to row."""
    weight = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype, device=loss.device)
    return weight.reshape(loss.shape)


def eager(
    views: list[Tensor], tau: float, reduction: str, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What torch makes of the formula with every step in ``dtype``; the truth in float64."""
    leaves = [view.detach().to(dtype).requires_grad_() for view in views]
    temperature = torch.tensor(tau, dtype=dtype, device=views[0].device, requires_grad=True)
    z_MD = torch.nn.functional.normalize(torch.cat(leaves))
    logits_MM = z_MD @ z_MD.T / temperature
    same_MM = torch.eye(len(z_MD), dtype=torch.bool, device=z_MD.device)
    positive_MM = torch.eye(len(views[0]), dtype=torch.bool, device=z_MD.device)
    positive_MM = positive_MM.repeat(len(views), len(views))
    positive_M = logits_MM.masked_fill(same_MM | ~positive_MM, 0).sum(1) / (len(views) - 1)
    loss = logits_MM.masked_fill(same_MM, -torch.inf).logsumexp(1) - positive_M
    loss = loss.mean() if reduction == "mean" else loss
    *grads, dtau = torch.autograd.grad(loss, [*leaves, temperature], weights(loss))
    return loss.detach(), torch.cat(grads), dtau


class Judge:
    """Errors of loss, stacked gradient and temperature gradient against float64."""

    def __init__(self, views: list[Tensor], tau: float, reduction: str) -> None:
        dtype = views[0].dtype
        self.exact = eager(views, tau, reduction, torch.float64)
        self.own = eager(views, tau, reduction, dtype)
        norm_M1 = torch.cat(views).double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.scales = (1.0, norm_M1, 1.0)  # dh as a tangent of unit rows
        self.saturated = dtype == torch.float16  # a zero row's 1e12 does not fit
        inner = torch.float64 if dtype == torch.float64 else torch.float32
        eps, inverse = torch.finfo(inner).eps, 1.0 / abs(tau)
        rows = len(norm_M1)
        weight = 1.5 / rows if reduction == "mean" else 1.5
        logit = 16 * eps * (1 + inverse)  # absolute error of a logit, relative error of exp
        stored = torch.finfo(dtype).eps
        self.relative = (logit, logit + stored, logit + stored)
        # where p = 1 the gradient is the difference of two equal terms
        floor = eps * (1 + inverse) * inverse * weight
        self.absolute = (logit, floor, floor * inverse * rows)

    def __call__(self, *found: Tensor) -> str:
        """What is wrong with (loss, dz, dtau); empty if nothing is."""
        rows = zip(
            ("loss", "dz", "dtau"), found, self.exact, self.own, self.scales, self.relative,
            self.absolute, strict=True,
        )  # fmt: skip
        for name, *tensors, scale, relative, absolute in rows:
            ours, exact, own = (tensor.double() for tensor in tensors)
            if self.saturated:
                ours, exact, own = (x.clamp(-6e4, 6e4) for x in (ours, exact, own))
            error = ((ours - exact) * scale).abs().max().item()
            owned = ((own - exact) * scale).abs().max().nan_to_num(0.0).item()
            size = (exact * scale).abs().max().item()
            limit = ERROR_RATIO * owned + relative * size + absolute
            if not error <= limit:
                return f"{name}: error {error:.3g}, limit {limit:.3g}, size {size:.3g}"
        return ""

    def blind(self, loss: Tensor, dz_MD: Tensor, dtau: Tensor) -> str:
        """The gradients that could be a quarter off unnoticed."""
        unseen = [] if self(loss, dz_MD * 0.75, dtau) else ["dz"]
        unseen += [] if self(loss, dz_MD, dtau * 0.75) else ["dtau"]
        return " ".join(unseen)
