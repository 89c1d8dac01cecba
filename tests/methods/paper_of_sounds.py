"""MT-SLVR's objective as its paper writes it, as papers.py does for the others."""

# shapes: N batch
from __future__ import annotations

import torch

from tests.methods.papers import cosine, softmax_loss


def mtslvr(method, views, info):
    """C.1 of the paper notes: NT-Xent of the first half, cross-entropy of every operator."""
    contrast, predict = method.backbone.tasks(torch.cat(views))
    z = method.projector(contrast)
    n, tau = len(views[0]), method.loss.temperature
    total = 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        others = [cosine(z[i], z[k]) / tau for k in range(2 * n) if k not in (i, p)]
        total = total + softmax_loss(cosine(z[i], z[p]) / tau, others) / (2 * n)
    share = torch.sigmoid(method.operators(predict))
    count = share.shape[1]
    for v in range(2):
        for i in range(n):
            for j in range(count):
                q = share[v * n + i, j]
                ran = bool(info.labels_VNO[v, i, j])
                total = total - method.weight * torch.log(q if ran else 1 - q) / (2 * n * count)
    return total
