"""Gate 1 of the Triton kernels: right values between guard bands, and an alarm that goes off."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_kernel_is_right_and_stays_within_its_tensors(answers, dtype):
    cases = {case: line["wrong"] for case, line in answers.items() if case.startswith(dtype)}
    assert len(cases) >= 12
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_tolerance_would_refuse_a_gradient_that_is_a_quarter_off(answers, dtype):
    """Also where logits are unbounded, in the GEMM path, and over several bands and splits."""
    cases = ["ragged", "three views", "deep", "gemm", "cold gemm"]
    if dtype != "fp16":
        cases += ["negative", "warm", "bands"]
    if dtype == "fp32":
        cases += ["cold", "cold bands", "bounded edge", "two blocks"]
    assert {case: blind for case in cases if (blind := answers[f"{dtype}: {case}"]["blind"])} == {}


def test_fp16_gradients_overflow_except_those_of_zero_rows(answers):
    found = re.fullmatch(r"0 of (\d+) hidden, 0 spurious", answers["overflow"]["wrong"])
    assert found and int(found[1]) > 100


@pytest.mark.parametrize(
    "bug",
    [
        "write out of bounds",
        "read out of bounds",
        "self pairs counted",
        "scale off by two",
        "projection floor",
    ],
)
def test_a_planted_bug_is_caught(answers, bug):
    assert answers[f"planted: {bug}"]["wrong"] != ""
