"""The promises of the ``soft_targets`` operators on CPU: values, gradients, refusals, graphs."""

# shapes: N rows, C outputs, D features
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.soft_targets import reference, spec
from fastssl.kernels.soft_targets.op import given_targets, soft_targets
from fastssl.kernels.soft_targets.prototypes import prototype_cross_entropy

SAMPLES = list(spec.samples())


def log_softmax_loops(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


def textbook(student, teacher, centre, sample) -> tuple[list[float], list[float]]:
    """Loss per row and batch marginal in loops over Python floats; shares no code."""
    losses, rows = [], []
    for a, b in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        shift = centre.tolist() if centre is not None else [0.0] * len(b)
        log_p = log_softmax_loops([x / sample.student_temperature for x in a])
        log_q = log_softmax_loops(
            [(x - s) / sample.teacher_temperature for x, s in zip(b, shift, strict=True)]
        )
        rows.append([math.exp(x) for x in log_q])
        losses.append(-sum(q * lp for q, lp in zip(rows[-1], log_p, strict=True)))
    return losses, [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def eager(student, teacher, centre, sample) -> tuple[Tensor, Tensor]:
    """What a user would write at float32 (float64 for float64): the yard-stick for errors."""
    dtype = reference.accumulate_dtype(student.dtype)
    shifted = teacher.to(dtype) if centre is None else teacher.to(dtype) - centre.to(dtype)
    q_NC = (shifted / sample.teacher_temperature).softmax(1)
    log_p_NC = (student.to(dtype) / sample.student_temperature).log_softmax(1)
    return -(q_NC * log_p_NC).sum(1), q_NC.mean(0)


def ours(student, teacher, centre, sample) -> tuple[Tensor, Tensor]:
    return soft_targets(student, teacher, centre=centre, marginal=True, **sample.temperatures())


def scalar(found: tuple[Tensor, Tensor]) -> Tensor:
    """A weighting of the rows and DISSL's entropy of the marginal."""
    loss_N, marginal_C = found
    weight_N = torch.linspace(0.5, 1.5, len(loss_N), dtype=loss_N.dtype)
    h = torch.linspace(-1, 2, len(marginal_C), dtype=loss_N.dtype)
    return (loss_N * weight_N).sum() + (marginal_C * h * len(loss_N)).sum()


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_float64_equals_the_textbook_loops(sample):
    student, teacher = sample.logits(torch.float64)
    centre = sample.centre(torch.float64)
    found = ours(student, teacher, centre, sample)
    for got, truth in zip(found, textbook(student, teacher, centre, sample), strict=True):
        torch.testing.assert_close(
            got, torch.tensor(truth, dtype=torch.float64), rtol=1e-11, atol=1e-13
        )


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_error_is_within_twice_torchs_own_at_every_dtype(dtype):
    for sample in SAMPLES:
        if sample.spread > 100 and dtype == torch.float16:
            continue  # float16 logits times 1 / tau are not what this sample is about
        raw, centre = sample.logits(dtype), sample.centre(dtype)
        exact = leaves(*raw, dtype=torch.float64)
        truth = eager(*exact, centre, sample)
        truth_grads = torch.autograd.grad(scalar(truth), exact)
        errors = []
        for function in (ours, eager):
            inputs = leaves(*raw)
            found = function(*inputs, centre, sample)
            grads = torch.autograd.grad(scalar(found), inputs)
            pairs = zip((*found, *grads), (*truth, *truth_grads), strict=True)
            errors.append([(got.double() - x).abs().max().item() for got, x in pairs])
        eps = torch.finfo(reference.accumulate_dtype(dtype)).eps
        sharp = max(1 / sample.student_temperature, 1 / sample.teacher_temperature)
        size = max(x.abs().max().item() for x in exact) * sharp
        floors = [4 * eps * (1 + size + truth[0].abs().max().item()), 4 * eps * (1 + size)]
        for x in truth_grads:
            floors.append(
                4 * eps * sharp * (1 + size) ** 2 + torch.finfo(dtype).eps * x.abs().max()
            )
        for mine, torchs, floor in zip(*errors, floors, strict=True):
            assert mine <= spec.ERROR_RATIO * torchs + floor, (sample, errors)


@pytest.mark.parametrize("centred", [False, True])
def test_gradcheck_and_gradgradcheck_in_float64(centred):
    sample = spec.Sample("gradcheck", 4, 5, 0.7, 0.4, centred=centred, spread=1.0)
    inputs = leaves(*sample.logits(torch.float64))
    centre = sample.centre(torch.float64)

    def both(student, teacher):
        return tuple(ours(student, teacher, centre, sample))

    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


def test_a_detached_teacher_gets_no_gradient_and_the_student_the_same():
    sample = spec.Sample("detached", 6, 33)
    student, teacher = leaves(*sample.logits(torch.float32))
    whole = torch.autograd.grad(soft_targets(student, teacher).loss.sum(), [student, teacher])
    alone = soft_targets(student, teacher.detach())
    assert torch.equal(torch.autograd.grad(alone.loss.sum(), student)[0], whole[0])
    marginal = soft_targets(student.detach(), teacher, marginal=True).marginal
    (from_marginal,) = torch.autograd.grad(marginal.square().sum(), teacher)
    (expected,) = torch.autograd.grad(teacher.softmax(1).mean(0).square().sum(), teacher)
    torch.testing.assert_close(from_marginal, expected)


def test_mixed_dtypes_accumulate_in_the_wider():
    sample = spec.Sample("mixed", 5, 33, 0.3, 0.2)
    student, teacher = sample.logits(torch.float64)
    for a, b in ((torch.bfloat16, torch.float32), (torch.float16, torch.float64)):
        inputs = leaves(student.to(a), teacher.to(b))
        exact = leaves(*inputs, dtype=torch.float64)
        found, truth = ours(*inputs, None, sample), eager(*exact, None, sample)
        assert found[0].dtype == reference.accumulate_dtype(a, b)
        torch.testing.assert_close(found[0].double(), truth[0], rtol=1e-5, atol=1e-5)
        grads = torch.autograd.grad(scalar(found), inputs)
        for got, x in zip(grads, torch.autograd.grad(scalar(truth), exact), strict=True):
            rtol = 2 * torch.finfo(got.dtype).eps + 1e-5
            torch.testing.assert_close(got.double(), x, rtol=rtol, atol=1e-4)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_that_are_not_finite_are_those_of_torch(value, whole):
    sample = spec.Sample("not finite", 5, 37)
    for position in range(2):
        raw = [x.clone() for x in sample.logits(torch.float32)]
        if whole:
            raw[position][2] = value
        else:
            raw[position][2, 35] = value
        mine, theirs = leaves(*raw), leaves(*raw)
        found, expected = ours(*mine, None, sample), eager(*theirs, None, sample)
        torch.testing.assert_close(found[0], expected[0], equal_nan=True)
        torch.testing.assert_close(found[1], expected[1], equal_nan=True)
        grads = torch.autograd.grad(found[0][[0, 1, 3, 4]].sum(), mine)
        assert all(torch.isfinite(grad[[0, 1, 3, 4]]).all() for grad in grads)


def targets_like(student: Tensor) -> Tensor:
    """Not normalised: the formula does not ask for it."""
    return torch.linspace(0.1, 2, student.numel(), dtype=torch.float64).view(student.shape)


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_given_targets_equal_the_formula(dtype):
    for sample in SAMPLES:
        if sample.spread > 100 and dtype == torch.float16:
            continue
        (student,) = leaves(sample.logits(dtype)[0])
        targets = targets_like(student).to(dtype)
        tau = sample.student_temperature
        loss_N = given_targets(student, targets, temperature=tau)
        (exact,) = leaves(student, dtype=torch.float64)
        truth_N = -(targets.double() * (exact / tau).log_softmax(1)).sum(1)
        eps = torch.finfo(reference.accumulate_dtype(dtype)).eps
        sizes = 1 + exact.abs().max().item() / tau
        total = targets.double().sum(1).max().item()
        torch.testing.assert_close(loss_N.double(), truth_N, rtol=0, atol=8 * eps * sizes * total)
        (got,) = torch.autograd.grad(loss_N.sum(), student)
        (truth,) = torch.autograd.grad(truth_N.sum(), exact)
        floor = 8 * eps * sizes * total / tau
        rtol = torch.finfo(dtype).eps
        torch.testing.assert_close(got.double(), truth, rtol=rtol, atol=floor)


def test_given_targets_gradcheck_and_gradgradcheck():
    (student,) = leaves(spec.Sample("given", 3, 6, spread=1.0).logits(torch.float64)[0])
    targets = targets_like(student)
    assert torch.autograd.gradcheck(lambda x: given_targets(x, targets, temperature=0.6), student)
    assert torch.autograd.gradgradcheck(lambda x: given_targets(x, targets), student)


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda b: b.name)
def test_a_bad_call_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="^soft_targets: ") as refusal:
        soft_targets(bad.student, bad.teacher, **bad.keywords)
    for word in bad.mentions:
        assert word in str(refusal.value)


def test_targets_that_want_a_gradient_are_refused():
    x = torch.randn(4, 3)
    wanting = torch.rand(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match="^soft_targets: targets must be without a gradient"):
        given_targets(x, wanting)
    with pytest.raises(ValueError, match="^soft_targets: targets must be without a gradient"):
        torch.ops.fastssl.soft_targets_given(x, wanting, 1.0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_passes_all_four(dtype):
    student, teacher = leaves(*spec.Sample("opcheck", 5, 19).logits(dtype))
    centre = torch.zeros(19, dtype=dtype)
    operators = torch.ops.fastssl
    calls = [
        (operators.soft_targets, (student, teacher, centre, 1.0, 2.0, True)),
        (operators.soft_targets, (student, teacher, None, 1.0, 2.0, False)),
        (operators.soft_targets_given, (student, teacher.detach().softmax(1), 2.0)),
    ]
    z, w = leaves(torch.randn(5, 4).to(dtype), torch.randn(19, 4).to(dtype))
    for reduction, keep in (("mean", True), ("none", True)):
        call = (z, w, teacher.detach().softmax(1), 2.0, reduction, keep, keep)
        calls.append((operators.prototype_cross_entropy, call))
    for operator, call in calls:
        found = torch.library.opcheck(operator.default, call)
        assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_opcheck_passes_for_the_backward_operators():
    student, teacher = spec.Sample("opcheck", 5, 19).logits(torch.float32)
    operators = torch.ops.fastssl
    loss_N, mean_C, stats = operators.soft_targets(student, teacher, None, 1.0, 2.0, True)
    _, given_stats = operators.soft_targets_given(student, teacher, 1.0)
    z, w = torch.randn(5, 4), torch.randn(19, 4)
    calls = [
        (operators.soft_targets_backward,
         (loss_N, mean_C, student, teacher, None, 1.0, 2.0, loss_N, stats, True)),
        (operators.soft_targets_given_backward, (loss_N, student, teacher, 1.0, given_stats)),
        (operators.prototype_cross_entropy_backward, (loss_N, z, w, teacher, 1.0, True, False)),
    ]  # fmt: skip
    for operator, call in calls:
        assert set(torch.library.opcheck(operator.default, call).values()) == {"SUCCESS"}


def test_compiles_to_one_graph_with_dynamic_shapes():
    def loss(student, teacher, targets):
        found = soft_targets(student, teacher, teacher_temperature=0.5, marginal=True)
        given_N = given_targets(student, targets, temperature=0.1)
        whole = prototype_cross_entropy(student, teacher, targets[:, : len(teacher)])
        return found.loss.mean() + found.marginal.square().sum() + given_N.mean() + whole

    fast = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows in (4, 9, 13):
        inputs = leaves(*torch.randn(2, num_rows, 20).unbind(0))
        targets = torch.rand(num_rows, 20)
        expected = torch.autograd.grad(loss(*inputs, targets), inputs)
        found = torch.autograd.grad(fast(*inputs, targets), inputs)
        for got, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(got, truth)


def test_repeats_are_identical_to_the_bit():
    sample = spec.Sample("repeat", 70, 3001)
    inputs = leaves(*sample.logits(torch.float32))
    first = None
    for _ in range(10):
        found = ours(*inputs, None, sample)
        found = [*found, *torch.autograd.grad(scalar(found), inputs)]
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


@pytest.mark.parametrize("isa", compiled.instruction_sets())
def test_every_instruction_set_agrees(isa):
    sample = spec.Sample("isa", 9, 1061, 0.2, 0.1, centred=True)
    inputs = leaves(*sample.logits(torch.float32))
    exact = leaves(*inputs, dtype=torch.float64)
    centre = sample.centre(torch.float32)
    truth = eager(*exact, centre, sample)
    expected = torch.autograd.grad(scalar(truth), exact)
    compiled.select_isa(isa)
    try:
        found = ours(*inputs, centre, sample)
        grads = torch.autograd.grad(scalar(found), inputs)
    finally:
        compiled.select_isa(compiled.instruction_sets()[0])
    for got, want in zip((*found, *grads), (*truth, *expected), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    num_outputs=st.integers(1, 90),
    student=st.sampled_from([0.05, 0.1, 1.0, 4.0]),
    teacher=st.sampled_from([0.04, 0.5, 2.0]),
    layout=st.sampled_from(["contiguous", "transposed", "sliced"]),
)
def test_any_shape_agrees_with_the_reference(num_rows, num_outputs, student, teacher, layout):
    sample = spec.Sample("any", num_rows, num_outputs, student, teacher, layout=layout)
    inputs = leaves(*sample.logits(torch.float32))
    exact = leaves(*inputs, dtype=torch.float64)
    found = ours(*inputs, None, sample)
    scales = (1 / student, 1 / teacher)
    truth = reference.soft_targets(*exact, None, *scales, True)
    grads = torch.autograd.grad(scalar(found), inputs)
    expected = torch.autograd.grad(scalar(truth), exact)
    tolerance = 1e-5 * scales[0] * scales[1]
    for got, want in zip((*found, *grads), (*truth, *expected), strict=True):
        size = max(1.0, want.abs().max().item())
        assert (got.double() - want).abs().max() <= max(tolerance, 1e-5) * size


def test_the_references_hand_written_backward_is_autograds():
    for sample in SAMPLES:
        inputs = leaves(*sample.logits(torch.float64))
        centre = sample.centre(torch.float64)
        scales = (1 / sample.student_temperature, 1 / sample.teacher_temperature)
        truth = reference.soft_targets(*inputs, centre, *scales, True)
        expected = torch.autograd.grad(scalar(truth), inputs)
        with torch.no_grad():
            weight_N = torch.linspace(0.5, 1.5, len(truth[0]), dtype=torch.float64)
            h_C = torch.linspace(-1, 2, len(truth[1]), dtype=torch.float64) * len(weight_N)
            loss_N, _, stats = reference.forward(*inputs, centre, *scales, True)
            found = reference.backward(weight_N, h_C, *inputs, centre, *scales, loss_N, stats, True)
        for got, want in zip(found, expected, strict=True):
            size = max(1.0, want.abs().max().item())
            assert (got - want).abs().max() <= 1e-11 * size, sample


@pytest.mark.slow
def test_more_than_two_to_the_31_logits():
    """65,600 x 32,800: one row seen from everywhere, so that the gradient alone takes memory."""
    row_C = torch.randn(32_800, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    one_1C = row_C[None].clone().requires_grad_()
    whole_NC = row_C.expand(65_600, 32_800).requires_grad_()
    targets_1C = row_C.float().softmax(0)[None]
    losses = (
        lambda x: soft_targets(x, x.detach()).loss,
        lambda x: given_targets(x, targets_1C.expand_as(x)),
    )
    for loss in losses:
        (expected_1C,) = torch.autograd.grad(loss(one_1C).sum(), one_1C)
        loss_N = loss(whole_NC)
        torch.testing.assert_close(loss_N, loss(one_1C).detach().expand_as(loss_N))
        (found_NC,) = torch.autograd.grad(loss_N.sum(), whole_NC)
        for n in (0, 65_471, 65_472, 65_599):  # around element 2^31
            assert torch.equal(found_NC[n], expected_1C[0])
