"""``CachedStep`` over ranks: DDP averages once per step, unequal parts included."""

from __future__ import annotations

import pytest
import torch

from fastssl.losses import NTXentLoss
from tests.distributed import layer_calls


@pytest.mark.parametrize("counts", [[8, 8], [11, 5]])
def test_cached_ranks_train_like_one_process_on_the_whole_batch(two, counts):
    generator = torch.Generator().manual_seed(0)
    x_VNI = torch.randn(2, 16, 5, generator=generator, dtype=torch.float64)
    model = layer_calls.small_encoder()
    layer_calls.train_small(model, lambda: NTXentLoss(0.3)(*map(model, x_VNI)).backward())
    for weights in two.run(layer_calls.cached_steps, x_VNI, counts, 3):
        for name, expected in model.named_parameters():
            error = (weights[name] - expected).norm() / expected.norm()
            assert error <= 1e-12, f"{name}: {error:.1e}"
