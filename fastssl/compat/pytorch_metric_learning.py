"""``pytorch_metric_learning.losses`` (2.x): NTXentLoss and SupConLoss.

By label, with the default CosineSimilarity, the denominators come from the fused kernel and memory
is O(N D + positive pairs); the original's NTXentLoss needs positives x negatives. An
``indices_tuple`` or another ``distance`` goes through a similarity matrix in plain torch.
"""

# shapes: N anchors, K references, D features, P positive pairs, Q negative pairs
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastssl.compat.metric_pairs import (
    LabelPairs,
    listed_pairs,
    log_sum_exp_by_anchor,
    pair_dots,
)
from fastssl.compat.rows import as_peers_return_it, excess, row_dots, unit_rows, widened
from fastssl.kernels.contrast.op import contrast


class _PairLoss(nn.Module):
    """The call, the checks and the reduction that both losses share.

    A loss has ``_by_label(query, key, pairs)`` over unit rows and ``_listed(x, lists)`` over a
    matrix of logits; both return losses, their indices and the name of the reduction.
    """

    def __init__(
        self,
        temperature: float,
        distance: nn.Module | None = None,
        reducer: nn.Module | None = None,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if temperature == 0:
            raise ValueError(f"{name}: temperature must be non-zero; received {temperature}")
        if collect_stats:
            raise ValueError(
                f"{name}: collect_stats must be off, no statistics are kept here; received "
                f"{collect_stats}"
            )
        self.temperature = temperature
        self.distance = distance
        self.reducer = copy.deepcopy(reducer)
        self.embedding_regularizer = embedding_regularizer
        self.embedding_reg_weight = embedding_reg_weight

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss, () for the default reducer.

        Args:
            embeddings: (N, D), raw: CosineSimilarity normalises inside.
            labels: (N,) of any dtype; needed without ``indices_tuple``.
            indices_tuple: pairs (a1, p, a2, n) or triplets (a, p, n) as a miner returns them.
            ref_emb, ref_labels: (K, D) and (K,), whose rows are the partners of the anchors. With
                ``ref_labels`` absent or the very object ``labels``, pairs (i, i) do not count.
        """
        _check_rows(embeddings, labels)
        labels = labels if labels is None else labels.to(embeddings.device)
        own = ref_emb is None or ref_labels is None or ref_labels is labels
        if ref_emb is None:
            ref_emb, ref_labels = embeddings, labels
        elif ref_labels is None:
            ref_labels = labels
        _check_rows(ref_emb, None if indices_tuple is not None else ref_labels)
        if indices_tuple is not None:
            lists = listed_pairs(indices_tuple, embeddings.device)
            found = self._over_lists(embeddings, ref_emb, lists)
        elif labels is None or ref_labels is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        else:
            pairs = LabelPairs(labels, ref_labels.to(embeddings.device), own)
            found = self._over_labels(embeddings, ref_emb, pairs)
        return self._reduced(found, embeddings, labels)

    def _over_labels(self, embeddings: Tensor, ref_emb: Tensor, pairs: LabelPairs):
        if _no_loss(pairs.num_positive, pairs.num_negative):
            return None
        if not _is_cosine(self.distance):
            same_NK = pairs.anchor_N[:, None] == pairs.ref_K[None, :]
            lists = (*pairs.positives(), *torch.where(~same_NK))
            return self._listed(self._logits(embeddings, ref_emb), lists)
        query_ND = unit_rows(embeddings)
        key_KD = query_ND if ref_emb is embeddings else unit_rows(ref_emb)
        return self._by_label(query_ND, key_KD, pairs)

    def _over_lists(self, embeddings: Tensor, ref_emb: Tensor, lists: tuple[Tensor, ...]):
        if _no_loss(len(lists[0]), len(lists[2])):
            return None
        return self._listed(self._logits(embeddings, ref_emb), lists)

    def _logits(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """(N, K) similarities, or negated distances, over the temperature."""
        if _is_cosine(self.distance):
            return unit_rows(embeddings) @ unit_rows(ref_emb).T / self.temperature
        assert self.distance is not None
        x_NK = widened(self.distance(embeddings, ref_emb)) / self.temperature
        return x_NK if self.distance.is_inverted else -x_NK

    def _reduced(self, found, embeddings: Tensor, labels: Tensor | None) -> Tensor:
        if found is None:
            found = 0, None, "already_reduced"  # what the original hands to its reducer
        if self.reducer is None:
            loss = (
                (embeddings * 0).sum()
                if found[1] is None
                else as_peers_return_it(self._default_reduction(found[0]), embeddings)
            )
        else:
            keys = ("losses", "indices", "reduction_type")
            losses = found[0] if found[1] is None else as_peers_return_it(found[0], embeddings)
            named = dict(zip(keys, (losses, *found[1:]), strict=True))
            loss = self.reducer({"loss": named}, embeddings, labels)
        if self.embedding_regularizer is None:
            return loss
        return loss + self.embedding_regularizer(embeddings) * self.embedding_reg_weight


class NTXentLoss(_PairLoss):
    """``pytorch_metric_learning.losses.NTXentLoss``: one term per positive pair.

    -log(exp(s_ap / tau) / (exp(s_ap / tau) + sum over negatives n of a of exp(s_an / tau))), mean
    over the positive pairs. Differs: a term is exact where the original stops at -log(tiny), 87 in
    float32, and has no gradient; ``collect_stats`` is refused; ``distance`` is None by default.

    Args:
        temperature, distance, reducer, embedding_regularizer, embedding_reg_weight: the original's.
    """

    def __init__(self, temperature: float = 0.07, **kwargs) -> None:
        super().__init__(temperature, **kwargs)

    def _by_label(self, query_ND: Tensor, key_KD: Tensor, pairs: LabelPairs):
        scale = 1 / self.temperature
        negative_N = contrast(query_ND, key_KD, scale, pairs=pairs.negatives, bound=1.0).rows
        anchor_P, ref_P = pairs.positives()
        positive_P = pair_dots(query_ND, key_KD, anchor_P, ref_P) * scale
        return excess(negative_N[anchor_P], positive_P), (anchor_P, ref_P), "pos_pair"

    def _listed(self, x_NK: Tensor, lists: tuple[Tensor, ...]):
        anchor_P, ref_P, anchor_Q, ref_Q = lists
        negative_N = log_sum_exp_by_anchor(x_NK[anchor_Q, ref_Q], anchor_Q, len(x_NK))
        losses_P = excess(negative_N[anchor_P], x_NK[anchor_P, ref_P])
        return losses_P, (anchor_P, ref_P), "pos_pair"

    def _default_reduction(self, losses_P: Tensor) -> Tensor:
        return losses_P.mean()


class SupConLoss(_PairLoss):
    """``pytorch_metric_learning.losses.SupConLoss``: L_out of Khosla et al., arXiv:2004.11362.

    Per anchor, the log of the sum of exp(s / tau) over all its pairs minus the mean of s / tau over
    its positives; mean over the anchors whose loss is above zero. Differs: by label, a loss below
    the rounding error of its two terms counts as zero, where the original counts what its own
    rounding leaves, and a NaN among the losses is the result, where the original leaves it out
    beside finite ones; ``collect_stats`` is refused; ``distance`` is None by default.

    Args:
        temperature, distance, reducer, embedding_regularizer, embedding_reg_weight: the original's.
    """

    def __init__(self, temperature: float = 0.1, **kwargs) -> None:
        super().__init__(temperature, **kwargs)

    def _by_label(self, query_ND: Tensor, key_KD: Tensor, pairs: LabelPairs):
        scale = 1 / self.temperature
        every_N = contrast(query_ND, key_KD, scale, pairs=pairs.every, bound=1.0).rows
        losses_N = every_N - row_dots(query_ND, pairs.mean_positive(key_KD)) * scale
        noise = 4 * torch.finfo(losses_N.dtype).eps * max(1.0, abs(scale))
        counts_N = (pairs.positives_N > 0) & ~(losses_N <= noise)  # NaN is no zero
        return _per_anchor(torch.where(counts_N, losses_N, 0.0))

    def _listed(self, x_NK: Tensor, lists: tuple[Tensor, ...]):
        positive_NK, negative_NK = (torch.zeros_like(x_NK, dtype=torch.bool) for _ in range(2))
        positive_NK[lists[0], lists[1]] = True
        negative_NK[lists[2], lists[3]] = True
        if bool((positive_NK & negative_NK).any()):
            raise ValueError(
                "SupConLoss: indices_tuple must name each pair as positive or negative; received "
                "pairs that are both"
            )
        x_NK = x_NK - x_NK.detach().amax(dim=1, keepdim=True)
        paired_NK = positive_NK | negative_NK
        paired_N = paired_NK.any(dim=1)
        # A row without pairs keeps all its logits: its logarithm is finite and then dropped.
        kept_NK = paired_NK | ~paired_N[:, None]
        every_N = x_NK.masked_fill(~kept_NK, -torch.inf).logsumexp(dim=1)
        count_N = positive_NK.sum(dim=1)
        mean_N = torch.where(positive_NK, x_NK, 0.0).sum(dim=1) / count_N.clamp(min=1)
        return _per_anchor(torch.where(count_N > 0, every_N - mean_N, 0.0))

    def _default_reduction(self, losses_N: Tensor) -> Tensor:
        above_N = ~(losses_N <= 0)
        return torch.where(above_N, losses_N, 0.0).sum() / above_N.sum().clamp(min=1)


def _per_anchor(losses_N: Tensor):
    return losses_N, torch.arange(len(losses_N), device=losses_N.device), "element"


def _no_loss(num_positive: int, num_negative: int) -> bool:
    """Where the original returns zero: one kind is missing, or there is but one pair of each."""
    return num_positive == 0 or num_negative == 0 or max(num_positive, num_negative) == 1


def _is_cosine(distance: nn.Module | None) -> bool:
    """The default, or the original's class for it, with nothing changed."""
    if distance is None:
        return True
    settings = (getattr(distance, "p", None), getattr(distance, "power", None))
    return type(distance).__name__ == "CosineSimilarity" and settings == (2, 1)


def _check_rows(embeddings: Tensor, labels: Tensor | None) -> None:
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        received = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(f"embeddings must be a tensor of floats; received {received}")
    if embeddings.dim() != 2:
        raise ValueError("embeddings must be a 2D tensor of shape (batch_size, embedding_size)")
    if labels is not None and embeddings.shape[0] != labels.shape[0]:
        raise ValueError("Number of embeddings must equal number of labels")
    if labels is not None and labels.dim() != 1:
        raise ValueError("labels must be a 1D tensor of shape (batch_size,)")
