"""A method of the contract in the real loop: alone or as ranks, whole or resumed."""

# shapes: N batch
from __future__ import annotations

import contextlib
from unittest import mock

import torch

from fastssl.data.batch import part
from fastssl.engine.ranks import ALONE
from tests.distributed.fitting import Doubles, ToyBatch, here, trained
from tests.methods.built import build, two_views
from tests.methods.papers import told

STEPS = 4
SMALLER = {"amortised": {"generator": "low-rank"}}
"""Settings that spare checkpoints of many megabytes."""


class Told(Doubles):
    """Views and a table with everything that some method reads, others in every step."""

    name = kind = "toy"

    def __init__(self, dtype) -> None:
        self.dtype = dtype

    def batches(self, *, batch_size, seed, start_step, device, shard=(0, 1)):
        step = start_step
        while True:
            rows = part(torch.arange(batch_size), shard)
            views = two_views(batch_size, seed=step, dtype=self.dtype)
            table = told(batch_size, self.dtype).rows(rows)
            yield ToyBatch(tuple(view[rows] for view in views), table)
            step += 1


def fitted(name, folder, ranks=ALONE, *, seed=0, dtype=torch.float32, **changes):
    """The method ``name`` trained in ``folder`` from the weights of ``seed``."""
    method = build(name, seed, **SMALLER.get(name, {})).to(dtype)
    settings = {"max_steps": STEPS, "batch_size": 8, "lr": 0.2, "save_every": 2} | changes
    return trained(str(folder), method, Told(dtype), ranks, **settings)


def on_a_rank(folder, name, ranks=None):
    """In float64 without chance: ranks draw numbers of their own, one process draws others."""
    with without_chance():
        return fitted(name, folder, ranks or here(), dtype=torch.float64, max_steps=3)


@contextlib.contextmanager
def without_chance():
    """What methods draw in their forward (latents, InvCLR's alpha') is one number for all."""
    constant = {name: lambda x: torch.full_like(x, 0.3) for name in ("rand_like", "randn_like")}
    with mock.patch.multiple(torch, **constant):
        yield
