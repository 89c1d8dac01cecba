"""Each method's own settings. Imports no torch: ``--help`` must stay fast.

Every attribute's comment is its help text on the command line and its meaning in ``config.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR (Chen et al. 2020, arXiv:2002.05709)."""

    temperature: float = 0.5
    """Divides the cosine similarities. Lower weighs the nearest negatives more."""
    projector_dims: tuple[int, ...] = (128, 64)
    """Widths of the projection head's layers; the last one is the embedding."""
