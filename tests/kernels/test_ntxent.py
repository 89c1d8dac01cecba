"""The promises of the ``ntxent`` operator on CPU: values, gradients, refusals, compilation."""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.ntxent import op, reference, spec
from fastssl.kernels.ntxent.op import ntxent
from tests.kernels.judge import Judge, weights
from tests.kernels.judge import eager as eager_gradients


def textbook_losses(views: list[Tensor], tau: float) -> list[float]:
    """Equation 1 of SimCLR in loops over Python floats; shares no code with the package."""
    rows = [row.double() for view in views for row in view]
    unit = [row / max(row.norm().item(), 1e-12) for row in rows]
    num_samples = len(views[0])
    losses = []
    for i in range(len(unit)):
        similar = [float(unit[i] @ unit[j]) / tau for j in range(len(unit))]
        top = max(similar[j] for j in range(len(unit)) if j != i)
        total = sum(math.exp(similar[j] - top) for j in range(len(unit)) if j != i)
        positives = [j for j in range(len(unit)) if j != i and j % num_samples == i % num_samples]
        mean_positive = sum(similar[j] for j in positives) / len(positives)
        losses.append(top + math.log(total) - mean_positive)
    return losses


def eager(views: list[Tensor], tau: float) -> Tensor:
    """What a user would write, at the dtype of the input: the yard-stick for errors."""
    z_MD = F.normalize(torch.cat(views), dim=1)
    logits_MM = z_MD @ z_MD.T / tau
    eye_MM = torch.eye(len(logits_MM), dtype=torch.bool)
    lse_M = logits_MM.masked_fill(eye_MM, -torch.inf).logsumexp(1)
    z_VND = z_MD.unflatten(0, (len(views), -1))
    positive_VN = (z_VND * (z_VND.sum(0) - z_VND)).sum(-1) / (len(views) - 1)
    return lse_M - positive_VN.flatten() / tau


def grads_of(loss_M: Tensor, weight_M: Tensor, views: list[Tensor]) -> Tensor:
    grads = torch.autograd.grad((loss_M * weight_M.to(loss_M.dtype)).sum(), views)
    return torch.cat(grads).double()


def leaves(views: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [view.detach().to(dtype).requires_grad_() for view in views]


@pytest.mark.parametrize("sample", list(spec.samples()), ids=lambda s: s.name)
def test_float64_equals_the_textbook_loops(sample):
    views = sample.views(torch.float64)
    ours_M = ntxent(views, sample.temperature, reduction="none")
    truth_M = torch.tensor(textbook_losses(views, sample.temperature), dtype=torch.float64)
    torch.testing.assert_close(ours_M, truth_M, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_error_is_within_twice_torchs_own_at_every_dtype(dtype):
    for sample in spec.samples_for(dtype):
        raw = sample.views(dtype)
        exact = leaves(raw, torch.float64)
        weight_M = torch.linspace(0.5, 1.5, len(raw) * len(raw[0]), dtype=torch.float64)
        truth_M = eager(exact, sample.temperature)
        truth_grad_MD = grads_of(truth_M, weight_M, exact)
        # gradients are compared as tangent vectors of unit rows: dL/dh * |h|
        norm_M1 = torch.cat(exact).detach().norm(dim=1, keepdim=True).clamp_min(1e-12)

        errors = []
        for loss_fn in (ours_at(sample), eager_at(sample)):
            views = [view.detach().clone().requires_grad_() for view in raw]
            loss_M = loss_fn(views)
            grad_MD = grads_of(loss_M, weight_M, views)
            loss_error_M = (loss_M.double() - truth_M).abs()
            grad_error_MD = ((grad_MD - truth_grad_MD) * norm_M1).abs()
            errors.append((loss_error_M.max().item(), grad_error_MD.max().item()))
        # where torch itself gives NaN (zero rows in float16) it lends no yard-stick
        errors[1] = tuple(0.0 if math.isnan(error) else error for error in errors[1])
        (loss_error, grad_error), (torch_loss_error, torch_grad_error) = errors
        eps = torch.finfo(reference.accumulate_dtype(dtype)).eps
        eps_out = torch.finfo(dtype).eps
        loss_floor = 4 * eps * (1 / abs(sample.temperature) + truth_M.abs().max().item())
        grad_size = (truth_grad_MD * norm_M1).abs().max().item()
        grad_floor = 8 * eps / abs(sample.temperature) + 2 * eps_out * grad_size
        if dtype == torch.float64:  # its own truth: rounding of s enters through 1 / tau twice
            grad_floor += 8 * eps / sample.temperature**2
        assert loss_error <= spec.ERROR_RATIO * torch_loss_error + loss_floor, sample
        if sample.layout == "zero_rows" and dtype == torch.float16:
            continue  # 1e12 does not fit: saturation has a test of its own
        assert grad_error <= spec.ERROR_RATIO * torch_grad_error + grad_floor, sample


def ours_at(sample):
    return lambda views: ntxent(views, sample.temperature, reduction="none")


def eager_at(sample):
    return lambda views: eager(views, sample.temperature)


def test_fp16_gradient_of_a_zero_row_saturates_and_stays_finite():
    z0, z1 = torch.randn(2, 5, 8).half().unbind(0)
    z0[0] = 0
    z0.requires_grad_()
    ntxent([z0, z1], 0.1).backward()
    assert torch.isfinite(z0.grad).all()
    assert z0.grad[0].abs().max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize("library", [True, False])
def test_fp16_gradients_overflow_where_torchs_do(monkeypatch, library):
    """A loss scaler looks for infinities: saturated gradients would hide that its scale is high."""
    if not library:
        monkeypatch.setattr(op, "_cpu_backend", lambda: reference)
    views = leaves([view * 1e-5 for view in torch.randn(2, 9, 8)], torch.float16)
    loss_M = ntxent(views, 0.1, reduction="none")
    found_MD = torch.cat(torch.autograd.grad(loss_M, views, weights(loss_M)))
    size_MD = eager_gradients(views, 0.1, "none", torch.float64)[1].abs()
    assert (size_MD > 7e4).any()
    assert found_MD[size_MD > 7e4].isinf().all()
    assert found_MD[size_MD < 6e4].isfinite().all()


@pytest.mark.parametrize("magnitude", [1e160, 1e306])
def test_float64_norms_beyond_1e154_do_not_overflow(magnitude):
    """Nor in the reference, which is the truth that everything else is measured by."""
    z0, z1 = torch.rand(2, 9, 16, dtype=torch.float64).unbind(0)
    unit, vast = leaves([z0, z1], z0.dtype), leaves([z0 * magnitude, z1], z0.dtype)
    tau = torch.tensor(0.2, dtype=torch.float64)
    expected = reference.ntxent(unit, tau, "mean")
    exact = torch.autograd.grad(expected, unit)
    for loss in (ntxent(vast, tau), reference.ntxent(vast, tau, "mean")):
        torch.testing.assert_close(loss, expected)
        found = torch.autograd.grad(loss, vast)
        torch.testing.assert_close(found[1], exact[1])
        if magnitude < 1e300:  # beyond, the gradient itself is denormal
            torch.testing.assert_close(found[0] * magnitude, exact[0])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_norms_do_not_overflow(scale):
    z = torch.randn(2, 9, 16)
    huge = [view.requires_grad_() for view in (z * scale).unbind(0)]
    loss = ntxent(huge, 0.2)
    loss.backward()
    exact = ntxent([view.detach().double() for view in huge], 0.2)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)
    assert all(torch.isfinite(view.grad).all() for view in huge)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("temperature", [0.3, 0.02, -0.4])
def test_gradcheck_and_gradgradcheck_in_float64(reduction, num_views, temperature):
    generator = torch.Generator().manual_seed(3)
    shape = (num_views, 4, 3)
    h_VND = torch.randn(shape, generator=generator, dtype=torch.float64)
    views = [view.clone().requires_grad_() for view in h_VND]
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)

    def loss(tau, *views):
        return ntxent(views, tau, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (tau, *views))
    assert torch.autograd.gradgradcheck(loss, (tau, *views))


def test_only_the_inputs_that_ask_get_gradients():
    z0, z1 = torch.randn(2, 6, 5).unbind(0)
    z0.requires_grad_()
    tau = torch.tensor([0.2], requires_grad=True)
    ntxent([z0, z1], tau).backward()
    assert z0.grad is not None
    assert z1.grad is None
    assert tau.grad.shape == (1,)
    assert not ntxent([z0.detach(), z1], 0.2).requires_grad


def test_mean_and_sum_are_those_of_none():
    views = list(torch.randn(2, 11, 6).unbind(0))
    loss_M = ntxent(views, 0.2, reduction="none")
    torch.testing.assert_close(ntxent(views, 0.2), loss_M.mean())
    torch.testing.assert_close(ntxent(views, 0.2, reduction="sum"), loss_M.sum())


def test_tensor_temperature_equals_float_temperature():
    views = list(torch.randn(2, 11, 6).unbind(0))
    assert ntxent(views, torch.tensor(0.25)) == ntxent(views, 0.25)


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda b: b.name)
def test_a_bad_call_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="^ntxent: ") as refusal:
        ntxent(bad.views, bad.temperature, reduction=bad.reduction)
    for word in bad.mentions:
        assert word in str(refusal.value)


def test_the_raw_operator_refuses_too():
    z = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"^ntxent: views\[1\]"):
        torch.ops.fastssl.ntxent([z, z[:2]], torch.tensor(0.1), "mean", False)
    with pytest.raises(ValueError, match="^ntxent: keep"):
        torch.ops.fastssl.ntxent([z.requires_grad_(), z], torch.tensor(0.1), "mean", False)


def operator_inputs(layout: str, reduction: str, dtype: torch.dtype) -> tuple:
    views = spec.Sample("opcheck", 6, 10, num_views=3, layout=layout).views(dtype)
    views = [view.detach().clone().requires_grad_() for view in views]
    return views, torch.tensor(0.2, requires_grad=True), reduction, True


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_passes_all_four(reduction, dtype):
    inputs = operator_inputs("contiguous", reduction, dtype)
    found = torch.library.opcheck(torch.ops.fastssl.ntxent.default, inputs)
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_opcheck_passes_for_the_backward_operator():
    views, tau, reduction, _ = operator_inputs("contiguous", "mean", torch.float32)
    with torch.no_grad():
        _, lse_M, rnorm_M, kept = torch.ops.fastssl.ntxent(views, tau, reduction, True)
        views = [view.detach() for view in views]
    inputs = (torch.tensor(1.0), views, tau.detach(), reduction, lse_M, rnorm_M, kept)
    found = torch.library.opcheck(torch.ops.fastssl.ntxent_backward.default, inputs)
    assert set(found.values()) == {"SUCCESS"}


def test_compiles_to_one_graph_with_dynamic_shapes_and_learnt_temperature():
    compiled = torch.compile(
        lambda z0, z1, tau: ntxent([z0, z1], tau), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for num_samples in (4, 9, 30):
        tau = torch.tensor(0.3, requires_grad=True)
        inputs = [*torch.randn(2, num_samples, 8).unbind(0)]
        inputs = [view.clone().requires_grad_() for view in inputs]
        expected = torch.autograd.grad(ntxent(inputs, tau), [*inputs, tau])
        found = torch.autograd.grad(compiled(*inputs, tau), [*inputs, tau])
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_under_autocast_low_precision_embeddings_give_a_float32_loss():
    layer = torch.nn.Linear(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ntxent([layer(torch.randn(6, 8)), layer(torch.randn(6, 8))], 0.2)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad.dtype == torch.float32


def test_repeats_are_identical_to_the_bit():
    views = spec.Sample("repeat", 300, 70).views(torch.float32)
    views = [view.requires_grad_() for view in views]
    first = None
    for _ in range(20):
        loss = ntxent(views, 0.1)
        found = [loss, *torch.autograd.grad(loss, views)]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(1, 40),
    embedding=st.integers(1, 70),
    num_views=st.integers(2, 4),
    temperature=st.sampled_from([0.01, 0.026, 0.1, 2.0, -0.3]),
    transposed=st.booleans(),
)
def test_any_shape_is_within_twice_torchs_own_error(
    num_samples, embedding, num_views, temperature, transposed
):
    layout = "transposed" if transposed else "contiguous"
    sample = spec.Sample("any", num_samples, embedding, num_views, temperature, layout=layout)
    views = leaves(sample.views(torch.float32), torch.float32)
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss_M = ntxent(views, tau, reduction="none")
    *grads, dtau = torch.autograd.grad(loss_M, [*views, tau], weights(loss_M))
    assert Judge(views, temperature, "none")(loss_M.detach(), torch.cat(grads), dtau) == ""


def test_the_references_hand_written_backward_is_autograds():
    for sample in spec.samples():
        views = leaves(sample.views(torch.float64), torch.float64)
        tau = torch.tensor(sample.temperature, dtype=torch.float64, requires_grad=True)
        for reduction in ("mean", "sum"):
            expected = torch.autograd.grad(reference.ntxent(views, tau, reduction), [*views, tau])
            with torch.no_grad():
                loss, *saved = reference.forward(views, tau, reduction, True)
                dz_MD, dtau = reference.backward(
                    torch.ones_like(loss), views, tau, reduction, *saved
                )
            scale = max(1.0, torch.cat(expected[:-1]).abs().max().item())
            assert (dz_MD - torch.cat(expected[:-1])).abs().max() <= 1e-11 * scale, sample
            torch.testing.assert_close(dtau, expected[-1], rtol=1e-9, atol=1e-9)


def test_without_the_library_the_reference_answers_and_says_so_once(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "LIBRARY_PATH", tmp_path / "missing.so")
    compiled.library.cache_clear()
    views = [view.requires_grad_() for view in torch.randn(2, 8, 4).unbind(0)]
    try:
        with pytest.warns(RuntimeWarning, match="compiled CPU library is not usable") as warned:
            for _ in range(3):
                ntxent(views, 0.1).backward()
    finally:
        compiled.library.cache_clear()
    assert len(warned) == 1
