"""Processes that stay alive and run functions as the ranks of one gloo group."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = 60  # seconds that a collective waits for a rank that never comes


class World:
    """``size`` ranks; ``run(function, *arguments)`` gives what each of them returned."""

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.size = size
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            here, there = context.Pipe()
            arguments = (rank, size, str(folder / f"store{size}"), there)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """One result per rank; the first rank that failed is raised with its traceback."""
        for pipe in self._pipes:
            pipe.send((function, plain(arguments)))
        replies = [pipe.recv() for pipe in self._pipes]
        failures = [reply for fine, reply in replies if not fine]
        assert not failures, "\n".join(failures)
        return [tensors(reply) for _, reply in replies]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(TIMEOUT)


def serve(rank: int, size: int, store: str, pipe: Connection) -> None:
    """A rank's life: run what comes down the pipe until None comes."""
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT),
    )
    while (call := pipe.recv()) is not None:
        function, arguments = call
        try:
            pipe.send((True, plain(function(*tensors(arguments)))))
        except Exception:
            pipe.send((False, f"rank {rank} of {size}:\n{traceback.format_exc()}"))
    dist.destroy_process_group()


class Array:
    """A tensor on its way through a pipe: shared memory would outlive a killed rank."""

    def __init__(self, tensor: Tensor) -> None:
        self.array = tensor.detach().numpy()


def plain(value: Any) -> Any:
    """Tensors to arrays, within tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return Array(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, tuple | list) else value


def tensors(value: Any) -> Any:
    """Inverse of ``plain``."""
    if isinstance(value, Array):
        return torch.from_numpy(value.array.copy())
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    return type(value)(map(tensors, value)) if isinstance(value, tuple | list) else value
