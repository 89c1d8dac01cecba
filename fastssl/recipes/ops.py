"""Which of our operators a method runs, and which implementation answers each of them here."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.engine.plan import rehearse
from fastssl.kernels import native


class _Heard(TorchDispatchMode):
    """Notes the names of this library's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        library, _, name = func._schema.name.partition("::")
        if library == "fastssl":
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def backends(
    method: nn.Module, source: Any, *, device: torch.device, batch_size: int
) -> dict[str, str]:
    """Implementation by operator, of those that a step of ``method`` calls; it tries one."""
    with _Heard() as heard:
        rehearse(method, source, batch_size=batch_size)
    chosen = "plain PyTorch"
    if device.type == "cuda":
        chosen = "Triton"
    elif device.type == "cpu" and native.library() is not None:
        isa = os.environ.get("FASTSSL_ISA") or native.instruction_sets()[0]
        chosen = f"C++ ({isa})"
    return dict.fromkeys(sorted(heard.names), chosen)
