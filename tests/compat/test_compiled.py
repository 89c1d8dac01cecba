"""The replacements under ``torch.compile``: same numbers as without it."""

# shapes: N rows, D features
from __future__ import annotations

import copy

import pytest
import torch

from fastssl.compat import lightly, open_clip, solo
from fastssl.compat import pytorch_metric_learning as metric
from tests.compat.compare import drawn

IDS = torch.arange(12) % 4
(QUEUE_DK,) = drawn(1, (6, 30))
# One graph where nothing waits for a number; a memory bank's pointer and pair counts do.
IN_ONE_GRAPH = {
    "lightly.NTXentLoss": lightly.NTXentLoss(0.2),
    "lightly.DCLWLoss": lightly.DCLWLoss(0.2),
    "ClipLoss": lambda a, b: open_clip.ClipLoss()(a, b, 10.0),
    "SigLipLoss": lambda a, b: open_clip.SigLipLoss()(a, b, 10.0, -10.0),
    "simclr_loss_func": lambda a, b: solo.simclr_loss_func(torch.cat([a, b]), IDS.repeat(2)),
    "mocov2plus_loss_func": lambda a, b: solo.mocov2plus_loss_func(a, b, QUEUE_DK),
}
WITH_BREAKS = {
    "lightly.NTXentLoss with a bank": lightly.NTXentLoss(0.2, memory_bank_size=(30, 6)).double(),
    "metric.NTXentLoss": lambda a, b: metric.NTXentLoss()(a, IDS, ref_emb=b, ref_labels=IDS + 1),
    "metric.SupConLoss": lambda a, b: metric.SupConLoss()(a, IDS, ref_emb=b, ref_labels=IDS + 1),
}


# Dynamo's own, when it resumes after a break; so is the one about the pointer's value.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", [*IN_ONE_GRAPH, *WITH_BREAKS])
def test_compiled_is_the_same(name):
    torch._dynamo.reset()
    loss = (IN_ONE_GRAPH | WITH_BREAKS)[name]
    eager = copy.deepcopy(loss)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=name in IN_ONE_GRAPH)
    for seed in range(4):  # a bank of 30 rows wraps at the third call
        views = [x.requires_grad_() for x in drawn(seed, (12, 6), (12, 6))]
        values = [function(*views) for function in (compiled, eager)]
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*[torch.autograd.grad(value, views) for value in values])
