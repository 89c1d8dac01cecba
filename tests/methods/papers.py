"""Each method's objective as its paper writes it, loop by loop, over the method's own networks.

Called with a copy of the method in the state that its forward will see.
"""

# shapes: N batch
from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import normalize

from fastssl.augment import spirograph
from fastssl.augment.drawn import Drawn


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
    labels = [int(label) for label in info.class_N] * 2
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


def cissl(method, views, info):
    """Section 4.1 of Dubois et al. 2022: self column kept, half of the target on it."""
    tau, n = method.loss.temperature, len(views[0])
    h = method.backbone(torch.cat(views))
    a, b = method.student(h), method.teacher(h)
    total = 0.0
    for r in range(2 * n):
        logits = torch.stack([cosine(a[r], b[c]) / tau for c in range(2 * n)])
        logs = torch.log_softmax(logits, 0)
        total = total - (logs[r] + logs[(r + n) % (2 * n)]) / 2
    return total / (2 * n)


def dissl(method, views, info):
    """Section 4.2 of Dubois et al. 2022, for two views."""
    n, tau_t = len(views[0]), method.loss.settings["teacher_temperature"]
    h = method.backbone(torch.cat(views))
    t = [torch.softmax(x / tau_t, 1) for x in method.teacher(h).chunk(2)]
    s = [torch.softmax(x, 1) for x in method.student(h).chunk(2)]

    def ce(p, q):
        return -sum(torch.dot(p[i], torch.log(q[i])) for i in range(n)) / n

    def entropy(p):
        return -torch.dot(p, torch.log(p))

    distil = (ce(t[0], s[1]) + ce(t[1], s[0])) / 2
    invariance = (ce(t[0], t[1]) + ce(t[1], t[0])) / 2
    maximality = (entropy(t[0].mean(0)) + entropy(t[1].mean(0))) / 2
    weight = method.loss.settings
    return distil + weight["invariance"] * invariance - weight["maximality"] * maximality


def stochastic(method, views, info):
    """The reconstruction of the module's docstring, Gaussian, at the full weight of the rate."""
    h = method.backbone.trunk(torch.cat(views))
    mu, raw = method.backbone.latent.parameters_of(h).chunk(2, dim=1)
    s = nn.functional.softplus(raw) + 1e-4
    z = method.projector((mu + s * torch.randn_like(mu)).to(h.dtype))
    n, tau = len(views[0]), method.loss.temperature
    total = 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        others = [cosine(z[i], z[k]) / tau for k in range(2 * n) if k not in (i, p)]
        total = total + softmax_loss(cosine(z[i], z[p]) / tau, others) / (2 * n)
        kl = 0.5 * (mu[i] ** 2 + s[i] ** 2 - 1 - torch.log(s[i] ** 2)).sum()
        total = total + method.beta * kl / (2 * n)
    return total


def amortised(method, views, info):
    """NT-Xent under the corner of this step, by the head of that corner."""
    corner = int(info.corner)
    h = method.backbone(torch.cat(views), info.bits_K.to(views[0].dtype))
    first, second = (w[corner] for w in method.heads.weights)
    b1, b2 = (b[corner] for b in method.heads.biases)
    z = torch.relu(h @ first.T + b1) @ second.T + b2
    n, tau = len(views[0]), method.loss.temperature
    total = 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        others = [cosine(z[i], z[k]) / tau for k in range(2 * n) if k not in (i, p)]
        total = total + softmax_loss(cosine(z[i], z[p]) / tau, others) / (2 * n)
    return total


def invclr(method, views, info):
    """Section 3 of Foster et al. 2021 on Spirograph, the expectation by that of uniforms."""
    alpha = info.nuisance_VNA[0]
    view = spirograph.render(info.object_NT, alpha, side=views[0].shape[-1])
    h = method.backbone(view)
    inner = method.contrast
    z = inner.projector(torch.cat([h, method.backbone(views[1])]))
    n, tau = len(views[0]), inner.loss.temperature
    total = 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        others = [cosine(z[i], z[k]) / tau for k in range(2 * n) if k not in (i, p)]
        total = total + softmax_loss(cosine(z[i], z[p]) / tau, others) / (2 * n)
    unit = normalize(h, dim=1)
    signs = torch.randint(0, 2, unit.shape).to(unit.dtype) * 2 - 1
    (g,) = torch.autograd.grad((signs * unit).sum(), alpha, create_graph=True)
    low, high = (torch.tensor(x, dtype=g.dtype) for x in spirograph_limits())
    variance = 0.0
    for i in range(n):
        for a in range(g.shape[1]):
            variance = variance + g[i, a] ** 2 * (high[a] - low[a]) ** 2 / 12 / n
        variance = variance + torch.dot(g[i], (low + high) / 2 - alpha[i].detach()) ** 2 / n
    return total + method.penalty * torch.clamp(variance, max=method.clip)


def spirograph_limits():
    """Ranges of (h, b_r, f_g, b_g, f_b, b_b), section 5 of the paper and its code."""
    return [0.5, 0.0, 0.4, 0.0, 0.4, 0.0], [2.5, 0.6, 1.0, 0.6, 1.0, 0.6]


def told(n, dtype=torch.float32):
    """A table with everything that some method reads, for N samples."""
    g = torch.Generator().manual_seed(5)
    low, high = (torch.tensor(x, dtype=dtype) for x in spirograph_limits())
    unit = torch.rand(2, n, 6, generator=g, dtype=dtype)
    objects = torch.rand(n, 4, generator=g, dtype=dtype) * 0.5 + torch.tensor([2.5, 0.5, 0.4, 0.5])
    return Drawn(
        labels_VNO=torch.ones(2, n, 6, dtype=torch.int8),
        bits_K=torch.tensor([1.0, 0.0]),
        corner=torch.tensor(1),
        object_NT=objects.to(dtype),
        nuisance_VNA=low + (high - low) * unit,
        class_N=torch.arange(n) % 3,
    )


PAPERS = {
    f.__name__: f
    for f in (
        *(simclr, mocov2, mocov3, simsiam, byol, swav, dino, barlow, vicreg, supcon),
        *(invclr, amortised, cissl, dissl, stochastic),
    )
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
    "invclr": {"projector_dims": (32, 16), "penalty": 1e-4},
    "amortised": {"projector_dims": (32, 16), "dropout": 0.0},
    "cissl": {"projector_dims": (32, 16)},
    "dissl": {"num_outputs": 12, "teacher_hidden_dims": (32,), "bottleneck_dim": 16},
    "mtslvr": {
        **{"num_operators": 6, "output_dim": 32, "projector_dims": (32, 16)},
        **{"operator_hidden_dims": (16,), "temperature": 0.5},
    },
    "stochastic": {"latent": "gaussian", "latent_dim": 16, "projector_dims": (32, 16)},
}
"""Settings that make a method small enough for loops; what is not here keeps its default."""

ASYMMETRIC = {"mocov2", "invclr", "stochastic"}
"""Methods whose first view plays another part than the second, or has other random numbers."""

RANDOM = {"stochastic", "invclr"}
"""Methods that draw numbers in their forward: row n has its own, so that order matters."""

UNUSED: dict[str, str] = {}
"""Parameters whose gradient may vanish."""

OWN_FEATURES = {
    "amortised": lambda method: method.backbone.num_features,
}
"""Width of the features of methods that do not take them from the backbone as it is."""


def lowest_simclr(method, n):
    """A bound where positives coincide and negatives spread as far as 2N rows can."""
    tau = method.loss.temperature
    negatives = (2 * n - 2) * math.exp((-1 / (n - 1)) / tau)
    return math.log(math.exp(1 / tau) + negatives) - 1 / tau


def lowest_dissl(method, n):
    """Every teacher uniform over its own outputs: B = 16 of them would need more than C = 12."""
    weight, c = method.loss.settings, len(method.student[-1].weight)
    return -weight["maximality"] * math.log(c)


def lowest_supcon(method, n):
    """A bound where views of one class coincide, as far from the others as one likes."""
    sizes = torch.bincount(torch.arange(n) % 3).repeat_interleave(2) * 2
    return sum(size.item() * math.log(size.item() - 1) for size in sizes[::2]) / (2 * n)


LOWEST = {
    "invclr": lambda method, n: lowest_simclr(method.contrast, n),
    "supcon": lowest_supcon,
    "dissl": lowest_dissl,
    "simclr": lowest_simclr,
    "mtslvr": lowest_simclr,
    "simsiam": lambda method, n: -1.0,
}
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
