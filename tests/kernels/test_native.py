"""The promises of the CPU library: every instruction set, thread count and memory budget."""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.ntxent import native, reference, spec
from tests.kernels.judge import Judge, weights

pytestmark = pytest.mark.skipif(
    compiled.library() is None, reason="the compiled library was not built: no C++ compiler"
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run(views: list[Tensor], tau: float, *, keep: bool = True) -> tuple[Tensor, ...]:
    """Loss per row, gradient of a weighted sum, gradient of the temperature."""
    temperature = torch.tensor(tau, dtype=torch.float64)
    loss_M, lse_M, rnorm_M, kept = native.forward(views, temperature, "none", keep)
    saved = (lse_M, rnorm_M, kept)
    return loss_M, *native.backward(weights(loss_M), views, temperature, "none", *saved)


BLIND = {  # too little is left of the gradient to judge it
    *("N1-D1", "N1-D5", "N2-D1", "identical", "tau0.01", "tau0.02", "tau0.025"),
}


@pytest.mark.parametrize("isa", compiled.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set_gives_the_right_answer(isa, dtype):
    best = compiled.instruction_sets()[0]
    wrong, blind = {}, {}
    try:
        compiled.select_isa(isa)
        for sample in spec.samples():
            views = sample.views(dtype)
            found, judge = run(views, sample.temperature), Judge(views, sample.temperature, "none")
            wrong[sample.name], blind[sample.name] = judge(*found), judge.blind(*found)
    finally:
        compiled.select_isa(best)
    assert {name: what for name, what in wrong.items() if what} == {}
    assert {name: what for name, what in blind.items() if what and name not in BLIND} == {}


def test_an_unknown_instruction_set_is_refused_by_name():
    with pytest.raises(ValueError, match=r"FASTSSL_ISA: expected one of .*received 'mmx'"):
        compiled.select_isa("mmx")


@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("shape", [(400, 33), (193, 128), (1025, 17)])
def test_thread_counts_are_right_and_each_is_deterministic(threads, tau, shape):
    views = spec.Sample("threads", *shape).views(torch.float32)
    judge = Judge(views, tau, "none")
    for count in (1, 2, 3, 5):
        threads(count)
        first = run(views, tau)
        assert judge(*first) == judge.blind(*first) == ""
        for _ in range(5):
            again = run(views, tau)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("tau", [0.1, 0.01])
@pytest.mark.parametrize("budget", [0, 40_000, 400_000])
def test_what_is_not_kept_is_recomputed_to_the_same_values(monkeypatch, tau, budget):
    views = spec.Sample("budget", 450, 40).views(torch.float32)
    judge = Judge(views, tau, "none")
    found = run(views, tau)
    assert judge(*found) == judge.blind(*found) == ""
    monkeypatch.setattr(native, "KEEP_BYTES", budget)
    num_kept = native.kept_numel(900, 40, torch.float32)
    assert num_kept * 4 <= budget + 4 * native.HEADER
    assert judge(*run(views, tau)) == judge(*run(views, tau, keep=False)) == ""


def test_a_backward_with_another_thread_count_than_its_forward_is_right(threads):
    views = spec.Sample("switch", 500, 24).views(torch.float32)
    temperature = torch.tensor(0.1, dtype=torch.float64)
    threads(2)
    _, *saved = native.forward(views, temperature, "mean", True)
    threads(1)
    dz_MD, dtau = native.backward(torch.ones(()), views, temperature, "mean", *saved)
    doubles = [view.double() for view in views]
    _, *saved = reference.forward(doubles, temperature, "mean", True)
    truth_MD, truth = reference.backward(torch.ones(()), doubles, temperature, "mean", *saved)
    assert (dz_MD.double() - truth_MD).abs().max() <= 1e-4 * truth_MD.abs().max()
    assert abs(dtau.double() - truth) <= 1e-4 * abs(truth)


def test_buffers_live_as_long_as_their_tensors_and_no_longer():
    views = spec.Sample("pool", 700, 16).views(torch.float32)
    temperature = torch.tensor(0.1, dtype=torch.float64)
    gc.collect()
    before = compiled.pool_usage()[1]
    calls = [native.forward(views, temperature, "mean", True) for _ in range(3)]
    assert compiled.pool_usage()[1] > before
    kept = [call[-1] for call in calls]
    assert len({tensor.data_ptr() for tensor in kept}) == 3
    answers = [
        native.backward(torch.ones(()), views, temperature, "mean", *call[1:])[0] for call in calls
    ]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    del calls, kept
    gc.collect()
    assert compiled.pool_usage()[1] == before


def test_python_threads_may_call_at_the_same_time():
    views = spec.Sample("together", 260, 48).views(torch.float32)
    alone = run(views, 0.1)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for together in pool.map(lambda _: run(views, 0.1), range(24)):
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_not_a_number_in_one_row_is_seen_and_does_not_hang():
    views = spec.Sample("nan", 40, 16).views(torch.float32)
    views[0][3, 2] = float("nan")
    loss_M, dz_MD, _ = run(views, 0.1)
    assert loss_M.isnan().all()  # the row is everybody's negative
    assert dz_MD.isnan().any()


@pytest.mark.skipif(sys.platform != "linux", reason="the flag is Linux's")
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_more_than_2_to_the_31_elements_apart_are_read_in_place(transposed):
    """Memory that nobody touches costs nothing: 12 GiB are mapped, some pages of them used."""
    step, num_samples, embedding, no_reserve = 2**31, 3, 24, 0x4000
    if transposed:
        num_samples, embedding = embedding, num_samples
    numel = step * 2 + 64
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    memory = torch.frombuffer(mmap.mmap(-1, 2 * numel, flags=flags), dtype=torch.bfloat16)
    strides = (1, step) if transposed else (step, 1)
    apart = torch.as_strided(memory, (num_samples, embedding), strides)
    dense = spec.Sample("apart", num_samples, embedding).views(torch.bfloat16)
    apart.copy_(dense[0])
    assert apart.data_ptr() == memory.data_ptr() and torch.equal(apart, dense[0])
    found, expected = run([apart, dense[1]], 0.1), run(dense, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert Judge(dense, 0.1, "none")(*found) == ""


def test_it_works_without_torchs_openmp():
    program = (
        "import torch\n"
        "from fastssl.kernels import native\n"
        "native._share_openmp = lambda loaded: None\n"
        "from fastssl.kernels.ntxent.op import ntxent\n"
        "torch.set_num_threads(2)\n"
        "torch.manual_seed(0)\n"
        "views = [v.requires_grad_() for v in torch.randn(2, 600, 32).unbind(0)]\n"
        "loss = ntxent(views, 0.1)\n"
        "loss.backward()\n"
        "exact = ntxent([v.detach().double() for v in views], 0.1)\n"
        "assert abs(loss - exact) < 1e-4\n"
        "print('own threads')\n"
    )
    environment = {**os.environ, "FASTSSL_ISA": "baseline"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "own threads", done.stderr
