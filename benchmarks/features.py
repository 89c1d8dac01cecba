"""``python -m benchmarks.features [--check]``: which loss keeps which promise, into docs/losses.md.

Every cell is the outcome of a check of this file on a case of ``fastssl/losses/spec.py``, run when
the page is made; the tests run the same checks, and compare the page.
"""

# shapes: N rows, D embedding
from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fastssl.losses import Ring
from fastssl.losses.spec import CASES, Case, bad_everywhere

PAGE = Path(__file__).parent.parent / "docs" / "losses.md"
ELSEWHERE = Path(__file__).with_name("features_elsewhere.md")
"""What the page says beside the checks, by hand; each line names the tests that prove it."""
KNOBS = {"temperature": 0.3, "logit_scale": 4.0, "scale": 4.0}


def leaves(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The case's embeddings, asking for gradients."""
    return [h_ND.requires_grad_() for h_ND in case.embeddings(dtype)]


def value_and_grads(case: Case, inputs: list[Tensor], knob) -> list[Tensor]:
    """Mean loss and the gradients of the embeddings, in float64."""
    loss = case.call(inputs, knob)
    grads = torch.autograd.grad(loss, inputs)
    return [x.detach().double() for x in (loss, *grads)]


def keeps_dtype(case: Case, dtype: torch.dtype) -> bool:
    """Close to float64 on the same rounded input; the loss in float32 at least."""
    inputs = leaves(case, dtype)
    loss = case.call(inputs, KNOBS[case.knob])
    exact = [h_ND.detach().double().requires_grad_() for h_ND in inputs]
    tolerance = 20 * torch.finfo(dtype).eps
    pairs = zip(
        value_and_grads(case, inputs, KNOBS[case.knob]),
        value_and_grads(case, exact, KNOBS[case.knob]),
        strict=True,
    )
    near = all((a - b).abs().max() <= tolerance * (1 + b.abs().max()) for a, b in pairs)
    return near and loss.dtype in (torch.float32, torch.float64)


def learns_its_knob(case: Case) -> bool:
    """The gradient of temperature or logit scale is a central difference."""
    knob = torch.tensor([KNOBS[case.knob]], dtype=torch.float64, requires_grad=True)
    embeddings = case.embeddings()
    (grad,) = torch.autograd.grad(case.call(embeddings, knob), knob)
    step = 1e-5
    up, down = (case.call(embeddings, knob.item() + s) for s in (step, -step))
    return abs(grad.item() - (up - down).item() / (2 * step)) < 1e-6 * (1 + abs(grad.item()))


def reduces(case: Case) -> bool:
    """Sum is the sum of none, and mean the mean over the rows that have a loss."""
    embeddings, knob = case.embeddings(), KNOBS[case.knob]
    none, total, mean = (case.call(embeddings, knob, r) for r in ("none", "sum", "mean"))
    ratio = (total / mean).item()
    whole = abs(ratio - round(ratio)) < 1e-6 and round(ratio) <= len(none)
    return none.dim() == 1 and whole and torch.allclose(none.sum(), total, rtol=1e-12)


def gradchecks(case: Case) -> bool:
    """torch's gradcheck in float64, temperature included."""
    knob = torch.tensor(KNOBS[case.knob], dtype=torch.float64, requires_grad=True)
    function = lambda knob, *inputs: case.call(inputs, knob, "none")  # noqa: E731
    return torch.autograd.gradcheck(function, (knob, *leaves(case)), raise_exception=False)


def gradgradchecks(case: Case) -> bool:
    """torch's gradgradcheck in float64, temperature included."""
    knob = torch.tensor(KNOBS[case.knob], dtype=torch.float64, requires_grad=True)
    function = lambda knob, *inputs: case.call(inputs, knob)  # noqa: E731
    return torch.autograd.gradgradcheck(function, (knob, *leaves(case)), raise_exception=False)


def compiles(case: Case) -> bool:
    """One graph, the same value and gradients."""
    torch.compiler.reset()
    knob = torch.tensor(KNOBS[case.knob], dtype=torch.float64)
    function = torch.compile(
        lambda inputs, knob: case.call(inputs, knob), fullgraph=True, backend="aot_eager"
    )
    inputs = leaves(case)
    loss = function(inputs, knob)
    found = [loss.detach(), *torch.autograd.grad(loss, inputs)]
    expected = value_and_grads(case, inputs, knob)
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True)
    )


def maps(case: Case) -> bool:
    """torch.func.vmap over two batches, of the loss and of its torch.func.grad."""
    function, inputs = as_function(case)
    stacked = [torch.stack([h_ND, 2 * h_ND + h_ND.roll(1, 0)]) for h_ND in inputs]
    for transformed in (function, torch.func.grad(function)):
        found = torch.func.vmap(transformed)(*stacked)
        expected = [transformed(*[h_BND[b] for h_BND in stacked]) for b in range(2)]
        if not torch.allclose(found, torch.stack(expected), rtol=1e-9, atol=1e-12):
            return False
    return True


def differentiates_forward(case: Case) -> bool:
    """torch.func.jvp of the loss, and of its torch.func.grad (a Hessian times a vector)."""
    function, inputs = as_function(case)
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(h.shape, generator=generator, dtype=h.dtype) for h in inputs]
    moved = lambda step: [h + step * t for h, t in zip(inputs, along, strict=True)]  # noqa: E731
    for transformed in (function, torch.func.grad(function)):
        _, found = torch.func.jvp(transformed, tuple(inputs), tuple(along))
        difference = (transformed(*moved(1e-5)) - transformed(*moved(-1e-5))) / 2e-5
        if not torch.allclose(found, difference, rtol=1e-6, atol=1e-7):
            return False
    return True


def as_function(case: Case) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The mean loss as a function of the embeddings, and embeddings."""
    return lambda *inputs: case.call(list(inputs), KNOBS[case.knob]), case.embeddings()


def joins_ranks(case: Case) -> bool:
    """The same loss and gradients with group= and Ring of a gloo group of one process."""
    inputs, knob = leaves(case), KNOBS[case.knob]
    expected = value_and_grads(case, inputs, knob)
    with one_rank() as world:
        for group in (world, Ring(world)):
            loss = case.call(inputs, knob, "mean", group)
            found = [loss.detach(), *torch.autograd.grad(loss, inputs)]
            pairs = zip(found, expected, strict=True)
            if not all(torch.allclose(a, b, rtol=1e-11, atol=1e-13) for a, b in pairs):
                return False
    return True


@contextmanager
def one_rank() -> Iterator[dist.ProcessGroup]:
    """A world of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def takes_any_strides(case: Case) -> bool:
    """Transposed storage, and columns of something wider."""
    knob = KNOBS[case.knob]
    expected = value_and_grads(case, leaves(case), knob)
    for layout in (lambda h: h.T.contiguous().T, lambda h: torch.cat([h, h], 1)[:, : h.shape[1]]):
        inputs = [layout(h_ND).detach().requires_grad_() for h_ND in case.embeddings()]
        found = value_and_grads(case, inputs, knob)
        if not all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True)):
            return False
    return True


def survives_zero_rows(case: Case) -> bool:
    """Finite loss and gradients with rows of zeros, in float16 too."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        inputs = case.embeddings(dtype)
        for h_ND in inputs:
            h_ND[0] = 0
        inputs = [h_ND.requires_grad_() for h_ND in inputs]
        loss = case.call(inputs, KNOBS[case.knob])
        found = [loss, *torch.autograd.grad(loss, inputs)]
        if not all(torch.isfinite(x).all() for x in found):
            return False
    return True


def ignores_autocast(case: Case) -> bool:
    """The same bits under autocast to bfloat16."""
    embeddings, knob = case.embeddings(torch.float32), KNOBS[case.knob]
    expected = case.call(embeddings, knob)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return torch.equal(case.call(embeddings, knob), expected)


def tells_metrics(case: Case) -> bool:
    """The same loss, and alignment and negative similarity between -1 and 1."""
    embeddings, knob = case.embeddings(), KNOBS[case.knob]
    loss, metrics = case.with_metrics(embeddings, knob)
    numbers = [metrics.alignment.item(), metrics.negative_similarity.item()]
    close = torch.allclose(loss, case.call(embeddings, knob), rtol=1e-6)
    return close and all(-1 <= x <= 1 for x in numbers)


def tells_top1(case: Case) -> bool:
    """Between 0 and 1: the nearest candidate is a positive, or is not."""
    _, metrics = case.with_metrics(case.embeddings(), KNOBS[case.knob])
    return 0 <= metrics.top1.item() <= 1


def refuses_bad_input(case: Case) -> bool:
    """A ValueError that names loss and argument, for wrong tensors and wrong temperatures."""
    for bad in bad_everywhere(case):
        try:
            bad.call()
        except ValueError as error:
            if not all(word in str(error) for word in bad.mentions):
                return False
        else:
            return False
    return True


def repeats_its_bits(case: Case) -> bool:
    """Value and gradients of two calls in float32 are the same bits."""
    runs = [value_and_grads(case, leaves(case, torch.float32), KNOBS[case.knob]) for _ in range(2)]
    return all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


PROMISES: dict[str, Callable[[Case], bool]] = {
    "fp64": lambda case: keeps_dtype(case, torch.float64),
    "fp32": lambda case: keeps_dtype(case, torch.float32),
    "bf16": lambda case: keeps_dtype(case, torch.bfloat16),
    "fp16": lambda case: keeps_dtype(case, torch.float16),
    "learnt scale": learns_its_knob,
    "reductions": reduces,
    "gradcheck": gradchecks,
    "double backward": gradgradchecks,
    "compile": compiles,
    "vmap": maps,
    "jvp": differentiates_forward,
    "group": joins_ranks,
    "any strides": takes_any_strides,
    "zero rows": survives_zero_rows,
    "autocast": ignores_autocast,
    "metrics": tells_metrics,
    "top-1": tells_top1,
    "bad input": refuses_bad_input,
    "same bits": repeats_its_bits,
}

HEAD = """# Losses

Made by `python -m benchmarks.features` from `fastssl/losses/spec.py`; do not edit. A cell says
whether the check of `benchmarks/features.py` on that call passed when the page was made. That
values and gradients are those of the paper in float64 is shown by
`tests/losses/test_equations.py`; that 1, 2 and 4 ranks train to the weights of one process, by
`tests/distributed/test_one_batch.py`, gathering or in a ring. Under `vmap`, `jvp` and double
backward a tiled composite in plain torch answers. Over a group of ranks a second derivative is
refused.

| promise | check |
|---|---|
"""


@cache
def kept(case: Case, promise: str) -> bool:
    """The outcome of one check; a check that raises is a promise not kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(PROMISES[promise](case))


def page() -> str:
    """The text of docs/losses.md."""
    dtype = "close to float64 on the same rounded input, loss in float32 at least"
    text = HEAD + f"| {', '.join(list(PROMISES)[:4])} | {dtype} |\n"
    for name, check in list(PROMISES.items())[4:]:
        text += f"| {name} | {(check.__doc__ or '').rstrip('.')} |\n"
    columns = ["loss", "call", *PROMISES, "source"]
    text += f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    for case in CASES:
        cells = ["yes" if kept(case, promise) else "no" for promise in PROMISES]
        row = [f"`{case.loss}`", case.variant or "plain", *cells, case.paper]
        text += f"| {' | '.join(row)} |\n"
    reasons = dict.fromkeys(reason for case in CASES for _, reason in case.without)
    text += "\nWhere a cell says no:\n\n"
    for reason in reasons:
        held = [(case, p) for case in CASES for p, why in case.without if why == reason]
        who = ", ".join(sorted({f"`{case.loss}`" for case, _ in held}))
        what = ", ".join(dict.fromkeys(p for _, p in held))
        text += f"- {who}, {what}: {reason}.\n"
    return text + "\n" + ELSEWHERE.read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with --check compare: exit code 1 if it is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    text = page()
    if check:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("up to date" if fresh else "stale: run python -m benchmarks.features")
        return int(not fresh)
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
