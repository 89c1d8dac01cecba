"""What a rank computes with SigLIP's loss, ours and open_clip's, on its rows."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl.compat import open_clip as ours
from fastssl.losses.exchange import Ring
from fastssl.losses.sigmoid_ranks import sigmoid_over_ranks

GROUPS = {"gather": lambda world: world, "ring": Ring}


def own(x: Tensor, counts: list[int]) -> Tensor:
    """This rank's rows."""
    return x.split(counts)[dist.get_rank()].clone()


def weighted(exchange: str, inputs: dict[str, Tensor], g: Tensor, counts: list[int], learnt: str):
    """Losses of the local queries and the gradients of their weighted sum."""
    mine = {k: own(x, counts) if x.dim() else x.clone() for k, x in inputs.items()}
    for name in learnt.split():
        mine[name].requires_grad_()
    loss_N = sigmoid_over_ranks(*mine.values(), group=GROUPS[exchange](dist.group.WORLD))
    (loss_N * own(g, counts)).sum().backward()
    return loss_N.detach(), {name: mine[name].grad for name in learnt.split()}


def pair(dist_impl: str, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor):
    """Value and gradients of open_clip's loss and of its replacement."""
    from open_clip import loss as theirs

    counts = [len(image) // dist.get_world_size()] * dist.get_world_size()
    settings = dict(rank=dist.get_rank(), world_size=len(counts), dist_impl=dist_impl)
    found = []
    for room in (ours, theirs):
        inputs = [own(image, counts), own(text, counts), scale.clone(), bias.clone()]
        inputs = [x.requires_grad_() for x in inputs]
        with warnings.catch_warnings():
            # the original exchanges by functions that torch has given other names since
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*deprecated")
            value = room.SigLipLoss(**settings)(*inputs)
            found.append([value.detach(), *torch.autograd.grad(value, inputs)])
    return found


def refusal(call: str) -> str:
    """The message of the ValueError or RuntimeError that a wrong call gets."""
    world, z = dist.group.WORLD, torch.randn(4, 3, requires_grad=True)

    def twice() -> None:
        loss_N = sigmoid_over_ranks(z, z, 1.0, 0.0, group=world)
        (first,) = torch.autograd.grad(loss_N.square().sum(), z, create_graph=True)
        first.sum().backward()

    calls = {
        "sizes": lambda: sigmoid_over_ranks(z, z[:2], 1.0, 0.0, group=world),
        "no group": lambda: sigmoid_over_ranks(z, z, 1.0, 0.0, group="world"),
        "bias": lambda: sigmoid_over_ranks(z, z, 1.0, "0", group=world),
        "twice": twice,
        "rank": lambda: ours.SigLipLoss(rank=5, world_size=2)(z, z, 1.0, 0.0),
    }
    try:
        calls[call]()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""
