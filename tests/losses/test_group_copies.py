"""A module with ``group=``: a deep copy (as an EMA makes) shares the group; a pickle is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from benchmarks.features import one_rank
from fastssl import losses

BUILT = (
    losses.NTXentLoss, losses.InfoNCELoss, losses.MoCoLoss, losses.CISSLLoss, losses.CLIPLoss,
    losses.SigLIPLoss, losses.SupConLoss, losses.DCLLoss, losses.DCLWLoss,
    losses.MultiCropNTXentLoss, losses.SwAVLoss, losses.DISSLLoss,
    lambda group: losses.DINOLoss(4, group=group),
    lambda group: losses.KeyQueue(8, 3, group=group),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["group", "Ring"])
def test_a_copy_shares_the_group_and_nothing_else(kind):
    with one_rank() as world:
        group = losses.Ring(world) if kind == "Ring" else world
        for build in BUILT:
            module = build(group=group)
            twin = copy.deepcopy(module)
            held = twin.group.group if kind == "Ring" else twin.group
            assert held is world, type(module).__name__
            for mine, theirs in zip(module.buffers(), twin.buffers(), strict=True):
                assert mine is not theirs


def test_a_copied_queue_goes_its_own_way():
    with one_rank() as world:
        queue = losses.KeyQueue(8, 3, dtype=torch.float32, group=world)
        twin = copy.deepcopy(queue)
        twin.enqueue(torch.randn(5, 3))
        assert (int(queue.pointer), int(twin.pointer)) == (0, 5)


@pytest.mark.parametrize("kind", ["group", "Ring"])
def test_a_pickle_says_what_to_do(kind):
    with one_rank() as world:
        module = losses.NTXentLoss(group=losses.Ring(world) if kind == "Ring" else world)
        with pytest.raises(pickle.PicklingError, match="set group = None on the module before"):
            pickle.dumps(module)
        module.group = None
        assert pickle.dumps(module)
