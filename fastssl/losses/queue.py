"""MoCo's queue of keys (He et al. 2020, arXiv:1911.05722, alg. 1): a ring of unit rows."""

# shapes: N keys of a batch, K rows of a queue, D features, Q queues
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.kernels.enqueue.op import check, enqueue
from fastssl.kernels.enqueue.reference import unit_rows
from fastssl.losses.arguments import INTEGERS
from fastssl.losses.distributed import gather_rows, num_ranks, rank_in

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class KeyQueue(nn.Module):
    """The last K keys, normalised, oldest first from ``pointer``; buffers, so saved and moved.

    Batches may have any size: they wrap around, and of more than K keys the last K stay. A write
    is one pass over the batch; the queue is never copied and the pointer never waited for.

    Args:
        num_keys: K. width: D.
        num_queues: None for one queue (K, D); Q for queues side by side, ``rows`` (Q, K, D).
        dtype: of the rows; bfloat16 halves what a loss reads, float32 keeps every bit.
        seed: of the random unit rows the queue starts with.
        group: a process group whose keys are gathered, in the order of the ranks, before a write;
            a rank may bring more than another.

    Attributes:
        rows: (K, D) or (Q, K, D). pointer: int64, () or (Q,): where the next key goes.

    Example:
        >>> import torch
        >>> from fastssl.losses import KeyQueue
        >>> queue = KeyQueue(4096, 128)
        >>> queue.enqueue(torch.randn(256, 128))
        >>> queue.rows.shape
        torch.Size([4096, 128])
    """

    rows: Tensor
    pointer: Tensor

    def __init__(
        self,
        num_keys: int,
        width: int,
        *,
        num_queues: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("num_keys", num_keys), ("width", width), ("num_queues", num_queues)):
            if size is None and name == "num_queues":
                continue
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                expected = "an integer of at least 1"
                raise ValueError(f"KeyQueue: {name} must be {expected}; received {size!r}")
        if dtype not in DTYPES:
            raise ValueError(f"KeyQueue: dtype must be one of {DTYPES}; received {dtype}")
        queues = () if num_queues is None else (num_queues,)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(*queues, num_keys, width, generator=generator)
        self.register_buffer("rows", F.normalize(start, dim=-1).to(dtype))
        self.register_buffer("pointer", torch.zeros(queues, dtype=torch.int64))
        self.group = group

    @torch.no_grad()
    def enqueue(self, keys: Tensor, *, queue: int | Tensor | None = None) -> None:
        """Writes raw keys (N, D), or (Q, N, D) for all queues at once, or (N, D) for one of them.

        ``queue`` may be a 0-d integer tensor: nothing waits for it, and its value is not checked.
        Such a choice is written by plain torch, row by row in place; a loss reads the chosen rows
        by ``rows.index_select(0, queue.view(1))[0]``, which copies that one queue.

        Raises:
            ValueError: the keys do not fit, or ``queue`` is not one of the queues.
        """
        self._check(keys, queue)
        if self.group is not None:
            keys = gathered(keys, self.group)
        if self.rows.dim() == 2:
            enqueue(self.rows, self.pointer, keys)
        elif isinstance(queue, Tensor):
            check(self.rows[0], self.pointer[0], keys)
            self._enqueue_at(keys, queue.view(1).long())
        elif queue is not None:
            enqueue(self.rows[queue], self.pointer[queue], keys)
        else:
            for q in range(len(self.rows)):
                enqueue(self.rows[q], self.pointer[q], keys[q])

    def share(self) -> Tensor:
        """The rows that count as this rank's where ranks sum over all: each is in one share.

        All of them without a group; (K / W, D), or (Q, K / W, D), of W ranks, rounded up or down.
        """
        if self.group is None:
            return self.rows
        return self.rows[..., rank_in(self.group) :: num_ranks(self.group), :]

    def _enqueue_at(self, keys: Tensor, queue_1: Tensor) -> None:
        """The op's write to the queue that a tensor names, wrapping inside it."""
        capacity, width = self.rows.shape[1:]
        count = len(keys)
        first = max(count - capacity, 0)
        pointer_1 = self.pointer.index_select(0, queue_1)
        places_N = torch.arange(first, count, device=keys.device) + pointer_1
        places_N = places_N.remainder(capacity) + queue_1 * capacity
        unit_ND = unit_rows(keys[first:]).to(self.rows.dtype)
        self.rows.view(-1, width).index_copy_(0, places_N, unit_ND)
        self.pointer.index_copy_(0, queue_1, (pointer_1 + count).remainder(capacity))

    def _check(self, keys: Tensor, queue: int | Tensor | None) -> None:
        count = len(self.rows) if self.rows.dim() == 3 else 0
        if isinstance(queue, Tensor):
            if not count or queue.numel() != 1 or queue.dtype not in INTEGERS:
                expected = "a tensor of one integer, and of several queues"
                raise ValueError(f"KeyQueue: queue must be {expected}; received {queue}")
            if isinstance(keys, Tensor) and keys.dim() == 2 and keys.shape[1] != self.rows.shape[2]:
                width = f"of width {self.rows.shape[2]}"
                raise ValueError(f"KeyQueue: keys must be {width}; received {tuple(keys.shape)}")
        elif queue is not None:
            whole = isinstance(queue, (int, np.integer)) and not isinstance(queue, bool)
            if not (whole and 0 <= queue < count):
                place = f"an integer between 0 and {count - 1}"
                expected = place if count else "None for a single queue"
                raise ValueError(f"KeyQueue: queue must be {expected}; received {queue!r}")
        all_at_once = count > 0 and queue is None
        shape = f"({count}, N, {self.rows.shape[-1]})" if all_at_once else "(N, D)"
        if not isinstance(keys, Tensor) or keys.dim() != 2 + all_at_once:
            received = tuple(keys.shape) if isinstance(keys, Tensor) else type(keys).__name__
            raise ValueError(f"KeyQueue: keys must be a tensor {shape}; received {received}")
        if all_at_once and len(keys) != count:
            raise ValueError(f"KeyQueue: keys must be {shape}; received {tuple(keys.shape)}")

    def extra_repr(self) -> str:
        return f"rows={tuple(self.rows.shape)}, dtype={self.rows.dtype}"


def gathered(keys: Tensor, group: Group) -> Tensor:
    """The keys of every rank of the group, in the order of the ranks, along the axis of N."""
    return gather_rows(keys.movedim(-2, 0), group=group).movedim(0, -2)
