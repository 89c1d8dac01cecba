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
from fastssl.kernels.ntxent.spec import ERROR_RATIO, Sample
from tests.kernels.guard_bands import Guard

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
BANDED = {"BAND": 1, "STRIPS": 2, "CHUNK_BYTES": 1 << 17, "_num_multiprocessors": lambda _: 6}


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


def weights(loss: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)


def eager(views, tau: float, reduction: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """What torch makes of the formula with every step in ``dtype``; the truth in float64."""
    leaves = [view.detach().to(dtype).requires_grad_() for view in views]
    temperature = torch.tensor(tau, dtype=dtype, requires_grad=True)
    z_MD = torch.nn.functional.normalize(torch.cat(leaves))
    logits_MM = z_MD @ z_MD.T / temperature
    same_MM = torch.eye(len(z_MD), dtype=torch.bool)
    positive_MM = torch.eye(len(views[0]), dtype=torch.bool).repeat(len(views), len(views))
    positive_M = logits_MM.masked_fill(same_MM | ~positive_MM, 0).sum(1) / (len(views) - 1)
    loss = logits_MM.masked_fill(same_MM, -torch.inf).logsumexp(1) - positive_M
    loss = loss.mean() if reduction == "mean" else loss
    *grads, dtau = torch.autograd.grad(loss, [*leaves, temperature], weights(loss))
    return loss.detach(), torch.cat(grads), dtau


def check(sample: Sample, dtype: torch.dtype, reduction: str, guard: Guard) -> tuple[str, str]:
    """What is wrong (empty if nothing), and which gradients could be a quarter off unnoticed."""
    views = [guard.input(view) for view in sample.views(dtype)]
    found = run(views, sample.temperature, reduction, guard)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten", ""
    judge = Judge(sample, views, dtype, reduction)
    loss, dz_MD, dtau = found
    blind = [] if judge(loss, dz_MD * 0.75, dtau) else ["dz"]
    blind += [] if judge(loss, dz_MD, dtau * 0.75) else ["dtau"]
    return judge(*found), " ".join(blind)


class Judge:
    """Errors against float64 of at most twice torch's own at the same dtype, plus rounding."""

    def __init__(self, sample: Sample, views, dtype: torch.dtype, reduction: str) -> None:
        self.exact = eager(views, sample.temperature, reduction, torch.float64)
        self.own = eager(views, sample.temperature, reduction, dtype)
        norm_M1 = torch.cat(views).double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.scales = (torch.ones(()), norm_M1, torch.ones(()))  # dh as a tangent of unit rows
        self.saturated = dtype == torch.float16  # a zero row's 1e12 does not fit
        eps, inverse = torch.finfo(torch.float32).eps, 1.0 / abs(sample.temperature)
        rows = len(norm_M1)
        weight = 1.5 / rows if reduction == "mean" else 1.5
        logit = 16 * eps * (1 + inverse)  # absolute error of a logit, relative error of exp
        stored = torch.finfo(dtype).eps
        self.relative = (logit, logit + stored, logit + stored)
        # where p = 1 the gradient is the difference of two equal terms
        floor = eps * (1 + inverse) * inverse * weight
        self.absolute = (logit, floor, floor * inverse * rows)

    def __call__(self, *found: torch.Tensor) -> str:
        rows = zip(
            ("loss", "dz", "dtau"), found, self.exact, self.own, self.scales, self.relative,
            self.absolute, strict=True,
        )  # fmt: skip
        for name, *tensors, relative, absolute in rows:
            ours, exact, own, scale = (tensor.double() for tensor in tensors)
            if self.saturated:
                ours, exact, own = (x.clamp(-6e4, 6e4) for x in (ours, exact, own))
            error = ((ours - exact) * scale).abs().max().item()
            owned = ((own - exact) * scale).abs().max().nan_to_num(0.0).item()
            size = (exact * scale).abs().max().item()
            limit = ERROR_RATIO * owned + relative * size + absolute
            if not error <= limit:
                return f"{name}: error {error:.3g}, limit {limit:.3g}, size {size:.3g}"
        return ""


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
    for name, wrong in planted().items():
        print(json.dumps({"case": f"planted: {name}", "wrong": wrong, "blind": ""}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
