"""Runs the Triton kernels of contrast in the interpreter; prints one JSON line per case.

Its own process (``python -m tests.kernels.interpreted_contrast KIND``), as interpreted.py, whose
repairs of the interpreter it shares. A case is a sample, or a planted bug that must be caught.
"""

# shapes: N queries, K keys, D embedding
from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from dataclasses import dataclass, field
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.language as tl

from fastssl.kernels.contrast import call, gradients, kernel, kernel_backward, launch
from fastssl.kernels.contrast.reference import Ids, dropped
from fastssl.kernels.ntxent.spec import ERROR_RATIO
from tests.kernels import interpreted  # noqa: F401  repairs the interpreter's bf16
from tests.kernels.guard_bands import Guard

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WANTS = ((True, True), (True, False), (False, True), (False, False))
NARROW = {"CHUNK_BYTES": 1 << 15, "SLOT_BYTES": 1 << 11, "multiprocessors": 6}


@dataclass(frozen=True)
class Sample:
    name: str
    N: int
    K: int
    D: int
    scale: float = 10.0
    bound: float = 1.01
    columns: bool = True
    keep: str = "all"
    classes: int = 0
    apart: bool = False
    unit: bool = True
    dense: bool = False
    settings: dict = field(default_factory=lambda: {"multiprocessors": 2}, hash=False)

    def rows(self, dtype: torch.dtype) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.N + self.D)
        rows = [
            torch.randn(count, self.D, generator=generator, dtype=torch.float64)
            for count in (self.N, self.K)
        ]
        rows = [torch.nn.functional.normalize(x) for x in rows] if self.unit else rows
        return [x.to(dtype) for x in rows]

    def ids(self) -> Ids:
        """Classes run in opposite directions; the last query has one of its own."""
        label_N = torch.arange(self.N) % max(1, self.classes)
        label_N[-1] = 1 << 40
        label_K = (7 - torch.arange(self.K)) % max(1, self.classes)
        rows = torch.arange(self.N) + 3, torch.arange(self.K)
        labelled = (label_N, label_K) if self.keep != "all" else (None, None)
        return Ids(*labelled, *(rows if self.apart else (None, None)), self.keep)


SAMPLES = [
    Sample("one pair", 1, 1, 3),
    Sample("tiny", 3, 5, 5),
    Sample("ragged", 37, 70, 70),
    Sample("rows only", 37, 70, 33, columns=False),
    Sample("queue", 20, 300, 64, columns=False, dense=True),
    Sample("tall", 300, 20, 33),
    Sample("in place", 140, 150, 128, dense=True),
    Sample("deep", 20, 70, 130),
    Sample("gemm", 20, 50, 520),
    Sample("wide", 20, 40, 512),
    Sample("cold", 21, 150, 24, scale=100.0),
    Sample("spread", 60, 60, 24, scale=225.0),
    Sample("frozen", 21, 30, 24, scale=1000.0),
    Sample("cold rows only", 150, 21, 24, scale=100.0, columns=False),
    Sample("cold gemm", 20, 70, 300, scale=100.0),
    Sample("bounded edge", 21, 24, 24, scale=39.0),
    Sample("no promise", 37, 70, 24, scale=1.0, bound=math.inf, unit=False),
    Sample("negative", 21, 24, 24, scale=-3.0),
    Sample("zero scale", 21, 24, 24, scale=0.0),
    Sample("zero scale without promise", 21, 24, 24, scale=0.0, bound=math.inf),
    Sample("apart", 70, 70, 33, apart=True),
    Sample("same class", 37, 70, 33, keep="same", classes=3, apart=True),
    Sample("same class, cold", 37, 70, 33, keep="same", classes=3, scale=100.0),
    Sample("other class", 70, 37, 33, keep="different", classes=2, apart=True, columns=False),
    Sample("other class, cold", 37, 140, 33, keep="different", classes=2, scale=100.0),
    Sample("no pair at all", 5, 6, 8, keep="same", classes=0, apart=True),
    Sample("no pair at all, cold", 1, 140, 8, keep="same", scale=100.0),
    Sample("narrow", 140, 150, 20, settings=NARROW),
    Sample("cold narrow", 260, 70, 20, scale=100.0, apart=True, settings=NARROW),
    Sample("narrow gemm", 100, 140, 260, settings=NARROW),
]
SKIPPED = {  # the interpreter is slow, and fp16 differs from bf16 in range alone
    "bf16": {
        "tiny", "spread", "frozen", "tall", "negative", "cold narrow", "narrow gemm",
        "bounded edge", "zero scale", "zero scale without promise", "no pair at all",
        "same class",
    },
    "fp16": {
        "tiny", "rows only", "tall", "in place", "gemm", "spread", "frozen", "cold rows only",
        "no promise", "negative", "zero scale without promise", "apart", "same class",
        "other class, cold", "no pair at all", "narrow", "cold narrow", "narrow gemm",
    },
}  # fmt: skip


def outcome(sample: Sample, pair, ids: Ids) -> dict[str, torch.Tensor]:
    """Everything that the launcher gives for a sample; gradients of all four kinds of wants."""
    scale = torch.tensor(sample.scale, dtype=torch.float64)
    given = (*pair, scale, ids)
    rows, cols, top, kept = launch.forward(*given, sample.columns, sample.bound, True)
    found = {"rows": rows, "cols": cols, "top": top}
    of_mean = launch.forward_mean(*given, sample.bound)
    found |= dict(zip(("rows.", "top.", "mean"), of_mean, strict=True))
    grads = upstream(rows), upstream(cols).flip(0)
    for wants in WANTS if len(rows) < 10 else WANTS[:3]:
        dq, dk, dscale = launch.backward(*grads, *given, rows, cols, kept, sample.bound, wants)
        tag = "".join(str(int(want)) for want in wants)
        assert (dq.numel() > 0, dk.numel() > 0) == wants
        found |= {f"dq {tag}": dq} if wants[0] else {}
        found |= {f"dk {tag}": dk} if wants[1] else {}
        found[f"dscale {tag}"] = dscale
    return found


def upstream(x: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-0.5, 1.5, x.numel(), dtype=x.dtype)


def eager(sample: Sample, pair, ids: Ids, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What torch makes of the formulas with every step in ``dtype``; the truth in float64."""
    q, k = (x.to(dtype) for x in pair)
    drop = dropped(ids)
    s = q @ k.T
    x = s * sample.scale
    x = x if drop is None else x.masked_fill(drop, -torch.inf)
    rows, cols = x.logsumexp(1), x.logsumexp(0)
    p_rows = (x - rows[:, None]).exp().nan_to_num(0.0)
    p_cols = (x - cols[None, :]).exp().nan_to_num(0.0)
    w = upstream(rows)[:, None] * p_rows
    if sample.columns:
        w = w + upstream(cols).flip(0)[None, :] * p_cols
    dq, dk, dscale = sample.scale * (w @ k), sample.scale * (w.T @ q), (w * s).sum()
    cols = cols if sample.columns else cols[:0]
    return {"rows": rows, "cols": cols, "top": x.amax(1), "mean": p_rows @ k,
            "dq": dq, "dk": dk, "dscale": dscale}  # fmt: skip


class Judge:
    """Errors against float64 of at most twice torch's own at the same dtype, plus rounding."""

    def __init__(self, sample: Sample, pair, ids: Ids, dtype: torch.dtype) -> None:
        self.exact = eager(sample, pair, ids, torch.float64)
        self.own = eager(sample, pair, ids, dtype)
        reach = (pair[0].double() @ pair[1].double().T).abs().max().item() * abs(sample.scale)
        logit = 16 * torch.finfo(torch.float32).eps * (1 + reach)
        self.relative = dict.fromkeys(("rows", "cols", "top"), logit)
        stored = torch.finfo(dtype).eps if dtype != torch.float64 else 0.0
        self.relative |= dict.fromkeys(("mean", "dq", "dk", "dscale"), logit + stored)
        # dscale adds N K products of both signs, each with the rounding of one weight
        self.absolute = dict.fromkeys(self.relative, 1e-30) | {"dscale": 1e-6}

    def __call__(self, found: dict[str, torch.Tensor]) -> str:
        for name, ours in found.items():
            key = name.split()[0].rstrip(".")
            exact, own = self.exact[key], self.own[key].double()
            ours = ours.double()
            if ours.shape != exact.shape:
                return f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
            none = exact == -torch.inf
            if not bool((ours[none] == -torch.inf).all()):
                return f"{name}: finite where no pair counts"
            error = _largest((ours - exact)[~none])
            owned = _largest((own - exact)[~none])
            size = _largest(exact[~none])
            limit = ERROR_RATIO * owned + self.relative[key] * size + self.absolute[key]
            if not error <= limit:
                return f"{name}: error {error:.3g}, limit {limit:.3g}, size {size:.3g}"
        return ""

    def blind(self, found: dict[str, torch.Tensor]) -> str:
        """Results that could be a quarter off without a word; nothing and zeros have no quarter."""
        return " ".join(
            name
            for name, x in found.items()
            if x.nan_to_num(0.0, 0.0, 0.0).count_nonzero() and not self({name: x * 0.75})
        )


def _largest(x: torch.Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


@contextlib.contextmanager
def guarded(guard: Guard, settings: dict):
    """Every allocation of the launcher guarded; bands, chunks and splits as small as asked."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(call, "allocate", guard.output))
        number = settings["multiprocessors"]
        stack.enter_context(patch.object(call, "multiprocessors", lambda device: number))
        for module, name in ((launch, "SLOT_BYTES"), (gradients, "CHUNK_BYTES")):
            if name in settings:
                stack.enter_context(patch.object(module, name, settings[name]))
        yield


def check(sample: Sample, dtypes: tuple[torch.dtype, torch.dtype], guard: Guard) -> tuple[str, str]:
    """What is wrong (empty if nothing), and which results could be a quarter off unnoticed."""
    shield = guard.dense_input if sample.dense else guard.input
    pair = [
        shield(x.to(dtype)) for x, dtype in zip(sample.rows(torch.float64), dtypes, strict=True)
    ]
    ids = sample.ids()
    with guarded(guard, sample.settings):
        found = outcome(sample, pair, ids)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten", ""
    judge = Judge(sample, pair, ids, min(dtypes, key=lambda dtype: -torch.finfo(dtype).eps))
    return judge(found), judge.blind(found)


@triton.jit
def no_self_pairs(x_IJ, label_I, row_I, k_label_ptr, k_row_ptr, i, j, N, K, keep, apart, BI, BJ):
    cols = j * BJ + tl.arange(0, BJ)
    rows = i * BI + tl.arange(0, BI)
    return tl.where((rows < N)[:, None] & (cols < K)[None, :], x_IJ, -1.0e30)


@triton.jit
def no_edge(x_IJ, label_I, row_I, k_label_ptr, k_row_ptr, i, j, N, K, keep, apart, BI, BJ):
    return x_IJ


@triton.jit
def always_bounded(scale_ptr, bound):
    scale = tl.load(scale_ptr)
    return scale * 1.4426950408889634, 0.0, scale < 1.0e9


BUGS = (
    ("self pairs counted", kernel, "_counted", no_self_pairs, "apart"),
    ("gradient through self pairs", kernel_backward, "_counted", no_self_pairs, "apart"),
    ("padding counted", kernel, "_counted", no_edge, "ragged"),
    ("labels ignored", kernel, "_counted", no_self_pairs, "same class"),
    ("shift without a promise", kernel, "_temperature", always_bounded, "frozen"),
    ("scale off by two", kernel_backward, "HEADROOM", tl.constexpr(12.0), "ragged"),
    ("rows without pairs", kernel, "NOTHING", tl.constexpr(-1e38), "no pair at all, cold"),
    ("one shift for any tile", kernel, "SPAN", tl.constexpr(1.0e9), "frozen"),
    ("one shift for any weight", kernel_backward, "SPAN", tl.constexpr(1.0e9), "frozen"),
    ("shift from the top alone", kernel, "LIFT", tl.constexpr(0.0), "spread"),
    ("gradient of the columns forgotten", gradients, "BOTH", gradients.OWN, "frozen"),
)


def planted() -> dict[str, str]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    samples, answers = {sample.name: sample for sample in SAMPLES}, {}
    fp32 = (torch.float32, torch.float32)
    answers["write out of bounds"] = check(samples["ragged"], fp32, Guard(short_by=1))[0]
    for name, room, attribute, wrong, sample in BUGS:
        with patch.object(room, attribute, wrong):
            answers[name] = check(samples[sample], fp32, Guard())[0]
    longer, guard = samples["queue"], Guard()
    q, k = (guard.dense_input(x) for x in longer.rows(torch.float32))
    beyond = k.as_strided((longer.K + 1, longer.D), k.stride())  # reads one row of NaN
    scale = torch.tensor(longer.scale)
    rows, *_ = launch.forward(q, beyond, scale, Ids(), False, longer.bound, False)
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
        others()
    else:
        for sample in SAMPLES:
            if sample.name not in SKIPPED.get(kind, ()):
                report(sample.name, sample, (DTYPES[kind], DTYPES[kind]))


def others() -> None:
    float32, bfloat16, float16 = DTYPES.values()
    chosen = [sample for sample in SAMPLES if sample.name in ("queue", "ragged", "cold gemm")]
    for sample in chosen:
        report(f"mixed fp32 bf16: {sample.name}", sample, (float32, bfloat16))
        report(f"mixed fp32 fp16: {sample.name}", sample, (float32, float16))
        report(f"mixed fp16 bf16: {sample.name}", sample, (float16, bfloat16))
        report(f"float64: {sample.name}", sample, (torch.float64, float32))
    torch.set_float32_matmul_precision("high")
    for sample in chosen:
        report(f"tf32: {sample.name}", sample, (float32, float32))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
