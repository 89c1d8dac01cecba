"""The Triton kernels of soft_targets and enqueue: right between guard bands, and they compile."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")

from fastssl.kernels import aot
from fastssl.kernels.cuda import ARCHS, Config
from fastssl.kernels.enqueue import launch as ring
from fastssl.kernels.ntxent import launch as ntxent_launch
from fastssl.kernels.soft_targets import launch


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_rows"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["wrong"] for line in lines}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_kernel_is_right_and_stays_within_its_tensors(answers, dtype):
    cases = {case: wrong for case, wrong in answers.items() if case.startswith(dtype)}
    assert len(cases) >= 16
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


@pytest.mark.parametrize(
    "bug",
    [
        "write out of bounds",
        "read out of bounds",
        "another logarithm",
        "another exponential",
        "ring scale",
    ],
)
def test_a_planted_bug_is_caught(answers, bug):
    assert answers[f"planted: {bug}"] != ""


def recorded(dtype: torch.dtype) -> dict[str, tuple[tuple, dict]]:
    """Arguments and constants of one call of every kernel, as a user's call passes them."""
    calls: dict[str, tuple[tuple, dict]] = {}

    def note(name, grid, *arguments, **constants):
        calls.setdefault(name, (arguments, constants))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", note)
        patch.setattr(ring, "launch", note)
        x_NC = torch.zeros(64, 4096, dtype=dtype)
        centre_C, g_N = torch.zeros(4096), torch.zeros(64)
        loss, marginal, stats = launch.forward(x_NC, x_NC, centre_C, 2.0, 2.0, True)
        launch.backward(g_N, marginal, x_NC, x_NC, centre_C, 2.0, 2.0, loss, stats, True)
        _, stats = launch.given_forward(x_NC, x_NC, 2.0)
        launch.given_backward(g_N, x_NC, x_NC, 2.0, stats)
        rows_KD, pointer = torch.zeros(128, 128, dtype=torch.bfloat16), torch.tensor(0)
        ring.enqueue(rows_KD, pointer, torch.zeros(64, 128, dtype=dtype))
    return calls


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_compiles_and_can_launch(monkeypatch, arch, dtype):
    kernels = launch.KERNELS | ring.KERNELS
    calls = recorded(dtype)
    assert set(calls) == set(kernels)
    for name, (arguments, constants) in calls.items():
        monkeypatch.setitem(ntxent_launch.KERNELS, name, kernels[name])
        warps = 2 if name == "enqueue" else launch.WARPS.get(name, launch.MOST_WARPS)
        config = Config(name, "fp32", 0, warps, 3, constants)
        found = aot.compile_config(config, arch, arguments)
        assert found.problem == "", (name, arch)
        assert (found.ex2 > 0) == (name != "enqueue")
