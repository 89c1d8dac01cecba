"""Positive and negative pairs as pytorch-metric-learning forms them, without N x K memory."""

# shapes: N anchors, K references, D features, P positive pairs
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.compat.rows import as_ids
from fastssl.kernels.contrast.checks import Pairs

# Elements of the two gathered operands of a row dot: 16 MB each in float32.
GATHERED_ELEMENTS = 1 << 22


class LabelPairs:
    """Pairs by label: equal is positive, different negative; i with i never where ``own``.

    Args:
        labels: (N,) of any dtype.
        ref_labels: (K,).
        own: anchors and references are one and the same rows (then N = K).
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, own: bool) -> None:
        ids = as_ids(torch.cat([labels, ref_labels]))
        self.anchor_N, self.ref_K = ids.split([len(labels), len(ref_labels)])
        self.own = own
        self.sorted_K, self.order_K = self.ref_K.sort(stable=True)
        self.first_N = torch.searchsorted(self.sorted_K, self.anchor_N)
        last_N = torch.searchsorted(self.sorted_K, self.anchor_N, right=True)
        self.same_N = last_N - self.first_N
        # a NaN label is no label's equal, its own neither
        self.positives_N = (self.same_N - 1).clamp(min=0) if own else self.same_N
        self.num_positive = int(self.positives_N.sum())
        self.num_negative = len(labels) * len(ref_labels) - int(self.same_N.sum())

    @property
    def negatives(self) -> Pairs:
        """The rule of the negative pairs, for the kernel."""
        return Pairs(keep="different", labels=(self.anchor_N, self.ref_K))

    @property
    def every(self) -> Pairs:
        """The rule of all pairs, for the kernel."""
        if not self.own:
            return Pairs()
        rows_N = torch.arange(len(self.anchor_N), device=self.anchor_N.device)
        return Pairs(rows=(rows_N, rows_N))

    def positives(self) -> tuple[Tensor, Tensor]:
        """(P,) anchors and (P,) references of the positive pairs, in the order of the anchors."""
        device = self.anchor_N.device
        rows_N = torch.arange(len(self.anchor_N), device=device)
        anchor_P = rows_N.repeat_interleave(self.same_N)
        before_N = self.same_N.cumsum(0) - self.same_N
        place_P = torch.arange(len(anchor_P), device=device) - before_N[anchor_P]
        ref_P = self.order_K[self.first_N[anchor_P] + place_P]
        if self.own:
            other_P = anchor_P != ref_P
            return anchor_P[other_P], ref_P[other_P]
        return anchor_P, ref_P

    def mean_positive(self, key_KD: Tensor) -> Tensor:
        """(N, D) mean over the positives of an anchor, from one sum per label; 0 without any."""
        label_K, number_of = self.ref_K.unique(return_inverse=True)
        sums_LD = key_KD.new_zeros(len(label_K), key_KD.shape[1]).index_add(0, number_of, key_KD)
        at_N = torch.searchsorted(label_K, self.anchor_N).clamp(max=len(label_K) - 1)
        found_ND = sums_LD[at_N]
        if self.own:
            found_ND = found_ND - key_KD
        found_ND = found_ND / self.positives_N.clamp(min=1)[:, None]
        return torch.where((self.positives_N > 0)[:, None], found_ND, 0.0)


def pair_dots(query_ND: Tensor, key_KD: Tensor, query_P: Tensor, key_P: Tensor) -> Tensor:
    """(P,) q_a . k_b of one listed pair or more; no gathered row is kept for the backward."""
    return _PairDots.apply(query_ND, key_KD, query_P, key_P)


class _PairDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query_ND, key_KD, query_P, key_P):
        ctx.save_for_backward(query_ND, key_KD, query_P, key_P)
        parts = _parts(len(query_P), query_ND.shape[1])
        return torch.cat([(query_ND[query_P[i]] * key_KD[key_P[i]]).sum(1) for i in parts])

    @staticmethod
    def backward(ctx, grad_P):
        query_ND, key_KD, query_P, key_P = ctx.saved_tensors
        dquery_ND, dkey_KD = torch.zeros_like(query_ND), torch.zeros_like(key_KD)
        for part in _parts(len(query_P), query_ND.shape[1]):
            weight, query, key = grad_P[part, None], query_P[part], key_P[part]
            dquery_ND = dquery_ND.index_add_(0, query, weight * key_KD[key])
            dkey_KD = dkey_KD.index_add_(0, key, weight * query_ND[query])
        return dquery_ND, dkey_KD, None, None


def _parts(num_pairs: int, width: int):
    step = max(1, GATHERED_ELEMENTS // width)
    for start in range(0, num_pairs, step):
        yield slice(start, start + step)


def listed_pairs(indices_tuple: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Pairs (a1, p, a2, n) of such a tuple, or of triplets (a, p, n), as int64 on ``device``."""
    if not isinstance(indices_tuple, Sequence) or len(indices_tuple) not in (3, 4):
        shape = f"{len(indices_tuple)} entries" if hasattr(indices_tuple, "__len__") else "no tuple"
        raise ValueError(
            "indices_tuple must be triplets (a, p, n) or pairs (a1, p, a2, n) of 1-D index "
            f"tensors; received {shape}"
        )
    moved = [index.to(device=device, dtype=torch.int64) for index in indices_tuple]
    if len(moved) == 3:
        anchor, positive, negative = moved
        moved = [anchor, positive, anchor, negative]
    if len(moved[0]) != len(moved[1]) or len(moved[2]) != len(moved[3]):
        lengths = [len(index) for index in moved]
        raise ValueError(
            "indices_tuple must hold anchors and partners of equal length; "
            f"received lengths {lengths}"
        )
    return tuple(moved)


def log_sum_exp_by_anchor(x_P: Tensor, anchor_P: Tensor, num_anchors: int) -> Tensor:
    """(N,) log of the sum of exp(x) over the listed pairs of an anchor, -inf without any."""
    top_N = x_P.detach().new_full((num_anchors,), -torch.inf)
    top_N = top_N.scatter_reduce(0, anchor_P, x_P.detach(), "amax")
    shifted_P = (x_P - top_N[anchor_P]).exp()
    return top_N + x_P.new_zeros(num_anchors).index_add(0, anchor_P, shifted_P).log()
