"""What was drawn for one batch: the table that travels with it and that methods read."""

# shapes: V views, N samples, O operators, K bits, T object parameters, A nuisances, S side
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fastssl.kernels.augment.table import Table


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Parameters of all views of N samples, in tensors of one device.

    Image policies fill ``tables``; Spirograph's fills ``object_NT`` and ``nuisance_VNA``.
    """

    labels_VNO: Tensor  # int8: whether operator o (OPERATORS, or NUISANCES) was drawn afresh
    bits_K: Tensor  # float32, 0 or 1: the invariance vector of this step; K = 0 without groups
    corner: Tensor  # int64, 0-d: the position of ``bits_K`` among the policy's corners
    tables: tuple[Table, ...] = ()  # of each group of views: values and codes of its V views
    base: tuple[Tensor, ...] = ()  # V views (N, 3, S, S) from before the stages of ``alpha``
    object_NT: Tensor | None = None  # columns spirograph.TARGETS
    nuisance_VNA: Tensor | None = None  # columns spirograph.NUISANCES
    class_N: Tensor | None = None  # int64: the class of each sample, where the data have them

    def value(self, name: str) -> Tensor:
        """(V, N): one value of the image table for the views of all groups."""
        return torch.cat([table.value(name) for table in self.tables])

    def to(self, device: torch.device) -> Drawn:
        """The same on ``device``."""
        return Drawn(**{field.name: _moved(getattr(self, field.name), device) for field in fields(self)})

    def rows(self, chosen: slice | Tensor) -> Drawn:
        """The same for some of the samples."""
        return Drawn(
            labels_VNO=self.labels_VNO[:, chosen],
            bits_K=self.bits_K,
            corner=self.corner,
            tables=tuple(
                Table(table.values_VNP[:, chosen], table.codes_VNC[:, chosen])
                for table in self.tables
            ),
            base=tuple(view[chosen] for view in self.base),
            object_NT=None if self.object_NT is None else self.object_NT[chosen],
            nuisance_VNA=None if self.nuisance_VNA is None else self.nuisance_VNA[:, chosen],
            class_N=None if self.class_N is None else self.class_N[chosen],
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, Table):
        return value.to(device)
    return value if value is None else value.to(device, non_blocking=True)
