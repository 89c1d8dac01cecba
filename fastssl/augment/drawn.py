"""What was drawn for one batch: the table that travels with it and that methods read."""

# shapes: V views, N samples, O operators, K bits, T object parameters, A nuisances, S side
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fastssl.augment.waveform_table import WaveformTable
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
    waveforms: WaveformTable | None = None  # of sounds
    class_N: Tensor | None = None  # int64: the class of each sample, where the data have them

    def value(self, name: str) -> Tensor:
        """(V, N): one value of the image table for the views of all groups."""
        return torch.cat([table.value(name) for table in self.tables])

    def to(self, device: torch.device) -> Drawn:
        """The same on ``device``."""
        names = [field.name for field in fields(self)]
        return Drawn(**{name: _moved(getattr(self, name), device) for name in names})

    def rows(self, chosen_n: Tensor) -> Drawn:
        """The table of the samples at the positions ``chosen_n`` (n,) int64."""
        nuisance = self.nuisance_VNA
        return replace(
            self,
            labels_VNO=self.labels_VNO[:, chosen_n],
            tables=tuple(
                Table(table.values_VNP[:, chosen_n], table.codes_VNC[:, chosen_n])
                for table in self.tables
            ),
            base=tuple(view[chosen_n] for view in self.base),
            object_NT=None if self.object_NT is None else self.object_NT[chosen_n],
            nuisance_VNA=None if nuisance is None else nuisance[:, chosen_n],
            waveforms=None if self.waveforms is None else self.waveforms.rows(chosen_n),
            class_N=None if self.class_N is None else self.class_N[chosen_n],
        )

    def views(self, chosen_v: Tensor) -> Drawn:
        """The table of the views at the positions ``chosen_v`` (v,), where all are one group."""
        nuisance = self.nuisance_VNA
        if len(self.tables) > 1:
            raise ValueError(f"views: expected one group of views, received {len(self.tables)}")
        return replace(
            self,
            labels_VNO=self.labels_VNO[chosen_v],
            tables=tuple(
                Table(table.values_VNP[chosen_v], table.codes_VNC[chosen_v])
                for table in self.tables
            ),
            base=tuple(self.base[view] for view in chosen_v.tolist()) if self.base else (),
            nuisance_VNA=None if nuisance is None else nuisance[chosen_v],
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if isinstance(value, Table | WaveformTable):
        return value.to(device)
    return value if value is None else value.to(device, non_blocking=True)
