"""Each method's objective as its paper writes it, loop by loop, over the method's own networks.

Called with a copy of the method in the state that its forward will see.
"""

# shapes: N batch
from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import normalize


def encoded(method, views):
    """The two views through encoder and projector, each a batch of its own."""
    return [method.projector(method.backbone(view)) for view in views]


def together(method, views):
    """The same as one batch, as methods with crops of several sizes do for each size."""
    return method.projector(method.backbone(torch.cat(views))).chunk(2)


def cosine(x, y):
    return torch.dot(x, y) / (x.norm() * y.norm())


def softmax_loss(positive, others):
    """-log of the positive's share, all given as logits."""
    return -torch.log(torch.exp(positive) / (torch.exp(positive) + sum(map(torch.exp, others))))


def simclr(method, views, info):
    """Eq. 1 and algorithm 1 of Chen et al. 2020, pair by pair, positives at 2k and 2k + 1."""
    n, tau = len(views[0]), method.loss.temperature
    z = method.projector(method.backbone(torch.cat(views)))
    rows = [z[half * n + k] for k in range(n) for half in (0, 1)]

    def pair(i, j):
        others = [cosine(rows[i], rows[k]) / tau for k in range(2 * n) if k not in (i, j)]
        return softmax_loss(cosine(rows[i], rows[j]) / tau, others)

    total = sum(pair(2 * k, 2 * k + 1) + pair(2 * k + 1, 2 * k) for k in range(n))
    return total / (2 * n)


def mocov2(method, views, info):
    """Algorithm 1 of He et al. 2020: queries of the first view, keys of the second."""
    tau = method.loss.temperature
    q = method.projector(method.backbone(views[0]))
    k = method.keys(views[1])
    total = 0.0
    for i in range(len(q)):
        queue = [torch.dot(q[i] / q[i].norm(), row) / tau for row in method.queue.rows]
        total = total + softmax_loss(cosine(q[i], k[i]) / tau, queue)
    return total / len(q)


def mocov3(method, views, info):
    """Algorithm 1 of Chen, Xie, He 2021."""
    tau = method.temperature
    q = [method.predictor(z) for z in encoded(method, views)]
    k = [method.keys(view) for view in views]

    def ctr(q, k):
        n = len(q)
        rows = [
            softmax_loss(
                cosine(q[i], k[i]) / tau, [cosine(q[i], k[j]) / tau for j in range(n) if j != i]
            )
            for i in range(n)
        ]
        return 2 * tau * sum(rows) / n

    return ctr(q[0], k[1]) + ctr(q[1], k[0])


def simsiam(method, views, info):
    """Algorithm 1 of Chen and He 2021."""
    z = encoded(method, views)
    p = [method.predictor(x) for x in z]

    def d(p, z):
        return -sum(cosine(a, b.detach()) for a, b in zip(p, z, strict=True)) / len(p)

    return d(p[0], z[1]) / 2 + d(p[1], z[0]) / 2


def byol(method, views, info):
    """Eq. 2 of Grill et al. 2020 and its mirror image."""
    p = [method.predictor(z) for z in encoded(method, views)]
    t = [method.target(view) for view in views]

    def error(p, t):
        gaps = [(a / a.norm() - b / b.norm()).square().sum() for a, b in zip(p, t, strict=True)]
        return sum(gaps) / len(gaps)

    return error(p[0], t[1]) + error(p[1], t[0])


def swav(method, views, info):
    """Eq. 1 and 2 of Caron et al. 2020; codes by three rounds of dividing rows and columns."""
    z = [normalize(x, dim=1) for x in together(method, views)]
    scores = [x @ normalize(method.prototypes.weight, dim=1).T for x in z]
    n, c = scores[0].shape

    def codes(score):
        q = torch.exp(score.detach() / method.loss.epsilon)
        q = q / q.sum()
        for _ in range(3):
            for j in range(c):
                q[:, j] /= q[:, j].sum() * c
            for i in range(n):
                q[i] /= q[i].sum() * n
        return q * n

    def cross_entropy(q, score):
        logs = [torch.log_softmax(row / method.loss.temperature, 0) for row in score]
        return -sum(torch.dot(q[i], logs[i]) for i in range(n)) / n

    first, second = codes(scores[0]), codes(scores[1])
    return (cross_entropy(first, scores[1]) + cross_entropy(second, scores[0])) / 2


def dino(method, views, info):
    """Algorithm 1 of Caron et al. 2021 on two global crops."""
    head = normalize(method.outputs.weight, dim=1)
    students = [normalize(z, dim=1) @ head.T for z in together(method, views)]
    teachers = method.teacher(torch.cat(views)).chunk(2)

    def h(t, s):
        t = torch.softmax((t.detach() - method.loss.centre) / method.first_temperature, 1)
        s = torch.softmax(s / method.loss.student_temperature, 1)
        return -sum(torch.dot(a, torch.log(b)) for a, b in zip(t, s, strict=True)) / len(t)

    return h(teachers[0], students[1]) / 2 + h(teachers[1], students[0]) / 2


def barlow(method, views, info):
    """Eq. 1 of Zbontar et al. 2021, entry by entry."""
    norm = nn.BatchNorm1d(method.projector[-1].out_features, affine=False).double()
    a, b = (norm(z) for z in encoded(method, views))
    n, d = a.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            c = torch.dot(a[:, i], b[:, j]) / n
            total = total + ((1 - c) ** 2 if i == j else method.loss.redundancy * c**2)
    return total


def vicreg(method, views, info):
    """Eq. 1 to 6 of Bardes et al. 2022, with the authors' half before the variance."""
    z = encoded(method, views)
    n, d = z[0].shape
    s = sum((a - b).square().sum() for a, b in zip(*z, strict=True)) / (n * d)

    def v(x):
        return sum(torch.relu(1 - torch.sqrt(x[:, j].var() + 1e-4)) for j in range(d)) / d

    def c(x):
        return (torch.cov(x.T).fill_diagonal_(0) ** 2).sum() / d

    part = method.loss
    variance = part.variance * (v(z[0]) + v(z[1])) / 2
    return part.invariance * s + variance + part.covariance * (c(z[0]) + c(z[1]))


def supcon(method, views, info):
    """Eq. 2 of Khosla et al. 2020."""
    labels = [int(label) for label in info] * 2
    tau = method.loss.temperature
    z = method.projector(method.backbone(torch.cat(views)))
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        denominator = sum(torch.exp(cosine(z[i], z[a]) / tau) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        logs = [torch.log(torch.exp(cosine(z[i], z[p]) / tau) / denominator) for p in positives]
        total = total - sum(logs) / len(positives)
    return total / len(z)


PAPERS = {
    f.__name__: f
    for f in (simclr, mocov2, mocov3, simsiam, byol, swav, dino, barlow, vicreg, supcon)
}

SMALL = {
    "mocov2": {"projector_dims": (32, 16), "queue_size": 40, "bn_splits": 1},
    "mocov3": {"projector_dims": (32, 32, 16), "predictor_hidden_dims": (24,)},
    "simsiam": {"projector_dims": (32, 32, 32), "predictor_hidden_dim": 16},
    "byol": {"projector_dims": (32, 16), "predictor_hidden_dim": 24},
    "swav": {"projector_dims": (32, 16), "num_prototypes": 12, "freeze_prototypes_steps": 0},
    "dino": {
        **{
            "projector_dims": (32, 32, 16),
            "num_outputs": 24,
            "freeze_outputs_steps": 0,
            "momentum": 0.9,
        },
        **{"warmup_teacher_steps": 30, "warmup_teacher_temperature": 0.03},
    },
    "barlow": {"projector_dims": (32, 32, 12)},
    "vicreg": {"projector_dims": (32, 32, 12)},
    "supcon": {"projector_dims": (32, 16)},
}
"""Settings that make a method small enough for loops; what is not here keeps its default."""

ASYMMETRIC = {"mocov2"}
"""Methods whose first view plays another part than the second."""


def lowest_simclr(method, n):
    """A bound where positives coincide and negatives spread as far as 2N rows can."""
    tau = method.loss.temperature
    negatives = (2 * n - 2) * math.exp((-1 / (n - 1)) / tau)
    return math.log(math.exp(1 / tau) + negatives) - 1 / tau


def lowest_supcon(method, n):
    """A bound where views of one class coincide, as far from the others as one likes."""
    sizes = torch.bincount(torch.arange(n) % 3).repeat_interleave(2) * 2
    return sum(size.item() * math.log(size.item() - 1) for size in sizes[::2]) / (2 * n)


LOWEST = {"supcon": lowest_supcon, "simclr": lowest_simclr, "simsiam": lambda method, n: -1.0}
"""A lower bound of the loss on N samples; 0 for methods that are not here."""


def follows_its_teacher(loss, metrics, before, after):
    """The divergence from the teacher is small, and the teacher tells samples apart."""
    return (
        loss - float(metrics["teacher_entropy"]) < 0.1 and float(metrics["teacher_entropy"]) < 2.8
    )


def tells_samples_apart(loss, metrics, before, after):
    """A sample's other view is nearer than the nearest other sample, by more than before."""
    return after > 1.5 * before


LEARNED = {"mocov2": tells_samples_apart, "dino": follows_its_teacher}
"""What shows that one batch was learned where the loss does not: the queue or the teacher moves."""
