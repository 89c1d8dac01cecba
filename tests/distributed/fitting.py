"""Runs of the real loop as one process or as ranks, on the real data and on a hostile toy."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastssl.data.batch import part
from fastssl.data.spirograph import SpirographSource
from fastssl.engine.config import TrainConfig
from fastssl.engine.console import Console
from fastssl.engine.loop import fit
from fastssl.engine.ranks import ALONE, Ranks
from fastssl.engine.run_folder import RunFolder, open_run
from fastssl.engine.seeding import seed_everything
from fastssl.engine.signals import StopSignals
from fastssl.engine.sync_norm import over_ranks
from fastssl.methods.amortised import Amortised
from fastssl.methods.configs import SimCLRConfig, SwAVConfig
from fastssl.methods.paper_configs import AmortisedConfig
from fastssl.methods.simclr import SimCLR
from fastssl.methods.swav import SwAV
from fastssl.nn.convnet import ConvNet

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    max_steps=6, batch_size=16, lr=0.5, save_every=2, log_every=1, optimizer="sgd",
    sync_bn=True, device="cpu",
)  # fmt: skip


class Doubles:
    """Spirograph batches in float64."""

    name, kind, num_samples, num_views = "spirograph", "spirograph", 64, 2
    image_shape = (3, 16, 16)

    def __init__(self, augment: str = "spirograph") -> None:
        self.made_by = SpirographSource(image_size=16, augment=augment)

    def batches(self, **asked):
        for batch in self.made_by.batches(**asked):
            yield replace(batch, views=tuple(view.double() for view in batch.views))

    def steps_per_epoch(self, batch_size):
        return self.num_samples // batch_size


@dataclass
class ToyBatch:
    views: tuple[Tensor, ...]
    table: None = None


class ToySource(Doubles):
    """Keyed batches; a signal or a failure on one rank at one step."""

    def __init__(self, rank: int, *, signal_at: int = -1, fails_at: int = -1) -> None:
        self.signals = signal_at if rank == 1 else -1
        self.fails = fails_at if rank == 1 else -1

    def batches(self, *, batch_size, seed, start_step, device, shard=(0, 1)):
        step = start_step
        while True:
            if step == self.fails:
                raise OSError("the disk went away")
            generator = torch.Generator().manual_seed(1000 * seed + step)
            x_VNI = torch.randn(2, batch_size, 5, generator=generator)
            if step == self.signals:
                os.kill(os.getpid(), signal.SIGTERM)
            yield ToyBatch(tuple(part(x_NI, shard) for x_NI in x_VNI))
            step += 1


class ToyMethod(nn.Module):
    """Dropout and running statistics: what a resume can forget."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)

    def forward(self, views, table):
        z0, z1 = (self.head(self.backbone(view)) for view in views)
        return (z0 - z1).square().mean() - z0.std(), {"norm": z0.norm()}

    def features(self, x):
        return self.backbone(x)


def trained(folder: str, method: nn.Module, source, ranks: Ranks = ALONE, **changes):
    """Fit in ``folder`` (the leader's; nobody else writes) and give every tensor of the method."""
    config = replace(CONFIG, out=Path(folder), **changes)
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}
    settings, said = {"train": plain, "method": {}}, io.StringIO()
    if ranks.leads:
        run = open_run(settings, name="toy")
    else:
        nowhere = Path(folder) / "never" / "made"
        run = RunFolder(
            nowhere, settings=settings, resuming=False, lock=os.open(os.devnull, 0), made=[]
        )
    with run, StopSignals(launched=ranks.size > 1) as stop:
        if ranks.leads:
            run.begin({})
        result = fit(
            method, source, config, run=run, device=CPU, console=Console(said), stop=stop,
            ranks=ranks,
        )  # fmt: skip
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    return {
        "state": state,
        "steps": result.steps,
        "code": result.exit_code,
        "said": said.getvalue(),
    }


def here() -> Ranks:
    """The ranks of the test's world."""
    return Ranks(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)


def simclr(folder: str, accumulate: int, ranks: Ranks | None = None):
    """SimCLR's conv net with batch norm, float64."""
    seed_everything(0)
    method = SimCLR(ConvNet(), SimCLRConfig(temperature=0.2, projector_dims=(16, 8))).double()
    return trained(folder, method, Doubles(), ranks or here(), accumulate=accumulate)


def queued(folder: str, name: str, ranks: Ranks | None = None):
    """A method with a queue that all ranks fill, float64."""
    seed_everything(0)
    if name == "swav":
        settings = {"num_prototypes": 12, "freeze_prototypes_steps": 0, "queue_size": 33}
        config = SwAVConfig(projector_dims=(16, 8), **settings)
        method: nn.Module = SwAV(ConvNet(), config)
    else:
        amortised = {"over": "mocov2", "dropout": 0.0, "queue_size": 20, "bn_splits": 1}
        method = Amortised(
            ConvNet(), AmortisedConfig(generator="low-rank", projector_dims=(16, 8), **amortised)
        )
    source = Doubles("spirograph" if name == "swav" else "spirograph-2")
    return trained(folder, method.double(), source, ranks or here(), lr=0.05, max_steps=4)


def bent(x, g, counts):
    """A second derivative through batch norm over the ranks, on this rank's rows."""
    module = nn.Sequential(nn.BatchNorm1d(5)).double()
    over_ranks(module, dist.group.WORLD)
    mine = x.split(counts)[here().rank].clone().requires_grad_()
    value = (module(mine) * g.split(counts)[here().rank]).sum()
    (gradient,) = torch.autograd.grad(value, mine, create_graph=True)
    gradient.square().sum().backward()
    return mine.grad


def toy(folder: str, changes: dict, happens: dict, ranks: Ranks | None = None):
    """The toy on this rank; what happens to rank 1 is told by ``happens``."""
    ranks = ranks or here()
    seed_everything(0)
    try:
        return trained(folder, ToyMethod(), ToySource(ranks.rank, **happens), ranks, **changes)
    except (ValueError, OSError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def normed(x, g, momentum, counts):
    """Batch norm over the ranks on this rank's rows: gradients, running statistics, evaluation."""
    kind = nn.BatchNorm1d if x.ndim == 2 else nn.BatchNorm2d
    module = nn.Sequential(kind(5, momentum=momentum)).double()
    over_ranks(module, dist.group.WORLD)
    mine = x.split(counts)[here().rank].clone().requires_grad_()
    (module(mine) * g.split(counts)[here().rank]).sum().backward()
    module(mine.detach() * 3 + 1)
    norm = module.eval()[0]
    return {
        "dx": mine.grad,
        "gradients": [p.grad for p in norm.parameters()],
        "running": [norm.running_mean, norm.running_var],
        "out": module(mine),
        "keys": list(norm.state_dict()),
    }
