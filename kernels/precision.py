"""Formulas that must not be taken in 16 bits, whatever region of the program asks for them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def own_precision(tensor: Tensor) -> AbstractContextManager:
    """No autocast, which would take the products in 16 bits."""
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
