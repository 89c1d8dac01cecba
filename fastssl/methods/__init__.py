"""One paper, one file. METHODS names them, and imports neither them nor torch."""

from __future__ import annotations

from fastssl.methods.configs import SimCLRConfig

METHODS: dict[str, tuple[type, str]] = {
    "simclr": (SimCLRConfig, "fastssl.methods.simclr:SimCLR"),
}
