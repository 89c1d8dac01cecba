"""How the rows of the other ranks reach this one: all at once (gather) or one rank's at a time.

``group=`` of a loss is a process group (gather) or ``Ring`` of one. An exchange answers two
questions. ``collect``: what to keep of the rows between forward and backward. ``blocks``: iterate
over those rows, block by block, each beside its own per-row numbers. Rows travel detached;
gradients never do.
"""

# shapes: n rows here, W ranks, V vectors, D features
from __future__ import annotations

import copyreg
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

Rows = list[Tensor | None]
Group: TypeAlias = "dist.ProcessGroup | Ring"


@dataclass(frozen=True)
class Ring:
    """``group=Ring(group)`` of a loss: the ranks pass their rows round instead of gathering them.

    Same loss, same gradients; a rank holds its own rows and those of two visitors at a time, where
    a gather holds the rows of all W ranks. W - 1 messages per tensor instead of one collective,
    forward and backward. Works with every loss that takes ``group=``.

    Args:
        group: a process group of torch.distributed this rank belongs to.

    Example:
        >>> import torch.distributed as dist
        >>> from fastssl.losses import NTXentLoss, Ring
        >>> if dist.is_initialized():
        ...     loss = NTXentLoss(0.1, group=Ring(dist.group.WORLD))
    """

    group: dist.ProcessGroup


def _not_copied(group: dist.ProcessGroup) -> str:
    """What ``copyreg`` asks for: by a name. A copy of a module shares the group of the original.

    ``pickle`` looks the name up, finds nothing, and shows it in its PicklingError.
    """
    return "<a live process group: set group = None on the module before pickling or torch.save>"


if dist.is_available():  # else a module with group= cannot be deep-copied, as an EMA of it is
    copyreg.pickle(dist.ProcessGroup, _not_copied)


def _bad_group(expected: str, received: object) -> ValueError:
    return ValueError(f"group: expected {expected}; received {received}")


def process_group(group: Group) -> dist.ProcessGroup:
    """The ranks of a group, however their rows travel.

    Raises:
        ValueError: this process is not a member of a live process group.
    """
    if isinstance(group, Ring):
        group = group.group
    if not (dist.is_available() and dist.is_initialized()):
        received = f"{group!r} without torch.distributed.init_process_group"
        raise _bad_group("a process group of torch.distributed", received)
    if not isinstance(group, dist.ProcessGroup):
        raise _bad_group("a process group (all ranks: torch.distributed.group.WORLD)", repr(group))
    if dist.get_rank(group) < 0:
        raise _bad_group(
            "a group that this rank belongs to", f"rank {dist.get_rank()} is not in it"
        )
    return group


def exchange_over(group: Group, counts: tuple[int, ...]) -> Exchange:
    """How rows travel in this group, of which each rank has as many as ``counts`` says."""
    if isinstance(group, Ring):
        return RoundTrip(group.group, counts)
    return AllGather(group, counts)


def row_counts(group: Group, *rows: Tensor) -> list[tuple[int, ...]]:
    """How many rows each rank holds, per tensor; checks on every rank that all of them fit.

    Args:
        rows: (n,) or (n, D) each; n may differ from rank to rank, D may not.

    Raises:
        ValueError: on all ranks alike, naming every rank's shape, so that none is left waiting.
    """
    ranks = process_group(group)
    here = [(x.shape[0], x.numel() // max(1, x.shape[0])) for x in rows]
    shapes = _all_gather(torch.tensor([here], device=rows[0].device), ranks).tolist()
    return [_fitting(of_ranks) for of_ranks in zip(*shapes, strict=True)]


def _fitting(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if min(count for count, _ in shapes) < 1 or len({width for _, width in shapes}) != 1:
        told = ", ".join(f"rank {r}: {count} x {width}" for r, (count, width) in enumerate(shapes))
        raise ValueError(f"group: every rank needs at least one row, all of one width; {told}")
    return tuple(count for count, _ in shapes)


class Exchange(Protocol):
    """What the distributed losses ask of an exchange."""

    def collect(self, rows: Rows) -> Rows:
        """What to keep of these rows (n, ...) of every rank until the backward."""

    def blocks(self, collected: Rows, vectors: Sequence[Tensor] = ()) -> Iterator[Rows]:
        """The collected rows with the (n,) ``vectors`` of their owners appended, block by block."""


@dataclass(frozen=True)
class AllGather:
    """Every rank holds the rows of all ranks, in rank order: one block."""

    group: dist.ProcessGroup
    counts: tuple[int, ...]

    def collect(self, rows: Rows) -> Rows:
        """The rows of all ranks, gathered."""
        return [None if x is None else self._gather(x) for x in rows]

    def blocks(self, collected: Rows, vectors: Sequence[Tensor] = ()) -> Iterator[Rows]:
        """One block; all vectors travel in one collective of n * V numbers."""
        if not vectors:
            yield collected
            return
        gathered_V = self._gather(torch.stack(list(vectors), dim=1)).T.contiguous()
        yield [*collected, *gathered_V.unbind(0)]

    def _gather(self, x: Tensor) -> Tensor:
        most = max(self.counts)
        if min(self.counts) == most:
            return _all_gather(x.detach().contiguous(), self.group)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: x.shape[0]] = x.detach()
        parts = _all_gather(padded, self.group).split(most)
        return torch.cat([part[:n] for part, n in zip(parts, self.counts, strict=True)])


@dataclass(frozen=True)
class RoundTrip:
    """Every rank holds its own rows and one visitor's; W - 1 hops bring every block round.

    The next block travels while the caller works on the present one.
    """

    group: dist.ProcessGroup
    counts: tuple[int, ...]

    def collect(self, rows: Rows) -> Rows:
        """This rank's own rows: the others come by again in the backward."""
        return rows

    def blocks(self, collected: Rows, vectors: Sequence[Tensor] = ()) -> Iterator[Rows]:
        """W blocks, this rank's own first."""
        size, rank = len(self.counts), dist.get_rank(self.group)
        present: Rows = [None if x is None else x.detach().contiguous() for x in collected]
        present += [x.detach().contiguous() for x in vectors]
        for hop in range(1, size):
            coming, pending = self._pass_on(present, self.counts[(rank - hop) % size])
            yield present
            for work in pending:
                work.wait()
            present = coming
        yield present

    def _pass_on(self, present: Rows, num_coming: int) -> tuple[Rows, list[dist.Work]]:
        size, rank = len(self.counts), dist.get_rank(self.group)
        after = dist.get_global_rank(self.group, (rank + 1) % size)
        before = dist.get_global_rank(self.group, (rank - 1) % size)
        coming: Rows = []
        hops = []
        for tag, x in enumerate(present):
            visitor = None if x is None else x.new_empty(num_coming, *x.shape[1:])
            coming.append(visitor)
            if visitor is not None:
                hops.append(dist.P2POp(dist.isend, x, after, group=self.group, tag=tag))
                hops.append(dist.P2POp(dist.irecv, visitor, before, group=self.group, tag=tag))
        return coming, dist.batch_isend_irecv(hops)


def _all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(W * n, ...) of equal (n, ...) from every rank."""
    out = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
    into_one = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    into_one(out, x, group=group)  # the first is the second's name from torch 2.14 on
    return out
