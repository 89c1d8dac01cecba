"""The promises of the ``contrast`` operators on CPU: values, gradients, refusals, compilation."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.contrast import native, reference, spec
from fastssl.kernels.contrast.op import Pairs, contrast, contrast_mean

SAMPLES = list(spec.samples())
NATIVE = pytest.mark.skipif(compiled.library() is None, reason="the compiled library is not built")


def textbook(q_ND: Tensor, k_KD: Tensor, scale: float, ids: reference.Ids) -> tuple[list, list]:
    """Log-denominators in loops over Python floats; shares no code with the package."""

    def counts(i: int, j: int) -> bool:
        if ids.q_row_N is not None and ids.q_row_N[i] == ids.k_row_K[j]:
            return False
        if ids.keep == "all":
            return True
        return bool(ids.q_label_N[i] == ids.k_label_K[j]) == (ids.keep == "same")

    def log_sum(values: list[float]) -> float:
        if not values:
            return -math.inf
        top = max(values)
        return top + math.log(sum(math.exp(value - top) for value in values))

    queries, keys = range(len(q_ND)), range(len(k_KD))
    x = [[scale * float(q_ND[i] @ k_KD[j]) for j in keys] for i in queries]
    rows = [log_sum([x[i][j] for j in keys if counts(i, j)]) for i in queries]
    cols = [log_sum([x[i][j] for i in queries if counts(i, j)]) for j in keys]
    return rows, cols


@pytest.mark.parametrize("sample", SAMPLES[:22], ids=lambda s: s.name)
def test_float64_equals_the_textbook_loops(sample):
    q_ND, k_KD = sample.operands(torch.float64)
    found = contrast(
        q_ND, k_KD, sample.scale, pairs=sample.pairs(), columns=True, bound=sample.bound
    )
    rows, cols = textbook(q_ND, k_KD, sample.scale, sample.ids())
    for ours, truth in ((found.rows, rows), (found.cols, cols)):
        truth = torch.tensor(truth, dtype=torch.float64)
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-11)


def everything(backend, q_ND, k_KD, sample, *, save: bool) -> dict[str, Tensor]:
    """All outputs of a backend with fixed cotangents, in float64."""
    scale = torch.tensor(sample.scale, dtype=torch.float64)
    ids, bound = sample.ids(), sample.bound
    rows, cols, top, kept = backend.forward(q_ND, k_KD, scale, ids, True, bound, save)
    g_rows, g_cols = (torch.linspace(0.5, 1.5, len(x), dtype=x.dtype) for x in (rows, cols))
    dq, dk, dscale = backend.backward(
        g_rows, g_cols, q_ND, k_KD, scale, ids, rows, cols, kept, bound, (True, True)
    )
    mean_rows, _, mean = backend.forward_mean(q_ND, k_KD, scale, ids, bound)
    found = {"rows": rows, "cols": cols, "top": top, "dq": dq, "dk": dk, "dscale": dscale}
    return {k: v.double() for k, v in {**found, "mean rows": mean_rows, "mean": mean}.items()}


@NATIVE
@pytest.mark.parametrize("save", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_error_is_within_twice_torchs_own_at_every_dtype(dtype, save):
    """The reference at the same dtype is what torch would do; both against float64."""
    for sample in SAMPLES:
        q_ND, k_KD = sample.operands(dtype)
        truth = everything(reference, q_ND.double(), k_KD.double(), sample, save=False)
        ours = everything(native, q_ND, k_KD, sample, save=save)
        torchs = everything(reference, q_ND, k_KD, sample, save=False)
        eps = torch.finfo(reference.accumulate_dtype(dtype)).eps
        for name, exact in truth.items():
            finite = torch.isfinite(exact)
            assert torch.equal(torch.isfinite(ours[name]), finite), (sample, name)
            if not finite.any():
                continue
            size = exact[finite].abs().max().item()
            rounding = torch.finfo(dtype).eps if name in ("dq", "dk") else 0.0
            floor = (8 * eps * (1 + abs(sample.scale)) + rounding) * size + 4 * eps
            error, torch_error = (
                (x[name] - exact)[finite].abs().max().item() for x in (ours, torchs)
            )
            assert error <= spec.ERROR_RATIO * torch_error + floor, (sample, name)


@NATIVE
def test_keys_in_bfloat16_are_what_their_values_are():
    sample = spec.Sample("queue", 40, 500, 64)
    q_ND, k_KD = sample.operands(torch.float32, torch.bfloat16)
    mixed = contrast_mean(q_ND, k_KD, 5.0, bound=sample.bound).rows
    exact = contrast_mean(q_ND.double(), k_KD.double(), 5.0).rows
    torch.testing.assert_close(mixed.double(), exact, rtol=2e-6, atol=2e-6)


def finite(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(torch.isinf(v), 0.0, v) for v in values if v.numel())


@pytest.mark.parametrize("keep", ["all", "same", "different"])
@pytest.mark.parametrize("with_rows", [False, True])
def test_gradcheck_and_gradgradcheck_in_float64(keep, with_rows):
    sample = spec.Sample("small", 5, 7, 3, 1.3, keep, with_rows, unit=False)
    q_ND, k_KD = (x.requires_grad_() for x in sample.operands(torch.float64))
    scale = torch.tensor(sample.scale, dtype=torch.float64, requires_grad=True)

    def both(q_ND, k_KD, scale):
        return finite(contrast(q_ND, k_KD, scale, pairs=sample.pairs(), columns=True)[:2])

    def mean(q_ND, scale):
        return finite(contrast_mean(q_ND, k_KD.detach(), scale, pairs=sample.pairs())[:1])

    assert torch.autograd.gradcheck(both, (q_ND, k_KD, scale))
    assert torch.autograd.gradgradcheck(both, (q_ND, k_KD, scale))
    assert torch.autograd.gradcheck(mean, (q_ND, scale))
    assert torch.autograd.gradgradcheck(mean, (q_ND, scale))


def test_create_graph_does_not_change_gradients_of_dependent_inputs():
    z_ND = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    for arguments in (lambda z: (z, z, 2.0), lambda z: (z, 2 * z + 1, z.square().mean())):
        grads = []
        for create_graph in (False, True):
            q, k, scale = arguments(z_ND)
            loss = contrast(q, k, scale, columns=True)
            total = loss.rows.sum() + (loss.cols * loss.cols).sum()
            grads += torch.autograd.grad(total, z_ND, create_graph=create_graph)
        torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck
@pytest.mark.parametrize("mean", [False, True], ids=["contrast", "contrast_mean"])
def test_opcheck_four_of_four(mean):
    sample = spec.Sample("opcheck", 9, 11, 6, keep="different", with_rows=True)
    q_ND, k_KD = sample.operands(torch.float32)
    pairs = sample.pairs()
    flat = (*pairs.labels, *pairs.rows, pairs.keep)
    scale = torch.tensor(3.0, requires_grad=True)
    q_ND.requires_grad_()
    if mean:
        operator, rest = torch.ops.fastssl.contrast_mean.default, (1.0,)
    else:
        k_KD.requires_grad_()
        operator, rest = torch.ops.fastssl.contrast.default, (True, 1.0, True)
    results = torch.library.opcheck(operator, (q_ND, k_KD, scale, *flat, *rest))
    assert len(results) == 4
    assert set(results.values()) == {"SUCCESS"}


def test_compiles_whole_with_dynamic_shapes():
    def loss(q_ND, k_KD, scale):
        unit_q, unit_k = F.normalize(q_ND, dim=1), F.normalize(k_KD, dim=1)
        both = contrast(unit_q, unit_k, scale, columns=True, bound=1.0)
        single = contrast_mean(unit_q, unit_k.detach(), scale, bound=1.0)
        return both.rows.mean() + both.cols.mean() + single.rows.sum()

    fast = torch.compile(loss, fullgraph=True, dynamic=True)
    for num_queries, num_keys in ((6, 9), (13, 40)):
        sample = spec.Sample("compiled", num_queries, num_keys, 8, unit=False)
        grads = []
        for function in (loss, fast):
            q_ND, k_KD = (x.requires_grad_() for x in sample.operands(torch.float32))
            scale = torch.tensor(5.0, requires_grad=True)
            value = function(q_ND, k_KD, scale)
            grads.append([value, *torch.autograd.grad(value, (q_ND, k_KD, scale))])
        for eager, compiled_value in zip(*grads, strict=True):
            torch.testing.assert_close(eager, compiled_value)


@pytest.mark.parametrize("scale", [10.0, 300.0], ids=["bounded", "online"])
def test_equal_calls_give_equal_bits(scale):
    sample = spec.Sample("repeat", 90, 700, 96, scale)
    q_ND, k_KD = sample.operands(torch.float32)
    first = everything(native if compiled.library() else reference, q_ND, k_KD, sample, save=True)
    for _ in range(20):
        again = everything(
            native if compiled.library() else reference, q_ND, k_KD, sample, save=True
        )
        assert all(torch.equal(again[name], value) for name, value in first.items())


def test_what_is_not_kept_is_recomputed_to_the_same_gradient(monkeypatch):
    """Half of the tiles fit: some ranks read E back, the rest make it again."""
    sample = spec.Sample("split", 300, 900, 40)
    grads = []
    for budget in (144 << 20, 300 * 900 * 2, 0):
        monkeypatch.setattr(native, "KEEP_BYTES", budget)
        q_ND, k_KD = (x.requires_grad_() for x in sample.operands(torch.float32))
        found = contrast(q_ND, k_KD, 10.0, columns=True, bound=1.01)
        grads.append(torch.autograd.grad(found.rows.sum() + found.cols.sum(), (q_ND, k_KD)))
    for other in grads[1:]:
        for ours, theirs in zip(grads[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("create_graph", [False, True])
def test_autocast_changes_nothing(create_graph):
    sample = spec.Sample("autocast", 20, 30, 16, unit=False)
    q_ND, k_KD = (x.requires_grad_() for x in sample.operands(torch.float32))
    scale = torch.tensor(1.5, requires_grad=True)

    def grads() -> list[Tensor]:
        rows, cols, _ = contrast(q_ND, k_KD, scale, columns=True)
        total = rows.sum() + cols.square().sum()
        inputs = (q_ND, k_KD, scale)
        return [total, *torch.autograd.grad(total, inputs, create_graph=create_graph)]

    plain = grads()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = grads()
    for ours, expected in zip(inside, plain, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_row_without_pairs_is_minus_infinity_and_pulls_nothing():
    q_ND = torch.randn(3, 4, requires_grad=True)
    k_KD = torch.randn(2, 4, requires_grad=True)
    labels = (torch.tensor([0, 1, 7]), torch.tensor([0, 1]))
    rows = contrast(q_ND, k_KD, 2.0, pairs=Pairs("same", labels)).rows
    assert rows[2] == -math.inf
    rows[:2].sum().backward()
    assert torch.isfinite(q_ND.grad).all()
    assert (q_ND.grad[2] == 0).all()


def test_ids_may_be_any_int64():
    huge = torch.tensor([-(2**62), 5, 2**60, 2**60 + 1])
    q_ND, k_KD = torch.randn(2, 4, 3).unbind(0)
    pairs = Pairs("different", (huge, huge.flip(0)))
    small = Pairs("different", (torch.arange(4), torch.arange(4).flip(0)))
    ours, plain = (contrast(q_ND, k_KD, 1.0, pairs=p).rows for p in (pairs, small))
    assert torch.equal(ours, plain)


def test_keys_may_be_overwritten_after_the_single_pass():
    q_ND = torch.randn(5, 4, requires_grad=True)
    queue_KD = torch.randn(9, 4)
    wanted = torch.autograd.grad(contrast(q_ND, queue_KD, 2.0).rows.sum(), q_ND)[0]
    rows = contrast_mean(q_ND, queue_KD, 2.0).rows
    queue_KD.zero_()
    torch.testing.assert_close(torch.autograd.grad(rows.sum(), q_ND)[0], wanted)


def test_a_second_derivative_over_overwritten_keys_is_refused():
    q_ND = torch.randn(5, 4, requires_grad=True)
    queue_KD = torch.randn(9, 4)
    rows = contrast_mean(q_ND, queue_KD, 2.0).rows
    queue_KD.zero_()
    with pytest.raises(RuntimeError, match="written to since"):
        torch.autograd.grad(rows.sum(), q_ND, create_graph=True)


def test_the_single_pass_refuses_keys_that_want_a_gradient():
    q_ND, k_KD = torch.randn(2, 4, 3).unbind(0)
    with pytest.raises(ValueError, match="keys"):
        contrast_mean(q_ND, k_KD.requires_grad_(), 1.0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch.func imports it
def test_transforms_see_the_formula():
    q_BND, k_KD = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    function = torch.func.grad(lambda q_ND: contrast(q_ND, k_KD, 2.0).rows.square().sum())
    grad_BND = torch.vmap(function)(q_BND)
    q_ND = q_BND[1].clone().requires_grad_()
    (plain_ND,) = torch.autograd.grad(contrast(q_ND, k_KD, 2.0).rows.square().sum(), q_ND)
    torch.testing.assert_close(grad_BND[1], plain_ND)
    tangent_ND = torch.randn(3, 4, dtype=torch.float64)
    for operator in (contrast, contrast_mean):
        _, pushed_N = torch.func.jvp(
            lambda q, op=operator: op(q, k_KD, 2.0).rows, (q_BND[1],), (tangent_ND,)
        )
        rows_N = operator(q_ND, k_KD, 2.0).rows
        jacobian = [torch.autograd.grad(r, q_ND, retain_graph=True)[0] for r in rows_N]
        wanted_N = torch.stack([(row * tangent_ND).sum() for row in jacobian])
        torch.testing.assert_close(pushed_N, wanted_N)


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda b: b.name)
def test_bad_calls_name_the_argument(bad):
    with pytest.raises(ValueError, match="^contrast: ") as caught:
        contrast(bad.queries, bad.keys, bad.scale, **bad.options)
    assert all(text in str(caught.value) for text in bad.mentions)


@NATIVE
def test_a_forged_record_of_the_forward_is_refused():
    q_ND, k_KD = torch.randn(2, 4, 3).unbind(0)
    found = torch.ops.fastssl.contrast(
        q_ND, k_KD, torch.tensor(1.0), None, None, None, None, "all", True, math.inf, True
    )
    forged = torch.full_like(found[3], 3e38)
    with pytest.raises(ValueError, match="kept"):
        torch.ops.fastssl.contrast_backward(
            found[0], found[1], q_ND, k_KD, torch.tensor(1.0), None, None, None, None, "all",
            found[0], found[1], forged, math.inf, True, True,
        )  # fmt: skip


@NATIVE
def test_more_than_two_to_the_31_pairs():
    """65,600 x 32,800 pairs: offsets do not fit 32 bits."""
    q_ND = torch.zeros(65_600, 1)
    k_KD = torch.zeros(32_800, 1)
    found = contrast(q_ND, k_KD, 1.0, columns=True, bound=1.0)
    exact = torch.tensor([32_800.0, 65_600.0]).log()
    torch.testing.assert_close(found.rows, exact[0].expand(65_600))
    torch.testing.assert_close(found.cols, exact[1].expand(32_800))
