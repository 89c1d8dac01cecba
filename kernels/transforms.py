"""Whether a torch.func transform or forward-mode differentiation looks into an operator."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """True inside vmap, func.grad, jvp, ...: then a formula must answer, not a compiled kernel.

    An operator without rules of its own for them would drop tangents without a word.
    """
    if torch.compiler.is_compiling():
        return False
    level = torch._C._functorch.maybe_current_level()
    return level is not None or forward_ad._current_level >= 0
