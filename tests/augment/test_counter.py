"""The tensors' random stream is keyed.py's, bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastssl.augment import counter, keyed

integers = st.integers(-(2**70), 2**70)
indices = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)


@given(integers, integers, indices, st.lists(st.text(max_size=9), min_size=1, max_size=3))
def test_words_and_uniforms_are_the_bits_of_keyed(seed, epoch, index, streams):
    key = {"seed": seed, "epoch": epoch}
    index_N = np.array(index, np.int64)
    for ours, theirs in ((counter.bits, keyed.bits), (counter.uniform, keyed.uniform)):
        drawn_VNK = ours(7, **key, index_N=torch.from_numpy(index_N), streams=streams).numpy()
        for drawn_NK, stream in zip(drawn_VNK, streams, strict=True):
            expected_NK = theirs(7, **key, index_N=index_N, stream=stream)
            assert drawn_NK.tobytes() == expected_NK.tobytes()


def test_uniforms_fill_the_unit_interval():
    drawn = counter.uniform(50, seed=0, epoch=0, index_N=torch.arange(4000), streams=["a", "b"])
    assert 0 <= drawn.min() < 1e-4 and 1 - 1e-4 < drawn.max() < 1
    assert abs(drawn.mean().item() - 0.5) < 0.002
