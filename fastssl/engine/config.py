"""What a run is made of, as one frozen dataclass. Imports no torch: ``--help`` must stay fast.

Every attribute's comment is its help text on the command line and its meaning in ``config.yaml``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Precision = Literal["auto", "fp32", "bf16"]
OptimizerName = Literal["adamw", "sgd", "lars"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop, shared by every method."""

    method: str = "simclr"
    """Method to train: simclr, mocov2, mocov3, simsiam, byol, swav, dino, barlow, vicreg, supcon,
    invclr, amortised, cissl, dissl, stochastic or mtslvr. Its own options are listed with these."""
    data: str = "spirograph"
    """`spirograph` (embedded, procedural); a folder of images, nested or flat; WebDataset shards
    (a folder of .tar files, or DIR/shard-{000..009}.tar); arrays (.npz, .safetensors with images
    and perhaps labels; .npy); torchvision:NAME:FOLDER (never downloaded). Sounds:
    `tones` (embedded, procedural), or a folder of WAV, FLAC, OGG and MP3 files."""
    recipe: str | None = None
    """Whose defaults the run has: cifar10, cifar100, tinyimagenet, imagenet100 or imagenet, as the
    paper has them (docs/methods.md). Default: by the kind of --data."""
    augment: str = "spirograph"
    """Policy that the views are drawn from. Folders: simclr, mocov2, invclr, swav, dissl,
    dissl-coarse, byol, byol-1, byol-2, amortised-2, amortised-5 or digits; spirograph:
    spirograph, spirograph-2, spirograph-geometry or spirograph-colour; sounds: mtslvr, clar or
    amortised-audio."""
    out: Path | None = None
    """Run folder. Default: runs/METHOD-DATA-N with the next free N."""
    backbone: str = "convnet"
    """Encoder: `convnet` (small, for 32 px), `mlp` or `mlp-F` (F features; for 8 px), or any
    torchvision or timm model name."""
    image_size: int = 32
    """Side of the square crops given to the encoder, in pixels. Sounds have 128 mel bands,
    whatever it is."""
    epochs: int | None = None
    """Passes over the training set. Ignored where --max-steps is given."""
    max_steps: int | None = None
    """Optimiser steps to run; wins over --epochs."""
    batch_size: int = 256
    """Samples per step; each gives two views or more. Negatives come from this batch. Under
    torchrun each rank takes an equal part of it, and negatives still come from all of it."""
    accumulate: int = 1
    """Micro-batches whose gradients are averaged per step. The negatives of each micro-batch are
    its own: accumulation saves memory but does not enlarge the contrastive batch."""
    lr: float = 1e-3
    """Base learning rate, multiplied by batch_size * accumulate / 256 (`--dry-run` prints both)."""
    weight_decay: float = 1e-6
    """Weight decay; biases and normalisation parameters are exempt."""
    optimizer: OptimizerName = "adamw"
    """Optimiser: adamw, sgd (momentum 0.9) or lars (momentum 0.9, trust coefficient 1e-3)."""
    warmup_steps: int = 0
    """Steps of linear warm-up before the cosine decay."""
    schedule: Literal["cosine", "oscillating"] = "cosine"
    """How the rate falls after the warm-up: once, to zero at the end of the run; or to zero in
    --half-period steps, back up in as many, and so on, as the authors of MT-SLVR train."""
    half_period: int = 1000
    """Steps in which the oscillating rate falls to zero; its period is twice as long."""
    precision: Precision = "auto"
    """auto: bf16 autocast on CUDA, fp32 on CPU."""
    front: Literal["logmel", "mel-magnitude-phase"] = "logmel"
    """What the encoder is given of sounds: their log-mel, or MT-SLVR's three channels."""
    sync_bn: bool = False
    """Under torchrun: batch normalisation over the samples of all ranks, as in one process."""
    compile: bool = False
    """Compile the training step with torch.compile."""
    factor: str = "timbre"
    """Label of tones that the run is scored by: timbre, pitch_class, octave, envelope, modulation
    or noise."""
    seed: int = 0
    """Keys every random draw of data, augmentation and initial weights."""
    workers: int = 2
    """Threads that decode and augment images. The batches do not depend on it."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    resume: bool = False
    """Continue the run in --out from its newest intact checkpoint."""
    overwrite: bool = False
    """Delete the run in --out and start anew."""
    save_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk (at least 2)."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    readout_every: int = 0
    """Steps between live readouts (probe and kNN on held-out data). 0: five times per run."""
    max_bad_steps: int = 3
    """Stop after this many consecutive steps whose loss or gradient was not finite."""
    max_bad_files: float | None = None
    """Stop when more than this fraction of the files cannot be used. Default: never; such files are
    named, left out, counted, and reported at the end."""
    tensorboard: bool = False
    """Also log to TensorBoard (needs the [tensorboard] extra)."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the [wandb] extra); offline, into the run folder, unless
    WANDB_MODE says otherwise."""
    trackio: bool = False
    """Also log to trackio (needs the [trackio] extra), on this machine, into the run folder unless
    TRACKIO_DIR says otherwise."""
    dry_run: bool = False
    """Print the resolved plan and stop."""
    preview: int = 0
    """Draw this many images with the views that --augment makes of them beside, as a PNG in the
    current folder, and stop: nothing is trained."""


def scaled_lr(config: TrainConfig) -> float:
    """Learning rate after the linear rule: ``lr * batch_size * accumulate / 256``."""
    return config.lr * config.batch_size * config.accumulate / 256


def as_plain(config: Any) -> dict:
    """A dataclass as nested dicts of plain values, ready for YAML and JSON."""

    def plain(value: object) -> object:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return value

    return {key: plain(value) for key, value in dataclasses.asdict(config).items()}
