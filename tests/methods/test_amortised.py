"""Amortised invariances: each corner has its own head and queue, on two bits and on five."""

# shapes: N batch, C channels, S side, K bits
from __future__ import annotations

import pytest
import torch

from fastssl.augment.presets import amortised_5
from fastssl.augment.spirograph import PRESETS
from fastssl.data.spirograph import SpirographSource
from fastssl.methods.amortised import Amortised
from fastssl.methods.paper_configs import AmortisedConfig
from fastssl.nn.convnet import ConvNet
from tests.methods.papers import told

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"generator": "low-rank", "projector_dims": (8, 4), "queue_size": 16, "bn_splits": 1}


def built(**settings):
    torch.manual_seed(0)
    return Amortised(ConvNet(), AmortisedConfig(**(SMALL | settings)))


def table(bits, corner, n=6):
    changed = told(n)
    return type(changed)(
        labels_VNO=changed.labels_VNO,
        bits_K=torch.tensor(bits, dtype=torch.float32),
        corner=torch.tensor(corner),
    )


def two_views(n=6):
    return tuple(torch.rand(2, n, 3, 16, 16, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("over", ["simclr", "mocov2", "mocov3"])
@pytest.mark.parametrize("corner", [0, 2])
def test_the_heads_of_other_corners_learn_nothing(over, corner):
    method = built(over=over, predictor_hidden_dims=(8,))
    loss, _ = method(two_views(), table((0, 1), corner))
    loss.backward()
    heads = [method.heads] + ([method.predictors] if over == "mocov3" else [])
    for module in heads:
        for name, stacked in module.named_parameters():
            learns = [bool(g.abs().sum() > 0) for g in stacked.grad]
            assert learns == [position == corner for position in range(3)], name


def test_keys_enter_the_queue_of_their_corner_and_the_loss_reads_that_queue():
    method, views = built(over="mocov2", dropout=0.0), two_views()
    before = method.queues.rows.clone()
    method(views, table((1, 0), 1))
    changed = (method.queues.rows != before).any(dim=2).sum(dim=1)
    assert changed.tolist() == [0, 6, 0] and method.queues.pointer.tolist() == [0, 6, 0]
    method.eval()

    def loss_with(queue):
        method.queues.rows[queue] = -method.queues.rows[queue]
        with torch.no_grad():
            return float(method(views, table((1, 0), 1))[0])

    ours = loss_with(1)
    assert loss_with(0) == ours and loss_with(2) == ours
    assert loss_with(1) != ours


def test_the_parts_of_a_batch_that_keys_see_apart_do_not_hear_of_each_other():
    """As in MoCo v2: with statistics of the whole batch a key would tell which batch it is of."""
    method = built(over="mocov2", bn_splits=3, dropout=0.0)
    views, bits, corner = two_views()[1], torch.tensor([0.0, 1.0]), torch.tensor(0)
    part_n = [0, 3]  # of three parts, sample by sample in turn
    changed = views * 3 - 1
    changed[part_n] = views[part_n]
    keys, others = (method._keys(x, bits, corner)[part_n] for x in (views, changed))
    torch.testing.assert_close(keys, others)


def test_a_table_of_other_bits_is_refused():
    with pytest.raises(ValueError, match="num_bits: expected 3, the groups.*received 2"):
        built()(two_views(), table((0, 1, 1), 1))


def test_queries_and_keys_are_told_the_same_vector():
    method, told_to = built(over="mocov2"), []
    for net in (method.backbone, method.keys.module["backbone"]):
        net.register_forward_pre_hook(lambda _, given: told_to.append(given[1].tolist()))
    method(two_views(), table((1, 0), 1))
    assert told_to == [[1, 0], [1, 0]]


def test_five_bits_have_26_corners_of_which_each_trains_its_own_head():
    corners = [corner.bits for corner in amortised_5(16).corners]
    method = built(num_bits=5, num_corners=len(corners), over="mocov2")
    assert method.queues.rows.shape[:2] == (26, 16)
    for position in (0, 13, 25):
        method.zero_grad()
        bits = corners[position]
        loss, metrics = method(two_views(), table(bits, position))
        loss.backward()
        assert torch.isfinite(loss) and float(metrics["bits_on"]) == sum(bits)
        learns = method.heads.weights[0].grad.flatten(1).any(dim=1)
        assert learns.nonzero().flatten().tolist() == [position]
        told_of = method.backbone.embed[0].weight.grad.any(dim=0)
        assert told_of.tolist() == [bool(bit) for bit in bits]
    assert (method.queues.pointer > 0).nonzero().flatten().tolist() == [0, 13, 25]
    assert method.features(two_views()[0], torch.full((5,), 0.5)).shape == (6, 128)


@pytest.mark.parametrize(("name", "bits"), [("geometry", (1, 0)), ("colour", (0, 1))])
def test_a_dedicated_policy_draws_its_group_afresh_in_every_step(name, bits):
    source = SpirographSource(image_size=8, augment=f"spirograph-{name}")
    both = SpirographSource(image_size=8, augment="spirograph-2")
    assert (bits,) == PRESETS[f"spirograph-{name}"].corners
    for step in range(12):
        one = source.batch(torch.arange(4).numpy(), seed=3, epoch=0, step=step).table
        fresh = (one.nuisance_VNA[1] != one.nuisance_VNA[0]).all(dim=0).tolist()
        assert fresh == [bool(bits[0])] + [bool(bits[1])] * 5
        other = both.batch(torch.arange(4).numpy(), seed=3, epoch=0, step=step).table
        if tuple(other.bits_K.tolist()) == bits:
            assert torch.equal(one.nuisance_VNA, other.nuisance_VNA)


def test_every_part_of_a_batch_has_the_vector_of_the_step():
    source = SpirographSource(image_size=8, augment="spirograph-2")
    asked = {"batch_size": 8, "seed": 4, "device": torch.device("cpu")}
    ranks = [source.batches(shard=(rank, 2), **asked) for rank in (0, 1)]
    drawn = set()
    for _ in range(12):
        first, second = (next(rank).table for rank in ranks)
        assert torch.equal(first.bits_K, second.bits_K) and first.corner == second.corner
        drawn.add(int(first.corner))
    assert drawn == {0, 1, 2}
