"""The contract of what a method's settings make of it: other bases, families, numbers of crops."""

# shapes: N batch, S side
from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from fastssl.nn.convnet import ConvNet
from tests.methods import papers_of_variants as papers
from tests.methods.built import (
    assert_gradients_reach,
    build,
    by_loops,
    compiled_whole,
    four_crops,
    gradients,
    run,
    table_of,
    two_views,
)


def tiny_vit():
    net = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    net.heads = nn.Identity()
    net.num_features = 16
    return net


@dataclass
class Variant:
    method: str
    paper: Any
    settings: dict = field(default_factory=dict)
    backbone: Any = ConvNet
    views: Any = two_views
    random: bool = False  # it draws numbers in its forward, and the compiler draws others

    def build(self, seed=0):
        return build(self.method, seed, backbone=self.backbone, **self.settings)


OVER_MOCO = {"over": "mocov2", "queue_size": 20}
LOW_RANK = {"generator": "low-rank"}
OVER_MOCOV3 = {"over": "mocov3", "predictor_hidden_dims": (24,), "prompt_networks": 4}
BITS = {"latent": "bernoulli", "latent_dim": 16, "beta": 0.01}
VALUES = {"latent": "categorical", "latent_dim": 16, "values": 4, "beta": 0.01}

VARIANTS = {
    "amortised-mocov2": Variant(
        "amortised", papers.amortised_mocov2, OVER_MOCO | LOW_RANK | {"bn_splits": 2}
    ),
    "amortised-mocov3-vit": Variant("amortised", papers.amortised_mocov3, OVER_MOCOV3, tiny_vit),
    "amortised-mocov2-vit": Variant(
        "amortised", papers.amortised_mocov2, OVER_MOCO | {"prompt_networks": 4}, tiny_vit
    ),
    "invclr-mocov2": Variant(
        "invclr", papers.invclr_mocov2, OVER_MOCO | {"bn_splits": 2}, random=True
    ),
    "bernoulli": Variant("stochastic", papers.bernoulli, BITS, random=True),
    "bernoulli-hard": Variant(
        "stochastic", papers.bernoulli, BITS | {"sampling": "hard"}, random=True
    ),
    "categorical": Variant("stochastic", papers.categorical, VALUES, random=True),
    "categorical-hard": Variant(
        "stochastic", papers.categorical, VALUES | {"sampling": "hard"}, random=True
    ),
    "swav-crops": Variant("swav", papers.swav, views=four_crops),
    "dino-crops": Variant("dino", papers.dino, views=four_crops),
    "dissl-crops": Variant("dissl", papers.dissl, views=four_crops),
}
pytestmark = pytest.mark.usefixtures("one_thread")
each = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@each
def test_loss_and_gradients_equal_the_paper_written_as_loops(variant):
    method, views = variant.build().double(), variant.views(dtype=torch.float64)
    twin = copy.deepcopy(method)
    expected = by_loops(variant.paper, twin, views)
    loss, _ = run(method, views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    theirs = gradients(twin, expected)
    largest = max(float(g.abs().max()) for g in theirs)
    for ours, other in zip(gradients(method, loss), theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-8, atol=1e-10 * largest)


@each
def test_all_trained_parameters_get_a_finite_gradient(variant):
    method = variant.build()
    loss, _ = run(method, variant.views(16))
    assert_gradients_reach(method, loss)


@each
def test_state_dict_round_trip_gives_the_same_loss(variant):
    method, other, views = variant.build(), variant.build(seed=7), variant.views()
    run(method, views)
    if hasattr(method, "after_step"):
        method.after_step(0, 3)  # moves teachers and counters off their initial values
    other.load_state_dict(method.state_dict())
    assert torch.equal(run(method, views)[0], run(other, views)[0])


@each
def test_forward_is_one_graph_and_is_compiled_once(variant):
    method = variant.build()
    step, compiler = compiled_whole(method)
    for seed in range(2):
        views = variant.views(seed=seed)
        reference = run(copy.deepcopy(method), views)[0].detach()
        table = table_of(method, views)
        torch.manual_seed(3)
        loss, _ = step(views, table)
        if not variant.random:
            torch.testing.assert_close(loss, reference)
        loss.backward()
    assert len(compiler.graphs) == 1
