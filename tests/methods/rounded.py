"""A method whose networks are exact and answer in bfloat16: what is left is its loss's precision.

Every network runs in float32 outside autocast and rounds its output to bfloat16: as bfloat16, which
is what networks hand over under autocast, or as the same numbers in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_NETWORKS = ("fastssl.losses", "fastssl.methods")
"""Where the modules come from that are the arithmetic under test."""
CALLS = ("forward", "tasks", "posterior")


def rounded(method, dtype):
    """The method itself, its networks answering in ``dtype`` with bfloat16's numbers."""
    running = []
    for module in method.modules():
        for name in CALLS:
            if not type(module).__module__.startswith(NO_NETWORKS) and hasattr(module, name):
                setattr(module, name, _rounding(getattr(module, name), dtype, running))
    return method


def _rounding(forward, dtype, running):
    def answer(*inputs):
        if running:  # a network inside a network is a part of it
            return forward(*inputs)
        running.append(None)
        try:
            with torch.autocast("cpu", enabled=False):
                outputs = forward(*_each(Tensor.float, inputs))
        finally:
            running.pop()
        return _each(lambda x: x.bfloat16().to(dtype), outputs)

    return answer


def _each(change, value):
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, tuple):
        changed = [_each(change, item) for item in value]
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    return value
