"""Gate 1 of contrast's Triton kernels: right values between guard bands, an alarm that goes off."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")

from fastssl.kernels.contrast import call, configs, gradients, launch, reference
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.cuda import ARCHS

BUGS = [
    "write out of bounds",
    "read out of bounds",
    "self pairs counted",
    "gradient through self pairs",
    "padding counted",
    "labels ignored",
    "shift without a promise",
    "scale off by two",
    "rows without pairs",
    "one shift for any tile",
    "one shift for any weight",
    "shift from the top alone",
    "gradient of the columns forgotten",
]


@cache
def answers(kind: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_contrast", kind],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize(
    ("kind", "least"), [("fp32", 28), ("bf16", 17), ("fp16", 11), ("other", 12)]
)
def test_every_kernel_is_right_and_stays_within_its_tensors(kind, least):
    cases = {case: line["wrong"] for case, line in answers(kind).items()}
    assert len(cases) >= least
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_tolerance_would_refuse_a_result_that_is_a_quarter_off(dtype):
    """Also where logits are unbounded, by GEMM, under pair rules, over several bands and splits."""
    cases = ["ragged", "queue", "deep", "cold", "cold gemm", "other class", "same class, cold"]
    if dtype != "fp16":
        cases += ["gemm", "in place", "cold rows only", "no promise", "apart", "narrow"]
    if dtype == "fp32":
        cases += ["negative", "tall", "cold narrow", "narrow gemm", "frozen"]
    assert {case: blind for case in cases if (blind := answers(dtype)[case]["blind"])} == {}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug):
    assert answers("planted")[bug]["wrong"] != ""


def test_every_padded_depth_is_served_on_every_chip():
    for arch in ARCHS:
        for dtype in ("bf16", "fp16", "fp32", "tf32"):
            for depth in (64, 128, 256, 320, 512, 2048):
                for kernel in ("rows", "columns", "merge", "state", "weights", "finish"):
                    assert configs.serving(kernel, dtype, depth, arch) is not None
                fused = configs.serving("pull", dtype, depth, arch)
                assert (fused is None) == (dtype in ("fp32", "tf32") or depth > 256)
                most = 256 if dtype in ("fp32", "tf32") else 512
                single = configs.serving("mean", dtype, depth, arch)
                assert (single is None) == (depth > most or depth == 320)
        for depth in (64, 128, 256, 320, 2048):
            for kernel in ("rows", "columns", "merge", "state", "weights", "finish"):
                assert configs.serving(kernel, "fp32 fp16", depth, arch) is not None
            assert (configs.serving("mean", "fp32 bf16", depth, arch) is None) == (depth > 256)


def test_a_queue_in_16_bits_is_never_copied(monkeypatch):
    """MoCo from float32 queries: the largest allocation of any depth is far below the queue."""
    sizes = []

    def note(shape, dtype, device):
        sizes.append(math.prod(shape) * dtype.itemsize)
        return torch.zeros(shape, dtype=dtype, device=device)

    monkeypatch.setattr(call, "allocate", note)
    monkeypatch.setattr(call, "launch", lambda *_: None)
    monkeypatch.setattr(gradients, "CHUNK_BYTES", 1 << 16)
    for dtype in (torch.float32, torch.bfloat16):
        for depth in (64, 128, 256, 512, 1024):
            q_ND, k_KD = torch.zeros(32, depth, dtype=dtype), torch.zeros(40_000, depth)
            k_KD = k_KD.to(torch.bfloat16)
            launch.forward_mean(q_ND, k_KD, torch.tensor(5.0), Ids(), 1.0)
            assert max(sizes) < k_KD.nbytes / 4
            sizes.clear()


def test_a_gpu_too_old_for_the_tiles_gets_the_reference(monkeypatch):
    monkeypatch.setattr(launch, "serves", lambda device, op: False)
    q_ND, k_KD = torch.randn(6, 5), torch.randn(7, 5)
    given = q_ND, k_KD, torch.tensor(2.0), Ids()
    found = launch.forward(*given, True, 1.0, True)
    exact = reference.forward(*given, True, 1.0, True)
    assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
    assert launch.forward_mean(*given, 1.0)[2].shape == (6, 5)
    rows, cols, _, kept = found
    dq, dk, _ = launch.backward(rows, cols, *given, rows, cols, kept, 1.0, (True, True))
    assert dq.shape == (6, 5) and dk.shape == (7, 5) and dq.isfinite().all()
