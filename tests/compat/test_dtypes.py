"""The dtype of a result: the embeddings', or float32 under autocast."""

# shapes: N rows, D features
from __future__ import annotations

import pytest
import torch

from fastssl.compat import lightly, open_clip, solo
from fastssl.compat import pytorch_metric_learning as metric
from tests.compat.compare import drawn

IDS = torch.arange(6) % 3
LOSSES = {
    "lightly.NTXentLoss": lightly.NTXentLoss(),
    "lightly.NTXentLoss with a bank": lightly.NTXentLoss(memory_bank_size=(20, 4)),
    "lightly.DCLWLoss": lightly.DCLWLoss(),
    "ClipLoss": lambda a, b: open_clip.ClipLoss()(a, b, torch.tensor(9.0)),
    "SigLipLoss": lambda a, b: open_clip.SigLipLoss()(a, b, torch.tensor(9.0), torch.tensor(-9.0)),
    "simclr_loss_func": lambda a, b: solo.simclr_loss_func(torch.cat([a, b]), IDS.repeat(2)),
    "mocov2plus_loss_func": lambda a, b: solo.mocov2plus_loss_func(a, b, b.detach().T),
    "metric.NTXentLoss": lambda a, b: metric.NTXentLoss()(torch.cat([a, b]), IDS.repeat(2)),
    "metric.SupConLoss": lambda a, b: metric.SupConLoss()(torch.cat([a, b]), IDS.repeat(2)),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_has_the_dtype_of_its_embeddings(name, dtype):
    views = [x.to(dtype).requires_grad_() for x in drawn(0, (6, 4), (6, 4))]
    loss = LOSSES[name](*views)
    assert loss.dtype == dtype
    assert [g.dtype for g in torch.autograd.grad(loss, views)] == [dtype, dtype]
    narrow = torch.float16 if dtype == torch.float16 else torch.bfloat16
    with torch.autocast("cpu", dtype=narrow):
        assert LOSSES[name](*views).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if "Clip" not in name and "Lip" not in name]
)
def test_a_row_of_zeros_keeps_float16_gradients_finite(name):
    views = [x.half() for x in drawn(0, (6, 4), (6, 4))]
    views[0][1] = 0
    views = [x.requires_grad_() for x in views]
    for gradient in torch.autograd.grad(LOSSES[name](*views), views, materialize_grads=True):
        assert gradient.isfinite().all()
