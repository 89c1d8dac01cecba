"""The promises of ``ntxent`` on CUDA, where the Triton kernels answer (``pytest -m gpu``)."""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.kernels.ntxent import reference, spec
from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses import NTXentLoss
from tests.kernels.judge import Judge, eager, weights

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
BLIND = {"N1-D1", "N1-D5", "N2-D1", "identical", "tau0.01", "tau0.02", "tau-0.02", "tau0.025"}


@pytest.fixture(autouse=True)
def full_precision():
    """float32 products are float32 unless a test says otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def answers(views: list[Tensor], tau: float, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, stacked gradient and temperature gradient, for the judge's upstream gradient."""
    leaves = [view.detach().requires_grad_() for view in views]
    temperature = torch.tensor(tau, dtype=torch.float64, device=DEVICE, requires_grad=True)
    loss = ntxent(leaves, temperature, reduction=reduction)
    *grads, dtau = torch.autograd.grad(loss, [*leaves, temperature], weights(loss))
    return loss.detach(), torch.cat(grads), dtau


def leaves_of(name: str, num_samples: int, embedding: int, dtype=torch.float32) -> list[Tensor]:
    views = spec.Sample(name, num_samples, embedding).views(dtype, DEVICE)
    return [view.detach().clone().requires_grad_() for view in views]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_values_and_gradients_are_within_twice_torchs_own_error(dtype, reduction):
    wrong, blind = {}, {}
    for sample in spec.samples_for(dtype):
        views = sample.views(dtype, DEVICE)
        found = answers(views, sample.temperature, reduction)
        judge = Judge(views, sample.temperature, reduction)
        wrong[sample.name], blind[sample.name] = judge(*found), judge.blind(*found)
    assert {name: what for name, what in wrong.items() if what} == {}
    if dtype in (torch.float32, torch.float64):
        assert {name: what for name, what in blind.items() if what and name not in BLIND} == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("shape", [(700, 128), (1025, 300), (257, 2048)])
def test_several_blocks_bands_and_splits_are_right(dtype, tau, shape):
    views = spec.Sample("blocks", *shape).views(dtype, DEVICE)
    found, judge = answers(views, tau, "mean"), Judge(views, tau, "mean")
    assert judge(*found) == ""
    assert judge.blind(*found) == "" or dtype != torch.float32


def test_tf32_is_used_only_where_torch_may_use_it_and_is_no_worse():
    torch.set_float32_matmul_precision("high")
    views = spec.Sample("tf32", 500, 128).views(torch.float32, DEVICE)
    assert Judge(views, 0.1, "mean")(*answers(views, 0.1, "mean")) == ""


def test_more_column_blocks_than_a_band_holds_are_merged_right():
    views = spec.Sample("bands", 9000, 64).views(torch.bfloat16, DEVICE)
    assert Judge(views, 0.1, "mean")(*answers(views, 0.1, "mean")) == ""


def test_fp16_gradients_overflow_except_those_of_zero_rows():
    views = [view * 1e-5 for view in spec.Sample("short", 21, 24).views(torch.float16, DEVICE)]
    views[0][0] = 0
    found_MD = answers(views, 0.1, "none")[1]
    size_MD = eager(views, 0.1, "none", torch.float64)[1].abs()
    assert found_MD[0].isfinite().all()
    assert (size_MD[1:] > 7e4).any()
    assert found_MD[1:][size_MD[1:] > 7e4].isinf().all()
    assert found_MD[1:][size_MD[1:] < 6e4].isfinite().all()


def test_float64_norms_beyond_1e154_do_not_overflow():
    z0, z1 = torch.rand(2, 9, 16, dtype=torch.float64, device=DEVICE).unbind(0)
    torch.testing.assert_close(ntxent([z0 * 1e160, z1], 0.2), ntxent([z0, z1], 0.2))


def test_gradcheck_and_gradgradcheck_in_float64():
    views = leaves_of("gradcheck", 4, 3, torch.float64)
    tau = torch.tensor(0.3, dtype=torch.float64, device=DEVICE, requires_grad=True)

    def loss(tau, *views):
        return ntxent(views, tau)

    assert torch.autograd.gradcheck(loss, (tau, *views))
    assert torch.autograd.gradgradcheck(loss, (tau, *views))


def test_create_graph_changes_no_gradient_where_inputs_depend_on_each_other():
    (x, _) = leaves_of("dependent", 9, 8)
    tau = torch.tensor(0.2, device=DEVICE)
    for views in ([x, x], [x, 2 * x + 1]):
        (once,) = torch.autograd.grad(ntxent(views, tau), x, retain_graph=True)
        (twice,) = torch.autograd.grad(ntxent(views, tau), x, create_graph=True)
        torch.testing.assert_close(twice, once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck
def test_opcheck_passes_all_four(dtype, reduction):
    tau = torch.tensor(0.2, device=DEVICE, requires_grad=True)
    inputs = (leaves_of("opcheck", 6, 10, dtype), tau, reduction, True)
    found = torch.library.opcheck(torch.ops.fastssl.ntxent.default, inputs)
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_to_one_graph_with_dynamic_shapes_and_learnt_temperature(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda z0, z1, tau: ntxent([z0, z1], tau), fullgraph=True, dynamic=True, backend=backend
    )
    for num_samples in (4, 9, 300):
        tau = torch.tensor(0.3, device=DEVICE, requires_grad=True)
        inputs = [*leaves_of("compile", num_samples, 8), tau]
        expected = torch.autograd.grad(ntxent(inputs[:2], tau), inputs)
        found = torch.autograd.grad(compiled(*inputs), inputs)
        torch.testing.assert_close(found, expected)


def test_the_module_compiles_to_one_graph_under_a_temperature_schedule():
    torch._dynamo.reset()
    loss_fn = NTXentLoss(0.1)
    compiled = torch.compile(loss_fn, fullgraph=True, dynamic=True)
    views = leaves_of("schedule", 12, 6)
    for temperature in (0.1, 0.2, 0.35, 0.5):
        loss_fn.temperature = temperature
        torch.testing.assert_close(compiled(*views), loss_fn(*views))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype):
    views = leaves_of("autocast", 24, 8, dtype)
    expected = answers(views, 0.1, "mean")
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        found = answers(views, 0.1, "mean")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_repeats_are_identical_to_the_bit():
    views = spec.Sample("repeat", 1500, 128).views(torch.bfloat16, DEVICE)
    first = answers(views, 0.1, "mean")
    for _ in range(10):
        again = answers(views, 0.1, "mean")
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_neither_direction_waits_for_the_device():
    views, tau = leaves_of("sync", 200, 64), torch.tensor(0.1, device=DEVICE, requires_grad=True)
    ntxent(views, tau).backward()  # compiled and warned about by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        ntxent(views, tau).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_replays_forward_and_backward():
    views, tau = leaves_of("graph", 200, 64), torch.tensor(0.1, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(ntxent(views, tau), views)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = ntxent(views, tau)
        grads = torch.autograd.grad(loss, views)
    with torch.no_grad():
        views[0].copy_(torch.randn_like(views[0]))
    graph.replay()
    expected = ntxent(views, tau)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, views))


def test_no_m_by_m_matrix_is_made():
    views, tau = leaves_of("memory", 16384, 128, torch.bfloat16), torch.tensor(0.1, device=DEVICE)
    ntxent(views, tau).backward()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ntxent(views, tau).backward()
    matrix = 32768**2 * 2
    assert torch.cuda.max_memory_allocated() - before < matrix / 8


def test_a_default_device_and_the_current_device_change_nothing():
    views = list(torch.randn(2, 9, 4).unbind(0))
    expected = ntxent(views, 0.1)
    with torch.device(DEVICE):
        found = ntxent(views, 0.1)
    assert found.device.type == "cpu" and found == expected
    torch.testing.assert_close(ntxent([v.to(DEVICE) for v in views], 0.1).cpu(), expected)


def reads_a_value(bad: spec.BadCall) -> bool:
    """Whether the fault lies in the value of a tensor, which would have to be waited for."""
    tau = bad.temperature
    return isinstance(tau, Tensor) and tau.numel() == 1 and tau.is_floating_point()


@pytest.mark.parametrize(
    "bad", [bad for bad in spec.bad_calls() if not reads_a_value(bad)], ids=lambda b: b.name
)
def test_a_bad_call_is_refused_by_name(bad):
    views, value = bad.views, bad.temperature
    value = value.to(DEVICE) if isinstance(value, Tensor) else value
    if isinstance(views, tuple):
        views = [v.to(DEVICE) if isinstance(v, Tensor) and not v.is_meta else v for v in views]
    with pytest.raises(ValueError, match="^ntxent: ") as refusal:
        ntxent(views, value, reduction=bad.reduction)
    for word in bad.mentions:
        assert word in str(refusal.value)


def test_views_and_temperature_on_two_devices_are_refused():
    z = torch.randn(4, 3, device=DEVICE)
    with pytest.raises(ValueError, match="^ntxent: temperature must be on the device"):
        ntxent([z, z], torch.tensor(0.1))


def test_the_raw_backward_refuses_what_another_call_saved():
    views = spec.Sample("raw", 40, 6).views(torch.float32, DEVICE)
    tau, one = torch.tensor(0.2, device=DEVICE), torch.ones((), device=DEVICE)
    _, lse_M, rnorm_M, kept = torch.ops.fastssl.ntxent(views, tau, "mean", True)
    backward = torch.ops.fastssl.ntxent_backward
    with pytest.raises(ValueError, match="^ntxent: lse"):
        backward(one, views, tau, "mean", lse_M[:-1], rnorm_M, kept)
    with pytest.raises(ValueError, match="^ntxent: grad"):
        backward(one, views, tau, "none", lse_M, rnorm_M, kept)


def test_the_reference_gives_the_same_on_the_device():
    views = spec.Sample("same", 30, 16).views(torch.float32, DEVICE)
    exact = reference.ntxent([v.double() for v in views], torch.tensor(0.1, device=DEVICE), "mean")
    torch.testing.assert_close(ntxent(views, 0.1).double(), exact, rtol=1e-5, atol=1e-5)
