"""A slowly moving copy of a module, the teacher of BYOL (arXiv:2006.07733) and MoCo (1911.05722).

    theta' <- m theta' + (1 - m) theta                                after every update
    m_k = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2                       BYOL section 3.2; MoCo-v3

The copy is an ordinary submodule without gradients: checkpoints hold it, and the guard puts it back
after a step that was not finite.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Buffers = Literal["copy", "average"]


def constant_momentum(step: int, *, base: float, total: int) -> float:
    """``base`` at every step; the signature is that of the other schedules."""
    _check(base, total)
    return base


def cosine_momentum(step: int, *, base: float, total: int) -> float:
    """From ``base`` at step 0 to 1 at step ``total``, where the copy stands still."""
    _check(base, total)
    progress = min(max(step / total, 0.0), 1.0)
    return 1.0 - (1.0 - base) * 0.5 * (1.0 + math.cos(math.pi * progress))


class EMA(nn.Module):
    """Exponential moving average of ``source``'s parameters; calling it runs the average.

    Args:
        source: copied now; the live module is not kept and is given to every ``update``.
        buffers: "copy" takes running statistics as they are at each update; "average" averages
            those that are floating point like parameters. Integer buffers are always copied.
    """

    def __init__(self, source: nn.Module, *, buffers: Buffers = "copy") -> None:
        super().__init__()
        if buffers not in ("copy", "average"):
            raise ValueError(f"EMA: buffers must be 'copy' or 'average', received {buffers!r}")
        self.module = copy.deepcopy(source).requires_grad_(False)
        self.buffers_are = buffers

    def forward(self, *inputs: Any) -> Any:
        """The averaged module's output, without gradients."""
        with torch.no_grad():
            return self.module(*inputs)

    @torch.no_grad()
    def update(self, source: nn.Module, *, momentum: float) -> None:
        """One step of the average towards ``source``, which must be built as the one copied.

        Raises ValueError for a momentum outside [0, 1], or a source with other tensors.
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"EMA: momentum must lie in [0, 1], received {momentum}")
        slow, fast = _pairs("parameter", self.module.named_parameters(), source.named_parameters())
        kept, new = _pairs("buffer", self.module.named_buffers(), source.named_buffers())
        copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        for ours, theirs in zip(kept, new, strict=True):
            if self.buffers_are == "average" and ours.is_floating_point():
                slow.append(ours)
                fast.append(theirs)
            else:
                copied[0].append(ours)
                copied[1].append(theirs)
        if slow:
            torch._foreach_lerp_(slow, fast, 1.0 - momentum)
        if copied[0]:
            torch._foreach_copy_(*copied)


def _pairs(kind: str, ours: Any, theirs: Any) -> tuple[list[Tensor], list[Tensor]]:
    slow, fast = dict(ours), dict(theirs)
    shapes = [{name: tensor.shape for name, tensor in side.items()} for side in (slow, fast)]
    if shapes[0] != shapes[1]:
        odd = sorted(
            name for name in slow.keys() | fast.keys() if shapes[0].get(name) != shapes[1].get(name)
        )
        raise ValueError(
            f"EMA: source: expected every {kind} of the module that was copied, in its shape; "
            f"{len(odd)} differ: {', '.join(odd[:3])}"
        )
    return list(slow.values()), [fast[name] for name in slow]


def _check(base: float, total: int) -> None:
    if not 0.0 <= base <= 1.0:
        raise ValueError(f"EMA: base must lie in [0, 1], received {base}")
    if total < 1:
        raise ValueError(f"EMA: total must be at least 1 step, received {total}")
