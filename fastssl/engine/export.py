"""export/: the backbone alone, in a format everyone reads, with a card that says what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastssl.engine.files import write_bytes, write_text
from fastssl.engine.run_folder import RunFolder

CHECKSUMS = "SHA256SUMS"
_HEARD = {
    "logmel": "log-mel (N, 1, 128, F) of 16 kHz clips, by fastssl.nn.logmel.LogMel()",
    "mel-magnitude-phase": "log-mel, log magnitude and phase (N, 3, 128, F) of 16 kHz clips, by "
    "fastssl.nn.logmel.MelMagnitudePhase()",
}


@dataclass(frozen=True)
class Score:
    """A number and how it was measured."""

    name: str
    value: float
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the reader of the weights must know."""

    method: str
    data: str
    steps: int
    backbone: str
    image_size: int
    snippet: str
    """Two lines of Python that load the weights into a plain model."""
    scores: Sequence[Score] = field(default=())
    notes: str = ""
    front: str | None = None
    """Name of the front end where the input is of sounds, not an image."""


def export_backbone(run: RunFolder, backbone: nn.Module, *, card: Card) -> Path:
    """Write export/backbone.safetensors (the backbone's own keys), its checksum and its card.

    The checksum is in the form that ``sha256sum -c SHA256SUMS`` reads.
    """
    state = backbone.state_dict()
    wrapped = [key for key in state if key.startswith(("_orig_mod.", "module.", "backbone."))]
    assert not wrapped, f"wrapped keys {wrapped[:3]}: export the plain module"
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    run.export.mkdir(exist_ok=True)
    path = run.export / "backbone.safetensors"
    content = safetensors.torch.save(tensors, metadata={"format": "pt"})
    write_bytes(path, content)
    write_text(path.with_name(CHECKSUMS), _checksum_line(path, content))
    write_text(run.export / "README.md", _card_text(card))
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of an export, compared with the checksum beside it where there is one.

    Raises:
        ValueError: the file is damaged, or is not the one that was exported.
    """
    content, beside = path.read_bytes(), path.with_name(CHECKSUMS)
    if beside.is_file() and beside.read_text(encoding="utf-8") != _checksum_line(path, content):
        raise ValueError(
            f"{path} is damaged: its SHA-256 differs from {beside.name}; export it again by "
            "repeating the training command with --resume, or remove that file if you changed it"
        )
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _checksum_line(path: Path, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"


def _input(card: Card) -> str:
    if card.front is not None:
        return _HEARD[card.front]
    side = card.image_size
    return f"{side} x {side} pixels, normalised as in training (config.yaml of the run)"


def _card_text(card: Card) -> str:
    rows = [f"| {s.name} | {s.value:.4g} | {s.protocol} |" for s in card.scores]
    scores = ["| score | value | protocol |", "|---|---|---|", *rows] if rows else ["not measured"]
    lines = [
        f"# {card.backbone}, trained by {card.method} on {card.data}",
        "",
        f"Encoder weights after {card.steps} steps of fastssl. Input: {_input(card)}.",
        "",
        "From the run's folder:",
        "",
        "```python",
        card.snippet.strip(),
        "```",
        "",
        *scores,
        "",
        "Licence: these weights are yours, under the terms of the data that you trained on. "
        "fastssl claims nothing about them.",
    ]
    return "\n".join([*lines, *(["", card.notes] if card.notes else [])]) + "\n"
