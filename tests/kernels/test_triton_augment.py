"""The Triton kernels of augment: right between guard bands, and they compile for every chip."""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed: nothing to interpret")

BUGS = [
    "write out of bounds",
    "taps beyond the image",
    "pixels that are not the image's",
    "another filter",
    "flips exchanged",
    "affine not rounded",
    "pixels past the first block",
    "jitter unclamped",
    "steps in another order",
    "blur wraps around",
    "levels rounded otherwise",
]


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.interpreted_augment"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line["wrong"] for line in lines}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_every_view_is_right_and_stays_within_its_tensors(answers, dtype):
    cases = {case: wrong for case, wrong in answers.items() if case.startswith(dtype)}
    assert len(cases) >= 24
    assert {case: wrong for case, wrong in cases.items() if wrong} == {}


def test_numbers_that_no_device_refuses_lead_nowhere(answers):
    assert answers["hostile"] == ""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(answers, bug):
    assert answers[f"planted: {bug}"] != ""
