"""One small model per loss, for one process with the whole batch and for ranks with its parts."""

# shapes: N samples, I inputs, D embedding
from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastssl import losses
from fastssl.losses import Options, Ring
from fastssl.losses.exchange import Group

IN, OUT, CLASSES = 7, 6, 4


def learnt() -> nn.Parameter:
    """A temperature."""
    return nn.Parameter(torch.tensor(0.3))


def stacked(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss(torch.cat([q_ND, k_ND]), label_N.repeat(2))


def paired(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss(q_ND, k_ND)


def with_ids(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss(q_ND, k_ND, sample_ids=label_N)


def two_heads(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss([q_ND, q_ND.flip(1)], [k_ND, k_ND.flip(1) + q_ND])


def crops(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    """The second crop of one class is missing."""
    kept_N = label_N != 1
    return loss(q_ND, k_ND[kept_N], ids=[label_N, label_N[kept_N]])


def scores(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss([0.1 * q_ND, 0.1 * k_ND])


def with_views(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    return loss(torch.stack([q_ND, k_ND], dim=1))


def with_hard(loss: nn.Module, q_ND: Tensor, k_ND: Tensor, label_N: Tensor) -> Tensor:
    """Keys in another order than queries, and two negatives of each query alone."""
    index_N = torch.arange(len(q_ND)).flip(0)
    hard_NHD = torch.stack([k_ND.roll(1, 1), k_ND.flip(1)], dim=1)
    return loss(q_ND, k_ND.flip(0), positives=index_N, hard_negatives=hard_NHD)


Make, Call = Callable[..., nn.Module], Callable[..., Tensor]
CASES: dict[str, tuple[Make, Call]] = {
    "NTXent": (lambda group: losses.NTXentLoss(learnt(), group=group), paired),
    "InfoNCE": (lambda group: losses.InfoNCELoss(learnt(), group=group), paired),
    "InfoNCE-ids": (
        lambda group: losses.InfoNCELoss(
            learnt(), symmetric=True, options=Options(tau_plus=0.1, beta=0.5), group=group
        ),
        with_ids,
    ),
    "InfoNCE-hard": (
        lambda group: losses.InfoNCELoss(learnt(), options=Options(smoothing=0.1), group=group),
        with_hard,
    ),
    "MoCo": (lambda group: losses.MoCoLoss(learnt(), group=group), paired),
    "CLIP": (lambda group: losses.CLIPLoss(3.0, group=group), paired),
    "CLIP-options": (
        lambda group: losses.CLIPLoss(3.0, options=Options(margin=0.1, smoothing=0.1), group=group),
        paired,
    ),
    "SigLIP": (lambda group: losses.SigLIPLoss(3.0, -1.0, group=group), paired),
    "SupCon": (lambda group: losses.SupConLoss(learnt(), group=group), stacked),
    "SupCon-in": (lambda group: losses.SupConLoss(learnt(), form="in", group=group), stacked),
    "SupCon-views": (lambda group: losses.SupConLoss(learnt(), group=group), with_views),
    "NTXent-ids": (
        lambda group: losses.NTXentLoss(learnt(), options=Options(tau_plus=0.1), group=group),
        with_ids,
    ),
    "CISSL": (lambda group: losses.CISSLLoss(learnt(), num_views=1, group=group), paired),
    "DCL": (lambda group: losses.DCLLoss(learnt(), group=group), paired),
    "DCLW": (lambda group: losses.DCLWLoss(learnt(), group=group), paired),
    "MultiCrop": (lambda group: losses.MultiCropNTXentLoss(learnt(), group=group), paired),
    "MultiCrop-ids": (lambda group: losses.MultiCropNTXentLoss(learnt(), group=group), crops),
    "SwAV": (lambda group: losses.SwAVLoss(group=group), scores),
    "DINO": (lambda group: losses.DINOLoss(OUT, group=group), two_heads),
    "DISSL": (lambda group: losses.DISSLLoss(group=group), two_heads),
}
PAPERS = ("NTXent", "InfoNCE", "MoCo", "CLIP", "SupCon", "DISSL")


class Model(nn.Module):
    """Encoder, a head on one of two views, and the loss with what it learns."""

    def __init__(self, name: str, group: Group | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(nn.Linear(IN, 9), nn.Tanh(), nn.Linear(9, OUT))
        self.head = nn.Linear(OUT, OUT)
        make, self.call = CASES[name]
        self.loss = make(group)
        if isinstance(self.loss, losses.MoCoLoss):
            self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
            self.queue = losses.KeyQueue(32, OUT, dtype=torch.float64, group=group)
        self.double()

    def forward(self, x0_NI: Tensor, x1_NI: Tensor, label_N: Tensor) -> Tensor:
        q_ND = self.head(self.encoder(x0_NI))
        if not isinstance(self.loss, losses.MoCoLoss):
            return self.call(self.loss, q_ND, self.encoder(x1_NI), label_N)
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
            k_ND = self.slow(x1_NI)
        loss = self.loss(q_ND, k_ND, self.queue)
        self.queue.enqueue(k_ND)
        return loss


def batches(num_steps: int, num_samples: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views and class labels of every step, the same on every rank."""
    generator = torch.Generator().manual_seed(11)
    draw = partial(torch.randn, num_samples, IN, generator=generator, dtype=torch.float64)
    drawn = []
    for _ in range(num_steps):
        x_NI = draw()
        drawn.append((x_NI, x_NI + 0.3 * draw(), torch.arange(num_samples) % CLASSES))
    return drawn


def train(model: nn.Module, shares: list[tuple[Tensor, ...]]) -> dict:
    """Steps of SGD: every loss, the gradients of step one, the weights at the end."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    values, gradients = [], {}
    for share in shares:
        optimizer.zero_grad()
        loss = model(*share)
        loss.backward()
        optimizer.step()
        values.append(loss.detach())
        gradients = gradients or {
            name.removeprefix("module."): p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
    weights = {n.removeprefix("module."): w.clone() for n, w in model.state_dict().items()}
    return {"losses": torch.stack(values), "gradients": gradients, "weights": weights}


def ranks_of(exchange: str) -> Group:
    """All ranks of the world, by the name of how their rows travel."""
    world = dist.group.WORLD
    return {"gather": world, "ring": Ring(world)}[exchange]


def own_rows(counts: list[int]) -> slice:
    """This rank's rows of a batch."""
    first = sum(counts[: dist.get_rank()])
    return slice(first, first + counts[dist.get_rank()])


def train_as_rank(
    names: list[str], counts: list[int], num_steps: int, exchange: str
) -> dict[str, dict]:
    """The same with DDP on this rank's rows of every batch, for one loss after another."""
    mine = own_rows(counts)
    shares = [tuple(x[mine] for x in batch) for batch in batches(num_steps, sum(counts))]
    wrapped = nn.parallel.DistributedDataParallel
    return {name: train(wrapped(Model(name, ranks_of(exchange))), shares) for name in names}


def largest_tensors(names: list[str], counts: list[int], exchange: str) -> dict[str, int]:
    """Numbers in the largest tensor that a step on this rank's rows makes, per loss."""
    share = tuple(x[own_rows(counts)] for x in batches(1, sum(counts))[0])
    sizes = {}
    for name in names:
        model, largest = Model(name, ranks_of(exchange)), Largest()
        with largest:
            model(*share).backward()
        sizes[name] = largest.numbers
    return sizes


class Largest(TorchDispatchMode):
    """Watches what operators return."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return found
