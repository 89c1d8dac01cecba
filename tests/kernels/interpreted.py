"""Runs the Triton kernels of ntxent in the interpreter; prints one JSON line per case.

Its own process (``python -m tests.kernels.interpreted``): TRITON_INTERPRET must be set before the
kernels are decorated. A case is a sample of values, or a planted bug that must be caught.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from fastssl.kernels.ntxent import kernel, kernel_backward, launch, reference
from fastssl.kernels.ntxent.spec import Sample
from tests.kernels.guard_bands import Guard

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLES = [
    Sample("one pair", 1, 3),
    Sample("tiny", 3, 5),
    Sample("ragged", 37, 70),
    Sample("two blocks", 70, 33, layout="correlated"),
    Sample("three views", 29, 16, num_views=3),
    Sample("five views", 27, 20, num_views=5),
    Sample("cold", 21, 24, temperature=0.01, layout="correlated"),
    Sample("bounded edge", 21, 24, temperature=0.025, layout="correlated"),
    Sample("warm", 21, 24, temperature=10.0),
    Sample("negative", 21, 24, temperature=-0.5),
    Sample("zero rows", 21, 24, layout="zero_rows"),
    Sample("identical", 21, 24, layout="identical"),
    Sample("large", 21, 24, scale=1e4),
    Sample("deep", 20, 130),
    Sample("gemm", 20, 520),
]


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


interpreter.InterpreterBuilder.create_dot = create_dot


def run(views, tau: float, reduction: str, guard: Guard) -> tuple[torch.Tensor, ...]:
    """Loss, stacked gradient and temperature gradient, every tensor guarded."""
    launch.allocate = guard.output
    temperature = torch.tensor(tau, dtype=torch.float64)
    loss, *saved = launch.forward(views, temperature, reduction, True)
    grad = weights(loss)
    dz_MD, dtau = launch.backward(grad, views, temperature, reduction, *saved)
    return loss, dz_MD, dtau


def weights(loss: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)


def truth(views, tau: float, reduction: str) -> tuple[torch.Tensor, ...]:
    doubles = [view.double() for view in views]
    temperature = torch.tensor(tau, dtype=torch.float64)
    loss, *saved = reference.forward(doubles, temperature, reduction, True)
    dz_MD, dtau = reference.backward(weights(loss), doubles, temperature, reduction, *saved)
    return loss, dz_MD, dtau


def check(sample: Sample, dtype: torch.dtype, reduction: str, guard: Guard) -> str:
    """Empty if right, else what is wrong."""
    views = [guard.input(view) for view in sample.views(dtype)]
    found = run(views, sample.temperature, reduction, guard)
    exact = truth(views, sample.temperature, reduction)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten"
    norm_M1 = torch.cat(views).double().norm(dim=1, keepdim=True).clamp_min(1e-12)
    scales = (1.0, norm_M1, 1.0)
    if dtype == torch.float16:  # a zero row's 1e12 saturates
        found = (found[0], found[1].clamp(-6e4, 6e4), found[2])
        exact = (exact[0], exact[1].clamp(-6e4, 6e4), exact[2])
    eps, inverse = torch.finfo(dtype).eps, 1.0 / abs(sample.temperature)
    for name, ours, theirs, scale in zip(("loss", "dz", "dtau"), found, exact, scales, strict=True):
        error = ((ours.double() - theirs) * scale).abs().max().item()
        size = (theirs * scale).abs().max().item()
        # inputs are exact, so 16 bits enter through W (backward) and the stored gradient alone
        forward_eps = torch.finfo(torch.float32).eps * 16 * (1 + inverse)
        limit = (
            forward_eps if name == "loss" else 4 * eps * (size + inverse) + forward_eps * inverse
        )
        if name == "dtau":
            limit *= len(views) * len(views[0]) * max(1.0, inverse)
        if not error <= limit:
            return f"{name}: error {error:.3g}, limit {limit:.3g}"
    return ""


def no_self_mask(s_IJ, a_I, scale_ptr, i, j, M, bias, BI, BJ):
    cols = j * BJ + tl.arange(0, BJ)
    x_IJ = (s_IJ * a_I[:, None]) * tl.load(scale_ptr + cols)[None, :] + bias
    return tl.where((cols < M)[None, :], x_IJ, -1.0e30)


def planted() -> dict[str, str]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    sample, answers = Sample("planted", 37, 70), {}
    answers["write out of bounds"] = check(sample, torch.float32, "none", Guard(short_by=1))
    for name, room, attribute, wrong in (
        ("self pairs counted", kernel, "_exponents", triton.jit(no_self_mask)),
        ("scale off by two", kernel_backward, "HEADROOM", tl.constexpr(12.0)),
        ("projection floor", kernel_backward, "EPS", tl.constexpr(1e12)),
    ):
        right = getattr(room, attribute)
        setattr(room, attribute, wrong)
        answers[name] = check(sample, torch.float32, "none", Guard())
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
            if dtype == torch.float16 and sample.scale != 1.0:
                continue
            reduction = "none" if sample.num_samples % 2 else "mean"
            try:
                answer = check(sample, dtype, reduction, Guard())
            except Exception as error:  # reported by the test that asked
                answer = f"{type(error).__name__}: {error}"
            print(json.dumps({"case": f"{dtype_name}: {sample.name}", "wrong": answer}), flush=True)
    for name, answer in planted().items():
        print(json.dumps({"case": f"planted: {name}", "wrong": answer}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
