"""One small model per loss family: over a group through the layer, or on a whole batch by formula.

With ``group=None`` a model is written as the textbook writes it, with the whole matrix of logits.
With a group it holds a part of the batch and uses ``fastssl.losses.distributed``.
"""

# shapes: N samples, M rows, K keys, D embedding, C classes
from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import contrast_mean
from fastssl.losses import NTXentLoss
from fastssl.losses import distributed as layer

IN, OUT, CLASSES = 7, 6, 4
TWO_TOWERS = {"gather": layer.gathered_denominators, "ring": layer.ring_denominators}
ONE_TOWER = {"gather": layer.gathered_symmetric, "ring": layer.ring_symmetric}


class Model(nn.Module):
    """Encoder, two heads and a learnt log of the scale."""

    def __init__(self, group=None, exchange: str = "gather") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encoder = nn.Sequential(nn.Linear(IN, 9), nn.Tanh(), nn.Linear(9, OUT))
        self.head = nn.Linear(OUT, OUT)
        self.log_scale = nn.Parameter(torch.tensor(1.2))
        self.double()
        self.group, self.exchange = group, exchange

    def embed(self, x0_NI: Tensor, x1_NI: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows of two different towers."""
        q_ND, k_ND = self.head(self.encoder(x0_NI)), self.encoder(x1_NI)
        return F.normalize(q_ND, dim=1), F.normalize(k_ND, dim=1)

    def mean(self, loss_M: Tensor) -> Tensor:
        return (
            loss_M.mean() if self.group is None else layer.mean_over_ranks(loss_M, group=self.group)
        )


class NTXent(Model):
    def forward(self, x0_NI, x1_NI, label_N):
        views = self.head(self.encoder(x0_NI)), self.head(self.encoder(x1_NI))
        tau = (-self.log_scale).exp()
        if self.group is not None and self.exchange == "gather":
            return NTXentLoss(tau, group=self.group)(*views)
        z_MD = F.normalize(torch.cat(views), dim=1)
        positive_M = (z_MD * z_MD.unflatten(0, (2, -1)).flip(0).flatten(0, 1)).sum(1) / tau
        if self.group is not None:
            rows_M = layer.ring_symmetric(z_MD, 1 / tau, group=self.group, bound=1.0).rows
        else:
            rows_M = (z_MD @ z_MD.T / tau).fill_diagonal_(-torch.inf).logsumexp(1)
        return self.mean(rows_M - positive_M)


class InfoNCE(Model):
    """One direction, gradients to both towers; pairs of one class are no negatives."""

    def forward(self, x0_NI, x1_NI, label_N):
        q_ND, k_ND = self.embed(x0_NI, x1_NI)
        scale = self.log_scale.exp()
        positive_N = scale * (q_ND * k_ND).sum(1)
        if self.group is None:
            x_NN = scale * q_ND @ k_ND.T
            rows_N = x_NN.masked_fill(label_N[:, None] == label_N, -torch.inf).logsumexp(1)
        else:
            denominators = TWO_TOWERS[self.exchange]
            pairs = Pairs("different", labels=(label_N, label_N))
            rows_N = denominators(q_ND, k_ND, scale, group=self.group, pairs=pairs).rows
        return self.mean(torch.logaddexp(rows_N, positive_N) - positive_N)


class CLIP(Model):
    """Both directions; a row is no negative of itself by its row ids."""

    def forward(self, x0_NI, x1_NI, label_N):
        q_ND, k_ND = self.embed(x0_NI, x1_NI)
        scale = self.log_scale.exp()
        positive_N = scale * (q_ND * k_ND).sum(1)
        if self.group is None:
            x_NN = scale * q_ND @ k_ND.T
            rows_N, cols_N = x_NN.logsumexp(1), x_NN.logsumexp(0)
        else:
            denominators = TWO_TOWERS[self.exchange]
            rows_N, cols_N, _ = denominators(
                q_ND, k_ND, scale, group=self.group, columns=True, bound=1.0
            )
        return self.mean(rows_N / 2 + cols_N / 2 - positive_N)


class SupCon(Model):
    """L_out of Khosla et al. 2020, eq. 2: the positives of all ranks through their class sums."""

    def forward(self, x0_NI, x1_NI, label_N):
        z_MD = torch.cat(self.embed(x0_NI, x1_NI))
        label_M = label_N.repeat(2)
        scale = self.log_scale.exp()
        if self.group is None:
            x_MM = scale * z_MD @ z_MD.T
            rows_M = x_MM.clone().fill_diagonal_(-torch.inf).logsumexp(1)
            same_MM = (label_M[:, None] == label_M).fill_diagonal_(False)
            positive_M = (x_MM * same_MM).sum(1) / same_MM.sum(1)
            return self.mean(rows_M - positive_M)
        rows_M = ONE_TOWER[self.exchange](z_MD, scale, group=self.group).rows
        one_hot_MC = F.one_hot(label_M, CLASSES).to(z_MD.dtype)
        sum_CD = layer.sum_over_ranks(one_hot_MC.T @ z_MD, group=self.group)
        count_C = layer.sum_over_ranks(one_hot_MC.sum(0), group=self.group)
        others_MD = sum_CD[label_M] - z_MD
        positive_M = scale * (z_MD * others_MD).sum(1) / (count_C[label_M] - 1)
        return self.mean(rows_M - positive_M)


class MoCo(Model):
    """A momentum encoder and a queue that all ranks fill with the keys of all ranks."""

    def __init__(self, group=None, exchange: str = "gather") -> None:
        super().__init__(group, exchange)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue_KD", F.normalize(torch.randn(32, OUT).double(), dim=1))
        self.at = 0

    def forward(self, x0_NI, x1_NI, label_N):
        scale = self.log_scale.exp()
        with torch.no_grad():
            for slow, fast in zip(
                self.momentum_encoder.parameters(), self.encoder.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.1)
            k_ND = F.normalize(self.momentum_encoder(x1_NI), dim=1)
        q_ND = F.normalize(self.head(self.encoder(x0_NI)), dim=1)
        positive_N = scale * (q_ND * k_ND).sum(1)
        if self.group is None:
            rows_N = (scale * q_ND @ self.queue_KD.clone().T).logsumexp(1)
        else:
            rows_N = contrast_mean(q_ND, self.queue_KD, scale).rows
            k_ND = layer.gather_rows(k_ND, group=self.group)
        at_N = (self.at + torch.arange(k_ND.shape[0])) % self.queue_KD.shape[0]
        self.queue_KD[at_N] = k_ND
        self.at = (self.at + k_ND.shape[0]) % self.queue_KD.shape[0]
        return self.mean(torch.logaddexp(rows_N, positive_N) - positive_N)


class Marginal(Model):
    """DISSL's shape: cross entropy of each view with the other, minus the entropy of the batch."""

    def forward(self, x0_NI, x1_NI, label_N):
        student_NC = self.head(self.encoder(x0_NI)) * self.log_scale.exp()
        teacher_NC = (2 * self.encoder(x1_NI)).softmax(1)
        if self.group is None:
            marginal_C = teacher_NC.mean(0)
        else:
            total_C = layer.sum_over_ranks(teacher_NC.sum(0), group=self.group)
            count = layer.sum_over_ranks(teacher_NC.new_tensor(len(teacher_NC)), group=self.group)
            marginal_C = total_C / count
        entropy = -(marginal_C * marginal_C.log()).sum()
        return self.mean(-(teacher_NC * student_NC.log_softmax(1)).sum(1)) - 2.3 * entropy


MODELS = {m.__name__: m for m in (NTXent, InfoNCE, CLIP, SupCon, MoCo, Marginal)}


def batches(num_steps: int, num_samples: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views and class labels of every step, the same on every rank."""
    generator = torch.Generator().manual_seed(11)
    drawn = []
    for _ in range(num_steps):
        x_NI = torch.randn(num_samples, IN, generator=generator, dtype=torch.float64)
        noise_NI = 0.3 * torch.randn(num_samples, IN, generator=generator, dtype=torch.float64)
        label_N = torch.arange(num_samples) % CLASSES
        drawn.append((x_NI, x_NI + noise_NI, label_N))
    return drawn


def train(model: nn.Module, shares: list[tuple[Tensor, ...]]) -> dict:
    """Ten steps of SGD: every loss, the gradients of step one, the weights at the end."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    losses, gradients = [], {}
    for share in shares:
        optimizer.zero_grad()
        loss = model(*share)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        gradients = gradients or {
            name.removeprefix("module."): p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }
    weights = {n.removeprefix("module."): w.clone() for n, w in model.state_dict().items()}
    return {"losses": torch.stack(losses), "gradients": gradients, "weights": weights}


def train_as_rank(name: str, exchange: str, counts: list[int], num_steps: int) -> dict:
    """The same with DDP on this rank's rows of every batch."""
    import torch.distributed as dist

    model = nn.parallel.DistributedDataParallel(MODELS[name](dist.group.WORLD, exchange))
    rank = dist.get_rank()
    first = sum(counts[:rank])
    mine = slice(first, first + counts[rank])
    shares = [tuple(x[mine] for x in batch) for batch in batches(num_steps, sum(counts))]
    return train(model, shares)
