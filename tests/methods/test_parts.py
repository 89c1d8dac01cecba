"""The networks that methods are made of: split norms, heads of corners, generated kernels."""

# shapes: N batch, C channels
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastssl.engine.sync_norm import RankBatchNorm, over_ranks
from fastssl.nn.backbones import build_backbone
from fastssl.nn.convnet import ConvNet
from fastssl.nn.corner_heads import CornerHeads
from fastssl.nn.expand import BottleneckExpand, expand
from fastssl.nn.hyper import HyperEncoder
from fastssl.nn.split_norm import SplitBatchNorm2d, split_batch_norm

SETTINGS = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_split_norm_is_the_ordinary_one_of_each_part(settings):
    whole = nn.BatchNorm2d(3, **settings).double()
    split = split_batch_norm(copy.deepcopy(whole), 2)
    assert isinstance(split, SplitBatchNorm2d)
    means = []
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 2 + 1
        means.append(x.mean((0, 2, 3)))
        parts = [copy.deepcopy(whole), whole]
        expected = torch.empty_like(x)
        for part, norm in enumerate(parts):
            expected[part::2] = norm(x[part::2])
        torch.testing.assert_close(split(x), expected)
        if whole.running_mean is not None:
            for name in ("running_mean", "running_var"):
                here = torch.stack([getattr(norm, name) for norm in parts]).mean(0)
                getattr(whole, name).copy_(here)
    assert split.state_dict().keys() == whole.state_dict().keys()
    torch.testing.assert_close(split.state_dict(), whole.state_dict())
    torch.testing.assert_close(split.eval()(x), whole.eval()(x))


def test_a_split_norm_keeps_the_memory_format():
    split = split_batch_norm(nn.BatchNorm2d(3), 2)
    x = torch.randn(4, 3, 5, 5)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        out = split(x.contiguous(memory_format=memory_format))
        assert out.is_contiguous(memory_format=memory_format)


def test_normalised_heads_have_scales_and_shifts_of_their_corner():
    heads = CornerHeads(3, 6, (5, 4), norm="batch").double()
    with torch.no_grad():
        heads.gains[0][1], heads.biases[0][1] = 2.0, 0.5
    h = torch.randn(8, 6, dtype=torch.float64)
    for corner, scale, shift in ((0, 1.0, 0.0), (1, 2.0, 0.5)):
        x = h @ heads.weights[0][corner].T
        x = torch.relu(nn.functional.batch_norm(x, None, None, training=True) * scale + shift)
        x = x @ heads.weights[1][corner].T
        expected = nn.functional.batch_norm(x, None, None, training=True)
        torch.testing.assert_close(heads(h, torch.tensor(corner)), expected)
    assert torch.equal(heads.eval()(h, torch.tensor(1)), heads.train()(h, torch.tensor(1)))
    over_ranks(heads, "a group")
    assert all(isinstance(norm, RankBatchNorm) and norm.group == "a group" for norm in heads.norms)


def test_kernels_hardly_depend_on_the_vector_at_the_start():
    torch.manual_seed(0)
    encoder = HyperEncoder(ConvNet(), 2)
    ones, apart = (encoder.generated(torch.tensor(bits)) for bits in ([1.0, 1.0], [1.0, 0.0]))
    for name, kernel in ones.items():
        change = (apart[name] - kernel).std() / kernel.std()
        assert 0 < change < 0.5, name
    last = encoder.kernels[-1][0].kernel
    assert float(last.weight.detach().std()) == pytest.approx(
        (2 / last.out_features) ** 0.5, rel=0.05
    )


def test_dropout_is_of_training_alone():
    torch.manual_seed(0)
    encoder = HyperEncoder(ConvNet(), 2, dropout=0.5)
    x, bits = torch.rand(8, 3, 16, 16), torch.ones(2)
    assert not torch.equal(encoder(x, bits), encoder(x, bits))
    encoder.eval()
    assert torch.equal(encoder(x, bits), encoder(x, bits))


def test_the_wider_bottleneck_starts_with_the_authors_deviations():
    torch.manual_seed(0)
    convs = [m for m in BottleneckExpand(64, 128, hidden=32).layers if isinstance(m, nn.Conv2d)]
    for conv, expected in zip(convs, (32**-0.5, (32 * 9) ** -0.5, 32**-0.5), strict=True):
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.06)
    assert float(convs[1].weight.detach().abs().max()) < 2.3 * (32 * 9) ** -0.5


@pytest.mark.parametrize("name", ["convnet", "resnet18", "efficientnet_b0"])
def test_a_backbone_that_ends_in_its_pooling_is_widened(name):
    wider = expand(build_backbone(name, 32), 96, hidden=16).eval()
    assert wider(torch.rand(2, 3, 32, 32)).shape == (2, 96) and wider.num_features == 96


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mlp", "densenet121"])
def test_a_backbone_with_layers_after_its_pooling_is_refused_before_it_runs(name):
    backbone = build_backbone(name, 64)
    told = "MobileNetV3, whose classifier follows its pooling" if "v3" in name else "received"
    with pytest.raises(ValueError, match=f"dim: expected the convnet.*{told}"):
        expand(backbone, 96)
