"""Derivatives of networks by two vector-Jacobian products: forward mode without forward mode.

torch differentiates its own batch normalisation twice, not three times, and its forward mode takes
the batch's statistics for constants in reverse; here it is written out.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class ByHand(nn.Module):
    """Batch normalisation of which torch has all derivatives: of its own only the second."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scale = (centred.square().mean((0, 2, 3), keepdim=True) + self.eps).rsqrt()
        return centred * scale * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def by_hand(net):
    """A twin on the same parameters."""
    twin = copy.copy(net)
    twin._modules = dict(net._modules)
    plain = [ByHand(x) if isinstance(x, nn.BatchNorm2d) else x for x in net.layers]
    twin.layers = nn.Sequential(*(nn.ReLU() if isinstance(x, nn.ReLU) else x for x in plain))
    return twin


def twice(f, x, dx):
    """Value and derivative along dx by two vector-Jacobian products."""
    x = x.detach().requires_grad_()
    y = f(x)
    v = torch.zeros_like(y, requires_grad=True)
    (product,) = torch.autograd.grad(y, x, v, create_graph=True)
    return y, torch.autograd.grad(product, v, dx, create_graph=True)[0]
