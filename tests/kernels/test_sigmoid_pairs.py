"""The promises of ``sigmoid_pairs`` on CPU: values, gradients, refusals, compilation."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.sigmoid_pairs import native, reference, spec
from fastssl.kernels.sigmoid_pairs.op import sigmoid_pairs, sigmoid_pairs_sum

SAMPLES = list(spec.samples())
NATIVE = pytest.mark.skipif(compiled.library() is None, reason="the compiled library is not built")
BACKEND = native if compiled.library() is not None else reference
BOTH = pytest.mark.parametrize("function", [sigmoid_pairs, sigmoid_pairs_sum])


def textbook(sample: spec.Sample, q_ND: Tensor, k_KD: Tensor) -> list[float]:
    """Losses in loops over Python floats; shares no code with the package."""
    losses = []
    for i, q_D in enumerate(q_ND):
        loss = 0.0
        for j, k_D in enumerate(k_KD):
            x = sample.scale * float(q_D @ k_D) + sample.bias
            partner = sample.diagonal is not None and j == i + sample.diagonal
            x = x if partner else -x
            loss += math.log1p(math.exp(-abs(x))) + max(-x, 0.0)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.num_keys < 100], ids=lambda s: s.name)
def test_float64_equals_the_textbook_loops(sample):
    q_ND, k_KD = sample.operands(torch.float64)
    given = q_ND, k_KD, sample.scale, sample.bias
    exact = torch.tensor(textbook(sample, q_ND, k_KD), dtype=torch.float64)
    rows = sigmoid_pairs(*given, diagonal=sample.diagonal)
    torch.testing.assert_close(rows, exact, rtol=1e-12, atol=0)
    total = sigmoid_pairs_sum(*given, diagonal=sample.diagonal)
    torch.testing.assert_close(total, exact.sum(), rtol=1e-12, atol=0)


def everything(backend, problem: reference.Problem) -> dict[str, Tensor]:
    """All outputs of a backend with fixed cotangents, in float64."""
    rows, by_scale, by_bias, dq = backend.forward(problem, True, True)
    g_N = torch.linspace(0.5, 1.5, len(rows), dtype=rows.dtype)
    found = {"rows": rows, "by_scale": by_scale, "by_bias": by_bias, "dq": dq}
    found["bare rows"] = backend.forward(problem, False, False).rows
    found["dk"] = backend.pull_keys(problem, g_N)
    parts, dk = backend.total(problem, (True, True))
    found |= {f"total {name}": part for name, part in parts._asdict().items()}
    found["total dk"] = dk
    found["dq alone"] = backend.total(problem, (True, False))[0].dq
    found["dk alone"] = backend.total(problem, (False, True))[1]
    return {name: x.double() for name, x in found.items()}


@NATIVE
@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_error_is_within_twice_torchs_own_at_every_dtype(dtype):
    """The reference at the same dtype is what torch would do; both against float64."""
    for sample in SAMPLES:
        problem = sample.problem(dtype)
        exact = problem._replace(q_ND=problem.q_ND.double(), k_KD=problem.k_KD.double())
        truth, ours, torchs = (
            everything(*call)
            for call in ((reference, exact), (native, problem), (reference, problem))
        )
        eps = torch.finfo(problem.dtype).eps
        for name, value in truth.items():
            size = value.abs().max().item()
            stored = torch.finfo(dtype).eps if name == "dk" else 0.0
            floor = (8 * eps * (1 + abs(sample.scale)) + stored) * size + 4 * eps
            error, own = ((x[name] - value).abs().max().item() for x in (ours, torchs))
            assert error <= spec.ERROR_RATIO * own + floor, (sample, name)


@NATIVE
def test_small_losses_keep_their_relative_precision():
    """Far below zero log(1 + e^x) is e^x: no more may be lost than a logit of x rounds by."""
    for bias in (-5.0, -20.0, -60.0, -80.0):
        q_ND, k_KD = torch.zeros(3, 2), torch.zeros(40, 2)
        rows = sigmoid_pairs(q_ND, k_KD, 1.0, bias, diagonal=None)
        exact = 40 * math.log1p(math.exp(bias))
        rounding = torch.finfo(torch.float32).eps * (1 - bias)
        assert rows.double().sub(exact).abs().max() <= rounding * exact, bias


@NATIVE
@pytest.mark.parametrize("bias", [-1e30, -1e4, 1e4, 1e30])
def test_extreme_logits_stay_finite(bias):
    q_ND, k_KD = (x.requires_grad_() for x in torch.randn(2, 5, 4).unbind(0))
    rows = sigmoid_pairs(q_ND, k_KD, 1e4, bias)
    found = [rows, *torch.autograd.grad(rows.sum(), (q_ND, k_KD))]
    assert all(x.isfinite().all() for x in found)
    x_NK = q_ND.detach().double() @ k_KD.detach().double().T * 1e4 + bias
    y_NK = 2 * torch.eye(5) - 1
    exact = -F.logsigmoid(y_NK * x_NK).sum(1)
    torch.testing.assert_close(rows.double(), exact, rtol=1e-5, atol=1e-2)


@NATIVE
def test_what_is_not_a_number_is_not_hidden():
    q_ND, k_KD = torch.randn(2, 5, 4).unbind(0)
    q_ND[2, 1] = math.nan
    rows = sigmoid_pairs(q_ND, k_KD, 2.0, 0.0)
    assert rows.isnan().tolist() == [False, False, True, False, False]


@NATIVE
def test_keys_in_bfloat16_are_what_their_values_are():
    problem = spec.Sample("queue", 40, 500, 64).problem(torch.float32, torch.bfloat16)
    exact = problem._replace(q_ND=problem.q_ND.double(), k_KD=problem.k_KD.double())
    mixed = native.forward(problem, False, False).rows
    torch.testing.assert_close(
        mixed.double(), reference.forward(exact, False, False).rows, rtol=4e-6, atol=0
    )


@BOTH
@pytest.mark.parametrize("diagonal", [0, 2, -3, None])
def test_gradcheck_and_gradgradcheck_in_float64(function, diagonal):
    sample = spec.Sample("small", 5, 7, 3, unit=False)
    inputs = [*sample.operands(torch.float64), *torch.tensor([1.3, -0.4]).double()]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: function(*x, diagonal=diagonal), inputs)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x, diagonal=diagonal), inputs)


@BOTH
@pytest.mark.parametrize("learnt", range(4))
def test_any_one_input_may_be_the_one_that_learns(function, learnt):
    sample = spec.Sample("one", 6, 9, 4, 2.0, -1.0)
    inputs = [*sample.operands(torch.float64), *torch.tensor([2.0, -1.0]).double()]
    alone = [x.clone().requires_grad_(i == learnt) for i, x in enumerate(inputs)]
    every = [x.clone().requires_grad_() for x in inputs]
    (found,) = torch.autograd.grad(function(*alone).square().sum(), alone[learnt])
    expected = torch.autograd.grad(function(*every).square().sum(), every)[learnt]
    torch.testing.assert_close(found, expected)


@BOTH
def test_create_graph_does_not_change_gradients_of_dependent_inputs(function):
    z_ND = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    for arguments in (lambda z: (z, z, 2.0, 0.0), lambda z: (z, 2 * z, z.square().mean(), z[0, 0])):
        grads = []
        for create_graph in (False, True):
            total = function(*arguments(z_ND)).square().sum()
            grads += torch.autograd.grad(total, z_ND, create_graph=create_graph)
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck
@pytest.mark.parametrize("name", ["sigmoid_pairs", "sigmoid_pairs_sum"])
@pytest.mark.parametrize("diagonal", [3, None])
def test_opcheck_four_of_four(name, diagonal):
    q_ND, k_KD = spec.Sample("opcheck", 9, 11, 6).operands(torch.float32)
    numbers = torch.tensor([3.0, -1.0]).unbind(0)
    inputs = [x.clone().requires_grad_() for x in (q_ND, k_KD, *numbers)]
    operator = getattr(torch.ops.fastssl, name).default
    results = torch.library.opcheck(operator, (*inputs, diagonal, True, True))
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


def test_opcheck_of_the_keys_gradient():
    q_ND, k_KD = spec.Sample("opcheck", 9, 11, 6).operands(torch.float16)
    given = torch.ones(9), q_ND, k_KD, torch.tensor(3.0), torch.tensor(-1.0), 1
    results = torch.library.opcheck(torch.ops.fastssl.sigmoid_pairs_keys.default, given)
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_whole_with_dynamic_shapes():
    def loss(q_ND, k_KD, scale, bias):
        unit_q, unit_k = F.normalize(q_ND, dim=1), F.normalize(k_KD, dim=1)
        rows = sigmoid_pairs(unit_q, unit_k, scale, bias)
        return rows.square().mean() + sigmoid_pairs_sum(unit_q, unit_k, scale, bias, diagonal=None)

    fast = torch.compile(loss, fullgraph=True, dynamic=True)
    for num_queries, num_keys in ((6, 9), (13, 40)):
        sample = spec.Sample("compiled", num_queries, num_keys, 8, unit=False)
        grads = []
        for function in (loss, fast):
            inputs = [*sample.operands(torch.float32), *torch.tensor([5.0, -2.0]).unbind(0)]
            inputs = [x.clone().requires_grad_() for x in inputs]
            value = function(*inputs)
            grads.append([value, *torch.autograd.grad(value, inputs)])
        for eager, compiled_value in zip(*grads, strict=True):
            torch.testing.assert_close(eager, compiled_value)


def test_equal_calls_give_equal_bits():
    problem = spec.Sample("repeat", 190, 700, 96).problem(torch.float32)
    first = everything(BACKEND, problem)
    for _ in range(20):
        again = everything(BACKEND, problem)
        assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize("create_graph", [False, True])
def test_autocast_changes_nothing(create_graph):
    sample = spec.Sample("autocast", 20, 30, 16, unit=False)
    inputs = [*sample.operands(torch.float32), *torch.tensor([1.5, -1.0]).unbind(0)]
    inputs = [x.clone().requires_grad_() for x in inputs]

    def grads() -> list[Tensor]:
        total = sigmoid_pairs(*inputs).square().sum()
        return [total, *torch.autograd.grad(total, inputs, create_graph=create_graph)]

    plain = grads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = grads()
    for ours, expected in zip(inside, plain, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_references_blocks_are_its_formula(monkeypatch):
    problem = spec.Sample("blocks", 9, 14, 5, diagonal=2).problem(torch.float64)
    leaves = [x.clone().requires_grad_() for x in problem[:4]]
    rows = reference.rows(reference.Problem(*leaves, problem.diagonal))
    g_N = torch.linspace(-1, 1, 9, dtype=torch.float64)
    dk_KD, by_scale = torch.autograd.grad((rows * g_N).sum(), (leaves[1], leaves[2]))
    for block_logits in (1, 30, 1 << 20):
        monkeypatch.setattr(reference, "BLOCK_LOGITS", block_logits)
        found = reference.forward(problem, True, True)
        torch.testing.assert_close(found.rows, rows.detach())
        torch.testing.assert_close((found.by_scale * g_N).sum(), by_scale)
        torch.testing.assert_close(reference.pull_keys(problem, g_N), dk_KD)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch.func imports it
@BOTH
def test_transforms_see_the_formula(function):
    q_BND, k_KD = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    loss = lambda q_ND: function(q_ND, k_KD, 2.0, -1.0).square().sum()  # noqa: E731
    grad_BND = torch.vmap(torch.func.grad(loss))(q_BND)
    q_ND = q_BND[1].clone().requires_grad_()
    (plain_ND,) = torch.autograd.grad(loss(q_ND), q_ND)
    torch.testing.assert_close(grad_BND[1], plain_ND)
    tangent_ND = torch.randn(3, 4, dtype=torch.float64)
    _, pushed = torch.func.jvp(loss, (q_BND[1],), (tangent_ND,))
    torch.testing.assert_close(pushed, (plain_ND * tangent_ND).sum())


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda b: b.name)
def test_bad_calls_name_the_argument(bad):
    for function in (sigmoid_pairs, sigmoid_pairs_sum):
        with pytest.raises(ValueError, match="^sigmoid_pairs: ") as caught:
            function(bad.queries, bad.keys, bad.scale, bad.bias, **bad.options)
        assert all(text in str(caught.value) for text in bad.mentions)


def test_a_gradient_that_was_not_asked_for_is_refused_at_the_operator():
    q_ND, k_KD = torch.randn(2, 4, 3).unbind(0)
    numbers = torch.tensor(1.0), torch.tensor(0.0)
    given = q_ND.requires_grad_(), k_KD, *numbers, 0
    with pytest.raises(ValueError, match="save and want_q must be True"):
        torch.ops.fastssl.sigmoid_pairs(*given, True, False)
    with pytest.raises(ValueError, match="wants must be True"):
        torch.ops.fastssl.sigmoid_pairs_sum(*given, False, True)


@NATIVE
def test_nothing_of_the_size_of_the_pairs_is_saved():
    saved = []
    q_ND, k_KD = (x.requires_grad_() for x in torch.randn(2, 300, 4).unbind(0))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        sigmoid_pairs(q_ND, k_KD, 1.0, 0.0)
        sigmoid_pairs_sum(q_ND, k_KD, 1.0, 0.0)
    assert max(x.numel() for x in saved) == 300 * 4


@NATIVE
def test_more_than_two_to_the_31_pairs():
    """65,600 x 32,800 pairs: offsets do not fit 32 bits."""
    q_ND, k_KD = torch.zeros(65_600, 1), torch.zeros(32_800, 1)
    rows = sigmoid_pairs(q_ND, k_KD, 1.0, 0.0, diagonal=None)
    torch.testing.assert_close(rows, torch.full((65_600,), 32_800 * math.log(2.0)))
