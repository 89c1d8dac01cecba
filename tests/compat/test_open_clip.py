"""``fastssl.compat.open_clip`` beside open_clip: values, gradients of all inputs, refusals."""

# shapes: N pairs, D features
from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.compat import open_clip as ours
from tests.compat.compare import assert_same, drawn, dtypes, seeds

theirs = pytest.importorskip(
    "open_clip.loss", reason="open_clip is not installed: pip install open_clip_torch"
)

NAMES = ["ClipLoss", "SigLipLoss"]
every_loss = pytest.mark.parametrize("name", NAMES)
scales = st.sampled_from([1.0, 2.6592, 14.3, 100.0])
biases = st.sampled_from([None, -10.0, 0.0, 1.5])


def both(name, **options):
    return getattr(ours, name)(**options), getattr(theirs, name)(**options)


def features(seed, num_pairs, width):
    return [F.normalize(side, dim=1) for side in drawn(seed, *[(num_pairs, width)] * 2)]


@every_loss
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 40), scales, biases, dtypes, seeds)
def test_value_and_every_gradient(name, num_pairs, width, scale, bias, dtype, seed):
    constants = [torch.tensor(x, dtype=torch.float64) for x in (scale, bias) if x is not None]
    inputs = [*features(seed, num_pairs, width), *constants]
    missing = [None] * (bias is None)
    pair = [lambda *given, loss=loss: loss(*given, *missing) for loss in both(name)]
    logit = num_pairs * (scale + abs(bias or 0)) if name == "SigLipLoss" else scale
    assert_same(*pair, inputs, dtype, logit)


@every_loss
def test_features_are_taken_as_they_are(name):
    inputs = drawn(0, (9, 5), (9, 5))
    pair = [lambda *given, loss=loss: loss(*given, 1.7, -0.3) for loss in both(name)]
    assert_same(*pair, inputs, torch.float64, 20.0)


@every_loss
def test_one_number_of_another_shape_is_a_scale(name):
    """open_clip's nonscalar_logit_scale keeps it with shape (1,)."""
    inputs = [*features(0, 9, 5), torch.tensor([10.0]).double(), torch.tensor([-3.0]).double()]
    assert_same(*both(name), inputs, torch.float64, 10.0)


@every_loss
def test_every_parameter_is_part_of_the_graph(name):
    """DDP waits for a gradient of each, the bias of ClipLoss included."""
    constants = [torch.tensor(x, requires_grad=True) for x in (10.0, -10.0)]
    getattr(ours, name)()(*features(0, 9, 5), *constants).backward()
    assert None not in [constant.grad for constant in constants]


@every_loss
def test_one_side_may_be_frozen(name):
    image, text = features(0, 9, 5)
    found = []
    for loss in both(name):
        frozen = text.clone()
        side = image.clone().requires_grad_()
        loss(side, frozen, 10.0, -10.0).backward()
        found.append(side.grad)
    torch.testing.assert_close(*found)


@every_loss
def test_the_dictionary_and_the_signatures_are_the_originals(name):
    mine, peer = both(name)
    image, text = features(0, 4, 3)
    given = dict(image_features=image, text_features=text, logit_scale=5.0, logit_bias=-1.0)
    answers = [loss(**given, output_dict=True) for loss in (mine, peer)]
    assert list(answers[0]) == ["contrastive_loss"]
    torch.testing.assert_close(*answers)
    for function in ("__init__", "forward"):
        names = [list(inspect.signature(getattr(x, function)).parameters) for x in (mine, peer)]
        assert names[0] == names[1]
    assert list(mine.state_dict()) == list(peer.state_dict())
    copy.deepcopy(mine)


def test_the_options_of_one_process_change_nothing():
    image, text = features(0, 6, 3)
    options = dict(local_loss=True, gather_with_grad=True, cache_labels=True, use_horovod=True)
    assert ours.ClipLoss(**options)(image, text, 9.0) == ours.ClipLoss()(image, text, 9.0)
    values = {
        ours.SigLipLoss(dist_impl=way)(image, text, 9.0, -9.0).item() for way in ours.EXCHANGES
    }
    assert len(values) == 1


def test_many_processes_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="ClipLoss: world_size must be .* 1 here; received 2"):
        ours.ClipLoss(rank=1, world_size=2)(*features(0, 4, 3), 1.0)


@every_loss
def test_unequal_towers_are_refused(name):
    image, text = features(0, 4, 3)
    with pytest.raises(ValueError, match=rf"{name}: text_features .* received \(3, 3\)"):
        getattr(ours, name)()(image, text[:3], 1.0, 0.0)


def test_siglip_over_ranks_needs_a_process_group():
    """Over real ranks: tests/distributed/test_siglip.py."""
    loss = ours.SigLipLoss(rank=1, world_size=2)
    with pytest.raises(
        ValueError, match=r"rank, world_size .* no process group; received \(1, 2\)"
    ):
        loss(*features(0, 4, 3), 1.0, 0.0)


def test_an_unknown_exchange_is_refused():
    with pytest.raises(ValueError, match="dist_impl must be one of .* received 'ring'"):
        ours.SigLipLoss(dist_impl="ring")


def test_the_gradient_of_a_16_bit_scale_is_rounded_once():
    """It is a small difference of two sums: rounded one by one, they leave noise."""
    generator = torch.Generator().manual_seed(16)
    rows = [F.normalize(torch.randn(64, 16, generator=generator), dim=1) for _ in range(2)]
    rows = [x_ND.bfloat16() for x_ND in rows]

    def gradient(dtype):
        scale = torch.tensor(1.0, dtype=dtype, requires_grad=True)
        ours.ClipLoss()(*(x_ND.to(dtype) for x_ND in rows), scale).backward()
        return scale.grad.item()

    exact = gradient(torch.float64)
    assert gradient(torch.bfloat16) == pytest.approx(exact, rel=2**-8)


@every_loss
def test_bad_calls_are_refused_by_name(name):
    image, text = features(0, 4, 3)
    loss = getattr(ours, name)()
    for wrong, received in (
        (image.long(), "torch.int64"),
        (image[0], r"shape \(3,\)"),
        (image[:0], r"shape \(0, 3\)"),
        (image.detach().numpy(), "ndarray"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: image_features .* received {received}"):
            loss(wrong, wrong, 1.0, 0.0)
    for scale in (torch.ones(3), "1", None):
        with pytest.raises(ValueError, match=f"^{name}: logit_scale must be .* received"):
            loss(image, text, scale, 0.0)


def test_a_bias_of_several_numbers_is_refused():
    with pytest.raises(ValueError, match=r"^SigLipLoss: logit_bias must be .* \(3,\)"):
        ours.SigLipLoss()(*features(0, 4, 3), 1.0, torch.ones(3))
