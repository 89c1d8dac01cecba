"""What single ranks do in the tests of the layer: calls that a training does not make."""

from __future__ import annotations

from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl.kernels.contrast.checks import Pairs
from fastssl.losses import CachedStep, NTXentLoss, Ring
from fastssl.losses import distributed as layer
from fastssl.losses import exchange as exchange_module
from fastssl.losses.ntxent import gathered_ntxent
from tests.distributed.models import ranks_of


def own(x: Tensor, counts: list[int]) -> Tensor:
    """This rank's rows."""
    return x.split(counts)[dist.get_rank()].clone()


def weighted_ntxent(views: list[Tensor], counts: list[int], reduction: str, weight_VN: Tensor):
    """Loss of this rank's rows and the gradient of its weighted sum."""
    mine = [own(view, counts).requires_grad_() for view in views]
    loss = gathered_ntxent(mine, 0.3, reduction=reduction, group=dist.group.WORLD)
    weight_M = own(weight_VN.T, counts).T.flatten()
    (loss * weight_M if reduction == "none" else loss).sum().backward()
    return loss.detach(), [view.grad for view in mine]


def two_towers(exchange, q, k, scale, counts, labels, g, h, learnt):
    """Denominators of this rank and the gradients of sum(g rows) + sum(h cols)."""
    inputs = {"q": own(q, counts[0]), "k": own(k, counts[1]), "scale": scale.clone()}
    for name in learnt:
        inputs[name].requires_grad_()
    labels = (own(labels[0], counts[0]), own(labels[1], counts[1]))
    found = layer.denominators_over_ranks(
        *inputs.values(), group=ranks_of(exchange), pairs=Pairs("different", labels=labels),
        columns=h is not None,
    )  # fmt: skip
    loss = (found.rows * own(g, counts[0])).sum()
    if h is not None:
        loss = loss + (found.cols * own(h, counts[1])).sum()
    loss.backward()
    return tuple(found), {name: inputs[name].grad for name in learnt}


def one_tower(exchange, keep, z, scale, counts, labels, g):
    """The same for rows against all rows."""
    mine, scale = own(z, counts).requires_grad_(), scale.clone().requires_grad_()
    found = layer.symmetric_over_ranks(
        mine, scale, group=ranks_of(exchange), keep=keep, labels=own(labels, counts)
    )
    kept = found.rows > -torch.inf
    (found.rows[kept] * own(g, counts)[kept]).sum().backward()
    return tuple(found), mine.grad, scale.grad


def traffic(exchange: str) -> tuple[list[int], list[int]]:
    """Numbers sent per collective or message in the forward and in the backward."""
    sent: list[int] = []
    gather, hop = exchange_module._all_gather, dist.P2POp

    def counted_gather(x, group):
        sent.append(x.numel())
        return gather(x, group)

    def counted_hop(op, x, peer, **kwargs):
        sent.extend([x.numel()] if op is dist.isend else [])
        return hop(op, x, peer, **kwargs)

    with (
        mock.patch.object(exchange_module, "_all_gather", counted_gather),
        mock.patch.object(dist, "P2POp", counted_hop),
    ):
        z = torch.randn(32, 16, requires_grad=True)
        rows = layer.symmetric_over_ranks(z, 2.0, group=ranks_of(exchange)).rows
        forward = list(sent)
        sent.clear()
        rows.sum().backward()
    return forward, sent


def sums(x_WC: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over ranks and the gradient of the ranks' own functions of it."""
    rank = dist.get_rank()
    mine = x_WC[rank].clone().requires_grad_()
    total = layer.sum_over_ranks(mine, group=dist.group.WORLD)
    (total.square() * (rank + 1)).sum().backward()
    return total.detach(), mine.grad


def in_a_backwards_pair(z: Tensor) -> Tensor:
    """Four ranks form two groups; group ranks are not global ranks."""
    groups = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    rank = dist.get_rank()
    mine = z.chunk(4)[rank].clone()
    return layer.symmetric_over_ranks(mine, 2.0, group=Ring(groups[rank % 2])).rows


def refusal(call: str) -> str:
    """The message of the ValueError or RuntimeError that a wrong call gets."""
    world, rank = dist.group.WORLD, dist.get_rank()
    z = torch.randn(4, 3, requires_grad=True)
    calls = {
        "width": lambda: layer.symmetric_over_ranks(torch.ones(4, 3 + rank), 1.0, group=world),
        "empty": lambda: layer.gather_rows(torch.ones(2 * rank, 3), group=world),
        "no group": lambda: layer.symmetric_over_ranks(z, 1.0, group="world"),
        "stranger": lambda: layer.sum_over_ranks(z, group=dist.new_group([0])),
        "twice": lambda: second_derivative(layer.symmetric_over_ranks(z, 1.0, group=world).rows, z),
        "labels": lambda: layer.symmetric_over_ranks(z, 1.0, group=world, keep="same"),
        "temperature": lambda: NTXentLoss(0.0, group=world)(z, z),
        "one view": lambda: NTXentLoss(group=world)(z),
        "shapes": lambda: NTXentLoss(group=world)(z, z[:2]),
    }
    try:
        calls[call]()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def second_derivative(rows: Tensor, z: Tensor) -> None:
    (first,) = torch.autograd.grad(rows.square().sum(), z, create_graph=True)
    first.sum().backward()


def cached_steps(x_VNI: Tensor, counts: list[int], micro_batch: int) -> dict[str, Tensor]:
    """Weights after three cached steps of a DDP encoder over a group's loss."""
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(small_encoder())
    step = CachedStep(model, NTXentLoss(0.3, group=dist.group.WORLD), micro_batch=micro_batch)
    train_small(model, lambda: step(*(own(x, counts) for x in x_VNI)))
    return {name: w.detach() for name, w in model.module.named_parameters()}


def small_encoder() -> torch.nn.Module:
    torch.manual_seed(4)
    nn = torch.nn
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def train_small(model: torch.nn.Module, backward) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        backward()
        optimizer.step()
