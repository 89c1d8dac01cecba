"""The processes of one run: the ranks that torchrun started, or this process alone.

Rank 0 leads: it alone writes the run folder, shows the bar and reads out. Whatever decides how a
run goes on (a signal, a failing data source, the checkpoint to start from) is agreed upon, so that
no rank waits for one that has left. Such talk goes through gloo; tensors of the training through
NCCL on CUDA.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastssl.engine.sync_norm import over_ranks

_SIGNALS = (None, "SIGTERM", "SIGINT")


class LeaderFailed(RuntimeError):
    """Rank 0 gave up and has said why."""


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``. ``talk`` is a gloo group of all of them."""

    rank: int = 0
    size: int = 1
    talk: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @contextlib.contextmanager
    def leading(self) -> Iterator[None]:
        """Round what the others wait for: should it fail, they are told instead of kept waiting."""
        try:
            yield
        except BaseException:
            if self.size > 1:
                self.tell(None)
            raise

    def tell(self, facts: dict | None) -> None:
        """From the leader to all: JSON-able facts, or None where it has failed."""
        if self.size > 1:
            self._broadcast(json.dumps(facts))

    def told(self) -> dict:
        """What the leader tells. Raises LeaderFailed."""
        facts = json.loads(self._broadcast(""))
        if facts is None:
            raise LeaderFailed("rank 0 could not go on")
        return facts

    def gather(self, facts: dict) -> list[dict]:
        """Every rank's facts, on every rank; all as long as each other when written as JSON."""
        if self.size == 1:
            return [facts]
        here = _as_bytes(json.dumps(facts))
        everyone = [torch.empty_like(here) for _ in range(self.size)]
        dist.all_gather(everyone, here, group=self.talk)
        return [json.loads(bytes(text.numpy())) for text in everyone]

    def any_of(self, signal: str | None) -> str | None:
        """The signal that has reached a rank, if any has."""
        return _SIGNALS[self._largest(_SIGNALS.index(signal))]

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return bool(self._largest(int(here)))

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the ranks of 0-d tensors; on CUDA nothing waits."""
        if self.size == 1 or not values:
            return dict(values)
        stacked = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind(), strict=True))

    def share(self, tensors: Mapping[str, Tensor]) -> None:
        """The leader's values, into everybody's tensors."""
        with torch.no_grad():
            for tensor in tensors.values():
                dense = tensor.contiguous()
                dist.broadcast(dense, 0, group=self.talk if dense.is_cpu else None)
                if dense is not tensor:
                    tensor.copy_(dense)

    def _largest(self, value: int) -> int:
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.talk)
        return int(largest)

    def _broadcast(self, text: str) -> str:
        content = _as_bytes(text)
        length = torch.tensor(len(content))
        dist.broadcast(length, 0, group=self.talk)
        content = content if self.leads else content.new_empty(int(length))
        dist.broadcast(content, 0, group=self.talk)
        return bytes(content.numpy()).decode()


ALONE = Ranks()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun's environment speaks of, as a process group while inside."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        talk = dist.new_group(backend="gloo")
        yield Ranks(dist.get_rank(), dist.get_world_size(), talk)
    finally:
        dist.destroy_process_group()


def prepare(method: nn.Module, ranks: Ranks, *, sync_bn: bool, compiling: bool) -> None:
    """Let the method's losses, and with ``sync_bn`` its batch norms, see the rows of all ranks.

    In place, keys of the state unchanged; call before the optimiser is built.
    """
    if ranks.size == 1:
        return
    if sync_bn:
        over_ranks(method, dist.group.WORLD)
    for module in method.modules():
        if hasattr(module, "group"):
            module.group = dist.group.WORLD
            if compiling:  # dynamo cannot see through a collective: it compiles what lies between
                module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]


def averaged(method: nn.Module, ranks: Ranks) -> nn.Module:
    """What to call in training: the method, its gradients averaged over the ranks."""
    if ranks.size == 1:
        return method
    device = next(method.parameters()).device
    return DistributedDataParallel(method, device_ids=[device] if device.type == "cuda" else None)


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
