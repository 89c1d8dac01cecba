"""Gate 1 of sigmoid_pairs' Triton kernels: right between guard bands, an alarm that rings."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")

from fastssl.kernels.cuda import ARCHS
from fastssl.kernels.sigmoid_pairs import configs, launch, reference, spec

BUGS = [
    "write out of bounds",
    "read out of bounds",
    "partners are strangers",
    "padding counted",
    "small losses lost to the one",
    "exponential overflows",
    "scale off by two",
]


@cache
def answers(kind: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_sigmoid", kind],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize(
    ("kind", "least"), [("fp32", 14), ("bf16", 10), ("fp16", 7), ("other", 10)]
)
def test_every_kernel_is_right_and_stays_within_its_tensors(kind, least):
    cases = {case: line["wrong"] for case, line in answers(kind).items()}
    assert len(cases) >= least
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_tolerance_would_refuse_a_result_that_is_a_quarter_off(dtype):
    cases = ["one pair", "ragged", "deep", "extreme", "rare", "not unit"]
    cases += ["in place", "tall", "cold", "narrow"] if dtype != "fp16" else []
    assert {case: blind for case in cases if (blind := answers(dtype)[case]["blind"])} == {}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug):
    assert answers("planted")[bug]["wrong"] != ""


def test_every_padded_depth_is_served_on_every_chip():
    for arch in ARCHS:
        for dtype in ("bf16", "fp16", "fp32", "tf32"):
            for depth in (64, 128, 256, 320, 512, 2048):
                for kernel in ("rows", "weights"):
                    assert configs.serving(kernel, dtype, depth, arch) is not None


def test_a_gpu_too_old_for_the_tiles_gets_the_reference(monkeypatch):
    monkeypatch.setattr(launch, "serves", lambda device, op: False)
    problem = spec.Sample("old", 6, 7, 5).problem(torch.float32)
    for found, exact in (
        (launch.forward(problem, True, True), reference.forward(problem, True, True)),
        ([launch.pull_keys(problem, torch.ones(6))], [reference.pull_keys(problem, torch.ones(6))]),
        (launch.total(problem, (True, True))[0], reference.total(problem, (True, True))[0]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(found, exact, strict=True))
