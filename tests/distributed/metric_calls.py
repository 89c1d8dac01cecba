"""What ranks say beside the loss, what their queues hold, and their gradients in 16 bits."""

# shapes: N samples, V views, Q queues, D embedding
from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl import losses
from fastssl.losses import ContrastiveMetrics, KeyQueue, NTXentLoss, Options
from fastssl.losses.exchange import Group
from tests.distributed.models import ranks_of


def pairs(loss, q_ND, k_ND, ids_N):
    return loss.with_metrics(q_ND, k_ND)


def rows(loss, q_ND, k_ND, ids_N):
    return loss.with_metrics(torch.cat([q_ND, k_ND]), ids_N.repeat(2))


LOSSES = {
    "NTXent": (lambda group: NTXentLoss(0.3, group=group), pairs),
    "NTXent-views": (
        lambda group: NTXentLoss(0.3, group=group),
        lambda loss, q_ND, k_ND, ids_N: loss.with_metrics(q_ND, k_ND, q_ND + k_ND),
    ),
    "NTXent-options": (
        lambda group: NTXentLoss(0.3, options=Options(tau_plus=0.1), group=group),
        pairs,
    ),
    "InfoNCE": (lambda group: losses.InfoNCELoss(0.3, group=group), pairs),
    "CLIP": (lambda group: losses.CLIPLoss(group=group), pairs),
    "CISSL": (lambda group: losses.CISSLLoss(num_views=1, group=group), pairs),
    "DCL": (lambda group: losses.DCLLoss(0.3, group=group), pairs),
    "DCLW": (lambda group: losses.DCLWLoss(0.3, group=group), pairs),
    "SupCon-out": (lambda group: losses.SupConLoss(0.3, group=group), rows),
    "SupCon-in": (lambda group: losses.SupConLoss(0.3, form="in", group=group), rows),
    "MultiCrop": (
        lambda group: losses.MultiCropNTXentLoss(0.3, group=group),
        lambda loss, q_ND, k_ND, ids_N: loss.with_metrics(q_ND, k_ND, ids=[ids_N, ids_N]),
    ),
}


def own(x: Tensor) -> Tensor:
    """This rank's equal part."""
    return x.chunk(dist.get_world_size())[dist.get_rank()].clone()


def told(name: str, batch: tuple[Tensor, ...], group: Group | None = None) -> ContrastiveMetrics:
    """The metrics of one loss."""
    make, call = LOSSES[name]
    return call(make(group), *batch)[1]


def metrics_of_rank(exchange: str, batch: tuple[Tensor, ...]) -> dict[str, dict[str, Tensor]]:
    """The metrics of every loss, on this rank's rows among those of all ranks."""
    mine = tuple(map(own, batch))
    return {name: told(name, mine, ranks_of(exchange))._asdict() for name in LOSSES}


def queue_of_rank(exchange: str, batches: list[Tensor], counts: list[int]) -> dict[str, Tensor]:
    """Queues side by side after all ranks' keys (Q, N, D) of several steps, unequal parts."""
    queue = KeyQueue(10, 4, num_queues=3, dtype=torch.float32, group=ranks_of(exchange))
    for step, keys_QND in enumerate(batches):
        mine = keys_QND.split(counts, dim=1)[dist.get_rank()]
        if step % 2:
            queue.enqueue(mine[1], queue=1)
        else:
            queue.enqueue(mine)
    return dict(queue.state_dict())


def gradients_of(exchange: str, digits: str, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of this rank's 16-bit rows, and of the same rows in float64."""
    found = []
    for dtype in (getattr(torch, digits), torch.float64):
        mine = [own(view).to(dtype).requires_grad_() for view in views]
        # of the sum, so that float16 is not asked for subnormal numbers
        NTXentLoss(0.1, reduction="sum", group=ranks_of(exchange))(*mine).backward()
        found.append(torch.cat([view.grad for view in mine]).double())
    return tuple(found)
