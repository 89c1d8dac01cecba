"""Sums over the rows of a class in O(K D), without a K x K mask and with static shapes."""

# shapes: N queries, K keys, D embedding
from __future__ import annotations

import torch
from torch import Tensor


def _place(query_ids_N: Tensor, key_ids_K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A slot per class of the keys: that of each query, of each key, and whether it is there."""
    sorted_K = key_ids_K.sort().values
    slot_K = torch.searchsorted(sorted_K, key_ids_K)
    slot_N = torch.searchsorted(sorted_K, query_ids_N).clamp_max(sorted_K.shape[0] - 1)
    return slot_N, slot_K, sorted_K[slot_N] == query_ids_N


def class_counts(query_ids_N: Tensor, key_ids_K: Tensor) -> Tensor:
    """(N,) int64: how many keys have the id of the query."""
    slot_N, slot_K, known_N = _place(query_ids_N, key_ids_K)
    counts_K = torch.zeros_like(key_ids_K).index_add(0, slot_K, torch.ones_like(key_ids_K))
    return counts_K[slot_N] * known_N


def class_sums(keys_KD: Tensor, query_ids_N: Tensor, key_ids_K: Tensor) -> Tensor:
    """(N, D): the sum of the keys that have the id of the query."""
    slot_N, slot_K, known_N = _place(query_ids_N, key_ids_K)
    sums_KD = torch.zeros_like(keys_KD).index_add(0, slot_K, keys_KD)
    return sums_KD[slot_N] * known_N[:, None]
