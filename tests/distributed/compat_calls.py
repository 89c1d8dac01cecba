"""What a rank computes with another library's loss and with its replacement, on the same rows."""

# shapes: N rows of this rank, D features
from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as with_grad
import torch.nn.functional as F
from torch import Tensor

from fastssl.compat import lightly as our_lightly
from fastssl.compat import open_clip as our_open_clip
from fastssl.compat.solo import simclr_loss_func


def own(x: Tensor) -> Tensor:
    """This rank's equal part, with a gradient."""
    return x.chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()


def value_and_grads(loss, inputs: list[Tensor]) -> list[Tensor]:
    """On this rank."""
    with warnings.catch_warnings():
        # the originals gather by a function that torch has given another name since
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*all_gather")
        value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs, materialize_grads=True)]


def lightly_pair(name: str, options: dict, views: list[Tensor]) -> tuple[list, list]:
    """lightly's loss with ``gather_distributed=True``, and ours."""
    import lightly.loss

    inputs = [own(view) for view in views]
    return tuple(
        value_and_grads(getattr(room, name)(gather_distributed=True, **options), inputs)
        for room in (our_lightly, lightly.loss)
    )


def lightly_banks(steps: list[list[Tensor]]) -> tuple[list, list]:
    """Losses and gradients of several steps with a memory bank, and the bank after them."""
    import lightly.loss

    found = []
    for room in (our_lightly, lightly.loss):
        torch.manual_seed(0)
        loss = room.NTXentLoss(0.2, memory_bank_size=(11, 4), gather_distributed=True)
        results = []
        for views in steps:
            results += value_and_grads(loss, [own(view) for view in views])
        found.append([*results, loss.memory_bank.bank, loss.memory_bank.bank_ptr])
    return tuple(found)


def clip_pair(switches: dict, image: Tensor, text: Tensor, scale: Tensor) -> tuple[list, list]:
    """open_clip's ClipLoss over the ranks, and ours."""
    import open_clip.loss

    inputs = [own(image), own(text), scale.clone().requires_grad_()]
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    return tuple(
        value_and_grads(room.ClipLoss(**switches, **ranks), inputs)
        for room in (our_open_clip, open_clip.loss)
    )


def solo_pair(z: Tensor, ids: Tensor, temperature: float) -> tuple[list, list]:
    """solo-learn's function gathers rows with gradient and computes the whole loss everywhere."""
    mine, own_ids = own(z), ids.chunk(dist.get_world_size())[dist.get_rank()].clone()

    def formula(z_ND):
        unit = torch.cat(with_grad.all_gather(F.normalize(z_ND, dim=1)))
        same = ids[:, None] == ids
        others = ~torch.eye(len(ids), dtype=torch.bool)
        weight = (unit @ unit.T / temperature).exp()
        positive, negative = (
            weight.where(same & others, 0.0).sum(1),
            weight.where(~same, 0.0).sum(1),
        )
        return -(positive / (positive + negative)).log().mean()

    ours = value_and_grads(lambda z_ND: simclr_loss_func(z_ND, own_ids, temperature), [mine])
    return ours, value_and_grads(formula, [mine])


def wrong_worlds() -> list[str]:
    """The messages of calls that do not fit these ranks."""
    z, said = torch.randn(2, 4, 3), []
    calls = [
        lambda: our_open_clip.ClipLoss(rank=0, world_size=7)(*z, 1.0),
        lambda: our_open_clip.ClipLoss(rank=0, world_size=2, use_horovod=True),
    ]
    for call in calls:
        try:
            call()
        except ValueError as error:
            said.append(str(error))
    return said
