"""Where losses usually break: one row, one class, no positive, equal rows, queues in motion."""

from __future__ import annotations

import ast
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl import losses
from fastssl.kernels.contrast import op
from fastssl.losses import denominators as door
from fastssl.losses import spec
from fastssl.losses.classes import class_counts, class_sums
from tests.house.tree import ROOT, parsed, python_files

MODULES = (
    losses.InfoNCELoss, losses.MoCoLoss, losses.CISSLLoss, losses.SupConLoss,
    losses.MultiCropNTXentLoss, losses.DCLLoss, losses.DCLWLoss, losses.NTXentLoss,
)  # fmt: skip


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def ask(module, z0, z1):
    """A module on two embeddings, whatever else it wants."""
    if isinstance(module, losses.MoCoLoss):
        return module(z0, z1, spec.queue(z0.dtype, width=z0.shape[1]))
    if isinstance(module, losses.SupConLoss):
        return module(torch.cat([z0, z1]), torch.arange(len(z0)).repeat(2))
    return module(z0, z1)


def test_one_pair_has_nothing_to_lose():
    for loss_fn in (losses.info_nce, losses.clip_loss):
        q, k = leaf(1, 4), leaf(1, 4)
        loss = loss_fn(q, k)
        loss.backward()
        assert abs(loss.item()) < 1e-12
        assert q.grad.abs().max() < 1e-12 and k.grad.abs().max() < 1e-12


@pytest.mark.parametrize("options", [{"tau_plus": 0.1}, {"beta": 1.0}, {"margin": 0.1}], ids=str)
def test_one_pair_with_options_has_nothing_to_lose_either(options):
    q, k = leaf(1, 4), leaf(1, 4)
    loss = losses.info_nce(q, k, options=losses.Options(**options))
    loss.backward()
    assert loss.item() == 0 and torch.equal(q.grad, torch.zeros_like(q))


@pytest.mark.parametrize("form", ["out", "in"])
@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
@pytest.mark.parametrize("num", [1, 6])
def test_without_any_positive_sup_con_is_zero_with_a_zero_gradient(form, dtype, num):
    z, tau = leaf(num, 4, dtype=dtype), torch.tensor(0.1, requires_grad=True)
    loss = losses.SupConLoss(tau, form=form)(z, torch.arange(num))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z)) and tau.grad == 0


@pytest.mark.parametrize("form", ["out", "in"])
def test_rows_without_a_positive_are_left_out_of_the_mean(form):
    z, labels = leaf(5, 4), torch.tensor([1, 1, 2, 3, 1])
    none_M = losses.SupConLoss(form=form, reduction="none")(z, labels)
    assert none_M[2] == 0 and none_M[3] == 0
    mean = losses.SupConLoss(form=form)(z, labels)
    torch.testing.assert_close(mean, none_M[[0, 1, 4]].mean())


def test_one_class_leaves_no_negatives_and_stays_finite():
    z = leaf(6, 4)
    for form in ("out", "in"):
        loss, metrics = losses.SupConLoss(form=form).with_metrics(z, torch.zeros(6, dtype=int))
        (dz,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(dz).all() and math.isnan(metrics.negative_similarity)
    assert abs(losses.sup_con_in(z, torch.zeros(6, dtype=int)).item() - math.log(5)) < 1e-12


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equal_rows_give_the_logarithm_of_the_number_of_candidates(temperature, dtype):
    z = torch.randn(1, 8, dtype=dtype).expand(12, 8)
    labels = torch.arange(12) // 3
    expected = {
        losses.info_nce(z, z, temperature): math.log(12),
        losses.info_nce(z[:5], z, temperature): math.log(12),
        losses.clip_loss(z, z, 1 / temperature): math.log(12),
        losses.cissl_loss(z, z, temperature): math.log(12),
        losses.moco_loss(z, z, F.normalize(z), temperature): math.log(13),
        losses.sup_con_out(z, labels, temperature): math.log(11),
        losses.sup_con_in(z, labels, temperature): math.log(11),
        losses.multi_crop_ntxent([z, z], temperature): math.log(23),
        losses.dcl_loss(z, z, temperature): math.log(22),
        losses.dclw_loss(z, z, temperature): math.log(22),
    }
    tolerance = 8 * torch.finfo(dtype).eps * (3 + 1 / abs(temperature))
    for loss, value in expected.items():
        assert abs(loss.item() - value) <= tolerance


def test_cissl_is_never_below_log_two():
    z = F.normalize(torch.eye(8, dtype=torch.float64))
    views = torch.cat([z, z])
    assert abs(losses.cissl_loss(views, views, 0.01).item() - math.log(2)) < 1e-12


def test_a_row_that_finds_its_partner_alone_has_a_tiny_loss_to_full_precision():
    z = torch.eye(4, 8)
    queue = torch.eye(8)[4:]
    loss = losses.moco_loss(z, z, queue, 0.05)
    assert abs(loss.item() / (4 * math.exp(-20)) - 1) < 1e-5


def test_a_queue_may_move_on_before_the_backward():
    q, k, queue = leaf(5, 6), torch.randn(5, 6).double(), F.normalize(torch.randn(40, 6).double())
    (expected,) = torch.autograd.grad(losses.moco_loss(q, k, queue), q)
    loss = losses.moco_loss(q, k, queue)
    queue.fill_(torch.nan)
    (found,) = torch.autograd.grad(loss, q)
    assert torch.equal(found, expected)


def test_a_second_derivative_after_the_queue_moved_on_is_refused():
    q, k, queue = leaf(5, 6), torch.randn(5, 6).double(), F.normalize(torch.randn(40, 6).double())
    loss = losses.moco_loss(q, k, queue)
    queue.zero_()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, q, create_graph=True)


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_a_queue_of_long_rows_is_taken_as_it_is(dtype, learns, sign):
    q, k, queue = leaf(3, 5, dtype=torch.float32), torch.randn(3, 5), spec.queue(dtype) * 20
    if sign:  # all products beyond the bound of unit rows, on one side
        queue = (sign * 20 * F.normalize(q.detach()[:1]) + 0.1 * torch.randn(11, 5)).to(dtype)
        q = q.detach()[:1].requires_grad_()
        k = k[:1]
    with torch.set_grad_enabled(learns):
        loss = losses.moco_loss(q, k, queue, 0.1)
    exact = q.detach().double().requires_grad_()
    unit_ND, key_ND = F.normalize(exact), F.normalize(k.double())
    logits_NK = torch.cat([(unit_ND * key_ND).sum(1, True), unit_ND @ queue.double().T], 1) * 10
    truth = F.cross_entropy(logits_NK, torch.zeros(len(q), dtype=int))
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-4)
    if learns:
        found, expected = (torch.autograd.grad(*pair)[0] for pair in ((loss, q), (truth, exact)))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_nothing_of_the_queue_is_saved():
    q, k, queue = leaf(4, 6), leaf(4, 6), spec.queue(num_rows=500, width=6)
    sizes = []
    note = lambda tensor: sizes.append(tensor.numel()) or tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses.moco_loss(q, k, queue)
    assert sizes and max(sizes) <= 4 * 6


def test_a_key_gets_a_gradient_only_if_it_asks():
    q, k, queue = leaf(4, 5), leaf(4, 5), spec.queue()
    losses.moco_loss(q, k, queue).backward()
    assert k.grad is not None
    losses.moco_loss(q, k.detach(), queue).backward()


def test_an_object_with_rows_is_a_queue():
    class Ring:
        rows = spec.queue(torch.float32)

    q, k = torch.randn(2, 4, 5).unbind(0)
    assert losses.moco_loss(q, k, Ring()) == losses.moco_loss(q, k, Ring.rows)


def test_detached_keys_take_the_single_pass_and_others_do_not(monkeypatch):
    called = []
    for name in ("contrast", "contrast_mean"):
        function = getattr(op, name)
        monkeypatch.setattr(
            door, name, lambda *a, f=function, n=name, **k: called.append(n) or f(*a, **k)
        )
    q, k = leaf(4, 5), leaf(4, 5)
    losses.info_nce(q, k)
    losses.info_nce(q, k.detach())
    losses.info_nce(q, k.detach(), symmetric=True)
    with torch.no_grad():
        losses.info_nce(q, k)
    assert called == ["contrast", "contrast_mean", "contrast", "contrast_mean"]


def test_the_other_side_alone_can_learn():
    q, k = torch.randn(4, 5).double(), leaf(4, 5)
    both = leaf(4, 5)
    both.data.copy_(q)
    (dk,) = torch.autograd.grad(losses.info_nce(q, k), k)
    _, expected = torch.autograd.grad(losses.info_nce(both, k), [both, k])
    assert torch.equal(dk, expected)


def test_the_scale_is_clamped_and_its_gradient_lives_at_the_limit():
    loss_fn = losses.CLIPLoss(scale=50.0, max_scale=60.0)
    with torch.no_grad():
        loss_fn.log_scale.fill_(10.0)
    z0, z1 = torch.randn(2, 8, 5).unbind(0)
    loss = loss_fn(z0, z1)
    loss.backward()
    assert loss_fn.log_scale.item() == 10.0
    assert loss_fn.log_scale.grad.abs() > 0
    loss_fn.clamp_()
    assert abs(loss_fn.log_scale.exp().item() - 60) < 1e-3
    torch.testing.assert_close(loss, losses.clip_loss(z0, z1, 60.0))
    free = losses.CLIPLoss(scale=50.0, max_scale=None)
    with torch.no_grad():
        free.log_scale.fill_(5.0)
    torch.testing.assert_close(free(z0, z1), losses.clip_loss(z0, z1, math.exp(5.0)))
    assert not losses.CLIPLoss(learnable=False).log_scale.requires_grad
    assert list(loss_fn.state_dict()) == ["log_scale"]


@pytest.mark.parametrize("start", [10.0, 2.0])
def test_a_graph_that_read_the_scale_before_outlives_the_loss(start):
    loss_fn = losses.CLIPLoss(max_scale=60.0)
    with torch.no_grad():
        loss_fn.log_scale.fill_(start)
    read = loss_fn.log_scale * loss_fn.log_scale
    (read + 0 * loss_fn(*torch.randn(2, 8, 5))).backward()
    assert abs(loss_fn.log_scale.grad.item() - 2 * start) < 1e-5


def test_clip_compiles_with_its_clamp():
    loss_fn = losses.CLIPLoss(scale=50.0, max_scale=60.0)
    z0, z1 = torch.randn(2, 8, 5).unbind(0)
    compiled = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z0, z1), loss_fn(z0, z1))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_learnt_temperature_is_a_parameter_and_moves(module):
    loss_fn = module(nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss_fn.named_parameters()] == ["temperature"]
    optimiser = torch.optim.SGD(loss_fn.parameters(), lr=0.01)
    z = torch.randn(8, 5)
    ask(loss_fn, z, z).backward()
    optimiser.step()
    assert loss_fn.temperature.item() != 0.5


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_tensor_as_temperature_is_a_buffer_that_moves_and_is_not_saved(module):
    loss_fn = module(torch.tensor([0.5]))
    assert [name for name, _ in loss_fn.named_buffers()] == ["temperature"]
    assert loss_fn.state_dict() == {} and loss_fn.to("meta").temperature.device.type == "meta"


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_number_of_numpy_is_a_temperature(module):
    z0, z1 = torch.randn(2, 6, 5).unbind(0)
    found = ask(module(np.float32(0.5)), z0, z1)
    torch.testing.assert_close(found, ask(module(0.5), z0, z1))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_a_module_copies_prints_has_no_state_and_refuses_when_built(module):
    loss_fn = copy.deepcopy(module(0.2, reduction="sum"))
    assert repr(loss_fn).startswith(f"{module.__name__}(temperature=0.2, ")
    assert "reduction='sum'" in repr(loss_fn) and loss_fn.state_dict() == {}
    with pytest.raises(ValueError, match=f"{module.__name__}: reduction .* received 'avg'"):
        module(reduction="avg")


@pytest.mark.parametrize("temperature", [0.01, 0.05, 10.0])
@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_float32_is_near_float64_at_every_temperature(module, temperature):
    z0, z1 = leaf(20, 16, dtype=torch.float32), leaf(20, 16, dtype=torch.float32)
    exact = [z.detach().double().requires_grad_() for z in (z0, z1)]
    loss_fn = module(temperature)
    loss, truth = ask(loss_fn, z0, z1), ask(loss_fn, *exact)
    assert abs(loss.item() - truth.item()) <= 4e-6 * (1 + 1 / temperature)
    found, expected = torch.autograd.grad(loss, [z0, z1]), torch.autograd.grad(truth, exact)
    for got, right in zip(found, expected, strict=True):
        # an error of eps / tau in a logit is one of eps / tau in a probability
        assert (got - right).abs().max() <= 2e-5 / temperature * right.abs().max() + 1e-7


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_norms_do_not_overflow(module, scale):
    z0, z1 = (torch.randn(2, 10, 16) * scale).unbind(0)
    huge = [z.clone().requires_grad_() for z in (z0, z1)]
    exact = [z.double().requires_grad_() for z in (z0, z1)]
    loss, truth = ask(module(0.2), *huge), ask(module(0.2), *exact)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    found, expected = torch.autograd.grad(loss, huge), torch.autograd.grad(truth, exact)
    for got, right in zip(found, expected, strict=True):
        size = right.abs().max().clamp_max(torch.finfo(torch.float32).max)
        assert torch.isfinite(got).all()
        assert (got - right).abs().max() <= 1e-4 * size + 1e-37


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # lightly's weight
@pytest.mark.parametrize("shape", [(2, 3), (16, 32), (33, 128)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_dcl_and_dclw_are_lightlys(shape, temperature):
    from lightly.loss import DCLLoss as LightlyDCL
    from lightly.loss import DCLWLoss as LightlyDCLW

    z0, z1 = leaf(*shape), leaf(*shape)
    for ours, theirs in (
        (losses.DCLLoss(temperature), LightlyDCL(temperature)),
        (losses.DCLWLoss(temperature), LightlyDCLW(temperature)),
    ):
        torch.testing.assert_close(ours(z0, z1), theirs(z0, z1), rtol=1e-11, atol=1e-11)
        found = torch.autograd.grad(ours(z0, z1), [z0, z1])
        expected = torch.autograd.grad(theirs(z0, z1), [z0, z1])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_equal_crops_without_ids_are_nt_xent():
    crops = [leaf(4, 5) for _ in range(3)]
    ids = [torch.arange(4)] * 3
    loss_fn = losses.MultiCropNTXentLoss(0.2)
    torch.testing.assert_close(loss_fn(*crops), losses.NTXentLoss(0.2)(*crops), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss_fn(*crops), loss_fn(*crops, ids=ids), rtol=1e-12, atol=0)


def test_class_sums_know_who_is_absent():
    keys, key_ids = torch.randn(5, 3), torch.tensor([4, 1, 4, 9, 1])
    queries = torch.tensor([0, 1, 2, 4, 9, 11, -5])
    mask = (queries[:, None] == key_ids[None, :]).float()
    torch.testing.assert_close(class_sums(keys, queries, key_ids), mask @ keys)
    assert class_counts(queries, key_ids).tolist() == mask.sum(1).tolist()


def test_repeats_are_identical_to_the_bit():
    for case in spec.CASES:
        inputs = [h.requires_grad_() for h in case.embeddings(torch.float32)]
        found = []
        for _ in range(3):
            loss = case.call(inputs, 0.2)
            found.append([loss, *torch.autograd.grad(loss, inputs)])
        assert all(
            torch.equal(a, b) for again in found for a, b in zip(again, found[0], strict=True)
        )


def test_every_loss_takes_its_denominators_through_the_one_door():
    for path in python_files("fastssl"):
        if path.parts[:2] != ("fastssl", "losses") or path.name == "denominators.py":
            continue
        names = {
            alias.name
            for node in ast.walk(parsed(ROOT / path))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert not {"contrast", "contrast_mean"} & names, path
