"""What the replacements share: unit rows, integer ids, the peer's result dtype, one process."""

# shapes: N rows, D features
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as torch_dist


def widened(x: Tensor) -> Tensor:
    """16-bit floats as float32, everything else as it is: what the losses compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def unit_rows(h_ND: Tensor) -> Tensor:
    """Rows of length one, in float32 at least."""
    return F.normalize(widened(h_ND), dim=-1)


def row_dots(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """(N,) a_i . b_i, in float32 at least."""
    return (widened(a_ND) * widened(b_ND)).sum(dim=-1)


def excess(negative: Tensor, positive: Tensor) -> Tensor:
    """log(exp(positive) + exp(negative)) - positive, without cancellation; -inf is allowed."""
    return -F.logsigmoid(positive - negative)


def as_ids(labels_N: Tensor) -> Tensor:
    """int64 labels with the same equalities as labels of any dtype."""
    if labels_N.dtype.is_floating_point or labels_N.dtype.is_complex:
        return labels_N.unique(return_inverse=True)[1]
    return labels_N.to(torch.int64)


def as_peers_return_it(loss: Tensor, embeddings: Tensor) -> Tensor:
    """The loss in the dtype of the embeddings, or in float32 at least under autocast."""
    if torch.is_autocast_enabled(embeddings.device.type):
        return loss.to(torch.promote_types(embeddings.dtype, torch.float32))
    return loss.to(embeddings.dtype)


def refuse_many_processes(name: str, option: str) -> None:
    """ValueError where torch.distributed runs more than one process."""
    if not torch_dist.is_available() or not torch_dist.is_initialized():
        return
    world_size = torch_dist.get_world_size()
    if world_size > 1:
        raise ValueError(
            f"{name}: {option} must be used with one process; received a world of {world_size}. "
            "Negatives are not gathered across processes here: use the original for this run"
        )
