"""A second derivative of the replacements is right, or refused where the bank has moved on."""

# shapes: N rows, D features
from __future__ import annotations

import pytest
import torch

from fastssl.compat import lightly, open_clip, solo
from fastssl.compat import pytorch_metric_learning as metric
from tests.compat.compare import drawn

IDS = torch.tensor([0, 1, 1, 2])
(QUEUE_DK,) = drawn(1, (3, 5))
LOSSES = {
    "lightly.NTXentLoss": lightly.NTXentLoss(0.5),
    "lightly.DCLLoss": lightly.DCLLoss(0.5),
    "ClipLoss": lambda a, b: open_clip.ClipLoss()(a, b, 2.0),
    "SigLipLoss": lambda a, b: open_clip.SigLipLoss()(a, b, 2.0, -1.0),
    "simclr_loss_func": lambda a, b: solo.simclr_loss_func(torch.cat([a, b]), IDS.repeat(2), 0.5),
    "mocov2plus_loss_func": lambda a, b: solo.mocov2plus_loss_func(a, b, QUEUE_DK, 0.5),
    "metric.NTXentLoss": lambda a, b: metric.NTXentLoss(0.5)(a, IDS, ref_emb=b, ref_labels=IDS + 1),
    "metric.SupConLoss": lambda a, b: metric.SupConLoss(0.5)(torch.cat([a, b]), IDS.repeat(2)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_second_derivative_is_right(name):
    views = [x.requires_grad_() for x in drawn(0, (4, 3), (4, 3))]
    assert torch.autograd.gradgradcheck(LOSSES[name], views)


def test_a_second_derivative_over_a_bank_that_was_written_to_is_refused():
    views = [x.requires_grad_() for x in drawn(0, (4, 3), (4, 3))]
    loss = lightly.NTXentLoss(0.5, memory_bank_size=(9, 3)).double()(*views)
    with pytest.raises(RuntimeError, match="written to since"):
        torch.autograd.grad(loss, views, create_graph=True)
