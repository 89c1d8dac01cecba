"""SigLIP's loss beside open_clip's: forward and gradients of both towers, scale and bias, float32.

The floor is 6 N^2 D flops at the FMA peak: one product for the logits, one for each gradient. Peers
run in this process, interleaved with ours, on the same inputs, after ours agreed with float64.
"""

# shapes: N samples, D embedding
from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.clock import as_record
from benchmarks.machine import describe, facts, fma_peak
from benchmarks.memory import extra_peak_bytes
from benchmarks.micro.contrast import Report, judge, measure
from benchmarks.micro.contrast_cases import TOLERANCE, Case, Steps, pair
from benchmarks.targets import Verdict, at_most, conclude, keep
from fastssl.kernels.sigmoid_pairs.spec import SIGLIP_SHAPE, floor_flops
from fastssl.losses import SigLIPLoss

START = 10.0, -10.0  # scale and bias, as in the paper


def steps(num_samples: int, width: int, *, device: str = "cpu") -> Steps:
    """Normalisation, loss and every gradient."""
    image_ND, text_ND = pair(num_samples, width, device)
    ours = SigLIPLoss(*START).to(device)
    numbers = [torch.tensor(x, device=device, requires_grad=True) for x in START]
    found: Steps = {
        "ours": lambda: torch.autograd.grad(
            ours(image_ND, text_ND), (image_ND, text_ND, *ours.parameters())
        )
    }
    if importlib.util.find_spec("open_clip") is None:
        return found
    from open_clip.loss import SigLipLoss

    def towers(loss: Callable) -> Callable[[], object]:
        def step() -> object:
            unit = (F.normalize(x, dim=1) for x in (image_ND, text_ND))
            return torch.autograd.grad(loss(*unit, *numbers), (image_ND, text_ND, *numbers))

        return step

    peer = SigLipLoss()
    found["open_clip"] = towers(peer)
    found["open_clip+compile"] = towers(torch.compile(peer, dynamic=False))
    return found


def gate(num_samples: int, width: int, *, device: str = "cpu") -> list[str]:
    """Loss and gradients against a dense float64 formula."""
    leaves = pair(num_samples, width, device)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    image_ND, text_ND = (F.normalize(x, dim=1) for x in exact)
    x_NN = image_ND @ text_ND.T * START[0] + START[1]
    y_NN = 2 * torch.eye(num_samples, dtype=x_NN.dtype, device=device) - 1
    loss = -F.logsigmoid(y_NN * x_NN).sum() / num_samples
    truth = [loss, *torch.autograd.grad(loss, exact)]
    loss = SigLIPLoss(*START).to(device)(*leaves)
    found = [loss, *torch.autograd.grad(loss, leaves)]
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, truth, strict=True)
    ]
    return [f"siglip: relative error {e:.1e} against float64" for e in errors if e > TOLERANCE]


SIGLIP = Case(
    "siglip",
    (SIGLIP_SHAPE[0], SIGLIP_SHAPE[2]),
    (64, 32),
    steps,
    gate,
    lambda n, d: floor_flops(n, n, d),
    {"open_clip": 2.0, "open_clip+compile": 2.0},
    0.6,
)


def most_bytes(num_samples: int, width: int) -> float:
    """Unit rows, gradients and packed copies of both towers; nothing of N x N."""
    return 20.0 * 4 * num_samples * width


def memory_step() -> Callable[[], object]:
    """What benchmarks.memory measures, in its own process."""
    steps(*SIGLIP.quick_shape)["ours"]()
    return steps(*SIGLIP.shape)["ours"]


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device=options.device)
    print(describe(machine))
    report = Report(fma_peak(threads=options.threads, seconds=0.1 if options.quick else 1.0))
    print(f"fp32 peak {report.peak.gflops:.1f} GFLOP/s on {options.threads} threads")
    shape = SIGLIP.quick_shape if options.quick else SIGLIP.shape
    if measure(SIGLIP, shape, report, options) is None:
        return 1
    verdicts: list[Verdict] = []
    if not options.quick and options.device == "cpu":
        extra = extra_peak_bytes("benchmarks.micro.sigmoid_pairs:memory_step")
        report.memory[SIGLIP.name] = extra
        allowed = most_bytes(*shape) / 1e6
        verdicts = judge(SIGLIP, shape, report)
        verdicts.append(at_most("siglip: extra memory", extra / 1e6, allowed, " MB"))
    record = {
        "machine": machine,
        "peak_gflops": report.peak.gflops,
        "rows": {
            title: {name: as_record(timing) for name, timing in row.items()}
            for title, row in report.rows.items()
        },
        "extra_bytes": report.memory,
    }
    keep(options.json, record, verdicts)
    if not verdicts:
        print("\nno targets: they are set for full runs on the CPU")
    return conclude(verdicts) if verdicts else 0
