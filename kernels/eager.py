"""When a call may go to its backend at once, past the dispatcher, and when it must not.

A dispatcher call of a Python operator with a list of tensors costs about 28 us in each direction,
``register_autograd`` about 60 more: for small inputs several times the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN_TYPES = (Tensor, torch.nn.Parameter)
TRANSFORMS = (TransformType.Vmap, TransformType.Grad, TransformType.Jvp)


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing but the operator needs to see the call, and memory holds the values.

    The memory of a lazily negated view (``z.conj().imag``) holds their opposites. Costs 0.5 us.
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if type(tensor) not in PLAIN_TYPES or tensor.is_neg():
            return False
    return (
        _get_current_dispatch_mode() is None
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform or forward-mode AD must see every step of the formula."""
    if torch.compiler.is_compiling():
        return False
    level = peek_interpreter_stack()
    return forward_ad._current_level >= 0 or (level is not None and level.key() in TRANSFORMS)
