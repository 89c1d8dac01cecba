"""Two views of N samples as M = 2N rows, each against its partner and the other samples' rows.

What NT-Xent with options, DCL and DCLW share. Row v * N + n is sample n in view v.
"""

# shapes: N samples, M = 2N rows, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.kernels.contrast.checks import Pairs
from fastssl.losses.arguments import check_same_shape, checked_ids, scale_of
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import ids_over_ranks
from fastssl.losses.matching import Matching, matched
from fastssl.losses.metrics import Terms
from fastssl.losses.options import Options, check_options

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def two_views(
    loss: str,
    view0: Tensor,
    view1: Tensor,
    sample_ids: Tensor | None = None,
    group: Group | None = None,
) -> Matching:
    """The rows and their partners; rows of one sample id are no negatives of each other."""
    check_same_shape(loss, view0=view0, view1=view1)
    num_samples = view0.shape[0]
    z_MD = torch.cat([unit_rows(view0), unit_rows(view1)])
    positive_M = (z_MD * z_MD.roll(num_samples, 0)).sum(1)
    whole = None
    if sample_ids is None:
        ids_N = ids_over_ranks(view0, group=group)
        row_M = torch.arange(2 * num_samples, device=view0.device)
        whole = Pairs(rows=(row_M, row_M))
    else:
        ids_N = checked_ids(loss, "sample_ids", sample_ids, num_samples, view0)
    ids_M = ids_N.repeat(2)
    return Matching(z_MD, z_MD, positive_M, (ids_M, ids_M), whole=whole, group=group)


def two_view_terms(
    loss: str,
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor,
    *,
    sample_ids: Tensor | None = None,
    options: Options | None = None,
    group: Group | None = None,
) -> Terms:
    """NT-Xent's losses per row with options, and what the metrics are read from."""
    check_options(loss, options)
    matching = two_views(loss, view0, view1, sample_ids, group)
    return matched(matching, scale_of(loss, temperature, view0), options)
