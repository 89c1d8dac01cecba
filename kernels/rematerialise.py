"""Formulas in tiles, differentiable to any order, that keep their inputs instead of their results.

What a compiled kernel cannot answer (``torch.func`` transforms, forward-mode AD, second
derivatives) is answered by plain torch, one tile at a time. Each tile's gradient is the formula
again, itself kept in this form. The graph then holds no tile; what the process keeps of the memory
of second derivatives and of forward mode was seen to grow with the number of tiles all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastssl.kernels.precision import own_precision

Formula = Callable[..., Any]  # tensors in, a tuple of tensors out


def rematerialised(formula: Formula, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """``formula(*inputs)`` without its intermediate results; float inputs are differentiable."""
    return _Remade.apply(formula, *inputs)


def _floats(inputs: tuple) -> tuple[int, ...]:
    return tuple(n for n, x in enumerate(inputs) if x is not None and x.is_floating_point())


def _at(formula: Formula, inputs: tuple, places: tuple[int, ...]) -> Formula:
    """The formula as a function of the inputs at ``places`` alone."""

    def of_floats(*values: Tensor) -> tuple[Tensor, ...]:
        whole = list(inputs)
        for place, value in zip(places, values, strict=True):
            whole[place] = value
        return formula(*whole)

    return of_floats


class _Remade(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(formula: Formula, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return formula(*inputs)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.formula, *given = inputs
        ctx.save_for_backward(*given)
        ctx.save_for_forward(*given)
        ctx.count = len(output)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        inputs, formula, count = ctx.saved_tensors, ctx.formula, ctx.count
        places = _floats(inputs)

        def pulled(*arguments):
            given, cotangents = arguments[:-count], arguments[-count:]
            values = [given[place] for place in places]
            _, pull = torch.func.vjp(_at(formula, given, places), *values)
            return pull(cotangents)

        with own_precision(grads[0]):
            found = iter(rematerialised(pulled, *inputs, *grads))
        return None, *(next(found) if n in places else None for n in range(len(inputs)))

    @staticmethod
    def jvp(ctx, _, *tangents: Tensor | None):
        inputs, formula = ctx.saved_tensors, ctx.formula
        places = _floats(inputs)
        zeros = [
            torch.zeros_like(inputs[place]) if tangents[place] is None else tangents[place]
            for place in places
        ]

        def pushed(*arguments):
            given, along = arguments[: len(inputs)], arguments[len(inputs) :]
            values = [given[place] for place in places]
            # transposed twice: forward mode does not nest inside a plain dual level
            outputs, pull = torch.func.vjp(_at(formula, given, places), *values)
            _, push = torch.func.vjp(pull, tuple(torch.zeros_like(x) for x in outputs))
            return push(along)[0]

        with own_precision(zeros[0]):
            return rematerialised(pushed, *inputs, *zeros)
