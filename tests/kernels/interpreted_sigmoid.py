"""Runs the Triton kernels of sigmoid_pairs in the interpreter; prints one JSON line per case.

Its own process (``python -m tests.kernels.interpreted_sigmoid KIND``), as interpreted.py, whose
repairs of the interpreter it shares. A case is a sample, or a planted bug that must be caught.
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

import contextlib
import json
import os
import sys
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl

from fastssl.kernels.sigmoid_pairs import kernel, launch, reference
from fastssl.kernels.sigmoid_pairs.reference import Problem
from fastssl.kernels.sigmoid_pairs.spec import ERROR_RATIO, Sample
from tests.kernels import interpreted  # noqa: F401  repairs the interpreter's bf16
from tests.kernels.guard_bands import Guard

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = {"CHUNK_BYTES": 1 << 15, "BAND_KEYS": 64, "multiprocessors": lambda device: 6}

SAMPLES = [
    Sample("one pair", 1, 1, 3),
    Sample("tiny", 3, 5, 5, diagonal=2),
    Sample("ragged", 37, 70, 70, bias=-2.0),
    Sample("in place", 140, 150, 64, diagonal=None),
    Sample("tall", 300, 20, 33, 5.0, 0.0, -40),
    Sample("deep", 20, 50, 520, diagonal=13),
    Sample("cold", 21, 150, 24, 100.0, 20.0),
    Sample("extreme", 21, 70, 24, 1000.0, -3000.0),
    Sample("rare", 21, 70, 24, 10.0, -10.0, None),
    Sample("faint", 21, 70, 24, 1.0, -16.0, None),
    Sample("negative", 21, 24, 24, -3.0, 1.0),
    Sample("zero scale", 21, 24, 24, 0.0, 0.0),
    Sample("not unit", 37, 70, 24, 1.0, 0.0, unit=False),
    Sample("narrow", 140, 150, 20, 10.0, -1.0, -7),
]
SKIPPED = {  # the interpreter is slow, and fp16 differs from bf16 in range alone
    "fp32": set(),
    "bf16": {"tiny", "faint", "negative", "zero scale"},
    "fp16": {"tiny", "faint", "tall", "in place", "negative", "zero scale", "narrow"},
}


def upstream(num_queries: int) -> torch.Tensor:
    return torch.linspace(-0.5, 1.5, num_queries)


def outcome(backend, problem: Problem) -> dict[str, torch.Tensor]:
    """Everything that a backend gives for a problem, in float64."""
    found = dict(backend.forward(problem, True, True)._asdict())
    found["bare rows"] = backend.forward(problem, False, False).rows
    found["dk"] = backend.pull_keys(problem, upstream(len(problem.q_ND)))
    parts, found["total dk"] = backend.total(problem, (True, True))
    found |= {f"total {name}": x for name, x in parts._asdict().items()}
    found["dq alone"] = backend.total(problem, (True, False))[0].dq
    found["dk alone"] = backend.total(problem, (False, True))[1]
    return {name: x.double() for name, x in found.items()}


def eager(problem: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What torch makes of the formulas with every step in ``dtype``; the truth in float64."""
    q, k = (x.to(dtype) for x in problem[:2])
    scale, bias = (x.to(dtype) for x in problem[2:4])
    partner = reference._partners(problem, 0, len(q))
    s = q @ k.T
    z = torch.where(partner, -(s * scale + bias), s * scale + bias)
    loss = -torch.nn.functional.logsigmoid(-z)
    w = torch.where(partner, -z.sigmoid(), z.sigmoid())
    g = upstream(len(q)).to(dtype)[:, None]
    by_scale, by_bias, dq, dk = (w * s).sum(1), w.sum(1), w @ k * scale, w.T @ q * scale
    return {
        "rows": loss.sum(1), "bare rows": loss.sum(1), "by_scale": by_scale, "by_bias": by_bias,
        "dq": dq, "dq alone": dq, "total dq": dq, "dk": (g * w).T @ q * scale, "total dk": dk,
        "dk alone": dk, "total rows": loss.sum(), "total by_scale": by_scale.sum(),
        "total by_bias": by_bias.sum(),
    }  # fmt: skip


class Judge:
    """Errors against float64 of at most twice torch's own at the same dtype, plus rounding.

    A sum over pairs may err by the rounding of its terms: ``terms`` are their sizes.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.exact = eager(problem, torch.float64)
        self.own = eager(problem, dtype)
        q, k = (x.double() for x in problem[:2])
        reach = (q @ k.T).abs().max().item() * abs(problem.scale.item())
        logit = 16 * torch.finfo(torch.float32).eps * (1 + reach + abs(problem.bias.item()))
        self.of_sums, self.of_rows = logit, logit + torch.finfo(dtype).eps
        sizes = problem._replace(q_ND=q.abs(), k_KD=k.abs())
        self.terms = {name: x.abs().max().item() for name, x in eager(sizes, q.dtype).items()}

    def __call__(self, found: dict[str, torch.Tensor]) -> str:
        for name, ours in found.items():
            exact, own = self.exact[name], self.own[name].double()
            if ours.shape != exact.shape:
                return f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
            error, owned = ((x - exact).abs().max().item() for x in (ours, own))
            relative = self.of_rows if "d" in name else self.of_sums
            size = exact.abs().max().item()
            limit = ERROR_RATIO * owned + relative * size + 1e-30
            if "by" in name:  # terms of both signs
                limit += self.of_sums * self.terms[name]
            if not error <= limit:
                return f"{name}: error {error:.3g}, limit {limit:.3g}, size {size:.3g}"
        return ""

    def blind(self, found: dict[str, torch.Tensor]) -> str:
        """Results that could be a quarter off without a word; zeros have no quarter."""
        return " ".join(
            name for name, x in found.items() if x.count_nonzero() and not self({name: x * 0.75})
        )


def check(sample: Sample, dtypes: tuple[torch.dtype, torch.dtype], guard: Guard) -> tuple[str, str]:
    """What is wrong (empty if nothing), and which results could be a quarter off unnoticed."""
    problem = sample.problem(*dtypes)
    shield = guard.dense_input if sample.name == "in place" else guard.input
    problem = problem._replace(q_ND=shield(problem.q_ND), k_KD=shield(problem.k_KD))
    settings = NARROW if "narrow" in sample.name else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(launch, "allocate", guard.output))
        for name, value in settings.items():
            stack.enter_context(patch.object(launch, name, value))
        found = outcome(launch, problem)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten", ""
    judge = Judge(problem, min(dtypes, key=lambda dtype: -torch.finfo(dtype).eps))
    return judge(found), judge.blind(found)


@triton.jit
def no_partners(s_IJ, scale, bias, i, j, N, K, diagonal, BI, BJ):
    rows = i * BI + tl.arange(0, BI)
    cols = j * BJ + tl.arange(0, BJ)
    loss_IJ, w_IJ = kernel._softplus(s_IJ * scale + bias)
    real_IJ = (rows < N)[:, None] & (cols < K)[None, :]
    return tl.where(real_IJ, loss_IJ, 0.0), tl.where(real_IJ, w_IJ, 0.0)


@triton.jit
def no_edge(s_IJ, scale, bias, i, j, N, K, diagonal, BI, BJ):
    rows = i * BI + tl.arange(0, BI)
    cols = j * BJ + tl.arange(0, BJ)
    partner_IJ = rows[:, None] + diagonal == cols[None, :]
    x_IJ = s_IJ * scale + bias
    loss_IJ, w_IJ = kernel._softplus(tl.where(partner_IJ, -x_IJ, x_IJ))
    return loss_IJ, tl.where(partner_IJ, -w_IJ, w_IJ)


@triton.jit
def plain_logarithm(z):
    e = tl.exp2(-tl.abs(z) * 1.4426950408889634)
    slope = 1.0 / (1.0 + e)
    return tl.where(z > 0.0, z, 0.0) + tl.log(1.0 + e), tl.where(z > 0.0, slope, e * slope)


@triton.jit
def unstable(z):
    e = tl.exp(z)
    return tl.log(1.0 + e), e / (1.0 + e)


BUGS = (
    ("partners are strangers", "_pairs", no_partners, "ragged"),
    ("padding counted", "_pairs", no_edge, "ragged"),
    ("small losses lost to the one", "_softplus", plain_logarithm, "faint"),
    ("exponential overflows", "_softplus", unstable, "extreme"),
    ("scale off by two", "HEADROOM", tl.constexpr(4096.0), "ragged"),
)


def planted() -> dict[str, str]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    samples, answers = {sample.name: sample for sample in SAMPLES}, {}
    fp32 = (torch.float32, torch.float32)
    answers["write out of bounds"] = check(samples["ragged"], fp32, Guard(short_by=1))[0]
    for name, attribute, wrong, sample in BUGS:
        with patch.object(kernel, attribute, wrong):
            answers[name] = check(samples[sample], fp32, Guard())[0]
    longer, guard = samples["in place"].problem(torch.float32), Guard()
    k_KD = guard.dense_input(longer.k_KD)
    beyond = k_KD.as_strided((len(k_KD) + 1, k_KD.shape[1]), k_KD.stride())  # one row of NaN
    rows = launch.forward(longer._replace(k_KD=beyond), False, False).rows
    answers["read out of bounds"] = "NaN" if rows.isnan().any() else ""
    return answers


def report(case: str, sample: Sample, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    try:
        wrong, blind = check(sample, dtypes, Guard())
    except Exception as error:  # reported by the test that asked
        wrong, blind = f"{type(error).__name__}: {error}", ""
    print(json.dumps({"case": case, "wrong": wrong, "blind": blind}), flush=True)


def main(kind: str) -> None:
    """kind: a dtype, "other" for mixed dtypes, float64 and TF32, or "planted"."""
    if kind == "planted":
        for name, wrong in planted().items():
            print(json.dumps({"case": name, "wrong": wrong, "blind": ""}), flush=True)
    elif kind == "other":
        float32, bfloat16, float16 = DTYPES.values()
        for sample in SAMPLES[:3]:
            report(f"mixed fp32 bf16: {sample.name}", sample, (float32, bfloat16))
            report(f"mixed fp16 bf16: {sample.name}", sample, (float16, bfloat16))
            report(f"float64: {sample.name}", sample, (torch.float64, float32))
        torch.set_float32_matmul_precision("high")
        report("tf32: ragged", SAMPLES[2], (float32, float32))
    else:
        for sample in SAMPLES:
            if sample.name not in SKIPPED[kind]:
                report(sample.name, sample, (DTYPES[kind], DTYPES[kind]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
