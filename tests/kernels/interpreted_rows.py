"""Runs the Triton kernels of soft_targets and enqueue in the interpreter; one JSON line per case.

Its own process (``python -m tests.kernels.interpreted_rows``): TRITON_INTERPRET must be set before
the kernels are decorated. A case is a sample of values, or a planted bug that must be caught.
"""

# shapes: N rows, C outputs, K rows of a ring, D features
from __future__ import annotations

import json
import sys

from tests.kernels import interpreted  # first: it turns the interpreter on and mends its bf16

import torch  # isort: skip
import triton  # isort: skip
import triton.language as tl  # isort: skip

from fastssl.kernels.enqueue import kernel as ring_kernel  # isort: skip
from fastssl.kernels.enqueue import launch as ring, reference as ring_reference  # isort: skip
from fastssl.kernels.enqueue import spec as ring_spec  # isort: skip
from fastssl.kernels.soft_targets import kernel, launch, reference, spec  # isort: skip
from tests.kernels.guard_bands import Guard  # isort: skip

SAMPLES = [
    spec.Sample("one", 1, 1),
    spec.Sample("ragged", 9, 70),
    spec.Sample("blocks", 5, 130),
    spec.Sample("splits", 37, 33, 0.1, 0.04, spread=1.0, centred=True),
    spec.Sample("shifted", 6, 37, shift=300.0),
    spec.Sample("uniform", 4, 40, layout="uniform"),
    spec.Sample("transposed", 7, 40, layout="transposed"),
]
SMALL = {"BLOCK": 64, "COLUMNS": 32, "ROWS": 16, "ROWS_PER_SPLIT": 16}


def both(backend, student, teacher, centre, sample) -> list[torch.Tensor]:
    """Every output of every function of a backend."""
    scales = (1 / sample.student_temperature, 1 / sample.teacher_temperature)
    loss_N, marginal_C, stats = backend.forward(student, teacher, centre, *scales, True)
    g_N = torch.linspace(0.5, 1.5, len(loss_N), dtype=loss_N.dtype)
    h_C = torch.linspace(-1, 2, len(marginal_C), dtype=loss_N.dtype)
    saved = (student, teacher, centre, *scales, loss_N, stats)
    gradients = backend.backward(g_N, h_C, *saved, True)
    alone = backend.backward(g_N, h_C[:0], *saved, False)[0]
    targets = teacher.double().sigmoid().to(teacher.dtype)
    given_N, given_stats = backend.given_forward(student, targets, scales[0])
    given_NC = backend.given_backward(g_N, student, targets, scales[0], given_stats)
    x_NC = student.to(loss_N.dtype).contiguous().clone()
    placed_N = backend.given_in_place(x_NC, targets, scales[0], g_N)
    return [loss_N, marginal_C, *gradients, alone, given_N, given_NC, placed_N, x_NC]


def check(sample: spec.Sample, dtype: torch.dtype, guard: Guard) -> str:
    """What is wrong: an error beyond twice that of the reference at this dtype, or a band."""
    launch.allocate = guard.output
    student, teacher = sample.logits(dtype)
    if sample.layout == "contiguous":
        student, teacher = guard.input(student), guard.input(teacher)
    centre = sample.centre(torch.float32)
    found = both(launch, student, teacher, centre, sample)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten"
    own = both(reference, student, teacher, centre, sample)
    exact = both(reference, student.double(), teacher.double(), centre, sample)
    eps = torch.finfo(torch.float32).eps
    sharp = max(1 / sample.student_temperature, 1 / sample.teacher_temperature)
    logit = 8 * eps * (1 + sharp * student.double().abs().max().item())
    for position, (ours, torchs, truth) in enumerate(zip(found, own, exact, strict=True)):
        error = (ours.double() - truth).abs().max().item()
        allowed = (torchs.double() - truth).abs().max().item()
        size = truth.abs().max().item() * torch.finfo(ours.dtype).eps + sharp * logit
        if not error <= spec.ERROR_RATIO * allowed + size:
            return f"output {position}: error {error:.3g}, torch's {allowed:.3g}, plus {size:.3g}"
    return ""


def check_ring(size: int, capacity: int, keys_dtype, rows_dtype) -> str:
    """A write of a batch against the reference, which is torch's own normalisation."""
    band = torch.full((capacity + 2, 37), 7.0, dtype=rows_dtype)
    rows, pointer = band[1:-1], torch.tensor(capacity - 2)
    expected, at = rows.double(), pointer.clone()
    keys = Guard.input(ring_spec.sample(size, 37, keys_dtype))
    ring.enqueue(rows, pointer, keys)
    ring_reference.enqueue(expected, at, keys.double())
    if not ((band[0] == 7).all() and (band[-1] == 7).all()):
        return "wrote beyond the ring"
    if pointer != at:
        return f"pointer at {pointer.item()} instead of {at.item()}"
    limit = torch.finfo(rows_dtype).eps * 0.5 + 8 * torch.finfo(torch.float32).eps
    error = (rows.double() - expected).abs().max().item()
    return "" if error <= limit else f"error {error:.3g}, limit {limit:.3g}"


@triton.jit
def without_mask(row_ptr, step, centre_ptr, c_B, inside_B, CENTRED: tl.constexpr):
    return tl.load(row_ptr + c_B * step).to(tl.float32)


def planted() -> dict[str, str]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    answers, sample = {}, spec.Sample("planted", 9, 70)
    answers["write out of bounds"] = check(sample, torch.float32, Guard(short_by=1))
    for name, attribute, wrong in (
        ("read out of bounds", "_logits", without_mask),
        ("another logarithm", "LN2", tl.constexpr(0.6931)),
        ("another exponential", "LOG2E", tl.constexpr(1.4457)),
    ):
        right = getattr(kernel, attribute)
        setattr(kernel, attribute, wrong)
        answers[name] = check(sample, torch.float32, Guard())
        setattr(kernel, attribute, right)
    right, ring_kernel.SMALLEST = ring_kernel.SMALLEST, tl.constexpr(1e30)
    answers["ring scale"] = check_ring(5, 7, torch.float32, torch.float32)
    ring_kernel.SMALLEST = right
    return answers


def main() -> None:
    for name, value in SMALL.items():
        setattr(launch, name, value)
    ring.BLOCK = 16
    for dtype_name, dtype in interpreted.DTYPES.items():
        for sample in SAMPLES:
            answer = {
                "case": f"{dtype_name}: {sample.name}",
                "wrong": check(sample, dtype, Guard()),
            }
            print(json.dumps(answer), flush=True)
        for rows_name, rows_dtype in interpreted.DTYPES.items():
            for size, capacity in ((1, 3), (5, 7), (9, 4)):
                wrong = check_ring(size, capacity, dtype, rows_dtype)
                case = f"{dtype_name} to {rows_name}: {size} into {capacity}"
                print(json.dumps({"case": case, "wrong": wrong}), flush=True)
    for name, wrong in planted().items():
        print(json.dumps({"case": f"planted: {name}", "wrong": wrong}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
