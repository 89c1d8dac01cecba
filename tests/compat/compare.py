"""A loss beside its original: same value and gradients, judged against the original in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

Loss = Callable[..., Tensor]

temperatures = st.sampled_from([0.1, 0.2, 0.5, 1.0])
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
seeds = st.integers(0, 2**31 - 1)


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Normal float64 tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]


def results(loss: Loss, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The value and the gradient of every input, after rounding the inputs to ``dtype``."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    value = loss(*leaves)
    found = torch.autograd.grad(value, leaves, materialize_grads=True)
    return [value.detach(), *found]


def assert_same(
    ours: Loss, theirs: Loss, inputs: Sequence[Tensor], dtype: torch.dtype, logit: float
) -> None:
    """Ours errs at most four times as much as the original at this dtype, plus plain rounding.

    That is eps of the result, and what rounding a logit does: it moves by eps of what is computed
    in (float32 for 16-bit input) times ``logit``, its bound, and so does the weight by which
    logit / |row| enters a gradient.
    """
    rounded = [x.to(dtype) for x in inputs]
    truth = results(theirs, [x.double() for x in rounded], torch.float64)
    found, yardstick = (results(loss, inputs, dtype) for loss in (ours, theirs))
    assert_close_to(truth, found, yardstick, rounded, logit)


def assert_close_to(
    truth: Sequence[Tensor],
    found: Sequence[Tensor],
    yardstick: Sequence[Tensor],
    inputs: Sequence[Tensor],
    logit: float,
) -> None:
    """``assert_same`` of results that are there already: value, then the gradients of inputs."""
    dtype = inputs[0].dtype
    eps, inner = (torch.finfo(t).eps for t in (dtype, torch.promote_types(dtype, torch.float32)))
    shortest = min(x.norm(dim=-1).min().item() for x in inputs if x.dim() == 2)
    for position, (mine, peer, exact) in enumerate(zip(found, yardstick, truth, strict=True)):
        assert mine.dtype == peer.dtype
        assert mine.shape == peer.shape
        moved = 4 * inner * logit
        moved *= 1.0 if position == 0 else max(logit, 1.0) / min(shortest, 1.0)
        # in float64 the original is its own truth, and it rounds too
        roundings = 2 if dtype == torch.float64 else 1
        allowed = 4 * error(peer, exact) + roundings * eps * magnitude(exact) + moved
        assert error(mine, exact) <= allowed, (mine, peer, exact)


def error(found: Tensor, exact: Tensor) -> float:
    return magnitude(found.double() - exact)


def magnitude(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0
