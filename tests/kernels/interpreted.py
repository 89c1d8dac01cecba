"""Runs the Triton kernels of ntxent in the interpreter; prints one JSON line per case.

Its own process (``python -m tests.kernels.interpreted``): TRITON_INTERPRET must be set before the
kernels are decorated. A case is a sample of values, or a planted bug that must be caught.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import json
import os
import sys
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastssl.kernels.ntxent import kernel, kernel_backward, launch
from fastssl.kernels.ntxent.spec import Sample
from tests.kernels.guard_bands import Guard
from tests.kernels.judge import Judge, eager, weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLES = [
    Sample("one pair", 1, 3),
    Sample("tiny", 3, 5),
    Sample("ragged", 37, 70),
    Sample("two blocks", 70, 33, layout="correlated"),
    Sample("three views", 29, 16, num_views=3),
    Sample("five views", 27, 20, num_views=5),
    Sample("cold", 21, 24, temperature=0.01),
    Sample("cold and aligned", 21, 24, temperature=0.01, layout="correlated"),
    Sample("bounded edge", 21, 24, temperature=0.025),
    Sample("warm", 21, 24, temperature=10.0),
    Sample("negative", 21, 24, temperature=-0.5),
    Sample("zero rows", 21, 24, layout="zero_rows"),
    Sample("identical", 21, 24, layout="identical"),
    Sample("large", 21, 24, scale=1e4),
    Sample("deep", 20, 130),
    Sample("gemm", 20, 520),
    Sample("cold gemm", 20, 300, temperature=0.01),
    Sample("bands", 141, 20),
    Sample("cold bands", 141, 20, temperature=0.01),
]
SKIPPED = {  # the interpreter is slow, and fp16 differs from bf16 in range alone
    "fp16": {"large", "two blocks", "five views", "warm", "negative", "bands", "cold bands"},
    "bf16": {"cold bands"},
}
BANDED = {"BAND": 1, "STRIPS": 2, "CHUNK_BYTES": 1 << 17, "multiprocessors": lambda _: 6}


_create_dot = interpreter.InterpreterBuilder.create_dot


def create_dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """The interpreter keeps bf16 as uint16 and multiplies it as integers: widen it first."""
    wide = [_widened(operand) for operand in (a, b)]
    return _create_dot(builder, *wide, d, input_precision, max_num_imprecise_acc)


def _widened(operand):
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    bits = operand.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


_cast = interpreter.InterpreterBuilder.cast_impl


def cast_impl(builder, source, dtype):
    """The interpreter truncates fp32 to bf16, which biases every sum; a GPU rounds to nearest."""
    if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
        return _cast(builder, source, dtype)
    rounded = torch.from_numpy(np.atleast_1d(source.data)).to(torch.bfloat16)
    bits = rounded.view(torch.uint16).numpy().reshape(np.shape(source.data))
    return interpreter.TensorHandle(bits, tl.bfloat16)


interpreter.InterpreterBuilder.create_dot = create_dot
interpreter.InterpreterBuilder.cast_impl = cast_impl


def run(views, tau: float, reduction: str, guard: Guard) -> tuple[torch.Tensor, ...]:
    """Loss, stacked gradient and temperature gradient, every tensor guarded."""
    launch.allocate = guard.output
    temperature = torch.tensor(tau, dtype=torch.float64)
    loss, *saved = launch.forward(views, temperature, reduction, True)
    grad = weights(loss)
    dz_MD, dtau = launch.backward(grad, views, temperature, reduction, *saved)
    return loss, dz_MD, dtau


def check(sample: Sample, dtype: torch.dtype, reduction: str, guard: Guard) -> tuple[str, str]:
    """What is wrong (empty if nothing), and which gradients could be a quarter off unnoticed."""
    views = [guard.input(view) for view in sample.views(dtype)]
    found = run(views, sample.temperature, reduction, guard)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten", ""
    judge = Judge(views, sample.temperature, reduction)
    return judge(*found), judge.blind(*found)


def overflow() -> str:
    """Short fp16 rows: gradients beyond 65504 must be infinite, all others finite."""
    views = [view * 1e-5 for view in Sample("short rows", 21, 24).views(torch.float16)]
    views[0][0] = 0
    _, dz_MD, _ = run(views, 0.1, "none", Guard())
    size_MD = eager(views, 0.1, "none", torch.float64)[1].abs()
    beyond_MD, within_MD = size_MD > 7e4, size_MD < 6e4
    beyond_MD[0], within_MD[0] = False, True  # a row of zeros saturates
    hidden = beyond_MD & ~dz_MD.isinf()
    spurious = within_MD & dz_MD.isinf()
    return f"{hidden.sum()} of {beyond_MD.sum()} hidden, {spurious.sum()} spurious"


def no_self_mask(s_IJ, a_I, scale_ptr, i, j, M, bias, BI, BJ):
    cols = j * BJ + tl.arange(0, BJ)
    x_IJ = (s_IJ * a_I[:, None]) * tl.load(scale_ptr + cols)[None, :] + bias
    return tl.where((cols < M)[None, :], x_IJ, -1.0e30)


def planted() -> dict[str, str]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    sample, answers = Sample("planted", 37, 70), {}
    answers["write out of bounds"] = check(sample, torch.float32, "none", Guard(short_by=1))[0]
    for name, room, attribute, wrong in (
        ("self pairs counted", kernel, "_exponents", triton.jit(no_self_mask)),
        ("scale off by two", kernel_backward, "HEADROOM", tl.constexpr(12.0)),
        ("projection floor", kernel_backward, "EPS", tl.constexpr(1e12)),
    ):
        right = getattr(room, attribute)
        setattr(room, attribute, wrong)
        answers[name] = check(sample, torch.float32, "none", Guard())[0]
        setattr(room, attribute, right)
    guard = Guard()
    views = [guard.input(view) for view in sample.views(torch.float32)]
    wider = [view.as_strided((37, 71), view.stride()) for view in views]  # reads one NaN a row
    loss, *_ = run(wider, 0.1, "none", guard)
    answers["read out of bounds"] = "NaN" if loss.isnan().any() else ""
    return answers


def main() -> None:
    for dtype_name, dtype in DTYPES.items():
        for sample in SAMPLES:
            if sample.name in SKIPPED.get(dtype_name, ()):
                continue
            reduction = "none" if sample.num_samples % 2 else "mean"
            settings = BANDED if "bands" in sample.name else {"BAND": launch.BAND}
            try:
                with patch.multiple(launch, **settings):
                    wrong, blind = check(sample, dtype, reduction, Guard())
            except Exception as error:  # reported by the test that asked
                wrong, blind = f"{type(error).__name__}: {error}", ""
            answer = {"case": f"{dtype_name}: {sample.name}", "wrong": wrong, "blind": blind}
            print(json.dumps(answer), flush=True)
    print(json.dumps({"case": "overflow", "wrong": overflow(), "blind": ""}), flush=True)
    for name, wrong in planted().items():
        print(json.dumps({"case": f"planted: {name}", "wrong": wrong, "blind": ""}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
