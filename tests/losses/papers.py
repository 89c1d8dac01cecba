"""The losses as their papers write them: dense, plain torch in float64, one row at a time.

Shares no code with the package. Every function takes raw embeddings and returns a loss per row,
differentiable by autograd.
"""

# shapes: N queries, K keys, M rows, D embedding
from __future__ import annotations

import math

import torch
from torch import Tensor


def unit(h: Tensor) -> Tensor:
    """Rows divided by max(norm, 1e-12)."""
    return torch.stack([row / torch.clamp(row.norm(), min=1e-12) for row in h])


def row_loss(
    positive: Tensor,
    negatives: Tensor,
    tau,
    *,
    margin: float = 0.0,
    smoothing: float = 0.0,
    tau_plus: float = 0.0,
    beta: float = 0.0,
) -> Tensor:
    """One row: similarity of its positive (), similarities of its negatives (n,).

    Debiased: Chuang et al. 2020, eq. 8 with M = 1. Hard: Robinson et al. 2021, sec. 3 with the
    importance weights e^{beta x} normalised to mean one.
    """
    x_p, x_n = (positive - margin) / tau, negatives / tau
    if tau_plus or beta:
        num = len(x_n)
        weights = torch.exp(beta * x_n) / torch.exp(beta * x_n).mean()
        mean = (weights * torch.exp(x_n)).mean()
        less = (mean - tau_plus * torch.exp(x_p)) / (1 - tau_plus)
        floor = torch.exp(-1 / torch.as_tensor(tau, dtype=torch.float64).abs())
        total = num * torch.maximum(less, floor)
        return torch.log(torch.exp(x_p) + total) - x_p
    logits = torch.cat([x_p[None], x_n])
    log_p = logits - logits.logsumexp(0)
    return -(1 - smoothing) * log_p[0] - smoothing * log_p.mean()


def info_nce(
    queries, keys, tau, *, positives=None, hard_negatives=None, sample_ids=None, symmetric=False,
    **options,
) -> Tensor:  # fmt: skip
    """Rows of queries; symmetric: the mean of both directions of a pair."""
    q_ND, k_KD = unit(queries), unit(keys)
    positives = list(range(len(q_ND))) if positives is None else positives.tolist()
    ids = list(range(len(k_KD))) if sample_ids is None else sample_ids.tolist()
    found = []
    for i, p in enumerate(positives):
        kept = [j for j in range(len(k_KD)) if ids[j] != ids[p]]
        negatives = k_KD[kept] @ q_ND[i]
        if hard_negatives is not None:
            negatives = torch.cat([negatives, unit(hard_negatives[i]) @ q_ND[i]])
        found.append(row_loss(q_ND[i] @ k_KD[p], negatives, tau, **options))
    forth = torch.stack(found)
    if not symmetric:
        return forth
    back = info_nce(keys, queries, tau, sample_ids=sample_ids, **options)
    return (forth + back) / 2


def moco(query, key, rows_KD, tau, **options) -> Tensor:
    """The queue's rows are taken as they are."""
    q_ND, k_ND, rows_KD = unit(query), unit(key), rows_KD.double()
    rows = [row_loss(q @ k, rows_KD @ q, tau, **options) for q, k in zip(q_ND, k_ND, strict=True)]
    return torch.stack(rows)


def cissl(student, teacher, tau, *, num_views: int) -> Tensor:
    """Cross-entropy with the target spread evenly over a row's own sample, itself included."""
    a_MD, b_MD = unit(student), unit(teacher)
    num_samples = len(a_MD) // num_views
    found = []
    for r, a in enumerate(a_MD):
        log_p = (b_MD @ a / tau).log_softmax(0)
        own = [c for c in range(len(b_MD)) if c % num_samples == r % num_samples]
        found.append(-log_p[own].mean())
    return torch.stack(found)


def clip(image, text, scale, *, smoothing: float = 0.0) -> Tensor:
    """torch's cross-entropy over rows and over columns."""
    logits_NN = unit(image) @ unit(text).T * scale
    target = torch.arange(len(logits_NN))
    ways = [
        torch.nn.functional.cross_entropy(x, target, reduction="none", label_smoothing=smoothing)
        for x in (logits_NN, logits_NN.T)
    ]
    return (ways[0] + ways[1]) / 2


def sup_con(rows, labels, tau, *, form: str) -> Tensor:
    """Khosla et al. eq. 2 ("out") and eq. 3 ("in"); 0 for rows without a positive."""
    z_MD, labels = unit(rows), labels.tolist()
    found = []
    for i, z in enumerate(z_MD):
        others = [j for j in range(len(z_MD)) if j != i]
        same = [j for j in others if labels[j] == labels[i]]
        if not same:
            found.append(z.sum() * 0)
            continue
        log_total = (z_MD[others] @ z / tau).logsumexp(0)
        x_same = z_MD[same] @ z / tau
        if form == "out":
            found.append((log_total - x_same).mean())
        else:
            found.append(log_total - (x_same.logsumexp(0) - math.log(len(same))))
    return torch.stack(found)


def nt_xent(view0, view1, tau, *, sample_ids=None, **options) -> Tensor:
    """Two views: a row against its partner and every row of another sample id."""
    z_MD, num = unit(torch.cat([view0, view1])), len(view0)
    ids = list(range(num)) if sample_ids is None else sample_ids.tolist()
    found = []
    for i, z in enumerate(z_MD):
        negatives = [j for j in range(2 * num) if ids[j % num] != ids[i % num]]
        partner = (i + num) % (2 * num)
        found.append(row_loss(z @ z_MD[partner], z_MD[negatives] @ z, tau, **options))
    return torch.stack(found)


def dcl(view0, view1, tau, *, sigma: float | None = None) -> Tensor:
    """Yeh et al. eq. 6, weighted as in eq. 7 if sigma is given."""
    z_MD, num = unit(torch.cat([view0, view1])), len(view0)
    similarity_N = (z_MD[:num] * z_MD[num:]).sum(1).detach()
    found = []
    for i, z in enumerate(z_MD):
        negatives = [j for j in range(2 * num) if j % num != i % num]
        weight = 1.0
        if sigma is not None:
            shares = torch.exp(similarity_N / sigma)
            weight = 2 - shares[i % num] / shares.mean()
        positive = z @ z_MD[(i + num) % (2 * num)] / tau
        found.append((z_MD[negatives] @ z / tau).logsumexp(0) - weight * positive)
    return torch.stack(found)
