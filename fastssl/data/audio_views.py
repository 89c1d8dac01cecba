"""From clips to a batch: the policy's table, the views; and the front end's images of clips."""

# shapes: N clips, V views, T samples, C channels, M mel bands, F frames
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.augment.audio_policies import AUDIO_POLICIES, AudioPolicy, draw_waveforms
from fastssl.augment.drawn import Drawn
from fastssl.augment.sampling import corner_at
from fastssl.augment.waveform import augment_waveforms
from fastssl.data.batch import Batch
from fastssl.nn.logmel import LogMel

_READOUT_SEED = 0x5EED  # of the views that are only looked at


@dataclass(frozen=True, kw_only=True)
class AudioViews:
    """How clips become views; ``front`` turns (N, T) into (N, C, M, F).

    handed: what a batch holds: images, or waveforms for a method that has the front end itself
    (nn.hearing), so that it runs in the training step.
    """

    policy: AudioPolicy = AUDIO_POLICIES["mtslvr"]
    num_views: int = 2
    front: nn.Module = field(default_factory=LogMel)
    sample_rate: int = 16_000
    seconds: float = 1.0
    handed: Literal["images", "waveforms"] = "images"

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {self.num_views}")
        if self.samples <= 1024:
            raise ValueError(
                f"seconds: expected more than {1024 / self.sample_rate:g} at "
                f"{self.sample_rate} Hz, received {self.seconds:g}"
            )

    @property
    def samples(self) -> int:
        """Samples of one clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, M, F) of one clip in front of the encoder."""
        channels, bands, frames = self.clean(torch.zeros(1, self.samples))[0].shape
        return channels, bands, frames

    @torch.no_grad()
    def clean(self, x_NT: Tensor) -> Tensor:
        """(N, C, M, F) of clips as they are."""
        return self.front.to(x_NT.device)(x_NT)

    @property
    def varied(self) -> tuple[str, ...]:
        """The operators that ``redrawn`` can run alone."""
        return self.policy.operators

    @torch.no_grad()
    def redrawn(
        self, x_NT: Tensor, index_N: np.ndarray, *, draw: int, only: str | None = None
    ) -> Tensor:
        """(N, C, M, F): one view of each clip, keyed by ``draw`` apart from those of training.

        only: one of ``varied``; the others do not run. All groups of the policy are on.
        """
        policy = self.policy
        if only is not None:
            policy = replace(policy, operators=(only,), groups=(), corners=(), least=1, most=1)
        table = draw_waveforms(policy, seed=_READOUT_SEED, epoch=draw, index_N=index_N, num_views=1)
        return self.clean(augment_waveforms(x_NT, table)[0])

    @torch.no_grad()
    def batch(
        self,
        x_NT: Tensor,
        *,
        slot_N: np.ndarray,
        index_N: np.ndarray,
        seed: int,
        epoch: int,
        step: int = 0,
    ) -> Batch:
        """The views of clips (N, T) on their device, their table as ``table.waveforms``.

        ``slot_N`` keys the draws, ``index_N`` says which samples the clips are: they differ where
        one clip stands in for another. ``step`` chooses the groups, where the policy has some.
        """
        corners = self.policy.corners
        position = corner_at(len(corners), seed=seed, step=step) if corners else 0
        bits = corners[position] if corners else None
        table = draw_waveforms(
            self.policy,
            seed=seed,
            epoch=epoch,
            index_N=slot_N,
            num_views=self.num_views,
            bits_G=bits,
        )
        views: tuple[Tensor, ...] = augment_waveforms(x_NT, table).unbind()
        if self.handed == "images":
            views = tuple(map(self.clean, views))
        index = torch.from_numpy(np.ascontiguousarray(index_N)).to(x_NT.device)
        labels_VNO = table.labels().to(torch.int8)
        bits_K = torch.tensor(bits or (), dtype=torch.float32, device=x_NT.device)
        corner = torch.tensor(position, device=x_NT.device)
        drawn = Drawn(labels_VNO=labels_VNO, bits_K=bits_K, corner=corner, waveforms=table)
        return Batch(views, index, drawn)
