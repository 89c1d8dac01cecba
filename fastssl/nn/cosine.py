"""The cosine similarity of paired rows, in float32 at least.

Near 1, where matched rows arrive, bfloat16 has steps of 2^-8: neither the value nor the small
gradient of a row's direction survives them.
"""

# shapes: N rows, D embedding
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def row_cosine(x_ND: Tensor, y_ND: Tensor) -> Tensor:
    """(N,) cosines of the rows of two (N, D), float32 for narrower inputs."""
    dtype = torch.promote_types(x_ND.dtype, torch.float32)
    with torch.autocast(x_ND.device.type, enabled=False):
        return F.cosine_similarity(x_ND.to(dtype), y_ND.to(dtype))
