"""``siglip_loss`` and ``SigLIPLoss``: the paper's sum over all pairs."""

# shapes: N pairs, D features
from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from fastssl.losses import SigLIPLoss, siglip_loss


def textbook(image_ND, text_ND, scale, bias):
    """Algorithm 1 in loops over Python floats, on unit rows."""
    total, num_pairs = 0.0, len(image_ND)
    for i in range(num_pairs):
        for j in range(num_pairs):
            u, v = image_ND[i] / image_ND[i].norm(), text_ND[j] / text_ND[j].norm()
            x = (1 if i == j else -1) * (scale * float(u @ v) + bias)
            total += math.log1p(math.exp(-abs(x))) + max(-x, 0.0)
    return total / num_pairs


def eager(image_ND, text_ND, scale, bias):
    """What a user would write: the whole matrix of logits."""
    x_NN = F.normalize(image_ND, dim=1) @ F.normalize(text_ND, dim=1).T * scale + bias
    y_NN = 2 * torch.eye(len(x_NN), dtype=x_NN.dtype) - 1
    return -F.logsigmoid(y_NN * x_NN).sum() / len(x_NN)


def drawn(num_pairs, width, dtype=torch.float64, scale=10.0, bias=-10.0):
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(num_pairs, width, generator=generator).to(dtype) for _ in range(2)]
    constants = [torch.tensor(x, dtype=torch.float64) for x in (scale, bias)]
    return [x.requires_grad_() for x in (*sides, *constants)]


def summed_terms(image_ND, text_ND, scale, bias):
    """Sizes of the terms that the value and the gradients of scale and bias are summed from."""
    u_dot_v_NN = F.normalize(image_ND, dim=1) @ F.normalize(text_ND, dim=1).T
    x_NN = u_dot_v_NN * scale + bias
    weight_NN = torch.where(torch.eye(len(x_NN), dtype=torch.bool), -x_NN, x_NN).sigmoid()
    weight_NN = weight_NN / len(x_NN)
    value = eager(image_ND, text_ND, scale, bias)
    return value, 0.0, 0.0, (weight_NN * u_dot_v_NN.abs()).sum(), weight_NN.sum()


def value_and_grads(loss, inputs):
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


@pytest.mark.parametrize("shape", [(1, 3), (7, 4), (12, 1)])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 3.0), (-5.0, 0.0)])
def test_float64_equals_the_textbook_loops(shape, scale, bias):
    inputs = drawn(*shape, scale=scale, bias=bias)
    expected = textbook(*[x.detach() for x in inputs[:2]], scale, bias)
    assert siglip_loss(*inputs).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_the_formula(reduction):
    inputs = drawn(9, 3)

    def ours(*inputs):
        loss = siglip_loss(*inputs, reduction=reduction)
        return loss if reduction == "mean" else loss.sum() / 9

    torch.testing.assert_close(value_and_grads(ours, inputs), value_and_grads(eager, inputs))
    assert torch.autograd.gradcheck(lambda *x: siglip_loss(*x, reduction=reduction), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, 30.0)])
def test_errs_no_more_than_torch_at_the_same_precision(dtype, scale, bias):
    inputs = drawn(40, 16, dtype, scale, bias)
    found = value_and_grads(siglip_loss, inputs)
    exact = value_and_grads(eager, [x.detach().double().requires_grad_() for x in inputs])
    wide = [x.detach().float().requires_grad_() for x in inputs]
    yardstick = value_and_grads(eager, wide)
    assert found[0].dtype == torch.float32
    terms = summed_terms(*[x.detach().double() for x in inputs])
    for mine, torchs, truth, summed in zip(found, yardstick, exact, terms, strict=True):
        rounding = torch.finfo(mine.dtype).eps * truth.abs().max()
        rounding += torch.finfo(torch.float32).eps * summed
        assert (mine - truth).abs().max() <= 4 * (torchs - truth).abs().max() + rounding


def test_autocast_changes_nothing():
    inputs = drawn(20, 8, torch.float32)
    plain = value_and_grads(siglip_loss, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = siglip_loss(*inputs)
    assert value == plain[0]
    torch.testing.assert_close([value.detach(), *torch.autograd.grad(value, inputs)], plain)


def test_the_module_learns_its_scale_and_bias():
    loss_fn = SigLIPLoss()
    assert [name for name, _ in loss_fn.named_parameters()] == ["log_scale", "bias"]
    image, text = (x.detach().float() for x in drawn(16, 8)[:2])
    loss_fn(image, text).backward()
    expected = eager(image, text, 10.0, torch.tensor(-10.0))
    torch.testing.assert_close(loss_fn(image, text), expected)
    assert loss_fn.log_scale.grad != 0
    assert loss_fn.bias.grad != 0
    twin = copy.deepcopy(loss_fn).double()
    twin.load_state_dict(loss_fn.state_dict())
    assert twin(image.double(), text.double()).dtype == torch.float64


def test_without_gradients_the_value_is_the_same():
    inputs = drawn(9, 4)
    with torch.no_grad():
        value = siglip_loss(*inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, siglip_loss(*inputs).detach(), rtol=1e-14, atol=0)
    image, text = (x.detach() for x in inputs[:2])
    assert siglip_loss(image, text) == siglip_loss(image, text, 10.0, -10.0)


def test_metrics_are_those_of_the_dense_similarities():
    image, text, *_ = drawn(9, 4)
    loss, metrics = SigLIPLoss().double().with_metrics(image, text)
    similarity_NN = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    own_NN = torch.eye(9, dtype=torch.bool)
    assert loss == SigLIPLoss().double()(image, text)
    torch.testing.assert_close(metrics.alignment, similarity_NN[own_NN].mean().detach())
    torch.testing.assert_close(metrics.negative_similarity, similarity_NN[~own_NN].mean().detach())
    assert metrics.top1.isnan()
    assert SigLIPLoss().with_metrics(image[:1], text[:1])[1].negative_similarity.isnan()


def test_one_frozen_side_gets_no_gradient():
    image, text, scale, bias = drawn(9, 4)
    siglip_loss(image, text.detach(), 10.0, -10.0).backward()
    assert image.grad is not None
    assert text.grad is scale.grad is bias.grad is None


def test_no_matrix_of_all_pairs_is_kept():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        siglip_loss(*drawn(50, 4))
    assert max(x.numel() for x in kept) == 50 * 4


def test_a_second_derivative_is_right():
    """Also through an encoder, where nothing of the loss's own gradient requires a gradient."""
    assert torch.autograd.gradgradcheck(siglip_loss, drawn(4, 3))
    image, text, scale, bias = drawn(5, 3)
    found = []
    for loss in (siglip_loss, eager):
        value = loss(image * 2, text, scale, bias)
        (slope,) = torch.autograd.grad(value, image, create_graph=True)
        found.append(torch.autograd.grad(slope.pow(2).sum(), [image, text, scale, bias]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(image=[1.0]), "image must be a tensor .* received list"),
        (dict(image=torch.ones(3)), r"image must be 2-D, .* received shape \(3,\)"),
        (dict(text=torch.ones(0, 3)), r"text must be non-empty.* \(0, 3\)"),
        (dict(image=torch.ones(4, 3, dtype=torch.int64)), "image must be float16.* torch.int64"),
        (dict(text=torch.ones(5, 3)), r"text must be of the shape of image; received \(5, 3\)"),
        (
            dict(text=torch.ones(4, 3, device="meta")),
            "text must be on the device of image; received meta",
        ),
        (dict(scale=torch.ones(2)), r"scale must be one floating number; .* \(2,\)"),
        (dict(scale=True), "scale must be a float .* received bool"),
        (dict(bias=torch.tensor(1)), "bias must be one floating number; received torch.int64"),
        (dict(bias=torch.ones(1, device="meta")), "bias must be on cpu .* received meta"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:24],
)
def test_bad_input_is_refused_by_name(bad, message):
    given = dict(image=torch.ones(4, 3), text=torch.ones(4, 3)) | bad
    with pytest.raises(ValueError, match=f"siglip_loss: {message}"):
        siglip_loss(**given)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_a_scale_without_a_logarithm_is_refused(scale):
    with pytest.raises(ValueError, match="SigLIPLoss: scale"):
        SigLIPLoss(scale=scale)
