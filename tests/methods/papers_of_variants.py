"""Variants of methods as their papers write them, loop by loop; as papers.py does for the rest."""

# shapes: N batch
from __future__ import annotations

import math

import torch
from torch.nn.functional import batch_norm, normalize

from fastssl.augment import spirograph
from tests.methods.papers import cosine, softmax_loss, spirograph_limits
from tests.methods.twice import by_hand, twice


def crops(net, views):
    """``net`` of each crop: the large ones as one batch, the small ones as another."""
    small = net(torch.cat(views[2:])).chunk(len(views) - 2)
    return [*net(torch.cat(views[:2])).chunk(2), *small]


def apart(ours, theirs, distance):
    """Mean of ``distance`` over a large crop v and another crop w."""
    pairs = [(v, w) for v in range(2) for w in range(len(theirs)) if w != v]
    return sum(distance(ours[v], theirs[w]) for v, w in pairs) / len(pairs)


def cross_entropy(p, q):
    return -sum(torch.dot(a, torch.log(b)) for a, b in zip(p, q, strict=True)) / len(p)


def nt_xent(z, tau):
    """Eq. 1 of Chen et al. 2020, positives at i and i + N."""
    n, total = len(z) // 2, 0.0
    for i in range(2 * n):
        p = (i + n) % (2 * n)
        others = [cosine(z[i], z[k]) / tau for k in range(2 * n) if k not in (i, p)]
        total = total + softmax_loss(cosine(z[i], z[p]) / tau, others) / (2 * n)
    return total


def against_queue(q, k, rows, tau):
    """Eq. 1 of He et al. 2020: a key for each query, all of the queue against it."""
    total = 0.0
    for i in range(len(q)):
        queue = [torch.dot(q[i] / q[i].norm(), row) / tau for row in rows]
        total = total + softmax_loss(cosine(q[i], k[i]) / tau, queue)
    return total / len(q)


def swav(method, views, info):
    """Caron et al. 2020, section 3.2: the codes are of large crops alone, all crops are scored.

    The authors' head, and its batch norm, sees the features of all crops at once.
    """
    h = torch.cat(crops(method.backbone, views))
    z = normalize(method.projector(h), dim=1).chunk(len(views))
    scores = [x @ normalize(method.prototypes.weight, dim=1).T for x in z]
    n, c = scores[0].shape

    def codes(score):
        q = torch.exp(score.detach() / method.loss.epsilon)
        q = q / q.sum()
        for _ in range(3):
            q = q / (q.sum(0, keepdim=True) * c)
            q = q / (q.sum(1, keepdim=True) * n)
        return q * n

    shares = [torch.softmax(score / method.loss.temperature, 1) for score in scores]
    return apart([codes(score) for score in scores[:2]], shares, cross_entropy)


def dino(method, views, info):
    """Algorithm 1 of Caron et al. 2021: the teacher sees large crops, the student all."""
    head = normalize(method.outputs.weight, dim=1)
    z = crops(lambda x: normalize(method.projector(method.backbone(x)), dim=1), views)
    students = [torch.softmax(x @ head.T / method.loss.student_temperature, 1) for x in z]
    centred = method.teacher(torch.cat(views[:2])).chunk(2)
    tau = method.first_temperature
    teachers = [torch.softmax((t - method.loss.centre) / tau, 1) for t in centred]
    return apart(teachers, students, cross_entropy)


def dissl(method, views, info):
    """Section 4.2 of Dubois et al. 2022: small crops are students alone; a head sees all crops."""
    weight = method.loss.settings
    h = crops(method.backbone, views)
    s = [torch.softmax(x, 1) for x in method.student(torch.cat(h)).chunk(len(h))]
    logits = method.teacher(torch.cat(h[:2])).chunk(2)
    t = [torch.softmax(x / weight["teacher_temperature"], 1) for x in logits]
    invariance = apart(t, t, cross_entropy)
    maximality = -sum(torch.dot(p.mean(0), torch.log(p.mean(0))) for p in t) / 2
    distil = apart(t, s, cross_entropy)
    return distil + weight["invariance"] * invariance - weight["maximality"] * maximality


def corner_head(heads, h, corner):
    """The head of one corner: layers, norms over the batch where there are some, ReLU between."""
    last = len(heads.weights) - 1
    for layer, weight in enumerate(heads.weights):
        h = h @ weight[corner].T
        if len(heads.norms):
            h = batch_norm(h, None, None, training=True)
        if layer < len(heads.gains):
            h = h * heads.gains[layer][corner]
        if layer < len(heads.biases):
            h = h + heads.biases[layer][corner]
        h = torch.relu(h) if layer < last else h
    return h


def amortised_mocov2(method, views, info):
    """MoCo under one vector; queue and heads are those of its corner."""
    corner, bits = int(info.corner), info.bits_K.to(views[0].dtype)
    slow = method.keys.module
    q = corner_head(method.heads, method.backbone(views[0], bits), corner)
    with torch.no_grad():
        k = corner_head(slow["heads"], slow["backbone"](views[1], bits), corner)
    return against_queue(q, k, method.queues.rows[corner], method.temperature)


def amortised_mocov3(method, views, info):
    """Algorithm 1 of Chen, Xie, He 2021 under one vector, its heads those of its corner."""
    corner, bits, tau = int(info.corner), info.bits_K.to(views[0].dtype), method.temperature
    slow = method.keys.module
    z = [corner_head(method.heads, method.backbone(view, bits), corner) for view in views]
    q = [corner_head(method.predictors, x, corner) for x in z]
    with torch.no_grad():
        k = [corner_head(slow["heads"], slow["backbone"](view, bits), corner) for view in views]

    def ctr(q, k):
        rows = range(len(q))
        all_rows = [
            softmax_loss(
                cosine(q[i], k[i]) / tau, [cosine(q[i], k[j]) / tau for j in rows if j != i]
            )
            for i in rows
        ]
        return 2 * tau * sum(all_rows) / len(q)

    return ctr(q[0], k[1]) + ctr(q[1], k[0])


def invclr_mocov2(method, views, info):
    """Section 3 of Foster et al. 2021 over MoCo: the queries are what is penalised."""
    alpha = info.nuisance_VNA[0].detach()
    low, high = (torch.tensor(x, dtype=alpha.dtype) for x in spirograph_limits())
    step = low + (high - low) * torch.rand(alpha.shape, dtype=alpha.dtype) - alpha
    net, inner = by_hand(method.backbone), method.contrast

    def features(alpha):
        return net(spirograph.render(info.object_NT, alpha, side=views[0].shape[-1]))

    q, k = inner.projector(features(alpha)), inner.keys(views[1])
    loss = against_queue(q, k, inner.queue.rows, inner.loss.temperature)
    _, along = twice(lambda alpha: normalize(features(alpha), dim=1), alpha, step)
    variance = sum(row.square().sum() for row in along) / len(q)
    return loss + method.penalty * torch.clamp(variance, max=method.clip)


def straight(hard, soft, sampling):
    """The sample: the relaxed one, or the hard one whose gradient is that of the relaxed one."""
    return hard + soft - soft.detach() if sampling == "hard" else soft


def uniform(like):
    return torch.rand_like(like).clamp(1e-6, 1 - 1e-6)


def bernoulli(method, views, info):
    """Bits by the binary Concrete; each bit's KL from a fair coin, summed outcome by outcome."""
    latent = method.backbone.latent
    logits = latent.parameters_of(method.backbone.trunk(torch.cat(views)))
    u = uniform(logits)
    soft = 1 / (1 + torch.exp(-(logits + torch.log(u / (1 - u))) / latent.relaxation))
    sample = straight((soft > 0.5).to(soft.dtype), soft, latent.sampling)
    loss = nt_xent(method.projector(2 * sample - 1), method.loss.temperature)
    for row in logits:
        for logit in row:
            one = torch.sigmoid(logit)
            kl = one * torch.log(2 * one) + (1 - one) * torch.log(2 * (1 - one))
            loss = loss + method.beta * kl / len(logits)
    return loss


def categorical(method, views, info):
    """Variables of K values by the Gumbel-softmax; KL from the uniform, value by value."""
    latent = method.backbone.latent
    values = latent.values
    logits = latent.parameters_of(method.backbone.trunk(torch.cat(views)))
    groups = logits.view(len(logits), -1, values)
    soft = torch.softmax((groups - torch.log(-torch.log(uniform(groups)))) / latent.relaxation, 2)
    hard = torch.zeros_like(soft).scatter(2, soft.argmax(2, keepdim=True), 1.0)
    sample = straight(hard, soft, latent.sampling).flatten(1)
    loss = nt_xent(method.projector(sample), method.loss.temperature)
    for row in groups:
        for variable in row:
            p = torch.softmax(variable, 0)
            kl = sum(share * (torch.log(share) + math.log(values)) for share in p)
            loss = loss + method.beta * kl / len(logits)
    return loss
